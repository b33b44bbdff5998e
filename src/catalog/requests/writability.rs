//! Whether the server can write.

use tokio_postgres::error::SqlState;

use super::{RequestError, Requests, within};
use crate::limits;

/// The table is made when a spec is first applied; its key may be an identity column.
const TOUCH: &str = "INSERT INTO public.health_check (id, updated_at) OVERRIDING SYSTEM VALUE \
    VALUES (1, pg_catalog.now()) ON CONFLICT (id) DO UPDATE SET updated_at = excluded.updated_at";

impl Requests {
    /// Writes the present time into the one row of `public.health_check`. A full disk is not what is asked about,
    /// and passes with a warning.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn check_writability(&self) -> Result<(), RequestError> {
        let session = self.session("compute_ctl:availability_checker", None).await?;
        match within(limits::REQUEST, session.execute(TOUCH)).await {
            Err(RequestError::Statement(error)) if error.code() == Some(&SqlState::DISK_FULL) => {
                tracing::warn!("the disk is full; this counts as writable");
                Ok(())
            }
            done => done,
        }
    }
}
