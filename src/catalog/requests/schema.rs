//! A dump of a database's schema, made by `pg_dump`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::Command;

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Config;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;

use super::{Requests, with_causes};
use crate::catalog::connect::{ConnectionSettings, connect};
use crate::limits;
use crate::postgres::piped::Piped;
use crate::postgres::process::{Output, RunError};

/// How our own session shows up which asks whether a database exists.
const APPLICATION_NAME: &str = "compute_ctl:database_schema";

/// A dump under way. Dropping it ends it.
#[derive(Debug)]
pub struct SchemaDump(mpsc::Receiver<Part>);

#[derive(Debug)]
enum Part {
    Piece(Vec<u8>),
    /// There is nothing more, and all went well.
    End,
}

/// Why there is no dump.
#[derive(Debug, Error)]
pub enum DumpError {
    /// There is no such database.
    #[error("database {database:?} does not exist")]
    NoSuchDatabase {
        /// The name asked for.
        database: String,
    },
    /// The server cannot be named to another program.
    #[error("the connection string names no host")]
    NoHost,
    /// The program could not be run.
    #[error(transparent)]
    Program(#[from] RunError),
    /// The program said why.
    #[error("pg_dump failed, {}: {}", .0.status, String::from_utf8_lossy(&.0.stderr).trim_end())]
    Failed(Output),
    /// It took longer than it may.
    #[error("the dump was not finished within {:?}", limits::SCHEMA_DUMP)]
    TimedOut,
    /// It broke off after the first piece; why is in the log.
    #[error("the dump is not complete")]
    Incomplete,
    /// Too many dumps are under way.
    #[error("too many schema dumps are under way")]
    Busy,
}

impl SchemaDump {
    /// The next piece of SQL, in the encoding of the database; nothing after the last one.
    ///
    /// # Errors
    /// [`DumpError::Incomplete`].
    pub async fn next(&mut self) -> Option<Result<Vec<u8>, DumpError>> {
        match self.0.recv().await {
            Some(Part::Piece(piece)) => Some(Ok(piece)),
            Some(Part::End) => None,
            None => Some(Err(DumpError::Incomplete)),
        }
    }
}

impl Requests {
    /// Starts a dump and waits for its first piece, so that what goes wrong before it is told here.
    ///
    /// # Errors
    /// See [`DumpError`].
    pub async fn dump_schema(&self, database: &str) -> Result<SchemaDump, DumpError> {
        let no_such_database = || DumpError::NoSuchDatabase { database: database.to_owned() };
        let place = self.0.dumps.clone().try_acquire_owned().map_err(|_| DumpError::Busy)?;
        let end = Instant::now() + limits::SCHEMA_DUMP;
        let settings = self.settings_for(database).map_err(|_| no_such_database())?;
        let mut command = Command::new(&self.0.pg_dump);
        // Nobody is there to be asked for a password.
        command.args(["--schema-only", "--no-password"]);
        set_environment(&mut command, settings.config(), database)?;
        let mut dump = Piped::spawn(command)?;
        match timeout_at(end, dump.next()).await.map_err(|_| DumpError::TimedOut)? {
            Some(piece) => {
                // One that waits, one that is sent, one that is read: memory does not grow with the schema.
                let (sender, receiver) = mpsc::channel(1);
                tokio::spawn(pass_on(dump, piece, sender, end, place));
                Ok(SchemaDump(receiver))
            }
            None => {
                let output = dump.finish().await?;
                if !exists(settings).await { Err(no_such_database()) } else { Err(DumpError::Failed(output)) }
            }
        }
    }
}

/// Hands the output on until it ends, or time is up, or nobody takes it any more. Apart from the one who reads,
/// because a reader which has fallen asleep must not keep the locks of the dump.
async fn pass_on(
    dump: Piped,
    first: Vec<u8>,
    sender: mpsc::Sender<Part>,
    end: Instant,
    _place: OwnedSemaphorePermit,
) {
    match timeout_at(end, to_the_end(dump, first, &sender)).await.unwrap_or(Err(DumpError::TimedOut)) {
        Ok(true) => {}
        Ok(false) => tracing::debug!("nobody waits for the schema dump any more"),
        Err(error) => tracing::warn!("a schema dump broke off: {}", with_causes(&error)),
    }
}

/// Whether all of it was taken.
async fn to_the_end(mut dump: Piped, first: Vec<u8>, sender: &mpsc::Sender<Part>) -> Result<bool, DumpError> {
    let mut piece = Some(first);
    while let Some(taken) = piece {
        if sender.send(Part::Piece(taken)).await.is_err() {
            return Ok(false);
        }
        piece = tokio::select! {
            piece = dump.next() => piece,
            () = sender.closed() => return Ok(false),
        };
    }
    let output = dump.finish().await?;
    if !output.status.success() {
        return Err(DumpError::Failed(output));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if !said.is_empty() {
        tracing::warn!("pg_dump: {}", said.trim_end());
    }
    Ok(sender.send(Part::End).await.is_ok())
}

/// Whether the database is there, by the server's own code: its words are in a language of its choice.
async fn exists(settings: ConnectionSettings) -> bool {
    let error = connect(&settings.named(APPLICATION_NAME)).await.err();
    error.as_ref().and_then(|error| error.sqlstate()) != Some(SqlState::UNDEFINED_DATABASE.code())
}

/// Where and as whom, so that nothing of it is seen in the list of processes. What is in our own environment for
/// programs like this one was not meant for it.
pub(super) fn set_environment(
    command: &mut Command,
    config: &Config,
    database: &str,
) -> Result<(), DumpError> {
    for (name, _) in std::env::vars_os() {
        if name.as_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    let hosts = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => OsString::from(name),
        Host::Unix(directory) => directory.clone().into_os_string(),
    });
    let hosts = joined(hosts);
    let addresses = joined(config.get_hostaddrs().iter().map(|address| address.to_string().into()));
    if hosts.is_empty() && addresses.is_empty() {
        return Err(DumpError::NoHost);
    }
    let ports = joined(config.get_ports().iter().map(|port| port.to_string().into()));
    let password = config.get_password().map(|password| OsString::from_vec(password.to_vec()));
    for (name, value) in [
        ("PGHOST", hosts),
        ("PGHOSTADDR", addresses),
        ("PGPORT", ports),
        ("PGUSER", config.get_user().unwrap_or_default().into()),
        ("PGPASSWORD", password.unwrap_or_default()),
        ("PGOPTIONS", config.get_options().unwrap_or_default().into()),
        // As a variable it is a name whatever is in it, and never a connection string.
        ("PGDATABASE", database.into()),
        // As our own sessions, which have neither.
        ("PGSSLMODE", "disable".into()),
        ("PGGSSENCMODE", "disable".into()),
    ] {
        // An empty one would be a value of its own to some versions.
        if !value.is_empty() {
            command.env(name, value);
        }
    }
    Ok(())
}

fn joined(parts: impl Iterator<Item = OsString>) -> OsString {
    parts.collect::<Vec<_>>().join(OsStr::new(","))
}
