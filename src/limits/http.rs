//! Bounds of the two HTTP servers.

use std::time::Duration;

/// Connections each of the two servers holds at once. One more takes the place of the one that has been idle for
/// longest, so this is not for the known callers, who are few: it is for thousands who watch or poll. The two
/// servers do not share the number, so neither can shut the other out.
pub const HTTP_CONNECTIONS: usize = 4096;

/// The same where there are few files, which each connection needs one of: the known callers stay far below.
pub const HTTP_CONNECTIONS_LEAST: usize = 64;

/// Files this program needs for everything but HTTP clients: pipes, sessions, archives, some of each.
pub const FILES_ELSEWHERE: u64 = 512;

/// Files this program may have open, as far as the hard limit allows: enough for both servers, and no more, since
/// Postgres and its helpers inherit it, and some programs go through all numbers there could be.
pub const FILES: u64 = FILES_ELSEWHERE + 2 * HTTP_CONNECTIONS as u64;

/// Requests one HTTP/2 connection may have open at once.
pub const HTTP_STREAMS: u32 = 64;

/// Requests all HTTP/2 connections of a server may have open at once; more are told to come back. Each holds its
/// answer until the client takes it, and a client that takes nothing costs itself nothing. Those of HTTP/1.1 are
/// not counted, of which there is one for each connection.
pub const HTTP_ALL_STREAMS: usize = 1024;

/// Bytes that an HTTP/2 client may send ahead of the reader, for one request and for a connection.
pub const HTTP_WINDOW: u32 = 64 * 1024;

/// How long a client may take to send a request's head, and how long an idle connection is kept for the next
/// one. A head is one packet; whoever takes longer only holds one of [`HTTP_CONNECTIONS`].
pub const HTTP_HEAD_READ: Duration = Duration::from_secs(10);

/// How long a client may take nothing of an answer that is there. A dump of a schema holds locks meanwhile.
pub const HTTP_STALL: Duration = Duration::from_secs(30);

/// Bytes of an answer that are handed over at once, so that a slow client is told from one that has gone to sleep.
pub const HTTP_PIECE: usize = 16 * 1024;

/// Bytes of a request's head. A token has about a thousand; the rest is room. Each connection can have as much
/// in memory, without a token.
pub const HTTP_HEAD_BYTES: usize = 16 * 1024;

/// Bytes of the body of `/configure` and of `/promote`. A spec with tens of thousands of roles has some ten million (decisions,
/// section 5).
pub const HTTP_CONFIGURE_BYTES: usize = 64 * 1024 * 1024;

/// How long a body may take to arrive. The known client of `/configure` gives up on
/// the whole request after 120 s, and the work needs its share of them.
pub const HTTP_BODY_READ: Duration = Duration::from_secs(60);

/// Bytes of any other body: a few names. The original's limit.
pub const HTTP_BODY_BYTES: usize = 2 * 1024 * 1024;

/// Bytes of bodies that each server holds at once, every one counted with its limit; the next caller is told
/// to come back. Four of `/configure`, only one of which can be accepted by the machine anyway, or 128 others.
pub const HTTP_BODIES_BYTES: usize = 4 * HTTP_CONFIGURE_BYTES;

/// How long a request waits that came before there is anything to answer it. A config in a file is read and all that
/// belongs to it found within milliseconds; a client that asks ten times a second must not hang.
pub const HTTP_OPENING: Duration = Duration::from_secs(1);

/// Tokens of which it is known who signed them: clients have one each, or make one anew from time to time.
pub const HTTP_TOKENS: usize = 64;

/// How often an idle HTTP/2 client is asked whether it is still there, and how long it may take to say so: a
/// peer that vanished without a word must not hold a connection for ever.
pub const HTTP_PING: Duration = Duration::from_secs(30);

/// How long answers under way may take to leave after the engine has ended. They are small and were written
/// already; this is for a peer which reads slowly, and it delays the end of the process.
pub const HTTP_DRAIN: Duration = Duration::from_secs(3);

/// Connections the kernel keeps for a server that does not accept at the moment.
pub const HTTP_BACKLOG: i32 = 1024;

/// Pause after `accept` failed, which it does again at once when file descriptors have run out.
pub const HTTP_ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Tries to find one port that is free on both loopback addresses, when any port will do.
pub const HTTP_PORT_TRIES: usize = 16;

/// Seconds after which a client that found the queue full may try again. The queue drains in less than a
/// millisecond; one second is the least the header can say.
pub const HTTP_RETRY_AFTER: u64 = 1;

/// Watchers among the requests of all HTTP/2 connections, which others need, too. They never end by themselves.
pub const EVENTS_STREAMS: usize = HTTP_ALL_STREAMS / 2;

/// How long `/events` waits for what follows upon a transition, which is often another one. Nobody sees it, and a
/// thousand watchers cost one write each instead of three.
pub const EVENTS_GATHERED: Duration = Duration::from_millis(2);

/// Silence after which a watcher is sent a comment: less than the minute after which proxies commonly give up on a
/// silent answer. It also is what finds out that a peer has vanished.
pub const EVENTS_HEARTBEAT: Duration = Duration::from_secs(15);

/// How long the event loop may take to answer that it lives. It does so in microseconds; a kubelet waits for one second
/// if nothing else is said, and must get an answer before that.
pub const HTTP_LIVENESS: Duration = Duration::from_millis(900);

/// How long `pg_isready` may take. It waits for the server for 3 s by itself.
pub const PG_ISREADY: Duration = Duration::from_secs(5);

/// How long the communicator may take for the head of its answer, and for each piece of its body. It answers from memory,
/// and a scraper waits for 10 s in all.
pub const COMMUNICATOR: Duration = Duration::from_secs(5);
