//! The sub-commands against a compute whose answers are written down.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use warp::Filter;
use warp::http::{Method, StatusCode};
use warp::path::FullPath;
use warp::reply::{Reply, Response, with_status};

use super::*;
use crate::cli::streams::captured;
use crate::control_plane;

/// What was asked: method, path with query and the last event that is known, token, body.
type Asked = (String, String, String, String);

/// A compute that answers by `answer`, and what it was asked.
struct Fake {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Where connections with requests came from.
    peers: Arc<Mutex<BTreeSet<Option<SocketAddr>>>>,
    /// Ends the server when it is dropped.
    _runtime: tokio::runtime::Runtime,
}

fn fake(answer: impl Fn(&str) -> Response + Clone + Send + Sync + 'static) -> Fake {
    control_plane::init_tls();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let peers = Arc::new(Mutex::new(BTreeSet::new()));
    let (note, peer) = (asked.clone(), peers.clone());
    let routes = warp::method()
        .and(warp::path::full())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::header::optional::<String>("authorization"))
        .and(warp::header::optional::<String>("last-event-id"))
        .and(warp::body::bytes())
        .and(warp::addr::remote())
        .map(
            move |method: Method,
                  path: FullPath,
                  query: String,
                  token: Option<String>,
                  last_event: Option<String>,
                  body: bytes::Bytes,
                  from: Option<SocketAddr>| {
                peer.lock().expect("no test panics in it").insert(from);
                let query = if query.is_empty() { query } else { format!("?{query}") };
                let after = last_event.map(|id| format!(" after {id}")).unwrap_or_default();
                note.lock().expect("no test panics in it").push((
                    method.to_string(),
                    format!("{}{query}{after}", path.as_str()),
                    token.unwrap_or_default(),
                    String::from_utf8_lossy(&body).into_owned(),
                ));
                answer(path.as_str())
            },
        );
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    runtime.spawn(warp::serve(routes).incoming(listener).run());
    Fake { address, asked, peers, _runtime: runtime }
}

impl Fake {
    fn requests(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test panics in it").clone()
    }

    /// The same without tokens and bodies.
    fn lines(&self) -> Vec<String> {
        self.requests().into_iter().map(|(method, path, ..)| format!("{method} {path}")).collect()
    }

    fn compute(&self) -> Compute {
        Compute::new(&format!("http://{}", self.address), Some(Secret::new("t"))).expect("an address")
    }

    fn run(&self, act: Act, json: bool) -> (ExitCode, String, String) {
        self.seen(act, json, false)
    }

    fn seen(&self, act: Act, json: bool, terminal: bool) -> (ExitCode, String, String) {
        let compute = self.compute();
        captured(terminal, |streams| run(&RemoteOptions { compute, act, json }, streams))
    }
}

/// Just a code.
fn code(code: StatusCode) -> Response {
    code.into_response()
}

fn status(status: &str) -> Value {
    json!({ "start_time": "2025-07-31T12:00:00Z", "tenant": null, "timeline": null, "status": status,
            "last_active": null, "error": null })
}

fn answers(body: &Value) -> Response {
    warp::reply::json(body).into_response()
}

/// Far longer than anything here takes.
const BOUND: Duration = Duration::from_secs(60);

const STATUS: Act = Act::Status { watch: false, until: None, timeout: None };

#[test]
fn the_exit_code_of_status_is_what_the_compute_says_of_its_readiness() {
    for (name, ready, exit) in [
        ("running", StatusCode::OK, ExitCode::Ok),
        ("running", StatusCode::SERVICE_UNAVAILABLE, ExitCode::NotServing),
        // Of these the name alone does not tell.
        ("failed", StatusCode::OK, ExitCode::Ok),
        ("failed", StatusCode::SERVICE_UNAVAILABLE, ExitCode::NotServing),
        ("configuration_pending", StatusCode::OK, ExitCode::Ok),
        ("refresh_configuration_pending", StatusCode::SERVICE_UNAVAILABLE, ExitCode::NotServing),
        // The original has no such probe.
        ("running", StatusCode::NOT_FOUND, ExitCode::Ok),
        ("configuration", StatusCode::NOT_FOUND, ExitCode::Ok),
        ("empty", StatusCode::NOT_FOUND, ExitCode::NotServing),
        ("failed", StatusCode::NOT_FOUND, ExitCode::NotServing),
    ] {
        let fake = fake(move |path| if path == "/readyz" { code(ready) } else { answers(&status(name)) });
        let (exited, out, err) = fake.run(STATUS, false);
        assert_eq!((exited, err.as_str()), (exit, ""), "{name}, {ready}");
        assert!(out.starts_with(&format!("status       {}\n", name.replace('_', "-"))), "{out}");
        let (exited, out, _) = fake.run(STATUS, true);
        assert_eq!((exited, serde_json::from_str::<Value>(&out).ok()), (exit, Some(status(name))), "{ready}");
        let asked = ("GET".to_owned(), "/status".to_owned(), "Bearer t".to_owned(), String::new());
        assert_eq!(fake.requests()[0], asked);
    }
}

