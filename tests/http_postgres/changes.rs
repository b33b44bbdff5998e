//! Grants and extensions.

use serde_json::json;

use crate::http::{Node, read};
use crate::pg::Server;
use crate::{ERROR, HOSTILE, begin, node, quoted, run, session, text, until};

fn grant(database: &str, schema: &str, privileges: &[&str], role: &str) -> String {
    let [database, schema, role] = [database, schema, role].map(|name| json!(name));
    let privileges = json!(privileges);
    format!(r#"{{"database":{database},"schema":{schema},"privileges":{privileges},"role":{role}}}"#)
}

fn extension(extension: &str, database: &str, version: &str) -> String {
    json!({"extension": extension, "database": database, "version": version}).to_string()
}

const GRANT_FAILED: &str = "failed to grant role privileges to the schema: db error: ERROR: ";

#[tokio::test]
async fn grants_add_what_is_missing_and_write_nothing_else() {
    let server = Server::start("");
    let admin = session(&server, "postgres").await;
    let node = node(&server).await;
    for name in HOSTILE {
        run(&admin, &format!("CREATE DATABASE {}", quoted(name))).await;
        run(&admin, &format!("CREATE ROLE {} LOGIN", quoted(name))).await;
        let inside = session(&server, name).await;
        run(&inside, &format!("CREATE SCHEMA {}", quoted(name))).await;
        let acl = "SELECT coalesce(nspacl::text, 'none') || xmin FROM pg_namespace WHERE nspname NOT LIKE 'pg%' \
                   AND nspname NOT IN ('public', 'information_schema')";
        let literal = compute_ctl::catalog::quote::literal(name).unwrap();
        let may = |privilege: &str| {
            format!("SELECT has_schema_privilege({literal}, {literal}, '{privilege}')::text")
        };
        assert_eq!(text(&inside, &may("USAGE")).await, "false");
        let body = grant(name, name, &["USAGE"], name);
        let answer = node.post_inside("/grants", &body).await;
        answer.assert("201 Created", Some("application/json"), &body);
        assert_eq!(text(&inside, &may("USAGE")).await, "true");
        assert_eq!(text(&inside, &may("CREATE")).await, "false");

        // Again: the row of the schema is not touched.
        let before = text(&inside, acl).await;
        node.post_inside("/grants", &body).await.assert("201 Created", Some("application/json"), &body);
        assert_eq!(text(&inside, acl).await, before);
        let more = grant(name, name, &["USAGE", "CREATE", "USAGE"], name);
        node.post_inside("/grants", &more).await.assert("201 Created", Some("application/json"), &more);
        assert_eq!(text(&inside, &may("CREATE")).await, "true");
        assert_ne!(text(&inside, acl).await, before);
    }
    // Everybody has this on that schema, and a role has it only if it was given it.
    for (privileges, role) in [(&["USAGE"][..], "plain"), (&[], "nobody")] {
        let answer = node.post_inside("/grants", &grant("postgres", "public", privileges, role)).await;
        assert_eq!(answer.status, "201 Created", "{answer:?}");
    }
    let acl = text(&admin, "SELECT nspacl::text FROM pg_namespace WHERE nspname = 'public'").await;
    assert!(acl.contains("plain=U/"), "{acl}");
    node.stop().await;
}

#[tokio::test]
async fn grants_that_fail_say_why() {
    let server = Server::start("");
    let admin = session(&server, "postgres").await;
    run(&admin, "CREATE ROLE r LOGIN; CREATE SCHEMA s").await;
    let node = node(&server).await;
    for (body, error) in [
        (grant("postgres", "s", &["USAGE"], "nobody"), "role \"nobody\" does not exist"),
        (grant("postgres", "nowhere", &["USAGE"], "r"), "schema \"nowhere\" does not exist"),
        (grant("postgres", "s", &["SELECT"], "r"), "invalid privilege type SELECT for schema"),
        (
            grant("postgres", "s\" TO r; DROP SCHEMA s; --", &["USAGE"], "r"),
            "schema \"s\" TO r; DROP SCHEMA s; --\" does not exist",
        ),
    ] {
        node.post_inside("/grants", &body).await.assert_error(ERROR, &format!("{GRANT_FAILED}{error}"));
    }
    let answer = node.post_inside("/grants", &grant("nowhere", "s", &["USAGE"], "r")).await;
    let error = "cannot connect to database \"nowhere\" (SQLSTATE 3D000)";
    answer.assert_error(ERROR, &format!("failed to grant role privileges to the schema: {error}"));
    node.stop().await;
}

#[tokio::test]
async fn on_a_standby_grants_succeed_if_they_are_in_place() {
    let primary = Server::start("");
    let admin = session(&primary, "postgres").await;
    run(&admin, "CREATE ROLE r LOGIN; CREATE SCHEMA s; GRANT USAGE ON SCHEMA s TO r").await;
    run(&admin, "CREATE TABLE public.health_check (id int PRIMARY KEY, updated_at timestamptz)").await;
    let standby = primary.standby();
    let node = node(&standby).await;
    let body = grant("postgres", "s", &["USAGE"], "r");
    node.post_inside("/grants", &body).await.assert("201 Created", Some("application/json"), &body);
    let answer = node.post_inside("/grants", &grant("postgres", "s", &["USAGE", "CREATE"], "r")).await;
    let error = "cannot execute GRANT in a read-only transaction";
    answer.assert_error(ERROR, &format!("{GRANT_FAILED}{error}"));
    let answer = node.post("/check_writability", "").await;
    answer.assert_error(ERROR, "db error: ERROR: cannot execute INSERT in a read-only transaction");
    let answer = node.get("/database_schema?database=postgres").await;
    assert!(crate::unchunked(&answer).0.contains("CREATE TABLE public.health_check"), "{answer:?}");
    node.stop().await;
}

/// Waits until the request waits for a lock of somebody else.
async fn until_blocked(server: &Server, application: &str) {
    let sql = format!(
        "SELECT count(*)::text FROM pg_stat_activity WHERE application_name = '{application}' \
         AND wait_event_type = 'Lock'"
    );
    until(&session(server, "postgres").await, &sql, "1").await;
}

const GRANTS: &str = "compute_ctl:set_role_grants";
const EXTENSIONS: &str = "compute_ctl:install_extension";

#[tokio::test]
async fn the_same_change_by_somebody_else_is_no_failure() {
    let server = Server::start("");
    let other = session(&server, "postgres").await;
    run(&other, "CREATE ROLE r LOGIN; CREATE ROLE q LOGIN; CREATE SCHEMA s").await;
    let node = node(&server).await;

    // The row is changed under the request's hands.
    run(&other, "BEGIN; GRANT USAGE ON SCHEMA s TO q").await;
    let body = grant("postgres", "s", &["USAGE"], "r");
    let mut waiting = begin(node.internal[0], "POST", "/grants", &body).await;
    until_blocked(&server, GRANTS).await;
    run(&other, "COMMIT").await;
    read(&mut waiting).await.assert("201 Created", Some("application/json"), &body);
    let acl = text(&other, "SELECT nspacl::text FROM pg_namespace WHERE nspname = 's'").await;
    assert!(acl.contains("r=U/") && acl.contains("q=U/"), "{acl}");

    run(&other, "BEGIN; CREATE EXTENSION citext WITH SCHEMA public VERSION '1.4'").await;
    let body = extension("citext", "postgres", "1.6");
    let mut waiting = begin(node.internal[0], "POST", "/extensions", &body).await;
    until_blocked(&server, EXTENSIONS).await;
    run(&other, "COMMIT").await;
    let body = r#"{"extension":"citext","version":"1.6"}"#;
    read(&mut waiting).await.assert("201 Created", Some("application/json"), body);
    assert_eq!(installed(&server, "postgres").await, "citext 1.6 public");
    node.stop().await;
}

#[tokio::test]
async fn a_change_ends_with_its_client() {
    let server = Server::start("");
    let other = session(&server, "postgres").await;
    run(&other, "CREATE ROLE r LOGIN; CREATE ROLE q LOGIN; CREATE SCHEMA s").await;
    let node = node(&server).await;
    run(&other, "BEGIN; GRANT USAGE ON SCHEMA s TO q").await;
    run(&other, "CREATE EXTENSION citext WITH SCHEMA public").await;
    for (path, body, application) in [
        ("/grants", grant("postgres", "s", &["USAGE"], "r"), GRANTS),
        ("/extensions", extension("citext", "postgres", "1.6"), EXTENSIONS),
    ] {
        let client = begin(node.internal[0], "POST", path, &body).await;
        until_blocked(&server, application).await;
        drop(client);
        let look = session(&server, "postgres").await;
        let sql =
            format!("SELECT count(*)::text FROM pg_stat_activity WHERE application_name = '{application}'");
        until(&look, &sql, "0").await;
    }
    run(&other, "ROLLBACK").await;
    let left = "SELECT (SELECT nspacl IS NULL FROM pg_namespace WHERE nspname = 's')::text || \
                (SELECT count(*) FROM pg_extension WHERE extname = 'citext')";
    assert_eq!(text(&other, left).await, "true0");
    node.stop().await;
}

async fn installed(server: &Server, database: &str) -> String {
    let sql = "SELECT coalesce(string_agg(extname || ' ' || extversion || ' ' || nspname, ','), '') \
               FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname <> 'plpgsql'";
    text(&session(server, database).await, sql).await
}

async fn install(node: &Node, body: &str, expected: &str) {
    node.post_inside("/extensions", body).await.assert("201 Created", Some("application/json"), expected);
}

#[tokio::test]
async fn extensions_are_created_kept_and_updated() {
    let server = Server::start("");
    let admin = session(&server, "postgres").await;
    let node = node(&server).await;
    for name in HOSTILE {
        run(&admin, &format!("CREATE DATABASE {}", quoted(name))).await;
        // What its owner sets does not matter.
        run(&admin, &format!("ALTER DATABASE {} SET search_path = 'pg_temp'", quoted(name))).await;
        install(&node, &extension("uuid-ossp", name, "1.1"), r#"{"extension":"uuid-ossp","version":"1.1"}"#)
            .await;
        assert_eq!(installed(&server, name).await, "uuid-ossp 1.1 public");
    }
    for version in ["1.4", "1.4", "1.5", "1.6"] {
        let expected = format!(r#"{{"extension":"citext","version":"{version}"}}"#);
        install(&node, &extension("citext", "postgres", version), &expected).await;
        assert_eq!(installed(&server, "postgres").await, format!("citext {version} public"));
    }
    node.stop().await;
}

#[tokio::test]
async fn extensions_that_fail_say_why() {
    let server = Server::start("");
    let node = node(&server).await;
    let failed = "failed to install extension: ";
    for (body, error) in [
        (extension("no such", "postgres", "1"), "db error: ERROR: extension \"no such\" is not available"),
        (
            extension("citext", "postgres", "77"),
            "db error: ERROR: extension \"citext\" has no installation script nor update path for version \"77\"",
        ),
        (
            extension("citext", "postgres", "1.6\"; CREATE ROLE evil; SELECT \""),
            "db error: ERROR: extension \"citext\" has no installation script nor update path for version \"1.6\";",
        ),
        (extension("citext", "nowhere", "1.6"), "cannot connect to database \"nowhere\" (SQLSTATE 3D000)"),
    ] {
        let answer = node.post_inside("/extensions", &body).await;
        assert_eq!(
            (answer.status.as_str(), answer.header("content-type")),
            (ERROR, Some("application/json"))
        );
        let text = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(text.starts_with(&format!("{failed}{error}")), "{text}");
    }
    let admin = session(&server, "postgres").await;
    assert_eq!(text(&admin, "SELECT count(*)::text FROM pg_roles WHERE rolname = 'evil'").await, "0");
    node.stop().await;
}
