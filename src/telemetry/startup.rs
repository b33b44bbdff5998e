//! How long the first start took, part by part: what `GET /metrics.json` shows.
//!
//! The parts are measured where they are seen: the event loop sees the stages of a start as transitions, the storage
//! measures what it does itself. Only the first start that comes to `Running` counts. What is done later to a compute
//! that serves changes nothing, except that the sync of the safekeepers at the end overwrites the one at the start, as
//! in the original.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use compute_states::State;
use compute_states::state::Phase;
use serde::Serialize;
use tokio::time::Instant;

use crate::storage::Measured;

/// The figures, in the order and by the names in which the original sends them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StartupFigures {
    /// How long the compute was empty; 0 with a spec at hand.
    pub wait_for_spec_ms: u64,
    /// How long safekeepers were asked whether they agree.
    pub sync_sk_check_ms: u64,
    /// How long it took to make them agree, the last time that was done.
    pub sync_safekeepers_ms: u64,
    /// How long it took a pageserver to let us in, in microseconds.
    pub pageserver_connect_micros: u64,
    /// How long the data directory was fetched and unpacked, the connection included.
    pub basebackup_ms: u64,
    /// How much was received for it, compressed as it came.
    pub basebackup_bytes: u64,
    /// From the spawn of Postgres until it was ready.
    pub start_postgres_ms: u64,
    /// From then until settings and catalog were what the spec says.
    pub config_ms: u64,
    /// From the spec, or the start of the process where it was at hand, until all of that was done.
    pub total_startup_ms: u64,
    /// How long archives of extensions were fetched.
    pub load_ext_ms: u64,
    /// How many.
    pub num_ext_downloaded: u64,
    /// The size of the largest one.
    pub largest_ext_size: u64,
    /// The size of all of them.
    pub total_ext_download_size: u64,
    /// How long the data directory was made ready, by whatever kind of storage; not known to the original, and shown as a
    /// metric only.
    #[serde(skip)]
    pub prepare_ms: u64,
}

impl StartupFigures {
    /// The parts of the start by name, in order, and the whole.
    pub fn parts(&self) -> [(&'static str, Duration); 10] {
        let ms = Duration::from_millis;
        [
            ("wait_for_spec", ms(self.wait_for_spec_ms)),
            ("prepare", ms(self.prepare_ms)),
            ("safekeeper_check", ms(self.sync_sk_check_ms)),
            ("safekeeper_sync", ms(self.sync_safekeepers_ms)),
            ("pageserver_connect", Duration::from_micros(self.pageserver_connect_micros)),
            ("basebackup", ms(self.basebackup_ms)),
            ("load_extensions", ms(self.load_ext_ms)),
            ("start_postgres", ms(self.start_postgres_ms)),
            ("config", ms(self.config_ms)),
            ("total", ms(self.total_startup_ms)),
        ]
    }

    /// Tells all of them in one line of the log.
    pub fn log(&self) {
        tracing::info!(
            wait_for_spec_ms = self.wait_for_spec_ms,
            sync_sk_check_ms = self.sync_sk_check_ms,
            sync_safekeepers_ms = self.sync_safekeepers_ms,
            pageserver_connect_micros = self.pageserver_connect_micros,
            basebackup_ms = self.basebackup_ms,
            basebackup_bytes = self.basebackup_bytes,
            start_postgres_ms = self.start_postgres_ms,
            config_ms = self.config_ms,
            total_startup_ms = self.total_startup_ms,
            load_ext_ms = self.load_ext_ms,
            num_ext_downloaded = self.num_ext_downloaded,
            largest_ext_size = self.largest_ext_size,
            total_ext_download_size = self.total_ext_download_size,
            "finished start-up"
        );
    }
}

/// Where a compute is on its way to the first `Running`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There is no spec.
    Empty,
    /// One has come.
    Received,
    /// The data directory is made ready.
    Preparing,
    /// Postgres starts.
    Starting,
    /// Settings and catalog are brought to what the spec says.
    Applying,
    /// It serves.
    Running,
    /// Something else: a failure, the end, or a later change.
    Elsewhere,
}

impl Stage {
    /// Where a state is.
    pub fn of(state: &State) -> Self {
        match state {
            State::Empty(_) => Stage::Empty,
            State::ConfigurationPending(pending) if pending.server.is_none() => Stage::Received,
            State::Init(init) => match init.phase {
                Phase::Preparing { .. } | Phase::Retrying { .. } => Stage::Preparing,
                Phase::Starting { .. } => Stage::Starting,
                Phase::Applying { .. } => Stage::Applying,
                Phase::Abandoning { .. } => Stage::Elsewhere,
            },
            State::Running(_) => Stage::Running,
            _ => Stage::Elsewhere,
        }
    }
}

/// The measurement.
#[derive(Debug)]
pub struct Startup(Mutex<Clock>);

#[derive(Debug)]
struct Clock {
    figures: StartupFigures,
    /// Since when there is a spec; until one has come, since the start of the process.
    begun: Instant,
    stage: Stage,
    entered: Instant,
    done: bool,
}

impl Default for Startup {
    /// The process has just started.
    fn default() -> Self {
        let now = Instant::now();
        Startup(Mutex::new(Clock {
            figures: StartupFigures::default(),
            begun: now,
            stage: Stage::Elsewhere,
            entered: now,
            done: false,
        }))
    }
}

