use serde_json::{Value, json};

use super::*;

fn spec(changes: Value) -> Value {
    let mut spec = json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": {"roles": [], "databases": []},
        "storage": {"kind": "initdb"},
    });
    for (key, value) in changes.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

/// Findings of a bare spec: severity, path and what was found.
fn findings(changes: Value) -> Vec<(Severity, String, String)> {
    let spec: ComputeSpec = serde_json::from_value(spec(changes)).unwrap();
    examine(&spec, &JsonPath::root())
        .into_iter()
        .map(|fault| (fault.severity, fault.path.to_string(), fault.found))
        .collect()
}

#[track_caller]
fn finds(changes: Value, path: &str, words: &str) {
    let found = findings(changes);
    assert!(
        found.iter().any(|(s, p, f)| *s == Severity::Fault && p == path && f.contains(words)),
        "no fault at {path} with {words:?} in {found:#?}"
    );
}

#[track_caller]
fn accepts(changes: Value) {
    assert_eq!(findings(changes), []);
}

fn decode_error(text: &str) -> Fault {
    match parse(text, Shape::Config) {
        Err(DocumentError::Faults(faults)) => faults.into_iter().next().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn option(name: &str, value: Option<&str>, vartype: &str) -> Value {
    json!({"name": name, "value": value, "vartype": vartype})
}

fn settings(settings: Value) -> Value {
    json!({"cluster": {"roles": [], "databases": [], "settings": settings}})
}

fn roles(roles: Value) -> Value {
    json!({"cluster": {"roles": roles, "databases": []}})
}

#[test]
fn decoding_names_path_place_and_form() {
    let text = "{\n \"spec\": {\"format_version\": 1.0,\n  \"suspend_timeout_seconds\": \"never\"},\n \
                \"compute_ctl_config\": {\"jwks\": {\"keys\": []}}}";
    let fault = decode_error(text);
    assert_eq!(
        fault.to_string(),
        "spec.suspend_timeout_seconds (line 3, column 30): a string; expected an integer of seconds, 0 or -1 for never"
    );
    let fault = decode_error("{\"spec\": null}");
    assert_eq!(fault.path.to_string(), "compute_ctl_config");
    assert_eq!(fault.found, "missing");
    assert!(fault.expected.contains("-S"));
}

#[test]
fn fields_with_a_default_refuse_null() {
    for field in DEFAULTED {
        let spec = spec(json!({ field: null }));
        let text = json!({"spec": spec, "compute_ctl_config": {"jwks": {"keys": []}}}).to_string();
        let fault = decode_error(&text);
        assert_eq!(fault.path.to_string(), format!("spec.{field}"));
        assert!(fault.found.contains("null"), "{fault}");
        assert!(fault.expected.ends_with("for the default"), "{fault}");
    }
    accepts(json!({"delta_operations": null, "swap_size_bytes": null, "remote_extensions": null}));
}

#[test]
fn decoding_is_as_strict_as_the_format() {
    let bad = [
        ("features", json!([{"a": null}]), "features[0]"),
        ("offload_lfc_interval_seconds", json!(0), "offload_lfc_interval_seconds"),
        ("pgbouncer_settings", json!({"a": 5}), "pgbouncer_settings.a"),
        ("mode", json!("primary"), "mode"),
        ("mode", json!(5), "mode"),
        ("storage", json!({"kind": "floppy"}), "storage.kind"),
        ("shard_stripe_size", json!(-1), "shard_stripe_size"),
        ("swap_size_bytes", json!(1.5), "swap_size_bytes"),
    ];
    for (field, value, path) in bad {
        let text =
            json!({"spec": spec(json!({ field: value })), "compute_ctl_config": {"jwks": {"keys": []}}});
        assert_eq!(decode_error(&text.to_string()).path.to_string(), format!("spec.{path}"));
    }
    let twice = "{\"spec\": null, \"spec\": null, \"compute_ctl_config\": {\"jwks\": {\"keys\": []}}}";
    assert_eq!(decode_error(twice).found, "given more than once");
    accepts(json!({"timestamp": "ignored", "format_version": 1, "features": ["some_future_flag"]}));
}

#[test]
fn text_that_is_no_json_is_told_apart() {
    match parse("{\n \"spec\": nul }", Shape::Config) {
        Err(DocumentError::NotJson { position, .. }) => assert_eq!(position.line, 2),
        other => panic!("{other:?}"),
    }
    assert!(matches!(parse("{} x", Shape::ConfigOrSpec), Err(DocumentError::NotJson { .. })));
    assert!(matches!(parse("", Shape::Config), Err(DocumentError::NotJson { .. })));
}

#[test]
fn places_in_text_that_is_no_json_count_characters_from_one() {
    let place = |text: &str| match parse(text, Shape::Config) {
        Err(DocumentError::NotJson { position, .. }) => (position.line, position.column),
        other => panic!("{other:?}"),
    };
    assert_eq!(place(""), (1, 1));
    assert_eq!(place("{\n"), (2, 1));
    assert_eq!(place("{\"ü\" x"), (1, 6));
}

#[test]
fn the_shape_is_known_by_the_members() {
    let bare = spec(json!({})).to_string();
    let checked = parse(&bare, Shape::ConfigOrSpec).unwrap();
    assert_eq!(checked.spec_path, JsonPath::root());
    assert!(checked.config.compute_ctl_config.jwks.keys.is_empty());
    assert!(parse(&bare, Shape::Config).is_err());
    let wrapped = json!({"compute_ctl_config": {"jwks": {"keys": []}}}).to_string();
    assert!(parse(&wrapped, Shape::ConfigOrSpec).unwrap().config.spec.is_none());
}

#[test]
fn secrets_are_never_quoted() {
    let texts = [
        json!({"storage_auth_token": 31337}),
        json!({"pageserver_connstring": ["hunter31337"]}),
        roles(json!([{"name": "a", "encrypted_password": 31337}])),
        roles(json!([{"name": "a", "encrypted_password": "hunter31337"}])),
        roles(json!("hunter31337")),
        settings(json!([option("primary_conninfo", Some("password=hunter31337"), "enum")])),
    ];
    for changes in texts {
        let text = json!({"spec": spec(changes), "compute_ctl_config": {"jwks": {"keys": []}}}).to_string();
        let error = parse(&text, Shape::Config).unwrap_err().to_string();
        assert!(!error.contains("31337"), "{error}");
    }
}

#[test]
fn names_are_held_to_postgres_rules() {
    for (name, words) in [("", "empty"), ("a\0b", "NUL"), (&*"n".repeat(64), "longer")] {
        finds(roles(json!([{ "name": name }])), "cluster.roles[0].name", words);
        let databases = json!({"cluster": {"roles": [], "databases": [{"name": name, "owner": name}]}});
        finds(databases.clone(), "cluster.databases[0].name", words);
        finds(databases, "cluster.databases[0].owner", words);
    }
    accepts(roles(json!([{"name": "n".repeat(63)}, {"name": "\"name\";\n select 1;"}, {"name": "ünï"}])));
    finds(roles(json!([{"name": "a"}, {"name": "b"}, {"name": "a"}])), "cluster.roles[2].name", "before");
}

#[test]
fn passwords_are_verifiers() {
    let role = |password: &str| roles(json!([{"name": "a", "encrypted_password": password}]));
    let at = "cluster.roles[0].encrypted_password";
    accepts(role("6b1d16b78004bbd51fa06af9eda75972"));
    let key = format!("{}=", "A".repeat(43));
    accepts(role(&format!("SCRAM-SHA-256$4096:c2FsdA==${key}:{key}")));
    // PostgreSQL hashes whatever its own reader refuses, such as keys which are no 32 bytes.
    finds(role("SCRAM-SHA-256$4096:c2FsdA==$U3RvcmVk:U2VydmVy"), at, "malformed");
    finds(role("md56b1d16b78004bbd51fa06af9eda75972"), at, "prefix `md5`");
    finds(role("6B1D16B78004BBD51FA06AF9EDA75972"), at, "neither");
    finds(role("secret"), at, "neither");
    finds(role("MY_SECRET"), at, "neither");
    assert_eq!(findings(role("${ROLE_PASSWORD}"))[0].0, Severity::Note);
    finds(role(""), at, "neither");
    for bad in
        ["SCRAM-SHA-256", "SCRAM-SHA-256$1:a$b:c'; DROP", "SCRAM-SHA-256$x:a$b:c", "SCRAM-SHA-256$1:$b:c"]
    {
        finds(role(bad), at, "malformed");
    }
}

#[test]
fn settings_are_single_lines_with_a_value() {
    let one =
        |name: &str, value: Option<&str>, vartype: &str| settings(json!([option(name, value, vartype)]));
    finds(one("fsync", None, "bool"), "cluster.settings[0].value", "missing");
    for text in ["a\nb", "a\rb", "a\0b"] {
        finds(one("x", Some(text), "string"), "cluster.settings[0].value", "line break");
        finds(one("x", Some(text), "enum"), "cluster.settings[0].value", "line break");
    }
    for name in ["", "a b", "a=b", "1a", "a.b.c", "a'", "a\n", "include", "Include_Dir"] {
        finds(one(name, Some("1"), "integer"), "cluster.settings[0].name", "no setting");
    }
    for raw in ["", "a b", "1 # x", "'a' b", "a'b", "*", "'a\\'", "a;b", "'", "\"a\"", "a.b", "1e5", "+"] {
        finds(one("x", Some(raw), "enum"), "cluster.settings[0].value", "unquoted");
    }
    for raw in
        ["128MB", "-1", "0.5", "1.5e-3", "0x1F", "on", "template0", "C.UTF-8", "'a, b'", "'it''s'", "md5"]
    {
        accepts(one("x.y_1", Some(raw), "enum"));
    }
    accepts(one("test.escaping", Some("here's a \\ and \" hooray"), "string"));
}

#[test]
fn options_cannot_carry_other_sql() {
    let one = |name: &str, value: Option<&str>, vartype: &str| {
        roles(json!([{"name": "a", "options": [option(name, value, vartype)]}]))
    };
    for raw in [
        "", "1; DROP", "a b", "a--b", "/*", "a'b", "'a", "(1)", "a,", "\"a\"\"", "'a\\' x'", "'a' 'b'",
        "C.UTF-8", "a, b",
    ] {
        finds(one("X", Some(raw), "enum"), "cluster.roles[0].options[0].value", "unquoted");
    }
    for raw in ["50", "-1", "0.5", "template0", "\"C.UTF-8\"", "\"a,b\"", "'2030-01-01'", "true"] {
        accepts(one("UNHEARD OF", Some(raw), "integer"));
    }
    accepts(one("CONNECTION LIMIT", Some("50"), "integer"));
    finds(one("CONNECTION LIMIT", Some("many"), "enum"), "cluster.roles[0].options[0]", "a whole number");
    finds(one("CREATEDB", Some("true"), "bool"), "cluster.roles[0].options[0]", "takes no value");
    let twice = [option("CREATEDB", None, "bool"), option("nocreatedb", None, "bool")];
    finds(roles(json!([{"name": "a", "options": twice}])), "cluster.roles[0].options", "is given twice");
    finds(one("NOLOGIN", None, "bool"), "cluster.roles[0].options[0]", "roles of a spec can log in");
    for name in ["", " A", "A  B", "A;", "A\n", "A'", "A1"] {
        finds(one(name, None, "bool"), "cluster.roles[0].options[0].name", "no option");
    }
    accepts(one("LOGIN", None, "bool"));
    accepts(one("VALID UNTIL", Some("it's; -- text\n"), "string"));
    finds(one("VALID UNTIL", Some("\0"), "string"), "cluster.roles[0].options[0].value", "NUL");
}

#[test]
fn storage_facts() {
    finds(json!({"tenant_id": "x"}), "tenant_id", "identifier");
    finds(json!({"timeline_id": "0".repeat(33)}), "timeline_id", "identifier");
    finds(
        settings(json!([option("neon.tenant_id", Some("x"), "string")])),
        "cluster.settings[0].value",
        "ident",
    );
    finds(json!({"mode": {"Static": "0/x"}}), "mode.Static", "LSN");
    finds(json!({"safekeeper_connstrings": ["a:1", "a:1"]}), "safekeeper_connstrings[1]", "before");
    finds(json!({"safekeeper_connstrings": ["a"]}), "safekeeper_connstrings[0]", "address");
    finds(
        json!({"safekeeper_connstrings": ["a:1", "postgresql://a:1"]}),
        "safekeeper_connstrings[1]",
        "address",
    );
    let many: Vec<String> = (0..32).map(|number| format!("sk-{number}:5454")).collect();
    finds(json!({"safekeeper_connstrings": many}), "safekeeper_connstrings", "32 safekeepers");
    for (value, found) in [
        ("a:1,b:1, a:1".to_owned(), "listed twice"),
        ("g#7:a:1,b".to_owned(), "address"),
        (many.join(","), "32 safekeepers"),
    ] {
        let setting = settings(json!([option("neon.safekeepers", Some(&value), "string")]));
        finds(setting, "cluster.settings[0].value", found);
    }
    accepts(settings(json!([option("neon.safekeepers", Some("g#7:a:1,b:1"), "string")])));
    accepts(json!({"mode": "Replica", "safekeeper_connstrings": ["a:1", "a:1"]}));
    finds(json!({"reconfigure_concurrency": 0}), "reconfigure_concurrency", "for ever");
    finds(json!({"pageserver_connstring": "a,b"}), "pageserver_connstring", "stripe");
    finds(json!({"pageserver_connstring": "a,,b"}), "pageserver_connstring", "empty");
    finds(json!({"storage_auth_token": "a\nb"}), "storage_auth_token", "line break");
    finds(
        settings(json!([option("neon.stripe_size", Some("x"), "string")])),
        "cluster.settings[0].value",
        "number",
    );
}

#[test]
fn shard_maps() {
    let info = |count: u8, stripe: Option<u32>, keys: &[&str]| {
        let shards: serde_json::Map<String, Value> = keys
            .iter()
            .map(|key| ((*key).to_owned(), json!({"pageservers": [{"libpq_url": "postgresql://u@h"}]})))
            .collect();
        json!({"pageserver_connection_info": {"shard_count": count, "stripe_size": stripe, "shards": shards}})
    };
    accepts(info(0, None, &["0000"]));
    accepts(info(1, None, &["0001"]));
    accepts(info(2, Some(8), &["0002", "0102"]));
    let shards = "pageserver_connection_info.shards";
    finds(info(2, Some(8), &["0002"]), shards, "`0102`");
    finds(info(2, Some(8), &["0002", "0102", "0202"]), &format!("{shards}.0202"), "beyond");
    finds(info(2, Some(8), &["0002", "0104"]), &format!("{shards}.0104"), "a shard of 4");
    finds(info(0, None, &["0"]), &format!("{shards}.0"), "no shard index");
    finds(info(2, None, &["0002", "0102"]), "pageserver_connection_info.stripe_size", "missing");
    let mut grpc = info(0, None, &["0000"]);
    grpc["pageserver_connection_info"]["prefer_protocol"] = json!("grpc");
    finds(grpc, &format!("{shards}.0000.pageservers[0].grpc_url"), "missing");
    let mut empty = info(0, None, &["0000"]);
    empty["pageserver_connection_info"]["shards"]["0000"]["pageservers"] = json!([]);
    finds(empty, &format!("{shards}.0000.pageservers"), "empty");
}

#[test]
fn deltas_and_services() {
    let delta = |delta: Value| json!({ "delta_operations": [delta] });
    finds(delta(json!({"action": "rename_db", "name": "a"})), "delta_operations[0].new_name", "missing");
    finds(delta(json!({"action": "rename_role", "name": "a"})), "delta_operations[0].new_name", "missing");
    finds(
        delta(json!({"action": "rename_db", "name": "a", "new_name": ""})),
        "delta_operations[0].new_name",
        "empty",
    );
    finds(delta(json!({"action": "delete_db", "name": ""})), "delta_operations[0].name", "empty");
    accepts(delta(json!({"action": "delete_role", "name": "a"})));
    let unknown = findings(delta(json!({"action": "dance", "name": ""})));
    assert_eq!((unknown.len(), unknown[0].0), (1, Severity::Note));
    finds(json!({"logs_export_host": "collector"}), "logs_export_host", "collector");
    accepts(json!({"logs_export_host": "collector:514"}));
    finds(json!({"pgbouncer_settings": {"a": "b\nc"}}), "pgbouncer_settings.a", "line break");
    finds(json!({"pgbouncer_settings": {"a b": "c"}}), "pgbouncer_settings[\"a b\"]", "pooler");
    let file = json!({"library_index": {}, "extension_data": {"e": {"archive_path": "", "control_data": {"../x": ""}}}});
    let at = "remote_extensions.extension_data.e.control_data[\"../x\"]";
    finds(json!({ "remote_extensions": file }), at, "no file name");
}

#[test]
fn the_poolers_settings_keep_their_order() {
    let text = "{\"zz\": \"1\", \"aa\": \"2\", \"zz\": \"3\"}";
    let settings: crate::spec::document::PgbouncerSettings = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&settings).unwrap(), "{\"zz\":\"3\",\"aa\":\"2\"}");
}

