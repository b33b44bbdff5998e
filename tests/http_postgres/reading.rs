//! Lists, insights, writability.

use serde_json::{Value, json};

use crate::http::Node;
use crate::pg::{ADMIN, Server};
use crate::{ERROR, HOSTILE, node, quoted, run, session, text};

#[tokio::test]
async fn all_roles_and_databases_are_listed() {
    let server = Server::start("");
    let admin = session(&server, "postgres").await;
    run(&admin, "SET password_encryption = 'md5'").await;
    for name in HOSTILE {
        run(&admin, &format!("CREATE ROLE {} PASSWORD 'x'", quoted(name))).await;
        run(&admin, &format!("CREATE DATABASE {0} OWNER {0} TEMPLATE template0", quoted(name))).await;
    }
    run(&admin, "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'plain'").await;
    let node = node(&server).await;
    let answer = node.get("/dbs_and_roles").await;
    assert_eq!((answer.status.as_str(), answer.header("content-type")), ("200 OK", Some("application/json")));
    answer.assert_common();

    // The format, byte for byte.
    let verifier = text(&admin, "SELECT rolpassword FROM pg_authid WHERE rolname = 'plain'").await;
    for part in [
        format!(r#"{{"roles":[{{"name":"{ADMIN}","encrypted_password":null,"options":null}},"#),
        format!(r#"{{"name":"plain","encrypted_password":"{verifier}","options":null}}"#),
        format!(
            r#"],"databases":[{{"name":"template1","owner":"{ADMIN}","options":null,"restrict_conn":false,"invalid":false}},"#
        ),
        format!(
            r#"{{"name":"template0","owner":"{ADMIN}","options":null,"restrict_conn":true,"invalid":false}}"#
        ),
        r#"{"name":"plain","owner":"plain","options":null,"restrict_conn":false,"invalid":true}"#.to_owned(),
    ] {
        assert!(answer.body.contains(&part), "{part} in {}", answer.body);
    }

    // Everything is there, and under its name.
    let body = answer.json();
    for (list, catalog) in [("roles", "pg_authid"), ("databases", "pg_database")] {
        let count = text(&admin, &format!("SELECT count(*)::text FROM {catalog}")).await;
        assert_eq!(body[list].as_array().unwrap().len().to_string(), count);
        let names: Vec<_> = body[list].as_array().unwrap().iter().map(|entry| &entry["name"]).collect();
        for name in HOSTILE {
            assert!(names.contains(&&json!(name)), "{name} in {names:?}");
        }
    }
    let owners = body["databases"].as_array().unwrap().iter();
    for database in owners.filter(|database| database["name"].as_str().is_some_and(|n| HOSTILE.contains(&n)))
    {
        assert_eq!(database["owner"], database["name"]);
    }
    node.stop().await;
}

/// The object in the string which is the body.
async fn insights(node: &Node) -> Value {
    let answer = node.get("/insights").await;
    assert_eq!(answer.status, "200 OK", "{answer:?}");
    let inner = answer.json();
    serde_json::from_str(inner.as_str().expect("a JSON string")).expect("a string of JSON")
}

#[tokio::test]
async fn insights_are_a_string_with_the_slowest_statements_of_others() {
    let server = Server::start("shared_preload_libraries = 'pg_stat_statements'");
    let node = node(&server).await;
    let none = r#""{\"pg_stat_statements\": []}""#;
    // There is no such view yet, and then there is nothing in it.
    node.get("/insights").await.assert("200 OK", Some("application/json"), none);
    let admin = session(&server, "postgres").await;
    run(&admin, "CREATE EXTENSION pg_stat_statements WITH SCHEMA public; SELECT 'of the superuser'").await;
    node.get("/insights").await.assert("200 OK", Some("application/json"), none);

    // What sessions of ours do is not counted otherwise.
    run(&admin, "SET pg_stat_statements.track = 'top'").await;
    run(&admin, "CREATE ROLE somebody SUPERUSER; SET SESSION AUTHORIZATION somebody").await;
    run(&admin, "SELECT count(*) AS \"qu\"\"ote\\d\" FROM generate_series(1, 300000)").await;
    for columns in 1..=110 {
        run(&admin, &format!("SELECT 1{}", ", 1".repeat(columns))).await;
    }
    let found = insights(&node).await;
    let rows = found["pg_stat_statements"].as_array().expect("a list");
    assert_eq!(rows.len(), 100);
    let somebody = text(&admin, "SELECT oid::text FROM pg_authid WHERE rolname = 'somebody'").await;
    assert!(rows.iter().all(|row| row["userid"] == somebody), "{somebody}");
    let slowest = rows[0]["query"].as_str().expect("text");
    assert!(slowest.contains("AS \"qu\"\"ote\\d\""), "{slowest}");
    let mean =
        |row: &Value| row["mean_exec_time"].as_f64().unwrap() + row["mean_plan_time"].as_f64().unwrap();
    assert!(rows.is_sorted_by(|a, b| mean(a) >= mean(b)));
    let raw = node.get("/insights").await.body;
    assert!(
        raw.starts_with(&format!(r#""{{\"pg_stat_statements\": [{{\"userid\":\"{somebody}\",\"dbid\":"#)),
        "{raw}"
    );
    node.stop().await;
}

#[tokio::test]
async fn writability_is_one_row_with_the_time() {
    let server = Server::start("");
    let node = node(&server).await;
    let answer = node.post("/check_writability", "").await;
    answer.assert_error(ERROR, r#"db error: ERROR: relation "public.health_check" does not exist"#);

    let admin = session(&server, "postgres").await;
    run(
        &admin,
        "CREATE TABLE public.health_check (id int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \
         updated_at timestamptz DEFAULT now())",
    )
    .await;
    let row = "SELECT string_agg(id || ' ' || updated_at, ',') FROM public.health_check";
    let mut seen = vec![];
    for _ in 0..2 {
        let answer = node.post("/check_writability", "ignored").await;
        answer.assert("200 OK", Some("application/json"), "true");
        seen.push(text(&admin, row).await);
    }
    assert!(seen.iter().all(|seen| seen.starts_with("1 ") && !seen.contains(',')), "{seen:?}");
    assert_ne!(seen[0], seen[1]);

    // A full disk is writable, anything else is not. The answer has all that the server says.
    let fail = |code: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no' \
             USING ERRCODE = '{code}', DETAIL = 'really', HINT = 'give up'; END $$"
        )
    };
    run(&admin, &fail("53100")).await;
    run(
        &admin,
        // An ordinary trigger is not run for us.
        "CREATE TRIGGER t BEFORE INSERT ON public.health_check FOR EACH ROW EXECUTE FUNCTION public.fail();
         ALTER TABLE public.health_check ENABLE ALWAYS TRIGGER t",
    )
    .await;
    node.post("/check_writability", "").await.assert("200 OK", Some("application/json"), "true");
    assert_eq!(text(&admin, row).await, seen[1]);
    run(&admin, &fail("53000")).await;
    let answer = node.post("/check_writability", "").await;
    answer.assert_error(ERROR, "db error: ERROR: no\nDETAIL: really\nHINT: give up");
    node.stop().await;
}
