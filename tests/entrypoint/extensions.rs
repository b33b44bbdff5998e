//! Statistics of installed extensions.

use serde_json::{Value, json};

use crate::support::node::{Node, Place};

/// The samples of the gauge.
fn samples(node: &Node<'_>) -> Vec<String> {
    let (code, text) = node.request("GET", "/metrics", None).unwrap();
    assert_eq!(code, 200, "{text}");
    let samples = text.lines().filter_map(|line| line.strip_prefix("compute_installed_extensions"));
    samples.map(str::to_owned).collect()
}

/// What the last line of the log about them says.
fn told(node: &Node<'_>) -> Option<Value> {
    let log = node.log();
    let line = log.lines().rfind(|line| line.contains("[NEON_EXT_STAT] "))?;
    Some(serde_json::from_str(line.split_once("[NEON_EXT_STAT] ").unwrap().1).unwrap())
}

fn sample(name: &str, owner: &str, version: &str, databases: usize) -> String {
    format!("{{extension_name=\"{name}\",owned_by_superuser=\"{owner}\",version=\"{version}\"}} {databases}")
}

#[test]
fn they_are_counted_after_the_start_and_from_time_to_time() {
    let place = Place::new();
    let mut spec = place.spec();
    // Otherwise the spec's interval, of two hours, would hold.
    spec["skip_pg_catalog_updates"] = json!(true);
    place.configure(&spec);
    let node = place.start(&["--installed-extensions-collection-interval", "1"]);
    node.wait_status("running");
    let plpgsql = |databases| sample("plpgsql", "1", "1.0", databases);
    // `postgres` and `template1`: nobody can connect to `template0`.
    node.wait("the first look", |node| (samples(node) == [plpgsql(2)]).then_some(()));
    node.wait("the first line", |node| {
        let one = json!({
            "extname": "plpgsql", "version": "1.0", "n_databases": 2, "owned_by_superuser": "1"
        });
        (told(node)? == json!({ "extensions": [one] })).then_some(())
    });

    place.sql("create role owner login");
    place.sql("create database app owner owner");
    place.sql("create database closed allow_connections false");
    place.try_sql("app", "create extension citext version '1.6'").unwrap();
    place.try_sql("app", "set session authorization owner; create extension hstore version '1.8'").unwrap();
    let all = [sample("citext", "1", "1.6", 1), sample("hstore", "0", "1.8", 1), plpgsql(3)];
    node.wait("a look at all of them", |node| (samples(node) == all).then_some(()));
    place.try_sql("app", "drop extension hstore").unwrap();
    let rest = [sample("citext", "1", "1.6", 1), plpgsql(3)];
    node.wait("the end of the stale sample", |node| (samples(node) == rest).then_some(()));
    assert_eq!(place.sql("drop database app"), "", "no session stays in it");
    node.terminate();
    assert!(!node.log().contains("ERROR"), "{}", node.log());
}

#[test]
fn each_server_that_starts_is_looked_at() {
    let place = Place::new();
    place.configure(&place.kept_spec());
    // From time to time means from hour to hour here.
    let node = place.start(&["--restart", "on-failure"]);
    node.wait_status("running");
    let looks = |node: &Node<'_>| node.log().matches("[NEON_EXT_STAT] ").count();
    node.wait("a look", |node| (looks(node) == 1).then_some(()));
    let postmaster = nix::unistd::Pid::from_raw(node.postmaster());
    nix::sys::signal::kill(postmaster, nix::sys::signal::Signal::SIGKILL).unwrap();
    node.wait("another one", |node| (looks(node) == 2).then_some(()));
    node.terminate();
}

#[test]
fn a_failure_leaves_what_was_known() {
    let place = Place::new();
    let mut spec = place.spec();
    spec["skip_pg_catalog_updates"] = json!(true);
    place.configure(&spec);
    let node = place.start(&["--installed-extensions-collection-interval", "1"]);
    node.wait_status("running");
    node.wait("the first look", |node| (!samples(node).is_empty()).then_some(()));
    // A database that is there and lets nobody in.
    place.sql("create database broken");
    let oid = place.sql("select oid from pg_database where datname = 'broken'");
    std::fs::remove_file(place.pgdata().join("base").join(oid).join("PG_VERSION")).unwrap();
    let failures = |node: &Node<'_>| node.log().matches("could not get installed extensions: ").count();
    node.wait("a look that fails", |node| (failures(node) > 0).then_some(()));
    let (known, before) = (samples(&node), failures(&node));
    assert!(!known.is_empty());
    node.wait("another one", |node| (failures(node) > before).then_some(()));
    assert_eq!(samples(&node), known);
    assert_eq!(node.status().unwrap()["status"], "running");
    node.terminate();
}
