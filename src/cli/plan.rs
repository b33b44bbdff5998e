//! The sub-command `plan`: what a spec would change, on a server or on a running compute. Nothing is changed.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::client::{self, Compute};
use super::options::{UsageFault, privileged_role_name};
use super::remote;
use super::{Environment, ExitCode, Streams, args::PlanArgs, check};
use crate::catalog::show::{self, ScriptError, Style, visible};
use crate::catalog::{ApplyError, ConnectError, ConnectionSettings, Options, PlanDocument, Profile};
use crate::limits;
use crate::secret::Secret;
use crate::spec::document::{ComputeConfig, ComputeSpec};
use crate::spec::fault::{self, Checked, Fault, JsonPath, Severity};
use crate::spec::resolve::{self, ResolveError, ResolvedSpec};
use crate::telemetry::chain;

/// What `plan` is asked for.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// The config or spec file; `-` for standard input.
    pub file: PathBuf,
    /// Whom to ask.
    pub target: Target,
    /// In which form to answer.
    pub form: Form,
    /// Whether to use colours.
    pub color: Color,
    /// Whether the environment wants none unless `--color` says so.
    pub no_color: bool,
    /// List every step.
    pub all: bool,
}

/// Whom to ask what would change.
#[derive(Clone, Debug)]
pub enum Target {
    /// A server.
    Server {
        /// How to reach it, as a superuser.
        connstr: Secret,
        /// Role whose members stand in for superusers.
        privileged_role: String,
    },
    /// A running compute, which knows the rest.
    Compute(Compute),
}

