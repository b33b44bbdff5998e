//! Postgres serves what the spec says.

use core::time::Duration;

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::{
    Base, Compute, ConfigurationPending, Holdings, Identities, IdentityVisitor, RefreshConfigurationPending,
    Server, State,
};
use crate::effect::{Reply, Timer};
use crate::event::Event;
use crate::ids::Epoch;
use crate::verdict::{Cause, Step};

/// Serving.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Running {
    /// What serves.
    pub server: Server,
    /// The timer that turns a latched refresh into an event of its own.
    pub refresh: Option<Epoch>,
}

impl Running {
    /// Everything that was wanted is applied, so nothing is wrong any more.
    pub(crate) fn begin(step: &mut Step, compute: &mut Compute, server: Server, refresh: bool) -> State {
        compute.fault = None;
        compute.served = true;
        let refresh = refresh.then(|| step.arm(compute, Timer::LatchedRefresh, Duration::ZERO));
        State::Running(Running { server, refresh })
    }

    pub(crate) fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        let cause = match *event {
            Event::ConfigureRequested { request, spec } => {
                let (server, refresh) = (Some(self.server), self.refresh);
                let target = ConfigurationPending::begin(step, compute, spec, server, request, refresh);
                return step.go(Cause::ConfigureRequested, target);
            }
            Event::RefreshRequested { request } => {
                step.reply(request, Reply::RefreshAccepted);
                Cause::RefreshRequested
            }
            Event::RefreshHinted => Cause::RefreshHinted,
            Event::TimerFired { epoch } if Some(epoch) == self.refresh => Cause::LatchedRefreshDue,
            _ => return Outcome::Super,
        };
        if cause != Cause::LatchedRefreshDue {
            step.cancel(self.refresh);
        }
        let base = Base::Serving { server: self.server, unapplied: None };
        let target = RefreshConfigurationPending::begin(step, compute, base);
        step.go(cause, target)
    }

    /// `work` is that of a promotion.
    pub(super) fn holdings(&self, work: Option<Epoch>) -> Holdings {
        Holdings { work, forget: [self.refresh, None], ..Holdings::serving(&self.server) }
    }
}

impl Identities for Running {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        self.server.visit(visitor);
        self.refresh.visit(visitor);
    }
}
