//! What must hold at every step of the exhaustive walk, and proof that the walk's cuts hide nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use compute_states::explore::{self, Next, Node, Observed, Walk};
use compute_states::promotion::Stage;
use compute_states::state::{Base, Remains, Waiting};
use compute_states::{
    Cause, ComputeStatus, Effect, EffectKind, Epoch, Event, EventKind, Exit, FailureClass, FetchedSpec, Lsn,
    Machine, Policy, Refusal, Reply, RequestId, RestartPolicy, Revision, SpecOutline, State, StopMode,
    TerminateMode, Verdict,
};

static WALK: LazyLock<Walk> = LazyLock::new(explore::walk);

/// Shows every step of the walk; `check` says what is wrong with it, if anything is.
fn each_step(mut check: impl FnMut(&Observed<'_>) -> Result<(), String>) {
    let mut steps = 0;
    explore::walk_with(&explore::policies(), |seen| {
        steps += 1;
        if let Err(wrong) = check(seen) {
            panic!(
                "{wrong}\nbefore: {:#?}\nevent: {:?}\nstep: {:#?}",
                seen.before.machine, seen.event, seen.step
            );
        }
    });
    assert!(steps > 100_000, "the walk has hardly moved");
}

fn ensure(holds: bool, wrong: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(wrong.to_owned()) }
}

/// The requests a machine owes an answer.
fn owed(machine: &Machine) -> Vec<RequestId> {
    let mut owed = match machine.state() {
        State::ConfigurationPending(state) => state.request.into_iter().collect(),
        State::Init(state) => state.request.into_iter().collect(),
        State::Configuration(state) => state.request.into_iter().collect(),
        State::TerminationPendingFast(state) => state.0.waiting.clone(),
        State::TerminationPendingImmediate(state) => state.0.waiting.clone(),
        _ => Vec::new(),
    };
    owed.extend(&machine.compute().promotion.waiting);
    owed.extend(machine.compute().idle_check.iter().flat_map(|check| &check.waiting));
    owed
}

fn asked_by(event: &Event) -> Option<RequestId> {
    match *event {
        Event::ConfigureRequested { request, .. }
        | Event::TerminateRequested { request, .. }
        | Event::TerminateIfIdleRequested { request, .. }
        | Event::PromoteRequested { request, .. }
        | Event::RefreshRequested { request } => Some(request),
        _ => None,
    }
}

fn kinds(seen: &Observed<'_>) -> Vec<EffectKind> {
    seen.step.effects().iter().map(Effect::kind).collect()
}

#[test]
fn every_cell_is_reached_and_every_event_gets_a_verdict() {
    each_step(|seen| ensure(seen.step.has_verdict(), "no verdict"));
    let every: BTreeSet<_> = ComputeStatus::ALL
        .into_iter()
        .flat_map(|status| EventKind::ALL.iter().map(move |kind| (status, *kind)))
        .collect();
    assert_eq!(WALK.cells.keys().copied().collect::<BTreeSet<_>>(), every);
    // A sanity check from both sides: fewer shapes than a machine of this kind can have, or an explosion.
    assert!((1_000..50_000).contains(&WALK.nodes.len()), "{} shapes", WALK.nodes.len());
}

#[test]
fn a_verdict_says_what_happened() {
    each_step(|seen| {
        let (before, after) = (&seen.before.machine, seen.after);
        match seen.step.verdict() {
            Verdict::Stale => {
                ensure(before == after && seen.step.effects().is_empty(), "something stale had consequences")
            }
            Verdict::Refused(_) => ensure(before == after, "a refusal changed the machine"),
            Verdict::Taken(_) | Verdict::Latched { .. } => {
                ensure(before.status() == after.status(), "moved without saying so")
            }
            Verdict::Moved(_) => ensure(before.state() != after.state(), "moved to the same state"),
        }
    });
}

