//! How far the preparation of a data directory is.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a preparation is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nothing is being prepared.
    Idle,
    /// Safekeepers are asked, or made, to agree on the end of the log.
    Agreeing,
    /// A source is being reached; no byte of it has come.
    Connecting,
    /// A source is received and written into the data directory as it comes.
    Receiving,
    /// `initdb` runs, or its result is cloned.
    Initializing,
    /// What was written is compared with what the source says of it.
    Verifying,
}

impl Phase {
    /// All of them, by number.
    pub const ALL: [Phase; 6] = [
        Phase::Idle,
        Phase::Agreeing,
        Phase::Connecting,
        Phase::Receiving,
        Phase::Initializing,
        Phase::Verifying,
    ];
}

/// As in `/status` and in metric labels.
impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Idle => "idle",
            Phase::Agreeing => "agreeing",
            Phase::Connecting => "connecting",
            Phase::Receiving => "receiving",
            Phase::Initializing => "initializing",
            Phase::Verifying => "verifying",
        })
    }
}

/// How far a preparation is. Cheap to write and to read at any time, by anybody; its numbers belong to the last
/// preparation that was begun.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    received: AtomicU64,
    files: AtomicU64,
    written: AtomicU64,
    measured: Mutex<Measured>,
}

/// How long the parts of a preparation took; 0 for what was not done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Asking safekeepers whether they agree.
    pub safekeeper_check: Duration,
    /// Making them agree.
    pub safekeeper_sync: Duration,
    /// Being let in by a pageserver.
    pub connect: Duration,
    /// Fetching and unpacking, the connection included.
    pub fetch: Duration,
}

impl Progress {
    /// What is being done.
    pub fn phase(&self) -> Phase {
        let number = usize::from(self.phase.load(Ordering::Relaxed));
        Phase::ALL.get(number).copied().unwrap_or(Phase::Idle)
    }

    /// Bytes of the source, compressed as they came.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Files finished.
    pub fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }

    /// Bytes written to files.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Something else is being done from now on.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// For a further try.
    pub fn reset(&self) {
        for counter in [&self.received, &self.files, &self.written] {
            counter.store(0, Ordering::Relaxed);
        }
        *self.lock() = Measured::default();
    }

    /// How long the parts took that are done.
    pub fn measured(&self) -> Measured {
        *self.lock()
    }

    /// Writes down how long a part took.
    pub fn measure(&self, note: impl FnOnce(&mut Measured)) {
        note(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Measured> {
        // Numbers only: whatever a panic has left is no worse than what was there.
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More bytes of the source have come.
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A file is finished.
    pub fn add_file(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    /// More bytes are in files.
    pub fn add_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_found_by_its_number() {
        let progress = Progress::default();
        assert_eq!(progress.phase(), Phase::Idle);
        for phase in Phase::ALL {
            progress.enter(phase);
            assert_eq!(progress.phase(), phase);
        }
    }
}
