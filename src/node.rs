//! Composition: builds the parts, starts the producers, awaits the engine.
//!
//! [`run`] reads as the list of steps it is. What can be refused is refused before anything is touched:
//! the command line was parsed, the config is read, PostgreSQL is found and the ports are bound before the
//! data directory is claimed.

mod activity;
mod error;
mod intake;
mod standalone;
mod terminal;
mod warm_up;
mod world;

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use compute_states::{Event, Exit, ExitReason, Policy, RestartPolicy, SpecOutline};
use tokio_util::sync::CancellationToken;

use crate::cli::{self, ExitCode, Port, RunOptions, SpecSource};
use crate::control_plane::{self, Source};
use crate::engine::{self, Ended, Handle, Recording};
use crate::http::server::Side;
use crate::http::{self, Auth, BindSpec, ExternalAddress, Listeners};
use crate::limits;
use crate::postgres::{DataDir, Installation, process};
use crate::secret::Secret;
use crate::signals::{self, Asked, Signals};
use crate::spec::document::ComputeConfig;
use crate::spec::fault::{self, Shape};
use crate::telemetry::{self, Metrics};

use error::StartError;
use intake::Intake;
use terminal::Foreground;
use world::{Parts, RealWorld};

/// Runs a node from its first step to its exit code.
pub fn run(options: RunOptions) -> ExitCode {
    if let Err(error) = telemetry::log::init() {
        let _ = writeln!(std::io::stderr(), "nothing can be logged: {error}");
        return ExitCode::Internal;
    }
    let caught = signals::catch_early();
    // Until the end, so that the exit code is ours to give and the last lines are written to our own terminal.
    let _foreground = options.standalone.then(Foreground::take);
    let code = match caught {
        Ok(()) => run_logged(options),
        Err(error) => {
            tracing::error!(%error, "signals cannot be caught");
            ExitCode::Internal
        }
    };
    telemetry::log::flush(limits::LOG_FLUSH);
    code
}

fn run_logged(options: RunOptions) -> ExitCode {
    for warning in options.not_yet_served() {
        tracing::warn!("{warning}");
    }
    match prepare_and_run(options) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{}", error::chain(&error));
            error.exit_code()
        }
    }
}

fn prepare_and_run(mut options: RunOptions) -> Result<ExitCode, StartError> {
    // As root, perhaps: the file may be root's alone.
    let config = read_config(&mut options)?;
    // Too: the ports may be such as only root can have.
    let listeners = bind(&options)?;
    raise_core_limit();
    process::become_subreaper().map_err(StartError::Subreaper)?;
    drop_privileges(&options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(limits::WORKERS)
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    let code = runtime.block_on(start(options, config, listeners));
    // Whatever still blocks (a write to a file system that hangs) must not keep the process.
    runtime.shutdown_timeout(limits::RUNTIME_SHUTDOWN);
    code
}

/// The config, if it comes from a file or is of our own making. Paths that are needed again are made absolute.
fn read_config(options: &mut RunOptions) -> Result<Option<ComputeConfig>, StartError> {
    let (path, shape) = match &mut options.source {
        SpecSource::Config(path) => (path, Shape::Config),
        SpecSource::Spec(path) => (path, Shape::ConfigOrSpec),
        SpecSource::ControlPlane { .. } => return Ok(None),
        SpecSource::Standalone => return Ok(Some(ComputeConfig::default())),
    };
    if let Ok(absolute) = std::path::absolute(&*path) {
        *path = absolute;
    }
    let checked = fault::load(path, shape)?;
    for note in &checked.notes {
        tracing::warn!("{note}");
    }
    Ok(Some(checked.config))
}

/// A core file of Postgres is worth having. Only as far as the hard limit allows: more would need privileges.
fn raise_core_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_CORE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_CORE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of core files could not be raised");
    }
}

fn drop_privileges(options: &RunOptions) -> Result<(), StartError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    process::drop_privileges(&options.user, &[&options.pgdata, &options.cache_dir])?;
    tracing::info!(user = options.user, "dropped privileges");
    // Where root stands the user may not be allowed to look, and then initdb does not even find itself.
    std::env::set_current_dir("/").map_err(StartError::Runtime)
}