#[test]
fn a_compute_that_waits_for_its_spec_does_not_serve_and_says_why() {
    let fake = waiting_at_first(usize::MAX);
    let (exit, out, err) = fake.run(STATUS, false);
    assert_eq!((exit, out.as_str()), (ExitCode::NotServing, ""));
    assert!(err.contains("503 Service Unavailable: the spec is being waited for"), "{err}");
    let (exit, out, err) = fake.run(STATUS, true);
    assert_eq!((exit, err.as_str()), (ExitCode::NotServing, ""));
    assert!(out.contains("the spec is being waited for"), "{out}");
    // What is no status has failed, as ever.
    assert_eq!(fake.run(Act::Refresh, false).0, ExitCode::Failure);
}

#[test]
fn one_connection_serves_all_that_is_asked() {
    let fake = played(&["running"], None);
    assert_eq!(fake.run(STATUS, false).0, ExitCode::Ok);
    assert_eq!(fake.lines(), ["GET /status", "GET /readyz"]);
    assert_eq!(fake.peers.lock().expect("no test panics in it").len(), 1);
}

#[test]
fn a_request_is_sent_nowhere_else() {
    for to in [StatusCode::MOVED_PERMANENTLY, StatusCode::FOUND, StatusCode::TEMPORARY_REDIRECT] {
        let fake = fake(move |path| match path {
            "/refresh_configuration" => {
                warp::reply::with_header(code(to), "location", "/elsewhere").into_response()
            }
            _ => warp::reply().into_response(),
        });
        let (exit, out, err) = fake.run(Act::Refresh, false);
        assert_eq!((exit, out.as_str()), (ExitCode::Failure, ""), "{to}");
        assert!(err.contains(&format!("{to}: it points to /elsewhere")), "{err}");
        assert_eq!(fake.lines(), ["POST /refresh_configuration"]);
    }
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let environment = |url: &'static str, token: &'static str| {
        move |name: &str| match name {
            URL_VARIABLE => Some(OsString::from(url)),
            TOKEN_VARIABLE => Some(OsString::from(token)),
            _ => None,
        }
    };
    let var = environment("", "");
    let made = |url: Option<&str>, token: Option<&str>, var: &dyn Fn(&str) -> Option<OsString>| {
        let environment = Environment { var, root: false };
        compute(url.map(str::to_owned), token.map(Secret::new), environment).ok()
    };
    let local = made(None, None, &var).expect("the usual one");
    assert_eq!(format!("{local:?}"), format!("Compute({URL:?})"));
    let fake = played(&["running"], None);
    let url = format!("http://{}", fake.address);
    for (given, variable, sent) in
        [(None, "", ""), (Some(""), "t", ""), (None, "t", "Bearer t"), (Some("x"), "t", "Bearer x")]
    {
        let var = environment("", variable);
        let compute = made(Some(&url), given, &var).expect("an address");
        let options = RemoteOptions { compute, act: STATUS, json: false };
        assert_eq!(captured(false, |streams| run(&options, streams)).0, ExitCode::Ok);
        assert_eq!(fake.requests().last().expect("it was asked").2, sent, "{given:?}, {variable:?}");
    }
    // One that was written is meant: another compute must not take its place.
    let var = environment("http://x", "");
    assert!(made(Some(""), None, &var).is_none());
}

