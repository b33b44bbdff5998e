//! What the arguments and the environment come to: one plain struct for the rest of the program.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use clap::error::ErrorKind;
use reqwest::Url;

use super::Environment;
use super::args::NodeArgs;
use crate::activity::Source;
use crate::secret::Secret;

/// Ports used when nothing else is said.
const EXTERNAL_HTTP_PORT: u16 = 3080;
const INTERNAL_HTTP_PORT: u16 = 3081;
const POSTGRES_PORT: u16 = 5432;

/// Everything `run` needs, checked as far as that goes without touching anything.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Data directory, absolute. With `--standalone` and no `-D` a default, whose parents may not exist yet.
    pub pgdata: PathBuf,
    /// How this program reaches Postgres.
    pub connstr: Connstr,
    /// Port of Postgres. With `--standalone` and no `-C` another one may be taken when it is in use, and then
    /// [`Connstr::with_port`] says how to get there.
    pub postgres_port: Port,
    /// The `postgres` executable, if named by `--pgbin` or `POSTGRES_PATH`; otherwise it is searched for.
    pub pgbin: Option<PathBuf>,
    /// Where the spec comes from.
    pub source: SpecSource,
    /// Identity of this compute; `local` when none was given with `-S` or `--standalone`.
    pub compute_id: String,
    /// Port of the external HTTP server.
    pub external_http_port: Port,
    /// Port of the internal HTTP server.
    pub internal_http_port: Port,
    /// Role whose members stand in for superusers: one or more of `a` to `z` and `_`.
    pub privileged_role_name: String,
    /// Whether side processes survive a termination signal.
    pub dev: bool,
    /// Whether everything is defaulted for a person at a terminal: loopback only, no token needed.
    pub standalone: bool,
    /// Unprivileged user Postgres runs as when this program is root.
    pub user: String,
    /// What follows a crash of Postgres.
    pub restart: RestartPolicy,
    /// How long a crashed node stays to be looked at.
    pub crash_linger: Duration,
    /// How often a preparation of the data directory that met something which may pass is tried again, if not as
    /// often as in the original.
    pub storage_retries: Option<u16>,
    /// Whether a data directory that holds someone else's cluster may be replaced.
    pub overwrite_foreign_pgdata: bool,
    /// File the journal is written to after a failure.
    pub journal: Option<PathBuf>,
    /// Directory for what can be made again. May not exist yet.
    pub cache_dir: PathBuf,
    /// Kinds of activity that do not count.
    pub idle_ignores: Vec<Source>,
    /// How often installed extensions are looked at until a spec says otherwise, if not as in the original.
    pub extensions_interval: Option<Duration>,
    /// Behaviour of one deployment flavour.
    pub lakebase_mode: bool,
    /// The instance this compute runs in, as that flavour names it.
    pub instance_id: Option<String>,
    /// Form of the log.
    pub log_format: LogFormat,
    /// Directory for log files of that flavour, absolute.
    pub log_directory: Option<PathBuf>,
    not_yet_served: Vec<String>,
}

/// Where the spec comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpecSource {
    /// `--config`: a config file, read again by a refresh.
    Config(PathBuf),
    /// The legacy `--spec-path`: a bare spec or a config file.
    Spec(PathBuf),
    /// `--control-plane-uri`.
    ControlPlane {
        /// Base URL without a slash at its end.
        base: String,
        /// Bearer token from `NEON_CONTROL_PLANE_TOKEN`; empty when that is not set.
        token: Secret,
    },
    /// `--standalone` alone: a spec of this program's own making.
    Standalone,
}

/// A port to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// This one and no other; 0 for any free one.
    Exact(u16),
    /// This one, or any free one when it is in use.
    Preferred(u16),
}

impl Port {
    /// The number wanted.
    pub fn number(self) -> u16 {
        match self {
            Self::Exact(port) | Self::Preferred(port) => port,
        }
    }
}

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What follows a crash of Postgres.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RestartPolicy {
    /// End with Postgres's code.
    #[default]
    Never,
    /// Start again, within a budget.
    OnFailure,
}

/// How this program reaches Postgres: text that reads both as a URL and as a PostgreSQL connection string.
#[derive(Clone, PartialEq, Eq)]
pub struct Connstr {
    url: Url,
}

