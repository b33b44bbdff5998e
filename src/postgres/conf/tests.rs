use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::catalog::Profile;
use crate::limits;
use crate::spec::document::{ComputeSpec, GenericOption};

fn spec(fields: Value) -> ComputeSpec {
    let mut document = json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": { "roles": [], "databases": [] },
    });
    for (name, value) in fields.as_object().unwrap() {
        document[name] = value.clone();
    }
    serde_json::from_value(document).unwrap()
}

fn conf(spec: &ComputeSpec, profile: Profile) -> Conf<'_> {
    Conf {
        spec,
        profile,
        privileged_role: "neon_superuser",
        internal_http_port: 3081,
        tls: false,
        mmap_shared_memory: false,
        lakebase_port: None,
        extras: &[],
    }
}

fn pairs(text: &str) -> Vec<(String, String)> {
    parse(text).unwrap().into_iter().map(|entry| (entry.name, entry.value)).collect()
}

#[test]
fn a_full_neon_file_in_the_order_of_the_format() {
    let spec = spec(json!({
        "cluster": {
            "roles": [], "databases": [],
            "postgresql_conf": "shared_buffers=128MB",
            "settings": [
                { "name": "port", "value": "5432", "vartype": "integer" },
                { "name": "test.escaping", "value": "here's a \\", "vartype": "string" },
            ],
        },
        "tenant_id": "3F1C5D2A9B8E4F70A1B2C3D4E5F60718",
        "timeline_id": "8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d",
        "project_id": "p", "branch_id": "b", "endpoint_id": "e",
        "pageserver_connection_info": {
            "shard_count": 2, "stripe_size": 2048,
            "shards": {
                "0102": { "pageservers": [ { "libpq_url": "postgresql://no_user@ps-2:6400" } ] },
                "0002": { "pageservers": [ { "libpq_url": "postgresql://no_user@ps-1:6400" } ] },
            },
        },
        "safekeepers_generation": 3,
        "safekeeper_connstrings": ["sk-1:5454", "sk-2:5454"],
        "mode": { "Static": "0/16B9188" },
        "drop_subscriptions_before_start": true,
        "logs_export_host": "collector:10514",
        "audit_log_level": "Base",
    }));
    let mut conf = conf(&spec, Profile::Neon);
    conf.tls = true;
    conf.mmap_shared_memory = true;
    conf.extras = &[("listen_addresses", "127.0.0.1")];
    let expected = "\
shared_buffers=128MB
neon.stripe_size = 2048
neon.pageserver_connstring = 'postgresql://no_user@ps-1:6400,postgresql://no_user@ps-2:6400'
neon.safekeepers = 'g#3:sk-1:5454,sk-2:5454'
neon.tenant_id = '3f1c5d2a9b8e4f70a1b2c3d4e5f60718'
neon.timeline_id = '8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d'
neon.project_id = 'p'
neon.branch_id = 'b'
neon.endpoint_id = 'e'
ssl = on
ssl_cert_file = 'server.crt'
ssl_key_file = 'server.key'
lc_messages = 'C.UTF-8'
lc_monetary = 'C.UTF-8'
lc_time = 'C.UTF-8'
lc_numeric = 'C.UTF-8'
neon.compute_mode = 'static'
hot_standby = on
recovery_target_lsn = '0/16B9188'
dynamic_shared_memory_type = mmap
neon.privileged_role_name = 'neon_superuser'
# settings of the spec: begin
port = 5432
test.escaping = 'here''s a \\\\'
# settings of the spec: end
# audit: begin
pgaudit.log = 'ddl,role'
pgaudit.log_catalog = off
shared_preload_libraries = 'neon,pgaudit'
# audit: end
neon.extension_server_port = 3081
neon.disable_logical_replication_subscribers = true
log_destination = 'stderr,syslog'
listen_addresses = '127.0.0.1'
include_if_exists = 'compute_ctl_temp_override.conf'
";
    assert_eq!(render(&conf).unwrap(), expected);
}

#[test]
fn a_standard_server_is_told_nothing_of_neon() {
    let spec = spec(json!({}));
    let text = render(&conf(&spec, Profile::Standard)).unwrap();
    assert!(!text.contains("neon."), "{text}");
    assert!(text.ends_with("\ninclude_if_exists = 'compute_ctl_temp_override.conf'\n"));
}