#[test]
fn every_request_is_answered_exactly_once() {
    each_step(|seen| {
        let mut due: Vec<RequestId> = owed(&seen.before.machine);
        due.extend(asked_by(seen.event));
        let mut settled: Vec<RequestId> = owed(seen.after);
        settled.extend(seen.step.effects().iter().filter_map(|effect| match effect {
            Effect::Reply { request, .. } => Some(*request),
            _ => None,
        }));
        due.sort();
        settled.sort();
        ensure(due == settled, &format!("due {due:?}, owed on or answered {settled:?}"))?;
        ensure(seen.to != Next::End || owed(seen.after).is_empty(), "the process ends owing an answer")?;
        let refresh = match *seen.event {
            Event::RefreshRequested { request } => Some(request),
            _ => None,
        };
        let waits = refresh.is_some_and(|request| owed(seen.after).contains(&request));
        ensure(!waits, "a refresh is answered at once")
    });
}

#[test]
fn a_refused_request_hears_why() {
    each_step(|seen| {
        let Some(request) = asked_by(seen.event) else { return Ok(()) };
        let told = seen.step.effects().iter().find_map(|effect| match *effect {
            Effect::Reply { request: to, reply: Reply::Refused { refusal, status } } if to == request => {
                Some((refusal, status))
            }
            _ => None,
        });
        let refusal = match seen.step.verdict() {
            Verdict::Refused(refusal) => Some(refusal),
            Verdict::Latched { told, .. } => told,
            _ => None,
        };
        let status = seen.before.machine.status();
        ensure(told == refusal.map(|refusal| (refusal, status)), &format!("told {told:?}"))
    });
}

#[test]
fn there_are_never_two_postmasters() {
    each_step(|seen| {
        let (before, after) = (seen.before.machine.compute().postmaster, seen.after.compute().postmaster);
        for effect in seen.step.effects() {
            match *effect {
                Effect::StartPostmaster { postmaster, .. } => {
                    ensure(before.is_none(), "a second postmaster")?;
                    ensure(after == Some(postmaster), "a postmaster that nobody keeps in mind")?;
                }
                // Each of these would work on the files of a postmaster that is there.
                Effect::PrepareStorage { .. } | Effect::FinalSync { .. } => {
                    ensure(after.is_none(), "work on the files of a living postmaster")?;
                }
                Effect::StopPostmaster { postmaster, .. } | Effect::ReloadPostmaster { postmaster } => {
                    ensure(before == Some(postmaster), "a signal to a postmaster that is gone")?;
                }
                Effect::ApplySpec { postmaster, .. }
                | Effect::Promote { postmaster, .. }
                | Effect::CheckIdle { postmaster, .. } => {
                    ensure(after == Some(postmaster), "a spec for a postmaster that is gone")?;
                }
                _ => {}
            }
        }
        let forgotten = before.is_some() && after.is_none();
        ensure(!forgotten || seen.event.ends_postmaster() == before, "forgot a postmaster that did not end")?;
        let served = seen.after.state().server().map(|server| server.postmaster);
        ensure(served.is_none() || served == after, "serves with a postmaster that is gone")
    });
}

/// Nothing is spared that was not looked at: such a request ends a serving Postgres by the result of a look alone.
#[test]
fn a_termination_if_idle_stops_nothing_by_itself() {
    each_step(|seen| {
        let asked = seen.event.kind() == EventKind::TerminateIfIdleRequested;
        let stops = kinds(seen).contains(&EffectKind::StopPostmaster);
        ensure(!(asked && stops), "stopped Postgres without having looked")?;
        let found = seen.step.verdict() == Verdict::Moved(Cause::FoundIdle);
        let awaited = seen.before.machine.compute().idle_check.as_ref().map(|check| check.epoch);
        ensure(!found || seen.event.settles() == awaited, "believed another look")
    });
}

