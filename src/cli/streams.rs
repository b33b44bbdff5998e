//! The streams of the process, as the sub-commands see them.

use std::io::{self, Read, Write};

use super::ExitCode;

/// Standard input, output and error. Handed in, so that tests need no process.
pub struct Streams<'a> {
    /// Read for the file `-`.
    pub input: &'a mut dyn Read,
    /// Gets what was asked for; with `--json` one JSON object whatever happens.
    pub out: &'a mut dyn Write,
    /// Whether `out` is a terminal.
    pub out_is_terminal: bool,
    /// Gets faults, notes and progress.
    pub err: &'a mut dyn Write,
    /// Whether `err` is a terminal.
    pub err_is_terminal: bool,
}

impl Streams<'_> {
    /// Prints what was asked for, and ends with `exit`. A reader that has seen enough (`| head`) is no failure.
    pub(super) fn finish(&mut self, text: &str, exit: ExitCode) -> ExitCode {
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::Failure,
            _ => exit,
        }
    }
}

/// What some work returns with nothing to read, and what it writes to its output and its error stream.
#[cfg(test)]
pub(super) fn captured<T>(
    are_terminals: bool,
    work: impl FnOnce(&mut Streams<'_>) -> T,
) -> (T, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let returned = work(&mut Streams {
        input: &mut io::empty(),
        out: &mut out,
        out_is_terminal: are_terminals,
        err: &mut err,
        err_is_terminal: are_terminals,
    });
    let text = |bytes| String::from_utf8(bytes).expect("it is text");
    (returned, text(out), text(err))
}

impl std::fmt::Debug for Streams<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}
