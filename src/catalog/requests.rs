//! What clients ask of the running Postgres apart from a spec: lists, statistics, a dump of a schema, small
//! changes.
//!
//! Every request has a session of its own that is gone with it, and a deadline. Dropping the future of a request
//! ends it: the session is closed, and the server, which looks for that every [`limits::CATALOG_ABANDONED`], rolls
//! the statement back.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, Type};

use super::connect::{ConnectError, Connection, ConnectionSettings, connect};
use super::quote::{self, QuoteError};
use crate::limits;

mod extension;
mod grants;
mod insights;
mod listing;
mod plan;
mod readiness;
mod schema;
mod writability;

pub use extension::ExtensionInstallRequest;
pub use grants::{Privilege, SetRoleGrantsRequest};
pub use listing::{ListedDatabase, Listing};
pub use plan::PlanRequestError;
pub use readiness::ReadinessError;
pub use schema::{DumpError, SchemaDump};

/// The way to the running Postgres for requests. Cheap to clone; clones share the limits.
#[derive(Clone, Debug)]
pub struct Requests(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: ConnectionSettings,
    pg_dump: PathBuf,
    privileged_role: String,
    sessions: Semaphore,
    dumps: Arc<Semaphore>,
}

/// Why Postgres did not do what it was asked for.
#[derive(Debug, Error)]
pub enum RequestError {
    /// No object can have such a name.
    #[error("the name of the {object} {fault}")]
    Name {
        /// What was named.
        object: &'static str,
        /// What is wrong with the name.
        fault: QuoteError,
    },
    /// There is no session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement failed, or the session broke while it was executed. The text is the driver's with its causes.
    #[error("{}", with_causes(.0))]
    Statement(tokio_postgres::Error),
    /// The statements took longer than they may.
    #[error("Postgres did not finish within {after:?}")]
    TimedOut {
        /// How long they may take.
        after: Duration,
    },
    /// Too many requests are under way.
    #[error("too many requests are waiting for Postgres")]
    Busy,
}

impl RequestError {
    /// The server's SQLSTATE, if the server said no.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Connect(error) => error.sqlstate(),
            Self::Statement(error) => error.code().map(SqlState::code),
            _ => None,
        }
    }

    /// Whether somebody else made the same change at the same time, so that another look may find nothing left
    /// to do. Concurrent changes of one catalog row are an internal error (`tuple concurrently updated`).
    fn is_contention(&self) -> bool {
        let Self::Statement(error) = self else { return false };
        let codes = [SqlState::UNIQUE_VIOLATION, SqlState::DUPLICATE_OBJECT, SqlState::INTERNAL_ERROR];
        error.code().is_some_and(|code| codes.contains(code))
    }
}

impl From<tokio_postgres::Error> for RequestError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Statement(error)
    }
}

impl Requests {
    /// For the server which `settings` lead to; `pg_dump` is the program that came with it, and `privileged_role`
    /// the role whose members stand in for superusers there.
    pub fn new(settings: ConnectionSettings, pg_dump: PathBuf, privileged_role: String) -> Self {
        Self(Arc::new(Inner {
            settings,
            pg_dump,
            privileged_role,
            sessions: Semaphore::new(limits::REQUEST_SESSIONS),
            dumps: Arc::new(Semaphore::new(limits::SCHEMA_DUMPS)),
        }))
    }

    /// A session in the database of the connection string, or in another one.
    async fn session(&self, name: &str, database: Option<&str>) -> Result<Session<'_>, RequestError> {
        let settings = match database {
            Some(database) => self.settings_for(database)?,
            None => self.0.settings.clone(),
        };
        let place = self.place().await.ok_or(RequestError::Busy)?;
        Ok(Session { connection: connect(&settings.named(name)).await?, _place: place })
    }

    /// Room for one session more, unless too many requests wait for it.
    async fn place(&self) -> Option<SemaphorePermit<'_>> {
        timeout(limits::REQUEST_WAIT, self.0.sessions.acquire()).await.ok()?.ok()
    }

    /// The server would take an empty name for the user's, and cut one which is too long: either leads to another
    /// database than the one that was asked for.
    fn settings_for(&self, database: &str) -> Result<ConnectionSettings, RequestError> {
        checked("database", database)?;
        Ok(self.0.settings.in_database(database))
    }
}

/// A session of one request.
struct Session<'a> {
    connection: Connection,
    _place: SemaphorePermit<'a>,
}

impl Session<'_> {
    /// Parameters are texts.
    async fn query(&self, sql: &str, parameters: &[&str]) -> Result<Vec<Row>, RequestError> {
        let typed: Vec<_> = parameters.iter().map(|text| (text as _, Type::TEXT)).collect();
        Ok(self.connection.client().query_typed(sql, &typed).await?)
    }

    async fn execute(&self, sql: &str) -> Result<(), RequestError> {
        Ok(self.connection.client().batch_execute(sql).await?)
    }
}

fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, RequestError> {
    Ok(row.try_get(column)?)
}

/// A name quoted as an identifier.
fn checked(object: &'static str, name: &str) -> Result<String, RequestError> {
    quote::identifier(name).map_err(|fault| RequestError::Name { object, fault })
}

async fn within<T>(
    after: Duration,
    work: impl Future<Output = Result<T, RequestError>>,
) -> Result<T, RequestError> {
    timeout(after, work).await.unwrap_or(Err(RequestError::TimedOut { after }))
}

/// Does a change again, from the look at what is there on, while somebody else makes the same one.
async fn despite_contention<F>(change: impl Fn() -> F) -> Result<(), RequestError>
where
    F: Future<Output = Result<(), RequestError>>,
{
    let mut tries = 1;
    loop {
        match change().await {
            Err(error) if error.is_contention() && tries < limits::CONTENTION_TRIES => tries += 1,
            done => return done,
        }
    }
}

/// An error and its causes in one line; of the driver's, what its older versions said by themselves.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
