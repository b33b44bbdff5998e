//! Composition: builds the parts, starts the producers, awaits the engine.
//!
//! [`run`] reads as the list of steps it is. What can be refused is refused before anything is touched:
//! the command line was parsed, the ports are bound, the config is read and PostgreSQL is found before the
//! data directory is claimed. The servers answer probes from the moment their ports are bound.

mod activity;
mod afterwards;
mod error;
mod extensions;
mod intake;
mod journal;
mod leases;
mod reread;
mod standalone;
mod terminal;
mod upstream;
mod warm_up;
mod world;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};

use compute_states::{Event, Exit, ExitReason, Policy, RestartPolicy, SpecOutline};
use tokio::runtime::{self, Runtime};
use tokio_postgres::config::Host;
use tokio_util::sync::CancellationToken;

use crate::activity::Rules;
use crate::catalog::{ConnectionSettings, Profile, Requests};
use crate::cli::{self, Connstr, ExitCode, Port, RunOptions, SpecSource};
use crate::control_plane::{self, Source};
use crate::engine::{self, Ended, Handle};
use crate::http::server::Side;
use crate::http::{self, Auth, BindSpec, ExternalAddress, Listeners, Servers};
use crate::limits;
use crate::postgres::process::PrivilegeError;
use crate::postgres::settings::Settings;
use crate::postgres::{DataDir, InstallError, Installation, end_orphan, process};
use crate::secret::Secret;
use crate::signals::{self, Asked, Signals};
use crate::spec::document::ComputeConfig;
use crate::spec::fault::Shape;
use crate::storage::Progress;
use crate::telemetry::log::files::Files;
use crate::telemetry::metrics::Attacher;
use crate::telemetry::{self, Metrics, Traces};

use afterwards::Afterwards;
use error::StartError;
use intake::Intake;
use journal::JournalFile;
use leases::Leases;
use terminal::Foreground;
use upstream::{Upstream, Watcher};
use world::{Parts, RealWorld};

/// Runs a node from its first step to its exit code.
pub fn run(options: RunOptions) -> ExitCode {
    let (traces, fault) = match Traces::begin() {
        Ok(traces) => (traces, None),
        Err(fault) => (None, Some(fault)),
    };
    let files = options.log_directory.clone().map(|directory| Files {
        directory,
        instance_id: options.instance_id.clone().unwrap_or_default(),
        compute_id: options.compute_id.clone(),
    });
    if let Err(error) = telemetry::log::init(options.log_format, traces.as_ref(), files) {
        let _ = writeln!(std::io::stderr(), "nothing can be logged: {error}");
        return ExitCode::Internal;
    }
    if let Some(fault) = fault {
        tracing::warn!("there will be no traces: {fault}");
    }
    if !nix::unistd::geteuid().is_root() {
        telemetry::log::begin_files();
    }
    let (user, log_directory) = (options.user.clone(), options.log_directory.clone());
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
    if let Some(directory) = &log_directory {
        // What was refused as root is to be in the files, too. If it cannot be, it is on standard error.
        let _ = become_user(&user, &[], Some(directory));
    }
    if let Some(traces) = traces {
        traces.end();
    }
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
            tracing::error!("{}", telemetry::chain(&error));
            error.exit_code()
        }
    }
}

fn prepare_and_run(options: RunOptions) -> Result<ExitCode, StartError> {
    raise_core_limit();
    raise_file_limit();
    process::become_subreaper().map_err(StartError::Subreaper)?;
    let runtime = runtime("node", limits::WORKERS)?;
    // Clients come in thousands: whatever they ask for, the loop and its work do not stand in a queue behind them.
    let servers = self::runtime("http", limits::HTTP_WORKERS)?;
    let code = runtime.block_on(start(options, servers.handle()));
    // Whatever still blocks (a file system that hangs) must not keep the process.
    servers.shutdown_background();
    runtime.shutdown_timeout(limits::RUNTIME_SHUTDOWN);
    code
}

fn runtime(name: &str, threads: usize) -> Result<Runtime, StartError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).thread_name(name).enable_all().build().map_err(StartError::Runtime)
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

