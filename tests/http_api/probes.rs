//! Probes, status by status, on both servers.

use std::sync::Arc;

use compute_ctl::engine;
use compute_ctl::http::{self, Context};
use compute_ctl::telemetry::Metrics;
use compute_states::{ComputeStatus, Event, Exit, Policy};
use serde_json::json;

use crate::begin;
use crate::support::{Node, Part, Way, read, request, send, spec, tokens};

/// What a probe without a token hears.
async fn probe(node: &Node, path: &str) -> (u16, String) {
    let mut heard = Vec::new();
    for server in std::iter::once(node.external).chain(node.internal.iter().copied()) {
        let answer = send(server, &request("GET", path, "", "")).await;
        answer.assert_common();
        assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
        let code = answer.status.split(' ').next().and_then(|code| code.parse().ok()).expect("a code");
        heard.push((code, answer.body));
    }
    let first = heard.remove(0);
    assert!(heard.iter().all(|other| *other == first), "{first:?} {heard:?}");
    first
}

/// The codes of `/readyz` and `/startupz` in the status which the node has; `/livez` is 200 in all of them.
async fn check(node: &Node, ready: bool, started: bool) {
    let status = node.engine.snapshot().status;
    let fine = (200, r#""ok""#.to_owned());
    let no = |text: &str| (503, json!({ "error": format!("{text}: {status}") }).to_string());
    assert_eq!(probe(node, "/livez").await, fine, "{status}");
    let expected = if ready { fine.clone() } else { no("Postgres does not serve") };
    assert_eq!(probe(node, "/readyz").await, expected, "{status}");
    let expected = if started { fine } else { no("not started yet") };
    assert_eq!(probe(node, "/startupz").await, expected, "{status}");
}

#[tokio::test]
async fn from_empty_to_terminated() {
    let node = Node::empty().await;
    check(&node, false, false).await;

    node.world.set(Part::Resolve, Way::Hang);
    node.world.set(Part::Storage, Way::Hang);
    let mut waiting = begin(&node, "/configure", &spec(json!({}))).await;
    node.reaches(ComputeStatus::ConfigurationPending).await;
    check(&node, false, false).await;
    node.world.set(Part::Resolve, Way::Succeed);
    node.reaches(ComputeStatus::Init).await;
    check(&node, false, false).await;
    node.world.set(Part::Storage, Way::Succeed);
    assert_eq!(read(&mut waiting).await.status, "200 OK");
    check(&node, true, true).await;

    node.world.set(Part::Resolve, Way::Hang);
    node.world.set(Part::Apply, Way::Hang);
    let mut waiting = begin(&node, "/configure", &spec(json!({}))).await;
    node.reaches(ComputeStatus::ConfigurationPending).await;
    check(&node, true, true).await;
    node.world.set(Part::Resolve, Way::Succeed);
    node.reaches(ComputeStatus::Configuration).await;
    check(&node, true, true).await;
    node.world.set(Part::Apply, Way::Fail("no such role"));
    read(&mut waiting).await;
    node.reaches(ComputeStatus::Failed).await;
    check(&node, true, true).await;

    node.world.set(Part::Fetch, Way::Hang);
    assert_eq!(node.refresh().await.status, "200 OK");
    node.reaches(ComputeStatus::RefreshConfigurationPending).await;
    check(&node, true, true).await;
    node.world.set(Part::Apply, Way::Hang);
    node.world.set(Part::Fetch, Way::Succeed);
    node.reaches(ComputeStatus::RefreshConfiguration).await;
    check(&node, true, true).await;

    node.world.set(Part::Stop, Way::Hang);
    let mut waiting = begin(&node, "/terminate", "").await;
    node.reaches(ComputeStatus::TerminationPendingFast).await;
    check(&node, false, true).await;
    node.world.set(Part::Stop, Way::Succeed);
    read(&mut waiting).await;
    node.reaches(ComputeStatus::Terminated).await;
    check(&node, false, true).await;
    node.stop().await;
}

#[tokio::test]
async fn a_start_that_failed_has_not_started() {
    let node = Node::empty().await;
    node.world.set(Part::Storage, Way::Fail("disk"));
    node.post("/configure", &spec(json!({}))).await;
    node.reaches(ComputeStatus::Failed).await;
    check(&node, false, false).await;
    node.world.set(Part::Fetch, Way::Hang);
    assert_eq!(node.refresh().await.status, "200 OK");
    node.reaches(ComputeStatus::RefreshConfigurationPending).await;
    check(&node, false, false).await;
    node.stop().await;
}

#[tokio::test]
async fn a_compute_whose_postgres_crashed_had_started() {
    let policy = Policy { crash_linger: std::time::Duration::from_secs(3600), ..Policy::default() };
    let node = Node::with(policy, tokens()).await;
    node.configured().await;
    let postmaster = node.world.postmaster();
    node.engine.report(Event::PostmasterExited { postmaster, exit: Exit::Signal(9) }).await;
    node.reaches(ComputeStatus::Failed).await;
    check(&node, false, true).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_does_nothing_is_not_alive() {
    let node = Node::empty().await;
    let (still, stuck) = engine::new(node.world.clone(), Policy::default(), Arc::new(Metrics::new()));
    let routes = http::internal(Context { engine: stuck.clone(), ..node.context.clone() });
    let probe = async || {
        let answer = warp::test::request().path("/livez").reply(&routes).await;
        (answer.status().as_u16(), String::from_utf8(answer.body().to_vec()).expect("text"))
    };
    let dead = (503, r#"{"error":"the event loop gives no sign of life"}"#.to_owned());
    // More often than there are places in the queue, and none but one is taken.
    for _ in 0..compute_ctl::limits::QUEUE + 1 {
        assert_eq!(probe().await, dead);
    }
    assert_eq!(stuck.queue_depth(), 1);
    let running = tokio::spawn(still.run());
    assert_eq!(probe().await, (200, r#""ok""#.to_owned()));
    running.abort();
    let _ = running.await;
    assert_eq!(probe().await, dead);
    node.stop().await;
}
