//! What the original serves and this program does not.

use std::sync::Arc;

use serde::Deserialize;

use crate::http::body::Received;
use crate::http::dispatch::{Handled, Request, Shared};
use crate::http::response::Problem;

/// Loading what the local file cache held before, and what became of it.
pub(super) async fn prewarm(_: Request) -> Handled {
    Err(Problem::not_built("prewarming of the local file cache"))
}

/// Keeping what the local file cache holds, and what became of it.
pub(super) async fn offload(_: Request) -> Handled {
    Err(Problem::not_built("offloading of the local file cache"))
}

/// Fetching a part of an extension from a store.
pub(super) async fn remote_extension(_: Request) -> Handled {
    Err(Problem::not_built("downloading of remote extensions"))
}

/// A place in the program at which a test wants something to happen.
#[derive(Deserialize)]
pub(super) struct Failpoint {
    name: String,
    /// The original's own client calls it `action`.
    #[serde(alias = "action")]
    actions: String,
}

/// As in the original's ordinary builds, which look at the body and have none of them.
pub(super) async fn failpoints(_: Arc<Shared>, asked: Received<Vec<Failpoint>>) -> Handled {
    for Failpoint { name, actions } in &asked.value {
        tracing::debug!(name, actions, "a failpoint was asked for");
    }
    Err(Problem::no_failpoints())
}
