//! Invariants, seen from outside: no table, no knowledge of the machine's inside.

use std::collections::{BTreeMap, BTreeSet};

use compute_states::{
    Cause, ComputeStatus as S, Effect, Epoch, Event, EventKind, ExitReason, Policy, Refusal, Reply,
    RequestId, TerminateMode, Timer, Verdict,
};

use super::Reaction;
use crate::reference::Thing;

/// What an onlooker remembers.
#[derive(Clone, Debug)]
pub struct Watch {
    policy: Policy,
    booted: bool,
    last_epoch: Epoch,
    /// Who is owed an answer, to what.
    owed: BTreeMap<RequestId, EventKind>,
    asked: BTreeSet<RequestId>,
    /// The process there is, or is being spawned.
    alive: Option<Epoch>,
    /// Requested, neither ended nor cancelled.
    wanted: BTreeMap<Epoch, Thing>,
    known: BTreeSet<Epoch>,
    fast: bool,
    /// How a termination is to end that waits for a look.
    looking: Option<TerminateMode>,
    hastened: bool,
    was_empty: bool,
    crashed: bool,
    promoted: bool,
    exited: bool,
}

impl Watch {
    pub fn new(policy: Policy) -> Self {
        Watch {
            policy,
            booted: false,
            last_epoch: Epoch(0),
            owed: BTreeMap::new(),
            asked: BTreeSet::new(),
            alive: None,
            wanted: BTreeMap::new(),
            known: BTreeSet::new(),
            fast: false,
            looking: None,
            hastened: false,
            was_empty: false,
            crashed: false,
            promoted: false,
            exited: false,
        }
    }

    fn waits(&self, wanted: impl Fn(Thing) -> bool) -> bool {
        self.wanted.values().any(|thing| wanted(*thing))
    }

    /// Everything wrong with one step that can be seen from outside.
    pub fn judge(
        &mut self,
        event: &Event,
        before: S,
        after: S,
        fault: bool,
        reaction: &Reaction,
    ) -> Result<(), String> {
        self.note_event(event, before, after, reaction);
        self.verdict(before, after, reaction)?;
        for (place, effect) in reaction.effects.iter().enumerate() {
            self.effect(effect, before, after)?;
            let last = place + 1 == reaction.effects.len();
            ensure(last || !matches!(effect, Effect::Exit { .. }), "Exit is not the last effect")?;
        }
        self.state(event, before, after, fault, reaction)
    }

    fn note_event(&mut self, event: &Event, before: S, after: S, reaction: &Reaction) {
        match *event {
            Event::ConfigureRequested { request, .. }
            | Event::TerminateRequested { request, .. }
            | Event::TerminateIfIdleRequested { request, .. }
            | Event::PromoteRequested { request, .. }
            | Event::RefreshRequested { request } => {
                self.owed.insert(request, event.kind());
                self.asked.insert(request);
            }
            _ => {}
        }
        self.booted |= matches!(event, Event::Booted { .. });
        if let Some(epoch) = event.settles() {
            self.wanted.remove(&epoch);
        }
        if let Event::TimerFired { epoch } = *event {
            self.wanted.remove(&epoch);
        }
        if let Some(postmaster) = event.ends_postmaster()
            && self.alive == Some(postmaster)
        {
            self.alive = None;
        }
        // What is looked at first decides when the look has a result.
        let down =
            matches!(before, S::TerminationPendingFast | S::TerminationPendingImmediate | S::Terminated);
        if let Event::TerminateIfIdleRequested { mode, .. } = *event {
            let refused = matches!(reaction.verdict, Verdict::Refused(_));
            let begun = reaction.verdict == Verdict::Taken(Cause::IdleCheckRequested);
            if down {
                self.hastened |= mode == TerminateMode::Immediate && !refused;
            } else if begun || (mode == TerminateMode::Immediate && !refused) {
                self.looking = Some(mode);
            }
        }
        if matches!(event, Event::FoundIdle { .. }) && after != before {
            self.fast |= self.looking == Some(TerminateMode::Fast);
        }
        if let Event::TerminateRequested { mode, .. } = *event {
            self.fast |= mode == TerminateMode::Fast && before != S::Terminated;
            // One that is turned down, because too many wait already, hastens nothing.
            let refused = matches!(reaction.verdict, Verdict::Refused(_));
            self.hastened |= mode == TerminateMode::Immediate && !refused;
            self.was_empty |= before == S::Empty;
        }
        self.hastened |= *event == Event::StopSignalled;
        if after == S::Failed && before != S::Failed {
            let exit = matches!(event, Event::PostmasterExited { .. });
            self.crashed = exit && before != S::Init;
        } else if before == S::Failed && self.crashed != matches!(event, Event::PostmasterExited { .. }) {
            // A Postgres that served on after a failed reconfiguration can crash while `failed`.
            self.crashed |= matches!(event, Event::PostmasterExited { .. })
                && !self.waits(|thing| thing == Thing::Timer(Timer::FailedLinger))
                && !self.waits(|thing| thing == Thing::Timer(Timer::SweepDeadline))
                && !self.waits(|thing| thing == Thing::Timer(Timer::FinalSyncDeadline));
        }
    }

