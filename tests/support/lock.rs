//! Work on roles that is held up by a lock.

use serde_json::{Value, json};

use super::node::{Node, Place};

/// Keeps everybody from changing roles until the transaction ends.
pub(crate) const LOCK: &str = "begin; lock table pg_catalog.pg_authid in share row exclusive mode";

/// A spec with a role to make.
pub(crate) fn with_a_role(place: &Place) -> Value {
    let mut spec = place.spec();
    spec["cluster"]["roles"] = json!([{ "name": "late" }]);
    spec
}

/// Waits until somebody waits for the lock. Before the server is ready nobody can ask.
pub(crate) fn waits_for_the_lock(place: &Place, node: &Node<'_>) {
    node.wait("a session that waits for the lock", |_| {
        let waiting = place.try_sql("postgres", "select count(*) from pg_locks where not granted");
        waiting.is_ok_and(|count| count != "0").then_some(())
    });
}
