//! The real outside: storage, Postgres, catalog, control plane.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use compute_states::{Epoch, Exit, FailureClass, FetchedSpec, Revision, StopMode};
use tokio_util::sync::CancellationToken;

use super::afterwards::{Afterwards, Task};
use super::error::StartError;
use super::intake::Intake;
use super::warm_up;
use crate::catalog::{self, ConnectionSettings, Profile};
use crate::control_plane::{self, Source};
use crate::engine::{Done, Facts, Work, WorkError, World};
use crate::limits;
use crate::postgres::conf::{self, Conf};
use crate::postgres::settings::{Change, Reload, Settings, SettingsError, SizeLimitLifted};
use crate::postgres::{DataDir, Fact, Installation, Launch, LogSink, Postmaster, SweepOutcome, hba, process};
use crate::secret::Secret;
use crate::spec::resolve::{Mode, StorageKind};
use crate::spec::store::StoredSpec;
use crate::storage::{self, Context, StorageError};
use crate::telemetry::Metrics;

/// What this node works with; the same for its whole life.
#[derive(Debug)]
pub(super) struct Parts {
    pub installation: Installation,
    pub pgdata: Arc<DataDir>,
    pub intake: Intake,
    /// Where a refresh asks; nowhere for a spec of this program's own making.
    pub source: Option<Source>,
    pub metrics: Arc<Metrics>,
    pub connstr: Secret,
    /// The superuser of new clusters.
    pub superuser: String,
    /// Where what can be made again is kept.
    pub cache: PathBuf,
    /// Whether a cluster that is not ours may be removed.
    pub overwrite_foreign: bool,
    pub privileged_role: String,
    pub internal_http_port: u16,
    /// Catalog work that serving does not wait for.
    pub afterwards: Afterwards,
    pub settings: Settings,
    /// What the store has to keep.
    pub documents: Mutex<BTreeMap<Needed, Arc<StoredSpec>>>,
}

/// Why a document is held, so that the store keeps it: the machine may speak of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needed {
    /// Work was last done for it.
    Wanted,
    /// A refresh has found it last.
    Fetched,
    /// It was applied last.
    Applied,
}

/// The outside of a running node.
#[derive(Debug)]
pub(super) struct RealWorld {
    parts: Arc<Parts>,
    postmaster: Arc<Mutex<Slot>>,
}

/// The one postmaster, from the moment it is asked for until it was swept up after.
#[derive(Debug, Default)]
struct Slot {
    epoch: Option<Epoch>,
    process: Option<Arc<Postmaster>>,
    /// A stop that came before there was a process.
    early_stop: Option<StopMode>,
    /// Earlier ones of which something could not be ended. It is tried again at the very end.
    left: Vec<Arc<Postmaster>>,
}

impl RealWorld {
    pub(super) fn new(parts: Parts) -> Self {
        RealWorld { parts: Arc::new(parts), postmaster: Arc::default() }
    }

    /// The guard outside the loop: whatever became of it, no Postgres outlives this program, nor anything that a
    /// Postgres had started.
    pub(super) async fn leave_nothing(&self) {
        let processes = {
            let mut slot = lock(&self.postmaster);
            let left = std::mem::take(&mut slot.left);
            left.into_iter().chain(slot.process.take()).collect::<Vec<_>>()
        };
        for process in processes {
            process.signal(crate::postgres::StopMode::Immediate);
            let outcome = process.sweep(limits::LAST_SWEEP).await;
            tracing::warn!(?outcome, "a postmaster was left, and has been ended");
        }
        let ended = process::end_adopted(limits::SWEEP).await;
        if ended > 0 {
            tracing::info!(ended, "orphans of Postgres were ended");
        }
    }
}

