//! The steps a plan is made of: what each does and to what, in words. Their SQL is in the module `sql`.

mod sql;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Profile;
use super::attributes::{DatabaseAttributes, RoleAttributes};
use super::migrations::Migration;
use crate::secret::Secret;
use crate::spec::document::GenericOption;

pub use sql::RenderError;
pub(super) use sql::{MASKED_LOGIN, mark_of_preparation};

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
        /// What it may do, and of which roles it is a member.
        attributes: RoleAttributes,
        /// Password verifier in the catalog's form.
        verifier: Option<Secret>,
    },
    /// Changes what a role may do, or its password.
    AlterRole {
        /// Its name.
        name: String,
        /// What it may do, as far as that differs.
        attributes: RoleAttributes,
        /// What becomes of its password.
        password: Password,
    },
    /// Makes a role a member of another.
    GrantRole {
        /// The role that gets a member.
        role: String,
        /// The member.
        member: String,
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
    /// Changes what can be changed of an existing database.
    AlterDatabase {
        /// Its name.
        name: String,
        /// What differs.
        attributes: DatabaseAttributes,
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
    /// Makes a database ready for the spec's roles: schema `public` to the database's owner if it still belongs
    /// to the administrator, and all privileges on what the administrator creates there to the privileged role.
    PrepareDatabase {
        /// Its name.
        database: String,
        /// Its owner.
        owner: String,
        /// The privileged role.
        privileged: String,
        /// Whether there will be a role `web_access`, which may create in schema `public`.
        web_access: bool,
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
    /// Creates a schema of the supervisor's own.
    CreateSchema {
        /// Its name.
        name: &'static str,
    },
    /// Installs an extension in the supervisor's own database.
    CreateExtension {
        /// Its name.
        name: &'static str,
        /// Where its objects go.
        schema: &'static str,
    },
    /// Moves an extension to another schema, whether it says that it can be moved or not.
    MoveExtension {
        /// Its name.
        name: &'static str,
        /// Where its objects go.
        schema: &'static str,
    },
    /// Brings an extension to the newest version that is installed on the machine.
    UpdateExtension {
        /// Its name.
        name: &'static str,
        /// The version it has.
        from: String,
        /// The version it gets.
        to: String,
    },
    /// Creates the table by which the control plane sees whether the server takes writes.
    CreateHealthCheck,
    /// Creates what tells later applies and starts what was done: see [`super::migrations`].
    CreateBookkeeping,
    /// Notes that inherited subscriptions were dropped on this timeline.
    RecordSubscriptionsDropped {
        /// The timeline.
        timeline: String,
    },
    /// Keeps what the supervisor itself does in a database out of the audit log.
    SilenceAudit {
        /// The database.
        database: String,
    },
    /// Notes in which databases [`Step::PrepareDatabase`] has nothing to do any more.
    MarkPrepared {
        /// Their names.
        databases: BTreeSet<String>,
        /// The privileged role they are prepared for.
        privileged: String,
    },
    /// One of the numbered migrations, with the note that it was done.
    Migrate {
        /// Which.
        migration: &'static Migration,
        /// The privileged role.
        privileged: String,
        /// Version of the server, which some parts depend on.
        server_version: u32,
        /// The kind of server, which some parts depend on.
        profile: Profile,
    },
}

/// What becomes of a role's password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// It stays.
    Keep,
    /// It becomes this one, or none; and the role may log in.
    Set(Option<Secret>),
}

/// Where and how a step can be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// In the supervisor's database, in one transaction with its neighbours.
    Shared,
    /// In any other database than the one it is about, outside of a transaction.
    Alone,
    /// In a transaction in this database.
    Inside(&'a str),
}

/// What a step is to a reader of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Something is there that was not.
    Add,
    /// Something is another way than it was.
    Alter,
    /// Something is gone.
    Remove,
}

