//! The settings of a running server, changed such that the outcome is known.
//!
//! A reload (SIGHUP) tells nothing: the server takes what it can, logs the rest and goes on, and after a syntax
//! error it takes nothing at all. So a change is made in these steps, and [`Settings::change`] is all of them:
//!
//! 1. A session is opened while the old settings are in force.
//! 2. The new `postgresql.conf` is written. Nobody reads it yet: the server does at a reload only.
//! 3. The server is asked in that session what it would make of it ([`Judgement`]).
//! 4. If it refuses anything, the old file is put back: nothing has changed, and the error names each refused
//!    setting. Otherwise the postmaster is told to reload.
//! 5. A second session, opened after that, must have been loaded with a newer reading of the files than the first
//!    one, and must have each setting from the very line that the judgement was about.
//!
//! The second session cannot miss the reload. A backend inherits the settings of the postmaster at the fork, and a
//! connection that was made after the signal is accepted after it was handled: up to PostgreSQL 15 the handler
//! itself reads the files, and it runs no later than on the return from the wait which reports the connection;
//! from 16 on it sets a flag, which the loop looks at before each `accept`.
//!
//! Whatever goes wrong on the way, a cancellation included, ends with the old file in place, and read by the
//! server if it has been told of the new one.

mod judge;
mod report;
mod size_limit;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::catalog::{ConnectError, ConnectionSettings};
use crate::limits;
use crate::postgres::conf::{self, WriteError};
use crate::telemetry::Metrics;

pub use judge::{Judgement, Refusal, Session};
pub use report::{Rejected, Report, Reported};
pub use size_limit::SizeLimitLifted;

/// Has the postmaster read its files again, without waiting; `false` when there is none.
pub type Reload = Arc<dyn Fn() -> bool + Send + Sync>;

/// The settings of one node's Postgres.
#[derive(Debug)]
pub struct Settings {
    metrics: Arc<Metrics>,
    /// One change at a time. Held until a file was taken back, which may be after its change was abandoned.
    turn: Arc<tokio::sync::Mutex<()>>,
    reported: Reported,
    /// A new file could not be taken back, so that what is on disk is not what is in force.
    doubtful: Arc<AtomicBool>,
}

/// One change.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// The data directory.
    pub pgdata: &'a Path,
    /// The new `postgresql.conf`.
    pub text: &'a str,
    /// How to reach the server, as a superuser.
    pub server: &'a ConnectionSettings,
    /// How to tell the postmaster.
    pub reload: &'a Reload,
}

/// What a change has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Settings which have another value than before, are set for the first time, or not set any more. Nothing
    /// when the text was on disk already: then nothing was done.
    pub settings: Vec<String>,
    /// All settings, also of earlier changes, whose value on file will be in force after a restart only.
    pub pending_restart: Vec<String>,
}

/// Why the settings are what they were before.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file in force cannot be read.
    #[error("cannot read postgresql.conf")]
    Read(#[source] io::Error),
    /// The new file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// No session, before or after the reload.
    #[error("cannot ask the server about its settings")]
    Connect(#[source] ConnectError),
    /// Let in before the reload, and not after it.
    #[error("the server lets nobody in with the new settings, and has the old ones back")]
    ShutOut(#[source] ConnectError),
    /// A session did not answer.
    #[error("cannot ask the server about its settings (SQLSTATE {})", sqlstate(.0))]
    Ask(#[source] tokio_postgres::Error),
    /// A session answered nothing for too long.
    #[error("the server did not answer a question about its settings in {:?}", limits::SETTINGS_QUERY)]
    Silent,
    /// The server does not want some of them. It was not even told to reload.
    #[error("the server refuses {}, and keeps all its settings: {}", count(.0), Listed(.0))]
    Refused(Vec<Refusal>),
    /// There is no postmaster to tell.
    #[error("the postmaster is gone")]
    Gone,
    /// It was told to reload and has not.
    #[error("the server was told to read its new settings, and has not")]
    NotRead,
    /// It has reloaded, and some settings come from elsewhere.
    #[error("the server has read its new settings, and did not take these: {}", .0.join(", "))]
    NotTaken(Vec<String>),
    /// The token was cancelled.
    #[error("changing the settings was cancelled")]
    Cancelled,
}

impl SettingsError {
    /// Whether the same change would fail again.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Refused(_) | Self::ShutOut(_) | Self::NotTaken(_) | Self::Write(_) | Self::Read(_) => true,
            Self::Connect(_) | Self::Ask(_) | Self::Silent | Self::Gone | Self::NotRead | Self::Cancelled => {
                false
            }
        }
    }

    fn outcome(&self) -> Option<&'static str> {
        match self {
            Self::Refused(_) => Some("refused"),
            Self::Cancelled => None,
            _ => Some("failed"),
        }
    }
}

