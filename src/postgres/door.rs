//! The door of a server: while it is shut, nobody comes in, and nobody is turned away.
//!
//! New sessions are admitted by the postmaster alone, by a fork. Stopped by SIGSTOP it forks nothing: clients queue at
//! its sockets, sessions that are there go on, and SIGCONT lets everybody in who has waited. What makes this a door and
//! not a guess is *where* it is stopped. A postmaster that waits for something to happen looks at its signals before it
//! takes the next client, on every version of PostgreSQL; so a shutdown that is sent to one that is stopped in its wait
//! comes before whoever stands at the door. Stopped anywhere else it may be halfway through an admission. That is told
//! apart by the system call it is in, and then the door is not shut.
//!
//! | a client that | is |
//! |---|---|
//! | was admitted before | a process of the server's: a session, or one that is only being set up |
//! | is being admitted | a reason not to shut the door |
//! | comes later | at the door, and not admitted |

use std::fs;
use std::sync::Arc;

use nix::libc;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use rustix::process::Signal;
use thiserror::Error;
use tokio::sync::OwnedMutexGuard;

use super::postmaster::Shared;
use super::proctable::{self, Stat};

/// The system calls in which a postmaster waits for something to happen.
const WAITS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_pselect6,
    libc::SYS_ppoll,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
];

/// Why the door cannot be shut.
#[derive(Debug, Error)]
pub enum DoorError {
    /// There is no server any more.
    #[error("the server has ended")]
    Gone,
    /// It is not ours to let it go on.
    #[error("process {pid} of the server is stopped already; SIGCONT lets it go on")]
    Stopped {
        /// The postmaster.
        pid: i32,
    },
    /// By another look, perhaps one that nobody waits for any more: its end would open the door for all.
    #[error("another look holds the door of the server shut")]
    Held,
    /// By somebody else's SIGCONT, so that it may have let somebody in.
    #[error(
        "process {pid} of the server was let go on while it was looked at; nobody else should send it SIGCONT"
    )]
    Opened {
        /// The postmaster.
        pid: i32,
    },
    /// What it is doing must be readable to us, who have started it.
    #[error(
        "what process {pid} is doing is not told in /proc/{pid}/syscall; it should be readable for its parent"
    )]
    Unreadable {
        /// The postmaster.
        pid: i32,
        /// Why.
        source: std::io::Error,
    },
}

/// By which the door can be shut; keeps no server running.
#[derive(Clone, Debug)]
pub struct Door(Arc<Shared>);

/// A door that is shut, until this is dropped. There is one at a time.
#[derive(Debug)]
#[must_use = "dropping it opens the door"]
pub struct Shut {
    server: Arc<Shared>,
    /// Let go after the door was opened.
    _turn: OwnedMutexGuard<()>,
}

impl Door {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Door(shared)
    }

    /// Shuts it, unless somebody is just being let in: then there is nothing to hold. Blocks until the kernel has
    /// stopped the process, which takes it microseconds.
    ///
    /// # Errors
    /// See [`DoorError`].
    pub fn shut(&self) -> Result<Option<Shut>, DoorError> {
        let pid = self.0.pid();
        let turn = Arc::clone(&self.0.door).try_lock_owned().map_err(|_| DoorError::Held)?;
        if is_stopped(pid) {
            return Err(DoorError::Stopped { pid });
        }
        if !self.0.signal(Signal::STOP) {
            return Err(DoorError::Gone);
        }
        let shut = Shut { server: self.0.clone(), _turn: turn };
        // Whatever is seen here stays to be seen by whoever reaps it.
        let what = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(Pid::from_raw(pid)), what) {
            Ok(WaitStatus::Stopped(..)) => {}
            _ => return Err(DoorError::Gone),
        }
        Ok(waits(pid)?.then_some(shut))
    }
}

impl Shut {
    /// Makes sure that nobody has opened it meanwhile, to be called after the last look.
    ///
    /// # Errors
    /// [`DoorError::Opened`] if the postmaster is not where it was stopped.
    pub fn holds(&self) -> Result<(), DoorError> {
        let pid = self.server.pid();
        match is_stopped(pid) && waits(pid)? {
            true => Ok(()),
            false => Err(DoorError::Opened { pid }),
        }
    }

    /// Processes of the server that the server itself does not tell of: sessions that are only being set up. What it
    /// tells of must have been asked for after the door was shut. The collector of its log has no session.
    pub fn untold(&self, told: &[i32]) -> usize {
        let pid = self.server.pid();
        let untold = |stat: &&Stat| {
            stat.ppid == pid && !stat.is_dead() && !told.contains(&stat.pid) && !is_log_collector(stat.pid)
        };
        proctable::all().iter().filter(untold).count()
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        // A server that was reaped needs no door.
        self.server.signal(Signal::CONT);
    }
}

fn is_stopped(pid: i32) -> bool {
    Stat::of(pid).is_some_and(|stat| matches!(stat.state, 'T' | 't'))
}

/// Whether a postmaster that is stopped was waiting for something to happen.
fn waits(pid: i32) -> Result<bool, DoorError> {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall"))
        .map_err(|source| DoorError::Unreadable { pid, source })?;
    let number = call.split_ascii_whitespace().next().and_then(|number| number.parse().ok());
    Ok(number.is_some_and(|number| WAITS.contains(&number)))
}

/// By its title, which no session can have: those of sessions end in what they do.
fn is_log_collector(pid: i32) -> bool {
    let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let title = String::from_utf8_lossy(&title);
    let title = title.trim_end_matches(['\0', ' ']);
    title.starts_with("postgres: ") && title.ends_with(": logger")
}
