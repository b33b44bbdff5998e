//! Probes of the program itself, in the statuses that can be held, and over a Postgres that is stopped.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::node::{Node, Place, http};

/// Codes of `/livez`, `/readyz`, `/startupz` without a token; both servers answer the same.
fn probes(place: &Place) -> [u16; 3] {
    ["/livez", "/readyz", "/startupz"].map(|path| {
        let code = |port| http(port, "GET", path, None, None).unwrap().0;
        let external = code(place.external);
        assert_eq!(code(place.internal), external, "{path}");
        external
    })
}

fn postmaster_gets(node: &Node<'_>, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(node.postmaster()), signal).unwrap();
}

fn hadron(node: &Node<'_>) -> (u16, String) {
    node.request("GET", "/hadron_liveness_probe", None).unwrap()
}

#[test]
fn from_empty_by_way_of_a_frozen_postgres_to_terminated() {
    let place = Place::new();
    place.configure(&Value::Null);
    let node = place.start(&[]);
    node.wait_status("empty");
    assert_eq!(probes(&place), [200, 503, 503]);
    let (code, body) = hadron(&node);
    let command = format!("pg_isready --port {}`\"}}", place.postgres);
    assert!(code == 500 && body.ends_with(&command), "{body}");

    assert_eq!(node.configure(&place.spec()).0, 200);
    assert_eq!(probes(&place), [200, 200, 200]);
    assert_eq!(hadron(&node), (200, r#""ok""#.to_owned()));

    postmaster_gets(&node, Signal::SIGSTOP);
    assert_eq!(probes(&place), [200, 200, 200]);
    // This one asks Postgres, which cannot answer, and is not held up for ever.
    assert_eq!(hadron(&node).0, 500);
    postmaster_gets(&node, Signal::SIGCONT);

    // Stays to be asked, for the linger of a fast termination.
    assert_eq!(node.post("/terminate", None).0, 200);
    node.wait_status("terminated");
    assert_eq!(probes(&place), [200, 503, 200]);
    node.signal(Signal::SIGTERM);
    assert_eq!(node.exit_code(), 0);
}

#[test]
fn after_a_crash_and_after_a_start_that_failed() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&["--crash-linger", "60s"]);
    node.wait_status("running");
    postmaster_gets(&node, Signal::SIGKILL);
    node.wait_status("failed");
    assert_eq!(probes(&place), [200, 503, 200]);
    node.signal(Signal::SIGTERM);
    node.exit_code();

    let mut spec = place.spec();
    spec["cluster"]["settings"][3]["value"] = "nonsense".into();
    place.configure(&spec);
    let node = place.start(&[]);
    node.wait_status("failed");
    assert_eq!(probes(&place), [200, 503, 503]);
    node.signal(Signal::SIGTERM);
    node.exit_code();
}
