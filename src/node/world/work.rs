//! What the pieces of work do.

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};

use compute_states::{FailureClass, FetchedSpec, Revision};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::super::afterwards::Task;
use super::super::error::StartError;
use super::super::warm_up;
use super::{Needed, Parts};
use crate::catalog::{self, ConnectionSettings, Profile, Step};
use crate::control_plane;
use crate::engine::{Done, WorkError};
use crate::postgres::conf::{self, Conf};
use crate::postgres::promotion::Held;
use crate::postgres::settings::{Change, Reload, SettingsError, SizeLimitLifted};
use crate::postgres::{LastWords, Launch, LogSink, hba};
use crate::secret::Secret;
use crate::spec::document::{ComputeFeature, ComputeSpec};
use crate::spec::resolve::{Lsn, Mode, StorageKind};
use crate::spec::store::StoredSpec;
use crate::storage::{self, Context, EndOfLog, OwnSlots, Phase, Role, Safekeepers, StorageError};
use crate::telemetry::chain;

impl Parts {
    /// Whether this node can serve the spec, before anything is touched.
    pub(super) fn check(&self, spec: Revision) -> Result<Done, WorkError> {
        let stored = self.stored(spec)?;
        servable(&stored)?;
        storage::open(&stored).map_err(permanent)?;
        self.render(&stored)?;
        Ok(Done::Done)
    }

    pub(super) fn stored(&self, spec: Revision) -> Result<Arc<StoredSpec>, WorkError> {
        let missing = || format!("the spec document of revision {} is gone; this is a bug", spec.0);
        let stored = self.intake.specs().get(spec.0);
        let stored = stored.ok_or_else(|| WorkError::plain(FailureClass::Permanent, missing()))?;
        self.hold(Needed::Wanted, stored.clone());
        Ok(stored)
    }

    /// Whether a compute that starts with this spec looks at the statistics of databases.
    pub(super) fn looks_at_statistics(&self, spec: Revision) -> Result<bool, WorkError> {
        let features = &self.stored(spec)?.document.features;
        Ok(features.contains(&ComputeFeature::ActivityMonitorExperimental))
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, OwnSlots> {
        // Every change is one call, so a panic elsewhere cannot have left half of one behind.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hold(&self, needed: Needed, document: Arc<StoredSpec>) {
        // Every change is one insertion, so a panic elsewhere cannot have left half of one behind.
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).insert(needed, document);
    }

