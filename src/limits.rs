//! Every bound and timeout, in one place, each with its reason.

use std::time::Duration;

use crate::engine::Work;

// ---- engine -------------------------------------------------------------------------------------------

/// Events that can wait in the queue. Dispatch takes well under a microsecond, so a full queue drains in
/// less than a millisecond; more room would only hide a stuck loop.
pub const QUEUE: usize = 1024;

/// Part of [`QUEUE`] which client requests may not use: postmaster exits, effect results, signals and
/// terminate requests must get in however many requests are knocking.
pub const QUEUE_RESERVE: usize = 256;

/// Events taken out of the queue in one go. Effects of a batch start only a few microseconds later than those
/// of its first event.
pub const QUEUE_BATCH: usize = 64;

/// Events the journal remembers. A busy reconfiguration makes a few dozen, so this reaches back over many.
pub const JOURNAL: usize = 1024;

/// How long cancelled work may take to end and reap its processes before it is dropped. Killing a process
/// group takes milliseconds; this is for a machine under load.
pub const CANCEL_GRACE: Duration = Duration::from_secs(3);

/// How long a piece of work may take, after which it is cancelled and reported as timed out. These are the
/// outermost bounds, so that nothing can hang; what is normal is bounded more closely where it is done.
pub fn work_deadline(work: Work) -> Duration {
    match work {
        // Makes a template and starts a throw-away server; on a slow disk that takes a while.
        Work::WarmUp => Duration::from_secs(120),
        Work::ResolveSpec { .. } => Duration::from_secs(10),
        // A base backup of a large timeline over a slow network.
        Work::PrepareStorage { .. } => Duration::from_secs(3600),
        // Ten thousand roles, or a statement that waits for a lock somebody holds.
        Work::ApplySpec { .. } => Duration::from_secs(600),
        // Three attempts of the control plane's client, 30 s each.
        Work::FetchSpec { .. } => Duration::from_secs(100),
        // The machine has deadlines of its own for these two, and they are shorter.
        Work::Sweep => Duration::from_secs(30),
        Work::FinalSync { .. } => Duration::from_secs(60),
    }
}

// ---- spec ---------------------------------------------------------------------------------------------

// ---- storage ------------------------------------------------------------------------------------------

// ---- postgres -----------------------------------------------------------------------------------------

// ---- catalog ------------------------------------------------------------------------------------------

/// How long one connection attempt to our own server may take: it is local, and a full backlog or a frozen
/// server must end in an error instead of a hang.
pub const CONNECT: Duration = Duration::from_secs(10);

// ---- http ---------------------------------------------------------------------------------------------

/// Connections each of the two servers holds at once; more wait in the kernel's backlog. The known callers
/// (control plane, scraper, autoscaler; on the internal side every Postgres backend that lost a pageserver, for
/// a moment each) stay far below, and the two do not share the number, so neither can shut the other out.
pub const HTTP_CONNECTIONS: usize = 256;

/// Requests one HTTP/2 connection may have open at once.
pub const HTTP_STREAMS: u32 = 64;

/// How long a client may take to send a request's head, and how long an idle connection is kept for the next
/// one. A head is one packet; whoever takes longer only holds one of [`HTTP_CONNECTIONS`].
pub const HTTP_HEAD_READ: Duration = Duration::from_secs(10);

/// Bytes of a request's head. A token has about a thousand; the rest is room.
pub const HTTP_HEAD_BYTES: usize = 64 * 1024;

/// Bytes of the body of `/configure`. A spec with tens of thousands of roles has some ten million (decisions,
/// section 5).
pub const HTTP_CONFIGURE_BYTES: usize = 64 * 1024 * 1024;

/// How long the body of `/configure` may take to arrive. The known client gives up on the whole request
/// after 120 s, and the work needs its share of them.
pub const HTTP_BODY_READ: Duration = Duration::from_secs(60);

/// Bodies of `/configure` that are held at once, each up to [`HTTP_CONFIGURE_BYTES`]; the next caller is told
/// to come back. Only one of them can be accepted by the machine anyway.
pub const HTTP_BODIES: usize = 4;

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

// ---- control plane ------------------------------------------------------------------------------------

/// Attempts to get the spec, in all (cli, section 4).
pub const CONTROL_PLANE_ATTEMPTS: usize = 3;

/// Pause between two attempts (cli, section 4).
pub const CONTROL_PLANE_PAUSE: Duration = Duration::from_millis(100);

/// How long one attempt may take, body included: the default of the client the original uses.
pub const CONTROL_PLANE_REQUEST: Duration = Duration::from_secs(30);

/// Bytes of the control plane's answer, which is a spec like the body of `/configure`.
pub const CONTROL_PLANE_BYTES: usize = HTTP_CONFIGURE_BYTES;
