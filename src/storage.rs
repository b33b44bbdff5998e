//! Where the data directory comes from: one trait, a file per kind.
//!
//! A kind prepares PGDATA and nothing else; it never starts a server. `postgresql.conf` is written after it,
//! by whoever starts the server, with [`settings`] of the kind's own.
//!
//! **`pg_dynshmem`** stays the ordinary directory that `initdb` makes. Neon's original replaces it by a symlink
//! to `/dev/shm`, which matters only with `dynamic_shared_memory_type = mmap`; there, a starting server unlinks
//! every `mmap.*` file it finds (`dsm_cleanup_for_mmap`), so two servers of one machine would remove each
//! other's segments, and after a reboot of a kept directory nothing is lost by not having it. The default type,
//! `posix`, uses `/dev/shm` by itself, under names of its own.

mod archive;
mod base_backup;
mod existing;
mod identity;
mod initdb;
pub mod neon;
mod progress;
mod role;
mod scratch;
pub mod unpack;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::postgres::conf;
use crate::postgres::process::RunError;
use crate::postgres::{ClearRule, Contents, DataDir, Installation, PgdataError};
use crate::spec;
use crate::spec::base_backup::BaseBackupSpec;
use crate::spec::document::{StorageParameters, StorageSpec};
use crate::spec::parameters::ParameterFault;
use crate::spec::resolve::{Mode, StorageKind};
use crate::spec::store::StoredSpec;
use crate::telemetry::chain;
use neon::safekeepers::SyncError;
use unpack::UnpackError;

pub use archive::{Archive, ArchiveError, AttemptError, DownloadError, Timing};
pub use base_backup::{BaseBackup, BaseBackupError, OwnSlots, Patience, make_slot};
pub use existing::Existing;
pub use initdb::Initdb;
pub use neon::{EndOfLog, Neon, NeonError, Safekeepers};
pub use progress::{Measured, Phase, Progress};
pub use role::{Role, stands_by};

/// Length of `global/pg_control`, `PG_CONTROL_FILE_SIZE`.
const CONTROL_SIZE: u64 = 8192;

/// Why the data directory was not prepared.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The parameters in the spec are wrong, a placeholder that nobody has filled in for one.
    #[error("{0}")]
    Parameter(ParameterFault),
    /// The archive could not be had, or is not what it should be.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Neon's storage does not give what it should.
    #[error(transparent)]
    Neon(#[from] NeonError),
    /// The safekeepers do not agree on the end of the log, and could not be made to.
    #[error(transparent)]
    Safekeepers(#[from] SyncError),
    /// The server to copy cannot be had, or is not what it should be.
    #[error(transparent)]
    BaseBackup(#[from] BaseBackupError),
    /// A standby's directory, and the spec wants a primary.
    #[error(
        "data directory {path} is a standby's, and mode Primary does not promote it: promote the running standby \
         first (POST /promote), or say mode Replica"
    )]
    IsStandby {
        /// The data directory.
        path: PathBuf,
    },
    /// A primary's directory, and the spec wants a standby.
    #[error(
        "data directory {path} is a primary's, which has written what no other has: it cannot follow one; without \
         it, it is made anew"
    )]
    IsPrimary {
        /// The data directory.
        path: PathBuf,
    },
    /// `existing` without anything, and the spec wants a standby.
    #[error("data directory {path} holds no cluster that could be a standby; \"base_backup\" makes one")]
    NoStandby {
        /// The data directory.
        path: PathBuf,
    },
    /// The directory itself: in use, not ours, or an operation on it failed.
    #[error(transparent)]
    Pgdata(#[from] PgdataError),
    /// A cluster of another major version.
    #[error(
        "data directory {path} was made by PostgreSQL {found}, the server found is {installed}; \
         name one of version {found} with --pgbin"
    )]
    WrongVersion {
        /// The data directory.
        path: PathBuf,
        /// What its `PG_VERSION` says.
        found: String,
        /// The server's version.
        installed: String,
    },
    /// `existing` found something that is not a cluster.
    #[error("data directory {path} holds {found}; \"existing\" needs a cluster or an empty directory")]
    NotACluster {
        /// The data directory.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The cache of templates belongs to somebody else, who could put anything into our clusters.
    #[error("template cache {path} belongs to user id {owner}; name another directory")]
    CacheNotOurs {
        /// The cache directory, or a template in it.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// `initdb` could not be run to its end.
    #[error(transparent)]
    Run(#[from] RunError),
    /// `initdb` failed.
    #[error("initdb failed: {output}")]
    Initdb {
        /// The end of what it printed.
        output: String,
    },
    /// An operation on a file outside the data directory, or between both, failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The caller gave up.
    #[error("preparing the data directory was cancelled")]
    Cancelled,
    /// A bug of ours, in a blocking task.
    #[error("preparing the data directory panicked")]
    Panicked,
}

impl StorageError {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.into(), source }
    }

    /// The disk, or the quota, is full: trying again at once does not help, and nothing is wrong with the spec.
    pub fn is_disk_full(&self) -> bool {
        let full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        match self {
            Self::Io { source, .. }
            | Self::Pgdata(PgdataError::Io { source, .. })
            | Self::Archive(ArchiveError::Unpack(UnpackError::Io { source, .. }))
            | Self::Neon(NeonError::Unpack { source: UnpackError::Io { source, .. }, .. }) => full(source),
            // strerror(ENOSPC) in the C locale, which initdb is run with.
            Self::BaseBackup(error) => error.is_disk_full(),
            Self::Initdb { output } => output.contains("No space left on device"),
            _ => false,
        }
    }

    /// A server does not answer, or not as it should: it may do so later.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Archive(ArchiveError::Download(error)) => error.is_transient(),
            Self::Neon(error) => error.is_transient(),
            Self::Safekeepers(error) => error.may_pass(),
            Self::BaseBackup(error) => error.is_transient(),
            _ => false,
        }
    }

    /// The caller's own wish, not a failure.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled
            | Self::Archive(ArchiveError::Unpack(UnpackError::Cancelled))
            | Self::Neon(NeonError::Unpack { source: UnpackError::Cancelled, .. })
            | Self::Run(RunError::Cancelled { .. })
            | Self::Pgdata(PgdataError::Cancelled { .. }) => true,
            Self::Safekeepers(error) => error.is_cancelled(),
            _ => false,
        }
    }
}