/// Binds both servers. A port that is only preferred gives way to a free one.
fn bind(options: &RunOptions) -> Result<Listeners, StartError> {
    let external = match options.standalone {
        true => ExternalAddress::Only(Ipv4Addr::LOCALHOST.into()),
        false => ExternalAddress::All,
    };
    let mut spec = BindSpec {
        external,
        external_port: options.external_http_port.number(),
        internal_port: options.internal_http_port.number(),
    };
    loop {
        let error = match Listeners::bind(&spec) {
            Ok(listeners) => return Ok(listeners),
            Err(error) => error,
        };
        let (asked, port) = match error.side {
            Side::External => (options.external_http_port, &mut spec.external_port),
            Side::Internal => (options.internal_http_port, &mut spec.internal_port),
        };
        if !matches!(asked, Port::Preferred(_)) || *port == 0 {
            return Err(error.into());
        }
        *port = 0;
    }
}

async fn start(
    options: RunOptions,
    config: Option<ComputeConfig>,
    listeners: Listeners,
) -> Result<ExitCode, StartError> {
    // First, and what was caught before is in them.
    let mut signals = Signals::install().map_err(StartError::Runtime)?;
    let metrics = Arc::new(Metrics::new());
    let source = source(&options);
    let found = {
        let work = find(&options, config, source.as_ref(), &metrics);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                found = &mut work => break Some(found?),
                asked = signals.next() => if asked == Asked::Stop { break None },
            }
        }
    };
    let Some(Found { installation, config }) = found else {
        tracing::info!("stopped before anything was started");
        process::end_adopted(limits::SWEEP).await;
        return Ok(ExitCode::Ok);
    };
    tracing::info!(version = %installation.version(), program = %installation.postgres().display(), "PostgreSQL found");

    let (connstr, postgres_port) = standalone::settle_port(&options);
    let document = match options.source {
        SpecSource::Standalone => Some(standalone::spec(&options.pgdata, postgres_port)),
        _ => config.spec,
    };
    let superuser = connstr.config().get_user().unwrap_or("cloud_admin").to_owned();
    let intake = Intake::default();
    let spec = document.map(|document| intake.take(document)).transpose().map_err(StartError::Spec)?;
    let parts = Parts {
        pgdata: claim(&options.pgdata).await?,
        installation,
        superuser,
        cache: options.cache_dir.clone(),
        overwrite_foreign: options.overwrite_foreign_pgdata,
        intake: intake.clone(),
        source,
        metrics: metrics.clone(),
        connstr: Secret::new(connstr.reveal()),
        privileged_role: options.privileged_role_name.clone(),
        internal_http_port: listeners.internal_port(),
    };
    if let Some(spec) = &spec {
        parts.refuse_early(spec.revision).await?;
    }
    let world = Arc::new(RealWorld::new(parts));
    let (engine, handle) = engine::new(world.clone(), policy(&options), metrics.clone());
    let journal = journal_path(&options);
    let on_failure = journal.clone();
    let engine =
        tokio::spawn(engine.on_failure(move |recording| write_journal(&on_failure, recording)).run());
    boot(&handle, spec).await;

    let producers = CancellationToken::new();
    let ends = producers.clone();
    let feed = signals.feed(handle.clone(), on_demand(&handle, &journal), || {
        process::reap_adopted();
    });
    tokio::spawn(async move { ends.run_until_cancelled(feed).await });
    tokio::spawn({
        let monitor = activity::monitor(handle.clone(), Secret::new(connstr.reveal()));
        let ends = producers.clone();
        async move { ends.run_until_cancelled(monitor).await }
    });
    if options.standalone {
        let banner = standalone::Banner::new(&options, connstr.port(), &listeners);
        tokio::spawn(banner.print_when_running(handle.watch()));
    }
    let auth = match options.standalone {
        true => Auth::open(),
        false => Auth::tokens(&config.compute_ctl_config.jwks, &options.compute_id),
    };
    let context = http::Context { engine: handle, metrics, specs: Arc::new(intake), auth };
    let servers = tokio::spawn(listeners.serve(context, producers.clone()));

    let outcome = engine.await;
    producers.cancel();
    // The answers that were given must arrive before the process goes.
    match servers.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!("{}", error::chain(&error)),
        Err(error) => tracing::error!(%error, "an HTTP server ended by a fault of its own; this is a bug"),
    }
    world.leave_nothing().await;
    match outcome {
        Ok(outcome) => Ok(conclude(&journal, outcome)),
        Err(error) => {
            tracing::error!(%error, "the event loop ended by a fault of its own; this is a bug");
            Ok(ExitCode::Internal)
        }
    }
}

struct Found {
    installation: Installation,
    config: ComputeConfig,
}

