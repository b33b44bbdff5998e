//! Whether the server takes connections, as `pg_isready` sees it.

use std::path::PathBuf;
use std::process::Command;

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::{Requests, schema};
use crate::limits;
use crate::postgres::process::{self, Output, RunError};

/// Why it cannot be said that the server takes connections.
#[derive(Debug, Error)]
pub enum ReadinessError {
    /// The program cannot be told where to ask.
    #[error("Failed to get the port from the connection string")]
    NoPort,
    /// The program did not say yes. The text is the original's whatever the cause, which is the source if it is known.
    #[error("could not run `{} --port {port}`", program.display())]
    NotReady {
        /// The program.
        program: PathBuf,
        /// The port of the server.
        port: u16,
        /// What the program met.
        #[source]
        source: NotReady,
    },
}

/// What `pg_isready` met.
#[derive(Debug, Error)]
pub enum NotReady {
    /// It could not be run.
    #[error(transparent)]
    Program(#[from] RunError),
    /// It says no.
    #[error("the server is not ready, {}: {}", .0.status, String::from_utf8_lossy(&.0.stdout).trim_end())]
    Said(Output),
}

impl Requests {
    /// Runs `pg_isready`, which came with the server.
    ///
    /// # Errors
    /// See [`ReadinessError`].
    pub async fn is_ready(&self) -> Result<(), ReadinessError> {
        let config = self.0.settings.config();
        let port = config.get_ports().first().copied().ok_or(ReadinessError::NoPort)?;
        let program = self.0.pg_dump.with_file_name("pg_isready");
        let not_ready = |source| ReadinessError::NotReady { program: program.clone(), port, source };
        let mut command = Command::new(&program);
        command.arg("--port").arg(port.to_string());
        // Without a host it asks the socket in the directory it was compiled with.
        let has_host = schema::set_environment(&mut command, config, "postgres").is_ok();
        debug_assert!(has_host, "connection strings without a host are refused");
        match process::run(command, &CancellationToken::new(), limits::PG_ISREADY).await {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(not_ready(NotReady::Said(output))),
            Err(error) => Err(not_ready(error.into())),
        }
    }
}
