//! The program: reads the command line, does what it asks for, ends with its exit code.

use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal, Write, stderr, stdin, stdout};
use std::path::Path;
use std::process;

use anyhow::Context;
use compute_ctl::cli::{self, Environment, ExitCode, Invocation, Streams};
use compute_ctl::engine::Recording;
use compute_ctl::engine::journal::JournalError;
use compute_ctl::node;

fn main() -> process::ExitCode {
    let invocation = match cli::parse(std::env::args_os(), Environment::process()) {
        Ok(invocation) => invocation,
        Err(error) => error.exit(),
    };
    let code = match invocation {
        Invocation::Run(options) => node::run(*options),
        Invocation::Check { file, json } => cli::check::run(&file, json, &mut stdout()),
        Invocation::Plan(options) => with_streams(|streams| cli::plan::run(&options, streams)),
        Invocation::Remote(options) => with_streams(|streams| cli::remote::run(&options, streams)),
        Invocation::Token(options) => with_streams(|streams| cli::token::run(&options, streams)),
        Invocation::Completions(shell) => cli::manual::completions(shell, &mut stdout()),
        Invocation::Man { dir } => with_streams(|streams| cli::manual::man(dir.as_deref(), streams)),
        Invocation::Diagram { slice, format } => cli::diagram::run(slice, format, &mut stdout()),
        Invocation::Replay { journal } => match replay(&journal) {
            Ok(()) => ExitCode::Ok,
            Err((code, error)) => {
                // Nobody may be reading.
                let _ = writeln!(stderr(), "{error:#}");
                code
            }
        },
    };
    code.into()
}

fn with_streams(work: impl FnOnce(&mut Streams<'_>) -> ExitCode) -> ExitCode {
    let (mut input, mut out, mut err) = (stdin().lock(), stdout(), stderr());
    let (out_is_terminal, err_is_terminal) = (out.is_terminal(), err.is_terminal());
    work(&mut Streams { input: &mut input, out: &mut out, out_is_terminal, err: &mut err, err_is_terminal })
}

/// Prints what a journal tells, one line an event, and proves that this program's machine does the same.
fn replay(path: &Path) -> Result<(), (ExitCode, anyhow::Error)> {
    let what = || format!("{} cannot be replayed", path.display());
    let failed = |code| move |error: anyhow::Error| (code, error);
    let file = File::open(path).with_context(what).map_err(failed(ExitCode::Unreadable))?;
    let recording = Recording::read(BufReader::new(file)).map_err(|error| {
        let code =
            if matches!(error, JournalError::Io(_)) { ExitCode::Unreadable } else { ExitCode::BadJournal };
        (code, anyhow::Error::new(error).context(what()))
    })?;
    let mut out = BufWriter::new(stdout());
    let mut written = Ok(());
    let replayed = recording.replay(|entry, step| {
        let line = writeln!(
            out,
            "{:>6} {:>12.6} s  {:<28} {:<32} {}  {}",
            entry.seq,
            entry.at_us as f64 / 1e6,
            entry.event.kind().name(),
            entry.status,
            entry.verdict,
            step.effects().iter().map(|effect| effect.kind().name()).collect::<Vec<_>>().join(" "),
        );
        if written.is_ok() {
            written = line;
        }
    });
    // What was printed up to the difference is what one needs to see.
    out.flush().and(written).with_context(what).map_err(failed(ExitCode::Failure))?;
    replayed.with_context(what).map_err(failed(ExitCode::BadJournal))?;
    Ok(())
}