/// Each HTTP client needs a file. Only as far as the hard limit allows, and as needed.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match limits::FILES.min(hard) {
        wanted if soft < wanted => setrlimit(Resource::RLIMIT_NOFILE, wanted, hard),
        _ => Ok(()),
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

fn drop_privileges(options: &RunOptions) -> Result<(), StartError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let own: [&Path; 2] = [&options.pgdata, &options.cache_dir];
    become_user(&options.user, &own, options.log_directory.as_deref())?;
    tracing::info!(user = options.user, "dropped privileges");
    // Where root stands the user may not be allowed to look, and then initdb does not even find itself.
    std::env::set_current_dir("/").map_err(StartError::Runtime)
}

/// Drops privileges, if there are any, with these directories the user's. From now on log files are written.
fn become_user(user: &str, own: &[&Path], log_directory: Option<&Path>) -> Result<(), PrivilegeError> {
    if let Some(Err(error)) = log_directory.map(|path| process::give_directory(user, path)) {
        // The node goes on without them.
        tracing::warn!("no log files: {}", telemetry::chain(&error));
    }
    process::drop_privileges(user, own)?;
    telemetry::log::begin_files();
    Ok(())
}

/// Binds both servers. A port that is only preferred gives way to a free one.
fn bind(options: &RunOptions) -> Result<Listeners, StartError> {
    let external = match options.standalone {
        true => ExternalAddress::Only(Ipv4Addr::LOCALHOST.into()),
        false => ExternalAddress::All,
    };
    let taken = [options.external_http_port, options.internal_http_port, options.postgres_port];
    let mut spec = BindSpec {
        external,
        external_port: wanted(options.external_http_port, &taken),
        internal_port: wanted(options.internal_http_port, &taken),
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

async fn start(options: RunOptions, http: &runtime::Handle) -> Result<ExitCode, StartError> {
    // First, and what was caught before is in them.
    let signals = Signals::install().map_err(StartError::Runtime)?;
    named_program_exists(&options)?;
    // As root, perhaps: the ports may be such as only root can have.
    let mut servers = Servers::open(bind(&options)?, http)?;
    let code = start_behind(&mut servers, options, signals).await;
    servers.end().await;
    code
}

/// The start behind servers that answer already, until the end.
async fn start_behind(
    servers: &mut Servers,
    options: RunOptions,
    mut signals: Signals,
) -> Result<ExitCode, StartError> {
    let metrics = Arc::new(Metrics::new());
    if let (true, Some(instance_id)) = (options.lakebase_mode, options.instance_id.clone()) {
        metrics.tell_attachments_of(Attacher { compute_id: options.compute_id.clone(), instance_id });
    }
    let source = source(&options);
    // As root, perhaps: the config may be root's alone to read.
    let config = async {
        match &source {
            Some(source) => Ok(source.fetch(&metrics, &CancellationToken::new()).await?),
            None => Ok(ComputeConfig::default()),
        }
    };
    let Some(config) = unless_stopped(&mut signals, config).await? else { return Ok(stopped_early().await) };
    let (connstr, postgres_port) = standalone::settle_port(&options);
    let settings = ConnectionSettings::new(&Secret::new(connstr.reveal()), Profile::Standard)?;
    let document = match options.source {
        SpecSource::Standalone => Some(standalone::spec(&options.pgdata, postgres_port)),
        _ => config.spec,
    };
    let intake = Intake::default();
    let spec = document.map(|document| intake.take(document)).transpose().map_err(StartError::Spec)?;
    if let Some((_, stored)) = &spec {
        world::servable(stored)?;
        // With a server on the directory that is what there is to say, and who finds it says it.
        if !options.pgdata.join("postmaster.pid").exists() {
            postgres_port_is_free(&connstr)?;
        }
    }

    // Up to here nothing was touched, and nothing was done that root's rights were not needed for.
    drop_privileges(&options)?;
    reread::warn_unless_readable(source.as_ref(), &options.user);
    let find = async { Ok(Installation::find(options.pgbin.as_deref(), Some(&options.cache_dir)).await?) };
    let Some(installation) = unless_stopped(&mut signals, find).await? else {
        return Ok(stopped_early().await);
    };
    tracing::info!(version = %installation.version(), program = %installation.postgres().display(), "PostgreSQL found");
    let superuser = connstr.config().get_user().unwrap_or("cloud_admin").to_owned();
    let postgres =
        Requests::new(settings, installation.tool("pg_dump"), options.privileged_role_name.clone());
    let progress = Arc::<Progress>::default();
    let Some(pgdata) = unless_stopped(&mut signals, claim(&options.pgdata)).await? else {
        return Ok(stopped_early().await);
    };
    let rules = Arc::new(Rules::ignoring(&options.idle_ignores));
    let postgres_settings = Settings::new(metrics.clone());
    let reported = postgres_settings.reported();
    let upstream = Upstream::default();
    let fetches = source.is_some();
    let parts = Parts {
        rules: rules.clone(),
        pgdata,
        installation,
        superuser,
        cache: options.cache_dir.clone(),
        overwrite_foreign: options.overwrite_foreign_pgdata,
        intake: intake.clone(),
        source,
        metrics: metrics.clone(),
        connstr: Secret::new(connstr.reveal()),
        privileged_role: options.privileged_role_name.clone(),
        lakebase: options.lakebase_mode,
        internal_http_port: servers.internal_port(),
        afterwards: Afterwards::default(),
        leases: Leases::default(),
        settings: postgres_settings,
        upstream: upstream.clone(),
        progress: progress.clone(),
        slots: Mutex::default(),
        documents: Mutex::default(),
    };
    if let Some((spec, _)) = &spec {
        parts.refuse_early(spec.revision).await?;
        postgres_port_is_free(&connstr)?;
    }
    let world = Arc::new(RealWorld::new(parts));
    let (engine, handle) = engine::new(world.clone(), policy(&options), metrics.clone());
    let journal = JournalFile::new(options.journal.clone(), &options.compute_id);
    let on_failure = journal.clone();
    let engine = engine.on_failure(move |recording| on_failure.save_later(recording));
    let engine = tokio::spawn(engine.on_directory(&options.pgdata).run());
    boot(&handle, spec.as_ref().map(|(outline, _)| *outline)).await;

    let producers = CancellationToken::new();
    let ends = producers.clone();
    let feed = signals.feed(handle.clone(), journal.on_demand(&handle), || {
        process::reap_adopted();
    });
    tokio::spawn(async move { ends.run_until_cancelled(feed).await });
    tokio::spawn({
        let connstr = Secret::new(connstr.reveal());
        let monitor = activity::monitor(handle.clone(), connstr, rules.clone(), metrics.clone());
        let ends = producers.clone();
        async move { ends.run_until_cancelled(monitor).await }
    });
    tokio::spawn({
        let connstr = Secret::new(connstr.reveal());
        let interval = options.extensions_interval;
        let looks = extensions::collect(handle.clone(), connstr, intake.clone(), metrics.clone(), interval);
        let ends = producers.clone();
        async move { ends.run_until_cancelled(looks).await }
    });
    if fetches {
        let watcher = Watcher {
            handle: handle.clone(),
            connstr: Secret::new(connstr.reveal()),
            specs: intake.clone(),
            upstream,
            metrics: metrics.clone(),
        };
        let ends = producers.clone();
        tokio::spawn(async move { ends.run_until_cancelled(watcher.run()).await });
    }
    if options.source == SpecSource::Standalone {
        let banner = standalone::Banner::new(&options, connstr.port(), servers.external().port());
        tokio::spawn(banner.print_when_running(handle.watch()));
    }
    let auth = match options.standalone {
        true => Auth::open(),
        false => Auth::tokens(&config.compute_ctl_config.jwks, &options.compute_id),
    };
    let context = http::Context {
        engine: handle,
        metrics,
        progress,
        specs: Arc::new(intake),
        postgres,
        auth,
        settings: reported,
        pgdata: options.pgdata.into(),
    };
    servers.serve(context)?;

    let outcome = engine.await;
    producers.cancel();
    // The answers that were given must arrive before the process goes.
    servers.end().await;
    world.leave_nothing().await;
    match outcome {
        Ok(outcome) => Ok(conclude(&journal, outcome)),
        Err(error) => {
            tracing::error!(%error, "the event loop ended by a fault of its own; this is a bug");
            Ok(ExitCode::Internal)
        }
    }
}

/// The port to try first: one that is only preferred must not take what another one must have.
fn wanted(port: Port, taken: &[Port]) -> u16 {
    match port {
        Port::Preferred(number) if taken.contains(&Port::Exact(number)) => 0,
        other => other.number(),
    }
}

/// What the work comes to, or nothing when a stop signal came first.
async fn unless_stopped<T>(
    signals: &mut Signals,
    work: impl Future<Output = Result<T, StartError>>,
) -> Result<Option<T>, StartError> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done.map(Some),
            asked = signals.next() => if asked == Asked::Stop { return Ok(None) },
        }
    }
}

