//! What is at work in a real PostgreSQL, as the program sees it: every source, counted and ignored, downtime, and
//! terminations that spare what is at work.

// Helpers here are test code as well, though the lint sees that of `#[test]` functions only.
#![allow(clippy::unwrap_used)]

mod downtime;
mod if_idle;
mod sources;
#[path = "../support/mod.rs"]
mod support;

use serde_json::{Value, json};
use support::node::{Node, Place};

/// A spec under which nothing is at work by itself.
fn quiet(place: &Place, more: &[(&str, &str)]) -> Value {
    let mut spec = place.spec();
    let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
    let own = [("autovacuum", "off"), ("TimeZone", "Asia/Tokyo")];
    for (name, value) in
        own.iter().filter(|(name, _)| !more.iter().any(|(other, _)| other == name)).chain(more)
    {
        settings.push(json!({ "name": name, "value": value, "vartype": "string" }));
    }
    spec
}

/// A running node with a role `alice` and databases `app` and `copy`.
fn started<'a>(place: &'a Place, spec: &Value, flags: &[&str]) -> Node<'a> {
    place.configure(spec);
    let node = place.start(flags);
    node.wait_status("running");
    // What is made here is new to the monitor, and not what it begins with.
    seen(&node, "a first look", Value::is_object);
    place.sql("create role alice login password 'secret'");
    place.sql("create database app");
    place.sql("create database copy");
    node
}

/// Waits until `/status` tells of something at work that fits.
fn seen(node: &Node<'_>, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    node.wait(what, |node| node.status().filter(|status| fits(&status["activity"])))
}

/// A session of somebody else than the superuser.
struct Alice {
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl Alice {
    fn connect(port: u16) -> Result<Self, tokio_postgres::Error> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let connstr = format!("postgresql://alice@127.0.0.1:{port}/app");
        let (client, connection) =
            runtime.block_on(tokio_postgres::connect(&connstr, tokio_postgres::NoTls))?;
        runtime.spawn(connection);
        Ok(Alice { runtime, client })
    }

    fn run(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        self.runtime.block_on(self.client.batch_execute(sql))
    }

    /// Without waiting for its end.
    fn begin(self, sql: &'static str) -> Busy {
        let Alice { runtime, client } = self;
        runtime.spawn(async move { client.batch_execute(sql).await });
        Busy { _runtime: runtime }
    }
}

/// A session at work, until it is dropped.
struct Busy {
    _runtime: tokio::runtime::Runtime,
}
