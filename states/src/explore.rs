//! Walks the real machine over every reachable shape and every sample event.
//!
//! A *shape* is a machine without what steers no guard (see [`shape`]). It is itself a machine, so the walk
//! needs no model of the machine beside the machine: it asks the shape. `tests/exploration.rs` proves on long
//! histories that a machine and its shape give the same answers.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::effect::{Effect, EffectKind, ExitReason, Reply, StopMode, Timer};
use crate::event::{Event, EventKind, Exit, FailureClass, FetchedSpec, SpecOutline, TerminateMode};
use crate::ids::{Epoch, Lsn, RequestId, Revision};
use crate::machine::Machine;
use crate::policy::{Policy, RestartPolicy};
use crate::promotion::Stage;
use crate::state::{Failed, Fault, FaultKind, Identities, IdentityVisitor, Remains, Shutdown, State};
use crate::status::ComputeStatus;
use crate::verdict::{Cause, Step, Verdict};

/// The policies under which the machine is walked: both answers to a crash, and limits so small that each is
/// reached.
pub fn policies() -> [Policy; 2] {
    [RestartPolicy::Never, RestartPolicy::OnFailure].map(|restart| Policy {
        restart,
        restart_budget: 2,
        max_waiters: 2,
        storage_retries: 2,
        ..Policy::default()
    })
}

/// What a walk saw.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// Every shape, in the order of discovery, the machines as spawned first.
    pub nodes: Vec<Node>,
    /// From status to status, by which event and why. Arrows from a status to itself are events that were
    /// acted upon without leaving it.
    pub arrows: BTreeMap<(ComputeStatus, ComputeStatus), BTreeSet<(EventKind, Cause)>>,
    /// Statuses in which the process ends.
    pub ends: BTreeSet<ComputeStatus>,
    /// What each event leads to in each status.
    pub cells: BTreeMap<(ComputeStatus, EventKind), BTreeSet<Outcome>>,
    /// How many events were tried.
    pub steps: usize,
}

/// A shape, and what the world owes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// The shape.
    pub machine: Machine,
    /// For each epoch the machine holds, as [`held`] lists them, the effect that gave it out; none if no
    /// effect did, which is a fault of the machine.
    pub origins: Vec<Option<Done>>,
}

impl Node {
    /// The effect that gave out this epoch.
    pub fn origin(&self, epoch: Epoch) -> Option<Done> {
        // A shape numbers what it holds from 1.
        let index = usize::try_from(epoch.0).ok()?.checked_sub(1)?;
        self.origins.get(index).copied().flatten()
    }

    /// Whether the world can produce this event: a result comes from the effect that asked for it. One that
    /// names an epoch nobody holds is possible, since it may be late. A postmaster that was seen alive was
    /// spawned.
    pub fn can_meet(&self, event: &Event) -> bool {
        match (epoch_of(event), source(event.kind())) {
            (Some(epoch), Some(source)) => self.origin(epoch).is_none_or(|origin| {
                let unborn = event.kind() == EventKind::SpawnFailed && origin.detail == ALIVE;
                origin.kind == source && !unborn
            }),
            _ => true,
        }
    }
}

/// One way in which an event can be answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    /// What became of the event.
    pub verdict: Verdict,
    /// The status afterwards.
    pub target: ComputeStatus,
    /// What has to be done, in order. Equal effects in a row are noted once.
    pub effects: Vec<Done>,
}

/// An effect, as far as a table shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Done {
    /// Its kind.
    pub kind: EffectKind,
    /// Which timer, which answer or how to stop, for the kinds with such a distinction; otherwise empty.
    pub detail: &'static str,
}

/// One step of a walk, as an observer sees it.
#[derive(Debug)]
pub struct Observed<'walk> {
    /// Index of the shape in [`Walk::nodes`].
    pub from: usize,
    /// The shape before the event.
    pub before: &'walk Node,
    /// The event.
    pub event: &'walk Event,
    /// What it led to.
    pub step: &'walk Step,
    /// The machine after the event, its identities still those of `before`.
    pub after: &'walk Machine,
    /// Where that leads.
    pub to: Next,
}

