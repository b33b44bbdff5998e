//! Replication slots: what keeps WAL at the source for a standby, and must not be left there without one.

use tokio_util::sync::CancellationToken;

use super::super::base_backup_of;
use super::StorageError;
use super::source::Source;
use crate::postgres::Installation;
use crate::spec::base_backup::BaseBackupSpec;
use crate::spec::store::StoredSpec;
use crate::telemetry::chain;

/// Replication slots that are this node's own, at the servers it follows.
#[derive(Debug, Default)]
pub struct OwnSlots(Vec<BaseBackupSpec>);

impl OwnSlots {
    /// Notes the slot of a spec, if it has one of this node's own.
    pub fn note(&mut self, stored: &StoredSpec) {
        if let Ok(Some(spec)) = base_backup_of(stored)
            && spec.create_slot
            && !self.0.iter().any(|known| same_slot(known, &spec))
        {
            self.0.push(spec);
        }
    }

    /// Takes out those that the standby of this spec does not use.
    pub fn take_others(&mut self, stored: &StoredSpec) -> Self {
        let Ok(Some(spec)) = base_backup_of(stored) else { return Self::default() };
        let (used, others) =
            std::mem::take(&mut self.0).into_iter().partition(|known| same_slot(known, &spec));
        self.0 = used;
        Self(others)
    }

    /// Takes out those whose standby ends with this process.
    pub fn take_ending(&mut self) -> Self {
        Self(std::mem::take(&mut self.0).into_iter().filter(BaseBackupSpec::slot_ends_with_node).collect())
    }

    /// Drops them, which takes at most some seconds each. What cannot be dropped is named in a warning.
    pub async fn drop_all(self, installation: &Installation) {
        for spec in self.0 {
            drop_slot(&spec, installation).await;
        }
    }
}

fn same_slot(a: &BaseBackupSpec, b: &BaseBackupSpec) -> bool {
    a.slot == b.slot && a.source.to_string() == b.source.to_string()
}

/// Makes the slot that a running standby needs for this spec, if the spec wants one made.
///
/// # Errors
/// If the server which it is to follow does not make it.
pub async fn make_slot(
    stored: &StoredSpec,
    installation: &Installation,
    cancel: &CancellationToken,
) -> Result<(), StorageError> {
    match base_backup_of(stored)? {
        Some(spec) => make(&spec, installation, cancel).await,
        None => Ok(()),
    }
}

/// Makes the slot of a spec that a running standby is to use from now on.
pub(super) async fn make(
    spec: &BaseBackupSpec,
    installation: &Installation,
    cancel: &CancellationToken,
) -> Result<(), StorageError> {
    match &spec.slot {
        Some(slot) if spec.create_slot => Source { spec, installation, cancel }.make_slot(slot).await,
        _ => Ok(()),
    }
}

/// Drops the slot of a spec that no standby uses any more, if it is this node's own. Nothing depends on it.
async fn drop_slot(spec: &BaseBackupSpec, installation: &Installation) {
    let Some(slot) = spec.slot.as_ref().filter(|_| spec.create_slot) else { return };
    let never = CancellationToken::new();
    let source = Source { spec, installation, cancel: &never };
    if let Err(error) = source.drop_slot(slot).await {
        tracing::warn!(
            slot,
            "a replication slot is left, and keeps WAL until it is dropped: {}",
            chain(&error)
        );
    }
}
