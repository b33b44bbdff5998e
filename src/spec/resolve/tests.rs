use serde_json::{Value, json};

use super::*;

const TENANT: &str = "3f1c5d2a9b8e4f70a1b2c3d4e5f60718";
const TIMELINE: &str = "8A7B6C5D4E3F2A1B0C9D8E7F6A5B4C3D";

/// A primary on Neon storage, with some members replaced; `null` removes one.
fn spec(changes: Value) -> ComputeSpec {
    let mut document = json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "tenant_id": TENANT,
        "timeline_id": TIMELINE,
        "pageserver_connstring": "postgresql://no_user@127.0.0.1:64000",
        "safekeeper_connstrings": ["127.0.0.1:5454"],
        "cluster": {"roles": [], "databases": []},
    });
    for (key, value) in changes.as_object().unwrap() {
        let document = document.as_object_mut().unwrap();
        if value.is_null() {
            document.remove(key);
        } else {
            document.insert(key.clone(), value.clone());
        }
    }
    serde_json::from_value(document).unwrap()
}

fn resolve(changes: Value) -> Result<ResolvedSpec, ResolveError> {
    ResolvedSpec::new(&spec(changes))
}

fn safekeepers(resolved: &ResolvedSpec) -> Vec<String> {
    resolved.safekeepers.iter().map(ToString::to_string).collect()
}

fn error(changes: Value) -> String {
    resolve(changes).unwrap_err().to_string()
}

fn settings(pairs: &[(&str, &str)]) -> Value {
    let settings: Vec<Value> = pairs
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value, "vartype": "string"}))
        .collect();
    json!({"roles": [], "databases": [], "settings": settings})
}

#[test]
fn a_primary_on_neon_storage() {
    let resolved = resolve(json!({})).unwrap();
    assert_eq!(resolved.storage, StorageKind::Neon);
    assert_eq!(resolved.tenant.as_ref().unwrap().as_str(), TENANT);
    assert_eq!(resolved.timeline.as_ref().unwrap().to_string(), TIMELINE.to_lowercase());
    assert_eq!(safekeepers(&resolved), ["127.0.0.1:5454"]);
    assert!(resolved.final_sync());
    let pageservers = resolved.pageservers.unwrap();
    assert_eq!((pageservers.shard_count, pageservers.stripe_size), (0, None));
}

#[test]
fn settings_stand_in_for_fields() {
    let resolved = resolve(json!({
        "tenant_id": null, "timeline_id": null, "pageserver_connstring": null, "safekeeper_connstrings": null,
        "cluster": settings(&[
            ("neon.tenant_id", TENANT),
            ("neon.timeline_id", TIMELINE),
            ("neon.pageserver_connstring", "host=a port=1,host=b port=2"),
            ("neon.stripe_size", "2048"),
            ("neon.safekeepers", "g#7:b:1,a:1"),
        ]),
    }))
    .unwrap();
    assert_eq!(safekeepers(&resolved), ["b:1", "a:1"]);
    let pageservers = resolved.pageservers.unwrap();
    assert_eq!(
        (pageservers.shard_count, pageservers.stripe_size, pageservers.shards.len()),
        (2, Some(2048), 2)
    );
}

#[test]
fn the_error_texts_are_the_originals() {
    let without = |field: &str| error(json!({ field: null }));
    let nothing = without("pageserver_connstring");
    assert!(nothing.starts_with("pageserver connection information should be provided"), "{nothing}");
    assert!(nothing.contains("\"storage\": {\"kind\": \"initdb\"}"), "{nothing}");
    assert_eq!(without("safekeeper_connstrings"), "safekeeper connstrings should be provided");
    assert_eq!(without("tenant_id"), "tenant id should be provided");
    assert_eq!(without("timeline_id"), "timeline id should be provided");
    assert_eq!(error(json!({"tenant_id": "abc"})), "invalid tenant id");
    assert_eq!(error(json!({"timeline_id": "abc"})), "invalid timeline id");
    assert_eq!(
        error(json!({"safekeeper_connstrings": ["a:1", "b:1", "a:1"]})),
        "duplicate entry in safekeeper_connstrings: a:1!"
    );
    assert_eq!(
        error(json!({"safekeeper_connstrings": ["a:1", "postgresql://b"]})),
        "invalid entry in safekeeper_connstrings[1]: \"postgresql://b\" (expected host:port)"
    );
    let empty = json!({"safekeeper_connstrings": [], "cluster": settings(&[("neon.safekeepers", "")])});
    assert_eq!(error(empty), "safekeeper_connstrings is empty");
    assert!(error(json!({"mode": {"Static": "0"}})).contains("LsnParseError"));
}

