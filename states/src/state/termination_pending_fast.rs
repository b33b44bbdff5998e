//! Going down; the process will linger so that the status can be read.

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::{Compute, Shutdown, State};
use crate::event::{Event, TerminateMode};
use crate::verdict::Step;

/// A shutdown after which the control plane has time to look. A later `immediate`, or a stop signal, turns it
/// into [`TerminationPendingImmediate`](super::TerminationPendingImmediate).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TerminationPendingFast(pub Shutdown);

impl TerminationPendingFast {
    pub(crate) fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        self.0.on(compute, event, step, TerminateMode::Fast)
    }
}
