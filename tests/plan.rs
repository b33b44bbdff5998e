//! `compute_ctl plan` from outside: a real PostgreSQL or a stand-in for a compute, and the program as a process.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::ffi::OsString;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use compute_ctl::catalog::{self, Connection, ConnectionSettings, Options, PlanDocument, Profile};
use compute_ctl::cli::Streams;
use compute_ctl::cli::{self, Environment, ExitCode, Invocation};
use compute_ctl::spec::document::ComputeSpec;
use serde_json::{Value, json};
use support::pg::{Server, command};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use warp::Filter;
use warp::http::StatusCode;
use warp::reply::{Reply, with_status};

const SCRAM: &str = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$ahNoofoh7ahNoofoh7ahNoofoh7ahNoofoh7ahNoofo=:\
                     Zaekoh6eeZaekoh6eeZaekoh6eeZaekoh6eeZaekoh4=";
const MD5: &str = "6b1d16b78004bbd51fa06af9eda75972";

/// A bare spec.
fn spec(roles: Value, databases: Value, deltas: Value) -> Value {
    json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "storage": { "kind": "existing" },
        "cluster": { "roles": roles, "databases": databases },
        "delta_operations": deltas,
    })
}

fn first_spec() -> Value {
    spec(
        json!([
            { "name": "alice", "encrypted_password": SCRAM },
            { "name": "legacy", "encrypted_password": MD5 },
        ]),
        json!([{ "name": "app", "owner": "alice" }]),
        Value::Null,
    )
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs `compute_ctl plan - …` with this on standard input.
fn plan_text(text: &str, arguments: &[&str]) -> Ran {
    let mut program = Command::new(env!("CARGO_BIN_EXE_compute_ctl"));
    program.args(["plan", "-"]).args(arguments).env_remove("NO_COLOR").env_remove("COMPUTE_CTL_TOKEN");
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    // It need not be read: a bad argument ends the program before that.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn plan(server: &Server, spec: &Value, arguments: &[&str]) -> Ran {
    let connstr = server.connstr("postgres");
    let arguments = [&["--connstr", connstr.reveal()], arguments].concat();
    let ran = plan_text(&spec.to_string(), &arguments);
    for secret in [SCRAM, &SCRAM[40..60], MD5] {
        assert!(!ran.out.contains(secret) && !ran.err.contains(secret), "{}{}", ran.out, ran.err);
    }
    ran
}

async fn session(server: &Server, database: &str) -> Connection {
    let settings = ConnectionSettings::new(&server.connstr(database), Profile::Standard).unwrap();
    catalog::connect(&settings).await.unwrap()
}

/// What `POST /configure` does, migrations included; returns the number of steps.
async fn apply(server: &Server, spec: &Value) -> usize {
    let connection = session(server, "postgres").await;
    let spec: ComputeSpec = serde_json::from_value(spec.clone()).unwrap();
    let options =
        Options { privileged_role: "neon_superuser".to_owned(), profile: Profile::Standard, concurrency: 1 };
    let token = CancellationToken::new();
    let applied = catalog::apply(&connection, &spec, &options, &token).await.unwrap();
    catalog::migrations::run(&connection, &applied.migrations, &token).await.unwrap();
    applied.steps + applied.migrations.len()
}

async fn texts(connection: &Connection, sql: &str) -> Vec<String> {
    connection.client().query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[test]
fn what_a_spec_would_change_is_told_and_not_done() {
    let runtime = Runtime::new().unwrap();
    // Nobody but the test takes a transaction number.
    let server = Server::start("autovacuum = off");
    let next = || {
        runtime.block_on(async {
            let sql = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
            texts(&session(&server, "postgres").await, sql).await
        })
    };
    let before = next();
    let first = first_spec();
    let people = plan(&server, &first, &[]);
    let ordered = [
        "PostgreSQL 1",
        "  +  create privileged role \"neon_superuser\"",
        "  +  create role \"alice\" in \"neon_superuser\"",
        "  +  create database \"app\" owned by \"alice\"",
        "  ~  grant all privileges on database \"app\" to role \"neon_superuser\"",
        "  ~  prepare schema public",
        "Afterwards",
        "  ~  migration 1: ",
        "Plan: 6 to add, 3 to change, 0 to remove, then 12 migrations.",
    ];
    let mut rest = people.out.as_str();
    for text in ordered {
        let at =
            rest.find(text).unwrap_or_else(|| panic!("{text} is not in, or not in order:\n{}", people.out));
        rest = &rest[at..];
    }
    assert_eq!((people.code, people.err.as_str()), (2, ""), "{}", people.out);
    let as_json = plan(&server, &first, &["--json"]);
    let document: PlanDocument = serde_json::from_str(&as_json.out).unwrap();
    assert_eq!((as_json.code, document.summary.add, document.migrations.len()), (2, 6, 12));
    assert_eq!(plan(&server, &first, &["--sql"]).code, 2);
    assert_eq!(next(), before, "nothing has been written");

    assert_eq!(runtime.block_on(apply(&server, &first)), 9 + 12);
    let none = plan(&server, &first, &[]);
    assert_eq!(
        (none.code, none.out.as_str()),
        (0, "No changes. Roles and databases are what the spec says.\n")
    );
    let none = plan(
        &server,
        &json!({ "spec": first, "compute_ctl_config": { "jwks": { "keys": [] } } }),
        &["--json"],
    );
    assert_eq!(none.code, 0);
    assert_eq!(serde_json::from_str::<Value>(&none.out).unwrap()["changes"], json!([]));

    // What is lost is marked, and so is what of it is changed only.
    let deltas =
        json!([{ "action": "delete_db", "name": "app" }, { "action": "delete_role", "name": "legacy" }]);
    let second = spec(json!([{ "name": "alice", "encrypted_password": null }]), json!([]), deltas);
    let losses = plan(&server, &second, &[]);
    for line in [
        "  ~! remove password of role \"alice\"",
        "  -! drop database \"app\"",
        "  -! drop role \"legacy\"",
        "Plan: 0 to add, 1 to change, 2 to remove (3 destructive).",
    ] {
        assert!(losses.out.lines().any(|found| found == line), "{line} is not in\n{}", losses.out);
    }
    assert_eq!(losses.code, 2);

    // Impossible there, though it reads well.
    let deltas = json!([{ "action": "delete_role", "name": "alice" }]);
    let refused = spec(json!([]), json!([{ "name": "app", "owner": "alice" }]), deltas);
    let reason = "cannot delete role \"alice\", which is to own database \"app\"";
    let people = plan(&server, &refused, &[]);
    assert_eq!((people.code, people.out.as_str()), (1, ""));
    assert!(people.err.contains(reason), "{}", people.err);
    let as_json = plan(&server, &refused, &["--json"]);
    assert_eq!((as_json.code, as_json.err.as_str()), (1, ""));
    assert_eq!(serde_json::from_str::<Value>(&as_json.out).unwrap(), json!({ "error": reason }));

    // Colours: on a terminal only, unless somebody says otherwise.
    let colored = |arguments: &[&str], terminal, variables: &[(&str, &str)]| {
        let connstr = server.connstr("postgres");
        let line = [&["compute_ctl", "plan", "-", "--connstr", connstr.reveal()], arguments].concat();
        let var = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        };
        let Invocation::Plan(options) = cli::parse(line, Environment { var: &var, root: false }).unwrap()
        else {
            panic!("it is a plan")
        };
        let (text, mut out, mut err) = (second.to_string(), Vec::new(), Vec::new());
        let mut streams = Streams {
            input: &mut text.as_bytes(),
            out: &mut out,
            out_is_terminal: terminal,
            err: &mut err,
            err_is_terminal: false,
        };
        assert_eq!(cli::plan::run(&options, &mut streams), ExitCode::Changes);
        out.contains(&0x1b)
    };
    assert!(colored(&[], true, &[]));
    assert!(!colored(&[], false, &[]));
    assert!(!colored(&[], true, &[("NO_COLOR", "1")]));
    assert!(colored(&[], true, &[("NO_COLOR", "")]));
    assert!(!colored(&[], true, &[("TERM", "dumb")]));
    assert!(!colored(&["--color", "never"], true, &[]));
    assert!(colored(&["--color", "always"], false, &[("NO_COLOR", "1")]));
    assert!(!colored(&["--color", "always", "--sql"], true, &[]));
}

#[test]
fn a_plan_cannot_change_anything_even_if_it_tried() {
    let runtime = Runtime::new().unwrap();
    let server = Server::start("");
    let first = first_spec();
    runtime.block_on(apply(&server, &first));
    // An operator that every plan comes across, and that writes. (A built-in function that was replaced is called as
    // it was.)
    let trap = "CREATE FUNCTION public.trap(a name, b name) RETURNS text LANGUAGE plpgsql \
                AS 'BEGIN CREATE TABLE IF NOT EXISTS public.written (); RETURN pg_catalog.concat(a, b); END'; \
                CREATE OPERATOR pg_catalog.|| (LEFTARG = name, RIGHTARG = name, FUNCTION = public.trap)";
    runtime.block_on(async {
        session(&server, "postgres").await.client().batch_execute(trap).await.unwrap();
    });
    let connstr =
        format!("{} options='-c default_transaction_read_only=off'", server.connstr("postgres").reveal());
    let ran = plan_text(&first.to_string(), &["--connstr", &connstr]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("(SQLSTATE 25006)"), "{}", ran.err);
    let written = runtime.block_on(async {
        let sql = "SELECT relname::text FROM pg_class WHERE relname = 'written'";
        texts(&session(&server, "postgres").await, sql).await
    });
    assert!(written.is_empty());
}

/// Everything a spec can say something of, as text.
async fn state(server: &Server) -> Vec<String> {
    let own = session(server, "postgres").await;
    let mut state = texts(
        &own,
        "SELECT concat_ws(' ', quote_ident(rolname), rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, \
             rolreplication, rolbypassrls, rolconnlimit, rolpassword, rolvaliduntil) FROM pg_authid \
         UNION ALL SELECT 'member ' || quote_ident(m.member::regrole::text) || ' ' || m.roleid::regrole || m.admin_option \
             FROM pg_auth_members m \
         UNION ALL SELECT concat_ws(' ', 'database', quote_ident(datname), datdba::regrole, datallowconn, datconnlimit, datacl) \
             FROM pg_database \
         UNION ALL SELECT 'migration ' || id FROM neon_migration.migration_id \
         UNION ALL SELECT 'health ' || id FROM public.health_check ORDER BY 1",
    )
    .await;
    for database in texts(&own, "SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY 1").await {
        let inside = session(server, &database).await;
        let schema = texts(
            &inside,
            "SELECT concat_ws(' ', 'schema', nspname, nspowner::regrole, nspacl) FROM pg_namespace \
             WHERE nspname !~ '^pg_' \
             UNION ALL SELECT concat_ws(' ', 'default', defaclrole::regrole, defaclobjtype, defaclacl) FROM pg_default_acl \
             UNION ALL SELECT concat_ws(' ', 'table', relname, relowner::regrole, relacl) FROM pg_class \
             WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
        );
        state.extend(schema.await.into_iter().map(|line| format!("{database:?} {line}")));
    }
    state
}

#[test]
fn the_script_does_what_an_apply_does() {
    let runtime = Runtime::new().unwrap();
    let (applied, scripted) = (Server::start(""), Server::start(""));
    let psql = |script: &str, variables: &[String]| {
        let mut psql = command("psql");
        psql.args(["-X", "-q", "-d", scripted.connstr("postgres").reveal()]);
        psql.args(variables.iter().flat_map(|variable| ["-v", variable]));
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = psql.spawn().unwrap();
        // It stops reading at the first error.
        let _ = child.stdin.take().unwrap().write_all(script.as_bytes());
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let hostile =
        ["esc\u{1b}[2J", "line\nfeed", "it's \"so\" \\", "\u{9b}1m\u{202e}", "a=b", ":guard $x$;--"];
    let roles: Vec<Value> = hostile.iter().map(|name| json!({ "name": name })).collect();
    let databases: Vec<Value> = hostile.iter().map(|name| json!({ "name": name, "owner": name })).collect();
    let mut first = spec(json!(roles), json!(databases), Value::Null);
    let listed = first["cluster"]["roles"].as_array_mut().unwrap();
    listed[0]["encrypted_password"] = json!(SCRAM);
    listed[1]["encrypted_password"] = json!(MD5);
    listed[2]["options"] = json!([{ "name": "CONNECTION LIMIT", "value": "7", "vartype": "integer" }]);

    // Without its secrets it stops before anything has changed.
    let script = plan(&scripted, &first, &["--sql"]).out;
    let (code, error) = psql(&script, &[]);
    assert_eq!(code, Some(3), "{error}");
    assert!(error.contains("syntax error at or near \":\""), "{error}");
    assert_eq!(plan(&scripted, &first, &["--sql"]).out, script, "nothing has changed");

    // Roles are created in the order of their names.
    let secrets = [format!("secret_1={SCRAM}"), format!("secret_2=md5{MD5}")];
    assert_eq!(psql(&script, &secrets), (Some(0), String::new()), "{script}");
    assert_eq!(
        runtime.block_on(apply(&scripted, &first)),
        0,
        "an apply finds nothing to do after the script"
    );
    runtime.block_on(apply(&applied, &first));
    assert_eq!(runtime.block_on(state(&scripted)), runtime.block_on(state(&applied)));

    for server in [&applied, &scripted] {
        runtime.block_on(async {
            let inside = session(server, hostile[2]).await;
            let sql = "CREATE TABLE public.left_behind (); \
                       ALTER TABLE public.left_behind OWNER TO \"line\nfeed\"; CREATE TABLE public.shared (); \
                       GRANT ALL ON public.shared TO \"line\nfeed\" WITH GRANT OPTION";
            inside.client().batch_execute(sql).await.unwrap();
        });
    }
    let second = spec(
        json!([{ "name": hostile[2] }, { "name": "new\tname", "encrypted_password": null }]),
        json!([{ "name": hostile[2], "owner": "new\tname" }, { "name": "c=d\n'", "owner": hostile[2] }]),
        json!([
            { "action": "rename_role", "name": "a=b", "new_name": "new\tname" },
            { "action": "rename_db", "name": "a=b", "new_name": "c=d\n'" },
            { "action": "delete_db", "name": hostile[0] },
            { "action": "delete_db", "name": hostile[1] },
            { "action": "delete_role", "name": hostile[0] },
            { "action": "delete_role", "name": hostile[1] },
        ]),
    );
    let Ran { code, out: script, .. } = plan(&scripted, &second, &["--sql"]);
    assert_eq!(code, 2);
    assert_eq!(psql(&script, &[]), (Some(0), String::new()), "{script}");
    assert_eq!(
        runtime.block_on(apply(&scripted, &second)),
        0,
        "an apply finds nothing to do after the script"
    );
    runtime.block_on(apply(&applied, &second));
    assert_eq!(runtime.block_on(state(&scripted)), runtime.block_on(state(&applied)));
    assert_eq!(plan(&scripted, &second, &[]).code, 0);
}

#[test]
fn hostile_names_reach_a_terminal_as_text_only() {
    let server = Server::start("");
    let names = ["\u{1b}]0;x\u{7}", "a\nb", "\u{9b}2J", "\u{202e}x"];
    let roles: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
    let spec = spec(json!(roles), json!([{ "name": "a\u{1b}b", "owner": "a\nb" }]), Value::Null);
    for form in [&[][..], &["--json"], &["--sql"]] {
        let ran = plan(&server, &spec, form);
        assert_eq!((ran.code, ran.err.as_str()), (2, ""));
        let bad = ran.out.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(bad, None, "{:?}", ran.out);
    }
    assert!(plan(&server, &spec, &[]).out.contains("create role \"\\u{1b}]0;x\\u{7}\""));
}

#[test]
fn files_are_judged_first_as_check_does() {
    let connstr = ["--connstr", "postgresql://nobody@127.0.0.1:1/x"];
    let bad = first_spec().to_string().replace("\"alice\"", "\"\"");
    let ran = plan_text(&bad, &connstr);
    assert_eq!((ran.code, ran.out.as_str()), (78, ""));
    assert!(ran.err.starts_with("<stdin>:1:") && ran.err.contains(": fault: cluster."), "{}", ran.err);
    let ran = plan_text(&bad, &[connstr[0], connstr[1], "--json"]);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &report["ok"]), (78, &json!(false)));
    let ran = plan_text("{", &connstr);
    assert!(ran.code == 78 && ran.err.contains("not JSON"), "{}", ran.err);
    let ran = plan_text(r#"{"compute_ctl_config":{"jwks":{"keys":[]}}}"#, &connstr);
    let missing = "<stdin>: fault: spec: missing; expected a spec, which says what is to be there\n";
    assert!(ran.code == 78 && ran.err.ends_with(missing), "{}", ran.err);
    let mut program = Command::new(env!("CARGO_BIN_EXE_compute_ctl"));
    let output = program.args(["plan", "/nonexistent.json", connstr[0], connstr[1]]).output().unwrap();
    assert_eq!(output.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent.json: No such file"));

    // A spec which leaves the catalog alone needs nobody to be there.
    let mut skipping = first_spec();
    skipping["skip_pg_catalog_updates"] = json!(true);
    let ran = plan_text(&skipping.to_string(), &connstr);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("not compared") && ran.out.contains("skip_pg_catalog_updates"), "{}", ran.out);
}

#[test]
fn whoever_cannot_be_asked_is_named_without_secrets() {
    let spec = first_spec().to_string();
    // Bound, so that nobody else listens there; and not listening.
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    for (connstr, reason) in [
        (format!("postgresql://a:hunter2@127.0.0.1:{closed}/x"), "cannot connect to database \"x\": "),
        ("postgresql://a:hunter2@h/x?hunter2=1".to_owned(), "the connection string is malformed"),
        ("postgresql://127.0.0.1/x?password=hunter2".to_owned(), "the connection string names no user"),
    ] {
        let ran = plan_text(&spec, &["--connstr", &connstr]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{}", ran.err);
        assert!(ran.err.starts_with(&format!("compute_ctl plan: {reason}")), "{}", ran.err);
        assert!(!ran.err.contains("hunter2"), "{}", ran.err);
    }
    let url = format!("http://127.0.0.1:{closed}");
    let ran = plan_text(&spec, &["--url", &url, "--token", "hunter2"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains(&format!("no answer from the compute at {url}")), "{}", ran.err);
    assert!(!ran.err.contains("hunter2"), "{}", ran.err);
    for arguments in [
        &["--url", &url, "--connstr", "postgresql://a:hunter2@h/x"][..],
        &["--json", "--sql"],
        &["--url", "http://u:hunter2@h"],
        &["--url", &url, "--privileged-role-name", "x"],
        &["--connstr", "postgresql://a:hunter2@h/x", "--privileged-role-name", "X"],
        &["--color", "sometimes"],
    ] {
        let ran = plan_text(&spec, arguments);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""));
        assert!(ran.err.starts_with("error: ") && !ran.err.contains("hunter2"), "{}", ran.err);
    }
}

/// What a stand-in for a compute was asked: path, token, body.
type Asked = Arc<Mutex<Vec<(String, Option<String>, Value)>>>;

/// Answers every request with this, and remembers them.
fn compute(runtime: &Runtime, status: u16, answer: &str) -> (String, Asked) {
    let (asked, answer) = (Asked::default(), answer.to_owned());
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = asked.clone();
    let routes = warp::post()
        .and(warp::path::full())
        .and(warp::header::optional("authorization"))
        .and(warp::body::json())
        .map(move |path: warp::path::FullPath, token, body| {
            seen.lock().unwrap().push((path.as_str().to_owned(), token, body));
            with_status(answer.clone(), StatusCode::from_u16(status).unwrap()).into_response()
        });
    runtime.spawn(warp::serve(routes).incoming(listener).run());
    (url, asked)
}

#[test]
fn a_running_compute_is_asked_and_its_plan_shown() {
    let runtime = Runtime::new().unwrap();
    let document = json!({
        "summary": { "add": 0, "change": 0, "remove": 1, "destructive": 1 },
        "changes": [{
            "action": "drop_role", "change": "remove", "destructive": true, "kind": "role", "name": "x\u{1b}[2J",
            "transaction": 1, "text": "drop role x\u{1b}[2J", "sql": ["DROP ROLE IF EXISTS \"x\u{1b}[2J\""],
        }],
        "migrations": [], "database": "postgres", "server_version": 170_002, "profile": "neon", "unheard_of": 1,
    });
    let (url, asked) = compute(&runtime, 200, &document.to_string());
    let bare = first_spec();
    let config = json!({ "spec": bare, "compute_ctl_config": { "jwks": { "keys": [] } }, "more": [1] });
    let ran = plan_text(&config.to_string(), &["--url", &format!("{url}/"), "--token", "abc"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(
        ran.out.contains("PostgreSQL 17.2") && ran.out.contains("  -! drop role x\\u{1b}[2J\n"),
        "{}",
        ran.out
    );
    let ran = plan_text(&bare.to_string(), &["--url", &url, "--sql"]);
    assert_eq!(ran.code, 2);
    assert!(ran.out.contains("DROP ROLE IF EXISTS U&\"x\\+00001B[2J\";"), "{}", ran.out);
    let wrapped = json!({ "spec": bare, "compute_ctl_config": { "jwks": { "keys": [] } } });
    let expected =
        [("/plan".to_owned(), Some("Bearer abc".to_owned()), config), ("/plan".to_owned(), None, wrapped)];
    assert_eq!(*asked.lock().unwrap(), expected);

    for (status, body, told) in [
        (412, r#"{"error":"no\u001b server"}"#, "answered 412 Precondition Failed: no\\u{1b} server"),
        (404, "", "answered 404 Not Found\n"),
        (200, "<html>", "is not what it should be"),
        (200, r#"{"summary":"hunter2"}"#, "is not what it should be: summary: invalid type"),
    ] {
        let (url, _) = compute(&runtime, status, body);
        let ran = plan_text(&bare.to_string(), &["--url", &url]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""));
        assert!(ran.err.contains(told) && !ran.err.contains("hunter2"), "{}", ran.err);
    }
    // The token may come from the environment, where other users do not see it.
    let (url, asked) = compute(&runtime, 401, "{}");
    let mut program = Command::new(env!("CARGO_BIN_EXE_compute_ctl"));
    program.args(["plan", "-", "--url", &url]).env("COMPUTE_CTL_TOKEN", "def");
    let mut child = program.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bare.to_string().as_bytes()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(asked.lock().unwrap()[0].1.as_deref(), Some("Bearer def"));
}
