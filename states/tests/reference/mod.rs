//! What the decisions require of every event in every status, written down a second time.
//!
//! This knows nothing of `statig`, of state structs or of epochs. It was written from the decisions and from the
//! vocabulary of events and effects before the machine's states were read, so that a misreading on one side shows as a
//! difference. It deals in *ordinals*: the third fetch is `(Thing::Fetch, 2)`, whatever epoch the machine gave it.
#![allow(dead_code, unreachable_pub, reason = "shared by test binaries, each of which uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use compute_states::{
    ComputeStatus, Exit, ExitReason, FaultKind, Policy, Refusal, Reply, StopMode, TerminateMode,
    TerminationResult, Timer,
};

mod down;
mod look;
mod promotion;
mod words;

use down::Ending;
pub use promotion::log_of;
pub use words::*;

/// The compute as the decisions see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub policy: Policy,
    pub booted: bool,
    pub status: ComputeStatus,
    pub fault: Option<(FaultKind, Item)>,
    pub wanted: Option<Spec>,
    pub applied: Option<Spec>,
    /// What could not be applied, and whether it was pushed by `/configure`.
    pub unapplied: Option<(Spec, bool)>,
    /// There is a process, or one is being spawned.
    pub process: bool,
    /// Its end was given up on.
    pub unconfirmed: bool,
    /// It has accepted connections, so its log may have grown.
    pub ready: bool,
    /// It serves what was applied.
    pub serves: bool,
    /// A start has failed and its postmaster is being stopped.
    pub abandoned: Option<StopMode>,
    pub restarts: u8,
    pub attempt: u32,
    /// How often the data directory was not ready for a reason that passes.
    pub retries: u16,
    pub latched: bool,
    pub configure: Option<u64>,
    pub waiters: Vec<u64>,
    pub promotion: Promotion,
    pub promoters: Vec<u64>,
    /// Who waits for a look at what is at work.
    pub lookers: Vec<u64>,
    /// How the process ends if nothing is.
    pub look_mode: TerminateMode,
    /// Cancelled work whose end is awaited all the same.
    pub winding: Option<Item>,
    pub gone: Option<Gone>,
    pub down: Option<Down>,
    pub result: TerminationResult,
    pub exited: bool,
    /// What is being waited for.
    pub live: BTreeSet<Item>,
    pub issued: BTreeMap<Thing, u64>,
    pub requests: u64,
    pub revisions: u64,
    asks: Vec<Ask>,
}

use ComputeStatus as S;

impl Node {
    pub fn new(policy: Policy) -> Self {
        Node {
            policy,
            booted: false,
            status: S::Empty,
            fault: None,
            wanted: None,
            applied: None,
            unapplied: None,
            process: false,
            unconfirmed: false,
            ready: false,
            serves: false,
            abandoned: None,
            restarts: 0,
            attempt: 0,
            retries: 0,
            latched: false,
            configure: None,
            waiters: Vec::new(),
            promotion: Promotion::No,
            promoters: Vec::new(),
            lookers: Vec::new(),
            look_mode: TerminateMode::Fast,
            winding: None,
            gone: None,
            down: None,
            result: TerminationResult::Stopped(None),
            exited: false,
            live: BTreeSet::new(),
            issued: BTreeMap::new(),
            requests: 0,
            revisions: 0,
            asks: Vec::new(),
        }
    }

