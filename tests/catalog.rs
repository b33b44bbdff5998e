//! Roles and databases on a real PostgreSQL.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::pin::Pin;
use std::time::Duration;

use compute_ctl::catalog::{
    self, Applied, ApplyError, ConnectError, Connection, ConnectionSettings, Existing, Options, Plan,
    Profile, Step,
};
use compute_ctl::catalog::{apply::execute, attributes::RoleAttributes, plan::plan, quote};
use compute_ctl::limits;
use compute_ctl::secret::Secret;
use compute_ctl::spec::document::{ComputeSpec, GenericOption};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use support::pg::{ADMIN, Server, command};
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;

fn options() -> Options {
    Options { privileged_role: "neon_superuser".to_owned(), profile: Profile::Standard, concurrency: 2 }
}

fn spec(roles: Value, databases: Value, deltas: Value) -> ComputeSpec {
    serde_json::from_value(json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": { "roles": roles, "databases": databases },
        "delta_operations": deltas,
    }))
    .unwrap()
}

async fn session(server: &Server) -> Connection {
    session_in(server, "postgres").await
}

async fn session_in(server: &Server, database: &str) -> Connection {
    let settings = ConnectionSettings::new(&server.connstr(database), Profile::Standard).unwrap();
    catalog::connect(&settings).await.unwrap()
}

async fn apply(connection: &Connection, spec: &ComputeSpec) -> Result<Applied, ApplyError> {
    let (options, token) = (options(), CancellationToken::new());
    // Whoever supervises an apply spawns it, so its future has to be Send.
    let future: Pin<Box<dyn Future<Output = _> + Send + '_>> =
        Box::pin(catalog::apply(connection, spec, &options, &token));
    let mut applied = future.await?;
    let pending = std::mem::take(&mut applied.migrations);
    catalog::migrations::run(connection, &pending, &token).await.unwrap();
    Ok(applied)
}

/// Applies twice: the second time there must be nothing to do.
async fn settle(connection: &Connection, spec: &ComputeSpec) -> Applied {
    let first = apply(connection, spec).await.unwrap();
    let again = apply(connection, spec).await.unwrap();
    assert_eq!(again, Applied::default(), "a second apply has nothing to do");
    first
}

async fn texts(connection: &Connection, sql: &str) -> Vec<String> {
    connection.client().query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn run(connection: &Connection, sql: &str) {
    connection.client().batch_execute(sql).await.unwrap();
}

/// Asks until the server answers as expected. Each question is a round trip; the limit only turns a hang
/// into a failure.
async fn until(connection: &Connection, sql: &str, expected: &str) {
    let asking = async { while texts(connection, sql).await != [expected] {} };
    tokio::time::timeout(Duration::from_secs(60), asking)
        .await
        .expect("the server comes to the expected state");
}

/// A verifier made by the server itself, independent of the code under test.
async fn scram(connection: &Connection, password: &str) -> String {
    let password = password.replace('\'', "''");
    run(
        connection,
        &format!("SET password_encryption = 'scram-sha-256'; CREATE ROLE maker PASSWORD '{password}'"),
    )
    .await;
    let verifier =
        texts(connection, "SELECT rolpassword FROM pg_authid WHERE rolname = 'maker'").await.remove(0);
    run(connection, "DROP ROLE maker").await;
    verifier
}

async fn md5(connection: &Connection, password: &str, role: &str) -> String {
    let row = connection.client().query_one("SELECT md5($1 || $2)", &[&password, &role]).await;
    row.unwrap().get(0)
}

/// A login over TCP with a password, as a client of the compute does it.
async fn login(server: &Server, user: &str, password: &str, database: &str) -> Result<String, String> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(server.port()).user(user).password(password).dbname(database);
    let (client, connection) = config
        .connect(NoTls)
        .await
        .map_err(|error| error.code().map_or("none", |code| code.code()).to_owned())?;
    let driver = tokio::spawn(connection);
    let who: String = client.query_one("SELECT current_user::text", &[]).await.unwrap().get(0);
    drop(client);
    driver.await.unwrap().unwrap();
    Ok(who)
}

