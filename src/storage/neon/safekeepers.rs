//! Safekeepers: what a majority of them holds of the write-ahead log.
//!
//! A primary has to know that before it asks for a base backup, and a client that stops one is told it afterwards.
//! [`Safekeepers::check`] asks all of them whether they agree already, which takes some milliseconds;
//! [`Safekeepers::sync`] has Neon's own `postgres --sync-safekeepers` make them agree. Only a primary may do
//! either: to make them agree is to take the log away from whoever writes it.

mod check;
mod sync;

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::limits;
use crate::postgres::conf;
use crate::secret::Secret;
use crate::spec::resolve::{Lsn, TenantId, TimelineId};
use crate::spec::safekeepers::Address;
use crate::spec::store::StoredSpec;
use crate::storage::scratch::{self, Scratch};
use crate::storage::{Context, Phase, StorageError, blocking};

pub use check::{Disagreement, MemberError};
pub use sync::SyncError;

/// Where the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOfLog {
    /// Here.
    At(Lsn),
    /// Nothing was ever written on this timeline.
    Empty,
}

impl EndOfLog {
    /// The place, if there is one.
    pub fn lsn(self) -> Option<Lsn> {
        match self {
            Self::At(lsn) => Some(lsn),
            Self::Empty => None,
        }
    }

    /// From what servers say, in whose words nothing is 0/0.
    fn of(lsn: Lsn) -> Self {
        if lsn.0 == 0 { Self::Empty } else { Self::At(lsn) }
    }
}

/// In the servers' words.
impl fmt::Display for EndOfLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(lsn) => lsn.fmt(f),
            Self::Empty => f.write_str("0/0"),
        }
    }
}

/// The safekeepers of a timeline, as its primary knows them.
#[derive(Clone, Debug)]
pub struct Safekeepers {
    members: Vec<Address>,
    tenant: TenantId,
    timeline: TimelineId,
    token: Option<Secret>,
}

impl Safekeepers {
    /// Those of a spec; none unless it is for a primary on Neon's storage.
    pub fn of(stored: &StoredSpec) -> Option<Self> {
        let resolved = &stored.resolved;
        Some(Self {
            members: resolved.final_sync().then(|| resolved.safekeepers.clone())?,
            tenant: resolved.tenant.clone()?,
            timeline: resolved.timeline.clone()?,
            token: stored.document.storage_auth_token.clone(),
        })
    }

    /// Where the log ends, for a primary that is about to start: by asking, and if they do not agree by making them
    /// agree, with retries. Touches no data directory: there may be none yet, so that the settings for it are written into a
    /// directory of their own in the cache.
    ///
    /// # Errors
    /// [`StorageError::Safekeepers`] with the last failure, and those of files in the cache.
    pub async fn agree(&self, context: &Context) -> Result<EndOfLog, StorageError> {
        context.progress.enter(Phase::Agreeing);
        let begun = Instant::now();
        let asked = context.cancel.run_until_cancelled(self.check(limits::SAFEKEEPER_CHECK));
        let asked = asked.instrument(tracing::info_span!("check_safekeepers_synced")).await;
        let asked = asked.ok_or(StorageError::Cancelled)?;
        let sync_sk_check_ms = millis(begun);
        context.progress.measure(|measured| measured.safekeeper_check = begun.elapsed());
        match asked {
            Ok(end) => {
                tracing::info!(sync_sk_check_ms, %end, "safekeepers agree");
                return Ok(end);
            }
            Err(error @ Disagreement::NoQuorum { .. }) => tracing::error!(sync_sk_check_ms, "{error}"),
            Err(error) => tracing::info!(sync_sk_check_ms, "{error}"),
        }
        let begun = Instant::now();
        let (cache, text) = (context.cache.clone(), context.conf.clone());
        let place = blocking(&context.cancel, move |_| settings(&cache, &text)).await?;
        let span = tracing::info_span!("sync_safekeepers");
        let end = self.retry(context, &place.path).instrument(span).await?;
        context.progress.measure(|measured| measured.safekeeper_sync = begun.elapsed());
        tracing::info!(sync_safekeepers_ms = millis(begun), %end, "safekeepers synchronised");
        Ok(end)
    }

    async fn retry(&self, context: &Context, place: &Path) -> Result<EndOfLog, SyncError> {
        let (postgres, cancel) = (context.installation.postgres(), &context.cancel);
        let mut retry = 0;
        loop {
            let error = match self.sync(postgres, place, cancel).await {
                Err(error) if error.may_pass() && retry < limits::SAFEKEEPER_SYNC_RETRIES => error,
                end => return end,
            };
            tracing::warn!(retry, "{error}; trying again");
            cancel.run_until_cancelled(tokio::time::sleep(pause(retry))).await;
            retry += 1;
        }
    }

    /// Has the safekeepers agree on the end of the log, once. `pgdata` holds the settings of the primary, and no server
    /// lives there.
    ///
    /// # Errors
    /// See [`SyncError`].
    pub async fn sync(
        &self,
        postgres: &Path,
        pgdata: &Path,
        cancel: &CancellationToken,
    ) -> Result<EndOfLog, SyncError> {
        sync::run(postgres, pgdata, self.token.as_ref(), cancel).await
    }
}

/// A directory with these settings and nothing else.
fn settings(cache: &Path, text: &str) -> Result<Scratch, StorageError> {
    scratch::prepare(cache)?;
    scratch::remove_abandoned(cache);
    let place = Scratch::begin(cache)?;
    conf::write(&place.path, text).map_err(|error| StorageError::io("write", error.path)(error.source))?;
    Ok(place)
}

/// The pause before a retry, counted from 0: none before the first, then `1.1^k` seconds.
fn pause(retry: i32) -> Duration {
    match retry {
        0 => Duration::ZERO,
        retry => Duration::from_secs_f64(1.1_f64.powi(retry)).min(limits::SAFEKEEPER_SYNC_PAUSE_MAX),
    }
}

fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_slowly() {
        let pauses: Vec<u128> = (0..=limits::SAFEKEEPER_SYNC_RETRIES).map(|k| pause(k).as_millis()).collect();
        assert_eq!(pauses, [0, 1100, 1210, 1331, 1464, 1610]);
        assert_eq!(pause(100), limits::SAFEKEEPER_SYNC_PAUSE_MAX);
    }

    #[test]
    fn nothing_written_is_not_a_position() {
        assert_eq!(EndOfLog::of(Lsn(0)), EndOfLog::Empty);
        assert_eq!(EndOfLog::of(Lsn(1)), EndOfLog::At(Lsn(1)));
    }
}
