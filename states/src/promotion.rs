//! Promotion: a region beside the states.
//!
//! A standby becomes a primary while it serves, so the public status stays `Running` all the while, and the
//! promotion is a small machine of its own. It is held in [`Compute`], is shown every event before the state is,
//! and takes turns with everything else that changes the node: it begins only in `Running`, waits there for
//! whatever is under way, and while it is under way itself nothing else begins.
//!
//! What it waits for is work, which ends, and never the pauses of a refresh, which go on for as long as the control
//! plane is away: in a failover the primary is dead, a refresh looks for where the storage is now, and nobody may be
//! there to say. So the refresh is asked once; if that fails the promotion goes before it, and the refresh is done
//! after. Only where a spec is wanted that could not be applied there is nothing whole to promote, and whoever waits
//! hears that.
//!
//! ```text
//! Idle ──> Queued ──> Promoting ──> Applying ──> Done
//!   └──────────────────^   │            └──────> Unapplied ──> Done
//!   ^──────────────────────┘ failed: it can be asked for again
//! ```
//!
//! It lives only as long as a Postgres serves and nothing has failed: in any other state whoever waits is
//! answered and what had not been done is forgotten. What had been done is not: a server that was promoted stays
//! so, and every later request gets that answer.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use statig::Outcome;

use crate::effect::{Effect, Reply, Timer};
use crate::event::{Event, SpecOutline};
use crate::idle_check;
use crate::ids::{Epoch, Lsn, RequestId};
use crate::state::{
    Base, Compute, ConfigurationPending, Failed, FaultKind, Identities, IdentityVisitor,
    RefreshConfigurationPending, Running, Server, State, Unapplied, Waiting,
};
use crate::status::ComputeStatus;
use crate::verdict::{Cause, Refusal, Step};

/// Where the promotion of this compute is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Promotion {
    /// How far it is.
    pub stage: Stage,
    /// Who is owed an answer. All get the same.
    pub waiting: Vec<RequestId>,
    /// Whether a refresh was asked for meanwhile, and must follow.
    pub refresh: bool,
}

/// How far a promotion is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nobody has asked for one, or it has failed.
    #[default]
    Idle,
    /// It begins when the work under way is done.
    Queued {
        /// What the node is to be.
        spec: SpecOutline,
        /// How much of the log it must have replayed before.
        lsn: Lsn,
    },
    /// The server catches up and is promoted.
    Promoting {
        /// The work.
        epoch: Epoch,
        /// What the node is to be.
        spec: SpecOutline,
    },
    /// It is a primary; settings and catalog are being brought to what its spec says.
    Applying {
        /// The application.
        epoch: Epoch,
    },
    /// It is a primary, and its spec could not be applied. Whatever applies one completes the promotion.
    Unapplied,
    /// It is a primary, and what its spec says. That is for ever.
    Done,
}

/// What a state has to do with promotions.
enum Place<'a> {
    /// One can begin, and be under way.
    Running(&'a mut Running),
    /// One has to wait for what is under way.
    Busy,
    /// One can begin instead of the pause of a refresh, before the next fetch.
    Pausing {
        /// What serves, as wanted.
        server: Server,
        /// The end of the pause.
        timer: Epoch,
    },
    /// There can be none.
    Elsewhere(ComputeStatus),
}

impl Place<'_> {
    fn of(state: &mut State) -> Place<'_> {
        let status = state.status();
        match state {
            State::Running(running) => Place::Running(running),
            State::ConfigurationPending(ConfigurationPending { server: Some(_), .. })
            | State::Configuration(_)
            | State::RefreshConfigurationPending(RefreshConfigurationPending {
                base: Base::Serving { .. },
                waiting: Waiting::Fetch(_),
                ..
            })
            | State::RefreshConfiguration(_) => Place::Busy,
            State::RefreshConfigurationPending(RefreshConfigurationPending {
                base: Base::Serving { server, unapplied: None },
                waiting: Waiting::Backoff(timer),
                ..
            }) => Place::Pausing { server: *server, timer: *timer },
            State::Empty(_)
            | State::ConfigurationPending(_)
            | State::Init(_)
            | State::RefreshConfigurationPending(_)
            | State::Failed(_)
            | State::TerminationPendingFast(_)
            | State::TerminationPendingImmediate(_)
            | State::Terminated(_) => Place::Elsewhere(status),
        }
    }
}

