//! The numbered migrations: changes that each cluster gets once, in order, however old it is.
//!
//! The number of the last one that was done stands in `neon_migration.migration_id`, in the original's form, so
//! that either program can carry on after the other. They are append-only. Each is a transaction of its own
//! together with its number; the first that fails ends the series, and the next apply tries it again. None is
//! needed for serving, so they are run beside the serving server and their failure is only told and counted.

use tokio_util::sync::CancellationToken;

use super::Profile;
use super::apply::{self, ApplyError};
use super::connect::Connection;
use super::step::Step;

/// One migration.
#[derive(Debug, PartialEq, Eq)]
pub struct Migration {
    /// Its number, from 1.
    pub id: i64,
    /// What it does, in words.
    pub what: &'static str,
    parts: &'static [Part],
}

/// Statements that some servers do not get.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    /// The first version which knows what it speaks of, in PostgreSQL's numbering.
    since: u32,
    /// Whether it is for Neon's clusters only, all of whose roles are the control plane's.
    neon_only: bool,
    /// `{privileged}` stands for the privileged role's name, `{privileged_text}` for it as a literal.
    sql: &'static str,
}

const ALL_VERSIONS: u32 = 0;

const fn part(since: u32, sql: &'static str) -> Part {
    Part { since, neon_only: false, sql }
}

const fn neon(sql: &'static str) -> Part {
    Part { since: ALL_VERSIONS, neon_only: true, sql }
}

const fn migration(id: i64, what: &'static str, parts: &'static [Part]) -> Migration {
    Migration { id, what, parts }
}

/// All of them. What numbers 5 to 9 once did is done elsewhere or was taken back.
static MIGRATIONS: [Migration; 12] = [
    migration(
        1,
        "the privileged role bypasses row-level security",
        &[part(ALL_VERSIONS, "ALTER ROLE {privileged} BYPASSRLS")],
    ),
    migration(
        2,
        "members of the privileged role inherit from it, and nobody else bypasses row-level security",
        &[part(ALL_VERSIONS, include_str!("sql/inherit.sql")), neon(include_str!("sql/no_bypass.sql"))],
    ),
    migration(
        3,
        "the privileged role may create subscriptions",
        &[part(160_000, "GRANT pg_create_subscription TO {privileged}")],
    ),
    migration(
        4,
        "the privileged role may monitor, and pass that on",
        &[part(ALL_VERSIONS, "GRANT pg_monitor TO {privileged} WITH ADMIN OPTION")],
    ),
    migration(5, "nothing any more", &[]),
    migration(6, "nothing any more", &[]),
    migration(7, "nothing any more", &[]),
    migration(8, "nothing any more", &[]),
    migration(9, "nothing any more", &[]),
    migration(
        10,
        "the privileged role may export snapshots and log those of standbys",
        &[
            part(160_000, "GRANT EXECUTE ON FUNCTION pg_catalog.pg_export_snapshot() TO {privileged}"),
            part(160_000, "GRANT EXECUTE ON FUNCTION pg_catalog.pg_log_standby_snapshot() TO {privileged}"),
        ],
    ),
    migration(
        11,
        "the privileged role sees the state of replication origins",
        &[part(
            ALL_VERSIONS,
            "GRANT EXECUTE ON FUNCTION pg_catalog.pg_show_replication_origin_status() TO {privileged}",
        )],
    ),
    migration(
        12,
        "the privileged role may signal backends, and pass that on",
        &[part(ALL_VERSIONS, "GRANT pg_signal_backend TO {privileged} WITH ADMIN OPTION")],
    ),
];

impl Migration {
    /// The statements, the note that it was done last.
    pub(super) fn statements(
        &self,
        privileged: &str,
        privileged_text: &str,
        server_version: u32,
        profile: Profile,
    ) -> Vec<String> {
        self.parts
            .iter()
            .filter(|part| part.since <= server_version && (!part.neon_only || profile == Profile::Neon))
            .map(|part| {
                part.sql.replace("{privileged}", privileged).replace("{privileged_text}", privileged_text)
            })
            .chain([format!("UPDATE neon_migration.migration_id SET id = {} WHERE key = 0", self.id)])
            .collect()
    }
}

/// Those that are still to be done after number `done`.
pub(super) fn pending(done: i64) -> impl Iterator<Item = &'static Migration> {
    MIGRATIONS.iter().filter(move |migration| migration.id > done)
}

/// A migration that failed; those after it were not tried.
#[derive(Debug, thiserror::Error)]
#[error("migration {id} failed")]
pub struct MigrationError {
    /// Its number.
    pub id: i64,
    /// Why.
    pub source: ApplyError,
}

impl MigrationError {
    /// Whether it was only told to stop.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.source, ApplyError::Cancelled)
    }
}

/// Runs migrations, each in a transaction of its own.
///
/// # Errors
/// The first that fails, or that was under way when the token was cancelled.
pub async fn run(
    connection: &Connection,
    migrations: &[Step],
    token: &CancellationToken,
) -> Result<(), MigrationError> {
    for step in migrations {
        let Step::Migrate { migration, .. } = step else { continue };
        let id = migration.id;
        apply::together(connection, &[step], token).await.map_err(|source| MigrationError { id, source })?;
        tracing::info!("applied: {step}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(server_version: u32, profile: Profile) -> Vec<Vec<String>> {
        let statements =
            |m: &Migration| m.statements("\"neon_superuser\"", "'neon_superuser'", server_version, profile);
        MIGRATIONS.iter().map(statements).collect()
    }

    #[test]
    fn numbers_count_up_from_one() {
        let numbers: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.id).collect();
        assert_eq!(numbers, (1..=12).collect::<Vec<_>>());
        assert_eq!(pending(0).count(), 12);
        assert_eq!(pending(10).map(|migration| migration.id).collect::<Vec<_>>(), [11, 12]);
        assert_eq!(pending(12).count(), 0);
    }

    #[test]
    fn statements_of_newer_versions_are_left_out_of_older_ones() {
        for (version, counts) in [
            (150_004, [1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1]),
            (159_999, [1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1]),
            (160_000, [1, 1, 1, 1, 0, 0, 0, 0, 0, 2, 1, 1]),
            (170_002, [1, 1, 1, 1, 0, 0, 0, 0, 0, 2, 1, 1]),
        ] {
            let counted: Vec<usize> =
                sql(version, Profile::Standard).iter().map(|statements| statements.len() - 1).collect();
            assert_eq!(counted, counts, "{version}");
        }
        for (number, statements) in (1..).zip(sql(150_000, Profile::Standard)) {
            let note = format!("UPDATE neon_migration.migration_id SET id = {number} WHERE key = 0");
            assert_eq!(statements.last(), Some(&note), "each notes its number, and does so last");
            assert!(statements.iter().all(|statement| !statement.contains(['{', '}'])), "{statements:?}");
        }
    }

    #[test]
    fn roles_that_are_not_the_control_planes_keep_what_they_have() {
        let strips =
            |profile| sql(150_000, profile)[1].iter().any(|statement| statement.contains("NOBYPASSRLS"));
        assert!(strips(Profile::Neon) && !strips(Profile::Standard));
    }
}
