//! Going down: what the two pending terminations share.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::{
    Compute, FaultKind, Holdings, Identities, IdentityVisitor, Running, State, Terminated,
    TerminationPendingFast, TerminationPendingImmediate, next_rung,
};
use crate::effect::{Effect, ExitReason, Reply, StopMode, TerminationResult, Timer};
use crate::event::{Event, TerminateMode};
use crate::ids::{Epoch, Lsn, RequestId, Revision};
use crate::status::ComputeStatus;
use crate::verdict::{Cause, Refusal, Step};

/// A shutdown under way: stop Postgres, clear up, synchronise safekeepers, each with a deadline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Shutdown {
    /// Who is owed an answer.
    pub waiting: Vec<RequestId>,
    /// Stop signals received.
    pub signals: u8,
    /// The sync that has to follow.
    pub sync: Option<OwedSync>,
    /// How the process will end.
    pub reason: ExitReason,
    /// Whether the process lingers, so that the status can be read.
    pub linger: bool,
    /// How far it is.
    pub stage: Stage,
}

/// A final safekeeper sync that has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OwedSync {
    /// The spec that names the safekeepers.
    pub spec: Revision,
    /// Whether a client waits for its LSN: then it has more time, and its failure is one of the shutdown.
    pub asked: bool,
}

/// How far a shutdown is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Postgres is told to go, and cancelled work is awaited.
    Stopping {
        /// The postmaster, until it was reaped.
        postmaster: Option<Epoch>,
        /// The work, until it has ended.
        work: Option<Epoch>,
        /// Rung of the ladder.
        rung: StopMode,
        /// Deadline of that rung.
        timer: Epoch,
    },
    /// Whatever is left of Postgres and of helpers is being ended.
    Sweeping {
        /// The sweep.
        epoch: Epoch,
        /// Its deadline.
        timer: Epoch,
    },
    /// Safekeepers are being synchronised.
    Syncing {
        /// The sync.
        epoch: Epoch,
        /// Its deadline.
        timer: Epoch,
    },
}

/// Why a shutdown begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// `POST /terminate`, by whoever waits for it.
    Requested(Vec<RequestId>, TerminateMode),
    /// A stop signal.
    Signalled,
    /// Postgres went down in order, and nobody had asked for it.
    PostgresStopped,
    /// The control plane has nothing for this compute any more. No sync: whoever is attached to the timeline
    /// now must not be disturbed.
    Detached,
}

/// The end of a compute in which nothing is at work.
pub(crate) fn idle_shutdown(
    step: &mut Step,
    compute: &mut Compute,
    running: &Running,
    waiting: Vec<RequestId>,
    mode: TerminateMode,
) -> State {
    let held = running.holdings(compute.promotion.work());
    let shutdown = Shutdown::begin(step, compute, held, Ending::Requested(waiting, mode));
    shutdown.into_state(mode)
}

impl Shutdown {
    /// Cancels what is under way and begins to stop what runs.
    pub(super) fn begin(step: &mut Step, compute: &mut Compute, held: Holdings, ending: Ending) -> Shutdown {
        step.cancel(held.work);
        for epoch in held.forget {
            step.cancel(epoch);
        }
        let stage = match (held.postmaster, held.work) {
            (None, None) => sweeping(step, compute),
            (postmaster, work) => {
                let rung = held.rung.unwrap_or(StopMode::Fast);
                let timer = match postmaster {
                    Some(postmaster) => compute.stop_postmaster(step, postmaster, rung),
                    None => {
                        let after = compute.policy.stop_immediate;
                        step.arm(compute, Timer::StopDeadline, after)
                    }
                };
                Stage::Stopping { postmaster, work, rung, timer }
            }
        };
        let fast = matches!(ending, Ending::Requested(_, TerminateMode::Fast));
        let (waiting, signals, asked, fallback) = match ending {
            Ending::Requested(waiting, _) => (waiting, 0, Some(true), ExitReason::Stopped),
            Ending::Signalled => (Vec::new(), 1, None, ExitReason::Stopped),
            Ending::PostgresStopped => (Vec::new(), 0, Some(false), ExitReason::Stopped),
            Ending::Detached => (Vec::new(), 0, None, ExitReason::Detached),
        };
        let sync = held.sync.zip(asked).map(|(spec, asked)| OwedSync { spec, asked });
        Shutdown {
            waiting,
            signals,
            sync,
            reason: held.reason.unwrap_or(fallback),
            linger: fast && !held.nothing_to_report,
            stage,
        }
    }

    /// The state of one that begins.
    pub(super) fn into_state(self, mode: TerminateMode) -> State {
        match mode {
            TerminateMode::Fast => State::TerminationPendingFast(TerminationPendingFast(self)),
            TerminateMode::Immediate => State::TerminationPendingImmediate(TerminationPendingImmediate(self)),
        }
    }

