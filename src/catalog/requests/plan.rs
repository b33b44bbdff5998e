//! What a spec would change.

use tokio_util::sync::CancellationToken;

use super::Requests;
use crate::catalog::show::{self, PlanDocument};
use crate::catalog::{ApplyError, Options, Profile};
use crate::limits;
use crate::spec::document::ComputeSpec;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanRequestError {
    /// The server was not read, or the spec is impossible there.
    #[error(transparent)]
    Catalog(#[from] ApplyError),
    /// Reading took longer than it may.
    #[error("Postgres did not finish within {:?}", limits::PLAN)]
    TimedOut,
    /// Too many requests are under way.
    #[error("too many requests are waiting for Postgres")]
    Busy,
}

impl Requests {
    /// Lists what applying `spec` would do, in a session in which the server refuses to change anything.
    ///
    /// # Errors
    /// See [`PlanRequestError`].
    pub async fn plan(&self, spec: &ComputeSpec, profile: Profile) -> Result<PlanDocument, PlanRequestError> {
        let _place = self.place().await.ok_or(PlanRequestError::Busy)?;
        let privileged_role = self.0.privileged_role.clone();
        let options = Options { privileged_role, profile, concurrency: 1 };
        let token = CancellationToken::new();
        let inspection = Box::pin(show::inspect(&self.0.settings, spec, &options, &token));
        match tokio::time::timeout(limits::PLAN, inspection).await {
            Ok(inspected) => Ok(inspected?),
            Err(_) => Err(PlanRequestError::TimedOut),
        }
    }
}
