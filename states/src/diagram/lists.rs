//! What no walk can know: what was asked for, what the original does, and why we differ.
//!
//! `tests/diagrams.rs` holds each list against the walk, so that none can fall behind it.

use crate::event::EventKind;
use crate::status::ComputeStatus::{
    self, Configuration, ConfigurationPending, Empty, Failed, Init, RefreshConfiguration,
    RefreshConfigurationPending, Running, Terminated, TerminationPendingFast, TerminationPendingImmediate,
};

/// The edges between statuses in the diagram this machine was asked to be.
pub const BRIEF: &[(ComputeStatus, ComputeStatus)] = &[
    (Empty, ConfigurationPending),
    (ConfigurationPending, Configuration),
    (Configuration, Failed),
    (Configuration, Running),
    (Empty, Init),
    (Empty, TerminationPendingFast),
    (Empty, TerminationPendingImmediate),
    (Init, Failed),
    (Init, Running),
    (Running, TerminationPendingFast),
    (Running, TerminationPendingImmediate),
    (Running, ConfigurationPending),
    (Running, RefreshConfigurationPending),
    (RefreshConfigurationPending, Running),
    (TerminationPendingFast, Terminated),
    (TerminationPendingImmediate, Terminated),
    (Failed, RefreshConfigurationPending),
];

/// The statuses in which that diagram lets the process end.
pub const BRIEF_ENDS: &[ComputeStatus] = &[Failed, Terminated];

/// An edge which that diagram does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// From here.
    pub from: ComputeStatus,
    /// To there.
    pub to: ComputeStatus,
    /// Why it is needed.
    pub reason: &'static str,
}

const fn beyond(from: ComputeStatus, to: ComputeStatus, reason: &'static str) -> Beyond {
    Beyond { from, to, reason }
}

const TERMINABLE: &str = "a termination is accepted wherever there is something to end";
const DOWN: &str = "the same; also a stop signal, and Postgres stopped from outside, both without a linger";
const CRASH: &str = "a crash of Postgres is visible at once";

/// Every edge beyond the brief's.
pub const BEYOND: &[Beyond] = &[
    beyond(ConfigurationPending, Init, "without a Postgres the first configuration is a start"),
    beyond(ConfigurationPending, Failed, "this node cannot serve the spec, or Postgres crashed meanwhile"),
    beyond(
        ConfigurationPending,
        RefreshConfigurationPending,
        "this node cannot serve the first spec, and a refresh was asked for meanwhile: what it fetches is started",
    ),
    beyond(ConfigurationPending, TerminationPendingFast, TERMINABLE),
    beyond(ConfigurationPending, TerminationPendingImmediate, DOWN),
    beyond(
        Init,
        RefreshConfigurationPending,
        "a start failed for which a refresh was accepted meanwhile: what it fetches is started",
    ),
    beyond(Init, TerminationPendingFast, TERMINABLE),
    beyond(Init, TerminationPendingImmediate, "the same; also a stop signal, without a linger"),
    beyond(Configuration, TerminationPendingFast, TERMINABLE),
    beyond(Configuration, TerminationPendingImmediate, DOWN),
    beyond(Running, Failed, CRASH),
    beyond(RefreshConfigurationPending, Init, "there was no Postgres, and a spec to start with was fetched"),
    beyond(
        RefreshConfigurationPending,
        RefreshConfiguration,
        "applying has a status of its own, in which a repeated refresh is refused; Postgres relies on it",
    ),
    beyond(RefreshConfigurationPending, Failed, CRASH),
    beyond(RefreshConfigurationPending, TerminationPendingFast, TERMINABLE),
    beyond(
        RefreshConfigurationPending,
        TerminationPendingImmediate,
        "the same; also a stop signal, Postgres stopped from outside, and a control plane that has no spec",
    ),
    beyond(RefreshConfiguration, Running, "the second half of the refresh"),
    beyond(RefreshConfiguration, RefreshConfigurationPending, "applying failed; fetched again after a pause"),
    beyond(RefreshConfiguration, Failed, CRASH),
    beyond(RefreshConfiguration, TerminationPendingFast, TERMINABLE),
    beyond(RefreshConfiguration, TerminationPendingImmediate, DOWN),
    beyond(Failed, ConfigurationPending, "Postgres serves on, so another spec can be applied"),
    beyond(Failed, Init, "the policy is to start Postgres again after a crash"),
    beyond(Failed, TerminationPendingFast, TERMINABLE),
    beyond(Failed, TerminationPendingImmediate, DOWN),
    beyond(
        TerminationPendingFast,
        TerminationPendingImmediate,
        "a later `immediate`, or a stop signal, cuts the linger",
    ),
];