#[test]
fn a_refusal_is_told_in_the_computes_words() {
    let refused = |code, body: &'static str| {
        fake(move |_| with_status(body, StatusCode::from_u16(code).expect("a code")).into_response())
    };
    let fake = refused(401, r#"{"error":"failed to verify authorization token"}"#);
    let (code, out, err) = fake.run(STATUS, false);
    assert_eq!((code, out.as_str()), (ExitCode::Failure, ""));
    assert!(err.contains("401 Unauthorized: failed to verify authorization token"), "{err}");
    let (_, out, err) = fake.run(STATUS, true);
    assert!(err.is_empty() && out.contains(r#"{"error":"the compute at "#), "{out}");

    let busy = refused(409, r#"{"error":"the compute is not idle"}"#);
    let act = |if_idle| Act::Terminate { mode: Mode::Fast, if_idle };
    assert_eq!(busy.run(act(true), false).0, ExitCode::Busy);
    assert_eq!(busy.run(act(false), false).0, ExitCode::Failure);
    assert_eq!(busy.lines(), ["POST /terminate?if_idle=true", "POST /terminate?mode=fast"]);
    // Bare text, as of a wrong query, and text that would reach the terminal.
    let (_, _, err) = refused(400, "Failed to \u{1b}[2J").run(STATUS, false);
    assert!(err.contains("Failed to") && !err.contains('\u{1b}'), "{err}");
}

#[test]
fn a_termination_tells_where_the_log_ends() {
    let act = || Act::Terminate { mode: Mode::Fast, if_idle: false };
    for (code, body, text) in [
        (200, r#"{"lsn":"0/28F10D8"}"#, "Postgres is down, the write-ahead log ends at 0/28F10D8\n"),
        (201, r#"{"lsn":null}"#, "Postgres was down\n"),
        (200, "", "Postgres is down\n"),
    ] {
        let fake =
            fake(move |_| with_status(body, StatusCode::from_u16(code).expect("a code")).into_response());
        assert_eq!(fake.run(act(), false), (ExitCode::Ok, text.to_owned(), String::new()));
    }
}

#[test]
fn a_compute_that_knows_no_condition_is_not_terminated_on_one() {
    // As the original answers where no mode is named.
    const MISSING: &str = "Failed to deserialize query string: missing field `mode`";
    let original = || {
        fake(|path| match path {
            "/terminate" => with_status(MISSING, StatusCode::BAD_REQUEST).into_response(),
            _ => code(StatusCode::NOT_FOUND),
        })
    };
    let act = |mode| Act::Terminate { mode, if_idle: true };
    // Its one parameter is not the condition.
    let other = json!({ "paths": { "/terminate": { "post": { "parameters": [{ "name": "mode" }] } } } });
    let other = fake(move |_| answers(&other));
    for (fake, mode, asked) in [
        (original(), Mode::Fast, "POST /terminate?if_idle=true"),
        (original(), Mode::Immediate, "GET /openapi.json"),
        (other, Mode::Immediate, "GET /openapi.json"),
    ] {
        let (exit, out, err) = fake.run(act(mode), false);
        assert_eq!((exit, out.as_str()), (ExitCode::Failure, ""));
        assert!(err.contains("has no conditional termination; nothing was done"), "{err}");
        assert_eq!(fake.lines(), [asked]);
    }
    let knows = json!({ "paths": { "/terminate": { "post": { "parameters": [{ "name": "if_idle" }] } } } });
    let ours = fake(move |path| match path {
        "/openapi.json" => answers(&knows),
        _ => with_status(r#"{"error":"busy"}"#, StatusCode::CONFLICT).into_response(),
    });
    assert_eq!(ours.run(act(Mode::Immediate), false).0, ExitCode::Busy);
    assert_eq!(ours.lines(), ["GET /openapi.json", "POST /terminate?mode=immediate&if_idle=true"]);
    // Whatever else is in the way is told as it is.
    let (_, _, err) = waiting_at_first(usize::MAX).run(act(Mode::Immediate), false);
    assert!(err.contains("the spec is being waited for"), "{err}");
}

#[test]
fn a_refresh_and_a_history_are_asked_for() {
    let fake = fake(|path| match path {
        "/history" => answers(&json!({ "dropped": 2, "transitions": [
            { "seq": 3, "from": "empty", "to": "init", "label": "spec", "time": "T", "lasted_ms": 20 }] })),
        _ => warp::reply().into_response(),
    });
    assert_eq!(fake.run(Act::Refresh, false).0, ExitCode::Ok);
    let (code, out, _) = fake.run(Act::History { limit: Some(7) }, false);
    assert_eq!(code, ExitCode::Ok);
    assert_eq!(out, "(2 earlier ones are not kept any more)\nT  empty -> init after 0.0 s: spec\n");
    assert_eq!(fake.lines(), ["POST /refresh_configuration", "GET /history?limit=7"]);
}

#[test]
fn a_bare_spec_is_sent_as_computes_take_it_and_a_bad_one_not_at_all() {
    let fake = fake(|_| answers(&status("running")));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("spec.json");
    let act = || Act::Configure { file: file.clone() };
    let spec = r#"{"format_version":1.0,"suspend_timeout_seconds":-1,"storage":{"kind":"initdb"},
                   "cluster":{"roles":[],"databases":[]}}"#;
    std::fs::write(&file, spec).expect("an own directory");
    let (code, out, err) = fake.run(act(), false);
    assert_eq!((code, out.as_str()), (ExitCode::Ok, "configured; the compute is running\n"), "{err}");
    let body: Value = serde_json::from_str(&fake.requests()[0].3).expect("JSON");
    assert_eq!(body["compute_ctl_config"], json!({ "jwks": { "keys": [] } }));
    assert_eq!(body["spec"]["storage"]["kind"], "initdb");

    std::fs::write(&file, spec.replace("initdb", "floppy")).expect("an own directory");
    let (code, out, err) = fake.run(act(), false);
    assert_eq!((code, out.as_str()), (ExitCode::BadConfig, ""));
    assert!(err.contains("storage.kind"), "{err}");
    assert_eq!(fake.requests().len(), 1);
}

/// A compute that waits for its spec for so many requests and runs then, and tells no changes.
fn waiting_at_first(requests: usize) -> Fake {
    let left = Arc::new(Mutex::new(requests));
    fake(move |path| {
        let mut left = left.lock().expect("no test panics in it");
        if *left > 0 {
            *left -= 1;
            let body = json!({ "error": "the spec is being waited for" });
            return with_status(warp::reply::json(&body), StatusCode::SERVICE_UNAVAILABLE).into_response();
        }
        match path {
            "/status" => answers(&status("running")),
            _ => code(StatusCode::NOT_FOUND),
        }
    })
}

/// An answer that breaks off, as of a compute that has gone.
fn broken_off() -> Response {
    let pieces = futures_util::stream::iter([Err::<bytes::Bytes, _>(io::Error::other("gone"))]);
    warp::reply::stream(pieces).into_response()
}

/// Statuses one after another, then the last for ever; and events, if there are any. With `gone` it is no more.
fn played(statuses: &'static [&'static str], events: Option<&'static str>) -> Fake {
    let next = Arc::new(Mutex::new(statuses.iter().copied()));
    fake(move |path| match (path, events) {
        ("/events", Some(events)) => {
            warp::reply::with_header(events, "content-type", "text/event-stream").into_response()
        }
        ("/events", None) | ("/readyz" | "/startupz", _) => code(StatusCode::NOT_FOUND),
        _ => {
            let next = next.lock().expect("no test panics in it").next();
            match next.or(statuses.last().copied()).expect("there is one") {
                "gone" => broken_off(),
                name => answers(&status(name)),
            }
        }
    })
}

fn until(watch: bool, until: ComputeStatus) -> Act {
    Act::Status { watch, until: Some(until), timeout: None }
}

#[test]
fn a_status_is_waited_for_until_it_comes_or_will_not() {
    let running = played(&["empty", "init", "running"], None);
    let (code, out, _) = running.run(until(false, ComputeStatus::Running), false);
    assert_eq!(code, ExitCode::Ok);
    assert!(out.starts_with("status       running\n"), "{out}");
    let (_, out, _) = played(&["init", "running"], None).run(until(false, ComputeStatus::Running), true);
    assert_eq!(serde_json::from_str::<Value>(&out).ok(), Some(status("running")));
    for ends in [&["init", "failed"], &["init", "terminated"]] {
        let (code, out, _) = played(ends, None).run(until(false, ComputeStatus::Running), false);
        assert_eq!(code, ExitCode::NotServing, "{out}");
        assert!(out.starts_with(&format!("status       {}\n", ends[1])), "{out}");
    }
    let timeout =
        Act::Status { watch: false, until: Some(ComputeStatus::Running), timeout: Some(Duration::ZERO) };
    let (code, _, err) = played(&["init"], None).run(timeout, false);
    assert_eq!(code, ExitCode::NotServing);
    assert!(err.contains("not within 0.0 s"), "{err}");
}

#[test]
fn a_status_that_has_gone_by_was_reached() {
    let event = |number: u8, from: &str, to: &str| {
        format!(
            "event: transition\nid: {number}\ndata: {{\"from\":\"{from}\",\"to\":\"{to}\",\"time\":\"T\",\
             \"lasted_ms\":1}}\n\n"
        )
    };
    let events = event(1, "init", "running") + &event(2, "running", "configuration");
    let events = &*Box::leak((events + &event(3, "configuration", "running")).into_boxed_str());
    // The bound is for a client that misses it.
    let until = |watch, until| Act::Status { watch, until: Some(until), timeout: Some(BOUND) };
    let fake = || played(&["init", "running"], Some(events));
    let (exit, out, err) = fake().run(until(false, ComputeStatus::Configuration), false);
    assert_eq!((exit, err.as_str()), (ExitCode::Ok, ""), "{out}");
    assert!(out.starts_with("status       running\n"), "{out}");
    let (exit, out, _) = fake().run(until(false, ComputeStatus::Configuration), true);
    assert_eq!((exit, serde_json::from_str::<Value>(&out).ok()), (ExitCode::Ok, Some(status("running"))));
    let (exit, out, _) = fake().run(until(true, ComputeStatus::Configuration), false);
    assert!(exit == ExitCode::Ok && out.ends_with("T  running -> configuration after 0.0 s\n"), "{out}");
}

#[test]
fn after_a_crash_the_wait_goes_on_as_long_as_the_process_is_there() {
    let fake = |statuses: &'static [&'static str], ready, started| {
        let next = Mutex::new(statuses.iter().copied());
        let next = Arc::new(next);
        fake(move |path| match path {
            "/readyz" => code(ready),
            "/startupz" => code(started),
            "/status" => {
                let next = next.lock().expect("no test panics in it").next();
                answers(&status(next.or(statuses.last().copied()).expect("there is one")))
            }
            _ => code(StatusCode::NOT_FOUND),
        })
    };
    let until = || Act::Status { watch: false, until: Some(ComputeStatus::Running), timeout: Some(BOUND) };
    let (no, yes) = (StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK);
    // It may be started again.
    let (exit, out, err) = fake(&["failed", "init", "running"], no, yes).run(until(), false);
    assert_eq!((exit, err.as_str()), (ExitCode::Ok, ""));
    assert!(out.starts_with("status       running\n"), "{out}");
    // A first start that has failed is not tried again, nor is a change while Postgres serves on.
    for (ready, started) in [(no, no), (yes, yes)] {
        let failed = fake(&["failed"], ready, started);
        let (exit, out, err) = failed.run(until(), false);
        assert_eq!((exit, err.as_str()), (ExitCode::NotServing, ""));
        assert!(out.starts_with("status       failed\n"), "{out}");
    }
}

#[test]
fn a_compute_that_goes_has_told_its_last_or_not() {
    // Answers for its changes and its status once, and is gone.
    let last = |event: &'static str| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            for (kind, body) in [
                ("text/event-stream", format!("event: transition\ndata: {event}\n\n")),
                ("application/json", status("termination_pending_immediate").to_string()),
            ] {
                let (mut stream, _) = listener.accept().expect("it is asked");
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).expect("a whole request");
                    head.extend(byte);
                }
                let answer =
                    format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).expect("it is read");
            }
        });
        let compute = Compute::new(&format!("http://{address}"), None).expect("an address");
        let act = Act::Status { watch: false, until: Some(ComputeStatus::Terminated), timeout: Some(BOUND) };
        captured(false, |streams| run(&RemoteOptions { compute, act, json: false }, streams))
    };
    let told = last(r#"{"from":"termination_pending_immediate","to":"terminated","time":"T","lasted_ms":1}"#);
    let line = "T  termination-pending-immediate -> terminated after 0.0 s\n";
    assert_eq!(told, (ExitCode::Ok, line.to_owned(), String::new()));
    let (exit, out, err) = last("{}");
    assert_eq!((exit, err.as_str()), (ExitCode::NotServing, "compute_ctl status: the compute has gone\n"));
    assert!(out.starts_with("status       termination-pending-immediate\n"), "{out}");
}

