//! `compute_ctl check` from outside: files in, lines and exit codes out.

// Helpers here are test code as well, though the lint sees that of `#[test]` functions only.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use compute_ctl::cli::{ExitCode, check};
use serde_json::Value;

/// A config as a control plane writes it, one member a line, so that lines can be told apart.
const CONFIG: &str = r#"{
  "spec": {
    "format_version": 1.0,
    "timestamp": "2022-10-12T18:00:00.000Z",
    "suspend_timeout_seconds": -1,
    "tenant_id": "3f1c5d2a9b8e4f70a1b2c3d4e5f60718",
    "timeline_id": "8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d",
    "pageserver_connstring": "host=pageserver port=6400",
    "safekeeper_connstrings": ["sk-1:5454", "sk-2:5454"],
    "mode": "Primary",
    "reconfigure_concurrency": 2,
    "logs_export_host": "collector:514",
    "cluster": {
      "roles": [
        {"name": "alice", "encrypted_password": "6b1d16b78004bbd51fa06af9eda75972"},
        {"name": "\"odd\";\n select 1;", "encrypted_password": null}
      ],
      "databases": [
        {"name": "app", "owner": "alice", "options": [
          {"name": "TEMPLATE", "value": "template0", "vartype": "enum"}]}
      ],
      "settings": [
        {"name": "max_connections", "value": "100", "vartype": "integer"},
        {"name": "shared_buffers", "value": "128MB", "vartype": "string"}
      ]
    },
    "delta_operations": [
      {"action": "rename_db", "name": "ap", "new_name": "app"}
    ]
  },
  "compute_ctl_config": {
    "jwks": {"keys": [
      {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    ]}
  }
}
"#;

fn check_text(text: &str, json: bool) -> (ExitCode, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    std::fs::write(&file, text).unwrap();
    let mut out = Vec::new();
    let exit = check::run(&file, json, &mut out);
    (exit, String::from_utf8(out).unwrap().replace(&format!("{}/", dir.path().display()), ""))
}

/// Line, counted from 1, on which `text` stands in the config.
fn line_of(text: &str) -> usize {
    CONFIG.lines().position(|line| line.contains(text)).unwrap() + 1
}

#[test]
fn a_good_config_is_accepted() {
    let (exit, out) = check_text(CONFIG, false);
    assert_eq!(exit, ExitCode::Ok, "{out}");
    assert_eq!(out, "config.json: ok\n");
}

#[test]
fn each_kind_of_fault_is_named_with_path_and_line() {
    // What stands in the good config, what stands there instead, the path to be named, words of the message.
    let faults = [
        (
            "\"suspend_timeout_seconds\": -1",
            "\"suspend_timeout_seconds\": \"x\"",
            "spec.suspend_timeout_seconds",
            "a string",
        ),
        ("\"mode\": \"Primary\"", "\"mode\": \"primary\"", "spec.mode", "unknown variant"),
        ("\"mode\": \"Primary\"", "\"mode\": {\"Static\": \"12\"}", "spec.mode.Static", "no LSN"),
        ("3f1c5d2a9b8e4f70a1b2c3d4e5f60718", "3f1c", "spec.tenant_id", "32 hexadecimal"),
        ("8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d", "not-a-timeline", "spec.timeline_id", "32 hexadecimal"),
        ("\"sk-2:5454\"", "\"sk-1:5454\"", "spec.safekeeper_connstrings[1]", "once"),
        ("port=6400", "port=6400,host=b", "spec.pageserver_connstring", "stripe"),
        (
            "\"reconfigure_concurrency\": 2",
            "\"reconfigure_concurrency\": 0",
            "spec.reconfigure_concurrency",
            "from 1",
        ),
        ("collector:514", "collector", "spec.logs_export_host", "host:port"),
        ("\"name\": \"alice\"", "\"name\": \"\"", "spec.cluster.roles[0].name", "empty"),
        ("\"6b1d16b7", "\"md56b1d16b7", "spec.cluster.roles[0].encrypted_password", "prefix"),
        ("\\\"odd\\\";\\n select 1;", "alice", "spec.cluster.roles[1].name", "listed before"),
        ("\"owner\": \"alice\"", "\"owner\": 5", "spec.cluster.databases[0].owner", "an integer"),
        ("\"owner\": \"alice\", ", "", "spec.cluster.databases[0].owner", "missing"),
        ("\"template0\"", "\"template0; DROP\"", "spec.cluster.databases[0].options[0].value", "unquoted"),
        ("\"100\"", "null", "spec.cluster.settings[0].value", "missing"),
        ("\"128MB\"", "\"1\\nfsync=off\"", "spec.cluster.settings[1].value", "line break"),
        (", \"new_name\": \"app\"", "", "spec.delta_operations[0].new_name", "missing"),
        ("{\"keys\": [", "{\"keyz\": [", "compute_ctl_config.jwks.keys", "missing"),
    ];
    for (good, bad, path, words) in faults {
        assert_eq!(CONFIG.matches(good).count(), 1, "{good}");
        let (exit, out) = check_text(&CONFIG.replace(good, bad), false);
        assert_eq!(exit, ExitCode::BadConfig, "{path}: {out}");
        let place = format!("config.json:{}:", line_of(good));
        let named = out.lines().any(|line| {
            line.starts_with(&place) && line.contains(&format!(": fault: {path}: ")) && line.contains(words)
        });
        assert!(named, "{place} … {path} … {words} not in:\n{out}");
        assert!(!out.contains("ok\n"), "{out}");
    }
}

