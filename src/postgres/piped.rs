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
    stdout: Option<pipe::Receiver>,
    stderr: AbortOnDropHandle<Vec<u8>>,
    group: Group,
}

impl Piped {
    /// Starts it. Must be called inside the runtime.
    ///
    /// # Errors
    /// [`RunError::Spawn`], also when its pipes cannot be watched.
    pub fn spawn(mut command: Command) -> Result<Self, RunError> {
        let program = PathBuf::from(command.get_program());
        let failed = |source| RunError::Spawn { program: program.clone(), source };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let group = Group::spawn(&mut command).map_err(failed)?;
        let (out, err) = group.take_pipes();
        let stdout = out.map(pipe::Receiver::from_owned_fd).transpose().map_err(failed)?;
        // Read all the time: a program which cannot write its warnings would not write its output either.
        let stderr = AbortOnDropHandle::new(tokio::spawn(tail(err)));
        Ok(Self { program, stdout, stderr, group })
    }

    /// What it has written since the last piece, at most [`limits::HELPER_PIECE`] bytes; `None` at the end. A
    /// pipe that fails is a pipe that ended. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        let mut piece = Vec::with_capacity(limits::HELPER_PIECE);
        match self.stdout.as_mut()?.read_buf(&mut piece).await {
            Ok(1..) => Some(piece),
            Ok(0) | Err(_) => {
                self.stdout = None;
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
        let Self { program, stdout, stderr, group } = self;
        drop(stdout);
        let status = group.finish().await.map_err(|source| RunError::Wait { program, source })?;
        // Everything in the group is dead; only a process that left it could hold the pipe open.
        let stderr = tokio::time::timeout(limits::HELPER_DRAIN, stderr).await;
        let stderr = stderr.ok().and_then(Result::ok).unwrap_or_default();
        Ok(Output { status, stdout: Vec::new(), stderr })
    }
}

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
    async fn a_missing_program_is_named() {
        let error = Piped::spawn(Command::new("/no/such")).unwrap_err();
        assert!(error.to_string().contains("/no/such"), "{error}");
    }
}
