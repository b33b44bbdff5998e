//! Server-sent events, as far as computes send them: WHATWG's `text/event-stream`.

use reqwest::Response;

use crate::limits;

/// The events of one answer.
pub(in crate::cli) struct Events {
    answer: Response,
    parser: Parser,
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Event {
    /// What to resume with; empty if the compute has not said.
    pub(in crate::cli) id: String,
    pub(in crate::cli) kind: String,
    pub(in crate::cli) data: String,
}

impl Events {
    pub(super) fn new(answer: Response) -> Self {
        Events { answer, parser: Parser::default() }
    }

    /// The next event; nothing once the compute has no more, or is gone.
    pub(in crate::cli) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.parser.event() {
                return Some(event);
            }
            // How the stream ended tells nothing that the next look at the compute does not.
            let piece = self.answer.chunk().await.ok()??;
            self.parser.push(&piece)?;
        }
    }
}

/// Bytes to events.
#[derive(Default)]
struct Parser {
    bytes: Vec<u8>,
    event: Event,
}

impl Parser {
    /// Nothing, if what has come is longer than any event.
    fn push(&mut self, piece: &[u8]) -> Option<()> {
        self.bytes.extend_from_slice(piece);
        (self.bytes.len() + self.event.data.len() <= limits::WATCH_EVENT_BYTES).then_some(())
    }

    fn event(&mut self) -> Option<Event> {
        while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if event.data.is_empty() {
                    continue;
                }
                return Some(event);
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => self.event.id = value.to_owned(),
                "event" => self.event.kind = value.to_owned(),
                "data" => {
                    if !self.event.data.is_empty() {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(value);
                }
                // Comments, and what nobody has told us of.
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_wherever_the_stream_is_cut() {
        let stream = ": hello\r\n\r\nid: 7\nevent: transition\ndata: {\"a\":1}\n\nretry: 5\n\ndata:x\ndata: y\n\ndata: unfinished\n";
        let expected = [
            Event { id: "7".into(), kind: "transition".into(), data: "{\"a\":1}".into() },
            Event { data: "x\ny".into(), ..Event::default() },
        ];
        for cut in 0..=stream.len() {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for piece in [&stream[..cut], &stream[cut..]] {
                parser.push(piece.as_bytes()).expect("it is short");
                events.extend(std::iter::from_fn(|| parser.event()));
            }
            assert_eq!(events, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; limits::WATCH_EVENT_BYTES];
        assert!(parser.push(&piece).is_some() && parser.push(b"x").is_none());
    }
}
