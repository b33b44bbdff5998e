//! Every source, counted and ignored.

use std::process::{Child, Stdio};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::support::node::{Node, Place, eventually};
use crate::support::pg;
use crate::{Alice, quiet, seen, started};

fn last_active(status: &Value) -> Timestamp {
    status["last_active"].as_str().unwrap_or_else(|| panic!("{status}")).parse().unwrap()
}

/// A program of PostgreSQL's that streams until it is dropped.
struct Streaming(Child);

impl Streaming {
    fn start(place: &Place, program: &str, arguments: &[&str]) -> Self {
        let mut command = pg::command(program);
        command.args(["-h", "127.0.0.1", "-U", pg::ADMIN, "-p", &place.postgres.to_string()]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Streaming(command.spawn().unwrap())
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn sessions_are_told_apart_and_times_are_utc_whatever_the_zone() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &[]);
    // The superuser's own do not count.
    let _superuser = place.session_in("app", "begin; select 1");
    let status = seen(&node, "a first look", |activity| activity.is_object());
    assert_eq!(status["last_active"], Value::Null, "{status}");
    assert_eq!(
        status["activity"]["sessions"],
        json!({"active":0,"idle_in_transaction":0,"idle":0,"arriving":0})
    );

    let before = Timestamp::now();
    let alice = Alice::connect(place.postgres).unwrap();
    alice.run("select 1").unwrap();
    let after = Timestamp::now();
    let status = seen(&node, "an idle session", |activity| {
        activity["sessions"]["idle"] == 1 && activity["last_kind"] == "idle_session"
    });
    // Tokyo is nine hours ahead of what is meant.
    let active = last_active(&status);
    assert!(before <= active && active <= after, "{before} {active} {after}");
    // Of several the one counts that was at work last.
    let between = Timestamp::now();
    let bob = Alice::connect(place.postgres).unwrap();
    let status = seen(&node, "two idle sessions", |activity| activity["sessions"]["idle"] == 2);
    assert!(last_active(&status) >= between, "{status}");
    drop(bob);

    alice.run("begin").unwrap();
    let status = seen(&node, "an idle transaction", |activity| {
        activity["sessions"]["idle_in_transaction"] == 1 && activity["last_kind"] == "idle_in_transaction"
    });
    assert!(last_active(&status) > after, "{status}");
    let later = node
        .wait("that it goes on", |node| node.status().filter(|now| last_active(now) > last_active(&status)));
    alice.run("commit").unwrap();

    let busy = alice.begin("select pg_sleep(600)");
    seen(&node, "an active session", |activity| {
        activity["sessions"]["active"] == 1 && activity["last_kind"] == "active_session"
    });
    // A server looks for its client only when it has something to say.
    place.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'alice'");
    drop(busy);
    let gone = seen(&node, "nobody", |activity| activity["sessions"]["active"] == 0);
    // A new configuration changes nothing about what was seen.
    assert_eq!(node.configure(&quiet(&place, &[("work_mem", "5MB")])).0, 200);
    let status = node.status().unwrap();
    assert!(last_active(&later) <= last_active(&gone) && last_active(&status) >= last_active(&gone));
    node.terminate();
}

/// One that does not say what it does may do anything, and one whose transaction has failed has it all the same.
#[test]
fn sessions_that_keep_silent_or_have_failed_count_too() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &[]);
    let failed = Alice::connect(place.postgres).unwrap();
    assert!(failed.run("begin; select no_such_column").is_err());
    seen(&node, "a transaction that has failed", |activity| {
        activity["sessions"]["idle_in_transaction"] == 1 && activity["last_kind"] == "idle_in_transaction"
    });
    drop(failed);
    place.sql("alter role alice set track_activities = off");
    let silent = Alice::connect(place.postgres).unwrap();
    seen(&node, "a session that says nothing", |activity| {
        activity["sessions"] == json!({"active":1,"idle_in_transaction":0,"idle":0,"arriving":0})
            && activity["last_kind"] == "active_session"
    });
    let (code, body) = node.post("/terminate?if_idle=true", None);
    assert!(code == 409 && body.contains("the compute is not idle: 1 active session\""), "{code} {body}");
    drop(silent);
    node.terminate();
}

/// By this name safekeepers know the process of Neon's that sends them the log; it is part of the server.
#[test]
fn a_walproposer_is_nobody() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &[]);
    let directory = place.path().to_str().unwrap();
    let arguments = ["-d", "application_name=walproposer", "-D", directory, "--no-sync"];
    let _walproposer = Streaming::start(&place, "pg_receivewal", &arguments);
    let there = "select count(*) from pg_stat_activity \
                 where backend_type = 'walsender' and application_name = 'walproposer'";
    eventually("a walproposer", || (place.sql(there) == "1").then_some(()));
    let (code, body) = node.post("/terminate?mode=immediate&if_idle=true", None);
    assert_eq!(code, 200, "{body}");
}

