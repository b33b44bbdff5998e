//! The sub-commands that ask a running compute: `status`, `configure`, `refresh`, `terminate`, `history`.
//!
//! | module | what lives there |
//! |---|---|
//! | `show` | answers in words |
//! | `waiting` | progress while an answer takes its time |
//! | `watch` | `status --watch` and `--until` |

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use compute_states::ComputeStatus;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};

use super::args::{ComputeArgs, Mode};
use super::client::{Answer, ClientError, Compute, Request, Status};
use super::options::{UsageFault, invalid};
use super::{Environment, ExitCode, Streams, plan};
use crate::catalog::show::visible;
use crate::limits;
use crate::secret::Secret;
use crate::telemetry::chain;

mod show;
mod waiting;
mod watch;

/// Where a compute's external server is unless something else is said.
const URL: &str = "http://127.0.0.1:3080";

/// Holds the address when `--url` does not.
const URL_VARIABLE: &str = "COMPUTE_CTL_URL";

/// Holds the token for a compute's external server when `--token` does not.
const TOKEN_VARIABLE: &str = "COMPUTE_CTL_TOKEN";

/// Says whether Postgres serves.
const READY: &str = "readyz";

/// Says whether the compute has been running.
const STARTED: &str = "startupz";

/// Which compute is asked for what.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    compute: Compute,
    act: Act,
    json: bool,
}

/// What a compute is asked for.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Status { watch: bool, until: Option<ComputeStatus>, timeout: Option<Duration> },
    Configure { file: PathBuf },
    Refresh,
    Terminate { mode: Mode, if_idle: bool },
    History { limit: Option<u32> },
}

impl Act {
    fn name(&self) -> &'static str {
        match self {
            Act::Status { .. } => "status",
            Act::Configure { .. } => "configure",
            Act::Refresh => "refresh",
            Act::Terminate { .. } => "terminate",
            Act::History { .. } => "history",
        }
    }
}

impl RemoteOptions {
    pub(super) fn new(args: ComputeArgs, act: Act, environment: Environment<'_>) -> Result<Self, UsageFault> {
        let compute = compute(args.url, args.token, environment)?;
        Ok(RemoteOptions { compute, act, json: args.json })
    }
}

/// The compute that arguments and environment name.
pub(super) fn compute(
    url: Option<String>,
    token: Option<Secret>,
    environment: Environment<'_>,
) -> Result<Compute, UsageFault> {
    let (name, url) = match url {
        Some(url) => ("--url", url),
        None => {
            let set = environment.text(URL_VARIABLE).filter(|url| !url.is_empty());
            (URL_VARIABLE, set.unwrap_or_else(|| URL.to_owned()))
        }
    };
    // An empty one is none, and computes take an empty header for a fault.
    let token = token.or_else(|| environment.text(TOKEN_VARIABLE).map(Secret::new));
    let token = token.filter(|token| !token.reveal().is_empty());
    Compute::new(&url, token).map_err(|fault| invalid(format!("invalid {name}: {fault}")))
}

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no runtime")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Compute(#[from] ClientError),
    #[error(
        "the compute at {at} has no conditional termination; nothing was done, and without --if-idle it would stop"
    )]
    Unconditional { at: String },
    /// Told already, with this outcome.
    #[error("the file cannot be sent")]
    File(ExitCode),
}

#[derive(Serialize)]
struct Failed {
    error: String,
}

/// What a terminated compute says.
#[derive(Deserialize)]
struct Terminated {
    #[serde(default)]
    lsn: Option<String>,
}

/// Asks, and shows the answer. Exit codes are those of the sub-command's help.
pub fn run(options: &RemoteOptions, streams: &mut Streams<'_>) -> ExitCode {
    match answered(options, streams) {
        Ok(exit) => exit,
        Err(Failure::File(exit)) => exit,
        Err(failure) => {
            // A message of the compute's may have several lines.
            let error = chain(&failure).lines().map(visible).collect::<Vec<_>>().join("\n");
            // Where nobody reads, the exit code has to do.
            let _ = match options.json {
                true => writeln!(streams.out, "{}", serde_json::json!(Failed { error })),
                false => writeln!(streams.err, "compute_ctl {}: {error}", options.act.name()),
            };
            match failure {
                Failure::Compute(ClientError::Refused { status: StatusCode::CONFLICT, .. })
                    if matches!(options.act, Act::Terminate { if_idle: true, .. }) =>
                {
                    ExitCode::Busy
                }
                // It answers, but with no status yet.
                Failure::Compute(ClientError::Refused {
                    status: StatusCode::SERVICE_UNAVAILABLE, ..
                }) if matches!(options.act, Act::Status { .. }) => ExitCode::NotServing,
                _ => ExitCode::Failure,
            }
        }
    }
}

