//! Model checking: the machine and a world that may answer in any order, late, twice, or never.
//!
//! Bounded by the number of requests, mishaps and repetitions a history may hold, not by depth: inside these bounds
//! every interleaving is looked at. The counts of states are printed with `--nocapture`.

use std::collections::BTreeSet;

use compute_states::promotion::Stage;
use compute_states::{
    ComputeStatus, Effect, Epoch, Event, Exit, ExitReason, FailureClass, FetchedSpec, Lsn, Machine, Policy,
    RequestId, RestartPolicy, Revision, SpecOutline, TerminateMode,
};
use stateright::{Checker, Model, Property};

/// What has not happened yet: work under way (told to stop or not), armed timers, results that may come again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    machine: Machine,
    work: BTreeSet<(Work, Epoch)>,
    timers: BTreeSet<Epoch>,
    alive: Option<Epoch>,
    was_ready: bool,
    /// Results that were delivered and may be delivered again.
    past: BTreeSet<Event>,
    asked: u8,
    owed: BTreeSet<RequestId>,
    mishaps: u8,
    repeats: u8,
    exited: Option<ExitReason>,
    wrong: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Work {
    WarmUp,
    Resolve,
    Prepare,
    Apply,
    Promote,
    CheckIdle,
    Fetch,
    Sweep,
    FinalSync,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Boot(bool),
    Deliver(Event),
    /// A result comes a second time.
    Again(Event),
}

struct Bounds {
    requests: u8,
    /// Failures, crashes, and timers that run out before what they limit.
    mishaps: u8,
    repeats: u8,
    restart: RestartPolicy,
}

impl World {
    fn note(&mut self, wrong: &'static str, holds: bool) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(wrong);
        }
    }

    fn deliver(&mut self, event: &Event) {
        match *event {
            Event::ConfigureRequested { request, .. }
            | Event::TerminateRequested { request, .. }
            | Event::TerminateIfIdleRequested { request, .. }
            | Event::PromoteRequested { request, .. }
            | Event::RefreshRequested { request } => {
                self.owed.insert(request);
            }
            _ => {}
        }
        let step = self.machine.handle(event);
        self.note("an event without a verdict", step.has_verdict());
        for effect in step.effects() {
            self.carry_out(*effect);
        }
        let status = self.machine.status();
        let serving = matches!(
            status,
            ComputeStatus::Running | ComputeStatus::Configuration | ComputeStatus::RefreshConfiguration
        );
        self.note("said to serve, and gone", !serving || self.alive.is_some());
        self.note(
            "an error while running",
            status != ComputeStatus::Running || self.machine.fault().is_none(),
        );
        let pending = status == ComputeStatus::RefreshConfigurationPending;
        let fetching = self.work.iter().any(|(work, _)| *work == Work::Fetch);
        let kept = pending && !self.machine.compute().promotion.waiting.is_empty();
        self.note("a promotion waits for a pause", !kept || fetching);
        self.note("a refresh without fetch or timer", !pending || fetching || !self.timers.is_empty());
        self.note("terminated and owing", status != ComputeStatus::Terminated || self.owed.is_empty());
    }

    fn carry_out(&mut self, effect: Effect) {
        let alone = self.alive.is_none();
        match effect {
            Effect::WarmUp { epoch } => self.begin(Work::WarmUp, epoch),
            Effect::ResolveSpec { epoch, .. } => self.begin(Work::Resolve, epoch),
            Effect::PrepareStorage { epoch, .. } => {
                self.note("storage is prepared under a postmaster", alone);
                self.begin(Work::Prepare, epoch);
            }
            Effect::StartPostmaster { postmaster, .. } => {
                self.note("a second postmaster", alone);
                self.alive = Some(postmaster);
                self.was_ready = false;
            }
            Effect::ApplySpec { epoch, postmaster, .. } => {
                self.note("a spec for no postmaster", self.alive == Some(postmaster));
                self.begin(Work::Apply, epoch);
            }
            Effect::Promote { epoch, postmaster, .. } => {
                self.note("no postmaster is promoted", self.alive == Some(postmaster));
                // What an earlier postmaster had left under way was cancelled, and ends when it ends.
                let beside = self.work.iter().any(|(work, other)| {
                    matches!(work, Work::Promote | Work::Apply | Work::Resolve) && *other > postmaster
                });
                self.note("promoted beside other work", !beside);
                self.begin(Work::Promote, epoch);
            }
            Effect::CheckIdle { epoch, postmaster } => {
                self.note("a look at no postmaster", self.alive == Some(postmaster));
                self.begin(Work::CheckIdle, epoch);
            }
            Effect::FetchSpec { epoch, .. } => self.begin(Work::Fetch, epoch),
            Effect::StopPostmaster { postmaster, .. } | Effect::ReloadPostmaster { postmaster } => {
                self.note("a signal for no postmaster", self.alive == Some(postmaster));
            }
            Effect::Sweep { epoch } => self.begin(Work::Sweep, epoch),
            Effect::FinalSync { epoch, .. } => {
                self.note("a sync beside a postmaster", alone);
                self.begin(Work::FinalSync, epoch);
            }
            // Cancelled work ends when it ends; a disarmed timer may have fired already, so it stays deliverable.
            Effect::Cancel { epoch } => {
                if self.timers.remove(&epoch) {
                    self.past.insert(Event::TimerFired { epoch });
                }
            }
            Effect::ArmTimer { epoch, .. } => {
                self.timers.insert(epoch);
            }
            Effect::Reply { request, .. } => {
                let owed = self.owed.remove(&request);
                self.note("an answer that was not owed", owed);
            }
            Effect::Exit { reason } => {
                self.note("a second exit", self.exited.is_none());
                self.note("an exit that owes an answer", self.owed.is_empty());
                let orderly = reason == ExitReason::Stopped;
                self.note("an orderly exit that leaves a postmaster", alone || !orderly);
                self.exited = Some(reason);
            }
        }
    }

    fn begin(&mut self, work: Work, epoch: Epoch) {
        self.work.insert((work, epoch));
    }
}

