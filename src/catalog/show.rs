//! A plan as a document: for programs, for people, and as a script for `psql`.
//!
//! [`inspect`] reads a server and plans, in a session in which the server refuses to change anything, and
//! [`document()`] puts a plan into a [`PlanDocument`], which can be sent elsewhere as JSON. Everything shown is made
//! from that document alone, so a client shows what a server sent as it would show its own. No secret is in it:
//! statements that set a password have it masked.
//!
//! Names in a document are as hostile as those in a spec. What is shown of them is escaped where a terminal would
//! obey it or a reader would be misled; in a script by the means of SQL, so that it still means the same.

mod escape;
mod people;
mod script;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use escape::visible;
pub use people::Style;
pub use script::ScriptError;

use super::apply::{Stage, stages};
use super::plan::{Options, Plan};
use super::quote;
use super::read::Existing;
use super::step::{Change, RenderError, Step};
use super::{ApplyError, ConnectionSettings, Profile, connect_patiently, preview};
use crate::spec::document::{ComputeMode, ComputeSpec};

/// What a spec would change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PlanDocument {
    /// How many of [`PlanDocument::changes`] are what.
    pub summary: Summary,
    /// What would be done before the spec counts as applied, in the order of execution.
    pub changes: Vec<PlannedChange>,
    /// What would be done afterwards, while the server serves, in the order of execution.
    pub migrations: Vec<PlannedChange>,
    /// Why roles and databases are not looked at, for a spec which says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
    /// The supervisor's own database; none when the server was not asked.
    pub database: Option<String>,
    /// Version in PostgreSQL's numbering; none when the server was not asked.
    pub server_version: Option<u32>,
    /// The kind of server it was planned for.
    pub profile: Profile,
}

/// Numbers of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Summary {
    /// Something is there that was not.
    pub add: usize,
    /// Something is another way than it was.
    pub change: usize,
    /// Something is gone.
    pub remove: usize,
    /// Of all these, those which lose something that nobody could bring back.
    pub destructive: usize,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PlannedChange {
    /// Which step it is; [`Step::action`].
    pub action: String,
    /// What it is to a reader.
    pub change: Change,
    /// Whether something is lost that nobody could bring back: data, or who was allowed what.
    pub destructive: bool,
    /// What it is about.
    pub kind: Kind,
    /// The name of that, as it is before the step.
    pub name: String,
    /// The database inside of which it is done, when that is not the supervisor's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Number of the transaction it is part of, each being all or nothing; none for what PostgreSQL does outside of
    /// transactions only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<usize>,
    /// The step in words.
    pub text: String,
    /// The options it sets, or the names it is about, when it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Its statements, with secrets masked.
    pub sql: Vec<String>,
}

/// What a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A role.
    Role,
    /// A database.
    Database,
    /// A schema of the supervisor's own.
    Schema,
    /// An extension in the supervisor's own database.
    Extension,
    /// A table of the supervisor's own.
    Table,
    /// Subscriptions of one database, which is the name given.
    Subscription,
    /// Notes of the supervisor's.
    Bookkeeping,
    /// A numbered migration.
    Migration,
}

/// Why roles and databases are left as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Skipped {
    /// `skip_pg_catalog_updates` is set.
    SkipPgCatalogUpdates,
    /// A replica has what its primary has.
    NotPrimary,
}

impl Skipped {
    /// Whether and why a spec leaves roles and databases as they are.
    pub fn of(spec: &ComputeSpec) -> Option<Self> {
        if spec.mode != ComputeMode::Primary {
            return Some(Self::NotPrimary);
        }
        spec.skip_pg_catalog_updates.then_some(Self::SkipPgCatalogUpdates)
    }
}

impl PlanDocument {
    /// The document of a spec that leaves roles and databases as they are.
    pub fn skipped(reason: Skipped, profile: Profile) -> Self {
        Self {
            summary: Summary::default(),
            changes: Vec::new(),
            migrations: Vec::new(),
            skipped: Some(reason),
            database: None,
            server_version: None,
            profile,
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.migrations.is_empty()
    }

    /// The document as indented JSON, in which no character can mislead a terminal.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|json| escape::json(&json))
    }
}

