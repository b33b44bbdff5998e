//! The words of the table.

use std::time::Duration;

use compute_states::{
    ComputeStatus, Exit, ExitReason, FailureClass, FaultKind, Lsn, Refusal, Reply, StopMode, TerminateMode,
    Timer,
};

/// Whatever the machine gives an epoch to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thing {
    WarmUp,
    Resolve,
    Prepare,
    Apply,
    Promote,
    CheckIdle,
    Fetch,
    Sweep,
    FinalSync,
    Postmaster,
    Timer(Timer),
}

/// A thing and which one of its kind.
pub type Item = (Thing, u64);

/// How a piece of work ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    Good,
    Bad,
    /// Badly, and it will not pass. Only preparations tell this from the other, and looks, for which it is that
    /// something is at work.
    Worse,
    /// Fetched a spec; `same` pageservers as the one applied last.
    Found {
        same: bool,
        final_sync: bool,
    },
    NoSpec,
}

/// What is reported of a postmaster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum News {
    SpawnFailed,
    Progressed,
    Ready,
    Exited(Exit),
    Activity,
}

/// An event, by ordinals: `back` 0 is the latest of its kind, 1 the one before, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    Booted {
        spec: Option<bool>,
    },
    Configure {
        final_sync: bool,
    },
    Terminate(TerminateMode),
    TerminateIfIdle(TerminateMode),
    Promote {
        final_sync: bool,
    },
    Refresh,
    Hint,
    Signal,
    Reload,
    Ended {
        work: Thing,
        outcome: Outcome,
        back: u8,
    },
    Postmaster {
        news: News,
        back: u8,
    },
    Fired {
        timer: Timer,
        back: u8,
    },
    /// Not an event: the process is gone, and a new one begins.
    NewProcess {
        restart: bool,
    },
}

/// What must be requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ask {
    WarmUp,
    Resolve { spec: u64 },
    Prepare { spec: u64, restart: bool },
    Start { spec: u64 },
    Apply { spec: u64, first: bool },
    Promote { spec: u64, lsn: Lsn },
    CheckIdle,
    Fetch { applied: Option<u64> },
    Stop(StopMode),
    Reload,
    Sweep,
    FinalSync { spec: u64 },
    Cancel(Item),
    Arm(Timer, Duration),
    Reply(u64, Reply),
    Exit(ExitReason),
}

/// What must be said of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Say {
    Moved,
    Taken,
    Latched(Option<Refusal>),
    Refused(Refusal),
    Stale,
}

/// The outcome the table demands of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub status: ComputeStatus,
    pub fault: Option<(FaultKind, Item)>,
    pub say: Say,
    /// In no particular order.
    pub asks: Vec<Ask>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    pub revision: u64,
    pub final_sync: bool,
}

/// A promotion, which changes no status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Promotion {
    No,
    /// Work is under way that comes first.
    Wanted(Spec, Lsn),
    UnderWay(Spec),
    /// It is a primary, and is being made what its spec says.
    Applying,
    /// It is a primary, and that failed.
    Half,
    Done,
}

/// A shutdown, and how it ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Down {
    pub signals: u8,
    pub linger: bool,
    /// The sync that is owed, and whether a client asked for it.
    pub sync: Option<(Spec, bool)>,
    pub reason: ExitReason,
    pub rung: StopMode,
}

/// What the restart policy wants after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Restart {
    With(Spec),
    AfterFetch,
}

/// A failure without a Postgres, and how the process would end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gone {
    pub reason: ExitReason,
    pub restart: Option<Restart>,
    /// A refresh was accepted meanwhile.
    pub refresh: bool,
    pub sync: Option<Spec>,
}

/// How all work of these tests fails (but for [`Outcome::Worse`]), and all spawns.
pub const WORK_FAILS: FailureClass = FailureClass::Transient;
pub const WORSE: FailureClass = FailureClass::TimedOut;
pub const SPAWN_FAILS: FailureClass = FailureClass::Permanent;

/// The end of the log which every good final sync of these tests reports.
pub const END_OF_LOG: Lsn = Lsn(0x1_0000_0028);
