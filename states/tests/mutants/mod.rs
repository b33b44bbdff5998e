//! Ways in which a machine can be wrong in one cell, and a machine that is.
#![allow(unreachable_pub, reason = "a module of a test")]

use std::time::Duration;

use compute_states::{
    Cause, ComputeStatus, Effect, EffectKind, Epoch, Event, EventKind, Exit, ExitReason, Lsn, Machine,
    Policy, Refusal, Reply, RequestId, Revision, StopMode, TerminationResult, Timer, Verdict,
};
use serde::Deserialize;
use serde_json::Value;

use crate::harness::{Reaction, Subject, react};

/// Where a machine is wrong: the status, the kind of event, and what the sound machine makes of it.
pub type Cell = (ComputeStatus, EventKind, Verdict);

/// How it is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wrong {
    /// The event never happened.
    Swallow,
    /// Everything is requested and answered, but nothing is remembered and no move made.
    StayAsItWas,
    /// The move leads to another status.
    Retarget(ComputeStatus),
    /// Another verdict is given.
    Verdict(Verdict),
    /// A kind of effect is forgotten. For `Cancel` this is work that goes on, for `Reply` a client left waiting.
    Drop(EffectKind),
    /// A kind of effect is requested twice.
    Repeat(EffectKind),
    /// The data of a kind of effect is wrong.
    Alter(EffectKind, u8),
    /// The effects come in the opposite order.
    Reverse,
    /// An outdated number is taken for the present one.
    AcceptStale,
    /// One remembered fact, named by its place in the journal's form of the machine, is wrong afterwards.
    Misremember(String),
}

/// A machine with one fault, or none yet.
#[derive(Clone, Debug)]
pub struct Mutant {
    pub machine: Machine,
    pub cell: Cell,
    pub wrong: Wrong,
    /// States to move to by mistake.
    pub elsewhere: Option<Value>,
    /// How often the fault has shown.
    pub shown: u32,
}

impl Subject for Mutant {
    fn start(&mut self, policy: Policy) {
        self.machine = Machine::new(policy);
    }

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn handle(&mut self, event: &Event) -> Reaction {
        let before = self.machine.clone();
        let mut reaction = react(&mut self.machine, event);
        if (before.status(), event.kind(), reaction.verdict) != self.cell {
            return reaction;
        }
        match &self.wrong {
            Wrong::Swallow => {
                self.machine = before.clone();
                reaction.effects.clear();
                reaction.verdict = Verdict::Stale;
            }
            Wrong::StayAsItWas => self.machine = before.clone(),
            Wrong::Retarget(_) => {
                let state = self.elsewhere.clone().expect("a state to move to");
                let mut value = journalled(&self.machine);
                value["state"] = state;
                let Some(machine) = read_back(&value) else { return reaction };
                self.machine = machine;
            }
            Wrong::Verdict(verdict) => reaction.verdict = *verdict,
            Wrong::Drop(kind) => reaction.effects.retain(|effect| effect.kind() != *kind),
            Wrong::Repeat(kind) => {
                let again: Vec<Effect> =
                    reaction.effects.iter().copied().filter(|effect| effect.kind() == *kind).collect();
                let place = reaction.effects.iter().rposition(|effect| effect.kind() == *kind);
                let place = place.map_or(0, |place| place + 1);
                reaction.effects.splice(place..place, again);
            }
            Wrong::Alter(kind, how) => {
                for effect in &mut reaction.effects {
                    if effect.kind() == *kind
                        && let Some(altered) = altered(effect, *how)
                    {
                        *effect = altered;
                    }
                }
            }
            Wrong::Reverse => reaction.effects.reverse(),
            Wrong::AcceptStale => {
                let Some(fooled) = fooled(&before, event) else { return reaction };
                self.machine = before.clone();
                reaction = react(&mut self.machine, &fooled);
            }
            Wrong::Misremember(place) => {
                let mut journal = journalled(&self.machine);
                let Some(fact) = journal.pointer(place) else { return reaction };
                let Some(machine) = misremembered(fact).into_iter().find_map(|wrong| {
                    *journal.pointer_mut(place).expect("it was there") = wrong;
                    read_back(&journal)
                }) else {
                    return reaction;
                };
                self.machine = machine;
            }
        }
        self.shown += 1;
        reaction.changed = self.machine != before;
        reaction
    }
}

pub fn journalled(machine: &Machine) -> Value {
    serde_json::to_value(machine).expect("a machine can be journalled")
}

fn read_back(value: &Value) -> Option<Machine> {
    Machine::deserialize(value).ok()
}

/// The event as a machine that checks no numbers would understand it: with a number it is waiting for.
fn fooled(machine: &Machine, event: &Event) -> Option<Event> {
    let last = machine.compute().last_epoch.0;
    (1..=last).rev().find_map(|epoch| {
        let event = with_epoch(event, Epoch(epoch))?;
        (machine.clone().handle(&event).verdict() != Verdict::Stale).then_some(event)
    })
}