/// The results a piece of work can have: the good ones, and the bad.
fn results(work: Work, epoch: Epoch) -> (Vec<Event>, Option<Event>) {
    let class = FailureClass::Transient;
    let spec = SpecOutline { revision: Revision(9), final_sync: false };
    let found = |same_pageservers| Event::SpecFetched {
        epoch,
        fetched: FetchedSpec::Spec { spec, same_pageservers },
    };
    match work {
        Work::WarmUp => (vec![Event::WarmUpEnded { epoch }], None),
        Work::Resolve => (vec![Event::SpecResolved { epoch }], Some(Event::SpecRejected { epoch, class })),
        Work::Prepare => {
            (vec![Event::StoragePrepared { epoch }], Some(Event::StorageFailed { epoch, class }))
        }
        Work::Apply => (vec![Event::SpecApplied { epoch }], Some(Event::ApplyFailed { epoch, class })),
        Work::Promote => (vec![Event::Promoted { epoch }], Some(Event::PromoteFailed { epoch, class })),
        Work::CheckIdle => (
            vec![Event::FoundIdle { epoch }, Event::FoundBusy { epoch }],
            Some(Event::IdleCheckFailed { epoch, class }),
        ),
        Work::Fetch => (
            vec![found(true), found(false), Event::SpecFetched { epoch, fetched: FetchedSpec::NoSpec }],
            Some(Event::FetchFailed { epoch, class }),
        ),
        Work::Sweep => (vec![Event::Swept { epoch }], None),
        Work::FinalSync => {
            (vec![Event::FinalSyncDone { epoch, lsn: Lsn(7) }], Some(Event::FinalSyncFailed { epoch, class }))
        }
    }
}

