//! Settings of a running node are changed such that its caller knows what became of them.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::node::{Node, Place};

/// The spec of the place with one more setting.
fn with(place: &Place, name: &str, value: &str) -> Value {
    let mut spec = place.spec();
    let setting = json!({ "name": name, "value": value, "vartype": "string" });
    spec["cluster"]["settings"].as_array_mut().unwrap().push(setting);
    spec
}

fn file(place: &Place) -> String {
    fs::read_to_string(place.pgdata().join("postgresql.conf")).unwrap()
}

fn metric(node: &Node<'_>, name: &str) -> Option<String> {
    let (code, text) = node.request("GET", "/metrics", None).unwrap();
    assert_eq!(code, 200, "{text}");
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned()))
}

/// How often Postgres has been told to read its files again.
fn reloads(node: &Node<'_>) -> usize {
    node.log().matches("received SIGHUP").count()
}

#[test]
fn a_refused_setting_fails_the_request_and_changes_nothing() {
    let place = Place::new();
    place.configure(&with(&place, "work_mem", "6MB"));
    let node = place.start(&[]);
    node.wait_status("running");
    let (postmaster, before) = (node.postmaster(), file(&place));

    for skip in [false, true] {
        let mut bad = with(&place, "work_mem", "7XB");
        bad["skip_pg_catalog_updates"] = json!(skip);
        bad["cluster"]["roles"] = json!([{ "name": "late", "encrypted_password": null }]);
        let (code, body) = node.configure(&bad);
        let error = body["error"].as_str().unwrap_or_default();
        assert_eq!(code, 500, "{body}");
        for word in ["work_mem = '7XB'", "invalid value", "Valid units", "from 64 to 2147483647"] {
            assert!(error.contains(word), "{word:?} not in {error}");
        }
        let status = node.status().unwrap();
        assert_eq!(status["status"], "failed");
        assert!(status["error"].as_str().is_some_and(|text| text.contains("7XB")), "{status}");
        let rejected = &status["settings"]["rejected"];
        assert_eq!(rejected[0]["name"], "work_mem", "{status}");
        assert!(rejected[0]["reason"].as_str().is_some_and(|text| text.contains("Valid units")), "{status}");
        assert_eq!(metric(&node, "compute_ctl_rejected_settings").unwrap(), "1");
        assert_eq!((file(&place), place.sql("show work_mem")), (before.clone(), "6MB".to_owned()));
        assert_eq!(place.sql("select count(*) from pg_roles where rolname = 'late'"), "0");

        let mut good = with(&place, "work_mem", "6MB");
        good["skip_pg_catalog_updates"] = json!(skip);
        let (code, body) = node.configure(&good);
        assert_eq!((code, &body["status"], &body["error"]), (200, &json!("running"), &Value::Null), "{body}");
        assert!(body.get("settings").is_none(), "{body}");
        assert_eq!(metric(&node, "compute_ctl_rejected_settings").unwrap(), "0");
    }
    assert_eq!(metric(&node, r#"compute_ctl_settings_reloads_total{outcome="refused"}"#).unwrap(), "2");

    assert_eq!(node.configure(&with(&place, "work_mem", "8MB")).0, 200);
    // In force when it is answered.
    assert_eq!(place.sql("show work_mem"), "8MB");
    assert_eq!(metric(&node, r#"compute_ctl_settings_reloads_total{outcome="applied"}"#).unwrap(), "1");
    node.wait_log("received SIGHUP");
    assert_eq!(reloads(&node), 1, "{}", node.log());
    assert_eq!(node.postmaster(), postmaster);
    node.terminate();
}

#[test]
fn what_needs_a_restart_is_said_and_shown() {
    const GAUGE: &str = "compute_ctl_pending_restart_settings";
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    assert_eq!(metric(&node, GAUGE).unwrap(), "0");
    let (code, body) = node.configure(&with(&place, "max_connections", "42"));
    assert_eq!(code, 200, "{body}");
    let told = json!({ "pending_restart": ["max_connections"], "rejected": [] });
    assert_eq!(body["settings"], told, "{body}");
    assert_eq!(node.status().unwrap()["settings"], told);
    assert_eq!(
        (metric(&node, GAUGE).unwrap(), place.sql("show max_connections")),
        ("1".into(), "100".into())
    );
    let warning = |line: &&str| line.contains("WARN") && line.contains("wait for a restart");
    let log = node.log();
    let warning = log.lines().find(warning).unwrap_or_else(|| panic!("no warning in {log}"));
    assert!(warning.contains("max_connections"), "{warning}");
    // Nonsense is told from a change that has to wait, although one waits already.
    let (code, body) = node.configure(&with(&place, "max_connections", "many"));
    assert_eq!(code, 500, "{body}");
    assert!(body["error"].as_str().is_some_and(|text| text.contains("max_connections = 'many'")), "{body}");
    let settings = &node.status().unwrap()["settings"];
    assert_eq!(
        settings["pending_restart"],
        json!(["max_connections"]),
        "that waits all the same: {settings}"
    );
    assert_eq!(settings["rejected"][0]["name"], "max_connections", "{settings}");
    assert_eq!(node.configure(&place.spec()).0, 200);
    assert_eq!(metric(&node, GAUGE).unwrap(), "0");
    node.terminate();
}

#[test]
fn a_postgres_that_is_started_again_has_what_waited_for_it() {
    let place = Place::new();
    place.configure(&place.kept_spec());
    let node = place.start(&["--restart", "on-failure"]);
    node.wait_status("running");
    let mut spec = with(&place, "max_connections", "42");
    spec["storage"]["kind"] = json!("existing");
    let (code, body) = node.configure(&spec);
    assert_eq!((code, &body["settings"]["pending_restart"]), (200, &json!(["max_connections"])), "{body}");
    let before = node.postmaster();
    kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
    let status = node.wait("another Postgres", |node| {
        let status = node.status()?;
        (status["status"] == "running" && node.postmaster() != before).then_some(status)
    });
    assert_eq!(place.sql("show max_connections"), "42");
    assert!(status.get("settings").is_none(), "{status}");
    assert_eq!(metric(&node, "compute_ctl_pending_restart_settings").unwrap(), "0");
    node.terminate();
}

#[test]
fn a_secret_in_a_rejected_setting_is_not_told() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let (code, body) = node.configure(&with(&place, "no_such_passphrase", "hunter2"));
    assert_eq!(code, 500, "{body}");
    let status = node.status().unwrap();
    assert_eq!(status["settings"]["rejected"][0]["name"], "no_such_passphrase", "{status}");
    let reason = status["settings"]["rejected"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("a setting of this server"), "{reason}");
    assert!(!status.to_string().contains("hunter2") && !body.to_string().contains("hunter2"), "{status}");
    node.terminate();
}

#[test]
fn a_reload_by_hand_is_looked_at() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let reload = |text: &str| {
        fs::write(place.pgdata().join("postgresql.auto.conf"), text).unwrap();
        node.signal(Signal::SIGHUP);
    };
    let settings = |node: &Node<'_>| node.status().unwrap()["settings"].clone();
    reload("max_connections = 42\nwork_mem = '7XB'\n");
    let told = node.wait("what became of it", |node| Some(settings(node)).filter(|told| !told.is_null()));
    assert_eq!(told["pending_restart"], json!(["max_connections"]), "{told}");
    assert_eq!(told["rejected"][0]["name"], "work_mem", "{told}");
    reload("");
    node.wait("that all is well again", |node| settings(node).is_null().then_some(()));
    node.terminate();
}

/// The original counts these in one of its modes only.
#[test]
fn statements_that_take_too_long_are_counted_in_lakebase_mode() {
    for (flags, count) in [(&[][..], "0"), (&["--lakebase-mode", "true"], "1")] {
        let mut place = Place::new();
        place.connstr += "?options=-c%20statement_timeout%3D3s";
        place.configure(&place.spec());
        let node = place.start(flags);
        node.wait_status("running");
        let _session = place.session("begin; lock table pg_authid in share row exclusive mode");
        let mut spec = place.spec();
        spec["cluster"]["roles"] = json!([{ "name": "late", "encrypted_password": null }]);
        let (code, body) = node.configure(&spec);
        assert!(code == 500 && body.to_string().contains("statement timeout"), "{code} {body}");
        let name = "pg_cctl_configure_statement_timeout_errors_total";
        assert_eq!(metric(&node, name).as_deref(), Some(count), "{flags:?}");
        node.terminate();
    }
}

#[test]
fn an_unchanged_spec_is_not_reloaded() {
    let place = Place::new();
    let spec = with(&place, "work_mem", "6MB");
    place.configure(&spec);
    let node = place.start(&[]);
    node.wait_status("running");
    assert_eq!(node.configure(&spec).0, 200);
    let mut other = spec.clone();
    other["cluster"]["roles"] = json!([{ "name": "late", "encrypted_password": null }]);
    assert_eq!(node.configure(&other).0, 200);
    assert_eq!(place.sql("select count(*) from pg_roles where rolname = 'late'"), "1");
    // The server logs in order: one that came before would be seen by now.
    assert_eq!(node.configure(&with(&place, "work_mem", "7MB")).0, 200);
    node.wait_log("parameter \"work_mem\" changed to \"7MB\"");
    assert_eq!(reloads(&node), 1, "{}", node.log());
    node.terminate();
}

#[test]
fn a_postmaster_that_hangs_fails_the_request_in_the_end() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let (postmaster, before) = (Pid::from_raw(node.postmaster()), file(&place));
    kill(postmaster, Signal::SIGSTOP).unwrap();
    let (code, body) = node.configure(&with(&place, "work_mem", "7MB"));
    assert_eq!(code, 500, "{body}");
    let error = body["error"].as_str().unwrap();
    assert!(error.contains("cannot ask the server about its settings"), "{error}");
    assert_eq!(node.status().unwrap()["status"], "failed");
    assert_eq!(file(&place), before);
    kill(postmaster, Signal::SIGCONT).unwrap();
    assert_eq!(node.configure(&with(&place, "work_mem", "7MB")).0, 200);
    assert_eq!(place.sql("show work_mem"), "7MB");
    node.terminate();
}
