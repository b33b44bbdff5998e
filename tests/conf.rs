//! Configuration files through the real PostgreSQL's own reader.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;

use compute_ctl::catalog::{self, ConnectionSettings, Profile};
use compute_ctl::limits;
use compute_ctl::postgres::conf::{self, Conf};
use compute_ctl::spec::document::ComputeSpec;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::json;
use support::pg::{Server, command};

/// Our file through the real server's reader: what `postgres -C` prints must be what we meant.
#[test]
fn the_server_reads_our_configuration_as_we_mean_it() {
    let server = Server::start("");
    let mut spec: ComputeSpec = serde_json::from_value(json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": { "roles": [], "databases": [] },
    }))
    .unwrap();
    let value = "here's a backslash \\ and 'quotes' \"double\" # no comment $x ü";
    let settings = json!([
        { "name": "port", "value": "54321", "vartype": "integer" },
        { "name": "max_connections", "value": "31", "vartype": "integer" },
        { "name": "wal_level", "value": "logical", "vartype": "enum" },
        { "name": "fsync", "value": "off", "vartype": "bool" },
        { "name": "test.escaping", "value": value, "vartype": "string" },
        { "name": "search_path", "value": "\"$user\", public", "vartype": "string" },
    ]);
    spec.cluster.settings = serde_json::from_value(settings).unwrap();
    spec.cluster.postgresql_conf =
        Some("max_connections = 20 # later lines win\ncluster_name 'it''s'\nwork_mem=0x1000kB\n".to_owned());
    spec.tenant_id = Some("3f1c5d2a9b8e4f70a1b2c3d4e5f60718".to_owned());
    spec.safekeeper_connstrings = vec!["sk-1:5454".to_owned()];
    for profile in [Profile::Standard, Profile::Neon] {
        let rendered = conf::render(&Conf {
            spec: &spec,
            profile,
            privileged_role: "neon_superuser",
            internal_http_port: 3081,
            tls: false,
            mmap_shared_memory: true,
            lakebase_port: None,
            extras: &[("listen_addresses", "127.0.0.1"), ("unix_socket_directories", "/tmp/a b")],
        })
        .unwrap();
        conf::write(&server.data(), &rendered).unwrap();
        conf::lift_size_limit(&server.data()).unwrap();
        let mut expected = BTreeMap::from([
            ("port", "54321"),
            ("max_connections", "31"),
            ("wal_level", "logical"),
            ("fsync", "off"),
            ("test.escaping", value),
            ("search_path", "\"$user\", public"),
            ("cluster_name", "it's"),
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", "/tmp/a b"),
            ("lc_messages", "C.UTF-8"),
            ("dynamic_shared_memory_type", "mmap"),
            ("neon.tenant_id", "3f1c5d2a9b8e4f70a1b2c3d4e5f60718"),
            ("neon.safekeepers", "sk-1:5454"),
            ("neon.max_cluster_size", "-1"),
        ]);
        if profile == Profile::Neon {
            expected.extend([("neon.compute_mode", "primary"), ("neon.extension_server_port", "3081")]);
        }
        for (name, value) in expected {
            assert_eq!(printed(&server, name), value, "{name}");
            if name != "neon.max_cluster_size" {
                assert_eq!(conf::effective(&rendered, name).unwrap().as_deref(), Some(value), "{name}");
            }
        }
        assert_eq!(printed(&server, "work_mem"), "4096");
    }
    assert_eq!(
        conf::effective_port(&fs::read_to_string(server.data().join("postgresql.conf")).unwrap()),
        Ok(54321)
    );
}

