//! Runs a machine against the reference table and against invariants that need no table, and plays its world.
#![allow(dead_code, unreachable_pub, reason = "shared by test binaries, each of which uses its own part")]

use std::collections::BTreeMap;

use compute_states::{
    ComputeStatus, Effect, Epoch, Event, Exit, FetchedSpec, Machine, Policy, RequestId, RestartPolicy,
    Revision, SpecOutline, TerminateMode, Timer, Verdict,
};

use crate::reference::{
    Ask, END_OF_LOG, Input, Item, News, Node, Outcome, SPAWN_FAILS, Say, Spec, Thing, WORK_FAILS, WORSE,
    log_of,
};

pub mod watch;

use watch::Watch;

/// What a subject made of one event.
#[derive(Clone, Debug)]
pub struct Reaction {
    pub verdict: Verdict,
    pub has_verdict: bool,
    pub effects: Vec<Effect>,
    /// Whether anything about the machine is different now.
    pub changed: bool,
}

/// The machine, or something that behaves like a broken one.
pub trait Subject: Clone {
    fn start(&mut self, policy: Policy);
    fn handle(&mut self, event: &Event) -> Reaction;
    fn machine(&self) -> &Machine;
}

/// The machine as it is.
#[derive(Clone, Debug)]
pub struct Real(pub Machine);

impl Subject for Real {
    fn start(&mut self, policy: Policy) {
        self.0 = Machine::new(policy);
    }

    fn handle(&mut self, event: &Event) -> Reaction {
        react(&mut self.0, event)
    }

    fn machine(&self) -> &Machine {
        &self.0
    }
}

/// The machine's own reaction.
pub fn react(machine: &mut Machine, event: &Event) -> Reaction {
    let before = machine.clone();
    let step = machine.handle(event);
    Reaction {
        verdict: step.verdict(),
        has_verdict: step.has_verdict(),
        effects: step.effects().to_vec(),
        changed: *machine != before,
    }
}

/// Who found something wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Oracle {
    Table,
    Invariants,
}

#[derive(Clone, Debug)]
pub struct Complaint {
    pub by: Oracle,
    pub text: String,
}

/// Few waiters and few retries, so that histories reach the limits; everything else as in production.
pub fn policy(restart: bool) -> Policy {
    Policy {
        restart: if restart { RestartPolicy::OnFailure } else { RestartPolicy::Never },
        restart_budget: 2,
        max_waiters: 3,
        storage_retries: 2,
        ..Policy::default()
    }
}

/// One run: a subject, the reference beside it, and what the world knows.
#[derive(Clone, Debug)]
pub struct Run<S> {
    pub subject: S,
    pub node: Node,
    issued: BTreeMap<Thing, Vec<Epoch>>,
    watch: Watch,
    requests: u64,
    revisions: u64,
    /// Which oracles may complain.
    pub oracles: [bool; 2],
}

impl<S: Subject> Run<S> {
    pub fn new(mut subject: S, restart: bool) -> Self {
        let policy = policy(restart);
        subject.start(policy);
        Run {
            subject,
            node: Node::new(policy),
            issued: BTreeMap::new(),
            watch: Watch::new(policy),
            requests: 0,
            revisions: 0,
            oracles: [true, true],
        }
    }

    /// The same moment with another subject in it, which has to be in the same state.
    pub fn with<T>(&self, subject: T) -> Run<T> {
        Run {
            subject,
            node: self.node.clone(),
            issued: self.issued.clone(),
            watch: self.watch.clone(),
            requests: self.requests,
            revisions: self.revisions,
            oracles: self.oracles,
        }
    }

