//! Carrying out effects: everything is spawned or sent, nothing is waited for.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use compute_states::{Effect, EffectKind, Epoch, Event, Exit, FailureClass, Revision, StopMode, Timer};
use futures_util::FutureExt;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::queue::{Envelope, Input};
use super::spans::Spans;
use super::world::{Done, Facts, Work, WorkError, World};
use crate::limits;
use crate::telemetry::Metrics;

/// What is under way on behalf of the machine.
pub(super) struct Effects<W> {
    world: Arc<W>,
    /// Weak, so that the loop ends when everybody else has gone.
    queue: mpsc::WeakSender<Envelope>,
    tasks: TaskTracker,
    /// By epoch, of work and timers that can be cancelled. There are never more than a few.
    tokens: BTreeMap<Epoch, CancellationToken>,
    /// Parent of all of them.
    all: CancellationToken,
    /// Drops every task, whatever it is doing.
    dropped: CancellationToken,
    /// Whose end was not reported.
    postmasters: Vec<Epoch>,
    /// Held by whatever touches the data directory or the processes on it. The machine goes on when a deadline
    /// has passed and does not await what it cancelled; without this a sweep in its grace could kill what was
    /// started after it.
    directory: Arc<Mutex<()>>,
    metrics: Arc<Metrics>,
}

impl<W: World> Effects<W> {
    pub(super) fn new(world: Arc<W>, queue: mpsc::WeakSender<Envelope>, metrics: Arc<Metrics>) -> Self {
        Effects {
            world,
            queue,
            tasks: TaskTracker::new(),
            tokens: BTreeMap::new(),
            all: CancellationToken::new(),
            dropped: CancellationToken::new(),
            postmasters: Vec::new(),
            directory: Arc::default(),
            metrics,
        }
    }

    /// Carries out any effect but an answer or the exit, which the loop does itself.
    pub(super) fn carry_out(&mut self, effect: Effect, spans: &Spans) {
        let kind = effect.kind();
        match effect {
            Effect::WarmUp { epoch } => self.work(kind, epoch, Work::WarmUp, spans),
            Effect::ResolveSpec { epoch, spec } => self.work(kind, epoch, Work::ResolveSpec { spec }, spans),
            Effect::PrepareStorage { epoch, spec, restart } => {
                self.work(kind, epoch, Work::PrepareStorage { spec, restart }, spans);
            }
            Effect::ApplySpec { epoch, spec, postmaster, first } => {
                self.work(kind, epoch, Work::ApplySpec { spec, postmaster, first }, spans);
            }
            Effect::Promote { epoch, spec, postmaster, lsn } => {
                self.work(kind, epoch, Work::Promote { spec, postmaster, lsn }, spans);
            }
            Effect::CheckIdle { epoch, postmaster } => {
                self.work(kind, epoch, Work::CheckIdle { postmaster }, spans)
            }
            Effect::FetchSpec { epoch, applied } => {
                self.work(kind, epoch, Work::FetchSpec { applied }, spans)
            }
            Effect::Sweep { epoch } => self.work(kind, epoch, Work::Sweep, spans),
            Effect::FinalSync { epoch, spec } => self.work(kind, epoch, Work::FinalSync { spec }, spans),
            Effect::StartPostmaster { postmaster, spec } => self.start(postmaster, spec),
            Effect::StopPostmaster { postmaster, mode } => self.stop(postmaster, mode),
            Effect::ReloadPostmaster { postmaster } => {
                let _ = guarded("reload", || self.world.reload_postmaster(postmaster));
            }
            Effect::Cancel { epoch } => {
                if let Some(token) = self.tokens.remove(&epoch) {
                    token.cancel();
                }
            }
            Effect::ArmTimer { epoch, timer, after } => self.arm(epoch, timer, after),
            Effect::Reply { .. } | Effect::Exit { .. } => {
                unreachable!("answers and the exit are carried out by the loop")
            }
        }
    }