impl Step {
    /// Its name in documents.
    pub fn action(&self) -> &'static str {
        match self {
            Self::CreatePrivilegedRole { .. } => "create_privileged_role",
            Self::RenameRole { .. } => "rename_role",
            Self::CreateRole { .. } => "create_role",
            Self::AlterRole { .. } => "alter_role",
            Self::GrantRole { .. } => "grant_role",
            Self::DropSubscriptions { .. } => "drop_subscriptions",
            Self::DropDatabase { .. } => "drop_database",
            Self::RenameDatabase { .. } => "rename_database",
            Self::CreateDatabase { .. } => "create_database",
            Self::AlterDatabase { .. } => "alter_database",
            Self::AlterDatabaseOwner { .. } => "alter_database_owner",
            Self::GrantDatabase { .. } => "grant_database",
            Self::PrepareDatabase { .. } => "prepare_database",
            Self::ReleaseOwned { .. } => "release_owned",
            Self::DropRole { .. } => "drop_role",
            Self::CreateSchema { .. } => "create_schema",
            Self::CreateExtension { .. } => "create_extension",
            Self::MoveExtension { .. } => "move_extension",
            Self::UpdateExtension { .. } => "update_extension",
            Self::CreateHealthCheck => "create_health_check",
            Self::CreateBookkeeping => "create_bookkeeping",
            Self::RecordSubscriptionsDropped { .. } => "record_subscriptions_dropped",
            Self::SilenceAudit { .. } => "silence_audit",
            Self::MarkPrepared { .. } => "mark_prepared",
            Self::Migrate { .. } => "migrate",
        }
    }

    /// Name of the role, database, schema, extension or table it is about, as it is before the step.
    pub fn object(&self) -> String {
        match self {
            Self::CreatePrivilegedRole { name }
            | Self::CreateRole { name, .. }
            | Self::AlterRole { name, .. }
            | Self::DropDatabase { name, .. }
            | Self::CreateDatabase { name, .. }
            | Self::AlterDatabase { name, .. }
            | Self::AlterDatabaseOwner { name, .. }
            | Self::GrantDatabase { name, .. }
            | Self::DropRole { name } => name.clone(),
            Self::RenameRole { from, .. } | Self::RenameDatabase { from, .. } => from.clone(),
            Self::GrantRole { member, .. } => member.clone(),
            Self::DropSubscriptions { database, .. }
            | Self::PrepareDatabase { database, .. }
            | Self::SilenceAudit { database } => database.clone(),
            Self::ReleaseOwned { role, .. } => role.clone(),
            Self::CreateSchema { name }
            | Self::CreateExtension { name, .. }
            | Self::MoveExtension { name, .. }
            | Self::UpdateExtension { name, .. } => (*name).to_owned(),
            Self::CreateHealthCheck => "health_check".to_owned(),
            Self::CreateBookkeeping | Self::MarkPrepared { .. } => "neon_migration".to_owned(),
            Self::RecordSubscriptionsDropped { timeline } => timeline.clone(),
            Self::Migrate { migration, .. } => migration.id.to_string(),
        }
    }

    /// What it is to a reader of the plan.
    pub fn change(&self) -> Change {
        match self {
            Self::CreatePrivilegedRole { .. }
            | Self::CreateRole { .. }
            | Self::CreateDatabase { .. }
            | Self::CreateSchema { .. }
            | Self::CreateExtension { .. }
            | Self::CreateHealthCheck
            | Self::CreateBookkeeping => Change::Add,
            Self::RenameRole { .. }
            | Self::AlterRole { .. }
            | Self::GrantRole { .. }
            | Self::RenameDatabase { .. }
            | Self::AlterDatabase { .. }
            | Self::AlterDatabaseOwner { .. }
            | Self::GrantDatabase { .. }
            | Self::PrepareDatabase { .. }
            | Self::ReleaseOwned { .. }
            | Self::MoveExtension { .. }
            | Self::UpdateExtension { .. }
            | Self::RecordSubscriptionsDropped { .. }
            | Self::SilenceAudit { .. }
            | Self::MarkPrepared { .. }
            | Self::Migrate { .. } => Change::Alter,
            Self::DropSubscriptions { .. } | Self::DropDatabase { .. } | Self::DropRole { .. } => {
                Change::Remove
            }
        }
    }

    /// Whether something is lost that nobody could bring back: data, or who was allowed what.
    pub fn is_destructive(&self) -> bool {
        match self {
            Self::DropSubscriptions { .. }
            | Self::DropDatabase { .. }
            | Self::DropRole { .. }
            | Self::ReleaseOwned { .. } => true,
            Self::AlterRole { password, .. } => matches!(password, Password::Set(None)),
            _ => false,
        }
    }

    /// The database inside of which it is executed, when that is not the supervisor's own.
    pub fn database(&self) -> Option<&str> {
        match self.place() {
            Place::Inside(database) => Some(database),
            Place::Shared | Place::Alone => None,
        }
    }

    pub(super) fn place(&self) -> Place<'_> {
        match self {
            Self::DropDatabase { .. } | Self::CreateDatabase { .. } => Place::Alone,
            Self::DropSubscriptions { database, .. }
            | Self::ReleaseOwned { database, .. }
            | Self::PrepareDatabase { database, .. } => Place::Inside(database),
            _ => Place::Shared,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreatePrivilegedRole { name } => write!(f, "create privileged role {name:?}"),
            Self::RenameRole { from, to } => write!(f, "rename role {from:?} to {to:?}"),
            Self::CreateRole { name, attributes, .. } if attributes.member_of.is_empty() => {
                write!(f, "create plain role {name:?}")
            }
            Self::CreateRole { name, attributes, .. } => {
                write!(f, "create role {name:?} in ")?;
                for (at, group) in attributes.member_of.iter().enumerate() {
                    write!(f, "{}{group:?}", if at == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::AlterRole { name, attributes, password } => {
                let what = match (password, attributes.is_empty()) {
                    (Password::Set(Some(_)), true) => "set password",
                    (Password::Set(Some(_)), false) => "set password and options",
                    (Password::Set(None), true) => "remove password",
                    (Password::Set(None), false) => "remove password, and set options,",
                    (Password::Keep, _) => "set options",
                };
                write!(f, "{what} of role {name:?}")
            }
            Self::GrantRole { role, member } => write!(f, "make role {member:?} a member of {role:?}"),
            Self::DropSubscriptions { database, names } => {
                write!(f, "drop {} subscription(s) in database {database:?}", names.len())
            }
            Self::DropDatabase { name, .. } => write!(f, "drop database {name:?}"),
            Self::RenameDatabase { from, to } => write!(f, "rename database {from:?} to {to:?}"),
            Self::CreateDatabase { name, owner, .. } => {
                write!(f, "create database {name:?} owned by {owner:?}")
            }
            Self::AlterDatabase { name, .. } => write!(f, "set options of database {name:?}"),
            Self::AlterDatabaseOwner { name, owner } => write!(f, "give database {name:?} to role {owner:?}"),
            Self::GrantDatabase { name, role } => {
                write!(f, "grant all privileges on database {name:?} to role {role:?}")
            }
            Self::PrepareDatabase { database, .. } => {
                write!(f, "prepare schema public and default privileges of database {database:?}")
            }
            Self::ReleaseOwned { role, database, heir } => {
                write!(f, "hand over what role {role:?} has in database {database:?} to role {heir:?}")
            }
            Self::DropRole { name } => write!(f, "drop role {name:?}"),
            Self::CreateSchema { name } => write!(f, "create schema {name:?}"),
            Self::CreateExtension { name, schema } => {
                write!(f, "create extension {name:?} in schema {schema:?}")
            }
            Self::MoveExtension { name, schema } => write!(f, "move extension {name:?} to schema {schema:?}"),
            Self::UpdateExtension { name, from, to } => {
                write!(f, "update extension {name:?} from {from} to {to}")
            }
            Self::CreateHealthCheck => f.write_str("create table public.health_check"),
            Self::CreateBookkeeping => {
                f.write_str("create the supervisor's bookkeeping in schema neon_migration")
            }
            Self::RecordSubscriptionsDropped { timeline } => {
                write!(f, "note that subscriptions were dropped on timeline {timeline}")
            }
            Self::SilenceAudit { database } => {
                write!(f, "switch the supervisor's own audit off in database {database:?}")
            }
            Self::MarkPrepared { databases, .. } => {
                write!(f, "note {} prepared database(s)", databases.len())
            }
            Self::Migrate { migration, .. } => write!(f, "migration {}: {}", migration.id, migration.what),
        }
    }
}
