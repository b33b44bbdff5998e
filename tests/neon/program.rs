//! The whole program on base backups of a real cluster.

use std::fs;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::node::{Node, Place};
use crate::support::pageserver::archive::Origin;
use crate::support::pageserver::{Answer, Door, Pageserver, Refusal, Sending, Then, Transport, What};
use crate::{BOTH, TOKEN, about, sends};

/// A spec for the whole program on an ordinary PostgreSQL.
fn spec(place: &Place, server: &Pageserver, transport: Transport, mode: &Value) -> Value {
    let mut spec = place.spec();
    spec["storage"] = Value::Null;
    spec["skip_pg_catalog_updates"] = json!(true);
    spec.as_object_mut().unwrap().extend(about(server, transport, mode).as_object().unwrap().clone());
    spec
}

/// How many were asked for; a pinned compute also asks for leases.
fn base_backups(server: &Pageserver) -> usize {
    server.requests().iter().filter(|request| matches!(request.what, What::BaseBackup { .. })).count()
}

fn figures(node: &Node<'_>) -> Value {
    let (code, body) = node.request("GET", "/metrics.json", None).unwrap();
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn serves_reads_only(place: &Place, node: &Node<'_>) {
    node.wait_status("running");
    assert_eq!(place.sql("select answer from kept"), "42");
    assert_eq!(place.sql("select pg_is_in_recovery()"), "t");
    let error = place.try_sql("postgres", "delete from kept").unwrap_err();
    assert!(error.contains("read-only"), "{error}");
}

#[test]
fn a_replica_and_a_pinned_compute_serve_a_real_cluster() {
    let origin = Origin::new();
    let bytes = origin.base_backup();
    let checkpoint = origin.checkpoint();
    for (transport, mode) in
        [(Transport::Libpq, json!("Replica")), (Transport::Grpc, json!({ "Static": checkpoint }))]
    {
        let server = Pageserver::start([sends(&bytes)]);
        let server = server.behind(Door::Token(TOKEN.to_owned(), Refusal::new("28P01", 16, "no")));
        let place = Place::new();
        place.configure(&spec(&place, &server, transport, &mode));
        let node = place.start(&["--restart", "on-failure"]);
        serves_reads_only(&place, &node);
        assert!(node.log().contains("base backup unpacked"), "{}", node.log());
        assert!(!node.log().contains(TOKEN), "the token is in the log");
        let figures = figures(&node);
        assert_eq!(figures["basebackup_bytes"], bytes.len(), "{figures}");
        let figure = |name: &str| figures[name].as_u64().unwrap();
        assert!(figure("pageserver_connect_micros") > 0, "{figures}");
        let parts = figure("basebackup_ms") + figure("start_postgres_ms") + figure("config_ms");
        assert!(parts <= figure("total_startup_ms"), "{figures}");
        assert!(figure("pageserver_connect_micros") <= (figure("basebackup_ms") + 1) * 1000, "{figures}");
        // A crash: the same process fetches it all anew.
        let before = node.postmaster();
        fs::write(place.pgdata().join("mark"), "of the first life").unwrap();
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        node.wait("another postmaster", |node| (node.postmaster() != before).then_some(()));
        serves_reads_only(&place, &node);
        assert!(!place.pgdata().join("mark").exists());
        assert_eq!(base_backups(&server), 2);
        assert_eq!(self::figures(&node), figures, "only the first start counts");
        node.terminate();
        drop(node);
        // And so does another process.
        let node = place.start(&[]);
        serves_reads_only(&place, &node);
        assert_eq!(base_backups(&server), 3);
        node.terminate();
    }
}

#[test]
fn a_pageserver_that_refuses_for_good_ends_the_start() {
    let refusal = Refusal::new("28000", 7, "this tenant is another's");
    for transport in BOTH {
        let server = Pageserver::start([Answer::Error(refusal.clone())]);
        let place = Place::new();
        place.configure(&spec(&place, &server, transport, &json!("Replica")));
        let node = place.start(&[]);
        let status = node.wait_status("failed");
        let error = status["error"].as_str().unwrap();
        assert!(error.contains("this tenant is another's") && error.contains("127.0.0.1:"), "{error}");
        assert!(!error.contains(TOKEN), "{error}");
        assert_eq!(fs::read_dir(place.pgdata()).unwrap().count(), 0);
        node.signal(Signal::SIGTERM);
        node.exit_code();
    }
}

#[test]
fn a_start_is_terminated_in_the_middle_of_a_base_backup() {
    let bytes = Origin::new().base_backup();
    let half = Sending { upto: Some(bytes.len() / 2), then: Then::Hang, ..Sending::new(&bytes) };
    for transport in BOTH {
        for (answer, phase, received) in [
            (Answer::Silence, "connecting", 0),
            (Answer::Archive(half.clone()), "receiving", bytes.len() / 2),
        ] {
            let server = Pageserver::start([answer]);
            let place = Place::new();
            place.configure(&spec(&place, &server, transport, &json!("Replica")));
            let node = place.start(&[]);
            node.wait("a base backup under way", |node| {
                let status = node.status()?;
                let storage = &status["storage"];
                let there = storage["phase"] == phase && storage["received_bytes"] == json!(received);
                (there && !server.requests().is_empty()).then_some(())
            });
            assert_eq!(node.status().unwrap()["status"], "init");
            node.terminate();
        }
    }
}

#[test]
fn what_may_pass_is_told_and_tried_again() {
    let bytes = Origin::new().base_backup();
    let cut_off = Sending { upto: Some(bytes.len() / 2), then: Then::Close, ..Sending::new(&bytes) };
    for transport in BOTH {
        let moving = Answer::Error(Refusal::new("08006", 14, "the tenant is moving"));
        let server = Pageserver::start([moving, Answer::Archive(cut_off.clone()), sends(&bytes)]);
        let place = Place::new();
        place.configure(&spec(&place, &server, transport, &json!("Replica")));
        let node = place.start(&[]);
        node.wait("the reason in the status", |node| {
            let status = node.status()?;
            let error = status["error"].as_str()?;
            (status["status"] == "init" && error.contains("the tenant is moving")).then_some(())
        });
        serves_reads_only(&place, &node);
        assert_eq!(node.status().unwrap()["error"], Value::Null);
        assert_eq!(base_backups(&server), 3);
        let (_, metrics) = node.request("GET", "/metrics", None).unwrap();
        assert!(metrics.contains("\ncompute_ctl_storage_retries_total 2\n"), "{metrics}");
        node.terminate();
    }
}

#[test]
fn sessions_go_on_when_the_pageservers_move() {
    let bytes = Origin::new().base_backup();
    for (transport, refresh) in [
        (Transport::Libpq, false),
        (Transport::Libpq, true),
        (Transport::Grpc, false),
        (Transport::Grpc, true),
    ] {
        let (before, after) = (Pageserver::start([sends(&bytes)]), Pageserver::start([Answer::Close]));
        let place = Place::new();
        place.configure(&spec(&place, &before, transport, &json!("Replica")));
        let node = place.start(&[]);
        serves_reads_only(&place, &node);
        let session = place.session("select 1");
        let postmaster = node.postmaster();
        let moved = spec(&place, &after, transport, &json!("Replica"));
        let begun = Instant::now();
        if refresh {
            place.configure(&moved);
            assert_eq!(node.refresh(), 200);
        } else {
            let (code, body) = node.configure(&moved);
            assert_eq!(code, 200, "{body}");
        }
        node.wait("the new address", |_| {
            (place.sql("show neon.pageserver_connstring") == after.libpq_url()).then_some(())
        });
        eprintln!(
            "from the hint to a new session's settings: {:?}, {transport:?}, refresh: {refresh}",
            begun.elapsed()
        );
        node.wait_status("running");
        assert!(session.backend.exists(), "the session has ended");
        assert_eq!(node.postmaster(), postmaster);
        assert_eq!(base_backups(&after), 0);
        node.terminate();
    }
}
