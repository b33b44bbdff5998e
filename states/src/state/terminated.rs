//! Postgres is gone and everything owed is settled.

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::{Compute, Identities, IdentityVisitor, State};
use crate::effect::{Effect, ExitReason, Reply, TerminationResult, Timer};
use crate::event::{Event, TerminateMode};
use crate::ids::Epoch;
use crate::verdict::{Cause, Step};

/// Waiting for the process to end. No event leads out of here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Terminated {
    /// What whoever asks is told.
    pub result: TerminationResult,
    /// How the process ends.
    pub reason: ExitReason,
    /// Until when the status stays readable; without it the process is ending.
    pub linger: Option<Epoch>,
}

impl Terminated {
    pub(super) fn begin(
        step: &mut Step,
        compute: &mut Compute,
        result: TerminationResult,
        reason: ExitReason,
        linger: bool,
    ) -> State {
        let linger = if linger {
            let after = compute.policy.fast_linger;
            Some(step.arm(compute, Timer::TerminatedLinger, after))
        } else {
            step.emit(Effect::Exit { reason });
            None
        };
        State::Terminated(Terminated { result, reason, linger })
    }

    pub(crate) fn on(&mut self, event: &Event, step: &mut Step) -> Outcome<State> {
        match *event {
            Event::TerminateRequested { request, mode }
            | Event::TerminateIfIdleRequested { request, mode } => {
                step.reply(request, Reply::AlreadyTerminated(self.result));
                if mode == TerminateMode::Immediate {
                    self.exit(step);
                }
                step.take(Cause::AlreadyTerminated)
            }
            Event::StopSignalled => {
                self.exit(step);
                step.take(Cause::LingerCut)
            }
            Event::TimerFired { epoch } if Some(epoch) == self.linger => {
                self.linger = None;
                step.emit(Effect::Exit { reason: self.reason });
                step.take(Cause::LingerOver)
            }
            _ => Outcome::Super,
        }
    }

    fn exit(&mut self, step: &mut Step) {
        if let Some(timer) = self.linger.take() {
            step.cancel(timer);
            step.emit(Effect::Exit { reason: self.reason });
        }
    }
}

impl Identities for Terminated {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        self.linger.visit(visitor);
    }
}
