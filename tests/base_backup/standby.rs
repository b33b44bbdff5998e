//! The whole program on a copy of another server.

use std::fs;

use compute_ctl::storage::Phase;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::origin::{Origin, PASSWORD, but, parameters};
use crate::support::cut::Act;
use crate::support::node::{Node, Place, eventually};
use crate::support::processes::Process;

/// A spec for a node in `place` that follows what listens on `port`.
pub(crate) fn spec(place: &Place, mode: Value, storage: Value) -> Value {
    let mut spec = place.spec();
    spec["mode"] = mode;
    spec["storage"] = storage;
    spec["storage"]["kind"] = json!("base_backup");
    // The superuser has no password there, and comes over the socket's trust.
    spec
}

/// A place whose node reaches its Postgres over the socket: over TCP the copied server wants a password.
pub(crate) fn place() -> Place {
    let mut place = Place::new();
    place.connstr = format!(
        "postgresql://cloud_admin@{}:{}/postgres",
        place.path().to_str().unwrap().replace('/', "%2F"),
        place.postgres
    );
    place
}

pub(crate) fn sql(place: &Place, sql: &str) -> Result<String, String> {
    let mut psql = crate::support::pg::command("psql");
    psql.args(["-XwtAq", "-v", "ON_ERROR_STOP=1", "-U", "cloud_admin", "-d", "postgres", "-c", sql]);
    let output = psql.arg("-h").arg(place.path()).args(["-p", &place.postgres.to_string()]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Waits until the standby has what the primary has.
pub(crate) fn follows(origin: &Origin, place: &Place) {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    origin.sql(&format!("create table if not exists news (n bigint); insert into news values ({number})"));
    eventually("a row of the primary's on the standby", || {
        let seen = sql(place, &format!("select count(*) from news where n = {number}"));
        (seen.as_deref() == Ok("1")).then_some(())
    });
}

fn no_secret(node: &Node<'_>) {
    assert!(!node.log().contains(PASSWORD), "{}", node.log());
    assert!(!node.status().unwrap().to_string().contains(PASSWORD));
}

#[test]
fn a_standby_follows_restarts_and_moves_while_it_serves() {
    let origin = Origin::start();
    let place = place();
    let storage = but(origin.parameters(), json!({ "slot": "mine", "create_slot": true }));
    place.configure(&spec(&place, json!("Replica"), storage.clone()));
    for _ in 0..2 {
        let node = place.start(&[]);
        node.wait_status("running");
        follows(&origin, &place);
        assert!(sql(&place, "create table mine ()").unwrap_err().contains("read-only"));
        assert_eq!(sql(&place, "show work_mem").unwrap(), "4MB");
        assert_eq!(sql(&place, "show primary_slot_name").unwrap(), "mine");
        assert_eq!(origin.slots(), "mine");
        no_secret(&node);
        let conf = fs::read_to_string(place.pgdata().join("postgresql.conf")).unwrap();
        assert!(conf.contains("primary_conninfo") && !conf.contains(PASSWORD), "{conf}");
        node.terminate();
        // The copy is made anew, and nobody needs the slot meanwhile.
        assert_eq!(origin.slots(), "");
    }
    let node = place.start(&[]);
    node.wait_status("running");
    let backends = "select count(*) from pg_stat_activity where backend_type = 'walreceiver'";
    assert_eq!(sql(&place, backends).unwrap(), "1");
    let session = sql(&place, "select pg_postmaster_start_time()").unwrap();
    // The same server behind another port, and another slot.
    let proxy = origin.proxy(Act::Pass);
    let moved = but(parameters(proxy.port()), json!({ "slot": "other", "create_slot": true }));
    let (code, body) = node.configure(&spec(&place, json!("Replica"), moved.clone()));
    assert_eq!(code, 200, "{body}\n{}", node.log());
    assert!(sql(&place, "show primary_conninfo").unwrap().contains(&proxy.port().to_string()));
    eventually("a walreceiver that goes through the proxy", || {
        let seen = sql(&place, "select sender_port from pg_stat_wal_receiver").unwrap();
        (seen == proxy.port().to_string()).then_some(())
    });
    follows(&origin, &place);
    assert_eq!(origin.slots(), "other");
    assert_eq!(sql(&place, "select pg_postmaster_start_time()").unwrap(), session);
    // What the running server cannot become is refused, and it serves on.
    for mode in [json!("Primary"), json!({ "Static": "0/1" })] {
        let storage = if mode == "Primary" { origin.parameters() } else { moved.clone() };
        let (code, body) = node.configure(&spec(&place, mode, storage));
        assert!(code != 200 && body.to_string().contains("does not become"), "{code} {body}");
    }
    follows(&origin, &place);
    no_secret(&node);
    node.signal(Signal::SIGTERM);
    node.ends_with(0, &[]);
    assert_eq!(origin.slots(), "");
}

#[test]
fn a_kept_standby_keeps_its_slot_and_catches_up() {
    let origin = Origin::start();
    let place = place();
    let changes = json!({ "slot": "mine", "create_slot": true, "reuse": true, "role": "standby" });
    place.configure(&spec(&place, json!("Replica"), but(origin.parameters(), changes)));
    let node = place.start(&[]);
    node.wait_status("running");
    fs::write(place.pgdata().join("written"), "").unwrap();
    node.terminate();
    assert_eq!(origin.slots(), "mine");
    // Much happens meanwhile, and the primary would keep none of it without the slot.
    origin.sql("create table much as select repeat('x', 1000) from generate_series(1, 20000)");
    origin.sql("checkpoint");
    let node = place.start(&[]);
    node.wait_status("running");
    follows(&origin, &place);
    assert_eq!(sql(&place, "select count(*) from much").unwrap(), "20000");
    assert!(place.pgdata().join("written").exists());
    node.terminate();
}

#[test]
fn a_primary_of_its_own_writes_on_a_timeline_of_its_own() {
    let origin = Origin::start();
    let place = place();
    let mut wanted = spec(&place, json!("Primary"), but(origin.parameters(), json!({ "reuse": true })));
    wanted["cluster"]["roles"] = json!([{ "name": "app", "encrypted_password": null }]);
    wanted["cluster"]["databases"] = json!([{ "name": "app", "owner": "app" }]);
    place.configure(&wanted);
    for written in 0..2 {
        let node = place.start(&[]);
        node.wait_status("running");
        assert_eq!(sql(&place, "select count(*) from kept where answer = 42").unwrap(), "20000");
        assert_eq!(sql(&place, "select count(*) from pg_database where datname = 'app'").unwrap(), "1");
        let timeline = "select substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";
        assert_eq!(sql(&place, timeline).unwrap(), "00000002");
        assert_eq!(origin.sql(timeline), "00000001");
        let identifier = "select system_identifier from pg_control_system()";
        assert_eq!(sql(&place, identifier).unwrap(), origin.sql(identifier));
        sql(&place, "create table if not exists mine (n int); insert into mine values (1)").unwrap();
        assert_eq!(sql(&place, "select count(*) from mine").unwrap(), (written + 1).to_string());
        node.terminate();
    }
}

#[test]
fn a_pinned_copy_goes_as_far_as_its_lsn_and_serves_reads() {
    let origin = Origin::start();
    let place = place();
    // Further than the copy, which is taken now.
    let lsn = origin.sql("select pg_current_wal_insert_lsn() + 8000000");
    place.configure(&spec(&place, json!({ "Static": lsn }), origin.parameters()));
    let node = place.start(&[]);
    node.wait_status("running");
    origin.sql("create table early as select 1");
    eventually("the LSN on the primary", || {
        origin.sql(
            "create table if not exists filler (t text); insert into filler select repeat('x', 1000) \
                    from generate_series(1, 1000)",
        );
        (origin.sql(&format!("select pg_current_wal_flush_lsn() > '{lsn}'")) == "t").then_some(())
    });
    origin.sql("create table late as select 1");
    eventually("the pause", || {
        let state = sql(&place, "select pg_get_wal_replay_pause_state()").unwrap();
        (state == "paused").then_some(())
    });
    assert_eq!(sql(&place, "select count(*) from early").unwrap(), "1");
    assert!(sql(&place, "select count(*) from late").unwrap_err().contains("does not exist"));
    assert_eq!(sql(&place, "show recovery_target_action").unwrap(), "pause");
    node.terminate();
}

#[test]
fn an_lsn_before_the_copy_is_a_failure_in_the_servers_own_words() {
    let origin = Origin::start();
    let place = place();
    origin.sql("create table more as select repeat('x', 1000) from generate_series(1, 10000)");
    place.configure(&spec(&place, json!({ "Static": "0/200" }), origin.parameters()));
    let node = place.start(&[]);
    let status = node.wait_status("failed");
    let error = status["error"].as_str().unwrap();
    assert!(error.contains("before consistent recovery point"), "{error}");
    node.signal(Signal::SIGTERM);
    node.exit_code();
}

#[test]
fn a_node_killed_in_the_middle_of_a_copy_is_started_again() {
    let origin = Origin::start();
    let proxy = origin.proxy(Act::Hang(5_000_000));
    let place = place();
    place.configure(&spec(&place, json!("Replica"), parameters(proxy.port())));
    let node = place.start(&[]);
    proxy.wait();
    node.wait("the copy", |_| place.pgdata().join("base_backup/backup_label").exists().then_some(()));
    let status = node.status().unwrap();
    assert_eq!(status["status"], "init");
    let phase = status["storage"]["phase"].as_str().unwrap();
    assert!(
        [Phase::Connecting, Phase::Receiving].map(|phase| phase.to_string()).contains(&phase.to_owned()),
        "{phase}"
    );
    let left = place.processes();
    node.signal(Signal::SIGKILL);
    assert_eq!(node.killed_by(), Some(9));
    proxy.act(Act::Pass);
    let node = place.start(&[]);
    node.wait_status("running");
    follows(&origin, &place);
    // This process may be the one that orphans are given to, and reaps none.
    let ended = |pid| Process::of(pid).is_none_or(|now| now.state == 'Z');
    assert!(left.iter().all(|process| ended(process.pid)), "{left:?}");
    node.terminate();
}

#[test]
fn a_source_that_refuses_is_named_in_the_status() {
    let origin = Origin::start();
    let place = place();
    let wrong = but(origin.parameters(), json!({ "password": "not-the-password" }));
    place.configure(&spec(&place, json!("Replica"), wrong));
    let node = place.start(&[]);
    let status = node.wait_status("failed");
    let error = status["error"].as_str().unwrap();
    let server = format!("127.0.0.1:{}", origin.server.port());
    assert!(error.contains("password authentication failed") && error.contains(&server), "{error}");
    assert!(!node.log().contains("not-the-password"), "{}", node.log());
    node.signal(Signal::SIGTERM);
    node.exit_code();
}