/// What a data directory is prepared with.
#[derive(Clone, Debug)]
pub struct Context {
    /// The programs.
    pub installation: Installation,
    /// The directory, claimed.
    pub pgdata: Arc<DataDir>,
    /// The superuser a new cluster gets, the user of `--connstr`; normally `cloud_admin`.
    pub superuser: String,
    /// Where templates are kept between starts. Made (0700) when absent; must be ours.
    pub cache: PathBuf,
    /// The `postgresql.conf` that the server will be started with. It is written once the directory is prepared;
    /// what has to run before reads it from here.
    pub conf: Arc<str>,
    /// [`crate::postgres::pgdata::OVERRIDE_FLAG`] was given.
    pub overwrite_foreign: bool,
    /// The server is started again by the same process, after a crash or a failed start: a finished directory
    /// is kept as it is, and PostgreSQL recovers, unless its data are in Neon's storage anyway.
    pub restart: bool,
    /// What the cluster is to be.
    pub role: Role,
    /// Where the preparation tells how far it is.
    pub progress: Arc<Progress>,
    /// Ends the work: between any two files, and `initdb` with all its processes.
    pub cancel: CancellationToken,
}

/// What preparing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// The cluster is new: nothing of an earlier run is in it.
    Created,
    /// The directory was kept.
    Kept,
}

/// A kind of storage.
pub trait Storage: fmt::Debug + Send + Sync {
    /// Its name in the spec.
    fn kind(&self) -> &'static str;

    /// Makes the data directory such that a server can be started on it, or fails and says why. First of all it
    /// makes sure that no server lives there. After a failure or a cancellation it can be called again; when
    /// the future is dropped, the work ends at the next file, and the directory stays claimed until then.
    fn prepare<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Prepared, StorageError>>;

    /// Refuses what [`Storage::prepare`] would refuse because of what is in the directory, and touches nothing.
    fn judge<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StorageError>>;
}

/// The storage a spec asks for.
///
/// # Errors
/// [`StorageError::Parameter`] for parameters that cannot be used.
pub fn open(stored: &StoredSpec) -> Result<Box<dyn Storage>, StorageError> {
    match &stored.document.storage {
        Some(StorageSpec::Initdb) => Ok(Box::new(Initdb)),
        Some(StorageSpec::Existing) => Ok(Box::new(Existing)),
        Some(StorageSpec::Archive(parameters)) => match spec::archive::decode(parameters) {
            Ok(archive) => Ok(Box::new(Archive::new(archive))),
            // Never none.
            Err(mut faults) => Err(StorageError::Parameter(faults.swap_remove(0))),
        },
        Some(StorageSpec::BaseBackup(parameters)) => {
            Ok(Box::new(BaseBackup::new(base_backup(parameters, stored)?)))
        }
        None | Some(StorageSpec::Neon) => {
            let neon = Neon::new(stored).expect("a resolved spec of this kind has all that it needs");
            Ok(Box::new(neon))
        }
    }
}

fn base_backup_of(stored: &StoredSpec) -> Result<Option<BaseBackupSpec>, StorageError> {
    let Some(StorageSpec::BaseBackup(parameters)) = &stored.document.storage else { return Ok(None) };
    base_backup(parameters, stored).map(Some)
}

fn base_backup(parameters: &StorageParameters, stored: &StoredSpec) -> Result<BaseBackupSpec, StorageError> {
    let standby = stored.resolved.mode != Mode::Primary;
    // Never none.
    spec::base_backup::decode(parameters, standby)
        .map_err(|mut faults| StorageError::Parameter(faults.swap_remove(0)))
}

