//! A start or a reconfiguration failed, or Postgres crashed.

use core::time::Duration;

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::init::{Init, Start};
use super::{
    Base, Compute, ConfigurationPending, FaultKind, Holdings, Identities, IdentityVisitor,
    RefreshConfigurationPending, Server, State, Unapplied, owed_sync,
};
use crate::effect::{Effect, ExitReason, Reply, Timer};
use crate::event::{Event, Exit, SpecOutline};
use crate::ids::{Epoch, RequestId, Revision};
use crate::policy::RestartPolicy;
use crate::status::ComputeStatus;
use crate::verdict::{Cause, Refusal, Step};

/// Something went wrong; [`Compute::fault`] says what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Failed {
    /// What is left.
    pub remains: Remains,
}

/// What a failure left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remains {
    /// A Postgres that serves what was applied before: only a reconfiguration has failed.
    Serving {
        /// Which.
        server: Server,
        /// What is wanted.
        unapplied: Unapplied,
        /// The timer that turns a latched refresh into an event of its own.
        refresh: Option<Epoch>,
    },
    /// No Postgres.
    Gone(Gone),
}

/// A failure without a Postgres: what it left is cleared up, then Postgres is started again, or the failure
/// stays readable for a while and the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gone {
    /// How the process ends, unless something is started.
    pub reason: ExitReason,
    /// What the restart policy wants. It is not said that the budget allows it.
    pub restart: Option<Restart>,
    /// Whether a refresh was accepted meanwhile, which fetches something to start.
    pub refresh: bool,
    /// How far clearing up is.
    pub stage: GoneStage,
}

/// What is started after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// What was applied last.
    With(SpecOutline),
    /// What a fetch finds, since one was owed when Postgres crashed.
    AfterFetch,
}

/// How far clearing up after a Postgres is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoneStage {
    /// Its processes are being ended, and cancelled work is awaited.
    Clearing {
        /// The sweep, until it has ended.
        sweep: Option<Epoch>,
        /// The cancelled work, until it has ended.
        work: Option<Epoch>,
        /// The deadline.
        timer: Epoch,
        /// The spec that names the safekeepers to synchronise.
        sync: Option<Revision>,
    },
    /// Safekeepers are being synchronised.
    Syncing {
        /// The sync.
        epoch: Epoch,
        /// Its deadline.
        timer: Epoch,
        /// The spec that names them. A termination that comes in between starts over, for its client.
        spec: Revision,
    },
    /// The failure stays readable.
    Readable {
        /// Until then.
        timer: Epoch,
    },
}

impl Failed {
    /// A reconfiguration failed; Postgres serves on.
    pub(crate) fn serving(
        step: &mut Step,
        compute: &mut Compute,
        server: Server,
        unapplied: Unapplied,
        refresh: bool,
    ) -> State {
        let refresh = refresh.then(|| step.arm(compute, Timer::LatchedRefresh, Duration::ZERO));
        State::Failed(Failed { remains: Remains::Serving { server, unapplied, refresh } })
    }

    /// Nothing was started and nothing can be.
    fn readable(step: &mut Step, compute: &mut Compute, reason: ExitReason) -> State {
        let gone = Gone { reason, restart: None, refresh: false, stage: readable(step, compute, reason) };
        State::Failed(Failed { remains: Remains::Gone(gone) })
    }

    /// A start failed and left nothing to clear up.
    pub(super) fn after_failed_start(step: &mut Step, compute: &mut Compute, refresh: bool) -> State {
        if refresh {
            let base = Base::Gone { reason: ExitReason::StartFailed };
            return RefreshConfigurationPending::begin(step, compute, base);
        }
        Failed::readable(step, compute, ExitReason::StartFailed)
    }

    /// A start failed after its postmaster had been spawned.
    pub(super) fn clearing_failed_start(
        step: &mut Step,
        compute: &mut Compute,
        work: Option<Epoch>,
        sync: Option<Revision>,
        refresh: bool,
    ) -> State {
        let stage = clearing(step, compute, work, sync);
        let gone = Gone { reason: ExitReason::StartFailed, restart: None, refresh, stage };
        State::Failed(Failed { remains: Remains::Gone(gone) })
    }

