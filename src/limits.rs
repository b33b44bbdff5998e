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

// ---- http ---------------------------------------------------------------------------------------------

// ---- control plane ------------------------------------------------------------------------------------
