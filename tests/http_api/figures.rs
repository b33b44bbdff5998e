//! What a scrape shows of what has happened: each family is moved by what it counts.

use std::time::Instant;

use compute_ctl::telemetry::{Stage, Startup};
use compute_states::ComputeStatus;
use serde_json::json;
use tokio::time::advance;

use crate::support::{Node, Part, Way, spec};

/// The value of a sample, by all that stands in front of it.
fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

async fn scrape(node: &Node) -> String {
    node.get("/metrics").await.body
}

#[tokio::test]
async fn events_transitions_effects_and_preparations_are_counted() {
    let node = Node::running().await;
    node.world.set(Part::Apply, Way::Fail("no such role"));
    node.post("/configure", &spec(json!({}))).await;
    node.context.progress.add_received(77);
    node.context.progress.add_written(99);
    let text = scrape(&node).await;
    for (name, expected) in [
        (r#"compute_ctl_events_total{event="ConfigureRequested",verdict="moved"}"#, 2.0),
        (r#"compute_ctl_events_total{event="PostmasterReady",verdict="taken"}"#, 1.0),
        (
            r#"compute_ctl_transitions_total{cause="ConfigureRequested",from="empty",to="configuration-pending"}"#,
            1.0,
        ),
        (r#"compute_ctl_transitions_total{cause="Started",from="init",to="running"}"#, 1.0),
        (r#"compute_ctl_transitions_total{cause="ReconfigureFailed",from="configuration",to="failed"}"#, 1.0),
        (r#"compute_ctl_effect_duration_seconds_count{effect="PrepareStorage",outcome="ok"}"#, 1.0),
        (r#"compute_ctl_effect_duration_seconds_count{effect="ApplySpec",outcome="ok"}"#, 1.0),
        (r#"compute_ctl_effect_duration_seconds_count{effect="ApplySpec",outcome="permanent"}"#, 1.0),
        (r#"compute_ctl_storage_bytes{direction="received"}"#, 77.0),
        (r#"compute_ctl_storage_bytes{direction="written"}"#, 99.0),
    ] {
        assert_eq!(sample(&text, name), Some(expected), "{name} in {text}");
    }
    node.stop().await;
}

#[tokio::test]
async fn time_is_added_to_the_status_in_which_it_was_spent_and_once() {
    let begun = Instant::now();
    let node = Node::running().await;
    let mut text = scrape(&node).await;
    let age = sample(&text, "compute_ctl_state_age_seconds").expect("it is always there");
    for _ in 0..50 {
        text = scrape(&node).await;
    }
    assert!(age > 0.0 && sample(&text, "compute_ctl_state_age_seconds") > Some(age), "{text}");
    let spent = |status: ComputeStatus| {
        sample(&text, &format!("compute_ctl_state_seconds_total{{status=\"{status}\"}}"))
    };
    // Nobody has looked while it was any of the first three.
    for status in [
        ComputeStatus::Empty,
        ComputeStatus::ConfigurationPending,
        ComputeStatus::Init,
        ComputeStatus::Running,
    ] {
        assert!(spent(status) > Some(0.0), "{status} in {text}");
    }
    let all: f64 = ComputeStatus::ALL.into_iter().filter_map(spent).sum();
    assert!(all <= begun.elapsed().as_secs_f64(), "{all} seconds of {:?}", begun.elapsed());
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_spec_that_was_refused_is_part_of_the_wait_for_one() {
    let startup = Startup::default();
    for (stage, millis) in [
        (Stage::Empty, 1000),
        (Stage::Received, 20),
        (Stage::Empty, 300),
        (Stage::Received, 7),
        (Stage::Preparing, 0),
    ] {
        startup.enter(stage);
        advance(std::time::Duration::from_millis(millis)).await;
    }
    assert_eq!(startup.figures().wait_for_spec_ms, 1300);
}