    /// A serving Postgres crashed. `owes_refresh` says whether a refresh was accepted and not finished.
    pub(super) fn crashed(
        step: &mut Step,
        compute: &mut Compute,
        server: &Server,
        exit: Exit,
        work: Option<Epoch>,
        owes_refresh: bool,
    ) -> State {
        compute.note(FaultKind::Crashed(exit), server.postmaster);
        let restart = match (compute.policy.restart, owes_refresh) {
            (RestartPolicy::Never, _) => None,
            (RestartPolicy::OnFailure, false) => Some(Restart::With(server.applied)),
            (RestartPolicy::OnFailure, true) => Some(Restart::AfterFetch),
        };
        let stage = clearing(step, compute, work, owed_sync(&server.applied));
        let reason = ExitReason::PostgresExited(exit);
        State::Failed(Failed { remains: Remains::Gone(Gone { reason, restart, refresh: false, stage }) })
    }

    pub(crate) fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        match self.remains {
            Remains::Serving { server, unapplied, refresh } => {
                serving(compute, event, step, server, unapplied, refresh)
            }
            Remains::Gone(ref mut gone) => gone.on(compute, event, step),
        }
    }

    pub(super) fn holdings(&self) -> Holdings {
        match self.remains {
            Remains::Serving { ref server, refresh, .. } => {
                Holdings { forget: [refresh, None], ..Holdings::serving(server) }
            }
            Remains::Gone(Gone { reason, stage, .. }) => {
                let held = Holdings { reason: Some(reason), ..Holdings::default() };
                match stage {
                    GoneStage::Clearing { sweep, work, timer, sync } => {
                        Holdings { work, forget: [sweep, Some(timer)], sync, ..held }
                    }
                    GoneStage::Syncing { epoch, timer, spec } => {
                        Holdings { work: Some(epoch), forget: [Some(timer), None], sync: Some(spec), ..held }
                    }
                    GoneStage::Readable { timer } => Holdings { forget: [Some(timer), None], ..held },
                }
            }
        }
    }
}

fn serving(
    compute: &mut Compute,
    event: &Event,
    step: &mut Step,
    server: Server,
    unapplied: Unapplied,
    refresh: Option<Epoch>,
) -> Outcome<State> {
    let cause = match *event {
        Event::ConfigureRequested { request, spec } => {
            let server = Some(server);
            let target = ConfigurationPending::begin(step, compute, spec, server, request, refresh);
            return step.go(Cause::ConfigureRequested, target);
        }
        Event::RefreshRequested { request } => {
            step.reply(request, Reply::RefreshAccepted);
            step.cancel(refresh);
            Cause::RefreshRequested
        }
        Event::RefreshHinted => {
            step.cancel(refresh);
            Cause::RefreshHinted
        }
        Event::TimerFired { epoch } if Some(epoch) == refresh => Cause::LatchedRefreshDue,
        _ => return Outcome::Super,
    };
    let base = Base::Serving { server, unapplied: Some(unapplied) };
    let target = RefreshConfigurationPending::begin(step, compute, base);
    step.go(cause, target)
}

