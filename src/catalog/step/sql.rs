//! Steps as SQL.
//!
//! Every name goes through [`identifier`] or [`literal`]. Blocks of procedural code are constants, and names
//! reach them as settings of the transaction. Everything is qualified, since whoever owns a database may put
//! functions and operators of his own into it.

use thiserror::Error;

use super::{Password, Step};
use crate::catalog::quote::{self, QuoteError, identifier, literal};
use crate::limits;
use crate::secret::Secret;
use crate::spec::document::GenericOption;

/// `DROP OWNED` revokes only what the owner of an object has granted. What others passed on keeps the role from
/// being dropped, and so does what the role passed on while it could by a membership too. Only the grantor can
/// revoke (`GRANTED BY` names nobody else before and in 17), so the block becomes each grantor in turn. The role's
/// name arrives in a setting of the transaction.
const REVOKE: &str = include_str!("../sql/revoke_from_role.sql");

/// Conditional, because what is in a new database depends on the template it was copied from, and that can be
/// looked into only by a session that keeps it from being copied.
const PREPARE: &str = include_str!("../sql/prepare_database.sql");

/// The table of the control plane's write check.
const HEALTH_CHECK: &str = include_str!("../sql/health_check.sql");

/// What was done, for later applies and starts.
const BOOKKEEPING: &str = include_str!("../sql/bookkeeping.sql");

/// An expression for the state of one database as far as it can be seen from another: who owns or may use its
/// schema `public` (which has a fixed number unless somebody made it anew), and what it grants by default to the
/// privileged role. It changes when somebody undoes what [`Step::PrepareDatabase`] does, and when there is more to
/// do. `{privileged}` stands for the role's name as an expression, and `d` for a row of `pg_database`.
const MARK: &str = "'1:' || (SELECT pg_catalog.count(*) FROM pg_catalog.pg_authid WHERE rolname = 'web_access')::pg_catalog.text \
    || COALESCE((SELECT pg_catalog.string_agg(':' || s.classid::pg_catalog.text || '.' || s.objid::pg_catalog.text \
            || '.' || s.refobjid::pg_catalog.text || s.deptype::pg_catalog.text, '' \
            ORDER BY s.classid, s.objid, s.refobjid, s.deptype) \
        FROM pg_catalog.pg_shdepend s \
        WHERE s.dbid = d.oid \
          AND s.classid IN ('pg_catalog.pg_namespace'::pg_catalog.regclass, 'pg_catalog.pg_default_acl'::pg_catalog.regclass) \
          AND CASE s.classid WHEN 'pg_catalog.pg_namespace'::pg_catalog.regclass THEN s.objid = 2200 \
              ELSE s.refobjid = (SELECT oid FROM pg_catalog.pg_authid WHERE rolname = {privileged}) END), '')";

/// How a statement for eyes ends when the one for the server sets a password: no other statement ends like this,
/// whatever the names in it are, since a quote inside of quotes is doubled.
pub(in crate::catalog) const MASKED_LOGIN: &str = " LOGIN PASSWORD '<secret>'";

/// Whether SQL is meant for the server or for eyes.
#[derive(Clone, Copy)]
enum Secrets {
    Revealed,
    Masked,
}

/// Part of a step has no form in SQL.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("cannot {step}: {part} {source}")]
pub struct RenderError {
    /// The step in words.
    pub step: String,
    /// Which part: the name or the option.
    pub part: String,
    /// What is wrong with it.
    pub source: QuoteError,
}

type Fault = (String, QuoteError);
type Sql = Result<Vec<String>, Fault>;

/// [`MARK`] for a role whose name is the expression `privileged`.
pub(in crate::catalog) fn mark_of_preparation(privileged: &str) -> String {
    MARK.replace("{privileged}", privileged)
}

impl Step {
    /// The statements, secrets included.
    ///
    /// # Errors
    /// [`RenderError`] for names and options that are not legal.
    pub fn sql(&self) -> Result<Vec<String>, RenderError> {
        self.render(Secrets::Revealed)
    }

    /// The statements with every password verifier replaced, for people to read.
    ///
    /// # Errors
    /// [`RenderError`] for names and options that are not legal.
    pub fn masked_sql(&self) -> Result<Vec<String>, RenderError> {
        self.render(Secrets::Masked)
    }

