//! Which extensions are installed, and in how many databases: asked once after each start of a primary and from time to
//! time (metrics-and-monitor, section 5).
//!
//! Nothing waits for it. It has one session at a time, in a Postgres that serves, and leaves it when anything else is
//! to be done there; then it looks again later. Unlike the original's, the gauge has no sample of what is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use compute_states::{ComputeStatus, Revision};
use serde::Serialize;
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout};

use super::intake::Intake;
use crate::catalog::{self, ConnectError, ConnectionSettings, Profile};
use crate::engine::{Handle, Snapshot};
use crate::limits;
use crate::secret::Secret;
use crate::spec::resolve::Mode;
use crate::telemetry::metrics::InstalledExtension;
use crate::telemetry::{Metrics, chain};

/// How these sessions show up in `pg_stat_activity`; the original's name.
const APPLICATION_NAME: &str = "compute_ctl:get_installed_extensions";

/// One row a database that can be asked.
const DATABASES: &str = "SELECT datname FROM pg_catalog.pg_database \
    WHERE datallowconn AND datconnlimit OPERATOR(pg_catalog.<>) -2 ORDER BY datname LIMIT $1";

/// One row an extension; 10 is the superuser that `initdb` makes.
const EXTENSIONS: &str = "SELECT extname, extversion, extowner OPERATOR(pg_catalog.=) 10::pg_catalog.oid \
    FROM pg_catalog.pg_extension";

/// In how many databases each extension is.
type Found = BTreeMap<InstalledExtension, usize>;

/// Looks until it is dropped.
pub(super) async fn collect(
    handle: Handle,
    connstr: Secret,
    specs: Intake,
    metrics: Arc<Metrics>,
    interval: Option<Duration>,
) {
    let Ok(settings) = ConnectionSettings::new(&connstr, Profile::Standard) else { return };
    let settings = settings.named(APPLICATION_NAME);
    let mut published = handle.watch();
    let mut pace = Pace::new(interval.unwrap_or(limits::EXTENSIONS_INTERVAL));
    let mut next = None;
    let mut seen = None;
    loop {
        let running = published.wait_for(|snapshot| snapshot.status == ComputeStatus::Running).await;
        let Ok(snapshot) = running.map(|snapshot| snapshot.clone()) else { return };
        let starts = pace.follow(&snapshot, &specs) && seen != snapshot.server;
        let due = *next.get_or_insert_with(|| Instant::now() + pace.pause);
        if !starts && Instant::now() < due {
            tokio::select! {
                () = sleep_until(due) => {}
                changed = published.changed() => if changed.is_err() { return },
            }
            continue;
        }
        let found = tokio::select! {
            biased;
            left = published.wait_for(|snapshot| snapshot.status != ComputeStatus::Running) => match left {
                // It has not been seen, so that it is looked at again.
                Ok(_) => continue,
                Err(_) => return,
            },
            found = look(&settings) => found,
        };
        tell(found, &metrics);
        seen = snapshot.server;
        if !starts {
            next = Some(Instant::now() + pace.after_a_round());
        }
    }
}

/// How often to look.
struct Pace {
    interval: Duration,
    /// Never gets shorter.
    pause: Duration,
    first_spec: Option<Revision>,
}

impl Pace {
    fn new(interval: Duration) -> Self {
        let interval = interval.max(limits::EXTENSIONS_INTERVAL_MIN);
        Pace { interval, pause: 2 * interval, first_spec: None }
    }

    /// Takes over what a spec says that was applied. Whether it is one of a primary.
    fn follow(&mut self, snapshot: &Snapshot, specs: &Intake) -> bool {
        let Some((revision, stored)) =
            snapshot.spec.and_then(|revision| Some((revision, specs.specs().get(revision.0)?)))
        else {
            return false;
        };
        let primary = stored.resolved.mode == Mode::Primary;
        let first = *self.first_spec.get_or_insert(revision) == revision;
        if !first || (primary && !stored.document.skip_pg_catalog_updates) {
            self.interval = interval(stored.document.suspend_timeout_seconds);
        }
        primary
    }

    fn after_a_round(&mut self) -> Duration {
        self.pause = self.pause.max(2 * self.interval);
        self.pause
    }
}

fn interval(suspend_timeout_seconds: i64) -> Duration {
    match u64::try_from(suspend_timeout_seconds) {
        Ok(0) | Err(_) => limits::EXTENSIONS_INTERVAL,
        Ok(seconds) => Duration::from_secs(seconds).min(limits::EXTENSIONS_INTERVAL_MAX),
    }
}

