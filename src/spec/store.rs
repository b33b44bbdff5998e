//! Documents by revision.
//!
//! The state machine speaks of specs by number; here the numbers lead to the documents. Whoever holds a handle
//! sees the same documents.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::document::ComputeSpec;
use super::resolve::{ResolveError, ResolvedSpec};
use crate::limits;

/// A document and what it comes to.
#[derive(Clone, Debug)]
pub struct StoredSpec {
    /// As it was received.
    pub document: ComputeSpec,
    /// Its facts.
    pub resolved: ResolvedSpec,
}

impl StoredSpec {
    /// Resolves a document.
    pub fn new(document: ComputeSpec) -> Result<Self, ResolveError> {
        let resolved = ResolvedSpec::new(&document)?;
        Ok(Self { document, resolved })
    }
}

/// The documents, by revision. A clone is another handle on the same store.
///
/// Bounded: a document stays while somebody holds it, and so do the newest [`limits::SPECS_KEPT`]; others go. No
/// call waits for anything but a short lock, which is never held across an await.
#[derive(Clone, Debug, Default)]
pub struct SpecStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    specs: BTreeMap<u64, Arc<StoredSpec>>,
}

impl SpecStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a document in, to stay at least as long as what is returned with its revision. Revisions count
    /// from 1 and never repeat, so 0 can stand for "none".
    pub fn insert(&self, spec: StoredSpec) -> (u64, Arc<StoredSpec>) {
        let mut inner = self.lock();
        inner.last += 1;
        let revision = inner.last;
        let held = Arc::new(spec);
        inner.specs.insert(revision, held.clone());
        inner.drop_old();
        (revision, held)
    }

    /// The document of a revision, unless it was dropped.
    pub fn get(&self, revision: u64) -> Option<Arc<StoredSpec>> {
        self.lock().specs.get(&revision).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one insertion or removal, so a panic elsewhere cannot have left half of one behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn drop_old(&mut self) {
        // The store's own handle is the only one left of a document that nobody needs any more.
        let loose = self.specs.iter().filter(|(_, spec)| Arc::strong_count(spec) == 1);
        let loose: Vec<u64> = loose.map(|(revision, _)| *revision).collect();
        for revision in loose.iter().rev().skip(limits::SPECS_KEPT) {
            self.specs.remove(revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(operation: &str) -> StoredSpec {
        let document = serde_json::json!({
            "format_version": 1.0,
            "suspend_timeout_seconds": 0,
            "operation_uuid": operation,
            "cluster": {"roles": [], "databases": []},
            "storage": {"kind": "initdb"},
        });
        StoredSpec::new(serde_json::from_value(document).unwrap()).unwrap()
    }

    #[test]
    fn revisions_count_up_and_lead_to_their_documents() {
        let store = SpecStore::new();
        let (first, second) = (store.insert(spec("a")).0, store.clone().insert(spec("b")).0);
        assert_eq!((first, second), (1, 2));
        assert_eq!(store.get(first).unwrap().document.operation_uuid.as_deref(), Some("a"));
        assert_eq!(store.get(second).unwrap().document.operation_uuid.as_deref(), Some("b"));
        assert!(store.get(0).is_none() && store.get(3).is_none());
    }

    #[test]
    fn old_revisions_go_and_those_that_are_held_stay() {
        let store = SpecStore::new();
        let (applied, held) = store.insert(spec("applied"));
        let (replaced, _) = store.insert(spec("replaced"));
        for _ in 0..=limits::SPECS_KEPT {
            store.insert(spec("later"));
        }
        assert!(store.get(applied).is_some());
        assert!(store.get(replaced).is_none());
        drop(held);
        store.insert(spec("last"));
        assert!(store.get(applied).is_none());
    }
}
