//! The log as JSON: one object a line, ours and Postgres's alike.
//!
//! `timestamp` (RFC 3339, UTC), `level`, `target`, `fields` with the text as `message`, and `spans` from the outermost
//! inwards, each with its `name` and its fields.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Joins the lines of one of Postgres's messages; see [`crate::postgres::LogSink`].
const JOINER: char = '\u{200b}';

/// Severities as Postgres writes them, and the levels they are.
const SEVERITIES: [(&str, Level); 13] = [
    ("DEBUG5", Level::TRACE),
    ("DEBUG4", Level::TRACE),
    ("DEBUG3", Level::TRACE),
    ("DEBUG2", Level::DEBUG),
    ("DEBUG1", Level::DEBUG),
    ("DEBUG", Level::DEBUG),
    ("LOG", Level::INFO),
    ("INFO", Level::INFO),
    ("NOTICE", Level::INFO),
    ("WARNING", Level::WARN),
    ("ERROR", Level::ERROR),
    ("FATAL", Level::ERROR),
    ("PANIC", Level::ERROR),
];

#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    level: &'a str,
    target: &'a str,
    fields: Map<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    spans: Vec<Map<String, Value>>,
}

impl Line<'_> {
    fn text(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and maps by string only")
    }
}

fn now() -> String {
    format!("{:.6}", Timestamp::now())
}

/// Writes events as lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Json;

impl<S> FormatEvent<S, JsonFields> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Map::new();
        event.record(&mut Collect(&mut fields));
        let spans = context.event_scope().into_iter().flat_map(|scope| scope.from_root());
        let spans = spans.map(|span| {
            let extensions = span.extensions();
            let mut fields = extensions.get::<FormattedFields<JsonFields>>().map(held).unwrap_or_default();
            fields.insert("name".to_owned(), span.name().into());
            fields
        });
        let metadata = event.metadata();
        let line = Line {
            timestamp: now(),
            level: metadata.level().as_str(),
            target: metadata.target(),
            fields,
            spans: spans.collect(),
        };
        writeln!(writer, "{}", line.text())
    }
}

/// Keeps the fields of a span as an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct JsonFields;

fn held(fields: &FormattedFields<JsonFields>) -> Map<String, Value> {
    // Written below, and empty for a span without fields.
    serde_json::from_str(&fields.fields).unwrap_or_default()
}

impl<'w> FormatFields<'w> for JsonFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut map = Map::new();
        fields.record(&mut Collect(&mut map));
        write!(writer, "{}", Value::Object(map))
    }

    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let mut map = held(current);
        fields.record(&mut Collect(&mut map));
        current.fields = Value::Object(map).to_string();
        Ok(())
    }
}

struct Collect<'a>(&'a mut Map<String, Value>);

impl Collect<'_> {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Collect<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// A line of the text form that did not come by an event: a panic.
pub(super) fn panic(text: &str) -> String {
    plain(Level::ERROR, "panic", text.trim_end().to_owned(), None)
}

/// A message of Postgres's as it stands in the text form, `PG:` first.
pub(super) fn postgres(line: &str) -> String {
    let message = line.strip_prefix("PG:").unwrap_or(line);
    let message = message.trim_end_matches(['\n', JOINER]);
    let first = message.split(JOINER).next().unwrap_or_default();
    let severity = severity(first);
    let level = severity.map_or(Level::INFO, |(_, level)| level);
    let text = message.replace(JOINER, "\n");
    plain(level, "postgres", text, severity.map(|(name, _)| name))
}

/// What comes first: a message may quote another one.
fn severity(line: &str) -> Option<(&'static str, Level)> {
    let found = SEVERITIES.iter().filter_map(|(name, level)| {
        let at = line.match_indices(name).map(|(at, _)| at).find(|at| {
            let begins = line[..*at].chars().next_back().is_none_or(|before| !before.is_alphanumeric());
            begins && line[at + name.len()..].starts_with(":  ")
        })?;
        Some((at, *name, *level))
    });
    found.min_by_key(|(at, _, _)| *at).map(|(_, name, level)| (name, level))
}

fn plain(level: Level, target: &str, message: String, severity: Option<&str>) -> String {
    let mut fields = Map::new();
    fields.insert("message".to_owned(), message.into());
    if let Some(severity) = severity {
        fields.insert("severity".to_owned(), severity.into());
    }
    let line = Line { timestamp: now(), level: level.as_str(), target, fields, spans: Vec::new() };
    line.text() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(line: &str) -> Value {
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1, "{line:?}");
        let mut value: Value = serde_json::from_str(line).unwrap();
        let at = value.as_object_mut().unwrap().remove("timestamp").unwrap();
        let at = at.as_str().unwrap();
        assert!(at.ends_with('Z') && at.parse::<Timestamp>().is_ok() && at.len() == 27, "{at}");
        value
    }

    #[test]
    fn lines_of_postgres_have_its_severity() {
        let prefix = "PG:2026-01-02 03:04:05.678 UTC [1] ";
        for (severity, level) in [
            ("LOG", "INFO"),
            ("WARNING", "WARN"),
            ("ERROR", "ERROR"),
            ("FATAL", "ERROR"),
            ("DEBUG2", "DEBUG"),
        ] {
            let line =
                postgres(&format!("{prefix}{severity}:  it \"says\" ERROR:  x\u{200b}\tmore\u{200b}\n"));
            let message = format!("{}{severity}:  it \"says\" ERROR:  x\n\tmore", &prefix[3..]);
            let expected = json!({
                "level": level, "target": "postgres", "fields": { "message": message, "severity": severity }
            });
            assert_eq!(parsed(&line), expected);
        }
        let other = parsed(&postgres("PG:no severity, and CATALOG:  is none\u{200b}\n"));
        let message = "no severity, and CATALOG:  is none";
        assert_eq!(other, json!({ "level": "INFO", "target": "postgres", "fields": { "message": message } }));
    }

    #[test]
    fn a_panic_is_one_line() {
        let line = parsed(&panic("thread 'x' panicked at y\nboom\n"));
        assert_eq!(line["fields"]["message"], "thread 'x' panicked at y\nboom");
        assert_eq!((&line["level"], &line["target"]), (&json!("ERROR"), &json!("panic")));
    }

    #[test]
    fn events_and_spans_keep_their_fields() {
        use std::io::Write;
        use std::sync::{Arc, Mutex};
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(JsonFields)
            .event_format(Json)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let outer = tracing::info_span!("outer", id = 7, late = tracing::field::Empty);
            let _outer = outer.enter();
            let _inner = tracing::info_span!("inner").entered();
            outer.record("late", "yes");
            tracing::warn!(target: "somewhere", yes = true, n = -1, text = "a\"b\n", "it is {}", "so");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let expected = json!({
            "level": "WARN",
            "target": "somewhere",
            "fields": { "message": "it is so", "yes": true, "n": -1, "text": "a\"b\n" },
            "spans": [{ "name": "outer", "id": 7, "late": "yes" }, { "name": "inner" }],
        });
        assert_eq!(parsed(&text), expected);
    }
}
