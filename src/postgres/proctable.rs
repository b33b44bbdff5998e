//! What `/proc` says about other processes. Everything here is a snapshot: a process is identified by its pid
//! *and* its start time, and is signalled through a pidfd taken before that pair was compared.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The fields of `/proc/<pid>/stat` that are needed here (proc_pid_stat(5)).
#[derive(Clone, Debug)]
pub(super) struct Stat {
    pub(super) pid: i32,
    /// Name of the program, at most 15 bytes.
    pub(super) comm: String,
    pub(super) state: char,
    pub(super) ppid: i32,
    pub(super) pgrp: i32,
    /// Ticks after boot. With the pid it names a process for as long as the machine is up.
    pub(super) start: u64,
}

impl Stat {
    /// `None` when there is no such process.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let text = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?).into_owned();
        Self::parse(&text)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name may contain blanks and parentheses; nothing after it does.
        let (open, close) = (text.find('(')?, text.rfind(')')?);
        let fields: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
        Some(Self {
            pid: text.get(..open)?.trim().parse().ok()?,
            comm: text.get(open + 1..close)?.to_owned(),
            state: fields.first()?.chars().next()?,
            ppid: fields.get(1)?.parse().ok()?,
            pgrp: fields.get(2)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }

    /// A zombie runs no code and holds nothing but its number.
    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// By its name: `comm` and the executable are readable for other users' processes too, mostly.
    pub(super) fn is_postgres(&self) -> bool {
        let named = |name: &str| name.contains("postgres") || name.contains("postmaster");
        named(&self.comm)
            || fs::read_link(format!("/proc/{}/exe", self.pid))
                .is_ok_and(|exe| exe.file_name().is_some_and(|name| named(&name.to_string_lossy())))
    }

    /// The executable, also when its file was replaced meanwhile.
    pub(super) fn runs(&self, program: &Path) -> bool {
        fs::read_link(format!("/proc/{}/exe", self.pid)).is_ok_and(|exe| {
            let bytes = exe.as_os_str().as_bytes();
            let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
            OsStr::from_bytes(bytes) == program.as_os_str()
        })
    }

    /// Whether the environment it was started with has this variable.
    pub(super) fn has_variable(&self, name: &str) -> bool {
        let names = |entry: &[u8]| {
            entry.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='))
        };
        fs::read(format!("/proc/{}/environ", self.pid))
            .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(names))
    }

    /// Whether the environment it was started with holds this assignment.
    pub(super) fn has_env(&self, assignment: &str) -> bool {
        fs::read(format!("/proc/{}/environ", self.pid))
            .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == assignment.as_bytes()))
    }
}

/// A directory by device and inode, so that symlinks, bind mounts and renames do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirId {
    dev: u64,
    ino: u64,
}

impl DirId {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self { dev: metadata.dev(), ino: metadata.ino() }
    }

    /// Whether the process works in this directory; a server does so for life, and so do its backends.
    /// `None` when we may not know (another user's process) or it is gone.
    pub(super) fn is_cwd_of(self, pid: i32) -> Option<bool> {
        fs::metadata(format!("/proc/{pid}/cwd")).ok().map(|metadata| Self::of(&metadata) == self)
    }
}

/// All processes of this pid namespace.
pub(super) fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter_map(Stat::of).collect()
}

/// A handle on exactly this process, or `None` when it is gone.
pub(super) fn pin(stat: &Stat) -> Option<OwnedFd> {
    let fd = pidfd_open(Pid::from_raw(stat.pid)?, PidfdFlags::empty()).ok()?;
    // The handle was taken by number. If the number still belongs to the process meant, so does the handle.
    (Stat::of(stat.pid)?.start == stat.start).then_some(fd)
}

/// Has the runtime watch a handle for becoming readable, as a pidfd does when its process ends.
/// Must be called inside the runtime.
pub(super) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns an open descriptor, and nothing replaces or closes it while it is registered.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Signals exactly this process; one that is gone is no error.
pub(super) fn signal(stat: &Stat, signal: Signal) {
    if let Some(fd) = pin(stat) {
        let _gone_or_not_ours = pidfd_send_signal(&fd, signal);
    }
}

/// Resolves when all of these are gone or zombies. Must be called inside the runtime.
pub(super) async fn all_ended(processes: &[Stat]) {
    for stat in processes {
        let Some(Ok(pinned)) = pin(stat).map(watched) else { continue };
        let _ended = pinned.readable().await;
    }
}

/// A number that changes whenever the process does any work: time on a CPU in nanoseconds, and its I/O.
/// The command line is part of it because a recovering server shows the WAL segment there.
pub(super) fn work(pid: i32) -> (String, String, Vec<u8>) {
    let text = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let on_cpu = match text("schedstat") {
        empty if empty.is_empty() => text("stat"),
        schedstat => schedstat.split(' ').next().unwrap_or_default().to_owned(),
    };
    (on_cpu, text("io"), fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
}

/// One attached System V shared memory segment, from `/proc/sysvipc/shm`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) attached: u64,
    pub(super) creator: i32,
}

/// The segment with this key and id, if it exists in this IPC namespace.
pub(super) fn segment(key: i64, id: i64) -> Option<Segment> {
    segment_in(&fs::read_to_string(PathBuf::from("/proc/sysvipc/shm")).ok()?, key, id)
}

fn segment_in(table: &str, key: i64, id: i64) -> Option<Segment> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // key shmid perms size cpid lpid nattch …; keys are printed signed, postmaster.pid has them unsigned.
        let same = fields.first()?.parse::<i64>().ok()? as u32 == key as u32
            && fields.get(1)?.parse::<i64>().ok()? == id;
        same.then(|| {
            Some(Segment { attached: fields.get(6)?.parse().ok()?, creator: fields.get(4)?.parse().ok()? })
        })?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_is_read() {
        let stat = Stat::parse("42 (a) (b c) S 7 42 42 0 -1 1 0 0 0 0 5 6 0 0 20 0 1 0 999 0 0").unwrap();
        assert_eq!((stat.pid, stat.comm.as_str(), stat.state), (42, "a) (b c", 'S'));
        assert_eq!((stat.ppid, stat.pgrp, stat.start), (7, 42, 999));
    }

    #[test]
    fn this_process_is_found_and_alive() {
        let me = i32::try_from(std::process::id()).unwrap();
        let found = all().into_iter().find(|stat| stat.pid == me).unwrap();
        assert!(!found.is_dead());
        assert!(pin(&found).is_some());
        assert!(
            pin(&Stat { start: found.start + 1, ..found }).is_none(),
            "another start time is another process"
        );
    }

    #[test]
    fn shared_memory_is_found_by_key_and_id() {
        let table = "key shmid perms size cpid lpid nattch uid\n\
                     -5 3 600 56 11 12 0 0\n 99 4 600 56 21 22 6 0\n";
        assert_eq!(segment_in(table, 99, 4), Some(Segment { attached: 6, creator: 21 }));
        assert_eq!(segment_in(table, i64::from(u32::MAX) - 4, 3), Some(Segment { attached: 0, creator: 11 }));
        assert_eq!(segment_in(table, 99, 5), None);
    }
}