async fn stopped_early() -> ExitCode {
    tracing::info!("stopped before anything was started");
    process::end_adopted(limits::SWEEP).await;
    ExitCode::Ok
}

/// A program that is named and not there is found out before directories are made. Whether it is a server of a
/// served version shows when it is asked.
fn named_program_exists(options: &RunOptions) -> Result<(), StartError> {
    match &options.pgbin {
        Some(path) if path.is_absolute() && !path.is_file() => {
            Err(InstallError::NotThere { path: path.clone(), searched: None }.into())
        }
        _ => Ok(()),
    }
}

/// Who listens where Postgres is to listen would be taken for it, and be sent what is meant for it.
fn postgres_port_is_free(connstr: &Connstr) -> Result<(), StartError> {
    let local = match connstr.config().get_hosts() {
        [Host::Tcp(host)] => host == "localhost" || host.parse().is_ok_and(|host: IpAddr| host.is_loopback()),
        _ => false,
    };
    let port = connstr.port();
    match local.then(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port))) {
        Some(Err(error)) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(StartError::PostgresPort { port })
        }
        // Anything else is Postgres's to find out.
        _ => Ok(()),
    }
}

/// Where a refresh asks.
fn source(options: &RunOptions) -> Option<Source> {
    match &options.source {
        SpecSource::Config(path) => Some(Source::File { path: path.clone(), shape: Shape::Config }),
        SpecSource::Spec(path) => Some(Source::File { path: path.clone(), shape: Shape::ConfigOrSpec }),
        SpecSource::ControlPlane { base, .. } => {
            control_plane::init_tls();
            Some(Source::control_plane(base, &options.compute_id))
        }
        SpecSource::Standalone => None,
    }
}

