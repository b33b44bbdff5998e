//! Roles, databases and what belongs to them: what exists is read, what differs is planned, the plan is applied.
//!
//! The seam between the three is data. [`read`] turns a server into an [`Existing`], [`plan`] is a pure
//! function from that and a spec to a [`Plan`] (or to the reason why the spec is impossible, before
//! anything was touched), [`apply`](mod@apply) executes a plan, and [`show`] shows one. A spec which is already true plans nothing, so that an
//! apply which was cut short is completed by the next one.
//!
//! Apart from specs, [`requests`] is what clients may ask of a running Postgres.

pub mod apply;
pub mod attributes;
pub mod connect;
pub mod migrations;
pub mod plan;
pub mod quote;
pub mod read;
pub mod requests;
pub mod show;
pub mod step;

pub use apply::{Applied, ApplyError};
pub use connect::{
    ConnectError, Connection, ConnectionSettings, connect, connect_patiently, connect_with_notices,
};
pub use plan::{Options, Plan, PlanError};
pub use read::Existing;
pub use requests::Requests;
pub use show::PlanDocument;
pub use step::Step;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::spec::document::ComputeSpec;
use crate::spec::resolve::{ResolvedSpec, StorageKind};

/// Which kind of PostgreSQL is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Neon's, with its extension preloaded.
    Neon,
    /// Any other.
    Standard,
}

impl Profile {
    /// What a node has that was started with this spec.
    pub fn of(resolved: &ResolvedSpec) -> Self {
        match resolved.storage {
            StorageKind::Neon => Self::Neon,
            _ => Self::Standard,
        }
    }
}

/// Makes roles and databases what `spec` says: reads, plans, executes.
///
/// Nothing is executed when the spec is impossible. A second call with the same spec executes nothing.
/// Cancelling the token ends the statements under way and the call; dropping the future is safe too. In
/// either case, and after an error, the next call carries on from what is there.
///
/// # Errors
/// See [`ApplyError`].
pub async fn apply(
    connection: &Connection,
    spec: &ComputeSpec,
    options: &Options,
    token: &CancellationToken,
) -> Result<Applied, ApplyError> {
    let (_, plan) = preview(connection, spec, options, token).await?;
    // Boxed, here and below: what waits for dozens of answers at once is too large to be passed from stack to stack.
    Box::pin(apply::execute(connection, &plan, options, token)).await
}

/// What [`apply()`] would start from, and what it would do; nothing is changed.
///
/// # Errors
/// See [`ApplyError`].
pub async fn preview(
    connection: &Connection,
    spec: &ComputeSpec,
    options: &Options,
    token: &CancellationToken,
) -> Result<(Existing, Plan), ApplyError> {
    let reading = Box::pin(Existing::read(connection, spec, options));
    let existing = connection.unless_cancelled(token, reading).await??;
    let plan = plan::plan(&existing, spec, options)?;
    Ok((existing, plan))
}

/// The timeline a spec names.
fn timeline(spec: &ComputeSpec) -> Option<&str> {
    spec.timeline_id.as_deref().or_else(|| spec.setting("neon.timeline_id"))
}
