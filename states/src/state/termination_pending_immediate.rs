//! Going down; the process ends as soon as its answers are sent.

use serde::{Deserialize, Serialize};
use statig::Outcome;

use super::{Compute, Shutdown, State};
use crate::event::{Event, TerminateMode};
use crate::verdict::Step;

/// A shutdown without a linger. Postgres is stopped no less gently than by
/// [`TerminationPendingFast`](super::TerminationPendingFast): `immediate` speaks of the process, not of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TerminationPendingImmediate(pub Shutdown);

impl TerminationPendingImmediate {
    pub(crate) fn on(&mut self, compute: &mut Compute, event: &Event, step: &mut Step) -> Outcome<State> {
        self.0.on(compute, event, step, TerminateMode::Immediate)
    }
}
