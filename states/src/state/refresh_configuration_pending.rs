//! A refresh was asked for: the spec is being fetched.

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::init::{Init, Start};
use super::shutdown::{Ending, Shutdown};
use super::{
    Compute, FaultKind, Holdings, Identities, IdentityVisitor, RefreshConfiguration, Running, Server, State,
    TerminationPendingImmediate, Unapplied,
};
use crate::effect::{Effect, ExitReason, Reply, Timer};
use crate::event::{Event, FetchedSpec, SpecOutline};
use crate::ids::Epoch;
use crate::verdict::{Cause, Step};

/// Asking for the present spec, as long as it takes. There is always a fetch under way or a timer armed. A pause
/// gives way to a [promotion](crate::promotion).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RefreshConfigurationPending {
    /// What there is meanwhile.
    pub base: Base,
    /// How often fetching or applying has failed.
    pub attempt: u8,
    /// What is waited for.
    pub waiting: Waiting,
}

/// What there is while a spec is being fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// A Postgres that serves.
    Serving {
        /// Which.
        server: Server,
        /// What is wanted, but was not applied to it.
        unapplied: Option<Unapplied>,
    },
    /// None: whatever is found is started.
    Gone {
        /// How the process would have ended.
        reason: ExitReason,
    },
}

impl Base {
    pub(super) fn server(&self) -> Option<&Server> {
        match self {
            Base::Serving { server, .. } => Some(server),
            Base::Gone { .. } => None,
        }
    }
}

/// What a pending refresh waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// The fetch.
    Fetch(Epoch),
    /// The end of the pause before the next one.
    Backoff(Epoch),
}

impl RefreshConfigurationPending {
    pub(super) fn begin(step: &mut Step, compute: &mut Compute, base: Base) -> State {
        let waiting = Waiting::Fetch(fetch(step, compute, &base));
        State::RefreshConfigurationPending(RefreshConfigurationPending { base, attempt: 0, waiting })
    }

    /// After a wanted spec could not be applied.
    pub(super) fn back_off(
        step: &mut Step,
        compute: &mut Compute,
        server: Server,
        wanted: Unapplied,
        attempt: u8,
    ) -> State {
        let waiting = Waiting::Backoff(pause(step, compute, attempt));
        State::RefreshConfigurationPending(RefreshConfigurationPending {
            base: Base::Serving { server, unapplied: Some(wanted) },
            attempt: attempt.saturating_add(1),
            waiting,
        })
    }

    pub(crate) fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        match (*event, self.waiting) {
            (Event::SpecFetched { epoch, fetched }, Waiting::Fetch(awaited)) if epoch == awaited => {
                match fetched {
                    FetchedSpec::Spec { spec, same_pageservers } => {
                        self.act_on(compute, step, spec, same_pageservers)
                    }
                    FetchedSpec::NoSpec => {
                        // The fetch is over: it is not work that the shutdown has to wait for. And how the
                        // process would have ended is overtaken: it ends as detached.
                        let holdings = Holdings { work: None, reason: None, ..self.holdings() };
                        let shutdown = Shutdown::begin(step, compute, holdings, Ending::Detached);
                        let target =
                            State::TerminationPendingImmediate(TerminationPendingImmediate(shutdown));
                        step.go(Cause::Detached, target)
                    }
                }
            }
            (Event::FetchFailed { epoch, class }, Waiting::Fetch(awaited)) if epoch == awaited => {
                compute.note(FaultKind::FetchFailed(class), epoch);
                self.waiting = Waiting::Backoff(pause(step, compute, self.attempt));
                self.attempt = self.attempt.saturating_add(1);
                step.take(Cause::FetchFailed)
            }
            (Event::TimerFired { epoch }, Waiting::Backoff(timer)) if epoch == timer => {
                self.waiting = Waiting::Fetch(fetch(step, compute, &self.base));
                step.take(Cause::BackoffOver)
            }
            (Event::RefreshRequested { request }, _) => {
                step.reply(request, Reply::RefreshAccepted);
                step.latch(Cause::RefreshCoalesced, None)
            }
            (Event::RefreshHinted, _) => step.latch(Cause::RefreshCoalesced, None),
            _ => Outcome::Super,
        }
    }

    fn act_on(
        &mut self,
        compute: &mut Compute,
        step: &mut Step,
        fetched: SpecOutline,
        same_pageservers: bool,
    ) -> Outcome<State> {
        let Base::Serving { server, unapplied } = self.base else {
            let target = Init::begin(step, compute, Start::fresh(fetched));
            return step.go(Cause::StartAgain, target);
        };
        let (cause, wanted) = match (same_pageservers, unapplied) {
            (false, _) => (Cause::PageserversChanged, Unapplied::Fetched(fetched)),
            // Applying needs working pageservers. If the fetched spec names none but the present ones, it is
            // left alone: most often Postgres notices trouble before the control plane has moved the tenant.
            (true, None) => {
                let target = Running::begin(step, compute, server, false);
                return step.go(Cause::PageserversUnchanged, target);
            }
            (true, Some(Unapplied::Pushed(pushed))) => (Cause::UnappliedAgain, Unapplied::Pushed(pushed)),
            (true, Some(Unapplied::Fetched(_))) => (Cause::UnappliedAgain, Unapplied::Fetched(fetched)),
        };
        let target = RefreshConfiguration::begin(step, compute, server, wanted, self.attempt);
        step.go(cause, target)
    }

    pub(super) fn holdings(&self) -> Holdings {
        let (held, reason) = match self.base {
            Base::Serving { ref server, .. } => (Holdings::serving(server), None),
            Base::Gone { reason } => (Holdings::default(), Some(reason)),
        };
        match self.waiting {
            Waiting::Fetch(epoch) => Holdings { work: Some(epoch), reason, ..held },
            Waiting::Backoff(timer) => Holdings { forget: [Some(timer), None], reason, ..held },
        }
    }
}

fn fetch(step: &mut Step, compute: &mut Compute, base: &Base) -> Epoch {
    let epoch = compute.next_epoch();
    step.emit(Effect::FetchSpec { epoch, applied: base.server().map(|server| server.applied.revision) });
    epoch
}

fn pause(step: &mut Step, compute: &mut Compute, attempt: u8) -> Epoch {
    let after = compute.policy.backoff(attempt);
    step.arm(compute, Timer::RefreshBackoff, after)
}

impl Identities for RefreshConfigurationPending {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        if let Base::Serving { server, unapplied } = &mut self.base {
            server.visit(visitor);
            unapplied.visit(visitor);
        }
        match &mut self.waiting {
            Waiting::Fetch(epoch) | Waiting::Backoff(epoch) => epoch.visit(visitor),
        }
    }
}
