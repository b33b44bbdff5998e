//! The activity monitor: sees whether anything but this program is at work in Postgres.
//!
//! It reports a change, or continued work, as an event; whether that counts, and for which Postgres, the state
//! machine decides. What counts as work is the original's list (metrics-and-monitor, section 3), asked in one
//! round trip.

use compute_states::{ComputeStatus, Event};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::catalog::{self, Connection, ConnectionSettings, Profile};
use crate::engine::Handle;
use crate::limits;
use crate::secret::Secret;

/// How these sessions show up in `pg_stat_activity`; the original's name.
const APPLICATION_NAME: &str = "compute_ctl:compute_monitor";

/// One row, one column: whether anything is at work. Sessions of the superuser by whom we connect are this
/// program's and its operator's, and a walproposer is part of the server.
const QUERY: &str = "
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_stat_activity
    WHERE backend_type OPERATOR(pg_catalog.=) 'client backend'
      AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
      AND usename OPERATOR(pg_catalog.<>) CURRENT_USER
      AND (state OPERATOR(pg_catalog.<>) 'idle'
           OR (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) state_change)
              OPERATOR(pg_catalog.<) '1 second'::pg_catalog.interval)
) OR EXISTS (
    SELECT FROM pg_catalog.pg_stat_replication WHERE application_name OPERATOR(pg_catalog.<>) 'walproposer'
) OR EXISTS (
    SELECT FROM pg_catalog.pg_stat_subscription WHERE pid IS NOT NULL
) OR EXISTS (
    SELECT FROM pg_catalog.pg_stat_activity WHERE backend_type OPERATOR(pg_catalog.=) 'autovacuum worker'
)";

/// Watches until it is dropped. A Postgres that cannot be asked is asked again at the next round: whether it
/// lives is the postmaster watcher's business.
pub(super) async fn monitor(handle: Handle, connstr: Secret) {
    let Ok(settings) = ConnectionSettings::new(&connstr, Profile::Standard) else { return };
    let settings = settings.named(APPLICATION_NAME);
    let mut published = handle.watch();
    loop {
        // While a Postgres starts, the sessions in it are ours.
        if published.wait_for(|snapshot| snapshot.status == ComputeStatus::Running).await.is_err() {
            return;
        }
        if let Ok(connection) = catalog::connect(&settings).await {
            watch(&handle, &connection).await;
        }
        let next = published.wait_for(|snapshot| snapshot.server.is_none());
        let _asked_again_sooner = timeout(limits::ACTIVITY_PERIOD, next).await;
    }
}

/// Asks over one session until it breaks or its Postgres is another.
async fn watch(handle: &Handle, connection: &Connection) {
    let Some(postmaster) = handle.snapshot().server else { return };
    let mut rounds = interval(limits::ACTIVITY_PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = None;
    while handle.snapshot().server == Some(postmaster) {
        rounds.tick().await;
        let answer = timeout(limits::CONNECT, connection.client().query_one(QUERY, &[])).await;
        let Ok(Ok(row)) = answer else { return };
        let Ok(busy) = row.try_get::<_, bool>(0) else { return };
        // Idleness is news once; work is news each time, because it moves `last_active`.
        if busy || before != Some(false) {
            handle.hint(Event::ActivityObserved { postmaster, busy });
        }
        before = Some(busy);
    }
}
