//! Databases from outside: what is deleted, renamed, created, and who owns it.

use super::deltas::{is_replaced, rename_target};
use super::error::{Kind, PlanError};
use super::{DatabaseState, Planner};
use crate::catalog::attributes::DatabaseAttributes;
use crate::catalog::read::ExistingDatabase;
use crate::catalog::step::Step;

impl Planner<'_> {
    pub(super) fn drop_invalid_databases(&mut self) {
        for (name, database) in self.existing.databases.iter().filter(|(_, database)| database.is_invalid) {
            self.databases.remove(name);
            self.steps.push(Step::DropDatabase { name: name.clone(), is_template: database.is_template() });
        }
    }

    /// Deletions and renames, in the order of the list.
    pub(super) fn change_databases(&mut self) -> Result<(), PlanError> {
        for (at, op) in self.deltas.iter().enumerate() {
            let wanted = |name: &str| self.wanted_databases.contains_key(name);
            let exists = |name: &str| self.databases.contains_key(name);
            match op.action.as_str() {
                "delete_db" if exists(&op.name) && !is_replaced(Kind::Database, self.deltas, at, exists) => {
                    self.protect_database("delete", &op.name)?;
                    let database = self.databases.remove(&op.name);
                    self.delete_database(&op.name, database.and_then(|database| database.now))?;
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

    fn delete_database(
        &mut self,
        name: &str,
        now: Option<(&str, &ExistingDatabase)>,
    ) -> Result<(), PlanError> {
        let Some((_, now)) = now else { return Ok(()) };
        // A database with subscriptions cannot be dropped, and only a session inside can drop those.
        if !now.subscriptions.is_empty() {
            if !now.allows_connections() {
                return Err(PlanError::Subscribed { name: name.to_owned() });
            }
            let (database, names) = (name.to_owned(), now.subscriptions.clone());
            self.steps.push(Step::DropSubscriptions { database, names });
        }
        self.steps.push(Step::DropDatabase { name: name.to_owned(), is_template: now.is_template() });
        Ok(())
    }

    /// The listed databases.
    pub(super) fn databases(&mut self) -> Result<(), PlanError> {
        let (mut creates, mut changes, mut grants) = (Vec::new(), Vec::new(), Vec::new());
        let privileged = &self.options.privileged_role;
        for (name, wanted) in &self.wanted_databases {
            let (name, owner) = ((*name).to_owned(), wanted.owner.clone());
            if self.doomed.contains(owner.as_str()) {
                return Err(PlanError::OwnerDeleted { role: owner, database: name });
            }
            if !self.roles.contains_key(owner.as_str()) {
                return Err(PlanError::OwnerMissing { database: name, owner });
            }
            let options = wanted.options.as_deref().unwrap_or_default();
            let declared = DatabaseAttributes::parse(options).map_err(|(option, fault)| {
                PlanError::Option { kind: Kind::Database, name: name.clone(), option, fault }
            })?;
            let mut granted = owner == *privileged;
            if let Some(database) = self.databases.get_mut(&name) {
                if let Some((_, now)) = database.now {
                    let attributes = declared.beyond(&now.attributes);
                    if !attributes.is_empty() {
                        changes.push(Step::AlterDatabase { name: name.clone(), attributes });
                    }
                    // What an owner has goes to the next one.
                    granted |= now.granted_to.contains(privileged) && database.owner != *privileged;
                }
                if database.owner != owner {
                    changes.push(Step::AlterDatabaseOwner { name: name.clone(), owner: owner.clone() });
                }
                database.allows_connections =
                    declared.allow_connections.unwrap_or(database.allows_connections);
                database.owner = owner;
            } else {
                let allows_connections = declared.allow_connections != Some(false);
                let state = DatabaseState { owner: owner.clone(), allows_connections, now: None };
                self.databases.insert(name.clone(), state);
                creates.push(Step::CreateDatabase { name: name.clone(), owner, options: options.to_vec() });
            }
            if !granted {
                grants.push(Step::GrantDatabase { name, role: privileged.clone() });
            }
        }
        self.steps.extend(creates.into_iter().chain(changes).chain(grants));
        Ok(())
    }
}
