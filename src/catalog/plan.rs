//! The difference between a server and a spec, as a list of steps.
//!
//! A pure function: no session, no clock. Whatever cannot work out is found here, before the first
//! statement, by going through the changes on a copy of what exists. Objects which the spec does not name
//! are left alone, except for half-dropped databases, which are good for nothing.
//!
//! The delta operations of a spec are repeated with every apply of it, so each has to know when it has been
//! done. Deletions and renames of something absent have. A rename has, when both its names are taken and
//! both are wanted. And an object is not the one to delete or rename any more, when a later operation
//! renames something onto that name and its source is gone: what stands there now is the renamed one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use thiserror::Error;

use super::read::{Existing, ExistingDatabase};
use super::step::{RenderError, Step};
use crate::secret::Secret;
use crate::spec::document::{ComputeSpec, DeltaOp, Role};

/// What a plan depends on besides server and spec.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the role whose members the spec's roles become (`--privileged-role-name`).
    pub privileged_role: String,
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
pub struct Plan(Vec<Step>);

impl Plan {
    /// A plan of these steps.
    ///
    /// # Errors
    /// A step which cannot be put into SQL.
    pub fn new(steps: Vec<Step>) -> Result<Self, RenderError> {
        for step in &steps {
            step.sql()?;
        }
        Ok(Self(steps))
    }

    /// The steps.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What kind of thing an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A role.
    Role,
    /// A database.
    Database,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Role => "role",
            Self::Database => "database",
        })
    }
}

/// Why a spec cannot become true on this server. Each names the object.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// A name or an option is not legal.
    #[error(transparent)]
    Illegal(#[from] RenderError),
    /// `public`, `none` and names that begin with `pg_` belong to PostgreSQL.
    #[error("the role name {name:?} is reserved by PostgreSQL")]
    ReservedRole {
        /// The name.
        name: String,
    },
    /// Two entries of one name say different things.
    #[error("the spec describes {kind} {name:?} twice, and differently")]
    Contradiction {
        /// What.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// PostgreSQL would take such a text for a password in plain text, and store its hash.
    #[error("the password of role {role:?} is neither a SCRAM-SHA-256 verifier nor an MD5 digest")]
    BadVerifier {
        /// The role.
        role: String,
    },
    /// A rename lacks `new_name`.
    #[error("the spec renames {kind} {name:?}, but not to what")]
    NoNewName {
        /// What.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// Names that change places would do so again with each apply.
    #[error("the spec's renames lead {kind} {name:?} back to a name they started from")]
    RenameCycle {
        /// What.
        kind: Kind,
        /// One name of the cycle.
        name: String,
    },
    /// Both names of a rename are taken.
    #[error("cannot rename {kind} {from:?} to {to:?}, which exists")]
    RenameTargetExists {
        /// What.
        kind: Kind,
        /// Its name.
        from: String,
        /// The taken name.
        to: String,
    },
    /// The object carries the apply itself.
    #[error("cannot {action} {kind} {name:?}, which this program itself works with")]
    Protected {
        /// What would happen.
        action: &'static str,
        /// What.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// A database's owner neither exists nor is listed.
    #[error("the owner {owner:?} of database {database:?} neither exists nor is listed")]
    OwnerMissing {
        /// The database.
        database: String,
        /// The missing role.
        owner: String,
    },
    /// A role to be deleted is the owner of a listed database.
    #[error("cannot delete role {role:?}, which is to own database {database:?}")]
    OwnerDeleted {
        /// The role.
        role: String,
        /// The database.
        database: String,
    },
    /// A role to be deleted has something in a database that allows no connections.
    #[error(
        "cannot delete role {role:?}: it has objects in database {database:?}, which refuses connections"
    )]
    OutOfReach {
        /// The role.
        role: String,
        /// The database.
        database: String,
    },
}

/// Lists the steps from `existing` to `spec`; none, when nothing differs.
///
/// # Errors
/// See [`PlanError`]; then nothing of the spec should be executed.
pub fn plan(existing: &Existing, spec: &ComputeSpec, options: &Options) -> Result<Plan, PlanError> {
    let mut planner = Planner::new(existing, spec, options)?;
    planner.drop_invalid_databases();
    planner.create_privileged_role();
    planner.rename_roles()?;
    planner.create_roles()?;
    planner.change_databases()?;
    planner.create_databases()?;
    planner.delete_roles()?;
    Ok(Plan::new(planner.steps)?)
}

/// A database in the imagined future.
struct Database<'a> {
    /// By the name the role will have.
    owner: String,
    /// What it is now; `None` for one that the plan creates.
    now: Option<(&'a str, &'a ExistingDatabase)>,
}

