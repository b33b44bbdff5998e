//! The HTTP face, row by row of the reference (http-api, sections 1 to 7): codes, bodies and headers, in process
//! where only routing matters and over real sockets elsewhere, above the real engine and a world without
//! PostgreSQL.

#[path = "../support/http.rs"]
mod support;

mod figures;
mod golden;
mod if_idle;
mod lifecycle;
mod live;
mod neighbours;
mod openapi;
mod postgres;
mod probes;
mod promotion;
mod requests;

use compute_states::Event;
use support::{Node, request, token};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Good bodies of the routes that change something in Postgres.
const GRANT: &str = r#"{"database":"neondb","schema":"auth","privileges":["USAGE"],"role":"r"}"#;
const EXTENSION: &str = r#"{"extension":"pg_session_jwt","database":"neondb","version":"0.3.1"}"#;

/// Sends a POST to the external server, and does not wait for the answer.
async fn begin(node: &Node, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(node.external).await.expect("the server listens");
    stream.write_all(&request("POST", path, &token(), body)).await.expect("the server reads");
    stream
}

/// Termination requests the engine has handled.
async fn terminations(node: &Node) -> usize {
    let recording = node.engine.recording().await.expect("the engine lives");
    let asked = |event: &Event| matches!(event, Event::TerminateRequested { .. });
    recording.entries.iter().filter(|entry| asked(&entry.event)).count()
}

async fn refreshes(node: &Node) -> u64 {
    let metrics = node.get("/metrics").await;
    let line =
        metrics.body.lines().find_map(|line| line.strip_prefix("pg_cctl_pagestream_request_errors_total "));
    line.and_then(|count| count.parse().ok()).expect("it is there from the first scrape")
}
