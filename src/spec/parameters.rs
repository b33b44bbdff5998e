//! Reads the parameters of a storage kind out of the document, and collects what is wrong with them.

use serde_json::Value;

use super::document::StorageParameters;
use crate::limits;

/// A parameter that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("storage.{field}: {found}; expected {expected}")]
pub struct ParameterFault {
    /// Its name.
    pub field: String,
    /// The value, if it is a text that may be shown; it could be a placeholder.
    pub text: Option<String>,
    /// What stands there.
    pub found: &'static str,
    /// What would be right.
    pub expected: &'static str,
}

pub(super) struct Reader<'a> {
    pub(super) parameters: &'a StorageParameters,
    pub(super) faults: Vec<ParameterFault>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(parameters: &'a StorageParameters) -> Self {
        Self { parameters, faults: Vec::new() }
    }

    pub(super) fn fault(
        &mut self,
        field: &str,
        text: Option<&str>,
        found: &'static str,
        expected: &'static str,
    ) {
        let (field, text) = (field.to_owned(), text.map(str::to_owned));
        self.faults.push(ParameterFault { field, text, found, expected });
    }

    /// A value; `null` counts as absent.
    pub(super) fn value(&self, field: &str) -> Option<&'a Value> {
        self.parameters.0.get(field).filter(|value| !value.is_null())
    }

    /// A string.
    pub(super) fn string(&mut self, field: &str, expected: &'static str) -> Option<&'a str> {
        match self.value(field)? {
            Value::String(text) => Some(text),
            _ => {
                self.fault(field, None, "a value that is no string", expected);
                None
            }
        }
    }

    /// A string that must be there.
    pub(super) fn required(&mut self, field: &str, expected: &'static str) -> Option<&'a str> {
        if self.value(field).is_none() {
            self.fault(field, None, "missing", expected);
        }
        self.string(field, expected)
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, field: &str, default: bool) -> bool {
        match self.value(field) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(_) => {
                self.fault(field, None, "a value that is no boolean", "`true` or `false`");
                default
            }
        }
    }

    /// One of some words, the first if there is none.
    pub(super) fn choice<T: Copy>(
        &mut self,
        field: &str,
        choices: &[(&str, T)],
        expected: &'static str,
    ) -> Option<T> {
        let Some(text) = self.string(field, expected) else {
            return choices.first().map(|(_, value)| *value);
        };
        let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if chosen.is_none() {
            self.fault(field, Some(text), "an unknown word", expected);
        }
        chosen
    }

    /// Tells of parameters that there are not.
    pub(super) fn unknown(&mut self, known: &[&str], found: &'static str, expected: &'static str) {
        let unknown = self.parameters.0.keys().filter(|key| !known.contains(&key.as_str()));
        for key in unknown.take(limits::FAULTS_LISTED) {
            self.fault(key, None, found, expected);
        }
    }
}
