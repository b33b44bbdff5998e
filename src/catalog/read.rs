//! What a server has now, read in one round trip.
//!
//! Everything is read from the supervisor's own database. What is inside of the others shows there as far as
//! roles are concerned: the shared catalogs know which database holds something of a role's. So a spec that is
//! true already needs one session, however many databases it lists.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{TryStreamExt, future};
use thiserror::Error;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::Profile;
use super::attributes::{DatabaseAttributes, Flag, RoleAttributes};
use super::connect::{Connection, sqlstate};
use super::plan::Options;
use super::step::mark_of_preparation;
use crate::secret::Secret;
use crate::spec::document::ComputeSpec;

/// What a server has, as far as a plan depends on it.
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
    /// Members of roles: role to members. When the spec declares memberships all of them, because together they
    /// could make a circle, otherwise those of the privileged role.
    pub members: BTreeMap<String, BTreeSet<String>>,
    /// Where the roles that are to be deleted own something or hold privileges: role to databases, `None`
    /// for objects shared by all databases. Owned databases are not counted, they are in
    /// [`Existing::databases`].
    pub dependencies: BTreeMap<String, BTreeSet<Option<String>>>,
    /// Extensions of the session's database.
    pub extensions: BTreeMap<String, ExistingExtension>,
    /// The newest version of extensions this program updates, as far as the machine has them.
    pub newest: BTreeMap<String, String>,
    /// What is there of the supervisor's own objects.
    pub own: OwnObjects,
    /// How the catalog shows the times the spec names.
    pub instants: BTreeMap<String, String>,
}

/// A role as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExistingRole {
    /// What `pg_authid.rolpassword` holds.
    pub verifier: Option<Secret>,
    /// All of its attributes; memberships are in [`Existing::members`].
    pub attributes: RoleAttributes,
}

/// A database as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExistingDatabase {
    /// Name of its owner.
    pub owner: String,
    /// What can still be changed of it.
    pub attributes: DatabaseAttributes,
    /// Whether it was left half-dropped: good for nothing but dropping (`datconnlimit` is -2).
    pub is_invalid: bool,
    /// Roles which were granted every privilege on it.
    pub granted_to: BTreeSet<String>,
    /// Names of its logical replication subscriptions.
    pub subscriptions: BTreeSet<String>,
    /// Whether it was made ready for the spec's roles, and nothing of that was undone since.
    pub prepared: bool,
}

impl ExistingDatabase {
    /// Whether sessions are allowed.
    pub fn allows_connections(&self) -> bool {
        self.attributes.allow_connections != Some(false)
    }

    /// Whether it is marked as a template, which protects it from being dropped.
    pub fn is_template(&self) -> bool {
        self.attributes.is_template == Some(true)
    }
}

/// An extension as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExistingExtension {
    /// Its version.
    pub version: String,
    /// The schema of its objects.
    pub schema: String,
}

/// The supervisor's own objects in the session's database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnObjects {
    /// Schemas by name, as far as a plan speaks of them, and whether their owner is a superuser.
    pub schemas: BTreeMap<String, bool>,
    /// Whether there is a relation `public.health_check`.
    pub health_check: bool,
    /// Whether all tables of the bookkeeping are there.
    pub bookkeeping: bool,
    /// A relation of the bookkeeping's names that is not a superuser's table: nobody knows what touching it does.
    pub foreign: Option<String>,
    /// Number of the last migration that was done; 0 for none.
    pub migration: i64,
    /// The timeline on which inherited subscriptions were dropped last.
    pub subscriptions_dropped: Option<String>,
    /// The timeline the server itself is on, when the spec names none: its system identifier and the number
    /// of the timeline of its log.
    pub timeline: Option<String>,
    /// Whether the database `postgres` has the supervisor's own audit switched off.
    pub audit_silenced: bool,
}

/// The server's state could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A query failed.
    #[error("cannot read roles and databases{}", sqlstate(.0))]
    Query(#[source] tokio_postgres::Error),
    /// The server does not read what the spec calls a time.
    #[error("the option VALID UNTIL {text:?} of a role is not a time{}", sqlstate(.source))]
    NotATime {
        /// The value.
        text: String,
        /// What the server says.
        source: tokio_postgres::Error,
    },
}

impl ReadError {
    /// What the server or the network said.
    pub(super) fn postgres(&self) -> &tokio_postgres::Error {
        match self {
            Self::Query(source) | Self::NotATime { source, .. } => source,
        }
    }
}

