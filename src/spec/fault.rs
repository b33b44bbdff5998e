//! What is wrong with a document, where, and what would be right.
//!
//! A document is judged in two steps. Decoding stops at the first fault, as decoders do; a document which
//! decodes is then held against the rules ([`examine`]), and all its faults are found at once. Every fault names a path
//! and, when the text is at hand, the line and column of the value.
//!
//! No fault quotes a value which could be a secret: passwords, tokens, connection strings and values of
//! settings are described, never shown.

mod locate;
mod rules;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Serialize, Serializer};
use serde_path_to_error::Segment;

pub use rules::{examine, is_placeholder};

use super::document::{ComputeConfig, ComputeCtlConfig, ComputeSpec};
use crate::limits;

/// One step of a [`JsonPath`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into the member of an object.
    Key(String),
    /// Into the element of a list, counted from 0.
    Index(usize),
}

/// Where in a document a value stands: `spec.cluster.roles[3].name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// The whole document.
    pub fn root() -> Self {
        Self::default()
    }

    /// This path and one member further.
    pub fn key(&self, key: impl Into<String>) -> Self {
        self.with(Step::Key(key.into()))
    }

    /// This path and one element further.
    pub fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    /// This path followed by another one, which starts where this one ends.
    pub fn join(&self, tail: &JsonPath) -> Self {
        Self(self.0.iter().chain(&tail.0).cloned().collect())
    }

    /// Whether `other` is this path or lies below it.
    pub fn contains(&self, other: &JsonPath) -> bool {
        other.0.starts_with(&self.0)
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// The last member name on the path: elements of a list go by the name of their list.
    fn field(&self) -> Option<&str> {
        self.0.iter().rev().find_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        })
    }
}

impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("(document)");
        }
        for (depth, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key)
                    if !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') =>
                {
                    if depth > 0 {
                        f.write_str(".")?;
                    }
                    f.write_str(key)?;
                }
                // A key with dots or blanks would read like several steps.
                Step::Key(key) => write!(f, "[{key:?}]")?,
            }
        }
        Ok(())
    }
}

impl Serialize for JsonPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A place in a text, both numbers counted from 1; the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Character within the line.
    pub column: usize,
}

/// Whether a finding forbids the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The document cannot be used.
    Fault,
    /// Usable, but likely not what was meant: a placeholder nobody filled in, a key which verifies nothing.
    Note,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Where, by names.
    pub path: JsonPath,
    /// Where, by line and column; of the nearest thing around it when the value itself is missing. `None` when
    /// the text was not at hand.
    #[serde(flatten)]
    pub position: Option<Position>,
    /// How bad.
    pub severity: Severity,
    /// What stands there.
    pub found: String,
    /// What would be right.
    pub expected: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, " (line {line}, column {column})")?;
        }
        write!(f, ": {}; expected {}", self.found, self.expected)
    }
}

/// Why a text is no usable document.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DocumentError {
    /// The text is not JSON at all.
    #[error("line {}, column {}: not JSON: {problem}", position.line, position.column)]
    NotJson {
        /// Where reading stopped.
        position: Position,
        /// What the parser says.
        problem: String,
    },
    /// JSON, but not a usable document. At most a hundred faults are listed, and never none.
    #[error("{}", list(.0))]
    Faults(Vec<Fault>),
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
}

/// Why a config or spec file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no usable document.
    #[error("{}: {source}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why; its text is part of this error's text.
        source: DocumentError,
    },
}

/// Which shapes a file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `{spec, compute_ctl_config}`, as `--config` reads it.
    Config,
    /// Either the above, known by one of its two members, or a bare spec, as the legacy `-S` reads it.
    ConfigOrSpec,
}

/// A document that can be used.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The document. A bare spec comes with the default `compute_ctl_config`, which has no keys.
    pub config: ComputeConfig,
    /// Path of the spec within the text: `spec`, or the whole document for a bare spec.
    pub spec_path: JsonPath,
    /// What is usable but odd; to be logged as warnings.
    pub notes: Vec<Fault>,
}

/// Reads and judges a file of at most [`limits::CONFIG_FILE`] bytes. Blocks on the file system.
pub fn load(path: &Path, shape: Shape) -> Result<Checked, ConfigError> {
    parse(&read(path)?, shape).map_err(|source| ConfigError::Invalid { path: path.to_owned(), source })
}

