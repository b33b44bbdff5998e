//! The log in files, beside the one on standard error: `pgcctl.YYYY-MM-DD` in a directory, another one each day (UTC), two
//! of them kept.
//!
//! For one deployment flavour (`--lakebase-mode true` with `COMPUTE_CTL_LOG_DIRECTORY`), whose collectors read the log of
//! Postgres in the same form: one JSON object a line, its keys in a fixed order (metrics-and-monitor, section 7). Our
//! own lines only, since Postgres writes its files itself.
//!
//! A thread of its own writes from a bounded queue, as for standard error; a disk that hangs or is full holds up
//! nothing. What cannot be written is lost, and that it is so is told on standard error, once for each time it begins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::Offset;
use serde::Serialize;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::layer::Context;

use super::Queue;

/// What the names of the files begin with; the day follows.
const PREFIX: &str = "pgcctl.";

/// How many files stay, today's included; the original's number.
const KEPT: usize = 2;

static QUEUE: Queue = Queue::new();

/// Where the files are to be, until the thread that writes has taken it over.
static PENDING: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Whether there is a thread that writes.
static WRITTEN: AtomicBool = AtomicBool::new(false);

/// Whether a spec was set, by which a compute becomes somebody's.
static ATTACHED: AtomicBool = AtomicBool::new(false);

/// Files of the log, and who writes them.
#[derive(Clone, Debug)]
pub struct Files {
    /// Where they are; made if it is not there.
    pub directory: PathBuf,
    /// The instance this compute runs in, empty if that has no name.
    pub instance_id: String,
    /// This compute.
    pub compute_id: String,
}

impl Files {
    /// Makes lines of events. They wait until [`begin`] is called.
    pub(super) fn layer(self) -> Lines {
        *PENDING.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.directory);
        Lines { instance_id: self.instance_id, compute_id: self.compute_id }
    }
}

/// Starts the thread that writes the files, once, if there are to be any. Call it when this process is whom it will stay:
/// root must not be led to files of others by what a user has put there, nor leave files that nobody else can write.
pub(super) fn begin() {
    let pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(directory) = pending else { return };
    let mut files = Rotating::new(directory, Timestamp::now);
    let write = move || {
        let lost =
            |lines| tracing::warn!(lines, "log lines were lost, the disk of the log files was too slow");
        QUEUE.write_to(&mut files, lost);
    };
    match thread::Builder::new().name("log-files".into()).spawn(write) {
        Ok(_) => WRITTEN.store(true, Ordering::Relaxed),
        Err(error) => tracing::warn!(%error, "there will be no log files"),
    }
}

/// A spec was set; from now on lines tell whose they are.
pub(super) fn attached() {
    ATTACHED.store(true, Ordering::Relaxed);
}

/// Waits until everything so far is written, for this long at most.
pub(super) fn flush(bound: Duration) {
    if WRITTEN.load(Ordering::Relaxed) {
        QUEUE.flush(bound);
    }
}

#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    error_severity: &'a str,
    file_name: &'a str,
    backend_type: &'a str,
    pg_instance_id: &'a str,
    pg_compute_id: &'a str,
    message: &'a str,
}

/// Makes lines of events.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    instance_id: String,
    compute_id: String,
}

impl Lines {
    fn line(&self, at: Timestamp, attached: bool, level: Level, target: &str, message: &str) -> Vec<u8> {
        let known = |id| if attached { id } else { "" };
        let line = Line {
            timestamp: at.strftime("%Y-%m-%d %H:%M:%S%.3f GMT").to_string(),
            error_severity: level.as_str(),
            file_name: target,
            backend_type: "compute_ctl_self",
            pg_instance_id: known(&self.instance_id),
            pg_compute_id: known(&self.compute_id),
            message,
        };
        let mut text = serde_json::to_vec(&line).expect("strings only");
        text.push(b'\n');
        text
    }