    /// The document that is held for this reason.
    pub(super) fn held(&self, needed: Needed) -> Option<Arc<StoredSpec>> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).get(&needed).cloned()
    }

    fn render(&self, stored: &StoredSpec) -> Result<String, WorkError> {
        let settings = storage::settings(stored).map_err(permanent)?;
        let extras: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let conf = Conf {
            spec: &stored.document,
            profile: Profile::of(&stored.resolved),
            privileged_role: &self.privileged_role,
            internal_http_port: self.internal_http_port,
            tls: false,
            mmap_shared_memory: conf::strict_overcommit(),
            lakebase_port: None,
            extras: &extras,
        };
        conf::render(&conf).map_err(permanent)
    }

    pub(super) async fn warm_up(&self, token: &CancellationToken) -> Result<Done, WorkError> {
        // Its server is a throw-away one with settings of its own.
        match warm_up::warm_up(&self.context("", Role::Primary, false, token)).await {
            Err(_) if token.is_cancelled() => Err(WorkError::cancelled()),
            other => other.map(|()| Done::Done).map_err(permanent),
        }
    }

    /// Refuses what cannot be started while everything is still untouched. Later the same things are found by
    /// the work that meets them.
    pub(in crate::node) async fn refuse_early(&self, spec: Revision) -> Result<(), StartError> {
        self.check(spec)?;
        let stored = self.stored(spec)?;
        let storage = storage::open(&stored)?;
        let text = self.render(&stored)?;
        let never = CancellationToken::new();
        storage.judge(&self.context(&text, Role::of(&stored), false, &never)).await?;
        Ok(())
    }

    fn context(&self, conf: &str, role: Role, restart: bool, cancel: &CancellationToken) -> Context {
        Context {
            installation: self.installation.clone(),
            pgdata: self.pgdata.clone(),
            superuser: self.superuser.clone(),
            cache: self.cache.clone(),
            conf: conf.into(),
            overwrite_foreign: self.overwrite_foreign,
            restart,
            role,
            progress: self.progress.clone(),
            cancel: cancel.clone(),
        }
    }

    pub(super) async fn prepare(
        &self,
        spec: Revision,
        restart: bool,
        token: &CancellationToken,
    ) -> Result<Done, WorkError> {
        let stored = self.stored(spec)?;
        servable(&stored)?;
        // Rendered first: a spec that cannot be written must not cost a data directory.
        let text = self.render(&stored)?;
        let storage = storage::open(&stored).map_err(permanent)?;
        // Before anything that takes time: what is read later must not be collected meanwhile.
        self.leases.begin(&stored, &self.metrics);
        // Before it is made: a try that fails or is cut off may have made it.
        self.slots().note(&stored);
        let prepared = storage.prepare(&self.context(&text, Role::of(&stored), restart, token)).await;
        self.progress.enter(Phase::Idle);
        let prepared = prepared.map_err(storage_error)?;
        self.metrics.startup().prepared(self.progress.measured(), self.progress.received());
        tracing::info!(kind = storage.kind(), ?prepared, "data directory prepared");
        self.write_files(text).await?;
        self.write_secrets(stored).await?;
        Ok(Done::Done)
    }

    /// Has the safekeepers agree on the end of the log of a server that has stopped.
    pub(super) async fn final_sync(
        &self,
        spec: Revision,
        token: &CancellationToken,
    ) -> Result<Done, WorkError> {
        let stored = self.stored(spec)?;
        let safekeepers = Safekeepers::of(&stored).ok_or_else(|| {
            WorkError::plain(FailureClass::Permanent, "this node has no safekeepers; this is a bug")
        })?;
        let begun = Instant::now();
        let synced = safekeepers.sync(self.installation.postgres(), self.pgdata.path(), token).await;
        let end = synced.map_err(|error| storage_error(error.into()))?;
        self.metrics.startup().synced(begun.elapsed());
        tracing::info!(%end, "safekeepers synchronised");
        Ok(Done::Synced(match end {
            EndOfLog::At(Lsn(lsn)) => compute_states::Lsn(lsn),
            // As clients know it.
            EndOfLog::Empty => compute_states::Lsn(0),
        }))
    }

    async fn write_secrets(&self, stored: Arc<StoredSpec>) -> Result<(), WorkError> {
        let pgdata = self.pgdata.path().to_owned();
        blocking(move || storage::write_secrets(&stored, &pgdata)).await
    }

    async fn write_files(&self, conf_text: String) -> Result<(), WorkError> {
        let pgdata = self.pgdata.path().to_owned();
        blocking(move || {
            conf::write(&pgdata, &conf_text)?;
            hba::allow_password_logins(&pgdata)?;
            // Included by the settings; the server would log that it is missing.
            conf::clear_override(&pgdata)?;
            Ok::<(), conf::WriteError>(())
        })
        .await
    }

    pub(super) fn launch(&self, spec: Revision, words: &LastWords) -> Result<Launch, WorkError> {
        let stored = self.stored(spec)?;
        let token = stored.document.storage_auth_token.clone();
        let mut env: Vec<_> = token.map(|token| ("NEON_AUTH_TOKEN".into(), token)).into_iter().collect();
        // Neon's extension forwards DDL to the control plane with it; nobody else below us has a use for it.
        if stored.resolved.storage == StorageKind::Neon
            && let Ok(token) = std::env::var(control_plane::TOKEN_VARIABLE)
        {
            env.push((control_plane::TOKEN_VARIABLE.into(), Secret::new(token)));
        }
        Ok(Launch {
            installation: self.installation.clone(),
            pgdata: self.pgdata.clone(),
            options: Vec::new(),
            env,
            log: self.upstream.log.heard_by(words.heard_by(LogSink::stderr())),
        })
    }

    /// Finds out what the server made of a reload that was asked for from outside.
    pub(super) async fn look_at_settings(&self) {
        let Some(applied) = self.held(Needed::Applied) else { return };
        let Ok(server) = ConnectionSettings::new(&self.connstr, Profile::of(&applied.resolved)) else {
            return;
        };
        if let Err(error) = self.settings.look(&server, &CancellationToken::new()).await {
            tracing::warn!("what became of the reload is not known: {}", chain(&error));
        }
    }

    pub(super) async fn apply(
        &self,
        spec: Revision,
        first: bool,
        reload: &Reload,
        token: &CancellationToken,
    ) -> Result<Done, WorkError> {
        let stored = self.stored(spec)?;
        let server =
            ConnectionSettings::new(&self.connstr, Profile::of(&stored.resolved)).map_err(permanent)?;
        let pgdata = self.pgdata.path();
        let operation = stored.document.operation_uuid.as_deref().unwrap_or("unknown").escape_debug();
        if first {
            self.settings.started();
        } else {
            // These words, and those at the end, are looked for by people and by tests of the original.
            tracing::info!("beginning reconfiguration of compute node for operation {operation}");
            servable(&stored)?;
            self.same_part(&stored)?;
            let text = self.render(&stored)?;
            self.move_slot(&stored, token).await?;
            self.write_secrets(stored.clone()).await?;
            let change = Change { pgdata, text: &text, server: &server, reload };
            // What a promotion had put in force must not hide what the new file says.
            let held = Held::take_back(pgdata).map_err(permanent)?;
            let span = tracing::info_span!("pg_reload_conf");
            if let Err(error) = Box::pin(self.settings.change(change, token)).instrument(span).await {
                held.put_back(reload).map_err(permanent)?;
                // What belongs to the settings that are in force. Should it fail, the standby says so in its log.
                if let Some(applied) = self.held(Needed::Applied) {
                    let _unlikely = self.write_secrets(applied).await;
                }
                return Err(settings_error(error));
            }
            let unused = self.slots().take_others(&stored);
            unused.drop_all(&self.installation).await;
        }
        if stored.resolved.mode == Mode::Primary {
            let span = match first {
                true => tracing::info_span!("configure_as_primary"),
                false => Span::none(),
            };
            Box::pin(self.configure_primary(&stored, server, first, reload, token)).instrument(span).await?;
        }
        self.leases.turn(&stored);
        if !first {
            tracing::info!("finished reconfiguration of compute node for operation {operation}");
        }
        self.hold(Needed::Applied, stored);
        Ok(Done::Done)
    }

    /// Refuses what a running server cannot become by having its settings changed. One that was promoted, by whomever,
    /// has removed its signal file.
    fn same_part(&self, wanted: &StoredSpec) -> Result<(), WorkError> {
        let part = |stored: &StoredSpec| std::mem::discriminant(&stored.resolved.mode);
        let Some(applied) = self.held(Needed::Applied) else { return Ok(()) };
        let (from, to) = (applied.resolved.mode, wanted.resolved.mode);
        if part(&applied) == part(wanted) || (to == Mode::Primary && !storage::stands_by(self.pgdata.path()))
        {
            return Ok(());
        }
        let remedy = match to {
            Mode::Primary => "promote it first (POST /promote)",
            Mode::Replica | Mode::Static(_) => "start the node with the new spec",
        };
        let text = format!("mode {from} does not become mode {to} while the server runs: {remedy}");
        Err(WorkError::plain(FailureClass::Permanent, text))
    }

    /// Has the slot be there that a standby is about to be told of.
    async fn move_slot(&self, stored: &StoredSpec, token: &CancellationToken) -> Result<(), WorkError> {
        if stored.resolved.storage != StorageKind::BaseBackup {
            return Ok(());
        }
        self.slots().note(stored);
        storage::make_slot(stored, &self.installation, token).await.map_err(storage_error)
    }

    async fn configure_primary(
        &self,
        stored: &StoredSpec,
        server: ConnectionSettings,
        first: bool,
        reload: &Reload,
        token: &CancellationToken,
    ) -> Result<(), WorkError> {
        self.afterwards.stop().await;
        let profile = Profile::of(&stored.resolved);
        let task = if stored.document.skip_pg_catalog_updates {
            if profile != Profile::Neon {
                return Ok(());
            }
            Task::UpdateNeon
        } else {
            let reloading = || tracing::info_span!("pg_reload_conf");
            // Before the session, which is to have what it says.
            let lifted = match profile {
                Profile::Neon => {
                    let lifted = SizeLimitLifted::lift(self.pgdata.path(), reload);
                    Some(lifted.instrument(reloading()).await.map_err(permanent)?)
                }
                Profile::Standard => None,
            };
            let span = tracing::info_span!("apply_config");
            let migrations = self.apply_catalog(stored, &server, first, token).instrument(span).await?;
            if let Some(lifted) = lifted {
                let ended = lifted.end(stored.document.drop_subscriptions_before_start);
                ended.instrument(reloading()).await.map_err(permanent)?;
            }
            Task::Migrations(migrations)
        };
        tracing::info_span!("post_apply_config")
            .in_scope(|| self.afterwards.begin(task, server, self.metrics.clone()));
        Ok(())
    }

    /// Brings roles and databases to what the spec says; returns what may be done later.
    async fn apply_catalog(
        &self,
        stored: &StoredSpec,
        server: &ConnectionSettings,
        first: bool,
        token: &CancellationToken,
    ) -> Result<Vec<Step>, WorkError> {
        let connected = catalog::connect_patiently(server, token).await.map_err(transient)?;
        let connection = connected.ok_or_else(WorkError::cancelled)?;
        let options = catalog::Options {
            privileged_role: self.privileged_role.clone(),
            profile: Profile::of(&stored.resolved),
            concurrency: concurrency(stored, first),
        };
        let applied = catalog::apply(&connection, &stored.document, &options, token);
        let applied = applied.instrument(tracing::info_span!("apply_spec_sql")).await;
        let applied = applied.map_err(|error| match error {
            catalog::ApplyError::Cancelled => WorkError::cancelled(),
            other => {
                // The original counts them in this mode only.
                let timed_out = other.sqlstate() == Some(SqlState::QUERY_CANCELED.code());
                if self.lakebase && timed_out {
                    self.metrics.catalog_statement_timed_out();
                }
                permanent(other)
            }
        })?;
        tracing::info!(statements = applied.statements, "catalog applied");
        Ok(applied.migrations)
    }

    pub(super) async fn fetch(
        &self,
        applied: Option<Revision>,
        token: &CancellationToken,
    ) -> Result<Done, WorkError> {
        let Some(source) = &self.source else {
            // A spec of this program's own making cannot have changed.
            if let Some(spec) = applied.and_then(|applied| self.intake.outline(applied)) {
                return Ok(Done::Fetched(FetchedSpec::Spec { spec, same_pageservers: true }));
            }
            // Nothing serves, and what was to be started may be startable by now.
            if let Some(wanted) = self.held(Needed::Wanted) {
                return self.take(wanted.document.clone(), None).await;
            }
            let text = "there is nowhere to fetch a spec from: neither --config nor --control-plane-uri";
            return Err(WorkError::plain(FailureClass::Permanent, text));
        };
        let fetched = source
            .fetch(&self.metrics, token)
            .await
            .map_err(|error| WorkError::new(error.class(), &error))?;
        let Some(document) = fetched.spec else { return Ok(Done::Fetched(FetchedSpec::NoSpec)) };
        self.take(document, applied).await
    }

    /// Takes in what a refresh has found. On a thread of its own, because it may be tens of megabytes.
    async fn take(&self, document: ComputeSpec, applied: Option<Revision>) -> Result<Done, WorkError> {
        let intake = self.intake.clone();
        let taken = tokio::task::spawn_blocking(move || intake.take(document)).await;
        let (spec, stored) = taken
            .map_err(|error| WorkError::new(FailureClass::Panicked, &error))?
            .map_err(|text| WorkError::plain(FailureClass::Transient, format!("the fetched spec: {text}")))?;
        let same_pageservers = applied
            .and_then(|applied| self.intake.specs().get(applied.0))
            .is_some_and(|applied| applied.resolved.same_sources(&stored.resolved));
        self.hold(Needed::Fetched, stored);
        Ok(Done::Fetched(FetchedSpec::Spec { spec, same_pageservers }))
    }
}

