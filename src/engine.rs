//! The event loop around the pure machine.
//!
//! One task owns the machine. It takes one envelope from one bounded queue, lets the machine handle the event,
//! publishes what a client may see, and carries out the effects, none of which it waits for: work is spawned
//! and comes back as an event, timers too, answers and signals to Postgres are sent and forgotten. So no cycle
//! of waiting can form, and nothing but this task ever touches the state.
//!
//! | module | what lives there |
//! |---|---|
//! | [`queue`] | the handle, admission, envelopes |
//! | [`world`] | what the outside can do, as a trait; the real one and the simulated one implement it |
//! | [`effects`] | spawning, cancelling, one result each |
//! | [`journal`] | the ring of what happened, its file, its replay |
//! | `spans` | what traces show |
//! | [`status`] | what is published |
//! | [`history`] | the last transitions, which are published too |

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use compute_states::promotion;
use compute_states::state::{Init, Phase};
use compute_states::{
    Cause, ComputeStatus, Effect, Event, EventKind, ExitReason, Machine, Policy, RequestId, Revision, State,
    Step, Verdict,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::activity::Seen;
use crate::limits;
use crate::telemetry::{Metrics, Stage};

pub mod effects;
pub mod history;
pub mod journal;
pub mod queue;
mod spans;
pub mod status;
pub mod world;

use effects::Effects;
use history::{Change, Recorder};
use journal::Journal;
pub use journal::Recording;
use queue::{Answer, Control, Envelope, Input};
pub use queue::{Handle, Rejected};
use spans::Spans;
pub use status::Promoted;
pub use status::Snapshot;
pub use world::{Done, Facts, Hold, PromotionTimes, Work, WorkError, World};

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The machine said so.
    Exit(ExitReason),
    /// The machine panicked, which is a bug: the journal tells how it came to it.
    MachinePanicked,
    /// Every handle is gone, so no event can come any more.
    Abandoned,
}

/// What the loop leaves behind.
#[derive(Debug)]
pub struct Outcome {
    /// Why it ended.
    pub ended: Ended,
    /// What happened, as far back as the ring reaches.
    pub recording: Recording,
}

/// The loop, ready to run.
pub struct Engine<W: World> {
    machine: Machine,
    queue: mpsc::Receiver<Envelope>,
    published: watch::Sender<Arc<Snapshot>>,
    /// What is published, to look at without the lock.
    snapshot: Arc<Snapshot>,
    history: Recorder,
    effects: Effects<W>,
    replies: HashMap<RequestId, oneshot::Sender<Answer>>,
    journal: Journal,
    metrics: Arc<Metrics>,
    /// The spec which the published status speaks of.
    spec: Option<Revision>,
    /// How long the promotion took, and since when the server is a primary.
    promotion: Option<(Promoted, Duration)>,
    /// Where the promotion was before the last event.
    promotion_stage: promotion::Stage,
    /// Where the start was after the last event.
    stage: Stage,
    spans: Spans,
    on_failure: Option<FailureHook>,
}

/// Called with the recording each time the compute fails.
type FailureHook = Box<dyn Fn(Recording) + Send>;

/// Builds the loop and the handle by which everything else talks to it.
pub fn new<W: World>(world: Arc<W>, policy: Policy, metrics: Arc<Metrics>) -> (Engine<W>, Handle) {
    let machine = Machine::new(policy);
    let (sender, queue) = mpsc::channel(limits::QUEUE);
    let snapshot = Arc::new(Snapshot::first(&machine));
    let (published, snapshots) = watch::channel(snapshot.clone());
    let history = Recorder::new(machine.status());
    let handle = Handle::new(sender.clone(), snapshots, history.watch(), metrics.clone());
    let engine = Engine {
        journal: Journal::new(&machine),
        effects: Effects::new(world, sender.downgrade(), metrics.clone()),
        machine,
        queue,
        published,
        snapshot,
        history,
        replies: HashMap::new(),
        metrics,
        spec: None,
        promotion: None,
        promotion_stage: promotion::Stage::Idle,
        stage: Stage::Elsewhere,
        spans: Spans::new(String::new()),
        on_failure: None,
    };
    (engine, handle)
}

