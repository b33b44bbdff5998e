//! The server's standard output and error, put together into messages and passed on.
//!
//! A thread of its own does it: passing on may block, and then the server should be the one that
//! waits, not a worker of the runtime. Nothing else waits for this thread; orphaned backends may hold the pipe
//! long after the postmaster is gone.

use std::fmt;
use std::io::{self, PipeReader, Read};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::watch;

use crate::limits;
use crate::telemetry;

/// Joins the lines of one message: invisible, never part of a log line itself, and what readers of the
/// original's output split at.
const JOINER: &str = "\u{200b}";

/// Where messages go: called with one message at a time, `PG:`, its lines joined by U+200B, a newline.
pub struct LogSink(Box<dyn FnMut(&str) + Send>);

impl LogSink {
    /// Our own standard error, one write per message, in order with our own lines; they are written once
    /// [`telemetry::log::init`] was called. The server waits for a slow reader, but not for one that has stalled.
    pub fn stderr() -> Self {
        Self::new(telemetry::log::pass)
    }

    /// A function of the caller's. It may block; the server then waits.
    pub fn new(sink: impl FnMut(&str) + Send + 'static) -> Self {
        Self(Box::new(sink))
    }

    /// One more message.
    pub(crate) fn pass(&mut self, message: &str) {
        (self.0)(message);
    }
}

/// What a server said last before it gave up. For a server that ends before it is ready: later its sessions give
/// up for reasons of their own.
#[derive(Clone, Debug, Default)]
pub struct LastWords(Arc<Mutex<Option<String>>>);

impl LastWords {
    /// Another sink that hears the messages first.
    pub fn heard_by(&self, mut sink: LogSink) -> LogSink {
        let words = self.clone();
        LogSink::new(move |message| {
            words.hear(message);
            sink.0(message);
        })
    }

    /// The message, without time and process, cut where it gets long.
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hear(&self, message: &str) {
        let line = message.split(JOINER).next().unwrap_or_default();
        let found = ["FATAL:  ", "PANIC:  "].iter().find_map(|severity| line.split_once(severity));
        // Those who come too early are told so in the same way.
        let Some((_, text)) = found.filter(|(_, text)| !text.starts_with("the database system is ")) else {
            return;
        };
        let text = text.trim_end().chars().take(limits::LAST_WORDS).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }
}

impl fmt::Debug for LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogSink")
    }
}

/// Starts the thread; what is returned becomes `true` when the pipe has ended and all was passed on.
pub(super) fn collect(mut pipe: PipeReader, mut sink: LogSink) -> io::Result<watch::Receiver<bool>> {
    let (end, ended) = watch::channel(false);
    let work = move || {
        let mut messages = Messages::default();
        if let Err(error) = pump(&mut pipe, &mut messages, &mut sink.0) {
            tracing::warn!(%error, "the server's log cannot be read any more");
        }
        messages.end(&mut sink.0);
        end.send_replace(true);
    };
    std::thread::Builder::new().name("pg-log".into()).spawn(work)?;
    Ok(ended)
}

fn pump(pipe: &mut PipeReader, messages: &mut Messages, sink: &mut dyn FnMut(&str)) -> io::Result<()> {
    let silence = Timespec { tv_sec: 0, tv_nsec: i64::from(limits::LOG_SILENCE.subsec_nanos()) };
    let mut chunk = vec![0; 16 * 1024];
    loop {
        if messages.open {
            match poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&silence)) {
                Ok(0) => {
                    messages.flush(sink);
                    continue;
                }
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
        }
        match pipe.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => messages.push(&chunk[..n], sink),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes to messages. A line that starts with a timestamp starts a message; the lines after it belong to it.
#[derive(Default)]
struct Messages {
    /// Complete lines of the message under way, joined.
    message: Vec<u8>,
    /// There is a message under way, though perhaps an empty one.
    open: bool,
    /// The start of a line whose end has not come.
    line: Vec<u8>,
}

impl Messages {
    fn push(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.last() == Some(&b'\n') {
                self.line.pop();
                self.line_ended(sink);
            } else if self.line.len() > limits::LOG_RECORD {
                self.line_ended(sink);
            }
        }
    }

    fn line_ended(&mut self, sink: &mut dyn FnMut(&str)) {
        if starts_message(&self.line) || self.message.len() + self.line.len() > limits::LOG_RECORD {
            self.flush(sink);
        }
        if self.open {
            self.message.extend_from_slice(JOINER.as_bytes());
        }
        self.open = true;
        self.message.append(&mut self.line);
    }

    /// Passes on the message under way. A line without its end is kept for more.
    fn flush(&mut self, sink: &mut dyn FnMut(&str)) {
        if self.open {
            sink(&format!("PG:{}\n", String::from_utf8_lossy(&self.message)));
            self.message.clear();
            self.open = false;
        }
    }

    fn end(&mut self, sink: &mut dyn FnMut(&str)) {
        if !self.line.is_empty() {
            self.line_ended(sink);
        }
        self.flush(sink);
    }
}