    fn render(&self, secrets: Secrets) -> Result<Vec<String>, RenderError> {
        self.statements(secrets).map_err(|(part, source)| RenderError {
            step: self.to_string(),
            part,
            source,
        })
    }

    fn statements(&self, secrets: Secrets) -> Sql {
        Ok(match self {
            Self::CreatePrivilegedRole { name } => vec![format!(
                "CREATE ROLE {} CREATEDB CREATEROLE NOLOGIN REPLICATION BYPASSRLS \
                 IN ROLE pg_read_all_data, pg_write_all_data",
                ident(name)?
            )],
            Self::RenameRole { from, to } => {
                vec![format!("ALTER ROLE {} RENAME TO {}", ident(from)?, ident(to)?)]
            }
            Self::CreateRole { name, attributes, verifier } => vec![format!(
                "CREATE ROLE {}{}{}{}",
                ident(name)?,
                option(attributes.sql())?,
                option(attributes.membership_sql())?,
                login(verifier.as_ref(), secrets)?
            )],
            Self::AlterRole { name, attributes, password } => vec![format!(
                "ALTER ROLE {}{}{}",
                ident(name)?,
                option(attributes.sql())?,
                match password {
                    Password::Keep => String::new(),
                    Password::Set(verifier) => login(verifier.as_ref(), secrets)?,
                }
            )],
            Self::GrantRole { role, member } => vec![format!("GRANT {} TO {}", ident(role)?, ident(member)?)],
            Self::DropSubscriptions { names, .. } => {
                let mut statements = Vec::new();
                for name in names {
                    let name = ident(name)?;
                    statements.push(format!("ALTER SUBSCRIPTION {name} DISABLE"));
                    statements.push(format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)"));
                    statements.push(format!("DROP SUBSCRIPTION {name}"));
                }
                statements
            }
            Self::DropDatabase { name, is_template } => drop_database(name, *is_template)?,
            Self::RenameDatabase { from, to } => {
                vec![format!("ALTER DATABASE {} RENAME TO {}", ident(from)?, ident(to)?)]
            }
            Self::CreateDatabase { name, owner, options } => {
                vec![format!(
                    "CREATE DATABASE {}{} OWNER {}",
                    ident(name)?,
                    option_list(options)?,
                    ident(owner)?
                )]
            }
            Self::AlterDatabase { name, attributes } => {
                vec![format!("ALTER DATABASE {}{}", ident(name)?, attributes.sql())]
            }
            Self::AlterDatabaseOwner { name, owner } => {
                vec![format!("ALTER DATABASE {} OWNER TO {}", ident(name)?, ident(owner)?)]
            }
            Self::GrantDatabase { name, role } => {
                vec![format!("GRANT ALL PRIVILEGES ON DATABASE {} TO {}", ident(name)?, ident(role)?)]
            }
            Self::PrepareDatabase { owner, privileged, web_access, .. } => vec![
                set("owner", owner)?,
                set("privileged_role", privileged)?,
                set("web_access", if *web_access { "on" } else { "off" })?,
                PREPARE.to_owned(),
            ],
            Self::ReleaseOwned { role, heir, .. } => vec![
                format!("REASSIGN OWNED BY {} TO {}", ident(role)?, ident(heir)?),
                set("dropped_role", role)?,
                REVOKE.to_owned(),
                format!("DROP OWNED BY {}", ident(role)?),
            ],
            Self::DropRole { name } => vec![format!("DROP ROLE IF EXISTS {}", ident(name)?)],
            Self::CreateSchema { name } => vec![format!("CREATE SCHEMA {}", ident(name)?)],
            Self::CreateExtension { name, schema } => {
                vec![format!(
                    "CREATE EXTENSION IF NOT EXISTS {} WITH SCHEMA {}",
                    ident(name)?,
                    ident(schema)?
                )]
            }
            Self::MoveExtension { name, schema } => vec![
                format!(
                    "UPDATE pg_catalog.pg_extension SET extrelocatable = true WHERE extname = {}",
                    text(name)?
                ),
                format!("ALTER EXTENSION {} SET SCHEMA {}", ident(name)?, ident(schema)?),
            ],
            Self::UpdateExtension { name, .. } => vec![format!("ALTER EXTENSION {} UPDATE", ident(name)?)],
            Self::CreateHealthCheck => script(HEALTH_CHECK),
            Self::CreateBookkeeping => script(BOOKKEEPING),
            Self::RecordSubscriptionsDropped { timeline } => vec![
                "CREATE TABLE IF NOT EXISTS neon.drop_subscriptions_done \
                 (id pg_catalog.int4 NOT NULL PRIMARY KEY, timeline_id pg_catalog.text)"
                    .to_owned(),
                format!(
                    "INSERT INTO neon.drop_subscriptions_done (id, timeline_id) VALUES (1, {}) \
                     ON CONFLICT (id) DO UPDATE SET timeline_id = EXCLUDED.timeline_id",
                    text(timeline)?
                ),
            ],
            Self::SilenceAudit { database } => {
                vec![format!("ALTER DATABASE {} SET pgaudit.log TO 'none'", ident(database)?)]
            }
            Self::MarkPrepared { databases, privileged } => {
                let names =
                    databases.iter().map(|name| text(name)).collect::<Result<Vec<_>, _>>()?.join(", ");
                vec![
                    "DELETE FROM neon_migration.prepared_database p \
                     WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_database d WHERE d.oid = p.database)"
                        .to_owned(),
                    format!(
                        "INSERT INTO neon_migration.prepared_database (database, mark) \
                         SELECT d.oid, {} FROM pg_catalog.pg_database d WHERE d.datname IN ({names}) \
                         ON CONFLICT (database) DO UPDATE SET mark = EXCLUDED.mark",
                        mark_of_preparation(&text(privileged)?)
                    ),
                ]
            }
            Self::Migrate { migration, privileged, server_version, profile } => {
                let (name, quoted) = (ident(privileged)?, text(privileged)?);
                migration.statements(&name, &quoted, *server_version, *profile)
            }
        })
    }
}