    /// Cancels everything and waits until it has ended, for as long as cancelled work may take; then drops what
    /// is left. Does not return before every task is gone.
    ///
    /// The machine lets the process end only when its postmaster is gone, or as gone as it can be made. If the
    /// loop ends for another reason, one may be serving: it is told to go, and killed by being dropped.
    pub(super) async fn end(&mut self) {
        self.all.cancel();
        for postmaster in std::mem::take(&mut self.postmasters) {
            self.stop(postmaster, StopMode::Immediate);
        }
        self.tasks.close();
        if timeout(limits::CANCEL_GRACE * 2, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "dropping what did not end when it was told to");
            self.dropped.cancel();
            self.tasks.wait().await;
        }
    }

    /// Forgets how to cancel what has ended, so that the map does not grow with the age of the process.
    pub(super) fn settled(&mut self, event: &Event) {
        let epoch = match *event {
            Event::TimerFired { epoch } => Some(epoch),
            _ => event.settles(),
        };
        if let Some(epoch) = epoch {
            self.tokens.remove(&epoch);
        }
        if let Some(ended) = event.ends_postmaster() {
            self.postmasters.retain(|postmaster| *postmaster != ended);
        }
    }

    fn token(&mut self, epoch: Epoch) -> CancellationToken {
        let token = self.all.child_token();
        self.tokens.insert(epoch, token.clone());
        token
    }

    fn work(&mut self, kind: EffectKind, epoch: Epoch, work: Work, spans: &Spans) {
        let span = spans.of(work);
        let token = self.token(epoch);
        let world = self.world.clone();
        let directory = touches_directory(work).then(|| self.directory.clone());
        let deadline = limits::work_deadline(work);
        let metrics = self.metrics.clone();
        let done = async move {
            let begun = Instant::now();
            let supervised = async {
                let _turn = match &directory {
                    Some(directory) => Some(
                        token.run_until_cancelled(directory.lock()).await.ok_or_else(WorkError::cancelled)?,
                    ),
                    None => None,
                };
                supervise(world.run(work, token.clone()), &token, deadline).await
            };
            let result = AssertUnwindSafe(supervised).catch_unwind().await;
            let result = result.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
            let outcome = outcome(&result);
            metrics.effect(kind, outcome, begun.elapsed());
            if let Err(error) = &result {
                if error.class == FailureClass::Cancelled {
                    tracing::debug!(effect = kind.name(), epoch = epoch.0, "cancelled");
                } else {
                    tracing::error!(effect = kind.name(), epoch = epoch.0, class = outcome, "{error}");
                }
            }
            Some(work_end(epoch, work, result))
        };
        self.spawn(done.instrument(span));
    }

    fn start(&mut self, postmaster: Epoch, spec: Revision) {
        self.postmasters.push(postmaster);
        let facts = Facts::new(postmaster, self.queue.clone(), self.metrics.clone());
        let told = facts.clone();
        // Called now, so that the world knows it before it can be told to stop.
        let future = guarded("start", || self.world.start_postmaster(postmaster, spec, facts));
        let directory = self.directory.clone();
        self.spawn(async move {
            drop(directory.lock().await);
            let ended = match future {
                Ok(future) => AssertUnwindSafe(future).catch_unwind().await,
                // It has not even begun, so there never was a process.
                Err(panic) => Ok(Err(panicked(panic.as_ref()))),
            };
            let (outcome, input) = postmaster_end(postmaster, ended, told.words());
            told.measure(outcome);
            Some(input)
        });
    }

    fn stop(&self, postmaster: Epoch, mode: StopMode) {
        // If this fails, the deadline of this rung is what brings the next one.
        let _ = guarded("stop", || self.world.stop_postmaster(postmaster, mode));
    }

    fn arm(&mut self, epoch: Epoch, timer: Timer, after: Duration) {
        let token = self.token(epoch);
        let after = match timer {
            Timer::StorageBackoff | Timer::RefreshBackoff => jittered(after, self.world.random()),
            _ => after,
        };
        self.spawn(async move {
            token.run_until_cancelled(sleep(after)).await?;
            Some(Input::Event(Event::TimerFired { epoch }))
        });
    }

    fn spawn(&self, work: impl Future<Output = Option<Input>> + Send + 'static) {
        let queue = self.queue.clone();
        let dropped = self.dropped.clone();
        let task = async move {
            if let Some(input) = work.await {
                deliver(&queue, input).await;
            }
        };
        self.tasks.spawn(async move {
            dropped.run_until_cancelled(task).await;
        });
    }
}

