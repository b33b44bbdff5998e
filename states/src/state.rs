//! The states: one struct per status, each in its own file, holding exactly what that moment knows.
//!
//! A state answers an event first; what it does not answer goes to its superstate, and the last one never
//! stays silent:
//!
//! ```text
//! Compute                       refuses requests, marks late results stale
//! ├─ Live                       terminate requests and stop signals
//! │  ├─ Empty
//! │  └─ Attached                the postmaster's exit, reload signal, activity
//! │     ├─ ConfigurationPending · Init · Configuration · Running
//! │     ├─ RefreshConfigurationPending · RefreshConfiguration
//! │     └─ Failed
//! ├─ Terminating
//! │  └─ TerminationPendingFast · TerminationPendingImmediate
//! └─ Terminated
//! ```
//!
//! [Promotion](crate::promotion) is a region: a small machine held in [`Compute`], fed the same events before the
//! state is. [The look](crate::idle_check) before a termination that is to spare what is at work is another. Prewarm, offload and certificate renewal are regions to come.

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::effect::{Effect, ExitReason, StopMode, Timer};
use crate::event::{Exit, FailureClass, SpecOutline};
use crate::idle_check::IdleCheck;
use crate::ids::{Epoch, RequestId, Revision};
use crate::policy::Policy;
use crate::promotion::Promotion;
use crate::status::ComputeStatus;
use crate::verdict::Step;

mod configuration;
mod configuration_pending;
mod empty;
mod failed;
mod init;
mod refresh_configuration;
mod refresh_configuration_pending;
mod running;
mod shutdown;
pub(crate) mod superstate;
mod terminated;
mod termination_pending_fast;
mod termination_pending_immediate;

pub use configuration::Configuration;
pub use configuration_pending::ConfigurationPending;
pub use empty::{Empty, Idleness};
pub use failed::{Failed, Gone, GoneStage, Remains, Restart};
pub use init::{Init, Phase};
pub use refresh_configuration::RefreshConfiguration;
pub use refresh_configuration_pending::{Base, RefreshConfigurationPending, Waiting};
pub use running::Running;
pub(crate) use shutdown::idle_shutdown;
pub use shutdown::{OwedSync, Shutdown, Stage};
pub use terminated::Terminated;
pub use termination_pending_fast::TerminationPendingFast;
pub use termination_pending_immediate::TerminationPendingImmediate;

/// Where the compute is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each struct documents itself")]
pub enum State {
    Empty(Empty),
    ConfigurationPending(ConfigurationPending),
    Init(Init),
    Configuration(Configuration),
    Running(Running),
    RefreshConfigurationPending(RefreshConfigurationPending),
    RefreshConfiguration(RefreshConfiguration),
    Failed(Failed),
    TerminationPendingFast(TerminationPendingFast),
    TerminationPendingImmediate(TerminationPendingImmediate),
    Terminated(Terminated),
}

impl State {
    /// The public status. Inner phases never leak: this match is the one table from many to eleven.
    pub fn status(&self) -> ComputeStatus {
        match self {
            State::Empty(_) => ComputeStatus::Empty,
            State::ConfigurationPending(_) => ComputeStatus::ConfigurationPending,
            State::Init(_) => ComputeStatus::Init,
            State::Configuration(_) => ComputeStatus::Configuration,
            State::Running(_) => ComputeStatus::Running,
            State::RefreshConfigurationPending(_) => ComputeStatus::RefreshConfigurationPending,
            State::RefreshConfiguration(_) => ComputeStatus::RefreshConfiguration,
            State::Failed(_) => ComputeStatus::Failed,
            State::TerminationPendingFast(_) => ComputeStatus::TerminationPendingFast,
            State::TerminationPendingImmediate(_) => ComputeStatus::TerminationPendingImmediate,
            State::Terminated(_) => ComputeStatus::Terminated,
        }
    }

    /// The Postgres that serves in this state, if one does.
    pub fn server(&self) -> Option<&Server> {
        match self {
            State::ConfigurationPending(state) => state.server.as_ref(),
            State::Configuration(state) => Some(&state.server),
            State::Running(state) => Some(&state.server),
            State::RefreshConfigurationPending(state) => state.base.server(),
            State::RefreshConfiguration(state) => Some(&state.server),
            State::Failed(Failed { remains: Remains::Serving { server, .. } }) => Some(server),
            State::Empty(_)
            | State::Init(_)
            | State::Failed(_)
            | State::TerminationPendingFast(_)
            | State::TerminationPendingImmediate(_)
            | State::Terminated(_) => None,
        }
    }

    /// Takes out the `/configure` request that is owed an answer, for whoever answers it.
    pub(crate) fn take_configure_request(&mut self) -> Option<RequestId> {
        match self {
            State::ConfigurationPending(state) => state.request.take(),
            State::Init(state) => state.request.take(),
            State::Configuration(state) => state.request.take(),
            State::Empty(_)
            | State::Running(_)
            | State::RefreshConfigurationPending(_)
            | State::RefreshConfiguration(_)
            | State::Failed(_)
            | State::TerminationPendingFast(_)
            | State::TerminationPendingImmediate(_)
            | State::Terminated(_) => None,
        }
    }