#[tokio::test]
async fn a_fresh_cluster_gets_roles_that_can_log_in() {
    let server = Server::start("");
    let connection = session(&server).await;
    let spec = spec(
        json!([
            { "name": "alice", "encrypted_password": scram(&connection, "wonder land'\\").await },
            { "name": "legacy", "encrypted_password": md5(&connection, "old", "legacy").await },
            { "name": "locked", "encrypted_password": null,
              "options": [{ "name": "CONNECTION LIMIT", "value": "7", "vartype": "integer" }] },
        ]),
        json!([
            { "name": "appdb", "owner": "alice", "options": [
                { "name": "TEMPLATE", "value": "template0", "vartype": "enum" },
                { "name": "LC_COLLATE", "value": "C", "vartype": "string" } ] },
            { "name": "second", "owner": "legacy" },
        ]),
        Value::Null,
    );
    let applied = settle(&connection, &spec).await;
    assert_eq!(applied.steps, 13);

    let role = connection
        .client()
        .query_one(
            "SELECT rolsuper, rolcanlogin, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, \
             (SELECT string_agg(r.rolname, ',' ORDER BY r.rolname) FROM pg_auth_members m \
              JOIN pg_authid r ON r.oid = m.roleid WHERE m.member = p.oid) \
             FROM pg_authid p WHERE rolname = 'neon_superuser'",
            &[],
        )
        .await
        .unwrap();
    let flags: Vec<bool> = (0..6).map(|column| role.get(column)).collect();
    assert_eq!(flags, [false, false, true, true, true, true]);
    assert_eq!(role.get::<_, String>(6), "pg_monitor,pg_read_all_data,pg_signal_backend,pg_write_all_data");

    assert_eq!(login(&server, "alice", "wonder land'\\", "appdb").await.as_deref(), Ok("alice"));
    assert_eq!(login(&server, "legacy", "old", "second").await.as_deref(), Ok("legacy"));
    assert_eq!(login(&server, "alice", "wrong", "appdb").await, Err("28P01".to_owned()));
    assert_eq!(login(&server, "locked", "", "postgres").await, Err("28P01".to_owned()));
    let members = "SELECT m.member::regrole::text FROM pg_auth_members m \
                   WHERE m.roleid = 'neon_superuser'::regrole ORDER BY 1";
    // The search path of these sessions is empty, and regrole does not depend on it.
    assert_eq!(texts(&connection, members).await, ["alice", "legacy", "locked"]);
    let limit = "SELECT rolconnlimit::text FROM pg_authid WHERE rolname = 'locked'";
    assert_eq!(texts(&connection, limit).await, ["7"]);
    let databases = "SELECT datname || ' ' || pg_get_userbyid(datdba) || ' ' || datcollate || ' ' || \
                     has_database_privilege('neon_superuser', oid, 'CREATE')::text \
                     FROM pg_database WHERE datname IN ('appdb', 'second') ORDER BY 1";
    assert_eq!(texts(&connection, databases).await, ["appdb alice C true", "second legacy C.UTF-8 true"]);
}

#[tokio::test]
async fn changes_follow_the_spec() {
    let server = Server::start("");
    let connection = session(&server).await;
    let first = spec(
        json!([
            { "name": "al", "encrypted_password": md5(&connection, "one", "al").await },
            { "name": "bo", "encrypted_password": scram(&connection, "two").await },
        ]),
        json!([{ "name": "app", "owner": "al" }, { "name": "other", "owner": "al" }]),
        Value::Null,
    );
    settle(&connection, &first).await;

    let second = spec(
        json!([
            { "name": "alice", "encrypted_password": md5(&connection, "three", "alice").await },
            { "name": "bo", "encrypted_password": null },
        ]),
        json!([{ "name": "appdb", "owner": "alice" }, { "name": "other", "owner": "bo" }]),
        json!([
            { "action": "rename_role", "name": "al", "new_name": "alice" },
            { "action": "rename_db", "name": "app", "new_name": "appdb" },
        ]),
    );
    settle(&connection, &second).await;
    assert_eq!(login(&server, "alice", "three", "appdb").await.as_deref(), Ok("alice"));
    assert_eq!(login(&server, "bo", "two", "other").await, Err("28P01".to_owned()));
    assert_eq!(login(&server, "al", "one", "other").await, Err("28P01".to_owned()));
    let owners = "SELECT datname || ' ' || pg_get_userbyid(datdba) FROM pg_database \
                  WHERE datname NOT LIKE 'template%' ORDER BY 1";
    assert_eq!(texts(&connection, owners).await, ["appdb alice", "other bo", &format!("postgres {ADMIN}")]);
}

