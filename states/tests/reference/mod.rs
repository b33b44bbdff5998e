//! What the decisions require of every event in every status, written down a second time.
//!
//! This knows nothing of `statig`, of state structs or of epochs. It was written from the decisions and from the
//! vocabulary of events and effects before the machine's states were read, so that a misreading on one side shows as a
//! difference. It deals in *ordinals*: the third fetch is `(Thing::Fetch, 2)`, whatever epoch the machine gave it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use compute_states::{
    ComputeStatus, Exit, ExitReason, Policy, Refusal, Reply, RestartPolicy, StopMode, TerminateMode,
    TerminationResult, Timer,
};

mod down;

/// Whatever the machine gives an epoch to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thing {
    WarmUp,
    Resolve,
    Prepare,
    Apply,
    Fetch,
    Sweep,
    FinalSync,
    Postmaster,
    Timer(Timer),
}

/// A thing and which one of its kind.
pub type Item = (Thing, u64);

/// How a piece of work ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    Good,
    Bad,
    /// Fetched a spec; `same` pageservers as the one applied last.
    Found {
        same: bool,
        final_sync: bool,
    },
    NoSpec,
}

/// What is reported of a postmaster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum News {
    SpawnFailed,
    Progressed,
    Ready,
    Exited(Exit),
    Activity,
}

/// An event, by ordinals: `back` 0 is the latest of its kind, 1 the one before, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    Booted { spec: Option<bool> },
    Configure { final_sync: bool },
    Terminate(TerminateMode),
    Refresh,
    Hint,
    Signal,
    Reload,
    Ended { work: Thing, outcome: Outcome, back: u8 },
    Postmaster { news: News, back: u8 },
    Fired { timer: Timer, back: u8 },
    /// Not an event: the process is gone, and a new one begins.
    NewProcess { restart: bool },
}

/// What must be requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ask {
    WarmUp,
    Resolve { spec: u64 },
    Prepare { spec: u64, restart: bool },
    Start { spec: u64 },
    Apply { spec: u64, first: bool },
    Fetch { applied: Option<u64> },
    Stop(StopMode),
    Reload,
    Sweep,
    FinalSync { spec: u64 },
    Cancel(Item),
    Arm(Timer, Duration),
    Reply(u64, Reply),
    Exit(ExitReason),
}

/// What must be said of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Say {
    Moved,
    Taken,
    Latched(Option<Refusal>),
    Refused(Refusal),
    Stale,
}

/// The outcome the table demands of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub status: ComputeStatus,
    pub fault: bool,
    pub say: Say,
    /// In no particular order.
    pub asks: Vec<Ask>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    pub revision: u64,
    pub final_sync: bool,
}

/// How far a shutdown has come, and how it ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Down {
    /// Somebody waits for, or asked for, the final sync.
    pub asked: bool,
    pub signals: u8,
    pub linger: bool,
    pub sync: Option<Spec>,
    pub reason: ExitReason,
    pub rung: Option<StopMode>,
    pub killed: bool,
}