    /// What `input` must lead to; the node is then as it must be after it.
    pub fn row(&mut self, input: &Input) -> Row {
        self.asks.clear();
        let before = self.status;
        let say = match *input {
            Input::Booted { spec } => self.booted(spec),
            Input::Configure { final_sync } => self.configure(final_sync),
            Input::Terminate(mode) => self.terminate(mode),
            Input::TerminateIfIdle(mode) => self.terminate_if_idle(mode),
            Input::Promote { final_sync } => self.promote(final_sync),
            Input::Refresh => self.refresh(),
            Input::Hint => self.hint(),
            Input::Signal => self.signal(),
            Input::Reload => self.reload(),
            Input::Ended { work, outcome, back } => {
                if self.winding.is_some() && self.winding == self.item(work, back) {
                    self.winding = None;
                    self.wound_up()
                } else if self.taken(work, back).is_some() {
                    self.ended(work, outcome)
                } else {
                    Say::Stale
                }
            }
            Input::Postmaster { news, back } => self.postmaster(news, back),
            Input::Fired { timer, back } => match self.taken(Thing::Timer(timer), back) {
                Some(()) => self.fired(timer),
                None => Say::Stale,
            },
            Input::NewProcess { .. } => unreachable!("the harness starts new processes"),
        };
        self.promotion_follows();
        self.look_follows();
        let say = if self.status != before && say == Say::Taken { Say::Moved } else { say };
        Row { status: self.status, fault: self.fault, say, asks: std::mem::take(&mut self.asks) }
    }

    // ---- bookkeeping -----------------------------------------------------------------------------------

    /// The item `back` places before the latest.
    pub fn item(&self, thing: Thing, back: u8) -> Option<Item> {
        let issued = self.issued.get(&thing).copied().unwrap_or(0);
        issued.checked_sub(1 + u64::from(back)).map(|ordinal| (thing, ordinal))
    }

    /// Whether it is the one being waited for; then it is no longer.
    fn taken(&mut self, thing: Thing, back: u8) -> Option<()> {
        let item = self.item(thing, back)?;
        self.live.remove(&item).then_some(())
    }

    pub fn waits_for(&self, thing: Thing) -> bool {
        self.live.iter().any(|item| item.0 == thing)
    }

    fn issue(&mut self, thing: Thing) {
        let ordinal = self.issued.entry(thing).or_insert(0);
        self.live.insert((thing, *ordinal));
        *ordinal += 1;
    }

    fn ask(&mut self, ask: Ask) {
        self.asks.push(ask);
        match ask {
            Ask::WarmUp => self.issue(Thing::WarmUp),
            Ask::Resolve { .. } => self.issue(Thing::Resolve),
            Ask::Prepare { .. } => self.issue(Thing::Prepare),
            Ask::Start { .. } => {
                self.process = true;
                self.issue(Thing::Postmaster);
            }
            Ask::Apply { .. } => self.issue(Thing::Apply),
            Ask::Promote { .. } => self.issue(Thing::Promote),
            Ask::CheckIdle => self.issue(Thing::CheckIdle),
            Ask::Fetch { .. } => self.issue(Thing::Fetch),
            Ask::Sweep => self.issue(Thing::Sweep),
            Ask::FinalSync { .. } => self.issue(Thing::FinalSync),
            Ask::Arm(timer, _) => self.issue(Thing::Timer(timer)),
            Ask::Exit(_) => self.exited = true,
            Ask::Stop(_) | Ask::Reload | Ask::Cancel(_) | Ask::Reply(..) => {}
        }
    }

    /// Cancels every live item of these kinds.
    fn cancel(&mut self, things: &[Thing]) {
        let doomed: Vec<Item> = self.live.iter().copied().filter(|item| things.contains(&item.0)).collect();
        for item in doomed {
            self.live.remove(&item);
            self.asks.push(Ask::Cancel(item));
        }
    }

    fn reply(&mut self, request: u64, reply: Reply) {
        self.ask(Ask::Reply(request, reply));
    }

    fn new_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    fn new_spec(&mut self, final_sync: bool) -> Spec {
        self.revisions += 1;
        Spec { revision: self.revisions, final_sync }
    }

    fn refuse(&mut self, request: u64, refusal: Refusal) -> Say {
        let status = self.status;
        self.reply(request, Reply::Refused { refusal, status });
        Say::Refused(refusal)
    }

    fn answer_configure(&mut self, reply: Reply) {
        if let Some(request) = self.configure.take() {
            self.reply(request, reply);
        }
    }

    /// The error, and the latest of what met it.
    fn note(&mut self, fault: FaultKind, thing: Thing) {
        self.fault = self.item(thing, 0).map(|item| (fault, item));
    }

    fn wanted(&self) -> Spec {
        self.wanted.expect("a spec is wanted wherever this is asked")
    }

    // ---- requests and signals ----------------------------------------------------------------------------

