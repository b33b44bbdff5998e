//! The Rust client of the control plane: starts a compute, configures, refreshes and terminates it.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::lock::LOCK;
use crate::support::node::{Node, Place};
use crate::{Answer, admin_token, ask, compute_token, document, is_a_status, outside, write_down};

/// The loop at a start: any status but these three aborts it, the first one that is answered included.
fn start_loop(place: &Place, node: &Node<'_>) -> Value {
    node.wait("an end of the start", |_| {
        // Until it listens there is nobody to answer.
        std::net::TcpStream::connect(("127.0.0.1", place.external)).ok()?;
        let answer = outside(place, &compute_token(), "GET", "/status", None).expect(200);
        let status = is_a_status(&answer);
        match status["status"].as_str().expect("a plain string") {
            "init" => None,
            "running" | "failed" => Some(status),
            other => panic!("the start is aborted by {other}"),
        }
    })
}

/// A termination as the client ends it: the object is parsed whatever the code is, then the process is signalled.
fn terminate(place: &Place, node: &Node<'_>, mode: &str) -> Value {
    let answer = outside(place, &admin_token(), "POST", &format!("/terminate?mode={mode}"), None);
    let body = answer.json();
    assert!(body.is_object(), "{answer:?}");
    if !node.has_ended() {
        node.signal(Signal::SIGTERM);
    }
    assert_eq!(node.exit_code(), 0, "{}", node.log());
    body
}

#[test]
fn a_start_is_followed_to_its_end() {
    let place = Place::new();
    write_down(&place, &document(&place.spec()));
    let node = place.start(&[]);
    let status = start_loop(&place, &node);
    assert_eq!((&status["status"], &status["error"]), (&json!("running"), &Value::Null));
    let start = status["start_time"].as_str().unwrap();
    assert!(start.ends_with('Z') && start.parse::<jiff::Timestamp>().is_ok(), "{start}");
    assert_eq!(terminate(&place, &node, "fast"), json!({ "lsn": null }));
}

#[test]
fn a_start_that_fails_quotes_its_error() {
    let place = Place::new();
    let mut spec = place.spec();
    let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
    settings.push(json!({ "name": "shared_buffers", "value": "1", "vartype": "integer" }));
    write_down(&place, &document(&spec));
    let node = place.start(&[]);
    let status = start_loop(&place, &node);
    assert_eq!(status["status"], "failed");
    assert!(status["error"].as_str().is_some_and(|error| !error.is_empty()), "{status}");
    let answer = outside(&place, &admin_token(), "POST", "/terminate?mode=immediate", None).succeeded();
    assert!(answer.json().is_object(), "{answer:?}");
}

#[test]
fn a_pool_compute_starts_empty_and_is_configured_with_either_token() {
    let place = Place::new();
    write_down(&place, &document(&Value::Null));
    let node = place.start(&[]);
    node.wait_status("empty");
    let mut spec = place.kept_spec();
    spec["tenant_id"] = json!("c9269c359e9a199fad1ea0981246a78f");
    spec["timeline_id"] = json!("ece7de74d4b8cbe5433a68ce4d1b97b4");
    for token in [compute_token(), admin_token()] {
        let answer = outside(&place, &token, "POST", "/configure", Some(&document(&spec))).expect(200);
        assert!(answer.says("content-type: application/json"), "{answer:?}");
        let status = is_a_status(&answer);
        assert_eq!(status["status"], "running");
        assert_eq!((&status["tenant"], &status["timeline"]), (&spec["tenant_id"], &spec["timeline_id"]));
        spec["cluster"]["roles"] = json!([{ "name": "late", "encrypted_password": null, "options": null }]);
    }
    assert_eq!(place.sql("select count(*) from pg_roles where rolname = 'late'"), "1");
    // A spec it cannot use is an error it can show, and changes nothing.
    let refused = outside(&place, &compute_token(), "POST", "/configure", Some(&json!({})));
    assert_eq!(refused.code, 422);
    assert!(refused.json()["error"].is_string());
    assert_eq!(node.status().unwrap()["status"], "running");
    terminate(&place, &node, "immediate");
}

#[test]
fn a_second_termination_has_the_same_answer_with_another_code() {
    let place = Place::new();
    write_down(&place, &document(&place.spec()));
    let node = place.start(&[]);
    start_loop(&place, &node);
    let first = outside(&place, &admin_token(), "POST", "/terminate", None).expect(200);
    let second = outside(&place, &admin_token(), "POST", "/terminate?mode=fast", None).expect(201);
    assert_eq!((first.json(), second.json()), (json!({ "lsn": null }), json!({ "lsn": null })));
    assert_eq!(node.wait_status("terminated")["error"], Value::Null);
    // A compute that is gone refuses the rest with a text.
    let refused = outside(&place, &compute_token(), "POST", "/configure", Some(&document(&place.spec())));
    assert_eq!(refused.expect(412).json(), json!({ "error": "invalid compute status: terminated" }));
    terminate(&place, &node, "fast");
}

/// As `curl` in Postgres sends it, to a name that may mean either address.
fn refresh(place: &Place, host: &str) -> Answer {
    let form = ["Accept: */*", "Content-Type: application/x-www-form-urlencoded"];
    ask((host, place.internal), "POST", "/refresh_configuration", &form, "")
}

#[test]
fn a_refresh_is_asked_for_as_postgres_asks() {
    let place = Place::new();
    write_down(&place, &document(&place.kept_spec()));
    let node = place.start(&[]);
    start_loop(&place, &node);
    // What could not be applied is applied when it can be, without anybody from outside.
    let mut spec = place.kept_spec();
    spec["cluster"]["databases"] = json!([{ "name": "other", "owner": "somebody" }]);
    outside(&place, &compute_token(), "POST", "/configure", Some(&document(&spec))).expect(500);
    place.sql("create role somebody");
    for host in ["localhost", "127.0.0.1"] {
        // Exactly this code resets the clock of the backend; the body is not looked at. The second one may come
        // while the spec is applied.
        let answer = refresh(&place, host);
        assert!(answer.code == 200 && answer.body.is_empty() || host == "127.0.0.1" && answer.code == 500);
    }
    node.wait_status("running");
    let metrics = ask(("127.0.0.1", place.external), "GET", "/metrics", &[], "").expect(200);
    assert!(metrics.body.contains("pg_cctl_pagestream_request_errors_total 2\n"), "{}", metrics.body);
    terminate(&place, &node, "fast");
}

#[test]
fn a_refresh_is_not_taken_while_a_spec_is_applied() {
    let place = Place::new();
    write_down(&place, &document(&place.kept_spec()));
    let node = place.start(&[]);
    start_loop(&place, &node);
    let mut spec = place.kept_spec();
    spec["cluster"]["roles"] = json!([{ "name": "late" }]);
    let lock = place.session(LOCK);
    let configure = node.post_later("/configure", Some(&document(&spec)));
    node.wait_status("configuration");
    // Anything but 200 lets the backend cancel what holds the lock.
    let refused = refresh(&place, "localhost").expect(500);
    let text = "Cannot refresh compute configuration in state Configuration";
    assert_eq!(refused.json(), json!({ "error": text }));
    drop(lock);
    assert_eq!(configure.join().unwrap().0, 200);
    assert_eq!(refresh(&place, "localhost").code, 200);
    terminate(&place, &node, "fast");
    assert!(fs::metadata(place.pgdata()).is_ok(), "its data stays");
}
