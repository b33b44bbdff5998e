//! The arguments as they are written. What they mean together is for [`super::options`] to say.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand};
use compute_states::ComputeStatus;
use compute_states::diagram::{Format, Slice};

use super::plan::Color;
use super::{LogFormat, RestartPolicy};
use crate::activity::Source;
use crate::limits;
use crate::secret::Secret;

const EXIT_CODES: &str = "\
Exit codes:
   0 stopped as asked            71 PostgreSQL version not served
   1 failed start, crash         72 port in use
   2 bad arguments               73 data directory refused
  65 bad journal                 74 final safekeeper sync failed
  66 file unreadable             75 control plane not reached
  69 no PostgreSQL found         76 PostgreSQL had to be killed
  70 internal fault              77 privileges cannot be dropped
                                 78 config or spec invalid
PostgreSQL's own code is passed on when it ends by itself.";

const PLAN_HELP: &str = "\
Settings and the data directory are not compared. Nothing is changed: the server is asked in a session in which it
refuses to change anything. Secrets are shown nowhere; in the script of --sql they are variables to be filled in.

Exit codes:
   0 nothing to change
   1 no plan: nobody answers, or the spec is impossible there
   2 there is something to change (or bad arguments, told on stderr)
  66 file unreadable
  78 config or spec invalid";

const CLIENT_EXITS: &str = "\
Exit codes:
   0 done
   1 no answer, or a refusal, which is told on stderr
   2 bad arguments";

const STATUS_HELP: &str = "\
Whether Postgres serves is what `/readyz` says; of a compute without it, the status tells. A status that has gone by
was reached. A wait ends with `terminated` and with `failed`, unless Postgres has crashed: it may be started again,
so the wait goes on as long as the compute answers.

Exit codes:
   0 Postgres serves, or the status waited for was reached
   1 no answer
   2 bad arguments
   3 the compute answers, but Postgres does not serve; or the status waited for was not reached";

const CONFIGURE_HELP: &str = "\
The file is judged as by `check` before anything is sent.

Exit codes:
   0 the compute is what the spec says
   1 it is not, for the reason told on stderr; or no answer
   2 bad arguments
  66 file unreadable
  78 config or spec invalid";

const TERMINATE_HELP: &str = "\
Prints the end of the write-ahead log, where the storage knows one. With --if-idle a compute that has no conditional
termination is left alone: exit code 1.

Exit codes:
   0 Postgres is down
   1 it may not be, for the reason told on stderr; or no answer
   2 bad arguments
   4 with --if-idle: somebody uses Postgres, and nothing was done";

const TOKEN_HELP: &str = "\
A key can be made by `openssl genpkey -algorithm ed25519 -out key.pem`; `--jwks` prints what goes into
`compute_ctl_config.jwks` of the config.";