#[test]
fn placeholders_are_notes() {
    for name in ["${TENANT_ID}", "TENANT_ID"] {
        let found = findings(json!({ "tenant_id": name }));
        assert_eq!(found, [(Severity::Note, "tenant_id".to_owned(), format!("the placeholder `{name}`"))]);
    }
    for text in ["${A};\nx", "${}", "${A B}", "TENANT", "Tenant_ID", "A_B;"] {
        assert!(!is_placeholder(text), "{text}");
    }
}

#[test]
fn keys_which_verify_nothing_are_notes() {
    let ctl = |keys: Value| {
        let text = json!({"compute_ctl_config": {"jwks": {"keys": keys}}}).to_string();
        parse(&text, Shape::Config).unwrap().notes
    };
    let good = json!([
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "RS256", "use": "sig", "kid": "k"},
    ]);
    assert_eq!(ctl(good), []);
    let odd = json!([{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}, {"kty": "AKP", "alg": "ML-DSA"}]);
    let notes = ctl(odd);
    assert_eq!(notes.len(), 2);
    assert_eq!(notes[1].path.to_string(), "compute_ctl_config.jwks.keys[1]");
    assert_eq!(ctl(json!([])).len(), 1);
    let wrong = json!({"compute_ctl_config": {"jwks": {"keys": [{"kty": "OKP", "kid": 3}]}}});
    let wrong = decode_error(&wrong.to_string());
    assert_eq!(wrong.path.to_string(), "compute_ctl_config.jwks.keys[0]");
    assert!(wrong.expected.starts_with("a public key"), "{wrong}");
}

