//! A termination that is to happen only if nothing is at work: a region beside the states.
//!
//! Whether something is at work only the server can tell, so a request begins a look at it, done for this request, and
//! what the look finds decides. The look itself keeps the door shut until its result was handled: between *idle* and
//! the stop nobody can come in. What counts here is the other half: that a stop follows from the result of the look
//! under way and from nothing else.
//!
//! | the compute | such a request |
//! |---|---|
//! | `Running` | begins a look, or joins the one under way |
//! | `Running`, while a promotion is under way | refused: the node is wanted as something else |
//! | on its way down, or down | as a termination without the condition: there is nothing left to spare |
//! | anywhere else | refused: no Postgres serves, or the compute is at work itself; `/terminate` without the condition is there for those |
//!
//! Whatever else begins meanwhile makes an end of the look. If it is a termination, those who wait get its answer;
//! otherwise they hear that the compute is at work.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use statig::Outcome;

use crate::effect::{Effect, Reply};
use crate::event::{Event, TerminateMode};
use crate::ids::{Epoch, RequestId};
use crate::state::{Compute, Identities, IdentityVisitor, Running, State, idle_shutdown};
use crate::status::ComputeStatus;
use crate::verdict::{Cause, Refusal, Step};

/// A look that is under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IdleCheck {
    /// The work.
    pub epoch: Epoch,
    /// Who is owed an answer. All get the same.
    pub waiting: Vec<RequestId>,
    /// How the process ends; immediately if one of them wants that.
    pub mode: TerminateMode,
}

/// Looks at an event before the state does, and takes what concerns such terminations.
pub(crate) fn before(
    state: &mut State,
    compute: &mut Compute,
    event: &Event,
    step: &mut Step,
) -> Outcome<State> {
    let State::Running(running) = state else { return Outcome::Super };
    match *event {
        Event::TerminateIfIdleRequested { request, mode } => requested(running, compute, step, request, mode),
        Event::FoundIdle { epoch } => match taken(compute, epoch) {
            Some(check) => {
                let mode = check.mode;
                let target = idle_shutdown(step, compute, running, check.waiting, mode);
                step.go(Cause::FoundIdle, target)
            }
            None => Outcome::Super,
        },
        Event::FoundBusy { epoch } => match taken(compute, epoch) {
            Some(check) => {
                answer(step, check, Reply::NotIdle);
                step.take(Cause::FoundBusy)
            }
            None => Outcome::Super,
        },
        Event::IdleCheckFailed { epoch, .. } => match taken(compute, epoch) {
            Some(check) => {
                answer(step, check, Reply::IdleUnknown);
                step.take(Cause::IdleCheckFailed)
            }
            None => Outcome::Super,
        },
        _ => Outcome::Super,
    }
}

/// Makes an end of a look where the compute has come to another state.
pub(crate) fn after(state: &mut State, compute: &mut Compute, step: &mut Step) {
    match state {
        State::Running(_) => {}
        State::TerminationPendingFast(pending) => join(&mut pending.0.waiting, compute, step),
        State::TerminationPendingImmediate(pending) => join(&mut pending.0.waiting, compute, step),
        other => overtaken(compute, step, other.status()),
    }
}

/// Something else has begun.
pub(crate) fn overtaken(compute: &mut Compute, step: &mut Step, status: ComputeStatus) {
    if let Some(check) = compute.idle_check.take() {
        step.cancel(check.epoch);
        answer(step, check, Reply::Refused { refusal: Refusal::WorkBegun, status });
    }
}

fn requested(
    running: &Running,
    compute: &mut Compute,
    step: &mut Step,
    request: RequestId,
    mode: TerminateMode,
) -> Outcome<State> {
    if compute.promotion.work().is_some() {
        step.refuse_request(request, Refusal::Promoting, ComputeStatus::Running);
        return step.refuse(Refusal::Promoting);
    }
    let most = compute.policy.max_waiters;
    match &mut compute.idle_check {
        Some(check) if check.waiting.len() >= most => {
            step.refuse_request(request, Refusal::TooManyWaiters, ComputeStatus::Running);
            step.refuse(Refusal::TooManyWaiters)
        }
        Some(check) => {
            check.waiting.push(request);
            if mode == TerminateMode::Immediate {
                check.mode = mode;
            }
            step.latch(Cause::IdleCheckJoined, None)
        }
        None => {
            let epoch = compute.next_epoch();
            step.emit(Effect::CheckIdle { epoch, postmaster: running.server.postmaster });
            compute.idle_check = Some(IdleCheck { epoch, waiting: alloc::vec![request], mode });
            step.take(Cause::IdleCheckRequested)
        }
    }
}

/// The look that has this result, if it is the one under way.
fn taken(compute: &mut Compute, epoch: Epoch) -> Option<IdleCheck> {
    compute.idle_check.take_if(|check| check.epoch == epoch)
}

fn join(waiting: &mut Vec<RequestId>, compute: &mut Compute, step: &mut Step) {
    if let Some(check) = compute.idle_check.take() {
        step.cancel(check.epoch);
        waiting.extend(check.waiting);
    }
}

fn answer(step: &mut Step, check: IdleCheck, reply: Reply) {
    for request in check.waiting {
        step.reply(request, reply);
    }
}

impl Identities for IdleCheck {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        self.epoch.visit(visitor);
        self.waiting.visit(visitor);
    }
}