#[tokio::test]
async fn deletions_cope_with_sessions_marks_slots_and_subscriptions() {
    let server = Server::start("wal_level = logical");
    let connection = session(&server).await;
    run(&connection, "CREATE DATABASE doomed").await;
    run(&connection, "CREATE DATABASE kept").await;
    let inside = session_in(&server, "doomed").await;
    run(
        &inside,
        "CREATE TABLE public.t (); CREATE SUBSCRIPTION \"sub 1\" CONNECTION 'dbname=nowhere' PUBLICATION p \
         WITH (connect = false, slot_name = 'theirs')",
    )
    .await;
    run(&inside, "SELECT pg_create_logical_replication_slot('ours', 'pgoutput')").await;
    run(&connection, "ALTER DATABASE doomed IS_TEMPLATE true").await;

    let spec = spec(
        json!([]),
        json!([]),
        json!([{ "action": "delete_db", "name": "doomed" }, { "action": "delete_db", "name": "never was" }]),
    );
    settle(&connection, &spec).await;
    let names = "SELECT datname::text FROM pg_database WHERE NOT datistemplate ORDER BY 1";
    assert_eq!(texts(&connection, names).await, ["kept", "postgres"]);
    assert!(inside.client().simple_query("SELECT 1").await.is_err(), "the session was ended");
}

#[tokio::test]
async fn an_active_slot_does_not_keep_a_database() {
    let server = Server::start("wal_level = logical");
    let connection = session(&server).await;
    run(&connection, "CREATE DATABASE doomed").await;
    let inside = session_in(&server, "doomed").await;
    run(&inside, "SELECT pg_create_logical_replication_slot('ours', 'test_decoding')").await;
    let mut receiver = command("pg_recvlogical");
    receiver
        .args(["-h", "127.0.0.1", "-p", &server.port().to_string(), "-U", "receiver", "-d", "doomed"])
        .args(["--slot", "ours", "--start", "--no-loop", "-f", "/dev/null"])
        .env("PGPASSWORD", "pw")
        .stderr(std::process::Stdio::null());
    run(&connection, "CREATE ROLE receiver SUPERUSER LOGIN PASSWORD 'pw'").await;
    let mut receiver = receiver.spawn().unwrap();
    let active = "SELECT active::text FROM pg_replication_slots WHERE slot_name = 'ours'";
    until(&connection, active, "true").await;
    let spec = spec(json!([]), json!([]), json!([{ "action": "delete_db", "name": "doomed" }]));
    settle(&connection, &spec).await;
    receiver.wait().unwrap();
}