#[test]
fn a_hostile_document_gives_a_bounded_list() {
    let many: Vec<Value> = (0..1000).map(|_| json!({"name": ""})).collect();
    let text = spec(roles(json!(many))).to_string();
    match parse(&text, Shape::ConfigOrSpec) {
        Err(DocumentError::Faults(faults)) => assert_eq!(faults.len(), limits::FAULTS_LISTED),
        other => panic!("{other:?}"),
    }
}

#[test]
fn notes_do_not_hide_faults() {
    let notes: Vec<Value> = (0..1000).map(|_| json!({"action": "dance", "name": "a"})).collect();
    let text = spec(json!({"delta_operations": notes, "logs_export_host": "collector"})).to_string();
    match parse(&text, Shape::ConfigOrSpec) {
        Err(DocumentError::Faults(faults)) => assert_eq!(faults[0].path.to_string(), "logs_export_host"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bad_line_of_the_verbatim_configuration_is_named() {
    let conf = |text: &str| json!({"cluster": {"roles": [], "databases": [], "postgresql_conf": text}});
    accepts(conf("a = 1\n# b\n"));
    finds(conf("a = 1\nb = \n"), "cluster.postgresql_conf", "line 2");
    finds(conf("a = '\0'"), "cluster.postgresql_conf", "NUL");
}

#[test]
fn a_number_too_large_for_the_format_is_a_fault() {
    // It would be kept as infinity, which JSON cannot hold: the document could not be written again.
    finds(json!({"format_version": 1e39}), "format_version", "range");
}

#[test]
fn files_are_read_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let missing = load(&dir.path().join("none.json"), Shape::Config).unwrap_err();
    assert!(missing.to_string().contains("none.json"), "{missing}");
    assert!(matches!(missing, ConfigError::Unreadable { .. }));
    let large = dir.path().join("large.json");
    std::fs::File::create(&large).unwrap().set_len(limits::CONFIG_FILE + 1).unwrap();
    assert!(matches!(load(&large, Shape::Config), Err(ConfigError::Unreadable { .. })));
    let bad = dir.path().join("bad.json");
    std::fs::write(&bad, "{}").unwrap();
    let error = load(&bad, Shape::Config).unwrap_err().to_string();
    assert!(error.contains("bad.json") && error.contains("compute_ctl_config (line 1, column 1)"), "{error}");
}

#[test]
fn parameters_of_an_archive_are_judged() {
    let storage = |more: Value| {
        let mut storage = json!({"kind": "archive", "source": "/backup.tar"});
        storage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "storage": storage })
    };
    accepts(storage(json!({"sha256": "0".repeat(64), "format": "zstd", "token": "x"})));
    finds(storage(json!({"source": "backup.tar"})), "storage.source", "neither");
    finds(storage(json!({"sha256": "12"})), "storage.sha256", "no SHA-256");
    finds(storage(json!({"checksum": "12"})), "storage.checksum", "do not have");
    let found = findings(storage(json!({"sha256": "${SUM}"})));
    assert!(matches!(found.as_slice(), [(Severity::Note, path, _)] if path == "storage.sha256"), "{found:?}");
    // What cannot be sent is no placeholder, and not shown.
    let found = findings(storage(json!({"token": "${TOKEN}\n"})));
    assert!(matches!(found.as_slice(), [(Severity::Fault, _, text)] if !text.contains("TOKEN")), "{found:?}");
}
