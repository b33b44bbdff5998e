//! What is measured: the figures of the start, and the families of a scrape.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::node::{Node, Place, config};

/// The families of the original, with their types and labels (metrics-and-monitor, section 1), in its order; those
/// of the activity monitor left out.
const ORIGINAL: [(&str, &str, &[&str]); 13] = [
    ("compute_ctl_up", "gauge", &["build_tag", "status"]),
    ("compute_installed_extensions", "gauge", &["extension_name", "owned_by_superuser", "version"]),
    ("compute_ctl_cplane_requests_total", "counter", &["http_status", "rpc"]),
    ("compute_ctl_remote_ext_requests_total", "counter", &["filename", "http_status"]),
    ("compute_ctl_db_migration_failed_total", "counter", &["migration_id"]),
    ("compute_audit_log_dir_size", "gauge", &[]),
    ("compute_ctl_lfc_prewarms_total", "counter", &[]),
    ("compute_ctl_lfc_prewarm_errors_total", "counter", &[]),
    ("compute_ctl_lfc_offloads_total", "counter", &[]),
    ("compute_ctl_lfc_offload_errors_total", "counter", &[]),
    ("pg_cctl_pagestream_request_errors_total", "counter", &[]),
    ("pg_cctl_configure_statement_timeout_errors_total", "counter", &[]),
    ("pg_cctl_attached", "gauge", &["pg_compute_id", "pg_instance_id", "tenant_id", "timeline_id"]),
];

fn scrape(node: &Node<'_>) -> String {
    let (code, text) = node.request("GET", "/metrics", None).unwrap();
    assert_eq!(code, 200, "{text}");
    text
}

/// The names of a scrape's families in order, with type and labels.
fn families(text: &str) -> Vec<(String, String, BTreeSet<String>)> {
    let mut families: Vec<(String, String, BTreeSet<String>)> = Vec::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            families.push((name.to_owned(), kind.to_owned(), BTreeSet::new()));
        } else if let Some((_, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let (labels, _) = labels.rsplit_once('}').unwrap();
            let names = labels.split("\",").map(|label| label.split_once('=').unwrap().0.to_owned());
            families.last_mut().unwrap().2.extend(names.filter(|name| name != "le"));
        }
    }
    families
}

fn figures(node: &Node<'_>) -> (Vec<String>, BTreeMap<String, u64>) {
    let (code, body) = node.request("GET", "/metrics.json", None).unwrap();
    assert_eq!(code, 200, "{body}");
    let members = body.trim_matches(['{', '}']).split(',');
    let order = members.map(|member| member.split('"').nth(1).unwrap().to_owned()).collect();
    (order, serde_json::from_str(&body).unwrap())
}

#[test]
fn a_scrape_has_the_families_of_the_original_with_its_labels() {
    let place = Place::new();
    let mut spec = place.spec();
    spec["tenant_id"] = json!("c9269c359e9a199fad1ea0981246a78f");
    spec["timeline_id"] = json!("ece7de74d4b8cbe5433a68ce4d1b97b4");
    place.configure(&spec);
    let mut command = place.program();
    command.args(place.arguments()).args(["--lakebase-mode", "true"]).env("INSTANCE_ID", "instance-7");
    let node = place.run(command);
    node.wait_status("running");
    node.wait("a look at the extensions", |node| {
        scrape(node).contains("compute_installed_extensions{").then_some(())
    });
    let text = scrape(&node);
    let seen = families(&text);
    let known: Vec<_> = seen.iter().filter(|(name, _, _)| ORIGINAL.iter().any(|row| row.0 == name)).collect();
    // No request to a control plane, no download, no failed migration: these families have no samples.
    let silent = [
        "compute_ctl_cplane_requests_total",
        "compute_ctl_remote_ext_requests_total",
        "compute_ctl_db_migration_failed_total",
    ];
    let expected: Vec<_> = ORIGINAL.iter().filter(|(name, _, _)| !silent.contains(name)).collect();
    assert_eq!(known.len(), expected.len(), "{text}");
    for (seen, expected) in known.iter().zip(expected) {
        let labels: BTreeSet<String> = expected.2.iter().map(ToString::to_string).collect();
        assert_eq!(**seen, (expected.0.to_owned(), expected.1.to_owned(), labels));
    }
    // Whatever else there is, is ours and says so.
    for (name, _, _) in &seen {
        assert!(ORIGINAL.iter().any(|row| row.0 == name) || name.starts_with("compute_"), "{name}");
    }
    let attached = "pg_cctl_attached{pg_compute_id=\"compute-under-test\",pg_instance_id=\"instance-7\",\
                    tenant_id=\"c9269c359e9a199fad1ea0981246a78f\",\
                    timeline_id=\"ece7de74d4b8cbe5433a68ce4d1b97b4\"} 1";
    assert!(text.lines().any(|line| line == attached), "{text}");
    assert!(
        text.contains("compute_installed_extensions{extension_name=\"plpgsql\",owned_by_superuser=\"1\"")
    );

    // The attachment is the present one, whatever has changed it.
    spec["timeline_id"] = json!("00000000000000000000000000000001");
    place.configure(&spec);
    assert_eq!(node.configure(&spec).0, 200);
    let text = scrape(&node);
    let attached: Vec<&str> = text.lines().filter(|line| line.starts_with("pg_cctl_attached{")).collect();
    assert_eq!(attached.len(), 1, "{attached:?}");
    assert!(attached[0].contains("timeline_id=\"00000000000000000000000000000001\""), "{attached:?}");
    let up: Vec<&str> = text.lines().filter(|line| line.starts_with("compute_ctl_up{")).collect();
    assert!(up.len() == 1 && up[0].ends_with("status=\"running\"} 1"), "{up:?}");
    node.terminate();
}