/// The compute as the decisions see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub policy: Policy,
    pub booted: bool,
    pub status: ComputeStatus,
    pub fault: bool,
    pub wanted: Option<Spec>,
    pub applied: Option<Spec>,
    /// There is a process, or one is being spawned.
    pub process: bool,
    /// It serves: it has been ready, and nobody told it to go.
    pub serves: bool,
    /// Postgres was up at least once, so there may be something to synchronise.
    pub restarts: u8,
    pub attempt: u8,
    pub latched: bool,
    pub configure: Option<u64>,
    pub waiters: Vec<u64>,
    pub down: Option<Down>,
    pub lsn: TerminationResult,
    pub failed_as: Option<ExitReason>,
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
            fault: false,
            wanted: None,
            applied: None,
            process: false,
            serves: false,
            restarts: 0,
            attempt: 0,
            latched: false,
            configure: None,
            waiters: Vec::new(),
            down: None,
            lsn: TerminationResult::Stopped(None),
            failed_as: None,
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
            Input::Refresh => self.refresh(),
            Input::Hint => self.hint(),
            Input::Signal => self.signal(),
            Input::Reload => self.reload(),
            Input::Ended { work, outcome, back } => match self.taken(work, back) {
                Some(()) => self.ended(work, outcome),
                None => Say::Stale,
            },
            Input::Postmaster { news, back } => self.postmaster(news, back),
            Input::Fired { timer, back } => match self.taken(Thing::Timer(timer), back) {
                Some(()) => self.fired(timer),
                None => Say::Stale,
            },
            Input::NewProcess { .. } => unreachable!("the harness starts new processes"),
        };
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
                self.init(false);
            }
        }
        Say::Taken
    }

    /// Decisions: Empty, Running, and Failed while Postgres lives.
    fn configure(&mut self, final_sync: bool) -> Say {
        let request = self.new_request();
        let spec = self.new_spec(final_sync);
        match self.status {
            S::Empty | S::Running => {}
            S::Failed if self.serves => {}
            _ => return self.refuse(request, Refusal::InvalidStatus),
        }
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
            S::Init => {
                self.latched = true;
                self.reply(request, Reply::RefreshAccepted);
                Say::Latched(None)
            }
            S::RefreshConfigurationPending => {
                self.reply(request, Reply::RefreshAccepted);
                Say::Latched(None)
            }
            S::Failed if self.process && !self.serves => self.refuse(request, Refusal::PostmasterUnconfirmed),
            S::Running | S::Failed => {
                self.reply(request, Reply::RefreshAccepted);
                self.begin_refresh();
                Say::Taken
            }
        }
    }

    /// As a refresh that nobody waits for.
    fn hint(&mut self) -> Say {
        match self.status {
            S::Running => {
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

    fn begin_refresh(&mut self) {
        self.cancel(&[Thing::Timer(Timer::LatchedRefresh), Thing::Timer(Timer::FailedLinger)]);
        self.status = S::RefreshConfigurationPending;
        self.attempt = 0;
        self.latched = false;
        self.fetch();
    }

    fn fetch(&mut self) {
        let applied = self.applied.map(|spec| spec.revision);
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
            (S::ConfigurationPending, Thing::Resolve, Outcome::Good) if self.process => {
                self.status = S::Configuration;
                self.apply(false);
            }
            (S::ConfigurationPending, Thing::Resolve, Outcome::Good) => self.init(false),
            (S::ConfigurationPending, Thing::Resolve, Outcome::Bad) if self.process => self.fail_alive(),
            (S::ConfigurationPending, Thing::Resolve, Outcome::Bad) => self.fail_start(),

            (S::Init, Thing::Prepare, Outcome::Good) => {
                let spec = self.wanted().revision;
                self.ask(Ask::Start { spec });
                self.ask(Ask::Arm(Timer::StartDeadline, self.policy.start));
            }
            (S::Init, Thing::Prepare, Outcome::Bad) => self.fail_start(),
            (S::Init, Thing::Apply, Outcome::Good) => self.succeed(),
            (S::Init, Thing::Apply, Outcome::Bad) => self.fail_start(),

            (S::Configuration, Thing::Apply, Outcome::Good) => self.succeed(),
            (S::Configuration, Thing::Apply, Outcome::Bad) => self.fail_alive(),

            (S::RefreshConfigurationPending, Thing::Fetch, Outcome::Found { same, final_sync }) => {
                let spec = self.new_spec(final_sync);
                if !self.process {
                    self.wanted = Some(spec);
                    self.init(false);
                } else if same && self.wanted == self.applied {
                    self.status = S::Running;
                } else {
                    self.wanted = Some(spec);
                    self.status = S::RefreshConfiguration;
                    self.apply(false);
                }
            }
            (S::RefreshConfigurationPending, Thing::Fetch, Outcome::NoSpec) => {
                self.go_down(false, ExitReason::Detached, true);
            }
            (S::RefreshConfigurationPending, Thing::Fetch, _) => self.back_off(),
            (S::RefreshConfiguration, Thing::Apply, Outcome::Good) => self.succeed(),
            (S::RefreshConfiguration, Thing::Apply, Outcome::Bad) => {
                self.status = S::RefreshConfigurationPending;
                self.back_off();
            }
            _ => return self.down_ended(work, outcome),
        }
        Say::Taken
    }

    fn back_off(&mut self) {
        let pause = self
            .policy
            .refresh_backoff
            .saturating_mul(1 << self.attempt.min(20))
            .min(self.policy.refresh_backoff_cap);
        self.attempt = self.attempt.saturating_add(1);
        self.ask(Ask::Arm(Timer::RefreshBackoff, pause));
    }

    fn init(&mut self, restart: bool) {
        self.status = S::Init;
        let spec = self.wanted().revision;
        self.ask(Ask::Prepare { spec, restart });
    }

    fn apply(&mut self, first: bool) {
        let spec = self.wanted().revision;
        self.ask(Ask::Apply { spec, first });
    }

    /// What was wanted is applied.
    fn succeed(&mut self) {
        self.status = S::Running;
        self.applied = self.wanted;
        self.fault = false;
        self.answer_configure(Reply::Configured);
        if std::mem::take(&mut self.latched) {
            self.ask(Ask::Arm(Timer::LatchedRefresh, Duration::ZERO));
        }
    }

    /// Postgres serves on with what it had.
    fn fail_alive(&mut self) {
        self.status = S::Failed;
        self.fault = true;
        self.answer_configure(Reply::ConfigureFailed);
    }

    fn fired(&mut self, timer: Timer) -> Say {
        match (self.status, timer) {
            (_, Timer::RestartForgiven) => self.restarts -= 1,
            (S::Running, Timer::LatchedRefresh) => self.begin_refresh(),
            (S::RefreshConfigurationPending, Timer::RefreshBackoff) => self.fetch(),
            (S::Init, Timer::StartDeadline) => self.fail_start(),
            (S::Failed, Timer::FailedLinger) => {
                let reason = self.failed_as.unwrap_or(ExitReason::StartFailed);
                self.status = S::Terminated;
                self.ask(Ask::Exit(reason));
            }
            (S::Terminated, Timer::TerminatedLinger) => {
                let reason = self.down.as_ref().map_or(ExitReason::Stopped, |down| down.reason);
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
                self.serves = true;
                self.apply(true);
                Say::Taken
            }
            News::Activity if self.serves => Say::Taken,
            News::Progressed | News::Ready | News::Activity => Say::Stale,
            News::SpawnFailed | News::Exited(_) => {
                self.live.remove(&item);
                let served = std::mem::take(&mut self.serves);
                self.process = false;
                let exit = if let News::Exited(exit) = news { Some(exit) } else { None };
                self.gone(exit, served)
            }
        }
    }

    /// The restart policy, once a crash is visible.
    fn may_restart(&self) -> bool {
        self.policy.restart == RestartPolicy::OnFailure && self.restarts < self.policy.restart_budget
    }
}
