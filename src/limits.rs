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

/// Events the full journal forgets at a time, and so the distance of the machine's copies in it: copying the
/// machine for each event would cost more than handling the event. Divides [`JOURNAL`].
pub const JOURNAL_STRETCH: usize = 128;

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

// ---- control plane ------------------------------------------------------------------------------------
