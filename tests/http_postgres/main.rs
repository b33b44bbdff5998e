//! The routes that work with Postgres, row by row of the reference (http-api, sections 4 and 10), on a real server.

// Helpers here are test code as well, though the lint sees that of `#[test]` functions only.
#![allow(clippy::unwrap_used)]

mod changes;
#[path = "../support/http.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod http;
#[path = "../support/pg.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod pg;
#[path = "../support/processes.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod processes;
mod reading;
mod schema;

use std::path::PathBuf;
use std::time::Duration;

use compute_ctl::catalog::{self, Connection, ConnectionSettings, Profile, Requests};
use compute_ctl::secret::Secret;
use compute_states::Policy;
use http::{Answer, Node, request, token, tokens};
use pg::Server;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const ERROR: &str = "500 Internal Server Error";

/// Names that no quoting must fall for; the last one is as long as a name can be.
const HOSTILE: [&str; 8] = [
    "plain",
    "q\"uo'te",
    "back\\slash",
    "a=b host=c",
    "postgresql://nowhere/x",
    "per%cent%20",
    "données 🐘\n--",
    "ü2345678901234567890123456789012345678901234567890123456789012",
];

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(60);

fn settings(connstr: &Secret) -> ConnectionSettings {
    ConnectionSettings::new(connstr, Profile::Standard).unwrap()
}

/// A running node over whatever this leads to.
async fn node_at(connstr: &Secret, pg_dump: PathBuf) -> Node {
    let requests = Requests::new(settings(connstr), pg_dump, "neon_superuser".to_owned());
    let node = Node::over(requests, Policy::default(), tokens()).await;
    node.configured().await;
    node
}

/// A running node over a server.
async fn node(server: &Server) -> Node {
    node_at(&server.connstr("postgres"), pg::program("pg_dump")).await
}

async fn session(server: &Server, database: &str) -> Connection {
    catalog::connect(&settings(&server.connstr(database))).await.unwrap()
}

async fn run(session: &Connection, sql: &str) {
    session.client().batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

async fn text(session: &Connection, sql: &str) -> String {
    let row = session.client().query_one(sql, &[]).await;
    row.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// Asks until the answer is this one. The only place here that waits, for what only the server can tell.
async fn until(session: &Connection, sql: &str, expected: &str) {
    let end = tokio::time::Instant::now() + DEADLINE;
    let mut seen = text(session, sql).await;
    while seen != expected {
        assert!(tokio::time::Instant::now() < end, "{sql}: {seen}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        seen = text(session, sql).await;
    }
}

fn quoted(name: &str) -> String {
    catalog::quote::identifier(name).unwrap()
}

fn encoded(name: &str) -> String {
    name.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Sends a request, and does not wait for the answer.
async fn begin(to: std::net::SocketAddr, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(&request(method, path, &token(), body)).await.unwrap();
    stream
}

/// A body that came in chunks, and whether the mark of its end came.
fn unchunked(answer: &Answer) -> (String, bool) {
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"), "{answer:?}");
    let (mut body, mut rest) = (Vec::new(), answer.body.as_bytes());
    while let Some(end) = rest.windows(2).position(|bytes| bytes == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return (String::from_utf8(body).unwrap(), true);
        }
        let chunk = &rest[end + 2..];
        body.extend_from_slice(&chunk[..length.min(chunk.len())]);
        rest = chunk.get(length + 2..).unwrap_or_default();
    }
    (String::from_utf8(body).unwrap(), false)
}