/// The statements of a script of ours, which has a blank line between them and none within.
fn script(text: &str) -> Vec<String> {
    text.split("\n\n").map(|statement| statement.trim().trim_end_matches(';').to_owned()).collect()
}

/// Hands a name to a block of procedural code, for the length of the transaction.
fn set(what: &str, value: &str) -> Result<String, Fault> {
    Ok(format!("SELECT pg_catalog.set_config('compute_ctl.{what}', {}, true)", text(value)?))
}

/// A dropped database may be held by a template mark and by active logical replication slots; sessions are
/// ended by `FORCE`. The slots' senders are given [`limits::SLOT_RELEASE`] to end.
fn drop_database(name: &str, is_template: bool) -> Sql {
    let mut statements = vec![format!(
        "SELECT pg_catalog.pg_terminate_backend(active_pid, {}) FROM pg_catalog.pg_replication_slots \
         WHERE database = {} AND active",
        limits::SLOT_RELEASE.as_millis(),
        text(name)?
    )];
    if is_template {
        statements.push(format!("ALTER DATABASE {} IS_TEMPLATE false", ident(name)?));
    }
    statements.push(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(name)?));
    Ok(statements)
}

fn login(verifier: Option<&Secret>, secrets: Secrets) -> Result<String, Fault> {
    Ok(match (verifier, secrets) {
        (None, _) => " LOGIN PASSWORD NULL".to_owned(),
        (Some(_), Secrets::Masked) => MASKED_LOGIN.to_owned(),
        (Some(verifier), Secrets::Revealed) => {
            let quoted = literal(verifier.reveal()).map_err(|error| ("the password".to_owned(), error))?;
            format!(" LOGIN PASSWORD {quoted}")
        }
    })
}

fn option_list(options: &[GenericOption]) -> Result<String, Fault> {
    option(quote::options(options))
}

fn option(rendered: Result<String, Fault>) -> Result<String, Fault> {
    rendered.map_err(|(name, error)| (format!("the option {name:?}"), error))
}

fn ident(name: &str) -> Result<String, Fault> {
    identifier(name).map_err(|error| (format!("the name {name:?}"), error))
}

fn text(name: &str) -> Result<String, Fault> {
    literal(name).map_err(|error| (format!("the name {name:?}"), error))
}