#[tokio::test]
async fn a_deleted_role_leaves_its_objects_to_the_owner() {
    let server = Server::start("");
    let connection = session(&server).await;
    let before = spec(
        json!([{ "name": "owner" }, { "name": "it's \"gone\"" }, { "name": "helper" }, { "name": "heir" }]),
        json!([{ "name": "app", "owner": "owner" }, { "name": "handed", "owner": "it's \"gone\"" }]),
        Value::Null,
    );
    settle(&connection, &before).await;
    let app = session_in(&server, "app").await;
    run(
        &app,
        "CREATE SCHEMA \"S x\" AUTHORIZATION \"it's \"\"gone\"\"\";
         SET ROLE \"it's \"\"gone\"\"\"; CREATE TABLE \"S x\".mine (id int); RESET ROLE;
         CREATE TABLE public.theirs (id int, secret text); ALTER TABLE public.theirs OWNER TO owner;
         GRANT USAGE ON SCHEMA public TO helper;
         SET ROLE owner;
         GRANT ALL ON public.theirs TO helper WITH GRANT OPTION;
         SET ROLE helper;
         GRANT SELECT ON public.theirs TO \"it's \"\"gone\"\"\" WITH GRANT OPTION;
         GRANT UPDATE (secret) ON public.theirs TO \"it's \"\"gone\"\"\";
         SET ROLE \"it's \"\"gone\"\"\";
         GRANT SELECT ON public.theirs TO heir;
         RESET ROLE;
         ALTER DEFAULT PRIVILEGES FOR ROLE owner GRANT SELECT ON TABLES TO \"it's \"\"gone\"\"\"",
    )
    .await;
    run(&connection, "CREATE DATABASE unlisted OWNER \"it's \"\"gone\"\"\"").await;
    run(&connection, "GRANT CONNECT ON DATABASE app TO \"it's \"\"gone\"\"\"").await;

    let after = spec(
        json!([{ "name": "owner" }]),
        json!([{ "name": "app", "owner": "owner" }, { "name": "handed", "owner": "heir" }]),
        json!([{ "action": "delete_role", "name": "it's \"gone\"" }]),
    );
    settle(&connection, &after).await;
    let roles = "SELECT rolname::text FROM pg_roles WHERE rolname LIKE '%gone%'";
    assert!(texts(&connection, roles).await.is_empty());
    let owners = "SELECT relname || ' ' || pg_get_userbyid(relowner) FROM pg_class \
                  WHERE relname IN ('mine', 'theirs') ORDER BY 1";
    assert_eq!(texts(&app, owners).await, ["mine owner", "theirs owner"]);
    let databases = "SELECT datname || ' ' || pg_get_userbyid(datdba) FROM pg_database \
                     WHERE datname IN ('handed', 'unlisted') ORDER BY 1";
    assert_eq!(texts(&connection, databases).await, ["handed heir".to_owned(), format!("unlisted {ADMIN}")]);
}

/// Names that break careless quoting, and the longest there are.
fn hostile_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "select",
        "Mixed Case",
        "a\"b",
        "\"",
        "'",
        "it's",
        "back\\slash",
        "\\'",
        "E'x'",
        "$x$",
        "$revoke$",
        "a;b",
        "--",
        "/*",
        "line\nfeed",
        "tab\there",
        " lead",
        "trail ",
        "-c role=x",
        "%I %s",
        "{}",
        "ünïcode",
        "数据库",
        "🐘",
        "user",
        "public2",
        "a.b",
        "a,b",
        "\u{1}",
        "\r",
        "postgres'; DROP DATABASE postgres; --",
    ]
    .map(str::to_owned)
    .into();
    names.push("x".repeat(63));
    names.push("ä".repeat(31));
    names
}

