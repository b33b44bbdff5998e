//! The sender of refreshes for standard PostgreSQL: sees whether a standby receives from the server it follows.
//!
//! On Neon storage Postgres itself asks for a refresh when it suspects that its pageservers have moved. Here this
//! does, by the same four suspicions: the server refuses, is silent, sends what makes no sense, or fails while it
//! sends. What is seen in the server's own view is the authority. Its log says which suspicion it is, and lets it
//! be looked at early.
//!
//! It only hints. Whether a refresh begins is the machine's decision, and whether the standby moves that of the spec
//! which is fetched.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use compute_states::{ComputeStatus, Epoch, Event, Revision};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::intake::Intake;
use crate::catalog::{self, Connection, ConnectionSettings, Profile};
use crate::engine::{Handle, Snapshot};
use crate::limits;
use crate::postgres::{Said, Suspicion, UpstreamLog};
use crate::secret::Secret;
use crate::telemetry::Metrics;

/// How its session shows up in `pg_stat_activity`.
const APPLICATION_NAME: &str = "compute_ctl:upstream_monitor";

/// One row: whether this server follows another one at present, by what process it receives, whether there is such a
/// process that does not receive yet, and how far it is. A pause is somebody's wish, and so is an empty
/// `primary_conninfo`.
const QUERY: &str = "
SELECT CASE WHEN pg_catalog.pg_is_in_recovery()
            THEN pg_catalog.pg_get_wal_replay_pause_state() OPERATOR(pg_catalog.<>) 'paused'
                 AND pg_catalog.current_setting('primary_conninfo') OPERATOR(pg_catalog.<>) ''
            ELSE false END,
       (SELECT pid FROM pg_catalog.pg_stat_wal_receiver WHERE status OPERATOR(pg_catalog.=) 'streaming'),
       EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE backend_type OPERATOR(pg_catalog.=) 'walreceiver'),
       pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text";

/// What the rest of the node tells the watcher. A clone is the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Upstream {
    /// What the server has logged.
    pub(super) log: UpstreamLog,
    quiet: Arc<AtomicUsize>,
}

impl Upstream {
    /// While the guard lives, a standby that receives nothing is meant to: it is becoming a primary.
    pub(super) fn quiet(&self) -> Quiet {
        self.quiet.fetch_add(1, Ordering::Relaxed);
        Quiet(self.quiet.clone())
    }

    fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed) > 0
    }
}

/// See [`Upstream::quiet`].
#[derive(Debug)]
pub(super) struct Quiet(Arc<AtomicUsize>);

impl Drop for Quiet {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Watches the upstream of whatever runs, as long as it is polled.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) handle: Handle,
    pub(super) connstr: Secret,
    pub(super) specs: Intake,
    pub(super) upstream: Upstream,
    pub(super) metrics: Arc<Metrics>,
}

impl Watcher {
    /// Watches until it is dropped. Only for a node that has somewhere to fetch a spec from.
    pub(super) async fn run(self) {
        let Ok(settings) = ConnectionSettings::new(&self.connstr, Profile::Standard) else { return };
        let settings = settings.named(APPLICATION_NAME);
        let mut published = self.handle.watch();
        let mut limiter = Limiter::default();
        loop {
            if published.wait_for(|snapshot| self.followed(snapshot).is_some()).await.is_err() {
                return;
            }
            if let Ok(connection) = catalog::connect(&settings).await {
                self.watch(&connection, &mut limiter).await;
            }
            self.metrics.upstream.streaming(None);
            sleep(limits::UPSTREAM_LOOK_AGAIN).await;
        }
    }

    /// The server, and the spec by which it follows another one, when that is all it has to do.
    fn followed(&self, snapshot: &Snapshot) -> Option<(Epoch, Revision)> {
        let (postmaster, spec) = (snapshot.server?, snapshot.spec?);
        let stored = self.specs.specs().get(spec.0)?;
        stored.resolved.upstream.as_ref().map(|_| (postmaster, spec))
    }

    /// Looks over one session until it breaks, or there is nothing to look at any more.
    async fn watch(&self, connection: &Connection, limiter: &mut Limiter) {
        let mut said = self.upstream.log.listen();
        let Some(mut followed) = self.followed(&self.handle.snapshot()) else { return };
        let mut trouble = Trouble::default();
        loop {
            let heard = *said.borrow_and_update();
            let answer = timeout(limits::CONNECT, connection.client().query_one(QUERY, &[])).await;
            let Some(seen) = answer.ok().and_then(Result::ok).as_ref().and_then(Seen::read) else { return };
            let snapshot = self.handle.snapshot();
            match self.followed(&snapshot) {
                None => return,
                Some(now) if now.0 != followed.0 => return,
                Some(now) if now.1 != followed.1 => {
                    // Another server is followed, perhaps: what was said of the last one is no longer of interest.
                    followed = now;
                    trouble = Trouble::default();
                    self.upstream.log.forget(&heard);
                    continue;
                }
                Some(_) => {}
            }
            let found = trouble.judge(seen, heard, Instant::now());
            self.metrics.upstream.streaming(found.streaming());
            // While a spec is being fetched or applied, that is what there is to do about it.
            let idle = matches!(snapshot.status, ComputeStatus::Running | ComputeStatus::Failed);
            if idle && !self.upstream.is_quiet() {
                self.act_on(found, &heard, &mut trouble, limiter);
            }
            if found == Found::Well {
                self.upstream.log.forget(&heard);
            }
            self.pause(found, &mut said).await;
        }
    }