impl Connstr {
    /// Checks a connection string. The error says what is wrong without quoting it.
    fn new(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("no URL: {error}"))?;
        if !["postgres", "postgresql"].contains(&url.scheme()) {
            return Err("the scheme must be `postgresql`".to_owned());
        }
        // Its errors may quote a parameter, so only the fact is told.
        let config: tokio_postgres::Config =
            text.parse().map_err(|_| "a URL, but no PostgreSQL connection string".to_owned())?;
        if config.get_hosts().len() != 1 || config.get_ports().len() > 1 {
            return Err("exactly one host is needed".to_owned());
        }
        if config.get_ports() == [0] {
            return Err("the port cannot be 0".to_owned());
        }
        Ok(Self { url })
    }

    /// The whole string, password included.
    pub fn reveal(&self) -> &str {
        self.url.as_str()
    }

    /// As the PostgreSQL client takes it.
    pub fn config(&self) -> tokio_postgres::Config {
        self.reveal().parse().expect("checked when it was made, and only the port changed since")
    }

    /// The port; 5432 if the string names none.
    pub fn port(&self) -> u16 {
        self.config().get_ports().first().copied().unwrap_or(POSTGRES_PORT)
    }

    /// The same with another port.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        let mut url = self.url.clone();
        // Only a URL without a host has no place for a port, and its port is in the parameters.
        if url.set_port(Some(port)).is_err() {
            let others: Vec<(String, String)> =
                url.query_pairs().into_owned().filter(|(name, _)| name != "port").collect();
            url.query_pairs_mut().clear().extend_pairs(others).append_pair("port", &port.to_string());
        }
        Self { url }
    }

    /// Whether it leads to a TCP port rather than to a Unix socket.
    fn is_tcp(&self) -> bool {
        matches!(self.config().get_hosts(), [tokio_postgres::config::Host::Tcp(_)])
    }
}

/// Without user, password and parameters.
impl fmt::Debug for Connstr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connstr(port {})", self.port())
    }
}

/// A fault in the arguments.
pub(super) struct UsageFault {
    pub(super) kind: ErrorKind,
    pub(super) message: String,
}

pub(super) fn invalid(message: impl Into<String>) -> UsageFault {
    UsageFault { kind: ErrorKind::ValueValidation, message: message.into() }
}

fn missing(message: impl Into<String>) -> UsageFault {
    UsageFault { kind: ErrorKind::MissingRequiredArgument, message: message.into() }
}

impl RunOptions {
    pub(super) fn new(args: NodeArgs, environment: Environment<'_>) -> Result<Self, UsageFault> {
        let not_yet_served = not_yet_served(&args, environment)?;
        let legacy = args.spec_path.is_some();
        let source = match (args.config, args.spec_path, args.control_plane_uri) {
            (Some(file), _, _) => SpecSource::Config(absolute(file)),
            (_, Some(file), _) => SpecSource::Spec(absolute(file)),
            (_, _, Some(base)) => SpecSource::ControlPlane {
                base: control_plane_base(&base)?,
                token: Secret::new(environment.text("NEON_CONTROL_PLANE_TOKEN").unwrap_or_default()),
            },
            _ if args.standalone => SpecSource::Standalone,
            _ => {
                return Err(missing(
                    "where the spec comes from is not said: give --config FILE, --spec-path FILE (legacy) or \
                     --control-plane-uri URL, or --standalone to go without",
                ));
            }
        };
        let pgdata = match args.pgdata {
            Some(pgdata) => pgdata,
            None if args.standalone => standalone_pgdata(environment),
            None => return Err(missing("--pgdata DATADIR is required (unless --standalone)")),
        };
        let compute_id = match args.compute_id {
            Some(id) if id.is_empty() => return Err(invalid("--compute-id must not be empty")),
            Some(id) => id,
            None if legacy || args.standalone => "local".to_owned(),
            None => return Err(missing("--compute-id ID is required (unless -S or --standalone)")),
        };
        let (connstr, postgres_port) = match args.connstr {
            Some(text) => {
                let connstr = Connstr::new(text.reveal())
                    .map_err(|fault| invalid(format!("invalid --connstr: {fault}")))?;
                let port = Port::Exact(connstr.port());
                (connstr, port)
            }
            None if args.standalone => {
                let text = format!("postgresql://cloud_admin@127.0.0.1:{POSTGRES_PORT}/postgres");
                (Connstr::new(&text).map_err(invalid)?, Port::Preferred(POSTGRES_PORT))
            }
            None => return Err(missing("--connstr DATABASE_URL is required (unless --standalone)")),
        };
        let or_default = |given: Option<u16>, default| match given {
            Some(port) => Port::Exact(port),
            None if args.standalone => Port::Preferred(default),
            None => Port::Exact(default),
        };
        let (external_http_port, internal_http_port) = match args.http_port {
            Some(port) if args.lakebase_mode => {
                let next = port.checked_add(1).filter(|_| port > 0).ok_or_else(|| {
                    invalid(
                        "--http-port needs a port from 1 to 65534, as the internal server takes the next one",
                    )
                })?;
                (Port::Exact(port), Port::Exact(next))
            }
            given => (
                or_default(given.or(args.external_http_port), EXTERNAL_HTTP_PORT),
                or_default(args.internal_http_port, INTERNAL_HTTP_PORT),
            ),
        };
        let mut ports = vec![("external HTTP", external_http_port), ("internal HTTP", internal_http_port)];
        if connstr.is_tcp() {
            ports.push(("PostgreSQL", postgres_port));
        }
        distinct(&ports)?;
        privileged_role_name(&args.privileged_role_name)?;
        if args.user.is_empty() {
            return Err(invalid("--user must not be empty"));
        }
        Ok(Self {
            pgdata: checked_pgdata(&pgdata)?,
            connstr,
            postgres_port,
            pgbin: args.pgbin.or_else(|| environment.path("POSTGRES_PATH")).map(program),
            source,
            compute_id,
            external_http_port,
            internal_http_port,
            privileged_role_name: args.privileged_role_name,
            dev: args.dev,
            standalone: args.standalone,
            user: args.user,
            restart: args.restart,
            crash_linger: args.crash_linger,
            storage_retries: storage_retries(environment)?,
            overwrite_foreign_pgdata: args.overwrite_foreign_pgdata,
            journal: args.journal.map(absolute),
            cache_dir: absolute(args.cache_dir.unwrap_or_else(|| cache_dir(environment))),
            idle_ignores: args.idle_ignores,
            extensions_interval: args.installed_extensions_collection_interval.map(Duration::from_secs),
            lakebase_mode: args.lakebase_mode,
            instance_id: environment.text("INSTANCE_ID").filter(|id| !id.is_empty()),
            log_format: match args.log_format {
                Some(format) => format,
                None => log_format(environment)?,
            },
            log_directory: environment.path(LOG_DIRECTORY).filter(|_| args.lakebase_mode).map(absolute),
            not_yet_served,
        })
    }