/// A request that does more here than in the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// In this status.
    pub status: ComputeStatus,
    /// This request.
    pub event: EventKind,
    /// What the original does.
    pub original: &'static str,
    /// What happens here, and why.
    pub decision: &'static str,
}

const fn accepted(
    status: ComputeStatus,
    event: EventKind,
    original: &'static str,
    decision: &'static str,
) -> Accepted {
    Accepted { status, event, original, decision }
}

/// Every request that has to come later, or is done later, because a promotion is under way. The original begins
/// both beside it, and they write the same files.
pub const DURING_PROMOTION: &[Accepted] = &[
    accepted(
        Running,
        EventKind::ConfigureRequested,
        "accepted, and done beside the promotion",
        "503 with `Retry-After`: the spec was made for a standby, and in a moment there is none",
    ),
    accepted(
        Running,
        EventKind::RefreshRequested,
        "accepted, and done beside the promotion",
        "200, and done once after it",
    ),
];

const CANCELLED: &str = "accepted: work under way is cancelled and its requester answered";
const JOINED: &str = "joins: one shutdown, one answer to each; `immediate` cuts the linger of `fast`";

/// Every such cell. Wherever the original answers 412 or 500 a client gets more here, never less.
pub const ACCEPTED: &[Accepted] = &[
    accepted(
        Failed,
        EventKind::ConfigureRequested,
        "412, though Postgres may serve on",
        "accepted while Postgres serves, and a success clears the error; 412 without a Postgres",
    ),
    accepted(
        Empty,
        EventKind::TerminateRequested,
        "accepted, then hangs",
        "goes through the same stages with nothing to stop, and ends without a linger: there is nothing to read",
    ),
    accepted(ConfigurationPending, EventKind::TerminateRequested, "412", CANCELLED),
    accepted(Init, EventKind::TerminateRequested, "412", CANCELLED),
    accepted(Configuration, EventKind::TerminateRequested, "412", CANCELLED),
    accepted(RefreshConfigurationPending, EventKind::TerminateRequested, "412", CANCELLED),
    accepted(RefreshConfiguration, EventKind::TerminateRequested, "412", CANCELLED),
    accepted(
        Failed,
        EventKind::TerminateRequested,
        "412",
        "accepted, with and without a Postgres: else nothing but a kill ends a failed compute",
    ),
    accepted(TerminationPendingFast, EventKind::TerminateRequested, "412", JOINED),
    accepted(TerminationPendingImmediate, EventKind::TerminateRequested, "412", JOINED),
    accepted(
        ConfigurationPending,
        EventKind::RefreshRequested,
        "500",
        "500 as well, but remembered: the refresh follows the configuration",
    ),
    accepted(Init, EventKind::RefreshRequested, "200, and forgotten", "200, and done once after the start"),
    accepted(
        Configuration,
        EventKind::RefreshRequested,
        "500",
        "500 as well, on which Postgres relies, but remembered: the refresh follows the configuration",
    ),
    accepted(
        Failed,
        EventKind::RefreshRequested,
        "200, and often nobody acts on it",
        "200, and acted on; refused only while the end of the last postmaster is not confirmed",
    ),
];
