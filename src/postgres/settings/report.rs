//! What is known of settings that are wanted and not in force.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::judge::Refusal;
use super::{Judgement, SettingsError};

/// Settings that are wanted and not in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Those whose value on file waits for a restart, by name.
    pub pending_restart: Vec<String>,
    /// Those of the last change which Postgres did not take.
    pub rejected: Vec<Rejected>,
}

/// A setting which Postgres did not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// Its name; none for a line that is no setting at all.
    pub name: Option<String>,
    /// Why, and what would be right. Without the value where that may be a secret.
    pub reason: String,
}

impl Report {
    /// Whether everything that is wanted is in force.
    pub fn is_empty(&self) -> bool {
        self.pending_restart.is_empty() && self.rejected.is_empty()
    }
}

impl Rejected {
    fn of(refusal: &Refusal) -> Self {
        let mut reason = refusal.reason.clone();
        if let Some(expected) = &refusal.expected {
            reason.push_str("; right is ");
            reason.push_str(expected);
        }
        if let (None, Some((file, line))) = (&refusal.name, &refusal.place) {
            reason.push_str(&format!(" ({file} line {line})"));
        }
        Rejected { name: refusal.name.clone(), reason }
    }

    /// What a change was refused for; nothing if it failed for another reason.
    pub(super) fn by(error: &SettingsError) -> Vec<Self> {
        let elsewhere = "Postgres has a value from elsewhere, which comes before that of the file";
        match error {
            SettingsError::Refused(refusals) => refusals.iter().map(Self::of).collect(),
            SettingsError::NotTaken(names) => names
                .iter()
                .map(|name| Rejected { name: Some(name.clone()), reason: elsewhere.to_owned() })
                .collect(),
            _ => Vec::new(),
        }
    }

    /// What a judgement refuses.
    pub(super) fn in_judgement(judgement: &Judgement) -> Vec<Self> {
        judgement.refused.iter().map(Self::of).collect()
    }
}

/// The present report, for whoever shows it. Cheap to clone and to read.
#[derive(Clone, Debug, Default)]
pub struct Reported(Arc<Mutex<Arc<Report>>>);

impl Reported {
    /// What is known at present.
    pub fn get(&self) -> Arc<Report> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Report)) -> Arc<Report> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut held));
        held.clone()
    }
}
