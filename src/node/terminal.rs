//! A person at a terminal, for `--standalone`.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::{Pid, getpgrp, getpid, setpgid, tcgetpgrp, tcsetpgrp};

/// This process as the terminal's foreground, until dropped.
///
/// When a tool (`make`, a script) starts the program, Ctrl-C goes to the tool as well, which then dies of it
/// and reports a failure, although the compute stops in order and says so with its exit code. With the
/// terminal to itself the program alone gets the signal, and the tool sees the exit code.
#[derive(Debug)]
pub(super) struct Foreground {
    terminal: OwnedFd,
    before: Pid,
}

impl Foreground {
    /// Takes the terminal, if there is one, if it is ours to take, and if we are not its foreground group's
    /// leader already (an interactive shell makes us that).
    pub(super) fn take() -> Option<Self> {
        if getpgrp() == getpid() {
            return None;
        }
        let terminal = OwnedFd::from(File::open("/dev/tty").ok()?);
        let before = getpgrp();
        if tcgetpgrp(&terminal).ok()? != before {
            return None;
        }
        setpgid(Pid::from_raw(0), Pid::from_raw(0)).ok()?;
        let foreground = Foreground { terminal, before };
        set_foreground(&foreground.terminal, getpid())?;
        Some(foreground)
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        // If it fails, the tool that started us finds out by itself.
        let _ = set_foreground(&self.terminal, self.before);
    }
}

/// A background group that changes the foreground is stopped by SIGTTOU, unless it blocks it.
fn set_foreground(terminal: &OwnedFd, group: Pid) -> Option<()> {
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTTOU);
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&stop), Some(&mut before)).ok()?;
    let changed = tcsetpgrp(terminal, group);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).ok()?;
    changed.ok()
}
