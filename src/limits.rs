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

/// How long `initdb` may take. It needs two seconds on a slow disk; a disk that is a hundred times slower still
/// ends with a cluster, one that hangs ends with an error.
pub const INITDB: Duration = Duration::from_secs(300);

/// Threads that copy files when a template is cloned. Most files are a few KiB, so the cost is system calls
/// and they overlap; more threads than this only contend for the directory locks.
pub const CLONE_THREADS: usize = 4;

// ---- postgres -----------------------------------------------------------------------------------------

/// How long a program may take to print its version: it reads nothing but its own file, so this bounds a
/// program that is something else, or a dead network file system.
pub const VERSION_PROBE: Duration = Duration::from_secs(10);

/// What is kept of each output stream of a helper program, in bytes; the tail, because errors come last.
pub const HELPER_OUTPUT: usize = 64 * 1024;

/// How long the pipes of a helper are read on after its group was killed. Only a process that left the group
/// can hold them longer, and what it writes is of no interest.
pub const HELPER_DRAIN: Duration = Duration::from_secs(2);

/// How often the work of a recovering server is sampled; a readiness deadline is some tens of seconds.
pub const PROGRESS_SAMPLE: Duration = Duration::from_secs(1);

/// Pause between looks at `postmaster.pid` where the kernel offers no inotify (gVisor, exhausted limits).
pub const READINESS_POLL: Duration = Duration::from_millis(50);

/// Silence after which buffered server log lines are written, so that the last message is not held back
/// until the next one. The original's figure.
pub const LOG_SILENCE: Duration = Duration::from_millis(100);

/// Longest server log message kept together, in bytes; a longer one is written in pieces, so that a statement
/// of a gigabyte in the log does not become a gigabyte here.
pub const LOG_RECORD: usize = 1024 * 1024;

/// How long the processes of a dead postmaster may take to follow an immediate stop before they are killed.
/// They notice the death of their postmaster by themselves within some 15 ms.
pub const SWEEP_POLITE: Duration = Duration::from_millis(500);

/// Longest wait between two looks at the process table while a sweep waits for processes to end: their ends
/// are told by pidfd, this only bounds what a process forked in between can hide.
pub const SWEEP_LOOK: Duration = Duration::from_millis(250);

/// How long the end of a swept server's log is awaited. A process that inherited the pipe and is not ours
/// must not hold up a stop.
pub const LOG_DRAIN: Duration = Duration::from_secs(1);

// ---- catalog ------------------------------------------------------------------------------------------

/// How long one connection attempt to our own server may take: it is local, and a full backlog or a frozen
/// server must end in an error instead of a hang.
pub const CONNECT: Duration = Duration::from_secs(10);

// ---- http ---------------------------------------------------------------------------------------------

// ---- control plane ------------------------------------------------------------------------------------