/// One row. A table that may not be there cannot be named in a query, so what the supervisor's tables hold is read
/// through a function that takes the query as text, and only if it is a table of a superuser's: what a user
/// puts under such a name must not be run. The answers are XML, from which the one value is cut.
const OWN: &str = "WITH tables AS (
    SELECT n.nspname || '.' || c.relname AS name, c.relkind = 'r' AND a.rolsuper AS ours
      FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_catalog.pg_authid a ON a.oid = c.relowner
     WHERE (n.nspname, c.relname) IN (('neon_migration', 'migration_id'), ('neon_migration', 'prepared_database'),
                                      ('neon', 'drop_subscriptions_done'), ('public', 'health_check'))
), answers AS (
    SELECT name, pg_catalog.substring(pg_catalog.query_to_xml(CASE name
            WHEN 'neon_migration.migration_id' THEN 'SELECT id AS x FROM neon_migration.migration_id WHERE key = 0'
            WHEN 'neon_migration.prepared_database' THEN
                'SELECT pg_catalog.string_agg(database::pg_catalog.text || ''='' || mark, '' '') AS x '
                'FROM neon_migration.prepared_database'
            ELSE 'SELECT timeline_id AS x FROM neon.drop_subscriptions_done WHERE id = 1'
        END, false, false, '')::pg_catalog.text, '<x>([^<]*)</x>') AS answer
      FROM tables WHERE ours AND name <> 'public.health_check'
)
SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
    pg_catalog.current_database()::pg_catalog.text,
    CURRENT_USER::pg_catalog.text,
    ARRAY(SELECT nspname::pg_catalog.text FROM pg_catalog.pg_namespace
           WHERE nspname IN ('public', 'neon', 'neon_migration')),
    ARRAY(SELECT n.nspname::pg_catalog.text FROM pg_catalog.pg_namespace n
            JOIN pg_catalog.pg_authid a ON a.oid = n.nspowner AND a.rolsuper
           WHERE n.nspname IN ('public', 'neon', 'neon_migration')),
    ARRAY(SELECT name FROM tables WHERE ours OR name = 'public.health_check'),
    (SELECT name FROM tables WHERE NOT ours AND name <> 'public.health_check' LIMIT 1),
    (SELECT answer FROM answers WHERE name = 'neon_migration.migration_id'),
    (SELECT answer FROM answers WHERE name = 'neon_migration.prepared_database'),
    (SELECT answer FROM answers WHERE name = 'neon.drop_subscriptions_done'),
    EXISTS (SELECT FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
             WHERE d.datname = 'postgres' AND s.setrole = 0 AND 'pgaudit.log=none' = ANY (s.setconfig))";

/// The bits are in the order of [`Flag::ALL`].
const ROLES: &str = "SELECT rolname::pg_catalog.text, rolpassword, \
    rolsuper::pg_catalog.int4 | (rolinherit::pg_catalog.int4 << 1) | (rolcreaterole::pg_catalog.int4 << 2) \
    | (rolcreatedb::pg_catalog.int4 << 3) | (rolbypassrls::pg_catalog.int4 << 4) \
    | (rolreplication::pg_catalog.int4 << 5), \
    rolconnlimit, rolvaliduntil::pg_catalog.text FROM pg_catalog.pg_authid";

const DATABASES: &str = "SELECT d.datname::pg_catalog.text, r.rolname::pg_catalog.text, d.datallowconn, \
    d.datistemplate, d.datconnlimit, \
    ARRAY(SELECT g.rolname::pg_catalog.text FROM pg_catalog.aclexplode(d.datacl) a \
        JOIN pg_catalog.pg_authid g ON g.oid = a.grantee \
        WHERE a.privilege_type IN ('CREATE', 'CONNECT', 'TEMPORARY') \
        GROUP BY g.rolname HAVING pg_catalog.count(DISTINCT a.privilege_type) = 3), \
    d.oid, {mark} \
    FROM pg_catalog.pg_database d JOIN pg_catalog.pg_authid r ON r.oid = d.datdba";

const SUBSCRIPTIONS: &str = "SELECT d.datname::pg_catalog.text, s.subname::pg_catalog.text \
    FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid";

const MEMBERS: &str = "SELECT g.rolname::pg_catalog.text, m.rolname::pg_catalog.text \
    FROM pg_catalog.pg_auth_members a JOIN pg_catalog.pg_authid g ON g.oid = a.roleid \
    JOIN pg_catalog.pg_authid m ON m.oid = a.member WHERE $1 OR m.rolname = $2";

const DEPENDENCIES: &str = "SELECT DISTINCT r.rolname::pg_catalog.text, d.datname::pg_catalog.text \
    FROM pg_catalog.pg_shdepend s \
    JOIN pg_catalog.pg_authid r ON r.oid = s.refobjid \
    LEFT JOIN pg_catalog.pg_database d ON d.oid = s.dbid \
    WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass \
      AND r.rolname = ANY ($1) \
      AND NOT (s.classid = 'pg_catalog.pg_database'::pg_catalog.regclass AND s.deptype = 'o')";

