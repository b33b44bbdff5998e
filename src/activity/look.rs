//! One look at a server: one statement, one row.

use jiff::Timestamp;
use tokio_postgres::types::Type;
use tokio_postgres::{Row, Statement};

use super::{Activity, Look, Statistics};
use crate::catalog::Connection;

/// `$1`: whether statistics are asked for; `$2`: whether process ids are.
///
/// Sessions of the superuser by whom we connect are this program's and its operator's, and a walproposer is part of the
/// server. A session without a state has not begun; nor has one that is `starting`, as PostgreSQL 18 shows whoever is
/// only logging in, so early that neither role nor database nor name is known. Times are asked for as microseconds of
/// the Unix epoch, which no setting of the session shifts. The search path is empty, so every operator is the system's.
///
/// Walsenders are counted as sessions are, from the moment the server knows them: `pg_stat_replication` shows one
/// only some steps later.
const QUERY: &str = "
SELECT s.active, s.in_transaction, s.idle, s.arriving, s.idle_since,
       s.logical, s.physical, s.autovacuum,
       (SELECT pg_catalog.count(DISTINCT subid) FROM pg_catalog.pg_stat_subscription WHERE pid IS NOT NULL),
       l.active, l.inactive,
       t.active_time, t.sessions,
       CASE WHEN $2 THEN s.pids END
FROM (
    SELECT pg_catalog.count(*) FILTER (WHERE client AND NOT waiting AND NOT inside AND NOT starting) AS active,
           pg_catalog.count(*) FILTER (WHERE client AND inside) AS in_transaction,
           pg_catalog.count(*) FILTER (WHERE client AND waiting) AS idle,
           pg_catalog.count(*) FILTER (WHERE client AND state IS NULL OR (client OR sender) AND starting) AS arriving,
           (EXTRACT(epoch FROM pg_catalog.max(state_change) FILTER (WHERE client AND waiting)) * 1000000)
               ::pg_catalog.int8 AS idle_since,
           pg_catalog.count(*) FILTER (WHERE sender AND starting IS NOT TRUE AND datid IS NOT NULL) AS logical,
           pg_catalog.count(*) FILTER (WHERE sender AND starting IS NOT TRUE AND datid IS NULL) AS physical,
           pg_catalog.count(*) FILTER (WHERE backend_type = 'autovacuum worker') AS autovacuum,
           pg_catalog.array_agg(pid) AS pids
    FROM (
        SELECT pid, state, state_change, datid, backend_type,
               backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()
                   AND usename IS DISTINCT FROM CURRENT_USER AS client,
               state = 'idle' AS waiting, state = 'starting' AS starting,
               state IN ('idle in transaction', 'idle in transaction (aborted)') AS inside,
               backend_type = 'walsender' AND application_name <> 'walproposer' AS sender
        FROM pg_catalog.pg_stat_activity
    ) AS a
) AS s, (
    SELECT pg_catalog.count(*) FILTER (WHERE active) AS active,
           pg_catalog.count(*) FILTER (WHERE NOT active) AS inactive
    FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical'
) AS l, (
    SELECT pg_catalog.sum(active_time)::pg_catalog.float8 AS active_time,
           pg_catalog.sum(sessions)::pg_catalog.int8 AS sessions
    FROM pg_catalog.pg_stat_database
    WHERE $1 AND datname NOT IN ('postgres', 'template0', 'template1')
) AS t";

/// The look, ready to be taken again and again in one session.
#[derive(Clone, Debug)]
pub struct Prepared(Statement);

impl Prepared {
    /// Has the server prepare it.
    ///
    /// # Errors
    /// Whatever the server or the network says.
    pub async fn new(connection: &Connection) -> Result<Self, tokio_postgres::Error> {
        let types = [Type::BOOL, Type::BOOL];
        Ok(Prepared(connection.client().prepare_typed(QUERY, &types).await?))
    }

    /// Looks, in one round trip.
    ///
    /// # Errors
    /// Whatever the server or the network says.
    pub async fn look(
        &self,
        connection: &Connection,
        statistics: bool,
        pids: bool,
    ) -> Result<Look, tokio_postgres::Error> {
        let row = connection.client().query_one(&self.0, &[&statistics, &pids]).await?;
        read(&row, statistics)
    }
}

fn read(row: &Row, statistics: bool) -> Result<Look, tokio_postgres::Error> {
    let count = |column: usize| -> Result<u32, tokio_postgres::Error> {
        // The server has no room for more.
        Ok(u32::try_from(row.try_get::<_, i64>(column)?).unwrap_or(u32::MAX))
    };
    let idle_since: Option<i64> = row.try_get(4)?;
    let sums = Statistics { active_time: row.try_get(11)?, sessions: row.try_get(12)? };
    Ok(Look {
        activity: Activity {
            active_sessions: count(0)?,
            idle_in_transaction: count(1)?,
            idle_sessions: count(2)?,
            arriving_sessions: count(3)?,
            logical_walsenders: count(5)?,
            physical_walsenders: count(6)?,
            autovacuum_workers: count(7)?,
            subscriptions: count(8)?,
            active_slots: count(9)?,
            inactive_slots: count(10)?,
            statistics_moved: None,
        },
        idle_since: idle_since.and_then(|micros| Timestamp::from_microsecond(micros).ok()),
        statistics: statistics.then_some(sums),
        pids: row.try_get::<_, Option<Vec<i32>>>(13)?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No older server has such sessions, so that what counts here is the text.
    #[test]
    fn whoever_is_starting_is_counted_as_arriving_and_as_nothing_else() {
        let filters: Vec<(&str, &str)> = QUERY
            .lines()
            .filter_map(|line| line.split_once("FILTER (WHERE ")?.1.split_once(") AS "))
            .map(|(filter, column)| (column.trim_end_matches(','), filter))
            .collect();
        let of = |name: &str| filters.iter().find(|(column, _)| *column == name).unwrap().1;
        assert!(QUERY.contains("state = 'starting' AS starting"));
        assert_eq!(of("active"), "client AND NOT waiting AND NOT inside AND NOT starting");
        assert_eq!(of("arriving"), "client AND state IS NULL OR (client OR sender) AND starting");
        assert_eq!(of("logical"), "sender AND starting IS NOT TRUE AND datid IS NOT NULL");
        assert_eq!(of("physical"), "sender AND starting IS NOT TRUE AND datid IS NULL");
    }
}
