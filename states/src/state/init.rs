//! The data directory is being built, or Postgres is starting.

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::failed::Failed;
use super::{
    Compute, FaultKind, Holdings, Identities, IdentityVisitor, Running, Server, State, next_rung, owed_sync,
};
use crate::effect::{Effect, ExitReason, Reply, StopMode, Timer};
use crate::event::{Event, FailureClass, SpecOutline};
use crate::ids::{Epoch, RequestId};
use crate::verdict::{Cause, Step};

/// On the way to the first `Running`, or back to it after a crash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Init {
    /// What is started.
    pub spec: SpecOutline,
    /// How far it is.
    pub phase: Phase,
    /// Who is owed an answer: the `/configure` that began it.
    pub request: Option<RequestId>,
    /// Whether a refresh must follow.
    pub refresh: bool,
}

/// How far a start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The data directory is being made ready.
    Preparing {
        /// The preparation.
        epoch: Epoch,
        /// How often it was tried before.
        retry: u16,
    },
    /// It met something that may pass, such as a full disk or a server out of reach, and is tried again after a
    /// pause.
    Retrying {
        /// How often it was tried.
        retry: u16,
        /// The end of the pause.
        timer: Epoch,
    },
    /// A postmaster is being spawned, or starts.
    Starting {
        /// Its identity.
        postmaster: Epoch,
        /// Its deadline.
        timer: Epoch,
    },
    /// Postgres is ready; settings and catalog are being brought to what the spec says.
    Applying {
        /// The Postgres.
        postmaster: Epoch,
        /// The application.
        epoch: Epoch,
    },
    /// The start has failed and its postmaster is on its way out. Nothing may follow before it was reaped.
    Abandoning {
        /// The postmaster.
        postmaster: Epoch,
        /// Rung of the shutdown ladder.
        rung: StopMode,
        /// Deadline of that rung.
        timer: Epoch,
        /// Whether Postgres had been ready, so that its log may have grown.
        was_ready: bool,
    },
}

/// What a start begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub spec: SpecOutline,
    pub request: Option<RequestId>,
    pub refresh: bool,
}

impl Start {
    pub(super) fn fresh(spec: SpecOutline) -> Self {
        Start { spec, request: None, refresh: false }
    }
}

impl Init {
    pub(super) fn begin(step: &mut Step, compute: &mut Compute, start: Start) -> State {
        debug_assert!(compute.postmaster.is_none(), "a start while a postmaster is outstanding");
        let Start { spec, request, refresh } = start;
        let phase = prepare(step, compute, &spec, 0);
        State::Init(Init { spec, phase, request, refresh })
    }

