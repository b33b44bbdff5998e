//! Event histories for the state machine: bytes choose what happens next in a small world that carries out
//! what the machine asked for, in any order, with results that fail, come late, twice or not at all.
//!
//! The input reads as text. Four characters choose the policy and the first event, then each pair of
//! characters is one event, named in [`World::next`]: a letter for its kind, a digit for its variant.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use compute_states::promotion::Stage;
use compute_states::state::{Base, Init, Phase, Waiting};
use compute_states::{
    ComputeStatus, Effect, Epoch, Event, Exit, FailureClass, FetchedSpec, Lsn, Machine, Policy, Reply,
    RequestId, RestartPolicy, Revision, SpecOutline, State, Step, StopMode, TerminateMode, Timer, Verdict,
};
use libfuzzer_sys::fuzz_target;

/// Longer histories show nothing new and make every run slow.
const STEPS: usize = 512;

/// Events after which a terminate must have been carried out by a world which answers everything, besides the
/// ends of what is under way: the postmaster's exit, a sweep, a sync, and some to spare.
const STEPS_TO_THE_END: usize = 8;

fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_at_checked(4) else { return };
    let policy = Policy {
        restart: if head[0] & 1 == 0 { RestartPolicy::Never } else { RestartPolicy::OnFailure },
        restart_budget: head[1] & 3,
        max_waiters: usize::from(head[2] & 3),
        storage_retries: u16::from(head[1] >> 2 & 3),
        ..Policy::default()
    };
    let mut world = World::new(policy);
    let spec = (head[3] & 1 == 1).then(|| world.new_spec(head[3]));
    world.feed(Event::Booted { spec });
    for pair in rest.chunks_exact(2).take(STEPS) {
        if let Some(event) = world.next(pair[0] & 0x1f, pair[1]) {
            world.feed(event);
        }
        if world.is_over() {
            break;
        }
    }
    world.wind_up();
});

/// What kind of work goes on under an epoch. Each kind ends in one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    WarmUp,
    Resolve,
    Prepare,
    Apply,
    Promote,
    CheckIdle,
    Fetch,
    Sweep,
    Sync,
}

/// A machine and what it has asked for.
struct World {
    machine: Machine,
    /// The machine as it was written to a journal and read back, or a copy. Both must go the same way.
    shadow: Machine,
    policy: Policy,
    /// Work whose one event has not come, in the order of its begin, and whether it was cancelled.
    work: Vec<(Epoch, Work, bool)>,
    /// Armed timers.
    timers: Vec<(Epoch, Timer)>,
    /// Timers which were disarmed, but may have fired just before that.
    disarmed: Vec<Epoch>,
    postmaster: Option<Postmaster>,
    /// Requests without an answer, and what was asked.
    owed: BTreeMap<RequestId, Asked>,
    last_request: u64,
    last_revision: u64,
    /// Every epoch the machine has given out.
    epochs: BTreeSet<Epoch>,
    /// What was fed, for repetition.
    past: Vec<Event>,
    exited: bool,
}

#[derive(Clone, Copy, Debug)]
struct Postmaster {
    epoch: Epoch,
    /// Whether anything was heard from it. A process that was seen cannot fail to be spawned any more.
    seen: bool,
    /// How far down the ladder it was sent.
    stop: Option<StopMode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Configure,
    Terminate,
    TerminateIfIdle,
    Refresh,
    Promote,
}

impl World {
    fn new(policy: Policy) -> Self {
        let machine = Machine::new(policy);
        Self {
            shadow: machine.clone(),
            machine,
            policy,
            work: Vec::new(),
            timers: Vec::new(),
            disarmed: Vec::new(),
            postmaster: None,
            owed: BTreeMap::new(),
            last_request: 0,
            last_revision: 0,
            epochs: BTreeSet::new(),
            past: Vec::new(),
            exited: false,
        }
    }

    /// The process has ended, so nothing can happen any more. A terminated compute is fed on: nothing may lead
    /// out of that state, whatever arrives while the answers are being sent.
    fn is_over(&self) -> bool {
        self.exited && self.machine.status() != ComputeStatus::Terminated
    }

    // ---- what can happen ------------------------------------------------------------------------------