    /// Moves the whole shutdown out of a state that is being left.
    fn take(&mut self) -> Shutdown {
        Shutdown { waiting: core::mem::take(&mut self.waiting), ..self.clone() }
    }

    pub(crate) fn on(
        &mut self,
        compute: &mut Compute,
        event: &Event,
        step: &mut Step,
        mode: TerminateMode,
    ) -> Outcome<State> {
        match *event {
            // What goes down already spares nobody.
            Event::TerminateRequested { request, mode: asked }
            | Event::TerminateIfIdleRequested { request, mode: asked } => {
                return self.join(compute, step, request, asked, mode);
            }
            Event::StopSignalled => return self.signalled(compute, step, mode),
            _ => {}
        }
        match self.stage {
            Stage::Stopping { postmaster, work, rung, timer } => {
                self.stopping(compute, event, step, postmaster, work, rung, timer)
            }
            Stage::Sweeping { epoch: sweep, timer } => match *event {
                Event::Swept { epoch } if epoch == sweep => {
                    step.cancel(timer);
                    self.swept(compute, step, Cause::Swept)
                }
                Event::TimerFired { epoch } if epoch == timer => {
                    step.cancel(sweep);
                    self.swept(compute, step, Cause::SweepDeadlinePassed)
                }
                _ => Outcome::Super,
            },
            Stage::Syncing { epoch: sync, timer } => match *event {
                Event::FinalSyncDone { epoch, lsn } if epoch == sync => {
                    step.cancel(timer);
                    self.finish(compute, step, Cause::FinalSyncDone, Some(lsn))
                }
                Event::FinalSyncFailed { epoch, .. } if epoch == sync => {
                    step.cancel(timer);
                    self.sync_failed(compute, step, Cause::FinalSyncFailed, sync)
                }
                Event::TimerFired { epoch } if epoch == timer => {
                    step.cancel(sync);
                    self.sync_failed(compute, step, Cause::FinalSyncTimedOut, sync)
                }
                _ => Outcome::Super,
            },
        }
    }

    fn join(
        &mut self,
        compute: &mut Compute,
        step: &mut Step,
        request: RequestId,
        asked: TerminateMode,
        mode: TerminateMode,
    ) -> Outcome<State> {
        if self.waiting.len() >= compute.policy.max_waiters {
            let refusal = Refusal::TooManyWaiters;
            step.refuse_request(request, refusal, status(mode));
            return step.refuse(refusal);
        }
        self.waiting.push(request);
        if asked == TerminateMode::Immediate && mode == TerminateMode::Fast {
            return self.hasten(step, Cause::TerminationHastened);
        }
        step.latch(Cause::TerminationJoined, None)
    }

    /// From lingering afterwards to ending at once.
    fn hasten(&mut self, step: &mut Step, cause: Cause) -> Outcome<State> {
        self.linger = false;
        let target = State::TerminationPendingImmediate(TerminationPendingImmediate(self.take()));
        step.go(cause, target)
    }

    /// The first signal asks for what is happening already, but without the linger. Each further one goes a
    /// rung down.
    fn signalled(&mut self, compute: &mut Compute, step: &mut Step, mode: TerminateMode) -> Outcome<State> {
        self.signals = self.signals.saturating_add(1);
        self.linger = false;
        let cause = if self.signals == 1 { Cause::SignalJoined } else { Cause::SignalEscalated };
        if cause == Cause::SignalEscalated {
            match self.stage {
                Stage::Stopping { postmaster: Some(postmaster), work, rung, timer } => {
                    if let Some(rung) = next_rung(rung) {
                        step.cancel(timer);
                        self.descend(step, compute, postmaster, work, rung);
                    }
                }
                Stage::Syncing { epoch, timer } => {
                    step.cancel(epoch);
                    step.cancel(timer);
                    return self.sync_failed(compute, step, cause, epoch);
                }
                // Sweeping kills already, and work without a postmaster was told to end.
                Stage::Stopping { postmaster: None, .. } | Stage::Sweeping { .. } => {}
            }
        }
        if mode == TerminateMode::Fast {
            return self.hasten(step, cause);
        }
        step.take(cause)
    }

