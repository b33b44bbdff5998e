//! The lease of a pinned compute: kept from the moment its spec is being started until the node ends.
//!
//! It is nobody's business but its pageservers'. What comes of it is logged and counted, and changes no state: a
//! compute whose lease is refused serves what is still there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::limits;
use crate::spec::store::StoredSpec;
use crate::storage::neon::lease::{Outcome, Pin, keep};
use crate::telemetry::Metrics;

/// The one lease there is at a time.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<Option<Kept>>);

#[derive(Debug)]
struct Kept {
    pin: watch::Sender<Pin>,
    _task: AbortOnDropHandle<()>,
}

impl Leases {
    /// A spec is being started. One that is pinned to where the last one was goes on with its lease, or without it if
    /// that was refused.
    pub(super) fn begin(&self, stored: &StoredSpec, metrics: &Arc<Metrics>) {
        let mut kept = self.lock();
        let Some(pin) = Pin::of(stored) else {
            *kept = None;
            return metrics.no_lease();
        };
        if let Some(kept) = &*kept
            && kept.pin.borrow().is_where(&pin)
        {
            return turn(kept, stored);
        }
        metrics.no_lease();
        let lsn = pin.lsn();
        let (tenant_id, timeline_id) = (pin.tenant(), pin.timeline());
        let span = tracing::info_span!(parent: None, "lsn_lease_bg_task", %tenant_id, %timeline_id, %lsn);
        let (pin, pins) = watch::channel(pin);
        let metrics = metrics.clone();
        let report = move |outcome| match outcome {
            Outcome::Granted(end) => {
                metrics.lease_granted(lsn, end);
                tracing::info!(%lsn, valid_until = end.as_secs(), "lease granted");
            }
            Outcome::Refused(server) => {
                metrics.lease_refused();
                tracing::warn!(
                    %lsn,
                    "pageserver {server} refuses a lease: what this compute reads there may be gone"
                );
            }
            Outcome::Failed(reason) => {
                metrics.lease_failed();
                tracing::warn!(%lsn, "no lease yet: {reason}");
            }
        };
        let ask = |pin: Pin| async move { pin.ask(limits::PAGESERVER_CONNECT, limits::LEASE_ANSWER).await };
        let task = AbortOnDropHandle::new(tokio::spawn(keep(pins, ask, clock, report).instrument(span)));
        *kept = Some(Kept { pin, _task: task });
    }

    /// A running server has taken a spec over: from now on its pageservers are asked, at once if they are others.
    pub(super) fn turn(&self, stored: &StoredSpec) {
        if let Some(kept) = &*self.lock() {
            turn(kept, stored);
        }
    }

    /// The node ends.
    pub(super) fn end(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        // Every change is one assignment, so a panic elsewhere cannot have left half of one behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn turn(kept: &Kept, stored: &StoredSpec) {
    kept.pin.send_if_modified(|pin| pin.turn(stored));
}

fn clock() -> Duration {
    // Before the epoch no lease could be judged; they all are valid then.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
