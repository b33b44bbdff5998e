//! `POST /promote` (http-api, section 8): codes and bodies, in every state, with everything that can come between.

use compute_states::{ComputeStatus, Event, Policy};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::lifecycle::in_status;
use crate::support::{Answer, Node, Part, Way, read, request, send, spec, token, tokens};
use crate::{begin, refreshes};

/// A body with this spec.
fn promotion(spec_body: &str) -> String {
    let Value::Object(configure) = serde_json::from_str(spec_body).expect("it is JSON") else { panic!() };
    json!({ "spec": configure["spec"], "wal_flush_lsn": "0/28F10D8" }).to_string()
}

fn body() -> String {
    promotion(&spec(json!({})))
}

/// Sends a promotion and waits until the machine has seen `count` of them.
async fn ask(node: &Node, count: usize) -> TcpStream {
    let stream = begin(node, "/promote", &body()).await;
    asked(node, count).await;
    stream
}

async fn asked(node: &Node, count: usize) {
    loop {
        let recording = node.engine.recording().await.expect("the engine lives");
        let seen = recording.entries.iter().filter(|it| matches!(it.event, Event::PromoteRequested { .. }));
        if seen.count() >= count {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[track_caller]
fn completed(answer: &Answer) {
    assert_eq!(answer.status, "200 OK", "{answer:?}");
    let json = answer.json();
    assert_eq!(json["status"], "completed", "{json}");
    assert_eq!((&json["lsn_wait_time_ms"], &json["pg_promote_time_ms"]), (&json!(12), &json!(345)), "{json}");
    assert!(json["reconfigure_time_ms"].is_u64(), "{json}");
    assert_eq!(json.as_object().map(serde_json::Map::len), Some(4), "{json}");
}

#[track_caller]
fn failed(answer: &Answer, error: &str) {
    let body = json!({ "status": "failed", "error": error }).to_string();
    let mut fields: Vec<_> = answer.json().as_object().expect("an object").keys().cloned().collect();
    fields.sort();
    assert_eq!(fields, ["error", "status"]);
    assert_eq!((answer.status.as_str(), answer.json().to_string()), ("500 Internal Server Error", body));
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn promote_in_every_state() {
    use ComputeStatus::{Configuration, RefreshConfiguration, RefreshConfigurationPending, Running};
    for status in ComputeStatus::ALL {
        let (node, waiting) = in_status(status).await;
        if !matches!(status, Running | Configuration | RefreshConfiguration | RefreshConfigurationPending) {
            let answer = node.post("/promote", &body()).await;
            failed(&answer, &format!("invalid compute status: {status}"));
        } else {
            let mut answer = ask(&node, 1).await;
            // Whatever it is queued behind goes on now.
            node.world.set(Part::Fetch, Way::Succeed);
            node.world.set(Part::Apply, Way::Succeed);
            completed(&read(&mut answer).await);
            node.reaches(Running).await;
            // It is kept for ever, whatever is asked for.
            let again = node.post("/promote", &promotion(&spec(json!({"mode": "Replica"})))).await;
            completed(&again);
            let metrics = node.get("/metrics").await.body;
            assert!(metrics.contains("compute_ctl_promotions_total{outcome=\"completed\"} 1\n"), "{metrics}");
        }
        drop(waiting);
        node.world.set(Part::Stop, Way::Succeed);
        node.stop().await;
    }
}

#[tokio::test]
async fn a_failed_promotion_is_told_in_one_line_and_can_be_repeated() {
    let node = Node::running().await;
    node.world.set(Part::Promote, Way::Fail("no way\n\nCaused by:\n    0: outer\n    1: inner"));
    failed(&node.post("/promote", &body()).await, "no way: outer: inner");
    let status = node.get("/status").await.json();
    assert_eq!((&status["status"], &status["error"]), (&json!("running"), &Value::Null));
    node.world.set(Part::Promote, Way::Succeed);
    completed(&node.post("/promote", &body()).await);
    node.stop().await;
}

#[tokio::test]
async fn a_spec_that_cannot_be_applied_to_the_promoted_server_is_a_failure_until_one_is() {
    let node = Node::running().await;
    node.world.set(Part::Apply, Way::Fail("refused"));
    failed(&node.post("/promote", &body()).await, "refused");
    node.reaches(ComputeStatus::Failed).await;
    failed(&node.post("/promote", &body()).await, "invalid compute status: failed");
    node.world.set(Part::Apply, Way::Succeed);
    node.configured().await;
    completed(&node.post("/promote", &body()).await);
    let metrics = node.get("/metrics").await.body;
    for outcome in ["unapplied", "completed"] {
        let line = format!("compute_ctl_promotions_total{{outcome=\"{outcome}\"}} 1\n");
        assert!(metrics.contains(&line), "{metrics}");
    }
    node.stop().await;
}

#[tokio::test]
async fn whoever_comes_during_a_promotion_joins_waits_or_is_told_to_come_back() {
    let node = Node::with(Policy { max_waiters: 2, ..Policy::default() }, tokens()).await;
    node.configured().await;
    node.world.set(Part::Promote, Way::Hang);
    let mut first = ask(&node, 1).await;
    let mut second = ask(&node, 2).await;
    let answer = node.post("/promote", &body()).await;
    answer.assert_error("503 Service Unavailable", "too many clients wait already");
    let answer = node.post("/configure", &spec(json!({}))).await;
    answer.assert_error("503 Service Unavailable", "a promotion is under way");
    assert_eq!(answer.header("retry-after"), Some("1"));
    // Accepted, and done afterwards.
    node.refresh().await.assert("200 OK", None, "");
    assert_eq!(refreshes(&node).await, 1);
    assert_eq!(node.get("/status").await.json()["status"], "running");
    node.world.set(Part::Fetch, Way::Hang);
    node.world.set(Part::Promote, Way::Succeed);
    completed(&read(&mut first).await);
    completed(&read(&mut second).await);
    node.reaches(ComputeStatus::RefreshConfigurationPending).await;
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_changes_nothing() {
    let node = Node::running().await;
    node.world.set(Part::Promote, Way::Hang);
    drop(ask(&node, 1).await);
    let mut second = ask(&node, 2).await;
    node.world.set(Part::Promote, Way::Succeed);
    completed(&read(&mut second).await);
    node.stop().await;
}

#[tokio::test]
async fn a_termination_during_a_promotion_answers_both() {
    let node = Node::running().await;
    node.world.set(Part::Promote, Way::Hang);
    let mut promoting = ask(&node, 1).await;
    assert_eq!(node.post("/terminate?mode=immediate", "").await.status, "200 OK");
    failed(&read(&mut promoting).await, "the compute went down before it was promoted");
    node.ended.await.expect("the engine does not panic");
}

#[tokio::test]
async fn faults_of_the_body_are_bare_text_as_the_framework_writes_it() {
    let node = Node::running().await;
    let text = Some("text/plain; charset=utf-8");
    let head = "POST /promote HTTP/1.1\r\nhost: x\r\nconnection: close";
    let bytes = format!("{head}\r\nauthorization: bearer {}\r\ncontent-length: 2\r\n\r\n{{}}", token());
    let answer = send(node.external, bytes.as_bytes()).await;
    answer.assert(
        "415 Unsupported Media Type",
        text,
        "Expected request with `Content-Type: application/json`",
    );
    let bytes = format!(
        "{head}\r\nauthorization: bearer {}\r\ncontent-type: application/json\r\ncontent-length: 67108865\r\n\r\n",
        token()
    );
    let answer = send(node.external, bytes.as_bytes()).await;
    answer.assert("413 Payload Too Large", text, "Failed to buffer the request body: length limit exceeded");
    let shape = "Failed to deserialize the JSON body into the target type";
    let without_lsn = spec(json!({}));
    let length = without_lsn.len();
    let bad_lsn = body().replace("0/28F10D8", "soon");
    let lsn_column = bad_lsn.find("\"soon\"").expect("it is in there") + 7;
    for (body, status, error) in [
        ("{\"spec\"", "400 Bad Request", {
            "Failed to parse the request body as JSON: EOF while parsing an object at line 1 column 7"
                .to_owned()
        }),
        ("{}", "422 Unprocessable Entity", format!("{shape}: missing field `spec` at line 1 column 2")),
        (
            &without_lsn,
            "422 Unprocessable Entity",
            format!("{shape}: missing field `wal_flush_lsn` at line 1 column {length}"),
        ),
        (
            &bad_lsn,
            "422 Unprocessable Entity",
            format!(
                "{shape}: wal_flush_lsn: should be two hexadecimal numbers of up to 8 digits with a slash between \
                 them, such as 0/16B3748 at line 1 column {lsn_column}"
            ),
        ),
    ] {
        node.post("/promote", body).await.assert(status, text, &error);
    }
    // A spec that is JSON and no spec of ours is told as for `/configure`.
    let answer = node.post("/promote", &promotion(&spec(json!({"project_id": "refused"})))).await;
    assert_eq!(answer.status, "400 Bad Request", "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let answer = send(node.external, &request("POST", "/promote", "wrong", &body())).await;
    assert_eq!(answer.status, "401 Unauthorized", "{answer:?}");
    let inside = node.post_inside("/promote", &body()).await;
    assert_eq!(inside.status, "404 Not Found", "{inside:?}");
    node.stop().await;
}