/// A loop which is dropped takes everything with it.
impl<W> Drop for Effects<W> {
    fn drop(&mut self) {
        self.dropped.cancel();
    }
}

/// Calls the world. Its bugs must not become the end of the loop.
fn guarded<T>(what: &str, call: impl FnOnce() -> T) -> Result<T, Panic> {
    let result = std::panic::catch_unwind(AssertUnwindSafe(call));
    if let Err(panic) = &result {
        tracing::error!(what, "the world {}; this is a bug", panic_text(panic.as_ref()));
    }
    result
}

type Panic = Box<dyn std::any::Any + Send>;

fn panicked(panic: &(dyn std::any::Any + Send)) -> WorkError {
    WorkError::plain(FailureClass::Panicked, panic_text(panic))
}

fn touches_directory(work: Work) -> bool {
    match work {
        Work::PrepareStorage { .. }
        | Work::ApplySpec { .. }
        | Work::Promote { .. }
        | Work::Sweep
        | Work::FinalSync { .. } => true,
        Work::WarmUp | Work::ResolveSpec { .. } | Work::CheckIdle { .. } | Work::FetchSpec { .. } => false,
    }
}

async fn deliver(queue: &mpsc::WeakSender<Envelope>, input: Input) {
    if let Some(queue) = queue.upgrade() {
        // When the loop has ended nobody needs to know.
        let _ = queue.send(Envelope { input, permit: None }).await;
    }
}

/// Lets work run until it ends, is cancelled or has run out of time. Whatever is told to stop has a grace in
/// which it ends its processes; after that it is dropped.
async fn supervise(
    work: impl Future<Output = Result<Done, WorkError>>,
    token: &CancellationToken,
    deadline: Duration,
) -> Result<Done, WorkError> {
    let mut work = std::pin::pin!(work);
    let class = tokio::select! {
        biased;
        result = &mut work => return result,
        () = token.cancelled() => FailureClass::Cancelled,
        () = sleep(deadline) => FailureClass::TimedOut,
    };
    token.cancel();
    match timeout(limits::CANCEL_GRACE, &mut work).await {
        // It was done before it noticed.
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) | Err(_) if class == FailureClass::Cancelled => Err(WorkError::cancelled()),
        Ok(Err(_)) | Err(_) => {
            let text = format!("did not end within {} s", deadline.as_secs());
            Err(WorkError::plain(FailureClass::TimedOut, text))
        }
    }
}

fn work_end(epoch: Epoch, work: Work, result: Result<Done, WorkError>) -> Input {
    match (work, result) {
        // Neither can fail: whatever came of it, nothing waits for more.
        (Work::WarmUp, _) => Input::Event(Event::WarmUpEnded { epoch }),
        (Work::Sweep, _) => Input::Event(Event::Swept { epoch }),
        (Work::ResolveSpec { .. }, Ok(_)) => Input::Event(Event::SpecResolved { epoch }),
        (Work::PrepareStorage { .. }, Ok(_)) => Input::Event(Event::StoragePrepared { epoch }),
        (Work::ApplySpec { .. }, Ok(_)) => Input::Event(Event::SpecApplied { epoch }),
        (Work::Promote { .. }, Ok(Done::Promoted(times))) => {
            Input::Promoted(Event::Promoted { epoch }, times)
        }
        (Work::CheckIdle { .. }, Ok(Done::Idle { seen, hold })) => {
            Input::Activity { event: Event::FoundIdle { epoch }, seen, note: None, hold: Some(hold) }
        }
        (Work::CheckIdle { .. }, Ok(Done::Busy { seen, text })) => {
            Input::Activity { event: Event::FoundBusy { epoch }, seen, note: Some(text), hold: None }
        }
        (Work::FetchSpec { .. }, Ok(Done::Fetched(fetched))) => {
            Input::Event(Event::SpecFetched { epoch, fetched })
        }
        (Work::FinalSync { .. }, Ok(Done::Synced(lsn))) => Input::Event(Event::FinalSyncDone { epoch, lsn }),
        // A world that answers something else than it was asked has a bug, and the machine must not wait for
        // ever because of it.
        (
            Work::Promote { .. } | Work::CheckIdle { .. } | Work::FetchSpec { .. } | Work::FinalSync { .. },
            Ok(other),
        ) => {
            let text = format!("{work:?} ended in {other:?}; this is a bug");
            failed(epoch, work, WorkError::plain(FailureClass::Panicked, text))
        }
        (_, Err(error)) => failed(epoch, work, error),
    }
}