impl World for RealWorld {
    fn run(
        &self,
        work: Work,
        token: CancellationToken,
    ) -> impl Future<Output = Result<Done, WorkError>> + Send + 'static {
        let parts = self.parts.clone();
        let postmaster = self.postmaster.clone();
        async move {
            match work {
                Work::WarmUp => parts.warm_up(&token).await,
                Work::ResolveSpec { spec } => parts.check(spec),
                Work::PrepareStorage { spec, restart } => parts.prepare(spec, restart, &token).await,
                Work::ApplySpec { spec, first, .. } => {
                    let reload: Reload = Arc::new(move || {
                        let process = lock(&postmaster).process.clone();
                        process.is_some_and(|process| process.reload())
                    });
                    // Boxed, because it is large, and is moved through many hands: that has overflowed a stack.
                    Box::pin(parts.apply(spec, first, &reload, &token)).await
                }
                Work::FetchSpec { applied } => parts.fetch(applied, &token).await,
                Work::Sweep => {
                    let process = lock(&postmaster).process.clone();
                    if let Some(process) = process {
                        match process.sweep(limits::SWEEP).await {
                            SweepOutcome::Clean { signalled } => {
                                tracing::debug!(signalled, "swept");
                                lock(&postmaster).process = None;
                            }
                            SweepOutcome::Left { pids } => {
                                tracing::warn!(?pids, "processes of Postgres could not be ended");
                            }
                        }
                    }
                    process::reap_adopted();
                    Ok(Done::Done)
                }
                Work::FinalSync { .. } => {
                    let kind = StorageKind::Neon;
                    Err(WorkError::plain(FailureClass::Permanent, unserved(kind)))
                }
            }
        }
    }

    fn start_postmaster(
        &self,
        postmaster: Epoch,
        spec: Revision,
        facts: Facts,
    ) -> impl Future<Output = Result<Exit, WorkError>> + Send + 'static {
        // Here, in the loop, so that a stop which follows at once finds it.
        {
            let mut slot = lock(&self.postmaster);
            let earlier = slot.process.take();
            slot.left.extend(earlier);
            slot.epoch = Some(postmaster);
            slot.early_stop = None;
        }
        let parts = self.parts.clone();
        let slot = self.postmaster.clone();
        async move {
            let launch = parts.launch(spec)?;
            if lock(&slot).early_stop.is_some() {
                return Err(WorkError::cancelled());
            }
            // Not under the lock: the loop takes it too, and must not wait for a program to be loaded.
            let (process, mut events) = Postmaster::spawn(launch).map_err(permanent)?;
            tracing::info!(pid = process.pid(), "postmaster spawned");
            {
                let mut slot = lock(&slot);
                if let Some(mode) = slot.early_stop {
                    process.signal(stop_mode(mode));
                }
                slot.process = Some(Arc::new(process));
            }
            while let Some(fact) = events.recv().await {
                match fact {
                    Fact::Progressed => facts.progressed().await,
                    Fact::Ready => facts.ready().await,
                    Fact::Exited(status) => return Ok(exit(status)),
                }
            }
            Err(WorkError::plain(FailureClass::Panicked, "the watcher of the postmaster has gone"))
        }
    }

    fn stop_postmaster(&self, postmaster: Epoch, mode: StopMode) {
        let mut slot = lock(&self.postmaster);
        if slot.epoch != Some(postmaster) {
            return;
        }
        self.parts.afterwards.end();
        match &slot.process {
            Some(process) => {
                process.signal(stop_mode(mode));
            }
            None => slot.early_stop = Some(mode),
        }
    }

    fn reload_postmaster(&self, postmaster: Epoch) {
        let slot = lock(&self.postmaster);
        if slot.epoch == Some(postmaster)
            && let Some(process) = &slot.process
        {
            process.reload();
        }
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

impl Parts {
    /// Whether this node can serve the spec, before anything is touched.
    fn check(&self, spec: Revision) -> Result<Done, WorkError> {
        let stored = self.stored(spec)?;
        servable(&stored)?;
        storage::open(&stored).map_err(permanent)?;
        self.render(&stored)?;
        Ok(Done::Done)
    }

    fn stored(&self, spec: Revision) -> Result<Arc<StoredSpec>, WorkError> {
        let missing = || format!("the spec document of revision {} is gone; this is a bug", spec.0);
        let stored = self.intake.specs().get(spec.0);
        let stored = stored.ok_or_else(|| WorkError::plain(FailureClass::Permanent, missing()))?;
        self.hold(Needed::Wanted, stored.clone());
        Ok(stored)
    }

    fn hold(&self, needed: Needed, document: Arc<StoredSpec>) {
        // Every change is one insertion, so a panic elsewhere cannot have left half of one behind.
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).insert(needed, document);
    }

    fn render(&self, stored: &StoredSpec) -> Result<String, WorkError> {
        let conf = Conf {
            spec: &stored.document,
            profile: Profile::of(&stored.resolved),
            privileged_role: &self.privileged_role,
            internal_http_port: self.internal_http_port,
            tls: false,
            mmap_shared_memory: conf::strict_overcommit(),
            lakebase_port: None,
            extras: &[],
        };
        conf::render(&conf).map_err(permanent)
    }

    async fn warm_up(&self, token: &CancellationToken) -> Result<Done, WorkError> {
        match warm_up::warm_up(&self.context(false, token)).await {
            Err(_) if token.is_cancelled() => Err(WorkError::cancelled()),
            other => other.map(|()| Done::Done).map_err(permanent),
        }
    }

    /// Refuses what cannot be started while everything is still untouched. Later the same things are found by
    /// the work that meets them.
    pub(super) async fn refuse_early(&self, spec: Revision) -> Result<(), StartError> {
        self.check(spec)?;
        let stored = self.stored(spec)?;
        let storage = storage::open(&stored)?;
        storage.judge(&self.context(false, &CancellationToken::new())).await?;
        Ok(())
    }

    fn context(&self, restart: bool, cancel: &CancellationToken) -> Context {
        Context {
            installation: self.installation.clone(),
            pgdata: self.pgdata.clone(),
            superuser: self.superuser.clone(),
            cache: self.cache.clone(),
            overwrite_foreign: self.overwrite_foreign,
            restart,
            cancel: cancel.clone(),
        }
    }

    async fn prepare(
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
        let prepared = storage.prepare(&self.context(restart, token)).await.map_err(storage_error)?;
        tracing::info!(kind = storage.kind(), ?prepared, "data directory prepared");
        self.write_files(text).await?;
        Ok(Done::Done)
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

    fn launch(&self, spec: Revision) -> Result<Launch, WorkError> {
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
            log: LogSink::stderr(),
        })
    }

    async fn apply(
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
        if first {
            self.settings.started();
        } else {
            servable(&stored)?;
            let text = self.render(&stored)?;
            let change = Change { pgdata, text: &text, server: &server, reload };
            Box::pin(self.settings.change(change, token)).await.map_err(settings_error)?;
        }
        if stored.resolved.mode == Mode::Primary {
            Box::pin(self.apply_catalog(&stored, server, first, reload, token)).await?;
        }
        self.hold(Needed::Applied, stored);
        Ok(Done::Done)
    }

    async fn apply_catalog(
        &self,
        stored: &StoredSpec,
        server: ConnectionSettings,
        first: bool,
        reload: &Reload,
        token: &CancellationToken,
    ) -> Result<(), WorkError> {
        self.afterwards.stop().await;
        let document = &stored.document;
        let task = if document.skip_pg_catalog_updates {
            if Profile::of(&stored.resolved) != Profile::Neon {
                return Ok(());
            }
            Task::UpdateNeon
        } else {
            // Before the session, which is to have what it says.
            let lifted = match Profile::of(&stored.resolved) {
                Profile::Neon => {
                    Some(SizeLimitLifted::lift(self.pgdata.path(), reload).await.map_err(permanent)?)
                }
                Profile::Standard => None,
            };
            let connected = catalog::connect_patiently(&server, token).await.map_err(transient)?;
            let connection = connected.ok_or_else(WorkError::cancelled)?;
            let options = catalog::Options {
                privileged_role: self.privileged_role.clone(),
                profile: Profile::of(&stored.resolved),
                concurrency: concurrency(stored, first),
            };
            let applied = catalog::apply(&connection, document, &options, token).await;
            let applied = applied.map_err(|error| match error {
                catalog::ApplyError::Cancelled => WorkError::cancelled(),
                other => permanent(other),
            })?;
            if let Some(lifted) = lifted {
                lifted.end(document.drop_subscriptions_before_start).await.map_err(permanent)?;
            }
            tracing::info!(statements = applied.statements, "catalog applied");
            Task::Migrations(applied.migrations)
        };
        self.afterwards.begin(task, server, self.metrics.clone());
        Ok(())
    }

    async fn fetch(&self, applied: Option<Revision>, token: &CancellationToken) -> Result<Done, WorkError> {
        let Some(source) = &self.source else {
            let text = "there is nowhere to fetch a spec from: neither --config nor --control-plane-uri";
            return Err(WorkError::plain(FailureClass::Permanent, text));
        };
        let fetched = source
            .fetch(&self.metrics, token)
            .await
            .map_err(|error| WorkError::new(error.class(), &error))?;
        let Some(document) = fetched.spec else { return Ok(Done::Fetched(FetchedSpec::NoSpec)) };
        let (spec, stored) = self
            .intake
            .take(document)
            .map_err(|text| WorkError::plain(FailureClass::Transient, format!("the fetched spec: {text}")))?;
        let same_pageservers = applied
            .and_then(|applied| self.intake.specs().get(applied.0))
            .is_some_and(|applied| applied.resolved.same_pageservers(&stored.resolved));
        self.hold(Needed::Fetched, stored);
        Ok(Done::Fetched(FetchedSpec::Spec { spec, same_pageservers }))
    }
}