#[test]
fn a_missing_url_leaves_the_connection_string_out() {
    let spec = spec(json!({ "pageserver_connection_info": {
        "shard_count": 2, "stripe_size": 8,
        "shards": { "0002": { "pageservers": [ { "libpq_url": "x" } ] }, "0102": { "pageservers": [ {} ] } },
    } }));
    let text = render(&conf(&spec, Profile::Neon)).unwrap();
    assert!(text.contains("neon.stripe_size = 8\n") && !text.contains("connstring"), "{text}");
}

#[test]
fn the_legacy_stripe_size_counts_only_without_the_new_form() {
    let legacy = spec(json!({ "shard_stripe_size": 16, "pageserver_connstring": "host=a" }));
    let text = render(&conf(&legacy, Profile::Neon)).unwrap();
    assert!(text.contains("neon.stripe_size = 16\nneon.pageserver_connstring = 'host=a'\n"), "{text}");
    let both = spec(json!({ "shard_stripe_size": 16, "pageserver_connection_info": {
        "shard_count": 0, "shards": { "0000": { "pageservers": [ { "libpq_url": "u" } ] } } } }));
    let text = render(&conf(&both, Profile::Neon)).unwrap();
    assert!(!text.contains("stripe_size") && text.contains("neon.pageserver_connstring = 'u'\n"), "{text}");
}

#[test]
fn audit_libraries_join_what_is_preloaded() {
    let preloaded = |settings: Value, verbatim: Value, level: &str, profile| {
        let spec = spec(json!({
            "cluster": { "roles": [], "databases": [], "settings": settings, "postgresql_conf": verbatim },
            "audit_log_level": level,
        }));
        effective(&render(&conf(&spec, profile)).unwrap(), "shared_preload_libraries").unwrap().unwrap()
    };
    let setting =
        |value: &str| json!([{ "name": "shared_preload_libraries", "value": value, "vartype": "string" }]);
    assert_eq!(preloaded(Value::Null, Value::Null, "Base", Profile::Standard), "pgaudit");
    assert_eq!(preloaded(Value::Null, Value::Null, "Full", Profile::Neon), "neon,pgaudit,pgauditlogtofile");
    assert_eq!(preloaded(setting("a, b"), Value::Null, "Log", Profile::Neon), "a,b,pgaudit");
    assert_eq!(
        preloaded(setting("pgauditlogtofile"), Value::Null, "Hipaa", Profile::Neon),
        "pgauditlogtofile,pgaudit"
    );
    assert_eq!(
        preloaded(Value::Null, json!("shared_preload_libraries = 'c'"), "Base", Profile::Standard),
        "c,pgaudit"
    );
}

#[test]
fn faults_name_the_setting() {
    let rendered = |name: &str, value: Option<&str>, vartype: &str| {
        let mut spec = spec(json!({}));
        spec.cluster.settings = Some(vec![GenericOption {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            vartype: vartype.to_owned(),
        }]);
        render(&conf(&spec, Profile::Standard))
    };
    let name = |name: &str| name.to_owned();
    for value in ["a\nb", "a\rb", "a\0b"] {
        assert_eq!(rendered("x.y", Some(value), "string"), Err(ConfError::Control { name: name("x.y") }));
        assert_eq!(rendered("x.y", Some(value), "enum"), Err(ConfError::NotAToken { name: name("x.y") }));
    }
    for value in ["a b", "1; 2", "", "# x", "*", "'a' 'b'", "'open"] {
        assert_eq!(
            rendered("port", Some(value), "integer"),
            Err(ConfError::NotAToken { name: name("port") })
        );
    }
    // As it is written: each quote twice, and what is around.
    let long = "'".repeat(limits::CONF_LINE / 2);
    let fits = |long: &str| rendered("x.y", Some(long), "string").map(drop);
    assert_eq!(fits(&long), Err(ConfError::TooLong { name: name("x.y") }));
    assert_eq!(fits(&long[8..]), Ok(()));
    assert_eq!(
        rendered("x.y", Some(&"1".repeat(limits::CONF_LINE)), "integer"),
        Err(ConfError::TooLong { name: name("x.y") })
    );
    assert_eq!(rendered("port", None, "integer"), Err(ConfError::NoValue { name: name("port") }));
    for bad in ["", "a b", "a=b", "1a", "a.b.c", "include", "Include_Dir", "a\nb"] {
        assert_eq!(rendered(bad, Some("1"), "integer"), Err(ConfError::Name { name: name(bad) }), "{bad:?}");
        assert_eq!(rendered(bad, Some("1"), "string"), Err(ConfError::Name { name: name(bad) }), "{bad:?}");
    }
    let mut broken = spec(json!({}));
    broken.cluster.postgresql_conf = Some("ok = 1\nnot ok".to_owned());
    assert!(render(&conf(&broken, Profile::Neon)).is_ok(), "a name and a word are a setting");
    broken.cluster.postgresql_conf = Some("ok = 1\nnot ok either".to_owned());
    let error = render(&conf(&broken, Profile::Neon)).unwrap_err();
    assert_eq!(error.to_string(), "postgresql_conf of the spec: line 2: something follows the value");
    broken.cluster.postgresql_conf = Some("# \0".to_owned());
    assert_eq!(render(&conf(&broken, Profile::Neon)), Err(ConfError::VerbatimNul));
    broken.cluster.postgresql_conf = Some(format!("port = 1\n# {}\n", "x".repeat(limits::CONF_LINE)));
    assert_eq!(render(&conf(&broken, Profile::Neon)), Err(ConfError::VerbatimTooLong { line: 2 }));
}

