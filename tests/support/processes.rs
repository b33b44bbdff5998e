//! Processes as `/proc` shows them, and which of them belong to a directory.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process: its number and when it began, which together name it.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) state: char,
    pub(crate) name: String,
    start: u64,
}

impl Process {
    /// The one with this number, a zombie included.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let text = String::from_utf8_lossy(&text);
        let (open, close) = (text.find('(')?, text.rfind(')')?);
        let fields: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
        Some(Process {
            pid,
            name: text.get(open + 1..close)?.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }

    /// Whether it is still there, if only as a zombie.
    pub(crate) fn exists(&self) -> bool {
        Process::of(self.pid).is_some_and(|now| now.start == self.start)
    }

    /// Signals it, if it is still there.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.exists() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Whether it works in the directory, runs a program from it, or names it in its arguments or environment.
    fn belongs_to(&self, dir: &Path) -> bool {
        let link = |name| fs::read_link(format!("/proc/{}/{name}", self.pid));
        let text = |name| fs::read(format!("/proc/{}/{name}", self.pid)).unwrap_or_default();
        let dir_name = dir.as_os_str().as_encoded_bytes();
        let names = |text: Vec<u8>| text.windows(dir_name.len()).any(|part| part == dir_name);
        ["cwd", "exe"].iter().any(|name| link(name).is_ok_and(|target| target.starts_with(dir)))
            || ["cmdline", "environ"].iter().any(|name| names(text(name)))
    }
}

/// All processes, zombies included.
pub(crate) fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("Linux has /proc");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Process::of)
        .collect()
}

/// The living processes that have to do with a directory, this one excepted.
pub(crate) fn of(dir: &Path) -> Vec<Process> {
    let me = i32::try_from(std::process::id()).expect("a process id");
    all().into_iter().filter(|process| process.pid != me && process.belongs_to(dir)).collect()
}

/// The children of a process.
pub(crate) fn children(parent: i32) -> Vec<Process> {
    all().into_iter().filter(|process| process.parent == parent).collect()
}