impl Promotion {
    /// The work under way.
    pub fn work(&self) -> Option<Epoch> {
        match self.stage {
            Stage::Promoting { epoch, .. } | Stage::Applying { epoch } => Some(epoch),
            Stage::Idle | Stage::Queued { .. } | Stage::Unapplied | Stage::Done => None,
        }
    }

    fn answer(&mut self, step: &mut Step, reply: Reply) {
        for request in self.waiting.drain(..) {
            step.reply(request, reply);
        }
    }

    /// Answers whoever waits, and forgets what had not been done.
    fn give_up(&mut self, step: &mut Step, reply: Reply) {
        self.stage = match self.stage {
            Stage::Idle | Stage::Queued { .. } | Stage::Promoting { .. } => Stage::Idle,
            Stage::Applying { .. } | Stage::Unapplied => Stage::Unapplied,
            Stage::Done => Stage::Done,
        };
        self.refresh = false;
        self.answer(step, reply);
    }
}

/// Looks at an event before the state does, and takes what concerns promotions.
pub(crate) fn before(
    state: &mut State,
    compute: &mut Compute,
    event: &Event,
    step: &mut Step,
) -> Outcome<State> {
    if let Event::PromoteRequested { request, spec, lsn } = *event {
        return requested(state, compute, step, request, spec, lsn);
    }
    if let State::RefreshConfigurationPending(refresh) = state
        && let Event::FetchFailed { epoch, .. } = *event
        && refresh.waiting == Waiting::Fetch(epoch)
    {
        return fetch_failed(&refresh.base, compute, step);
    }
    let State::Running(running) = state else { return Outcome::Super };
    let Some(work) = compute.promotion.work() else { return Outcome::Super };
    if event.settles() == Some(work) {
        return settled(running, compute, event, step);
    }
    match *event {
        Event::ConfigureRequested { request, .. } => {
            step.refuse_request(request, Refusal::Promoting, ComputeStatus::Running);
            return step.refuse(Refusal::Promoting);
        }
        Event::RefreshRequested { request } => step.reply(request, Reply::RefreshAccepted),
        Event::RefreshHinted => {}
        Event::TimerFired { epoch } if running.refresh == Some(epoch) => running.refresh = None,
        _ => return Outcome::Super,
    }
    compute.promotion.refresh = true;
    step.latch(Cause::RefreshLatched, None)
}

/// Goes on, or gives up, where the compute has come to another state.
pub(crate) fn after(state: &mut State, compute: &mut Compute, step: &mut Step) {
    match (Place::of(state), compute.promotion.stage) {
        (Place::Running(running), Stage::Queued { spec, lsn }) => {
            begin(step, compute, &running.server, spec, lsn);
        }
        (Place::Running(_), Stage::Unapplied) => {
            compute.promotion.stage = Stage::Done;
            compute.promotion.answer(step, Reply::Promoted);
        }
        (Place::Running(_) | Place::Busy | Place::Pausing { .. }, _) => {}
        (Place::Elsewhere(status), _) => {
            let reply = match status {
                ComputeStatus::Failed | ComputeStatus::RefreshConfigurationPending => Reply::PromoteFailed,
                _ => Reply::PromoteSuperseded,
            };
            compute.promotion.give_up(step, reply);
        }
    }
}

/// Begins before a refresh that reaches nobody, or is given up, so that none waits for a pause.
fn fetch_failed(base: &Base, compute: &mut Compute, step: &mut Step) -> Outcome<State> {
    match (*base, compute.promotion.stage) {
        (Base::Serving { server, unapplied: None }, Stage::Queued { .. }) => {
            let target = overtake(compute, step, server);
            step.go(Cause::RefreshOvertaken, target)
        }
        (Base::Serving { unapplied: Some(_), .. }, _) => {
            compute.promotion.give_up(step, Reply::PromoteFailed);
            Outcome::Super
        }
        _ => Outcome::Super,
    }
}

/// Where a queued promotion begins, with the refresh after it.
fn overtake(compute: &mut Compute, step: &mut Step, server: Server) -> State {
    compute.promotion.refresh = true;
    Running::begin(step, compute, server, false)
}

