//! An extension at a version.

use serde::Deserialize;

use super::{RequestError, Requests, Session, checked, despite_contention, get, within};
use crate::limits;

const INSTALLED: &str = "SELECT extversion FROM pg_catalog.pg_extension WHERE extname::pg_catalog.text = $1";

/// What `POST /extensions` asks for.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct ExtensionInstallRequest {
    /// The extension.
    pub extension: String,
    /// The database it is to be in.
    pub database: String,
    /// The version it is to have.
    pub version: String,
}

impl Requests {
    /// Creates the extension in the schema `public`, or brings the one that is there to the version asked for.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn install_extension(&self, request: &ExtensionInstallRequest) -> Result<(), RequestError> {
        let extension = checked("extension", &request.extension)?;
        let version = checked("version", &request.version)?;
        let create =
            format!("CREATE EXTENSION IF NOT EXISTS {extension} WITH SCHEMA public VERSION {version}");
        let update = format!("ALTER EXTENSION {extension} UPDATE TO {version}");
        let session = self.session("compute_ctl:install_extension", Some(&request.database)).await?;
        let install = despite_contention(|| install(&session, request, &create, &update));
        within(limits::EXTENSION_REQUEST, install).await
    }
}

async fn install(
    session: &Session<'_>,
    request: &ExtensionInstallRequest,
    create: &str,
    update: &str,
) -> Result<(), RequestError> {
    let rows = session.query(INSTALLED, &[&request.extension]).await?;
    match rows.first().map(|row| get::<&str>(row, 0)).transpose()? {
        None => session.execute(create).await,
        Some(version) if version == request.version => Ok(()),
        Some(_) => session.execute(update).await,
    }
}