#[test]
fn where_a_server_listens() {
    let nowhere = Listening { port: 5432, socket_directory: None, listen_addresses: None };
    assert_eq!(listening(""), Ok(nowhere.clone()));
    let text = "port=1\nPort = 5544\nunix_socket_directories = '\"/a b\", /c'\nlisten_addresses='*'";
    assert_eq!(
        listening(text),
        Ok(Listening {
            port: 5544,
            socket_directory: Some("/a b".into()),
            listen_addresses: Some("*".to_owned()),
        })
    );
    assert_eq!(listening("unix_socket_directories = ''\nport = 99999"), Ok(nowhere));
    assert_eq!(effective_port("port = 7"), Ok(7));
    assert_eq!(effective("max_connections = 112", "max_connections"), Ok(Some("112".to_owned())));
}

#[test]
fn max_connections_of_a_spec() {
    let asked = |settings: Value, verbatim: Value| {
        max_connections(
            &serde_json::from_value(json!({
                "roles": [], "databases": [], "settings": settings, "postgresql_conf": verbatim,
            }))
            .unwrap(),
        )
    };
    let setting = |value: &str| json!([{ "name": "max_connections", "value": value, "vartype": "integer" }]);
    let verbatim = || json!("max_connections=1\nmax_connections = 20");
    assert_eq!(asked(Value::Null, Value::Null), None);
    assert_eq!(asked(Value::Null, verbatim()), Some(20));
    assert_eq!(asked(setting("30"), verbatim()), Some(30));
    assert_eq!(asked(setting("many"), verbatim()), None);
}

#[test]
fn files_are_replaced_whole_and_private() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "port = 1\n").unwrap();
    write(dir.path(), "port = 2\n").unwrap();
    let path = dir.path().join("postgresql.conf");
    assert_eq!(fs::read_to_string(&path).unwrap(), "port = 2\n");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    enable_subscribers(dir.path()).unwrap();
    enable_subscribers(dir.path()).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text, "port = 2\n\nneon.disable_logical_replication_subscribers=false");
    lift_size_limit(dir.path()).unwrap();
    let over = dir.path().join(OVERRIDE_FILE);
    assert_eq!(fs::read_to_string(&over).unwrap(), "neon.max_cluster_size=-1\n");
    clear_override(dir.path()).unwrap();
    assert_eq!(fs::read_to_string(&over).unwrap(), "");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
    let error = write(&dir.path().join("missing"), "").unwrap_err();
    assert!(error.to_string().contains("missing/postgresql.conf"));
}

proptest! {
    #[test]
    fn what_is_rendered_reads_back(
        settings in prop::collection::vec(
            ("[a-zA-Zä_][a-zA-Z0-9ä_]{0,6}(\\.[a-z_]{1,4})?", "([^\n\r\0]|['\\\\]){0,20}"), 0..8),
        verbatim in prop::option::of("([a-z]{1,5} = [0-9]{1,3}\n?){0,1}"),
    ) {
        let mut spec = spec(json!({}));
        let lines = settings.iter().filter(|(name, _)| !name.to_lowercase().starts_with("include"));
        let expected: Vec<(String, String)> = lines.cloned().collect();
        spec.cluster.settings = Some(expected.iter().map(|(name, value)| GenericOption {
            name: name.clone(), value: Some(value.clone()), vartype: "string".to_owned(),
        }).collect());
        spec.cluster.postgresql_conf = verbatim;
        let text = render(&conf(&spec, Profile::Standard)).unwrap();
        let read = pairs(&text);
        // Four locale lines before, the include after; the verbatim part at the top.
        let end = read.len() - 1;
        prop_assert_eq!(&read[end - expected.len()..end], expected.as_slice());
    }
}
