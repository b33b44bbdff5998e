//! Inputs of the machine.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Lsn, RequestId, Revision};

/// The few facts about a spec which guards read. The document itself stays outside, under its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpecOutline {
    /// Number of the document.
    pub revision: Revision,
    /// Whether safekeepers are synchronised after Postgres has gone (a primary on Neon storage).
    pub final_sync: bool,
}

/// How the process ends after a requested termination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TerminateMode {
    /// Linger afterwards, so that the control plane can read the status.
    Fast,
    /// End as soon as the answers are sent.
    Immediate,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// Whether Postgres went down in order, which it says with exit code 0.
    pub fn is_clean(self) -> bool {
        self == Exit::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited with code {code}"),
            Exit::Signal(signal) => write!(f, "was ended by signal {signal}"),
        }
    }
}

/// What kind of failure a piece of work met. The text stays outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// Worth trying again.
    Transient,
    /// Will fail again.
    Permanent,
    /// Did not end within its deadline.
    TimedOut,
    /// Was told to stop.
    Cancelled,
    /// A bug in the runner; the loop caught it.
    Panicked,
}

/// What a refresh found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FetchedSpec {
    /// A spec.
    Spec {
        /// The spec.
        spec: SpecOutline,
        /// Whether it names the same pageservers as the spec that was applied last.
        same_pageservers: bool,
    },
    /// This compute is no longer attached to anything.
    NoSpec,
}

