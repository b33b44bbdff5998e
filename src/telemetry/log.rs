//! Logging: lines of text, or JSON, on standard error, filtered by `RUST_LOG`.
//!
//! Whoever reads it may stall or go away, and neither may reach the node: one thread writes, from a bounded queue,
//! and nobody else waits for a write. Our own lines are lost when the queue is full, Postgres's when it stays so;
//! how many is logged once there is room again.
//!
//! Our own lines can go to [`files`] as well.

pub mod files;
mod json;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use super::{Traces, trace};
use crate::cli::LogFormat;
use crate::limits;

use files::Files;

/// Spans which do not stand before lines of text, since they would hide what matters to people: the two lines of a request
/// say what it is, and the others add nothing to the spans around them.
const UNSHOWN: [&str; 4] = [trace::HTTP, "configure_as_primary", "db_apply_changes", "check"];

static QUEUE: Queue = Queue::new();

/// Whether lines are JSON, those included which come by no event.
static JSON: AtomicBool = AtomicBool::new(false);

/// Installs the subscriber for the whole process and starts the thread that writes. The filter comes from
/// `RUST_LOG` and is `info` without it, or if it cannot be parsed. Text has no colour and no target, as the original's
/// readers expect (cli, section 3). Spans also go to `traces`, and events to `files`, which are written once privileges are
/// dropped. Panics are told to the log as well: the standard hook writes by itself, and would wait for a stalled reader
/// in the thread that panicked.
///
/// A second call is without effect, so tests may call it.
///
/// # Errors
///
/// The thread could not be started; nothing will be written.
pub fn init(format: LogFormat, traces: Option<&Traces>, files: Option<Files>) -> io::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // It tells of internal errors by `eprintln!`, which panics when nobody reads.
    let lines =
        fmt::layer().with_writer(|| Own).with_ansi(false).with_target(false).log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => {
            lines.with_filter(filter_fn(|of| !(of.is_span() && UNSHOWN.contains(&of.name())))).boxed()
        }
        LogFormat::Json => lines.fmt_fields(json::JsonFields).event_format(json::Json).boxed(),
    };
    let spans = traces.map(Traces::layer);
    let files = files.map(Files::layer);
    let layers = tracing_subscriber::registry().with(spans).with(filter).with(lines).with(files.clone());
    if layers.try_init().is_err() {
        return Ok(());
    }
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        let text = format!("thread '{}' {panic}{trace}\n", thread.name().unwrap_or("?"));
        if let Some(files) = &files {
            files.panic(&text);
        }
        let line = if JSON.load(Ordering::Relaxed) { json::panic(&text) } else { text };
        QUEUE.offer(line.into_bytes());
    }));
    let write = || {
        let lost = |lines| tracing::warn!(lines, "log lines were lost, their reader was too slow");
        QUEUE.write_to(&mut io::stderr(), lost);
    };
    thread::Builder::new().name("log".into()).spawn(write)?;
    Ok(())
}

/// Whether lines are JSON.
pub(crate) fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Has the log files be written from now on, if there are to be any. Privileges are dropped first: see [`files`].
pub(crate) fn begin_files() {
    files::begin();
}

/// A spec was set. Lines in log files tell whose they are from then on.
pub(crate) fn attached() {
    files::attached();
}

/// Waits until everything logged so far is written, for this long at most.
pub fn flush(bound: Duration) {
    let begun = Instant::now();
    QUEUE.flush(bound);
    files::flush(bound.saturating_sub(begun.elapsed()));
}

/// Writes a line of Postgres's, after those that came before it. Waits while its share of the queue is full, but
/// only so long; never call it where something else has to go on.
pub(crate) fn pass(line: &str) {
    let json = JSON.load(Ordering::Relaxed).then(|| json::postgres(line));
    QUEUE.pass(json.unwrap_or_else(|| line.to_owned()).into_bytes());
}

/// Our own lines. The subscriber hands over each whole, in one call.
struct Own;

impl Write for Own {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        QUEUE.offer(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines on their way. Bounded in bytes, since one of Postgres's may be as long as thousands of ours. The lock is
/// held for moments only, never during a write.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// A line taken out is not written yet.
    writing: bool,
    /// Lines dropped since that was last told.
    lost: u64,
    /// Postgres has waited in vain and nothing was written since: it need not wait again.
    stalled: bool,
}

impl State {
    fn push(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.lines.push_back(line);
    }

