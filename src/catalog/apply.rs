//! Executes a plan.
//!
//! Neighbouring steps that can share a transaction do, and their statements are sent many in a message: few round
//! trips, all or nothing. Databases are created and dropped one by one, because PostgreSQL allows that
//! outside of transactions only, and one by one means that nothing is under way after an error or a cancel.
//! Steps inside of other databases get a session there, a transaction per database.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;

use futures_util::TryStreamExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use thiserror::Error;
use tokio_postgres::{Client, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::connect::{Cancelled, ConnectError, Connection, connect, connect_patiently, sqlstate};
use super::plan::{Options, Plan, PlanError};
use super::read::ReadError;
use super::step::{Place, RenderError, Step};
use crate::limits;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Steps of the plan.
    pub steps: usize,
    /// Statements executed, not counting those which begin and end transactions.
    pub statements: usize,
    /// Migrations that are still to be done, for [`migrations::run`](super::migrations::run).
    pub migrations: Vec<Step>,
}

/// Why a spec was not applied, or not in full.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The present state is not known; nothing was executed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The spec is impossible; nothing was executed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A step has no form in SQL.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// No session in a database that has work in it.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused a step. Its transaction is rolled back; what came before stands.
    #[error("cannot {step} (in database {database:?}){}", sqlstate(.source))]
    Step {
        /// The step, in words.
        step: String,
        /// The database of the session.
        database: String,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// The token was cancelled. What was done before stands.
    #[error("applying roles and databases was cancelled")]
    Cancelled,
}

impl From<Cancelled> for ApplyError {
    fn from(Cancelled: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl ApplyError {
    /// The server's SQLSTATE, if the error came from the server.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Connect(error) => error.sqlstate(),
            Self::Read(error) => error.postgres().code().map(tokio_postgres::error::SqlState::code),
            Self::Step { source, .. } => source.code().map(tokio_postgres::error::SqlState::code),
            Self::Plan(_) | Self::Render(_) | Self::Cancelled => None,
        }
    }
}

/// Executes the steps in order. See [`super::apply()`] for what cancelling does.
///
/// # Errors
/// See [`ApplyError`].
pub async fn execute(
    connection: &Connection,
    plan: &Plan,
    options: &Options,
    token: &CancellationToken,
) -> Result<Applied, ApplyError> {
    let mut applied = Applied { migrations: plan.migrations().to_vec(), ..Applied::default() };
    let stages = stages(plan.steps());
    for phase in stages.chunk_by(|one, next| one.phase() == next.phase()) {
        let span = tracing::info_span!("db_apply_changes", phase = phase[0].phase());
        perform(connection, phase, options, token, &mut applied).instrument(span).await?;
    }
    if let Some(more @ 1..) = applied.steps.checked_sub(limits::CATALOG_LOGGED) {
        tracing::info!("applied {more} further steps, which are told at level debug");
    }
    Ok(applied)
}

/// Executes stages of one phase.
async fn perform(
    connection: &Connection,
    stages: &[Stage<'_>],
    options: &Options,
    token: &CancellationToken,
    applied: &mut Applied,
) -> Result<(), ApplyError> {
    for stage in stages {
        let statements = match stage {
            Stage::Together(steps) => together(connection, steps, token).await?,
            Stage::Alone(step) => alone(connection, step, token).await?,
            Stage::Inside(databases) => {
                // Boxed, or the future of all that awaits this would be many times as large.
                Box::pin(inside(connection, databases, options.concurrency, token)).await?
            }
        };
        for step in stage.steps() {
            applied.steps += 1;
            if applied.steps <= limits::CATALOG_LOGGED {
                tracing::info!("applied: {step}");
            } else {
                tracing::debug!("applied: {step}");
            }
        }
        applied.statements += statements;
    }
    Ok(())
}

/// Steps that are executed in one go.
pub(super) enum Stage<'a> {
    /// One transaction.
    Together(Vec<&'a Step>),
    /// Outside of a transaction.
    Alone(&'a Step),
    /// A transaction in each of these databases.
    Inside(BTreeMap<&'a str, Vec<&'a Step>>),
}

impl<'a> Stage<'a> {
    /// What traces call it. Not the original's phases, several of which share a transaction here.
    fn phase(&self) -> &'static str {
        match self {
            Self::Together(_) => "shared",
            Self::Alone(_) => "databases",
            Self::Inside(_) => "in_each_database",
        }
    }

    fn steps(&self) -> Box<dyn Iterator<Item = &'a Step> + Send + '_> {
        match self {
            Self::Together(steps) => Box::new(steps.iter().copied()),
            Self::Alone(step) => Box::new(std::iter::once(*step)),
            Self::Inside(databases) => Box::new(databases.values().flatten().copied()),
        }
    }
}

/// What is executed together, in the order of execution.
pub(super) fn stages(steps: &[Step]) -> Vec<Stage<'_>> {
    let mut stages: Vec<Stage<'_>> = Vec::new();
    for step in steps {
        match (step.place(), stages.last_mut()) {
            (Place::Shared, Some(Stage::Together(group))) => group.push(step),
            (Place::Shared, _) => stages.push(Stage::Together(vec![step])),
            (Place::Alone, _) => stages.push(Stage::Alone(step)),
            (Place::Inside(database), Some(Stage::Inside(databases))) => {
                databases.entry(database).or_default().push(step);
            }
            (Place::Inside(database), _) => {
                stages.push(Stage::Inside(BTreeMap::from([(database, vec![step])])));
            }
        }
    }
    stages
}

