//! `/terminate` in every live state: answered, process gone, nothing left.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::lock::{LOCK, waits_for_the_lock, with_a_role};
use crate::support::node::{Node, Place, eventually};
use crate::support::pg;
use crate::support::processes::Process;

/// A PostgreSQL whose programs of these names first run a line of shell.
pub(crate) fn wrapped(place: &Place, first: &[(&str, &str)]) -> String {
    for name in ["postgres", "initdb"] {
        let real = pg::command(name).get_program().to_str().unwrap().to_owned();
        let lines: String = first.iter().filter(|(of, _)| *of == name).map(|(_, line)| *line).collect();
        let body = format!("[ \"$1\" = --version ] || {{ :; {lines}\n}}\nexec {real} \"$@\"");
        place.script(&format!("bin/{name}"), &body);
    }
    place.path().join("bin/postgres").to_str().unwrap().to_owned()
}

/// Shell that says it was reached and then goes no further, with a child that would outlive it.
fn stall(place: &Place) -> String {
    format!("sleep 1000 & : > {}/stalled; wait", place.path().display())
}

fn stalled<'a>(place: &'a Place, node: &Node<'a>) -> Vec<Process> {
    let flag = place.path().join("stalled");
    node.wait("the stall, with its child", |_| {
        let before = place.processes();
        let child = before.iter().any(|process| process.name == "sleep");
        (child && flag.exists()).then_some(before)
    })
}

/// Starts a node that stalls in one of PostgreSQL's programs, and ends it there by each of the two ways.
fn ends_in_a_stall(program: &str, template: bool) {
    for by_signal in [false, true] {
        let place = if template { Place::new() } else { Place::without_template() };
        let pgbin = wrapped(&place, &[(program, &stall(&place))]);
        place.configure(&place.spec());
        let node = place.start(&["--pgbin", &pgbin]);
        let before = stalled(&place, &node);
        node.wait_status("init");
        if by_signal {
            node.signal(Signal::SIGTERM);
            node.ends_with(0, &before);
        } else {
            terminated(&node, &before);
        }
    }
}

/// Terminates and makes sure that it was answered and that nothing is left.
fn terminated(node: &Node<'_>, before: &[Process]) {
    let (code, body) = node.post("/terminate?mode=immediate", None);
    assert_eq!((code, body.as_str()), (200, r#"{"lsn":null}"#), "{}", node.log());
    node.ends_with(0, before);
}

#[test]
fn empty() {
    for mode in ["fast", "immediate"] {
        let place = Place::new();
        place.configure(&Value::Null);
        let node = place.start(&[]);
        node.wait_status("empty");
        // A warm-up is under way or done; there is nothing to report, so not even `fast` lingers.
        let (code, _) = node.post(&format!("/terminate?mode={mode}"), None);
        assert_eq!(code, 200);
        node.ends_with(0, &[]);
    }
}

#[test]
fn while_the_warm_up_runs_initdb() {
    let place = Place::without_template();
    let pgbin = wrapped(&place, &[("initdb", &stall(&place))]);
    place.configure(&Value::Null);
    let node = place.start(&["--pgbin", &pgbin]);
    let before = stalled(&place, &node);
    assert_eq!(node.wait_status("empty")["error"], Value::Null);
    terminated(&node, &before);
}

#[test]
fn while_initdb_is_under_way() {
    ends_in_a_stall("initdb", false);
}

#[test]
fn while_postgres_starts() {
    ends_in_a_stall("postgres", true);
}

#[test]
fn while_a_first_configuration_waits_for_its_start() {
    let place = Place::new();
    let pgbin = wrapped(&place, &[("postgres", &stall(&place))]);
    place.configure(&Value::Null);
    let node = place.start(&["--pgbin", &pgbin]);
    node.wait_status("empty");
    let spec = crate::support::node::config(&place.spec());
    let configured = node.post_later("/configure", Some(&spec));
    let before = stalled(&place, &node);
    assert_eq!(node.configure(&place.spec()).0, 412, "one at a time");
    terminated(&node, &before);
    let (code, body) = configured.join().unwrap();
    assert_eq!(code, 500, "{body}");
    assert!(body.contains("went down"), "{body}");
}

#[test]
fn while_a_wrapped_postgres_serves() {
    let place = Place::new();
    let pgbin = wrapped(&place, &[]);
    place.configure(&place.spec());
    let node = place.start(&["--pgbin", &pgbin]);
    node.wait_status("running");
    node.terminate();
    assert_eq!(place.cluster_state(), "shut down");
}

#[test]
fn while_a_configuration_waits_for_a_lock() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let _session = place.session(LOCK);
    let spec = crate::support::node::config(&with_a_role(&place));
    let configured = node.post_later("/configure", Some(&spec));
    waits_for_the_lock(&place, &node);
    node.wait_status("configuration");
    let before = place.processes();
    terminated(&node, &before);
    let (code, body) = configured.join().unwrap();
    assert_eq!(code, 500, "{body}");
    assert_eq!(place.cluster_state(), "shut down");
}

#[test]
fn while_the_first_catalog_work_waits_for_a_lock() {
    let place = Place::new();
    let prepared = json!({ "name": "max_prepared_transactions", "value": "1", "vartype": "integer" });
    let mut spec = place.kept_spec();
    spec["cluster"]["settings"].as_array_mut().unwrap().push(prepared);
    place.configure(&spec);
    let node = place.start(&[]);
    node.wait_status("running");
    // A prepared transaction outlives the server with all its locks.
    place.sql(&format!("{LOCK}; prepare transaction 'holder'"));
    node.terminate();

    spec["cluster"]["roles"] = json!([{ "name": "late" }]);
    place.configure(&spec);
    for by_signal in [false, true] {
        let node = place.start(&[]);
        waits_for_the_lock(&place, &node);
        node.wait_status("init");
        let before = place.processes();
        if by_signal {
            node.signal(Signal::SIGTERM);
            node.ends_with(0, &before);
        } else {
            terminated(&node, &before);
        }
        assert_eq!(place.cluster_state(), "shut down");
    }
}

#[test]
fn while_a_refresh_applies_what_had_failed() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let mut spec = with_a_role(&place);
    spec["cluster"]["databases"] = json!([{ "name": "other", "owner": "somebody" }]);
    assert_eq!(node.configure(&spec).0, 500);
    place.sql("create role somebody");
    let _session = place.session(&format!("drop role if exists late; {LOCK}"));
    assert_eq!(node.refresh(), 200);
    node.wait_status("refresh_configuration");
    waits_for_the_lock(&place, &node);
    let before = place.processes();
    terminated(&node, &before);
}

