//! Postgres, or one of its processes, is killed while a configure is under way.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::held::{at_rest, failed, succeeds, waits_for_a_lock};
use crate::support::lock::LOCK;
use crate::support::node::{Place, config};

#[test]
fn a_killed_session_fails_its_step_and_a_configure_waits_for_the_recovery() {
    let place = Place::new();
    let mut spec = place.kept_spec();
    let node = at_rest(&place, &spec, &[]);
    spec["cluster"]["roles"] = json!([{ "name": "app" }]);
    spec["cluster"]["databases"] = json!([{ "name": "app", "owner": "app" }]);
    let locked = place.session(LOCK);
    let configure = node.post_later("/configure", Some(&config(&spec)));
    let victim = waits_for_a_lock(&place);
    // The postmaster then ends all sessions and starts again by itself, but not before it has lost patience with
    // this one, so that what comes next finds it so.
    locked.backend.signal(Signal::SIGSTOP);
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let (code, body) = configure.join().unwrap();
    let error = failed(&node, code, &serde_json::from_str(&body).unwrap());
    assert!(error.starts_with("cannot create role \"app\" in \"neon_superuser\" (in database \"postgres\")"));
    assert!(error.contains("connection closed"), "{error}");
    succeeds(&node, &spec);
    assert!(node.log().contains("the database system is in recovery mode"), "{}", node.log());
    assert_eq!(place.try_sql("app", "select 1").as_deref(), Ok("1"));
    node.terminate();
}

#[test]
fn a_killed_server_fails_the_configure_at_once_and_the_next_one_converges() {
    let place = Place::new();
    let mut spec = place.kept_spec();
    let node = at_rest(&place, &spec, &["--restart", "on-failure"]);
    spec["cluster"]["roles"] = json!([{ "name": "app" }]);
    spec["cluster"]["databases"] = json!([{ "name": "app", "owner": "app" }]);
    let locked = place.session(LOCK);
    let configure = node.post_later("/configure", Some(&config(&spec)));
    waits_for_a_lock(&place);
    kill(Pid::from_raw(node.postmaster()), Signal::SIGKILL).unwrap();
    let (code, body) = configure.join().unwrap();
    assert_eq!(code, 500, "{body}");
    assert!(body.contains("compute configuration failed"), "{body}");
    node.wait("a new server", |node| {
        (node.transitions().iter().filter(|status| *status == "running").count() == 2).then_some(())
    });
    // That the session broke may be known before that the server is gone.
    let mut transitions = node.transitions();
    transitions.dedup();
    assert!(transitions.ends_with(&["configuration", "failed", "init", "running"].map(str::to_owned)));
    drop(locked);
    assert_eq!(node.status().unwrap()["error"], Value::Null);
    succeeds(&node, &spec);
    assert_eq!(place.try_sql("app", "select 1").as_deref(), Ok("1"));
    node.terminate();
}

#[test]
fn a_killed_server_is_told_by_the_status_while_the_node_lingers() {
    let place = Place::new();
    let mut spec = place.kept_spec();
    let node = at_rest(&place, &spec, &["--crash-linger", "10m"]);
    spec["cluster"]["roles"] = json!([{ "name": "app" }]);
    let _locked = place.session(LOCK);
    let configure = node.post_later("/configure", Some(&config(&spec)));
    waits_for_a_lock(&place);
    let before = place.processes();
    kill(Pid::from_raw(node.postmaster()), Signal::SIGKILL).unwrap();
    let (code, _) = configure.join().unwrap();
    assert_eq!(code, 500);
    let told = node.wait("the crash", |node| {
        node.status().filter(|body| body["error"].as_str().is_some_and(|error| error.contains("signal 9")))
    });
    assert_eq!(told["status"], "failed");
    node.signal(Signal::SIGTERM);
    node.ends_with(1, &before);

    // The next process on the same data.
    place.configure(&spec);
    let node = place.start(&[]);
    node.wait_status("running");
    assert_eq!(place.sql("select count(*) from pg_roles where rolname = 'app'"), "1");
    node.terminate();
}