/// Whether this build serves what the spec asks for.
pub(in crate::node) fn servable(stored: &StoredSpec) -> Result<(), WorkError> {
    let resolved = &stored.resolved;
    if resolved.mode == Mode::Primary {
        return Ok(());
    }
    if resolved.storage == StorageKind::Initdb {
        let text = format!(
            "mode {} is not served with storage kind `initdb`: a fresh cluster has no primary to follow",
            resolved.mode
        );
        return Err(WorkError::plain(FailureClass::Permanent, text));
    }
    let hot_standby = conf::declared(&stored.document.cluster, "hot_standby");
    if hot_standby.is_some_and(|value| conf::is_off(&value)) {
        let text =
            format!("mode {} with hot_standby off would serve nobody, and never be ready", resolved.mode);
        return Err(WorkError::plain(FailureClass::Permanent, text));
    }
    Ok(())
}

/// How many databases are worked on at once.
fn concurrency(stored: &StoredSpec, first: bool) -> usize {
    if first {
        catalog::Options::start_concurrency(conf::max_connections(&stored.document.cluster))
    } else {
        stored.document.reconfigure_concurrency.max(1)
    }
}

pub(super) fn permanent(error: impl std::error::Error + 'static) -> WorkError {
    WorkError::new(FailureClass::Permanent, &error)
}

