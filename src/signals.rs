//! Signals as events.
//!
//! A handler only enqueues (tokio's own handler writes a byte to a pipe), so nothing can deadlock in it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use compute_states::Event;
use nix::sys::signal::{self as unix, SaFlags, SigAction, SigHandler, SigSet};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::engine::Handle;

/// Whether a stop signal came before anybody listened.
static EARLY: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: nix::libc::c_int) {
    EARLY.store(true, Ordering::Relaxed);
}

extern "C" fn survive(_signal: nix::libc::c_int) {}

/// Has stop signals remembered until [`Signals::install`] can be called, and the others do nothing. Their
/// default disposition would end the process with a code that says nothing; and to PID 1 the kernel does not
/// deliver what is not caught, so that a stop would be lost.
///
/// # Errors
/// If the kernel refuses.
pub fn catch_early() -> io::Result<()> {
    let stop = [unix::Signal::SIGTERM, unix::Signal::SIGINT, unix::Signal::SIGQUIT];
    let other = [unix::Signal::SIGHUP, unix::Signal::SIGUSR1, unix::Signal::SIGUSR2];
    let stop = stop.map(|signal| (signal, note as extern "C" fn(_)));
    for (signal, handler) in stop.into_iter().chain(other.map(|signal| (signal, survive as extern "C" fn(_))))
    {
        let action = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handlers do nothing or store to an atomic, which is safe in a signal handler.
        unsafe { unix::sigaction(signal, &action) }?;
    }
    Ok(())
}

/// The signals this process listens to. Installing them early is what keeps a signal from ending the process
/// by its default disposition; as PID 1 it is what makes the kernel deliver them at all.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    child: Signal,
    early: bool,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// SIGTERM, SIGINT, SIGQUIT: stop.
    Stop,
    /// SIGHUP: read again what may be reloaded.
    Reload,
    /// SIGUSR1: write the journal.
    WriteJournal,
    /// SIGCHLD: a child has ended, perhaps one that was adopted.
    ChildEnded,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the runtime cannot register a handler.
    pub fn install() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            child: signal(SignalKind::child())?,
            // Last, so that what came until now is either here or already in one of those above.
            early: EARLY.load(Ordering::Relaxed),
        })
    }

    /// The next one. Can be dropped and called again without losing a signal.
    pub async fn next(&mut self) -> Asked {
        if std::mem::take(&mut self.early) {
            return Asked::Stop;
        }
        loop {
            tokio::select! {
                biased;
                _ = self.terminate.recv() => return Asked::Stop,
                _ = self.interrupt.recv() => return Asked::Stop,
                _ = self.quit.recv() => return Asked::Stop,
                _ = self.child.recv() => return Asked::ChildEnded,
                _ = self.hangup.recv() => return Asked::Reload,
                _ = self.user1.recv() => return Asked::WriteJournal,
                // Caught so that it does not kill, and otherwise without a meaning.
                _ = self.user2.recv() => {}
            }
        }
    }

    /// Turns signals into events until the task is dropped. `write_journal` and `child_ended` are called for
    /// what is not one.
    pub async fn feed(mut self, handle: Handle, write_journal: impl Fn(), child_ended: impl Fn()) {
        loop {
            match self.next().await {
                Asked::Stop => handle.report(Event::StopSignalled).await,
                Asked::Reload => handle.report(Event::ReloadSignalled).await,
                Asked::WriteJournal => write_journal(),
                Asked::ChildEnded => child_ended(),
            }
        }
    }
}