fn requested(
    state: &mut State,
    compute: &mut Compute,
    step: &mut Step,
    request: RequestId,
    spec: SpecOutline,
    lsn: Lsn,
) -> Outcome<State> {
    let status = state.status();
    match (compute.promotion.stage, Place::of(state)) {
        (Stage::Done, _) => {
            step.reply(request, Reply::Promoted);
            step.take(Cause::PromotionKept)
        }
        (_, Place::Elsewhere(_)) => Outcome::Super,
        (Stage::Idle, Place::Running(running)) => {
            compute.promotion.waiting.push(request);
            begin(step, compute, &running.server, spec, lsn);
            step.take(Cause::PromoteRequested)
        }
        (Stage::Idle, Place::Busy) => {
            compute.promotion.waiting.push(request);
            compute.promotion.stage = Stage::Queued { spec, lsn };
            step.latch(Cause::PromotionQueued, None)
        }
        (Stage::Idle, Place::Pausing { server, timer }) => {
            step.cancel(timer);
            compute.promotion.waiting.push(request);
            compute.promotion.stage = Stage::Queued { spec, lsn };
            let target = overtake(compute, step, server);
            step.go(Cause::PromoteRequested, target)
        }
        _ if compute.promotion.waiting.len() >= compute.policy.max_waiters => {
            step.refuse_request(request, Refusal::TooManyWaiters, status);
            step.refuse(Refusal::TooManyWaiters)
        }
        _ => {
            compute.promotion.waiting.push(request);
            step.latch(Cause::PromotionJoined, None)
        }
    }
}

fn begin(step: &mut Step, compute: &mut Compute, server: &Server, spec: SpecOutline, lsn: Lsn) {
    idle_check::overtaken(compute, step, ComputeStatus::Running);
    let epoch = compute.next_epoch();
    let (postmaster, revision) = (server.postmaster, spec.revision);
    step.emit(Effect::Promote { epoch, spec: revision, postmaster, lsn });
    compute.promotion.stage = Stage::Promoting { epoch, spec };
}

fn settled(running: &mut Running, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
    match (*event, compute.promotion.stage) {
        (Event::Promoted { .. }, Stage::Promoting { spec, .. }) => {
            // From now on it is what the new spec says: that one names the safekeepers to synchronise, and that
            // one is started after a crash. What is left is settings and catalog.
            running.server.applied = spec;
            let (postmaster, epoch) = (running.server.postmaster, compute.next_epoch());
            step.emit(Effect::ApplySpec { epoch, spec: spec.revision, postmaster, first: false });
            compute.promotion.stage = Stage::Applying { epoch };
            step.take(Cause::ServerPromoted)
        }
        (Event::SpecApplied { .. }, Stage::Applying { .. }) => {
            compute.promotion.answer(step, Reply::Promoted);
            compute.promotion.stage = Stage::Done;
            refresh_now(running, compute, step);
            step.take(Cause::Promoted)
        }
        (Event::ApplyFailed { epoch, class }, Stage::Applying { .. }) => {
            compute.note(FaultKind::ApplyFailed(class), epoch);
            compute.promotion.stage = Stage::Unapplied;
            let refresh = compute.promotion.refresh || running.refresh.is_some();
            step.cancel(running.refresh);
            let (server, unapplied) = (running.server, Unapplied::Pushed(running.server.applied));
            let target = Failed::serving(step, compute, server, unapplied, refresh);
            step.go(Cause::PromotedUnapplied, target)
        }
        // The server is what it was, and serves on.
        (Event::PromoteFailed { .. }, Stage::Promoting { .. }) => {
            compute.promotion.answer(step, Reply::PromoteFailed);
            compute.promotion.stage = Stage::Idle;
            refresh_now(running, compute, step);
            step.take(Cause::PromotionFailed)
        }
        _ => Outcome::Super,
    }
}

/// Turns a refresh that was latched into an event of its own.
fn refresh_now(running: &mut Running, compute: &mut Compute, step: &mut Step) {
    if core::mem::take(&mut compute.promotion.refresh) && running.refresh.is_none() {
        running.refresh = Some(step.arm(compute, Timer::LatchedRefresh, core::time::Duration::ZERO));
    }
}

impl Identities for Promotion {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        match &mut self.stage {
            Stage::Queued { spec, .. } => spec.visit(visitor),
            Stage::Promoting { epoch, spec } => {
                epoch.visit(visitor);
                spec.visit(visitor);
            }
            Stage::Applying { epoch } => epoch.visit(visitor),
            Stage::Idle | Stage::Unapplied | Stage::Done => {}
        }
        self.waiting.visit(visitor);
    }
}
