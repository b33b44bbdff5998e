//! `neon`: a cluster without its relations, from Neon's pageservers.
//!
//! What a compute needs of its data directory to start, all but the relations and the log, is a *base backup* that a
//! pageserver makes for one place in the log: the pinned LSN of a static compute, the newest place for a replica, and for a
//! primary the one that its safekeepers agree on. It comes as a gzipped tar over libpq or gRPC, and is unpacked while
//! it arrives.
//!
//! * A call of [`Storage::prepare`] is one try. Whoever calls it tries again, if the error is one that may pass.
//! * Nothing is removed before a server has agreed to send something. After that a failed try leaves the
//!   directory empty, so that nothing of it gets into the next one.
//! * The directory is made anew also when this process starts its server again, unlike with other kinds: what
//!   is committed is in the safekeepers and pageservers, what is in the directory is a copy that ages. A primary must
//!   agree with its safekeepers again, for the log in the directory may end with something they never took.
//! * What else is in the directory may be removed unless it is a cluster of its own: see [`ClearRule::neon`].

mod basebackup;
mod error;
pub mod lease;
pub mod libpq;
pub mod page_api;
pub mod safekeepers;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tracing::Instrument;

use super::unpack::{self, Format, Options, UnpackError};
use super::{
    CONTROL_SIZE, Context, Phase, Prepared, Storage, StorageError, blocking, leave_empty, rule, same_version,
};
use crate::limits;
use crate::postgres::{ClearRule, DataDir};
use crate::secret::Secret;
use crate::spec::resolve::{Lsn, Mode, Pageservers, TenantId, TimelineId};
use crate::spec::store::StoredSpec;
use basebackup::BaseBackup;
pub use error::{Fault, NeonError, PageserverError};
pub use safekeepers::{EndOfLog, Safekeepers};

/// How long a pageserver may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To let us in.
    pub connect: Duration,
    /// To begin its answer, and for the first piece of it.
    pub answer: Duration,
    /// For each further piece of it.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: limits::PAGESERVER_CONNECT,
            answer: limits::PAGESERVER_ANSWER,
            idle: limits::PAGESERVER_IDLE,
        }
    }
}

/// How a primary learns where in the log it starts: `None` for a timeline that nothing was written to yet.
pub type Agreement = for<'a> fn(&'a Neon, &'a Context) -> BoxFuture<'a, Result<Option<Lsn>, StorageError>>;

/// Fetches the data directory from Neon's storage at each start of the server.
#[derive(Debug)]
pub struct Neon {
    tenant: TenantId,
    timeline: TimelineId,
    pageservers: Pageservers,
    mode: Mode,
    /// A primary has them, and nobody else.
    safekeepers: Option<Safekeepers>,
    token: Option<Secret>,
    patience: Patience,
    agreement: Agreement,
}

impl Neon {
    /// The storage of a spec of kind `neon`; `None` for any other.
    pub fn new(stored: &StoredSpec) -> Option<Self> {
        Self::with(stored, Patience::default(), |neon, context| agree(neon, context).boxed())
    }

    /// The same with another patience and another way to a primary's start position.
    pub fn with(stored: &StoredSpec, patience: Patience, agreement: Agreement) -> Option<Self> {
        let resolved = &stored.resolved;
        Some(Self {
            tenant: resolved.tenant.clone()?,
            timeline: resolved.timeline.clone()?,
            pageservers: resolved.pageservers.clone()?,
            mode: resolved.mode,
            safekeepers: Safekeepers::of(stored),
            token: stored.document.storage_auth_token.clone(),
            patience,
            agreement,
        })
    }

    fn rule(context: &Context) -> ClearRule {
        ClearRule { neon: true, ..rule(context) }
    }
}

impl Storage for Neon {
    fn kind(&self) -> &'static str {
        "neon"
    }

    fn prepare<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Prepared, StorageError>> {
        prepare(self, context).boxed()
    }

    fn judge<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StorageError>> {
        let (pgdata, rule) = (context.pgdata.clone(), Self::rule(context));
        blocking(&context.cancel, move |_| Ok(pgdata.judge(rule)?)).boxed()
    }
}

/// Where in the log the compute starts; `None` for the newest place, and for a timeline that nothing was written to.
async fn start_position(neon: &Neon, context: &Context) -> Result<Option<Lsn>, StorageError> {
    match neon.mode {
        Mode::Static(lsn) => Ok(Some(lsn)),
        Mode::Replica => Ok(None),
        Mode::Primary => {
            context.progress.enter(Phase::Agreeing);
            // The first LSN there is means the same as none.
            Ok((neon.agreement)(neon, context).await?.filter(|lsn| lsn.0 > 0))
        }
    }
}