/// Reads a file as text, bounded by [`limits::CONFIG_FILE`].
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    read_text(std::fs::File::open(path).map_err(unreadable)?, path)
}

/// The same from a source which is called `path`.
pub(crate) fn read_text(source: impl Read, path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let mut text = String::new();
    source.take(limits::CONFIG_FILE + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > limits::CONFIG_FILE {
        return Err(unreadable(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("larger than {} bytes", limits::CONFIG_FILE),
        )));
    }
    Ok(text)
}

/// Decodes and judges a text. The error lists the one decode fault, or all faults against the rules.
pub fn parse(text: &str, shape: Shape) -> Result<Checked, DocumentError> {
    let bare = shape == Shape::ConfigOrSpec && {
        let members: BTreeMap<String, IgnoredAny> = decode(text)?;
        !members.contains_key("spec") && !members.contains_key("compute_ctl_config")
    };
    let (config, spec_path) = if bare {
        let spec: ComputeSpec = decode(text)?;
        (
            ComputeConfig { spec: Some(spec), compute_ctl_config: ComputeCtlConfig::default() },
            JsonPath::root(),
        )
    } else {
        (decode::<ComputeConfig>(text)?, JsonPath::root().key("spec"))
    };
    let mut found = Vec::new();
    if let Some(spec) = &config.spec {
        found.extend(examine(spec, &spec_path));
    }
    if !bare {
        found.extend(rules::examine_ctl(&config.compute_ctl_config));
    }
    found.sort_by_key(|finding| finding.severity == Severity::Note);
    found.truncate(limits::FAULTS_LISTED);
    for finding in &mut found {
        finding.position = locate::locate(text, &finding.path);
    }
    let faults: Vec<Fault> = found.iter().filter(|f| f.severity == Severity::Fault).cloned().collect();
    if faults.is_empty() {
        Ok(Checked { config, spec_path, notes: found })
    } else {
        Err(DocumentError::Faults(faults))
    }
}

/// Line and column of the value at `path`, or of the nearest thing around it.
pub(crate) fn position(text: &str, path: &JsonPath) -> Option<Position> {
    locate::locate(text, path)
}

/// Decodes any document type, with the path, place and expected form of the first fault.
pub fn decode<T: DeserializeOwned>(text: &str) -> Result<T, DocumentError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let decoded = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| {
            let path = JsonPath(
                error
                    .path()
                    .iter()
                    .map_while(|segment| match segment {
                        Segment::Seq { index } => Some(Step::Index(*index)),
                        Segment::Map { key } => Some(Step::Key(key.clone())),
                        Segment::Enum { variant } => Some(Step::Key(variant.clone())),
                        Segment::Unknown => None,
                    })
                    .collect(),
            );
            (path, error.into_inner())
        })
        .and_then(|value| json.end().map(|()| value).map_err(|error| (JsonPath::root(), error)));
    decoded.map_err(|(path, error)| {
        // A wrong type where an enum is wanted is reported as a syntax error by the JSON crate, so what counts
        // is whether the text as a whole is JSON.
        match serde_json::from_str::<IgnoredAny>(text) {
            Ok(IgnoredAny) => DocumentError::Faults(vec![decode_fault(text, path, &error)]),
            Err(syntax) => {
                DocumentError::NotJson { position: place_of(text, &syntax), problem: without_place(&syntax) }
            }
        }
    })
}

/// The JSON crate counts bytes, and nothing at the end of a line.
fn place_of(text: &str, error: &serde_json::Error) -> Position {
    let content = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    // Each character counts from its first byte on.
    let starts = |byte: &&u8| (**byte & 0xc0) != 0x80;
    let column = content.as_bytes().iter().take(error.column()).filter(starts).count();
    Position { line: error.line().max(1), column: column.max(1) }
}

/// The error's text without the ` at line … column …` which the JSON crate appends.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