/// The event about something else. Written through the journal's form, where every epoch is called one of two names.
fn with_epoch(event: &Event, epoch: Epoch) -> Option<Event> {
    let mut value = serde_json::to_value(event).ok()?;
    let fields = value.as_object_mut()?.values_mut().next()?.as_object_mut()?;
    let key = ["epoch", "postmaster"].into_iter().find(|key| fields.contains_key(*key))?;
    fields.insert(key.to_owned(), epoch.0.into());
    serde_json::from_value(value).ok()
}

/// Values to put in the place of a fact; the first that the machine can be read back with is taken.
fn misremembered(fact: &Value) -> Vec<Value> {
    match fact {
        Value::Bool(value) => vec![Value::Bool(!value)],
        Value::Null => vec![Value::from(1), Value::Bool(true)],
        Value::Number(number) => {
            let number = number.as_u64().unwrap_or(0);
            vec![Value::Null, Value::from(number + 1), Value::from(number.saturating_sub(1))]
        }
        Value::String(text) => {
            let others = [
                "fast",
                "immediate",
                "kill",
                "stopped",
                "detached",
                "start_failed",
                "final_sync_failed",
                "after_fetch",
                "transient",
                "permanent",
                "idle",
                "unapplied",
                "done",
                "spawned",
            ];
            others.iter().filter(|other| *other != text).map(|other| Value::from(*other)).collect()
        }
        Value::Array(list) if list.is_empty() => vec![Value::from(vec![1])],
        Value::Array(list) => vec![Value::from(list[1..].to_vec())],
        Value::Object(_) => vec![Value::Null],
    }
}

/// Every place in the journal's form of a machine that holds a fact, policy apart.
pub fn facts(machine: &Machine) -> Vec<String> {
    fn walk(value: &Value, place: &str, facts: &mut Vec<String>) {
        if place == "/compute/policy" {
            return;
        }
        if place.matches('/').count() > 2 || place.starts_with("/compute/") {
            facts.push(place.to_owned());
        }
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    walk(value, &format!("{place}/{key}"), facts);
                }
            }
            Value::Array(list) => {
                for (index, value) in list.iter().enumerate() {
                    walk(value, &format!("{place}/{index}"), facts);
                }
            }
            _ => {}
        }
    }
    let mut journal = journalled(machine);
    let mut facts = Vec::new();
    walk(&journal, "", &mut facts);
    facts.retain(|place| {
        let fact = journal.pointer(place).expect("a fact").clone();
        let is_one = misremembered(&fact).into_iter().any(|wrong| {
            *journal.pointer_mut(place).expect("a fact") = wrong;
            read_back(&journal).is_some_and(|other| other != *machine)
        });
        *journal.pointer_mut(place).expect("a fact") = fact;
        is_one
    });
    facts
}

/// The effect with its data wrong, in one of several ways.
fn altered(effect: &Effect, how: u8) -> Option<Effect> {
    let next = |revision: Revision| Revision(revision.0 + 1);
    let mut effect = *effect;
    match (&mut effect, how) {
        (Effect::ArmTimer { after, .. }, 0) => *after += Duration::from_secs(1),
        (Effect::ArmTimer { timer, .. }, 1) => {
            *timer = if *timer == Timer::StopDeadline { Timer::StartDeadline } else { Timer::StopDeadline };
        }
        (
            Effect::ArmTimer { epoch, .. }
            | Effect::WarmUp { epoch }
            | Effect::ResolveSpec { epoch, .. }
            | Effect::FetchSpec { epoch, .. }
            | Effect::Sweep { epoch }
            | Effect::FinalSync { epoch, .. }
            | Effect::PrepareStorage { epoch, .. }
            | Effect::Promote { epoch, .. }
            | Effect::CheckIdle { epoch, .. }
            | Effect::ApplySpec { epoch, .. },
            2,
        ) => epoch.0 = epoch.0.checked_sub(1)?,
        (Effect::Cancel { epoch }, 2) => epoch.0 += 1,
        (
            Effect::ResolveSpec { spec, .. }
            | Effect::PrepareStorage { spec, .. }
            | Effect::StartPostmaster { spec, .. }
            | Effect::ApplySpec { spec, .. }
            | Effect::Promote { spec, .. }
            | Effect::FinalSync { spec, .. },
            0,
        ) => *spec = next(*spec),
        (Effect::FetchSpec { applied, .. }, 0) => {
            *applied = if applied.is_some() { None } else { Some(Revision(1)) };
        }
        (Effect::PrepareStorage { restart, .. }, 1) => *restart = !*restart,
        (Effect::ApplySpec { first, .. }, 1) => *first = !*first,
        (
            Effect::StartPostmaster { postmaster, .. }
            | Effect::StopPostmaster { postmaster, .. }
            | Effect::ReloadPostmaster { postmaster },
            2,
        ) => postmaster.0 = postmaster.0.checked_sub(1)?,
        (Effect::Promote { lsn, .. }, 1) => lsn.0 += 1,
        (
            Effect::ApplySpec { postmaster, .. }
            | Effect::Promote { postmaster, .. }
            | Effect::CheckIdle { postmaster, .. },
            3,
        ) => postmaster.0 = postmaster.0.checked_sub(1)?,
        (Effect::StopPostmaster { mode, .. }, 0) => {
            *mode = if *mode == StopMode::Kill { StopMode::Fast } else { StopMode::Kill };
        }
        (Effect::StopPostmaster { mode, .. }, 1) => {
            *mode = if *mode == StopMode::Immediate { StopMode::Fast } else { StopMode::Immediate };
        }
        (Effect::Reply { reply, .. }, 0) => *reply = wrong_reply(*reply),
        (Effect::Reply { request, .. }, 1) => *request = RequestId(request.0 + 1),
        (Effect::Reply { request, .. }, 2) => *request = RequestId(request.0.saturating_sub(1)),
        (Effect::Exit { reason }, 0) => {
            *reason = if *reason == ExitReason::Stopped {
                ExitReason::PostgresExited(Exit::Code(0))
            } else {
                ExitReason::Stopped
            };
        }
        _ => return None,
    }
    Some(effect)
}

