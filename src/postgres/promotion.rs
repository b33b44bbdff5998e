//! A standby that serves becomes a primary.
//!
//! The server replays what the old primary had written, is told what it needs as a primary, and is promoted.
//! What it is told stands in the override file, which `postgresql.conf` includes last: `ALTER SYSTEM`, which the
//! original uses, would win over every later spec. [`Held`] takes it out again when the new `postgresql.conf`
//! says the same.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use compute_states::Lsn;
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tokio_postgres::SimpleQueryMessage;
use tokio_util::sync::CancellationToken;

use crate::catalog::{self, Connection, ConnectionSettings};
use crate::engine::PromotionTimes;
use crate::limits;
use crate::postgres::conf::{self, WriteError};
use crate::postgres::settings::Reload;
use crate::spec::safekeepers::Address;

/// One promotion.
#[derive(Clone, Copy)]
pub struct Promotion<'a> {
    /// The data directory.
    pub pgdata: &'a Path,
    /// How to reach the server, as a superuser.
    pub server: &'a ConnectionSettings,
    /// How to tell the postmaster to read its settings.
    pub reload: &'a Reload,
    /// How much of the old primary's log must be replayed before.
    pub lsn: Lsn,
    /// `host:port` of the safekeepers that the primary writes to. None on storage that has none.
    pub safekeepers: Option<&'a [Address]>,
    /// How long the log may take to be replayed.
    pub catch_up: Duration,
}

/// Why a server is no primary, in the original's words where it has some.
#[derive(Debug, Error)]
pub enum PromotionError {
    /// No session.
    #[error("connecting to postgres")]
    Connect(#[source] catalog::ConnectError),
    /// A session did not answer.
    #[error("{what}")]
    Ask {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The log was not replayed in time.
    #[error("didn't catch up with primary in {} retries", limits::PROMOTION_CATCH_UP.as_secs())]
    NotCaughtUp,
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// `standby.signal` cannot be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server has not read what it was told.
    #[error("the server was told to read its new settings, and has not")]
    NotRead,
    /// The server has not promoted itself.
    #[error("pg_promote() failed")]
    NotPromoted,
    /// It says that it is promoted, and takes no writes.
    #[error("replica in read only mode after promotion")]
    ReadOnly,
    /// The token was cancelled.
    #[error("the promotion was cancelled")]
    Cancelled,
}

impl PromotionError {
    /// Whether the next attempt may come further.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Write(_) | Self::Remove { .. })
    }
}

impl From<catalog::connect::Cancelled> for PromotionError {
    fn from(_: catalog::connect::Cancelled) -> Self {
        Self::Cancelled
    }
}

/// Makes a primary of a standby. One that an earlier attempt has promoted, or somebody else, is left as it is.
///
/// # Errors
/// See [`PromotionError`]. The server is then a standby as before, unless it was promoted too late to be noticed.
pub async fn promote(
    promotion: Promotion<'_>,
    token: &CancellationToken,
) -> Result<PromotionTimes, PromotionError> {
    let connected = catalog::connect_patiently(promotion.server, token).await;
    let session = connected.map_err(PromotionError::Connect)?.ok_or(PromotionError::Cancelled)?;
    session.unless_cancelled(token, promotion.run(&session)).await?
}

impl Promotion<'_> {
    async fn run(self, session: &Connection) -> Result<PromotionTimes, PromotionError> {
        let begun = Instant::now();
        if is(session, "SELECT pg_catalog.pg_is_in_recovery()").await? {
            self.catch_up(session).await?;
        }
        let lsn_wait = begun.elapsed();
        if let Some(safekeepers) = self.safekeepers {
            self.write_to(session, safekeepers).await?;
        }
        if is(session, "SELECT pg_catalog.pg_is_in_recovery()").await? {
            let seconds = limits::PG_PROMOTE.as_secs();
            if !is(session, &format!("SELECT pg_catalog.pg_promote(true, {seconds})")).await? {
                return Err(PromotionError::NotPromoted);
            }
        }
        let writable = "SELECT NOT pg_catalog.pg_is_in_recovery() \
                        AND pg_catalog.current_setting('transaction_read_only') = 'off'";
        if !is(session, writable).await? {
            return Err(PromotionError::ReadOnly);
        }
        // The server removes it, and whoever put another one there meanwhile did not know of this.
        let path = self.pgdata.join("standby.signal");
        match tokio::fs::remove_file(&path).await {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(PromotionError::Remove { path, source });
            }
            _ => {}
        }
        Ok(PromotionTimes { lsn_wait, pg_promote: begun.elapsed().saturating_sub(lsn_wait) })
    }

    async fn catch_up(&self, session: &Connection) -> Result<(), PromotionError> {
        let replayed = format!("SELECT pg_catalog.pg_last_wal_replay_lsn() >= '{}'::pg_lsn", self.lsn);
        if until(session, &replayed, self.catch_up).await? {
            Ok(())
        } else {
            Err(PromotionError::NotCaughtUp)
        }
    }

    /// Has the server write to the safekeepers and wait for them, from its first record as a primary.
    async fn write_to(&self, session: &Connection, safekeepers: &[Address]) -> Result<(), PromotionError> {
        let list = safekeepers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        if conf::override_with(self.pgdata, &[("neon.safekeepers", &list), STANDBY])? {
            (self.reload)();
        }
        let (name, value) = STANDBY;
        let read = format!("SELECT pg_catalog.current_setting('{name}') = '{value}'");
        if until(session, &read, limits::SETTINGS_QUERY).await? {
            Ok(())
        } else {
            Err(PromotionError::NotRead)
        }
    }
}

/// The process of a Neon primary which sends the log to the safekeepers, and whom commits wait for.
const STANDBY: (&str, &str) = ("synchronous_standby_names", "walproposer");

/// What a promotion had put in force, taken back so that a new `postgresql.conf` decides. Nothing is read before the
/// server is told to reload, so it stays in force until the new file is.
#[derive(Debug)]
#[must_use = "what the new file could not replace has to be put back"]
pub struct Held {
    pgdata: PathBuf,
    text: String,
}

impl Held {
    /// Takes it back, if there is any.
    ///
    /// # Errors
    /// If the override file cannot be written.
    pub fn take_back(pgdata: &Path) -> Result<Self, WriteError> {
        let text = conf::overridden(pgdata);
        if !text.is_empty() {
            conf::clear_override(pgdata)?;
        }
        Ok(Held { pgdata: pgdata.to_owned(), text })
    }

    /// Puts it in force again, because the new file is not. A primary that forgets its safekeepers would lose what
    /// it acknowledges.
    ///
    /// # Errors
    /// If the override file cannot be written.
    pub fn put_back(self, reload: &Reload) -> Result<(), WriteError> {
        if self.text.is_empty() {
            return Ok(());
        }
        conf::override_again(&self.pgdata, &self.text)?;
        (reload)();
        Ok(())
    }
}

/// The answer to a question of yes or no. No answer (NULL) is a no.
async fn is(session: &Connection, question: &str) -> Result<bool, PromotionError> {
    let asked = session.client().simple_query(question).await;
    let what = "asking the server about its promotion";
    let messages = asked.map_err(|source| PromotionError::Ask { what, source })?;
    Ok(messages.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0) == Some("t"),
        _ => false,
    }))
}

/// Asks until the answer is yes, for so long.
async fn until(session: &Connection, question: &str, patience: Duration) -> Result<bool, PromotionError> {
    let end = Instant::now() + patience;
    loop {
        if is(session, question).await? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        sleep(limits::PROMOTION_POLL).await;
    }
}
