//! Faults at a refresh, while Postgres serves.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::command;
use crate::faults::{self, Fault, told};
use crate::support::control_plane::{Act, ControlPlane};
use crate::support::node::{Node, Place};
use crate::support::processes::Process;

/// A node that runs on a spec of this control plane's.
pub(crate) fn running<'a>(place: &'a Place, control_plane: &ControlPlane) -> Node<'a> {
    control_plane.act(Act::attached(&place.spec()));
    let node = place.run(command(place, &control_plane.base()));
    node.wait_status("running");
    node
}

/// Waits until a fetch has failed, which the state says, and returns why.
fn failed_refresh(node: &Node<'_>) -> String {
    let status = node
        .wait("a refresh that has failed", |node| node.status().filter(|status| !status["error"].is_null()));
    assert_eq!(status["status"], "refresh_configuration_pending");
    status["error"].as_str().unwrap().to_owned()
}

#[test]
fn each_fault_is_a_pause_and_postgres_serves_on() {
    let place = Place::new();
    let control_plane = ControlPlane::start(Act::Hang);
    let node = running(&place, &control_plane);
    let mut session = place.session("select 1");
    for fault in faults::all(&place) {
        let Fault { name, act, .. } = &fault;
        control_plane.act(act.clone());
        assert_eq!(node.refresh(), 200, "{name}");
        told(&fault, &failed_refresh(&node));
        assert_eq!(node.refresh(), 200, "{name}: one is under way");
        assert_eq!(place.sql("select 1"), "1", "{name}");
        control_plane.act(Act::attached(&place.spec()));
        assert_eq!(node.wait_status("running")["error"], Value::Null, "{name}");
    }
    session.go_on("select pg_sleep(0)");
    assert!(session.backend.exists(), "a session that was there before all of it");
    node.terminate();
}

#[test]
fn a_refresh_that_hangs_keeps_nobody_from_ending_it() {
    let place = Place::new();
    let control_plane = ControlPlane::start(Act::Hang);
    for by_signal in [false, true] {
        let node = running(&place, &control_plane);
        control_plane.act(Act::Hang);
        let asked = control_plane.asked();
        assert_eq!(node.refresh(), 200);
        control_plane.wait_asked(asked + 1);
        assert_eq!(node.status().unwrap()["status"], "refresh_configuration_pending");
        if by_signal {
            let before = place.processes();
            node.signal(Signal::SIGTERM);
            node.ends_with(0, &before);
        } else {
            node.terminate();
        }
        assert_eq!(place.cluster_state(), "shut down");
    }
}

#[test]
fn a_control_plane_that_is_gone_and_comes_back() {
    let place = Place::new();
    let control_plane = ControlPlane::start(Act::Hang);
    let node = running(&place, &control_plane);
    let port = control_plane.port();
    drop(control_plane);
    assert_eq!(node.refresh(), 200);
    assert!(failed_refresh(&node).contains("Connection refused"));
    let _back = ControlPlane::start_on(port, Act::attached(&place.spec()));
    assert_eq!(node.wait_status("running")["error"], Value::Null);
    node.terminate();
}

/// Without a spec for it, a compute has no right to its data any more.
#[test]
fn a_compute_that_is_detached_ends_in_order() {
    let place = Place::new();
    let control_plane = ControlPlane::start(Act::Hang);
    let node = running(&place, &control_plane);
    place.sql("create table kept as select 1");
    control_plane.act(Act::empty());
    let before: Vec<Process> = place.processes();
    assert_eq!(node.refresh(), 200);
    node.ends_with(1, &before);
    assert_eq!(place.cluster_state(), "shut down", "{}", node.log());
    assert!(node.log().contains("control plane has no spec for this compute"), "{}", node.log());
}

#[test]
fn refreshes_during_the_start_are_made_good_once() {
    let place = Place::without_template();
    let (reached, gate) = (place.path().join("reached"), place.path().join("gate"));
    let real = crate::support::pg::program("initdb");
    let wait = format!(
        "[ \"$1\" = --version ] || {{ : > {}; until [ -e {} ]; do sleep 0.02; done; }}",
        reached.display(),
        gate.display()
    );
    place.script("bin/initdb", &format!("{wait}\nexec {} \"$@\"", real.display()));
    let postgres = crate::support::pg::program("postgres");
    let wrapper = place.script("bin/postgres", &format!("exec {} \"$@\"", postgres.display()));
    let control_plane = ControlPlane::start(Act::attached(&place.spec()));
    let mut command = command(&place, &control_plane.base());
    command.arg("--pgbin").arg(wrapper);
    let node = place.run(command);
    node.wait("initdb", |_| reached.exists().then_some(()));
    for _ in 0..3 {
        assert_eq!(node.refresh(), 200);
        assert_eq!(node.status().unwrap()["status"], "init");
    }
    assert_eq!(control_plane.asked(), 1, "not yet");
    fs::write(&gate, "").unwrap();
    node.went(&["init", "running", "refresh-configuration-pending", "running"]);
    assert_eq!(control_plane.asked(), 2);
    node.terminate();
}

/// What a spec says besides where its data come from waits for `/configure`.
#[test]
fn other_changes_are_not_looked_at() {
    let place = Place::new();
    let control_plane = ControlPlane::start(Act::Hang);
    let node = running(&place, &control_plane);
    let mut spec = place.spec();
    let setting = json!({ "name": "work_mem", "value": "9MB", "vartype": "string" });
    spec["cluster"]["settings"].as_array_mut().unwrap().push(setting);
    control_plane.act(Act::attached(&spec));
    assert_eq!(node.refresh(), 200);
    node.went(&["init", "running", "refresh-configuration-pending", "running"]);
    assert_eq!(place.sql("show work_mem"), "4MB");
    node.terminate();
}

/// A spec that decodes and cannot be used is a fault of the answer like any other.
#[test]
fn an_unusable_spec_is_named_and_not_applied() {
    let place = Place::new();
    let control_plane = ControlPlane::start(Act::Hang);
    let node = running(&place, &control_plane);
    let mut spec = place.spec();
    spec["cluster"]["roles"] = json!([{ "name": "" }]);
    control_plane.act(Act::attached(&spec));
    assert_eq!(node.refresh(), 200);
    let error = failed_refresh(&node);
    assert!(error.contains("the fetched spec: ") && error.contains("spec.cluster.roles[0].name"), "{error}");
    control_plane.act(Act::attached(&place.spec()));
    node.wait_status("running");
    node.terminate();
}
