//! The numbered migrations, which run beside the serving server.

use serde_json::{Value, json};

use crate::held::{at_rest, migrated, none_left, succeeds};
use crate::support::node::{Node, Place, eventually};

/// How often migrations failed, by the metrics.
fn failures(node: &Node<'_>) -> Vec<String> {
    let (code, text) = node.request("GET", "/metrics", None).unwrap();
    assert_eq!(code, 200);
    let lines = text.lines().filter(|line| line.starts_with("compute_ctl_db_migration_failed_total{"));
    lines.map(str::to_owned).collect()
}

fn number(place: &Place) -> String {
    place.sql("select id from neon_migration.migration_id")
}

#[test]
fn a_migration_that_fails_is_counted_and_tried_again_by_the_next_configure() {
    let place = Place::new();
    let spec = place.kept_spec();
    let node = at_rest(&place, &spec, &[]);
    assert!(failures(&node).is_empty());
    place.sql("update neon_migration.migration_id set id = 9");
    place.sql("alter table neon_migration.migration_id add constraint stuck check (id < 11)");
    for times in 1..=2 {
        succeeds(&node, &spec);
        let told = format!("compute_ctl_db_migration_failed_total{{migration_id=\"11\"}} {times}");
        node.wait("the failure", |node| (failures(node) == [told.clone()]).then_some(()));
        node.wait_log("migration 11 failed");
        assert_eq!(number(&place), "10", "what went before it stands");
        let status = node.status().unwrap();
        assert_eq!((&status["status"], &status["error"]), (&json!("running"), &Value::Null));
        none_left(&place);
    }
    place.sql("alter table neon_migration.migration_id drop constraint stuck");
    succeeds(&node, &spec);
    migrated(&place);
    node.terminate();
}

#[test]
fn a_migration_that_waits_is_in_nobodys_way() {
    let place = Place::new();
    let mut spec = place.kept_spec();
    let node = at_rest(&place, &spec, &[]);
    place.sql("update neon_migration.migration_id set id = 0");
    let blocked = || {
        let waiting = "select pid from pg_stat_activity \
                       where application_name = 'compute_ctl:migrations' and wait_event_type = 'Lock'";
        eventually("a migration that waits", || place.sql(waiting).parse::<i32>().ok())
    };
    let lock = "begin; update neon_migration.migration_id set id = id";
    let locked = place.session(lock);
    succeeds(&node, &spec);
    let first = blocked();
    // It has changed the privileged role, which the next one wants to change too.
    spec["cluster"]["roles"] = json!([{ "name": "app" }]);
    succeeds(&node, &spec);
    let waits = format!("select count(*) from pg_locks where not granted and pid = {first}");
    assert_eq!(place.sql(&waits), "0", "it has ended before the next apply");
    assert_ne!(blocked(), first);
    drop(locked);
    migrated(&place);
    assert!(failures(&node).is_empty(), "{:?}", failures(&node));

    place.sql("update neon_migration.migration_id set id = 0");
    let _locked = place.session(lock);
    succeeds(&node, &spec);
    blocked();
    node.terminate();
    assert!(!node.log().contains("migration 1 failed"), "{}", node.log());
}