fn wrong_reply(reply: Reply) -> Reply {
    match reply {
        Reply::Configured => Reply::ConfigureFailed,
        Reply::ConfigureFailed => Reply::Configured,
        Reply::ConfigureSuperseded => Reply::ConfigureFailed,
        Reply::RefreshAccepted => {
            Reply::Refused { refusal: Refusal::CannotRefresh, status: ComputeStatus::Running }
        }
        Reply::Promoted => Reply::PromoteFailed,
        Reply::PromoteFailed => Reply::PromoteSuperseded,
        Reply::PromoteSuperseded => Reply::PromoteFailed,
        Reply::NotIdle => Reply::IdleUnknown,
        Reply::IdleUnknown => Reply::NotIdle,
        Reply::Terminated(TerminationResult::FinalSyncFailed) => {
            Reply::Terminated(TerminationResult::Stopped(None))
        }
        Reply::Terminated(TerminationResult::Stopped(_)) => {
            Reply::Terminated(TerminationResult::Stopped(Some(Lsn(1))))
        }
        Reply::AlreadyTerminated(result) => Reply::Terminated(result),
        Reply::Refused { refusal: Refusal::CannotRefresh, .. } => Reply::RefreshAccepted,
        Reply::Refused { status, .. } => Reply::Refused { refusal: Refusal::CannotRefresh, status },
    }
}

/// Every way to be wrong where the sound machine did this.
pub fn ways(cell: &Cell, reaction: &Reaction, after: &Machine) -> Vec<Wrong> {
    let mut ways = Vec::new();
    let (before, _, verdict) = *cell;
    if reaction.changed || !reaction.effects.is_empty() || verdict != Verdict::Stale {
        ways.push(Wrong::Swallow);
    }
    if reaction.changed {
        ways.push(Wrong::StayAsItWas);
        ways.extend(facts(after).into_iter().map(Wrong::Misremember));
    }
    for status in ComputeStatus::ALL {
        // Also to the status that was left, in another shape.
        if status != after.status() && (reaction.changed || status != before) {
            ways.push(Wrong::Retarget(status));
        }
    }
    let cause = Cause::ActivityNoted;
    let others = [
        Verdict::Moved(cause),
        Verdict::Taken(cause),
        Verdict::Latched { cause, told: None },
        Verdict::Latched { cause, told: Some(Refusal::CannotRefresh) },
        Verdict::Refused(Refusal::TooManyWaiters),
        Verdict::Refused(Refusal::InvalidStatus),
        Verdict::Stale,
    ];
    let differs = |other: &Verdict| match (other, verdict) {
        (Verdict::Latched { told: a, .. }, Verdict::Latched { told: b, .. }) => *a != b,
        (Verdict::Refused(a), Verdict::Refused(b)) => *a != b,
        (other, verdict) => other.name() != verdict.name(),
    };
    ways.extend(others.into_iter().filter(differs).map(Wrong::Verdict));
    for kind in EffectKind::ALL {
        let Some(example) = reaction.effects.iter().find(|effect| effect.kind() == *kind) else { continue };
        ways.push(Wrong::Drop(*kind));
        ways.push(Wrong::Repeat(*kind));
        ways.extend(
            (0..4).filter(|how| altered(example, *how).is_some()).map(|how| Wrong::Alter(*kind, how)),
        );
    }
    if reaction.effects.len() > 1 {
        ways.push(Wrong::Reverse);
    }
    if verdict == Verdict::Stale {
        ways.push(Wrong::AcceptStale);
    }
    ways
}
