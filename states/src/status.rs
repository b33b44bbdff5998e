//! The eleven statuses a client can see.

use core::fmt;

use serde::{Deserialize, Serialize};

/// Public status of the compute.
///
/// Serialised in snake case (`/status`), displayed in kebab case (errors, logs, the metric's label), and
/// `Debug` prints the plain name (the one error text which uses it). All three are the original's and are
/// pinned by tests: a client somewhere parses each of them (http-api, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeStatus {
    /// No spec yet.
    Empty,
    /// A spec was accepted by `/configure` and its work has not begun.
    ConfigurationPending,
    /// The data directory is being built, or Postgres is starting.
    Init,
    /// Postgres serves what the spec says.
    Running,
    /// A later spec is being applied to a live Postgres.
    Configuration,
    /// A start or a reconfiguration failed, or Postgres crashed.
    Failed,
    /// Going down; the process will linger so that the status can be read.
    TerminationPendingFast,
    /// Going down; the process ends as soon as its answers are sent.
    TerminationPendingImmediate,
    /// Postgres is gone and everything owed is settled.
    Terminated,
    /// A refresh was asked for: the spec is being fetched.
    RefreshConfigurationPending,
    /// A fetched spec is being applied.
    RefreshConfiguration,
}

impl ComputeStatus {
    /// All of them, in the order of a compute's life.
    pub const ALL: [ComputeStatus; 11] = [
        ComputeStatus::Empty,
        ComputeStatus::ConfigurationPending,
        ComputeStatus::Init,
        ComputeStatus::Configuration,
        ComputeStatus::Running,
        ComputeStatus::RefreshConfigurationPending,
        ComputeStatus::RefreshConfiguration,
        ComputeStatus::Failed,
        ComputeStatus::TerminationPendingFast,
        ComputeStatus::TerminationPendingImmediate,
        ComputeStatus::Terminated,
    ];

    /// The plain name, as in diagrams.
    pub fn name(self) -> &'static str {
        match self {
            ComputeStatus::Empty => "Empty",
            ComputeStatus::ConfigurationPending => "ConfigurationPending",
            ComputeStatus::Init => "Init",
            ComputeStatus::Running => "Running",
            ComputeStatus::Configuration => "Configuration",
            ComputeStatus::Failed => "Failed",
            ComputeStatus::TerminationPendingFast => "TerminationPendingFast",
            ComputeStatus::TerminationPendingImmediate => "TerminationPendingImmediate",
            ComputeStatus::Terminated => "Terminated",
            ComputeStatus::RefreshConfigurationPending => "RefreshConfigurationPending",
            ComputeStatus::RefreshConfiguration => "RefreshConfiguration",
        }
    }
}

impl fmt::Display for ComputeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ComputeStatus::Empty => "empty",
            ComputeStatus::ConfigurationPending => "configuration-pending",
            ComputeStatus::Init => "init",
            ComputeStatus::Running => "running",
            ComputeStatus::Configuration => "configuration",
            ComputeStatus::Failed => "failed",
            ComputeStatus::TerminationPendingFast => "termination-pending-fast",
            ComputeStatus::TerminationPendingImmediate => "termination-pending-immediate",
            ComputeStatus::Terminated => "terminated",
            ComputeStatus::RefreshConfigurationPending => "refresh-configuration-pending",
            ComputeStatus::RefreshConfiguration => "refresh-configuration",
        })
    }
}