    pub(crate) fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        match *event {
            Event::RefreshRequested { request } => {
                self.refresh = true;
                step.reply(request, Reply::RefreshAccepted);
                return step.latch(Cause::RefreshLatched, None);
            }
            Event::RefreshHinted => {
                self.refresh = true;
                return step.latch(Cause::RefreshLatched, None);
            }
            _ => {}
        }
        match self.phase {
            Phase::Preparing { epoch, retry } => self.preparing(compute, event, step, epoch, retry),
            Phase::Retrying { retry, timer } => self.retrying(compute, event, step, retry, timer),
            Phase::Starting { postmaster, timer } => self.starting(compute, event, step, postmaster, timer),
            Phase::Applying { postmaster, epoch } => self.applying(compute, event, step, postmaster, epoch),
            Phase::Abandoning { postmaster, rung, timer, was_ready } => {
                self.abandoning(compute, event, step, postmaster, rung, timer, was_ready)
            }
        }
    }

    fn preparing(
        &mut self,
        compute: &mut Compute,
        event: &Event,
        step: &mut Step,
        awaited: Epoch,
        retry: u16,
    ) -> Outcome<State> {
        match *event {
            Event::StoragePrepared { epoch } if epoch == awaited => {
                if retry > 0 {
                    // It was the failure of an earlier try, and this one has made it good.
                    compute.fault = None;
                }
                let postmaster = compute.start_postmaster(step, self.spec.revision);
                let after = compute.policy.start;
                let timer = step.arm(compute, Timer::StartDeadline, after);
                self.phase = Phase::Starting { postmaster, timer };
                step.take(Cause::StoragePrepared)
            }
            Event::StorageFailed { epoch, class } if epoch == awaited => {
                compute.note(FaultKind::StorageFailed(class), epoch);
                if class == FailureClass::Transient && retry < compute.policy.storage_retries {
                    let after = compute.policy.storage_pause(retry);
                    let timer = step.arm(compute, Timer::StorageBackoff, after);
                    self.phase = Phase::Retrying { retry: retry + 1, timer };
                    return step.take(Cause::StorageFailedForNow);
                }
                self.answer_failure(step);
                let target = Failed::after_failed_start(step, compute, self.refresh);
                step.go(Cause::StorageFailed, target)
            }
            _ => Outcome::Super,
        }
    }

    fn retrying(
        &mut self,
        compute: &mut Compute,
        event: &Event,
        step: &mut Step,
        retry: u16,
        timer: Epoch,
    ) -> Outcome<State> {
        match *event {
            Event::TimerFired { epoch } if epoch == timer => {
                self.phase = prepare(step, compute, &self.spec, retry);
                step.take(Cause::StorageBackoffOver)
            }
            _ => Outcome::Super,
        }
    }

    fn starting(
        &mut self,
        compute: &mut Compute,
        event: &Event,
        step: &mut Step,
        awaited: Epoch,
        timer: Epoch,
    ) -> Outcome<State> {
        match *event {
            Event::PostmasterReady { postmaster } if postmaster == awaited => {
                step.cancel(timer);
                let epoch = compute.next_epoch();
                let spec = self.spec.revision;
                step.emit(Effect::ApplySpec { epoch, spec, postmaster, first: true });
                self.phase = Phase::Applying { postmaster, epoch };
                step.take(Cause::PostgresReady)
            }
            Event::PostmasterProgressed { postmaster } if postmaster == awaited => {
                // A server that replays its log is alive. Only one that stands still runs into the deadline.
                step.cancel(timer);
                let after = compute.policy.start;
                let timer = step.arm(compute, Timer::StartDeadline, after);
                self.phase = Phase::Starting { postmaster, timer };
                step.take(Cause::RecoveryAdvances)
            }
            Event::SpawnFailed { postmaster, class } if postmaster == awaited => {
                compute.postmaster = None;
                compute.note(FaultKind::SpawnFailed(class), postmaster);
                step.cancel(timer);
                self.answer_failure(step);
                let target = Failed::after_failed_start(step, compute, self.refresh);
                step.go(Cause::SpawnFailed, target)
            }
            Event::PostmasterExited { postmaster, exit } if postmaster == awaited => {
                compute.postmaster = None;
                compute.note(FaultKind::ExitedDuringStart(exit), postmaster);
                step.cancel(timer);
                self.answer_failure(step);
                let target = Failed::clearing_failed_start(step, compute, None, None, self.refresh);
                step.go(Cause::ExitedDuringStart, target)
            }
            Event::TimerFired { epoch } if epoch == timer => {
                compute.note(FaultKind::StartTimedOut, awaited);
                self.answer_failure(step);
                self.abandon(step, compute, awaited, StopMode::Immediate, false);
                step.take(Cause::StartTimedOut)
            }
            _ => Outcome::Super,
        }
    }

    fn applying(
        &mut self,
        compute: &mut Compute,
        event: &Event,
        step: &mut Step,
        running: Epoch,
        awaited: Epoch,
    ) -> Outcome<State> {
        match *event {
            Event::SpecApplied { epoch } if epoch == awaited => {
                if let Some(request) = self.request.take() {
                    step.reply(request, Reply::Configured);
                }
                let server = Server { postmaster: running, applied: self.spec };
                let target = Running::begin(step, compute, server, self.refresh);
                step.go(Cause::Started, target)
            }
            Event::ApplyFailed { epoch, class } if epoch == awaited => {
                compute.note(FaultKind::ApplyFailed(class), epoch);
                self.answer_failure(step);
                self.abandon(step, compute, running, StopMode::Fast, true);
                step.take(Cause::FirstApplyFailed)
            }
            Event::PostmasterExited { postmaster, exit } if postmaster == running => {
                compute.postmaster = None;
                compute.note(FaultKind::ExitedDuringStart(exit), postmaster);
                step.cancel(awaited);
                self.answer_failure(step);
                let sync = owed_sync(&self.spec);
                let target = Failed::clearing_failed_start(step, compute, Some(awaited), sync, self.refresh);
                step.go(Cause::ExitedDuringStart, target)
            }
            _ => Outcome::Super,
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of the phase, taken apart")]
    fn abandoning(
        &mut self,
        compute: &mut Compute,
        event: &Event,
        step: &mut Step,
        leaving: Epoch,
        rung: StopMode,
        timer: Epoch,
        was_ready: bool,
    ) -> Outcome<State> {
        let sync = if was_ready { owed_sync(&self.spec) } else { None };
        match *event {
            _ if event.ends_postmaster() == Some(leaving) => {
                compute.postmaster = None;
                step.cancel(timer);
                let target = Failed::clearing_failed_start(step, compute, None, sync, self.refresh);
                step.go(Cause::AbandonedStop, target)
            }
            Event::TimerFired { epoch } if epoch == timer => match next_rung(rung) {
                Some(rung) => {
                    self.abandon(step, compute, leaving, rung, was_ready);
                    step.take(Cause::StopDeadlinePassed)
                }
                None => {
                    let target = Failed::clearing_failed_start(step, compute, None, sync, self.refresh);
                    step.go(Cause::StopDeadlinePassed, target)
                }
            },
            _ => Outcome::Super,
        }
    }

    fn abandon(
        &mut self,
        step: &mut Step,
        compute: &mut Compute,
        postmaster: Epoch,
        rung: StopMode,
        was_ready: bool,
    ) {
        let timer = compute.stop_postmaster(step, postmaster, rung);
        self.phase = Phase::Abandoning { postmaster, rung, timer, was_ready };
    }

    fn answer_failure(&mut self, step: &mut Step) {
        if let Some(request) = self.request.take() {
            step.reply(request, Reply::ConfigureFailed);
        }
    }

    pub(super) fn holdings(&self) -> Holdings {
        let held = Holdings::default();
        match self.phase {
            Phase::Preparing { epoch, .. } => Holdings { work: Some(epoch), ..held },
            Phase::Retrying { timer, .. } => Holdings { forget: [Some(timer), None], ..held },
            Phase::Starting { postmaster, timer } => {
                Holdings { postmaster: Some(postmaster), forget: [Some(timer), None], ..held }
            }
            Phase::Applying { postmaster, epoch } => Holdings {
                work: Some(epoch),
                postmaster: Some(postmaster),
                sync: owed_sync(&self.spec),
                ..held
            },
            Phase::Abandoning { postmaster, rung, timer, was_ready } => Holdings {
                postmaster: Some(postmaster),
                rung: Some(rung),
                forget: [Some(timer), None],
                sync: if was_ready { owed_sync(&self.spec) } else { None },
                reason: Some(ExitReason::StartFailed),
                ..held
            },
        }
    }
}

/// `retry` says how often it was tried before.
fn prepare(step: &mut Step, compute: &mut Compute, spec: &SpecOutline, retry: u16) -> Phase {
    let restart = compute.served;
    let epoch = compute.next_epoch();
    step.emit(Effect::PrepareStorage { epoch, spec: spec.revision, restart });
    Phase::Preparing { epoch, retry }
}

impl Identities for Init {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        self.spec.visit(visitor);
        self.request.visit(visitor);
        match &mut self.phase {
            Phase::Preparing { epoch, .. } | Phase::Retrying { timer: epoch, .. } => epoch.visit(visitor),
            Phase::Starting { postmaster, timer } | Phase::Abandoning { postmaster, timer, .. } => {
                postmaster.visit(visitor);
                timer.visit(visitor);
            }
            Phase::Applying { postmaster, epoch } => {
                postmaster.visit(visitor);
                epoch.visit(visitor);
            }
        }
    }
}