impl Startup {
    /// What is known by now.
    pub fn figures(&self) -> StartupFigures {
        self.lock().figures
    }

    /// The compute has come to another stage. Returns the figures when that is the end of the first start.
    pub fn enter(&self, stage: Stage) -> Option<StartupFigures> {
        let mut clock = self.lock();
        if clock.done || clock.stage == stage {
            return None;
        }
        let now = Instant::now();
        let took = millis(now - clock.entered);
        match (clock.stage, stage) {
            (Stage::Empty, Stage::Received) => {
                // A spec that was refused before is part of the wait.
                clock.figures.wait_for_spec_ms += took;
                clock.begun = now;
            }
            (Stage::Preparing, Stage::Starting) => clock.figures.prepare_ms = took,
            (Stage::Starting, Stage::Applying) => clock.figures.start_postgres_ms = took,
            (Stage::Applying, Stage::Running) => {
                clock.figures.config_ms = took;
                clock.figures.total_startup_ms = millis(now - clock.begun);
                clock.done = true;
            }
            _ => {}
        }
        clock.stage = stage;
        clock.entered = now;
        clock.done.then_some(clock.figures)
    }

    /// The data directory is ready, and this is what it took.
    pub fn prepared(&self, measured: Measured, received: u64) {
        let mut clock = self.lock();
        if clock.done {
            return;
        }
        let figures = &mut clock.figures;
        figures.sync_sk_check_ms = millis(measured.safekeeper_check);
        figures.sync_safekeepers_ms = millis(measured.safekeeper_sync);
        figures.pageserver_connect_micros = u64::try_from(measured.connect.as_micros()).unwrap_or(u64::MAX);
        figures.basebackup_ms = millis(measured.fetch);
        figures.basebackup_bytes = received;
    }

    /// Safekeepers were made to agree, after Postgres has stopped.
    pub fn synced(&self, took: Duration) {
        self.lock().figures.sync_safekeepers_ms = millis(took);
    }

    fn lock(&self) -> MutexGuard<'_, Clock> {
        // Numbers only: whatever a panic has left is no worse than what was there.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn only_the_first_start_counts() {
        let startup = Startup::default();
        advance(SECOND).await;
        assert_eq!(startup.enter(Stage::Empty), None);
        advance(2 * SECOND).await;
        startup.enter(Stage::Received);
        advance(SECOND).await;
        startup.enter(Stage::Preparing);
        advance(3 * SECOND).await;
        let measured = Measured { fetch: 2 * SECOND, connect: SECOND / 1000, ..Measured::default() };
        startup.prepared(measured, 77);
        startup.enter(Stage::Starting);
        advance(4 * SECOND).await;
        startup.enter(Stage::Applying);
        advance(5 * SECOND).await;
        let expected = StartupFigures {
            wait_for_spec_ms: 2000,
            pageserver_connect_micros: 1000,
            basebackup_ms: 2000,
            basebackup_bytes: 77,
            start_postgres_ms: 4000,
            config_ms: 5000,
            total_startup_ms: 13_000,
            prepare_ms: 3000,
            ..StartupFigures::default()
        };
        assert_eq!(startup.enter(Stage::Running), Some(expected));
        // A crash, and the start after it.
        for stage in [Stage::Elsewhere, Stage::Preparing, Stage::Starting, Stage::Applying, Stage::Running] {
            advance(SECOND).await;
            startup.prepared(Measured::default(), 0);
            assert_eq!(startup.enter(stage), None);
        }
        assert_eq!(startup.figures(), expected);
        startup.synced(7 * SECOND);
        assert_eq!(startup.figures(), StartupFigures { sync_safekeepers_ms: 7000, ..expected });
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_spec_at_hand_the_start_is_that_of_the_process() {
        let startup = Startup::default();
        for stage in [Stage::Preparing, Stage::Starting, Stage::Elsewhere, Stage::Preparing, Stage::Starting]
        {
            advance(SECOND).await;
            startup.enter(stage);
        }
        advance(SECOND).await;
        startup.enter(Stage::Applying);
        let figures = startup.enter(Stage::Running).unwrap();
        assert_eq!((figures.wait_for_spec_ms, figures.total_startup_ms), (0, 6000), "failed tries are in it");
        assert_eq!((figures.start_postgres_ms, figures.config_ms), (1000, 0), "the last try");
    }

    #[test]
    fn the_document_has_the_order_of_the_original() {
        let names = [
            "wait_for_spec_ms",
            "sync_sk_check_ms",
            "sync_safekeepers_ms",
            "pageserver_connect_micros",
            "basebackup_ms",
            "basebackup_bytes",
            "start_postgres_ms",
            "config_ms",
            "total_startup_ms",
            "load_ext_ms",
            "num_ext_downloaded",
            "largest_ext_size",
            "total_ext_download_size",
        ];
        let expected: Vec<String> = names.iter().map(|name| format!("\"{name}\":0")).collect();
        let document = serde_json::to_string(&StartupFigures::default()).unwrap();
        assert_eq!(document, format!("{{{}}}", expected.join(",")));
    }
}