/// Whether this build serves what the spec asks for.
pub(super) fn servable(stored: &StoredSpec) -> Result<(), WorkError> {
    let resolved = &stored.resolved;
    if resolved.storage.missing().is_some() {
        return Err(WorkError::plain(FailureClass::Permanent, unserved(resolved.storage)));
    }
    if resolved.mode != Mode::Primary {
        let text = format!(
            "mode {} is not served with storage kind `{}` yet: only Primary is",
            resolved.mode, resolved.storage
        );
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

fn stop_mode(mode: StopMode) -> crate::postgres::StopMode {
    match mode {
        StopMode::Fast => crate::postgres::StopMode::Fast,
        StopMode::Immediate => crate::postgres::StopMode::Immediate,
        StopMode::Kill => crate::postgres::StopMode::Kill,
    }
}

fn unserved(kind: StorageKind) -> String {
    kind.missing().unwrap_or("this storage kind has no final sync").to_owned()
}

fn permanent(error: impl std::error::Error + 'static) -> WorkError {
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

async fn blocking<E: std::error::Error + Send + 'static>(
    work: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> Result<(), WorkError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(permanent),
        Err(error) => Err(WorkError::new(FailureClass::Panicked, &error)),
    }
}

fn exit(status: std::process::ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        // Catching its stop signals is among the first things a postmaster does, before it opens anything. One
        // that ends by such a signal was asked to stop before that, and there was nothing to shut down.
        (None, Some(nix::libc::SIGINT | nix::libc::SIGTERM)) => Exit::Code(0),
        (None, signal) => Exit::Signal(signal.unwrap_or_default()),
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    // Every change is one assignment, so a panic elsewhere cannot have left half of one behind.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
