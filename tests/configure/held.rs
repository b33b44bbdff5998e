//! Held up: by locks, by full slots, by what is out of reach.

use compute_ctl::limits;
use serde_json::{Value, json};

use crate::support::lock::LOCK;
use crate::support::node::{Node, Place, Session, config, eventually};

/// Sessions of the program's own which apply something.
const OURS: &str = "select count(*) from pg_stat_activity where application_name in \
                    ('compute_ctl:apply_config', 'compute_ctl:migrations')";

/// Those of them which wait for a lock.
const WAITING: &str = "select count(*) from pg_stat_activity \
                       where application_name = 'compute_ctl:apply_config' and wait_event_type = 'Lock'";

/// A place whose nodes wait for locks only for a moment.
fn impatient() -> Place {
    let mut place = Place::new();
    place.connstr.push_str("?options=-c%20lock_timeout%3D300");
    place
}

/// Starts a node that keeps its data, and waits until it has nothing left to do.
pub(crate) fn at_rest<'a>(place: &'a Place, spec: &Value, more: &[&str]) -> Node<'a> {
    place.configure(spec);
    let node = place.start(more);
    node.wait_status("running");
    migrated(place);
    node
}

/// Waits for the end of all migrations.
pub(crate) fn migrated(place: &Place) {
    eventually("migrations", || {
        (place.sql("select id from neon_migration.migration_id") == "12").then_some(())
    });
    none_left(place);
}

/// Waits until nothing that applies is connected any more.
pub(crate) fn none_left(place: &Place) {
    eventually("the end of our sessions", || (place.sql(OURS) == "0").then_some(()));
}

/// A configure that must fail while Postgres serves on. The text, which the status has as well.
pub(crate) fn fails(node: &Node<'_>, spec: &Value) -> String {
    let (code, body) = node.configure(spec);
    failed(node, code, &body)
}

pub(crate) fn failed(node: &Node<'_>, code: u16, body: &Value) -> String {
    assert_eq!(code, 500, "{body}");
    let status = node.status().unwrap();
    assert_eq!(status["status"], "failed");
    let error = status["error"].as_str().unwrap();
    let told = body["error"].as_str().unwrap();
    assert_eq!(told, format!("compute configuration failed: {error:?}"));
    error.to_owned()
}

/// A configure that must succeed.
pub(crate) fn succeeds(node: &Node<'_>, spec: &Value) {
    let (code, body) = node.configure(spec);
    assert_eq!(code, 200, "{body}\n{}", node.log());
    assert_eq!((&body["status"], &body["error"]), (&json!("running"), &Value::Null));
    let status = node.status().unwrap();
    assert_eq!((&status["status"], &status["error"]), (&json!("running"), &Value::Null));
}

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

fn exists(place: &Place, role: &str) -> bool {
    let sql = format!("select count(*) from pg_roles where rolname = '{role}'");
    // There may be no slot yet.
    eventually("an answer", || place.try_sql("postgres", &sql).ok()) == "1"
}

#[test]
fn a_lock_is_told_and_the_same_configure_succeeds_when_it_is_gone() {
    let place = impatient();
    let mut spec = place.kept_spec();
    let node = at_rest(&place, &spec, &[]);
    spec["cluster"]["roles"] = json!([{ "name": "app" }]);
    let locked = place.session(LOCK);
    for _ in 0..2 {
        let error = fails(&node, &spec);
        assert_says(
            &error,
            &[
                "cannot create role \"app\" in \"neon_superuser\" (in database \"postgres\") (SQLSTATE 55P03)",
                "canceling statement due to lock timeout",
            ],
        );
        none_left(&place);
    }
    drop(locked);
    succeeds(&node, &spec);
    assert!(exists(&place, "app"));
    node.terminate();
}

#[test]
fn a_lock_inside_a_database_is_told_with_the_database() {
    let place = impatient();
    let mut spec = place.kept_spec();
    spec["cluster"]["roles"] = json!([{ "name": "leaving" }, { "name": "owner" }]);
    let databases = ["app", "bpp", "cpp"];
    spec["cluster"]["databases"] =
        databases.iter().map(|name| json!({ "name": name, "owner": "owner" })).collect();
    let node = at_rest(&place, &spec, &[]);
    for database in databases {
        place.try_sql(database, "create table t (); alter table t owner to leaving").unwrap();
    }
    spec["cluster"]["roles"] = json!([{ "name": "owner" }]);
    spec["delta_operations"] = json!([{ "action": "delete_role", "name": "leaving" }]);
    spec["reconfigure_concurrency"] = json!(3);
    let locked = place.session_in("bpp", "begin; lock table t in share mode");
    let error = fails(&node, &spec);
    assert_says(
        &error,
        &[
            "cannot hand over what role \"leaving\" has in database \"bpp\" to role \"owner\" \
         (in database \"bpp\") (SQLSTATE 55P03)",
            "canceling statement due to lock timeout",
        ],
    );
    none_left(&place);
    assert!(exists(&place, "leaving"), "it is dropped last");
    drop(locked);
    succeeds(&node, &spec);
    assert!(!exists(&place, "leaving"));
    for database in databases {
        let owner = place.try_sql(database, "select tableowner from pg_tables where tablename = 't'");
        assert_eq!(owner.unwrap(), "owner");
    }
    node.terminate();
}