#[test]
fn data_that_may_live_only_here_is_never_given_away() {
    each_step(|seen| {
        let (before, after) = (seen.before.machine.compute().served, seen.after.compute().served);
        ensure(after || !before, "forgot that Postgres had served")?;
        ensure(after || seen.after.state().server().is_none(), "serves and does not know it")?;
        let careless = seen
            .step
            .effects()
            .iter()
            .any(|effect| matches!(effect, Effect::PrepareStorage { restart, .. } if *restart != before));
        ensure(!careless, "a start that does not say whether Postgres has served")
    });
}

#[test]
fn what_the_machine_waits_for_is_outstanding() {
    each_step(|seen| {
        if seen.to == Next::Impossible {
            return Ok(());
        }
        let next = explore::follow(seen.before, seen.event, seen.step, seen.after);
        ensure(next.origins.iter().all(Option::is_some), "waits for what no effect has asked for")?;
        let timer = |epoch| seen.before.origin(epoch).is_some_and(|it| it.kind == EffectKind::ArmTimer);
        let settled = match *seen.event {
            Event::TimerFired { epoch } => Some(epoch),
            event => event.settles().or(event.ends_postmaster()),
        };
        let cancelled: Vec<Epoch> = cancelled(seen);
        for epoch in explore::held(seen.after) {
            let over = settled == Some(epoch) || (timer(epoch) && cancelled.contains(&epoch));
            // The readable failure ends with its timer and the process.
            ensure(!over || seen.to == Next::End, "waits for what is over")?;
        }
        // Nothing is left behind: timers are disarmed and work is told to stop before it is forgotten.
        let kept = explore::held(seen.after);
        for epoch in explore::held(&seen.before.machine) {
            let told = cancelled.contains(&epoch) || already_told(seen.before, epoch);
            ensure(kept.contains(&epoch) || settled == Some(epoch) || told, "left something running")?;
        }
        Ok(())
    });
}

fn cancelled(seen: &Observed<'_>) -> Vec<Epoch> {
    let cancel = |effect: &Effect| match *effect {
        Effect::Cancel { epoch } => Some(epoch),
        _ => None,
    };
    seen.step.effects().iter().filter_map(cancel).collect()
}

/// Whether this is work that was cancelled before, and whose end is merely awaited; or the postmaster itself,
/// which has a test of its own.
fn already_told(node: &Node, epoch: Epoch) -> bool {
    use compute_states::state::{Gone, GoneStage, Stage};
    let awaited = match node.machine.state() {
        State::TerminationPendingFast(compute_states::state::TerminationPendingFast(shutdown))
        | State::TerminationPendingImmediate(compute_states::state::TerminationPendingImmediate(shutdown)) => {
            match shutdown.stage {
                Stage::Stopping { work, .. } => work,
                Stage::Sweeping { .. } | Stage::Syncing { .. } => None,
            }
        }
        State::Failed(failed) => match failed.remains {
            Remains::Gone(Gone { stage: GoneStage::Clearing { work, .. }, .. }) => work,
            _ => None,
        },
        _ => None,
    };
    awaited == Some(epoch) || node.origin(epoch).is_some_and(|it| it.kind == EffectKind::StartPostmaster)
}

#[test]
fn only_what_exists_is_cancelled_and_identities_are_fresh() {
    each_step(|seen| {
        let held = explore::held(&seen.before.machine);
        let last = seen.before.machine.compute().last_epoch;
        let mut newest = last;
        for effect in seen.step.effects() {
            if let Some(epoch) = explore::gives(effect) {
                ensure(epoch > newest, "an identity was given out before")?;
                newest = epoch;
            }
            if let Effect::Cancel { epoch } = *effect {
                ensure(held.contains(&epoch), "cancelled what is not there")?;
                ensure(epoch_over(seen.event) != Some(epoch), "cancelled what has just ended")?;
            }
        }
        ensure(newest == seen.after.compute().last_epoch, "an identity was skipped")
    });
}

fn epoch_over(event: &Event) -> Option<Epoch> {
    match *event {
        Event::TimerFired { epoch } => Some(epoch),
        _ => event.settles(),
    }
}