impl Gone {
    fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        match *event {
            Event::RefreshRequested { request } => return self.refresh_requested(compute, step, request),
            // What suspected its storage is gone, and nothing is started without being asked for.
            Event::RefreshHinted => return step.stale(),
            _ => {}
        }
        match &mut self.stage {
            GoneStage::Clearing { sweep, work, timer, .. } => {
                let settled = event.settles();
                let cause = match *event {
                    Event::Swept { epoch } if *sweep == Some(epoch) => {
                        *sweep = None;
                        Cause::Swept
                    }
                    _ if settled.is_some() && settled == *work => {
                        *work = None;
                        Cause::WorkEnded
                    }
                    Event::TimerFired { epoch } if epoch == *timer => {
                        step.cancel(sweep.take());
                        *work = None;
                        Cause::SweepDeadlinePassed
                    }
                    _ => return Outcome::Super,
                };
                if sweep.is_some() || work.is_some() {
                    return step.take(cause);
                }
                if cause != Cause::SweepDeadlinePassed {
                    step.cancel(*timer);
                }
                self.cleared(compute, step, cause)
            }
            GoneStage::Syncing { epoch: sync, timer, .. } => {
                let (sync, timer) = (*sync, *timer);
                let cause = match *event {
                    Event::FinalSyncDone { epoch, .. } if epoch == sync => Cause::FinalSyncDone,
                    // Logged and counted by the verdict. The crash remains what is reported.
                    Event::FinalSyncFailed { epoch, .. } if epoch == sync => Cause::FinalSyncFailed,
                    Event::TimerFired { epoch } if epoch == timer => Cause::FinalSyncTimedOut,
                    _ => return Outcome::Super,
                };
                step.cancel(if cause == Cause::FinalSyncTimedOut { sync } else { timer });
                if self.refresh {
                    return self.fetch(compute, step, cause);
                }
                self.stage = readable(step, compute, self.reason);
                step.take(cause)
            }
            GoneStage::Readable { timer } => match *event {
                Event::TimerFired { epoch } if epoch == *timer => {
                    step.emit(Effect::Exit { reason: self.reason });
                    step.take(Cause::LingerOver)
                }
                _ => Outcome::Super,
            },
        }
    }

    fn refresh_requested(
        &mut self,
        compute: &mut Compute,
        step: &mut Step,
        request: RequestId,
    ) -> Outcome<State> {
        if let GoneStage::Readable { timer } = self.stage {
            if compute.postmaster.is_some() {
                let refusal = Refusal::PostmasterUnconfirmed;
                step.refuse_request(request, refusal, ComputeStatus::Failed);
                return step.refuse(refusal);
            }
            step.reply(request, Reply::RefreshAccepted);
            step.cancel(timer);
            return self.fetch(compute, step, Cause::RefreshRequested);
        }
        self.refresh = true;
        step.reply(request, Reply::RefreshAccepted);
        step.latch(Cause::RefreshLatched, None)
    }

    /// Nothing is left of the last Postgres, as far as that can be known.
    fn cleared(&mut self, compute: &mut Compute, step: &mut Step, cause: Cause) -> Outcome<State> {
        if compute.postmaster.is_none() {
            if self.refresh {
                return self.fetch(compute, step, cause);
            }
            match self.restart {
                Some(Restart::With(spec)) if compute.take_restart(step) => {
                    let target = Init::begin(step, compute, Start::fresh(spec));
                    return step.go(Cause::Restarting, target);
                }
                Some(Restart::AfterFetch) if compute.take_restart(step) => {
                    return self.fetch(compute, step, Cause::Restarting);
                }
                _ => {}
            }
        }
        // Synchronising while a postmaster may still write would be two writers of one log.
        let spec = match self.stage {
            GoneStage::Clearing { sync: Some(spec), .. } if compute.postmaster.is_none() => spec,
            _ => {
                self.stage = readable(step, compute, self.reason);
                return step.take(cause);
            }
        };
        let epoch = compute.next_epoch();
        step.emit(Effect::FinalSync { epoch, spec });
        let after = compute.policy.unasked_final_sync;
        let timer = step.arm(compute, Timer::FinalSyncDeadline, after);
        self.stage = GoneStage::Syncing { epoch, timer, spec };
        step.take(cause)
    }

    fn fetch(&self, compute: &mut Compute, step: &mut Step, cause: Cause) -> Outcome<State> {
        let base = Base::Gone { reason: self.reason };
        let target = RefreshConfigurationPending::begin(step, compute, base);
        step.go(cause, target)
    }
}

fn clearing(
    step: &mut Step,
    compute: &mut Compute,
    work: Option<Epoch>,
    sync: Option<Revision>,
) -> GoneStage {
    let epoch = compute.next_epoch();
    step.emit(Effect::Sweep { epoch });
    let after = compute.policy.sweep;
    let timer = step.arm(compute, Timer::SweepDeadline, after);
    GoneStage::Clearing { sweep: Some(epoch), work, timer, sync }
}

fn readable(step: &mut Step, compute: &mut Compute, reason: ExitReason) -> GoneStage {
    let after = match reason {
        ExitReason::PostgresExited(_) => compute.policy.crash_linger,
        _ => compute.policy.failed_linger,
    };
    GoneStage::Readable { timer: step.arm(compute, Timer::FailedLinger, after) }
}

impl Identities for Failed {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        match &mut self.remains {
            Remains::Serving { server, unapplied, refresh } => {
                server.visit(visitor);
                unapplied.visit(visitor);
                refresh.visit(visitor);
            }
            Remains::Gone(gone) => {
                if let Some(Restart::With(spec)) = &mut gone.restart {
                    spec.visit(visitor);
                }
                match &mut gone.stage {
                    GoneStage::Clearing { sweep, work, timer, sync } => {
                        sweep.visit(visitor);
                        work.visit(visitor);
                        timer.visit(visitor);
                        sync.visit(visitor);
                    }
                    GoneStage::Syncing { epoch, timer, spec } => {
                        epoch.visit(visitor);
                        timer.visit(visitor);
                        spec.visit(visitor);
                    }
                    GoneStage::Readable { timer } => timer.visit(visitor),
                }
            }
        }
    }
}
