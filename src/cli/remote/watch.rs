//! `status --watch` and `--until`: a compute, as it goes on.
//!
//! The compute tells each change of its state at once, if it can; everything else is looked at every second. On a
//! terminal the present is drawn in place, elsewhere each change is a line. One that waits for its spec has no status
//! yet and is asked again.

use std::collections::VecDeque;
use std::io::stdout;
use std::time::{Duration, Instant};

use compute_states::ComputeStatus;
use jiff::Timestamp;
use reqwest::StatusCode;
use tokio::time::{sleep, timeout};

use super::super::client::events::{Event, Events};
use super::super::client::{Answer, ClientError, Compute, Status};
use super::super::{ExitCode, Streams};
use super::show::{self, Transition};
use super::waiting::elapsed;
use super::{Failed, READY, STARTED};
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
        delayed: None,
        reached: None,
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
    /// Why there is no status at present, if the compute answers without one.
    delayed: Option<String>,
    /// What told of the status waited for.
    reached: Option<Told>,
    changes: VecDeque<String>,
    /// Lines on the terminal that the next drawing replaces.
    drawn: usize,
    /// Nobody reads what is printed.
    unread: bool,
}

/// A change of state.
struct Told {
    line: String,
    /// The same in the compute's words.
    data: String,
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
                    let now = status.status;
                    self.look(status, &answer);
                    if let Some(exit) = self.outcome(now).await? {
                        return Ok(exit);
                    }
                }
                Err(ClientError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, error, .. }) => {
                    self.delay(error);
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
                Err(
                    ClientError::Transport { .. }
                    | ClientError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, .. },
                ) => Stream::Due,
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
        if self.wanted.until == Some(transition.to) && self.reached.is_none() {
            // It may have gone by when the compute is looked at next, and so may the compute.
            self.reached = Some(Told { line: transition.line(), data: event.data.clone() });
        }
        self.change(transition.line(), &event.data);
    }

    /// The compute answers, but has no status to tell yet.
    fn delay(&mut self, error: Option<String>) {
        let words = format!("no status yet: {}", show::delayed(error.as_deref()));
        let new = self.delayed.as_ref() != Some(&words);
        self.delayed = Some(words);
        match (self.wanted.draw, self.wanted.json, self.streams.out_is_terminal) {
            (true, false, true) => self.draw(),
            (true, true, _) if new => {
                let body = error.map(|error| serde_json::json!(Failed { error }).to_string());
                body.iter().for_each(|body| self.print(body));
            }
            (true, false, false) if new => {
                let words = self.delayed.as_deref().unwrap_or_default();
                self.print(&format!("{}  {words}", Timestamp::now()));
            }
            _ => {}
        }
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

    fn look(&mut self, status: Status, answer: &Answer) {
        let now = status.status;
        self.delayed = None;
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
    }

    /// Whether there is anything left to wait for.
    async fn outcome(&mut self, now: ComputeStatus) -> Result<Option<ExitCode>, ClientError> {
        let Some(until) = self.wanted.until else { return Ok(None) };
        let outcome = match now {
            now if now == until || self.reached.is_some() => ExitCode::Ok,
            ComputeStatus::Failed if self.has_crashed().await? => return Ok(None),
            // What comes after these is an end, unless somebody steps in.
            ComputeStatus::Failed | ComputeStatus::Terminated => ExitCode::NotServing,
            _ => return Ok(None),
        };
        Ok(Some(self.finish(outcome)))
    }

    /// Whether there was a Postgres and there is none: it is started again if that is what the compute was told to do,
    /// and otherwise the process ends in a moment. A start that has failed is never tried again.
    async fn has_crashed(&self) -> Result<bool, ClientError> {
        let probed = async {
            let serves = self.compute.probe(READY).await?;
            Ok(serves == Some(false) && self.compute.probe(STARTED).await? == Some(true))
        };
        match probed.await {
            // The next look tells that it has gone.
            Err(ClientError::Transport { .. }) => Ok(true),
            probed => probed,
        }
    }

    /// Shows the last status, unless that has been done.
    fn finish(&mut self, outcome: ExitCode) -> ExitCode {
        if let (Some((status, _)), false) = (&self.seen, self.wanted.draw) {
            let text = if self.wanted.json { format!("{}\n", self.answer) } else { show::status(status) };
            return self.streams.finish(&text, outcome);
        }
        outcome
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
        if let Some(Told { line, data }) = self.reached.take() {
            return match (self.wanted.draw, self.wanted.json) {
                (true, _) => ExitCode::Ok,
                (false, true) => self.streams.finish(&format!("{data}\n"), ExitCode::Ok),
                (false, false) => self.streams.finish(&format!("{line}\n"), ExitCode::Ok),
            };
        }
        match self.wanted.until {
            Some(_) => {
                if !self.wanted.draw {
                    // Where nobody reads, the exit code has to do.
                    let _ = writeln!(self.streams.err, "compute_ctl status: the compute has gone");
                }
                self.finish(ExitCode::NotServing)
            }
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
        let present = match (&self.delayed, &self.seen) {
            (Some(words), _) => vec![words.clone()],
            (None, Some((status, since))) => {
                let first = format!("{} for {}", status.status, elapsed(since.elapsed()));
                std::iter::once(first).chain(show::rows(status).into_iter().skip(1)).collect()
            }
            (None, None) => return,
        };
        let lines = frame(present, &self.changes, window());
        let mut text = String::new();
        if self.drawn > 0 {
            text += &format!("\x1b[{}A", self.drawn);
        }
        text += "\r\x1b[J";
        for line in &lines {
            text.push_str(line);
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

/// The size of a terminal.
#[derive(Clone, Copy, Debug)]
struct Window {
    columns: usize,
    rows: usize,
}

/// What of the present and of the last changes there is room for.
fn frame(mut lines: Vec<String>, changes: &VecDeque<String>, window: Window) -> Vec<String> {
    // The cursor stands below the last line, and what has gone out at the top cannot be drawn over.
    let room = window.rows.saturating_sub(1).max(1);
    lines.truncate(room);
    // An empty line comes between.
    let left = room.saturating_sub(lines.len() + 1).min(changes.len());
    if left > 0 {
        lines.push(String::new());
        lines.extend(changes.range(changes.len() - left..).cloned());
    }
    // A line that the terminal wraps would count twice.
    lines.iter().map(|line| line.chars().take(window.columns).collect()).collect()
}

/// That of ours; large, if it does not say.
fn window() -> Window {
    let size = rustix::termios::tcgetwinsize(stdout()).ok();
    let or_many = |cells: Option<u16>| cells.filter(|cells| *cells > 0).map_or(200, usize::from);
    Window { columns: or_many(size.map(|size| size.ws_col)), rows: or_many(size.map(|size| size.ws_row)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_drawn_than_the_window_holds() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let changes = VecDeque::from(lines(&["old", "new"]));
        for (rows, drawn) in [
            (0, &["first"][..]),
            (2, &["first"]),
            (4, &["first", "secon"]),
            (5, &["first", "secon", "", "new"]),
            (6, &["first", "secon", "", "old", "new"]),
            (200, &["first", "secon", "", "old", "new"]),
        ] {
            let framed = frame(lines(&["first", "second"]), &changes, Window { columns: 5, rows });
            assert_eq!(framed, drawn, "{rows} rows");
        }
        assert_eq!(frame(lines(&["first"]), &VecDeque::new(), Window { columns: 9, rows: 9 }), ["first"]);
    }
}
