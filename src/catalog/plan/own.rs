//! The supervisor's own objects: extensions, the health check, notes of what was done, migrations.

use std::collections::BTreeSet;

use super::Planner;
use super::error::PlanError;
use crate::catalog::step::Step;
use crate::catalog::{Profile, migrations};
use crate::postgres::conf;
use crate::spec::document::ComputeAudit;

/// Schema of the extension `neon` and of what belongs to it.
const NEON: &str = "neon";

/// Schema of extensions for everybody, and of the health check.
const PUBLIC: &str = "public";

impl Planner<'_> {
    /// Whatever a user put where the supervisor's own objects go is not touched, and not read either.
    pub(super) fn own_names_are_free(&self) -> Result<(), PlanError> {
        let own = &self.existing.own;
        if let Some(relation) = &own.foreign {
            return Err(PlanError::NotOurs { what: format!("relation {relation}") });
        }
        for (name, needed) in [("neon_migration", true), (NEON, self.needs_neon_schema())] {
            if needed && own.schemas.get(name) == Some(&false) {
                return Err(PlanError::NotOurs { what: format!("schema {name}") });
            }
        }
        Ok(())
    }

    pub(super) fn own_objects(&mut self) -> Result<(), PlanError> {
        let own = &self.existing.own;
        let inherited = self.subscriptions_are_inherited();
        if self.needs_neon_schema() && !own.schemas.contains_key(NEON) {
            self.steps.push(Step::CreateSchema { name: NEON });
        }
        if self.preloads("pg_stat_statements") {
            self.extension("pg_stat_statements", PUBLIC)?;
        }
        if self.options.profile == Profile::Neon {
            self.neon_extension()?;
        }
        // Whoever dropped schema `public` from the supervisor's database goes without the check.
        if !own.health_check && own.schemas.contains_key(PUBLIC) {
            self.steps.push(Step::CreateHealthCheck);
        }
        if let (true, Some(timeline)) = (inherited, self.timeline()) {
            let timeline = timeline.to_owned();
            self.steps.push(Step::RecordSubscriptionsDropped { timeline });
        }
        self.audit()?;
        if !own.bookkeeping {
            self.steps.push(Step::CreateBookkeeping);
        }
        let prepared = self.steps.iter().filter_map(|step| match step {
            Step::PrepareDatabase { database, .. } => Some(database.clone()),
            _ => None,
        });
        let databases: BTreeSet<String> = prepared.collect();
        if !databases.is_empty() {
            let privileged = self.options.privileged_role.clone();
            self.steps.push(Step::MarkPrepared { databases, privileged });
        }
        Ok(())
    }

    fn needs_neon_schema(&self) -> bool {
        self.options.profile == Profile::Neon || self.subscriptions_are_inherited()
    }

    fn preloads(&self, library: &str) -> bool {
        let libraries = conf::declared(&self.spec.cluster, "shared_preload_libraries").unwrap_or_default();
        libraries.split(',').any(|name| name.trim().trim_matches('"') == library)
    }

    fn extension(&mut self, name: &'static str, schema: &'static str) -> Result<(), PlanError> {
        if self.existing.extensions.contains_key(name) {
            return Ok(());
        }
        if !self.existing.own.schemas.contains_key(schema) && schema != NEON {
            let database = self.existing.current_database.clone();
            return Err(PlanError::SchemaMissing { extension: name, schema, database });
        }
        self.steps.push(Step::CreateExtension { name, schema });
        Ok(())
    }

    fn neon_extension(&mut self) -> Result<(), PlanError> {
        let Some(present) = self.existing.extensions.get(NEON) else { return self.extension(NEON, NEON) };
        if present.schema != NEON {
            self.steps.push(Step::MoveExtension { name: NEON, schema: NEON });
        }
        if let Some(newest) = self.existing.newest.get(NEON).filter(|newest| **newest != present.version) {
            let (from, to) = (present.version.clone(), newest.clone());
            self.steps.push(Step::UpdateExtension { name: NEON, from, to });
        }
        Ok(())
    }

    fn audit(&mut self) -> Result<(), PlanError> {
        let extensions: &[&'static str] = match self.spec.audit_log_level {
            ComputeAudit::Disabled => return Ok(()),
            ComputeAudit::Log | ComputeAudit::Base => &["pgaudit"],
            ComputeAudit::Hipaa | ComputeAudit::Extended | ComputeAudit::Full => {
                &["pgaudit", "pgauditlogtofile"]
            }
        };
        for name in extensions {
            self.extension(name, PUBLIC)?;
        }
        let database = "postgres".to_owned();
        if !self.existing.own.audit_silenced && self.databases.contains_key(&database) {
            self.steps.push(Step::SilenceAudit { database });
        }
        Ok(())
    }

    pub(super) fn migrations(&self) -> Vec<Step> {
        let migrate = |migration| Step::Migrate {
            migration,
            privileged: self.options.privileged_role.clone(),
            server_version: self.existing.server_version,
            profile: self.options.profile,
        };
        migrations::pending(self.existing.own.migration).map(migrate).collect()
    }
}