/// Whether a server that answers refuses a session, and not for want of room or because it stops or recovers.
fn is_for_good(error: &ConnectError) -> bool {
    error.sqlstate().is_some_and(|state| !state.starts_with("53") && !state.starts_with("57"))
}

fn sqlstate(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("none", |state| state.code())
}

fn count(refusals: &[Refusal]) -> String {
    match refusals.len() {
        1 => "a setting".to_owned(),
        count => format!("{count} settings"),
    }
}

struct Listed<'a>(&'a [Refusal]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{refusal}")?;
        }
        Ok(())
    }
}

impl Settings {
    /// Counts its outcomes in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, turn: Arc::default(), reported: Reported::default(), doubtful: Arc::default() }
    }

    /// The settings whose value on file waits for a restart, as of the last change.
    pub fn pending_restart(&self) -> Vec<String> {
        self.reported.get().pending_restart.clone()
    }

    /// What is wanted and not in force, for whoever shows it.
    pub fn reported(&self) -> Reported {
        self.reported.clone()
    }

    /// A server was started, with everything on file in force.
    pub fn started(&self) {
        self.doubtful.store(false, Ordering::Relaxed);
        self.note(Vec::new(), Vec::new());
    }

    /// Changes the settings, or leaves all as it was. Does nothing when `postgresql.conf` holds the text.
    ///
    /// Dropping the future is safe, too.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub async fn change(
        &self,
        change: Change<'_>,
        token: &CancellationToken,
    ) -> Result<Changed, SettingsError> {
        match self.try_change(change, token).await {
            Ok(None) => {
                let pending_restart = self.pending_restart();
                self.note(pending_restart.clone(), Vec::new());
                Ok(Changed { settings: Vec::new(), pending_restart })
            }
            Ok(Some(changed)) => {
                self.metrics.settings_reload("applied");
                self.note(changed.pending_restart.clone(), Vec::new());
                // Names only: a value may be a password.
                tracing::info!(settings = changed.settings.join(", "), "settings changed");
                if !changed.pending_restart.is_empty() {
                    let settings = changed.pending_restart.join(", ");
                    tracing::warn!(settings, "settings wait for a restart of Postgres");
                }
                Ok(changed)
            }
            Err(error) => {
                if let Some(outcome) = error.outcome() {
                    self.metrics.settings_reload(outcome);
                    self.note(self.pending_restart(), Rejected::by(&error));
                }
                Err(error)
            }
        }
    }

    async fn try_change(
        &self,
        change: Change<'_>,
        token: &CancellationToken,
    ) -> Result<Option<Changed>, SettingsError> {
        let turn = token.run_until_cancelled(self.turn.clone().lock_owned()).await;
        let turn = turn.ok_or(SettingsError::Cancelled)?;
        let pgdata = change.pgdata.to_owned();
        let old = blocking(move || conf::read(&pgdata)).await.map_err(SettingsError::Read)?;
        let on_disk = old.as_deref().is_some_and(|old| conf::holds(old, change.text));
        if on_disk && !self.doubtful.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut session = Session::open(change.server, token).await?;
        let before = session.judge(token).await?;
        let loaded = session.loaded(token).await?;

        let mut taken_back = self.write(change, old, turn).await?;
        let judgement = session.judge(token).await?;
        drop(session);
        if !judgement.refused.is_empty() {
            return Err(SettingsError::Refused(judgement.refused));
        }
        for name in &judgement.unjudged {
            tracing::warn!(name, "whether there is such an object depends on the database: not judged");
        }

        taken_back.told = true;
        if !(change.reload)() {
            return Err(SettingsError::Gone);
        }
        let mut session = Session::open(change.server, token).await.map_err(|error| match error {
            SettingsError::Connect(error) if is_for_good(&error) => SettingsError::ShutOut(error),
            other => other,
        })?;
        if session.loaded(token).await? == loaded {
            return Err(SettingsError::NotRead);
        }
        let not_taken = session.not_taken(&judgement, token).await?;
        if !not_taken.is_empty() {
            return Err(SettingsError::NotTaken(not_taken));
        }
        taken_back.keep();
        let settings = judgement.changed_since(&before);
        Ok(Some(Changed { settings, pending_restart: judgement.needs_restart }))
    }

    /// Writes the new file. It is taken back unless what is returned is told to keep it.
    async fn write(
        &self,
        change: Change<'_>,
        old: Option<Vec<u8>>,
        turn: OwnedMutexGuard<()>,
    ) -> Result<TakenBack, SettingsError> {
        let taken_back = TakenBack {
            pgdata: change.pgdata.to_owned(),
            old,
            reload: change.reload.clone(),
            doubtful: self.doubtful.clone(),
            told: false,
            armed: true,
            _turn: turn,
        };
        let text = change.text.to_owned();
        // The guard goes along, so that the file is taken back even if nobody waits for the writer any more.
        let written = blocking(move || match conf::write(&taken_back.pgdata, &text) {
            Ok(()) => Ok(taken_back),
            Err(error) => {
                // The old one is still there.
                taken_back.disarm();
                Err(error)
            }
        });
        Ok(written.await?)
    }

    /// Looks at what became of a reload that somebody else has asked for, of files that somebody else may have
    /// changed.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn look(
        &self,
        server: &ConnectionSettings,
        token: &CancellationToken,
    ) -> Result<(), SettingsError> {
        // Not in the middle of a change, whose file may be taken back.
        let turn = token.run_until_cancelled(self.turn.clone().lock_owned()).await;
        let _turn = turn.ok_or(SettingsError::Cancelled)?;
        let judgement = Session::open(server, token).await?.judge(token).await?;
        let rejected = Rejected::in_judgement(&judgement);
        for Rejected { name, reason } in &rejected {
            tracing::warn!(name, "Postgres does not take a setting: {reason}");
        }
        self.note(judgement.needs_restart, rejected);
        Ok(())
    }

    fn note(&self, pending_restart: Vec<String>, rejected: Vec<Rejected>) {
        let report = self.reported.change(|report| *report = Report { pending_restart, rejected });
        self.metrics.pending_restart(report.pending_restart.len());
        self.metrics.rejected_settings(report.rejected.len());
    }
}

/// Puts the old file back when dropped, and has the server read it if it was told of the new one.
struct TakenBack {
    pgdata: PathBuf,
    old: Option<Vec<u8>>,
    reload: Reload,
    doubtful: Arc<AtomicBool>,
    told: bool,
    armed: bool,
    _turn: OwnedMutexGuard<()>,
}

impl TakenBack {
    /// The new file stays.
    fn keep(self) {
        self.doubtful.store(false, Ordering::Relaxed);
        self.disarm();
    }

    /// There is nothing to put back.
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for TakenBack {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // A small file, and it must not stay because nobody could wait for it.
        if let Err(error) = conf::restore(&self.pgdata, self.old.as_deref()) {
            self.doubtful.store(true, Ordering::Relaxed);
            tracing::error!(%error, cause = %error.source, "refused settings stay on file");
            return;
        }
        if self.told {
            (self.reload)();
        }
    }
}

/// Runs what waits for a disk where it may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being shut down, and us with it.
            Err(_) => std::future::pending().await,
        },
    }
}