#[test]
fn exit_comes_last_and_only_from_an_end() {
    each_step(|seen| {
        let kinds = kinds(seen);
        let exits = kinds.iter().filter(|kind| **kind == EffectKind::Exit).count();
        ensure(exits == 0 || (exits == 1 && kinds.last() == Some(&EffectKind::Exit)), "exit is not last")?;
        let end = matches!(seen.after.status(), ComputeStatus::Failed | ComputeStatus::Terminated);
        ensure(exits == 0 || end, "exit from a status that is no end")
    });
}

#[test]
fn every_shape_is_sound() {
    for node in &WALK.nodes {
        let machine = &node.machine;
        let promotion = &machine.compute().promotion;
        let origin = promotion.work().map(|work| node.origin(work).map(|it| it.kind));
        let expected = match promotion.stage {
            Stage::Promoting { .. } => Some(Some(EffectKind::Promote)),
            Stage::Applying { .. } => Some(Some(EffectKind::ApplySpec)),
            Stage::Idle | Stage::Queued { .. } | Stage::Unapplied | Stage::Done => None,
        };
        assert_eq!(origin, expected, "{machine:#?}");
        let running = matches!(machine.state(), State::Running(_));
        assert!(running || promotion.work().is_none(), "promotes beside other work: {machine:#?}");
        if let Some(check) = &machine.compute().idle_check {
            let origin = node.origin(check.epoch).map(|it| it.kind);
            assert_eq!(origin, Some(EffectKind::CheckIdle), "{machine:#?}");
            assert!(running && promotion.work().is_none(), "looks beside other work: {machine:#?}");
            assert!(!check.waiting.is_empty(), "looks for nobody: {machine:#?}");
        }
        let idle = matches!(promotion.stage, Stage::Idle | Stage::Done);
        assert!(!idle || promotion.waiting.is_empty(), "waits for nothing: {machine:#?}");
        match machine.state() {
            State::Running(_) => assert_eq!(machine.fault(), None, "{machine:#?}"),
            State::Failed(_) => assert!(machine.fault().is_some(), "{machine:#?}"),
            State::RefreshConfigurationPending(state) => {
                let (Waiting::Fetch(epoch) | Waiting::Backoff(epoch)) = state.waiting;
                let expected = match state.waiting {
                    Waiting::Fetch(_) => (EffectKind::FetchSpec, ""),
                    Waiting::Backoff(_) => (EffectKind::ArmTimer, "RefreshBackoff"),
                };
                let origin = node.origin(epoch).map(|origin| (origin.kind, origin.detail));
                assert_eq!(origin, Some(expected), "{machine:#?}");
                let gone = matches!(state.base, Base::Gone { .. });
                assert!(!gone || machine.compute().postmaster.is_none(), "{machine:#?}");
                let pause = matches!(state.waiting, Waiting::Backoff(_));
                assert!(!pause || promotion.waiting.is_empty(), "waits for a pause: {machine:#?}");
            }
            State::Terminated(state) => {
                assert!(state.linger.is_some(), "followed past the end: {machine:#?}")
            }
            _ => {}
        }
    }
}

#[test]
fn no_event_leads_out_of_terminated() {
    let out: Vec<_> =
        WALK.arrows.keys().filter(|(from, to)| *from == ComputeStatus::Terminated && to != from).collect();
    assert!(out.is_empty(), "{out:?}");
}

// ---- the cuts ---------------------------------------------------------------------------------------------