#[test]
fn a_compute_that_waits_for_its_spec_is_waited_for() {
    let until = |watch| Act::Status { watch, until: Some(ComputeStatus::Running), timeout: Some(BOUND) };
    // The changes, the status, and the changes once more.
    let (exit, out, err) = waiting_at_first(3).run(until(false), false);
    assert_eq!((exit, err.as_str()), (ExitCode::Ok, ""));
    assert!(out.starts_with("status       running\n"), "{out}");
    let (exit, out, _) = waiting_at_first(5).run(until(true), false);
    let lines: Vec<_> = out.lines().map(|line| line.split_once("  ").expect("a time").1).collect();
    assert_eq!((exit, lines), (ExitCode::Ok, vec!["no status yet: the spec is being waited for", "running"]));
    let (_, out, _) = waiting_at_first(5).run(until(true), true);
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines, [json!({ "error": "the spec is being waited for" }), status("running")]);
    let (_, out, _) = waiting_at_first(5).seen(until(true), false, true);
    let frames: Vec<_> = out.split("\r\x1b[J").collect();
    assert!(frames[1].starts_with("no status yet: the spec is being waited for\n"), "{out:?}");
    assert!(frames.last().is_some_and(|frame| frame.starts_with("running for ")), "{out:?}");
}

#[test]
fn progress_has_the_words_of_a_compute_that_waits_for_its_spec() {
    let looked = Arc::new(tokio::sync::Notify::new());
    let notify = looked.clone();
    let fake = fake(move |_| {
        notify.notify_one();
        let body = json!({ "error": "the spec is being waited for" });
        with_status(warp::reply::json(&body), StatusCode::SERVICE_UNAVAILABLE).into_response()
    });
    let compute = fake.compute();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // Two looks, so that what came of the first was told.
    let answer = async {
        looked.notified().await;
        looked.notified().await;
    };
    let ((), _, err) = captured(false, |streams| {
        runtime.block_on(waiting::with_progress(&compute, "configuring", answer, streams));
    });
    assert!(err.starts_with("configuring: the spec is being waited for (after 1."), "{err}");
}

