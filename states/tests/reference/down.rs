//! The way down: failures without a Postgres, terminations, signals, and the ladder.

use super::*;
use compute_states::RestartPolicy;

/// Why a shutdown begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Requested(TerminateMode),
    Signalled,
    PostgresStopped,
    Detached,
}

const WORK: [Thing; 7] = [
    Thing::WarmUp,
    Thing::Resolve,
    Thing::Prepare,
    Thing::Apply,
    Thing::Promote,
    Thing::Fetch,
    Thing::FinalSync,
];

/// What is cancelled and forgotten when a shutdown begins. A restart goes on counting: it changes nothing.
const FORGOTTEN: [Thing; 9] = [
    Thing::Sweep,
    Thing::Timer(Timer::StartDeadline),
    Thing::Timer(Timer::StopDeadline),
    Thing::Timer(Timer::SweepDeadline),
    Thing::Timer(Timer::FinalSyncDeadline),
    Thing::Timer(Timer::StorageBackoff),
    Thing::Timer(Timer::RefreshBackoff),
    Thing::Timer(Timer::LatchedRefresh),
    Thing::Timer(Timer::FailedLinger),
];

impl Node {
    pub(super) fn terminate(&mut self, mode: TerminateMode) -> Say {
        let request = self.new_request();
        match self.status {
            S::Terminated => {
                self.reply(request, Reply::AlreadyTerminated(self.result));
                if mode == TerminateMode::Immediate {
                    self.cut_linger();
                }
                Say::Taken
            }
            S::TerminationPendingFast | S::TerminationPendingImmediate => {
                if self.waiters.len() >= self.policy.max_waiters {
                    return self.refuse(request, Refusal::TooManyWaiters);
                }
                self.waiters.push(request);
                if mode == TerminateMode::Immediate && self.status == S::TerminationPendingFast {
                    self.status = S::TerminationPendingImmediate;
                    self.down_mut().linger = false;
                    return Say::Taken;
                }
                Say::Latched(None)
            }
            _ => {
                self.waiters.push(request);
                self.go_down(Ending::Requested(mode));
                Say::Taken
            }
        }
    }

    /// The first signal is a termination, or joins one and cuts its linger. Each further one is a rung.
    pub(super) fn signal(&mut self) -> Say {
        match self.status {
            S::Terminated => self.cut_linger(),
            S::TerminationPendingFast | S::TerminationPendingImmediate => {
                self.status = S::TerminationPendingImmediate;
                let stopping = self.stopping();
                let down = self.down_mut();
                down.signals = down.signals.saturating_add(1);
                down.linger = false;
                if down.signals > 1 {
                    if stopping && down.rung < StopMode::Kill {
                        self.cancel(&[Thing::Timer(Timer::StopDeadline)]);
                        self.descend();
                    } else if self.waits_for(Thing::FinalSync) {
                        self.cancel(&[Thing::FinalSync, Thing::Timer(Timer::FinalSyncDeadline)]);
                        self.sync_failed();
                    }
                }
            }
            _ => self.go_down(Ending::Signalled),
        }
        Say::Taken
    }

    fn cut_linger(&mut self) {
        if self.waits_for(Thing::Timer(Timer::TerminatedLinger)) {
            self.cancel(&[Thing::Timer(Timer::TerminatedLinger)]);
            let reason = self.down_mut().reason;
            self.ask(Ask::Exit(reason));
        }
    }

    fn down_mut(&mut self) -> &mut Down {
        self.down.as_mut().expect("a shutdown is under way")
    }

    /// A failure without Postgres has been cleared up, and only its linger is left.
    pub(super) fn readable(&self) -> bool {
        self.waits_for(Thing::Timer(Timer::FailedLinger))
    }

    /// The ladder is being gone down.
    fn stopping(&self) -> bool {
        self.process && !self.unconfirmed
    }

    /// Cancels work, and goes on waiting for its end.
    fn wind_up(&mut self) {
        if let Some(work) = self.live.iter().copied().find(|item| WORK.contains(&item.0)) {
            self.cancel(&[work.0]);
            self.winding = Some(work);
        } else if let Some(work) = self.winding {
            // It was told before; being told again does no harm.
            self.ask(Ask::Cancel(work));
        }
    }