    fn booted(&mut self, spec: Option<bool>) -> Say {
        if self.booted || self.status != S::Empty {
            return Say::Stale;
        }
        self.booted = true;
        match spec {
            None => self.ask(Ask::WarmUp),
            Some(final_sync) => {
                let spec = self.new_spec(final_sync);
                self.wanted = Some(spec);
                self.init();
            }
        }
        Say::Taken
    }

    /// Decisions: Empty, Running, and Failed while Postgres lives.
    fn configure(&mut self, final_sync: bool) -> Say {
        let request = self.new_request();
        let spec = self.new_spec(final_sync);
        match self.status {
            S::Running if self.promoting() => return self.refuse(request, Refusal::Promoting),
            S::Empty | S::Running => {}
            S::Failed if self.serves => {}
            _ => return self.refuse(request, Refusal::InvalidStatus),
        }
        // A latched refresh is done once after the present work, and this has just become the present work.
        self.latched = self.waits_for(Thing::Timer(Timer::LatchedRefresh));
        self.cancel(&[Thing::WarmUp, Thing::Timer(Timer::LatchedRefresh)]);
        self.status = S::ConfigurationPending;
        self.configure = Some(request);
        self.wanted = Some(spec);
        self.ask(Ask::Resolve { spec: spec.revision });
        Say::Taken
    }

    fn refresh(&mut self) -> Say {
        let request = self.new_request();
        match self.status {
            S::Empty
            | S::RefreshConfiguration
            | S::TerminationPendingFast
            | S::TerminationPendingImmediate
            | S::Terminated => self.refuse(request, Refusal::CannotRefresh),
            S::ConfigurationPending | S::Configuration => {
                self.latched = true;
                self.refuse(request, Refusal::CannotRefresh);
                Say::Latched(Some(Refusal::CannotRefresh))
            }
            S::Init | S::Running if self.status == S::Init || self.promoting() => {
                self.latched = true;
                self.reply(request, Reply::RefreshAccepted);
                Say::Latched(None)
            }
            S::RefreshConfigurationPending => {
                self.reply(request, Reply::RefreshAccepted);
                Say::Latched(None)
            }
            S::Failed if !self.serves && !self.readable() => {
                // Nothing may be started before what the last Postgres left is cleared up.
                self.gone.as_mut().expect("failed without Postgres").refresh = true;
                self.reply(request, Reply::RefreshAccepted);
                Say::Latched(None)
            }
            S::Failed if self.process && !self.serves => self.refuse(request, Refusal::PostmasterUnconfirmed),
            S::Init | S::Running | S::Failed => {
                self.reply(request, Reply::RefreshAccepted);
                self.begin_refresh();
                Say::Taken
            }
        }
    }

    /// As a refresh that nobody waits for; but it starts nothing.
    fn hint(&mut self) -> Say {
        match self.status {
            S::Failed if !self.serves => Say::Stale,
            S::Running if self.promoting() => {
                self.latched = true;
                Say::Latched(None)
            }
            S::Running | S::Failed => {
                self.begin_refresh();
                Say::Taken
            }
            S::ConfigurationPending | S::Configuration | S::Init => {
                self.latched = true;
                Say::Latched(None)
            }
            S::RefreshConfigurationPending => Say::Latched(None),
            _ => Say::Refused(Refusal::CannotRefresh),
        }
    }

    pub(super) fn begin_refresh(&mut self) {
        self.cancel(&[Thing::Timer(Timer::LatchedRefresh), Thing::Timer(Timer::FailedLinger)]);
        self.status = S::RefreshConfigurationPending;
        self.attempt = 0;
        self.latched = false;
        self.fetch();
    }

    fn fetch(&mut self) {
        let applied = self.applied.filter(|_| self.serves).map(|spec| spec.revision);
        self.ask(Ask::Fetch { applied });
    }

    fn reload(&mut self) -> Say {
        if self.serves {
            self.ask(Ask::Reload);
            Say::Taken
        } else {
            Say::Refused(Refusal::NothingToReload)
        }
    }

    // ---- results -------------------------------------------------------------------------------------------

