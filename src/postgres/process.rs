//! Processes: helper programs that leave nothing behind, orphans, privileges.
//!
//! Every child of this program is started here, in [`super::piped`] or in [`super::postmaster`], in a process
//! group of its own, so a signal meant for us (Ctrl-C, a reload) does not reach it, and so that it can be ended
//! with all it started. Ends are told by pidfd (Linux 5.3 or newer).

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{self, Pid, Uid, User};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::log::{self, LogSink};
use super::proctable::{self, Stat};
use crate::control_plane::TOKEN_VARIABLE;
use crate::limits;

/// Why a helper program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The caller gave up; the program and all it started are gone.
    #[error("{program} was cancelled")]
    Cancelled {
        /// The program.
        program: PathBuf,
    },
    /// It took too long; the program and all it started are gone.
    #[error("{program} was ended after {after:?}")]
    TimedOut {
        /// The program.
        program: PathBuf,
        /// The time it had.
        after: Duration,
    },
    /// Its end could not be observed.
    #[error("cannot wait for {program}")]
    Wait {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How a helper program ended and the tail of what it printed, at most [`limits::HELPER_OUTPUT`] bytes each.
#[derive(Debug)]
pub struct Output {
    /// Its exit status; a failure is no [`RunError`].
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

/// Runs a helper program to its end, with nothing on standard input.
///
/// On cancellation, on the deadline, and also when the program ends but left processes behind in its group, the
/// whole group is killed and reaped before this returns. If the future is dropped the group is killed at once
/// and reaped by a thread.
pub async fn run(
    mut command: Command,
    cancel: &CancellationToken,
    deadline: Duration,
) -> Result<Output, RunError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    to_its_end(command, cancel, deadline).await
}

/// The same for a program whose standard error is a log like the server's: it goes to `log`, message by message,
/// and [`Output::stderr`] stays empty. All of it was passed on before this returns, unless a process that left
/// the group still holds it after [`limits::LOG_DRAIN`].
pub async fn run_logged(
    mut command: Command,
    cancel: &CancellationToken,
    deadline: Duration,
    log: LogSink,
) -> Result<Output, RunError> {
    let program = PathBuf::from(command.get_program());
    let failed = |source| RunError::Spawn { program: program.clone(), source };
    let (reader, writer) = io::pipe().map_err(failed)?;
    let mut ended = log::collect(reader, log).map_err(failed)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(writer);
    let output = to_its_end(command, cancel, deadline).await;
    let _held_by_a_stranger = timeout(limits::LOG_DRAIN, ended.wait_for(|ended| *ended)).await;
    output
}

async fn to_its_end(
    mut command: Command,
    cancel: &CancellationToken,
    deadline: Duration,
) -> Result<Output, RunError> {
    let program = PathBuf::from(command.get_program());
    if cancel.is_cancelled() {
        return Err(RunError::Cancelled { program });
    }
    let group =
        Group::spawn(&mut command).map_err(|source| RunError::Spawn { program: program.clone(), source })?;
    // It holds our ends of pipes that are not its own.
    drop(command);
    let wait = |source| RunError::Wait { program: program.clone(), source };
    let (out, err) = group.take_pipes();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let end = {
        let reading = async {
            tokio::join!(read_tail(out, &mut stdout), read_tail(err, &mut stderr));
        };
        tokio::pin!(reading);
        let mut read = false;
        let deadline_over = tokio::time::sleep(deadline);
        tokio::pin!(deadline_over);
        let end = loop {
            tokio::select! {
                exited = group.exited() => break exited.map(|()| None).map_err(wait),
                () = cancel.cancelled() => {
                    break Ok(Some(RunError::Cancelled { program: program.clone() }));
                }
                () = &mut deadline_over => {
                    break Ok(Some(RunError::TimedOut { program: program.clone(), after: deadline }));
                }
                () = &mut reading, if !read => read = true,
            }
        };
        group.kill();
        if !read {
            // Everything in the group is dead or dying, so the pipes close at once.
            let _left_the_group = timeout(limits::HELPER_DRAIN, reading).await;
        }
        end
    };
    let status = group.finish().await.map_err(wait)?;
    match end? {
        None => Ok(Output { status, stdout, stderr }),
        Some(given_up) => Err(given_up),
    }
}

/// Reads to the end, keeping the tail. A pipe that fails is a pipe that ended.
pub(super) async fn read_tail(fd: Option<OwnedFd>, into: &mut Vec<u8>) {
    let Some(mut pipe) = fd.and_then(|fd| pipe::Receiver::from_owned_fd(fd).ok()) else { return };
    let mut chunk = [0_u8; 8192];
    while let Ok(n @ 1..) = pipe.read(&mut chunk).await {
        into.extend_from_slice(&chunk[..n]);
        if into.len() > limits::HELPER_OUTPUT {
            into.drain(..into.len() - limits::HELPER_OUTPUT);
        }
    }
}

/// Children somebody here waits for: [`reap_adopted`] must not take their exit status away.
/// The lock is held while a child is started, so that none can end before it is listed.
static MANAGED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn managed() -> std::sync::MutexGuard<'static, BTreeSet<i32>> {
    // A panic while it was held cannot leave a half-changed set.
    MANAGED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A child that leads a process group of its own.
///
/// Its pid and its group number stay taken until it is reaped, and it is only reaped by [`Group::finish`] or on
/// drop, under the lock that [`Group::kill`] takes: no signal can reach a stranger.
#[derive(Debug)]
pub(super) struct Group {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    child: Mutex<Leader>,
}

#[derive(Debug)]
enum Leader {
    Unreaped(Child),
    Reaped(ExitStatus),
}

impl Group {
    /// Starts it. Must be called inside the runtime.
    ///
    /// The token for the control plane is ours and not inherited; who needs it is given it by the command.
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        if !command.get_envs().any(|(name, _)| name == TOKEN_VARIABLE) {
            command.env_remove(TOKEN_VARIABLE);
        }
        let mut managed = managed();
        let mut child = command.process_group(0).spawn()?;
        let pid = i32::try_from(child.id()).expect("a pid of Linux fits into i32");
        let open = || {
            let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
            proctable::watched(pidfd_open(pid, PidfdFlags::empty())?)
        };
        match open() {
            Ok(pidfd) => {
                managed.insert(pid);
                Ok(Self { pid, pidfd, child: Mutex::new(Leader::Unreaped(child)) })
            }
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    fn leader(&self) -> std::sync::MutexGuard<'_, Leader> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Its output streams, once.
    pub(super) fn take_pipes(&self) -> (Option<OwnedFd>, Option<OwnedFd>) {
        match &mut *self.leader() {
            Leader::Unreaped(child) => {
                (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from))
            }
            Leader::Reaped(_) => (None, None),
        }
    }

    /// Resolves when the leader has ended. It is not reaped by this.
    pub(super) async fn exited(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(|mut ready| ready.retain_ready())
    }

    /// Signals the leader alone; `false` when it has been reaped.
    pub(super) fn signal(&self, signal: rustix::process::Signal) -> bool {
        pidfd_send_signal(self.pidfd.get_ref(), signal).is_ok()
    }

    /// SIGKILL for the whole group. The kernel delivers it to all members at once, forks under way included.
    pub(super) fn kill(&self) {
        if let Leader::Unreaped(_) = &*self.leader() {
            let _empty = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// Reaps the leader once it has ended, after killing what is left of its group and seeing it end.
    pub(super) async fn finish(&self) -> io::Result<ExitStatus> {
        self.exited().await?;
        // Until the leader is reaped nobody else can have this group, and none of the killed can fork.
        self.kill();
        let pid = self.pid;
        let members = move || {
            let mut all = proctable::all();
            all.retain(|stat| stat.pgrp == pid && !stat.is_dead());
            all
        };
        // The table cannot be read only if the runtime is being shut down.
        let members = tokio::task::spawn_blocking(members).await.unwrap_or_default();
        let _stuck_in_the_kernel = timeout(limits::HELPER_DRAIN, proctable::all_ended(&members)).await;
        let status = self.reap()?;
        // Orphans of the group are ours only if we adopt (subreaper or PID 1); else init reaps them.
        reap_all(Pid::from_raw(-pid));
        Ok(status)
    }

    /// Reaps the leader alone. Call it after [`Group::exited`], else it blocks.
    pub(super) fn reap(&self) -> io::Result<ExitStatus> {
        let mut leader = self.leader();
        let status = match &mut *leader {
            Leader::Reaped(status) => return Ok(*status),
            Leader::Unreaped(child) => child.wait()?,
        };
        *leader = Leader::Reaped(status);
        managed().remove(&self.pid);
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Leader::Unreaped(child) = leader else { return };
        let (pid, group) = (self.pid, Pid::from_raw(self.pid));
        let _empty = killpg(group, Signal::SIGKILL);
        let reaped = |result: io::Result<Option<ExitStatus>>| matches!(result, Ok(Some(_)));
        if reaped(child.try_wait()) {
            managed().remove(&pid);
            reap_all(Pid::from_raw(-pid));
            return;
        }
        // It was killed and ends in a moment; a drop must not block a worker thread for that moment.
        let wait = move || {
            let _reaped = waitpid(group, None);
            managed().remove(&pid);
            while waitpid(Pid::from_raw(-pid), None).is_ok() {}
        };
        if let Err(error) = std::thread::Builder::new().name("reaper".into()).spawn(wait) {
            tracing::warn!(pid, %error, "no thread to reap a killed child");
        }
    }
}

/// Reaps all children that `which` selects (a pid, or a negative group) and that have ended.
fn reap_all(which: Pid) {
    loop {
        match waitpid(which, Some(WaitPidFlag::WNOHANG)) {
            Ok(status) if status != WaitStatus::StillAlive => {}
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}

/// Children that were there before the first line of this program, by pid and start: whoever became this
/// program by exec had started them.
static INHERITED: OnceLock<Vec<(i32, u64)>> = OnceLock::new();

/// Makes this process the one that orphaned descendants are given to, so that it can wait for them.
/// Neither inherited by children nor undone; call it once, before any child is started. As PID 1 orphans come
/// anyway.
pub fn become_subreaper() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)?;
    let children = children().iter().map(|stat| (stat.pid, stat.start)).collect();
    let _called_once = INHERITED.set(children);
    Ok(())
}

fn children() -> Vec<Stat> {
    let me = unistd::getpid().as_raw();
    let mut all = proctable::all();
    all.retain(|stat| stat.ppid == me);
    all
}

/// Kills and reaps adopted orphans and those that become such by this, until none is left or time is up; how
/// many there were. Children started here that were killed already are waited for.
///
/// For the very end: what a session or a command had put into the background, out of reach of everything by
/// which it could be told, must not outlive the node.
pub async fn end_adopted(deadline: Duration) -> usize {
    let end = Instant::now() + deadline;
    let mut ended = BTreeSet::new();
    loop {
        let look = || {
            reap_adopted();
            let inherited = INHERITED.get().map(Vec::as_slice).unwrap_or_default();
            let mut children = children();
            children.retain(|stat| !inherited.contains(&(stat.pid, stat.start)));
            children
        };
        // The table cannot be read only if the runtime is being shut down.
        let children = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        if children.is_empty() || Instant::now() >= end {
            return ended.len();
        }
        for stat in children.iter().filter(|stat| !managed().contains(&stat.pid)) {
            proctable::signal(stat, rustix::process::Signal::KILL);
            ended.insert((stat.pid, stat.start));
        }
        let until = end.min(Instant::now() + limits::SWEEP_LOOK);
        let _look_again = timeout_at(until, proctable::all_ended(&children)).await;
    }
}

/// Kills the programs of these names which have this path as an argument, and returns when they are gone.
///
/// For helpers that a killed process of this program has started: they would go on writing where the next one
/// works. Nobody else has a reason to run them on that path.
pub async fn end_named(names: &[&str], path: &Path) {
    let found = {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let path = path.as_os_str().as_encoded_bytes().to_owned();
        let look = move || {
            let mut all = proctable::all();
            all.retain(|stat| {
                let arguments = fs::read(format!("/proc/{}/cmdline", stat.pid)).unwrap_or_default();
                // The name of a process is cut after 15 bytes.
                names.iter().any(|name| name.get(..15).unwrap_or(name) == stat.comm)
                    && arguments.split(|byte| *byte == 0).any(|argument| argument == path)
                    && !stat.is_dead()
            });
            all
        };
        // The table cannot be read only if the runtime is being shut down.
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    };
    for stat in &found {
        tracing::info!(pid = stat.pid, name = stat.comm, "ending what an earlier process had started");
        proctable::signal(stat, rustix::process::Signal::KILL);
    }
    let _stuck_in_the_kernel = timeout(limits::HELPER_DRAIN, proctable::all_ended(&found)).await;
}

/// Reaps dead children that nobody here waits for: orphans adopted as subreaper or as PID 1. Returns how many.
///
/// Call it on SIGCHLD. It never takes the status of a child started in this module or of the postmaster;
/// children started in any other way (tokio's or std's `Command` directly) would be taken, so start none so.
pub fn reap_adopted() -> usize {
    // Nearly every SIGCHLD is about a managed child or about nothing any more; then the table is not read.
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, look) {
        Ok(status) if status.pid().is_some() => reap_adopted_if(|_| true),
        _ => 0,
    }
}

/// [`reap_adopted`] for some of them only.
pub(super) fn reap_adopted_if(wanted: impl Fn(&Stat) -> bool) -> usize {
    let me = unistd::getpid().as_raw();
    let managed = managed();
    proctable::all()
        .iter()
        .filter(|stat| stat.ppid == me && stat.is_dead() && !managed.contains(&stat.pid))
        .filter(|stat| wanted(stat))
        .filter(|stat| {
            matches!(waitpid(Pid::from_raw(stat.pid), Some(WaitPidFlag::WNOHANG)), Ok(status) if status.pid().is_some())
        })
        .count()
}

/// Why privileges were not dropped. None is in effect half: the caller must end.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// No such user, or no answer.
    #[error("there is no user {user:?} to run PostgreSQL as; create one or name another with --user")]
    NoUser {
        /// The name asked for.
        user: String,
    },
    /// PostgreSQL refuses to run as a user with all rights.
    #[error("user {user:?} is a superuser of this machine; PostgreSQL refuses to run as such")]
    Superuser {
        /// The name asked for.
        user: String,
    },
    /// A directory could not be made or given away.
    #[error("cannot prepare {path} for the unprivileged user")]
    Own {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot become user {user:?}")]
    Become {
        /// The name asked for.
        user: String,
        /// Why.
        source: io::Error,
    },
}

/// Makes the whole process run as `user`, for good. Without effect when it does not run as root.
///
/// Each path of `own` is made (0700) if absent, its missing parents as root's with the usual mode; one that
/// exists is given to `user` only if it is root's and empty. A directory with something in it is not touched:
/// whose it is gets decided later, with an error that says so.
/// Call it before any thread holds something of root's that it must not keep.
pub fn drop_privileges(user: &str, own: &[&Path]) -> Result<(), PrivilegeError> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let account = account(user)?;
    for path in own {
        give(path, 0o700, &account)?;
    }
    let refused = |source: io::Error| PrivilegeError::Become { user: user.to_owned(), source };
    let c_name = std::ffi::CString::new(user).map_err(|error| refused(error.into()))?;
    unistd::initgroups(&c_name, account.gid).map_err(|errno| refused(errno.into()))?;
    unistd::setresgid(account.gid, account.gid, account.gid).map_err(|errno| refused(errno.into()))?;
    unistd::setresuid(account.uid, account.uid, account.uid).map_err(|errno| refused(errno.into()))?;
    match unistd::setuid(Uid::from_raw(0)) {
        Ok(()) => Err(refused(io::Error::other("root could be had back"))),
        Err(_) => Ok(()),
    }
}

/// Makes a directory which others may look into (0755), or gives it away, as [`drop_privileges`] does. Without effect when
/// this process does not run as root.
///
/// # Errors
/// There is no such user, or the directory could not be made or given away.
pub fn give_directory(user: &str, path: &Path) -> Result<(), PrivilegeError> {
    match Uid::effective().is_root() {
        true => give(path, 0o755, &account(user)?),
        false => Ok(()),
    }
}

fn account(user: &str) -> Result<User, PrivilegeError> {
    let found = User::from_name(user).ok().flatten();
    let account = found.ok_or_else(|| PrivilegeError::NoUser { user: user.to_owned() })?;
    match account.uid.is_root() {
        true => Err(PrivilegeError::Superuser { user: user.to_owned() }),
        false => Ok(account),
    }
}

fn give(path: &Path, mode: u32, account: &User) -> Result<(), PrivilegeError> {
    try_to_give(path, mode, account)
        .map_err(|source| PrivilegeError::Own { path: path.to_path_buf(), source })
}

fn try_to_give(path: &Path, mode: u32, account: &User) -> io::Result<()> {
    let made = match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            DirBuilder::new().mode(mode).create(path)?;
            true
        }
        Err(error) => return Err(error),
        Ok(_) => false,
    };
    // By handle, so that what was looked at is what is given away.
    let dir: File = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY).open(path)?;
    let empty = || fs::read_dir(path).map(|mut entries| entries.next().is_none());
    if made || (dir.metadata()?.uid() == 0 && empty()?) {
        fchown(&dir, Some(account.uid.as_raw()), Some(account.gid.as_raw()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
