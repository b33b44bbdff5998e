//! `status --watch` and `--until`: a compute, as it goes on.
//!
//! The compute tells each change of its state at once, if it can; everything else is looked at every second. On a
//! terminal the present is drawn in place, elsewhere each change is a line.

use std::collections::VecDeque;
use std::io::stdout;
use std::time::{Duration, Instant};

use compute_states::ComputeStatus;
use jiff::Timestamp;
use tokio::time::{sleep, timeout};

use super::super::client::events::{Event, Events};
use super::super::client::{Answer, ClientError, Compute, Status};
use super::super::{ExitCode, Streams};
use super::show::{self, Transition};
use super::waiting::elapsed;
use crate::limits;

/// What is to be seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Show what happens; otherwise only how it ended.
    pub(super) draw: bool,
    /// End once this is the status.
    pub(super) until: Option<ComputeStatus>,
    /// Lines are the compute's own answers.
    pub(super) json: bool,
}

/// Watches until the compute is gone, has the status that was waited for, or will not have it any more.
pub(super) async fn watch(
    compute: &Compute,
    wanted: Wanted,
    within: Option<Duration>,
    streams: &mut Streams<'_>,
) -> Result<ExitCode, ClientError> {
    let mut watcher = Watcher {
        compute,
        wanted,
        streams,
        stream: Stream::Due,
        last_event: None,
        seen: None,
        answer: String::new(),
        changes: VecDeque::new(),
        drawn: 0,
        unread: false,
    };
    let watching = watcher.run();
    match within {
        None => watching.await,
        Some(within) => match timeout(within, watching).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let _ = writeln!(watcher.streams.err, "compute_ctl status: not within {}", elapsed(within));
                Ok(ExitCode::NotServing)
            }
        },
    }
}

struct Watcher<'a, 's> {
    compute: &'a Compute,
    wanted: Wanted,
    streams: &'a mut Streams<'s>,
    stream: Stream,
    last_event: Option<String>,
    /// The last status, and since when.
    seen: Option<(Status, Instant)>,
    /// The same, as it was sent.
    answer: String,
    changes: VecDeque<String>,
    /// Lines on the terminal that the next drawing replaces.
    drawn: usize,
    /// Nobody reads what is printed.
    unread: bool,
}

/// The changes of state, as the compute tells them.
enum Stream {
    /// To be asked for.
    Due,
    Held(Box<Events>),
    /// It does not tell them.
    Never,
}

impl Watcher<'_, '_> {
    async fn run(&mut self) -> Result<ExitCode, ClientError> {
        loop {
            self.subscribe().await?;
            match self.compute.status().await {
                Ok((status, answer)) => {
                    if let Some(exit) = self.look(status, &answer) {
                        return Ok(exit);
                    }
                }
                // Nobody has answered yet, and somebody is waited for.
                Err(ClientError::Transport { .. }) if self.seen.is_none() && self.wanted.until.is_some() => {}
                Err(ClientError::Transport { source, at }) => {
                    let Some((last, _)) = &self.seen else {
                        return Err(ClientError::Transport { source, at });
                    };
                    return Ok(self.gone(last.status));
                }
                Err(error) => return Err(error),
            }
            if self.unread {
                return Ok(ExitCode::Ok);
            }
            self.wait().await;
        }
    }

