//! Helper programs whose output is passed on as it comes, however long it is.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::task::AbortOnDropHandle;

use super::process::{Group, Output, RunError, read_tail};
use crate::limits;

/// A running helper program, with nothing on standard input. It writes no faster than its output is taken.
///
/// Dropping it kills it with all it started; a thread reaps them. There is no deadline in here: who holds it has
/// one.
#[derive(Debug)]
pub struct Piped {
    program: PathBuf,
    pieces: Option<pipe::Receiver>,
    /// The tail of its errors, unless they are what is passed on.
    stderr: AbortOnDropHandle<Vec<u8>>,
    group: Group,
}

impl Piped {
    /// Starts it. Must be called inside the runtime.
    ///
    /// # Errors
    /// [`RunError::Spawn`], also when its pipes cannot be watched.
    pub fn spawn(mut command: Command) -> Result<Self, RunError> {
        command.stdout(Stdio::piped());
        Self::start(command, |(out, err)| (out, err))
    }

    /// The same for a program that says on standard error how far it is: that is what is passed on, and its output
    /// goes nowhere.
    ///
    /// # Errors
    /// As [`Piped::spawn`].
    pub fn spawn_reporting(mut command: Command) -> Result<Self, RunError> {
        command.stdout(Stdio::null());
        Self::start(command, |(_, err)| (err, None))
    }

    fn start(mut command: Command, split: impl FnOnce(Pipes) -> Pipes) -> Result<Self, RunError> {
        let program = PathBuf::from(command.get_program());
        let failed = |source| RunError::Spawn { program: program.clone(), source };
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let group = Group::spawn(&mut command).map_err(failed)?;
        let (passed_on, kept) = split(group.take_pipes());
        let pieces = passed_on.map(pipe::Receiver::from_owned_fd).transpose().map_err(failed)?;
        // Read all the time: a program which cannot write its warnings would not write its output either.
        let stderr = AbortOnDropHandle::new(tokio::spawn(tail(kept)));
        Ok(Self { program, pieces, stderr, group })
    }

    /// What it has written since the last piece, at most [`limits::HELPER_PIECE`] bytes; `None` at the end. A
    /// pipe that fails is a pipe that ended. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        let mut piece = Vec::with_capacity(limits::HELPER_PIECE);
        match self.pieces.as_mut()?.read_buf(&mut piece).await {
            Ok(1..) => Some(piece),
            Ok(0) | Err(_) => {
                self.pieces = None;
                None
            }
        }
    }

    /// How it ended and the tail of its errors; its output was passed on and is not in there. Waits for the end:
    /// call it after the last piece.
    ///
    /// # Errors
    /// [`RunError::Wait`].
    pub async fn finish(self) -> Result<Output, RunError> {
        let Self { program, pieces, stderr, group } = self;
        drop(pieces);
        let status = group.finish().await.map_err(|source| RunError::Wait { program, source })?;
        // Everything in the group is dead; only a process that left it could hold the pipe open.
        let stderr = tokio::time::timeout(limits::HELPER_DRAIN, stderr).await;
        let stderr = stderr.ok().and_then(Result::ok).unwrap_or_default();
        Ok(Output { status, stdout: Vec::new(), stderr })
    }

    /// Ends it with all it started, and returns when they are gone.
    pub async fn end(self) {
        self.group.kill();
        // Only a foreign waitpid in this process can take the status away.
        let _killed = self.finish().await;
    }
}

/// Standard output and standard error.
type Pipes = (Option<OwnedFd>, Option<OwnedFd>);

async fn tail(fd: Option<OwnedFd>) -> Vec<u8> {
    let mut tail = Vec::new();
    read_tail(fd, &mut tail).await;
    tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::proctable::{self, Stat};

    fn shell(script: &str) -> Piped {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        Piped::spawn(command).unwrap()
    }

    #[tokio::test]
    async fn all_of_the_output_comes_in_pieces_and_then_the_end() {
        // Errors are written while nobody takes the output, more of them than a pipe holds.
        let mut helper = shell("head -c 1000000 /dev/zero >&2; head -c 1000000 /dev/zero; exit 3");
        let mut sum = 0;
        while let Some(piece) = helper.next().await {
            assert!((1..=limits::HELPER_PIECE).contains(&piece.len()), "{}", piece.len());
            sum += piece.len();
        }
        assert_eq!(sum, 1_000_000);
        assert_eq!(helper.next().await, None);
        let output = helper.finish().await.unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(3), limits::HELPER_OUTPUT));
    }

    #[tokio::test]
    async fn dropping_it_ends_it_and_what_it_started() {
        let mut helper = shell("trap '' TERM INT HUP; sleep 600 & echo $!; wait");
        let pid = String::from_utf8(helper.next().await.unwrap()).unwrap().trim().parse().unwrap();
        let started = Stat::of(pid).unwrap();
        let pin = proctable::pin(&started).unwrap();
        drop(helper);
        proctable::watched(pin).unwrap().readable().await.unwrap().retain_ready();
    }

    #[tokio::test]
    async fn what_is_reported_on_standard_error_is_passed_on_and_ending_it_waits() {
        let mut helper = shell_reporting("echo out; trap '' TERM INT HUP; sleep 600 & echo $! >&2; wait");
        let pid = String::from_utf8(helper.next().await.unwrap()).unwrap().trim().parse().unwrap();
        assert!(Stat::of(pid).is_some());
        helper.end().await;
        assert!(Stat::of(pid).is_none_or(|stat| stat.is_dead()));
    }

    fn shell_reporting(script: &str) -> Piped {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        Piped::spawn_reporting(command).unwrap()
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = Piped::spawn(Command::new("/no/such")).unwrap_err();
        assert!(error.to_string().contains("/no/such"), "{error}");
    }
}
