//! Handlers which states share.

use statig::Outcome;

use super::shutdown::{Ending, Shutdown};
use super::{Compute, Failed, Remains, State};
use crate::effect::{Effect, Reply};
use crate::event::{Event, TerminateMode};
use crate::verdict::{Cause, Refusal, Step};

/// A group of states with a handler in common. Each borrows the state whose turn it is.
#[derive(Debug)]
pub enum Superstate<'sub> {
    /// All states. Never stays silent.
    Compute(&'sub mut State),
    /// Everything before a termination.
    Live(&'sub mut State),
    /// Everything that can have a serving Postgres.
    Attached(&'sub mut State),
    /// The two pending terminations. It adds nothing to what [`Shutdown`] does for both, and exists so that
    /// hastening one into the other leaves nothing.
    Terminating(&'sub mut State),
}

impl Superstate<'_> {
    pub(crate) fn of(state: &mut State) -> Superstate<'_> {
        match state {
            State::Empty(_) => Superstate::Live(state),
            State::ConfigurationPending(_)
            | State::Init(_)
            | State::Configuration(_)
            | State::Running(_)
            | State::RefreshConfigurationPending(_)
            | State::RefreshConfiguration(_)
            | State::Failed(_) => Superstate::Attached(state),
            State::TerminationPendingFast(_) | State::TerminationPendingImmediate(_) => {
                Superstate::Terminating(state)
            }
            State::Terminated(_) => Superstate::Compute(state),
        }
    }

    pub(crate) fn parent(&mut self) -> Option<Superstate<'_>> {
        match self {
            Superstate::Compute(_) => None,
            Superstate::Live(state) | Superstate::Terminating(state) => Some(Superstate::Compute(state)),
            Superstate::Attached(state) => Some(Superstate::Live(state)),
        }
    }

    pub(crate) fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        match self {
            Superstate::Compute(state) => any(state, compute, event, step),
            Superstate::Live(state) => live(state, compute, event, step),
            Superstate::Attached(state) => attached(state, compute, event, step),
            Superstate::Terminating(_) => Outcome::Super,
        }
    }
}

/// Before a termination: it can be asked for, or signalled, in every one of these states.
fn live(state: &State, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
    match *event {
        Event::TerminateRequested { request, mode } => {
            let ending = Ending::Requested(alloc::vec![request], mode);
            let shutdown = Shutdown::begin(step, compute, state.holdings(compute), ending);
            step.go(Cause::TerminationRequested, shutdown.into_state(mode))
        }
        Event::StopSignalled => {
            let shutdown = Shutdown::begin(step, compute, state.holdings(compute), Ending::Signalled);
            step.go(Cause::StopSignalled, shutdown.into_state(TerminateMode::Immediate))
        }
        _ => Outcome::Super,
    }
}

/// With a serving Postgres: it can end by itself, be reloaded, and be seen at work.
fn attached(state: &mut State, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
    let Some(server) = state.server().copied() else { return Outcome::Super };
    match *event {
        Event::PostmasterExited { postmaster, exit } if postmaster == server.postmaster => {
            compute.postmaster = None;
            let held = super::Holdings { postmaster: None, ..state.holdings(compute) };
            if exit.is_clean() {
                let shutdown = Shutdown::begin(step, compute, held, Ending::PostgresStopped);
                return step.go(Cause::PostgresStopped, shutdown.into_state(TerminateMode::Immediate));
            }
            step.cancel(held.work);
            for epoch in held.forget {
                step.cancel(epoch);
            }
            if let Some(request) = state.take_configure_request() {
                step.reply(request, Reply::ConfigureFailed);
            }
            let owes_refresh = owes_refresh(state) || compute.promotion.refresh;
            let target = Failed::crashed(step, compute, &server, exit, held.work, owes_refresh);
            step.go(Cause::PostgresCrashed, target)
        }
        Event::ReloadSignalled => {
            step.emit(Effect::ReloadPostmaster { postmaster: server.postmaster });
            step.take(Cause::ReloadForwarded)
        }
        Event::ActivityObserved { postmaster, .. } if postmaster == server.postmaster => {
            step.take(Cause::ActivityNoted)
        }
        _ => Outcome::Super,
    }
}

/// Whether a refresh was accepted, or is under way, and nothing has come of it yet.
fn owes_refresh(state: &State) -> bool {
    match state {
        State::RefreshConfigurationPending(_) | State::RefreshConfiguration(_) => true,
        State::ConfigurationPending(state) => state.refresh,
        State::Configuration(state) => state.refresh,
        State::Running(state) => state.refresh.is_some(),
        State::Failed(Failed { remains: Remains::Serving { refresh, .. } }) => refresh.is_some(),
        State::Empty(_)
        | State::Init(_)
        | State::Failed(_)
        | State::TerminationPendingFast(_)
        | State::TerminationPendingImmediate(_)
        | State::Terminated(_) => false,
    }
}

/// The last word. Every event is named, so that a new one has to be thought about here.
fn any(state: &State, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
    let mut turn_down = |request, refusal| {
        step.reply(request, Reply::Refused { refusal, status: state.status() });
        step.refuse(refusal)
    };
    match *event {
        Event::ConfigureRequested { request, .. }
        | Event::TerminateRequested { request, .. }
        | Event::TerminateIfIdleRequested { request, .. } => turn_down(request, Refusal::InvalidStatus),
        Event::PromoteRequested { request, .. } => turn_down(request, Refusal::CannotPromote),
        Event::RefreshRequested { request } => turn_down(request, Refusal::CannotRefresh),
        Event::RefreshHinted => step.refuse(Refusal::CannotRefresh),
        Event::ReloadSignalled => step.refuse(Refusal::NothingToReload),
        Event::TimerFired { epoch } if compute.restarts.contains(&epoch) => {
            compute.restarts.retain(|restart| *restart != epoch);
            step.take(Cause::RestartForgiven)
        }
        // Only of one that no state counts on any more: a spawn cannot fail after its Postgres was seen ready.
        Event::SpawnFailed { postmaster, .. } | Event::PostmasterExited { postmaster, .. }
            if compute.postmaster == Some(postmaster) && state.holdings(compute).postmaster.is_none() =>
        {
            compute.postmaster = None;
            step.take(Cause::LateExit)
        }
        Event::Booted { .. }
        | Event::StopSignalled
        | Event::WarmUpEnded { .. }
        | Event::SpecResolved { .. }
        | Event::SpecRejected { .. }
        | Event::StoragePrepared { .. }
        | Event::StorageFailed { .. }
        | Event::SpecApplied { .. }
        | Event::ApplyFailed { .. }
        | Event::Promoted { .. }
        | Event::PromoteFailed { .. }
        | Event::FoundIdle { .. }
        | Event::FoundBusy { .. }
        | Event::IdleCheckFailed { .. }
        | Event::SpecFetched { .. }
        | Event::FetchFailed { .. }
        | Event::Swept { .. }
        | Event::FinalSyncDone { .. }
        | Event::FinalSyncFailed { .. }
        | Event::SpawnFailed { .. }
        | Event::PostmasterProgressed { .. }
        | Event::PostmasterReady { .. }
        | Event::PostmasterExited { .. }
        | Event::ActivityObserved { .. }
        | Event::TimerFired { .. } => step.stale(),
    }
}