    /// Flags and variables that were given and do nothing yet, each with what is missing; to be logged as
    /// warnings at start.
    pub fn not_yet_served(&self) -> &[String] {
        &self.not_yet_served
    }
}

const LOG_FORMAT: &str = "COMPUTE_CTL_LOG_FORMAT";
const LOG_DIRECTORY: &str = "COMPUTE_CTL_LOG_DIRECTORY";

fn log_format(environment: Environment<'_>) -> Result<LogFormat, UsageFault> {
    match environment.text(LOG_FORMAT).as_deref() {
        None | Some("") => Ok(LogFormat::default()),
        Some(text) => LogFormat::from_str(text, false)
            .map_err(|_| invalid(format!("{LOG_FORMAT} must be text or json"))),
    }
}

/// The original's variable. It is for tests, which cannot wait for a minute.
const STORAGE_RETRIES: &str = "NEON_COMPUTE_TESTING_BASEBACKUP_RETRIES";

fn storage_retries(environment: Environment<'_>) -> Result<Option<u16>, UsageFault> {
    let number = |text: String| {
        text.parse()
            .map_err(|_| invalid(format!("{STORAGE_RETRIES} must be a number from 0 to {}", u16::MAX)))
    };
    environment.text(STORAGE_RETRIES).map(number).transpose()
}

/// Whether this is a name the privileged role may have.
pub(super) fn privileged_role_name(role: &str) -> Result<(), UsageFault> {
    if role.is_empty() || !role.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
        return Err(invalid("--privileged-role-name must consist of lower-case letters a to z and `_`"));
    }
    Ok(())
}

/// Independent of the directory we stand in, which is left when privileges are dropped.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// A bare name stays one: it is looked up in `PATH`.
fn program(path: PathBuf) -> PathBuf {
    if path.components().count() > 1 { absolute(path) } else { path }
}