    fn next(&mut self, letter: u8, variant: u8) -> Option<Event> {
        let at = usize::from(variant & 3);
        Some(match letter + b'a' - 1 {
            // Requests, hints, signals; `g` is a promotion.
            b'c' => {
                let spec = self.new_spec(variant);
                Event::ConfigureRequested { request: self.new_request(Asked::Configure), spec }
            }
            b'f' => self.terminate(TerminateMode::Fast),
            b'i' => self.terminate(TerminateMode::Immediate),
            b'r' => Event::RefreshRequested { request: self.new_request(Asked::Refresh) },
            b'g' => {
                let spec = self.new_spec(variant);
                let request = self.new_request(Asked::Promote);
                Event::PromoteRequested { request, spec, lsn: Lsn(u64::from(variant)) }
            }
            b'y' => Event::TerminateIfIdleRequested {
                request: self.new_request(Asked::TerminateIfIdle),
                mode: if variant & 1 == 1 { TerminateMode::Immediate } else { TerminateMode::Fast },
            },
            b'h' => Event::RefreshHinted,
            b's' => Event::StopSignalled,
            b'u' => Event::ReloadSignalled,
            // Work ends, well or not; the digit says which piece of work, and how.
            b'd' => {
                let (epoch, work, _) = *self.work.get(at % self.work.len().max(1))?;
                self.success(epoch, work, variant >> 2)
            }
            b'e' => {
                let (epoch, work, _) = *self.work.get(at % self.work.len().max(1))?;
                failure(epoch, work, class(variant >> 2))
            }
            // The postmaster: progress, ready, exit, never spawned; activity in it.
            b'p' => Event::PostmasterProgressed { postmaster: self.postmaster?.epoch },
            b'w' => Event::PostmasterReady { postmaster: self.postmaster?.epoch },
            b'k' => Event::PostmasterExited { postmaster: self.postmaster?.epoch, exit: exit(variant) },
            b'x' => {
                let postmaster = self.postmaster.filter(|postmaster| !postmaster.seen)?.epoch;
                Event::SpawnFailed { postmaster, class: class(variant) }
            }
            b'a' => Event::ActivityObserved { postmaster: self.postmaster?.epoch, busy: variant & 1 == 1 },
            // Timers, also one that fired while it was being disarmed.
            b't' => Event::TimerFired { epoch: self.timers.get(at % self.timers.len().max(1))?.0 },
            b'o' => Event::TimerFired { epoch: *self.disarmed.get(at % self.disarmed.len().max(1))? },
            // Trouble: something comes twice, long after, with the wrong number, of the wrong kind.
            b'b' => Event::Booted { spec: (variant & 1 == 1).then(|| self.new_spec(variant)) },
            b'l' => {
                let event = *self.past.iter().rev().nth(usize::from(variant & 0x0f))?;
                if is_request(&event) || self.is_awaited(&event) {
                    return None;
                }
                event
            }
            b'm' => {
                foreign(variant, Epoch(self.machine.compute().last_epoch.0 + 1 + u64::from(variant >> 5)))
            }
            b'q' => foreign(variant, self.dead_epoch(usize::from(variant >> 4))?),
            // The process writes its journal and is read back.
            b'j' => {
                let text = serde_json::to_string(&self.machine).expect("a machine can be written");
                self.shadow = serde_json::from_str(&text).expect("what was written can be read");
                assert_eq!(self.shadow, self.machine, "read back differently");
                assert_eq!(self.shadow.fingerprint(), self.machine.fingerprint());
                std::mem::swap(&mut self.machine, &mut self.shadow);
                return None;
            }
            _ => return None,
        })
    }

    fn new_request(&mut self, asked: Asked) -> RequestId {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        self.owed.insert(request, asked);
        request
    }

    fn new_spec(&mut self, variant: u8) -> SpecOutline {
        self.last_revision += 1;
        SpecOutline { revision: Revision(self.last_revision), final_sync: variant & 2 == 2 }
    }

    fn terminate(&mut self, mode: TerminateMode) -> Event {
        Event::TerminateRequested { request: self.new_request(Asked::Terminate), mode }
    }

    fn success(&mut self, epoch: Epoch, work: Work, variant: u8) -> Event {
        match work {
            Work::WarmUp => Event::WarmUpEnded { epoch },
            Work::Resolve => Event::SpecResolved { epoch },
            Work::Prepare => Event::StoragePrepared { epoch },
            Work::Apply => Event::SpecApplied { epoch },
            Work::Promote => Event::Promoted { epoch },
            Work::CheckIdle if variant & 1 == 1 => Event::FoundBusy { epoch },
            Work::CheckIdle => Event::FoundIdle { epoch },
            Work::Fetch => {
                let fetched = match variant & 3 {
                    0 => FetchedSpec::Spec { spec: self.new_spec(0), same_pageservers: true },
                    1 => FetchedSpec::Spec { spec: self.new_spec(0), same_pageservers: false },
                    2 => FetchedSpec::Spec { spec: self.new_spec(2), same_pageservers: false },
                    _ => FetchedSpec::NoSpec,
                };
                Event::SpecFetched { epoch, fetched }
            }
            Work::Sweep => Event::Swept { epoch },
            Work::Sync => Event::FinalSyncDone { epoch, lsn: Lsn(0x0169_3C00) },
        }
    }