#[test]
fn a_compute_that_takes_requests_and_answers_none_is_told() {
    // What connects waits in the queue of the listener.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let compute = Compute::new(&format!("http://{address}"), None).expect("an address");
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().expect("a runtime");
    let wanted = watch::Wanted { draw: true, until: None, json: false };
    let (told, ..) = captured(false, |streams| {
        runtime.block_on(async {
            tokio::time::timeout(BOUND, watch::watch(&compute, wanted, None, streams)).await
        })
    });
    assert!(matches!(told, Ok(Err(ClientError::Transport { .. }))), "{told:?}");
}

#[test]
fn without_a_terminal_each_change_is_a_line() {
    let (_, out, _) = played(&["init", "running"], None).run(until(true, ComputeStatus::Running), false);
    let lines: Vec<_> = out.lines().map(|line| line.split_once("  ").expect("a time").1).collect();
    assert_eq!(lines, ["init", "init -> running"]);
    // What the compute tells has the cause as well, and nothing is told twice.
    let events = "event: transition\nid: 1\ndata: {\"from\":\"init\",\"to\":\"running\",\"label\":\"started\",\
                  \"time\":\"T\",\"lasted_ms\":10}\n\n";
    let told = played(&["init", "running"], Some(events));
    let (_, out, _) = told.run(until(true, ComputeStatus::Running), false);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    assert_eq!(lines[1], "T  init -> running after 0.0 s: started");
    let (_, out, _) = played(&["init", "running"], None).run(until(true, ComputeStatus::Running), true);
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines, [status("init"), status("running")]);
}