#[test]
fn the_first_failure_ends_what_still_waits_elsewhere() {
    let place = Place::new();
    let mut spec = place.kept_spec();
    spec["cluster"]["roles"] = json!([{ "name": "leaving" }, { "name": "owner" }]);
    spec["cluster"]["databases"] =
        json!([{ "name": "app", "owner": "owner" }, { "name": "bpp", "owner": "owner" }]);
    let node = at_rest(&place, &spec, &[]);
    place.try_sql("app", "create table t (); alter table t owner to leaving").unwrap();
    // Only a superuser may own this, so that it cannot be handed over to an ordinary role.
    place.sql("alter role leaving superuser");
    place
        .try_sql("bpp", "create foreign data wrapper w; alter foreign data wrapper w owner to leaving")
        .unwrap();
    spec["cluster"]["roles"] = json!([{ "name": "owner" }]);
    spec["delta_operations"] = json!([{ "action": "delete_role", "name": "leaving" }]);
    spec["reconfigure_concurrency"] = json!(2);
    let locked = place.session_in("app", "begin; lock table t in share mode");
    // The step in the other database fails when this is gone, and by then the one in the first waits.
    let mut other = place.session_in("bpp", "begin; lock table pg_foreign_data_wrapper in exclusive mode");
    let configure = node.post_later("/configure", Some(&config(&spec)));
    eventually("two sessions that wait", || (place.sql(WAITING) == "2").then_some(()));
    other.go_on("rollback");
    let (code, body) = configure.join().unwrap();
    let error = failed(&node, code, &serde_json::from_str(&body).unwrap());
    assert_says(
        &error,
        &["has in database \"bpp\"", "(in database \"bpp\") (SQLSTATE 42501)", "foreign-data wrapper"],
    );
    assert_eq!(place.sql(WAITING), "0", "nothing of it goes on");
    none_left(&place);
    drop(locked);
    place.try_sql("bpp", "drop foreign data wrapper w").unwrap();
    succeeds(&node, &spec);
    assert!(!exists(&place, "leaving"));
    node.terminate();
}

#[test]
fn a_server_that_answers_no_login_is_told() {
    let place = Place::new();
    let mut spec = place.kept_spec();
    let node = at_rest(&place, &spec, &[]);
    spec["cluster"]["roles"] = json!([{ "name": "app" }]);
    // Who logs in reads this table.
    let locked = place.session("begin; lock table pg_catalog.pg_authid in access exclusive mode");
    let error = fails(&node, &spec);
    assert_says(&error, &["connecting to database \"postgres\" took longer than 10s", "has locked"]);
    drop(locked);
    succeeds(&node, &spec);
    assert!(exists(&place, "app"));
    node.terminate();
}

#[test]
fn a_terminate_does_not_wait_for_the_lock_a_configure_waits_for() {
    let place = Place::new();
    let mut spec = place.kept_spec();
    let node = at_rest(&place, &spec, &[]);
    spec["cluster"]["roles"] = json!([{ "name": "app" }]);
    let _locked = place.session(LOCK);
    let configure = node.post_later("/configure", Some(&config(&spec)));
    waits_for_a_lock(&place);
    assert_eq!(node.status().unwrap()["status"], "configuration");
    node.terminate();
    let (code, body) = configure.join().unwrap();
    assert_eq!(code, 500);
    assert!(body.contains("the compute went down before the spec was applied"), "{body}");
    assert_eq!(place.cluster_state(), "shut down");
}

/// Waits until a session of ours waits for a lock; its process.
pub(crate) fn waits_for_a_lock(place: &Place) -> i32 {
    let waiting = "select pid from pg_stat_activity \
                   where application_name = 'compute_ctl:apply_config' and wait_event_type = 'Lock'";
    eventually("a session that waits for a lock", || place.sql(waiting).parse().ok())
}

/// A place whose server has few slots, of which the activity monitor takes one.
fn cramped() -> (Place, Value) {
    let place = Place::new();
    let mut spec = place.kept_spec();
    let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
    settings.push(json!({ "name": "max_connections", "value": "5", "vartype": "integer" }));
    settings.push(json!({ "name": "superuser_reserved_connections", "value": "1", "vartype": "integer" }));
    (place, spec)
}