/// What has to be there before anything is touched.
async fn find(
    options: &RunOptions,
    config: Option<ComputeConfig>,
    source: Option<&Source>,
    metrics: &Metrics,
) -> Result<Found, StartError> {
    let installation = Installation::find(options.pgbin.as_deref(), Some(&options.cache_dir)).await?;
    let config = match (config, source) {
        (Some(config), _) => config,
        (None, Some(source)) => source.fetch(metrics, &CancellationToken::new()).await?,
        (None, None) => ComputeConfig::default(),
    };
    Ok(Found { installation, config })
}

/// Where a refresh asks.
fn source(options: &RunOptions) -> Option<Source> {
    match &options.source {
        SpecSource::Config(path) | SpecSource::Spec(path) => Some(Source::File(path.clone())),
        SpecSource::ControlPlane { base, .. } => {
            control_plane::init_tls();
            Some(Source::control_plane(base, &options.compute_id))
        }
        SpecSource::Standalone => None,
    }
}

/// Claims the data directory for this process, and makes sure that no server lives on it. Touches nothing in it:
/// whether it may be used is not known yet.
async fn claim(path: &Path) -> Result<Arc<DataDir>, StartError> {
    let path = path.to_owned();
    let claimed = tokio::task::spawn_blocking(move || {
        let pgdata = DataDir::claim(&path)?;
        pgdata.ensure_no_server()?;
        Ok::<_, StartError>(pgdata)
    });
    claimed.await.map_err(|error| StartError::Runtime(error.into()))?
}

fn policy(options: &RunOptions) -> Policy {
    Policy {
        restart: match options.restart {
            cli::RestartPolicy::Never => RestartPolicy::Never,
            cli::RestartPolicy::OnFailure => RestartPolicy::OnFailure,
        },
        crash_linger: options.crash_linger,
        ..Policy::default()
    }
}

/// Has the first event handled before any listener accepts, so that nobody sees a status which is not meant.
async fn boot(handle: &Handle, spec: Option<SpecOutline>) {
    let mut published = handle.watch();
    published.mark_unchanged();
    handle.report(Event::Booted { spec }).await;
    // Only a loop that has ended publishes nothing, and that is found out when it is awaited.
    let _ = published.changed().await;
}

fn conclude(journal: &Path, outcome: engine::Outcome) -> ExitCode {
    let reason = match outcome.ended {
        Ended::Exit(reason) => reason,
        Ended::MachinePanicked => {
            save(journal, &outcome.recording);
            return ExitCode::Internal;
        }
        Ended::Abandoned => return ExitCode::Internal,
    };
    tracing::info!(?reason, "ended");
    match reason {
        ExitReason::Stopped => ExitCode::Ok,
        ExitReason::StartFailed | ExitReason::Detached => ExitCode::Failure,
        ExitReason::FinalSyncFailed => ExitCode::FinalSyncFailed,
        ExitReason::StopKilled => ExitCode::Killed,
        // A crash without a code of its own (a signal, or a code no process can end with) is a failure.
        ExitReason::PostgresExited(Exit::Code(code)) => match u8::try_from(code) {
            Ok(code) => ExitCode::Postgres(code),
            Err(_) => ExitCode::Failure,
        },
        ExitReason::PostgresExited(Exit::Signal(_)) => ExitCode::Failure,
    }
}

/// Where the journal is written. One file per compute, so that the last failure is what is found.
fn journal_path(options: &RunOptions) -> PathBuf {
    let name = options.compute_id.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
    options
        .journal
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("compute_ctl-{name}.journal")))
}

/// Asks the loop for the journal and writes it.
fn on_demand(handle: &Handle, path: &Path) -> impl Fn() + Send + 'static {
    let (handle, path) = (handle.clone(), path.to_owned());
    move || {
        let (handle, path) = (handle.clone(), path.clone());
        tokio::spawn(async move {
            if let Ok(recording) = handle.recording().await {
                write_journal(&path, recording);
            }
        });
    }
}

/// Writes the journal off the loop.
fn write_journal(path: &Path, recording: Recording) {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || save(&path, &recording));
}

fn save(path: &Path, recording: &Recording) {
    let written = std::fs::File::create(path).and_then(|file| recording.write(std::io::BufWriter::new(file)));
    match written {
        Ok(()) => tracing::info!(path = %path.display(), events = recording.entries.len(), "journal written"),
        Err(error) => tracing::warn!(path = %path.display(), %error, "the journal could not be written"),
    }
}