/// What the storage of a spec says in `postgresql.conf`, after all settings of the spec: whom a standby follows,
/// and how a recovery ends. Nothing but that: the rest is the spec's.
///
/// # Errors
/// [`StorageError::Parameter`] for parameters that cannot be used.
pub fn settings(stored: &StoredSpec) -> Result<Vec<(&'static str, String)>, StorageError> {
    let mut settings = Vec::new();
    let kind = stored.resolved.storage;
    if let Some(backup) = base_backup_of(stored)? {
        settings = base_backup::settings(&backup);
    }
    let value = |name| conf::declared(&stored.document.cluster, name);
    let declared = |name| value(name).is_some();
    let copied = matches!(kind, StorageKind::BaseBackup | StorageKind::Archive);
    let restored = match Role::of(stored) {
        Role::Restored => copied,
        // Whatever the spec says, a copy must not go on on the timeline of its source.
        Role::Primary => kind == StorageKind::BaseBackup,
        Role::Standby => false,
    };
    if restored && !declared("restore_command") {
        // An archive recovery has to have one. All WAL that is needed lies in the directory.
        settings.push(("restore_command", "false".to_owned()));
    }
    if restored && !declared("recovery_target_action") {
        // PostgreSQL's default, to wait at a target for somebody to look, is no primary.
        settings.push(("recovery_target_action", "promote".to_owned()));
    }
    if restored && value("recovery_target_action").is_none_or(|action| action != "pause") {
        // Otherwise the server would call itself ready as soon as it can be read, and a primary has to write.
        settings.push(("hot_standby", "off".to_owned()));
    }
    Ok(settings)
}

/// Puts beside the settings what must not stand in them: the server logs some that change. Blocks.
///
/// # Errors
/// If the file cannot be written, or as [`settings`].
pub fn write_secrets(stored: &StoredSpec, pgdata: &Path) -> Result<(), StorageError> {
    match base_backup_of(stored)? {
        Some(spec) => base_backup::write_password(pgdata, &spec),
        None => Ok(()),
    }
}

/// Makes what a first start needs and no spec changes: the template of `initdb`. Touches no data directory.
///
/// # Errors
/// As [`Storage::prepare`]. Nothing depends on it: whatever is missing is made when it is needed.
pub async fn warm_up(context: &Context) -> Result<(), StorageError> {
    initdb::ensure_template(context).await
}

/// Whether a server that is started again by this process finds its directory as it left it: then it is kept
/// by the kinds that ask.
async fn kept_for_restart(context: &Context) -> Result<bool, StorageError> {
    if !context.restart {
        return Ok(false);
    }
    let pgdata = context.pgdata.clone();
    blocking(&context.cancel, move |_| {
        pgdata.ensure_unused()?;
        Ok(pgdata.contents()? == Contents::Ours)
    })
    .await
}

/// What a kind that makes the directory anew at each start may remove.
fn rule(context: &Context) -> ClearRule {
    ClearRule { overwrite_foreign: context.overwrite_foreign, ..ClearRule::default() }
}

/// Removes what a failed try has put into the directory, our marker included. Nothing ends this but its own
/// failure: the next try begins with the same.
async fn leave_empty(context: &Context) {
    let (pgdata, never) = (context.pgdata.clone(), CancellationToken::new());
    let emptied = blocking(&never, move |cancel| {
        pgdata.clear(ClearRule::default(), cancel)?;
        Ok(pgdata.finish_kept()?)
    });
    if let Err(error) = emptied.await {
        tracing::warn!("cannot remove what was unpacked: {}", chain(&error));
    }
}

/// Runs file work on a blocking thread. The work gets a token that also fires when the future is dropped, for
/// a blocking task cannot be stopped from outside.
async fn blocking<T: Send + 'static>(
    cancel: &CancellationToken,
    work: impl FnOnce(&CancellationToken) -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    let token = cancel.child_token();
    let _on_drop = token.clone().drop_guard();
    match tokio::task::spawn_blocking(move || work(&token)).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(StorageError::Panicked),
        Err(_) => Err(StorageError::Cancelled),
    }
}

/// Refuses a cluster of another major version than the server's.
fn same_version(pgdata: &DataDir, installation: &Installation) -> Result<(), StorageError> {
    let found = pgdata.cluster_version()?.unwrap_or_default();
    if found == installation.version().major.to_string() {
        return Ok(());
    }
    Err(StorageError::WrongVersion {
        path: pgdata.path().to_owned(),
        found,
        installed: installation.version().to_string(),
    })
}

/// Moves everything from a directory below into this one, and removes it.
fn move_up(from: &Path, to: &Path) -> Result<(), StorageError> {
    for entry in fs::read_dir(from).map_err(StorageError::io("list", from))? {
        let entry = entry.map_err(StorageError::io("list", from))?;
        let path = entry.path();
        fs::rename(&path, to.join(entry.file_name())).map_err(StorageError::io("move", &path))?;
    }
    fs::remove_dir(from).map_err(StorageError::io("remove", from))
}

/// Puts everything on the file system of this directory on disk: nothing was synced while it was filled.
fn sync(pgdata: &Path) -> Result<(), StorageError> {
    let dir = File::open(pgdata).map_err(StorageError::io("open", pgdata))?;
    rustix::fs::syncfs(dir).map_err(|errno| StorageError::io("sync", pgdata)(errno.into()))
}