    fn verdict(&self, before: S, after: S, reaction: &Reaction) -> Result<(), String> {
        ensure(reaction.has_verdict, "no verdict")?;
        let moved = matches!(reaction.verdict, Verdict::Moved(_));
        let unseen = before == S::Failed && after == S::Failed;
        ensure(
            moved == (before != after) || (moved && unseen),
            "the verdict and the status disagree on a move",
        )?;
        ensure(before != S::Terminated || after == S::Terminated, "Terminated was left")?;
        if reaction.verdict == Verdict::Stale {
            ensure(reaction.effects.is_empty() && !reaction.changed, "a stale event did something")?;
        }
        if let Verdict::Refused(_) = reaction.verdict {
            let only_replies = reaction.effects.iter().all(|effect| matches!(effect, Effect::Reply { .. }));
            ensure(only_replies && !reaction.changed, "a refused event did something")?;
        }
        Ok(())
    }

    fn effect(&mut self, effect: &Effect, before: S, after: S) -> Result<(), String> {
        ensure(!self.exited || matches!(effect, Effect::Reply { .. }), "something is done after Exit")?;
        match *effect {
            Effect::WarmUp { epoch } => self.issue(epoch, Thing::WarmUp),
            Effect::ResolveSpec { epoch, .. } => self.issue(epoch, Thing::Resolve),
            Effect::PrepareStorage { epoch, .. } => {
                ensure(self.alive.is_none(), "storage is prepared under a live postmaster")?;
                self.issue(epoch, Thing::Prepare)
            }
            Effect::StartPostmaster { postmaster, .. } => {
                ensure(self.alive.is_none(), "a second postmaster")?;
                self.alive = Some(postmaster);
                self.issue(postmaster, Thing::Postmaster)?;
                self.wanted.remove(&postmaster);
                Ok(())
            }
            Effect::ApplySpec { epoch, postmaster, .. } => {
                ensure(self.alive == Some(postmaster), "a spec is applied to no live postmaster")?;
                self.issue(epoch, Thing::Apply)
            }
            Effect::Promote { epoch, postmaster, .. } => {
                ensure(self.alive == Some(postmaster), "no live postmaster is promoted")?;
                ensure(!self.promoted, "a second promotion")?;
                self.issue(epoch, Thing::Promote)
            }
            Effect::CheckIdle { epoch, postmaster } => {
                ensure(self.alive == Some(postmaster), "no live postmaster is looked at")?;
                self.issue(epoch, Thing::CheckIdle)
            }
            Effect::FetchSpec { epoch, .. } => self.issue(epoch, Thing::Fetch),
            Effect::StopPostmaster { postmaster, .. } | Effect::ReloadPostmaster { postmaster } => {
                ensure(self.alive == Some(postmaster), "a signal for no live postmaster")
            }
            Effect::Sweep { epoch } => self.issue(epoch, Thing::Sweep),
            Effect::FinalSync { epoch, .. } => {
                ensure(self.alive.is_none(), "a final sync beside a live postmaster")?;
                ensure(!self.waits(|thing| thing == Thing::Sweep), "a final sync beside a sweep")?;
                self.issue(epoch, Thing::FinalSync)
            }
            Effect::Cancel { epoch } => {
                self.wanted.remove(&epoch);
                ensure(self.known.contains(&epoch), "something is cancelled that never was")
            }
            Effect::ArmTimer { epoch, timer, after: pause } => {
                match timer {
                    Timer::TerminatedLinger => {
                        ensure(
                            self.fast
                                && !self.hastened
                                && !self.was_empty
                                && pause == self.policy.fast_linger,
                            "a linger that nobody asked for",
                        )?;
                    }
                    Timer::FailedLinger => {
                        let policy = &self.policy;
                        let due = if self.crashed { policy.crash_linger } else { policy.failed_linger };
                        ensure(pause == due, "a failure lingers too long or too short")?;
                    }
                    _ => {}
                }
                self.issue(epoch, Thing::Timer(timer))
            }
            Effect::Reply { request, reply } => self.reply(request, reply, before, after),
            Effect::Exit { reason } => {
                ensure(!self.exited, "a second Exit")?;
                self.exited = true;
                ensure(self.owed.is_empty(), "an exit without an answer")?;
                let orderly = matches!(reason, ExitReason::Stopped | ExitReason::FinalSyncFailed);
                ensure(self.alive.is_none() || !orderly, "an orderly exit leaves a postmaster")
            }
        }
    }