/// A machine and its shape answer alike, however long the history: same verdict, same kinds of effects, same
/// shape afterwards. So the walk over shapes is a walk over machines.
#[test]
fn shapes_hide_nothing() {
    for policy in explore::policies() {
        for seed in 1..=40_u64 {
            let mut random = Random(seed);
            let mut machine = Machine::new(policy);
            let mut node = Node { machine: explore::shape(&machine), origins: Vec::new() };
            for number in 1_000..2_500 {
                let (own, cut) = (explore::samples(&machine), explore::samples(&node.machine));
                assert_eq!(own.len(), cut.len());
                // Half of what happens is something somebody waits for, or histories would go nowhere.
                let pick = loop {
                    let pick = random.below(own.len());
                    let awaited = explore::epoch_of(&cut[pick]).is_some_and(|it| node.origin(it).is_some());
                    let ending = matches!(own[pick], Event::TerminateRequested { .. } | Event::StopSignalled);
                    if node.can_meet(&cut[pick])
                        && (awaited || random.below(4) == 0)
                        && (!ending || random.below(20) == 0)
                    {
                        break pick;
                    }
                };
                let mut shaped = node.machine.clone();
                let (step, cut_step) =
                    (machine.handle(&renewed(own[pick], number)), shaped.handle(&cut[pick]));
                assert_eq!(step.verdict(), cut_step.verdict(), "{:?}\n{machine:#?}", own[pick]);
                let kinds = |effects: &[Effect]| effects.iter().map(Effect::kind).collect::<Vec<_>>();
                assert_eq!(kinds(step.effects()), kinds(cut_step.effects()), "{:?}\n{machine:#?}", own[pick]);
                assert_eq!(explore::shape(&machine), explore::shape(&shaped), "{:?}", own[pick]);
                if kinds(step.effects()).contains(&EffectKind::Exit) {
                    break;
                }
                node = explore::follow(&node, &cut[pick], &cut_step, &shaped);
            }
        }
    }
}

/// The event with a request or a spec that was not there before.
fn renewed(mut event: Event, number: u64) -> Event {
    match &mut event {
        Event::ConfigureRequested { request, spec } => {
            *request = RequestId(number);
            spec.revision = Revision(number);
        }
        Event::TerminateRequested { request, .. }
        | Event::TerminateIfIdleRequested { request, .. }
        | Event::RefreshRequested { request } => {
            *request = RequestId(number);
        }
        Event::PromoteRequested { request, spec, lsn } => {
            *request = RequestId(number);
            spec.revision = Revision(number);
            *lsn = Lsn(number);
        }
        Event::Booted { spec: Some(spec) }
        | Event::SpecFetched { fetched: FetchedSpec::Spec { spec, .. }, .. } => {
            spec.revision = Revision(number);
        }
        _ => {}
    }
    event
}

/// A xorshift generator: histories have to be the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("smaller than a usize")
    }
}

#[test]
fn a_shape_is_its_own_shape() {
    for node in &WALK.nodes {
        assert_eq!(explore::shape(&node.machine), node.machine);
    }
}

// ---- what the walk has found ------------------------------------------------------------------------------

/// Drives one machine through a history, and finds the epochs by the effects that gave them out.
struct Run {
    machine: Machine,
    given: BTreeMap<EffectKind, Epoch>,
    last: Vec<Effect>,
}

impl Run {
    fn new(policy: Policy) -> Self {
        Run { machine: Machine::new(policy), given: BTreeMap::new(), last: Vec::new() }
    }

    fn tell(&mut self, event: Event) -> Verdict {
        let step = self.machine.handle(&event);
        self.last = step.effects().to_vec();
        self.given.extend(self.last.iter().filter_map(|it| Some((it.kind(), explore::gives(it)?))));
        step.verdict()
    }

    fn of(&self, kind: EffectKind) -> Epoch {
        self.given[&kind]
    }

    fn start(&mut self, spec: SpecOutline) {
        self.tell(Event::Booted { spec: Some(spec) });
        self.tell(Event::StoragePrepared { epoch: self.of(EffectKind::PrepareStorage) });
        self.tell(Event::PostmasterReady { postmaster: self.of(EffectKind::StartPostmaster) });
    }
}

const SPEC: SpecOutline = SpecOutline { revision: Revision(1), final_sync: true };