/// In which form to print a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Words.
    People,
    /// One JSON object.
    Json,
    /// A script for `psql`.
    Sql,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl PlanOptions {
    pub(super) fn new(args: PlanArgs, environment: Environment<'_>) -> Result<Self, UsageFault> {
        let target = match args.connstr {
            Some(connstr) => {
                privileged_role_name(&args.privileged_role_name)?;
                Target::Server { connstr, privileged_role: args.privileged_role_name }
            }
            None => Target::Compute(remote::compute(args.url, args.token, environment)?),
        };
        let is_set = |name| (environment.var)(name).is_some_and(|value: OsString| !value.is_empty());
        let dumb = environment.text("TERM").is_some_and(|terminal| terminal == "dumb");
        let form = match (args.json, args.sql) {
            (true, _) => Form::Json,
            (_, true) => Form::Sql,
            _ => Form::People,
        };
        Ok(Self {
            file: args.file,
            target,
            form,
            color: args.color,
            no_color: is_set("NO_COLOR") || dumb,
            all: args.all,
        })
    }

    fn has_color(&self, terminal: bool) -> bool {
        match self.color {
            Color::Auto => terminal && !self.no_color,
            Color::Always => true,
            Color::Never => false,
        }
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
enum PlanFailure {
    #[error("no runtime")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Catalog(#[from] ApplyError),
    #[error(transparent)]
    Compute(#[from] client::ClientError),
    #[error("the server did not answer within {:?}", limits::PLAN)]
    TimedOut,
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Script(#[from] ScriptError),
    #[error("the plan cannot be written")]
    Json(#[from] serde_json::Error),
}

impl PlanFailure {
    /// With its causes, but for what would quote a connection string.
    fn tell(&self) -> String {
        let text = match self {
            Self::Connect(error @ ConnectError::Settings(_)) => error.to_string(),
            other => chain(other),
        };
        // A message of the server's has several lines.
        text.lines().map(visible).collect::<Vec<_>>().join("\n")
    }
}

#[derive(Serialize)]
struct Failed {
    error: String,
}

/// Prints what a spec would change.
///
/// Ends with [`ExitCode::Ok`] when that is nothing and with [`ExitCode::Changes`] otherwise; with
/// [`ExitCode::BadConfig`] or [`ExitCode::Unreadable`] for a file that `check` would refuse, and with
/// [`ExitCode::Failure`] when there is no plan, because nobody answers or because the spec is impossible there.
pub fn run(options: &PlanOptions, streams: &mut Streams<'_>) -> ExitCode {
    let json = options.form == Form::Json;
    let (checked, text) = match read(&options.file, json, streams) {
        Ok(read) => read,
        Err(exit) => return exit,
    };
    let shown = plan(options, checked, &text).and_then(|document| {
        let style = Style { color: options.has_color(streams.out_is_terminal), all: options.all };
        let text = match options.form {
            Form::People => document.for_people(style),
            Form::Json => document.to_json()? + "\n",
            Form::Sql => document.script()?,
        };
        Ok((text, if document.is_empty() { ExitCode::Ok } else { ExitCode::Changes }))
    });
    let (text, exit) = match shown {
        Ok(shown) => shown,
        Err(failure) => {
            let error = failure.tell();
            // Where nobody reads, the exit code has to do.
            let _ = match json {
                true => writeln!(streams.out, "{}", serde_json::json!(Failed { error })),
                false => writeln!(streams.err, "compute_ctl plan: {error}"),
            };
            return ExitCode::Failure;
        }
    };
    streams.finish(&text, exit)
}

/// Reads and judges the file as `check` does, and tells what it finds in the same form.
pub(super) fn read(
    file: &Path,
    json: bool,
    streams: &mut Streams<'_>,
) -> Result<(Checked, String), ExitCode> {
    let stdin = Path::new("<stdin>");
    let (name, text) = match file == Path::new("-") {
        true => (stdin, fault::read_text(&mut *streams.input, stdin)),
        false => (file, fault::read(file)),
    };
    let (report, checked, exit) = match text {
        Err(error) => (check::Report::unreadable(&error), None, ExitCode::from(&error)),
        Ok(text) => {
            let (mut report, checked) = check::judge(name, &text);
            let checked = checked.filter(|_| report.is_ok());
            if checked.as_ref().is_some_and(|checked| checked.config.spec.is_none()) {
                report.refuse(Fault {
                    path: JsonPath::root().key("spec"),
                    position: None,
                    severity: Severity::Fault,
                    found: "missing".to_owned(),
                    expected: "a spec, which says what is to be there".to_owned(),
                });
            }
            (report, checked.map(|checked| (checked, text)), ExitCode::BadConfig)
        }
    };
    let failed = !report.is_ok();
    // Where nobody reads, the exit code has to do.
    let _ = if failed && json {
        report.write(name, true, streams.out)
    } else {
        report.write_findings(name, streams.err)
    };
    checked.filter(|_| !failed).ok_or(exit)
}

fn plan(options: &PlanOptions, checked: Checked, text: &str) -> Result<PlanDocument, PlanFailure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PlanFailure::Runtime)?;
    runtime.block_on(async {
        match &options.target {
            Target::Compute(compute) => Ok(compute.plan(request(&checked, text)).await?),
            Target::Server { connstr, privileged_role } => {
                let ComputeConfig { spec: Some(spec), .. } = checked.config else {
                    unreachable!("a config without a spec was refused")
                };
                let reading = tokio::time::timeout(limits::PLAN, inspect(&spec, connstr, privileged_role));
                reading.await.map_err(|_| PlanFailure::TimedOut)?
            }
        }
    })
}

/// The document as it stands in the file; a bare spec in the shape which computes take.
pub(super) fn request(checked: &Checked, text: &str) -> String {
    if checked.spec_path == JsonPath::root() {
        format!("{{\"spec\":{text},\"compute_ctl_config\":{{\"jwks\":{{\"keys\":[]}}}}}}")
    } else {
        text.to_owned()
    }
}

async fn inspect(
    spec: &ComputeSpec,
    connstr: &Secret,
    privileged_role: &str,
) -> Result<PlanDocument, PlanFailure> {
    let profile = Profile::of(&ResolvedSpec::new(&resolve::with_placeholders_filled(spec))?);
    let settings = ConnectionSettings::new(connstr, profile)?;
    let options = Options { privileged_role: privileged_role.to_owned(), profile, concurrency: 1 };
    Ok(show::inspect(&settings, spec, &options, &CancellationToken::new()).await?)
}
