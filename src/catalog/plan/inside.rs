//! What is done inside of databases, each with a session of its own there.

use std::collections::BTreeSet;

use super::Planner;
use super::deltas::reserved;
use super::error::PlanError;
use crate::catalog::step::Step;

/// A role of the original's data API, which may create in schema `public` where it exists.
const WEB_ACCESS: &str = "web_access";

impl Planner<'_> {
    /// Takes everything from roles that are to be dropped.
    pub(super) fn release_roles(&mut self) -> Result<(), PlanError> {
        let superuser = &self.existing.current_user;
        let departing: Vec<String> = self.departing().into_iter().map(str::to_owned).collect();
        for role in &departing {
            self.protect_role("delete", role)?;
            reserved(role)?;
            // Only databases which the spec does not list can still be owned by it.
            for (name, database) in self.databases.iter_mut().filter(|(_, database)| database.owner == *role)
            {
                database.owner.clone_from(superuser);
                self.steps.push(Step::AlterDatabaseOwner { name: name.clone(), owner: superuser.clone() });
            }
        }
        for role in &departing {
            let present = self.present_name(role).unwrap_or(role);
            let Some(places) = self.existing.dependencies.get(present) else { continue };
            for (name, database) in &self.databases {
                let Some((now_name, _)) = database.now else { continue };
                // What is shared by all databases can be released from any of them: from the session's own.
                let shared = now_name == self.existing.current_database && places.contains(&None);
                if !shared && !places.contains(&Some(now_name.to_owned())) {
                    continue;
                }
                let (role, database_name, heir) = (role.clone(), name.clone(), database.owner.clone());
                if !database.allows_connections {
                    return Err(PlanError::OutOfReach { role, database: database_name });
                }
                self.steps.push(Step::ReleaseOwned { role, database: database_name, heir });
            }
        }
        Ok(())
    }

    /// Drops subscriptions that were inherited with the data, once per timeline.
    pub(super) fn drop_subscriptions(&mut self) {
        if !self.subscriptions_are_inherited() {
            return;
        }
        for (name, database) in &self.databases {
            let Some((_, now)) = database.now else { continue };
            // Those behind a closed door do nothing.
            if !now.subscriptions.is_empty() && database.allows_connections {
                let (database, names) = (name.clone(), now.subscriptions.clone());
                self.steps.push(Step::DropSubscriptions { database, names });
            }
        }
    }

    /// Whether subscriptions are to be dropped, and were not on this timeline.
    pub(super) fn subscriptions_are_inherited(&self) -> bool {
        let own = &self.existing.own;
        self.spec.drop_subscriptions_before_start
            && self.timeline().is_some_and(|timeline| own.subscriptions_dropped.as_deref() != Some(timeline))
    }

    /// The spec's timeline, or the server's own.
    pub(super) fn timeline(&self) -> Option<&str> {
        crate::catalog::timeline(self.spec).or(self.existing.own.timeline.as_deref())
    }

    /// Makes the listed databases ready for the spec's roles. The supervisor's own is left as it is.
    pub(super) fn prepare_databases(&mut self) {
        let present = self.roles.get(WEB_ACCESS).filter(|_| !self.doomed.contains(WEB_ACCESS));
        let web_access = present.is_some();
        // Whether there is one, and which, is part of the preparation.
        let same_web_access = match present {
            Some(role) => role.now.is_some_and(|(name, _)| name == WEB_ACCESS),
            None => !self.existing.roles.contains_key(WEB_ACCESS),
        };
        // A new owner gets the schema, and what a role leaves behind can be that.
        let changes = self.steps.iter().filter_map(|step| match step {
            Step::AlterDatabaseOwner { name, .. } => Some(name.clone()),
            Step::ReleaseOwned { database, .. } => Some(database.clone()),
            _ => None,
        });
        let changes: BTreeSet<String> = changes.collect();
        for name in self.wanted_databases.keys() {
            let Some(database) = self.databases.get(*name) else { continue };
            let prepared = same_web_access
                && !changes.contains(*name)
                && database.now.is_some_and(|(_, now)| now.prepared);
            if prepared || !database.allows_connections || *name == self.existing.current_database {
                continue;
            }
            self.steps.push(Step::PrepareDatabase {
                database: (*name).to_owned(),
                owner: database.owner.clone(),
                privileged: self.options.privileged_role.clone(),
                web_access,
            });
        }
    }
}
