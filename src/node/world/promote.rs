//! Making a primary of the standby that serves.

use compute_states::{FailureClass, Lsn, Revision};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::work::{permanent, servable};
use super::{Needed, Parts};
use crate::catalog::{ConnectionSettings, Profile};
use crate::engine::{Done, WorkError};
use crate::limits;
use crate::postgres::promotion::{self, Promotion, PromotionError};
use crate::postgres::settings::Reload;
use crate::spec::resolve::{Mode, StorageKind};

/// Why there is nothing to promote, or nothing to promote it to.
#[derive(Debug, Error)]
enum Unfit {
    /// In the original's words.
    #[error("compute mode \"{0}\" is not replica")]
    NoReplica(Mode),
    #[error("the spec to promote to should have mode Primary, and has mode {0}")]
    NoPrimary(Mode),
}

impl Parts {
    /// What cannot be served is refused while the node is still a standby.
    pub(super) async fn promote(
        &self,
        spec: Revision,
        lsn: Lsn,
        reload: &Reload,
        token: &CancellationToken,
    ) -> Result<Done, WorkError> {
        if let Some(applied) = self.held(Needed::Applied)
            && applied.resolved.mode != Mode::Replica
        {
            return Err(permanent(Unfit::NoReplica(applied.resolved.mode)));
        }
        let wanted = self.stored(spec)?;
        if wanted.resolved.mode != Mode::Primary {
            return Err(permanent(Unfit::NoPrimary(wanted.resolved.mode)));
        }
        servable(&wanted)?;
        self.check(spec)?;
        let profile = Profile::of(&wanted.resolved);
        let server = ConnectionSettings::new(&self.connstr, profile).map_err(permanent)?;
        let neon = wanted.resolved.storage == StorageKind::Neon;
        let promotion = Promotion {
            pgdata: self.pgdata.path(),
            server: &server,
            reload,
            lsn,
            safekeepers: neon.then_some(wanted.resolved.safekeepers.as_slice()),
            catch_up: limits::PROMOTION_CATCH_UP,
        };
        let promoted = promotion::promote(promotion, token).await.map_err(promotion_error)?;
        tracing::info!(%lsn, lsn_wait = ?promoted.lsn_wait, pg_promote = ?promoted.pg_promote, "promoted");
        // Whether it can be applied or not: the machine speaks of it from now on.
        self.hold(Needed::Applied, wanted);
        Ok(Done::Promoted(promoted))
    }
}

fn promotion_error(error: PromotionError) -> WorkError {
    match error {
        PromotionError::Cancelled => WorkError::cancelled(),
        error if error.is_transient() => WorkError::new(FailureClass::Transient, &error),
        error => permanent(error),
    }
}