const EXTENSIONS: &str = "SELECT e.extname::pg_catalog.text, e.extversion, n.nspname::pg_catalog.text \
    FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace";

/// Reads the control files of the machine's extensions.
const NEWEST: &str = "SELECT name::pg_catalog.text, default_version \
    FROM pg_catalog.pg_available_extensions() WHERE name = 'neon'";

const TIMELINE: &str = "SELECT s.system_identifier::pg_catalog.text || '/' || c.timeline_id::pg_catalog.text \
    FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c";

const INSTANT: &str = "SELECT ($1::pg_catalog.timestamptz)::pg_catalog.text";

impl Existing {
    /// Reads over one session, all queries sent at once. What only some specs need is read for those.
    ///
    /// # Errors
    /// [`ReadError`] when a query fails, or the spec names a time that is none.
    pub async fn read(
        connection: &Connection,
        spec: &ComputeSpec,
        options: &Options,
    ) -> Result<Self, ReadError> {
        let client = connection.client();
        let databases = DATABASES.replace("{mark}", &mark_of_preparation("$1"));
        let (declares, deletable) = (declares_memberships(spec), deletable_roles(spec));
        let times = times(spec);
        let wanted_timeline = spec.drop_subscriptions_before_start && super::timeline(spec).is_none();
        let privileged: [(&(dyn ToSql + Sync), Type); 1] = [(&options.privileged_role, Type::TEXT)];
        let members: [(&(dyn ToSql + Sync), Type); 2] =
            [(&declares, Type::BOOL), (&options.privileged_role, Type::TEXT)];
        let may_go: [(&(dyn ToSql + Sync), Type); 1] = [(&deletable, Type::TEXT_ARRAY)];
        // The first poll of each sends it, so they go out in this order and share one round trip.
        let (
            own,
            roles,
            databases,
            subscriptions,
            members,
            dependencies,
            extensions,
            newest,
            timeline,
            instants,
        ) = tokio::join!(
            query(client, OWN, &[]),
            read_roles(client),
            query(client, &databases, &privileged),
            query(client, SUBSCRIPTIONS, &[]),
            query(client, MEMBERS, &members),
            when(!deletable.is_empty(), query(client, DEPENDENCIES, &may_go)),
            query(client, EXTENSIONS, &[]),
            when(options.profile == Profile::Neon, query(client, NEWEST, &[])),
            when(wanted_timeline, query(client, TIMELINE, &[])),
            future::join_all(times.iter().map(|text| instant(client, text))),
        );
        let mut existing = Self::default();
        let mut marks = BTreeMap::new();
        for row in &own? {
            marks = existing.take_own(row)?;
        }
        // Collected, because a map is made of many entries sooner than it takes them in one by one.
        existing.roles = roles?.into_iter().collect();
        for row in &databases? {
            existing.take_database(row, &marks)?;
        }
        for row in &subscriptions? {
            if let Some(database) = existing.databases.get_mut(&get::<String>(row, 0)?) {
                database.subscriptions.insert(get(row, 1)?);
            }
        }
        for row in &members? {
            existing.members.entry(get(row, 0)?).or_default().insert(get(row, 1)?);
        }
        for row in &dependencies? {
            existing.dependencies.entry(get(row, 0)?).or_default().insert(get(row, 1)?);
        }
        for row in &extensions? {
            let extension = ExistingExtension { version: get(row, 1)?, schema: get(row, 2)? };
            existing.extensions.insert(get(row, 0)?, extension);
        }
        for row in &newest? {
            existing.newest.insert(get(row, 0)?, get(row, 1)?);
        }
        for row in &timeline? {
            existing.own.timeline = Some(get(row, 0)?);
        }
        for (text, instant) in times.into_iter().zip(instants) {
            existing.instants.insert(text, instant?);
        }
        Ok(existing)
    }

    /// Returns the marks of prepared databases by the databases' numbers.
    fn take_own(&mut self, row: &Row) -> Result<BTreeMap<u32, String>, ReadError> {
        self.server_version = u32::try_from(get::<i32>(row, 0)?).unwrap_or_default();
        self.current_database = get(row, 1)?;
        self.current_user = get(row, 2)?;
        let superusers: Vec<String> = get(row, 4)?;
        let schemas = get::<Vec<String>>(row, 3)?.into_iter();
        self.own.schemas = schemas.map(|name| (name.clone(), superusers.contains(&name))).collect();
        let tables: Vec<String> = get(row, 5)?;
        let has = |name: &str| tables.iter().any(|table| table == name);
        self.own.health_check = has("public.health_check");
        self.own.bookkeeping = has("neon_migration.migration_id") && has("neon_migration.prepared_database");
        self.own.foreign = get(row, 6)?;
        self.own.migration =
            get::<Option<String>>(row, 7)?.and_then(|id| id.parse().ok()).unwrap_or_default();
        self.own.subscriptions_dropped = get(row, 9)?;
        self.own.audit_silenced = get(row, 10)?;
        let marks = get::<Option<String>>(row, 8)?.unwrap_or_default();
        let mark = |entry: &str| {
            let (database, mark) = entry.split_once('=')?;
            Some((database.parse().ok()?, mark.to_owned()))
        };
        Ok(marks.split(' ').filter_map(mark).collect())
    }