    fn issue(&mut self, epoch: Epoch, thing: Thing) -> Result<(), String> {
        let newer = epoch > self.last_epoch;
        self.last_epoch = epoch;
        self.known.insert(epoch);
        self.wanted.insert(epoch, thing);
        ensure(newer, "an epoch was used again")
    }

    fn reply(&mut self, request: RequestId, reply: Reply, before: S, after: S) -> Result<(), String> {
        ensure(self.asked.contains(&request), "an answer to nobody")?;
        let Some(kind) = self.owed.remove(&request) else { return Err("a second answer".into()) };
        let configure = kind == EventKind::ConfigureRequested;
        let if_idle = kind == EventKind::TerminateIfIdleRequested;
        let terminate = if_idle || kind == EventKind::TerminateRequested;
        let promote = kind == EventKind::PromoteRequested;
        self.promoted |= reply == Reply::Promoted;
        let fits = match reply {
            Reply::Configured => configure && after == S::Running,
            Reply::ConfigureFailed => {
                configure && matches!(after, S::Failed | S::Init | S::RefreshConfigurationPending)
            }
            Reply::ConfigureSuperseded => {
                configure && matches!(after, S::TerminationPendingFast | S::TerminationPendingImmediate)
            }
            Reply::RefreshAccepted => kind == EventKind::RefreshRequested,
            Reply::Promoted => promote,
            Reply::PromoteFailed => {
                promote && matches!(after, S::Running | S::Failed | S::RefreshConfigurationPending)
            }
            Reply::PromoteSuperseded => {
                promote && matches!(after, S::TerminationPendingFast | S::TerminationPendingImmediate)
            }
            Reply::NotIdle | Reply::IdleUnknown => if_idle && (before, after) == (S::Running, S::Running),
            Reply::Terminated(_) => terminate && before != S::Terminated && after == S::Terminated,
            Reply::AlreadyTerminated(_) => terminate && before == S::Terminated,
            // To those who wait for a look, whatever else has begun.
            Reply::Refused { refusal: Refusal::WorkBegun, status } => {
                if_idle && before == S::Running && status == after
            }
            Reply::Refused { refusal, status } => {
                let fits = match kind {
                    EventKind::ConfigureRequested if refusal == Refusal::Promoting => before == S::Running,
                    EventKind::ConfigureRequested => refusal == Refusal::InvalidStatus,
                    EventKind::PromoteRequested => {
                        matches!(refusal, Refusal::CannotPromote | Refusal::TooManyWaiters)
                    }
                    EventKind::TerminateRequested => refusal == Refusal::TooManyWaiters,
                    EventKind::TerminateIfIdleRequested => match before {
                        S::Running => matches!(refusal, Refusal::TooManyWaiters | Refusal::Promoting),
                        S::TerminationPendingFast | S::TerminationPendingImmediate => {
                            refusal == Refusal::TooManyWaiters
                        }
                        _ => refusal == Refusal::InvalidStatus,
                    },
                    _ => matches!(refusal, Refusal::CannotRefresh | Refusal::PostmasterUnconfirmed),
                };
                fits && status == before
            }
        };
        ensure(fits, "an answer to another question")
    }

