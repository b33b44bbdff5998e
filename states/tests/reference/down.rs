//! The way down: failures without a Postgres, terminations, signals, and the ladder.

use super::*;

const WORK: &[Thing] = &[
    Thing::WarmUp,
    Thing::Resolve,
    Thing::Prepare,
    Thing::Apply,
    Thing::Fetch,
    Thing::Timer(Timer::StartDeadline),
    Thing::Timer(Timer::RefreshBackoff),
    Thing::Timer(Timer::LatchedRefresh),
    Thing::Timer(Timer::FailedLinger),
    Thing::Timer(Timer::RestartForgiven),
];

impl Node {
    pub(super) fn terminate(&mut self, mode: TerminateMode) -> Say {
        let request = self.new_request();
        match self.status {
            S::Terminated => {
                self.reply(request, Reply::AlreadyTerminated(self.lsn));
                return Say::Taken;
            }
            S::TerminationPendingFast | S::TerminationPendingImmediate => {
                if self.waiters.len() >= self.policy.max_waiters {
                    return self.refuse(request, Refusal::TooManyWaiters);
                }
                self.waiters.push(request);
                if mode == TerminateMode::Immediate && self.status == S::TerminationPendingFast {
                    self.status = S::TerminationPendingImmediate;
                    self.down.as_mut().expect("going down").linger = false;
                    return Say::Taken;
                }
                return Say::Latched(None);
            }
            _ => {}
        }
        self.waiters.push(request);
        // Nothing to report in Empty and after a failure without Postgres.
        let report = self.status != S::Empty && !(self.status == S::Failed && !self.process);
        let reason = self.failed_as.unwrap_or(ExitReason::Stopped);
        self.go_down(mode == TerminateMode::Fast, reason, true);
        self.down.as_mut().expect("going down").linger &= report;
        Say::Taken
    }

    pub(super) fn signal(&mut self) -> Say {
        match self.status {
            S::Terminated => {
                if !self.waits_for(Thing::Timer(Timer::TerminatedLinger)) {
                    return Say::Stale;
                }
                self.cancel(&[Thing::Timer(Timer::TerminatedLinger)]);
                let reason = self.down.as_ref().map_or(ExitReason::Stopped, |down| down.reason);
                self.ask(Ask::Exit(reason));
                Say::Taken
            }
            S::TerminationPendingFast | S::TerminationPendingImmediate => {
                let down = self.down.as_mut().expect("going down");
                down.signals = down.signals.saturating_add(1);
                let signals = down.signals;
                down.linger = false;
                self.status = S::TerminationPendingImmediate;
                match signals {
                    1 => {}
                    2 => self.rung(StopMode::Immediate),
                    _ => self.rung(StopMode::Kill),
                }
                Say::Taken
            }
            _ => {
                let reason = self.failed_as.unwrap_or(ExitReason::Stopped);
                self.go_down(false, reason, false);
                self.down.as_mut().expect("going down").signals = 1;
                Say::Taken
            }
        }
    }

    /// Cancels what is under way and begins the way down.
    pub(super) fn go_down(&mut self, fast: bool, reason: ExitReason, sync: bool) {
        self.cancel(WORK);
        self.answer_configure(Reply::ConfigureSuperseded);
        self.status = if fast { S::TerminationPendingFast } else { S::TerminationPendingImmediate };
        let sync = self.applied.filter(|spec| sync && spec.final_sync);
        self.down =
            Some(Down { asked: true, signals: 0, linger: fast, sync, reason, rung: None, killed: false });
        if self.process {
            self.rung(StopMode::Fast);
        } else {
            self.sweep();
        }
    }

    fn rung(&mut self, mode: StopMode) {
        if !self.process {
            return;
        }
        let down = self.down.as_mut().expect("going down");
        if down.rung >= Some(mode) {
            return;
        }
        down.rung = Some(mode);
        down.killed |= mode == StopMode::Kill;
        self.serves = false;
        self.cancel(&[Thing::Timer(Timer::StopDeadline)]);
        self.ask(Ask::Stop(mode));
        let after = match mode {
            StopMode::Fast => self.policy.stop_fast,
            StopMode::Immediate => self.policy.stop_immediate,
            StopMode::Kill => self.policy.stop_kill,
        };
        self.ask(Ask::Arm(Timer::StopDeadline, after));
    }

    fn sweep(&mut self) {
        self.ask(Ask::Sweep);
        self.ask(Ask::Arm(Timer::SweepDeadline, self.policy.sweep));
    }

