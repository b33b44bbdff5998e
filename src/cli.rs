//! Command line, environment and exit codes.
//!
//! The original's flat flags start the node; sub-commands are additions. [`parse`] turns arguments and
//! environment into one [`Invocation`], whose [`RunOptions`] are checked as far as that is possible without
//! touching anything: a bad flag ends the program before a directory is made or a port is bound.

mod args;
pub mod check;
mod client;
pub mod diagram;
mod exit;
pub mod manual;
mod options;
pub mod plan;
pub mod remote;
mod streams;
pub mod token;

#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches};
use compute_states::diagram::{Format, Slice};

pub use client::{ClientError, Compute};
pub use exit::ExitCode;
pub use options::{Connstr, LogFormat, Port, RestartPolicy, RunOptions, SpecSource};
pub use streams::Streams;

/// What the program is asked to do.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// Start the node: the flat flags, or the sub-command `run`.
    Run(Box<RunOptions>),
    /// Judge a config or spec file.
    Check {
        /// The file.
        file: PathBuf,
        /// Print findings as JSON.
        json: bool,
    },
    /// Show what a spec would change.
    Plan(Box<plan::PlanOptions>),
    /// Print the state machine.
    Diagram {
        /// Which part.
        slice: Slice,
        /// In which form.
        format: Format,
    },
    /// Run a journal through the state machine again.
    Replay {
        /// The journal, JSON lines.
        journal: PathBuf,
    },
    /// Ask a running compute for something.
    Remote(Box<remote::RemoteOptions>),
    /// Sign a token for testing.
    Token(Box<token::TokenOptions>),
    /// Print what a shell completes command lines with.
    Completions(clap_complete::Shell),
    /// Print the man page, or write all of them into a directory.
    Man {
        /// The directory.
        dir: Option<PathBuf>,
    },
}

/// What options depend on besides the arguments. Handed in, so that tests need not change the process.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// Reads an environment variable.
    pub var: &'a dyn Fn(&str) -> Option<OsString>,
    /// Whether the program runs as root.
    pub root: bool,
}

impl Environment<'_> {
    /// That of this process.
    pub fn process() -> Environment<'static> {
        Environment { var: &|name| std::env::var_os(name), root: nix::unistd::geteuid().is_root() }
    }

    fn text(&self, name: &str) -> Option<String> {
        (self.var)(name)?.into_string().ok()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        (self.var)(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    fn has(&self, name: &str) -> bool {
        (self.var)(name).is_some()
    }
}

impl fmt::Debug for Environment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Reads the command line, program name first.
///
/// The error prints itself: call [`clap::Error::exit`], which ends with [`ExitCode::Usage`] for a fault and 0
/// for `--help`.
pub fn parse<I>(arguments: I, environment: Environment<'_>) -> Result<Invocation, clap::Error>
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
    let mut command = args::Cli::command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    let cli = args::Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    let usage = |fault: options::UsageFault| command.clone().error(fault.kind, fault.message);
    let run = |args| {
        let options = RunOptions::new(args, environment).map_err(usage)?;
        Ok(Invocation::Run(Box::new(options)))
    };
    let remote = |args, act| {
        let options = remote::RemoteOptions::new(args, act, environment).map_err(usage)?;
        Ok(Invocation::Remote(Box::new(options)))
    };
    match cli.command {
        None => run(cli.node),
        Some(args::Command::Run(node)) => run(*node),
        Some(args::Command::Check { file, json }) => Ok(Invocation::Check { file, json }),
        Some(args::Command::Plan(args)) => {
            let options = plan::PlanOptions::new(*args, environment).map_err(usage)?;
            Ok(Invocation::Plan(Box::new(options)))
        }
        Some(args::Command::Diagram { slice, format }) => Ok(Invocation::Diagram { slice, format }),
        Some(args::Command::Replay { journal }) => Ok(Invocation::Replay { journal }),
        Some(args::Command::Status { watch, until, timeout, compute }) => {
            remote(compute, remote::Act::Status { watch, until, timeout })
        }
        Some(args::Command::Configure { file, compute }) => remote(compute, remote::Act::Configure { file }),
        Some(args::Command::Refresh { compute }) => remote(compute, remote::Act::Refresh),
        Some(args::Command::Terminate { mode, if_idle, compute }) => {
            remote(compute, remote::Act::Terminate { mode, if_idle })
        }
        Some(args::Command::History { limit, compute }) => remote(compute, remote::Act::History { limit }),
        Some(args::Command::Token(args)) => {
            Ok(Invocation::Token(Box::new(token::TokenOptions::new(*args).map_err(usage)?)))
        }
        Some(args::Command::Completions { shell }) => Ok(Invocation::Completions(shell)),
        Some(args::Command::Man { dir }) => Ok(Invocation::Man { dir }),
    }
}