struct Planner<'a> {
    existing: &'a Existing,
    options: &'a Options,
    deltas: &'a [DeltaOp],
    wanted_roles: BTreeMap<&'a str, &'a Role>,
    wanted_databases: BTreeMap<&'a str, &'a crate::spec::document::Database>,
    jwt_roles: BTreeSet<&'a str>,
    /// Roles that are to be deleted, by the name they have after the renames.
    doomed: BTreeSet<&'a str>,
    /// Verifiers by role, as the steps so far leave them.
    roles: BTreeMap<String, Option<Secret>>,
    /// Present name by later name of renamed roles.
    renamed: BTreeMap<String, String>,
    /// Databases as the steps so far leave them.
    databases: BTreeMap<String, Database<'a>>,
    steps: Vec<Step>,
}

impl<'a> Planner<'a> {
    fn new(existing: &'a Existing, spec: &'a ComputeSpec, options: &'a Options) -> Result<Self, PlanError> {
        let deltas = spec.delta_operations.as_deref().unwrap_or_default();
        let wanted_roles = unique(Kind::Role, &spec.cluster.roles, |role| &role.name)?;
        let wanted_databases = unique(Kind::Database, &spec.cluster.databases, |database| &database.name)?;
        check_renames(Kind::Role, deltas)?;
        check_renames(Kind::Database, deltas)?;
        let key_sets = spec.local_proxy_config.as_ref().and_then(|proxy| proxy.jwks.as_ref());
        let jwt_roles =
            key_sets.into_iter().flatten().flat_map(|set| &set.role_names).map(String::as_str).collect();
        let doomed = deltas
            .iter()
            .enumerate()
            .filter(|(_, op)| op.action == "delete_role")
            // Roles are dropped last, when a later rename has put another under the name.
            .filter(|(at, _)| !is_replaced(Kind::Role, deltas, *at, |_| false))
            .map(|(_, op)| op.name.as_str())
            .collect();
        let roles = existing.roles.iter().map(|(name, role)| (name.clone(), role.verifier.clone())).collect();
        let databases = existing.databases.iter().map(|(name, now)| {
            let future = Database { owner: now.owner.clone(), now: Some((name.as_str(), now)) };
            (name.clone(), future)
        });
        Ok(Self {
            existing,
            options,
            deltas,
            wanted_roles,
            wanted_databases,
            jwt_roles,
            doomed,
            roles,
            renamed: BTreeMap::new(),
            databases: databases.collect(),
            steps: Vec::new(),
        })
    }

    fn drop_invalid_databases(&mut self) {
        for (name, database) in self.existing.databases.iter().filter(|(_, database)| database.is_invalid) {
            self.databases.remove(name);
            self.steps.push(Step::DropDatabase { name: name.clone(), is_template: database.is_template });
        }
    }

    fn create_privileged_role(&mut self) {
        let name = &self.options.privileged_role;
        if !self.roles.contains_key(name) {
            self.roles.insert(name.clone(), None);
            self.steps.push(Step::CreatePrivilegedRole { name: name.clone() });
        }
    }