    fn descend(
        &mut self,
        step: &mut Step,
        compute: &mut Compute,
        postmaster: Epoch,
        work: Option<Epoch>,
        rung: StopMode,
    ) {
        let timer = compute.stop_postmaster(step, postmaster, rung);
        self.stage = Stage::Stopping { postmaster: Some(postmaster), work, rung, timer };
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of the stage, taken apart")]
    fn stopping(
        &mut self,
        compute: &mut Compute,
        event: &Event,
        step: &mut Step,
        mut postmaster: Option<Epoch>,
        mut work: Option<Epoch>,
        rung: StopMode,
        timer: Epoch,
    ) -> Outcome<State> {
        let cause = match *event {
            _ if postmaster.is_some() && event.ends_postmaster() == postmaster => {
                compute.postmaster = None;
                postmaster = None;
                self.note_exit(event, rung);
                Cause::PostgresGone
            }
            _ if work.is_some() && event.settles() == work => {
                work = None;
                Cause::WorkEnded
            }
            Event::TimerFired { epoch } if epoch == timer => {
                if let (Some(postmaster), Some(rung)) = (postmaster, next_rung(rung)) {
                    self.descend(step, compute, postmaster, work, rung);
                    return step.take(Cause::StopDeadlinePassed);
                }
                if let Some(unconfirmed) = postmaster {
                    self.reason = ExitReason::StopKilled;
                    compute.note(FaultKind::PostmasterUnconfirmed, unconfirmed);
                }
                self.stage = sweeping(step, compute);
                return step.take(Cause::StopDeadlinePassed);
            }
            _ => return Outcome::Super,
        };
        if postmaster.is_none() && work.is_none() {
            step.cancel(timer);
            self.stage = sweeping(step, compute);
        } else {
            self.stage = Stage::Stopping { postmaster, work, rung, timer };
        }
        step.take(cause)
    }

    /// A stop that went wrong shows in the exit code, unless something worse does already.
    fn note_exit(&mut self, event: &Event, rung: StopMode) {
        if self.reason != ExitReason::Stopped {
            return;
        }
        match (event, rung) {
            (_, StopMode::Kill) => self.reason = ExitReason::StopKilled,
            (Event::PostmasterExited { exit, .. }, StopMode::Fast) if !exit.is_clean() => {
                self.reason = ExitReason::PostgresExited(*exit);
            }
            _ => {}
        }
    }

    fn swept(&mut self, compute: &mut Compute, step: &mut Step, cause: Cause) -> Outcome<State> {
        // Synchronising while a postmaster may still write would be two writers of one log.
        let Some(sync) = self.sync.filter(|_| compute.postmaster.is_none()) else {
            return self.finish(compute, step, cause, None);
        };
        let epoch = compute.next_epoch();
        step.emit(Effect::FinalSync { epoch, spec: sync.spec });
        let after = if sync.asked { compute.policy.final_sync } else { compute.policy.unasked_final_sync };
        let timer = step.arm(compute, Timer::FinalSyncDeadline, after);
        self.stage = Stage::Syncing { epoch, timer };
        step.take(cause)
    }

    fn sync_failed(
        &mut self,
        compute: &mut Compute,
        step: &mut Step,
        cause: Cause,
        sync: Epoch,
    ) -> Outcome<State> {
        compute.note(FaultKind::FinalSyncFailed, sync);
        let asked = self.sync.is_some_and(|sync| sync.asked) || !self.waiting.is_empty();
        if asked && self.reason == ExitReason::Stopped {
            self.reason = ExitReason::FinalSyncFailed;
        }
        self.settle(compute, step, cause, TerminationResult::FinalSyncFailed)
    }

    fn finish(
        &mut self,
        compute: &mut Compute,
        step: &mut Step,
        cause: Cause,
        lsn: Option<Lsn>,
    ) -> Outcome<State> {
        self.settle(compute, step, cause, TerminationResult::Stopped(lsn))
    }

    fn settle(
        &mut self,
        compute: &mut Compute,
        step: &mut Step,
        cause: Cause,
        result: TerminationResult,
    ) -> Outcome<State> {
        for request in self.waiting.drain(..) {
            step.reply(request, Reply::Terminated(result));
        }
        let target = Terminated::begin(step, compute, result, self.reason, self.linger);
        step.go(cause, target)
    }
}

fn status(mode: TerminateMode) -> ComputeStatus {
    match mode {
        TerminateMode::Fast => ComputeStatus::TerminationPendingFast,
        TerminateMode::Immediate => ComputeStatus::TerminationPendingImmediate,
    }
}

fn sweeping(step: &mut Step, compute: &mut Compute) -> Stage {
    let epoch = compute.next_epoch();
    step.emit(Effect::Sweep { epoch });
    let after = compute.policy.sweep;
    let timer = step.arm(compute, Timer::SweepDeadline, after);
    Stage::Sweeping { epoch, timer }
}

impl Identities for Shutdown {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        self.waiting.visit(visitor);
        if let Some(sync) = &mut self.sync {
            sync.spec.visit(visitor);
        }
        match &mut self.stage {
            Stage::Stopping { postmaster, work, timer, .. } => {
                postmaster.visit(visitor);
                work.visit(visitor);
                timer.visit(visitor);
            }
            Stage::Sweeping { epoch, timer } | Stage::Syncing { epoch, timer } => {
                epoch.visit(visitor);
                timer.visit(visitor);
            }
        }
    }
}
