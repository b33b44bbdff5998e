//! `base_backup`: a copy of a running server, which follows it or becomes a primary of its own.
//!
//! The copy is made by the installation's own `pg_basebackup`, with the WAL it needs streamed beside it, in a
//! directory below the data directory: the program wants an empty one. It is compared with its manifest by
//! `pg_verifybackup`, moved up, made what it is to be, and only then declared finished; whatever goes wrong before
//! leaves the data directory empty. [`Storage::prepare`] is one try.
//!
//! * **A standby** gets `standby.signal`. Whom it follows is a setting in `postgresql.conf` like any other
//!   ([`settings`]), so that a later spec moves a running standby by a reload.
//! * **A primary of its own** gets `recovery.signal` and a `restore_command` that finds nothing. Without them it would
//!   recover just as well, and then write on the timeline of the server it was copied from, under the same system
//!   identifier: WAL of both would have the same names, and archives and standbys could not tell them apart. An
//!   archive recovery ends with a new timeline instead, whose history says where it left the old one.
//! * The system identifier is the source's either way: it is the same cluster. Settings of `ALTER SYSTEM` are dropped.
//! * **Tablespaces** outside of the source's directory are refused, before anything is copied if the server
//!   lets us look: their copies would lie outside, where nothing is ours to write or to remove.
//! * **A slot of this node's own** is dropped at the end of the process when the copy is made anew at the next start
//!   anyway: a slot without its standby keeps WAL until the primary's disk is full. With `reuse` it
//!   stays, because the copy needs it.

mod slots;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::role::{self, Role};
use super::{
    Context, Phase, Prepared, Storage, StorageError, blocking, chain, kept_for_restart, rule, same_version,
};
use crate::limits;
use crate::postgres::pgdata::{MARKER, MARKER_NEW};
use crate::postgres::piped::Piped;
use crate::postgres::{ClearRule, Contents, conf, process};
use crate::spec::base_backup::BaseBackupSpec;
pub use slots::{OwnSlots, make_slot};
use source::{Identity, Source};

/// Where a standby's server finds the password: it logs the value of `primary_conninfo` when that changes. The
/// server works in its data directory, so the name is the path.
pub(super) const PASSFILE: &str = ".compute_ctl.pgpass";

/// Where the copy is made.
const BELOW: &str = "base_backup";

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BaseBackupError {
    /// The server, or a program on the way to it, says no.
    #[error("cannot {what} the server at {server}: {says}")]
    Failed {
        /// What was tried, as a verb.
        what: &'static str,
        /// The server, without user and password.
        server: String,
        /// What was said to it.
        says: String,
    },
    /// It says nothing.
    #[error("the server at {server} was silent for {after:?}")]
    Silent {
        /// The server.
        server: String,
        /// For how long.
        after: Duration,
    },
    /// Another major version.
    #[error(
        "the server at {server} is PostgreSQL {found}, the one installed here is {installed}; name one of version \
         {found} with --pgbin"
    )]
    WrongVersion {
        /// The server.
        server: String,
        /// Its major version.
        found: u32,
        /// The installed version.
        installed: String,
    },
    /// The slot is not there and was not to be made.
    #[error("the server at {server} has no replication slot \"{slot}\"; make it, or set `create_slot`")]
    NoSlot {
        /// The server.
        server: String,
        /// The slot's name.
        slot: String,
    },
    /// It has tablespaces outside.
    #[error(
        "the server at {server} has tablespaces outside of its data directory ({}), which is not served",
        locations.join(", ")
    )]
    Tablespaces {
        /// The server.
        server: String,
        /// Where they are.
        locations: Vec<String>,
    },
    /// What is kept is no copy of that server.
    #[error(
        "the data directory is of the cluster with system identifier {kept}, the server at {server} has {found}; \
         without `reuse` it is made anew"
    )]
    OtherSystem {
        /// The server.
        server: String,
        /// Its system identifier.
        found: u64,
        /// The one of the data directory.
        kept: u64,
    },
    /// The copy is not what was sent.
    #[error("the copy of the server at {server} is not what its manifest says: {says}")]
    Damaged {
        /// The server.
        server: String,
        /// The first differences.
        says: String,
    },
}

