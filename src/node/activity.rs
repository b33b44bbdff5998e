//! The activity monitor: sees what is at work in Postgres, and how long Postgres does not answer.
//!
//! What it sees it reports as an event; whether that counts, and for which Postgres, the state machine decides. What
//! it does follows from the published state alone:
//!
//! | the compute | the monitor |
//! |---|---|
//! | has not served yet | waits: the sessions of a first start are this program's |
//! | has a Postgres that serves | asks it, each half second |
//! | has served, and lost its Postgres without being asked to | counts downtime, and asks again once one serves |
//! | goes down, or is down | has ended: that is no downtime |

use std::sync::Arc;
use std::time::Duration;

use compute_states::{ComputeStatus, Epoch};
use jiff::Timestamp;
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::Instrument;

use crate::activity::look::Prepared;
use crate::activity::{Judge, Look, Rules};
use crate::catalog::{self, ConnectError, Connection, ConnectionSettings, Profile};
use crate::engine::{Handle, Snapshot};
use crate::limits;
use crate::secret::Secret;
use crate::telemetry::{Metrics, chain};

/// How these sessions show up in `pg_stat_activity`; the original's name.
const APPLICATION_NAME: &str = "compute_ctl:compute_monitor";

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    Ask(Epoch),
    CountDowntime,
    End,
}

impl Duty {
    /// Of a compute that has served.
    fn of(snapshot: &Snapshot) -> Self {
        match (snapshot.server, snapshot.status) {
            (Some(postmaster), _) => Duty::Ask(postmaster),
            (
                None,
                ComputeStatus::TerminationPendingFast
                | ComputeStatus::TerminationPendingImmediate
                | ComputeStatus::Terminated,
            ) => Duty::End,
            (None, _) => Duty::CountDowntime,
        }
    }
}