#[test]
fn only_neon_storage_asks_for_neon_facts() {
    for kind in ["initdb", "existing", "archive", "base_backup"] {
        let resolved = resolve(json!({
            "tenant_id": null, "timeline_id": null, "pageserver_connstring": null,
            "safekeeper_connstrings": null, "storage": {"kind": kind},
        }))
        .unwrap();
        assert_eq!(resolved.storage.to_string(), kind);
        assert!(!resolved.final_sync() && resolved.tenant.is_none() && resolved.pageservers.is_none());
    }
    // Storage that is named wins over pageservers that happen to be there.
    assert_eq!(resolve(json!({"storage": {"kind": "initdb"}})).unwrap().pageservers, None);
}

#[test]
fn replicas_and_pinned_computes_need_no_safekeepers() {
    for mode in [json!("Replica"), json!({"Static": "0/16b9188"})] {
        for list in [json!(null), json!(["a:1", "b"])] {
            let resolved = resolve(json!({"mode": mode, "safekeeper_connstrings": list})).unwrap();
            assert!(resolved.safekeepers.is_empty() && !resolved.final_sync());
        }
    }
    let pinned = resolve(json!({"mode": {"Static": "0/16b9188"}})).unwrap();
    assert_eq!(pinned.mode, Mode::Static(Lsn(0x16b_9188)));
}

fn info(shard_count: u8, stripe_size: Option<u32>, keys: &[&str]) -> Value {
    let server = |key: &&str| {
        let servers = json!([{"id": 1, "libpq_url": format!("postgresql://u@{key}"), "grpc_url": null}]);
        ((*key).to_owned(), json!({ "pageservers": servers }))
    };
    let shards: serde_json::Map<String, Value> = keys.iter().map(server).collect();
    json!({"pageserver_connstring": null, "pageserver_connection_info": {
        "shard_count": shard_count, "stripe_size": stripe_size, "shards": shards,
    }})
}

#[test]
fn shards_come_in_their_order_and_complete() {
    let resolved = resolve(info(
        11,
        Some(8),
        &["0a0B", "000B", "010b", "020b", "030b", "040b", "050b", "060b", "070b", "080b", "090b"],
    ))
    .unwrap();
    let shards = resolved.pageservers.unwrap().shards;
    assert_eq!(shards.len(), 11);
    assert_eq!(shards[10][0].libpq_url.as_ref().unwrap().reveal(), "postgresql://u@0a0B");
    assert!(error(info(2, Some(8), &["0002"])).contains("shard 0102 is missing"));
    assert!(error(info(2, None, &["0002", "0102"])).contains("stripe size"));
    // One shard of one is not the same as unsharded.
    assert!(error(info(1, None, &["0000"])).contains("shard 0001 is missing"));
    let mut grpc = info(0, None, &["0000"]);
    grpc["pageserver_connection_info"]["prefer_protocol"] = json!("grpc");
    assert!(error(grpc).contains("no grpc_url"));
    let mut empty = info(0, None, &["0000"]);
    empty["pageserver_connection_info"]["shards"]["0000"]["pageservers"] = json!([]);
    assert!(error(empty).contains("no pageserver"));
}

#[test]
fn the_older_form_needs_a_stripe_size_for_several_shards() {
    assert!(error(json!({"pageserver_connstring": "host=a,host=b"})).contains("stripe size"));
    assert!(error(json!({"pageserver_connstring": "host=a,,host=b"})).contains("empty"));
    let many = vec!["host=a"; 256].join(",");
    assert!(error(json!({"pageserver_connstring": many, "shard_stripe_size": 8})).contains("255"));
    let setting = settings(&[("neon.pageserver_connstring", "host=a"), ("neon.stripe_size", "x")]);
    let stripe = json!({"pageserver_connstring": null, "cluster": setting});
    assert_eq!(resolve(stripe).unwrap_err(), ResolveError::StripeSize);
    // A single entry is unsharded, whatever stripe size stands beside it.
    let one = resolve(json!({"shard_stripe_size": 8})).unwrap();
    assert!(one.same_sources(&resolve(json!({})).unwrap()));
}

