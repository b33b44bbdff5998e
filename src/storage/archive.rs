//! `archive`: a cluster from a tar, on this machine or on a server.
//!
//! It is fetched anew at each start of this process, unpacked while it arrives ([`super::unpack`]), compared
//! with its SHA-256 and looked at: is it a cluster, of the server's version, that keeps to its directory. Only
//! then it is declared finished; whatever goes wrong before leaves the directory empty.
//!
//! The archive brings data, not settings:
//!
//! * `standby.signal` and `recovery.signal` are what the spec wants, whatever was archived ([`role::take_over`]). A
//!   primary recovers from the WAL in the archive, with `backup_label` if there is one, and goes on by itself; with a
//!   `restore_command` in the spec it goes on to the recovery target. A standby goes on recovering from
//!   wherever the spec's settings fetch WAL.
//! * `postgresql.auto.conf` is emptied: what `ALTER SYSTEM` had set where the archive was made would overrule the
//!   spec. `postgresql.conf` is replaced by whoever starts the server.
//! * `postmaster.pid`, `postmaster.opts`, our own marker and a password that a standby of ours had, from where the
//!   archive was made, are left out.
//! * Tablespaces must lie inside. Links elsewhere are refused by the unpacker; a `tablespace_map` that is not
//!   empty is refused here, for the server would make such links of it.
//!
//! The system identifier stays the archive's: a restored cluster is the same cluster.

mod download;

use std::fs;
use std::io;
use std::path::PathBuf;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::libc::O_NONBLOCK;
use tokio::time::Instant;

use super::base_backup::PASSFILE;
use super::unpack::{self, Options, UnpackError};
use super::{
    CONTROL_SIZE, Context, Phase, Prepared, Storage, StorageError, blocking, kept_for_restart, leave_empty,
    role, rule, same_version,
};
use crate::postgres::DataDir;
use crate::spec::archive::{ArchiveSource, ArchiveSpec};
use download::Download;
pub use download::{AttemptError, DownloadError, Timing};

const LEFT_OUT: &[&str] = &["postmaster.pid", "postmaster.opts", PASSFILE];

/// Why an archive did not become a data directory.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file cannot be opened.
    #[error("cannot open archive {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path leads to something else than a file.
    #[error("archive {} is no regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be downloaded.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// It cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// It is another one.
    #[error("the archive has SHA-256 {found}, and not {expected} as the spec says")]
    Checksum {
        /// What the spec says, in hexadecimal digits.
        expected: String,
        /// What was received.
        found: String,
    },
    /// Something else was archived.
    #[error(
        "the archive holds no PostgreSQL cluster: {lacks} is missing or not what it should be; if the cluster lies in a \
         directory within the archive, say so with strip_components"
    )]
    NotACluster {
        /// The file that a cluster has.
        lacks: &'static str,
    },
    /// It has tablespaces outside the data directory.
    #[error(
        "the archive has a tablespace_map: its tablespaces lie outside the data directory, which is not served"
    )]
    Tablespaces,
}

/// Wipes the data directory at each start of this process and unpacks an archive into it.
#[derive(Debug)]
pub struct Archive {
    spec: ArchiveSpec,
    timing: Timing,
}

impl Archive {
    /// The archive of a spec.
    pub fn new(spec: ArchiveSpec) -> Self {
        Self::with_timing(spec, Timing::default())
    }

    /// The same with another patience.
    pub fn with_timing(spec: ArchiveSpec, timing: Timing) -> Self {
        Self { spec, timing }
    }
}

impl Storage for Archive {
    fn kind(&self) -> &'static str {
        "archive"
    }

    fn prepare<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Prepared, StorageError>> {
        prepare(self, context).boxed()
    }

    fn judge<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StorageError>> {
        let (pgdata, rule) = (context.pgdata.clone(), rule(context));
        blocking(&context.cancel, move |_| Ok(pgdata.judge(rule)?)).boxed()
    }
}

/// An archive that is there.
enum Opened {
    File(fs::File),
    Download(Box<Download>),
}

