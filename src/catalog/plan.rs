//! The difference between a server and a spec, as a list of steps.
//!
//! A pure function: no session, no clock. Whatever cannot work out is found here, before the first
//! statement, by going through the changes on a copy of what exists. Objects which the spec does not name
//! are left alone, except for half-dropped databases, which are good for nothing.
//!
//! The order of the steps is that of the original's phases, with two liberties: what can share a transaction
//! stands together, and everything inside of databases comes after all that is done to them from outside.

mod databases;
mod deltas;
mod error;
mod inside;
mod own;
mod roles;
mod verifier;

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub use error::{Kind, PlanError};
pub(crate) use verifier::is_scram;

use super::Profile;
use super::read::{Existing, ExistingDatabase, ExistingRole};
use super::step::{RenderError, Step};
use crate::secret::Secret;
use crate::spec::document::{ComputeSpec, DeltaOp, Role};

/// What a plan depends on besides server and spec.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the role whose members the spec's roles become (`--privileged-role-name`).
    pub privileged_role: String,
    /// The kind of server.
    pub profile: Profile,
    /// Databases worked on at the same time, each with a session of its own; at least 1.
    pub concurrency: usize,
}

impl Options {
    /// How many databases to work on at the same time when a node starts and nobody else needs the server's
    /// connections yet (reference: startup-sequence §7). A reconfiguration uses the spec's
    /// `reconfigure_concurrency` instead. See [`max_connections`](crate::postgres::conf::max_connections).
    pub fn start_concurrency(max_connections: Option<u32>) -> usize {
        let connections = max_connections.map_or(10, |connections| match connections {
            0 => 1,
            1..10 => connections,
            10..30 => 10,
            30..300 => connections / 3,
            300.. => 100,
        });
        usize::try_from(connections).unwrap_or(1)
    }
}

/// Steps in the order of their execution. Each has a form in SQL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
    migrations: Vec<Step>,
}

impl Plan {
    /// A plan of these steps.
    ///
    /// # Errors
    /// A step which cannot be put into SQL.
    pub fn new(steps: Vec<Step>, migrations: Vec<Step>) -> Result<Self, RenderError> {
        for step in steps.iter().chain(&migrations) {
            step.sql()?;
        }
        Ok(Self { steps, migrations })
    }

    /// The steps without which the spec is not true.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Numbered migrations that are still to be done. Serving does not wait for them.
    pub fn migrations(&self) -> &[Step] {
        &self.migrations
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.migrations.is_empty()
    }
}

/// Lists the steps from `existing` to `spec`; none, when nothing differs.
///
/// # Errors
/// See [`PlanError`]; then nothing of the spec should be executed.
pub fn plan(existing: &Existing, spec: &ComputeSpec, options: &Options) -> Result<Plan, PlanError> {
    let mut planner = Planner::new(existing, spec, options)?;
    planner.own_names_are_free()?;
    planner.drop_invalid_databases();
    planner.privileged_role();
    planner.rename_roles()?;
    planner.roles()?;
    planner.change_databases()?;
    planner.databases()?;
    planner.release_roles()?;
    planner.drop_subscriptions();
    planner.prepare_databases();
    // Before the notes, which depend on what roles there are.
    planner.drop_roles();
    planner.own_objects()?;
    let migrations = planner.migrations();
    Ok(Plan::new(planner.steps, migrations)?)
}

/// What PostgreSQL, and this program through it, copies new databases from.
const TEMPLATES: [&str; 2] = ["template0", "template1"];

/// A role in the imagined future.
#[derive(Clone, Copy, Default)]
struct RoleState<'a> {
    /// What it is now, by its present name; `None` for one that the plan creates.
    now: Option<(&'a str, &'a ExistingRole)>,
    /// The password it has after the renames.
    verifier: Option<&'a Secret>,
}

/// A database in the imagined future.
struct DatabaseState<'a> {
    /// By the name the role will have.
    owner: String,
    /// Whether sessions will be allowed.
    allows_connections: bool,
    /// What it is now; `None` for one that the plan creates.
    now: Option<(&'a str, &'a ExistingDatabase)>,
}

struct Planner<'a> {
    existing: &'a Existing,
    spec: &'a ComputeSpec,
    options: &'a Options,
    deltas: &'a [DeltaOp],
    wanted_roles: BTreeMap<&'a str, &'a Role>,
    wanted_databases: BTreeMap<&'a str, &'a crate::spec::document::Database>,
    jwt_roles: BTreeSet<&'a str>,
    /// Roles that are to be deleted, by the name they have after the renames.
    doomed: BTreeSet<&'a str>,
    /// Roles as the steps so far leave them.
    roles: HashMap<&'a str, RoleState<'a>>,
    /// Databases as the steps so far leave them.
    databases: BTreeMap<String, DatabaseState<'a>>,
    steps: Vec<Step>,
}

impl<'a> Planner<'a> {
    fn new(existing: &'a Existing, spec: &'a ComputeSpec, options: &'a Options) -> Result<Self, PlanError> {
        let deltas = spec.delta_operations.as_deref().unwrap_or_default();
        let wanted_roles = deltas::unique(Kind::Role, &spec.cluster.roles, |role| &role.name)?;
        let wanted_databases =
            deltas::unique(Kind::Database, &spec.cluster.databases, |database| &database.name)?;
        deltas::check_renames(Kind::Role, deltas)?;
        deltas::check_renames(Kind::Database, deltas)?;
        deltas::check_deletions(deltas, |name| wanted_databases.contains_key(name))?;
        let key_sets = spec.local_proxy_config.as_ref().and_then(|proxy| proxy.jwks.as_ref());
        let jwt_roles =
            key_sets.into_iter().flatten().flat_map(|set| &set.role_names).map(String::as_str).collect();
        let doomed = deltas
            .iter()
            .enumerate()
            .filter(|(_, op)| op.action == "delete_role")
            // Roles are dropped last, when a later rename has put another under the name.
            .filter(|(at, _)| !deltas::is_replaced(Kind::Role, deltas, *at, |_| false))
            .map(|(_, op)| op.name.as_str())
            .collect();
        let roles = existing.roles.iter().map(|(name, role)| {
            let (name, verifier) = (name.as_str(), role.verifier.as_ref());
            (name, RoleState { now: Some((name, role)), verifier })
        });
        let databases = existing.databases.iter().map(|(name, now)| {
            let future = DatabaseState {
                owner: now.owner.clone(),
                allows_connections: now.allows_connections(),
                now: Some((name.as_str(), now)),
            };
            (name.clone(), future)
        });
        Ok(Self {
            existing,
            spec,
            options,
            deltas,
            wanted_roles,
            wanted_databases,
            jwt_roles,
            doomed,
            roles: roles.collect(),
            databases: databases.collect(),
            steps: Vec::new(),
        })
    }

    fn protect_role(&self, action: &'static str, name: &str) -> Result<(), PlanError> {
        if name == self.existing.current_user || name == self.options.privileged_role {
            return Err(PlanError::Protected { action, kind: Kind::Role, name: name.to_owned() });
        }
        Ok(())
    }

    fn protect_database(&self, action: &'static str, name: &str) -> Result<(), PlanError> {
        if name == self.existing.current_database || TEMPLATES.contains(&name) {
            return Err(PlanError::Protected { action, kind: Kind::Database, name: name.to_owned() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
