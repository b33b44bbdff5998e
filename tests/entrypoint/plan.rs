//! What a spec would change, asked of a running compute: by a program, and by a person.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::node::{COMPUTE_ID, Node, Place, config, http, token};

const MD5: &str = "0123456789abcdef0123456789abcdef";

fn ask(node: &Node<'_>, spec: &Value) -> (u16, Value) {
    let (code, body) = node.post("/plan", Some(&config(spec)));
    (code, serde_json::from_str(&body).expect("JSON"))
}

/// The sub-command: its exit code and what it prints.
fn person(place: &Place, spec: &Value, more: &[&str]) -> (i32, String) {
    let file = place.path().join("wanted.json");
    std::fs::write(&file, spec.to_string()).unwrap();
    let mut command = place.program();
    command
        .arg("plan")
        .arg(&file)
        .arg("--url")
        .arg(format!("http://127.0.0.1:{}", place.external))
        .args(more);
    let output = command.env("COMPUTE_CTL_TOKEN", token(COMPUTE_ID)).stderr(Stdio::piped()).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

#[test]
fn a_running_compute_says_what_a_spec_would_change() {
    let place = Place::new();
    place.configure(&Value::Null);
    let node = place.start(&[]);
    node.wait_status("empty");
    let mut spec = place.spec();
    assert_eq!(
        node.post("/plan", Some(&config(&spec))),
        (412, r#"{"error":"invalid compute status: empty"}"#.to_owned())
    );
    assert_eq!(node.configure(&spec).0, 200);

    spec["cluster"]["roles"] = json!([{ "name": "planned", "encrypted_password": MD5 }]);
    spec["cluster"]["databases"] = json!([{ "name": "shop", "owner": "planned" }]);
    let (code, plan) = ask(&node, &spec);
    assert_eq!(code, 200, "{plan}");
    assert_eq!(plan["summary"]["add"], 2, "{plan}");
    assert_eq!(plan["changes"][0]["action"], "create_role", "{plan}");
    assert!(!plan.to_string().contains(MD5), "{plan}");
    let (exit, text) = person(&place, &spec, &[]);
    assert_eq!(exit, 2, "{text}");
    assert!(text.contains("create database \"shop\" owned by \"planned\"") && !text.contains(MD5), "{text}");

    // Asked, and nothing done.
    assert_eq!(place.sql("select count(*) from pg_roles where rolname = 'planned'"), "0");
    assert_eq!(node.configure(&spec).0, 200);
    let (code, plan) = ask(&node, &spec);
    assert_eq!((code, &plan["changes"]), (200, &json!([])), "{plan}");
    let (exit, text) = person(&place, &spec, &[]);
    assert_eq!(exit, 0, "{text}");
    assert!(text.contains("No changes"), "{text}");

    // What cannot be, and what is no spec.
    spec["delta_operations"] = json!([{ "action": "delete_role", "name": "planned" }]);
    let refusal = "cannot delete role \"planned\", which is to own database \"shop\"";
    assert_eq!(ask(&node, &spec), (409, json!({ "error": refusal })));
    let (exit, text) = person(&place, &spec, &[]);
    assert!(exit == 1 && text.contains(refusal), "{exit}: {text}");
    spec["cluster"]["roles"][0]["encrypted_password"] = json!("hunter2");
    let (code, body) = ask(&node, &spec);
    assert_eq!(code, 400, "{body}");
    assert!(!body.to_string().contains("hunter2"), "{body}");
    let body = config(&place.spec()).to_string();
    assert_eq!(http(place.external, "POST", "/plan", None, Some(&body)).unwrap().0, 400);
    node.terminate();
}
