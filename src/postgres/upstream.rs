//! What a standby's log says about the server it follows.
//!
//! Only a hint: the texts depend on `lc_messages`, other parts of the server use some of them too, and whoever may
//! log can write what he likes. Whether something is wrong is seen in the server's views.

use tokio::sync::watch;

use super::LogSink;

/// What may be wrong with a server that is followed: the four suspicions with which Neon's Postgres asks for a
/// refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// No connection.
    Refused,
    /// A connection, and nothing comes.
    Silent,
    /// What comes makes no sense.
    Malformed,
    /// Anything else while receiving.
    Receiving,
}

impl Suspicion {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Refused, Self::Silent, Self::Malformed, Self::Receiving];

    /// The label in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Silent => "silent",
            Self::Malformed => "malformed",
            Self::Receiving => "receiving",
        }
    }
}

/// What was said last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Told apart by number: the same may be said again.
    pub count: u64,
    /// What the process that receives has said as it gave up.
    pub by_receiver: Option<Suspicion>,
    /// Whether the log that was received could not be read on. So it is too where the last of it is reached, which is
    /// where every standby begins; alone it means nothing.
    pub unreadable: bool,
}

/// Listens to a server's log. A clone listens to the same.
#[derive(Clone, Debug)]
pub struct UpstreamLog(watch::Sender<Said>);

impl Default for UpstreamLog {
    fn default() -> Self {
        UpstreamLog(watch::Sender::new(Said::default()))
    }
}

impl UpstreamLog {
    /// Another sink that hears the messages first.
    pub fn heard_by(&self, mut sink: LogSink) -> LogSink {
        let log = self.clone();
        LogSink::new(move |message| {
            log.hear(message);
            sink.pass(message);
        })
    }

    /// What is said from now on.
    pub fn listen(&self) -> watch::Receiver<Said> {
        self.0.subscribe()
    }

    /// What was said belongs to the past, unless there is more than the listener has heard.
    pub fn forget(&self, heard: &Said) {
        self.0.send_if_modified(|said| {
            if said.count == heard.count {
                *said = Said { count: said.count, ..Said::default() };
            }
            false
        });
    }

    fn hear(&self, message: &str) {
        if let Some(suspicion) = suspicion(message) {
            self.0.send_modify(|said| {
                *said = Said { count: said.count + 1, by_receiver: Some(suspicion), ..*said };
            });
        } else if UNREADABLE.iter().any(|words| message.contains(words)) {
            // Nobody need be woken for it.
            self.0.send_if_modified(|said| {
                said.unreadable = true;
                false
            });
        }
    }
}

/// Of the process that receives, by the words of PostgreSQL 15 to 18. The first that fits: the message with which a
/// connection fails may end in one of libpq's that says more.
const BY_RECEIVER: [(&str, Suspicion); 17] = [
    ("lost synchronization with server", Suspicion::Malformed),
    ("invalid response from primary server", Suspicion::Malformed),
    ("database system identifier differs between the primary and standby", Suspicion::Malformed),
    ("invalid WAL message received from primary", Suspicion::Malformed),
    ("invalid keepalive message received from primary", Suspicion::Malformed),
    ("invalid replication message type", Suspicion::Malformed),
    ("expected authentication request from server", Suspicion::Malformed),
    ("received invalid response to SSL negotiation", Suspicion::Malformed),
    ("terminating walreceiver due to timeout", Suspicion::Silent),
    ("could not connect to the primary server: timeout expired", Suspicion::Silent),
    ("could not connect to the primary server", Suspicion::Refused),
    ("could not receive data from WAL stream", Suspicion::Receiving),
    ("could not send data to WAL stream", Suspicion::Receiving),
    ("could not start WAL streaming", Suspicion::Receiving),
    ("could not receive database system identifier and timeline ID", Suspicion::Receiving),
    ("could not receive timeline history file", Suspicion::Receiving),
    ("replication terminated by primary server", Suspicion::Receiving),
];

/// Of the process that replays.
const UNREADABLE: [&str; 8] = [
    "incorrect resource manager data checksum in record at",
    "record with incorrect prev-link",
    "invalid record length at",
    "invalid record offset at",
    "invalid resource manager ID",
    "invalid magic number",
    "invalid info bits",
    "unexpected pageaddr",
];

fn suspicion(message: &str) -> Option<Suspicion> {
    BY_RECEIVER.iter().find(|(words, _)| message.contains(words)).map(|(_, suspicion)| *suspicion)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "PG:2026-01-02 03:04:05.678 UTC [1] ";

    #[test]
    fn what_servers_say_is_told_apart() {
        for (text, expected) in [
            (
                "FATAL:  could not connect to the primary server: connection to server at \"h\", port 1 failed: Connection \
              refused",
                Some(Suspicion::Refused),
            ),
            (
                "FATAL:  streaming replication receiver \"s\" could not connect to the primary server: FATAL:  no pg_hba.conf \
              entry",
                Some(Suspicion::Refused),
            ),
            (
                "FATAL:  could not connect to the primary server: expected authentication request from server, but \
              received H",
                Some(Suspicion::Malformed),
            ),
            ("FATAL:  terminating walreceiver due to timeout", Some(Suspicion::Silent)),
            (
                "FATAL:  could not receive data from WAL stream: lost synchronization with server: got message type \
              \"x\"",
                Some(Suspicion::Malformed),
            ),
            (
                "FATAL:  could not receive data from WAL stream: server closed the connection",
                Some(Suspicion::Receiving),
            ),
            ("LOG:  replication terminated by primary server", Some(Suspicion::Receiving)),
            ("LOG:  started streaming WAL from primary at 0/3000000 on timeline 1", None),
            ("LOG:  invalid record length at 0/3000148: wanted 24, got 0", None),
            ("FATAL:  terminating walreceiver process due to administrator command", None),
        ] {
            assert_eq!(suspicion(&format!("{PREFIX}{text}\n")), expected, "{text}");
        }
    }

    #[test]
    fn a_log_that_ends_wakes_nobody_and_is_remembered() {
        let log = UpstreamLog::default();
        let mut heard = log.heard_by(LogSink::new(|_| {}));
        let mut said = log.listen();
        heard.pass(&format!("{PREFIX}LOG:  invalid record length at 0/3000148: wanted 24, got 0\n"));
        assert!(!said.has_changed().unwrap());
        assert!(said.borrow().unreadable && said.borrow().by_receiver.is_none());
        heard.pass(&format!("{PREFIX}FATAL:  terminating walreceiver due to timeout\n"));
        assert!(said.has_changed().unwrap());
        let before = Said::default();
        log.forget(&before);
        let heard = *said.borrow_and_update();
        assert_eq!(heard.by_receiver, Some(Suspicion::Silent), "what nobody has heard is not forgotten");
        log.forget(&heard);
        assert!(!said.has_changed().unwrap());
        assert_eq!(*said.borrow(), Said { count: 1, ..Said::default() });
    }
}
