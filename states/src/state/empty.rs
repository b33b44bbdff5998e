//! No spec yet.

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::init::Start;
use super::{Compute, ConfigurationPending, Holdings, Identities, IdentityVisitor, Init, State};
use crate::effect::Effect;
use crate::event::Event;
use crate::ids::Epoch;
use crate::verdict::{Cause, Step};

/// Waiting for a spec.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Empty {
    /// What happens meanwhile.
    pub idleness: Idleness,
}

/// What happens while there is no spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Idleness {
    /// `Booted` has not been handled.
    Spawned,
    /// Caches are being warmed. Whatever comes cancels it and waits for nothing.
    WarmingUp(Epoch),
    /// Nothing.
    Idle,
}

impl Empty {
    pub(crate) fn spawned() -> State {
        State::Empty(Empty { idleness: Idleness::Spawned })
    }

    pub(crate) fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        match *event {
            Event::Booted { spec } if self.idleness == Idleness::Spawned => match spec {
                Some(spec) => {
                    let target = Init::begin(step, compute, Start::fresh(spec));
                    step.go(Cause::SpecAtHand, target)
                }
                None => {
                    let epoch = compute.next_epoch();
                    step.emit(Effect::WarmUp { epoch });
                    self.idleness = Idleness::WarmingUp(epoch);
                    step.take(Cause::WaitingForSpec)
                }
            },
            Event::WarmUpEnded { epoch } if self.idleness == Idleness::WarmingUp(epoch) => {
                self.idleness = Idleness::Idle;
                step.take(Cause::WarmUpEnded)
            }
            Event::ConfigureRequested { request, spec } => {
                step.cancel(self.warm_up());
                let target = ConfigurationPending::begin(step, compute, spec, None, request, None);
                step.go(Cause::ConfigureRequested, target)
            }
            _ => Outcome::Super,
        }
    }

    fn warm_up(&self) -> Option<Epoch> {
        match self.idleness {
            Idleness::WarmingUp(epoch) => Some(epoch),
            Idleness::Spawned | Idleness::Idle => None,
        }
    }

    pub(super) fn holdings(&self) -> Holdings {
        Holdings { work: self.warm_up(), nothing_to_report: true, ..Holdings::default() }
    }
}

impl Identities for Empty {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        if let Idleness::WarmingUp(epoch) = &mut self.idleness {
            epoch.visit(visitor);
        }
    }
}