#[test]
fn while_a_refresh_tries_again_and_again() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    fs::write(place.config_file(), "{").unwrap();
    assert_eq!(node.refresh(), 200);
    node.wait_status("refresh_configuration_pending");
    node.terminate();
    assert_eq!(place.cluster_state(), "shut down");
}

#[test]
fn failed_with_a_postgres_that_serves() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let mut spec = place.spec();
    spec["cluster"]["databases"] = json!([{ "name": "other", "owner": "nobody at all" }]);
    assert_eq!(node.configure(&spec).0, 500);
    node.wait_status("failed");
    node.terminate();
}

#[test]
fn a_failed_start_is_readable_and_a_terminate_or_signal_ends_it() {
    for by_signal in [false, true] {
        let place = Place::new();
        let mut spec = place.spec();
        let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
        settings.push(json!({ "name": "shared_buffers", "value": "1", "vartype": "integer" }));
        place.configure(&spec);
        let node = place.start(&[]);
        let status = node.wait_status("failed");
        let error = status["error"].as_str().unwrap();
        assert!(error.contains("exited with code 1"), "{error}");
        assert!(node.log().contains("outside the valid range"), "{}", node.log());
        if by_signal {
            node.signal(Signal::SIGTERM);
        } else {
            assert_eq!(node.post("/terminate?mode=immediate", None).0, 200);
        }
        node.ends_with(1, &[]);
    }
}

#[test]
fn a_fast_termination_stays_readable_until_a_signal() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let before = place.processes();
    let (code, body) = node.post("/terminate", None);
    assert_eq!((code, body.as_str()), (200, r#"{"lsn":null}"#));
    assert_eq!(node.wait_status("terminated")["error"], Value::Null);
    assert_eq!(place.cluster_state(), "shut down");
    assert_eq!(node.post("/terminate", None).0, 201);
    assert_eq!(node.configure(&place.spec()).0, 412);
    assert_eq!(node.refresh(), 500);
    node.signal(Signal::SIGTERM);
    node.ends_with(0, &before);
}

#[test]
fn several_terminations_join_and_all_are_answered() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let session = place.session("select");
    // A server process that does not run cannot end, and so the shutdown takes until it does.
    stop_process(&session.backend);
    let before = place.processes();
    let fast = node.post_later("/terminate", None);
    node.wait_status("termination_pending_fast");
    let immediate = node.post_later("/terminate?mode=immediate", None);
    node.wait_status("termination_pending_immediate");
    let joined = node.post_later("/terminate", None);
    node.wait("the third request", |node| {
        (node.log().matches("path=\"/terminate\"").count() >= 3).then_some(())
    });
    session.backend.signal(Signal::SIGCONT);
    for request in [fast, immediate, joined] {
        assert_eq!(request.join().unwrap(), (200, r#"{"lsn":null}"#.to_owned()));
    }
    node.ends_with(0, &before);
    assert_eq!(place.cluster_state(), "shut down");
}

/// Has a server process of ours stand still.
pub(crate) fn stop_process(process: &Process) {
    process.signal(Signal::SIGSTOP);
    eventually("a process that stands still", || Process::of(process.pid).filter(|now| now.state == 'T'));
}
