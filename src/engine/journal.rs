//! What happened: a bounded ring of events with what became of each, its file, and its replay.
//!
//! The machine is pure, so the events alone reproduce every state. Now and then the journal keeps a copy of the
//! machine; when the ring is full, it forgets everything before the next copy. A recording begins with the copy
//! before its first event, and replays from there bit for bit.

use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::Duration;

use compute_states::{ComputeStatus, Event, Machine, Step, Verdict};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::limits;

/// Version of the file format.
const VERSION: u32 = 1;

/// One event and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Number of the event in the life of the process, from 0. Those that are left out have one, too.
    pub seq: u64,
    /// When, in microseconds since the loop began.
    pub at_us: u64,
    /// The event.
    pub event: Event,
    /// What became of it.
    pub verdict: Verdict,
    /// The status after it.
    pub status: ComputeStatus,
    /// [`Machine::fingerprint`] after it.
    pub fingerprint: u64,
    /// The text of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Arc<str>>,
}

/// The ring, as the loop writes it.
pub(super) struct Journal {
    begun: Instant,
    /// The machine as it was before the oldest entry.
    base: Machine,
    /// The machine as it was after each [`limits::JOURNAL_STRETCH`] of entries.
    copies: VecDeque<Machine>,
    entries: VecDeque<Entry>,
    next: u64,
}

impl Journal {
    pub(super) fn new(machine: &Machine) -> Self {
        Journal {
            begun: Instant::now(),
            base: machine.clone(),
            copies: VecDeque::new(),
            entries: VecDeque::with_capacity(limits::JOURNAL),
            next: 0,
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn push(
        &mut self,
        now: Duration,
        event: Event,
        verdict: Verdict,
        machine: &Machine,
        note: Option<Arc<str>>,
    ) {
        if self.entries.len() == limits::JOURNAL
            && let Some(copy) = self.copies.pop_front()
        {
            self.base = copy;
            self.entries.drain(..limits::JOURNAL_STRETCH);
        }
        self.entries.push_back(Entry {
            seq: self.next,
            at_us: u64::try_from(now.as_micros()).unwrap_or(u64::MAX),
            event,
            verdict,
            status: machine.status(),
            fingerprint: machine.fingerprint(),
            note,
        });
        self.next += 1;
        if self.entries.len().is_multiple_of(limits::JOURNAL_STRETCH) {
            self.copies.push_back(machine.clone());
        }
    }

    /// An event that is not remembered. It must have changed nothing, or what follows would not replay.
    pub(super) fn leave_out(&mut self, machine: &Machine) {
        let before = || self.entries.back().map_or_else(|| self.base.fingerprint(), |last| last.fingerprint);
        debug_assert_eq!(before(), machine.fingerprint(), "an event that changes the machine is left out");
        self.next += 1;
    }

    pub(super) fn record(&self) -> Recording {
        Recording { base: self.base.clone(), entries: self.entries.iter().cloned().collect() }
    }
}

/// A stretch of what happened, which can be written, read and replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The machine before the first entry.
    pub base: Machine,
    /// What happened then, in order.
    pub entries: Vec<Entry>,
}

/// First line of the file.
#[derive(Serialize, Deserialize)]
struct Header {
    journal: u32,
    program: String,
    machine: Machine,
}

/// Why a recording could not be read or replayed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read.
    #[error("the journal cannot be read")]
    Io(#[from] std::io::Error),
    /// There is not even a first line.
    #[error("the journal is empty: its first line should hold the machine it begins with")]
    Empty,
    /// A line is not what it should be.
    #[error("line {line} of the journal is not {expected}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What it should be.
        expected: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by another version of the format.
    #[error("the journal has version {found} of the format; this program reads version {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// The machine of this program does something else than the one that wrote the journal.
    #[error(
        "event {seq} leads to status {status}, verdict \"{verdict}\", fingerprint {fingerprint:016x}; \
         the journal says status {}, verdict \"{}\", fingerprint {:016x}",
        .recorded.status, .recorded.verdict, .recorded.fingerprint
    )]
    Diverged {
        /// Number of the event.
        seq: u64,
        /// Status after it, here.
        status: ComputeStatus,
        /// Verdict on it, here.
        verdict: Verdict,
        /// Fingerprint after it, here.
        fingerprint: u64,
        /// What the journal says.
        recorded: Box<Entry>,
    },
}

