//! Answers in words.

use std::time::Duration;

use compute_states::ComputeStatus;
use serde::Deserialize;
use serde_json::Value;

use super::super::client::Status;
use super::waiting::elapsed;
use crate::catalog::show::visible;

/// One change of state, as `/history` and `/events` tell it. What we do not show is left out.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Transition {
    pub(super) from: ComputeStatus,
    pub(super) to: ComputeStatus,
    /// Why, in words.
    #[serde(default)]
    label: Option<String>,
    time: String,
    /// How long the status before had lasted.
    lasted_ms: f64,
    #[serde(default)]
    error: Option<String>,
}

/// The answer of `/history`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct History {
    #[serde(default)]
    dropped: u64,
    transitions: Vec<Transition>,
}

/// Whether Postgres serves in this status, of a compute that does not tell by itself.
pub(super) fn serves(status: ComputeStatus) -> bool {
    match status {
        ComputeStatus::Running
        | ComputeStatus::Configuration
        | ComputeStatus::RefreshConfigurationPending
        | ComputeStatus::RefreshConfiguration => true,
        ComputeStatus::Empty
        | ComputeStatus::ConfigurationPending
        | ComputeStatus::Init
        | ComputeStatus::Failed
        | ComputeStatus::TerminationPendingFast
        | ComputeStatus::TerminationPendingImmediate
        | ComputeStatus::Terminated => false,
    }
}

/// The status and all that comes with it.
pub(super) fn status(status: &Status) -> String {
    rows(status).iter().map(|row| row.clone() + "\n").collect()
}

