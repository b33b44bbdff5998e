//! Outputs of the machine: what has to be done, as data.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::Exit;
use crate::ids::{Epoch, Lsn, RequestId, Revision};
use crate::status::ComputeStatus;
use crate::verdict::Refusal;

/// How a postmaster is told to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// SIGINT: sessions are ended and a shutdown checkpoint is written.
    Fast,
    /// SIGQUIT: no checkpoint, recovery at the next start.
    Immediate,
    /// SIGKILL to the postmaster and everything that descends from it.
    Kill,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timer {
    /// Postgres must be ready, or visibly recovering.
    StartDeadline,
    /// The present rung of the shutdown ladder must have worked.
    StopDeadline,
    /// What the postmaster left behind must be gone.
    SweepDeadline,
    /// The final safekeeper sync must have ended.
    FinalSyncDeadline,
    /// The pause between two attempts to prepare the data directory. The loop adds jitter to it.
    StorageBackoff,
    /// The pause between two attempts of a refresh. The loop adds jitter to it.
    RefreshBackoff,
    /// A refresh that was latched is due (no delay: it only makes the refresh an event of its own).
    LatchedRefresh,
    /// A failure was readable for long enough.
    FailedLinger,
    /// A termination was readable for long enough.
    TerminatedLinger,
    /// A restart counts against the budget no longer.
    RestartForgiven,
}

/// Why the process ends. The numbers belong to the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// Someone asked for it, and everything stopped in order.
    Stopped,
    /// Postgres ended by itself.
    PostgresExited(Exit),
    /// Postgres could not be started.
    StartFailed,
    /// The stop needed SIGKILL, or not even that confirmed the end of the postmaster.
    StopKilled,
    /// Safekeepers could not be brought to agree after the stop that a client asked for.
    FinalSyncFailed,
    /// The control plane no longer attaches this compute to anything.
    Detached,
}

/// What a terminated compute tells those who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TerminationResult {
    /// Postgres is down; the end of its log, where the storage knows one.
    Stopped(Option<Lsn>),
    /// Postgres is down, but safekeepers could not be brought to agree on the end of the log.
    FinalSyncFailed,
}

/// The answer to a request. Each accepted request gets exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The spec is applied.
    Configured,
    /// The spec could not be applied; the text is in the published error.
    ConfigureFailed,
    /// The compute went down before the spec was applied.
    ConfigureSuperseded,
    /// The refresh will be looked at.
    RefreshAccepted,
    /// The server is a primary, and what its spec says.
    Promoted,
    /// The server could not be promoted, or not brought to what its spec says; the text is beside it.
    PromoteFailed,
    /// The compute went down before the server was promoted.
    PromoteSuperseded,
    /// The compute was to terminate only if it is idle, and it is not.
    NotIdle,
    /// The compute was to terminate only if it is idle, and whether it is could not be found out.
    IdleUnknown,
    /// The compute is down.
    Terminated(TerminationResult),
    /// The compute was down already.
    AlreadyTerminated(TerminationResult),
    /// Not in this state.
    Refused {
        /// Why.
        refusal: Refusal,
        /// The state.
        status: ComputeStatus,
    },
}

