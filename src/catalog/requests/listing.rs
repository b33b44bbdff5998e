//! All roles and databases.

use futures_util::future;
use serde::Serialize;

use super::{RequestError, Requests, get, within};
use crate::limits;
use crate::secret::Secret;
use crate::spec::document::Role;

const ROLES: &str = "SELECT rolname::pg_catalog.text, rolpassword FROM pg_catalog.pg_authid ORDER BY oid";

/// A connection limit of -2 is how the server marks a database whose removal was cut short.
const DATABASES: &str = "SELECT d.datname::pg_catalog.text, r.rolname::pg_catalog.text, NOT d.datallowconn, \
    d.datconnlimit = -2 \
    FROM pg_catalog.pg_database d JOIN pg_catalog.pg_authid r ON r.oid = d.datdba ORDER BY d.oid";

/// Everything `pg_authid` and `pg_database` hold, as `GET /dbs_and_roles` shows it.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Listing {
    /// All roles, with their verifiers; options are not told.
    pub roles: Vec<Role>,
    /// All databases.
    pub databases: Vec<ListedDatabase>,
}

/// A database as it is.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct ListedDatabase {
    /// Its name.
    pub name: String,
    /// The role which owns it.
    pub owner: String,
    /// Part of the format, and never told.
    pub options: Option<()>,
    /// Whether sessions are refused.
    pub restrict_conn: bool,
    /// Whether it was left half-dropped.
    pub invalid: bool,
}

impl Requests {
    /// Lists roles and databases.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn list(&self) -> Result<Listing, RequestError> {
        let session = self.session("compute_ctl:get_dbs_and_roles", None).await?;
        within(limits::REQUEST, async {
            let (roles, databases) =
                future::try_join(session.query(ROLES, &[]), session.query(DATABASES, &[])).await?;
            let role = |row| {
                let encrypted_password = get::<Option<String>>(row, 1)?.map(Secret::new);
                Ok::<_, RequestError>(Role { name: get(row, 0)?, encrypted_password, options: None })
            };
            let database = |row| {
                Ok::<_, RequestError>(ListedDatabase {
                    name: get(row, 0)?,
                    owner: get(row, 1)?,
                    options: None,
                    restrict_conn: get(row, 2)?,
                    invalid: get(row, 3)?,
                })
            };
            Ok(Listing {
                roles: roles.iter().map(role).collect::<Result<_, _>>()?,
                databases: databases.iter().map(database).collect::<Result<_, _>>()?,
            })
        })
        .await
    }
}
