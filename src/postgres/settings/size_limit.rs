//! Neon's limit on the size of a cluster, out of the way while roles and databases are applied.

use std::path::{Path, PathBuf};

use super::{Reload, blocking};
use crate::postgres::conf::{self, WriteError};

/// While it lives the limit is lifted; [`end`](Self::end) it when the work is done. Dropped otherwise (the work
/// failed, was cancelled or panicked) it puts the limit back all the same, and has the server read that.
///
/// A session that is opened after [`lift`](Self::lift) knows no limit: see [`super`] for why.
#[must_use = "the limit is back as soon as this is dropped"]
pub struct SizeLimitLifted {
    pgdata: PathBuf,
    reload: Reload,
    lifted: bool,
}

impl SizeLimitLifted {
    /// Lifts the limit.
    ///
    /// # Errors
    /// If the override file cannot be written.
    pub async fn lift(pgdata: &Path, reload: &Reload) -> Result<Self, WriteError> {
        let lifted = Self { pgdata: pgdata.to_owned(), reload: reload.clone(), lifted: true };
        blocking(move || {
            conf::lift_size_limit(&lifted.pgdata)?;
            (lifted.reload)();
            Ok(lifted)
        })
        .await
    }

    /// Puts the limit back after work that was done. With `enable_subscribers`, which is for a spec that had
    /// inherited subscriptions dropped, logical replication may begin again.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub async fn end(self, enable_subscribers: bool) -> Result<(), WriteError> {
        blocking(move || {
            // As a whole, so that it is not dropped before.
            let mut lifted = self;
            let subscribers = match enable_subscribers {
                true => conf::enable_subscribers(&lifted.pgdata),
                false => Ok(()),
            };
            let limit = conf::clear_override(&lifted.pgdata);
            // Whatever could be written is to be in force.
            (lifted.reload)();
            // What has failed is tried once more by the drop.
            lifted.lifted = limit.is_err();
            limit.and(subscribers)
        })
        .await
    }
}

impl Drop for SizeLimitLifted {
    fn drop(&mut self) {
        if !self.lifted {
            return;
        }
        // A small file, and the limit must not stay away because nobody could wait for it.
        if let Err(error) = conf::clear_override(&self.pgdata) {
            tracing::error!(%error, cause = %error.source, "the limit on the cluster's size stays lifted");
            return;
        }
        (self.reload)();
    }
}