    /// What must hold between two events.
    fn state(
        &mut self,
        event: &Event,
        before: S,
        after: S,
        fault: bool,
        reaction: &Reaction,
    ) -> Result<(), String> {
        ensure(after != S::Running || !fault, "an error while running")?;
        ensure(after != S::Failed || fault, "a failure without an error")?;
        let serving = matches!(after, S::Running | S::Configuration | S::RefreshConfiguration);
        ensure(!serving || self.alive.is_some(), "Postgres is said to serve and is gone")?;

        for (request, kind) in &self.owed {
            let may_wait = match kind {
                EventKind::ConfigureRequested => {
                    matches!(after, S::ConfigurationPending | S::Init | S::Configuration)
                }
                // A fetch ends; the pauses between fetches may never.
                EventKind::PromoteRequested if after == S::RefreshConfigurationPending => {
                    self.waits(|thing| thing == Thing::Fetch)
                }
                EventKind::PromoteRequested => matches!(
                    after,
                    S::Running | S::ConfigurationPending | S::Configuration | S::RefreshConfiguration
                ),
                EventKind::TerminateIfIdleRequested if after == S::Running => true,
                EventKind::TerminateRequested | EventKind::TerminateIfIdleRequested => {
                    matches!(after, S::TerminationPendingFast | S::TerminationPendingImmediate)
                }
                _ => false,
            };
            ensure(may_wait, &format!("{request:?} ({kind:?}) is left waiting"))?;
        }

        // Whatever was requested is waited for by the state that requested it, or was cancelled.
        for thing in self.wanted.values() {
            ensure(fits(*thing, after), &format!("{thing:?} was left behind"))?;
        }
        let waits = |list: &[Thing]| self.wanted.values().any(|thing| list.contains(thing));
        let goes_on = match after {
            S::Empty => {
                !self.booted || event.kind() != EventKind::Booted || before != S::Empty || {
                    reaction.verdict == Verdict::Stale || waits(&[Thing::WarmUp])
                }
            }
            S::Running => {
                let owes = |kind| self.owed.values().any(|owed| *owed == kind);
                (!owes(EventKind::PromoteRequested) || waits(&[Thing::Promote, Thing::Apply]))
                    && (!owes(EventKind::TerminateIfIdleRequested) || waits(&[Thing::CheckIdle]))
            }
            S::ConfigurationPending => waits(&[Thing::Resolve]),
            S::Configuration | S::RefreshConfiguration => waits(&[Thing::Apply]),
            S::Init => waits(&[
                Thing::Prepare,
                Thing::Apply,
                Thing::Timer(Timer::StorageBackoff),
                Thing::Timer(Timer::StartDeadline),
                Thing::Timer(Timer::StopDeadline),
            ]),
            S::RefreshConfigurationPending => waits(&[Thing::Fetch, Thing::Timer(Timer::RefreshBackoff)]),
            S::Failed => {
                self.exited
                    || self.alive.is_some()
                    || waits(&[
                        Thing::Timer(Timer::SweepDeadline),
                        Thing::Timer(Timer::FinalSyncDeadline),
                        Thing::Timer(Timer::FailedLinger),
                    ])
            }
            S::TerminationPendingFast | S::TerminationPendingImmediate => waits(&[
                Thing::Timer(Timer::StopDeadline),
                Thing::Timer(Timer::SweepDeadline),
                Thing::Timer(Timer::FinalSyncDeadline),
            ]),
            S::Terminated => self.exited || waits(&[Thing::Timer(Timer::TerminatedLinger)]),
        };
        ensure(goes_on, "nothing is under way that could lead out of here")
    }
}

/// Where each piece of work and each timer belongs.
fn fits(thing: Thing, status: S) -> bool {
    let down = matches!(status, S::TerminationPendingFast | S::TerminationPendingImmediate);
    match thing {
        Thing::WarmUp => status == S::Empty,
        Thing::Resolve => status == S::ConfigurationPending,
        Thing::Prepare => status == S::Init,
        Thing::Apply => {
            matches!(status, S::Init | S::Configuration | S::RefreshConfiguration | S::Running)
        }
        Thing::Promote | Thing::CheckIdle => status == S::Running,
        Thing::Fetch => status == S::RefreshConfigurationPending,
        Thing::Sweep | Thing::FinalSync => down || status == S::Failed,
        Thing::Postmaster => true,
        Thing::Timer(timer) => match timer {
            Timer::StartDeadline | Timer::StorageBackoff => status == S::Init,
            Timer::StopDeadline => down || status == S::Init,
            Timer::SweepDeadline | Timer::FinalSyncDeadline => down || status == S::Failed,
            Timer::RefreshBackoff => status == S::RefreshConfigurationPending,
            Timer::LatchedRefresh => matches!(status, S::Running | S::Failed),
            Timer::FailedLinger => status == S::Failed,
            Timer::TerminatedLinger => status == S::Terminated,
            // It changes nothing but a count, so it may run on wherever the compute goes.
            Timer::RestartForgiven => true,
        },
    }
}

fn ensure(holds: bool, text: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(text.to_owned()) }
}