    /// What has to be settled before the compute can be anything else.
    pub(crate) fn holdings(&self, compute: &Compute) -> Holdings {
        match self {
            State::Empty(state) => state.holdings(),
            State::ConfigurationPending(state) => state.holdings(),
            State::Init(state) => state.holdings(),
            State::Configuration(state) => state.holdings(),
            State::Running(state) => state.holdings(compute.promotion.work()),
            State::RefreshConfigurationPending(state) => state.holdings(),
            State::RefreshConfiguration(state) => state.holdings(),
            State::Failed(state) => state.holdings(),
            State::TerminationPendingFast(_)
            | State::TerminationPendingImmediate(_)
            | State::Terminated(_) => Holdings::default(),
        }
    }
}

/// A Postgres that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Server {
    /// The epoch that started it, which is its identity.
    pub postmaster: Epoch,
    /// The spec that was applied to it last. What is merely wanted is kept elsewhere.
    pub applied: SpecOutline,
}

/// A spec that is wanted, but was never applied in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unapplied {
    /// It came by `/configure`. A refresh that finds nothing new applies it again.
    Pushed(SpecOutline),
    /// It came by a refresh, so what the next refresh finds is newer, and applied instead.
    Fetched(SpecOutline),
}

impl Unapplied {
    /// The spec itself.
    pub fn spec(&self) -> SpecOutline {
        match *self {
            Unapplied::Pushed(spec) | Unapplied::Fetched(spec) => spec,
        }
    }
}

/// What went wrong, for the `error` field of the status. The text is kept outside, under the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fault {
    /// What kind of thing.
    pub kind: FaultKind,
    /// The work or postmaster that met it.
    pub epoch: Epoch,
}

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// This node cannot serve the spec.
    SpecRejected(FailureClass),
    /// The data directory could not be prepared.
    StorageFailed(FailureClass),
    /// The postmaster could not be spawned.
    SpawnFailed(FailureClass),
    /// The postmaster was not ready in time.
    StartTimedOut,
    /// The postmaster ended while starting.
    ExitedDuringStart(Exit),
    /// Settings or catalog could not be brought to what the spec says.
    ApplyFailed(FailureClass),
    /// A refresh got no answer.
    FetchFailed(FailureClass),
    /// Postgres crashed.
    Crashed(Exit),
    /// Safekeepers could not be brought to agree.
    FinalSyncFailed,
    /// The end of the postmaster could not be confirmed.
    PostmasterUnconfirmed,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultKind::SpecRejected(_) => f.write_str("this node cannot serve the spec"),
            FaultKind::StorageFailed(_) => f.write_str("the data directory could not be prepared"),
            FaultKind::SpawnFailed(_) => f.write_str("Postgres could not be spawned"),
            FaultKind::StartTimedOut => f.write_str("timed out while waiting for Postgres to start"),
            FaultKind::ExitedDuringStart(exit) => write!(f, "Postgres {exit} while it was starting"),
            FaultKind::ApplyFailed(_) => f.write_str("the spec could not be applied"),
            FaultKind::FetchFailed(_) => f.write_str("the spec could not be fetched"),
            FaultKind::Crashed(exit) => write!(f, "Postgres crashed: it {exit}"),
            FaultKind::FinalSyncFailed => f.write_str("safekeepers could not be synchronised"),
            FaultKind::PostmasterUnconfirmed => f.write_str("the end of Postgres could not be confirmed"),
        }
    }
}

/// What is common to all states.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Compute {
    /// Choices and deadlines.
    pub policy: Policy,
    /// The last epoch given out.
    pub last_epoch: Epoch,
    /// The postmaster that was spawned, or is being spawned, and whose end was not reported. While there is
    /// one, nothing may be started, and no data directory touched.
    pub postmaster: Option<Epoch>,
    /// Timers of the restarts that still count against the budget.
    pub restarts: Vec<Epoch>,
    /// Whether Postgres has served in this process. Whatever is started then finds data that may live only
    /// here, by whichever way it comes to be started.
    pub served: bool,
    /// What went wrong last, until something went right.
    pub fault: Option<Fault>,
    /// Where the promotion of this compute is.
    pub promotion: Promotion,
    /// A look at what is at work that is under way. Older journals know nothing of it.
    #[serde(default)]
    pub idle_check: Option<IdleCheck>,
}

impl Compute {
    pub(crate) fn new(policy: Policy) -> Self {
        Compute {
            policy,
            last_epoch: Epoch(0),
            postmaster: None,
            restarts: Vec::new(),
            served: false,
            fault: None,
            promotion: Promotion::default(),
            idle_check: None,
        }
    }

    /// A new identity.
    pub(crate) fn next_epoch(&mut self) -> Epoch {
        self.last_epoch.0 += 1;
        self.last_epoch
    }

    /// Notes what went wrong.
    pub(crate) fn note(&mut self, kind: FaultKind, epoch: Epoch) {
        self.fault = Some(Fault { kind, epoch });
    }

