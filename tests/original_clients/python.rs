//! The set of calls of the original's test client in Python.

use serde_json::{Value, json};

use crate::support::node::Place;
use crate::{admin_token, ask, compute_token, document, is_a_status, outside, write_down};

#[test]
fn the_set_of_calls() {
    let place = Place::new();
    let mut spec = place.kept_spec();
    spec["cluster"]["roles"] = json!([{ "name": "owner", "encrypted_password": null }]);
    spec["cluster"]["databases"] = json!([{ "name": "a=b", "owner": "owner" }]);
    write_down(&place, &document(&spec));
    let node = place.start(&[]);
    node.wait_status("running");
    let call = |method: &str, path: &str| outside(&place, &compute_token(), method, path, None);

    assert_eq!(is_a_status(&call("GET", "/status").expect(200))["status"], "running");

    let listing = call("GET", "/dbs_and_roles").expect(200).json();
    let named = |list: &Value, name: &str| {
        let found = list.as_array().unwrap().iter().find(|entry| entry["name"] == name).cloned();
        found.unwrap_or_else(|| panic!("no {name} in {list}"))
    };
    let database = json!({
        "name": "a=b", "owner": "owner", "options": null, "restrict_conn": false, "invalid": false,
    });
    assert_eq!(named(&listing["databases"], "a=b"), database);
    let role = named(&listing["roles"], "owner");
    let keys: Vec<&String> = role.as_object().unwrap().keys().collect();
    assert_eq!((keys.len(), &role["options"]), (3, &Value::Null), "{role}");
    assert!(role.get("encrypted_password").is_some(), "{role}");

    // As a name alone `psql` would take it for parameters.
    place.try_sql("dbname='a=b'", "create table told (x int)").unwrap();
    let schema = call("GET", "/database_schema?database=a%3Db").expect(200);
    assert!(schema.says("content-type: application/json"), "{}", schema.head);
    assert!(schema.body.contains("CREATE TABLE public.told"), "{}", schema.body);
    let unknown = call("GET", "/database_schema?database=nowhere").expect(404);
    assert_eq!(unknown.json(), json!({ "error": "database does not exist" }));

    assert_eq!(call("POST", "/check_writability").expect(200).json(), json!(true));

    // A string, which holds the object.
    let insights = call("GET", "/insights").expect(200).json();
    let insights: Value = serde_json::from_str(insights.as_str().expect("a string")).expect("JSON in it");
    assert!(insights["pg_stat_statements"].is_array(), "{insights}");

    let metrics = ask(("127.0.0.1", place.external), "GET", "/metrics", &[], "").expect(200);
    assert!(metrics.says("content-type: text/plain; version=0.0.4"), "{}", metrics.head);
    assert!(metrics.body.contains("compute_ctl_up{"), "{}", metrics.body);

    for (path, body, done) in [
        ("/extensions", json!({ "extension": "citext", "database": "a=b", "version": "1.6" }), "extension"),
        (
            "/grants",
            json!({ "database": "a=b", "schema": "public", "privileges": ["USAGE", "CREATE"], "role": "owner" }),
            "privileges",
        ),
    ] {
        let json = ["Content-Type: application/json"];
        let answer = ask(("localhost", place.internal), "POST", path, &json, &body.to_string()).succeeded();
        assert_eq!(answer.json()[done], body[done]);
    }

    let configured = outside(&place, &compute_token(), "POST", "/configure", Some(&document(&spec)));
    assert_eq!(is_a_status(&configured.expect(200))["status"], "running");
    let ended = outside(&place, &admin_token(), "POST", "/terminate?mode=immediate", None).expect(200);
    assert_eq!(ended.json(), json!({ "lsn": null }));
    assert_eq!(node.exit_code(), 0, "{}", node.log());
}

#[test]
fn the_figures_of_a_start() {
    let place = Place::new();
    write_down(&place, &document(&place.spec()));
    let node = place.start(&[]);
    node.wait_status("running");
    let answer = outside(&place, &compute_token(), "GET", "/metrics.json", None).expect(200);
    let fields = [
        "wait_for_spec_ms",
        "sync_sk_check_ms",
        "sync_safekeepers_ms",
        "pageserver_connect_micros",
        "basebackup_ms",
        "basebackup_bytes",
        "start_postgres_ms",
        "config_ms",
        "total_startup_ms",
        "load_ext_ms",
        "num_ext_downloaded",
        "largest_ext_size",
        "total_ext_download_size",
    ];
    let figures = answer.json();
    for field in fields {
        assert!(figures[field].is_u64(), "{field}: {figures}");
    }
    let at = fields.map(|field| answer.body.find(&format!("\"{field}\":")));
    assert!(at.is_sorted(), "{answer:?}");
    node.terminate();
}

#[test]
fn a_promotion_tells_its_outcome_by_its_status() {
    let place = Place::new();
    write_down(&place, &document(&place.spec()));
    let node = place.start(&[]);
    node.wait_status("running");
    let body = json!({ "spec": place.spec(), "wal_flush_lsn": "0/28F10D8" });
    let answer = outside(&place, &compute_token(), "POST", "/promote", Some(&body)).expect(500);
    let failed = answer.json();
    assert_eq!(failed["status"], "failed");
    assert!(failed["error"].is_string(), "{failed}");
    node.terminate();
}

#[test]
fn a_prewarm_and_an_offload_are_answered() {
    let place = Place::new();
    write_down(&place, &document(&place.spec()));
    let node = place.start(&[]);
    node.wait_status("running");
    for (method, path) in [
        ("GET", "/lfc/prewarm"),
        ("POST", "/lfc/prewarm"),
        ("POST", "/lfc/prewarm?from_endpoint=ep-1"),
        ("DELETE", "/lfc/prewarm"),
        ("GET", "/lfc/offload"),
        ("POST", "/lfc/offload"),
    ] {
        let answer = outside(&place, &compute_token(), method, path, None);
        // Not served yet, and said so: nothing a client could take for a state.
        assert_eq!(answer.code, 501, "{method} {path}: {answer:?}");
        assert!(answer.json()["error"].is_string(), "{answer:?}");
    }
    node.terminate();
}

#[test]
fn the_probe_of_a_running_postgres() {
    let place = Place::new();
    write_down(&place, &document(&place.spec()));
    let node = place.start(&[]);
    node.wait_status("running");
    let answer = outside(&place, &compute_token(), "GET", "/hadron_liveness_probe", None).expect(200);
    assert_eq!(answer.json(), json!("ok"));
    // The communicator belongs to another Postgres.
    let answer = ask(("127.0.0.1", place.external), "GET", "/autoscaling_metrics", &[], "").expect(500);
    assert!(answer.json()["error"].is_string(), "{answer:?}");
    node.terminate();
}