/// Whatever the line, our parser and the server's come to the same: the same value, or a syntax error. The
/// view `pg_file_settings` shows what a running server makes of its file.
#[tokio::test]
async fn the_parser_and_the_server_agree() {
    let server = Server::start("");
    let path = server.data().join("postgresql.conf");
    let settings = ConnectionSettings::new(&server.connstr("postgres"), Profile::Standard).unwrap();
    let connection = catalog::connect(&settings).await.unwrap();
    let name = "(x\\.y|x\\.y|x\\.y|x\\.ü|_\\.a1|x\\.y\\.z|1x\\.y|x-y|)( = |=| |\t=  |==|)";
    let value = "([a-z][a-z0-9._:/-]{0,5}|[+-]?[0-9.]{1,3}([a-z]{0,2}|e-?[0-9])|0x[0-9a-f]{0,3}|[a-z0-9.:/+-]{1,5}\
                 |'([^'\\\\\n\r\0]|''|\\\\[nt'\\\\q07]){0,5}'|'|\\*)( |\t?#.*|#|\r| z)?";
    let strategy = proptest::string::string_regex(&format!("{name}{value}")).unwrap();
    let mut runner = TestRunner::deterministic();
    let (mut accepted, mut refused) = (0, 0);
    let query = "SELECT name, setting, error FROM pg_catalog.pg_file_settings \
                 WHERE sourcefile LIKE '%/postgresql.conf'";
    let query = connection.client().prepare(query).await.unwrap();
    // One line at a time, because the view gives up at the first error.
    for _ in 0..1000 {
        let line = strategy.new_tree(&mut runner).unwrap().current();
        conf::write_atomic(&path, &line).unwrap();
        let rows = connection.client().query(&query, &[]).await.unwrap();
        let theirs =
            rows.first().map(|row| (row.get::<_, Option<String>>(0), row.get::<_, Option<String>>(1)));
        match conf::parse(&line) {
            Ok(entries) => {
                let ours = entries.into_iter().next().map(|entry| (Some(entry.name), Some(entry.value)));
                assert_eq!(ours, theirs, "{line:?}");
                accepted += 1;
            }
            Err(fault) => {
                let error: String = rows[0].get(2);
                assert_eq!(error, "syntax error", "{line:?}: {fault}");
                refused += 1;
            }
        }
    }
    assert!(accepted > 150 && refused > 150, "both kinds of lines: {accepted} and {refused}");
}

fn printed(server: &Server, name: &str) -> String {
    let output = command("postgres").arg("-D").arg(server.data()).args(["-C", name]).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
}