#[test]
fn ignored_sessions_are_shown_and_move_nothing() {
    let place = Place::new();
    let flags = ["--idle-ignores", "active-sessions,idle-in-transaction,idle-sessions"];
    let node = started(&place, &quiet(&place, &[]), &flags);
    let idle = Alice::connect(place.postgres).unwrap();
    let inside = Alice::connect(place.postgres).unwrap();
    inside.run("begin").unwrap();
    let busy = Alice::connect(place.postgres).unwrap().begin("select pg_sleep(600)");
    let status = seen(&node, "three sessions", |activity| {
        activity["sessions"] == json!({"active":1,"idle_in_transaction":1,"idle":1,"arriving":0})
    });
    assert_eq!((&status["last_active"], &status["activity"]["last_kind"]), (&Value::Null, &Value::Null));
    let (code, body) = node.post("/terminate?mode=immediate&if_idle=true", None);
    assert_eq!((code, body.as_str()), (200, r#"{"lsn":null}"#), "{}", node.log());
    drop((idle, inside, busy));
}

/// A subscription of one database to another one of the same server, which is its walsender too.
fn replicate(place: &Place, node: &Node<'_>) {
    let run = |database: &str, sql: &str| place.try_sql(database, sql).unwrap();
    run("app", "create table t (n int)");
    run("copy", "create table t (n int)");
    run("app", "create publication p for table t");
    run("app", "select pg_create_logical_replication_slot('s', 'pgoutput')");
    // Of a standby, which shows as a walsender while it is there.
    run("app", "select pg_create_physical_replication_slot('standby')");
    seen(node, "a slot nobody uses", |activity| {
        activity["logical_slots"] == json!({"active":0,"inactive":1})
    });
    run(
        "copy",
        &format!(
            "create subscription x connection 'host=127.0.0.1 port={} user={} dbname=app' publication p \
             with (create_slot = false, slot_name = 's', copy_data = false)",
            place.postgres,
            pg::ADMIN
        ),
    );
}

#[test]
fn replication_counts_on_both_sides_and_slots_are_told() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[("wal_level", "logical")]), &[]);
    replicate(&place, &node);
    let status = seen(&node, "a subscription and its walsender", |activity| {
        activity["subscriptions"] == 1
            && activity["walsenders"] == json!({"logical":1,"physical":0})
            && activity["logical_slots"] == json!({"active":1,"inactive":0})
            && activity["last_kind"] == "logical_walsender"
    });
    assert!(status["last_active"].is_string(), "{status}");
    let (code, body) = node.post("/terminate?if_idle=true", None);
    assert_eq!(code, 409, "{body}");
    assert!(body.contains("the compute is not idle: 1 logical walsender, 1 subscription\""), "{body}");
    // The slot alone holds nobody awake.
    place.try_sql("copy", "alter subscription x disable").unwrap();
    seen(&node, "the slot alone", |activity| {
        activity["logical_slots"] == json!({"active":0,"inactive":1}) && activity["subscriptions"] == 0
    });
    let (code, body) = node.post("/terminate?mode=immediate&if_idle=true", None);
    assert_eq!(code, 200, "{body}");
}

#[test]
fn ignored_replication_is_shown_and_moves_nothing() {
    let place = Place::new();
    let flags = ["--idle-ignores", "walsenders", "--idle-ignores", "subscriptions"];
    let node = started(&place, &quiet(&place, &[("wal_level", "logical")]), &flags);
    replicate(&place, &node);
    let _standby =
        Streaming::start(&place, "pg_receivewal", &["-D", place.path().to_str().unwrap(), "--no-sync"]);
    let status = seen(&node, "a subscription and two walsenders", |activity| {
        activity["subscriptions"] == 1 && activity["walsenders"] == json!({"logical":1,"physical":1})
    });
    assert_eq!((&status["last_active"], &status["activity"]["last_kind"]), (&Value::Null, &Value::Null));
    let (code, body) = node.post("/terminate?mode=immediate&if_idle=true", None);
    assert_eq!(code, 200, "{body}");
}

#[test]
fn a_physical_walsender_counts() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &[]);
    let standby =
        Streaming::start(&place, "pg_receivewal", &["-D", place.path().to_str().unwrap(), "--no-sync"]);
    seen(&node, "a walsender", |activity| {
        activity["walsenders"]["physical"] == 1 && activity["last_kind"] == "physical_walsender"
    });
    let (code, body) = node.post("/terminate?if_idle=true", None);
    assert_eq!(code, 409, "{body}");
    drop(standby);
    node.terminate();
}