/// Reads a server and lists what applying `spec` would do, in a session in which the server refuses to change
/// anything. A spec which leaves roles and databases as they are needs no session.
///
/// # Errors
/// See [`ApplyError`]; a spec that is impossible is among them.
pub async fn inspect(
    settings: &ConnectionSettings,
    spec: &ComputeSpec,
    options: &Options,
    token: &CancellationToken,
) -> Result<PlanDocument, ApplyError> {
    if let Some(reason) = Skipped::of(spec) {
        return Ok(PlanDocument::skipped(reason, options.profile));
    }
    let settings = settings.clone().named("compute_ctl:plan").read_only();
    let connection = connect_patiently(&settings, token).await?.ok_or(ApplyError::Cancelled)?;
    let (existing, plan) = preview(&connection, spec, options, token).await?;
    Ok(document(&existing, &plan, options.profile)?)
}

/// The document of a plan which starts from `existing`.
///
/// # Errors
/// [`RenderError`] for a step without a form in SQL, which no [`Plan`] has.
pub fn document(existing: &Existing, plan: &Plan, profile: Profile) -> Result<PlanDocument, RenderError> {
    let mut changes = Vec::with_capacity(plan.steps().len());
    let mut transactions = 0;
    for stage in stages(plan.steps()) {
        let together = match stage {
            Stage::Alone(step) => {
                changes.push(planned(step, None)?);
                continue;
            }
            Stage::Together(steps) => vec![steps],
            Stage::Inside(databases) => BTreeMap::into_values(databases).collect(),
        };
        for steps in together {
            transactions += 1;
            for step in steps {
                changes.push(planned(step, Some(transactions))?);
            }
        }
    }
    let numbered = plan.migrations().iter().zip(transactions + 1..);
    let migrations = numbered.map(|(step, number)| planned(step, Some(number))).collect::<Result<_, _>>()?;
    let mut summary = Summary::default();
    for change in &changes {
        match change.change {
            Change::Add => summary.add += 1,
            Change::Alter => summary.change += 1,
            Change::Remove => summary.remove += 1,
        }
        summary.destructive += usize::from(change.destructive);
    }
    Ok(PlanDocument {
        summary,
        changes,
        migrations,
        skipped: None,
        database: Some(existing.current_database.clone()),
        server_version: Some(existing.server_version),
        profile,
    })
}

fn planned(step: &Step, transaction: Option<usize>) -> Result<PlannedChange, RenderError> {
    Ok(PlannedChange {
        action: step.action().to_owned(),
        change: step.change(),
        destructive: step.is_destructive(),
        kind: kind(step),
        name: step.object(),
        database: step.database().map(str::to_owned),
        transaction,
        text: step.to_string(),
        detail: detail(step)?,
        sql: step.masked_sql()?,
    })
}

fn kind(step: &Step) -> Kind {
    match step {
        Step::CreatePrivilegedRole { .. }
        | Step::RenameRole { .. }
        | Step::CreateRole { .. }
        | Step::AlterRole { .. }
        | Step::GrantRole { .. }
        | Step::ReleaseOwned { .. }
        | Step::DropRole { .. } => Kind::Role,
        Step::DropDatabase { .. }
        | Step::RenameDatabase { .. }
        | Step::CreateDatabase { .. }
        | Step::AlterDatabase { .. }
        | Step::AlterDatabaseOwner { .. }
        | Step::GrantDatabase { .. }
        | Step::PrepareDatabase { .. }
        | Step::SilenceAudit { .. } => Kind::Database,
        Step::DropSubscriptions { .. } => Kind::Subscription,
        Step::CreateSchema { .. } => Kind::Schema,
        Step::CreateExtension { .. } | Step::MoveExtension { .. } | Step::UpdateExtension { .. } => {
            Kind::Extension
        }
        Step::CreateHealthCheck => Kind::Table,
        Step::CreateBookkeeping | Step::RecordSubscriptionsDropped { .. } | Step::MarkPrepared { .. } => {
            Kind::Bookkeeping
        }
        Step::Migrate { .. } => Kind::Migration,
    }
}

/// What the words of a step leave out.
fn detail(step: &Step) -> Result<Option<String>, RenderError> {
    let options = match step {
        Step::CreateRole { attributes, .. } | Step::AlterRole { attributes, .. } => attributes.sql(),
        Step::CreateDatabase { options, .. } => quote::options(options),
        Step::AlterDatabase { attributes, .. } => Ok(attributes.sql()),
        Step::DropSubscriptions { names, .. } => Ok(list(names)),
        Step::MarkPrepared { databases, .. } => Ok(list(databases)),
        _ => Ok(String::new()),
    };
    let text = options.map_err(|(part, source)| RenderError { step: step.to_string(), part, source })?;
    let text = text.trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

/// `15.4` for 150004.
fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}
