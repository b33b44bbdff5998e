//! The status over time, and how the first start went: families of our own.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use compute_states::{Cause, ComputeStatus};
use prometheus::{Counter, CounterVec, Gauge, GaugeVec, IntCounter, IntGaugeVec, Opts, Registry};

use super::register;
use crate::telemetry::StartupFigures;

#[derive(Debug)]
pub(super) struct States {
    /// 1 for the present status, 0 for every other.
    state: IntGaugeVec,
    since_entry: Gauge,
    total: CounterVec,
    restarts: IntCounter,
    start: GaugeVec,
    present: Mutex<Present>,
}

#[derive(Debug)]
struct Present {
    status: ComputeStatus,
    entered: Instant,
    /// Up to when the present status has been added to its total.
    counted: Instant,
}

impl States {
    pub(super) fn new(registry: &Registry) -> Self {
        let now = Instant::now();
        let states = States {
            state: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("compute_ctl_state", "1 for the present status, 0 for the others"),
                    &["status"],
                ),
            ),
            since_entry: register(
                registry,
                Gauge::new("compute_ctl_state_age_seconds", "For how long the status has been what it is"),
            ),
            total: register(
                registry,
                CounterVec::new(
                    Opts::new("compute_ctl_state_seconds_total", "Time spent in each status"),
                    &["status"],
                ),
            ),
            restarts: register(
                registry,
                IntCounter::new(
                    "compute_ctl_postgres_restarts_total",
                    "How often Postgres was started again after a crash",
                ),
            ),
            start: register(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "compute_ctl_start_phase_seconds",
                        "How long the parts of the first start took, and the whole of it",
                    ),
                    &["phase"],
                ),
            ),
            present: Mutex::new(Present { status: ComputeStatus::Empty, entered: now, counted: now }),
        };
        states.enter(ComputeStatus::Empty, None);
        states
    }

    pub(super) fn enter(&self, status: ComputeStatus, cause: Option<Cause>) {
        self.count();
        let now = Instant::now();
        *self.lock() = Present { status, entered: now, counted: now };
        for other in ComputeStatus::ALL {
            self.state.with_label_values(&[&other.to_string()]).set(i64::from(other == status));
        }
        if cause == Some(Cause::Restarting) {
            self.restarts.inc();
        }
    }

    /// Brings the time up to date; before each scrape.
    pub(super) fn count(&self) {
        let mut present = self.lock();
        let now = Instant::now();
        self.spent(present.status).inc_by((now - present.counted).as_secs_f64());
        self.since_entry.set((now - present.entered).as_secs_f64());
        present.counted = now;
    }

    pub(super) fn started(&self, figures: &StartupFigures) {
        for (part, took) in figures.parts() {
            self.start.with_label_values(&[part]).set(took.as_secs_f64());
        }
    }

    fn spent(&self, status: ComputeStatus) -> Counter {
        self.total.with_label_values(&[&status.to_string()])
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Present> {
        // Every change is one assignment, so a panic elsewhere cannot have left half of one behind.
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