/// Declares [`Event`] and [`EventKind`] from one list, so that a kind cannot be left out of
/// [`EventKind::ALL`], which the exploration iterates.
macro_rules! events {
    ($( $(#[$doc:meta])* $name:ident $({ $( $(#[$field_doc:meta])* $field:ident : $type:ty ),* $(,)? })? ),* $(,)?) => {
        /// Everything that can happen to a compute.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Event {
            $( $(#[$doc])* $name $({ $( $(#[$field_doc])* $field: $type ),* })? ),*
        }

        /// An event without its data.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum EventKind {
            $( $(#[$doc])* $name ),*
        }

        impl EventKind {
            /// All kinds.
            pub const ALL: &'static [EventKind] = &[ $( EventKind::$name ),* ];

            /// The name, as in tables.
            pub fn name(self) -> &'static str {
                match self { $( EventKind::$name => stringify!($name) ),* }
            }
        }

        impl Event {
            /// Its kind.
            pub fn kind(&self) -> EventKind {
                match self { $( Event::$name { .. } => EventKind::$name ),* }
            }
        }
    };
}

events! {
    /// The process has started. Always the first event, and handled before any listener accepts.
    Booted {
        /// The spec, if one was at hand.
        spec: Option<SpecOutline>,
    },

    /// `POST /configure`.
    ConfigureRequested {
        /// Who is owed the answer.
        request: RequestId,
        /// The wanted node.
        spec: SpecOutline,
    },
    /// `POST /terminate`.
    TerminateRequested {
        /// Who is owed the answer.
        request: RequestId,
        /// How the process ends.
        mode: TerminateMode,
    },
    /// `POST /terminate?if_idle=true`: only if nothing is at work in Postgres.
    TerminateIfIdleRequested {
        /// Who is owed the answer.
        request: RequestId,
        /// How the process ends.
        mode: TerminateMode,
    },
    /// `POST /promote`: a standby is to become a primary.
    PromoteRequested {
        /// Who is owed the answer.
        request: RequestId,
        /// What the node is to be.
        spec: SpecOutline,
        /// How much of the old primary's log it must have replayed before.
        lsn: Lsn,
    },
    /// `POST /refresh_configuration`, normally from Postgres itself.
    RefreshRequested {
        /// Who is owed the answer.
        request: RequestId,
    },
    /// Something inside suspects the storage configuration to be stale; nobody waits for an answer.
    RefreshHinted,

    /// SIGTERM, SIGINT or SIGQUIT.
    StopSignalled,
    /// SIGHUP.
    ReloadSignalled,

    /// Warming up ended, well or not: nothing depends on it.
    WarmUpEnded {
        /// Which one.
        epoch: Epoch,
    },
    /// The spec can be served by this node.
    SpecResolved {
        /// Which resolution.
        epoch: Epoch,
    },
    /// The spec cannot be served by this node; nothing was touched.
    SpecRejected {
        /// Which resolution.
        epoch: Epoch,
        /// Why.
        class: FailureClass,
    },
    /// The data directory is ready for a start.
    StoragePrepared {
        /// Which preparation.
        epoch: Epoch,
    },
    /// The data directory could not be made ready.
    StorageFailed {
        /// Which preparation.
        epoch: Epoch,
        /// Why.
        class: FailureClass,
    },
    /// Settings and catalog are as the spec says.
    SpecApplied {
        /// Which application.
        epoch: Epoch,
    },
    /// Settings or catalog could not be brought to what the spec says.
    ApplyFailed {
        /// Which application.
        epoch: Epoch,
        /// Why.
        class: FailureClass,
    },
    /// The server has become a primary.
    Promoted {
        /// Which promotion.
        epoch: Epoch,
    },
    /// The server could not be made a primary. It serves on as what it was.
    PromoteFailed {
        /// Which promotion.
        epoch: Epoch,
        /// Why.
        class: FailureClass,
    },
    /// Nothing is at work in Postgres, and nobody can come in until this is handled.
    FoundIdle {
        /// Which look.
        epoch: Epoch,
    },
    /// Something is at work in Postgres.
    FoundBusy {
        /// Which look.
        epoch: Epoch,
    },
    /// Whether something is at work could not be found out.
    IdleCheckFailed {
        /// Which look.
        epoch: Epoch,
        /// Why.
        class: FailureClass,
    },
    /// A refresh has its answer.
    SpecFetched {
        /// Which fetch.
        epoch: Epoch,
        /// What it found.
        fetched: FetchedSpec,
    },
    /// A refresh got no answer.
    FetchFailed {
        /// Which fetch.
        epoch: Epoch,
        /// Why.
        class: FailureClass,
    },
    /// Every process the last postmaster left behind is gone, or as gone as it can be made.
    Swept {
        /// Which sweep.
        epoch: Epoch,
    },
    /// Safekeepers agree; this is the end of the log.
    FinalSyncDone {
        /// Which sync.
        epoch: Epoch,
        /// The end of the log.
        lsn: Lsn,
    },
    /// Safekeepers could not be brought to agree.
    FinalSyncFailed {
        /// Which sync.
        epoch: Epoch,
        /// Why.
        class: FailureClass,
    },

    /// The postmaster could not be spawned: there was never a process.
    SpawnFailed {
        /// Which postmaster.
        postmaster: Epoch,
        /// Why.
        class: FailureClass,
    },
    /// The postmaster is not ready yet, but advances (write-ahead log is being replayed).
    PostmasterProgressed {
        /// Which postmaster.
        postmaster: Epoch,
    },
    /// The postmaster accepts connections.
    PostmasterReady {
        /// Which postmaster.
        postmaster: Epoch,
    },
    /// The postmaster has ended and was reaped.
    PostmasterExited {
        /// Which postmaster.
        postmaster: Epoch,
        /// How.
        exit: Exit,
    },

    /// The activity monitor saw a change.
    ActivityObserved {
        /// The postmaster it looked at.
        postmaster: Epoch,
        /// Whether anything but the supervisor itself is at work.
        busy: bool,
    },

    /// A timer ran out.
    TimerFired {
        /// Which timer.
        epoch: Epoch,
    },
}

impl Event {
    /// The epoch of the piece of work which this event ends, if it ends one.
    pub fn settles(&self) -> Option<Epoch> {
        match *self {
            Event::WarmUpEnded { epoch }
            | Event::SpecResolved { epoch }
            | Event::SpecRejected { epoch, .. }
            | Event::StoragePrepared { epoch }
            | Event::StorageFailed { epoch, .. }
            | Event::SpecApplied { epoch }
            | Event::ApplyFailed { epoch, .. }
            | Event::Promoted { epoch }
            | Event::PromoteFailed { epoch, .. }
            | Event::FoundIdle { epoch }
            | Event::FoundBusy { epoch }
            | Event::IdleCheckFailed { epoch, .. }
            | Event::SpecFetched { epoch, .. }
            | Event::FetchFailed { epoch, .. }
            | Event::Swept { epoch }
            | Event::FinalSyncDone { epoch, .. }
            | Event::FinalSyncFailed { epoch, .. } => Some(epoch),
            Event::Booted { .. }
            | Event::ConfigureRequested { .. }
            | Event::TerminateRequested { .. }
            | Event::TerminateIfIdleRequested { .. }
            | Event::PromoteRequested { .. }
            | Event::RefreshRequested { .. }
            | Event::RefreshHinted
            | Event::StopSignalled
            | Event::ReloadSignalled
            | Event::SpawnFailed { .. }
            | Event::PostmasterProgressed { .. }
            | Event::PostmasterReady { .. }
            | Event::PostmasterExited { .. }
            | Event::ActivityObserved { .. }
            | Event::TimerFired { .. } => None,
        }
    }

    /// The postmaster whose end this event reports: there is no process of it (any more).
    pub fn ends_postmaster(&self) -> Option<Epoch> {
        match *self {
            Event::PostmasterExited { postmaster, .. } | Event::SpawnFailed { postmaster, .. } => {
                Some(postmaster)
            }
            _ => None,
        }
    }
}
