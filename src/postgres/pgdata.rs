//! The data directory: who lives on it, whose it is, how it is cleared.
//!
//! Nothing is removed while a server lives on the directory, whoever started it, and nothing that is not ours.
//! *Ours* means that the file `.compute_ctl` in it says so: it is written when the directory is filled with
//! data that may be had again, names the path it was written for (a copy elsewhere, say by a base backup, is
//! somebody's data), and says whether the filling was finished.
//!
//! Two instances of this program keep out of each other's way by a lock (flock(2)) on the directory itself:
//! it works before anything may be written, through symlinks, and leaves nothing behind.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio_util::sync::CancellationToken;

use super::proctable::{self, DirId, Stat};

/// The file that says a directory may be wiped by us.
pub const MARKER: &str = ".compute_ctl";

/// The flag that lets a directory be wiped that does not carry our marker.
pub const OVERRIDE_FLAG: &str = "--overwrite-foreign-pgdata";

/// The marker while it is written.
pub(crate) const MARKER_NEW: &str = ".compute_ctl.new";

const LOCK_FILE: &str = "postmaster.pid";

/// Why the data directory cannot be used, or not in this way.
#[derive(Debug, thiserror::Error)]
pub enum PgdataError {
    /// An operation on a file failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another instance of this program uses it.
    #[error("data directory {path} is in use by another compute_ctl")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A server lives on it.
    #[error("a PostgreSQL server is running on data directory {path}: {evidence}")]
    Alive {
        /// The directory.
        path: PathBuf,
        /// How we know.
        evidence: String,
    },
    /// What is in it is not ours to remove.
    #[error(
        "data directory {path} holds {found}, which is not ours to remove; {OVERRIDE_FLAG} removes it all the same"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What is there.
        found: Contents,
    },
    /// The caller gave up. What was done so far is marked as unfinished.
    #[error("work on data directory {path} was cancelled")]
    Cancelled {
        /// The directory.
        path: PathBuf,
    },
}

impl PgdataError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// What a data directory holds. A `lost+found` of the file system does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing.
    Empty,
    /// Data of ours that may be had again.
    Ours,
    /// Data of ours whose making was interrupted.
    Unfinished,
    /// A PostgreSQL cluster without our marker.
    Cluster {
        /// What `PG_VERSION` says.
        version: String,
        /// It carries a signal file of Neon's, so its data are in Neon's storage.
        neon: bool,
        /// Where our marker in it was written, if it carries one that was written elsewhere.
        moved_from: Option<PathBuf>,
    },
    /// Something else.
    Other {
        /// The name of one of the entries.
        example: String,
    },
}

impl std::fmt::Display for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("nothing"),
            Self::Ours => f.write_str("a data directory made by compute_ctl"),
            Self::Unfinished => f.write_str("an unfinished data directory made by compute_ctl"),
            Self::Cluster { version, moved_from: None, .. } => write!(f, "a PostgreSQL {version} cluster"),
            Self::Cluster { version, moved_from: Some(from), .. } => {
                write!(f, "a PostgreSQL {version} cluster copied or moved from {}", from.display())
            }
            Self::Other { example } => {
                write!(f, "files that are no PostgreSQL cluster (such as {example:?})")
            }
        }
    }
}

/// What [`DataDir::clear`] may remove besides what is ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClearRule {
    /// The data are in Neon's storage: remove anything but a cluster that is not Neon's.
    pub neon: bool,
    /// [`OVERRIDE_FLAG`] was given: remove anything.
    pub overwrite_foreign: bool,
}

impl ClearRule {
    fn permits(self, contents: &Contents) -> bool {
        match contents {
            Contents::Empty | Contents::Ours | Contents::Unfinished => true,
            Contents::Cluster { neon, .. } => self.overwrite_foreign || (self.neon && *neon),
            Contents::Other { .. } => self.overwrite_foreign || self.neon,
        }
    }
}

/// A data directory that no other instance of this program can use while this value lives.
///
/// The methods block; call them from a blocking thread ([`crate::storage`] does).
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    id: DirId,
    /// Held for its effect.
    _lock: Flock<File>,
    /// A postmaster of ours runs on it.
    occupied: AtomicBool,
}