/// A full disk can be emptied, and a server can come back; what is not ours stays so.
fn storage_error(error: StorageError) -> WorkError {
    if error.is_cancelled() {
        return WorkError::cancelled();
    }
    let passes = error.is_disk_full() || error.is_unreachable();
    let class = if passes { FailureClass::Transient } else { FailureClass::Permanent };
    WorkError::new(class, &error)
}

fn transient(error: impl std::error::Error + 'static) -> WorkError {
    WorkError::new(FailureClass::Transient, &error)
}

fn settings_error(error: SettingsError) -> WorkError {
    match error {
        SettingsError::Cancelled => WorkError::cancelled(),
        error if error.is_permanent() => permanent(error),
        error => transient(error),
    }
}

/// A full disk can be emptied; whatever else keeps a file from being written does not pass.
fn writing_class(error: &(dyn std::error::Error + 'static)) -> FailureClass {
    let full = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        })
    };
    let mut chain = std::iter::successors(Some(error), |cause| cause.source());
    if chain.any(full) { FailureClass::Transient } else { FailureClass::Permanent }
}

async fn blocking<E: std::error::Error + Send + 'static>(
    work: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> Result<(), WorkError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| WorkError::new(writing_class(&error), &error)),
        Err(error) => Err(WorkError::new(FailureClass::Panicked, &error)),
    }
}
