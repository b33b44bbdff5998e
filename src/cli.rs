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
mod options;
pub mod plan;

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
    let run = |args| {
        RunOptions::new(args, environment)
            .map(|options| Invocation::Run(Box::new(options)))
            .map_err(|fault| command.clone().error(fault.kind, fault.message))
    };
    let plan = |args| {
        plan::PlanOptions::new(args, environment)
            .map(|options| Invocation::Plan(Box::new(options)))
            .map_err(|fault| command.clone().error(fault.kind, fault.message))
    };
    match cli.command {
        None => run(cli.node),
        Some(args::Command::Run(node)) => run(*node),
        Some(args::Command::Check { file, json }) => Ok(Invocation::Check { file, json }),
        Some(args::Command::Plan(args)) => plan(*args),
        Some(args::Command::Diagram { slice, format }) => Ok(Invocation::Diagram { slice, format }),
        Some(args::Command::Replay { journal }) => Ok(Invocation::Replay { journal }),
    }
}