/// Entrypoint and supervisor of a Postgres compute node.
///
/// Without a sub-command the flags start the node, like `run`.
#[derive(Debug, Parser)]
#[command(name = "compute_ctl", version, after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start the node; the same as the flags alone.
    #[command(after_help = EXIT_CODES)]
    Run(Box<NodeArgs>),
    /// Judge a config or spec file: names path, line and expected form of each fault.
    Check {
        /// The file: `{spec, compute_ctl_config}`, or a bare spec.
        file: PathBuf,
        /// Print the findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what a spec would change of roles and databases, and change nothing.
    #[command(after_help = PLAN_HELP)]
    Plan(Box<PlanArgs>),
    /// Print the state machine, drawn from the code.
    Diagram {
        /// Which part.
        #[arg(long, value_parser = one_of::<Slice, _>(Slice::ALL.map(Slice::name)), default_value = "overview")]
        slice: Slice,
        /// In which form.
        #[arg(long, value_parser = one_of::<Format, _>(Format::ALL.map(Format::name)), default_value = "mermaid")]
        format: Format,
    },
    /// Show what a running compute is doing.
    #[command(after_help = STATUS_HELP)]
    Status {
        /// Go on showing it, and every change of its state, until it is gone or Ctrl-C.
        #[arg(long, short)]
        watch: bool,
        /// Wait until it has this status; a compute that does not answer yet is asked again.
        #[arg(long, value_name = "STATUS", value_parser = status)]
        until: Option<ComputeStatus>,
        /// How long to wait at most: `30s`, `5m`.
        #[arg(long, value_name = "DURATION", value_parser = duration, requires = "until")]
        timeout: Option<Duration>,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Bring a running compute to what a spec says, and wait until it is.
    #[command(after_help = CONFIGURE_HELP)]
    Configure {
        /// The file: `{spec, compute_ctl_config}`, or a bare spec; `-` for standard input.
        file: PathBuf,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Have a running compute fetch its spec again.
    #[command(after_help = CLIENT_EXITS)]
    Refresh {
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Stop Postgres in order, then the compute, and wait until Postgres is down.
    #[command(after_help = TERMINATE_HELP)]
    Terminate {
        /// Whether the compute stays 30 seconds longer, so that its last status can be read.
        #[arg(long, value_enum, default_value = "fast")]
        mode: Mode,
        /// Only if nobody uses Postgres.
        #[arg(long)]
        if_idle: bool,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// List the last changes of a running compute's state, with their causes.
    #[command(after_help = CLIENT_EXITS)]
    History {
        /// How many at most, the latest.
        #[arg(long, short = 'n', value_name = "NUMBER")]
        limit: Option<u32>,
        #[command(flatten)]
        compute: ComputeArgs,
    },
    /// Sign a token for testing, or print the key set that verifies it.
    Token(Box<TokenArgs>),
    /// Print a script by which a shell completes command lines of this program.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page.
    Man {
        /// Write it and those of all sub-commands into this directory instead.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Run a journal through the state machine again and compare.
    Replay {
        /// The journal, as written by `--journal`.
        journal: PathBuf,
    },
}

/// Which compute, and how to answer.
#[derive(Debug, Args)]
pub(super) struct ComputeArgs {
    /// The compute's external server; http://127.0.0.1:3080 if absent. [env: COMPUTE_CTL_URL]
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<String>,

    /// Bearer token for it. [env: COMPUTE_CTL_TOKEN]
    #[arg(long, value_name = "TOKEN", value_parser = secret)]
    pub(super) token: Option<Secret>,

    /// Print the compute's own answer, JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// How a compute ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Mode {
    /// Stays for 30 seconds after Postgres is down, so that its last status can be read.
    Fast,
    /// Ends as soon as Postgres is down.
    Immediate,
}

#[derive(Debug, Args)]
#[command(after_help = TOKEN_HELP)]
pub(super) struct TokenArgs {
    /// The private key, Ed25519 or RSA: PEM, or DER in PKCS #8.
    #[arg(long, value_name = "FILE")]
    pub(super) key: PathBuf,

    /// For this compute.
    #[arg(long, short = 'i', value_name = "ID", required_unless_present_any = ["admin", "jwks"])]
    pub(super) compute_id: Option<String>,

    /// For any compute.
    #[arg(long, conflicts_with = "compute_id")]
    pub(super) admin: bool,

    /// How long it is good for: `10m`, `12h`.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) life: Option<Duration>,

    /// Print the key set that verifies its tokens instead.
    #[arg(long, conflicts_with_all = ["compute_id", "admin", "life"])]
    pub(super) jwks: bool,
}

/// Connection strings are taken as plain text and judged later: the parser would quote a bad one, password
/// included, in its message.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// Data directory; required unless --standalone.
    #[arg(short = 'D', long, value_name = "DATADIR")]
    pub(super) pgdata: Option<PathBuf>,

    /// How this program reaches Postgres, as a superuser; required unless --standalone. Port 5432 if absent.
    #[arg(short = 'C', long, value_name = "DATABASE_URL", value_parser = secret)]
    pub(super) connstr: Option<Secret>,

    /// The `postgres` executable; searched for when absent. [env: POSTGRES_PATH]
    #[arg(short = 'b', long, value_name = "PATH")]
    pub(super) pgbin: Option<PathBuf>,

    /// Config file `{spec, compute_ctl_config}`.
    #[arg(short = 'c', long, value_name = "FILE", conflicts_with_all = ["control_plane_uri", "spec_path"])]
    pub(super) config: Option<PathBuf>,

    /// Legacy: a bare spec, or a config file.
    #[arg(short = 'S', long, alias = "spec", value_name = "FILE", conflicts_with = "control_plane_uri")]
    pub(super) spec_path: Option<PathBuf>,

    /// Control plane to fetch the config from.
    #[arg(
        short = 'p',
        long,
        value_name = "CONTROL_PLANE_API_BASE_URL",
        requires = "compute_id",
        conflicts_with = "standalone"
    )]
    pub(super) control_plane_uri: Option<String>,

    /// Identity of this compute; `local` with -S or --standalone, required otherwise.
    #[arg(short = 'i', long, value_name = "ID")]
    pub(super) compute_id: Option<String>,

    /// Base URL of remote extension archives.
    #[arg(short = 'r', long, value_name = "URL")]
    pub(super) remote_ext_base_url: Option<String>,

    /// Port of the external HTTP server; 3080 if absent, 0 for any free one.
    #[arg(long, value_name = "PORT")]
    pub(super) external_http_port: Option<u16>,

    /// Port of the internal HTTP server; 3081 if absent, 0 for any free one.
    #[arg(long, value_name = "PORT")]
    pub(super) internal_http_port: Option<u16>,

    /// Port of the external HTTP server; with --lakebase-mode true the internal one is the next higher.
    #[arg(long, value_name = "PORT", conflicts_with_all = ["external_http_port", "internal_http_port"])]
    pub(super) http_port: Option<u16>,

    /// Role whose members may do what a superuser would: lower-case letters and `_`.
    #[arg(long, value_name = "NAME", default_value = "neon_superuser")]
    pub(super) privileged_role_name: String,

    /// Control group handed to the VM monitor; `neon-postgres` if absent.
    #[arg(long, value_name = "NAME")]
    pub(super) cgroup: Option<String>,

    /// Connection string handed to the VM monitor.
    #[arg(long, value_name = "KEYWORDS", value_parser = secret)]
    pub(super) filecache_connstr: Option<Secret>,

    /// Address of the VM monitor; 0.0.0.0:10301 if absent.
    #[arg(long, value_name = "IP:PORT")]
    pub(super) vm_monitor_addr: Option<SocketAddr>,

    /// Resize swap at start as the spec says.
    #[arg(long)]
    pub(super) resize_swap_on_bind: bool,

    /// Mount point whose disk quota is set at start as the spec says.
    #[arg(long, value_name = "MOUNT_POINT")]
    pub(super) set_disk_quota_for_fs: Option<String>,

    /// Seconds between two looks at the installed extensions; 3600 if absent.
    #[arg(long, value_name = "SECONDS")]
    pub(super) installed_extensions_collection_interval: Option<u64>,

    /// Development: side processes survive a termination signal.
    #[arg(long)]
    pub(super) dev: bool,

    /// Seconds after which a start that is not done ends the program.
    #[arg(long, value_name = "SECONDS")]
    pub(super) pg_init_timeout: Option<u64>,

    /// Behaviour of one deployment flavour; with a directory for log files too. [env: COMPUTE_CTL_LOG_DIRECTORY]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = false)]
    pub(super) lakebase_mode: bool,

    /// Everything defaulted, for a person at a terminal.
    #[arg(long)]
    pub(super) standalone: bool,

    /// Unprivileged user Postgres runs as when this program is root.
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    pub(super) user: String,

    /// What follows a crash of Postgres.
    #[arg(long, value_enum, default_value = "never")]
    pub(super) restart: RestartPolicy,

    /// How long a crashed node stays, so that its status can be read: `300ms`, `5s`, `1m`.
    #[arg(long, value_name = "DURATION", value_parser = linger, default_value = "300ms")]
    pub(super) crash_linger: Duration,

    /// Replace a data directory that holds a cluster of someone else's. Never one with a live server.
    #[arg(long)]
    pub(super) overwrite_foreign_pgdata: bool,

    /// File the journal of the state machine is written to after a failure.
    #[arg(long, value_name = "FILE")]
    pub(super) journal: Option<PathBuf>,

    /// Directory for what can be made again, such as initdb templates.
    #[arg(long, value_name = "DIR")]
    pub(super) cache_dir: Option<PathBuf>,

    /// Kinds of activity that neither make the compute active nor hold back a termination that is to happen only
    /// when it is idle. They are counted and shown all the same.
    #[arg(long, value_name = "SOURCES", value_enum, value_delimiter = ',')]
    pub(super) idle_ignores: Vec<Source>,

    /// Form of the log: lines for people, or one JSON object a line; `text` if absent. [env: COMPUTE_CTL_LOG_FORMAT]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(super) log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The file: `{spec, compute_ctl_config}`, or a bare spec; `-` for standard input.
    pub(super) file: PathBuf,

    /// Compare with this server, asked as its superuser.
    #[arg(short = 'C', long, value_name = "DATABASE_URL", value_parser = secret, conflicts_with = "url")]
    pub(super) connstr: Option<Secret>,

    /// Compare with this running compute; http://127.0.0.1:3080 if absent. [env: COMPUTE_CTL_URL]
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<String>,

    /// Bearer token for the running compute. [env: COMPUTE_CTL_TOKEN]
    #[arg(long, value_name = "TOKEN", value_parser = secret, conflicts_with = "connstr")]
    pub(super) token: Option<Secret>,

    /// Print the plan as JSON.
    #[arg(long, conflicts_with = "sql")]
    pub(super) json: bool,

    /// Print a script for psql that does the same.
    #[arg(long)]
    pub(super) sql: bool,

    /// When to use colours. [env: NO_COLOR]
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) color: Color,

    /// With --connstr: role whose members may do what a superuser would.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "neon_superuser",
        requires = "connstr",
        conflicts_with = "url"
    )]
    pub(super) privileged_role_name: String,

    /// List every step, however many there are.
    #[arg(long)]
    pub(super) all: bool,
}

