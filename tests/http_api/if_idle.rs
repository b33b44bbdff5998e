//! `POST /terminate?if_idle=true`: what it answers in each state, and to whom.

use std::sync::atomic::Ordering;

use compute_states::ComputeStatus;
use serde_json::json;

use crate::begin;
use crate::lifecycle::in_status;
use crate::support::{Node, Part, Way, read, spec};

#[tokio::test]
async fn an_idle_compute_ends_and_a_busy_one_says_why_not() {
    let node = Node::running().await;
    node.world.busy.store(true, Ordering::Relaxed);
    let answer = node.post("/terminate?if_idle=true", "").await;
    let body = concat!(
        r#"{"error":"the compute is not idle: 2 active sessions, 1 physical walsender","#,
        r#""activity":{"last_kind":null,"#,
        r#""sessions":{"active":2,"idle_in_transaction":0,"idle":0,"arriving":0},"#,
        r#""walsenders":{"logical":0,"physical":1},"logical_slots":{"active":0,"inactive":0},"#,
        r#""subscriptions":0,"autovacuum_workers":0,"statistics_moved":null}}"#,
    );
    answer.assert("409 Conflict", Some("application/json"), body);
    assert_eq!(node.engine.snapshot().status, ComputeStatus::Running);

    node.world.set(Part::CheckIdle, Way::Fail("no answer"));
    let answer = node.post("/terminate?if_idle=true", "").await;
    let text = "whether the compute is idle could not be found out: no answer";
    answer.assert_error("503 Service Unavailable", text);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(node.engine.snapshot().status, ComputeStatus::Running);

    node.world.set(Part::CheckIdle, Way::Succeed);
    node.world.busy.store(false, Ordering::Relaxed);
    let answer = node.post("/terminate?mode=immediate&if_idle=true", "").await;
    answer.assert("200 OK", Some("application/json"), r#"{"lsn":null}"#);
    node.stop().await;
}

#[tokio::test]
async fn the_mode_is_that_of_the_request_and_fast_where_it_says_none() {
    for (query, status) in [
        ("if_idle=true", ComputeStatus::TerminationPendingFast),
        ("mode=fast&if_idle=true", ComputeStatus::TerminationPendingFast),
        ("if_idle=true&mode=immediate", ComputeStatus::TerminationPendingImmediate),
    ] {
        let node = Node::running().await;
        node.world.set(Part::Stop, Way::Hang);
        let mut waiting = begin(&node, &format!("/terminate?{query}"), "").await;
        node.reaches(status).await;
        node.world.set(Part::Stop, Way::Succeed);
        read(&mut waiting).await.assert("200 OK", Some("application/json"), r#"{"lsn":null}"#);
        node.stop().await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_condition_is_told_like_the_mode() {
    let node = Node::running().await;
    for (query, fault) in [
        ("if_idle=yes", "if_idle: unknown variant `yes`, expected `true` or `false`"),
        ("if_idle=", "if_idle: unknown variant ``, expected `true` or `false`"),
        ("if_idle=true&if_idle=true", "duplicate field `if_idle`"),
        ("if_idle=true&mode=bogus", "mode: unknown variant `bogus`, expected `fast` or `immediate`"),
        ("mode=bogus", "mode: unknown variant `bogus`, expected `fast` or `immediate`"),
        // Taken for something that is ignored, these would end a compute that is in use.
        ("If_idle=true", "unknown field `If_idle`, expected `if_idle`"),
        ("mode=fast&if-idle=true", "unknown field `if-idle`, expected `if_idle`"),
        ("mode=fast&IFIDLE", "unknown field `IFIDLE`, expected `if_idle`"),
        ("", "missing field `mode`"),
    ] {
        let answer = node.post(&format!("/terminate?{query}"), "").await;
        let text = format!("Failed to deserialize query string: {fault}");
        answer.assert("400 Bad Request", Some("text/plain; charset=utf-8"), &text);
    }
    // Without the condition, whatever is at work.
    node.world.busy.store(true, Ordering::Relaxed);
    let answer = node.post("/terminate?if_idle=false", "").await;
    answer.assert("200 OK", Some("application/json"), r#"{"lsn":null}"#);
    node.stop().await;
}

#[tokio::test]
async fn only_a_running_compute_is_looked_at_and_one_that_goes_down_is_joined() {
    for status in ComputeStatus::ALL {
        let (node, waiting) = in_status(status).await;
        match status {
            ComputeStatus::Running => {}
            ComputeStatus::TerminationPendingFast | ComputeStatus::TerminationPendingImmediate => {
                let mut joined = begin(&node, "/terminate?if_idle=true", "").await;
                node.world.set(Part::Stop, Way::Succeed);
                read(&mut joined).await.assert("200 OK", Some("application/json"), r#"{"lsn":null}"#);
            }
            ComputeStatus::Terminated => {
                let answer = node.post("/terminate?if_idle=true", "").await;
                answer.assert("201 Created", Some("application/json"), r#"{"lsn":null}"#);
            }
            other => {
                let answer = node.post("/terminate?if_idle=true", "").await;
                answer.assert_error("412 Precondition Failed", &format!("invalid compute status: {other}"));
            }
        }
        drop(waiting);
        node.stop().await;
    }
}

#[tokio::test]
async fn whatever_begins_meanwhile_makes_an_end_of_the_look() {
    let node = Node::running().await;
    node.world.set(Part::CheckIdle, Way::Hang);
    let mut look = begin(&node, "/terminate?if_idle=true", "").await;
    node.looks().await;
    assert_eq!(node.post("/configure", &spec(json!({}))).await.status, "200 OK");
    read(&mut look).await.assert_error("409 Conflict", "the compute is not idle: other work has begun");

    // A termination is what they wanted, too.
    let mut look = begin(&node, "/terminate?if_idle=true", "").await;
    node.looks().await;
    node.post("/terminate", "").await.assert("200 OK", Some("application/json"), r#"{"lsn":null}"#);
    read(&mut look).await.assert("200 OK", Some("application/json"), r#"{"lsn":null}"#);
    node.stop().await;
}