fn decode_fault(text: &str, path: JsonPath, error: &serde_json::Error) -> Fault {
    let message = without_place(error);
    let quoted = || message.split('`').nth(1).unwrap_or_default();
    let position = locate::locate(text, &path);
    let (path, found, hint) = if message.starts_with("missing field") {
        (path.key(quoted()), "missing".to_owned(), "")
    } else if message.starts_with("duplicate field") {
        (path.key(quoted()), "given more than once".to_owned(), "")
    } else {
        let (found, hint) = message.split_once(", expected ").unwrap_or((&message, ""));
        (path, describe(found), hint)
    };
    // The form of a list is not that of its elements.
    let element = matches!(path.0.last(), Some(Step::Index(_)));
    let form = path.field().and_then(|field| form_of(field, element));
    let mut expected = match form {
        Some(form) => form.to_owned(),
        None if found == "missing" => "the field, which is required".to_owned(),
        None => readable(hint),
    };
    if found.contains("null") && path.field().is_some_and(|field| DEFAULTED.contains(&field)) {
        expected.push_str(", or nothing at all for the default");
    }
    if found == "given more than once" {
        expected = "the field once".to_owned();
    }
    Fault { path, position, severity: Severity::Fault, found, expected }
}

/// Fields which may be absent but not `null`.
const DEFAULTED: [&str; 8] = [
    "features",
    "skip_pg_catalog_updates",
    "safekeeper_connstrings",
    "mode",
    "reconfigure_concurrency",
    "drop_subscriptions_before_start",
    "audit_log_level",
    "autoprewarm",
];

/// The decoder's description of what it met, without the text of strings and numbers: those may be secrets.
fn describe(found: &str) -> String {
    let Some(kind) = found.strip_prefix("invalid type: ").or_else(|| found.strip_prefix("invalid value: "))
    else {
        return if found == "expected value" {
            "a value of another type (or null)".to_owned()
        } else {
            found.chars().take(120).collect()
        };
    };
    let kind = kind.split(['`', '"']).next().unwrap_or_default().trim();
    match kind {
        "map" => "an object".to_owned(),
        "sequence" => "a list".to_owned(),
        "null" | "" => "null".to_owned(),
        "integer" if found.starts_with("invalid value") => "an integer out of range".to_owned(),
        "integer" => "an integer".to_owned(),
        other => format!("a {other}"),
    }
}

/// The decoder's name of a type, in words.
fn readable(hint: &str) -> String {
    match hint {
        "" => "another value",
        "u8" => "an integer from 0 to 255",
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "an integer, not negative",
        "a nonzero u64" => "an integer above 0",
        "i64" => "an integer",
        "f32" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "true or false",
        hint if hint.starts_with("struct ") || hint.starts_with("internally tagged enum") => "an object",
        hint => hint,
    }
    .to_owned()
}

/// What a field should hold, where the decoder's own words would not help.
fn form_of(field: &str, element: bool) -> Option<&'static str> {
    if element {
        let key = "a public key as in RFC 7517, whose `kty`, `alg`, `kid`, `use` and the like are strings";
        return (field == "keys").then_some(key);
    }
    Some(match field {
        "format_version" => "a number, `1.0` in practice",
        "suspend_timeout_seconds" => "an integer of seconds, 0 or -1 for never",
        "cluster" => "an object with at least `roles` and `databases`",
        "roles" => "a list of roles `{\"name\": …}`, which may be empty",
        "databases" => "a list of databases `{\"name\": …, \"owner\": …}`, which may be empty",
        "mode" => "`\"Primary\"`, `\"Replica\"` or `{\"Static\": \"<LSN>\"}`",
        "audit_log_level" => "one of `Disabled`, `Log`, `Base`, `Hipaa`, `Extended`, `Full`",
        "prefer_protocol" => "`libpq` or `grpc`",
        "features" => "a list of names, each a string",
        "value" => "a string (numbers too stand in quotes) or null",
        "vartype" => "`string` for a value to be quoted, otherwise `bool`, `integer`, `enum` …",
        "encrypted_password" => "a SCRAM-SHA-256 verifier, 32 hexadecimal digits of an MD5 digest, or null",
        "pgbouncer_settings" => "an object whose values are strings",
        "offload_lfc_interval_seconds" => "an integer of seconds above 0, or null for no upload",
        "reconfigure_concurrency" => "an integer from 1 upwards",
        "compute_ctl_config" => "an object with `jwks` (a file which holds a bare spec is read with `-S`)",
        "jwks" => "a key set `{\"keys\": […]}`",
        "keys" => "a list of keys as in RFC 7517, which may be empty",
        "kind" | "storage" => {
            "an object whose `kind` is `neon`, `initdb`, `existing`, `base_backup` or `archive`"
        }
        "shards" => "an object from shard index (4 hexadecimal digits) to `{\"pageservers\": […]}`",
        _ => return None,
    })
}