#[test]
fn nothing_is_synchronised_or_started_beside_a_postmaster_whose_end_is_not_confirmed() {
    let mut run = Run::new(Policy::default());
    run.start(SPEC);
    run.tell(Event::RefreshRequested { request: RequestId(1) });
    run.tell(Event::ApplyFailed { epoch: run.of(EffectKind::ApplySpec), class: FailureClass::Permanent });
    for mode in [StopMode::Fast, StopMode::Immediate, StopMode::Kill] {
        let stop = Effect::StopPostmaster { postmaster: run.of(EffectKind::StartPostmaster), mode };
        assert!(run.last.contains(&stop), "{mode:?}: {:?}", run.last);
        run.tell(Event::TimerFired { epoch: run.of(EffectKind::ArmTimer) });
    }
    run.tell(Event::Swept { epoch: run.of(EffectKind::Sweep) });
    let started = [EffectKind::FinalSync, EffectKind::FetchSpec];
    assert!(run.last.iter().all(|effect| !started.contains(&effect.kind())), "{:?}", run.last);
    let verdict = run.tell(Event::RefreshRequested { request: RequestId(2) });
    assert_eq!(verdict, Verdict::Refused(Refusal::PostmasterUnconfirmed));
}

#[test]
fn a_spawn_that_fails_after_its_postgres_was_ready_is_nothing_to_act_upon() {
    let mut run = Run::new(Policy::default());
    run.start(SPEC);
    let postmaster = run.of(EffectKind::StartPostmaster);
    let impossible = Event::SpawnFailed { postmaster, class: FailureClass::Permanent };
    assert_eq!(run.tell(impossible), Verdict::Stale);
    run.tell(Event::SpecApplied { epoch: run.of(EffectKind::ApplySpec) });
    assert_eq!(run.tell(impossible), Verdict::Stale);
    assert_eq!(run.machine.compute().postmaster, Some(postmaster));
}

#[test]
fn a_crash_during_a_refresh_keeps_the_data() {
    let mut run = Run::new(Policy { restart: RestartPolicy::OnFailure, ..Policy::default() });
    run.start(SPEC);
    run.tell(Event::SpecApplied { epoch: run.of(EffectKind::ApplySpec) });
    run.tell(Event::RefreshRequested { request: RequestId(1) });
    let postmaster = run.of(EffectKind::StartPostmaster);
    let fetch = run.of(EffectKind::FetchSpec);
    run.tell(Event::PostmasterExited { postmaster, exit: Exit::Signal(9) });
    run.tell(Event::FetchFailed { epoch: fetch, class: FailureClass::Cancelled });
    let verdict = run.tell(Event::Swept { epoch: run.of(EffectKind::Sweep) });
    assert_eq!(verdict, Verdict::Moved(Cause::Restarting));
    let fetched = FetchedSpec::Spec { spec: SPEC, same_pageservers: false };
    run.tell(Event::SpecFetched { epoch: run.of(EffectKind::FetchSpec), fetched });
    let epoch = run.of(EffectKind::PrepareStorage);
    assert_eq!(run.last, [Effect::PrepareStorage { epoch, spec: SPEC.revision, restart: true }]);
}

#[test]
fn a_termination_during_the_first_start_answers_both_clients() {
    let mut run = Run::new(Policy::default());
    run.tell(Event::Booted { spec: None });
    run.tell(Event::ConfigureRequested { request: RequestId(1), spec: SPEC });
    run.tell(Event::TerminateRequested { request: RequestId(2), mode: TerminateMode::Immediate });
    let superseded = Effect::Reply { request: RequestId(1), reply: Reply::ConfigureSuperseded };
    assert!(run.last.contains(&superseded), "{:?}", run.last);
    run.tell(Event::SpecResolved { epoch: run.of(EffectKind::ResolveSpec) });
    run.tell(Event::Swept { epoch: run.of(EffectKind::Sweep) });
    assert_eq!(run.machine.status(), ComputeStatus::Terminated);
    assert!(
        matches!(
            run.last[..],
            [Effect::Cancel { .. }, Effect::Reply { request: RequestId(2), .. }, Effect::Exit { .. }]
        ),
        "{:?}",
        run.last
    );
}