    /// One step of subject and reference, and everything that can be said against it.
    pub fn step(&mut self, input: &Input) -> Result<(), Complaint> {
        if let Input::NewProcess { restart } = *input {
            let policy = policy(restart);
            self.subject.start(policy);
            self.node = Node::new(policy);
            self.watch = Watch::new(policy);
            self.issued.clear();
            self.requests = 0;
            self.revisions = 0;
            return Ok(());
        }
        let event = self.event(input);
        let before = self.subject.machine().status();
        let reaction = self.subject.handle(&event);
        let row = self.node.row(input);
        let asks = self.asks(&reaction.effects);
        let machine = self.subject.machine();
        let status = machine.status();
        let fault = machine.fault().map(|fault| (fault.kind, self.name(fault.epoch)));
        let complaint = |by, text: String| {
            let text = format!("{before} x {event:?} -> {status}, {:?}: {text}", reaction.verdict);
            Err(Complaint { by, text })
        };
        if self.oracles[0] {
            let mut expected = row.asks.clone();
            expected.sort();
            let mut got = match asks {
                Ok(asks) => asks,
                Err(text) => return complaint(Oracle::Table, text),
            };
            got.sort();
            let noted = row.fault.map(|(kind, item)| (kind, Some(item)));
            if (status, fault, say(reaction.verdict)) != (row.status, noted, row.say) {
                return complaint(Oracle::Table, format!("the table says {row:?}, fault {fault:?}"));
            }
            if got != expected {
                return complaint(Oracle::Table, format!("asked {got:?}, the table asks {expected:?}"));
            }
        }
        let found = self.watch.judge(&event, before, status, fault.is_some(), &reaction);
        if self.oracles[1]
            && let Err(text) = found
        {
            return complaint(Oracle::Invariants, text);
        }
        Ok(())
    }