impl Recording {
    /// Writes it as JSON lines: the machine it begins with, then one line an event.
    ///
    /// # Errors
    /// If `out` cannot be written.
    pub fn write(&self, mut out: impl Write) -> std::io::Result<()> {
        let program = format!("compute_ctl {}", env!("CARGO_PKG_VERSION"));
        let header = Header { journal: VERSION, program, machine: self.base.clone() };
        serde_json::to_writer(&mut out, &header)?;
        out.write_all(b"\n")?;
        for entry in &self.entries {
            serde_json::to_writer(&mut out, entry)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    /// Reads what [`Recording::write`] wrote.
    ///
    /// # Errors
    /// Names the first line that is not what it should be.
    pub fn read(input: impl BufRead) -> Result<Self, JournalError> {
        let mut lines = input.lines().enumerate();
        let (_, first) = lines.next().ok_or(JournalError::Empty)?;
        let header: Header = serde_json::from_str(&first?).map_err(|source| JournalError::Line {
            line: 1,
            expected: "the header of a journal",
            source,
        })?;
        if header.journal != VERSION {
            return Err(JournalError::Version { found: header.journal });
        }
        let mut entries = Vec::new();
        for (index, line) in lines {
            let entry = serde_json::from_str(&line?).map_err(|source| JournalError::Line {
                line: index + 1,
                expected: "an entry of a journal",
                source,
            })?;
            entries.push(entry);
        }
        Ok(Recording { base: header.machine, entries })
    }

    /// Handles every event again and compares what becomes of it. `each` sees every entry with the effects it
    /// had, after it was found to be the same.
    ///
    /// # Errors
    /// At the first event that leads elsewhere than the journal says.
    pub fn replay(&self, mut each: impl FnMut(&Entry, &Step)) -> Result<Machine, JournalError> {
        let mut machine = self.base.clone();
        let mut step = Step::default();
        for entry in &self.entries {
            machine.handle_into(&entry.event, &mut step);
            let same = step.verdict() == entry.verdict
                && machine.status() == entry.status
                && machine.fingerprint() == entry.fingerprint;
            if !same {
                return Err(JournalError::Diverged {
                    seq: entry.seq,
                    status: machine.status(),
                    verdict: step.verdict(),
                    fingerprint: machine.fingerprint(),
                    recorded: Box::new(entry.clone()),
                });
            }
            each(entry, &step);
        }
        Ok(machine)
    }
}

#[cfg(test)]
mod tests {
    use compute_states::{Policy, RequestId, TerminateMode};

    use super::*;

    fn recorded(events: impl IntoIterator<Item = Event>) -> Recording {
        let mut machine = Machine::new(Policy::default());
        let mut journal = Journal::new(&machine);
        for event in events {
            let step = machine.handle(&event);
            journal.push(Duration::from_micros(7), event, step.verdict(), &machine, None);
        }
        journal.record()
    }

    fn history(length: usize) -> impl Iterator<Item = Event> {
        std::iter::once(Event::Booted { spec: None })
            .chain(std::iter::repeat_n(Event::RefreshHinted, length))
            .chain([Event::TerminateRequested { request: RequestId(1), mode: TerminateMode::Fast }])
    }

    #[tokio::test]
    async fn what_is_written_reads_back_and_replays() {
        let recording = recorded(history(3));
        let mut file = Vec::new();
        recording.write(&mut file).expect("memory can be written");
        let read = Recording::read(file.as_slice()).expect("it was just written");
        assert_eq!(read, recording);
        let machine = read.replay(|_, _| {}).expect("the same machine");
        assert_eq!(machine.status(), ComputeStatus::TerminationPendingFast);
    }

    #[tokio::test]
    async fn a_ring_that_overflowed_still_replays() {
        for more in 0..limits::JOURNAL_STRETCH * 2 {
            let recording = recorded(history(limits::JOURNAL * 2 + more));
            let length = recording.entries.len();
            assert!(
                length > limits::JOURNAL - limits::JOURNAL_STRETCH && length <= limits::JOURNAL,
                "{length}"
            );
            recording.replay(|_, _| {}).expect("the base trails the ring");
            let last = recording.entries.last().map(|last| last.event.kind());
            assert_eq!(last, Some(compute_states::EventKind::TerminateRequested));
        }
    }

    #[tokio::test]
    async fn a_journal_that_was_changed_is_found_out() {
        let mut recording = recorded(history(3));
        recording.entries[2].fingerprint ^= 1;
        let error = recording.replay(|_, _| {}).expect_err("the fingerprint is another");
        assert!(matches!(error, JournalError::Diverged { seq: 2, .. }), "{error}");
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = Recording::read("{}\n".as_bytes()).expect_err("no header");
        assert!(matches!(error, JournalError::Line { line: 1, .. }), "{error}");
        assert!(matches!(Recording::read("".as_bytes()), Err(JournalError::Empty)));
    }
}
