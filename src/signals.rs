//! Signals as events.
//!
//! A handler only enqueues (tokio's own handler writes a byte to a pipe), so nothing can deadlock in it.

use std::io;

use compute_states::Event;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::engine::Handle;

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
        })
    }

    /// The next one. Can be dropped and called again without losing a signal.
    pub async fn next(&mut self) -> Asked {
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
