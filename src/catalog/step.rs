//! The steps a plan is made of: what each does, in words and in SQL.

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

use super::quote::{self, QuoteError, identifier, literal};
use crate::limits;
use crate::secret::Secret;
use crate::spec::document::GenericOption;

/// One change to a server. `Display` says it in words, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Creates the role whose members are the spec's roles.
    CreatePrivilegedRole {
        /// Its name.
        name: String,
    },
    /// Renames a role.
    RenameRole {
        /// Its present name.
        from: String,
        /// Its new name.
        to: String,
    },
    /// Creates a role that can log in.
    CreateRole {
        /// Its name.
        name: String,
        /// The privileged role it becomes a member of, with that role's attributes; `None` for a plain role.
        member_of: Option<String>,
        /// Further options.
        options: Vec<GenericOption>,
        /// Password verifier in the catalog's form.
        verifier: Option<Secret>,
    },
    /// Gives a role its password, the right to log in, and its options.
    AlterRole {
        /// Its name.
        name: String,
        /// Its options.
        options: Vec<GenericOption>,
        /// Password verifier in the catalog's form; `None` takes the password away.
        verifier: Option<Secret>,
    },
    /// Drops subscriptions without touching the publisher: its slot may be another compute's by now.
    DropSubscriptions {
        /// The database they belong to.
        database: String,
        /// Their names.
        names: BTreeSet<String>,
    },
    /// Drops a database together with its sessions.
    DropDatabase {
        /// Its name.
        name: String,
        /// Whether it must be un-marked as a template first.
        is_template: bool,
    },
    /// Renames a database.
    RenameDatabase {
        /// Its present name.
        from: String,
        /// Its new name.
        to: String,
    },
    /// Creates a database.
    CreateDatabase {
        /// Its name.
        name: String,
        /// Its owner.
        owner: String,
        /// Further options.
        options: Vec<GenericOption>,
    },
    /// Gives a database to another owner.
    AlterDatabaseOwner {
        /// Its name.
        name: String,
        /// The new owner.
        owner: String,
    },
    /// Grants all privileges on a database.
    GrantDatabase {
        /// Its name.
        name: String,
        /// The role which gets them.
        role: String,
    },
    /// Takes everything in one database from a role that is to be dropped: objects go to another role,
    /// privileges are revoked, whoever granted them.
    ReleaseOwned {
        /// The role.
        role: String,
        /// The database to do it in.
        database: String,
        /// Who gets the objects.
        heir: String,
    },
    /// Drops a role which owns nothing any more.
    DropRole {
        /// Its name.
        name: String,
    },
}

/// Where and how a step can be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// In any database, in one transaction with its neighbours.
    Shared,
    /// In any other database, outside of a transaction.
    Alone,
    /// In a transaction in this database.
    Inside(&'a str),
}

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

type Sql = Result<Vec<String>, (String, QuoteError)>;

