//! Probes for whoever runs the container. No token, no secrets, and nothing that waits for Postgres.
//!
//! | status | `/livez` | `/readyz` | `/startupz` |
//! |---|---|---|---|
//! | `empty`, `init` | 200 | 503 | 503 |
//! | `running` | 200 | 200 | 200 |
//! | `configuration_pending`, `refresh_configuration_pending`, before the first start | 200 | 503 | 503 |
//! | the same, and `configuration`, `refresh_configuration`, while Postgres serves on | 200 | 200 | 200 |
//! | `failed`: the first start | 200 | 503 | 503 |
//! | `failed`: Postgres is gone | 200 | 503 | 200 |
//! | `failed`: a change, and Postgres serves on | 200 | 200 | 200 |
//! | `termination_pending_*`, `terminated` | 200 | 503 | as before |
//!
//! `/livez` is 503 in any status when the event loop gives no sign of life within [`limits::HTTP_LIVENESS`]: nothing but
//! a new process helps then. `/readyz` says whether Postgres serves by what is published; a Postgres that is stopped
//! (SIGSTOP) changes nothing of it. `/startupz` stays 200 once the compute has been in status `running`.

use crate::http::dispatch::{Handled, Request};
use crate::http::response::{Problem, probed};
use crate::limits;

pub(super) async fn live(Request { shared, .. }: Request) -> Handled {
    match shared.context.engine.lives(limits::HTTP_LIVENESS).await {
        true => Ok(probed()),
        false => Err(Problem::unavailable("the event loop gives no sign of life")),
    }
}

pub(super) async fn ready(Request { shared, .. }: Request) -> Handled {
    let snapshot = shared.context.engine.snapshot();
    match snapshot.server {
        Some(_) => Ok(probed()),
        None => Err(Problem::unavailable(format!("Postgres does not serve: {}", snapshot.status))),
    }
}

pub(super) async fn started(Request { shared, .. }: Request) -> Handled {
    let snapshot = shared.context.engine.snapshot();
    match snapshot.started {
        true => Ok(probed()),
        false => Err(Problem::unavailable(format!("not started yet: {}", snapshot.status))),
    }
}

/// The server as `pg_isready` sees it, which does wait for Postgres, for at most [`limits::PG_ISREADY`].
pub(super) async fn hadron_liveness(Request { shared, .. }: Request) -> Handled {
    crate::http::response::postgres::is_ready(shared.context.postgres.is_ready().await)
}
