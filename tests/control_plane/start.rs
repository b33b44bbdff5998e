//! Faults at the start, before there is anything to keep.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::faults::{self, told};
use crate::support::control_plane::{Act, ControlPlane};
use crate::support::node::{Place, http, port};
use crate::{command, path};

/// No spec from the control plane; come back later.
const NO_SPEC: i32 = 75;

#[test]
fn each_fault_ends_the_start_with_its_own_words() {
    let place = Place::new();
    let control_plane = ControlPlane::start(Act::Hang);
    for fault in faults::all(&place) {
        control_plane.act(fault.act.clone());
        let before = control_plane.asked();
        let node = place.run(command(&place, &control_plane.base()));
        node.ends_with(NO_SPEC, &[]);
        told(&fault, &node.log());
        assert_eq!(control_plane.asked() - before, fault.requests, "{}", fault.name);
        assert!(!place.pgdata().exists(), "{}: nothing was touched", fault.name);
    }
}

#[test]
fn nobody_there_is_said_without_the_url() {
    let place = Place::new();
    let base = format!("http://user:hunter2@127.0.0.1:{}", port());
    let node = place.run(command(&place, &base));
    node.ends_with(NO_SPEC, &[]);
    let log = node.log();
    assert!(log.contains("Exhausted all attempts") && log.contains("Connection refused"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

#[test]
fn a_signal_ends_the_wait_for_an_answer() {
    let place = Place::new();
    let unavailable = || Act::Answer(503, "Retry-After: 3600\r\n".to_owned(), String::new());
    for act in [Act::Hang, unavailable()] {
        let control_plane = ControlPlane::start(act.clone());
        let node = place.run(command(&place, &control_plane.base()));
        control_plane.wait_asked(1);
        if !matches!(act, Act::Hang) {
            node.wait_log("attempt 1 to get the spec failed");
        }
        node.signal(Signal::SIGTERM);
        node.ends_with(0, &[]);
        assert!(node.log().contains("stopped before anything was started"), "{}", node.log());
        assert_eq!(control_plane.asked(), 1, "it was not asked again");
    }
}

#[test]
fn the_request_is_the_originals() {
    let place = Place::new();
    for (token, expected) in [(Some("token-of-the-test"), "Bearer token-of-the-test"), (None, "Bearer")] {
        // Any answer will do that ends the start.
        let control_plane = ControlPlane::start(Act::status(404));
        let mut command = command(&place, &format!("{}/cp", control_plane.base()));
        command.envs(token.map(|token| ("NEON_CONTROL_PLANE_TOKEN", token)));
        let node = place.run(command);
        node.ends_with(NO_SPEC, &[]);
        assert!(!node.log().contains("token-of-the-test"), "{}", node.log());
        let head = control_plane.heads().remove(0);
        assert!(head.starts_with(&format!("GET /cp{} HTTP/1.1\r\n", path())), "{head}");
        let sent = head.lines().find_map(|line| line.strip_prefix("authorization:"));
        assert_eq!(sent.map(str::trim), Some(expected), "{head}");
    }
}

#[test]
fn no_proxy_stands_between_a_machine_and_itself() {
    let place = Place::new();
    // Any answer will do that ends the start.
    let control_plane = ControlPlane::start(Act::status(404));
    let mut command = command(&place, &control_plane.base());
    command.env("http_proxy", format!("http://127.0.0.1:{}", port())).env_remove("no_proxy");
    let node = place.run(command);
    node.ends_with(NO_SPEC, &[]);
    assert_eq!(control_plane.asked(), 1, "{}", node.log());
}

#[test]
fn an_empty_compute_waits_and_an_attached_one_starts() {
    let place = Place::new();
    let control_plane = ControlPlane::start(Act::empty());
    let node = place.run(command(&place, &control_plane.base()));
    node.wait_status("empty");
    let (code, body) = node.configure(&place.spec());
    assert_eq!(code, 200, "{body}");
    node.terminate();

    control_plane.act(Act::attached(&place.spec()));
    let node = place.run(command(&place, &control_plane.base()));
    node.wait_status("running");
    assert_eq!(control_plane.asked(), 2);
    let (_, metrics) = node.request("GET", "/metrics", None).unwrap();
    let counted = r#"compute_ctl_cplane_requests_total{http_status="200 OK",rpc="GetConfig"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
    node.terminate();
}

/// A compute that still waits lives, and says so; of what it will be nobody sees anything yet.
#[test]
fn only_probes_are_answered_before_there_is_a_config() {
    let place = Place::new();
    let control_plane = ControlPlane::start(Act::Hang);
    let node = place.run(command(&place, &control_plane.base()));
    control_plane.wait_asked(1);
    let starting =
        json!({"error": "only starting: the spec, PostgreSQL or the data directory is still waited for"});
    for port in [place.external, place.internal] {
        let ask = |method, path| http(port, method, path, None, None).expect("it is answered");
        assert_eq!(ask("GET", "/livez"), (200, "\"ok\"".to_owned()));
        for (method, path) in [
            ("GET", "/readyz"),
            ("GET", "/startupz"),
            ("GET", "/status"),
            ("POST", "/terminate"),
            ("GET", "/nonsense"),
        ] {
            let (code, body) = ask(method, path);
            assert_eq!((code, serde_json::from_str(&body).ok()), (503, Some(starting.clone())), "{path}");
        }
    }
    node.signal(Signal::SIGTERM);
    node.ends_with(0, &[]);
}