    fn ended(&mut self, work: Thing, outcome: Outcome) -> Say {
        match (self.status, work, outcome) {
            (S::Empty, Thing::WarmUp, _) => {}
            (S::ConfigurationPending, Thing::Resolve, Outcome::Good) if self.serves => {
                self.status = S::Configuration;
                self.apply(false);
            }
            (S::ConfigurationPending, Thing::Resolve, Outcome::Good) => self.init(),
            (S::ConfigurationPending, Thing::Resolve, _) if self.serves => {
                self.fail_alive(FaultKind::SpecRejected(WORK_FAILS), work);
            }
            (S::ConfigurationPending, Thing::Resolve, _) => {
                self.fail_start(FaultKind::SpecRejected(WORK_FAILS), work);
            }

            (S::Init, Thing::Prepare, Outcome::Good) => {
                if self.retries > 0 {
                    self.fault = None;
                }
                let spec = self.wanted().revision;
                self.ask(Ask::Start { spec });
                self.ask(Ask::Arm(Timer::StartDeadline, self.policy.start));
            }
            (S::Init, Thing::Prepare, Outcome::Bad) if self.retries < self.policy.storage_retries => {
                self.note(FaultKind::StorageFailed(WORK_FAILS), work);
                // Half a second, and half as much again each time.
                let nanos = 500_000_000 * 3_u64.pow(self.retries.into()) / 2_u64.pow(self.retries.into());
                self.retries += 1;
                self.ask(Ask::Arm(Timer::StorageBackoff, Duration::from_nanos(nanos)));
            }
            (S::Init, Thing::Prepare, _) => {
                let class = if outcome == Outcome::Worse { WORSE } else { WORK_FAILS };
                self.fail_start(FaultKind::StorageFailed(class), work);
            }
            (S::Init, Thing::Apply, Outcome::Good) => self.succeed(),
            (S::Init, Thing::Apply, _) => {
                self.note(FaultKind::ApplyFailed(WORK_FAILS), work);
                self.abandon(StopMode::Fast);
            }

            (S::Configuration, Thing::Apply, Outcome::Good) => self.succeed(),
            (S::Configuration, Thing::Apply, _) => self.fail_alive(FaultKind::ApplyFailed(WORK_FAILS), work),

            (S::Running, Thing::CheckIdle, _) => self.looked(outcome),
            (S::Running, Thing::Promote, _) => self.promoted(outcome == Outcome::Good),
            (S::Running, Thing::Apply, _) => self.promoted_applied(outcome == Outcome::Good),

            (S::RefreshConfigurationPending, Thing::Fetch, Outcome::Found { same, final_sync }) => {
                let spec = self.new_spec(final_sync);
                self.found(spec, same);
            }
            (S::RefreshConfigurationPending, Thing::Fetch, Outcome::NoSpec) => self.go_down(Ending::Detached),
            (S::RefreshConfigurationPending, Thing::Fetch, _) if self.goes_before_refresh() => {
                self.go_before_refresh();
            }
            (S::RefreshConfigurationPending, Thing::Fetch, _) => {
                self.back_off(FaultKind::FetchFailed(WORK_FAILS), work);
            }
            (S::RefreshConfiguration, Thing::Apply, Outcome::Good) => self.succeed(),
            (S::RefreshConfiguration, Thing::Apply, _) => {
                self.status = S::RefreshConfigurationPending;
                self.back_off(FaultKind::ApplyFailed(WORK_FAILS), work);
            }
            _ => return self.down_ended(work, outcome),
        }
        Say::Taken
    }

    /// Pageservers are compared with what was applied; what is wanted and not applied is applied again.
    fn found(&mut self, spec: Spec, same: bool) {
        if !self.serves {
            self.wanted = Some(spec);
            return self.init();
        }
        let (wanted, pushed) = match self.unapplied {
            None if same => {
                self.status = S::Running;
                self.fault = None;
                return;
            }
            Some((pushed, true)) if same => (pushed, true),
            _ => (spec, false),
        };
        self.wanted = Some(wanted);
        self.unapplied = Some((wanted, pushed));
        self.status = S::RefreshConfiguration;
        self.apply(false);
    }