#[test]
fn a_compute_that_goes_while_it_is_watched_was_meant_to_or_not() {
    let watched = Act::Status { watch: true, until: None, timeout: None };
    let waited_for = until(true, ComputeStatus::Empty);
    for (statuses, act, exit) in [
        (&["running", "gone"], watched.clone(), ExitCode::Failure),
        (&["termination_pending_fast", "gone"], watched.clone(), ExitCode::Ok),
        (&["termination_pending_immediate", "gone"], watched.clone(), ExitCode::Ok),
        (&["terminated", "gone"], watched, ExitCode::Ok),
        (&["running", "gone"], waited_for, ExitCode::NotServing),
    ] {
        let (code, out, err) = played(statuses, None).run(act, false);
        assert_eq!((code, err.as_str()), (exit, ""), "{statuses:?}: {out}");
        let last = statuses[0].replace('_', "-");
        assert!(out.ends_with(&format!("  the compute has gone; it was {last}\n")), "{out}");
    }
}

#[test]
fn a_stream_that_ends_is_asked_for_again_from_where_it_was() {
    let events = "event: gap\nid: 7\ndata: {\"lost\":1,\"after\":7}\n\n";
    let fake = played(&["init", "init", "init", "running"], Some(events));
    let (code, out, _) = fake.run(until(true, ComputeStatus::Running), false);
    assert_eq!(code, ExitCode::Ok);
    assert!(out.contains("\n(changes that are not kept any more)\n"), "{out}");
    let streams: Vec<_> =
        fake.requests().into_iter().map(|(_, path, ..)| path).filter(|path| path != "/status").collect();
    assert_eq!(streams[..2], ["/events", "/events after 7"]);
}