#[test]
fn several_faults_are_named_at_once() {
    let bad = CONFIG.replace("collector:514", "collector").replace("\"100\"", "null").replace("3f1c", "xxxx");
    let (exit, out) = check_text(&bad, false);
    assert_eq!(exit, ExitCode::BadConfig);
    assert_eq!(out.lines().filter(|line| line.contains(": fault: ")).count(), 3, "{out}");
}

#[test]
fn missing_facts_are_named_once_the_form_is_right() {
    let bad = CONFIG.replace("\"pageserver_connstring\"", "\"pageserver_connstring_not\"");
    let (exit, out) = check_text(&bad, false);
    assert_eq!(exit, ExitCode::BadConfig);
    assert!(
        out.contains("config.json:2:11: fault: spec.pageserver_connection_info: pageserver connection"),
        "{out}"
    );
    assert!(out.contains("initdb"), "{out}");
}

#[test]
fn placeholders_are_notes() {
    for (tenant, timeline) in [("${TENANT_ID}", "${TIMELINE_ID}"), ("TENANT_ID", "TIMELINE_ID")] {
        let template = CONFIG
            .replace("3f1c5d2a9b8e4f70a1b2c3d4e5f60718", tenant)
            .replace("8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d", timeline);
        let (exit, out) = check_text(&template, false);
        assert_eq!(exit, ExitCode::Ok, "{out}");
        assert!(
            out.contains(&format!("config.json:6:18: note: spec.tenant_id: the placeholder `{tenant}`")),
            "{out}"
        );
        assert!(out.contains(&format!("note: spec.timeline_id: the placeholder `{timeline}`")), "{out}");
    }
}

#[test]
fn a_bare_spec_is_known_by_its_members() {
    let config: Value = serde_json::from_str(CONFIG).unwrap();
    let (exit, out) = check_text(&config["spec"].to_string(), false);
    assert_eq!(exit, ExitCode::Ok, "{out}");
    let bad = config["spec"].to_string().replace("alice", "");
    let (exit, out) = check_text(&bad, false);
    assert_eq!(exit, ExitCode::BadConfig);
    assert!(out.contains(" fault: cluster.roles[0].name: "), "{out}");
}

#[test]
fn findings_come_as_json_too() {
    let (exit, out) = check_text(&CONFIG.replace("collector:514", "collector"), true);
    assert_eq!(exit, ExitCode::BadConfig);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["ok"], false);
    let finding = &report["findings"][0];
    assert_eq!(finding["path"], "spec.logs_export_host");
    assert_eq!(finding["severity"], "fault");
    assert_eq!(finding["line"], line_of("collector"));
    assert!(finding["column"].is_number() && finding["expected"].is_string());
    let (_, out) = check_text(CONFIG, true);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["ok"], true);
}

#[test]
fn what_is_no_document_has_its_own_words() {
    let (exit, out) = check_text("{\n  \"spec\": {,\n}", false);
    assert_eq!(exit, ExitCode::BadConfig);
    assert!(out.contains("config.json: line 2, column 12: not JSON"), "{out}");
    let mut out = Vec::new();
    let exit = check::run(&PathBuf::from("/nonexistent/config.json"), false, &mut out);
    assert_eq!(exit, ExitCode::Unreadable);
    assert!(String::from_utf8(out).unwrap().contains("/nonexistent/config.json: No such file"));
}
