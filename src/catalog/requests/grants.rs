//! Privileges on a schema for a role.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{RequestError, Requests, Session, checked, despite_contention, get, within};
use crate::limits;

/// What a role has on a schema; a schema without privileges of its own has the built-in ones. Roles which cannot
/// log in have nothing here, as in the original, so to them everything is granted again.
const PRIVILEGES: &str = "SELECT a.privilege_type FROM pg_catalog.pg_namespace n \
    CROSS JOIN LATERAL pg_catalog.aclexplode(\
        coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) a \
    JOIN pg_catalog.pg_roles r ON r.oid = a.grantee \
    WHERE n.nspname::pg_catalog.text = $1 AND r.rolname::pg_catalog.text = $2 AND r.rolcanlogin";

/// What `POST /grants` asks for. The answer repeats it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct SetRoleGrantsRequest {
    /// The database of the schema.
    pub database: String,
    /// The schema.
    pub schema: String,
    /// What the role is to have.
    pub privileges: Vec<Privilege>,
    /// The role.
    pub role: String,
}

/// A privilege. The server refuses those that schemas do not have.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "each is the SQL word")]
pub enum Privilege {
    Select,
    Insert,
    Update,
    Delete,
    Truncate,
    References,
    Trigger,
    Usage,
    Create,
    Connect,
    Temporary,
    Execute,
}

impl Privilege {
    /// As SQL spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Select => "SELECT",
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Truncate => "TRUNCATE",
            Self::References => "REFERENCES",
            Self::Trigger => "TRIGGER",
            Self::Usage => "USAGE",
            Self::Create => "CREATE",
            Self::Connect => "CONNECT",
            Self::Temporary => "TEMPORARY",
            Self::Execute => "EXECUTE",
        }
    }
}

impl Requests {
    /// Grants what the role does not have yet. If that is nothing, nothing is written, so that it succeeds on a
    /// standby too.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn grant(&self, request: &SetRoleGrantsRequest) -> Result<(), RequestError> {
        let on = format!(
            " ON SCHEMA {} TO {}",
            checked("schema", &request.schema)?,
            checked("role", &request.role)?
        );
        let session = self.session("compute_ctl:set_role_grants", Some(&request.database)).await?;
        within(limits::REQUEST, despite_contention(|| grant_missing(&session, request, &on))).await
    }
}

async fn grant_missing(
    session: &Session<'_>,
    request: &SetRoleGrantsRequest,
    on: &str,
) -> Result<(), RequestError> {
    let rows = session.query(PRIVILEGES, &[&request.schema, &request.role]).await?;
    let granted = rows.iter().map(|row| get(row, 0)).collect::<Result<BTreeSet<&str>, _>>()?;
    let wanted: BTreeSet<_> = request.privileges.iter().map(|privilege| privilege.as_str()).collect();
    let missing: Vec<_> = wanted.difference(&granted).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    session.execute(&format!("GRANT {}{on}", missing.join(", "))).await
}