#[tokio::test]
async fn hostile_names_are_ordinary_names() {
    let server = Server::start("");
    let connection = session(&server).await;
    let names = hostile_names();
    let verifier = scram(&connection, "pw").await;
    let roles: Vec<Value> =
        names.iter().map(|name| json!({ "name": name, "encrypted_password": verifier })).collect();
    // A few databases are enough: each costs a copy of a template.
    let databases: Vec<Value> =
        names.iter().step_by(4).map(|name| json!({ "name": name, "owner": name })).collect();
    settle(&connection, &spec(json!(roles), json!(databases), Value::Null)).await;

    let existing =
        Existing::read(&connection, &spec(json!([]), json!([]), Value::Null), &options()).await.unwrap();
    for name in &names {
        assert!(existing.roles.contains_key(name), "role {name:?}");
    }
    for name in names.iter().step_by(4) {
        assert_eq!(existing.databases[name].owner, *name);
    }
    assert_eq!(login(&server, "back\\slash", "pw", "postgres").await.as_deref(), Ok("back\\slash"));

    // All of it goes away again, with objects inside, and with sessions in databases of such names.
    for name in names.iter().step_by(4) {
        let inside = session_in(&server, name).await;
        let role = quote::identifier(name).unwrap();
        run(&inside, &format!("CREATE TABLE public.t (); ALTER TABLE public.t OWNER TO {role}")).await;
    }
    let kept = names[0].clone();
    let deltas: Vec<Value> = names
        .iter()
        .map(|name| json!({ "action": "delete_role", "name": name }))
        .chain(
            names
                .iter()
                .filter(|name| **name != kept)
                .map(|name| json!({ "action": "delete_db", "name": name })),
        )
        .collect();
    let databases = json!([{ "name": kept, "owner": ADMIN }]);
    settle(&connection, &spec(json!([]), databases, json!(deltas))).await;
    let left =
        Existing::read(&connection, &spec(json!([]), json!([]), Value::Null), &options()).await.unwrap();
    assert!(names.iter().all(|name| !left.roles.contains_key(name)));
    let databases: Vec<_> = left.databases.keys().map(String::as_str).collect();
    assert_eq!(databases, ["postgres", "select", "template0", "template1"]);
}

#[tokio::test]
async fn what_we_quote_the_server_reads_back() {
    let server = Server::start("");
    let connection = session(&server).await;
    let mut runner = TestRunner::deterministic();
    let strategy = proptest::collection::vec("([^\0]|['\"\\\\]){1,15}", 300);
    let mut values = strategy.new_tree(&mut runner).unwrap().current();
    values.extend(hostile_names());
    for conforming in ["on", "off"] {
        run(&connection, &format!("SET standard_conforming_strings = {conforming}")).await;
        run(&connection, "SET escape_string_warning = off").await;
        for batch in values.chunks(50) {
            let columns: Vec<String> = batch
                .iter()
                .map(|value| {
                    format!("{} AS {}", quote::literal(value).unwrap(), quote::identifier("c").unwrap())
                })
                .collect();
            let row =
                connection.client().query_one(&format!("SELECT {}", columns.join(", ")), &[]).await.unwrap();
            for (column, value) in batch.iter().enumerate() {
                assert_eq!(row.get::<_, String>(column), *value);
            }
        }
    }
    let names: Vec<&String> = values.iter().filter(|value| value.len() <= quote::MAX_NAME).collect();
    for batch in names.chunks(50) {
        let columns: Vec<String> =
            batch.iter().map(|name| format!("1 AS {}", quote::identifier(name).unwrap())).collect();
        let row =
            connection.client().query_one(&format!("SELECT {}", columns.join(", ")), &[]).await.unwrap();
        for (column, name) in batch.iter().enumerate() {
            assert_eq!(row.columns()[column].name(), name.as_str());
        }
    }
}

#[tokio::test]
async fn an_interrupted_apply_is_completed_by_the_next() {
    let server = Server::start("");
    let connection = session(&server).await;
    let setup = spec(
        json!([{ "name": "old" }, { "name": "bye" }]),
        json!([{ "name": "was", "owner": "old" }, { "name": "drop", "owner": "old" }]),
        Value::Null,
    );
    let goal = spec(
        json!([{ "name": "new", "encrypted_password": md5(&connection, "pw", "new").await }, { "name": "more" }]),
        json!([{ "name": "is", "owner": "new" }, { "name": "fresh", "owner": "more" }]),
        json!([
            { "action": "rename_role", "name": "old", "new_name": "new" },
            { "action": "rename_db", "name": "was", "new_name": "is" },
            { "action": "delete_db", "name": "drop" },
            { "action": "delete_role", "name": "bye" },
        ]),
    );
    let reset = spec(
        json!([]),
        json!([]),
        json!([
            { "action": "delete_db", "name": "is" }, { "action": "delete_db", "name": "was" },
            { "action": "delete_db", "name": "drop" }, { "action": "delete_db", "name": "fresh" },
            { "action": "delete_role", "name": "old" }, { "action": "delete_role", "name": "new" },
            { "action": "delete_role", "name": "more" }, { "action": "delete_role", "name": "bye" },
        ]),
    );
    let token = CancellationToken::new();
    let mut done = 0;
    let mut results = Vec::new();
    loop {
        settle(&connection, &setup).await;
        let existing = Existing::read(&connection, &goal, &options()).await.unwrap();
        let whole = plan(&existing, &goal, &options()).unwrap();
        let part = Plan::new(whole.steps()[..done].to_vec(), Vec::new()).unwrap();
        execute(&connection, &part, &options(), &token).await.unwrap();
        settle(&connection, &goal).await;
        let mut result = Existing::read(&connection, &goal, &options()).await.unwrap();
        result.roles.remove("maker");
        results.push(result);
        settle(&connection, &reset).await;
        if done == whole.steps().len() {
            break;
        }
        done += 1;
    }
    assert!(done > 5, "the plan has several places to stop at");
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "wherever it stopped, the end is the same");
}