/// Claims the data directory for this process, and makes sure that no server lives on it: one that a compute_ctl had
/// left there when it was killed is ended. Touches nothing in it:
/// whether it may be used is not known yet.
async fn claim(path: &Path) -> Result<Arc<DataDir>, StartError> {
    let blocked = |error: tokio::task::JoinError| StartError::Runtime(error.into());
    let path = path.to_owned();
    let claimed = tokio::task::spawn_blocking(move || DataDir::claim(&path)).await.map_err(blocked)??;
    end_orphan(&claimed).await;
    let pgdata = claimed.clone();
    tokio::task::spawn_blocking(move || pgdata.ensure_no_server()).await.map_err(blocked)??;
    Ok(claimed)
}

fn policy(options: &RunOptions) -> Policy {
    let standard = Policy::default();
    Policy {
        restart: match options.restart {
            cli::RestartPolicy::Never => RestartPolicy::Never,
            cli::RestartPolicy::OnFailure => RestartPolicy::OnFailure,
        },
        crash_linger: options.crash_linger,
        storage_retries: options.storage_retries.unwrap_or(standard.storage_retries),
        ..standard
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

fn conclude(journal: &JournalFile, outcome: engine::Outcome) -> ExitCode {
    let reason = match outcome.ended {
        Ended::Exit(reason) => reason,
        Ended::MachinePanicked => {
            journal.save(&outcome.recording);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preferred_port_gives_way_to_one_that_must_be() {
        let (preferred, exact) = (Port::Preferred(3080), Port::Exact(3080));
        assert_eq!(wanted(preferred, &[preferred, exact]), 0);
        assert_eq!(wanted(preferred, &[preferred, Port::Exact(3081)]), 3080);
        assert_eq!(wanted(exact, &[preferred, exact]), 3080);
    }
}