    pub(super) fn go_down(&mut self, ending: Ending) {
        // A failed sync of an earlier Postgres is not repeated, but one that is owed or under way is.
        let owed = match (self.gone, self.status) {
            (Some(gone), S::Failed) => gone.sync,
            _ if self.serves => self.applied.filter(|spec| spec.final_sync),
            _ if self.ready => self.wanted.filter(|spec| spec.final_sync),
            _ => None,
        };
        let reported = match self.status {
            S::Empty => false,
            S::ConfigurationPending => self.serves,
            _ => true,
        };
        let fallback = if self.abandoned.is_some() { ExitReason::StartFailed } else { ExitReason::Stopped };
        let (fast, sync, reason) = match ending {
            Ending::Requested(mode) => (mode == TerminateMode::Fast, Some(true), fallback),
            Ending::Signalled => (false, None, fallback),
            Ending::PostgresStopped => (false, Some(false), fallback),
            Ending::Detached => (false, None, ExitReason::Detached),
        };
        let reason = match self.gone {
            Some(gone) if ending != Ending::Detached => gone.reason,
            _ => reason,
        };
        let rung = self.abandoned.take().unwrap_or(StopMode::Fast);
        self.wind_up();
        self.cancel(&FORGOTTEN);
        self.answer_configure(Reply::ConfigureSuperseded);
        self.status = if fast { S::TerminationPendingFast } else { S::TerminationPendingImmediate };
        self.serves = false;
        self.gone = None;
        self.down = Some(Down {
            signals: u8::from(ending == Ending::Signalled),
            linger: fast && reported,
            sync: owed.zip(sync),
            reason,
            rung,
        });
        if self.stopping() {
            self.stop(rung);
        } else if self.winding.is_some() {
            self.ask(Ask::Arm(Timer::StopDeadline, self.policy.stop_immediate));
        } else {
            self.sweep();
        }
    }

    fn stop(&mut self, mode: StopMode) {
        self.ask(Ask::Stop(mode));
        let after = match mode {
            StopMode::Fast => self.policy.stop_fast,
            StopMode::Immediate => self.policy.stop_immediate,
            StopMode::Kill => self.policy.stop_kill,
        };
        self.ask(Ask::Arm(Timer::StopDeadline, after));
    }

    fn descend(&mut self) {
        let mode = below(self.down_mut().rung);
        self.down_mut().rung = mode;
        self.stop(mode);
    }

    fn sweep(&mut self) {
        self.ask(Ask::Sweep);
        self.ask(Ask::Arm(Timer::SweepDeadline, self.policy.sweep));
    }

    // ---- failures without a Postgres --------------------------------------------------------------------

    /// A start failed and left nothing.
    pub(super) fn fail_start(&mut self, fault: FaultKind, thing: Thing) {
        self.answer_configure(Reply::ConfigureFailed);
        self.note(fault, thing);
        self.gone = Some(Gone { reason: ExitReason::StartFailed, restart: None, refresh: false, sync: None });
        if self.latched {
            self.begin_refresh();
        } else {
            self.status = S::Failed;
            self.ask(Ask::Arm(Timer::FailedLinger, self.policy.failed_linger));
        }
    }

    /// A start failed whose postmaster lives: it is stopped before anything else.
    pub(super) fn abandon(&mut self, mode: StopMode) {
        self.answer_configure(Reply::ConfigureFailed);
        self.abandoned = Some(mode);
        self.stop(mode);
    }

    fn clear_up(&mut self, gone: Gone) {
        self.status = S::Failed;
        self.abandoned = None;
        self.gone = Some(gone);
        self.sweep();
    }

    fn clear_up_start(&mut self) {
        let refresh = std::mem::take(&mut self.latched);
        let sync = self.wanted.filter(|spec| self.ready && spec.final_sync);
        self.ready = false;
        self.clear_up(Gone { reason: ExitReason::StartFailed, restart: None, refresh, sync });
    }