    fn offer(&self, level: Level, target: &str, message: &str) {
        let attached = ATTACHED.load(Ordering::Relaxed);
        QUEUE.offer(self.line(Timestamp::now(), attached, level, target, message));
    }

    /// What did not come by an event: a panic.
    pub(super) fn panic(&self, text: &str) {
        self.offer(Level::ERROR, "panic", text.trim_end());
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = String::new();
        // A string takes whatever it is given.
        let _ = DefaultFields::new().format_fields(Writer::new(&mut message), event);
        let metadata = event.metadata();
        self.offer(*metadata.level(), metadata.target(), &message);
    }
}

/// Today's file. Each write is one line.
struct Rotating<C> {
    directory: PathBuf,
    clock: C,
    open: Option<(Date, File)>,
    /// The last line could not be written, and that was told.
    failing: bool,
}

impl<C: Fn() -> Timestamp> Rotating<C> {
    fn new(directory: PathBuf, clock: C) -> Self {
        Rotating { directory, clock, open: None, failing: false }
    }

    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        let today = Offset::UTC.to_datetime((self.clock)()).date();
        let mut file = match self.open.take() {
            Some((day, file)) if day == today => file,
            _ => {
                let file = open(&self.directory, today)?;
                keep_newest(&self.directory, today);
                file
            }
        };
        file.write_all(line)?;
        // One that has failed is opened anew, which sees to what was written of the line.
        self.open = Some((today, file));
        Ok(())
    }
}

