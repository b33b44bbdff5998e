//! The sub-commands by which a person talks to a running compute.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::node::{COMPUTE_ID, Node, Place, token};

/// A sub-command, pointed at the compute of a place.
fn command(place: &Place, args: &[&str]) -> Command {
    let mut command = place.program();
    command
        .args(args)
        .env("COMPUTE_CTL_URL", format!("http://127.0.0.1:{}", place.external))
        .env("COMPUTE_CTL_TOKEN", token(COMPUTE_ID))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Its exit code, and what it prints.
fn ended(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn person(place: &Place, args: &[&str]) -> (i32, String, String) {
    ended(&command(place, args).output().unwrap())
}

fn empty(place: &Place) -> Node<'_> {
    place.configure(&Value::Null);
    let node = place.start(&[]);
    node.wait_status("empty");
    node
}

#[test]
fn a_person_can_do_with_a_compute_what_there_is_to_do() {
    let place = Place::new();
    let node = empty(&place);
    let (exit, out, err) = person(&place, &["status"]);
    assert!(exit == 3 && out.starts_with("status       empty\n"), "{exit}: {out}{err}");
    let waiting = command(&place, &["status", "--until", "running", "--json"]).spawn().unwrap();
    let watching = command(&place, &["status", "--watch"]).spawn().unwrap();

    let file = place.path().join("wanted.json");
    std::fs::write(&file, place.spec().to_string()).unwrap();
    let (exit, out, err) = person(&place, &["configure", file.to_str().unwrap()]);
    assert_eq!((exit, out.as_str()), (0, "configured; the compute is running\n"), "{err}");
    let (exit, out, err) = ended(&waiting.wait_with_output().unwrap());
    assert_eq!(exit, 0, "{out}{err}");
    let (exit, out, _) = person(&place, &["status", "--json"]);
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, &status["status"]), (0, &json!("running")));

    let (exit, out, err) = person(&place, &["history"]);
    assert_eq!(exit, 0, "{err}");
    let changes: Vec<Vec<&str>> =
        out.lines().map(|line| line.split_whitespace().skip(1).take(3).collect()).collect();
    let expected = [
        ["empty", "->", "configuration-pending"],
        ["configuration-pending", "->", "init"],
        ["init", "->", "running"],
    ];
    assert_eq!(changes, expected.map(Vec::from), "{out}");
    let (exit, out, _) = person(&place, &["history", "--limit", "1", "--json"]);
    let history: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, history["transitions"].as_array().unwrap().len()), (0, 1), "{history}");

    // A spec that cannot be: the compute's own words.
    let mut spec = place.spec();
    spec["delta_operations"] = json!([{ "action": "delete_role", "name": "nobody" }]);
    spec["cluster"]["databases"] = json!([{ "name": "shop", "owner": "nobody" }]);
    std::fs::write(&file, spec.to_string()).unwrap();
    let (exit, out, err) = person(&place, &["configure", file.to_str().unwrap()]);
    assert!(exit == 1 && out.is_empty() && err.contains("cannot delete role"), "{exit}: {out}{err}");

    // Postgres serves on.
    let (exit, out, err) = person(&place, &["status"]);
    assert!(exit == 0 && out.starts_with("status       failed\n"), "{exit}: {out}{err}");

    std::fs::write(&file, place.spec().to_string()).unwrap();
    let (exit, _, err) = person(&place, &["configure", file.to_str().unwrap()]);
    assert_eq!(exit, 0, "{err}");
    // What has come with the spec may be at work for a moment.
    let (exit, out, err) = node.wait("an idle server", |_| {
        let ended = person(&place, &["terminate", "--mode", "immediate", "--if-idle"]);
        (ended.0 != 4).then_some(ended)
    });
    assert_eq!((exit, out.as_str()), (0, "Postgres is down\n"), "{err}");
    let (exit, out, err) = ended(&watching.wait_with_output().unwrap());
    assert!(out.contains("-> running") && out.contains("the compute has gone"), "{exit}: {out}{err}");
    let (exit, _, err) = person(&place, &["status"]);
    assert!(exit == 1 && err.contains("no answer from the compute"), "{exit}: {err}");
}

#[test]
fn a_person_without_the_right_token_is_told_so() {
    let place = Place::new();
    let node = empty(&place);
    let (exit, out, err) = person(&place, &["status", "--token", "hunter2"]);
    assert!(exit == 1 && out.is_empty(), "{exit}: {out}");
    assert!(err.contains("failed to verify authorization token") && !err.contains("hunter2"), "{err}");
    let (exit, _, err) = person(&place, &["status", "--url", "ftp://x"]);
    assert!(exit == 2 && err.contains("invalid --url"), "{exit}: {err}");
    node.terminate();
}