    /// An epoch about which everything has been said.
    fn dead_epoch(&self, at: usize) -> Option<Epoch> {
        self.epochs.iter().rev().filter(|epoch| !self.is_alive(**epoch)).nth(at).copied()
    }

    fn is_alive(&self, epoch: Epoch) -> bool {
        self.work.iter().any(|(work, ..)| *work == epoch)
            || self.timers.iter().any(|(timer, _)| *timer == epoch)
            || self.postmaster.is_some_and(|postmaster| postmaster.epoch == epoch)
    }

    /// Whether a past event would now be news: it was made up about an epoch which has begun since then.
    fn is_awaited(&self, event: &Event) -> bool {
        let fired = match *event {
            Event::TimerFired { epoch } => Some(epoch),
            _ => None,
        };
        let about = event.settles().or(event.ends_postmaster()).or(fired);
        about.is_some_and(|epoch| self.is_alive(epoch))
    }

    // ---- one step, and what must be true of it ---------------------------------------------------------

    fn feed(&mut self, event: Event) {
        self.settle(&event);
        let before = self.machine.clone();
        let step = self.machine.handle(&event);
        let same = self.shadow.handle(&event);
        assert_eq!(step, same, "two equal machines answered {event:?} differently");
        assert_eq!(self.machine, self.shadow);
        self.judge(&before, &event, &step);
        for effect in step.effects() {
            self.carry_out(*effect);
        }
        self.examine(&event);
        self.past.push(event);
    }

    /// What the world itself knows to be over with this event.
    fn settle(&mut self, event: &Event) {
        if let Some(epoch) = event.settles() {
            self.work.retain(|(work, ..)| *work != epoch);
        }
        match *event {
            Event::TimerFired { epoch } => self.timers.retain(|(timer, _)| *timer != epoch),
            Event::PostmasterProgressed { postmaster } | Event::PostmasterReady { postmaster } => {
                if let Some(alive) = self.postmaster.as_mut().filter(|alive| alive.epoch == postmaster) {
                    alive.seen = true;
                }
            }
            _ => {}
        }
        if let Some(ended) = event.ends_postmaster()
            && self.postmaster.is_some_and(|postmaster| postmaster.epoch == ended)
        {
            self.postmaster = None;
        }
    }