    /// A postmaster has ended, or never was.
    pub(super) fn lost(&mut self, exit: Option<Exit>) -> Say {
        self.process = false;
        if std::mem::take(&mut self.unconfirmed) {
            return Say::Taken;
        }
        match self.status {
            S::TerminationPendingFast | S::TerminationPendingImmediate => {
                let down = self.down_mut();
                if down.reason == ExitReason::Stopped {
                    match (exit, down.rung) {
                        (_, StopMode::Kill) => down.reason = ExitReason::StopKilled,
                        (Some(exit), StopMode::Fast) if !exit.is_clean() => {
                            down.reason = ExitReason::PostgresExited(exit);
                        }
                        _ => {}
                    }
                }
                self.wound_up();
            }
            S::Init => {
                self.answer_configure(Reply::ConfigureFailed);
                self.cancel(&[Thing::Timer(Timer::StartDeadline), Thing::Timer(Timer::StopDeadline)]);
                self.wind_up();
                match exit {
                    _ if self.abandoned.is_some() => self.clear_up_start(),
                    None => self.fail_start(FaultKind::SpawnFailed(SPAWN_FAILS), Thing::Postmaster),
                    Some(exit) => {
                        self.note(FaultKind::ExitedDuringStart(exit), Thing::Postmaster);
                        self.clear_up_start();
                    }
                }
            }
            _ if exit.is_some_and(Exit::is_clean) => self.go_down(Ending::PostgresStopped),
            _ => {
                // From failed with Postgres to failed without is a move that the status does not show.
                self.crashed(exit.expect("a postmaster that served was spawned"));
                return Say::Moved;
            }
        }
        self.ready = false;
        Say::Taken
    }

    fn crashed(&mut self, exit: Exit) {
        let refreshing = matches!(self.status, S::RefreshConfigurationPending | S::RefreshConfiguration);
        let owes_refresh = refreshing || self.latched || self.waits_for(Thing::Timer(Timer::LatchedRefresh));
        let applied = self.applied.expect("it served");
        self.note(FaultKind::Crashed(exit), Thing::Postmaster);
        self.latched = false;
        self.unapplied = None;
        self.serves = false;
        self.answer_configure(Reply::ConfigureFailed);
        self.wind_up();
        self.cancel(&FORGOTTEN);
        let restart = match (self.policy.restart, owes_refresh) {
            (RestartPolicy::Never, _) => None,
            (RestartPolicy::OnFailure, false) => Some(Restart::With(applied)),
            (RestartPolicy::OnFailure, true) => Some(Restart::AfterFetch),
        };
        let sync = Some(applied).filter(|spec| spec.final_sync);
        self.ready = false;
        self.clear_up(Gone { reason: ExitReason::PostgresExited(exit), restart, refresh: false, sync });
    }

    /// Nothing is left of the last Postgres, as far as that can be known.
    fn cleared(&mut self) {
        let gone = self.gone.expect("failed without Postgres");
        if !self.process {
            let restart = gone.restart.filter(|_| self.restarts < self.policy.restart_budget);
            if gone.refresh {
                return self.begin_refresh();
            }
            if let Some(restart) = restart {
                self.restarts += 1;
                self.ask(Ask::Arm(Timer::RestartForgiven, self.policy.restart_window));
                match restart {
                    Restart::AfterFetch => self.begin_refresh(),
                    Restart::With(spec) => {
                        self.wanted = Some(spec);
                        self.init();
                    }
                }
                return;
            }
            if let Some(spec) = gone.sync {
                self.ask(Ask::FinalSync { spec: spec.revision });
                self.ask(Ask::Arm(Timer::FinalSyncDeadline, self.policy.unasked_final_sync));
                return;
            }
        }
        self.linger();
    }

    fn linger(&mut self) {
        let gone = self.gone.as_mut().expect("failed without Postgres");
        gone.sync = None;
        let after = match gone.reason {
            ExitReason::PostgresExited(_) => self.policy.crash_linger,
            _ => self.policy.failed_linger,
        };
        self.ask(Ask::Arm(Timer::FailedLinger, after));
    }

    // ---- clearing up, on both ways ------------------------------------------------------------------------

    /// One of the things waited for before going on has ended.
    pub(super) fn wound_up(&mut self) -> Say {
        if self.winding.is_none() && self.status == S::Failed && !self.waits_for(Thing::Sweep) {
            self.cancel(&[Thing::Timer(Timer::SweepDeadline)]);
            self.cleared();
        } else if self.winding.is_none() && self.status != S::Failed && !self.stopping() {
            self.cancel(&[Thing::Timer(Timer::StopDeadline)]);
            self.sweep();
        }
        Say::Taken
    }

