//! What a server has now, read in one round trip.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future;
use thiserror::Error;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::connect::{Connection, sqlstate};
use crate::secret::Secret;
use crate::spec::document::ComputeSpec;

/// Roles and databases of a server, as far as a plan depends on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    /// Version in PostgreSQL's numbering, e.g. 150004.
    pub server_version: u32,
    /// The database of the session; it can be neither dropped nor renamed from inside.
    pub current_database: String,
    /// The superuser of the session; it can be neither dropped nor renamed by itself.
    pub current_user: String,
    /// All roles by name.
    pub roles: BTreeMap<String, ExistingRole>,
    /// All databases by name.
    pub databases: BTreeMap<String, ExistingDatabase>,
    /// Where the roles that are to be deleted own something or hold privileges: role to databases, `None`
    /// for objects shared by all databases. Owned databases are not counted, they are in
    /// [`Existing::databases`].
    pub dependencies: BTreeMap<String, BTreeSet<Option<String>>>,
}

/// A role as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExistingRole {
    /// What `pg_authid.rolpassword` holds.
    pub verifier: Option<Secret>,
}

/// A database as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExistingDatabase {
    /// Name of its owner.
    pub owner: String,
    /// Whether sessions are allowed.
    pub allows_connections: bool,
    /// Whether it is marked as a template, which protects it from being dropped.
    pub is_template: bool,
    /// Whether it was left half-dropped: good for nothing but dropping (`datconnlimit` is -2).
    pub is_invalid: bool,
    /// Roles which were granted every privilege on it.
    pub granted_to: BTreeSet<String>,
    /// Names of its logical replication subscriptions.
    pub subscriptions: BTreeSet<String>,
}

/// The server's state could not be read.
#[derive(Debug, Error)]
#[error("cannot read roles and databases{}", sqlstate(.0))]
pub struct ReadError(#[source] pub(super) tokio_postgres::Error);

const SESSION: &str = "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4, \
    pg_catalog.current_database()::pg_catalog.text, current_user::pg_catalog.text";

const ROLES: &str = "SELECT rolname::pg_catalog.text, rolpassword FROM pg_catalog.pg_authid";

const DATABASES: &str = "SELECT d.datname::pg_catalog.text, r.rolname::pg_catalog.text, d.datallowconn, \
    d.datistemplate, d.datconnlimit = -2, \
    ARRAY(SELECT g.rolname::pg_catalog.text FROM pg_catalog.aclexplode(d.datacl) a \
        JOIN pg_catalog.pg_authid g ON g.oid = a.grantee \
        WHERE a.privilege_type IN ('CREATE', 'CONNECT', 'TEMPORARY') \
        GROUP BY g.rolname HAVING pg_catalog.count(DISTINCT a.privilege_type) = 3) \
    FROM pg_catalog.pg_database d JOIN pg_catalog.pg_authid r ON r.oid = d.datdba";

const SUBSCRIPTIONS: &str = "SELECT d.datname::pg_catalog.text, s.subname::pg_catalog.text \
    FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid";

const DEPENDENCIES: &str = "SELECT DISTINCT r.rolname::pg_catalog.text, d.datname::pg_catalog.text \
    FROM pg_catalog.pg_shdepend s \
    JOIN pg_catalog.pg_authid r ON r.oid = s.refobjid \
    LEFT JOIN pg_catalog.pg_database d ON d.oid = s.dbid \
    WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass \
    AND NOT (s.classid = 'pg_catalog.pg_database'::pg_catalog.regclass AND s.deptype = 'o') \
    AND r.rolname::pg_catalog.text = ANY ($1)";

impl Existing {
    /// Reads what `spec` may be compared with. All queries are sent at once.
    ///
    /// # Errors
    /// [`ReadError`], also when the session is not a superuser's: verifiers are not for others.
    pub async fn read(connection: &Connection, spec: &ComputeSpec) -> Result<Self, ReadError> {
        let client = connection.client();
        let deletable = deletable_roles(spec);
        let (session, roles, databases, subscriptions, dependencies) = future::try_join5(
            query(client, SESSION, &[]),
            query(client, ROLES, &[]),
            query(client, DATABASES, &[]),
            query(client, SUBSCRIPTIONS, &[]),
            query(client, DEPENDENCIES, &[(&deletable, Type::TEXT_ARRAY)]),
        )
        .await?;

        let mut existing = Self::default();
        for row in &session {
            existing.server_version = u32::try_from(get::<i32>(row, 0)?).unwrap_or_default();
            existing.current_database = get(row, 1)?;
            existing.current_user = get(row, 2)?;
        }
        for row in &roles {
            let verifier = get::<Option<String>>(row, 1)?.map(Secret::new);
            existing.roles.insert(get(row, 0)?, ExistingRole { verifier });
        }
        for row in &databases {
            let database = ExistingDatabase {
                owner: get(row, 1)?,
                allows_connections: get(row, 2)?,
                is_template: get(row, 3)?,
                is_invalid: get(row, 4)?,
                granted_to: get::<Vec<String>>(row, 5)?.into_iter().collect(),
                subscriptions: BTreeSet::new(),
            };
            existing.databases.insert(get(row, 0)?, database);
        }
        for row in &subscriptions {
            if let Some(database) = existing.databases.get_mut(&get::<String>(row, 0)?) {
                database.subscriptions.insert(get(row, 1)?);
            }
        }
        for row in &dependencies {
            existing.dependencies.entry(get(row, 0)?).or_default().insert(get(row, 1)?);
        }
        Ok(existing)
    }
}

/// Every name under which a role that is to be deleted may be known now: deletions count after renames.
fn deletable_roles(spec: &ComputeSpec) -> Vec<String> {
    spec.delta_operations
        .iter()
        .flatten()
        .filter(|op| op.action == "delete_role" || op.action == "rename_role")
        .map(|op| op.name.clone())
        .collect()
}

async fn query(
    client: &Client,
    sql: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Vec<Row>, ReadError> {
    client.query_typed(sql, parameters).await.map_err(ReadError)
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, ReadError> {
    row.try_get(column).map_err(ReadError)
}