/// `^\d+-\d{2}-\d{2} \d{2}:\d{2}:\d{2}`, the date and time that every `log_line_prefix` in use begins with.
fn starts_message(line: &[u8]) -> bool {
    let year = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let shape = b"-dd-dd dd:dd:dd";
    year > 0
        && line.len() >= year + shape.len()
        && line[year..].iter().zip(shape).all(|(byte, want)| match want {
            b'd' => byte.is_ascii_digit(),
            _ => byte == want,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::mpsc;

    fn messages(chunks: &[&[u8]]) -> Vec<String> {
        let mut seen = Vec::new();
        let mut messages = Messages::default();
        let mut sink = |message: &str| seen.push(message.to_owned());
        for chunk in chunks {
            messages.push(chunk, &mut sink);
        }
        messages.end(&mut sink);
        seen
    }

    const A: &str = "2026-01-02 03:04:05.678 UTC [1] LOG:  one";
    const B: &str = "2026-01-02 03:04:06.000 UTC [1] ERROR:  two";

    #[test]
    fn lines_of_one_message_stay_together_wherever_the_chunks_are_cut() {
        let text = format!("{A}\n\tmore\n\n{B}\nlast");
        let want = vec![format!("PG:{A}\u{200b}\tmore\u{200b}\n"), format!("PG:{B}\u{200b}last\n")];
        for cut in 0..text.len() {
            assert_eq!(messages(&[&text.as_bytes()[..cut], &text.as_bytes()[cut..]]), want, "cut at {cut}");
        }
    }

    #[test]
    fn bytes_that_are_no_utf8_do_not_end_the_log() {
        let seen = messages(&[A.as_bytes(), b" \xff\xfe\n", B.as_bytes(), b"\n"]);
        assert_eq!(seen, [format!("PG:{A} \u{fffd}\u{fffd}\n"), format!("PG:{B}\n")]);
    }

    #[test]
    fn a_message_of_any_length_takes_bounded_memory_and_loses_nothing() {
        let line = vec![b'x'; 3 * limits::LOG_RECORD];
        let chunks: Vec<&[u8]> = line.chunks(10_000).collect();
        let seen = messages(&chunks);
        assert!(seen.len() > 2);
        assert!(seen.iter().all(|message| message.len() <= limits::LOG_RECORD + 10_004 + 8));
        assert_eq!(seen.iter().map(|message| message.matches('x').count()).sum::<usize>(), line.len());
    }

    #[test]
    fn the_last_words_are_those_of_a_server_that_gives_up() {
        let words = LastWords::default();
        let mut heard = words.heard_by(LogSink::new(|_| {}));
        let prefix = "PG:2026-01-02 03:04:05.678 UTC [1] ";
        heard.0(&format!("{prefix}LOG:  starting\n"));
        heard.0(&format!("{prefix}FATAL:  the database system is starting up\n"));
        assert_eq!(words.get(), None);
        heard.0(&format!("{prefix}FATAL:  out of luck\u{200b}\tand more\n"));
        heard.0(&format!("{prefix}LOG:  shutting down\n"));
        assert_eq!(words.get().as_deref(), Some("out of luck"));
        heard.0(&format!("{prefix}PANIC:  {}\n", "é".repeat(10_000)));
        assert_eq!(words.get().unwrap().chars().count(), limits::LAST_WORDS);
    }

    #[test]
    fn only_a_timestamp_starts_a_message() {
        assert!(starts_message(b"2026-01-02 03:04:05"));
        assert!(starts_message(b"12026-01-02 03:04:05 more"));
        for line in ["", "-01-02 03:04:05", "2026-1-02 03:04:05", " 2026-01-02 03:04:05", "2026-01-02 03:04"]
        {
            assert!(!starts_message(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn silence_lets_the_last_message_out_while_the_pipe_stays_open() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (sender, receiver) = mpsc::channel();
        let ended =
            collect(reader, LogSink::new(move |message| sender.send(message.to_owned()).unwrap())).unwrap();
        writer.write_all(format!("{A}\n").as_bytes()).unwrap();
        assert_eq!(receiver.recv().unwrap(), format!("PG:{A}\n"));
        assert!(!*ended.borrow());
        writer.write_all(b"no newline").unwrap();
        drop(writer);
        assert_eq!(receiver.recv().unwrap(), "PG:no newline\n");
        assert!(receiver.recv().is_err(), "the end");
    }
}