    fn rename_roles(&mut self) -> Result<(), PlanError> {
        for (at, op) in self.deltas.iter().enumerate().filter(|(_, op)| op.action == "rename_role") {
            let wanted = |name: &str| self.wanted_roles.contains_key(name);
            let exists = |name: &str| self.roles.contains_key(name);
            let Some(to) = rename_target(Kind::Role, self.deltas, at, wanted, exists)? else { continue };
            self.protect_role("rename", &op.name)?;
            reserved(&op.name)?;
            reserved(to)?;
            let verifier = self.roles.remove(&op.name).flatten();
            // An MD5 digest is salted with the name, so the server forgets it with the rename.
            self.roles.insert(to.to_owned(), verifier.filter(|verifier| !is_md5(verifier)));
            let present = self.renamed.remove(&op.name).unwrap_or_else(|| op.name.clone());
            self.renamed.insert(to.to_owned(), present);
            for database in self.databases.values_mut().filter(|database| database.owner == op.name) {
                to.clone_into(&mut database.owner);
            }
            self.steps.push(Step::RenameRole { from: op.name.clone(), to: to.to_owned() });
        }
        Ok(())
    }

    fn create_roles(&mut self) -> Result<(), PlanError> {
        for (name, role) in &self.wanted_roles {
            if self.doomed.contains(name) {
                continue;
            }
            let verifier = verifier(role)?;
            let options = role.options.clone().unwrap_or_default();
            let step = match self.roles.get(*name) {
                Some(current) if *current == verifier => continue,
                Some(_) => Step::AlterRole { name: role.name.clone(), options, verifier: verifier.clone() },
                None => {
                    let plain = self.jwt_roles.contains(name);
                    let member_of = (!plain).then(|| self.options.privileged_role.clone());
                    Step::CreateRole {
                        name: role.name.clone(),
                        member_of,
                        options,
                        verifier: verifier.clone(),
                    }
                }
            };
            reserved(name)?;
            self.roles.insert(role.name.clone(), verifier);
            self.steps.push(step);
        }
        Ok(())
    }