/// Waits for the monitor, which takes its slot when there is one.
fn monitored(place: &Place) {
    let monitors =
        "select count(*) from pg_stat_activity where application_name = 'compute_ctl:compute_monitor'";
    eventually("the activity monitor", || (place.sql(monitors) == "1").then_some(()));
    eventually("an end of all other sessions but the one which asks", || {
        let sessions = "select count(*) from pg_stat_activity where backend_type = 'client backend'";
        (place.sql(sessions) == "2").then_some(())
    });
}

#[test]
fn a_full_server_is_told_and_waited_for() {
    let (place, mut spec) = cramped();
    let node = at_rest(&place, &spec, &[]);
    spec["cluster"]["roles"] = json!([{ "name": "app" }]);
    monitored(&place);
    let full: Vec<Session> =
        // The slot of whoever asked last is given back when it has ended.
        (0..4).map(|_| eventually("a slot", || place.try_session("postgres", "select 1"))).collect();
    let error = fails(&node, &spec);
    assert_says(
        &error,
        &[
            "cannot connect to database \"postgres\"",
            "no connection slot was free for 15s; end sessions, or raise max_connections (SQLSTATE 53300)",
            "too many clients already",
        ],
    );
    // The same with an end in time.
    let refusals = node.log().matches("too many clients already").count();
    let configure = node.post_later("/configure", Some(&config(&spec)));
    node.wait("another refusal", |node| {
        (node.log().matches("too many clients already").count() > refusals).then_some(())
    });
    drop(full);
    let (code, body) = configure.join().unwrap();
    assert_eq!(code, 200, "{body}");
    assert_eq!(node.status().unwrap()["error"], Value::Null);
    assert!(exists(&place, "app"));
    node.terminate();
}

#[test]
fn work_in_databases_takes_turns_when_there_is_one_slot_left_for_it() {
    let (place, mut spec) = cramped();
    let node = at_rest(&place, &spec, &[]);
    monitored(&place);
    let databases = ["app", "bpp", "cpp", "dpp"];
    spec["cluster"]["databases"] =
        databases.iter().map(|name| json!({ "name": name, "owner": "cloud_admin" })).collect();
    spec["reconfigure_concurrency"] = json!(4);
    let taken = [1, 2].map(|_| place.session("select 1"));
    succeeds(&node, &spec);
    assert!(node.log().contains("too many clients already"), "there was no room for two at once");
    drop(taken);
    let prepared = "select count(*) from neon_migration.prepared_database";
    eventually("a slot", || (place.try_sql("postgres", prepared).ok()? == "4").then_some(()));

    // A turn may take longer than anybody would wait for somebody else's slot.
    spec["cluster"]["roles"] = json!([{ "name": "leaving" }]);
    succeeds(&node, &spec);
    for database in databases {
        place.try_sql(database, "create table t (); alter table t owner to leaving").unwrap();
    }
    spec["cluster"]["roles"] = json!([]);
    spec["delta_operations"] = json!([{ "action": "delete_role", "name": "leaving" }]);
    monitored(&place);
    let _taken = place.session("select 1");
    let mut holder = place.session_in("app", "begin; lock table t in share mode");
    holder.go_on(&format!("select pg_sleep({}); commit", limits::SLOT_PATIENCE.as_secs() + 2));
    succeeds(&node, &spec);
    node.terminate();
}

#[test]
fn a_role_that_is_out_of_reach_is_refused_before_anything_is_done() {
    let place = Place::new();
    let mut spec = place.kept_spec();
    spec["cluster"]["roles"] = json!([{ "name": "leaving" }, { "name": "owner" }]);
    spec["cluster"]["databases"] = json!([{ "name": "closed", "owner": "owner" }]);
    let node = at_rest(&place, &spec, &[]);
    place.try_sql("closed", "create table t (); alter table t owner to leaving").unwrap();
    place.sql("alter database closed allow_connections false");
    spec["cluster"]["roles"] = json!([{ "name": "owner" }, { "name": "coming" }]);
    spec["cluster"]["databases"].as_array_mut().unwrap().push(json!({ "name": "coming", "owner": "owner" }));
    spec["delta_operations"] = json!([{ "action": "delete_role", "name": "leaving" }]);
    let error = fails(&node, &spec);
    assert_eq!(
        error,
        "cannot delete role \"leaving\": it has objects in database \"closed\", which refuses connections"
    );
    assert!(exists(&place, "leaving") && !exists(&place, "coming"));
    assert_eq!(place.sql("select count(*) from pg_database where datname = 'coming'"), "0");
    place.sql("alter database closed allow_connections true");
    succeeds(&node, &spec);
    assert!(!exists(&place, "leaving") && exists(&place, "coming"));
    node.terminate();
}
