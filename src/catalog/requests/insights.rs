//! The statements that take longest.

use super::{RequestError, Requests, get, within};
use crate::limits;

/// The superuser by whom we connect is this program and its operator.
fn query() -> String {
    format!(
        "SELECT pg_catalog.row_to_json(s)::pg_catalog.text FROM public.pg_stat_statements s \
         WHERE s.userid <> (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = current_user) \
         ORDER BY s.mean_exec_time + s.mean_plan_time DESC LIMIT {}",
        limits::INSIGHTS
    )
}

impl Requests {
    /// A JSON object with what `pg_stat_statements` has of the statements with the longest mean time, as text. A
    /// server that has no such view is one without statements.
    ///
    /// # Errors
    /// The server cannot be reached, or went away meanwhile.
    pub async fn insights(&self) -> Result<String, RequestError> {
        let session = self.session("compute_ctl:collect_insights", None).await?;
        let query = query();
        let rows = match within(limits::REQUEST, session.query(&query, &[])).await {
            Err(error) if error.sqlstate().is_some() => {
                tracing::warn!("statistics of statements cannot be read: {error}");
                Vec::new()
            }
            rows => rows?,
        };
        let rows = rows.iter().map(|row| get::<&str>(row, 0)).collect::<Result<Vec<_>, _>>()?;
        Ok(format!("{{\"pg_stat_statements\": [{}]}}", rows.join(",")))
    }
}