impl<W: World> Engine<W> {
    /// Has `hook` called with the recording each time the compute fails. It must not block.
    pub fn on_failure(mut self, hook: impl Fn(Recording) + Send + 'static) -> Self {
        self.on_failure = Some(Box::new(hook));
        self
    }

    /// Has traces say on which data directory the server is started.
    pub fn on_directory(mut self, pgdata: &Path) -> Self {
        self.spans = Spans::new(pgdata.display().to_string());
        self
    }

    /// Runs until the machine ends the process. Dropping the future cancels all work.
    pub async fn run(mut self) -> Outcome {
        let mut step = Step::default();
        let mut batch = Vec::with_capacity(limits::QUEUE_BATCH);
        let ended = loop {
            // Taking what is there in one go saves a wake-up per event; an empty batch means that every
            // sender is gone.
            if self.queue.recv_many(&mut batch, limits::QUEUE_BATCH).await == 0 {
                break Ended::Abandoned;
            }
            let now = self.journal.now();
            if let Some(ended) = batch.drain(..).find_map(|envelope| self.take(envelope, &mut step, now)) {
                break ended;
            }
        };
        // Whatever was not answered hears that the loop is gone, because its sender is dropped here. The queue
        // is closed first, or results that wait for a place in it would keep their tasks from ending.
        drop(batch);
        drop(self.queue);
        self.replies.clear();
        self.effects.end().await;
        Outcome { ended, recording: self.journal.record() }
    }

    fn take(&mut self, envelope: Envelope, step: &mut Step, now: Duration) -> Option<Ended> {
        let Envelope { input, permit } = envelope;
        drop(permit);
        let (mut promoted, mut seen, mut held) = (None, None, None);
        let (event, note) = match input {
            Input::Event(event) => (event, None),
            Input::Failure(event, text) => (event, Some(text)),
            Input::Promoted(event, times) => {
                promoted = Some(times);
                (event, None)
            }
            Input::Activity { event, seen: activity, note, hold } => {
                (seen, held) = (Some(activity), hold);
                (event, note)
            }
            Input::Request { event, request, reply, span } => {
                self.spans.asked(&event, span);
                self.replies.insert(request, reply);
                (event, None)
            }
            Input::Control(Control::Journal(reply)) => {
                // A caller that went away does not need it.
                let _ = reply.send(self.journal.record());
                return None;
            }
            Input::Control(Control::Sign(reply)) => {
                // The same here.
                let _ = reply.send(());
                return None;
            }
        };
        self.effects.settled(&event);
        let before = self.machine.status();
        let handled = catch_unwind(AssertUnwindSafe(|| self.machine.handle_into(&event, step)));
        if handled.is_err() {
            tracing::error!(?event, "the state machine panicked; this is a bug");
            return Some(Ended::MachinePanicked);
        }
        let verdict = step.verdict();
        if is_news(verdict, event.kind()) {
            self.journal.push(now, event, verdict, &self.machine, note.clone());
        } else {
            self.journal.leave_out(&self.machine);
        }
        self.metrics.event(event.kind(), verdict);
        let after = self.machine.status();
        if before != after {
            let cause = verdict.cause();
            self.metrics.transition(before, after, cause);
            tracing::info!(from = %before, to = %after, cause = %verdict, "transition");
            self.spans.enter(after);
        } else {
            tracing::debug!(?event, status = %after, verdict = ?verdict, "event");
        }
        self.note_stage();
        self.note_retry(verdict);
        self.note_promotion(verdict, promoted, now);
        // An observation of a server that is gone tells nothing.
        let seen = seen.filter(|_| verdict != Verdict::Stale);
        self.publish(&event, verdict.cause(), note.clone(), seen);
        debug_assert_eq!(self.snapshot.status, self.machine.status(), "something else is published");
        let exit = self.carry_out(step, note.as_ref());
        // Only now: what the machine decided upon it is on its way.
        drop(held);
        if before != after
            && after == ComputeStatus::Failed
            && let Some(hook) = &self.on_failure
        {
            hook(self.journal.record());
        }
        exit
    }

    /// Tells the measurement of the first start how far it is.
    fn note_stage(&mut self) {
        let stage = Stage::of(self.machine.state());
        if stage == self.stage {
            return;
        }
        self.stage = stage;
        self.spans.reach(stage);
        if let Some(figures) = self.metrics.startup().enter(stage) {
            self.metrics.started(&figures);
            figures.log();
        }
    }

