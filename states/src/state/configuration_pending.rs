//! A spec was accepted by `/configure` and its work has not begun.

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::failed::Failed;
use super::init::{Init, Start};
use super::{
    Compute, Configuration, FaultKind, Holdings, Identities, IdentityVisitor, Server, State, Unapplied,
};
use crate::effect::{Effect, Reply};
use crate::event::{Event, SpecOutline};
use crate::ids::{Epoch, RequestId};
use crate::status::ComputeStatus;
use crate::verdict::{Cause, Refusal, Step};

/// Checking whether this node can serve the accepted spec. What follows depends on whether a Postgres
/// serves already: its configuration, or the first start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConfigurationPending {
    /// The accepted spec.
    pub spec: SpecOutline,
    /// The Postgres that serves meanwhile.
    pub server: Option<Server>,
    /// The resolution under way.
    pub epoch: Epoch,
    /// Who is owed the answer.
    pub request: Option<RequestId>,
    /// Whether a refresh must follow.
    pub refresh: bool,
}

impl ConfigurationPending {
    /// `latched` is the timer of a refresh that was latched before: it follows this work instead.
    pub(super) fn begin(
        step: &mut Step,
        compute: &mut Compute,
        spec: SpecOutline,
        server: Option<Server>,
        request: RequestId,
        latched: Option<Epoch>,
    ) -> State {
        step.cancel(latched);
        let epoch = compute.next_epoch();
        step.emit(Effect::ResolveSpec { epoch, spec: spec.revision });
        State::ConfigurationPending(ConfigurationPending {
            spec,
            server,
            epoch,
            request: Some(request),
            refresh: latched.is_some(),
        })
    }

    pub(crate) fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        match *event {
            Event::SpecResolved { epoch } if epoch == self.epoch => {
                let request = self.request.take();
                let target = match self.server {
                    Some(server) => {
                        Configuration::begin(step, compute, server, self.spec, request, self.refresh)
                    }
                    None => {
                        let start = Start { request, refresh: self.refresh, ..Start::fresh(self.spec) };
                        Init::begin(step, compute, start)
                    }
                };
                step.go(Cause::SpecResolved, target)
            }
            Event::SpecRejected { epoch, class } if epoch == self.epoch => {
                compute.note(FaultKind::SpecRejected(class), epoch);
                if let Some(request) = self.request.take() {
                    step.reply(request, Reply::ConfigureFailed);
                }
                let target = match self.server {
                    Some(server) => {
                        let unapplied = Unapplied::Pushed(self.spec);
                        Failed::serving(step, compute, server, unapplied, self.refresh)
                    }
                    None => Failed::after_failed_start(step, compute, self.refresh),
                };
                step.go(Cause::SpecRejected, target)
            }
            Event::RefreshRequested { request } => {
                // Refused, because Postgres relies on hearing it, and remembered all the same.
                self.refresh = true;
                let refusal = Refusal::CannotRefresh;
                step.refuse_request(request, refusal, ComputeStatus::ConfigurationPending);
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
        let work = Some(self.epoch);
        match &self.server {
            Some(server) => Holdings { work, ..Holdings::serving(server) },
            // Before the first start there is nothing a client could want to read afterwards.
            None => Holdings { work, nothing_to_report: true, ..Holdings::default() },
        }
    }
}

impl Identities for ConfigurationPending {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        self.spec.visit(visitor);
        self.server.visit(visitor);
        self.epoch.visit(visitor);
        self.request.visit(visitor);
    }
}