/// What stays wrong however often it is tried. Texts of libpq and the server's, which are English with the client's
/// locale and with most servers; anything else counts as passing, and is tried a few times in vain.
const PERMANENT: &[&str] = &[
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "pg_hba.conf rejects",
    "is not permitted to log in",
    "permission denied",
    "must be superuser or replication role",
    "role \"",
    "database \"",
    "replication slot \"",
    "logical replication slot",
    "certificate verify failed",
    "does not match host name",
    "certificate file",
    "does not support SSL",
    "does not support GSSAPI",
    "invalid connection option",
    "invalid sslmode",
    "invalid port number",
    "incompatible server version",
    "compression",
    "wal_level",
    "exists but is not empty",
    "No space left on device",
];

/// The same words in what passes.
const PASSING: &[&str] = &["is active for PID", "is being used", "all replication slots are in use"];

impl BaseBackupError {
    /// Whether it may work out later.
    pub fn is_transient(&self) -> bool {
        let says = |words: &[&str], text: &str| words.iter().any(|word| text.contains(word));
        match self {
            Self::Silent { .. } => true,
            Self::Failed { says: text, .. } => says(PASSING, text) || !says(PERMANENT, text),
            _ => false,
        }
    }

    pub(super) fn is_disk_full(&self) -> bool {
        // strerror(ENOSPC) in the C locale, which the programs are run with.
        matches!(self, Self::Failed { says, .. } if says.contains("No space left on device"))
    }
}

/// How long a server may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Before its first byte.
    pub begin: Duration,
    /// After it.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { begin: limits::BASE_BACKUP_BEGIN, idle: limits::BASE_BACKUP_IDLE }
    }
}

/// Wipes the data directory at each start of this process and copies a server into it, or keeps its last copy.
#[derive(Debug)]
pub struct BaseBackup {
    spec: BaseBackupSpec,
    patience: Patience,
}

impl BaseBackup {
    /// The base backup of a spec.
    pub fn new(spec: BaseBackupSpec) -> Self {
        Self::with_patience(spec, Patience::default())
    }

    /// The same with another patience.
    pub fn with_patience(spec: BaseBackupSpec, patience: Patience) -> Self {
        Self { spec, patience }
    }

    fn source<'a>(&'a self, context: &'a Context) -> Source<'a> {
        Source { spec: &self.spec, installation: &context.installation, cancel: &context.cancel }
    }

    fn role(&self) -> Role {
        if self.spec.standby { Role::Standby } else { Role::Restored }
    }
}

impl Storage for BaseBackup {
    fn kind(&self) -> &'static str {
        "base_backup"
    }

    fn prepare<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Prepared, StorageError>> {
        prepare(self, context).boxed()
    }

    fn judge<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StorageError>> {
        let (pgdata, rule) = (context.pgdata.clone(), rule(context));
        let (role, reuse) = (self.role(), self.spec.reuse);
        blocking(&context.cancel, move |_| {
            pgdata.judge(rule)?;
            if reuse && pgdata.contents()? == Contents::Ours {
                role::judge_kept(pgdata.path(), role)?;
            }
            Ok(())
        })
        .boxed()
    }
}

/// What a spec says in `postgresql.conf` besides its own settings: whom a standby follows.
pub(super) fn settings(spec: &BaseBackupSpec) -> Vec<(&'static str, String)> {
    if !spec.standby {
        return Vec::new();
    }
    let mut source = spec.source.clone();
    if source.password().is_some() {
        source.set("passfile", PASSFILE);
    }
    let mut settings = vec![("primary_conninfo", source.public())];
    settings.extend(spec.slot.clone().map(|slot| ("primary_slot_name", slot)));
    settings
}