    fn act_on(&self, found: Found, heard: &Said, trouble: &mut Trouble, limiter: &mut Limiter) {
        let Found::Suspected(suspicion) = found else { return };
        if !limiter.allows(Instant::now()) {
            if trouble.is_news() {
                self.metrics.upstream.suppressed();
            }
            return;
        }
        tracing::warn!(
            suspicion = suspicion.name(),
            "the server that is followed may have moved: looking for news"
        );
        self.metrics.upstream.hinted(suspicion.name());
        self.handle.hint(Event::RefreshHinted);
        limiter.hinted(Instant::now(), rand::random());
        trouble.hinted();
        self.upstream.log.forget(heard);
    }

    /// Until the next look is due, or the log has something to say.
    async fn pause(&self, found: Found, said: &mut watch::Receiver<Said>) {
        // Whatever the log says, and however often.
        sleep(limits::UPSTREAM_LOOK_LEAST).await;
        let rest = match found {
            Found::Well | Found::NotFollowing => limits::UPSTREAM_LOOK,
            Found::Unclear => Duration::ZERO,
            Found::Waiting | Found::Suspected(_) => limits::UPSTREAM_LOOK_AGAIN,
        };
        // Whether it was the one or the other makes no difference, and the log is there as long as its server.
        let _ = timeout(rest, said.changed()).await;
    }
}

/// What one look has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    follows: bool,
    receiver: Option<i32>,
    connecting: bool,
    replayed: Option<String>,
}

impl Seen {
    fn read(row: &tokio_postgres::Row) -> Option<Self> {
        Some(Seen {
            follows: row.try_get(0).ok()?,
            receiver: row.try_get(1).ok()?,
            connecting: row.try_get(2).ok()?,
            replayed: row.try_get(3).ok()?,
        })
    }
}

/// What a look means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// There is nobody to be followed at present.
    NotFollowing,
    /// It receives.
    Well,
    /// A new process receives, which may not last, or one of which the log says that it gives up.
    Unclear,
    /// It does not receive, which may pass.
    Waiting,
    /// It does not receive, and that should be looked into.
    Suspected(Suspicion),
}

impl Found {
    fn streaming(self) -> Option<bool> {
        match self {
            Found::NotFollowing => None,
            Found::Well | Found::Unclear => Some(true),
            Found::Waiting | Found::Suspected(_) => Some(false),
        }
    }
}

/// What is known of a trouble from one look to the next.
#[derive(Debug, Default)]
struct Trouble {
    /// The process that was receiving at the last look.
    receiver: Option<i32>,
    since: Option<Instant>,
    replayed: Option<String>,
    /// Messages that were heard.
    heard: u64,
    /// One of them was new at the last look.
    news: bool,
}

impl Trouble {
    /// `heard` is what the log had said before the look.
    fn judge(&mut self, seen: Seen, heard: Said, now: Instant) -> Found {
        let receiver = std::mem::replace(&mut self.receiver, seen.receiver);
        self.news = std::mem::replace(&mut self.heard, heard.count) != heard.count;
        if !seen.follows {
            *self = Trouble { heard: self.heard, ..Trouble::default() };
            return Found::NotFollowing;
        }
        if seen.receiver.is_some() {
            // What gives up says so first, and is gone a moment later.
            if seen.receiver != receiver || self.news {
                return Found::Unclear;
            }
            self.since = None;
            return Found::Well;
        }
        // From an archive, for instance.
        let advances = std::mem::replace(&mut self.replayed, seen.replayed.clone()) != seen.replayed;
        let since = match self.since {
            Some(since) if !advances => since,
            _ => *self.since.insert(now),
        };
        if let Some(suspicion) = heard.by_receiver {
            return Found::Suspected(suspicion);
        }
        if now.duration_since(since) < limits::UPSTREAM_PATIENCE {
            return Found::Waiting;
        }
        Found::Suspected(match (heard.unreadable, seen.connecting) {
            (_, true) => Suspicion::Silent,
            (true, false) => Suspicion::Malformed,
            (false, false) => Suspicion::Receiving,
        })
    }

    fn is_news(&self) -> bool {
        self.news
    }

    fn hinted(&mut self) {
        self.since = None;
    }
}

/// How often hints are given.
#[derive(Debug, Default)]
struct Limiter {
    pause: Duration,
    last: Option<Instant>,
    next: Option<Instant>,
}

impl Limiter {
    fn allows(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    /// `random` is evenly distributed.
    fn hinted(&mut self, now: Instant, random: u32) {
        let calm =
            self.last.is_none_or(|last| now.duration_since(last) > 2 * limits::UPSTREAM_HINT_PAUSE_MAX);
        self.pause = match calm {
            true => limits::UPSTREAM_HINT_PAUSE,
            false => (self.pause * 2).min(limits::UPSTREAM_HINT_PAUSE_MAX),
        };
        self.last = Some(now);
        // Those who lost the same server at once need not come back at once.
        let jitter = 0.75 + f64::from(random) / f64::from(u32::MAX) / 2.0;
        self.next = Some(now + self.pause.mul_f64(jitter));
    }
}

#[cfg(test)]
mod tests;