/// Why a round brought nothing.
#[derive(Debug, Error)]
enum RoundError {
    #[error("Postgres cannot be reached")]
    Connect(#[source] ConnectError),
    #[error("the session with Postgres was closed")]
    Closed,
    #[error("Postgres could not be asked for its activity")]
    Ask(#[source] tokio_postgres::Error),
    #[error("Postgres did not answer within {:?}", limits::ACTIVITY_ROUND)]
    TimedOut,
}

/// A session with one particular Postgres.
struct Session {
    postmaster: Epoch,
    connection: Connection,
    prepared: Prepared,
}

/// Watches until the compute goes down. No part of a start: it begins before one and outlives it.
pub(super) async fn monitor(handle: Handle, connstr: Secret, rules: Arc<Rules>, metrics: Arc<Metrics>) {
    let life = tracing::info_span!(parent: None, "compute_monitor");
    let rounds = tracing::info_span!(parent: &life, "run");
    run(handle, connstr, rules, metrics).instrument(rounds).instrument(life).await;
}

async fn run(handle: Handle, connstr: Secret, rules: Arc<Rules>, metrics: Arc<Metrics>) {
    let settings = match ConnectionSettings::new(&connstr, Profile::Standard) {
        Ok(settings) => settings.named(APPLICATION_NAME),
        Err(error) => return tracing::error!("no activity can be seen: {}", chain(&error)),
    };
    if handle.watch().wait_for(|snapshot| snapshot.server.is_some()).await.is_err() {
        return;
    }
    let mut clock = Clock::new(metrics);
    let mut judges = Judges::default();
    let mut session = None;
    let mut rounds = interval(limits::ACTIVITY_PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        let postmaster = match Duty::of(&handle.snapshot()) {
            Duty::Ask(postmaster) => postmaster,
            Duty::CountDowntime => {
                session = None;
                let begins = clock.current.is_zero();
                clock.down();
                if begins {
                    tracing::info!(downtime_info = clock.info(), "Postgres has ended without being asked to");
                }
                continue;
            }
            Duty::End => return clock.intended(),
        };
        // By a target of its own, so that who has no use for two spans a second can switch them off.
        let check = tracing::info_span!(target: "compute_ctl::node::activity::check", "check");
        match round(&mut session, &settings, postmaster, &rules).instrument(check).await {
            Ok(look) => {
                clock.up();
                let seen = judges.of(postmaster).judge(&look, Timestamp::now(), &rules);
                // Idleness is news once; work is news each time, because it moves `last_active`. Compared with what is
                // published: others publish what they see, and what was observed may have been lost.
                let published = handle.snapshot();
                let news = seen.newest.map(|newest| newest.at) > published.last_active;
                if news || published.activity != Some(seen.activity) {
                    handle.observe(postmaster, seen);
                }
            }
            Err(error) => {
                session = None;
                // A stop that somebody asked for is published before it begins.
                if Duty::of(&handle.snapshot()) == Duty::End {
                    return clock.intended();
                }
                clock.down();
                let info = clock.info();
                match error {
                    RoundError::Connect(_) | RoundError::Closed => {
                        tracing::info!(downtime_info = info, "{}", chain(&error));
                    }
                    RoundError::Ask(_) | RoundError::TimedOut => {
                        tracing::error!(downtime_info = info, "{}", chain(&error));
                    }
                }
            }
        }
    }
}

async fn round(
    session: &mut Option<Session>,
    settings: &ConnectionSettings,
    postmaster: Epoch,
    rules: &Rules,
) -> Result<Look, RoundError> {
    let known = match session.take() {
        // Another Postgres serves already, so this one has crashed since the last round.
        Some(known) if known.postmaster != postmaster => return Err(RoundError::Closed),
        Some(known) if known.connection.client().is_closed() => return Err(RoundError::Closed),
        other => other,
    };
    let work = async {
        let known = match known {
            Some(known) => known,
            None => {
                let connection = catalog::connect(settings).await.map_err(RoundError::Connect)?;
                let prepared = Prepared::new(&connection).await.map_err(RoundError::Ask)?;
                Session { postmaster, connection, prepared }
            }
        };
        let look = known.prepared.look(&known.connection, rules.statistics(), false).await;
        Ok((look.map_err(RoundError::Ask)?, known))
    };
    let (look, known) = timeout(limits::ACTIVITY_ROUND, work).await.map_err(|_| RoundError::TimedOut)??;
    *session = Some(known);
    Ok(look)
}

/// One judge for each Postgres, of which there is one at a time. Each counts from zero, so its first look is compared
/// with nothing: a crash has lost the statistics, and that is no work of anybody's.
#[derive(Debug, Default)]
struct Judges(Option<(Epoch, Judge)>);

impl Judges {
    fn of(&mut self, postmaster: Epoch) -> &mut Judge {
        let known = self.0.take().filter(|(of, _)| *of == postmaster);
        &mut self.0.insert(known.unwrap_or((postmaster, Judge::default()))).1
    }
}

/// What is known of how long Postgres was not there.
struct Clock {
    metrics: Arc<Metrics>,
    /// When it answered last.
    up: Instant,
    up_at: Timestamp,
    /// Up to when everything is counted.
    counted: Instant,
    current: Duration,
}

impl Clock {
    fn new(metrics: Arc<Metrics>) -> Self {
        let now = Instant::now();
        Clock { metrics, up: now, up_at: Timestamp::now(), counted: now, current: Duration::ZERO }
    }

    fn up(&mut self) {
        if !self.current.is_zero() {
            tracing::info!(downtime_info = self.info(), "Postgres answers again");
        }
        *self = Clock::new(self.metrics.clone());
        self.metrics.downtime().none();
    }

    fn down(&mut self) {
        let now = Instant::now();
        self.current = now - self.up;
        self.metrics.downtime().goes_on(self.current, now - self.counted);
        self.counted = now;
    }

    /// What a stop that was asked for leaves.
    fn intended(&mut self) {
        self.metrics.downtime().none();
    }

    fn info(&self) -> String {
        format!(
            "total_ms: {}, current_ms: {}, last_up: {}",
            self.metrics.downtime().total_ms(),
            self.current.as_millis(),
            self.up_at
        )
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::activity::{Activity, Statistics};

    #[tokio::test(start_paused = true)]
    async fn each_moment_of_downtime_is_counted_once() {
        let metrics = Arc::new(Metrics::new());
        let current = || {
            let text = metrics.render(0).expect("it can be encoded");
            let line = text.lines().find_map(|line| line.strip_prefix("compute_pg_current_downtime_ms "));
            line.and_then(|value| value.parse::<f64>().ok())
        };
        let second = Duration::from_secs(1);
        let mut clock = Clock::new(metrics.clone());
        for _ in 0..3 {
            advance(second).await;
            clock.down();
        }
        assert_eq!((current(), metrics.downtime().total_ms()), (Some(3000.0), 3000));
        let told = clock.info();
        assert!(told.starts_with("total_ms: 3000, current_ms: 3000, last_up: "), "{told}");
        clock.up();
        assert_eq!((current(), metrics.downtime().total_ms()), (Some(0.0), 3000));
        advance(second).await;
        clock.up();
        advance(second).await;
        clock.down();
        assert_eq!((current(), metrics.downtime().total_ms()), (Some(1000.0), 4000));
        clock.intended();
        assert_eq!((current(), metrics.downtime().total_ms()), (Some(0.0), 4000));
    }

    #[test]
    fn a_restart_after_a_crash_moves_no_statistics() {
        let mut judges = Judges::default();
        let mut moved = |postmaster, sessions| {
            let statistics = Some(Statistics { active_time: Some(1.0), sessions: Some(sessions) });
            let activity = Activity::default();
            let look = Look { activity, idle_since: None, statistics, pids: Vec::new() };
            let seen = judges.of(Epoch(postmaster)).judge(&look, Timestamp::now(), &Rules::default());
            seen.activity.statistics_moved
        };
        assert_eq!([moved(1, 7), moved(1, 7), moved(1, 8)], [None, Some(false), Some(true)]);
        assert_eq!([moved(2, 0), moved(2, 0), moved(2, 1)], [None, Some(false), Some(true)]);
    }
}