/// Puts the password there that a standby's server needs for these settings. In force from its next connection on.
pub(super) fn write_password(pgdata: &Path, spec: &BaseBackupSpec) -> Result<(), StorageError> {
    let path = pgdata.join(PASSFILE);
    match spec.source.password().filter(|_| spec.standby) {
        Some(password) => {
            let password = password.reveal().replace('\\', "\\\\").replace(':', "\\:");
            let written = conf::write_atomic(&path, &format!("*:*:*:*:{password}\n"));
            written.map_err(|error| StorageError::io("write", path)(error.source))
        }
        None => role::remove(&path).map(drop),
    }
}

async fn prepare(backup: &BaseBackup, context: &Context) -> Result<Prepared, StorageError> {
    let (spec, role) = (&backup.spec, backup.role());
    if kept_for_restart(context).await? {
        let pgdata = context.pgdata.clone();
        blocking(&context.cancel, move |_| role::judge_kept(pgdata.path(), role)).await?;
        return Ok(Prepared::Kept);
    }
    // What a killed process has started, and which may still write.
    process::end_named(&["pg_basebackup", "pg_verifybackup"], &below(context)).await;
    let (pgdata, rule) = (context.pgdata.clone(), rule(context));
    let contents = blocking(&context.cancel, move |_| {
        pgdata.ensure_no_server()?;
        pgdata.judge(rule)?;
        Ok(pgdata.contents()?)
    })
    .await?;
    context.progress.reset();
    context.progress.enter(Phase::Connecting);
    let begun = Instant::now();
    let source = backup.source(context);
    let identity = source.identify().await;
    if spec.reuse && contents == Contents::Ours {
        keep(backup, context, identity).await?;
        return Ok(Prepared::Kept);
    }
    // Before anything is removed: a server that cannot be copied must not cost a data directory.
    let identity = identity?;
    same_major(backup, context, identity)?;
    if let Some(locations) = source.tablespaces().await?.filter(|locations| !locations.is_empty()) {
        return Err(BaseBackupError::Tablespaces { server: spec.source.to_string(), locations }.into());
    }
    slots::make(spec, &context.installation, &context.cancel).await?;
    let pgdata = context.pgdata.clone();
    blocking(&context.cancel, move |cancel| Ok(pgdata.clear(rule, cancel)?)).await?;
    match fill(backup, context, identity).await {
        Ok(()) => {
            context.progress.measure(|measured| measured.fetch = begun.elapsed());
            Ok(Prepared::Created)
        }
        // Whoever cancels is in a hurry; the next try removes what there is.
        Err(error) if error.is_cancelled() => Err(error),
        Err(error) => {
            let pgdata = context.pgdata.clone();
            let never = CancellationToken::new();
            let emptied = blocking(&never, move |cancel| {
                pgdata.clear(ClearRule::default(), cancel)?;
                Ok(pgdata.finish_kept()?)
            });
            if let Err(error) = emptied.await {
                tracing::warn!("cannot remove what was copied: {}", chain(&error));
            }
            Err(error)
        }
    }
}

fn same_major(backup: &BaseBackup, context: &Context, identity: Identity) -> Result<(), StorageError> {
    let installed = context.installation.version();
    if identity.major == installed.major {
        return Ok(());
    }
    let (server, installed) = (backup.spec.source.to_string(), installed.to_string());
    Err(BaseBackupError::WrongVersion { server, found: identity.major, installed }.into())
}

/// Makes sure that the copy in the data directory is one to go on with. A server that is not reached does not
/// matter: a standby serves what it has, and follows when the server is back.
async fn keep(
    backup: &BaseBackup,
    context: &Context,
    identity: Result<Identity, StorageError>,
) -> Result<(), StorageError> {
    let (pgdata, installation, role) = (context.pgdata.clone(), context.installation.clone(), backup.role());
    let kept = blocking(&context.cancel, move |_| {
        same_version(&pgdata, &installation)?;
        role::judge_kept(pgdata.path(), role)?;
        system_identifier(pgdata.path())
    })
    .await?;
    match identity {
        Ok(identity) if identity.system == kept => {
            slots::make(&backup.spec, &context.installation, &context.cancel).await?;
        }
        Ok(Identity { system: found, .. }) => {
            let server = backup.spec.source.to_string();
            return Err(BaseBackupError::OtherSystem { server, found, kept }.into());
        }
        Err(error) if error.is_cancelled() => return Err(error),
        Err(error) => {
            tracing::warn!("the copy is kept, and could not be compared with its source: {}", chain(&error));
        }
    }
    let pgdata = context.pgdata.clone();
    blocking(&context.cancel, move |_| Ok(pgdata.ensure_unused()?)).await
}