    fn take_database(&mut self, row: &Row, marks: &BTreeMap<u32, String>) -> Result<(), ReadError> {
        let limit: i32 = get(row, 4)?;
        let mark: String = get(row, 7)?;
        let database = ExistingDatabase {
            owner: get(row, 1)?,
            attributes: DatabaseAttributes {
                connection_limit: Some(limit),
                allow_connections: Some(get(row, 2)?),
                is_template: Some(get(row, 3)?),
            },
            is_invalid: limit == -2,
            granted_to: get::<Vec<String>>(row, 5)?.into_iter().collect(),
            subscriptions: BTreeSet::new(),
            prepared: marks.get(&get::<u32>(row, 6)?) == Some(&mark),
        };
        self.databases.insert(get(row, 0)?, database);
        Ok(())
    }
}

/// There may be many, so each is taken while the server still sends the next, and its row is not kept.
async fn read_roles(client: &Client) -> Result<Vec<(String, ExistingRole)>, ReadError> {
    let nothing: [(&str, Type); 0] = [];
    let rows = client.query_typed_raw(ROLES, nothing).await.map_err(ReadError::Query)?;
    rows.map_err(ReadError::Query).and_then(|row| future::ready(role(&row))).try_collect().await
}

fn role(row: &Row) -> Result<(String, ExistingRole), ReadError> {
    let bits: i32 = get(row, 2)?;
    let mut attributes = RoleAttributes::default();
    attributes.connection_limit = Some(get(row, 3)?);
    attributes.valid_until = get(row, 4)?;
    for flag in Flag::ALL {
        attributes.set(flag, bits & 1 << flag as u32 != 0);
    }
    let verifier = get::<Option<String>>(row, 1)?.map(Secret::new);
    Ok((get(row, 0)?, ExistingRole { verifier, attributes }))
}

/// Every name under which a role that is to be deleted may be known now: deletions count after renames.
fn deletable_roles(spec: &ComputeSpec) -> Vec<String> {
    let deltas = spec.delta_operations.as_deref().unwrap_or_default();
    if !deltas.iter().any(|op| op.action == "delete_role") {
        return Vec::new();
    }
    deltas
        .iter()
        .filter(|op| op.action == "delete_role" || op.action == "rename_role")
        .map(|op| op.name.clone())
        .collect()
}

/// Whether the spec says of any role that it is a member of another.
fn declares_memberships(spec: &ComputeSpec) -> bool {
    let options = spec.cluster.roles.iter().flat_map(|role| role.options.iter().flatten());
    let mut names = options.map(|option| option.name.as_str());
    names.any(|name| ["IN ROLE", "IN GROUP"].iter().any(|option| name.eq_ignore_ascii_case(option)))
}

/// The distinct times the spec's roles name.
fn times(spec: &ComputeSpec) -> BTreeSet<String> {
    let options = spec.cluster.roles.iter().flat_map(|role| role.options.iter().flatten());
    let until = options.filter(|option| option.name.eq_ignore_ascii_case("VALID UNTIL"));
    // What cannot be read as an option at all is for the plan to refuse.
    until.filter_map(|option| RoleAttributes::parse(std::slice::from_ref(option)).ok()?.valid_until).collect()
}

async fn instant(client: &Client, text: &str) -> Result<String, ReadError> {
    let read = async { client.query_typed(INSTANT, &[(&text, Type::TEXT)]).await?[0].try_get(0) };
    read.await.map_err(|source| ReadError::NotATime { text: text.to_owned(), source })
}

/// A query that is sent only when it is needed, and has no rows otherwise.
async fn when(
    needed: bool,
    query: impl Future<Output = Result<Vec<Row>, ReadError>>,
) -> Result<Vec<Row>, ReadError> {
    if needed { query.await } else { Ok(Vec::new()) }
}

async fn query(
    client: &Client,
    sql: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Vec<Row>, ReadError> {
    // Boxed, because a dozen of these wait side by side.
    Box::pin(client.query_typed(sql, parameters)).await.map_err(ReadError::Query)
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, ReadError> {
    row.try_get(column).map_err(ReadError::Query)
}