/// `DROP OWNED` revokes only what the owner of an object has granted; what others passed on keeps the role
/// from being dropped. Only the grantor can revoke (`GRANTED BY` names nobody else before and in 17), so
/// the block becomes each grantor in turn. The role's name arrives in a setting of the transaction.
const REVOKE: &str = include_str!("sql/revoke_from_role.sql");

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

    pub(super) fn place(&self) -> Place<'_> {
        match self {
            Self::CreatePrivilegedRole { .. }
            | Self::RenameRole { .. }
            | Self::CreateRole { .. }
            | Self::AlterRole { .. }
            | Self::RenameDatabase { .. }
            | Self::AlterDatabaseOwner { .. }
            | Self::GrantDatabase { .. }
            | Self::DropRole { .. } => Place::Shared,
            Self::DropDatabase { .. } | Self::CreateDatabase { .. } => Place::Alone,
            Self::DropSubscriptions { database, .. } | Self::ReleaseOwned { database, .. } => {
                Place::Inside(database)
            }
        }
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
            Self::CreateRole { name, member_of, options, verifier } => {
                let attributes = match member_of {
                    Some(group) => format!(
                        " INHERIT CREATEROLE CREATEDB BYPASSRLS REPLICATION IN ROLE {}",
                        ident(group)?
                    ),
                    None => String::new(),
                };
                vec![format!(
                    "CREATE ROLE {}{attributes}{} {}",
                    ident(name)?,
                    option_list(options)?,
                    login(verifier.as_ref(), secrets)?
                )]
            }
            Self::AlterRole { name, options, verifier } => vec![format!(
                "ALTER ROLE {}{} {}",
                ident(name)?,
                option_list(options)?,
                login(verifier.as_ref(), secrets)?
            )],
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
            Self::CreateDatabase { name, owner, options } => vec![format!(
                "CREATE DATABASE {}{} OWNER {}",
                ident(name)?,
                option_list(options)?,
                ident(owner)?
            )],
            Self::AlterDatabaseOwner { name, owner } => {
                vec![format!("ALTER DATABASE {} OWNER TO {}", ident(name)?, ident(owner)?)]
            }
            Self::GrantDatabase { name, role } => {
                vec![format!("GRANT ALL PRIVILEGES ON DATABASE {} TO {}", ident(name)?, ident(role)?)]
            }
            Self::ReleaseOwned { role, heir, .. } => vec![
                format!("REASSIGN OWNED BY {} TO {}", ident(role)?, ident(heir)?),
                format!("SELECT pg_catalog.set_config('compute_ctl.dropped_role', {}, true)", text(role)?),
                REVOKE.to_owned(),
                format!("DROP OWNED BY {}", ident(role)?),
            ],
            Self::DropRole { name } => vec![format!("DROP ROLE IF EXISTS {}", ident(name)?)],
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreatePrivilegedRole { name } => write!(f, "create privileged role {name:?}"),
            Self::RenameRole { from, to } => write!(f, "rename role {from:?} to {to:?}"),
            Self::CreateRole { name, member_of: Some(group), .. } => {
                write!(f, "create role {name:?} in {group:?}")
            }
            Self::CreateRole { name, member_of: None, .. } => write!(f, "create plain role {name:?}"),
            Self::AlterRole { name, verifier: Some(_), .. } => {
                write!(f, "set password and options of role {name:?}")
            }
            Self::AlterRole { name, verifier: None, .. } => write!(f, "remove password of role {name:?}"),
            Self::DropSubscriptions { database, names } => {
                write!(f, "drop {} subscription(s) in database {database:?}", names.len())
            }
            Self::DropDatabase { name, .. } => write!(f, "drop database {name:?}"),
            Self::RenameDatabase { from, to } => write!(f, "rename database {from:?} to {to:?}"),
            Self::CreateDatabase { name, owner, .. } => {
                write!(f, "create database {name:?} owned by {owner:?}")
            }
            Self::AlterDatabaseOwner { name, owner } => write!(f, "give database {name:?} to role {owner:?}"),
            Self::GrantDatabase { name, role } => {
                write!(f, "grant all privileges on database {name:?} to role {role:?}")
            }
            Self::ReleaseOwned { role, database, heir } => {
                write!(f, "hand over what role {role:?} has in database {database:?} to role {heir:?}")
            }
            Self::DropRole { name } => write!(f, "drop role {name:?}"),
        }
    }
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

fn login(verifier: Option<&Secret>, secrets: Secrets) -> Result<String, (String, QuoteError)> {
    Ok(match (verifier, secrets) {
        (None, _) => "LOGIN PASSWORD NULL".to_owned(),
        (Some(_), Secrets::Masked) => "LOGIN PASSWORD '<secret>'".to_owned(),
        (Some(verifier), Secrets::Revealed) => {
            let quoted = literal(verifier.reveal()).map_err(|error| ("the password".to_owned(), error))?;
            format!("LOGIN PASSWORD {quoted}")
        }
    })
}

fn option_list(options: &[GenericOption]) -> Result<String, (String, QuoteError)> {
    quote::options(options).map_err(|(name, error)| (format!("the option {name:?}"), error))
}

fn ident(name: &str) -> Result<String, (String, QuoteError)> {
    identifier(name).map_err(|error| (format!("the name {name:?}"), error))
}

fn text(name: &str) -> Result<String, (String, QuoteError)> {
    literal(name).map_err(|error| (format!("the name {name:?}"), error))
}
