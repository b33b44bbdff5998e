//! Every bound and timeout, in one place, each with its reason.

use std::time::Duration;

// ---- engine -------------------------------------------------------------------------------------------

/// Events that can wait in the queue. Dispatch takes well under a microsecond, so a full queue drains in
/// less than a millisecond; more room would only hide a stuck loop.
pub const QUEUE: usize = 1024;

/// Part of [`QUEUE`] which client requests may not use: postmaster exits, effect results, signals and
/// terminate requests must get in however many requests are knocking.
pub const QUEUE_RESERVE: usize = 256;

// ---- spec ---------------------------------------------------------------------------------------------

// ---- storage ------------------------------------------------------------------------------------------

// ---- postgres -----------------------------------------------------------------------------------------

// ---- catalog ------------------------------------------------------------------------------------------

/// How long one connection attempt to our own server may take: it is local, and a full backlog or a frozen
/// server must end in an error instead of a hang.
pub const CONNECT: Duration = Duration::from_secs(10);

/// How long a request to cancel a statement may take. The work is abandoned either way; this only says how
/// long the abandoning may be delayed by a server which accepts no connection.
pub const CANCEL_REQUEST: Duration = Duration::from_secs(1);

/// How long the sender of an active replication slot may take to end before its database is dropped. It only
/// has to notice a signal; a drop that comes too early is refused and repeated by the next apply.
pub const SLOT_RELEASE: Duration = Duration::from_secs(5);

// ---- http ---------------------------------------------------------------------------------------------

// ---- control plane ------------------------------------------------------------------------------------
