//! What is published: one snapshot after each change, read without entering the queue.

use std::sync::Arc;
use std::time::Duration;

use compute_states::{ComputeStatus, Epoch, Fault, Machine, Revision, State};
use jiff::Timestamp;

use super::PromotionTimes;
use crate::activity::{Activity, Kind, Seen};

/// What a client may see of the compute.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The public status.
    pub status: ComputeStatus,
    /// What went wrong last, until something went right.
    pub fault: Option<Fault>,
    /// The text of that, with its causes.
    pub error: Option<Arc<str>>,
    /// The spec the status speaks of: what serves, or what is being started.
    pub spec: Option<Revision>,
    /// The postmaster that serves, if one does.
    pub server: Option<Epoch>,
    /// When the process started; for a compute that started empty, when its spec came.
    pub start_time: Timestamp,
    /// When something other than the supervisor was last seen at work.
    pub last_active: Option<Timestamp>,
    /// How long the promotion of this compute took, once it is done.
    pub promotion: Option<Promoted>,
    /// What was at work when that was looked at last.
    pub activity: Option<Activity>,
    /// What it was that was last seen at work.
    pub last_kind: Option<Kind>,
    /// Whether the compute has served since the process started, whatever it does now.
    pub started: bool,
}

/// How long the parts of a promotion took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// As the work has measured them.
    pub times: PromotionTimes,
    /// From then until the server was what its spec says.
    pub reconfigure: Duration,
}

impl Snapshot {
    pub(super) fn first(machine: &Machine) -> Self {
        Snapshot {
            status: machine.status(),
            fault: None,
            error: None,
            spec: None,
            server: None,
            start_time: Timestamp::now(),
            last_active: None,
            promotion: None,
            activity: None,
            last_kind: None,
            started: false,
        }
    }

    /// Brings it up to date after an event. `note` is the text of the failure which the event reports, `seen` what it
    /// tells of activity.
    pub(super) fn follow(
        &mut self,
        machine: &Machine,
        spec: Option<Revision>,
        note: Option<Arc<str>>,
        seen: Option<Seen>,
    ) {
        if self.status == ComputeStatus::Empty && machine.status() == ComputeStatus::ConfigurationPending {
            self.start_time = Timestamp::now();
        }
        if let Some(Seen { activity, newest }) = seen {
            self.activity = Some(activity);
            // It never moves back, and survives everything but this process.
            if let Some(newest) = newest.filter(|newest| Some(newest.at) > self.last_active) {
                self.last_active = Some(newest.at);
                self.last_kind = Some(newest.kind);
            }
        }
        let fault = machine.fault();
        if fault != self.fault {
            // A fault without a text of its own (a crash, a deadline) describes itself.
            self.error = fault.map(|fault| note.unwrap_or_else(|| fault.kind.to_string().into()));
            self.fault = fault;
        }
        self.status = machine.status();
        self.started |= self.status == ComputeStatus::Running;
        self.spec = spec;
        self.server = current_server(machine);
        if self.server.is_none() {
            // What was at work in it is gone with it.
            self.activity = None;
        }
    }
}

/// The postmaster that serves, if one does.
pub(super) fn current_server(machine: &Machine) -> Option<Epoch> {
    machine.state().server().map(|server| server.postmaster)
}

/// The spec which the status of a state speaks of, if the state knows one.
pub(super) fn current_spec(state: &State) -> Option<Revision> {
    match state {
        State::ConfigurationPending(state) if state.server.is_none() => Some(state.spec.revision),
        State::Init(state) => Some(state.spec.revision),
        other => other.server().map(|server| server.applied.revision),
    }
}