    /// No postmaster comes of this start.
    pub(super) fn fail_start(&mut self) {
        self.cancel(&[Thing::Timer(Timer::StartDeadline)]);
        self.answer_configure(Reply::ConfigureFailed);
        self.status = S::Failed;
        self.fault = true;
        self.latched = false;
        self.failed_as = Some(ExitReason::StartFailed);
        self.ask(Ask::Arm(Timer::FailedLinger, self.policy.failed_linger));
        if self.process {
            self.serves = false;
            self.ask(Ask::Stop(StopMode::Immediate));
            self.ask(Ask::Arm(Timer::StopDeadline, self.policy.stop_immediate));
        }
    }

    /// A postmaster has ended.
    pub(super) fn gone(&mut self, exit: Option<Exit>, served: bool) -> Say {
        match self.status {
            S::TerminationPendingFast | S::TerminationPendingImmediate => {
                self.cancel(&[Thing::Timer(Timer::StopDeadline)]);
                let down = self.down.as_mut().expect("going down");
                if down.killed {
                    down.reason = ExitReason::StopKilled;
                }
                self.sweep();
            }
            S::Init => self.fail_start(),
            S::Failed if !served => self.cancel(&[Thing::Timer(Timer::StopDeadline)]),
            _ if exit.is_some_and(Exit::is_clean) => {
                self.go_down(false, ExitReason::PostgresExited(Exit::Code(0)), true);
            }
            _ => {
                let exit = exit.unwrap_or(Exit::Code(1));
                self.cancel(WORK);
                self.answer_configure(Reply::ConfigureSuperseded);
                self.status = S::Failed;
                self.fault = true;
                self.failed_as = Some(ExitReason::PostgresExited(exit));
                self.ask(Ask::Sweep);
                self.ask(Ask::Arm(Timer::SweepDeadline, self.policy.sweep));
            }
        }
        Say::Taken
    }

    pub(super) fn down_ended(&mut self, work: Thing, outcome: Outcome) -> Say {
        match (self.status, work, outcome) {
            (S::Failed, Thing::Sweep, _) => {
                self.cancel(&[Thing::Timer(Timer::SweepDeadline)]);
                if self.may_restart() {
                    self.restarts += 1;
                    self.ask(Ask::Arm(Timer::RestartForgiven, self.policy.restart_window));
                    self.init(true);
                } else {
                    self.ask(Ask::Arm(Timer::FailedLinger, self.policy.crash_linger));
                }
            }
            (_, Thing::Sweep, _) => {
                self.cancel(&[Thing::Timer(Timer::SweepDeadline)]);
                self.swept();
            }
            (_, Thing::FinalSync, outcome) => {
                self.cancel(&[Thing::Timer(Timer::FinalSyncDeadline)]);
                if outcome != Outcome::Good {
                    self.lsn = TerminationResult::FinalSyncFailed;
                    self.down.as_mut().expect("going down").reason = ExitReason::FinalSyncFailed;
                }
                self.terminated();
            }
            _ => return Say::Stale,
        }
        Say::Taken
    }

    pub(super) fn down_fired(&mut self, timer: Timer) -> Say {
        match timer {
            Timer::StopDeadline => {
                let next = match self.down.as_ref().and_then(|down| down.rung) {
                    Some(StopMode::Fast) => StopMode::Immediate,
                    _ => StopMode::Kill,
                };
                self.rung(next);
            }
            Timer::SweepDeadline => {
                self.cancel(&[Thing::Sweep]);
                self.swept();
            }
            Timer::FinalSyncDeadline => {
                self.cancel(&[Thing::FinalSync]);
                self.lsn = TerminationResult::FinalSyncFailed;
                self.terminated();
            }
            _ => return Say::Stale,
        }
        Say::Taken
    }

    fn swept(&mut self) {
        let sync = self.down.as_mut().expect("going down").sync.take();
        match sync {
            Some(spec) => {
                self.ask(Ask::FinalSync { spec: spec.revision });
                self.ask(Ask::Arm(Timer::FinalSyncDeadline, self.policy.final_sync));
            }
            None => self.terminated(),
        }
    }

    fn terminated(&mut self) {
        self.status = S::Terminated;
        for request in std::mem::take(&mut self.waiters) {
            self.reply(request, Reply::Terminated(self.lsn));
        }
        let down = self.down.as_ref().expect("going down");
        let (linger, reason) = (down.linger, down.reason);
        if linger {
            self.ask(Ask::Arm(Timer::TerminatedLinger, self.policy.fast_linger));
        } else {
            self.ask(Ask::Exit(reason));
        }
    }
}