    /// Deletions and renames of databases, in the order of the list.
    fn change_databases(&mut self) -> Result<(), PlanError> {
        for (at, op) in self.deltas.iter().enumerate() {
            let wanted = |name: &str| self.wanted_databases.contains_key(name);
            let exists = |name: &str| self.databases.contains_key(name);
            match op.action.as_str() {
                "delete_db" if exists(&op.name) && !is_replaced(Kind::Database, self.deltas, at, exists) => {
                    self.protect_database("delete", &op.name)?;
                    let database = self.databases.remove(&op.name);
                    self.delete_database(&op.name, database.and_then(|database| database.now));
                }
                "rename_db" => {
                    let Some(to) = rename_target(Kind::Database, self.deltas, at, wanted, exists)? else {
                        continue;
                    };
                    self.protect_database("rename", &op.name)?;
                    if let Some(database) = self.databases.remove(&op.name) {
                        self.databases.insert(to.to_owned(), database);
                    }
                    self.steps.push(Step::RenameDatabase { from: op.name.clone(), to: to.to_owned() });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn delete_database(&mut self, name: &str, now: Option<(&str, &ExistingDatabase)>) {
        let Some((_, now)) = now else { return };
        // A database with subscriptions cannot be dropped, and only a session inside can drop those.
        if !now.subscriptions.is_empty() && now.allows_connections {
            let (database, names) = (name.to_owned(), now.subscriptions.clone());
            self.steps.push(Step::DropSubscriptions { database, names });
        }
        self.steps.push(Step::DropDatabase { name: name.to_owned(), is_template: now.is_template });
    }

    fn create_databases(&mut self) -> Result<(), PlanError> {
        let (mut creates, mut owners, mut grants) = (Vec::new(), Vec::new(), Vec::new());
        let privileged = &self.options.privileged_role;
        for (name, wanted) in &self.wanted_databases {
            let (name, owner) = ((*name).to_owned(), wanted.owner.clone());
            if self.doomed.contains(owner.as_str()) {
                return Err(PlanError::OwnerDeleted { role: owner, database: name });
            }
            if !self.roles.contains_key(&owner) {
                return Err(PlanError::OwnerMissing { database: name, owner });
            }
            let mut granted = owner == *privileged;
            if let Some(database) = self.databases.get_mut(&name) {
                if database.owner != owner {
                    owners.push(Step::AlterDatabaseOwner { name: name.clone(), owner: owner.clone() });
                }
                database.owner.clone_from(&owner);
                granted |= database.now.is_some_and(|(_, now)| now.granted_to.contains(privileged));
            } else {
                let options = wanted.options.clone().unwrap_or_default();
                self.databases.insert(name.clone(), Database { owner: owner.clone(), now: None });
                creates.push(Step::CreateDatabase { name: name.clone(), owner, options });
            }
            if !granted {
                grants.push(Step::GrantDatabase { name, role: privileged.clone() });
            }
        }
        self.steps.extend(creates.into_iter().chain(owners).chain(grants));
        Ok(())
    }

    fn delete_roles(&mut self) -> Result<(), PlanError> {
        let superuser = &self.existing.current_user;
        let doomed: Vec<&str> =
            self.doomed.iter().copied().filter(|role| self.roles.contains_key(*role)).collect();
        for role in &doomed {
            self.protect_role("delete", role)?;
            reserved(role)?;
            // Only databases which the spec does not list can still be owned by it.
            for (name, database) in self.databases.iter_mut().filter(|(_, database)| database.owner == *role)
            {
                database.owner.clone_from(superuser);
                self.steps.push(Step::AlterDatabaseOwner { name: name.clone(), owner: superuser.clone() });
            }
        }
        for role in &doomed {
            let present = self.renamed.get(*role).map_or(*role, String::as_str);
            let Some(places) = self.existing.dependencies.get(present) else { continue };
            for (name, database) in &self.databases {
                let Some((now_name, now)) = database.now else { continue };
                // What is shared by all databases can be released from any of them: from the session's own.
                let shared = now_name == self.existing.current_database && places.contains(&None);
                if !shared && !places.contains(&Some(now_name.to_owned())) {
                    continue;
                }
                let (role, database, heir) = ((*role).to_owned(), name.clone(), database.owner.clone());
                if !now.allows_connections {
                    return Err(PlanError::OutOfReach { role, database });
                }
                self.steps.push(Step::ReleaseOwned { role, database, heir });
            }
        }
        self.steps.extend(doomed.into_iter().map(|role| Step::DropRole { name: role.to_owned() }));
        Ok(())
    }

    fn protect_role(&self, action: &'static str, name: &str) -> Result<(), PlanError> {
        if name == self.existing.current_user || name == self.options.privileged_role {
            return Err(PlanError::Protected { action, kind: Kind::Role, name: name.to_owned() });
        }
        Ok(())
    }

    fn protect_database(&self, action: &'static str, name: &str) -> Result<(), PlanError> {
        if name == self.existing.current_database {
            return Err(PlanError::Protected { action, kind: Kind::Database, name: name.to_owned() });
        }
        Ok(())
    }
}

/// The entries by name; entries that say the same count once.
fn unique<'a, T: PartialEq>(
    kind: Kind,
    list: &'a [T],
    name: impl Fn(&'a T) -> &'a String,
) -> Result<BTreeMap<&'a str, &'a T>, PlanError> {
    let mut entries = BTreeMap::new();
    for entry in list {
        if entries.insert(name(entry).as_str(), entry).is_some_and(|earlier| earlier != entry) {
            return Err(PlanError::Contradiction { kind, name: name(entry).clone() });
        }
    }
    Ok(entries)
}

fn rename_action(kind: Kind) -> &'static str {
    match kind {
        Kind::Role => "rename_role",
        Kind::Database => "rename_db",
    }
}

/// Refuses renames without a new name, and renames which together lead some object to a name from which
/// another, or itself, starts in a circle.
fn check_renames(kind: Kind, deltas: &[DeltaOp]) -> Result<(), PlanError> {
    // Which object, by its first name, would carry a name in the end.
    let mut carrier: BTreeMap<&str, &str> = BTreeMap::new();
    for op in deltas.iter().filter(|op| op.action == rename_action(kind)) {
        let to =
            op.new_name.as_deref().ok_or_else(|| PlanError::NoNewName { kind, name: op.name.clone() })?;
        if to != op.name {
            let first = carrier.remove(op.name.as_str()).unwrap_or(&op.name);
            carrier.insert(to, first);
        }
    }
    for start in carrier.keys().copied() {
        let mut name = start;
        for _ in 0..carrier.len() {
            let Some(previous) = carrier.get(name) else { break };
            name = previous;
            if name == start {
                return Err(PlanError::RenameCycle { kind, name: start.to_owned() });
            }
        }
    }
    Ok(())
}

/// Whether the object which operation `at` means has gone already, and the one that now has its name is
/// another which a later operation brought there.
fn is_replaced(kind: Kind, deltas: &[DeltaOp], at: usize, exists: impl Fn(&str) -> bool) -> bool {
    let name = deltas[at].name.as_str();
    deltas[at + 1..].iter().any(|later| {
        later.action == rename_action(kind)
            && later.name != name
            && later.new_name.as_deref() == Some(name)
            && !exists(&later.name)
    })
}

/// The new name, if operation `at` is a rename that is still to be done.
fn rename_target(
    kind: Kind,
    deltas: &[DeltaOp],
    at: usize,
    wanted: impl Fn(&str) -> bool,
    exists: impl Fn(&str) -> bool,
) -> Result<Option<&str>, PlanError> {
    let op = &deltas[at];
    let Some(to) = op.new_name.as_deref().filter(|to| *to != op.name && exists(&op.name)) else {
        return Ok(None);
    };
    if is_replaced(kind, deltas, at, &exists) {
        return Ok(None);
    }
    if !exists(to) {
        return Ok(Some(to));
    }
    if wanted(to) && wanted(&op.name) {
        return Ok(None);
    }
    Err(PlanError::RenameTargetExists { kind, from: op.name.clone(), to: to.to_owned() })
}

/// Names PostgreSQL lets nobody use (`IsReservedName` and `check_rolespec_name` in its source).
fn reserved(name: &str) -> Result<(), PlanError> {
    if name.starts_with("pg_") || name == "public" || name == "none" {
        return Err(PlanError::ReservedRole { name: name.to_owned() });
    }
    Ok(())
}

fn is_md5(verifier: &Secret) -> bool {
    verifier.reveal().starts_with("md5")
}

/// The role's verifier as the catalog holds it: SCRAM as it came, MD5 with its prefix and in lower case.
fn verifier(role: &Role) -> Result<Option<Secret>, PlanError> {
    let Some(password) = &role.encrypted_password else { return Ok(None) };
    let text = password.reveal();
    if is_scram(text) {
        return Ok(Some(password.clone()));
    }
    // Some write the digest with the prefix; 35 characters can mean nothing else.
    let digest = if text.len() == 35 { text.strip_prefix("md5").unwrap_or(text) } else { text };
    if digest.len() == 32 && digest.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(Some(Secret::new(format!("md5{}", digest.to_ascii_lowercase()))));
    }
    Err(PlanError::BadVerifier { role: role.name.clone() })
}

/// `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, the keys being 32 bytes in base64, as
/// PostgreSQL's `parse_scram_secret` demands.
pub(crate) fn is_scram(text: &str) -> bool {
    let base64 = |text: &str| {
        let digits = text.trim_end_matches('=');
        text.len().is_multiple_of(4)
            && text.len() - digits.len() <= 2
            && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
    };
    let key = |text: &str| text.len() == 44 && text.ends_with('=') && base64(text);
    let parts = || {
        let (iterations, rest) = text.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
        let (salt, keys) = rest.split_once('$')?;
        let (stored, server) = keys.split_once(':')?;
        Some((iterations, salt, stored, server))
    };
    parts().is_some_and(|(iterations, salt, stored, server)| {
        iterations.parse::<i32>().is_ok_and(|count| count > 0)
            && !salt.is_empty()
            && base64(salt)
            && key(stored)
            && key(server)
    })
}

#[cfg(test)]
mod tests;