/// Flags whose work is not built yet are still judged, so that a command line does not turn wrong once it is.
fn not_yet_served(args: &NodeArgs, environment: Environment<'_>) -> Result<Vec<String>, UsageFault> {
    if let Some(url) = &args.remote_ext_base_url {
        extension_base(url)?;
    }
    if let Some(connstr) = &args.filecache_connstr
        && connstr.reveal().parse::<tokio_postgres::Config>().is_err()
    {
        return Err(invalid("invalid --filecache-connstr: no PostgreSQL connection string"));
    }
    if args.set_disk_quota_for_fs.as_deref() == Some("") {
        return Err(invalid("--set-disk-quota-for-fs must name a mount point"));
    }
    let monitor = "the VM monitor is not built yet";
    let given = [
        (args.remote_ext_base_url.is_some(), "--remote-ext-base-url", "remote extensions are not built yet"),
        (args.cgroup.is_some(), "--cgroup", monitor),
        (args.filecache_connstr.is_some(), "--filecache-connstr", monitor),
        (args.vm_monitor_addr.is_some(), "--vm-monitor-addr", monitor),
        (environment.has("AUTOSCALING"), "AUTOSCALING", monitor),
        (args.resize_swap_on_bind, "--resize-swap-on-bind", "resizing swap is not built yet"),
        (args.set_disk_quota_for_fs.is_some(), "--set-disk-quota-for-fs", "disk quotas are not built yet"),
        (args.pg_init_timeout.is_some(), "--pg-init-timeout", "a start has its own fixed limit for now"),
        (
            args.lakebase_mode,
            "--lakebase-mode",
            "of this mode only the meaning of --http-port, the metric of attachments and log files are built yet",
        ),
        (args.dev, "--dev", "side processes are not built yet"),
        (
            environment.has(LOG_DIRECTORY) && !args.lakebase_mode,
            LOG_DIRECTORY,
            "log files belong to --lakebase-mode true; the log goes to stderr",
        ),
        (
            environment.has("INSTANCE_ID") && !args.lakebase_mode,
            "INSTANCE_ID",
            "deliberately without effect: requests are authorized all the same",
        ),
    ];
    let served = given.into_iter().filter(|(given, _, _)| *given);
    Ok(served.map(|(_, name, reason)| format!("{name} has no effect: {reason}")).collect())
}

/// Slashes at the end are cut, since paths are appended to the base as text.
fn control_plane_base(text: &str) -> Result<String, UsageFault> {
    let wrong = |what: &str| invalid(format!("invalid --control-plane-uri: {what}"));
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
        return Err(wrong("an http or https URL is needed"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("query and fragment have no place in a base URL"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// All slashes at the end are cut and one is put there, so that relative joins keep the path.
fn extension_base(text: &str) -> Result<Url, UsageFault> {
    let wrong = |what: &str| invalid(format!("invalid --remote-ext-base-url: {what}"));
    if text.contains(['?', '#']) {
        return Err(wrong("query and fragment have no place in a base URL"));
    }
    let url =
        Url::parse(&format!("{}/", text.trim_end_matches('/'))).map_err(|error| wrong(&error.to_string()))?;
    if url.cannot_be_a_base() {
        return Err(wrong("paths cannot be appended to it"));
    }
    Ok(url)
}

fn checked_pgdata(pgdata: &Path) -> Result<PathBuf, UsageFault> {
    let absolute =
        std::path::absolute(pgdata).map_err(|error| invalid(format!("invalid --pgdata: {error}")))?;
    // What ends in `..` may be the root as well, and has no name of its own to be marked as ours.
    if absolute.file_name().is_none() {
        return Err(invalid("invalid --pgdata: it must be a directory below another one"));
    }
    Ok(absolute)
}

fn distinct(ports: &[(&str, Port)]) -> Result<(), UsageFault> {
    for (at, (name, port)) in ports.iter().enumerate() {
        for (other_name, other) in &ports[..at] {
            // A preferred port gives way by itself, and 0 stands for a different one each time.
            if let (Port::Exact(port), Port::Exact(other)) = (port, other)
                && port == other
                && *port != 0
            {
                return Err(invalid(format!("port {port} is given to both {other_name} and {name}")));
            }
        }
    }
    Ok(())
}

/// As root below `/var/lib`, where the unprivileged user can get to; otherwise in the user's own state.
fn standalone_pgdata(environment: Environment<'_>) -> PathBuf {
    below(environment, "/var/lib", "XDG_STATE_HOME", ".local/state").join("pgdata")
}

fn cache_dir(environment: Environment<'_>) -> PathBuf {
    below(environment, "/var/cache", "XDG_CACHE_HOME", ".cache")
}

/// The places of the XDG base directory specification, or those of the file hierarchy standard for root.
fn below(environment: Environment<'_>, system: &str, variable: &str, home: &str) -> PathBuf {
    let base = if environment.root {
        PathBuf::from(system)
    } else {
        // The specification says that a relative path is to be ignored.
        let own = environment.path(variable).filter(|path| path.is_absolute());
        own.or_else(|| environment.path("HOME").map(|path| path.join(home)))
            .unwrap_or_else(std::env::temp_dir)
    };
    base.join("compute_ctl")
}