    fn judge(&self, before: &Machine, event: &Event, step: &Step) {
        assert!(step.has_verdict(), "no verdict on {event:?} in {:?}", before.state());
        let only_replies = step.effects().iter().all(|effect| matches!(effect, Effect::Reply { .. }));
        match step.verdict() {
            Verdict::Moved(_) | Verdict::Taken(_) | Verdict::Latched { .. } => {}
            Verdict::Refused(_) => {
                assert_eq!(*before, self.machine, "refusing {event:?} changed something");
                assert!(only_replies, "refusing {event:?} led to {:?}", step.effects());
            }
            Verdict::Stale => {
                assert_eq!(*before, self.machine, "the stale {event:?} changed something");
                assert_eq!(step.effects(), [], "the stale {event:?} had effects");
            }
        }
        if before.status() != self.machine.status() {
            assert!(matches!(step.verdict(), Verdict::Moved(_)), "{event:?} moved, but says otherwise");
        }
        if before.status() == ComputeStatus::Terminated {
            assert_eq!(self.machine.status(), ComputeStatus::Terminated, "{event:?} led out of Terminated");
        }
        let exit = step.effects().iter().position(|effect| matches!(effect, Effect::Exit { .. }));
        assert!(exit.is_none_or(|at| at + 1 == step.effects().len()), "effects after the exit");
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::WarmUp { epoch } => self.begin(epoch, Work::WarmUp),
            Effect::ResolveSpec { epoch, .. } => self.begin(epoch, Work::Resolve),
            Effect::PrepareStorage { epoch, .. } => {
                assert!(self.postmaster.is_none(), "a data directory is prepared under a postmaster");
                assert!(
                    self.work.iter().all(|(_, work, _)| *work != Work::Prepare),
                    "a data directory is prepared twice at once"
                );
                self.begin(epoch, Work::Prepare);
            }
            Effect::StartPostmaster { postmaster, .. } => {
                assert!(self.postmaster.is_none(), "a second postmaster");
                self.new_epoch(postmaster);
                self.postmaster = Some(Postmaster { epoch: postmaster, seen: false, stop: None });
            }
            Effect::ApplySpec { epoch, postmaster, .. } => {
                self.assert_alive(postmaster, "applied to");
                self.begin(epoch, Work::Apply);
            }
            Effect::Promote { epoch, postmaster, .. } => {
                self.assert_alive(postmaster, "promoted");
                self.begin(epoch, Work::Promote);
            }
            Effect::CheckIdle { epoch, postmaster } => {
                self.assert_alive(postmaster, "looked at");
                self.begin(epoch, Work::CheckIdle);
            }
            Effect::FetchSpec { epoch, .. } => self.begin(epoch, Work::Fetch),
            Effect::StopPostmaster { postmaster, mode } => {
                self.assert_alive(postmaster, "stopped");
                let alive = self.postmaster.as_mut().expect("asserted just now");
                let rung = |mode| match mode {
                    StopMode::Fast => 1,
                    StopMode::Immediate => 2,
                    StopMode::Kill => 3,
                };
                assert!(alive.stop.map_or(0, rung) <= rung(mode), "the ladder only goes down");
                alive.stop = Some(mode);
            }
            Effect::ReloadPostmaster { postmaster } => self.assert_alive(postmaster, "reloaded"),
            Effect::Sweep { epoch } => self.begin(epoch, Work::Sweep),
            Effect::FinalSync { epoch, .. } => {
                assert!(self.postmaster.is_none(), "safekeepers are synchronised under a postmaster");
                self.begin(epoch, Work::Sync);
            }
            Effect::Cancel { epoch } => self.cancel(epoch),
            Effect::ArmTimer { epoch, timer, after } => {
                self.new_epoch(epoch);
                assert!(after <= Duration::from_secs(300), "a timer of {after:?}");
                self.timers.push((epoch, timer));
                let counted =
                    self.timers.iter().filter(|(_, timer)| *timer == Timer::RestartForgiven).count();
                assert!(counted <= usize::from(self.policy.restart_budget), "restarts beyond the budget");
            }
            Effect::Reply { request, reply } => self.answer(request, reply),
            Effect::Exit { .. } => {
                assert!(!self.exited, "the process ends twice");
                assert!(self.owed.is_empty(), "the process ends and owes answers to {:?}", self.owed);
                self.exited = true;
            }
        }
    }

    fn begin(&mut self, epoch: Epoch, work: Work) {
        self.new_epoch(epoch);
        self.work.push((epoch, work, false));
    }

    fn new_epoch(&mut self, epoch: Epoch) {
        let last = self.epochs.last().copied().unwrap_or_default();
        assert!(epoch > last, "{epoch:?} after {last:?}: an identity is used again");
        self.epochs.insert(epoch);
    }

    fn cancel(&mut self, epoch: Epoch) {
        if let Some(work) = self.work.iter_mut().find(|(work, ..)| *work == epoch) {
            work.2 = true;
        } else if let Some(at) = self.timers.iter().position(|(timer, _)| *timer == epoch) {
            self.timers.remove(at);
            self.disarmed.push(epoch);
        } else {
            assert!(self.epochs.contains(&epoch), "{epoch:?} is cancelled, but never was");
        }
    }

    fn assert_alive(&self, epoch: Epoch, what: &str) {
        let alive = self.postmaster.map(|postmaster| postmaster.epoch);
        assert_eq!(alive, Some(epoch), "a postmaster that is not there is {what}");
    }

    fn answer(&mut self, request: RequestId, reply: Reply) {
        let Some(asked) = self.owed.remove(&request) else {
            panic!("{request:?} is answered twice: {reply:?}")
        };
        let fits = match reply {
            Reply::Configured | Reply::ConfigureFailed | Reply::ConfigureSuperseded => {
                asked == Asked::Configure
            }
            Reply::RefreshAccepted => asked == Asked::Refresh,
            Reply::Promoted | Reply::PromoteFailed | Reply::PromoteSuperseded => asked == Asked::Promote,
            Reply::NotIdle | Reply::IdleUnknown => asked == Asked::TerminateIfIdle,
            Reply::Terminated(_) => matches!(asked, Asked::Terminate | Asked::TerminateIfIdle),
            Reply::AlreadyTerminated(_) => {
                matches!(asked, Asked::Terminate | Asked::TerminateIfIdle)
                    && self.machine.status() == ComputeStatus::Terminated
            }
            Reply::Refused { .. } => true,
        };
        assert!(fits, "{asked:?} is answered with {reply:?}");
    }

    /// What must be true between two events.
    fn examine(&self, event: &Event) {
        let state = self.machine.state();
        assert_eq!(
            self.machine.compute().postmaster,
            self.postmaster.map(|postmaster| postmaster.epoch),
            "the machine lost count of its postmaster after {event:?}"
        );
        // Whoever has no answer yet is remembered by the state, and nobody else is.
        let owed: Vec<_> = self.owed.keys().copied().collect();
        let mut remembered = match state {
            State::ConfigurationPending(state) => Vec::from_iter(state.request),
            State::Init(state) => Vec::from_iter(state.request),
            State::Configuration(state) => Vec::from_iter(state.request),
            State::TerminationPendingFast(state) => state.0.waiting.clone(),
            State::TerminationPendingImmediate(state) => state.0.waiting.clone(),
            _ => Vec::new(),
        };
        let promotion = &self.machine.compute().promotion;
        remembered.extend(&promotion.waiting);
        if let Some(check) = &self.machine.compute().idle_check {
            remembered.extend(&check.waiting);
            assert!(self.goes_on(check.epoch, Work::CheckIdle), "a look that nobody takes");
            assert!(matches!(state, State::Running(_)), "a look beside other work");
        }
        remembered.sort();
        assert_eq!(remembered, owed, "requests were lost after {event:?} in {state:?}");
        if let Some(server) = state.server() {
            self.assert_alive(server.postmaster, "serving");
        }
        match state {
            State::Running(_) => {
                assert_eq!(self.machine.fault(), None, "running with a fault");
                assert!(match promotion.stage {
                    Stage::Promoting { epoch, .. } => self.goes_on(epoch, Work::Promote),
                    Stage::Applying { epoch } => self.goes_on(epoch, Work::Apply),
                    Stage::Idle | Stage::Done => true,
                    Stage::Queued { .. } | Stage::Unapplied => false,
                });
            }
            State::RefreshConfigurationPending(state) => {
                let waits = match state.waiting {
                    Waiting::Fetch(epoch) => self.goes_on(epoch, Work::Fetch),
                    Waiting::Backoff(epoch) => self.is_armed(epoch, Timer::RefreshBackoff),
                };
                assert!(waits, "a pending refresh waits for nothing: {state:?}");
                assert!(matches!(state.base, Base::Serving { .. }) || self.postmaster.is_none());
            }
            State::ConfigurationPending(state) => assert!(self.goes_on(state.epoch, Work::Resolve)),
            State::Configuration(state) => assert!(self.goes_on(state.epoch, Work::Apply)),
            State::RefreshConfiguration(state) => assert!(self.goes_on(state.epoch, Work::Apply)),
            State::Init(Init { phase, .. }) => assert!(match *phase {
                Phase::Preparing { epoch, .. } => self.goes_on(epoch, Work::Prepare),
                Phase::Retrying { timer, .. } => self.is_armed(timer, Timer::StorageBackoff),
                Phase::Starting { timer, .. } => self.is_armed(timer, Timer::StartDeadline),
                Phase::Applying { epoch, .. } => self.goes_on(epoch, Work::Apply),
                Phase::Abandoning { timer, .. } => self.is_armed(timer, Timer::StopDeadline),
            }),
            State::TerminationPendingFast(_) | State::TerminationPendingImmediate(_) => {
                assert!(!self.timers.is_empty(), "a termination without a deadline");
            }
            State::Failed(_) => assert!(
                self.machine.fault().is_some()
                    && (state.server().is_some() || !self.timers.is_empty() || self.exited),
                "a failure without a cause, or without an end"
            ),
            State::Empty(_) | State::Terminated(_) => {}
        }
    }

    fn goes_on(&self, epoch: Epoch, work: Work) -> bool {
        self.work.contains(&(epoch, work, false))
    }

    fn is_armed(&self, epoch: Epoch, timer: Timer) -> bool {
        self.timers.contains(&(epoch, timer))
    }

    // ---- the end --------------------------------------------------------------------------------------

    /// Whatever has happened: once the world answers everything, a terminate is carried out in a few steps.
    fn wind_up(&mut self) {
        if self.is_over() {
            return;
        }
        let event = self.terminate(TerminateMode::Immediate);
        self.feed(event);
        for _ in 0..STEPS_TO_THE_END + self.work.len() + self.timers.len() {
            let stopped = self.postmaster.filter(|postmaster| postmaster.stop.is_some());
            let event = if self.exited {
                break;
            } else if let Some(postmaster) = stopped {
                Event::PostmasterExited { postmaster: postmaster.epoch, exit: Exit::Code(0) }
            } else if let Some((epoch, work, _)) = self.work.first().copied() {
                self.success(epoch, work, 0)
            } else if let Some((epoch, _)) = self.timers.first().copied() {
                Event::TimerFired { epoch }
            } else {
                break;
            };
            self.feed(event);
        }
        assert_eq!(self.machine.status(), ComputeStatus::Terminated, "stuck in {:?}", self.machine.state());
        assert!(self.exited && self.owed.is_empty(), "terminated without an end: {:?}", self.owed);
    }
}

