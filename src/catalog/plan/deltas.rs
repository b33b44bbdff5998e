//! The delta operations: which of them are still to be done.
//!
//! They are repeated with every apply of their spec, so each has to know when it has been done. Deletions and
//! renames of something absent have. A rename has, when both its names are taken and the old one is wanted. And an
//! object is not the one to delete or rename any more, when a later operation renames something onto that name
//! and has been done: its source is gone, or is itself what a still later operation brought there.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{Kind, PlanError};
use crate::spec::document::DeltaOp;

/// The entries by name; entries that say the same count once.
pub(super) fn unique<'a, T: PartialEq>(
    kind: Kind,
    list: &'a [T],
    name: impl Fn(&'a T) -> &'a String,
) -> Result<BTreeMap<&'a str, &'a T>, PlanError> {
    let entries: BTreeMap<&str, &T> = list.iter().map(|entry| (name(entry).as_str(), entry)).collect();
    // Of several with one name, one is in the map.
    if entries.len() < list.len()
        && let Some(entry) = list.iter().find(|entry| entries[name(entry).as_str()] != *entry)
    {
        return Err(PlanError::Contradiction { kind, name: name(entry).clone() });
    }
    Ok(entries)
}

fn rename_action(kind: Kind) -> &'static str {
    match kind {
        Kind::Role => "rename_role",
        Kind::Database => "rename_db",
    }
}

/// Refuses renames without a new name, and renames which together lead some object to a name from which
/// another, or itself, starts in a circle.
pub(super) fn check_renames(kind: Kind, deltas: &[DeltaOp]) -> Result<(), PlanError> {
    // Which object, by its first name, would carry a name in the end.
    let mut carrier: BTreeMap<&str, &str> = BTreeMap::new();
    for op in deltas.iter().filter(|op| op.action == rename_action(kind)) {
        let to =
            op.new_name.as_deref().ok_or_else(|| PlanError::NoNewName { kind, name: op.name.clone() })?;
        if to != op.name {
            let first = carrier.remove(op.name.as_str()).unwrap_or(&op.name);
            carrier.insert(to, first);
        }
    }
    for start in carrier.keys().copied() {
        let mut name = start;
        for _ in 0..carrier.len() {
            let Some(previous) = carrier.get(name) else { break };
            name = previous;
            if name == start {
                return Err(PlanError::RenameCycle { kind, name: start.to_owned() });
            }
        }
    }
    Ok(())
}

/// Refuses to delete a database that is listed, unless something else is renamed onto its name afterwards: it would
/// be dropped and made anew, empty, with each apply.
pub(super) fn check_deletions(deltas: &[DeltaOp], wanted: impl Fn(&str) -> bool) -> Result<(), PlanError> {
    let mut deleted: BTreeSet<&str> = BTreeSet::new();
    for op in deltas {
        match (op.action.as_str(), op.new_name.as_deref()) {
            ("delete_db", _) => {
                deleted.insert(&op.name);
            }
            ("rename_db", Some(to)) if to != op.name => {
                deleted.remove(to);
            }
            _ => {}
        }
    }
    match deleted.into_iter().find(|name| wanted(name)) {
        Some(name) => Err(PlanError::DeletedAndListed { name: name.to_owned() }),
        None => Ok(()),
    }
}

/// Whether the object which operation `at` means has gone already, and the one that now has its name is
/// another which a later operation brought there.
pub(super) fn is_replaced(kind: Kind, deltas: &[DeltaOp], at: usize, exists: impl Fn(&str) -> bool) -> bool {
    let mut arrived: BTreeSet<&str> = BTreeSet::new();
    // Backwards, because whether a rename was done depends on those after it only.
    for later in deltas[at + 1..].iter().rev().filter(|op| op.action == rename_action(kind)) {
        let Some(to) = later.new_name.as_deref().filter(|to| *to != later.name) else { continue };
        if !exists(&later.name) || arrived.contains(later.name.as_str()) {
            arrived.insert(to);
        }
    }
    arrived.contains(deltas[at].name.as_str())
}

/// The new name, if operation `at` is a rename that is still to be done.
pub(super) fn rename_target(
    kind: Kind,
    deltas: &[DeltaOp],
    at: usize,
    wanted: impl Fn(&str) -> bool,
    exists: impl Fn(&str) -> bool,
) -> Result<Option<&str>, PlanError> {
    let op = &deltas[at];
    let Some(to) = op.new_name.as_deref().filter(|to| *to != op.name && exists(&op.name)) else {
        return Ok(None);
    };
    if is_replaced(kind, deltas, at, &exists) {
        return Ok(None);
    }
    if !exists(to) {
        return Ok(Some(to));
    }
    // Listed in spite of its rename: it was made anew afterwards.
    if wanted(&op.name) {
        return Ok(None);
    }
    Err(PlanError::RenameTargetExists { kind, from: op.name.clone(), to: to.to_owned() })
}

/// Names PostgreSQL lets nobody use (`IsReservedName` and `check_rolespec_name` in its source).
pub(super) fn reserved(name: &str) -> Result<(), PlanError> {
    if name.starts_with("pg_") || name == "public" || name == "none" {
        return Err(PlanError::ReservedRole { name: name.to_owned() });
    }
    Ok(())
}