    pub(super) fn down_ended(&mut self, work: Thing, outcome: Outcome) -> Say {
        match (self.status, work) {
            (S::Failed, Thing::Sweep) => {
                self.wound_up();
            }
            (S::Failed, Thing::FinalSync) => {
                self.cancel(&[Thing::Timer(Timer::FinalSyncDeadline)]);
                self.synced_after_failure();
            }
            (_, Thing::Sweep) => {
                self.cancel(&[Thing::Timer(Timer::SweepDeadline)]);
                self.swept();
            }
            (_, Thing::FinalSync) => {
                self.cancel(&[Thing::Timer(Timer::FinalSyncDeadline)]);
                if outcome == Outcome::Good {
                    self.terminated(TerminationResult::Stopped(Some(END_OF_LOG)));
                } else {
                    self.sync_failed();
                }
            }
            _ => unreachable!("{work:?} cannot be live in {}", self.status),
        }
        Say::Taken
    }

    fn synced_after_failure(&mut self) {
        if self.gone.is_some_and(|gone| gone.refresh) {
            self.begin_refresh();
        } else {
            self.linger();
        }
    }

    pub(super) fn down_fired(&mut self, timer: Timer) -> Say {
        match (self.status, timer) {
            (S::Init, Timer::StopDeadline) => match self.abandoned {
                Some(StopMode::Kill) | None => {
                    self.unconfirmed = true;
                    self.clear_up_start();
                }
                Some(rung) => {
                    self.abandoned = Some(below(rung));
                    self.stop(below(rung));
                }
            },
            (_, Timer::StopDeadline) => {
                if self.stopping() && self.down_mut().rung < StopMode::Kill {
                    self.descend();
                    return Say::Taken;
                }
                if self.stopping() {
                    self.unconfirmed = true;
                    self.note(FaultKind::PostmasterUnconfirmed, Thing::Postmaster);
                    self.down_mut().reason = ExitReason::StopKilled;
                }
                self.winding = None;
                self.sweep();
            }
            (S::Failed, Timer::SweepDeadline) => {
                self.cancel(&[Thing::Sweep]);
                self.winding = None;
                self.cleared();
            }
            (_, Timer::SweepDeadline) => {
                self.cancel(&[Thing::Sweep]);
                self.swept();
            }
            (S::Failed, Timer::FinalSyncDeadline) => {
                self.cancel(&[Thing::FinalSync]);
                self.synced_after_failure();
            }
            (_, Timer::FinalSyncDeadline) => {
                self.cancel(&[Thing::FinalSync]);
                self.sync_failed();
            }
            _ => unreachable!("{timer:?} cannot be armed in {}", self.status),
        }
        Say::Taken
    }

    /// Nothing follows an exit before it is confirmed: two writers of one log would be the end of it.
    fn swept(&mut self) {
        let owed = self.down_mut().sync;
        match owed {
            Some((spec, asked)) if !self.process => {
                self.ask(Ask::FinalSync { spec: spec.revision });
                let after = if asked { self.policy.final_sync } else { self.policy.unasked_final_sync };
                self.ask(Ask::Arm(Timer::FinalSyncDeadline, after));
            }
            _ => self.terminated(TerminationResult::Stopped(None)),
        }
    }

    fn sync_failed(&mut self) {
        self.note(FaultKind::FinalSyncFailed, Thing::FinalSync);
        let waited = !self.waiters.is_empty();
        let down = self.down_mut();
        let asked = waited || down.sync.is_some_and(|(_, asked)| asked);
        if asked && down.reason == ExitReason::Stopped {
            down.reason = ExitReason::FinalSyncFailed;
        }
        self.terminated(TerminationResult::FinalSyncFailed);
    }

    fn terminated(&mut self, result: TerminationResult) {
        self.status = S::Terminated;
        self.result = result;
        for request in std::mem::take(&mut self.waiters) {
            self.reply(request, Reply::Terminated(result));
        }
        let Down { linger, reason, .. } = *self.down_mut();
        if linger {
            self.ask(Ask::Arm(Timer::TerminatedLinger, self.policy.fast_linger));
        } else {
            self.ask(Ask::Exit(reason));
        }
    }
}

/// SIGINT, SIGQUIT, SIGKILL.
fn below(mode: StopMode) -> StopMode {
    match mode {
        StopMode::Fast => StopMode::Immediate,
        StopMode::Immediate | StopMode::Kill => StopMode::Kill,
    }
}