fn failed(epoch: Epoch, work: Work, error: WorkError) -> Input {
    let WorkError { class, text } = error;
    let event = match work {
        Work::WarmUp => Event::WarmUpEnded { epoch },
        Work::Sweep => Event::Swept { epoch },
        Work::ResolveSpec { .. } => Event::SpecRejected { epoch, class },
        Work::PrepareStorage { .. } => Event::StorageFailed { epoch, class },
        Work::ApplySpec { .. } => Event::ApplyFailed { epoch, class },
        Work::Promote { .. } => Event::PromoteFailed { epoch, class },
        Work::CheckIdle { .. } => Event::IdleCheckFailed { epoch, class },
        Work::FetchSpec { .. } => Event::FetchFailed { epoch, class },
        Work::FinalSync { .. } => Event::FinalSyncFailed { epoch, class },
    };
    Input::Failure(event, text)
}

fn postmaster_end(
    postmaster: Epoch,
    ended: Result<Result<Exit, WorkError>, Panic>,
    words: Option<&str>,
) -> (&'static str, Input) {
    match (ended, words) {
        (Ok(Ok(exit)), Some(words)) => {
            let text = format!("Postgres {exit} while it was starting: {words}");
            ("ended", Input::Failure(Event::PostmasterExited { postmaster, exit }, text.into()))
        }
        (Ok(Ok(exit)), None) => ("ended", Input::Event(Event::PostmasterExited { postmaster, exit })),
        (Ok(Err(error)), _) => {
            tracing::error!(postmaster = postmaster.0, "{error}");
            let WorkError { class, text } = error;
            (class_name(class), Input::Failure(Event::SpawnFailed { postmaster, class }, text))
        }
        // The watcher is gone, and with it (it kills on drop) the process. It must not look as if it had
        // stopped in order.
        (Err(panic), _) => {
            let text = panic_text(panic.as_ref());
            tracing::error!(postmaster = postmaster.0, "the watcher of the postmaster panicked: {text}");
            let exit = Exit::Signal(9);
            ("panicked", Input::Failure(Event::PostmasterExited { postmaster, exit }, text.into()))
        }
    }
}

fn outcome(result: &Result<Done, WorkError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(error) => class_name(error.class),
    }
}

fn class_name(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Transient => "transient",
        FailureClass::Permanent => "permanent",
        FailureClass::TimedOut => "timed_out",
        FailureClass::Cancelled => "cancelled",
        FailureClass::Panicked => "panicked",
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no text".to_owned());
    format!("panicked: {text}")
}

/// Spreads pauses between 75 % and 125 %, so that computes which lost their control plane or their storage
/// together do not come back together.
fn jittered(after: Duration, random: u64) -> Duration {
    after.saturating_mul(u32::try_from(75 + random % 51).unwrap_or(100)) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_a_quarter() {
        let after = Duration::from_secs(8);
        for random in (0..1000).chain([u64::MAX]) {
            let jittered = jittered(after, random);
            assert!(jittered >= after * 3 / 4 && jittered <= after * 5 / 4, "{jittered:?}");
        }
    }

    #[test]
    fn a_result_of_the_wrong_kind_is_a_failure_and_not_silence() {
        let input = work_end(Epoch(1), Work::FetchSpec { applied: None }, Ok(Done::Done));
        assert!(matches!(
            input,
            Input::Failure(Event::FetchFailed { epoch: Epoch(1), class: FailureClass::Panicked }, _)
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_ignores_its_deadline_is_dropped_and_timed_out() {
        let token = CancellationToken::new();
        let error = supervise(std::future::pending(), &token, Duration::from_secs(3))
            .await
            .expect_err("it never ends");
        assert_eq!(error.class, FailureClass::TimedOut);
        assert!(token.is_cancelled());
    }
}