impl DataDir {
    /// Makes the directory (0700) if it is absent, follows a symlink at `path`, and takes the lock.
    /// Nothing inside is read or changed. The parent must exist.
    pub fn claim(path: &Path) -> Result<Arc<Self>, PgdataError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(PgdataError::io("make directory", path)(error)),
        }
        let path = fs::canonicalize(path).map_err(PgdataError::io("resolve", path))?;
        let dir = File::open(&path).map_err(PgdataError::io("open directory", &path))?;
        let metadata = dir.metadata().map_err(PgdataError::io("look at", &path))?;
        if !metadata.is_dir() {
            return Err(PgdataError::io("open directory", &path)(io::ErrorKind::NotADirectory.into()));
        }
        let lock = match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(PgdataError::Locked { path }),
            Err((_, errno)) => return Err(PgdataError::io("lock", &path)(errno.into())),
        };
        let id = DirId::of(&metadata);
        Ok(Arc::new(Self { path, id, _lock: lock, occupied: AtomicBool::new(false) }))
    }

    /// Its absolute path, without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn id(&self) -> DirId {
        self.id
    }

    /// Takes the one place for a postmaster of ours; `None` when it is taken.
    pub(super) fn occupy(self: &Arc<Self>) -> Option<Occupied> {
        let free = self.occupied.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
        free.then(|| Occupied(Arc::clone(self)))
    }

    /// [`DataDir::ensure_no_server`], and then removes a lock file that a dead server left. For a directory that
    /// is going to be used as it is.
    pub fn ensure_unused(&self) -> Result<(), PgdataError> {
        self.ensure_no_server()?;
        let file = self.path.join(LOCK_FILE);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PgdataError::io("remove stale", &file)(error))
            }
            _ => Ok(()),
        }
    }

    /// Proves that no server lives on the directory. Touches nothing.
    ///
    /// A pid number proves nothing: after a reboot, or in a container where pids are few, it belongs to
    /// somebody else, and PostgreSQL itself would then refuse to start. So a server is alive if
    /// * the process named in `postmaster.pid` is a PostgreSQL whose working directory this is (or may not be
    ///   known, being another user's), or
    /// * any process that is a PostgreSQL works here, with or without that file: a backend that outlived its
    ///   postmaster still writes, or
    /// * processes are attached to the shared memory segment the file names, for those in another pid namespace.
    pub fn ensure_no_server(&self) -> Result<(), PgdataError> {
        let alive = |evidence| Err(PgdataError::Alive { path: self.path.clone(), evidence });
        if self.occupied.load(Ordering::Acquire) {
            return alive("it was started by this compute_ctl".to_owned());
        }
        let file = self.path.join(LOCK_FILE);
        let lock = match fs::read(&file) {
            Ok(bytes) => Some(LockFile::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(PgdataError::io("read", &file)(error)),
        };
        if let Some(stat) = lock.as_ref().and_then(|lock| Stat::of(lock.pid?)) {
            let here = self.id.is_cwd_of(stat.pid);
            if !stat.is_dead() && stat.is_postgres() && here != Some(false) {
                return alive(format!("{LOCK_FILE} names process {}, a PostgreSQL", stat.pid));
            }
        }
        let here = |stat: &Stat| self.id.is_cwd_of(stat.pid) == Some(true) && stat.is_postgres();
        if let Some(stat) = proctable::all().iter().find(|stat| !stat.is_dead() && here(stat)) {
            return alive(format!("process {} ({}) works in it", stat.pid, stat.comm));
        }
        if let Some((key, id)) = lock.as_ref().and_then(|lock| lock.segment)
            && let Some(segment) = proctable::segment(key, id)
            && segment.attached > 0
            // Key and id can return on another cluster, after a reboot. Its postmaster is then seen elsewhere.
            && !Stat::of(segment.creator)
                .is_some_and(|stat| stat.is_postgres() && self.id.is_cwd_of(stat.pid) == Some(false))
        {
            return alive(format!("{} processes are attached to its shared memory", segment.attached));
        }
        Ok(())
    }

    /// What is in it.
    pub fn contents(&self) -> Result<Contents, PgdataError> {
        let marker = self.marker()?;
        match &marker {
            Some(marker) if marker.path == self.path.to_string_lossy() => {
                return Ok(if marker.finished { Contents::Ours } else { Contents::Unfinished });
            }
            _ => {}
        }
        let Some(example) = self.entries()?.into_iter().next() else { return Ok(Contents::Empty) };
        let example = example.to_string_lossy().into_owned();
        let control = self.path.join("global/pg_control");
        let control = control.try_exists().map_err(PgdataError::io("look at", &control))?;
        let Some(version) = self.cluster_version()?.filter(|_| control) else {
            return Ok(Contents::Other { example });
        };
        let neon = ["neon.signal", "zenith.signal"].iter().any(|name| self.path.join(name).exists());
        Ok(Contents::Cluster { version, neon, moved_from: marker.map(|marker| marker.path.into()) })
    }

    /// Refuses contents that `rule` does not permit to remove. Touches nothing.
    pub fn judge(&self, rule: ClearRule) -> Result<(), PgdataError> {
        let found = self.contents()?;
        if rule.permits(&found) {
            return Ok(());
        }
        Err(PgdataError::Foreign { path: self.path.clone(), found })
    }

    /// Removes everything in the directory, the directory itself excepted: its parent may not be ours to write.
    /// Afterwards it is marked as unfinished and has mode 0700.
    ///
    /// Asks [`DataDir::ensure_no_server`] first and refuses what `rule` does not permit, leaving all as it was.
    /// Symlinks are removed, not followed: a tablespace elsewhere stays. The marker is written first, so that
    /// a directory half cleared is known as ours; the work can be cancelled between any two files.
    pub fn clear(&self, rule: ClearRule, cancel: &CancellationToken) -> Result<(), PgdataError> {
        self.ensure_no_server()?;
        self.judge(rule)?;
        fs::set_permissions(&self.path, Permissions::from_mode(0o700))
            .map_err(PgdataError::io("set the mode of", &self.path))?;
        self.write_marker("filling")?;
        for name in self.entries()? {
            self.remove(&self.path.join(name), cancel)?;
        }
        Ok(())
    }

    fn remove(&self, path: &Path, cancel: &CancellationToken) -> Result<(), PgdataError> {
        if cancel.is_cancelled() {
            return Err(PgdataError::Cancelled { path: self.path.clone() });
        }
        let kind = fs::symlink_metadata(path).map_err(PgdataError::io("look at", path))?.file_type();
        if !kind.is_dir() {
            return fs::remove_file(path).map_err(PgdataError::io("remove", path));
        }
        for entry in fs::read_dir(path).map_err(PgdataError::io("list", path))? {
            self.remove(&entry.map_err(PgdataError::io("list", path))?.path(), cancel)?;
        }
        fs::remove_dir(path).map_err(PgdataError::io("remove", path))
    }

    /// Declares the directory filled with data that may be had again: the next start may wipe it.
    pub fn finish_disposable(&self) -> Result<(), PgdataError> {
        self.write_marker("complete")
    }

    /// Declares the directory filled with data to keep: no start of ours removes them from now on.
    pub fn finish_kept(&self) -> Result<(), PgdataError> {
        let marker = self.path.join(MARKER);
        match fs::remove_file(&marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PgdataError::io("remove", &marker)(error))
            }
            _ => Ok(()),
        }
    }

    /// Takes rights away that PostgreSQL does not tolerate (it wants 0700 or 0750), as a mount often has them.
    pub fn tighten(&self) -> Result<(), PgdataError> {
        let metadata = fs::metadata(&self.path).map_err(PgdataError::io("look at", &self.path))?;
        if metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & 0o027 != 0 {
            fs::set_permissions(&self.path, Permissions::from_mode(0o700))
                .map_err(PgdataError::io("set the mode of", &self.path))?;
        }
        Ok(())
    }

    /// The version of the cluster in it as `PG_VERSION` has it, `None` without that file.
    pub fn cluster_version(&self) -> Result<Option<String>, PgdataError> {
        let path = self.path.join("PG_VERSION");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PgdataError::io("read", &path)(error)),
        }
    }

    /// The names in it, but for the marker and the file system's own directory.
    fn entries(&self) -> Result<Vec<OsString>, PgdataError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(PgdataError::io("list", &self.path))? {
            let name = entry.map_err(PgdataError::io("list", &self.path))?.file_name();
            if name != MARKER && name != MARKER_NEW && name != "lost+found" {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn write_marker(&self, stage: &str) -> Result<(), PgdataError> {
        let text = format!(
            "{stage}\n{}\n# Written by compute_ctl: it may remove everything in this directory.\n",
            self.path.display()
        );
        // In one step, or a full disk could leave an empty marker that disowns the directory.
        let (new, marker) = (self.path.join(MARKER_NEW), self.path.join(MARKER));
        fs::write(&new, text).map_err(PgdataError::io("write", &new))?;
        fs::rename(&new, &marker).map_err(PgdataError::io("write", &marker))
    }

    fn marker(&self) -> Result<Option<Marker>, PgdataError> {
        let path = self.path.join(MARKER);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Marker::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PgdataError::io("read", &path)(error)),
        }
    }
}