#[test]
fn pageservers_compare_by_content() {
    let fields = resolve(json!({"pageserver_connstring": "host=a"})).unwrap();
    let cluster = settings(&[("neon.pageserver_connstring", "host=a")]);
    let by_setting = resolve(json!({"pageserver_connstring": null, "cluster": cluster})).unwrap();
    assert!(fields.same_sources(&by_setting));
    assert!(!fields.same_sources(&resolve(json!({"pageserver_connstring": "host=b"})).unwrap()));
}

#[test]
fn standbys_compare_by_what_they_follow() {
    let of = |mode: Value, storage: Value| resolve(json!({ "mode": mode, "storage": storage })).unwrap();
    let copy = |source: &str, more: &str| json!({ "kind": "base_backup", "source": source, "max_rate": 32, "password": more });
    let standby = |storage| of(json!("Replica"), storage);
    let here = standby(copy("host=a user=u", "p"));
    assert!(here.same_sources(&standby(copy("postgresql://u@a", "p"))), "two forms of the same");
    let mut slower = copy("host=a user=u", "p");
    slower["max_rate"] = json!(64);
    assert!(here.same_sources(&standby(slower)), "how the copy was made does not matter any more");
    assert!(!here.same_sources(&standby(copy("host=b user=u", "p"))), "another server");
    assert!(!here.same_sources(&standby(copy("host=a user=u", "q"))), "another password");
    assert!(!here.same_sources(&of(json!({ "Static": "0/1" }), copy("host=b user=u", "p"))));
    // A copy that is a primary follows nobody, and so do clusters of the other kinds.
    let primary = |source| of(json!("Primary"), copy(source, "p"));
    assert!(primary("host=a user=u").same_sources(&primary("host=b user=u")));
    for (one, other) in [
        (json!({ "kind": "initdb" }), json!({ "kind": "existing" })),
        (json!({ "kind": "archive", "source": "/a" }), json!({ "kind": "archive", "source": "/b" })),
    ] {
        assert!(of(json!("Primary"), one).same_sources(&of(json!("Primary"), other)));
    }
}

#[test]
fn lsns_read_and_print_as_in_postgres() {
    assert_eq!(" 0/16B9188 ".parse(), Ok(Lsn(0x16b_9188)));
    assert_eq!(Lsn(0x1_0000_00ab).to_string(), "1/AB");
    for bad in ["", "/", "0", "0/", "/0", "0/0/0", "0/g", "+1/0", "1/-1", "100000000/0", "0 / 0"] {
        assert_eq!(bad.parse::<Lsn>(), Err(LsnParseError), "{bad:?}");
    }
}

#[test]
fn nothing_secret_is_shown() {
    let resolved = resolve(json!({"pageserver_connstring": "postgresql://u:hunter2@h"})).unwrap();
    let document = spec(json!({
        "pageserver_connstring": "hunter2", "storage_auth_token": "hunter2",
        "pgbouncer_settings": {"auth_password": "hunter2"},
        "storage": {"kind": "base_backup", "connstr": "hunter2"},
        "cluster": {"roles": [{"name": "r", "encrypted_password": "hunter2"}], "databases": [],
            "postgresql_conf": "x='hunter2'",
            "settings": [{"name": "primary_conninfo", "value": "hunter2", "vartype": "string"}]},
    }));
    let cluster = &document.cluster;
    let shown = format!("{resolved:?} {document:?} {cluster:?} {:?}", document.pgbouncer_settings);
    let standby = resolve(json!({
        "mode": "Replica", "storage": {"kind": "base_backup", "source": "host=h user=u", "password": "hunter2"},
    }));
    let shown = format!("{shown} {standby:?}");
    assert!(shown.contains("upstream: Some(") && !shown.contains("hunter2"), "{shown}");
}
