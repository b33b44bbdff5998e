//! Why a node did not get as far as its state machine, and which exit code says so.

use std::io;

use crate::catalog::ConnectError;
use crate::cli::ExitCode;
use crate::control_plane::FetchError;
use crate::engine::WorkError;
use crate::http::{BindError, ServeError};
use crate::postgres::process::PrivilegeError;
use crate::postgres::{InstallError, PgdataError};
use crate::storage::StorageError;

/// Why a node did not get as far as its state machine. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("the spec cannot be used: {0}")]
    Spec(String),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("--connstr cannot be used: {0}")]
    Connstr(#[from] ConnectError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("port {port}, where Postgres is to listen, is in use")]
    PostgresPort { port: u16 },
    #[error(transparent)]
    Pgdata(#[from] PgdataError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Unservable(#[from] WorkError),
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    #[error("orphans of Postgres could not be adopted")]
    Subreaper(#[source] io::Error),
    #[error("the process could not be set up")]
    Runtime(#[source] io::Error),
}

impl StartError {
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            StartError::Connstr(_) => ExitCode::Usage,
            StartError::Spec(_) | StartError::Unservable(_) => ExitCode::BadConfig,
            StartError::Fetch(FetchError::File(error)) => ExitCode::from(error),
            StartError::Fetch(_) => ExitCode::ControlPlane,
            StartError::Install(InstallError::TooOld { .. }) => ExitCode::UnsupportedPostgres,
            StartError::Install(_) => ExitCode::NoPostgres,
            StartError::Bind(_) | StartError::PostgresPort { .. } => ExitCode::PortInUse,
            StartError::Pgdata(_) | StartError::Storage(_) => ExitCode::PgdataRefused,
            StartError::Privilege(_) => ExitCode::NoPrivilege,
            StartError::Serve(_) | StartError::Subreaper(_) | StartError::Runtime(_) => ExitCode::Internal,
        }
    }
}