/// Why a look came to nothing.
#[derive(Debug, Error)]
enum LookError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("database {database:?} does not tell its extensions")]
    Ask { database: String, source: tokio_postgres::Error },
    #[error("database {database:?} did not answer in {:?}", limits::SETTINGS_QUERY)]
    Silent { database: String },
    #[error("not done in {:?}", limits::EXTENSIONS_ROUND)]
    TimedOut,
}

async fn look(settings: &ConnectionSettings) -> Result<Found, LookError> {
    timeout(limits::EXTENSIONS_ROUND, look_at_all(settings)).await.unwrap_or(Err(LookError::TimedOut))
}

async fn look_at_all(settings: &ConnectionSettings) -> Result<Found, LookError> {
    let limit = limits::EXTENSIONS_DATABASES;
    let databases = ask(settings, DATABASES, &[&limit], |row| row.try_get::<_, String>(0)).await?;
    let mut found = Found::new();
    for database in databases {
        let extension = |row: tokio_postgres::Row| {
            Ok(InstalledExtension {
                name: row.try_get(0)?,
                version: row.try_get(1)?,
                owned_by_superuser: row.try_get(2)?,
            })
        };
        let extensions = match ask(&settings.in_database(&database), EXTENSIONS, &[], extension).await {
            // It was dropped meanwhile.
            Err(LookError::Connect(error)) if error.sqlstate() == Some("3D000") => continue,
            extensions => extensions?,
        };
        for extension in extensions {
            *found.entry(extension).or_default() += 1;
        }
    }
    Ok(found)
}

/// The rows of one question over a session of its own.
async fn ask<T>(
    settings: &ConnectionSettings,
    query: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    row: impl FnMut(tokio_postgres::Row) -> Result<T, tokio_postgres::Error>,
) -> Result<Vec<T>, LookError> {
    let database = || settings.database().to_owned();
    let connection = catalog::connect(settings).await?;
    let rows = timeout(limits::SETTINGS_QUERY, connection.client().query(query, parameters)).await;
    let rows = rows.map_err(|_| LookError::Silent { database: database() })?;
    let rows = rows.and_then(|rows| rows.into_iter().map(row).collect());
    rows.map_err(|source| LookError::Ask { database: database(), source })
}

/// As others read it from the log.
#[derive(Serialize)]
struct Line<'a> {
    extensions: Vec<LineExtension<'a>>,
}

#[derive(Serialize)]
struct LineExtension<'a> {
    extname: &'a str,
    version: &'a str,
    n_databases: usize,
    owned_by_superuser: &'static str,
}

impl<'a> Line<'a> {
    fn of(found: &'a Found) -> Self {
        let extensions = found.iter().map(|(extension, databases)| LineExtension {
            extname: &extension.name,
            version: &extension.version,
            n_databases: *databases,
            owned_by_superuser: extension.owner_flag(),
        });
        Line { extensions: extensions.collect() }
    }
}

fn tell(found: Result<Found, LookError>, metrics: &Metrics) {
    match found {
        Ok(found) => {
            let line = serde_json::to_string(&Line::of(&found)).expect("strings and numbers only");
            tracing::info!("[NEON_EXT_STAT] {line}");
            metrics.installed_extensions(found.iter().map(|(extension, databases)| (extension, *databases)));
        }
        Err(error) => tracing::error!("could not get installed extensions: {}", chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_what_its_readers_expect() {
        let plpgsql =
            InstalledExtension { name: "plpgsql".into(), version: "1.0".into(), owned_by_superuser: true };
        let citext =
            InstalledExtension { name: "citext".into(), version: "1.6".into(), owned_by_superuser: false };
        let found = Found::from([(plpgsql, 3), (citext, 1)]);
        assert_eq!(
            serde_json::to_string(&Line::of(&found)).unwrap(),
            r#"{"extensions":[{"extname":"citext","version":"1.6","n_databases":1,"owned_by_superuser":"0"},{"extname":"plpgsql","version":"1.0","n_databases":3,"owned_by_superuser":"1"}]}"#
        );
    }

    #[test]
    fn the_pause_is_twice_the_interval_and_never_gets_shorter() {
        let seconds = Duration::from_secs;
        let mut pace = Pace::new(seconds(100));
        assert_eq!(pace.pause, seconds(200));
        pace.interval = interval(300);
        assert_eq!(pace.after_a_round(), seconds(600));
        pace.interval = interval(10);
        assert_eq!(pace.after_a_round(), seconds(600));
        for never in [0, -1] {
            assert_eq!(interval(never), seconds(3600));
        }
        assert_eq!(interval(i64::MAX), limits::EXTENSIONS_INTERVAL_MAX);
        assert_eq!(Pace::new(Duration::ZERO).pause, 2 * limits::EXTENSIONS_INTERVAL_MIN, "no busy loop");
    }
}