#[test]
fn the_figures_of_the_start_agree_with_its_phases_and_stay() {
    let place = Place::new();
    place.configure(&Value::Null);
    let node = place.start(&["--restart", "on-failure"]);
    node.wait_status("empty");
    let (order, before) = figures(&node);
    assert_eq!(order.len(), 13);
    assert!(before.values().all(|figure| *figure == 0), "{before:?}");
    assert_eq!(node.configure(&place.spec()).0, 200);

    let (_, after) = figures(&node);
    let figure = |name: &str| after[name];
    assert!(figure("start_postgres_ms") > 0 && figure("total_startup_ms") > 0, "{after:?}");
    let parts = figure("basebackup_ms") + figure("start_postgres_ms") + figure("config_ms");
    assert!(parts <= figure("total_startup_ms"), "{after:?}");
    // Nothing is fetched by `initdb`, and nobody has safekeepers here.
    for none in ["basebackup_ms", "basebackup_bytes", "pageserver_connect_micros", "sync_sk_check_ms"] {
        assert_eq!(figure(none), 0, "{none}");
    }
    let told = node.wait("the figures in the log", |node| {
        let log = node.log();
        Some(log.lines().find(|line| line.contains("finished start-up"))?.to_owned())
    });
    for name in &order {
        assert!(told.contains(&format!(" {name}={}", after[name])), "{name} in {told}");
    }
    let text = scrape(&node);
    let seconds = figure("start_postgres_ms") as f64 / 1000.0;
    let gauge = format!("compute_ctl_start_phase_seconds{{phase=\"start_postgres\"}} {seconds}");
    assert!(text.contains(&gauge), "{gauge} in {text}");
    assert!(text.contains("compute_ctl_start_phase_seconds{phase=\"prepare\"} "), "{text}");

    // A later change and a crash are no part of the start.
    let mut spec = place.spec();
    spec["cluster"]["roles"] = json!([{ "name": "late", "encrypted_password": null }]);
    assert_eq!(node.configure(&spec).0, 200);
    let before = node.postmaster();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before), nix::sys::signal::Signal::SIGKILL).unwrap();
    node.wait("another postmaster", |node| {
        (scrape(node).contains("compute_ctl_postgres_restarts_total 1")).then_some(())
    });
    node.wait_status("running");
    assert_eq!(figures(&node).1, after);
    assert_eq!(node.log().matches("finished start-up").count(), 1);
    let text = scrape(&node);
    assert!(text.contains("compute_ctl_state{status=\"running\"} 1"), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("compute_ctl_state{")).count(), 11, "{text}");
    assert!(text.contains("compute_ctl_state_seconds_total{status=\"empty\"}"), "{text}");
    node.terminate();
}

#[test]
fn a_statement_on_the_catalog_that_postgres_cancels_is_counted() {
    let place = Place::new();
    place.configure(&place.spec());
    // In this mode only, as in the original.
    let node = place.start(&["--lakebase-mode", "true"]);
    node.wait_status("running");
    assert!(scrape(&node).contains("pg_cctl_configure_statement_timeout_errors_total 0\n"));
    let lock = place.session("begin; lock table pg_authid in share row exclusive mode");
    let mut spec = place.spec();
    spec["cluster"]["roles"] = json!([{ "name": "late", "encrypted_password": null }]);
    let configure = node.post_later("/configure", Some(&config(&spec)));
    let cancel = "select bool_or(pg_cancel_backend(pid)) from pg_locks \
                  where not granted and relation = 'pg_authid'::regclass";
    node.wait("a statement that waits", |_| (place.sql(cancel) == "t").then_some(()));
    let (code, body) = configure.join().unwrap();
    assert_eq!(code, 500, "{body}");
    drop(lock);
    let text = scrape(&node);
    assert!(text.contains("pg_cctl_configure_statement_timeout_errors_total 1\n"), "{text}");
    node.terminate();
}