/// Any text. Judged later, by code which does not quote it.
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// A whole number with a unit: `ms`, `s`, `m` or `h`. A bare `0` needs none.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "a whole number with a unit: ms, s, m or h".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "" if number == 0 => Some(0),
        _ => return Err(expected()),
    };
    millis.map(Duration::from_millis).ok_or_else(|| "a shorter time".to_owned())
}

/// The same, within its bound.
fn linger(text: &str) -> Result<Duration, String> {
    let bound = limits::CRASH_LINGER_MAX;
    let within = |linger: Duration| (linger <= bound).then_some(linger);
    within(duration(text)?).ok_or_else(|| format!("at most {} seconds", bound.as_secs()))
}

/// A status by the name which logs and errors use, or by that in `/status`.
fn status(text: &str) -> Result<ComputeStatus, String> {
    let text = text.replace('_', "-");
    let found = ComputeStatus::ALL.into_iter().find(|status| status.to_string() == text);
    found.ok_or_else(|| format!("one of {}", ComputeStatus::ALL.map(|status| status.to_string()).join(", ")))
}

/// A parser for names which a type of the state machine's crate reads by itself.
fn one_of<T, const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_may_be_written_as_in_either_place() {
        assert_eq!(status("configuration-pending"), Ok(ComputeStatus::ConfigurationPending));
        assert_eq!(status("configuration_pending"), Ok(ComputeStatus::ConfigurationPending));
        assert!(status("Running").is_err());
    }

    #[test]
    fn durations_need_a_unit_and_have_a_bound() {
        assert_eq!(linger("300ms"), Ok(limits::CRASH_LINGER));
        assert_eq!(linger("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(linger("60m"), Ok(limits::CRASH_LINGER_MAX));
        assert_eq!(linger("0"), Ok(Duration::ZERO));
        assert_eq!(linger("1h"), Ok(limits::CRASH_LINGER_MAX));
        assert_eq!(duration("36h"), Ok(Duration::from_secs(129_600)));
        assert_eq!(duration("61m"), Ok(Duration::from_secs(3660)));
        for bad in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "5 s",
            "61m",
            "2h",
            "99999999999999999999s",
            "18446744073709551615m",
        ] {
            assert!(linger(bad).is_err(), "{bad}");
        }
    }
}