/// Declares [`Effect`] and [`EffectKind`] from one list.
macro_rules! effects {
    ($( $(#[$doc:meta])* $name:ident { $( $(#[$field_doc:meta])* $field:ident : $type:ty ),* $(,)? } ),* $(,)?) => {
        /// Something the loop has to carry out.
        ///
        /// Effects with an epoch and no timer are *work*: the loop spawns them and each ends in exactly one
        /// event which carries that epoch.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Effect {
            $( $(#[$doc])* $name { $( $(#[$field_doc])* $field: $type ),* } ),*
        }

        /// An effect without its data.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum EffectKind {
            $( $(#[$doc])* $name ),*
        }

        impl EffectKind {
            /// All kinds.
            pub const ALL: &'static [EffectKind] = &[ $( EffectKind::$name ),* ];

            /// The name, as in tables and metric labels.
            pub fn name(self) -> &'static str {
                match self { $( EffectKind::$name => stringify!($name) ),* }
            }
        }

        impl Effect {
            /// Its kind.
            pub fn kind(&self) -> EffectKind {
                match self { $( Effect::$name { .. } => EffectKind::$name ),* }
            }
        }
    };
}

effects! {
    /// Warm caches while there is nothing else to do. Ends in `WarmUpEnded`.
    WarmUp {
        /// Identity of the work.
        epoch: Epoch,
    },
    /// Check that this node can serve the spec. Ends in `SpecResolved` or `SpecRejected`.
    ResolveSpec {
        /// Identity of the work.
        epoch: Epoch,
        /// Which spec.
        spec: Revision,
    },
    /// Make the data directory ready for a start. Ends in `StoragePrepared` or `StorageFailed`.
    PrepareStorage {
        /// Identity of the work.
        epoch: Epoch,
        /// Which spec.
        spec: Revision,
        /// Whether Postgres has served in this process before: data that lives only here must be kept.
        restart: bool,
    },
    /// Spawn a postmaster and watch it. Ends in `SpawnFailed` or `PostmasterExited`, with
    /// `PostmasterProgressed` and `PostmasterReady` on the way.
    StartPostmaster {
        /// Identity of the postmaster.
        postmaster: Epoch,
        /// Which spec.
        spec: Revision,
    },
    /// Bring settings and catalog to what the spec says. Ends in `SpecApplied` or `ApplyFailed`.
    ApplySpec {
        /// Identity of the work.
        epoch: Epoch,
        /// Which spec.
        spec: Revision,
        /// On which postmaster.
        postmaster: Epoch,
        /// Whether this postmaster has just been started (and has read its settings file already).
        first: bool,
    },
    /// Make a primary of the standby that serves. Ends in `Promoted` or `PromoteFailed`.
    Promote {
        /// Identity of the work.
        epoch: Epoch,
        /// What the node is to be.
        spec: Revision,
        /// Which postmaster.
        postmaster: Epoch,
        /// How much of the log it must have replayed before.
        lsn: Lsn,
    },
    /// Look whether anything is at work, and if not, keep everybody out until the result was handled. Ends in
    /// `FoundIdle`, `FoundBusy` or `IdleCheckFailed`.
    CheckIdle {
        /// Identity of the work.
        epoch: Epoch,
        /// Which postmaster.
        postmaster: Epoch,
    },
    /// Ask for the present spec. Ends in `SpecFetched` or `FetchFailed`.
    FetchSpec {
        /// Identity of the work.
        epoch: Epoch,
        /// What was applied last, to compare pageservers with.
        applied: Option<Revision>,
    },
    /// Tell a postmaster to go, at once and without waiting. If it is still being spawned, as soon as it
    /// exists. No result of its own: the end of the postmaster is the result.
    StopPostmaster {
        /// Which postmaster.
        postmaster: Epoch,
        /// How.
        mode: StopMode,
    },
    /// Let a postmaster read its settings again (SIGHUP). No result.
    ReloadPostmaster {
        /// Which postmaster.
        postmaster: Epoch,
    },
    /// End what postmasters and helpers left behind, and wait for it. Ends in `Swept`.
    Sweep {
        /// Identity of the work.
        epoch: Epoch,
    },
    /// Bring the safekeepers to agree on the end of the log. Ends in `FinalSyncDone` or `FinalSyncFailed`.
    FinalSync {
        /// Identity of the work.
        epoch: Epoch,
        /// Which spec names the safekeepers.
        spec: Revision,
    },
    /// Tell a piece of work to stop, or disarm a timer. Work still ends in its one event; a timer does not.
    Cancel {
        /// Which.
        epoch: Epoch,
    },
    /// Feed `TimerFired` after a while.
    ArmTimer {
        /// Identity of the timer.
        epoch: Epoch,
        /// What it is for.
        timer: Timer,
        /// When.
        after: Duration,
    },
    /// Answer a request.
    Reply {
        /// Which request.
        request: RequestId,
        /// The answer.
        reply: Reply,
    },
    /// End the process, after the answers are sent. Always the last effect.
    Exit {
        /// Why.
        reason: ExitReason,
    },
}
