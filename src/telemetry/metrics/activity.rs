//! How long Postgres was not there for those who need it.

use std::time::Duration;

use prometheus::{Gauge, IntCounter, Registry};

use super::register;

/// The two families of the original's monitor.
#[derive(Debug)]
pub struct Downtime {
    current: Gauge,
    total: IntCounter,
}

impl Downtime {
    pub(super) fn new(registry: &Registry) -> Self {
        let current = register(
            registry,
            Gauge::new(
                "compute_pg_current_downtime_ms",
                "Milliseconds since Postgres last answered; 0 while it does",
            ),
        );
        let total = register(
            registry,
            IntCounter::new(
                "compute_pg_downtime_ms_total",
                "Milliseconds in which Postgres should have answered and did not",
            ),
        );
        Downtime { current, total }
    }

    /// Postgres answers, or is not meant to.
    pub fn none(&self) {
        self.current.set(0.0);
    }

    /// It does not: since when, and how much of that is new.
    pub fn goes_on(&self, since: Duration, more: Duration) {
        self.current.set(since.as_secs_f64() * 1e3);
        self.total.inc_by(u64::try_from(more.as_millis()).unwrap_or(u64::MAX));
    }

    /// The sum, in milliseconds.
    pub fn total_ms(&self) -> u64 {
        self.total.get()
    }
}
