//! The real outside: storage, Postgres, catalog, control plane.

mod idle;
mod promote;
mod work;

pub(super) use work::servable;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use compute_states::{Epoch, Exit, FailureClass, Revision, StopMode};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::afterwards::Afterwards;
use super::intake::Intake;
use super::leases::Leases;
use super::upstream::Upstream;
use crate::activity::Rules;
use crate::control_plane::Source;
use crate::engine::{Done, Facts, Work, WorkError, World};
use crate::limits;
use crate::postgres::settings::{Reload, Settings};
use crate::postgres::{DataDir, Fact, Installation, LastWords, Postmaster, SweepOutcome, process};
use crate::secret::Secret;
use crate::spec::store::StoredSpec;
use crate::storage::{OwnSlots, Progress};
use crate::telemetry::Metrics;

/// What this node works with; the same for its whole life.
#[derive(Debug)]
pub(super) struct Parts {
    /// What counts as activity.
    pub rules: Arc<Rules>,
    pub installation: Installation,
    pub pgdata: Arc<DataDir>,
    pub intake: Intake,
    /// Where a refresh asks; nowhere for a spec of this program's own making.
    pub source: Option<Source>,
    pub metrics: Arc<Metrics>,
    pub connstr: Secret,
    /// The superuser of new clusters.
    pub superuser: String,
    /// Where what can be made again is kept.
    pub cache: PathBuf,
    /// Whether a cluster that is not ours may be removed.
    pub overwrite_foreign: bool,
    pub privileged_role: String,
    /// Whether this is a node of the mode in which the original counts some things more.
    pub lakebase: bool,
    pub internal_http_port: u16,
    /// Catalog work that serving does not wait for.
    pub afterwards: Afterwards,
    /// What a pinned compute holds at its pageservers.
    pub leases: Leases,
    /// The watcher of a standby's upstream.
    pub upstream: Upstream,
    pub settings: Settings,
    /// How far the preparation of the data directory is.
    pub progress: Arc<Progress>,
    /// Replication slots at other servers to be dropped.
    pub slots: Mutex<OwnSlots>,
    /// What the store has to keep.
    pub documents: Mutex<BTreeMap<Needed, Arc<StoredSpec>>>,
}

/// Why a document is held, so that the store keeps it: the machine may speak of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needed {
    /// Work was last done for it.
    Wanted,
    /// A refresh has found it last.
    Fetched,
    /// It was applied last.
    Applied,
}

/// The outside of a running node.
#[derive(Debug)]
pub(super) struct RealWorld {
    parts: Arc<Parts>,
    postmaster: Arc<Mutex<Slot>>,
    /// The look at what the server has made of the last reload; one is enough.
    look: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// The one postmaster, from the moment it is asked for until it was swept up after.
#[derive(Debug, Default)]
struct Slot {
    epoch: Option<Epoch>,
    process: Option<Arc<Postmaster>>,
    /// A stop that came before there was a process.
    early_stop: Option<StopMode>,
    /// Earlier ones of which something could not be ended. It is tried again at the very end.
    left: Vec<Arc<Postmaster>>,
}

impl RealWorld {
    pub(super) fn new(parts: Parts) -> Self {
        RealWorld { parts: Arc::new(parts), postmaster: Arc::default(), look: Mutex::default() }
    }

    /// The guard outside the loop: whatever became of it, no Postgres outlives this program, nor anything that a
    /// Postgres had started.
    pub(super) async fn leave_nothing(&self) {
        self.parts.leases.end();
        let processes = {
            let mut slot = lock(&self.postmaster);
            let left = std::mem::take(&mut slot.left);
            left.into_iter().chain(slot.process.take()).collect::<Vec<_>>()
        };
        for process in processes {
            process.signal(crate::postgres::StopMode::Immediate);
            let outcome = process.sweep(limits::LAST_SWEEP).await;
            tracing::warn!(?outcome, "a postmaster was left, and has been ended");
        }
        let ended = process::end_adopted(limits::SWEEP).await;
        if ended > 0 {
            tracing::info!(ended, "orphans of Postgres were ended");
        }
        // Last, because nobody uses them any more only now.
        let ending = self.parts.slots().take_ending();
        ending.drop_all(&self.parts.installation).await;
    }
}

impl World for RealWorld {
    fn run(
        &self,
        work: Work,
        token: CancellationToken,
    ) -> impl Future<Output = Result<Done, WorkError>> + Send + 'static {
        let parts = self.parts.clone();
        let postmaster = self.postmaster.clone();
        async move {
            let reload: Reload = {
                let postmaster = postmaster.clone();
                Arc::new(move || {
                    let process = lock(&postmaster).process.clone();
                    process.is_some_and(|process| process.reload())
                })
            };
            match work {
                Work::WarmUp => parts.warm_up(&token).await,
                Work::ResolveSpec { spec } => parts.check(spec),
                Work::PrepareStorage { spec, restart } => parts.prepare(spec, restart, &token).await,
                Work::ApplySpec { spec, first, .. } => {
                    // Boxed, because it is large, and is moved through many hands: that has overflowed a stack.
                    Box::pin(parts.apply(spec, first, &reload, &token)).await
                }
                Work::Promote { spec, lsn, .. } => {
                    let _no_longer_followed = parts.upstream.quiet();
                    Box::pin(parts.promote(spec, lsn, &reload, &token)).await
                }
                Work::CheckIdle { postmaster: looked_at } => {
                    let door = {
                        let slot = lock(&postmaster);
                        let process = slot.process.as_ref().filter(|_| slot.epoch == Some(looked_at));
                        process.map(|process| process.door())
                    };
                    let looked = token.run_until_cancelled(parts.check_idle(door)).await;
                    looked.unwrap_or_else(|| Err(WorkError::cancelled()))
                }
                Work::FetchSpec { applied } => parts.fetch(applied, &token).await,
                Work::Sweep => {
                    let process = lock(&postmaster).process.clone();
                    if let Some(process) = process {
                        match process.sweep(limits::SWEEP).await {
                            SweepOutcome::Clean { signalled } => {
                                tracing::debug!(signalled, "swept");
                                lock(&postmaster).process = None;
                            }
                            SweepOutcome::Left { pids } => {
                                tracing::warn!(?pids, "processes of Postgres could not be ended");
                            }
                        }
                    }
                    process::reap_adopted();
                    Ok(Done::Done)
                }
                Work::FinalSync { spec } => parts.final_sync(spec, &token).await,
            }
        }
    }

