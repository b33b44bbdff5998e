//! The schema dump.

use std::fs;

use compute_ctl::limits;
use compute_ctl::secret::Secret;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::http::{Answer, Node, read};
use crate::pg::{self, ADMIN, Server};
use crate::processes::{self, Process};
use crate::{
    DEADLINE, ERROR, HOSTILE, begin, encoded, node, node_at, quoted, run, session, unchunked, until,
};

async fn dump(node: &Node, database: &str) -> Answer {
    node.get(&format!("/database_schema?database={}", encoded(database))).await
}

/// The `pg_dump` of this process that dumps this database, once there is one.
async fn pg_dump(database: &str) -> Process {
    let me = i32::try_from(std::process::id()).unwrap();
    let variable = format!("PGDATABASE={database}");
    let dumps = |process: &Process| {
        let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        process.name == "pg_dump"
            && environment.split(|byte| *byte == 0).any(|one| one == variable.as_bytes())
    };
    eventually(|| processes::children(me).into_iter().find(dumps)).await
}

async fn gone(process: &Process) {
    eventually(|| (!process.exists()).then_some(())).await;
}

async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(tokio::time::Instant::now() < end, "it never happened");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// A schema that is larger than all buffers between the server and a client together.
async fn with_large_schema(server: &Server, database: &str) {
    let admin = session(server, "postgres").await;
    run(&admin, &format!("CREATE DATABASE {}", quoted(database))).await;
    let inside = session(server, database).await;
    run(
        &inside,
        "DO $$ BEGIN FOR i IN 1..64 LOOP EXECUTE format('CREATE FUNCTION public.f%s() RETURNS text LANGUAGE sql \
         AS %L', i, 'SELECT ''' || repeat('x', 1 << 20) || ''''); END LOOP; END $$",
    )
    .await;
}

