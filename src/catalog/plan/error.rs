//! Why a spec cannot become true, told before anything is executed.

use std::fmt;

use thiserror::Error;

use crate::catalog::attributes::OptionError;
use crate::catalog::step::RenderError;

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
    /// A listed database would be dropped and made anew with each apply.
    #[error("the spec deletes database {name:?} and lists it: each apply would lose its data")]
    DeletedAndListed {
        /// Its name.
        name: String,
    },
    /// Only a session inside could drop what keeps a database from being dropped.
    #[error("cannot delete database {name:?}: it has subscriptions, and refuses connections")]
    Subscribed {
        /// Its name.
        name: String,
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
    /// An option of a role or database is wrong.
    #[error("the option {option:?} of {kind} {name:?} {fault}")]
    Option {
        /// What.
        kind: Kind,
        /// Its name.
        name: String,
        /// The option.
        option: String,
        /// What is wrong with it.
        fault: OptionError,
    },
    /// A role is to be a member of one that neither exists nor is listed.
    #[error("role {member:?} cannot be a member of role {role:?}, which neither exists nor is listed")]
    GroupMissing {
        /// The role that does not exist.
        role: String,
        /// Who was to be its member.
        member: String,
    },
    /// A role to be deleted is one that others are to be members of.
    #[error("cannot delete role {role:?}, of which role {member:?} is to be a member")]
    GroupDeleted {
        /// The role.
        role: String,
        /// The member.
        member: String,
    },
    /// A role would be a member of itself.
    #[error("role {member:?} cannot be a member of role {role:?}, which is a member of it")]
    MembershipCircle {
        /// The role that was to get a member.
        role: String,
        /// Who was to be its member.
        member: String,
    },
    /// Something stands where the supervisor keeps its notes, and it is not a superuser's.
    #[error(
        "{what} belongs to a role that is no superuser: rename or drop it, its name is taken by this program's own"
    )]
    NotOurs {
        /// The schema or relation.
        what: String,
    },
    /// An extension that is needed has no place to go to.
    #[error("extension {extension:?} needs schema {schema:?}, which does not exist in database {database:?}")]
    SchemaMissing {
        /// The extension.
        extension: &'static str,
        /// The missing schema.
        schema: &'static str,
        /// The database.
        database: String,
    },
}
