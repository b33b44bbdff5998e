//! What became of an event, and why.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};
use statig::Outcome;

use crate::effect::{Effect, Reply, Timer};
use crate::ids::{Epoch, RequestId};
use crate::state::{Compute, State};
use crate::status::ComputeStatus;

/// Why an event moved the machine, or was taken without moving it.
///
/// `Display` is the label in diagrams and the text of the log line, so the wording is code too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the text each cause displays is its documentation")]
pub enum Cause {
    WaitingForSpec,
    SpecAtHand,
    WarmUpEnded,
    ConfigureRequested,
    SpecResolved,
    SpecRejected,
    StoragePrepared,
    StorageFailed,
    StorageFailedForNow,
    StorageBackoffOver,
    SpawnFailed,
    RecoveryAdvances,
    PostgresReady,
    StartTimedOut,
    ExitedDuringStart,
    FirstApplyFailed,
    AbandonedStop,
    Started,
    Reconfigured,
    ReconfigureFailed,
    RefreshRequested,
    RefreshHinted,
    RefreshCoalesced,
    RefreshLatched,
    LatchedRefreshDue,
    PageserversUnchanged,
    PageserversChanged,
    UnappliedAgain,
    StartAgain,
    Detached,
    FetchFailed,
    RefreshOvertaken,
    BackoffOver,
    Refreshed,
    RefreshApplyFailed,
    PromoteRequested,
    PromotionQueued,
    PromotionJoined,
    PromotionKept,
    ServerPromoted,
    Promoted,
    PromotionFailed,
    PromotedUnapplied,
    IdleCheckRequested,
    IdleCheckJoined,
    IdleCheckFailed,
    FoundIdle,
    FoundBusy,
    TerminationRequested,
    TerminationJoined,
    TerminationHastened,
    AlreadyTerminated,
    StopSignalled,
    SignalJoined,
    SignalEscalated,
    LingerCut,
    ReloadForwarded,
    PostgresStopped,
    PostgresCrashed,
    PostgresGone,
    WorkEnded,
    StopDeadlinePassed,
    Swept,
    SweepDeadlinePassed,
    FinalSyncDone,
    FinalSyncFailed,
    FinalSyncTimedOut,
    Restarting,
    RestartForgiven,
    LateExit,
    LingerOver,
    ActivityNoted,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::WaitingForSpec => "compute spawned without a spec",
            Cause::SpecAtHand => "compute spec is immediately available",
            Cause::WarmUpEnded => "warm-up ended",
            Cause::ConfigureRequested => "received a /configure request with spec",
            Cause::SpecResolved => "received compute spec",
            Cause::SpecRejected => "this node cannot serve the spec",
            Cause::StoragePrepared => "data directory is ready",
            Cause::StorageFailed => "data directory could not be prepared",
            Cause::StorageFailedForNow => {
                "data directory could not be prepared and is tried again after a pause"
            }
            Cause::StorageBackoffOver => "data directory is prepared again",
            Cause::SpawnFailed => "postmaster could not be spawned",
            Cause::RecoveryAdvances => "Postgres is recovering",
            Cause::PostgresReady => "Postgres accepts connections",
            Cause::StartTimedOut => "Postgres was not ready in time",
            Cause::ExitedDuringStart => "Postgres exited during the start",
            Cause::FirstApplyFailed => "spec could not be applied to the new Postgres",
            Cause::AbandonedStop => "the abandoned Postgres is gone",
            Cause::Started => "started Postgres",
            Cause::Reconfigured => "compute has been configured",
            Cause::ReconfigureFailed => "failed to configure the compute",
            Cause::RefreshRequested => "received a /refresh_configuration request",
            Cause::RefreshHinted => "storage configuration is suspected to be stale",
            Cause::RefreshCoalesced => "a refresh is under way already",
            Cause::RefreshLatched => "refresh will follow the present work",
            Cause::LatchedRefreshDue => "latched refresh is due",
            Cause::PageserversUnchanged => "fetched spec points at the same pageservers",
            Cause::PageserversChanged => "fetched spec points at other pageservers",
            Cause::UnappliedAgain => "the wanted spec was never applied",
            Cause::StartAgain => "fetched a spec to start with",
            Cause::Detached => "control plane has no spec for this compute",
            Cause::FetchFailed => "spec could not be fetched",
            Cause::RefreshOvertaken => "spec could not be fetched, and a promotion goes first",
            Cause::BackoffOver => "pause between attempts is over",
            Cause::Refreshed => "compute has been re-configured",
            Cause::RefreshApplyFailed => "fetched spec could not be applied",
            Cause::PromoteRequested => "received a /promote request",
            Cause::PromotionQueued => "promotion will follow the present work",
            Cause::PromotionJoined => "a promotion is under way already",
            Cause::PromotionKept => "promoted already",
            Cause::ServerPromoted => "Postgres is a primary",
            Cause::Promoted => "compute has been promoted",
            Cause::PromotionFailed => "Postgres could not be promoted",
            Cause::PromotedUnapplied => "Postgres is a primary, but its spec could not be applied",
            Cause::IdleCheckRequested => "requested termination if idle",
            Cause::IdleCheckJoined => "a look at what is at work is under way already",
            Cause::IdleCheckFailed => "what is at work could not be found out",
            Cause::FoundIdle => "requested termination, and nothing is at work",
            Cause::FoundBusy => "requested termination if idle, and something is at work",
            Cause::TerminationRequested => "requested termination",
            Cause::TerminationJoined => "joined the pending termination",
            Cause::TerminationHastened => "requested immediate termination",
            Cause::AlreadyTerminated => "terminated already",
            Cause::StopSignalled => "received a stop signal",
            Cause::SignalJoined => "stop signal joined the pending termination",
            Cause::SignalEscalated => "another stop signal",
            Cause::LingerCut => "stop signal cut the linger",
            Cause::ReloadForwarded => "reload signal forwarded",
            Cause::PostgresStopped => "Postgres was stopped from outside",
            Cause::PostgresCrashed => "Postgres crashed",
            Cause::PostgresGone => "Postgres is gone",
            Cause::WorkEnded => "cancelled work has ended",
            Cause::StopDeadlinePassed => "Postgres did not stop in time",
            Cause::Swept => "nothing is left of Postgres",
            Cause::SweepDeadlinePassed => "waited long enough for what Postgres left",
            Cause::FinalSyncDone => "safekeepers agree",
            Cause::FinalSyncFailed => "safekeepers could not be synchronised",
            Cause::FinalSyncTimedOut => "safekeepers were not synchronised in time",
            Cause::Restarting => "starting Postgres again",
            Cause::RestartForgiven => "a restart counts no longer",
            Cause::LateExit => "an unconfirmed postmaster has ended after all",
            Cause::LingerOver => "status was readable for long enough",
            Cause::ActivityNoted => "activity noted",
        })
    }
}