impl<C: Fn() -> Timestamp> Write for Rotating<C> {
    /// Never fails: there is nobody who could do anything about it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let put = self.put(line);
        let failed_before = std::mem::replace(&mut self.failing, put.is_err());
        match put {
            Err(error) if !failed_before => {
                let directory = self.directory.display();
                tracing::warn!(%directory, "nothing can be written to log files: {error}");
            }
            Ok(()) if failed_before => tracing::info!("log files are written again"),
            _ => {}
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line that was cut off in the file is ended first.
fn open(directory: &Path, day: Date) -> io::Result<File> {
    fs::create_dir_all(directory)?;
    let path = directory.join(format!("{PREFIX}{day}"));
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let mut last = *b"\n";
    if let Some(at) = file.metadata()?.len().checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    if last != *b"\n" {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// Removes the oldest of the other days' files. That one cannot be removed is no reason to write nothing.
fn keep_newest(directory: &Path, today: Date) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let day = |name: &str| {
        let text = name.strip_prefix(PREFIX)?;
        text.parse::<Date>().ok().filter(|day| day.to_string() == text)
    };
    let days = entries.flatten().filter_map(|entry| day(entry.file_name().to_str()?));
    let mut others: Vec<Date> = days.filter(|day| *day != today).collect();
    others.sort_unstable();
    others.truncate(others.len().saturating_sub(KEPT - 1));
    for day in others {
        if let Err(error) = fs::remove_file(directory.join(format!("{PREFIX}{day}"))) {
            tracing::warn!(%error, %day, "an old log file cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::collections::BTreeMap;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn lines() -> Lines {
        Lines { instance_id: "i-1".to_owned(), compute_id: "c-1".to_owned() }
    }

    fn contents(directory: &Path) -> BTreeMap<String, String> {
        let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
        let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
        entries.map(|entry| (name(&entry), fs::read_to_string(entry.path()).unwrap())).collect()
    }

    fn expected<const N: usize>(files: [(&str, &str); N]) -> BTreeMap<String, String> {
        files.map(|(name, text)| (name.to_owned(), text.to_owned())).into()
    }

    #[test]
    fn a_line_has_the_keys_of_the_original_in_its_order() {
        let now = at("2026-01-02T03:04:05.0067Z");
        let line = |attached| {
            let line = lines().line(now, attached, Level::WARN, "compute_ctl::node", "it is \"so\" n=1\n");
            String::from_utf8(line).unwrap()
        };
        let begin = r#"{"timestamp":"2026-01-02 03:04:05.006 GMT","error_severity":"WARN","file_name":"compute_ctl::node","backend_type":"compute_ctl_self","#;
        let end = r#""message":"it is \"so\" n=1\n"}"#;
        assert_eq!(line(false), format!("{begin}\"pg_instance_id\":\"\",\"pg_compute_id\":\"\",{end}\n"));
        assert_eq!(
            line(true),
            format!("{begin}\"pg_instance_id\":\"i-1\",\"pg_compute_id\":\"c-1\",{end}\n")
        );
    }

    #[test]
    fn each_day_has_its_file_and_two_of_them_stay() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("made/when/missing");
        let now = Cell::new(at("2026-02-27T23:59:59.999Z"));
        let mut files = Rotating::new(directory.clone(), || now.get());
        files.write_all(b"one\n").unwrap();
        files.write_all(b"two\n").unwrap();
        assert_eq!(contents(&directory), expected([("pgcctl.2026-02-27", "one\ntwo\n")]));
        // What is not one of these files is somebody else's.
        let others = ["pgcctl.2026-02-99", "pgcctl.20260201", "pgcctl.2026-02-01.gz", "other.2026-02-01"]
            .map(|name| (name, ""));
        for (name, text) in others {
            fs::write(directory.join(name), text).unwrap();
        }
        now.set(at("2026-02-28T00:00:00Z"));
        files.write_all(b"three\n").unwrap();
        let mut wanted = expected([("pgcctl.2026-02-27", "one\ntwo\n"), ("pgcctl.2026-02-28", "three\n")]);
        wanted.extend(expected(others));
        assert_eq!(contents(&directory), wanted);
        now.set(at("2026-03-01T12:00:00Z"));
        files.write_all(b"four\n").unwrap();
        wanted.remove("pgcctl.2026-02-27");
        wanted.extend(expected([("pgcctl.2026-03-01", "four\n")]));
        assert_eq!(contents(&directory), wanted);
        // A clock that was put back does not cost today's file.
        now.set(at("2026-01-01T12:00:00Z"));
        files.write_all(b"five\n").unwrap();
        wanted.remove("pgcctl.2026-02-28");
        wanted.extend(expected([("pgcctl.2026-01-01", "five\n")]));
        assert_eq!(contents(&directory), wanted);
    }

    #[test]
    fn a_file_is_gone_on_with_on_a_line_of_its_own() {
        let place = tempfile::tempdir().unwrap();
        let today = at("2026-02-27T12:00:00Z");
        fs::write(place.path().join("pgcctl.2026-02-27"), "{\"cut o").unwrap();
        for line in [b"one\n", b"two\n"] {
            Rotating::new(place.path().to_owned(), || today).write_all(line).unwrap();
        }
        assert_eq!(contents(place.path()), expected([("pgcctl.2026-02-27", "{\"cut o\none\ntwo\n")]));
    }

    #[test]
    fn what_cannot_be_written_is_lost_and_the_next_line_is_tried_again() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("log");
        let today = at("2026-02-27T12:00:00Z");
        let mut files = Rotating::new(directory.clone(), || today);
        fs::write(&directory, "a file").unwrap();
        files.write_all(b"one\n").unwrap();
        assert!(files.failing);
        fs::remove_file(&directory).unwrap();
        files.write_all(b"two\n").unwrap();
        assert!(!files.failing);
        assert_eq!(contents(&directory), expected([("pgcctl.2026-02-27", "two\n")]));
    }

    #[test]
    fn a_full_disk_is_tried_again() {
        let place = tempfile::tempdir().unwrap();
        let today = at("2026-02-27T12:00:00Z");
        let mut files = Rotating::new(place.path().to_owned(), || today);
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        files.open = Some((Offset::UTC.to_datetime(today).date(), full));
        files.write_all(b"one\n").unwrap();
        assert!(files.failing);
        files.write_all(b"two\n").unwrap();
        assert!(!files.failing);
        assert_eq!(contents(place.path()), expected([("pgcctl.2026-02-27", "two\n")]));
    }
}
