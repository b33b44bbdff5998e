//! The sub-commands against a compute whose answers are written down.

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

/// What was asked: method, path with query, token, body.
type Asked = (String, String, String, String);

/// A compute that answers by `answer`, and what it was asked.
struct Fake {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
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
    let note = asked.clone();
    let routes = warp::method()
        .and(warp::path::full())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::header::optional::<String>("authorization"))
        .and(warp::body::bytes())
        .map(
            move |method: Method,
                  path: FullPath,
                  query: String,
                  token: Option<String>,
                  body: bytes::Bytes| {
                let query = if query.is_empty() { query } else { format!("?{query}") };
                note.lock().expect("no test panics in it").push((
                    method.to_string(),
                    format!("{}{query}", path.as_str()),
                    token.unwrap_or_default(),
                    String::from_utf8_lossy(&body).into_owned(),
                ));
                answer(path.as_str())
            },
        );
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    runtime.spawn(warp::serve(routes).incoming(listener).run());
    Fake { address, asked, _runtime: runtime }
}

impl Fake {
    fn requests(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test panics in it").clone()
    }

    fn run(&self, act: Act, json: bool) -> (ExitCode, String, String) {
        self.seen(act, json, false)
    }

    fn seen(&self, act: Act, json: bool, terminal: bool) -> (ExitCode, String, String) {
        let compute =
            Compute::new(&format!("http://{}", self.address), Some(Secret::new("t"))).expect("an address");
        captured(terminal, |streams| run(&RemoteOptions { compute, act, json }, streams))
    }
}

fn status(status: &str) -> Value {
    json!({ "start_time": "2025-07-31T12:00:00Z", "tenant": null, "timeline": null, "status": status,
            "last_active": null, "error": null })
}

fn answers(body: &Value) -> Response {
    warp::reply::json(body).into_response()
}

const STATUS: Act = Act::Status { watch: false, until: None, timeout: None };

#[test]
fn the_exit_code_of_status_tells_whether_postgres_serves() {
    for (name, exit) in
        [("running", ExitCode::Ok), ("configuration", ExitCode::Ok), ("empty", ExitCode::NotServing)]
    {
        let fake = fake(move |_| answers(&status(name)));
        let (code, out, err) = fake.run(STATUS, false);
        assert_eq!((code, err.as_str()), (exit, ""));
        assert!(out.starts_with(&format!("status       {name}\n")), "{out}");
        let (code, out, _) = fake.run(STATUS, true);
        assert_eq!((code, serde_json::from_str::<Value>(&out).ok()), (exit, Some(status(name))));
        let asked = ("GET".to_owned(), "/status".to_owned(), "Bearer t".to_owned(), String::new());
        assert_eq!(fake.requests(), [asked.clone(), asked]);
    }
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
    let act = |if_idle| Act::Terminate { mode: Mode::Immediate, if_idle };
    assert_eq!(busy.run(act(true), false).0, ExitCode::Busy);
    assert_eq!(busy.run(act(false), false).0, ExitCode::Failure);
    let paths: Vec<_> = busy.requests().into_iter().map(|(_, path, ..)| path).collect();
    assert_eq!(paths, ["/terminate?mode=immediate&if_idle=true", "/terminate?mode=immediate"]);
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
    let asked: Vec<_> =
        fake.requests().into_iter().map(|(method, path, ..)| format!("{method} {path}")).collect();
    assert_eq!(asked, ["POST /refresh_configuration", "GET /history?limit=7"]);
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

/// Statuses one after another, then the last for ever; and events, if there are any.
fn played(statuses: &'static [&'static str], events: Option<&'static str>) -> Fake {
    let next = Arc::new(Mutex::new(statuses.iter().copied()));
    fake(move |path| match (path, events) {
        ("/events", Some(events)) => {
            warp::reply::with_header(events, "content-type", "text/event-stream").into_response()
        }
        ("/events", None) => StatusCode::NOT_FOUND.into_response(),
        _ => {
            let next = next.lock().expect("no test panics in it").next();
            answers(&status(next.or(statuses.last().copied()).expect("there is one")))
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
    let failed = played(&["init", "failed"], None);
    assert_eq!(failed.run(until(false, ComputeStatus::Running), false).0, ExitCode::NotServing);
    let timeout =
        Act::Status { watch: false, until: Some(ComputeStatus::Running), timeout: Some(Duration::ZERO) };
    let (code, _, err) = played(&["init"], None).run(timeout, false);
    assert_eq!(code, ExitCode::NotServing);
    assert!(err.contains("not within 0.0 s"), "{err}");
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
fn a_compute_that_is_not_there_is_no_endless_wait() {
    let gone = played(&["running"], None);
    let address = gone.address;
    drop(gone);
    let compute = Compute::new(&format!("http://{address}"), None).expect("an address");
    let act = Act::Status { watch: true, until: None, timeout: None };
    let options = RemoteOptions { compute, act, json: false };
    let (code, _, err) = captured(false, |streams| run(&options, streams));
    assert_eq!(code, ExitCode::Failure);
    assert!(err.contains("no answer from the compute at"), "{err}");
}
