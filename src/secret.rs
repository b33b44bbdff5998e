//! Values that must never reach a log, an error text, `/status`, a journal or a diagram.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A string whose `Debug` and `Display` show nothing of it.
///
/// It is serialised in full: documents that are written back (to a file only we read, or to the server)
/// need the value. Reaching the text takes a call to [`Secret::reveal`], which a reviewer can search for.
#[derive(Clone, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// What is wrong with a document, without the values in it: serde quotes a value that has the wrong type, and
/// nobody knows what that value was meant to be.
pub fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let quoting = ["invalid type", "invalid value", "invalid length", "unknown variant"];
    let Some(kind) = quoting.into_iter().find(|kind| text.starts_with(kind)) else {
        return text;
    };
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("{kind}, expected {expected}"),
        None => format!("{kind} at line {} column {}", error.line(), error.column()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_debug_nor_display_shows_the_value() {
        let secret = Secret::new("hunter2");
        assert!(!format!("{secret:?} {secret}").contains("hunter2"));
        assert_eq!(secret.reveal(), "hunter2");
    }

    #[test]
    fn a_fault_is_told_without_the_value() {
        let fault = |text| without_values(&serde_json::from_str::<Vec<bool>>(text).expect_err("it is wrong"));
        assert_eq!(fault(r#"["hunter2"]"#), "invalid type, expected a boolean at line 1 column 10");
        assert_eq!(fault("[true"), "EOF while parsing a list at line 1 column 5");
    }
}
