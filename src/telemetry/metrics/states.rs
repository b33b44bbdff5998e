//! The status, now and over time, and how the first start went: families of our own.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use compute_states::{Cause, ComputeStatus};
use prometheus::{Counter, CounterVec, Gauge, GaugeVec, IntCounter, IntGaugeVec, Opts, Registry};

use super::{BUILD_TAG, register};
use crate::telemetry::StartupFigures;

#[derive(Debug)]
pub(super) struct States {
    /// Exactly one sample, which tells the present status.
    up: IntGaugeVec,
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
        let up = register(
            registry,
            IntGaugeVec::new(
                Opts::new("compute_ctl_up", "Constant 1; the labels tell the build and the present status"),
                &["build_tag", "status"],
            ),
        );
        States {
            up,
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
        }
    }

    pub(super) fn enter(&self, status: ComputeStatus, cause: Option<Cause>) {
        let now = Instant::now();
        let before = std::mem::replace(&mut *self.lock(), Present { status, entered: now, counted: now });
        self.spent(before.status).inc_by((now - before.counted).as_secs_f64());
        if cause == Some(Cause::Restarting) {
            self.restarts.inc();
        }
    }

    /// Has the samples be those of the present. Only one scrape may do it at a time: what the loop does is to write the
    /// status down, so that it need not wait for scrapes, and none of them finds a moment without a sample.
    pub(super) fn bring_up_to_date(&self) {
        let now = Instant::now();
        let (status, entered, counted) = {
            let mut present = self.lock();
            let counted = present.counted;
            present.counted = now.max(counted);
            (present.status, present.entered, counted)
        };
        self.spent(status).inc_by((now - counted).as_secs_f64());
        self.since_entry.set((now - entered).as_secs_f64());
        self.up.reset();
        self.up.with_label_values(&[BUILD_TAG, &status.to_string()]).set(1);
        for other in ComputeStatus::ALL {
            self.state.with_label_values(&[&other.to_string()]).set(i64::from(other == status));
        }
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
