//! Executes a plan.
//!
//! Neighbouring steps that can share a transaction do, and their statements are sent at once: one round
//! trip, all or nothing. Databases are created and dropped one by one, because PostgreSQL allows that
//! outside of transactions only, and one by one means that nothing is under way after an error or a cancel.
//! Steps inside of other databases get a session there, a transaction per database.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use futures_util::future::{MaybeDone, maybe_done};
use futures_util::stream::{FuturesUnordered, StreamExt};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

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
    for stage in stages(plan.steps()) {
        let statements = match &stage {
            Stage::Together(steps) => together(connection, steps, token).await?,
            Stage::Alone(step) => alone(connection, step, token).await?,
            Stage::Inside(databases) => {
                // Boxed, or the future of all that awaits this would be many times as large.
                Box::pin(inside(connection, databases, options.concurrency, token)).await?
            }
        };
        for step in stage.steps() {
            tracing::info!("applied: {step}");
        }
        applied.steps += stage.steps().count();
        applied.statements += statements;
    }
    Ok(applied)
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

/// One transaction. Its statements are sent without waiting for answers, a window of them at a time, so that
/// neither side holds more than that however many there are. After a failure the server skips the rest, so the
/// first error is the cause, and the transaction is rolled back.
pub(super) async fn together(
    connection: &Connection,
    steps: &[&Step],
    token: &CancellationToken,
) -> Result<usize, ApplyError> {
    let client = connection.client();
    let mut statements = 0;
    let mut first = true;
    let mut rest = steps;
    while !rest.is_empty() {
        let mut window: Vec<(&Step, String)> = Vec::new();
        if first {
            window.push((rest[0], "BEGIN".to_owned()));
        }
        let mut taken = 0;
        while taken < rest.len() && window.len() < limits::CATALOG_WINDOW {
            let sql = rest[taken].sql()?;
            statements += sql.len();
            window.extend(sql.into_iter().map(|sql| (rest[taken], sql)));
            taken += 1;
        }
        let last = rest[taken.saturating_sub(1)];
        rest = &rest[taken..];
        if rest.is_empty() {
            window.push((last, "COMMIT".to_owned()));
        }
        let sent = window.iter().map(|(_, sql)| client.batch_execute(sql)).collect();
        let answers = connection.unless_cancelled(token, pipeline(sent)).await?;
        let failure =
            answers.into_iter().zip(&window).find_map(|(answer, (step, _))| Some((step, answer.err()?)));
        if let Some((step, source)) = failure {
            // In the last window the server has seen COMMIT, and rolled back. Otherwise whoever uses the session
            // next would be in a failed transaction; if that fails too, it is because the session is gone.
            if !rest.is_empty() {
                let _ = client.batch_execute("ROLLBACK").await;
            }
            return Err(failed(connection, step, source));
        }
        first = false;
    }
    Ok(statements)
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
    let mut waiting: VecDeque<_> = databases.iter().map(|(name, steps)| (*name, steps.as_slice())).collect();
    let mut running = FuturesUnordered::new();
    let mut room = concurrency.max(1);
    let mut statements = 0;
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
    if database == connection.settings().database() {
        return together(connection, steps, token).await;
    }
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

/// Awaits all futures, each polled once, in order, before any is awaited: a statement is sent at its first
/// poll, so this keeps both the order and the single round trip.
async fn pipeline<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut started: Vec<Pin<Box<MaybeDone<F>>>> =
        futures.into_iter().map(|future| Box::pin(maybe_done(future))).collect();
    poll_fn(|cx| {
        for future in &mut started {
            // A future that is not done is awaited below.
            let _ = future.as_mut().poll(cx);
        }
        Poll::Ready(())
    })
    .await;
    let mut outputs = Vec::with_capacity(started.len());
    for mut future in started {
        future.as_mut().await;
        outputs.extend(future.as_mut().take_output());
    }
    outputs
}