    fn back_off(&mut self, fault: FaultKind, thing: Thing) {
        self.note(fault, thing);
        let pause = self
            .policy
            .refresh_backoff
            .saturating_mul(1 << self.attempt)
            .min(self.policy.refresh_backoff_cap);
        self.attempt = (self.attempt + 1).min(30);
        self.ask(Ask::Arm(Timer::RefreshBackoff, pause));
    }

    pub(super) fn init(&mut self) {
        self.status = S::Init;
        self.gone = None;
        self.retries = 0;
        self.prepare();
    }

    fn prepare(&mut self) {
        let spec = self.wanted().revision;
        // Once Postgres has served here, data may live only here, whatever brought about the new start.
        let restart = self.applied.is_some();
        self.ask(Ask::Prepare { spec, restart });
    }

    fn apply(&mut self, first: bool) {
        let spec = self.wanted().revision;
        self.ask(Ask::Apply { spec, first });
    }

    /// What was wanted is applied.
    fn succeed(&mut self) {
        self.status = S::Running;
        self.serves = true;
        self.applied = self.wanted;
        self.unapplied = None;
        self.fault = None;
        self.answer_configure(Reply::Configured);
        self.arm_latched();
    }

    fn arm_latched(&mut self) {
        if std::mem::take(&mut self.latched) {
            self.ask(Ask::Arm(Timer::LatchedRefresh, Duration::ZERO));
        }
    }

    /// Postgres serves on with what it had.
    fn fail_alive(&mut self, fault: FaultKind, thing: Thing) {
        self.status = S::Failed;
        self.note(fault, thing);
        self.unapplied = self.wanted.map(|spec| (spec, true));
        self.answer_configure(Reply::ConfigureFailed);
        self.arm_latched();
    }

    fn fired(&mut self, timer: Timer) -> Say {
        match (self.status, timer) {
            (_, Timer::RestartForgiven) => self.restarts -= 1,
            (S::Running, Timer::LatchedRefresh) if self.promoting() => {
                self.latched = true;
                return Say::Latched(None);
            }
            (S::Running | S::Failed, Timer::LatchedRefresh) => self.begin_refresh(),
            (S::RefreshConfigurationPending, Timer::RefreshBackoff) => self.fetch(),
            (S::Init, Timer::StorageBackoff) => self.prepare(),
            (S::Init, Timer::StartDeadline) => {
                self.note(FaultKind::StartTimedOut, Thing::Postmaster);
                self.abandon(StopMode::Immediate);
            }
            (S::Failed, Timer::FailedLinger) => {
                let reason = self.gone.expect("failed without Postgres").reason;
                self.ask(Ask::Exit(reason));
            }
            (S::Terminated, Timer::TerminatedLinger) => {
                let reason = self.down.as_ref().expect("terminated by a shutdown").reason;
                self.ask(Ask::Exit(reason));
            }
            _ => return self.down_fired(timer),
        }
        Say::Taken
    }

    // ---- the postmaster ------------------------------------------------------------------------------------

    fn postmaster(&mut self, news: News, back: u8) -> Say {
        let Some(item) = self.item(Thing::Postmaster, back).filter(|item| self.live.contains(item)) else {
            return Say::Stale;
        };
        let deadline = Thing::Timer(Timer::StartDeadline);
        match news {
            News::Progressed if self.status == S::Init && self.waits_for(deadline) => {
                self.cancel(&[deadline]);
                self.ask(Ask::Arm(Timer::StartDeadline, self.policy.start));
                Say::Taken
            }
            News::Ready if self.status == S::Init && self.waits_for(deadline) => {
                self.cancel(&[deadline]);
                self.ready = true;
                self.apply(true);
                Say::Taken
            }
            News::Activity if self.serves => Say::Taken,
            News::Progressed | News::Ready | News::Activity => Say::Stale,
            News::SpawnFailed => {
                self.live.remove(&item);
                self.lost(None)
            }
            News::Exited(exit) => {
                self.live.remove(&item);
                self.lost(Some(exit))
            }
        }
    }
}