/// A table that takes an autovacuum worker very long.
fn vacuumed(place: &Place) {
    let run = |sql: &str| place.try_sql("app", sql).unwrap();
    run("create table t as select i from generate_series(1, 200000) i");
    run("alter table t set (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, \
         autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0)");
    run("delete from t");
}

#[test]
fn autovacuum_counts_unless_it_is_ignored() {
    for ignored in [false, true] {
        let place = Place::new();
        let settings = [("autovacuum", "on"), ("autovacuum_naptime", "1s")];
        let flags: &[&str] = if ignored { &["--idle-ignores", "autovacuum"] } else { &[] };
        let node = started(&place, &quiet(&place, &settings), flags);
        vacuumed(&place);
        let status = seen(&node, "an autovacuum worker", |activity| {
            activity["autovacuum_workers"].as_u64() > Some(0)
                && (ignored || activity["last_kind"] == "autovacuum")
        });
        assert_eq!(status["last_active"].is_null(), ignored, "{status}");
        node.terminate();
    }
}

/// Waits for so many more looks, which the clock of the server counts.
fn looks(place: &Place, number: usize) {
    let last = "select extract(epoch from max(query_start)) from pg_stat_activity \
                where application_name = 'compute_ctl:compute_monitor'";
    for _ in 0..number {
        let before = place.sql(last);
        eventually("another look", || (place.sql(last) != before).then_some(()));
    }
}

#[test]
fn statistics_tell_of_sessions_between_two_looks_when_the_spec_says_so() {
    for (features, flags) in [
        (json!(["activity_monitor_experimental"]), &[][..]),
        (json!(["activity_monitor_experimental"]), &["--idle-ignores", "statistics"][..]),
        (json!([]), &[][..]),
    ] {
        let place = Place::new();
        let mut spec = quiet(&place, &[]);
        spec["features"] = features.clone();
        let node = started(&place, &spec, flags);
        let on = features.as_array().is_some_and(|names| !names.is_empty());
        // The databases are new, and that has moved them.
        let counts = on && flags.is_empty();
        // Nothing has moved between two looks since; only now is a move somebody's.
        let status = node.wait("two looks", |node| {
            let status = node.status().filter(|status| status["last_active"].is_null() != counts)?;
            let activity = &status["activity"];
            let still = if on { activity["statistics_moved"] == json!(false) } else { activity.is_object() };
            still.then_some(status)
        });
        // What is done in the database of the program itself does not count.
        looks(&place, 4);
        assert_eq!(node.status().unwrap()["last_active"], status["last_active"]);
        // One of the superuser, so that nothing else counts it. It is over before the next look.
        place.try_sql("app", "select 1").unwrap();
        if counts {
            let moved = node.wait("moved statistics", |node| {
                node.status().filter(|now| now["last_active"] != status["last_active"])
            });
            assert_eq!(moved["activity"]["last_kind"], "statistics", "{moved}");
            assert!(last_active(&moved) > last_active(&status), "{moved}");
        } else if on {
            seen(&node, "moved statistics", |activity| activity["statistics_moved"] == json!(true));
            assert_eq!(node.status().unwrap()["last_active"], Value::Null);
        } else {
            looks(&place, 2);
            let status = node.status().unwrap();
            assert_eq!(status["activity"]["statistics_moved"], Value::Null, "{status}");
            assert_eq!(status["last_active"], Value::Null, "{status}");
        }
        node.terminate();
    }
}

#[test]
fn each_sum_of_the_statistics_tells_by_itself() {
    let place = Place::new();
    let mut spec = quiet(&place, &[]);
    spec["features"] = json!(["activity_monitor_experimental"]);
    // So that nothing else moves the time.
    let node = started(&place, &spec, &["--idle-ignores", "active-sessions,idle-sessions"]);
    let moved = |before: &Value| {
        let last = &before["last_active"];
        node.wait("moved statistics", |node| node.status().filter(|now| now["last_active"] != *last))
    };
    let still = || {
        looks(&place, 2);
        seen(&node, "statistics that do not move", |activity| activity["statistics_moved"] == json!(false))
    };
    moved(&Value::Null);
    // A session that does nothing.
    let before = still();
    drop(Alice::connect(place.postgres).unwrap());
    moved(&before);
    // One that was there before, and does something now.
    let sessions = || place.sql("select sessions from pg_stat_database where datname = 'app'");
    let before = sessions();
    let mut session = place.session_in("app", "select 1");
    eventually("that it is counted", || (sessions() != before).then_some(()));
    let before = still();
    session.go_on("select pg_sleep(0.01)");
    moved(&before);
    node.terminate();
}