    /// Less than Postgres's share, so that a busy server leaves room for what we have to say.
    fn has_room(&self) -> bool {
        self.bytes < limits::LOG_QUEUE / 2
    }
}

impl Queue {
    const fn new() -> Self {
        let state = State { lines: VecDeque::new(), bytes: 0, writing: false, lost: 0, stalled: false };
        Queue { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line if there is room.
    fn offer(&self, line: Vec<u8>) {
        let mut state = self.lock();
        if state.bytes + line.len() <= limits::LOG_QUEUE {
            state.push(line);
            self.changed.notify_all();
        } else {
            state.lost += 1;
        }
    }

    /// Takes a line, after a wait for room.
    fn pass(&self, line: Vec<u8>) {
        let state = self.lock();
        let wait = if state.stalled { Duration::ZERO } else { limits::LOG_STALL };
        let waited = self.changed.wait_timeout_while(state, wait, |state| !state.has_room());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.has_room() {
            state.push(line);
            self.changed.notify_all();
        } else {
            state.stalled = true;
            state.lost += 1;
        }
    }

    /// Writes for ever, and says how many lines were lost when there is room to say it.
    fn write_to(&self, out: &mut impl Write, lost: impl Fn(u64)) {
        let mut state = self.lock();
        loop {
            state = self
                .changed
                .wait_while(state, |state| state.lines.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            let Some(line) = state.lines.pop_front() else { continue };
            state.bytes -= line.len();
            state.writing = true;
            drop(state);
            // When nobody reads there is nobody to tell.
            let _ = out.write_all(&line);
            state = self.lock();
            state.stalled = false;
            if state.lost > 0 && state.has_room() {
                let lines = std::mem::take(&mut state.lost);
                drop(state);
                lost(lines);
                state = self.lock();
            }
            state.writing = false;
            self.changed.notify_all();
        }
    }

    fn flush(&self, bound: Duration) {
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), bound, busy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn line(text: &str) -> Vec<u8> {
        text.as_bytes().to_vec()
    }

    /// A reader that reads one line whenever the test receives one.
    struct Reader(mpsc::SyncSender<String>);

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.0.send(text).map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn read(queue: &'static Queue) -> mpsc::Receiver<String> {
        let (sender, receiver) = mpsc::sync_channel(0);
        thread::spawn(move || {
            queue.write_to(&mut Reader(sender), |lost| queue.offer(format!("{lost} lost").into_bytes()));
        });
        receiver
    }

    #[test]
    fn lines_keep_their_order_and_lost_ones_are_counted_when_there_is_room() {
        static QUEUE: Queue = Queue::new();
        let long = "x".repeat(limits::LOG_QUEUE / 2);
        QUEUE.offer(line("ours"));
        QUEUE.pass(line(&long));
        QUEUE.lock().stalled = true;
        QUEUE.pass(line("no room for Postgres"));
        QUEUE.offer(line("ours again"));
        QUEUE.offer(line(&long));
        let reader = read(&QUEUE);
        let seen: Vec<String> = reader.iter().take(4).collect();
        assert_eq!(seen, ["ours", &long, "ours again", "2 lost"]);
        QUEUE.flush(Duration::MAX);
        assert!(!QUEUE.lock().stalled, "there is somebody again");
    }

    #[test]
    fn postgres_waits_for_room_and_then_loses_nothing() {
        static QUEUE: Queue = Queue::new();
        QUEUE.pass(line(&"x".repeat(limits::LOG_QUEUE / 2)));
        let waiter = thread::spawn(|| QUEUE.pass(line("after")));
        let reader = read(&QUEUE);
        assert!(reader.recv().unwrap().starts_with('x'));
        assert_eq!(reader.recv().unwrap(), "after");
        waiter.join().unwrap();
        assert_eq!(QUEUE.lock().lost, 0);
    }

    #[test]
    fn a_reader_that_is_gone_holds_up_nothing() {
        static QUEUE: Queue = Queue::new();
        drop(read(&QUEUE));
        for _ in 0..4 {
            QUEUE.pass(line(&"x".repeat(limits::LOG_QUEUE / 2)));
        }
        QUEUE.flush(Duration::MAX);
        assert_eq!(QUEUE.lock().lost, 0);
    }

    #[test]
    fn a_flush_ends_though_nobody_writes() {
        static QUEUE: Queue = Queue::new();
        QUEUE.offer(line("for nobody"));
        QUEUE.flush(Duration::ZERO);
        assert_eq!(QUEUE.lock().lines.len(), 1);
    }
}
