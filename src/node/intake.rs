//! Specs on their way in: resolved, judged, stored, and known to the machine by an outline.

use std::sync::Arc;

use compute_states::{Revision, SpecOutline};

use crate::http::{Accepted, Identity, SpecIntake};
use crate::spec::document::ComputeSpec;
use crate::spec::fault::{self, JsonPath, Severity};
use crate::spec::store::{SpecStore, StoredSpec};
use crate::telemetry::log;

/// The store, and the judgement in front of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Intake(SpecStore);

impl Intake {
    pub(super) fn specs(&self) -> &SpecStore {
        &self.0
    }

    /// Judges and stores a spec. It stays as long as what is returned.
    pub(super) fn take(&self, document: ComputeSpec) -> Result<(SpecOutline, Arc<StoredSpec>), String> {
        let stored = self.judge(document)?;
        let final_sync = stored.resolved.final_sync();
        let (revision, held) = self.0.insert(stored);
        log::attached();
        Ok((SpecOutline { revision: Revision(revision), final_sync }, held))
    }

    /// What the machine knows of a spec that is kept.
    pub(super) fn outline(&self, revision: Revision) -> Option<SpecOutline> {
        let stored = self.0.get(revision.0)?;
        Some(SpecOutline { revision, final_sync: stored.resolved.final_sync() })
    }
}

impl SpecIntake for Intake {
    fn judge(&self, document: ComputeSpec) -> Result<StoredSpec, String> {
        // In this order, so that what the original refuses is refused in its words.
        let stored = StoredSpec::new(document).map_err(|error| error.to_string())?;
        let root = JsonPath::root().key("spec");
        let findings = fault::examine(&stored.document, &root);
        let faults: Vec<String> = findings
            .iter()
            .filter(|finding| finding.severity == Severity::Fault)
            .map(ToString::to_string)
            .collect();
        if !faults.is_empty() {
            return Err(faults.join("\n"));
        }
        Ok(stored)
    }

    fn accept(&self, spec: ComputeSpec) -> Result<Accepted, String> {
        let (outline, held) = self.take(spec)?;
        Ok(Accepted { outline, held: Some(held) })
    }

    fn identity(&self, revision: Revision) -> Identity {
        let Some(stored) = self.0.get(revision.0) else { return Identity::default() };
        Identity {
            tenant: stored.resolved.tenant.as_ref().map(ToString::to_string),
            timeline: stored.resolved.timeline.as_ref().map(ToString::to_string),
        }
    }
}