/// One transaction. Its statements are sent a thousand in one message, which costs the server and us half of
/// what as many messages do, and neither side holds more than that however many there are.
pub(super) async fn together(
    connection: &Connection,
    steps: &[&Step],
    token: &CancellationToken,
) -> Result<usize, ApplyError> {
    let client = connection.client();
    let mut count = 0;
    let mut rest = steps;
    let mut statements: Vec<(usize, String)> = vec![(0, "BEGIN".to_owned())];
    while !rest.is_empty() {
        let mut taken = 0;
        while taken < rest.len() && statements.len() < limits::CATALOG_BATCH {
            let sql = rest[taken].sql()?;
            count += sql.len();
            statements.extend(sql.into_iter().map(|sql| (taken, sql)));
            taken += 1;
        }
        if taken == rest.len() {
            statements.push((taken - 1, "COMMIT".to_owned()));
        }
        let texts: Vec<&str> = statements.iter().map(|(_, sql)| sql.as_str()).collect();
        if let Err((at, source)) = connection.unless_cancelled(token, batch(client, &texts)).await? {
            return Err(failed(connection, rest[statements[at].0], source));
        }
        statements.clear();
        rest = &rest[taken..];
    }
    Ok(count)
}

/// Sends statements of a transaction in one message. If one fails the transaction is rolled back, and it is said
/// which it was: the server counts up the statements which it has completed. Only when it can make no sense of
/// the message as a whole, because of how a statement is written, it completes none, and is asked about each.
async fn batch(client: &Client, statements: &[&str]) -> Result<(), (usize, tokio_postgres::Error)> {
    let mut completed = 0;
    let sent = async {
        let mut answers = pin!(client.simple_query_raw(&statements.join(";\n")).await?);
        while let Some(answer) = answers.try_next().await? {
            if let SimpleQueryMessage::CommandComplete(_) = answer {
                completed += 1;
            }
        }
        Ok::<_, tokio_postgres::Error>(())
    };
    let Err(source) = sent.await else { return Ok(()) };
    // Otherwise whoever uses the session next would be in a failed transaction. If this fails too, it is because
    // the session is gone.
    let _ = client.batch_execute("ROLLBACK").await;
    if completed > 0 || source.code().is_none() {
        // All may be completed, and the session lost before that was said.
        return Err((completed.min(statements.len() - 1), source));
    }
    for (at, statement) in statements.iter().enumerate() {
        match client.prepare(statement).await {
            Err(error) if error.code() == source.code() => return Err((at, error)),
            // What names an object of an earlier statement, which is rolled back, can fail in other ways.
            _ => {}
        }
    }
    Err((0, source))
}

async fn alone(connection: &Connection, step: &Step, token: &CancellationToken) -> Result<usize, ApplyError> {
    let script = step.sql()?;
    for sql in &script {
        let work = connection.client().batch_execute(sql);
        let answer = connection.unless_cancelled(token, work).await?;
        answer.map_err(|source| failed(connection, step, source))?;
    }
    Ok(script.len())
}

/// As many databases at the same time as the options allow and the server has room for. The first failure ends
/// what is under way elsewhere, so that nothing of this apply goes on after its end.
async fn inside(
    connection: &Connection,
    databases: &BTreeMap<&str, Vec<&Step>>,
    concurrency: usize,
    token: &CancellationToken,
) -> Result<usize, ApplyError> {
    let stop = token.child_token();
    // What all databases share is dealt with here, once: sessions that changed it at the same time would fail.
    let own = connection.settings().database();
    let mut statements = match databases.get(own) {
        Some(steps) => together(connection, steps, token).await?,
        None => 0,
    };
    let others = databases.iter().filter(|(name, _)| **name != own);
    let mut waiting: VecDeque<_> = others.map(|(name, steps)| (*name, steps.as_slice())).collect();
    let mut running = FuturesUnordered::new();
    let mut room = concurrency.max(1);
    let mut failure = None;
    loop {
        while failure.is_none() && running.len() < room {
            let Some((database, steps)) = waiting.pop_front() else { break };
            // When none of our own can give its slot back, somebody else's is waited for.
            let patient = running.is_empty();
            let work = Box::pin(in_database(connection, database, steps, patient, &stop));
            running.push(async move { (database, steps, patient, work.await) });
        }
        let Some((database, steps, patient, result)) = running.next().await else { break };
        match result {
            Ok(count) => statements += count,
            Err(ApplyError::Connect(error)) if error.is_full() && !(patient && running.is_empty()) => {
                room = running.len().max(1);
                tracing::debug!(database, room, "the server has no room for more sessions");
                waiting.push_front((database, steps));
            }
            Err(error) => {
                stop.cancel();
                failure.get_or_insert(error);
            }
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(statements),
    }
}

async fn in_database(
    connection: &Connection,
    database: &str,
    steps: &[&Step],
    patient: bool,
    token: &CancellationToken,
) -> Result<usize, ApplyError> {
    let settings = connection.settings().in_database(database);
    let session = match patient {
        true => connect_patiently(&settings, token).await?,
        false => token.run_until_cancelled(connect(&settings)).await.transpose()?,
    };
    together(&session.ok_or(ApplyError::Cancelled)?, steps, token).await
}

fn failed(connection: &Connection, step: &Step, source: tokio_postgres::Error) -> ApplyError {
    let database = connection.settings().database().to_owned();
    ApplyError::Step { step: step.to_string(), database, source }
}