/// Why a request or a signal was turned down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Not in this state (`/configure`).
    InvalidStatus,
    /// Not in this state (`/refresh_configuration`). Postgres relies on hearing it: it starts the clock after
    /// which a query stuck on a moved pageserver is cancelled.
    CannotRefresh,
    /// There is no Postgres that could be promoted, or something has failed, or a refresh pauses after a spec that
    /// could not be applied (`/promote`).
    CannotPromote,
    /// A promotion is under way (`/configure`, `/terminate?if_idle=true`). It takes a minute at most.
    Promoting,
    /// Other work has begun (`/terminate?if_idle=true`), so the compute is not idle.
    WorkBegun,
    /// More clients wait than [`Policy::max_waiters`](crate::Policy::max_waiters).
    TooManyWaiters,
    /// The end of the last postmaster is not confirmed, so nothing may be started or wiped.
    PostmasterUnconfirmed,
    /// There is no Postgres that could reload.
    NothingToReload,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::InvalidStatus => "invalid compute status",
            Refusal::CannotRefresh => "cannot refresh in this state",
            Refusal::CannotPromote => "cannot promote in this state",
            Refusal::WorkBegun => "other work has begun",
            Refusal::Promoting => "a promotion is under way",
            Refusal::TooManyWaiters => "too many clients wait already",
            Refusal::PostmasterUnconfirmed => "the end of the last postmaster is not confirmed",
            Refusal::NothingToReload => "no Postgres to reload",
        })
    }
}