    /// Spawns a postmaster. Only the phase before it leads here, and only with none outstanding.
    pub(crate) fn start_postmaster(&mut self, step: &mut Step, spec: Revision) -> Epoch {
        debug_assert!(self.postmaster.is_none(), "a second postmaster");
        let postmaster = self.next_epoch();
        self.postmaster = Some(postmaster);
        step.emit(Effect::StartPostmaster { postmaster, spec });
        postmaster
    }

    /// Sends a postmaster down one rung of the ladder, and arms the deadline of that rung.
    pub(crate) fn stop_postmaster(&mut self, step: &mut Step, postmaster: Epoch, mode: StopMode) -> Epoch {
        step.emit(Effect::StopPostmaster { postmaster, mode });
        let after = match mode {
            StopMode::Fast => self.policy.stop_fast,
            StopMode::Immediate => self.policy.stop_immediate,
            StopMode::Kill => self.policy.stop_kill,
        };
        step.arm(self, Timer::StopDeadline, after)
    }

    /// Uses up one restart of the budget, if there is one.
    pub(crate) fn take_restart(&mut self, step: &mut Step) -> bool {
        if self.restarts.len() >= usize::from(self.policy.restart_budget) {
            return false;
        }
        let after = self.policy.restart_window;
        let timer = step.arm(self, Timer::RestartForgiven, after);
        self.restarts.push(timer);
        true
    }
}

/// The next rung of the shutdown ladder, which only goes down.
pub(crate) fn next_rung(mode: StopMode) -> Option<StopMode> {
    match mode {
        StopMode::Fast => Some(StopMode::Immediate),
        StopMode::Immediate => Some(StopMode::Kill),
        StopMode::Kill => None,
    }
}

/// What a live state holds that has to be settled when the compute goes down or Postgres crashes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Holdings {
    /// Work to cancel, and whose end must be awaited.
    pub work: Option<Epoch>,
    /// Timers and sweeps to cancel and forget.
    pub forget: [Option<Epoch>; 2],
    /// A postmaster to stop.
    pub postmaster: Option<Epoch>,
    /// How far down the ladder that postmaster is already.
    pub rung: Option<StopMode>,
    /// The spec that names the safekeepers to synchronise, if Postgres had started.
    pub sync: Option<Revision>,
    /// How the process would end anyway.
    pub reason: Option<ExitReason>,
    /// Whether there never was anything a client could want to read.
    pub nothing_to_report: bool,
}

impl Holdings {
    /// Of a state in which a server serves.
    fn serving(server: &Server) -> Self {
        Holdings {
            postmaster: Some(server.postmaster),
            sync: owed_sync(&server.applied),
            ..Holdings::default()
        }
    }
}

/// The spec to synchronise with, if its kind of storage has safekeepers.
fn owed_sync(spec: &SpecOutline) -> Option<Revision> {
    spec.final_sync.then_some(spec.revision)
}

/// Visits every identity inside a value, always in the same order. Exploration renames them, so that two
/// machines which differ only in numbers are one shape.
pub(crate) trait Identities {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor);
}

/// See [`Identities`].
pub(crate) trait IdentityVisitor {
    fn epoch(&mut self, epoch: &mut Epoch);
    fn revision(&mut self, revision: &mut Revision);
    fn request(&mut self, request: &mut RequestId);
}

impl Identities for Epoch {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        visitor.epoch(self);
    }
}

impl Identities for Revision {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        visitor.revision(self);
    }
}

impl Identities for RequestId {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        visitor.request(self);
    }
}

impl Identities for SpecOutline {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        self.revision.visit(visitor);
    }
}

impl Identities for Server {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        self.postmaster.visit(visitor);
        self.applied.visit(visitor);
    }
}

impl Identities for Unapplied {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        match self {
            Unapplied::Pushed(spec) | Unapplied::Fetched(spec) => spec.visit(visitor),
        }
    }
}

impl<T: Identities> Identities for Option<T> {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        if let Some(inner) = self {
            inner.visit(visitor);
        }
    }
}

impl<T: Identities> Identities for Vec<T> {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        for inner in self {
            inner.visit(visitor);
        }
    }
}

impl Identities for Compute {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        self.postmaster.visit(visitor);
        self.restarts.visit(visitor);
        if let Some(fault) = &mut self.fault {
            fault.epoch.visit(visitor);
        }
        self.promotion.visit(visitor);
        self.idle_check.visit(visitor);
    }
}

impl Identities for State {
    fn visit(&mut self, visitor: &mut dyn IdentityVisitor) {
        match self {
            State::Empty(state) => state.visit(visitor),
            State::ConfigurationPending(state) => state.visit(visitor),
            State::Init(state) => state.visit(visitor),
            State::Configuration(state) => state.visit(visitor),
            State::Running(state) => state.visit(visitor),
            State::RefreshConfigurationPending(state) => state.visit(visitor),
            State::RefreshConfiguration(state) => state.visit(visitor),
            State::Failed(state) => state.visit(visitor),
            State::TerminationPendingFast(state) => state.0.visit(visitor),
            State::TerminationPendingImmediate(state) => state.0.visit(visitor),
            State::Terminated(state) => state.visit(visitor),
        }
    }
}
