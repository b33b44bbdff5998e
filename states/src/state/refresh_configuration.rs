//! A fetched spec is being applied.

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::{
    Compute, FaultKind, Holdings, Identities, IdentityVisitor, RefreshConfigurationPending, Running, Server,
    State, Unapplied,
};
use crate::effect::Effect;
use crate::event::Event;
use crate::ids::Epoch;
use crate::verdict::{Cause, Step};

/// Reconfiguring after a refresh. A repeated refresh is refused here, on which Postgres relies: see
/// [`Refusal::CannotRefresh`](crate::Refusal::CannotRefresh).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RefreshConfiguration {
    /// What serves, with the spec that was applied before.
    pub server: Server,
    /// What is being applied.
    pub wanted: Unapplied,
    /// The application.
    pub epoch: Epoch,
    /// How often fetching or applying has failed.
    pub attempt: u8,
}

impl RefreshConfiguration {
    pub(super) fn begin(
        step: &mut Step,
        compute: &mut Compute,
        server: Server,
        wanted: Unapplied,
        attempt: u8,
    ) -> State {
        let epoch = compute.next_epoch();
        let (postmaster, revision) = (server.postmaster, wanted.spec().revision);
        step.emit(Effect::ApplySpec { epoch, spec: revision, postmaster, first: false });
        State::RefreshConfiguration(RefreshConfiguration { server, wanted, epoch, attempt })
    }

    pub(crate) fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        match *event {
            Event::SpecApplied { epoch } if epoch == self.epoch => {
                let server = Server { applied: self.wanted.spec(), ..self.server };
                let target = Running::begin(step, compute, server, false);
                step.go(Cause::Refreshed, target)
            }
            Event::ApplyFailed { epoch, class } if epoch == self.epoch => {
                compute.note(FaultKind::ApplyFailed(class), epoch);
                let target = RefreshConfigurationPending::back_off(
                    step,
                    compute,
                    self.server,
                    self.wanted,
                    self.attempt,
                );
                step.go(Cause::RefreshApplyFailed, target)
            }
            _ => Outcome::Super,
        }
    }

    pub(super) fn holdings(&self) -> Holdings {
        Holdings { work: Some(self.epoch), ..Holdings::serving(&self.server) }
    }
}

impl Identities for RefreshConfiguration {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        self.server.visit(visitor);
        self.wanted.visit(visitor);
        self.epoch.visit(visitor);
    }
}