    /// Asks for the changes of state, which come from now on; without that there is still the look every second.
    async fn subscribe(&mut self) -> Result<(), ClientError> {
        if let Stream::Due = self.stream {
            self.stream = match self.compute.events(self.last_event.as_deref()).await {
                Ok(Some(events)) => Stream::Held(Box::new(events)),
                Ok(None) => Stream::Never,
                Err(ClientError::Transport { .. }) => Stream::Due,
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    /// Until something has changed, or for a second.
    async fn wait(&mut self) {
        let Stream::Held(events) = &mut self.stream else { return sleep(limits::WATCH).await };
        // A cancelled wait for the next event loses none: what has come stays in the parser.
        match timeout(limits::WATCH, events.next()).await {
            Err(_) => {}
            Ok(None) => {
                self.stream = Stream::Due;
                // Whoever sends nothing and ends must not be asked again and again.
                sleep(limits::WATCH).await;
            }
            Ok(Some(event)) => self.note(&event),
        }
    }

    fn note(&mut self, event: &Event) {
        if !event.id.is_empty() {
            self.last_event = Some(event.id.clone());
        }
        if event.kind == "gap" {
            return self.change("(changes that are not kept any more)".to_owned(), &event.data);
        }
        let Ok(transition) = serde_json::from_str::<Transition>(&event.data) else { return };
        self.change(transition.line(), &event.data);
    }

    /// Shows a change of state, in our words or the compute's.
    fn change(&mut self, line: String, data: &str) {
        match (self.wanted.draw, self.wanted.json, self.streams.out_is_terminal) {
            (false, ..) => {}
            (true, true, _) => self.print(data),
            (true, false, false) => self.print(&line),
            (true, false, true) => {
                if self.changes.len() == limits::WATCH_CHANGES {
                    self.changes.pop_front();
                }
                self.changes.push_back(line);
            }
        }
    }

    fn look(&mut self, status: Status, answer: &Answer) -> Option<ExitCode> {
        let now = status.status;
        let before = self.seen.as_ref().map(|(seen, since)| (seen.status, *since));
        let since = before.filter(|(seen, _)| *seen == now).map_or_else(Instant::now, |(_, since)| since);
        match before {
            None if self.wanted.draw && (self.wanted.json || !self.streams.out_is_terminal) => {
                let line = format!("{}  {now}", Timestamp::now());
                let body = String::from_utf8_lossy(&answer.body);
                self.print(if self.wanted.json { body.trim_end() } else { &line });
            }
            // Told by nobody, so it has been seen.
            Some((seen, _)) if seen != now && !matches!(self.stream, Stream::Held(_)) => {
                let line = format!("{}  {seen} -> {now}", Timestamp::now());
                let body = String::from_utf8_lossy(&answer.body).trim_end().to_owned();
                self.change(line, &body);
            }
            _ => {}
        }
        self.seen = Some((status, since));
        self.answer = String::from_utf8_lossy(&answer.body).trim_end().to_owned();
        if self.wanted.draw && self.streams.out_is_terminal && !self.wanted.json {
            self.draw();
        }
        self.outcome(now)
    }

    /// Whether there is anything left to wait for.
    fn outcome(&mut self, now: ComputeStatus) -> Option<ExitCode> {
        let until = self.wanted.until?;
        let outcome = match now {
            now if now == until => ExitCode::Ok,
            // What comes after these is an end, unless somebody steps in.
            ComputeStatus::Failed | ComputeStatus::Terminated => ExitCode::NotServing,
            _ => return None,
        };
        if let (Some((status, _)), false) = (&self.seen, self.wanted.draw) {
            let text = if self.wanted.json { format!("{}\n", self.answer) } else { show::status(status) };
            return Some(self.streams.finish(&text, outcome));
        }
        Some(outcome)
    }

    fn gone(&mut self, last: ComputeStatus) -> ExitCode {
        let ended = matches!(
            last,
            ComputeStatus::Terminated
                | ComputeStatus::TerminationPendingFast
                | ComputeStatus::TerminationPendingImmediate
        );
        let line = format!("{}  the compute has gone; it was {last}", Timestamp::now());
        if self.wanted.draw && !self.wanted.json {
            self.print(&line);
        }
        match self.wanted.until {
            Some(_) => ExitCode::NotServing,
            None if ended => ExitCode::Ok,
            None => ExitCode::Failure,
        }
    }

    /// A line that stays.
    fn print(&mut self, line: &str) {
        self.put(&format!("{line}\n"));
    }

    /// Draws the present over what was drawn before.
    fn draw(&mut self) {
        let Some((status, since)) = &self.seen else { return };
        let mut lines = vec![format!("{} for {}", status.status, elapsed(since.elapsed()))];
        lines.extend(show::rows(status).into_iter().skip(1));
        if !self.changes.is_empty() {
            lines.push(String::new());
            lines.extend(self.changes.iter().cloned());
        }
        let mut text = String::new();
        if self.drawn > 0 {
            text += &format!("\x1b[{}A", self.drawn);
        }
        text += "\r\x1b[J";
        let width = columns();
        for line in &lines {
            // A line that the terminal wraps would count twice.
            text.extend(line.chars().take(width));
            text.push('\n');
        }
        self.drawn = lines.len();
        self.put(&text);
    }

    fn put(&mut self, text: &str) {
        let put = self.streams.out.write_all(text.as_bytes()).and_then(|()| self.streams.out.flush());
        self.unread |= put.is_err();
    }
}

/// Columns of the terminal; many, if it does not say.
fn columns() -> usize {
    rustix::termios::tcgetwinsize(stdout())
        .map(|size| usize::from(size.ws_col))
        .ok()
        .filter(|columns| *columns > 0)
        .unwrap_or(200)
}