#[tokio::test]
async fn a_failing_transaction_names_the_step_and_leaves_nothing() {
    let server = Server::start("");
    let connection = session(&server).await;
    let bad = json!([{ "name": "NO SUCH OPTION", "value": null, "vartype": "bool" }]);
    let spec = spec(
        json!([{ "name": "a" }, { "name": "b", "options": bad }, { "name": "c" }]),
        json!([]),
        json!([]),
    );
    let error = apply(&connection, &spec).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42601"));
    assert_eq!(
        error.to_string(),
        "cannot create role \"b\" in \"neon_superuser\" (in database \"postgres\") (SQLSTATE 42601)"
    );
    let roles = "SELECT rolname::text FROM pg_roles WHERE rolname IN ('a', 'b', 'c', 'neon_superuser')";
    assert!(texts(&connection, roles).await.is_empty(), "the transaction was rolled back");
}

#[tokio::test]
async fn whichever_of_many_statements_fails_its_step_is_named() {
    let server = Server::start("");
    let postgres = session(&server).await;
    run(&postgres, "CREATE ROLE taken").await;
    run(&postgres, "CREATE DATABASE latin ENCODING 'latin1' LOCALE 'C' TEMPLATE template0").await;
    // Names outside of its encoding cannot even be said to it.
    let connection = session_in(&server, "latin").await;
    let create = |name: &str| Step::CreateRole {
        name: name.to_owned(),
        attributes: RoleAttributes::default(),
        verifier: None,
    };
    let mut attributes = RoleAttributes::default();
    attributes.others.push(GenericOption {
        name: "NO SUCH OPTION".to_owned(),
        value: None,
        vartype: "bool".to_owned(),
    });
    let odd = Step::CreateRole { name: "odd".to_owned(), attributes, verifier: None };
    let (options, token) = (options(), CancellationToken::new());
    let (batch, all) = (limits::CATALOG_BATCH, limits::CATALOG_BATCH * 3 / 2);
    for at in [0, 1, batch - 2, batch - 1, batch, all - 1] {
        for (bad, name, code) in [
            (create("taken"), "taken", "42710"),
            (odd.clone(), "odd", "42601"),
            (create("数"), "数", "22P05"),
        ] {
            let mut steps: Vec<Step> = (0..all).map(|number| create(&format!("r{number}"))).collect();
            steps[at] = bad;
            let plan = Plan::new(steps, Vec::new()).unwrap();
            let error = execute(&connection, &plan, &options, &token).await.unwrap_err();
            assert_eq!(error.sqlstate(), Some(code), "{error}");
            assert!(error.to_string().contains(&format!("create plain role {name:?}")), "{at}: {error}");
            let left = "SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'r%' OR rolname = 'odd'";
            assert!(texts(&connection, left).await.is_empty(), "the transaction was rolled back");
        }
    }
}