async fn agree(neon: &Neon, context: &Context) -> Result<Option<Lsn>, StorageError> {
    let safekeepers = neon.safekeepers.as_ref().ok_or(NeonError::NoAgreement)?;
    Ok(safekeepers.agree(context).await?.lsn())
}

async fn prepare(neon: &Neon, context: &Context) -> Result<Prepared, StorageError> {
    let (pgdata, rule) = (context.pgdata.clone(), Neon::rule(context));
    blocking(&context.cancel, move |_| {
        pgdata.ensure_no_server()?;
        Ok(pgdata.judge(rule)?)
    })
    .await?;
    context.progress.reset();
    let lsn = start_position(neon, context).await?;
    let span = tracing::info_span!("get_basebackup", lsn = lsn.map(tracing::field::display));
    // Each call is one try; the tries of a start are beside each other.
    let each =
        tracing::info_span!(parent: &span, "try_get_basebackup", lsn = lsn.map(tracing::field::display));
    fetch(neon, context, lsn, rule).instrument(each).instrument(span).await
}

async fn fetch(
    neon: &Neon,
    context: &Context,
    lsn: Option<Lsn>,
    rule: ClearRule,
) -> Result<Prepared, StorageError> {
    context.progress.enter(Phase::Connecting);
    let began = Instant::now();
    let request = context.cancel.run_until_cancelled(BaseBackup::request(neon, lsn)).await;
    let backup = request.ok_or(StorageError::Cancelled)?.map_err(NeonError::Pageserver)?;
    let (pgdata, server, connected) = (context.pgdata.clone(), backup.server.clone(), backup.connected);
    blocking(&context.cancel, move |cancel| Ok(pgdata.clear(rule, cancel)?)).await?;
    match fill(neon, context, backup).await {
        Ok(()) => {
            context.progress.measure(|measured| {
                (measured.connect, measured.fetch) = (connected, began.elapsed());
            });
            tracing::info!(
                server,
                lsn = lsn.map(tracing::field::display),
                connect_us = connected.as_micros() as u64,
                bytes = context.progress.received(),
                total_ms = began.elapsed().as_millis() as u64,
                "base backup unpacked"
            );
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

/// From an empty directory to a finished one.
async fn fill(neon: &Neon, context: &Context, backup: BaseBackup) -> Result<(), StorageError> {
    let options = Options {
        format: Format::Gzip,
        // As the original does: a server may pad between entries.
        ignore_zero_blocks: true,
        ..Options::default()
    };
    let progress = context.progress.clone();
    progress.enter(Phase::Receiving);
    let server = backup.server.clone();
    let unpacked =
        unpack::unpack(backup.stream(), context.pgdata.clone(), options, progress.clone(), &context.cancel);
    unpacked.await.map_err(|error| cause(&server, error))?;
    progress.enter(Phase::Verifying);
    let (pgdata, installation) = (context.pgdata.clone(), context.installation.clone());
    let mode = neon.mode;
    blocking(&context.cancel, move |_| {
        judge_cluster(&pgdata, server)?;
        same_version(&pgdata, &installation)?;
        signals(pgdata.path(), mode)?;
        Ok(pgdata.finish_disposable()?)
    })
    .await
}

/// An error of the server passes the unpacker as an error of its source.
fn cause(server: &str, error: UnpackError) -> NeonError {
    let unpack = |source| NeonError::Unpack { server: server.to_owned(), source };
    match error {
        UnpackError::Source(source) => match source.downcast::<PageserverError>() {
            Ok(error) => NeonError::Pageserver(error),
            Err(source) => unpack(UnpackError::Source(source)),
        },
        other => unpack(other),
    }
}

fn judge_cluster(pgdata: &DataDir, server: String) -> Result<(), StorageError> {
    let plain =
        |name: &str| fs::symlink_metadata(pgdata.path().join(name)).ok().filter(fs::Metadata::is_file);
    let lacks = if plain("PG_VERSION").is_none() {
        "PG_VERSION"
    } else if plain("global/pg_control").is_none_or(|control| control.len() != CONTROL_SIZE) {
        "global/pg_control"
    } else {
        return Ok(());
    };
    Err(NeonError::NotACluster { server, lacks }.into())
}

/// The files that tell Postgres how to begin: where the log before the start ends, which Neon's Postgres reads from
/// `neon.signal`, older pageservers call `zenith.signal`, and present ones send by both names; and that it
/// is to stay in recovery.
fn signals(pgdata: &Path, mode: Mode) -> Result<(), StorageError> {
    let (present, former) = (pgdata.join("neon.signal"), pgdata.join("zenith.signal"));
    if !present.exists() && former.exists() {
        fs::copy(&former, &present).map_err(StorageError::io("make", &present))?;
    }
    if mode == Mode::Primary {
        return Ok(());
    }
    let standby = pgdata.join("standby.signal");
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&standby) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(StorageError::io("make", &standby)(error))
        }
        _ => Ok(()),
    }
}