    fn epoch(&self, thing: Thing, back: u8) -> Epoch {
        let issued = self.issued.get(&thing).map_or(&[][..], Vec::as_slice);
        let place = issued.len().checked_sub(1 + usize::from(back));
        place.map_or(Epoch(u64::MAX), |place| issued[place])
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn spec(&mut self, final_sync: bool) -> SpecOutline {
        self.revisions += 1;
        SpecOutline { revision: Revision(self.revisions), final_sync }
    }

    /// The event an input stands for, with the subject's own numbers.
    pub fn event(&mut self, input: &Input) -> Event {
        match *input {
            Input::Booted { spec } => {
                // A second boot is no boot, and brings nothing.
                let spec = spec.map(|final_sync| match self.node.booted {
                    true => SpecOutline { revision: Revision(u64::MAX), final_sync },
                    false => self.spec(final_sync),
                });
                Event::Booted { spec }
            }
            Input::Configure { final_sync } => {
                Event::ConfigureRequested { request: self.request(), spec: self.spec(final_sync) }
            }
            Input::Terminate(mode) => Event::TerminateRequested { request: self.request(), mode },
            Input::TerminateIfIdle(mode) => Event::TerminateIfIdleRequested { request: self.request(), mode },
            Input::Promote { final_sync } => {
                let (request, spec) = (self.request(), self.spec(final_sync));
                let lsn = log_of(Spec { revision: spec.revision.0, final_sync });
                Event::PromoteRequested { request, spec, lsn }
            }
            Input::Refresh => Event::RefreshRequested { request: self.request() },
            Input::Hint => Event::RefreshHinted,
            Input::Signal => Event::StopSignalled,
            Input::Reload => Event::ReloadSignalled,
            Input::Ended { work, outcome, back } => {
                let epoch = self.epoch(work, back);
                self.result(work, outcome, epoch, back)
            }
            Input::Postmaster { news, back } => {
                let postmaster = self.epoch(Thing::Postmaster, back);
                match news {
                    News::SpawnFailed => Event::SpawnFailed { postmaster, class: SPAWN_FAILS },
                    News::Progressed => Event::PostmasterProgressed { postmaster },
                    News::Ready => Event::PostmasterReady { postmaster },
                    News::Exited(exit) => Event::PostmasterExited { postmaster, exit },
                    News::Activity => Event::ActivityObserved { postmaster, busy: true },
                }
            }
            Input::Fired { timer, back } => {
                Event::TimerFired { epoch: self.epoch(Thing::Timer(timer), back) }
            }
            Input::NewProcess { .. } => unreachable!("not an event"),
        }
    }

    fn result(&mut self, work: Thing, outcome: Outcome, epoch: Epoch, back: u8) -> Event {
        let good = outcome == Outcome::Good;
        let class = WORK_FAILS;
        match work {
            Thing::WarmUp => Event::WarmUpEnded { epoch },
            Thing::Resolve if good => Event::SpecResolved { epoch },
            Thing::Resolve => Event::SpecRejected { epoch, class },
            Thing::Prepare if good => Event::StoragePrepared { epoch },
            Thing::Prepare => {
                let class = if outcome == Outcome::Worse { WORSE } else { WORK_FAILS };
                Event::StorageFailed { epoch, class }
            }
            Thing::Apply if good => Event::SpecApplied { epoch },
            Thing::Apply => Event::ApplyFailed { epoch, class },
            Thing::Promote if good => Event::Promoted { epoch },
            Thing::Promote => Event::PromoteFailed { epoch, class },
            Thing::CheckIdle => match outcome {
                Outcome::Good => Event::FoundIdle { epoch },
                Outcome::Worse => Event::FoundBusy { epoch },
                _ => Event::IdleCheckFailed { epoch, class },
            },
            Thing::Fetch => {
                let fetched = match outcome {
                    Outcome::Found { same, final_sync } => {
                        // Only a fetch that is waited for brings a new document.
                        let awaited =
                            self.node.item(work, back).is_some_and(|item| self.node.live.contains(&item));
                        let stale = SpecOutline { revision: Revision(u64::MAX), final_sync };
                        let spec = if awaited { self.spec(final_sync) } else { stale };
                        FetchedSpec::Spec { spec, same_pageservers: same }
                    }
                    Outcome::NoSpec => FetchedSpec::NoSpec,
                    Outcome::Good | Outcome::Bad | Outcome::Worse => {
                        return Event::FetchFailed { epoch, class };
                    }
                };
                Event::SpecFetched { epoch, fetched }
            }
            Thing::Sweep => Event::Swept { epoch },
            Thing::FinalSync if good => Event::FinalSyncDone { epoch, lsn: END_OF_LOG },
            Thing::FinalSync => Event::FinalSyncFailed { epoch, class },
            Thing::Postmaster | Thing::Timer(_) => unreachable!("not work"),
        }
    }

    /// The effects in the table's words.
    fn asks(&mut self, effects: &[Effect]) -> Result<Vec<Ask>, String> {
        let mut asks = Vec::new();
        for effect in effects {
            let (thing, ask) = match *effect {
                Effect::WarmUp { epoch } => (Some((Thing::WarmUp, epoch)), Ask::WarmUp),
                Effect::ResolveSpec { epoch, spec } => {
                    (Some((Thing::Resolve, epoch)), Ask::Resolve { spec: spec.0 })
                }
                Effect::PrepareStorage { epoch, spec, restart } => {
                    (Some((Thing::Prepare, epoch)), Ask::Prepare { spec: spec.0, restart })
                }
                Effect::StartPostmaster { postmaster, spec } => {
                    (Some((Thing::Postmaster, postmaster)), Ask::Start { spec: spec.0 })
                }
                Effect::ApplySpec { epoch, spec, first, .. } => {
                    (Some((Thing::Apply, epoch)), Ask::Apply { spec: spec.0, first })
                }
                Effect::Promote { epoch, spec, lsn, .. } => {
                    (Some((Thing::Promote, epoch)), Ask::Promote { spec: spec.0, lsn })
                }
                Effect::CheckIdle { epoch, .. } => (Some((Thing::CheckIdle, epoch)), Ask::CheckIdle),
                Effect::FetchSpec { epoch, applied } => {
                    (Some((Thing::Fetch, epoch)), Ask::Fetch { applied: applied.map(|spec| spec.0) })
                }
                Effect::StopPostmaster { mode, .. } => (None, Ask::Stop(mode)),
                Effect::ReloadPostmaster { .. } => (None, Ask::Reload),
                Effect::Sweep { epoch } => (Some((Thing::Sweep, epoch)), Ask::Sweep),
                Effect::FinalSync { epoch, spec } => {
                    (Some((Thing::FinalSync, epoch)), Ask::FinalSync { spec: spec.0 })
                }
                Effect::Cancel { epoch } => match self.name(epoch) {
                    Some(item) => (None, Ask::Cancel(item)),
                    None => return Err(format!("cancels {epoch:?}, which never was")),
                },
                Effect::ArmTimer { epoch, timer, after } => {
                    (Some((Thing::Timer(timer), epoch)), Ask::Arm(timer, after))
                }
                Effect::Reply { request, reply } => (None, Ask::Reply(request.0, reply)),
                Effect::Exit { reason } => (None, Ask::Exit(reason)),
            };
            if let Some((thing, epoch)) = thing {
                self.issued.entry(thing).or_default().push(epoch);
            }
            asks.push(ask);
        }
        Ok(asks)
    }

    fn name(&self, epoch: Epoch) -> Option<Item> {
        self.issued.iter().find_map(|(thing, epochs)| {
            epochs.iter().position(|issued| *issued == epoch).map(|place| (*thing, place as u64))
        })
    }

    /// The same event with every outdated number replaced by the present one: what a machine that checks no
    /// epochs would take it for.
    pub fn refreshed(&mut self, input: &Input) -> Event {
        let mut input = *input;
        if let Input::Ended { back, .. } | Input::Postmaster { back, .. } | Input::Fired { back, .. } =
            &mut input
        {
            *back = 0;
        }
        self.event(&input)
    }
}

fn say(verdict: Verdict) -> Say {
    match verdict {
        Verdict::Moved(_) => Say::Moved,
        Verdict::Taken(_) => Say::Taken,
        Verdict::Latched { told, .. } => Say::Latched(told),
        Verdict::Refused(refusal) => Say::Refused(refusal),
        Verdict::Stale => Say::Stale,
    }
}

/// What a world that keeps to the contract of the effects can do: the first event is the boot, after its exit a
/// process sees no more (the status of a terminated one can still be asked for), and what has accepted connections
/// was spawned.
pub fn possible(node: &Node, input: &Input) -> bool {
    match input {
        Input::NewProcess { .. } => true,
        Input::Booted { .. } if !node.booted => true,
        Input::Postmaster { news: News::SpawnFailed, back: 0 } if node.ready => false,
        _ => node.booted && (!node.exited || node.status == ComputeStatus::Terminated),
    }
}

/// What the world may do next, and how often. Whatever is waited for is answered most; late, repeated and
/// outdated answers come in between.
pub fn menu(node: &Node) -> Vec<(u32, Input)> {
    if !node.booted {
        return [None, Some(false), Some(true)].map(|spec| (1, Input::Booted { spec })).to_vec();
    }
    let mut menu = Vec::with_capacity(128);
    if node.exited {
        menu.extend([(20, Input::NewProcess { restart: true }), (20, Input::NewProcess { restart: false })]);
        if node.status != ComputeStatus::Terminated {
            return menu;
        }
    }
    menu.extend([
        (8, Input::Configure { final_sync: false }),
        (8, Input::Configure { final_sync: true }),
        (4, Input::Promote { final_sync: false }),
        (4, Input::Promote { final_sync: true }),
        (5, Input::TerminateIfIdle(TerminateMode::Fast)),
        (3, Input::TerminateIfIdle(TerminateMode::Immediate)),
        (12, Input::Refresh),
        (4, Input::Hint),
        (2, Input::Reload),
        (2, Input::Signal),
        (2, Input::Terminate(TerminateMode::Fast)),
        (1, Input::Terminate(TerminateMode::Immediate)),
        (1, Input::Booted { spec: Some(true) }),
    ]);
    let outcomes = |work| -> &[(u32, Outcome)] {
        const FOUND: [(u32, Outcome); 6] = [
            (2, Outcome::Found { same: true, final_sync: true }),
            (2, Outcome::Found { same: true, final_sync: false }),
            (2, Outcome::Found { same: false, final_sync: true }),
            (2, Outcome::Found { same: false, final_sync: false }),
            (1, Outcome::NoSpec),
            (3, Outcome::Bad),
        ];
        match work {
            Thing::Fetch => &FOUND,
            Thing::CheckIdle => &[(1, Outcome::Good), (3, Outcome::Bad), (4, Outcome::Worse)],
            Thing::Prepare => &[(4, Outcome::Good), (3, Outcome::Bad), (1, Outcome::Worse)],
            _ => &[(4, Outcome::Good), (1, Outcome::Bad)],
        }
    };
    let work = [
        Thing::WarmUp,
        Thing::Resolve,
        Thing::Prepare,
        Thing::Apply,
        Thing::Promote,
        Thing::CheckIdle,
        Thing::Fetch,
        Thing::Sweep,
        Thing::FinalSync,
    ];
    for thing in work {
        for back in 0..=2_u8 {
            let item = node.item(thing, back);
            let awaited = item.is_some_and(|item| node.live.contains(&item)) || item == node.winding;
            let often = if item.is_none() && back > 0 {
                continue;
            } else if awaited && item.is_some() {
                10
            } else {
                u32::from(item.is_some() || back == 0)
            };
            for &(weight, outcome) in outcomes(thing) {
                let weight = if often == 10 { often * weight } else { 1 };
                menu.push((weight, Input::Ended { work: thing, outcome, back }));
            }
        }
    }
    for back in 0..=1_u8 {
        let alive = node.item(Thing::Postmaster, back).is_some_and(|item| node.live.contains(&item));
        let often = |weight: u32| if alive { weight } else { 1 };
        let leaving = node.down.is_some() || node.abandoned.is_some();
        let exits = if leaving { 20 } else { 2 };
        let news = [
            (often(10), News::Ready),
            (often(4), News::Progressed),
            (often(2), News::Activity),
            (often(exits), News::Exited(Exit::Code(0))),
            (often(exits), News::Exited(Exit::Signal(9))),
            (1, News::Exited(Exit::Code(3))),
            (1, News::SpawnFailed),
        ];
        menu.extend(news.map(|(weight, news)| (weight, Input::Postmaster { news, back })));
    }
    let timers = [
        (4, Timer::StartDeadline),
        (12, Timer::StopDeadline),
        (4, Timer::SweepDeadline),
        (8, Timer::FinalSyncDeadline),
        (20, Timer::StorageBackoff),
        (20, Timer::RefreshBackoff),
        (20, Timer::LatchedRefresh),
        (4, Timer::FailedLinger),
        (20, Timer::TerminatedLinger),
        (2, Timer::RestartForgiven),
    ];
    for (often, timer) in timers {
        for back in 0..=1_u8 {
            let armed = node.item(Thing::Timer(timer), back).is_some_and(|item| node.live.contains(&item));
            menu.push((if armed { often } else { 1 }, Input::Fired { timer, back }));
        }
    }
    menu.retain(|(_, input)| possible(node, input));
    menu
}

/// The entry of a menu that a number stands for.
pub fn pick(menu: &[(u32, Input)], number: u64) -> Input {
    let total: u64 = menu.iter().map(|(weight, _)| u64::from(*weight)).sum();
    let mut rest = number % total;
    for (weight, input) in menu {
        match rest.checked_sub(u64::from(*weight)) {
            Some(less) => rest = less,
            None => return *input,
        }
    }
    unreachable!("the rest is less than the total")
}

/// SplitMix64: the same numbers for the same seed, everywhere.
#[derive(Clone, Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