/// The place of the one postmaster of ours on a data directory, free again when dropped.
#[derive(Debug)]
pub(super) struct Occupied(Arc<DataDir>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.occupied.store(false, Ordering::Release);
    }
}

struct Marker {
    finished: bool,
    path: String,
}

impl Marker {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let finished = match lines.next()? {
            "complete" => true,
            "filling" => false,
            _ => return None,
        };
        Some(Self { finished, path: lines.next()?.to_owned() })
    }
}

/// The lines of `postmaster.pid` that matter here (PostgreSQL's `miscadmin.h`, `LOCK_FILE_LINE_*`).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LockFile {
    /// Line 1; negative for a stand-alone backend.
    pub(super) pid: Option<i32>,
    /// Line 7: key and id of the System V segment.
    segment: Option<(i64, i64)>,
    /// Line 8, trimmed: `starting`, `stopping`, `ready`, `standby`.
    pub(super) status: Option<String>,
}

impl LockFile {
    pub(super) fn parse(text: &str) -> Self {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let segment = lines.get(6).and_then(|line| {
            let (key, id) = line.split_once(char::is_whitespace)?;
            Some((key.trim().parse().ok()?, id.trim().parse().ok()?))
        });
        Self {
            pid: lines.first().and_then(|line| line.parse::<i32>().ok()).and_then(i32::checked_abs),
            segment,
            status: lines.get(7).map(|line| (*line).to_owned()),
        }
    }

    /// As it stands in the directory now; empty when there is none.
    pub(super) fn read(pgdata: &Path) -> Self {
        let bytes = fs::read(pgdata.join(LOCK_FILE)).unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&bytes))
    }
}

#[cfg(test)]
mod tests;