fn answered(options: &RemoteOptions, streams: &mut Streams<'_>) -> Result<ExitCode, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    let compute = &options.compute;
    runtime.block_on(async {
        match &options.act {
            Act::Status { watch: false, until: None, .. } => {
                let (status, answer) = compute.status().await?;
                // By the status alone there is no telling whether Postgres serves on after a failed change, say.
                let ready = compute.probe(READY).await?;
                let serves = ready.unwrap_or_else(|| show::serves(status.status));
                let exit = if serves { ExitCode::Ok } else { ExitCode::NotServing };
                Ok(finish(options, &answer, &show::status(&status), exit, streams))
            }
            Act::Status { watch, until, timeout } => {
                let wanted = watch::Wanted { draw: *watch, until: *until, json: options.json };
                Ok(watch::watch(compute, wanted, *timeout, streams).await?)
            }
            Act::Configure { file } => configure(options, file, streams).await,
            Act::Refresh => {
                let answer = compute.ask(Request::post("refresh_configuration", limits::CLIENT_READ)).await?;
                Ok(finish(options, &answer, "the spec will be fetched again\n", ExitCode::Ok, streams))
            }
            Act::Terminate { mode, if_idle } => terminate(options, *mode, *if_idle, streams).await,
            Act::History { limit } => {
                let query = limit.map(|limit| ("limit", limit.to_string())).into_iter().collect();
                let answer = compute.ask(Request { query, ..Request::get("history") }).await?;
                let text = show::history(&compute.decoded(&answer.body)?);
                Ok(finish(options, &answer, &text, ExitCode::Ok, streams))
            }
        }
    })
}

/// The compute's own words, or ours.
fn finish(
    options: &RemoteOptions,
    answer: &Answer,
    text: &str,
    exit: ExitCode,
    streams: &mut Streams<'_>,
) -> ExitCode {
    match options.json {
        true => streams.finish(&format!("{}\n", String::from_utf8_lossy(&answer.body).trim_end()), exit),
        false => streams.finish(text, exit),
    }
}

async fn configure(
    options: &RemoteOptions,
    file: &Path,
    streams: &mut Streams<'_>,
) -> Result<ExitCode, Failure> {
    let (checked, text) = plan::read(file, options.json, streams).map_err(Failure::File)?;
    let compute = &options.compute;
    let request = Request { body: Some(plan::request(&checked, &text)), ..Request::post("configure", None) };
    let answer = waiting::with_progress(compute, "configuring", compute.ask(request), streams).await?;
    let status: Status = compute.decoded(&answer.body)?;
    Ok(finish(options, &answer, &show::configured(&status), ExitCode::Ok, streams))
}

async fn terminate(
    options: &RemoteOptions,
    mode: Mode,
    if_idle: bool,
    streams: &mut Streams<'_>,
) -> Result<ExitCode, Failure> {
    let compute = &options.compute;
    let condition = ("if_idle", "true".to_owned());
    let query = match (mode, if_idle) {
        (Mode::Fast, false) => vec![("mode", "fast".to_owned())],
        (Mode::Immediate, false) => vec![("mode", "immediate".to_owned())],
        // The original ignores the condition and wants a mode, so without one it does nothing. In ours it is the mode.
        (Mode::Fast, true) => vec![condition],
        (Mode::Immediate, true) if !compute.knows("/terminate", condition.0).await? => {
            return Err(Failure::Unconditional { at: compute.at() });
        }
        (Mode::Immediate, true) => vec![("mode", "immediate".to_owned()), condition],
    };
    let request = Request { query, ..Request::post("terminate", None) };
    let answer = waiting::with_progress(compute, "terminating", compute.ask(request), streams).await;
    let answer = match answer {
        Err(ClientError::Refused { at, status: StatusCode::BAD_REQUEST, error: Some(error) })
            if if_idle && error.contains("missing field `mode`") =>
        {
            return Err(Failure::Unconditional { at });
        }
        answer => answer?,
    };
    // One deployment of the original's answers without a body.
    let lsn = serde_json::from_slice(&answer.body).ok().and_then(|Terminated { lsn }| lsn);
    let was = if answer.status == StatusCode::CREATED { "was" } else { "is" };
    let text = match lsn {
        Some(lsn) => format!("Postgres {was} down, the write-ahead log ends at {lsn}\n"),
        None => format!("Postgres {was} down\n"),
    };
    Ok(finish(options, &answer, &text, ExitCode::Ok, streams))
}

#[cfg(test)]
mod tests;