    fn start_postmaster(
        &self,
        postmaster: Epoch,
        spec: Revision,
        facts: Facts,
    ) -> impl Future<Output = Result<Exit, WorkError>> + Send + 'static {
        // Here, in the loop, so that a stop which follows at once finds it.
        {
            let mut slot = lock(&self.postmaster);
            let earlier = slot.process.take();
            slot.left.extend(earlier);
            slot.epoch = Some(postmaster);
            slot.early_stop = None;
        }
        let parts = self.parts.clone();
        let slot = self.postmaster.clone();
        async move {
            let words = LastWords::default();
            let launch = parts.launch(spec, &words)?;
            parts.rules.started_with(parts.looks_at_statistics(spec)?);
            if lock(&slot).early_stop.is_some() {
                return Err(WorkError::cancelled());
            }
            // Not under the lock: the loop takes it too, and must not wait for a program to be loaded.
            let (process, mut events) = Postmaster::spawn(launch).map_err(work::permanent)?;
            tracing::info!(pid = process.pid(), "postmaster spawned");
            let process = {
                let process = Arc::new(process);
                let mut slot = lock(&slot);
                if let Some(mode) = slot.early_stop {
                    process.signal(stop_mode(mode));
                }
                // Held by the slot alone: dropping it is what stops a server that nobody wants any more.
                let held_elsewhere = Arc::downgrade(&process);
                slot.process = Some(process);
                held_elsewhere
            };
            let mut was_ready = false;
            while let Some(fact) = events.recv().await {
                match fact {
                    Fact::Progressed => facts.progressed().await,
                    Fact::Ready => {
                        was_ready = true;
                        facts.ready().await;
                    }
                    Fact::Exited(status) => {
                        if !was_ready && let Some(process) = process.upgrade() {
                            process.log_drained().await;
                            facts.last_words(words.get());
                        }
                        return Ok(exit(status));
                    }
                }
            }
            Err(WorkError::plain(FailureClass::Panicked, "the watcher of the postmaster has gone"))
        }
    }

    fn stop_postmaster(&self, postmaster: Epoch, mode: StopMode) {
        let mut slot = lock(&self.postmaster);
        if slot.epoch != Some(postmaster) {
            return;
        }
        self.parts.afterwards.end();
        match &slot.process {
            Some(process) => {
                process.signal(stop_mode(mode));
            }
            None => slot.early_stop = Some(mode),
        }
    }

    fn reload_postmaster(&self, postmaster: Epoch) {
        let slot = lock(&self.postmaster);
        if slot.epoch == Some(postmaster)
            && let Some(process) = &slot.process
            && process.reload()
        {
            let parts = self.parts.clone();
            // What the server makes of its files is told; nothing waits for that.
            let look = tokio::spawn(async move { parts.look_at_settings().await });
            // Every change is one assignment, so a panic elsewhere cannot have left half of one behind.
            let mut last = self.look.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(AbortOnDropHandle::new(look));
        }
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

fn stop_mode(mode: StopMode) -> crate::postgres::StopMode {
    match mode {
        StopMode::Fast => crate::postgres::StopMode::Fast,
        StopMode::Immediate => crate::postgres::StopMode::Immediate,
        StopMode::Kill => crate::postgres::StopMode::Kill,
    }
}

fn exit(status: std::process::ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        // Catching its stop signals is among the first things a postmaster does, before it opens anything. One
        // that ends by such a signal was asked to stop before that, and there was nothing to shut down.
        (None, Some(nix::libc::SIGINT | nix::libc::SIGTERM)) => Exit::Code(0),
        (None, signal) => Exit::Signal(signal.unwrap_or_default()),
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    // Every change is one assignment, so a panic elsewhere cannot have left half of one behind.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