#[tokio::test]
async fn the_impossible_touches_nothing() {
    let server = Server::start("");
    let connection = session(&server).await;
    let spec = spec(json!([{ "name": "a" }]), json!([{ "name": "d", "owner": "nobody" }]), json!([]));
    assert!(matches!(apply(&connection, &spec).await, Err(ApplyError::Plan(_))));
    let roles = "SELECT rolname::text FROM pg_roles WHERE rolname IN ('a', 'neon_superuser')";
    assert!(texts(&connection, roles).await.is_empty());
}

#[tokio::test]
async fn a_cancelled_apply_ends_and_can_be_repeated() {
    let server = Server::start("");
    let connection = session(&server).await;
    let blocker = session(&server).await;
    let spec = spec(json!([{ "name": "a" }]), json!([]), json!([]));
    // Whoever wants to create a role waits for this lock.
    run(&blocker, "BEGIN; LOCK TABLE pg_catalog.pg_authid IN SHARE ROW EXCLUSIVE MODE").await;
    let (token, options) = (CancellationToken::new(), options());
    let waiting = "SELECT count(*)::text FROM pg_locks WHERE NOT granted AND relation = 'pg_catalog.pg_authid'::regclass";
    let cancel = async {
        until(&blocker, waiting, "1").await;
        token.cancel();
    };
    let (result, ()) = tokio::join!(catalog::apply(&connection, &spec, &options, &token), cancel);
    assert!(matches!(result, Err(ApplyError::Cancelled)));
    // The request to cancel has ended the statement, so that nothing waits for the lock any more.
    until(&blocker, waiting, "0").await;
    run(&blocker, "ROLLBACK").await;
    settle(&session(&server).await, &spec).await;
}

#[tokio::test]
async fn an_abandoned_session_does_not_go_on_waiting() {
    let server = Server::start("");
    let blocker = session(&server).await;
    let patient = Secret::new(format!("{} options='-c lock_timeout=0'", server.connstr("postgres").reveal()));
    let settings = ConnectionSettings::new(&patient, Profile::Standard).unwrap();
    let connection = catalog::connect(&settings).await.unwrap();
    let spec = spec(json!([{ "name": "a" }]), json!([]), json!([]));
    run(&blocker, "BEGIN; LOCK TABLE pg_catalog.pg_authid IN SHARE ROW EXCLUSIVE MODE").await;
    let waiting = "SELECT count(*)::text FROM pg_locks WHERE NOT granted AND relation = 'pg_catalog.pg_authid'::regclass";
    let (token, options) = (CancellationToken::new(), options());
    tokio::select! {
        result = catalog::apply(&connection, &spec, &options, &token) => panic!("it waits: {result:?}"),
        () = until(&blocker, waiting, "1") => {}
    }
    // As when the process is killed: nobody says good-bye.
    drop(connection);
    until(&blocker, waiting, "0").await;
}

#[tokio::test]
async fn refused_logins_are_typed_and_user_settings_do_not_disturb() {
    let server = Server::start("");
    let connection = session(&server).await;
    run(
        &connection,
        "ALTER DATABASE postgres SET default_transaction_read_only = on;
         ALTER DATABASE postgres SET search_path = 'nowhere'; ALTER DATABASE postgres SET statement_timeout = 1;
         ALTER DATABASE postgres SET standard_conforming_strings = off",
    )
    .await;
    let again = session(&server).await;
    settle(&again, &spec(json!([{ "name": "a\\'b" }]), json!([]), json!([]))).await;
    assert_eq!(texts(&again, "SHOW search_path").await, [""]);
    assert_eq!(texts(&again, "SHOW application_name").await, ["compute_ctl:apply_config"]);

    let wrong = format!("postgresql://a:hunter2@127.0.0.1:{}/postgres", server.port());
    let settings = ConnectionSettings::new(&Secret::new(wrong), Profile::Standard).unwrap();
    let error = catalog::connect(&settings).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("28P01"));
    assert!(!format!("{error:?} {error}").contains("hunter2"));
    let missing = ConnectionSettings::new(&server.connstr("no such"), Profile::Standard).unwrap();
    let error = catalog::connect(&missing).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("3D000"));
    assert!(matches!(error, ConnectError::Failed { database, .. } if database == "no such"));
}