/// What became of an event. No event goes without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The status changed, or may have: a transition was made.
    Moved(Cause),
    /// Acted upon inside the state.
    Taken(Cause),
    /// Remembered, or merged with what is under way. The one who asked may still be told no.
    Latched {
        /// What is remembered.
        cause: Cause,
        /// What the one who asked was told, if not yes.
        told: Option<Refusal>,
    },
    /// Turned down.
    Refused(Refusal),
    /// About something that is over: a result, an exit or a timer nobody waits for.
    Stale,
}

impl Verdict {
    /// The kind of verdict, as the metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Moved(_) => "moved",
            Verdict::Taken(_) => "taken",
            Verdict::Latched { .. } => "latched",
            Verdict::Refused(_) => "refused",
            Verdict::Stale => "stale",
        }
    }

    /// Why.
    pub fn cause(self) -> Option<Cause> {
        match self {
            Verdict::Moved(cause) | Verdict::Taken(cause) | Verdict::Latched { cause, .. } => Some(cause),
            Verdict::Refused(_) | Verdict::Stale => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Moved(cause) | Verdict::Taken(cause) => cause.fmt(f),
            Verdict::Latched { cause, told: None } => cause.fmt(f),
            Verdict::Latched { cause, told: Some(refusal) } => {
                write!(f, "{cause}, though refused: {refusal}")
            }
            Verdict::Refused(refusal) => refusal.fmt(f),
            Verdict::Stale => f.write_str("nobody waits for it"),
        }
    }
}

/// What one event led to. Handlers write it; the loop reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    effects: Vec<Effect>,
    verdict: Option<Verdict>,
}

impl Step {
    /// What has to be done, in this order.
    pub fn effects(&self) -> &[Effect] {
        &self.effects
    }

    /// What became of the event.
    pub fn verdict(&self) -> Verdict {
        // The root superstate answers whatever no state did, so a handler that forgot is a bug which the
        // exhaustive walk finds; in production it is reported as a stale event and not as a crash.
        self.verdict.unwrap_or(Verdict::Stale)
    }

    /// Whether any handler gave a verdict. Only tests have a use for it.
    pub fn has_verdict(&self) -> bool {
        self.verdict.is_some()
    }

    /// Ready for the next event, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.effects.clear();
        self.verdict = None;
    }

    // ---- what handlers write --------------------------------------------------------------------------

    pub(crate) fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Acts on the event inside the state.
    pub(crate) fn take(&mut self, cause: Cause) -> Outcome<State> {
        self.verdict = Some(Verdict::Taken(cause));
        Outcome::Handled
    }

    /// Moves to another state.
    pub(crate) fn go(&mut self, cause: Cause, target: State) -> Outcome<State> {
        self.verdict = Some(Verdict::Moved(cause));
        Outcome::Transition(target)
    }

    /// Remembers the event, or merges it with what is under way.
    pub(crate) fn latch(&mut self, cause: Cause, told: Option<Refusal>) -> Outcome<State> {
        self.verdict = Some(Verdict::Latched { cause, told });
        Outcome::Handled
    }

    /// Turns the event down.
    pub(crate) fn refuse(&mut self, refusal: Refusal) -> Outcome<State> {
        self.verdict = Some(Verdict::Refused(refusal));
        Outcome::Handled
    }

    /// The event is about something that is over.
    pub(crate) fn stale(&mut self) -> Outcome<State> {
        self.verdict = Some(Verdict::Stale);
        Outcome::Handled
    }

    pub(crate) fn reply(&mut self, request: RequestId, reply: Reply) {
        self.emit(Effect::Reply { request, reply });
    }

    /// Answers a request that is turned down.
    pub(crate) fn refuse_request(&mut self, request: RequestId, refusal: Refusal, status: ComputeStatus) {
        self.reply(request, Reply::Refused { refusal, status });
    }

    /// Cancels, if there is something to cancel.
    pub(crate) fn cancel(&mut self, epoch: impl Into<Option<Epoch>>) {
        if let Some(epoch) = epoch.into() {
            self.emit(Effect::Cancel { epoch });
        }
    }

    /// Arms a timer and returns its identity.
    pub(crate) fn arm(&mut self, compute: &mut Compute, timer: Timer, after: Duration) -> Epoch {
        let epoch = compute.next_epoch();
        self.emit(Effect::ArmTimer { epoch, timer, after });
        epoch
    }
}