/// The same, line by line.
pub(super) fn rows(status: &Status) -> Vec<String> {
    let mut rows = vec![("status".to_owned(), status.status.to_string())];
    rows.push(("started".to_owned(), status.start_time.clone()));
    let seen = status.last_active.clone().unwrap_or_else(|| "nobody has been seen at work".to_owned());
    rows.push(("last active".to_owned(), seen));
    let named = [("tenant", &status.tenant), ("timeline", &status.timeline), ("error", &status.error)];
    for (name, value) in named {
        if let Some(value) = value {
            rows.push((name.to_owned(), value.clone()));
        }
    }
    for (name, value) in &status.more {
        flatten(name.replace('_', " "), value, &mut rows);
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default() + 2;
    let mut lines = Vec::new();
    for (name, value) in &rows {
        // Causes of an error have a line each.
        let mut name = visible(name).into_owned();
        for part in value.lines().filter(|part| !part.trim().is_empty()) {
            lines.push(format!("{name:width$}{}", visible(part)));
            name.clear();
        }
    }
    lines
}

/// What an additive field holds, one row for each value in it; nothings and noughts say nothing.
fn flatten(name: String, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Null | Value::Bool(false) => {}
        Value::Object(fields) => {
            for (field, value) in fields {
                flatten(format!("{name} {}", field.replace('_', " ")), value, rows);
            }
        }
        Value::Array(values) if values.iter().all(|value| !value.is_object() && !value.is_array()) => {
            if !values.is_empty() {
                rows.push((name, values.iter().map(plain).collect::<Vec<_>>().join(", ")));
            }
        }
        Value::Array(values) => {
            for value in values {
                rows.push((name.clone(), plain(value)));
            }
        }
        Value::Number(number) if number.as_f64() == Some(0.0) => {}
        value => rows.push((name, plain(value))),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What the compute is doing, in a few words.
pub(super) fn doing(status: &Status) -> String {
    let storage = status.more.get("storage");
    let field = |name: &str| storage.and_then(|storage| storage.get(name));
    let phase = field("phase").and_then(Value::as_str).map(|phase| format!(", {}", visible(phase)));
    let bytes = field("written_bytes").and_then(Value::as_u64).filter(|bytes| *bytes > 0);
    let bytes = bytes.map(|bytes| format!(", {} MiB", bytes / (1 << 20)));
    format!("{}{}{}", status.status, phase.unwrap_or_default(), bytes.unwrap_or_default())
}

/// Why a compute has no status to tell yet, in its words.
pub(super) fn delayed(error: Option<&str>) -> String {
    let line = error.and_then(|error| error.lines().next());
    line.map_or_else(|| "not to be asked yet".to_owned(), |line| visible(line).into_owned())
}

/// The answer of a `/configure` that was carried out, with what Postgres could not take over yet.
pub(super) fn configured(status: &Status) -> String {
    let mut text = format!("configured; the compute is {}\n", status.status);
    if let Some(settings) = status.more.get("settings") {
        let mut rows = Vec::new();
        flatten("settings".to_owned(), settings, &mut rows);
        for (name, value) in rows {
            text += &format!("{}: {}\n", visible(&name), visible(&value));
        }
    }
    text
}

/// The last changes of state.
pub(super) fn history(history: &History) -> String {
    let mut text = String::new();
    if history.dropped > 0 {
        text += &format!("({} earlier ones are not kept any more)\n", history.dropped);
    }
    for transition in &history.transitions {
        text += &transition.line();
        text.push('\n');
    }
    if history.transitions.is_empty() {
        text += "nothing has changed yet\n";
    }
    text
}

impl Transition {
    /// One line.
    pub(super) fn line(&self) -> String {
        let Transition { from, to, label, time, lasted_ms, error } = self;
        let lasted = Duration::try_from_secs_f64(lasted_ms.max(0.0) / 1000.0);
        let after = elapsed(lasted.unwrap_or(Duration::MAX));
        let cause = label.as_deref().map(|cause| format!(": {}", visible(cause))).unwrap_or_default();
        let error = error.as_deref().and_then(|error| error.lines().next());
        let error = error.map(|error| format!(": {}", visible(error))).unwrap_or_default();
        format!("{}  {from} -> {to} after {after}{cause}{error}", visible(time))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(body: Value) -> String {
        status(&serde_json::from_value(body).expect("a status"))
    }

    #[test]
    fn a_status_of_the_originals_is_shown() {
        let text = shown(json!({
            "start_time": "2025-07-31T12:00:00Z", "tenant": null, "timeline": null, "status": "running",
            "last_active": null, "error": null,
        }));
        assert_eq!(
            text,
            "status       running\n\
             started      2025-07-31T12:00:00Z\n\
             last active  nobody has been seen at work\n"
        );
    }

    #[test]
    fn fields_of_any_shape_are_shown_and_nothing_reaches_the_terminal_raw() {
        let text = shown(json!({
            "start_time": "x", "tenant": "t", "timeline": "l", "status": "failed", "last_active": "y",
            "error": "outer\u{1b}[2J\n\nCaused by:\n    inner",
            "settings": {"pending_restart": ["a", "b"], "rejected": [{"name": "c"}]},
            "activity": {"walsenders": 0, "sessions": 2, "deep": {"on": true}},
        }));
        for line in [
            "settings pending restart  a, b",
            "settings rejected         {\"name\":\"c\"}",
            "activity sessions         2",
            "activity deep on          true",
            "                              inner",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains('\u{1b}') && !text.contains("walsenders"), "{text}");
    }

    #[test]
    fn a_change_of_state_is_one_line() {
        let transition: Transition = serde_json::from_value(json!({
            "seq": 3, "from": "init", "to": "failed", "label": "failed to start Postgres",
            "time": "2025-07-31T12:00:00Z", "lasted_ms": 1500, "error": "no\nroom",
        }))
        .expect("a transition");
        assert_eq!(
            transition.line(),
            "2025-07-31T12:00:00Z  init -> failed after 1.5 s: failed to start Postgres: no"
        );
    }

    #[test]
    fn a_time_that_no_clock_can_hold_is_shown_all_the_same() {
        let transition: Transition = serde_json::from_value(json!({
            "from": "init", "to": "running", "time": "T", "lasted_ms": 1e300,
        }))
        .expect("a transition");
        assert!(transition.line().starts_with("T  init -> running after "), "{}", transition.line());
    }
}