    /// The failure itself was logged by the work that met it.
    fn note_retry(&self, verdict: Verdict) {
        if let State::Init(Init { phase: Phase::Retrying { retry, .. }, .. }) = self.machine.state()
            && verdict == Verdict::Taken(Cause::StorageFailedForNow)
        {
            self.metrics.storage_retried();
            let of = self.machine.compute().policy.storage_retries;
            tracing::warn!(retry, of, "the data directory could not be prepared; trying again after a pause");
        }
    }

    /// Keeps how long the parts of a promotion took, and counts how it ended.
    fn note_promotion(&mut self, verdict: Verdict, times: Option<PromotionTimes>, now: Duration) {
        if let (Some(times), Some(Cause::ServerPromoted)) = (times, verdict.cause()) {
            self.promotion = Some((Promoted { times, reconfigure: Duration::ZERO }, now));
        }
        if self.promotion_stage == self.machine.compute().promotion.stage {
            return;
        }
        let before = std::mem::replace(&mut self.promotion_stage, self.machine.compute().promotion.stage);
        let outcome = match (before, self.promotion_stage) {
            (_, promotion::Stage::Done) => "completed",
            (_, promotion::Stage::Unapplied) => "unapplied",
            (
                promotion::Stage::Queued { .. } | promotion::Stage::Promoting { .. },
                promotion::Stage::Idle,
            ) => "failed",
            _ => return,
        };
        self.metrics.promotion(outcome);
        tracing::info!(outcome, "promotion");
        if let (Some((promoted, since)), promotion::Stage::Done) = (&mut self.promotion, self.promotion_stage)
        {
            promoted.reconfigure = now.saturating_sub(*since);
        }
    }

    /// Publishes before any answer is sent, so that whoever was answered finds what the answer says.
    fn publish(&mut self, event: &Event, cause: Option<Cause>, note: Option<Arc<str>>, seen: Option<Seen>) {
        self.spec = status::current_spec(self.machine.state()).or(self.spec);
        let done = self.promotion_stage == promotion::Stage::Done;
        let promotion = self.promotion.filter(|_| done).map(|(promoted, _)| promoted);
        let unchanged = self.snapshot.status == self.machine.status()
            && self.snapshot.fault == self.machine.fault()
            && self.snapshot.spec == self.spec
            && self.snapshot.promotion == promotion;
        if unchanged && seen.is_none() && event.kind() != EventKind::Booted {
            return;
        }
        let mut next = Snapshot::clone(&self.snapshot);
        next.follow(&self.machine, self.spec, note, seen);
        next.promotion = promotion;
        if next.status != self.snapshot.status {
            let failed = next.status == ComputeStatus::Failed;
            self.history.push(Change {
                to: next.status,
                cause,
                epoch: history::concerned(event),
                error: next.error.clone().filter(|_| failed),
            });
        }
        self.snapshot = Arc::new(next);
        self.published.send_replace(self.snapshot.clone());
    }

    fn carry_out(&mut self, step: &Step, failure: Option<&Arc<str>>) -> Option<Ended> {
        let mut ended = None;
        for effect in step.effects() {
            match *effect {
                Effect::Reply { request, reply } => {
                    self.spans.answered(request);
                    if let Some(sender) = self.replies.remove(&request) {
                        let snapshot = self.snapshot.clone();
                        // A client that went away does not need its answer.
                        let _ = sender.send(Answer { reply, snapshot, failure: failure.cloned() });
                    }
                }
                Effect::Exit { reason } => ended = Some(Ended::Exit(reason)),
                other => self.effects.carry_out(other, &self.spans),
            }
        }
        ended
    }
}

/// Whether the journal has a use for an event. What is at work is observed twice a second, and changes nothing that the
/// machine knows: within minutes there would be nothing else in the ring.
fn is_news(verdict: Verdict, event: EventKind) -> bool {
    let changes_nothing = matches!(verdict, Verdict::Taken(Cause::ActivityNoted) | Verdict::Stale);
    event != EventKind::ActivityObserved || !changes_nothing
}

#[cfg(test)]
mod tests;
