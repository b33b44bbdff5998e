//! A standby whose upstream goes wrong in one of four ways, and moves away: what is fetched is followed without a
//! restart.

use serde_json::json;

use crate::origin::{Origin, PASSWORD, parameters};
use crate::standby::{follows, place, spec, sql};
use crate::support::cut::{Act, Proxy};
use crate::support::node::{Node, Place};

/// The value of a metric, by all that stands in front of it.
fn metric(node: &Node<'_>, name: &str) -> Option<u64> {
    let (_, text) = node.request("GET", "/metrics", None).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.map(|value| value.parse().unwrap())
}

fn hints(node: &Node<'_>, suspicion: &str) -> u64 {
    metric(node, &format!("compute_ctl_refresh_hints_total{{suspicion=\"{suspicion}\"}}")).unwrap_or(0)
}

const ALL: [&str; 4] = ["refused", "silent", "malformed", "receiving"];

fn configure(place: &Place, port: u16) {
    let mut spec = spec(place, json!("Replica"), parameters(port));
    for (name, value) in [("wal_retrieve_retry_interval", "100ms"), ("wal_receiver_timeout", "3s")] {
        let setting = json!({ "name": name, "value": value, "vartype": "string" });
        spec["cluster"]["settings"].as_array_mut().unwrap().push(setting);
    }
    place.configure(&spec);
}

/// Has a standby lose its upstream, see that the control plane knows of no other one, and then of one.
fn moves(suspicion: &str, go_wrong: impl FnOnce(Proxy) -> Option<Proxy>) {
    let origin = Origin::start();
    let (old, new) = (origin.proxy(Act::Pass), origin.proxy(Act::Pass));
    let place = place();
    configure(&place, old.port());
    let node = place.start(&[]);
    node.wait_status("running");
    follows(&origin, &place);
    node.wait("a standby that is seen to receive", |node| {
        (metric(node, "compute_ctl_upstream_streaming") == Some(1)).then_some(())
    });
    assert_eq!(ALL.map(|suspicion| hints(&node, suspicion)), [0; 4], "{}", node.log());
    let started = sql(&place, "select pg_postmaster_start_time()").unwrap();

    let old = go_wrong(old);
    node.wait(&format!("suspicion {suspicion}"), |node| (hints(node, suspicion) > 0).then_some(()));
    // The spec says the same as before, so that nothing is to be done.
    node.wait("the way back", |node| {
        node.transitions()
            .ends_with(&["refresh-configuration-pending".into(), "running".into()])
            .then_some(())
    });
    assert!(!node.transitions().contains(&"refresh-configuration".to_owned()), "{}", node.log());
    if suspicion == "refused" {
        // It is refused again ten times a second, and nobody is asked each time.
        node.wait("a sign that comes too soon", |node| {
            (metric(node, "compute_ctl_refresh_hints_suppressed_total") > Some(0)).then_some(())
        });
    }
    configure(&place, new.port());
    node.wait("a standby that receives from elsewhere", |_| {
        let seen =
            sql(&place, "select sender_port from pg_stat_wal_receiver where status = 'streaming'").ok()?;
        (seen == new.port().to_string()).then_some(())
    });
    follows(&origin, &place);
    assert_eq!(node.wait_status("running")["error"], json!(null));
    assert_eq!(sql(&place, "select pg_postmaster_start_time()").unwrap(), started);
    node.wait("all is well", |node| {
        (metric(node, "compute_ctl_upstream_streaming") == Some(1)).then_some(())
    });
    assert!(!node.log().contains(PASSWORD), "{}", node.log());
    drop(old);
    node.terminate();
}

#[test]
fn an_upstream_that_refuses() {
    moves("refused", |proxy| {
        drop(proxy);
        None
    });
}

#[test]
fn an_upstream_that_is_silent() {
    moves("silent", |proxy| {
        proxy.freeze();
        Some(proxy)
    });
}

#[test]
fn an_upstream_that_makes_no_sense() {
    moves("malformed", |proxy| {
        proxy.spoil();
        Some(proxy)
    });
}

#[test]
fn an_upstream_that_breaks_off() {
    moves("receiving", |proxy| {
        proxy.cut();
        // The next connection is let in, and broken once there is something to be received.
        proxy.act(Act::Break(700));
        Some(proxy)
    });
}

/// Whoever it has followed is about to go, and nobody else is to be looked for.
#[test]
fn a_standby_that_is_being_promoted_asks_for_nothing() {
    let origin = Origin::start();
    let proxy = origin.proxy(Act::Pass);
    let place = place();
    configure(&place, proxy.port());
    let node = place.start(&[]);
    node.wait_status("running");
    follows(&origin, &place);
    let primary = spec(&place, json!("Primary"), parameters(proxy.port()));
    // More of the log than there will ever be, so that it is waited for.
    let body = json!({ "spec": primary, "wal_flush_lsn": "FFFFFFFF/0" });
    let waiting = node.post_later("/promote", Some(&body));
    let asks = "select count(*) from pg_stat_activity where query like '%pg_last_wal_replay_lsn%' \
                and pid <> pg_backend_pid() and application_name <> 'compute_ctl:upstream_monitor'";
    node.wait("a promotion", |_| (sql(&place, asks).unwrap() != "0").then_some(()));
    drop(proxy);
    let (code, body) = waiting.join().unwrap();
    assert_eq!(code, 500, "{body}");
    // It is a standby as before.
    node.wait("a look for news", |node| (hints(node, "refused") > 0).then_some(()));
    let log = node.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("no {text:?} in {log}"));
    let (refused, over) = (at("could not connect to the primary server"), at(" promotion outcome="));
    assert!(refused < over && over < at("looking for news"), "{log}");
    node.terminate();
}

#[test]
fn who_follows_nobody_asks_for_nothing() {
    let origin = Origin::start();
    let proxy = origin.proxy(Act::Pass);
    let place = place();
    place.configure(&spec(&place, json!("Primary"), parameters(proxy.port())));
    let node = place.start(&[]);
    node.wait_status("running");
    drop(proxy);
    drop(origin);
    // Others have begun to look, so this would have too.
    node.wait("a session of the activity monitor", |_| {
        let sessions = sql(&place, "select string_agg(application_name, ' ') from pg_stat_activity").unwrap();
        assert!(!sessions.contains("compute_ctl:upstream_monitor"), "{sessions}");
        sessions.contains("compute_ctl:compute_monitor").then_some(())
    });
    assert_eq!(metric(&node, "compute_ctl_upstream_streaming"), None);
    assert_eq!(ALL.map(|suspicion| hints(&node, suspicion)), [0; 4]);
    node.terminate();
}