fn is_request(event: &Event) -> bool {
    matches!(
        event,
        Event::ConfigureRequested { .. }
            | Event::TerminateRequested { .. }
            | Event::TerminateIfIdleRequested { .. }
            | Event::PromoteRequested { .. }
            | Event::RefreshRequested { .. }
    )
}

fn class(variant: u8) -> FailureClass {
    match variant % 5 {
        0 => FailureClass::Transient,
        1 => FailureClass::Permanent,
        2 => FailureClass::TimedOut,
        3 => FailureClass::Cancelled,
        _ => FailureClass::Panicked,
    }
}

fn exit(variant: u8) -> Exit {
    match variant & 3 {
        0 => Exit::Code(0),
        1 => Exit::Code(1),
        2 => Exit::Signal(9),
        _ => Exit::Signal(11),
    }
}

fn failure(epoch: Epoch, work: Work, class: FailureClass) -> Event {
    match work {
        Work::WarmUp => Event::WarmUpEnded { epoch },
        Work::Resolve => Event::SpecRejected { epoch, class },
        Work::Prepare => Event::StorageFailed { epoch, class },
        Work::Apply => Event::ApplyFailed { epoch, class },
        Work::Promote => Event::PromoteFailed { epoch, class },
        Work::CheckIdle => Event::IdleCheckFailed { epoch, class },
        Work::Fetch => Event::FetchFailed { epoch, class },
        Work::Sweep => Event::Swept { epoch },
        Work::Sync => Event::FinalSyncFailed { epoch, class },
    }
}