impl Model for Bounds {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let policy = Policy {
            restart: self.restart,
            restart_budget: 1,
            max_waiters: 2,
            storage_retries: 1,
            ..Policy::default()
        };
        vec![World {
            machine: Machine::new(policy),
            work: BTreeSet::new(),
            timers: BTreeSet::new(),
            alive: None,
            was_ready: false,
            past: BTreeSet::new(),
            asked: 0,
            owed: BTreeSet::new(),
            mishaps: 0,
            repeats: 0,
            exited: None,
            wrong: None,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.machine.compute().last_epoch == Epoch(0) {
            actions.extend([Action::Boot(false), Action::Boot(true)]);
            return;
        }
        if world.exited.is_some() {
            return;
        }
        let mut may = |event| actions.push(Action::Deliver(event));
        if world.asked < self.requests {
            let request = RequestId(u64::from(world.asked));
            let spec = SpecOutline { revision: Revision(u64::from(world.asked) + 2), final_sync: false };
            may(Event::ConfigureRequested { request, spec });
            may(Event::PromoteRequested { request, spec, lsn: Lsn(7) });
            may(Event::RefreshRequested { request });
            may(Event::TerminateRequested { request, mode: TerminateMode::Fast });
            may(Event::TerminateRequested { request, mode: TerminateMode::Immediate });
            may(Event::TerminateIfIdleRequested { request, mode: TerminateMode::Fast });
            may(Event::StopSignalled);
        }
        let mishap = world.mishaps < self.mishaps;
        for (work, epoch) in &world.work {
            let (good, bad) = results(*work, *epoch);
            good.into_iter().chain(bad.filter(|_| mishap)).for_each(&mut may);
        }
        if let Some(postmaster) = world.alive {
            if !world.was_ready {
                may(Event::PostmasterReady { postmaster });
                if mishap {
                    may(Event::SpawnFailed { postmaster, class: FailureClass::Permanent });
                }
            }
            may(Event::PostmasterExited { postmaster, exit: Exit::Code(0) });
            if mishap {
                may(Event::PostmasterExited { postmaster, exit: Exit::Signal(9) });
            }
        }
        for epoch in &world.timers {
            // A timer that is all there is to wait for runs out in time; another is a mishap.
            if mishap || (world.work.is_empty() && world.alive.is_none()) {
                may(Event::TimerFired { epoch: *epoch });
            }
        }
        if world.repeats < self.repeats {
            actions.extend(world.past.iter().copied().map(Action::Again));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        let event = match action {
            Action::Boot(spec) => {
                let spec = spec.then_some(SpecOutline { revision: Revision(1), final_sync: true });
                Event::Booted { spec }
            }
            Action::Again(event) => {
                world.repeats += 1;
                let before = world.machine.clone();
                world.deliver(&event);
                let unmoved = world.machine == before;
                world.note("a repeated result did something", unmoved);
                return Some(world);
            }
            Action::Deliver(event) => event,
        };
        let mut mishap = false;
        match event {
            Event::ConfigureRequested { .. }
            | Event::PromoteRequested { .. }
            | Event::RefreshRequested { .. }
            | Event::TerminateRequested { .. }
            | Event::TerminateIfIdleRequested { .. }
            | Event::StopSignalled => world.asked += 1,
            Event::PostmasterReady { .. } => world.was_ready = true,
            Event::TimerFired { epoch } => {
                mishap = !(world.work.is_empty() && world.alive.is_none());
                world.timers.remove(&epoch);
            }
            Event::SpawnFailed { .. } | Event::PostmasterExited { .. } => {
                mishap = !matches!(event, Event::PostmasterExited { exit: Exit::Code(0), .. });
                world.alive = None;
            }
            _ => {}
        }
        if let Some(epoch) = event.settles() {
            let work = world.work.iter().copied().find(|item| item.1 == epoch)?;
            mishap = results(work.0, epoch).1 == Some(event);
            world.work.remove(&work);
        }
        world.mishaps += u8::from(mishap);
        if event.settles().is_some()
            || event.ends_postmaster().is_some()
            || matches!(event, Event::TimerFired { .. } | Event::PostmasterReady { .. })
        {
            world.past.insert(event);
        }
        world.deliver(&event);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing goes wrong", |_, world: &World| world.wrong.is_none()),
            Property::always("whoever waits, waits for something", |_, world: &World| {
                let at_rest = matches!(
                    world.machine.status(),
                    ComputeStatus::Empty | ComputeStatus::Running | ComputeStatus::Failed
                ) && world.owed.is_empty();
                let going = !world.work.is_empty() || !world.timers.is_empty() || world.alive.is_some();
                at_rest || going || world.exited.is_some()
            }),
            Property::sometimes("runs", |_, world: &World| world.machine.status() == ComputeStatus::Running),
            Property::sometimes("runs after a reconfiguration", |_, world: &World| {
                world.machine.status() == ComputeStatus::Running
                    && world
                        .machine
                        .state()
                        .server()
                        .is_some_and(|server| server.applied.revision > Revision(1))
            }),
            Property::sometimes("is promoted", |_, world: &World| {
                world.machine.compute().promotion.stage == Stage::Done && world.owed.is_empty()
            }),
            Property::sometimes("refreshes", |_, world: &World| {
                world.machine.status() == ComputeStatus::RefreshConfiguration
            }),
            Property::sometimes("serves on after a failed reconfiguration", |_, world: &World| {
                world.machine.status() == ComputeStatus::Failed && world.machine.state().server().is_some()
            }),
            Property::sometimes("ends in order", |_, world: &World| {
                world.exited == Some(ExitReason::Stopped) && world.asked > 0
            }),
            Property::sometimes("ends detached", |_, world: &World| {
                world.exited == Some(ExitReason::Detached)
            }),
            Property::sometimes("ends after a failed start", |_, world: &World| {
                world.exited == Some(ExitReason::StartFailed)
            }),
            Property::sometimes("work outlives its cancellation", |_, world: &World| {
                world.machine.status() == ComputeStatus::Terminated && !world.work.is_empty()
            }),
            Property::sometimes("a result comes again", |_, world: &World| world.repeats > 0),
        ]
    }
}

fn check(name: &str, bounds: Bounds) {
    let checker = bounds.checker().threads(1).spawn_bfs().join();
    println!("{name}: {} states, {} generated", checker.unique_state_count(), checker.state_count());
    checker.assert_properties();
}

#[test]
fn every_interleaving_of_two_requests_and_a_mishap_is_sound() {
    let restart = RestartPolicy::Never;
    check(
        "two requests, one mishap, one repetition",
        Bounds { requests: 2, mishaps: 1, repeats: 1, restart },
    );
}

#[test]
fn every_interleaving_of_crashes_and_restarts_is_sound() {
    let restart = RestartPolicy::OnFailure;
    check("one request, three mishaps", Bounds { requests: 1, mishaps: 3, repeats: 1, restart });
}
