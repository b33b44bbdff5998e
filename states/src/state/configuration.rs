//! A later spec is being applied to a live Postgres.

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::failed::Failed;
use super::{Compute, FaultKind, Holdings, Identities, IdentityVisitor, Running, Server, State, Unapplied};
use crate::effect::{Effect, Reply};
use crate::event::{Event, SpecOutline};
use crate::ids::{Epoch, RequestId};
use crate::status::ComputeStatus;
use crate::verdict::{Cause, Refusal, Step};

/// Reconfiguring for a client.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Configuration {
    /// What serves, with the spec that was applied before.
    pub server: Server,
    /// What is being applied.
    pub spec: SpecOutline,
    /// The application.
    pub epoch: Epoch,
    /// Who is owed the answer.
    pub request: Option<RequestId>,
    /// Whether a refresh must follow.
    pub refresh: bool,
}

impl Configuration {
    pub(super) fn begin(
        step: &mut Step,
        compute: &mut Compute,
        server: Server,
        spec: SpecOutline,
        request: Option<RequestId>,
        refresh: bool,
    ) -> State {
        let epoch = compute.next_epoch();
        let (postmaster, revision) = (server.postmaster, spec.revision);
        step.emit(Effect::ApplySpec { epoch, spec: revision, postmaster, first: false });
        State::Configuration(Configuration { server, spec, epoch, request, refresh })
    }

    pub(crate) fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        match *event {
            Event::SpecApplied { epoch } if epoch == self.epoch => {
                if let Some(request) = self.request.take() {
                    step.reply(request, Reply::Configured);
                }
                let server = Server { applied: self.spec, ..self.server };
                let target = Running::begin(step, compute, server, self.refresh);
                step.go(Cause::Reconfigured, target)
            }
            Event::ApplyFailed { epoch, class } if epoch == self.epoch => {
                compute.note(FaultKind::ApplyFailed(class), epoch);
                if let Some(request) = self.request.take() {
                    step.reply(request, Reply::ConfigureFailed);
                }
                let unapplied = Unapplied::Pushed(self.spec);
                let target = Failed::serving(step, compute, self.server, unapplied, self.refresh);
                step.go(Cause::ReconfigureFailed, target)
            }
            Event::RefreshRequested { request } => {
                // Postgres relies on the refusal: it starts the clock after which a query stuck on a moved
                // pageserver is cancelled, and that query may be ours.
                self.refresh = true;
                let refusal = Refusal::CannotRefresh;
                step.refuse_request(request, refusal, ComputeStatus::Configuration);
                step.latch(Cause::RefreshLatched, Some(refusal))
            }
            Event::RefreshHinted => {
                self.refresh = true;
                step.latch(Cause::RefreshLatched, None)
            }
            _ => Outcome::Super,
        }
    }

    pub(super) fn holdings(&self) -> Holdings {
        Holdings { work: Some(self.epoch), ..Holdings::serving(&self.server) }
    }
}

impl Identities for Configuration {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        self.server.visit(visitor);
        self.spec.visit(visitor);
        self.epoch.visit(visitor);
        self.request.visit(visitor);
    }
}