async fn prepare(archive: &Archive, context: &Context) -> Result<Prepared, StorageError> {
    if kept_for_restart(context).await? {
        let (pgdata, role) = (context.pgdata.clone(), context.role);
        blocking(&context.cancel, move |_| role::judge_kept(pgdata.path(), role)).await?;
        return Ok(Prepared::Kept);
    }
    let (pgdata, rule) = (context.pgdata.clone(), rule(context));
    blocking(&context.cancel, move |_| {
        pgdata.ensure_no_server()?;
        Ok(pgdata.judge(rule)?)
    })
    .await?;
    context.progress.reset();
    context.progress.enter(Phase::Connecting);
    let begun = Instant::now();
    // Before anything is removed: there may be no such archive.
    let opening = context.cancel.run_until_cancelled(open(archive)).await;
    let source = opening.ok_or(StorageError::Cancelled)??;
    let pgdata = context.pgdata.clone();
    blocking(&context.cancel, move |cancel| Ok(pgdata.clear(rule, cancel)?)).await?;
    match fill(archive, context, source).await {
        Ok(()) => {
            context.progress.measure(|measured| measured.fetch = begun.elapsed());
            Ok(Prepared::Created)
        }
        // Whoever cancels is in a hurry; the next try removes what there is.
        Err(error) if error.is_cancelled() => Err(error),
        Err(error) => {
            leave_empty(context).await;
            Err(error)
        }
    }
}

async fn open(archive: &Archive) -> Result<Opened, ArchiveError> {
    let ArchiveSpec { source, sha256, token, .. } = &archive.spec;
    match source {
        ArchiveSource::File(path) => {
            // A FIFO would keep its opener waiting.
            let file = tokio::fs::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).await;
            let failed = |source| ArchiveError::Open { path: path.clone(), source };
            let file = file.map_err(failed)?;
            if !file.metadata().await.map_err(failed)?.is_file() {
                return Err(ArchiveError::NotAFile { path: path.clone() });
            }
            Ok(Opened::File(file.into_std().await))
        }
        ArchiveSource::Url(url) => {
            let mut download = Download::new(url, token.as_ref(), sha256.is_some(), archive.timing)?;
            download.begin().await?;
            Ok(Opened::Download(Box::new(download)))
        }
    }
}

/// From an empty directory to a finished one.
async fn fill(archive: &Archive, context: &Context, source: Opened) -> Result<(), StorageError> {
    let spec = &archive.spec;
    tracing::info!(source = %spec.source, format = %spec.format, "unpacking an archive");
    let options = Options {
        format: spec.format,
        strip_components: spec.strip_components,
        leave_out: LEFT_OUT,
        digest: spec.sha256.is_some(),
        ..Options::default()
    };
    let progress = context.progress.clone();
    progress.enter(Phase::Receiving);
    let (into, cancel) = (context.pgdata.clone(), &context.cancel);
    let unpacked = match source {
        Opened::File(file) => unpack::unpack_file(file, into, options, progress.clone(), cancel).await,
        Opened::Download(download) => {
            unpack::unpack(download.stream(), into, options, progress.clone(), cancel).await
        }
    };
    let unpacked = unpacked.map_err(cause)?;
    progress.enter(Phase::Verifying);
    if let (Some(expected), Some(found)) = (spec.sha256, unpacked.digest)
        && expected != found
    {
        return Err(ArchiveError::Checksum { expected: hex(&expected), found: hex(&found) }.into());
    }
    tracing::info!(
        entries = unpacked.entries,
        received = progress.received(),
        written = progress.written(),
        "archive unpacked"
    );
    let (pgdata, installation, role) = (context.pgdata.clone(), context.installation.clone(), context.role);
    blocking(&context.cancel, move |_| {
        judge_cluster(&pgdata)?;
        same_version(&pgdata, &installation)?;
        role::take_over(pgdata.path(), role)?;
        Ok(pgdata.finish_disposable()?)
    })
    .await
}

/// An error of the download passes the unpacker as an error of its source.
fn cause(error: UnpackError) -> ArchiveError {
    match error {
        UnpackError::Source(source) => match source.downcast::<DownloadError>() {
            Ok(error) => ArchiveError::Download(error),
            Err(source) => ArchiveError::Unpack(UnpackError::Source(source)),
        },
        other => ArchiveError::Unpack(other),
    }
}

fn judge_cluster(pgdata: &DataDir) -> Result<(), StorageError> {
    let found = |name: &str| fs::symlink_metadata(pgdata.path().join(name)).ok();
    let plain = |name: &str| found(name).filter(fs::Metadata::is_file);
    if plain("PG_VERSION").is_none() {
        return Err(ArchiveError::NotACluster { lacks: "PG_VERSION" }.into());
    }
    if plain("global/pg_control").is_none_or(|control| control.len() != CONTROL_SIZE) {
        return Err(ArchiveError::NotACluster { lacks: "global/pg_control" }.into());
    }
    if found("tablespace_map").is_some_and(|map| !map.is_file() || map.len() > 0) {
        return Err(ArchiveError::Tablespaces.into());
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
