//! Against a control plane that gives scripted answers.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::sync::Notify;
use warp::Filter;
use warp::http::{HeaderMap, StatusCode as Status};
use warp::reply::{Reply, with_status};

use super::*;

const EMPTY: &str = r#"{"status":"empty","spec":null,"compute_ctl_config":{"jwks":{"keys":[]}}}"#;
const ATTACHED: &str = r#"{"status":"attached","compute_ctl_config":{"jwks":{"keys":[]}},"spec":{
    "format_version":1.0,"suspend_timeout_seconds":-1,"cluster":{"roles":[],"databases":[]}}}"#;

/// A control plane that gives these answers, one after another, and then the last one for ever. A `None`
/// is no answer at all.
async fn fake(answers: Vec<Option<(Status, &'static str)>>) -> (Source, Arc<AtomicUsize>, Arc<Notify>) {
    init_tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
    let base = format!("http://{}", listener.local_addr().expect("it is bound"));
    let (asked, arrived) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (count, arrival) = (asked.clone(), arrived.clone());
    let routes = warp::path!("compute" / "api" / "v2" / "computes" / "ep" / "0" / "spec")
        .and(warp::get())
        .and(warp::header::exact("authorization", "Bearer token-of-the-test"))
        .then(move || {
            let index = count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
            let answer = answers[index];
            arrival.notify_one();
            async move {
                match answer {
                    Some((status, body)) => with_status(body, status).into_response(),
                    None => std::future::pending().await,
                }
            }
        });
    tokio::spawn(warp::serve(routes).incoming(listener).run());
    let Source::ControlPlane(mut control_plane) = Source::control_plane(&base, "ep/0") else {
        unreachable!("it was made as one")
    };
    control_plane.token = || Secret::new("token-of-the-test");
    (Source::ControlPlane(control_plane), asked, arrived)
}

async fn fetch(source: &Source, metrics: &Metrics) -> Result<ComputeConfig, FetchError> {
    source.fetch(metrics, &CancellationToken::new()).await
}

#[track_caller]
fn assert_counted(metrics: &Metrics, http_status: &str, times: usize) {
    let text = metrics.render(0).expect("it can be encoded");
    let line = format!(
        r#"compute_ctl_cplane_requests_total{{http_status="{http_status}",rpc="GetConfig"}} {times}"#
    );
    assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
}

#[tokio::test]
async fn an_attached_compute_gets_its_spec() {
    let (source, asked, _) = fake(vec![Some((Status::OK, ATTACHED))]).await;
    let metrics = Metrics::new();
    let config = fetch(&source, &metrics).await.expect("it is all right");
    assert!(config.spec.is_some());
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_counted(&metrics, "200 OK", 1);
}

#[tokio::test]
async fn an_empty_compute_gets_none() {
    let (source, ..) = fake(vec![Some((Status::OK, EMPTY))]).await;
    assert!(fetch(&source, &Metrics::new()).await.expect("it is all right").spec.is_none());
}

#[tokio::test]
async fn a_control_plane_that_restarts_is_asked_again() {
    let (source, asked, _) = fake(vec![
        Some((Status::SERVICE_UNAVAILABLE, "")),
        Some((Status::BAD_GATEWAY, "")),
        Some((Status::OK, ATTACHED)),
    ])
    .await;
    let metrics = Metrics::new();
    assert!(fetch(&source, &metrics).await.expect("the third time").spec.is_some());
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    assert_counted(&metrics, "503 Service Unavailable", 1);
    assert_counted(&metrics, "502 Bad Gateway", 1);
    assert_counted(&metrics, "200 OK", 1);
}

#[tokio::test]
async fn so_is_one_that_has_too_much_to_do() {
    let (source, asked, _) = fake(vec![
        Some((Status::TOO_MANY_REQUESTS, "")),
        Some((Status::GATEWAY_TIMEOUT, "")),
        Some((Status::OK, EMPTY)),
    ])
    .await;
    assert!(fetch(&source, &Metrics::new()).await.expect("the third time").spec.is_none());
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

/// Two control planes, of which the first sends everybody to the second; what the second was told of the token.
async fn redirecting(
    to: impl Fn(&str, u16) -> String,
) -> (Result<ComputeConfig, FetchError>, Vec<bool>, usize) {
    init_tls();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sent = Arc::new(AtomicUsize::new(0));
    let second = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
    let first = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
    let port = |listener: &TcpListener| listener.local_addr().expect("it is bound").port();
    let location = to(&format!("127.0.0.1:{}", port(&first)), port(&second));
    let base = format!("http://127.0.0.1:{}", port(&first));
    let all = |headers: &HeaderMap| headers.contains_key("authorization");
    let told = seen.clone();
    let answering = warp::header::headers_cloned().map(move |headers: HeaderMap| {
        told.lock().expect("nobody panics").push(all(&headers) || headers.contains_key("referer"));
        EMPTY
    });
    let (told, count) = (seen.clone(), sent.clone());
    let sending = warp::path("compute").and(warp::header::headers_cloned()).map(move |_: HeaderMap| {
        count.fetch_add(1, Ordering::SeqCst);
        warp::http::Response::builder().status(307).header("location", &location).body("").expect("it is one")
    });
    let here = warp::path("here").and(warp::header::headers_cloned()).map(move |headers: HeaderMap| {
        told.lock().expect("nobody panics").push(all(&headers));
        EMPTY
    });
    tokio::spawn(warp::serve(sending.or(here)).incoming(first).run());
    tokio::spawn(warp::serve(answering).incoming(second).run());
    let result = fetch(&Source::control_plane(&base, "ep"), &Metrics::new()).await;
    let told = seen.lock().expect("nobody panics").clone();
    (result, told, sent.load(Ordering::SeqCst))
}

#[tokio::test]
async fn a_redirect_is_followed_with_the_token_on_the_same_host_only() {
    let (result, told, _) = redirecting(|first, _| format!("http://{first}/here")).await;
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(told, [true]);
    for host in ["127.0.0.1", "localhost"] {
        let (result, told, _) = redirecting(|_, second| format!("http://{host}:{second}/there")).await;
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(told, [false], "{host}");
    }
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let (result, _, sent) = redirecting(|first, _| format!("http://{first}/compute/again")).await;
    let error = result.expect_err("there is no end");
    let cause = error.source().expect("the last attempt").to_string();
    assert_eq!(
        cause,
        format!("the control plane redirects more than {} times", limits::CONTROL_PLANE_REDIRECTS)
    );
    assert_eq!(sent, limits::CONTROL_PLANE_ATTEMPTS * (1 + limits::CONTROL_PLANE_REDIRECTS));
}

#[test]
fn all_attempts_together_end_before_the_work_does() {
    let attempts = u32::try_from(limits::CONTROL_PLANE_ATTEMPTS).expect("a few");
    let longest = limits::CONTROL_PLANE_REQUEST * attempts + limits::CONTROL_PLANE_PAUSE_MAX * (attempts - 1);
    let deadline = limits::work_deadline(crate::engine::Work::FetchSpec { applied: None });
    assert!(longest < deadline, "{longest:?} and {deadline:?}");
    for attempts in [1, 2, 3, 10, usize::MAX] {
        let (shortest, middle, longest) =
            (pause(attempts, 0), pause(attempts, u32::MAX / 2), pause(attempts, u32::MAX));
        assert!(shortest > Duration::ZERO && shortest < middle && middle <= longest, "{attempts}");
        assert!(longest <= limits::CONTROL_PLANE_PAUSE_MAX, "{attempts}");
    }
    assert!(pause(2, 0) == 2 * pause(1, 0));
}

#[tokio::test]
async fn the_third_failure_is_the_last() {
    let (source, asked, _) = fake(vec![Some((Status::SERVICE_UNAVAILABLE, ""))]).await;
    let error = fetch(&source, &Metrics::new()).await.expect_err("it never answers");
    assert_eq!(error.to_string(), "Exhausted all attempts to retrieve the config from the control plane");
    assert_eq!(error.class(), FailureClass::Transient);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

/// With a clock that goes on by itself as soon as there is nothing to do but wait.
#[tokio::test]
async fn a_wish_to_be_left_alone_is_granted() {
    init_tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
    let base = format!("http://{}", listener.local_addr().expect("it is bound"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let note = asked.clone();
    let busy = warp::any().map(move || {
        note.lock().expect("nobody panics").push(tokio::time::Instant::now());
        let answer = warp::http::Response::builder().status(503).header("retry-after", "2");
        answer.body("").expect("it is one")
    });
    tokio::spawn(warp::serve(busy).incoming(listener).run());
    tokio::time::pause();
    fetch(&Source::control_plane(&base, "ep"), &Metrics::new()).await.expect_err("it is always busy");
    let asked = asked.lock().expect("nobody panics").clone();
    assert_eq!(asked.len(), limits::CONTROL_PLANE_ATTEMPTS);
    // Far more than the pauses it would make by itself.
    assert!(asked.windows(2).all(|two| two[1] - two[0] >= Duration::from_secs(2)), "{asked:?}");
}

#[tokio::test]
async fn garbage_is_worth_another_attempt_and_is_not_quoted() {
    let wrong = r#"{"status":"empty","spec":"hunter2","compute_ctl_config":{"jwks":{"keys":[]}}}"#;
    let (source, asked, _) = fake(vec![Some((Status::OK, "<html>")), Some((Status::OK, wrong))]).await;
    let metrics = Metrics::new();
    let error = fetch(&source, &metrics).await.expect_err("it is never right");
    let cause = error.source().expect("the last attempt").to_string();
    assert!(cause.contains("spec: invalid type, expected struct ComputeSpec"), "{cause}");
    assert!(!cause.contains("hunter2"), "{cause}");
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    assert_counted(&metrics, "200 OK", 3);
}

#[tokio::test]
async fn any_other_status_is_final() {
    for (status, text) in [
        (Status::NOT_FOUND, "404 Not Found"),
        (Status::UNAUTHORIZED, "401 Unauthorized"),
        (Status::INTERNAL_SERVER_ERROR, "500 Internal Server Error"),
    ] {
        let (source, asked, _) = fake(vec![Some((status, ATTACHED))]).await;
        let metrics = Metrics::new();
        let error = fetch(&source, &metrics).await.expect_err("it said no");
        assert_eq!(error.to_string(), format!("unexpected control plane response status code: {text}"));
        assert_eq!(error.class(), FailureClass::Permanent);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_counted(&metrics, text, 1);
    }
}

#[tokio::test]
async fn attached_without_a_spec_is_final() {
    let body = r#"{"status":"attached","compute_ctl_config":{"jwks":{"keys":[]}}}"#;
    let (source, asked, _) = fake(vec![Some((Status::OK, body))]).await;
    let error = fetch(&source, &Metrics::new()).await.expect_err("it contradicts itself");
    assert_eq!(error.to_string(), "compute is attached, but spec is empty");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_fetch_that_hangs_ends_when_it_is_cancelled() {
    let (source, _, arrived) = fake(vec![None]).await;
    let (metrics, token) = (Metrics::new(), CancellationToken::new());
    let cancel = async {
        arrived.notified().await;
        token.cancel();
    };
    let (result, ()) = tokio::join!(source.fetch(&metrics, &token), cancel);
    assert!(matches!(result, Err(FetchError::Cancelled)), "{result:?}");
}

/// With a clock that goes on by itself as soon as there is nothing to do but wait.
#[tokio::test]
async fn one_that_never_answers_is_given_up() {
    let (source, ..) = fake(vec![None]).await;
    tokio::time::pause();
    let metrics = Metrics::new();
    let error = fetch(&source, &metrics).await.expect_err("there is no answer");
    let cause = error.source().expect("the last attempt").to_string();
    assert_eq!(cause, "the control plane's answer was not there within 30s");
    assert_eq!(error.class(), FailureClass::Transient);
    assert_counted(&metrics, "unknown", limits::CONTROL_PLANE_ATTEMPTS);
}

#[tokio::test]
async fn nobody_there_is_counted_and_names_no_url() {
    init_tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
    let base = format!("http://user:hunter2@{}", listener.local_addr().expect("it is bound"));
    drop(listener);
    let metrics = Metrics::new();
    let error = fetch(&Source::control_plane(&base, "ep"), &metrics).await.expect_err("nobody listens");
    let chain = crate::engine::WorkError::new(error.class(), &error).text;
    assert!(chain.contains("Connection refused"), "{chain}");
    assert!(!chain.contains("hunter2"), "{chain}");
    assert_counted(&metrics, "unknown", 3);
}

#[tokio::test]
async fn a_file_is_read_anew_each_time() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("config.json");
    let source = Source::File { path: path.clone(), shape: Shape::Config };
    let metrics = Metrics::new();
    let error = fetch(&source, &metrics).await.expect_err("there is none");
    assert!(error.to_string().contains("config.json"), "{error}");
    for (text, attached) in [(ATTACHED, true), (EMPTY, false), (ATTACHED, true)] {
        std::fs::write(&path, text).expect("it can be written");
        let config = fetch(&source, &metrics).await.expect("it is all right");
        assert_eq!(config.spec.is_some(), attached);
    }
    std::fs::write(&path, "{\"spec\":").expect("it can be written");
    let error = fetch(&source, &metrics).await.expect_err("it is only half a file");
    assert_eq!(error.class(), FailureClass::Transient);
    assert!(error.to_string().contains("EOF while parsing"), "{error}");
}

#[test]
fn loopback_is_recognised_in_all_its_forms() {
    for (url, expected) in [
        ("http://127.0.0.1:80/x", true),
        ("http://[::1]:80/x", true),
        ("http://localhost/x", true),
        ("http://control.example/x", false),
        ("http://10.0.0.1/x", false),
    ] {
        assert_eq!(is_loopback(url), expected, "{url}");
    }
}