#[test]
fn who_watches_for_nobody_ends() {
    struct Closed;
    impl io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let fake = played(&["running"], None);
    let compute = Compute::new(&format!("http://{}", fake.address), None).expect("an address");
    let mut streams = Streams {
        input: &mut io::empty(),
        out: &mut Closed,
        out_is_terminal: false,
        err: &mut io::sink(),
        err_is_terminal: false,
    };
    let act = Act::Status { watch: true, until: None, timeout: None };
    assert_eq!(run(&RemoteOptions { compute, act, json: false }, &mut streams), ExitCode::Ok);
}

#[test]
fn who_waits_is_told_what_the_compute_does() {
    let (asked, wait) = std::sync::mpsc::channel();
    let wait = Arc::new(Mutex::new(wait));
    // The termination ends when somebody who was told what it is at asks again.
    let fake = fake(move |path| match path {
        "/status" => {
            let _ = asked.send(());
            answers(&status("termination_pending_fast"))
        }
        _ => {
            tokio::task::block_in_place(|| {
                let wait = wait.lock().expect("no test panics in it");
                (0..2).for_each(|_| wait.recv().expect("somebody asks"));
            });
            answers(&json!({ "lsn": null }))
        }
    });
    let (code, out, err) = fake.run(Act::Terminate { mode: Mode::Fast, if_idle: false }, false);
    assert_eq!((code, out.as_str()), (ExitCode::Ok, "Postgres is down\n"), "{err}");
    assert!(err.starts_with("terminating: termination-pending-fast (after "), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[test]
fn on_a_terminal_the_present_is_drawn_over_the_past() {
    let (code, out, _) =
        played(&["init", "running"], None).seen(until(true, ComputeStatus::Running), false, true);
    assert_eq!(code, ExitCode::Ok);
    let frames: Vec<_> = out.split("\r\x1b[J").collect();
    assert_eq!(frames.len(), 3, "{out:?}");
    assert!(frames[1].starts_with("init for ") && frames[1].ends_with("\x1b[3A"), "{out:?}");
    assert!(frames[2].starts_with("running for ") && frames[2].contains("init -> running"), "{out:?}");
}

#[test]
fn an_address_is_that_and_nothing_else() {
    for (url, fault) in [
        ("ftp://x", "an http or https URL is needed"),
        ("http://x/?token=hunter2", "query and fragment have no place in it"),
        ("http://x/#hunter2", "query and fragment have no place in it"),
        ("http://hunter2@x", "user and password have no place in it"),
        ("http://user:hunter2@x", "user and password have no place in it"),
    ] {
        assert_eq!(Compute::new(url, None).expect_err("it is more than that"), fault, "{url}");
    }
    assert!(Compute::new("https://x:1/below", None).is_ok());
}

#[test]
fn a_compute_that_is_not_there_is_no_endless_wait() {
    let gone = played(&["running"], None);
    let address = gone.address;
    drop(gone);
    let compute = Compute::new(&format!("http://{address}"), None).expect("an address");
    let act = Act::Status { watch: true, until: None, timeout: None };
    let (exit, _, err) =
        captured(false, |streams| run(&RemoteOptions { compute, act, json: false }, streams));
    assert_eq!(exit, ExitCode::Failure);
    assert!(err.contains("no answer from the compute at"), "{err:?}");
}
