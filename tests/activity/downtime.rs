//! How long Postgres was not there, and what is no downtime.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::node::{Node, Place, eventually, http};
use crate::support::processes::Process;
use crate::{Alice, quiet, seen, started};

fn metric(place: &Place, name: &str) -> Option<f64> {
    let (code, body) = http(place.external, "GET", "/metrics", None, None).ok()?;
    assert_eq!(code, 200, "{body}");
    body.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn current(place: &Place) -> Option<f64> {
    metric(place, "compute_pg_current_downtime_ms ")
}

fn total(place: &Place) -> Option<f64> {
    metric(place, "compute_pg_downtime_ms_total ")
}

fn monitor(place: &Place, database: &str) -> String {
    let sql = "select pid from pg_stat_activity where application_name = 'compute_ctl:compute_monitor'";
    place.try_sql(database, sql).unwrap()
}

#[test]
fn a_database_that_is_gone_is_downtime_until_it_is_back() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &[]);
    seen(&node, "a first look", Value::is_object);
    assert_eq!((current(&place), total(&place)), (Some(0.0), Some(0.0)));
    place.try_sql("app", "drop database postgres with (force)").unwrap();
    eventually("downtime", || (current(&place) > Some(0.0) && total(&place) > Some(0.0)).then_some(()));
    node.wait_log("downtime_info");
    place.try_sql("app", "create database postgres").unwrap();
    eventually("no downtime any more", || (current(&place) == Some(0.0)).then_some(()));
    let kept = total(&place).unwrap();
    assert!(kept > 0.0);
    seen(&node, "another look", Value::is_object);
    assert_eq!(total(&place), Some(kept));
    node.terminate();
}

#[test]
fn a_killed_session_is_made_anew() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &[]);
    seen(&node, "a first look", Value::is_object);
    let first = monitor(&place, "app");
    assert!(!first.is_empty());
    place.sql(&format!("select pg_terminate_backend({first})"));
    eventually("another session", || {
        let now = monitor(&place, "app");
        (!now.is_empty() && now != first).then_some(())
    });
    let alice = Alice::connect(place.postgres).unwrap();
    seen(&node, "what is there now", |activity| activity["sessions"]["idle"] == 1);
    eventually("no downtime any more", || (current(&place) == Some(0.0)).then_some(()));
    drop(alice);
    node.terminate();
}

#[test]
fn a_stop_that_was_asked_for_is_no_downtime() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &[]);
    seen(&node, "a first look", Value::is_object);
    let (code, body) = node.post("/terminate", None);
    assert_eq!(code, 200, "{body}");
    // It lingers, and can still be asked.
    let status = node.wait_status("terminated");
    assert!(status.get("activity").is_none(), "{status}");
    assert_eq!((current(&place), total(&place)), (Some(0.0), Some(0.0)));
    node.signal(Signal::SIGTERM);
    assert_eq!(node.exit_code(), 0);
    assert!(!node.log().contains("downtime_info"), "{}", node.log());
}

fn last_active(node: &Node<'_>) -> Value {
    node.status().unwrap()["last_active"].clone()
}

#[test]
fn a_crash_is_downtime_and_the_monitor_goes_on_after_it() {
    let place = Place::new();
    let mut spec = quiet(&place, &[]);
    spec["storage"]["kind"] = "existing".into();
    let node = started(&place, &spec, &["--restart", "on-failure"]);
    let alice = Alice::connect(place.postgres).unwrap();
    seen(&node, "a session", |activity| activity["sessions"]["idle"] == 1);
    let active = last_active(&node);
    assert!(active.is_string());
    let postmaster = node.postmaster();
    Process::of(postmaster).unwrap().signal(Signal::SIGKILL);
    node.wait("another Postgres", |node| {
        let status = node.status()?;
        let again = status["status"] == "running" && status["activity"].is_object();
        (again && node.postmaster() != postmaster).then_some(())
    });
    eventually("no downtime any more", || (current(&place) == Some(0.0)).then_some(()));
    assert!(total(&place) > Some(0.0));
    // Whatever noticed it first tells of its beginning: the session, a round in it, or the end of the server.
    node.wait_log("Postgres answers again");
    let log = node.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("downtime_info=\"total_ms: ")).collect();
    let (ended, begun) = told.split_last().expect("it is told");
    assert!(ended.contains("Postgres answers again") && !begun.is_empty(), "{log}");
    // What was seen before the crash was seen.
    assert_eq!(last_active(&node), active);
    drop(alice);
    let alice = Alice::connect(place.postgres).unwrap();
    seen(&node, "a session again", |activity| activity["sessions"]["idle"] == 1);
    assert_ne!(last_active(&node), active);
    drop(alice);
    node.terminate();
}