/// An event about something that is not under way.
fn foreign(variant: u8, epoch: Epoch) -> Event {
    let spec = SpecOutline { revision: Revision(0), final_sync: true };
    match variant & 0x0f {
        0 if variant & 0x10 != 0 => Event::Promoted { epoch },
        1 if variant & 0x10 != 0 => Event::PromoteFailed { epoch, class: FailureClass::Transient },
        2 if variant & 0x10 != 0 => Event::FoundIdle { epoch },
        3 if variant & 0x10 != 0 => Event::FoundBusy { epoch },
        4 if variant & 0x10 != 0 => Event::IdleCheckFailed { epoch, class: FailureClass::TimedOut },
        0 => Event::WarmUpEnded { epoch },
        1 => Event::SpecResolved { epoch },
        2 => Event::SpecRejected { epoch, class: FailureClass::Permanent },
        3 => Event::StoragePrepared { epoch },
        4 => Event::StorageFailed { epoch, class: FailureClass::Transient },
        5 => Event::SpecApplied { epoch },
        6 => Event::ApplyFailed { epoch, class: FailureClass::Panicked },
        7 => Event::SpecFetched { epoch, fetched: FetchedSpec::Spec { spec, same_pageservers: false } },
        8 => Event::FetchFailed { epoch, class: FailureClass::TimedOut },
        9 => Event::Swept { epoch },
        10 => Event::FinalSyncDone { epoch, lsn: Lsn(1) },
        11 => Event::FinalSyncFailed { epoch, class: FailureClass::Cancelled },
        12 => Event::PostmasterReady { postmaster: epoch },
        13 => Event::PostmasterExited { postmaster: epoch, exit: Exit::Signal(9) },
        14 => Event::TimerFired { epoch },
        _ => Event::SpecFetched { epoch, fetched: FetchedSpec::NoSpec },
    }
}
