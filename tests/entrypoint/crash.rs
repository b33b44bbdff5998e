//! Postgres ends without being asked to.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::stop::{stop_process, wrapped};
use crate::support::node::{Node, Place, eventually};
use crate::support::pg;

fn kill_postmaster(node: &Node<'_>) -> i32 {
    let postmaster = node.postmaster();
    kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    postmaster
}

#[test]
fn a_killed_postmaster_is_a_failure_at_once_and_ends_the_node() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&["--crash-linger", "10m"]);
    node.wait_status("running");
    let before = place.processes();
    kill_postmaster(&node);
    let status = node.wait("another status", |node| node.status().filter(|body| body["status"] != "running"));
    assert_eq!(status["status"], "failed");
    let error = status["error"].as_str().unwrap();
    assert!(error.contains("signal 9"), "{error}");
    assert_eq!(node.configure(&place.spec()).0, 412);
    // All of Postgres goes, though the node stays for a while.
    let mut servers = before.clone();
    servers.retain(|process| process.pid != node.pid);
    assert!(servers.len() > 3, "{servers:?}");
    node.wait("the end of all servers", |_| servers.iter().all(|process| !process.exists()).then_some(()));
    node.signal(Signal::SIGTERM);
    node.ends_with(1, &before);
}

#[test]
fn a_crashed_node_ends_by_itself_and_leaves_a_journal() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let before = place.processes();
    kill_postmaster(&node);
    node.ends_with(1, &before);
    assert_eq!(node.transitions(), ["init", "running", "failed"]);
    let output = place.program().arg("replay").arg(place.journal()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("PostmasterExited"), "{output:?}");
}

#[test]
fn server_processes_that_do_not_notice_go_too() {
    for by_wrapper in [false, true] {
        let place = Place::new();
        place.configure(&place.spec());
        let wrapper = wrapped(&place, &[]);
        let node = match by_wrapper {
            true => place.start(&["--pgbin", &wrapper]),
            false => place.start(&[]),
        };
        node.wait_status("running");
        let session = place.session("select");
        stop_process(&session.backend);
        let before = place.processes();
        kill_postmaster(&node);
        node.ends_with(1, &before);
    }
}

#[test]
fn restarts_keep_the_data_and_the_budget_ends_them() {
    for kind in ["existing", "initdb"] {
        let place = Place::new();
        let mut spec = place.spec();
        spec["storage"]["kind"] = json!(kind);
        place.configure(&spec);
        let node = place.start(&["--restart", "on-failure"]);
        node.wait_status("running");
        place.sql("create table kept as select 42 as answer");
        let rounds = if kind == "initdb" { 1 } else { 5 };
        for round in 1..=rounds {
            let old = kill_postmaster(&node);
            node.wait("a new server", |node| {
                let running = node.transitions().iter().filter(|status| *status == "running").count();
                (running == round + 1).then_some(())
            });
            let status = node.wait_status("running");
            assert_eq!(status["error"], Value::Null);
            assert_ne!(node.postmaster(), old);
            assert_eq!(place.sql("select answer from kept"), "42", "{kind}");
        }
        if kind == "initdb" {
            node.terminate();
            continue;
        }
        let before = place.processes();
        kill_postmaster(&node);
        node.ends_with(1, &before);
    }
}

#[test]
fn a_server_process_that_crashes_is_postgres_own_business() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let session = place.session("select");
    session.backend.signal(Signal::SIGKILL);
    node.wait("the recovery", |node| {
        (node.log().matches("database system is ready to accept connections").count() == 2).then_some(())
    });
    assert_eq!(node.status().unwrap()["status"], "running");
    assert_eq!(place.sql("select 1"), "1");
    node.terminate();
}

#[test]
fn a_stop_from_outside_is_a_termination() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&["--restart", "on-failure"]);
    node.wait_status("running");
    let before = place.processes();
    let stop = pg::command("pg_ctl").args(["stop", "-w", "-m", "fast", "-D"]).arg(place.pgdata()).output();
    assert!(stop.unwrap().status.success());
    node.ends_with(0, &before);
    assert_eq!(node.transitions().last().unwrap(), "terminated");
    assert_eq!(place.cluster_state(), "shut down");
}

#[test]
fn a_server_whose_supervisor_was_killed_is_stopped_in_order_by_the_next_one() {
    let place = Place::new();
    place.configure(&place.kept_spec());
    let node = place.start(&[]);
    node.wait_status("running");
    place.sql("create table t as select 42 as answer");
    let _session = place.session("select 1");
    let orphan = node.postmaster();
    node.signal(Signal::SIGKILL);
    assert_eq!(node.killed_by(), Some(9));
    drop(node);
    let node = place.start(&[]);
    node.wait_status("running");
    assert!(node.postmaster() != orphan, "it is another one");
    assert_eq!(place.sql("select answer from t"), "42");
    assert!(node.log().contains(&format!("process {orphan}")), "{}", node.log());
    assert!(!node.log().contains("not properly shut down"), "{}", node.log());
    node.terminate();
}

/// Ours is when the supervisor is killed while it looks whether anything is at work. The kernel then lets it go on,
/// unless whoever adopts it belongs to the same session, as the init of a container may.
#[test]
fn neither_is_one_that_does_not_listen_in_the_way_for_ever() {
    let place = Place::new();
    place.configure(&place.kept_spec());
    let node = place.start(&[]);
    node.wait_status("running");
    place.sql("create table t as select 42 as answer");
    let before = place.processes();
    let postmaster = node.postmaster();
    node.signal(Signal::SIGKILL);
    assert_eq!(node.killed_by(), Some(9));
    stop_process(before.iter().find(|process| process.pid == postmaster).unwrap());
    drop(node);
    let node = place.start(&[]);
    node.wait_status("running");
    // Somebody else reaps them.
    eventually("the end of all of them", || before.iter().all(|process| !process.exists()).then_some(()));
    assert_eq!(place.sql("select answer from t"), "42");
    assert!(!node.log().contains("not properly shut down"), "{}", node.log());
    node.terminate();
}

/// A session that stands still keeps its server from stopping in order, and no server lives for ever.
#[test]
fn nor_is_one_that_cannot_stop_in_order() {
    let place = Place::new();
    place.configure(&place.kept_spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let session = place.session("select 1");
    stop_process(&session.backend);
    let before = place.processes();
    node.signal(Signal::SIGKILL);
    assert_eq!(node.killed_by(), Some(9));
    drop(node);
    let node = place.start(&[]);
    node.wait_status("running");
    eventually("the end of all of them", || before.iter().all(|process| !process.exists()).then_some(()));
    node.terminate();
}