fn below(context: &Context) -> PathBuf {
    context.pgdata.path().join(BELOW)
}

/// From an empty directory to a finished one.
async fn fill(backup: &BaseBackup, context: &Context, identity: Identity) -> Result<(), StorageError> {
    let spec = &backup.spec;
    tracing::info!(server = %spec.source, standby = spec.standby, "taking a base backup");
    copy(backup, context).await?;
    context.progress.enter(Phase::Verifying);
    let below = below(context);
    if spec.verify {
        backup.source(context).verify(&below).await?;
    }
    tracing::info!(received = context.progress.received(), verified = spec.verify, "base backup taken");
    let (pgdata, installation) = (context.pgdata.clone(), context.installation.clone());
    let (role, reuse, server) = (backup.role(), spec.reuse, spec.source.to_string());
    blocking(&context.cancel, move |_| {
        // Behind one name there may be several servers.
        let found = system_identifier(&below)?;
        if found != identity.system {
            return Err(BaseBackupError::OtherSystem { server, found, kept: identity.system }.into());
        }
        let locations = links(&below.join("pg_tblspc"))?;
        if !locations.is_empty() {
            return Err(BaseBackupError::Tablespaces { server, locations }.into());
        }
        // The source may have been prepared by this program: its marker speaks of another directory, and its
        // password is not ours to have.
        for name in ["backup_manifest", MARKER, MARKER_NEW, PASSFILE] {
            role::remove(&below.join(name))?;
        }
        super::move_up(&below, pgdata.path())?;
        same_version(&pgdata, &installation)?;
        role::take_over(pgdata.path(), role)?;
        if reuse {
            // Nothing was synced so far, and a copy that is kept may meet a power failure.
            super::sync(pgdata.path())?;
        }
        Ok(pgdata.finish_disposable()?)
    })
    .await
}

/// Runs `pg_basebackup` to its end, as long as it gets somewhere.
async fn copy(backup: &BaseBackup, context: &Context) -> Result<(), StorageError> {
    let source = backup.source(context);
    let mut program = Piped::spawn_reporting(command(backup, context))?;
    let mut report = Report::default();
    let mut quiet = Quiet::new(backup);
    let first = below(context).join("backup_label");
    let given_up = loop {
        let next = timeout_at(quiet.until(), program.next());
        match context.cancel.run_until_cancelled(next).await {
            None => break Some(StorageError::Cancelled),
            Some(Err(_)) => {
                let begun = tokio::fs::try_exists(&first).await.unwrap_or(false);
                if begun {
                    context.progress.enter(Phase::Receiving);
                }
                if let Some(after) = quiet.over(begun) {
                    break Some(source.silent(after).into());
                }
            }
            Some(Ok(None)) => break None,
            Some(Ok(Some(piece))) => {
                if let Some(advanced) = report.read(&piece) {
                    context.progress.enter(Phase::Receiving);
                    context.progress.add_received(advanced);
                    context.progress.add_written(advanced);
                    quiet.heard();
                }
            }
        }
    };
    if let Some(error) = given_up {
        program.end().await;
        return Err(error);
    }
    let output = program.finish().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(source.failed("copy", report.messages.iter().map(String::as_str)).into())
}

/// How long nothing has been heard. The program reports at most once a second, and only when something comes: that
/// the server has begun may show in the directory alone.
#[derive(Debug)]
struct Quiet {
    patience: Patience,
    since: Instant,
    begun: bool,
    /// When the server must have begun. Nothing for a checkpoint that is as slow as its server's settings say, which
    /// is for the deadline of the whole work to judge.
    end: Option<Instant>,
}