#[tokio::test]
async fn a_schema_is_sql_under_the_label_of_json() {
    let server = Server::start("");
    let admin = session(&server, "postgres").await;
    run(&admin, "CREATE ROLE powerless").await;
    let node = node(&server).await;
    for (number, name) in HOSTILE.iter().enumerate() {
        run(&admin, &format!("CREATE DATABASE {}", quoted(name))).await;
        // What its owner sets does not matter.
        run(&admin, &format!("ALTER DATABASE {} SET role = powerless", quoted(name))).await;
        let inside = session(&server, name).await;
        run(&inside, &format!("CREATE TABLE public.t{number} AS SELECT 'data' AS d")).await;
        let answer = dump(&node, name).await;
        assert_eq!(
            (answer.status.as_str(), answer.header("content-type")),
            ("200 OK", Some("application/json")),
            "{name}: {answer:?}"
        );
        assert!(answer.header("date").is_some() && answer.header("x-request-id").is_some(), "{answer:?}");
        let (sql, whole) = unchunked(&answer);
        assert!(whole, "{answer:?}");
        assert!(sql.contains("-- PostgreSQL database dump\n"), "{sql}");
        assert!(sql.contains(&format!("CREATE TABLE public.t{number} (")), "{sql}");
        assert!(!sql.contains("data\n") && sql.contains("-- PostgreSQL database dump complete"), "{sql}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_schema_that_cannot_be_had_is_told() {
    let server = Server::start("");
    let admin = session(&server, "postgres").await;
    let node = node(&server).await;
    let longest = HOSTILE.last().unwrap();
    assert_eq!(longest.len(), 63);
    run(&admin, &format!("CREATE DATABASE {}", quoted(longest))).await;
    let longer = format!("{longest}x");
    for name in ["nowhere", "", "dbname=postgres", "postgresql:///postgres", "POSTGRES", &longer] {
        dump(&node, name).await.assert_error("404 Not Found", "database does not exist");
    }
    // It is there, whatever it is called and why ever it cannot be read.
    run(&admin, "CREATE DATABASE \"x does not exist\" ALLOW_CONNECTIONS false").await;
    let failed = "failed to execute pg_dump";
    dump(&node, "x does not exist").await.assert_error(ERROR, failed);
    node.stop().await;

    let node = node_at(&server.connstr("postgres"), "/nonexistent/pg_dump".into()).await;
    dump(&node, "postgres").await.assert_error(ERROR, failed);
    node.stop().await;
    let node = node_at(&Secret::new(format!("user={ADMIN}")), pg::program("pg_dump")).await;
    dump(&node, "postgres").await.assert_error(ERROR, "unexpected I/O error");
    node.stop().await;
}

#[tokio::test]
async fn the_password_reaches_pg_dump_and_nobody_else() {
    let server = Server::start("");
    let admin = session(&server, "postgres").await;
    run(&admin, "ALTER ROLE cloud_admin PASSWORD 'hunter2 '' = \\'").await;
    run(&admin, "CREATE DATABASE locked").await;
    let locker = session(&server, "locked").await;
    run(&locker, "CREATE TABLE public.t ()").await;
    run(&locker, "BEGIN; LOCK TABLE public.t").await;
    let url = |password: &str| {
        let port = server.port();
        Secret::new(format!("postgresql://{ADMIN}:{password}@127.0.0.1:{port}/postgres"))
    };
    let node = node_at(&url(&encoded("hunter2 ' = \\")), pg::program("pg_dump")).await;
    let mut waiting = begin(node.external, "GET", "/database_schema?database=locked", "").await;
    let process = pg_dump("locked").await;
    until(&admin, &format!("{SESSIONS} AND wait_event_type = 'Lock'"), "1").await;
    let arguments = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap();
    let arguments = String::from_utf8(arguments).unwrap();
    assert!(arguments.ends_with("pg_dump\0--schema-only\0--no-password\0"), "{arguments:?}");
    run(&locker, "COMMIT").await;
    let (sql, whole) = unchunked(&read(&mut waiting).await);
    assert!(whole && sql.contains("CREATE TABLE public.t ("), "{sql}");
    node.stop().await;

    let node = node_at(&url("guessed"), pg::program("pg_dump")).await;
    dump(&node, "postgres").await.assert_error(ERROR, "failed to execute pg_dump");
    node.stop().await;
}

/// Reads until the answer has begun, and not further.
async fn begun(client: &mut TcpStream) {
    let mut head = [0; 12];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
}

const SESSIONS: &str = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name = 'pg_dump'";

#[tokio::test]
async fn a_dump_ends_with_its_client() {
    let server = Server::start("");
    let admin = session(&server, "postgres").await;
    let node = node(&server).await;
    // Before the first piece: it waits for a lock.
    run(&admin, "CREATE DATABASE \"gone before\"").await;
    let locker = session(&server, "gone before").await;
    run(&locker, "CREATE TABLE public.t ()").await;
    run(&locker, "BEGIN; LOCK TABLE public.t").await;
    let client = begin(node.external, "GET", "/database_schema?database=gone+before", "").await;
    let process = pg_dump("gone before").await;
    until(&admin, &format!("{SESSIONS} AND wait_event_type = 'Lock'"), "1").await;
    drop(client);
    gone(&process).await;
    // The lock it waited for is still held, and yet nobody waits for it any more.
    until(&admin, SESSIONS, "0").await;

    // In the midst of it.
    with_large_schema(&server, "gone amid").await;
    let mut client = begin(node.external, "GET", "/database_schema?database=gone+amid", "").await;
    begun(&mut client).await;
    let process = pg_dump("gone amid").await;
    drop(client);
    gone(&process).await;
    until(&admin, SESSIONS, "0").await;
    node.stop().await;
}

#[tokio::test]
async fn a_dump_that_breaks_off_has_no_end() {
    let server = Server::start("");
    with_large_schema(&server, "broken").await;
    let node = node(&server).await;
    let mut client = begin(node.external, "GET", "/database_schema?database=broken", "").await;
    begun(&mut client).await;
    pg_dump("broken").await.signal(nix::sys::signal::Signal::SIGKILL);
    let mut rest = b"HTTP/1.1 200".to_vec();
    client.read_to_end(&mut rest).await.unwrap();
    let (sql, whole) = unchunked(&Answer::parse(&rest));
    assert!(!whole && sql.contains("-- PostgreSQL database dump"), "{} bytes", sql.len());
    node.stop().await;
}

#[tokio::test]
async fn only_some_dumps_are_made_at_once() {
    let server = Server::start("");
    let admin = session(&server, "postgres").await;
    run(&admin, "CREATE DATABASE many").await;
    let locker = session(&server, "many").await;
    run(&locker, "CREATE TABLE public.t ()").await;
    run(&locker, "BEGIN; LOCK TABLE public.t").await;
    let node = node(&server).await;
    let mut waiting = Vec::new();
    for _ in 0..limits::SCHEMA_DUMPS {
        waiting.push(begin(node.external, "GET", "/database_schema?database=many", "").await);
    }
    until(&admin, SESSIONS, &limits::SCHEMA_DUMPS.to_string()).await;
    let answer = dump(&node, "postgres").await;
    answer.assert_error("503 Service Unavailable", "too many requests are waiting");
    assert_eq!(answer.header("retry-after"), Some("1"));
    run(&locker, "COMMIT").await;
    for client in &mut waiting {
        assert!(unchunked(&read(client).await).1);
    }
    node.stop().await;
}
