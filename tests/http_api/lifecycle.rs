//! Every route in every state, and clients and servers that come and go.

use std::pin::Pin;

use compute_ctl::engine;
use compute_ctl::http;
use compute_ctl::limits;
use compute_states::{ComputeStatus, Event, Policy};
use hyper::body::Body as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::{Node, Part, Way, read, request, send, spec, token};
use crate::{EXTENSION, GRANT, begin, refreshes, terminations};

// ---- every route in every state -----------------------------------------------------------------------

/// A node in `status`, whatever it takes, and the requests that wait in it.
pub(crate) async fn in_status(status: ComputeStatus) -> (Node, Vec<TcpStream>) {
    let node = Node::empty().await;
    let mut waiting = Vec::new();
    match status {
        ComputeStatus::Empty => {}
        ComputeStatus::ConfigurationPending | ComputeStatus::Init => {
            let pending = status == ComputeStatus::ConfigurationPending;
            node.world.set(if pending { Part::Resolve } else { Part::Storage }, Way::Hang);
            waiting.push(begin(&node, "/configure", &spec(json!({}))).await);
        }
        _ => {
            node.configured().await;
            match status {
                ComputeStatus::Configuration => {
                    node.world.set(Part::Apply, Way::Hang);
                    waiting.push(begin(&node, "/configure", &spec(json!({}))).await);
                }
                ComputeStatus::RefreshConfigurationPending | ComputeStatus::RefreshConfiguration => {
                    let pending = status == ComputeStatus::RefreshConfigurationPending;
                    node.world.set(if pending { Part::Fetch } else { Part::Apply }, Way::Hang);
                    node.refresh().await.assert("200 OK", None, "");
                }
                ComputeStatus::Failed => {
                    node.world.set(Part::Apply, Way::Fail("refused"));
                    node.post("/configure", &spec(json!({}))).await;
                }
                ComputeStatus::TerminationPendingFast | ComputeStatus::TerminationPendingImmediate => {
                    let fast = status == ComputeStatus::TerminationPendingFast;
                    node.world.set(Part::Stop, Way::Hang);
                    let mode = if fast { "fast" } else { "immediate" };
                    waiting.push(begin(&node, &format!("/terminate?mode={mode}"), "").await);
                }
                ComputeStatus::Terminated => {
                    assert_eq!(node.post("/terminate", "").await.status, "200 OK");
                }
                _ => {}
            }
        }
    }
    node.reaches(status).await;
    (node, waiting)
}

#[tokio::test]
async fn refresh_in_every_state() {
    for status in ComputeStatus::ALL {
        let (node, waiting) = in_status(status).await;
        let before = refreshes(&node).await;
        // Only what is asked now may move it on.
        node.world.set(Part::Fetch, Way::Hang);
        let answer = node.refresh().await;
        match status {
            ComputeStatus::Init
            | ComputeStatus::Running
            | ComputeStatus::Failed
            | ComputeStatus::RefreshConfigurationPending => {
                answer.assert("200 OK", None, "");
                assert_eq!(answer.header("content-length"), Some("0"));
            }
            _ => answer.assert_error(
                "500 Internal Server Error",
                &format!("Cannot refresh compute configuration in state {}", status.name()),
            ),
        }
        assert_eq!(refreshes(&node).await, before + 1, "{status}");
        drop(waiting);
        node.world.set(Part::Stop, Way::Succeed);
        node.stop().await;
    }
}

#[tokio::test]
async fn configure_in_every_state() {
    for status in ComputeStatus::ALL {
        let (node, waiting) = in_status(status).await;
        let accepted =
            matches!(status, ComputeStatus::Empty | ComputeStatus::Running | ComputeStatus::Failed);
        if accepted {
            node.world.set(Part::Apply, Way::Succeed);
        }
        let answer = node.post("/configure", &spec(json!({}))).await;
        if accepted {
            assert_eq!(answer.status, "200 OK", "{status}: {answer:?}");
            assert_eq!(answer.json()["status"], "running");
        } else {
            answer.assert_error("412 Precondition Failed", &format!("invalid compute status: {status}"));
        }
        drop(waiting);
        node.world.set(Part::Stop, Way::Succeed);
        node.stop().await;
    }
}

