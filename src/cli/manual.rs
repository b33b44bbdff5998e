//! What is generated from the description of the command line: completions and man pages.

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Cli;
use super::{ExitCode, Streams};

/// Prints the script by which `shell` completes command lines.
pub fn completions(shell: Shell, out: &mut dyn Write) -> ExitCode {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    // In memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    match out.write_all(&script).and_then(|()| out.flush()) {
        // A reader that has seen enough (`| head`) is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::Failure,
        _ => ExitCode::Ok,
    }
}

/// Prints the man page, or writes it and those of the sub-commands into a directory.
pub fn man(dir: Option<&Path>, streams: &mut Streams<'_>) -> ExitCode {
    let command = Cli::command();
    let Some(dir) = dir else {
        let mut page = Vec::new();
        // Memory can be written.
        let _ = clap_mangen::Man::new(command).render(&mut page);
        return streams.finish(&String::from_utf8_lossy(&page), ExitCode::Ok);
    };
    match std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir)) {
        Ok(()) => ExitCode::Ok,
        Err(error) => {
            // Where nobody reads, the exit code has to do.
            let _ = writeln!(streams.err, "compute_ctl man: {}: {error}", dir.display());
            ExitCode::Failure
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::streams::captured;

    #[test]
    fn every_shell_gets_every_sub_command() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let mut script = Vec::new();
            assert_eq!(completions(shell, &mut script), ExitCode::Ok);
            let script = String::from_utf8(script).expect("it is text");
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
    }

    #[test]
    fn there_is_a_man_page_for_every_sub_command() {
        let dir = tempfile::tempdir().expect("a directory");
        let (code, out, _) = captured(false, |streams| man(None, streams));
        assert_eq!(code, ExitCode::Ok);
        assert!(out.contains(".TH compute_ctl"), "a man page");
        assert_eq!(captured(false, |streams| man(Some(dir.path()), streams)).0, ExitCode::Ok);
        for command in Cli::command().get_subcommands() {
            let page = dir.path().join(format!("compute_ctl-{}.1", command.get_name()));
            assert!(page.is_file(), "{}", page.display());
        }
    }
}