/// Where a step of a walk leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Next {
    /// To this shape, an index in [`Walk::nodes`].
    Node(usize),
    /// To the end of the process. Nothing follows.
    End,
    /// Nowhere: the world cannot produce this event (see [`Node::can_meet`]). It was tried all the same, since
    /// the machine has to answer everything, but it is not drawn and not followed.
    Impossible,
}

/// Walks the machine under [`policies`].
pub fn walk() -> Walk {
    walk_with(&policies(), |_| ())
}

/// Walks the machine breadth first under each of these policies, and shows every step to `observe`.
pub fn walk_with(policies: &[Policy], mut observe: impl FnMut(&Observed<'_>)) -> Walk {
    let mut walk = Walk::default();
    let mut known = BTreeMap::new();
    for policy in policies {
        discover(&mut walk, &mut known, Node { machine: Machine::new(*policy), origins: Vec::new() });
    }
    let mut from = 0;
    let mut step = Step::default();
    while from < walk.nodes.len() {
        let before = walk.nodes[from].clone();
        let mut after = before.machine.clone();
        for event in samples(&before.machine) {
            after.handle_into(&event, &mut step);
            walk.steps += 1;
            let unchanged = after == before.machine;
            let to = if !before.can_meet(&event) {
                Next::Impossible
            } else if step.effects().iter().any(|effect| effect.kind() == EffectKind::Exit) {
                walk.ends.insert(after.status());
                Next::End
            } else if unchanged {
                Next::Node(from)
            } else {
                Next::Node(discover(&mut walk, &mut known, follow(&before, &event, &step, &after)))
            };
            if to != Next::Impossible {
                note(&mut walk, before.machine.status(), &event, &step, after.status());
            }
            observe(&Observed { from, before: &before, event: &event, step: &step, after: &after, to });
            if !unchanged {
                after.clone_from(&before.machine);
            }
        }
        from += 1;
    }
    walk
}

/// The index of a node, which is added if it is new. The fingerprint in front makes most comparisons short.
fn discover(walk: &mut Walk, known: &mut BTreeMap<(u64, Node), usize>, node: Node) -> usize {
    *known.entry((node.machine.fingerprint(), node)).or_insert_with_key(|(_, node)| {
        walk.nodes.push(node.clone());
        walk.nodes.len() - 1
    })
}

/// How the origin of a postmaster that was seen alive is marked.
const ALIVE: &str = "alive";

/// The node a step leads to.
pub fn follow(before: &Node, event: &Event, step: &Step, after: &Machine) -> Node {
    let given: Vec<(Epoch, Done)> =
        step.effects().iter().filter_map(|effect| Some((gives(effect)?, done(effect)))).collect();
    let origin = |epoch: Epoch| {
        let fresh = given.iter().find(|(fresh, _)| *fresh == epoch).map(|(_, done)| *done);
        let seen_alive = matches!(event.kind(), EventKind::PostmasterReady | EventKind::PostmasterProgressed)
            && epoch_of(event) == Some(epoch);
        match before.origin(epoch) {
            Some(known) if seen_alive => Some(Done { detail: ALIVE, ..known }),
            known => fresh.or(known),
        }
    };
    Node { origins: held(after).into_iter().map(origin).collect(), machine: shape(after) }
}

/// The identity an effect gives out: that of its work, its timer or its postmaster.
pub fn gives(effect: &Effect) -> Option<Epoch> {
    match *effect {
        Effect::WarmUp { epoch }
        | Effect::ResolveSpec { epoch, .. }
        | Effect::PrepareStorage { epoch, .. }
        | Effect::ApplySpec { epoch, .. }
        | Effect::FetchSpec { epoch, .. }
        | Effect::Promote { epoch, .. }
        | Effect::CheckIdle { epoch, .. }
        | Effect::Sweep { epoch }
        | Effect::FinalSync { epoch, .. }
        | Effect::ArmTimer { epoch, .. } => Some(epoch),
        Effect::StartPostmaster { postmaster, .. } => Some(postmaster),
        Effect::StopPostmaster { .. }
        | Effect::ReloadPostmaster { .. }
        | Effect::Cancel { .. }
        | Effect::Reply { .. }
        | Effect::Exit { .. } => None,
    }
}

/// The identity an event names.
pub fn epoch_of(event: &Event) -> Option<Epoch> {
    match *event {
        Event::TimerFired { epoch } => Some(epoch),
        Event::SpawnFailed { postmaster, .. }
        | Event::PostmasterProgressed { postmaster }
        | Event::PostmasterReady { postmaster }
        | Event::PostmasterExited { postmaster, .. }
        | Event::ActivityObserved { postmaster, .. } => Some(postmaster),
        _ => event.settles(),
    }
}

/// The effect whose result an event is.
pub fn source(kind: EventKind) -> Option<EffectKind> {
    match kind {
        EventKind::WarmUpEnded => Some(EffectKind::WarmUp),
        EventKind::SpecResolved | EventKind::SpecRejected => Some(EffectKind::ResolveSpec),
        EventKind::StoragePrepared | EventKind::StorageFailed => Some(EffectKind::PrepareStorage),
        EventKind::SpecApplied | EventKind::ApplyFailed => Some(EffectKind::ApplySpec),
        EventKind::Promoted | EventKind::PromoteFailed => Some(EffectKind::Promote),
        EventKind::FoundIdle | EventKind::FoundBusy | EventKind::IdleCheckFailed => {
            Some(EffectKind::CheckIdle)
        }
        EventKind::SpecFetched | EventKind::FetchFailed => Some(EffectKind::FetchSpec),
        EventKind::Swept => Some(EffectKind::Sweep),
        EventKind::FinalSyncDone | EventKind::FinalSyncFailed => Some(EffectKind::FinalSync),
        EventKind::SpawnFailed
        | EventKind::PostmasterProgressed
        | EventKind::PostmasterReady
        | EventKind::PostmasterExited
        | EventKind::ActivityObserved => Some(EffectKind::StartPostmaster),
        EventKind::TimerFired => Some(EffectKind::ArmTimer),
        EventKind::Booted
        | EventKind::ConfigureRequested
        | EventKind::TerminateRequested
        | EventKind::TerminateIfIdleRequested
        | EventKind::PromoteRequested
        | EventKind::RefreshRequested
        | EventKind::RefreshHinted
        | EventKind::StopSignalled
        | EventKind::ReloadSignalled => None,
    }
}

fn note(walk: &mut Walk, from: ComputeStatus, event: &Event, step: &Step, to: ComputeStatus) {
    let verdict = step.verdict();
    let mut effects: Vec<Done> = step.effects().iter().map(done).collect();
    effects.dedup();
    let outcome = Outcome { verdict, target: to, effects };
    walk.cells.entry((from, event.kind())).or_default().insert(outcome);
    if let Some(cause) = verdict.cause() {
        walk.arrows.entry((from, to)).or_default().insert((event.kind(), cause));
    }
}

fn done(effect: &Effect) -> Done {
    let detail = match effect {
        Effect::ArmTimer { timer, .. } => match timer {
            Timer::StartDeadline => "StartDeadline",
            Timer::StopDeadline => "StopDeadline",
            Timer::SweepDeadline => "SweepDeadline",
            Timer::FinalSyncDeadline => "FinalSyncDeadline",
            Timer::StorageBackoff => "StorageBackoff",
            Timer::RefreshBackoff => "RefreshBackoff",
            Timer::LatchedRefresh => "LatchedRefresh",
            Timer::FailedLinger => "FailedLinger",
            Timer::TerminatedLinger => "TerminatedLinger",
            Timer::RestartForgiven => "RestartForgiven",
        },
        Effect::Reply { reply, .. } => match reply {
            Reply::Configured => "Configured",
            Reply::ConfigureFailed => "ConfigureFailed",
            Reply::ConfigureSuperseded => "ConfigureSuperseded",
            Reply::RefreshAccepted => "RefreshAccepted",
            Reply::Promoted => "Promoted",
            Reply::PromoteFailed => "PromoteFailed",
            Reply::PromoteSuperseded => "PromoteSuperseded",
            Reply::NotIdle => "NotIdle",
            Reply::IdleUnknown => "IdleUnknown",
            Reply::Terminated(_) => "Terminated",
            Reply::AlreadyTerminated(_) => "AlreadyTerminated",
            Reply::Refused { .. } => "Refused",
        },
        Effect::StopPostmaster { mode, .. } => match mode {
            StopMode::Fast => "Fast",
            StopMode::Immediate => "Immediate",
            StopMode::Kill => "Kill",
        },
        Effect::WarmUp { .. }
        | Effect::ResolveSpec { .. }
        | Effect::PrepareStorage { .. }
        | Effect::StartPostmaster { .. }
        | Effect::ApplySpec { .. }
        | Effect::FetchSpec { .. }
        | Effect::Promote { .. }
        | Effect::CheckIdle { .. }
        | Effect::ReloadPostmaster { .. }
        | Effect::Sweep { .. }
        | Effect::FinalSync { .. }
        | Effect::Cancel { .. }
        | Effect::Exit { .. } => "",
    };
    Done { kind: effect.kind(), detail }
}

// ---- shapes -----------------------------------------------------------------------------------------------

/// The machine without what steers no guard, so that a walk ends:
///
/// | what | cut to | why it hides nothing |
/// |---|---|---|
/// | epochs, revisions, requests | numbered from 1 in the order they are held; `last_epoch` follows | compared for equality only, and epochs that nobody holds any more all read as "none of mine" |
/// | [`Fault`] | there or not | reported, never asked for its content |
/// | attempts of a refresh | 0 or 1 | sets the length of a pause and nothing else |
/// | how much of the log a promotion waits for | none | handed on and not looked at |
/// | a promotion without its spec, on the way down | none | no later spec can complete it, and both are told the same |
/// | stop signals | at most 2 | the machine asks whether it is the first |
/// | an exit status kept as the reason to end | one representative | read when the process ends; clean or not was asked before |
pub fn shape(machine: &Machine) -> Machine {
    let mut shape = machine.clone();
    let (state, compute) = shape.parts_mut();
    cut(state);
    match &mut compute.promotion.stage {
        Stage::Queued { lsn, .. } => *lsn = Lsn(0),
        unapplied @ Stage::Unapplied if goes_down(state.status()) => *unapplied = Stage::Idle,
        _ => {}
    }
    compute.fault = None;
    let mut naming = Naming::default();
    state.visit(&mut naming);
    compute.visit(&mut naming);
    compute.last_epoch = Epoch(naming.epochs.len() as u64);
    compute.fault =
        machine.fault().map(|_| Fault { kind: FaultKind::PostmasterUnconfirmed, epoch: Epoch::default() });
    shape
}

fn goes_down(status: ComputeStatus) -> bool {
    matches!(
        status,
        ComputeStatus::TerminationPendingFast
            | ComputeStatus::TerminationPendingImmediate
            | ComputeStatus::Terminated
    )
}

fn cut(state: &mut State) {
    match state {
        State::RefreshConfigurationPending(state) => {
            state.attempt = state.attempt.min(1);
            if let crate::state::Base::Gone { reason } = &mut state.base {
                cut_reason(reason);
            }
        }
        State::RefreshConfiguration(state) => state.attempt = state.attempt.min(1),
        State::Failed(Failed { remains: Remains::Gone(gone) }) => cut_reason(&mut gone.reason),
        State::TerminationPendingFast(state) => cut_shutdown(&mut state.0),
        State::TerminationPendingImmediate(state) => cut_shutdown(&mut state.0),
        State::Terminated(state) => cut_reason(&mut state.reason),
        State::Empty(_)
        | State::ConfigurationPending(_)
        | State::Init(_)
        | State::Configuration(_)
        | State::Running(_)
        | State::Failed(_) => {}
    }
}

fn cut_shutdown(shutdown: &mut Shutdown) {
    shutdown.signals = shutdown.signals.min(2);
    cut_reason(&mut shutdown.reason);
}

fn cut_reason(reason: &mut ExitReason) {
    if let ExitReason::PostgresExited(exit) = reason {
        *exit = Exit::Code(1);
    }
}

/// Renames identities by the order in which they are met.
#[derive(Default)]
struct Naming {
    epochs: Vec<u64>,
    revisions: Vec<u64>,
    requests: Vec<u64>,
}

fn rename(met: &mut Vec<u64>, number: &mut u64) {
    let index = met.iter().position(|known| known == number).unwrap_or_else(|| {
        met.push(*number);
        met.len() - 1
    });
    *number = index as u64 + 1;
}

impl IdentityVisitor for Naming {
    fn epoch(&mut self, epoch: &mut Epoch) {
        rename(&mut self.epochs, &mut epoch.0);
    }

    fn revision(&mut self, revision: &mut Revision) {
        rename(&mut self.revisions, &mut revision.0);
    }

    fn request(&mut self, request: &mut RequestId) {
        rename(&mut self.requests, &mut request.0);
    }
}

// ---- sample events ----------------------------------------------------------------------------------------

/// Every epoch a machine holds, in the order in which its shape numbers them.
pub fn held(machine: &Machine) -> Vec<Epoch> {
    let mut machine = machine.clone();
    let (state, compute) = machine.parts_mut();
    // What a fault names is over; nobody waits for it.
    compute.fault = None;
    let mut naming = Naming::default();
    state.visit(&mut naming);
    compute.visit(&mut naming);
    naming.epochs.into_iter().map(Epoch).collect()
}

/// Every kind of event with every value some guard tells apart, among them every epoch the machine holds, one
/// from its past and one from its future. A machine and its shape get corresponding lists.
pub fn samples(machine: &Machine) -> Vec<Event> {
    let mut epochs = held(machine);
    epochs.extend([Epoch(0), Epoch(machine.compute().last_epoch.0 + 1000)]);
    EventKind::ALL.iter().flat_map(|kind| samples_of(*kind, &epochs)).collect()
}

/// The samples of one kind. The match is exhaustive: a new event has to be sampled to compile.
fn samples_of(kind: EventKind, epochs: &[Epoch]) -> Vec<Event> {
    // Held requests and revisions are numbered from 1 in a shape, so 0 is new.
    let request = RequestId(0);
    let specs = [false, true].map(|final_sync| SpecOutline { revision: Revision(0), final_sync });
    let classes = [
        FailureClass::Transient,
        FailureClass::Permanent,
        FailureClass::TimedOut,
        FailureClass::Cancelled,
        FailureClass::Panicked,
    ];
    let each = |event: fn(Epoch) -> Event| epochs.iter().copied().map(event).collect::<Vec<_>>();
    let failing = |event: fn(Epoch, FailureClass) -> Event| {
        epochs.iter().flat_map(|epoch| classes.map(|class| event(*epoch, class))).collect::<Vec<_>>()
    };
    match kind {
        EventKind::Booted => {
            core::iter::once(None).chain(specs.map(Some)).map(|spec| Event::Booted { spec }).collect()
        }
        EventKind::ConfigureRequested => specs.map(|spec| Event::ConfigureRequested { request, spec }).into(),
        EventKind::TerminateRequested => [TerminateMode::Fast, TerminateMode::Immediate]
            .map(|mode| Event::TerminateRequested { request, mode })
            .into(),
        EventKind::TerminateIfIdleRequested => [TerminateMode::Fast, TerminateMode::Immediate]
            .map(|mode| Event::TerminateIfIdleRequested { request, mode })
            .into(),
        EventKind::PromoteRequested => {
            let lsn = Lsn(0x16B_3748);
            specs.map(|spec| Event::PromoteRequested { request, spec, lsn }).into()
        }
        EventKind::RefreshRequested => [Event::RefreshRequested { request }].into(),
        EventKind::RefreshHinted => [Event::RefreshHinted].into(),
        EventKind::StopSignalled => [Event::StopSignalled].into(),
        EventKind::ReloadSignalled => [Event::ReloadSignalled].into(),
        EventKind::WarmUpEnded => each(|epoch| Event::WarmUpEnded { epoch }),
        EventKind::SpecResolved => each(|epoch| Event::SpecResolved { epoch }),
        EventKind::SpecRejected => failing(|epoch, class| Event::SpecRejected { epoch, class }),
        EventKind::StoragePrepared => each(|epoch| Event::StoragePrepared { epoch }),
        EventKind::StorageFailed => failing(|epoch, class| Event::StorageFailed { epoch, class }),
        EventKind::SpecApplied => each(|epoch| Event::SpecApplied { epoch }),
        EventKind::ApplyFailed => failing(|epoch, class| Event::ApplyFailed { epoch, class }),
        EventKind::Promoted => each(|epoch| Event::Promoted { epoch }),
        EventKind::PromoteFailed => failing(|epoch, class| Event::PromoteFailed { epoch, class }),
        EventKind::FoundIdle => each(|epoch| Event::FoundIdle { epoch }),
        EventKind::FoundBusy => each(|epoch| Event::FoundBusy { epoch }),
        EventKind::IdleCheckFailed => failing(|epoch, class| Event::IdleCheckFailed { epoch, class }),
        EventKind::SpecFetched => {
            let found = specs.iter().flat_map(|spec| {
                [false, true].map(|same_pageservers| FetchedSpec::Spec { spec: *spec, same_pageservers })
            });
            let found: Vec<FetchedSpec> = found.chain([FetchedSpec::NoSpec]).collect();
            let fetched = |epoch: &Epoch| {
                let epoch = *epoch;
                found.iter().map(move |fetched| Event::SpecFetched { epoch, fetched: *fetched })
            };
            epochs.iter().flat_map(fetched).collect()
        }
        EventKind::FetchFailed => failing(|epoch, class| Event::FetchFailed { epoch, class }),
        EventKind::Swept => each(|epoch| Event::Swept { epoch }),
        EventKind::FinalSyncDone => each(|epoch| Event::FinalSyncDone { epoch, lsn: Lsn(0x16B_3748) }),
        EventKind::FinalSyncFailed => failing(|epoch, class| Event::FinalSyncFailed { epoch, class }),
        EventKind::SpawnFailed => failing(|postmaster, class| Event::SpawnFailed { postmaster, class }),
        EventKind::PostmasterProgressed => each(|postmaster| Event::PostmasterProgressed { postmaster }),
        EventKind::PostmasterReady => each(|postmaster| Event::PostmasterReady { postmaster }),
        EventKind::PostmasterExited => {
            let exits = [Exit::Code(0), Exit::Code(1), Exit::Signal(9)];
            let exited = |postmaster: &Epoch| {
                let postmaster = *postmaster;
                exits.map(|exit| Event::PostmasterExited { postmaster, exit })
            };
            epochs.iter().flat_map(exited).collect()
        }
        EventKind::ActivityObserved => {
            let seen = |postmaster: &Epoch| {
                let postmaster = *postmaster;
                [false, true].map(|busy| Event::ActivityObserved { postmaster, busy })
            };
            epochs.iter().flat_map(seen).collect()
        }
        EventKind::TimerFired => each(|epoch| Event::TimerFired { epoch }),
    }
}