#[tokio::test]
async fn terminate_in_every_state() {
    for status in ComputeStatus::ALL {
        let (node, waiting) = in_status(status).await;
        let mut answer = begin(&node, "/terminate", "").await;
        let pending = status == ComputeStatus::TerminationPendingFast
            || status == ComputeStatus::TerminationPendingImmediate;
        // It must have joined before the termination it joins may end.
        while pending && terminations(&node).await < 2 {
            tokio::task::yield_now().await;
        }
        node.world.set(Part::Stop, Way::Succeed);
        let answer = read(&mut answer).await;
        let code = if status == ComputeStatus::Terminated { "201 Created" } else { "200 OK" };
        answer.assert(code, Some("application/json"), r#"{"lsn":null}"#);
        drop(waiting);
        node.stop().await;
    }
}

#[tokio::test]
async fn what_needs_a_running_postgres_is_refused_in_every_other_state() {
    for status in ComputeStatus::ALL {
        let (node, waiting) = in_status(status).await;
        let answers = [
            node.get("/insights").await,
            node.post("/check_writability", "").await,
            node.post_inside("/grants", GRANT).await,
            node.post_inside("/extensions", EXTENSION).await,
        ];
        for answer in answers {
            if status == ComputeStatus::Running {
                // It goes on to Postgres, which is not there.
                assert_eq!(answer.status, "500 Internal Server Error", "{answer:?}");
            } else {
                answer.assert_error("412 Precondition Failed", &format!("invalid compute status: {status}"));
            }
        }
        drop(waiting);
        node.world.set(Part::Stop, Way::Succeed);
        node.stop().await;
    }
}

// ---- clients and servers that come and go -------------------------------------------------------------

#[tokio::test]
async fn a_client_that_goes_away_does_not_undo_what_it_asked_for() {
    let node = Node::empty().await;
    node.world.set(Part::Storage, Way::Hang);
    let client = begin(&node, "/configure", &spec(json!({}))).await;
    node.reaches(ComputeStatus::Init).await;
    drop(client);
    node.world.set(Part::Storage, Way::Succeed);
    node.reaches(ComputeStatus::Running).await;
    node.world.set(Part::Stop, Way::Hang);
    let client = begin(&node, "/terminate", "").await;
    node.reaches(ComputeStatus::TerminationPendingFast).await;
    drop(client);
    node.world.set(Part::Stop, Way::Succeed);
    node.reaches(ComputeStatus::Terminated).await;
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_during_the_intake_does_not_undo_it_either() {
    let node = Node::empty().await;
    let client = begin(&node, "/configure", &spec(json!({"project_id": "slow"}))).await;
    node.gate.reached.notified().await;
    drop(client);
    // While this is answered the server finds out that the other client is gone.
    assert_eq!(node.get("/status").await.json()["status"], "empty");
    node.gate.open.wait();
    node.reaches(ComputeStatus::Running).await;
    node.stop().await;
}

#[tokio::test]
async fn the_answer_to_terminate_leaves_although_the_process_ends() {
    for _ in 0..20 {
        let mut node = Node::running().await;
        let mut client = begin(&node, "/terminate?mode=immediate", "").await;
        // Not even the connection is kept open by the client's wish.
        node.ended.await.expect("the engine does not panic");
        node.servers.end().await;
        read(&mut client).await.assert("200 OK", Some("application/json"), r#"{"lsn":null}"#);
    }
}

#[tokio::test]
async fn requests_after_the_end_of_the_engine_are_told_so() {
    let mut node = Node::running().await;
    node.engine.report(Event::StopSignalled).await;
    let (ended, external, internal) = (node.ended, node.external, node.internal[0]);
    ended.await.expect("the engine does not panic");
    for (to, bytes) in [
        (external, request("POST", "/configure", &token(), &spec(json!({})))),
        (external, request("POST", "/terminate", &token(), "")),
        (internal, request("POST", "/refresh_configuration", "", "")),
    ] {
        let answer = send(to, &bytes).await;
        answer.assert_error("503 Service Unavailable", "the compute is shutting down");
    }
    let answer = send(external, &request("GET", "/status", &token(), "")).await;
    assert_eq!(answer.json()["status"], "terminated");
    node.servers.end().await;
}

#[tokio::test]
async fn a_full_queue_is_told_with_a_time_to_come_back() {
    // An engine that does not run never takes anything out of its queue.
    let node = Node::empty().await;
    let metrics = node.context.metrics.clone();
    let (stuck, handle) = engine::new(node.world.clone(), Policy::default(), metrics);
    for _ in 0..limits::QUEUE {
        handle.hint(Event::RefreshHinted);
    }
    let context = http::Context { engine: handle, ..node.context.clone() };
    let answer = warp::test::request()
        .method("POST")
        .path("/refresh_configuration")
        .reply(&http::internal(context.clone()))
        .await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(answer.body(), r#"{"error":"too many requests are waiting"}"#);
    let answer = warp::test::request()
        .method("POST")
        .path("/configure")
        .header("authorization", format!("Bearer {}", token()))
        .header("content-type", "application/json")
        .body(spec(json!({})))
        .reply(&http::external(context))
        .await;
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].as_bytes()), (503, &b"1"[..]));
    drop(stuck);
    node.stop().await;
}

#[tokio::test]
async fn a_stop_of_the_servers_does_not_wait_for_ever() {
    let mut node = Node::empty().await;
    node.world.set(Part::Storage, Way::Hang);
    let mut waiting = begin(&node, "/configure", &spec(json!({}))).await;
    node.reaches(ComputeStatus::Init).await;
    node.servers.end().await;
    let mut rest = Vec::new();
    // Closed or reset: no answer either way, since there was none.
    let _ = waiting.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

#[tokio::test(start_paused = true)]
async fn silent_clients_are_shown_out() {
    let node = Node::empty().await;
    for bytes in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n", b"GET /metrics HTTP/1.1\r\nhos"] {
        let mut stream = TcpStream::connect(node.external).await.expect("it listens");
        stream.write_all(bytes).await.expect("it reads");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("it is closed");
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 408"), "{rest}");
    }
    // One that was served before has no more time for its next request.
    for bytes in [&b""[..], b"GET /metrics HTTP/1.1\r\nhos"] {
        let mut stream = TcpStream::connect(node.external).await.expect("it listens");
        let begun = Instant::now();
        stream.write_all(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it reads");
        stream.write_all(bytes).await.expect("it reads");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("it is closed");
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.starts_with("HTTP/1.1 404"), "{rest}");
        // By a clock on which nothing takes time but waiting.
        assert!(begun.elapsed() < 2 * limits::HTTP_HEAD_READ, "{:?}", begun.elapsed());
    }
    let head = format!(
        "POST /configure HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 100\r\n\r\n{{",
        token()
    );
    let begun = Instant::now();
    let answer = send(node.external, head.as_bytes()).await;
    assert!(begun.elapsed() < 2 * limits::HTTP_BODY_READ, "{:?}", begun.elapsed());
    answer.assert_error("408 Request Timeout", "failed to buffer the request body: it took too long");
    node.stop().await;
}

/// Whoever takes an answer piece by piece gets all of it, though the servers have been told to stop meanwhile.
#[tokio::test]
async fn an_answer_under_way_leaves_before_the_servers_go() {
    let node = Node::empty().await;
    let stream = TokioIo::new(TcpStream::connect(node.external).await.expect("it listens"));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1024);
    let (mut sender, connection) = builder.handshake(stream).await.expect("HTTP/2 is spoken");
    tokio::spawn(connection);
    let request = hyper::Request::get("http://localhost/openapi.json").body(String::new());
    let answer = sender.send_request(request.expect("a request")).await.expect("an answer");
    node.engine.report(Event::StopSignalled).await;
    let Node { mut servers, ended, .. } = node;
    ended.await.expect("the engine does not panic");
    let stops = tokio::spawn(async move { servers.end().await });
    // Time enough to be told, and for servers that do not wait to be gone.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let (mut body, mut text) = (answer.into_body(), Vec::new());
    while let Some(piece) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        text.extend_from_slice(&piece.expect("it does not break off").into_data().expect("no trailers"));
    }
    let document: serde_json::Value = serde_json::from_slice(&text).expect("the whole of it");
    assert_eq!(document["openapi"], "3.1.0");
    stops.await.expect("it stops");
}
