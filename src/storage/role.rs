//! Which part a cluster is to play, and how the server is told: by signal files in its directory.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::StorageError;
use crate::postgres::conf;
use crate::spec::resolve::Mode;
use crate::spec::store::StoredSpec;

const STANDBY: &str = "standby.signal";
const RECOVERY: &str = "recovery.signal";

/// What a cluster is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It recovers from the WAL that lies in the directory, and writes on the same timeline.
    Primary,
    /// It recovers from there and from wherever `restore_command` fetches WAL, up to a target if the settings have
    /// one, and then writes on a timeline of its own.
    Restored,
    /// It goes on recovering: modes Replica and Static.
    Standby,
}

impl Role {
    /// What a spec makes of it: one with a command to restore WAL wants it used.
    pub fn of(stored: &StoredSpec) -> Self {
        let restores = || conf::declared(&stored.document.cluster, "restore_command");
        match stored.resolved.mode {
            Mode::Replica | Mode::Static(_) => Self::Standby,
            Mode::Primary if restores().is_some_and(|command| !command.trim().is_empty()) => Self::Restored,
            Mode::Primary => Self::Primary,
        }
    }
}

/// Refuses a directory that is kept and was something else. A standby becomes a primary by a promotion, which
/// begins a new timeline, and never by taking its signal file away: it would write on the timeline of the primary
/// it had followed. One that has been promoted has written what no primary has, so that it can follow none.
pub(super) fn judge_kept(pgdata: &Path, role: Role) -> Result<(), StorageError> {
    let path = pgdata.to_owned();
    match (role, is_standby(pgdata)?) {
        (Role::Primary | Role::Restored, true) => Err(StorageError::IsStandby { path }),
        (Role::Standby, false) => Err(StorageError::IsPrimary { path }),
        _ => Ok(()),
    }
}

/// Refuses a standby's directory for a primary; see [`judge_kept`].
pub(super) fn judge_existing(pgdata: &Path, role: Role) -> Result<(), StorageError> {
    if role != Role::Standby && is_standby(pgdata)? {
        return Err(StorageError::IsStandby { path: pgdata.to_owned() });
    }
    Ok(())
}

fn is_standby(pgdata: &Path) -> Result<bool, StorageError> {
    let signal = pgdata.join(STANDBY);
    signal.try_exists().map_err(StorageError::io("look at", signal))
}

/// Has a server on this directory be a standby.
pub(super) fn stand_by(pgdata: &Path) -> Result<(), StorageError> {
    make(&pgdata.join(STANDBY))
}

/// Makes a copy of another cluster what it is to be, whatever that one was, and frees it of what `ALTER SYSTEM` had
/// set there: ports, commands to archive or restore WAL or a primary to follow would overrule the spec, now and
/// with every later one, and could run any command.
pub(super) fn take_over(pgdata: &Path, role: Role) -> Result<(), StorageError> {
    let wanted = match role {
        Role::Primary => None,
        Role::Restored => Some(RECOVERY),
        Role::Standby => Some(STANDBY),
    };
    for name in [STANDBY, RECOVERY] {
        if remove(&pgdata.join(name))? && wanted != Some(name) {
            tracing::info!("{name} of the copy removed: the spec says what this node is");
        }
    }
    if let Some(name) = wanted {
        make(&pgdata.join(name))?;
    }
    let settings = pgdata.join("postgresql.auto.conf");
    // What `initdb` puts there are comments.
    let text = fs::read(&settings).unwrap_or_default();
    let set = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    if String::from_utf8_lossy(&text).lines().any(set) {
        tracing::warn!("settings made by ALTER SYSTEM in the copy are dropped: those of the spec count");
    }
    remove(&settings)?;
    make(&settings)
}

/// Makes an empty file, unless there is one.
fn make(path: &Path) -> Result<(), StorageError> {
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(StorageError::io("make", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a file; `false` if it was not there.
pub(super) fn remove(path: &Path) -> Result<bool, StorageError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StorageError::io("remove", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_copy_is_what_the_spec_says_and_nothing_else() {
        for (role, left) in
            [(Role::Primary, None), (Role::Restored, Some(RECOVERY)), (Role::Standby, Some(STANDBY))]
        {
            let dir = tempfile::tempdir().unwrap();
            for name in [STANDBY, RECOVERY, "postgresql.auto.conf"] {
                fs::write(dir.path().join(name), "port = 1\n").unwrap();
            }
            take_over(dir.path(), role).unwrap();
            let expected: Vec<&str> = ["postgresql.auto.conf"].into_iter().chain(left).collect();
            assert_eq!(names(dir.path()), expected, "{role:?}");
            assert_eq!(fs::read_to_string(dir.path().join("postgresql.auto.conf")).unwrap(), "");
        }
    }

    #[test]
    fn who_was_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(judge_kept(dir.path(), Role::Standby), Err(StorageError::IsPrimary { .. })));
        for role in [Role::Primary, Role::Restored] {
            judge_kept(dir.path(), role).unwrap();
            judge_existing(dir.path(), role).unwrap();
        }
        judge_existing(dir.path(), Role::Standby).unwrap();
        stand_by(dir.path()).unwrap();
        stand_by(dir.path()).unwrap();
        judge_kept(dir.path(), Role::Standby).unwrap();
        for role in [Role::Primary, Role::Restored] {
            assert!(matches!(judge_kept(dir.path(), role), Err(StorageError::IsStandby { .. })));
            assert!(matches!(judge_existing(dir.path(), role), Err(StorageError::IsStandby { .. })));
        }
    }
}