/// Whatever the settings of a spec: they are refused before anything is written, or the server reads the names and
/// values that were meant. One file at a time with up to thirty settings, of which later ones must not be disturbed
/// by earlier ones.
#[tokio::test]
async fn rendered_settings_are_what_the_server_reads() {
    let server = Server::start("");
    let settings = ConnectionSettings::new(&server.connstr("postgres"), Profile::Standard).unwrap();
    let connection = catalog::connect(&settings).await.unwrap();
    let query = "SELECT name, setting FROM pg_catalog.pg_file_settings \
                 WHERE sourcefile LIKE '%/postgresql.conf' ORDER BY seqno";
    let query = connection.client().prepare(query).await.unwrap();

    let name = "x\\.[a-zü][a-z0-9_]{0,8}|[xy]_?z?\\.a|include\\.x";
    // What is special to the reader, to quoting, to lines, to numbers, and what is not.
    let text = "([ -~]|['\\\\#$=\t\"]|\\\\[0-7n']|''|[\\x01-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f]|\u{85}|\u{2028}|ü|\u{1f418}|\\PC){0,12}";
    let token = "[+-]?[0-9]{1,20}(\\.[0-9]{0,3}(e-?[0-9]{1,3})?|[a-zA-Z]{0,3})|0x[0-9a-f]{1,4}|NaN|-?inf|on|[a-z][a-z0-9._:/-]{0,8}|'[a-z# ]{0,5}'";
    let regex = |text| proptest::string::string_regex(text).unwrap();
    let bad = "[\n\r\0]|[ -~]{0,3}[\n\r\0][ -~]{0,3}";
    let setting = proptest::prop_oneof![
        8 => (regex(name), regex(text), proptest::strategy::Just("string")),
        4 => (regex(name), regex(token), proptest::prop_oneof!["integer", "enum", "no such type", ""].prop_map(|kind| match kind.as_str() {
            "integer" => "integer",
            "enum" => "enum",
            _ => "",
        })),
        1 => (regex(name), regex(bad), proptest::strategy::Just("string")),
        1 => (regex(name), regex(text), proptest::strategy::Just("bool")),
        1 => (regex("([a-z. '#=\n-]|include){0,5}"), regex("a"), proptest::strategy::Just("string")),
    ];
    let strategy = proptest::collection::vec(setting, 1..30);
    let mut runner = TestRunner::deterministic();
    let (mut read, mut refused) = (0, 0);
    for _ in 0..400 {
        let mut meant = Vec::new();
        for (name, value, vartype) in strategy.new_tree(&mut runner).unwrap().current() {
            let one = json!([{ "name": name, "value": value, "vartype": vartype }]);
            match rendered(&one) {
                Ok(_) => meant.push((name, value, vartype)),
                Err(_) => refused += 1,
            }
        }
        let all: Vec<_> = meant
            .iter()
            .map(|(name, value, vartype)| json!({ "name": name, "value": value, "vartype": vartype }))
            .collect();
        let text = rendered(&json!(all)).unwrap();
        conf::write(&server.data(), &text).unwrap();
        let rows = connection.client().query(&query, &[]).await.unwrap();
        let theirs: Vec<(Option<String>, Option<String>)> = rows
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .filter(|(name, _): &(Option<String>, _)| {
                !name.as_deref().is_some_and(|name| name.starts_with("lc_"))
            })
            .collect();
        let ours: Vec<_> = meant
            .into_iter()
            .map(|(name, value, vartype)| {
                let bare = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
                let value = bare.filter(|_| vartype != "string").map(str::to_owned).unwrap_or(value);
                (Some(name), Some(value))
            })
            .collect();
        read += ours.len();
        assert_eq!(ours, theirs, "{text}");
    }
    assert!(read > 1000 && refused > 300, "both kinds of settings: {read} and {refused}");
}

/// What is written can be read at any length; what would take the server's reader long is not written.
#[tokio::test]
async fn the_longest_line_that_is_written_is_read() {
    let server = Server::start("");
    let settings = ConnectionSettings::new(&server.connstr("postgres"), Profile::Standard).unwrap();
    let connection = catalog::connect(&settings).await.unwrap();
    let name = format!("x.{}", "n".repeat(limits::CONF_LINE / 4));
    let setting = |length: usize| {
        let value = "'\\ü".repeat(length / 6);
        (rendered(&json!([{ "name": name, "value": value, "vartype": "string" }])), value)
    };
    let room = limits::CONF_LINE - name.len() - " = ''".len();
    let (text, value) = setting(room);
    conf::write(&server.data(), &text.unwrap()).unwrap();
    let query = "SELECT setting = $2, error FROM pg_catalog.pg_file_settings WHERE name = $1";
    let row = connection.client().query_one(query, &[&name, &value]).await.unwrap();
    assert_eq!((row.get(0), row.get::<_, Option<String>>(1)), (true, None));
    assert!(matches!(setting(room + 6).0, Err(conf::ConfError::TooLong { .. })));
}

fn rendered(settings: &serde_json::Value) -> Result<String, conf::ConfError> {
    let spec: ComputeSpec = serde_json::from_value(json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": { "roles": [], "databases": [], "settings": settings },
    }))
    .unwrap();
    conf::render(&Conf {
        spec: &spec,
        profile: Profile::Standard,
        privileged_role: "",
        internal_http_port: 0,
        tls: false,
        mmap_shared_memory: false,
        lakebase_port: None,
        extras: &[],
    })
}