impl Quiet {
    fn new(backup: &BaseBackup) -> Self {
        let (patience, since) = (backup.patience, Instant::now());
        let end = backup.spec.fast_checkpoint.then(|| since + patience.begin);
        Self { patience, since, begun: false, end }
    }

    fn heard(&mut self) {
        (self.since, self.begun) = (Instant::now(), true);
    }

    /// When to ask whether it is over.
    fn until(&self) -> Instant {
        let idle = self.since + self.patience.idle;
        self.end.filter(|_| !self.begun).map_or(idle, |end| end.min(idle))
    }

    /// Whether it has been too long, and for how long. `begun`: something has come by now.
    fn over(&mut self, begun: bool) -> Option<Duration> {
        if self.begun {
            return Some(self.patience.idle);
        }
        if !begun && self.end.is_some_and(|end| Instant::now() >= end) {
            return Some(self.patience.begin);
        }
        (self.since, self.begun) = (Instant::now(), begun);
        None
    }
}

fn command(backup: &BaseBackup, context: &Context) -> std::process::Command {
    let spec = &backup.spec;
    let mut command = backup.source(context).tool("pg_basebackup", None);
    command.arg("-D").arg(below(context));
    command.args(["--wal-method=stream", "--progress", "--no-sync", "--label=compute_ctl"]);
    command.arg(if spec.fast_checkpoint { "--checkpoint=fast" } else { "--checkpoint=spread" });
    command.arg(format!("--compress={}", spec.compress.argument()));
    if let Some(rate) = spec.max_rate {
        command.arg(format!("--max-rate={rate}"));
    }
    if let Some(slot) = &spec.slot {
        command.arg(format!("--slot={slot}"));
    }
    if !spec.verify {
        command.arg("--no-manifest");
    }
    command
}

/// What `pg_basebackup` prints: how far it is, once a second as long as something comes, and what goes wrong.
#[derive(Debug, Default)]
struct Report {
    line: Vec<u8>,
    /// How many lines have said how far it is.
    lines: usize,
    received: u64,
    messages: Vec<String>,
}

impl Report {
    /// Bytes that have come since the last line about it, if there is one more.
    fn read(&mut self, piece: &[u8]) -> Option<u64> {
        let before = (self.lines, self.received);
        for byte in piece {
            match byte {
                b'\n' | b'\r' => self.line_ended(),
                // Longer than anything it says: what is beyond is not worth the memory.
                _ if self.line.len() < limits::HELPER_OUTPUT => self.line.push(*byte),
                _ => {}
            }
        }
        (self.lines > before.0).then_some(self.received - before.1)
    }

    fn line_ended(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        // `  1234/56789 kB (2%), 0/1 tablespace`
        let done = line.split_once('/').filter(|(_, rest)| rest.contains(" kB "));
        match done.and_then(|(done, _)| done.parse::<u64>().ok()) {
            Some(kib) => {
                self.lines += 1;
                self.received = self.received.max(kib.saturating_mul(1024));
            }
            None if line.is_empty() || line.starts_with("waiting for checkpoint") => {}
            None => {
                self.messages.push(line);
                // The last ones say why it ended.
                let excess = self.messages.len().saturating_sub(limits::BASE_BACKUP_MESSAGES);
                self.messages.drain(..excess);
            }
        }
    }
}

/// The first eight bytes of the control file.
fn system_identifier(pgdata: &Path) -> Result<u64, StorageError> {
    let path = pgdata.join("global/pg_control");
    let control = fs::read(&path).map_err(StorageError::io("read", &path))?;
    let bytes = control.first_chunk().ok_or(std::io::ErrorKind::UnexpectedEof.into());
    Ok(u64::from_ne_bytes(*bytes.map_err(StorageError::io("read", &path))?))
}

/// Where the links in a directory lead.
fn links(dir: &Path) -> Result<Vec<String>, StorageError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(StorageError::io("list", dir))? {
        let path = entry.map_err(StorageError::io("list", dir))?.path();
        if let Ok(target) = fs::read_link(&path) {
            found.push(target.display().to_string());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
