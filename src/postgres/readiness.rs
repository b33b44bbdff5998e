//! When a server is ready: its last line in `postmaster.pid` says so, and inotify says when to look.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use super::pgdata::LockFile;
use super::proctable;
use crate::limits;

/// Notices changes of `postmaster.pid`. Made before the server is started, so that none can be missed; the
/// directory is watched, because the file does not exist yet.
#[derive(Debug)]
pub(super) struct Watch {
    pgdata: PathBuf,
    /// `None` where the kernel has no inotify (ENOSYS under gVisor) or none left for this user (EMFILE,
    /// ENOSPC): then the file is polled.
    /// The second handle is the same queue, for the runtime to watch.
    inotify: Option<(Inotify, AsyncFd<OwnedFd>)>,
}

impl Watch {
    pub(super) fn new(pgdata: &Path) -> Self {
        let inotify = Self::inotify(pgdata)
            .inspect_err(|error| tracing::warn!(%error, "no inotify: polling for the server's readiness"))
            .ok();
        Self { pgdata: pgdata.to_owned(), inotify }
    }

    fn inotify(pgdata: &Path) -> io::Result<(Inotify, AsyncFd<OwnedFd>)> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // The server rewrites the file in place, with one write per change.
        let what = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(pgdata, what)?;
        let watched = proctable::watched(inotify.as_fd().try_clone_to_owned()?)?;
        Ok((inotify, watched))
    }

    /// Resolves when the server with this pid is ready to accept connections; never, if it does not get there.
    ///
    /// A file left by an earlier server names another pid and counts for nothing. `standby`, the state of a
    /// server that recovers and serves nobody, is not ready; a hot standby says `ready`.
    pub(super) async fn ready(self, pid: i32) {
        loop {
            let file = LockFile::read(&self.pgdata);
            if file.pid == Some(pid) && file.status.as_deref() == Some("ready") {
                return;
            }
            self.changed().await;
        }
    }

    async fn changed(&self) {
        while let Some((inotify, watched)) = &self.inotify {
            let Ok(mut ready) = watched.readable().await else { break };
            match inotify.read_events() {
                // An event without a name means that the queue overflowed, or is about the directory itself.
                Ok(events) if events.iter().all(|event| event.name.as_deref().is_some_and(|n| n != NAME)) => {
                }
                Ok(_) => return,
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(_) => break,
            }
        }
        tokio::time::sleep(limits::READINESS_POLL).await;
    }

    /// The polling fall-back, as it is where the kernel has no inotify.
    #[cfg(test)]
    fn without_inotify(pgdata: &Path) -> Self {
        Self { pgdata: pgdata.to_owned(), inotify: None }
    }
}

const NAME: &str = "postmaster.pid";

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Poll;

    fn lock_file(pid: i32, status: &str) -> String {
        format!("{pid}\n/data\n1700000000\n5432\n/tmp\nlocalhost\n  1234 5\n{status:<8}\n")
    }

    async fn is_pending<F: Future<Output = ()> + Unpin>(future: &mut F) -> bool {
        futures_util::future::poll_fn(|cx| {
            Poll::Ready(Future::poll(std::pin::Pin::new(&mut *future), cx).is_pending())
        })
        .await
    }

    #[tokio::test]
    async fn only_ready_of_this_very_server_counts() {
        for polled in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join(NAME);
            fs::write(&file, lock_file(41, "ready")).unwrap();
            let watch =
                if polled { Watch::without_inotify(dir.path()) } else { Watch::inotify_only(dir.path()) };
            let mut ready = pin!(watch.ready(42));
            assert!(is_pending(&mut ready).await, "a stale file");
            for status in ["starting", "standby", "stopping"] {
                fs::write(&file, lock_file(42, status)).unwrap();
                assert!(is_pending(&mut ready).await, "{status}");
            }
            fs::write(dir.path().join("other"), "x").unwrap();
            assert!(is_pending(&mut ready).await, "another file");
            fs::write(&file, lock_file(42, "ready")).unwrap();
            ready.await;
        }
    }

    impl Watch {
        fn inotify_only(pgdata: &Path) -> Self {
            Self { pgdata: pgdata.to_owned(), inotify: Some(Self::inotify(pgdata).unwrap()) }
        }
    }
}
