//! Every bound and timeout, in one place, each with its reason; those of the HTTP servers in a file of their own.

use std::time::Duration;

use crate::engine::Work;

mod http;

pub use http::*;

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

/// Transitions that are kept to be shown: a reconfiguration makes three, so this reaches back over some eighty. It is
/// copied for each transition, so it must not be large.
pub const HISTORY: usize = 256;

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
        // A session, the rest of the log, and the server's own wait for its end of recovery.
        Work::Promote { .. } => Duration::from_secs(120),
        // A session, and a few dozen short looks.
        Work::CheckIdle { .. } => Duration::from_secs(20),
        // Three attempts of the control plane's client, 30 s each, and two pauses.
        Work::FetchSpec { .. } => Duration::from_secs(100),
        // The machine has deadlines of its own for these two, and they are shorter.
        Work::Sweep => Duration::from_secs(30),
        Work::FinalSync { .. } => Duration::from_secs(60),
    }
}

// ---- node ---------------------------------------------------------------------------------------------

/// Threads of the runtime. The loop needs one, everything else is short: more would only cost memory.
pub const WORKERS: usize = 2;

/// Threads of the runtime that serves HTTP.
pub const HTTP_WORKERS: usize = 2;

/// How long blocking work (a write to a file system that hangs) may keep the process after its end.
pub const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(2);

/// How often Postgres is asked whether anything is at work, as in the original.
pub const ACTIVITY_PERIOD: Duration = Duration::from_millis(500);

/// How long one such round may take, a new session included. A server that does not answer for as long is as good as
/// gone, and is reported so.
pub const ACTIVITY_ROUND: Duration = Duration::from_secs(5);

/// How often a standby that receives is looked at. The end of it shows in the log at once; this is for a log in another
/// language.
pub const UPSTREAM_LOOK: Duration = Duration::from_secs(5);

/// The same for one that does not receive, and for a session to look at it that broke.
pub const UPSTREAM_LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Least time between two looks, whatever the log says: a process that has said that it gives up is gone by then, and
/// somebody who writes such words himself must not keep us busy.
pub const UPSTREAM_LOOK_LEAST: Duration = Duration::from_millis(200);

/// How long a standby may receive nothing before that is suspect, where the log does not say why. PostgreSQL tries again
/// after five seconds, and one that comes back by itself needs nobody.
pub const UPSTREAM_PATIENCE: Duration = Duration::from_secs(6);

/// Pause after the first refresh a watcher asks for; doubled each time. The next would find the same, unless whoever
/// moves the primary has got round to saying so, which takes some seconds.
pub const UPSTREAM_HINT_PAUSE: Duration = Duration::from_secs(2);

/// Longest such pause: each is one request to the control plane, from every standby that lost its primary.
pub const UPSTREAM_HINT_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long clients are kept out for one look at what is at work. A look takes about a millisecond; a server in which
/// it takes longer is at work.
pub const DOOR_SHUT: Duration = Duration::from_secs(1);

/// How often that is tried while the postmaster is in the midst of something, or a session is being set up. A login
/// takes a few milliseconds, and so do a few tries; a client that never goes on is one that holds back.
pub const IDLE_LOOKS: usize = 20;

/// How long what a postmaster left behind may take to go. Shorter than the machine's own deadline, so that
/// its result is not late.
pub const SWEEP: Duration = Duration::from_secs(8);

/// How long the throw-away server of the warm-up may take to end when told to stop immediately, which takes it some
/// ten milliseconds once it has started. With [`WARM_UP_SWEEP`] within [`CANCEL_GRACE`].
pub const WARM_UP_STOP: Duration = Duration::from_secs(1);

/// How long what that server left behind may take to go: twice [`SWEEP_POLITE`].
pub const WARM_UP_SWEEP: Duration = Duration::from_secs(1);

/// How long a server whose supervisor was killed may take for its shutdown checkpoint: whoever starts a node waits
/// for it, and what is not written is recovered.
pub const ORPHAN_FAST: Duration = Duration::from_secs(10);

/// The same for an immediate shutdown, for which PostgreSQL itself allows its processes five seconds.
pub const ORPHAN_IMMEDIATE: Duration = Duration::from_secs(6);

/// How long the kernel may take to deliver a kill.
pub const ORPHAN_KILL: Duration = Duration::from_secs(5);

/// The same for a postmaster that a fault of this program left behind.
pub const LAST_SWEEP: Duration = Duration::from_secs(20);

/// Between two looks at the installed extensions there is twice this, unless a flag or the spec says otherwise; the
/// original's value.
pub const EXTENSIONS_INTERVAL: Duration = Duration::from_secs(3600);

/// A flag that says less must not make a load of it.
pub const EXTENSIONS_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// A year: what lies further away cannot be told from never, and would overflow a clock.
pub const EXTENSIONS_INTERVAL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Databases whose extensions are looked at, each over a session of its own; the original's value.
pub const EXTENSIONS_DATABASES: i64 = 500;

/// Bound of one look at the installed extensions. A session takes some milliseconds.
pub const EXTENSIONS_ROUND: Duration = Duration::from_secs(300);

// ---- log ----------------------------------------------------------------------------------------------

/// Bytes of log lines that wait to be written; half of it is Postgres's share. With a whole message of Postgres's
/// ([`LOG_RECORD`]) on top of its share there is still room for thousands of our own lines. As much for log files, if
/// there are any.
pub const LOG_QUEUE: usize = 4 * 1024 * 1024;

/// How long Postgres waits for the reader of a full log before its lines are dropped instead. A reader that
/// rotates its files needs less; a stop, which Postgres cannot do without writing a few lines, allows for more.
pub const LOG_STALL: Duration = Duration::from_secs(3);

/// How long the end of the process waits for the last lines to be read: no reader that reads needs as much, and
/// one that does not must not keep the process.
pub const LOG_FLUSH: Duration = Duration::from_secs(2);

/// What is told of the path and of the query of a request; whoever sends more wants to fill something.
pub const TRACE_URL: usize = 200;

/// For one request to a collector of traces, the original's value; nobody waits for it.
pub const TRACE_EXPORT: Duration = Duration::from_secs(10);

/// What a collector of traces may answer; it has nothing to say but yes.
pub const TRACE_ANSWER: usize = 64 * 1024;

/// For the last traces at the exit, to a collector that has answered before; the original's value.
pub const TRACE_FLUSH: Duration = Duration::from_secs(2);

/// The same for a collector of which nothing is known yet. One that is near answers in this time.
pub const TRACE_FLUSH_UNKNOWN: Duration = Duration::from_millis(300);

// ---- spec ---------------------------------------------------------------------------------------------

/// Largest config or spec file read, in bytes: as much as `POST /configure` takes, so that whatever can be sent
/// can also be kept in a file, and a mistyped path (a device, a disk image) ends in an error.
pub const CONFIG_FILE: u64 = 64 << 20;

/// Documents kept by revision besides those that somebody holds: the applied and the wanted one, and those whose
/// request has no answer yet. The rest only serves a reader which looked a revision up just before it was
/// replaced.
pub const SPECS_KEPT: usize = 4;

/// Findings listed of one document: each costs a walk through the text, and nobody reads more before mending
/// the first ones.
pub const FAULTS_LISTED: usize = 100;

/// Longest name of a role or database, in bytes: PostgreSQL's `NAMEDATALEN - 1`. A longer one is cut silently by
/// the server, and would then never be found again under the name in the spec.
pub const NAME: usize = 63;

// ---- command line -------------------------------------------------------------------------------------

/// How long a crashed node stays to be looked at when `--crash-linger` does not say: some status polls of a
/// control plane which asks every 100 ms.
pub const CRASH_LINGER: Duration = Duration::from_millis(300);

/// Longest `--crash-linger` taken: beyond an hour it is a typing error, and a node which never leaves.
pub const CRASH_LINGER_MAX: Duration = Duration::from_secs(3600);

/// Steps of a plan that are listed for a person before the rest is counted: some screens. Nobody reads ten
/// thousand lines, and `--all`, `--json` and `--sql` have them all.
pub const PLAN_LINES: usize = 100;

/// How long `compute_ctl plan` may take to get a plan, from a compute or from a server: twice the wait for a lock
/// ([`CATALOG_LOCK`]), which is the longest thing in it.
pub const PLAN: Duration = Duration::from_secs(120);

/// Bytes of a plan that a compute sends. A role's entry in a spec is some sixty bytes at least, and its steps in
/// a plan are a few hundred, so this is several times the longest spec.
pub const PLAN_BYTES: usize = 4 * HTTP_CONFIGURE_BYTES;

/// How long a client's connection to a compute may take.
pub const CLIENT_CONNECT: Duration = Duration::from_secs(10);

/// How long a compute may take to say what it has at hand.
pub const CLIENT_READ: Duration = Duration::from_secs(10);

/// How often a compute is looked at while somebody watches it: seconds are shown, and changes of its state come by
/// themselves.
pub const WATCH: Duration = Duration::from_secs(1);

/// Bytes of one event that a watched compute sends: a line of text with the message of a failure.
pub const WATCH_EVENT_BYTES: usize = 1024 * 1024;

/// Changes of state that are shown while a compute is watched on a terminal; the rest is in its history.
pub const WATCH_CHANGES: usize = 10;

/// How long a token for testing is good for, unless something else is said.
pub const TOKEN_LIFE: Duration = Duration::from_secs(3600);

// ---- storage ------------------------------------------------------------------------------------------

/// How long `initdb` may take. It needs two seconds on a slow disk; a disk that is a hundred times slower still
/// ends with a cluster, one that hangs ends with an error.
pub const INITDB: Duration = Duration::from_secs(300);

/// Threads that copy files when a template is cloned. Most files are a few KiB, so the cost is system calls
/// and they overlap; more threads than this only contend for the directory locks.
pub const CLONE_THREADS: usize = 4;

/// How long a pageserver may take to answer a request for a lease: it notes it down, and does not have to fetch
/// anything.
pub const LEASE_ANSWER: Duration = Duration::from_secs(30);

/// How long before its end a lease is renewed, if it is valid for twice that long; the original's figure.
pub const LEASE_MARGIN: Duration = Duration::from_secs(60);

/// Pause after the first failure to get a lease, the original's figure, and the shortest between two requests.
pub const LEASE_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause after a failure; the original's figure, and [`LEASE_MARGIN`].
pub const LEASE_PAUSE_MAX: Duration = Duration::from_secs(60);

// ---- safekeepers --------------------------------------------------------------------------------------

/// Safekeepers of a timeline: Neon's Postgres has room for fewer than 32, and three are usual.
pub const SAFEKEEPERS: usize = 31;

/// How long one safekeeper may take to tell its position, connecting included. They are asked only to save the
/// start of a program, which takes about as long; the original's figure.
pub const SAFEKEEPER_CHECK: Duration = Duration::from_millis(100);

/// How long one run of `postgres --sync-safekeepers` may take. It copies what one of them lacks, at the pace of a
/// network a GiB in some ten seconds, and what was copied stays copied for the next run. Without a majority it waits
/// for ever, and two minutes are longer than a safekeeper takes to start.
pub const SAFEKEEPER_SYNC: Duration = Duration::from_secs(120);

/// How often a start runs it again after a failure, as the original does: the elections of two computes that start at
/// once fail each other.
pub const SAFEKEEPER_SYNC_RETRIES: i32 = 5;

/// Longest pause before such a retry; the original's figure.
pub const SAFEKEEPER_SYNC_PAUSE_MAX: Duration = Duration::from_secs(3);

/// Messages of its log that an error quotes: the last says why, those before it where.
pub const SAFEKEEPER_SYNC_MESSAGES: usize = 3;

/// Characters of each that are quoted: a line of a log.
pub const SAFEKEEPER_SYNC_SHOWN: usize = 300;

// ---- base backups -------------------------------------------------------------------------------------

/// How long a connection to the server that is copied may take, unless its connection string says otherwise.
pub const BASE_BACKUP_CONNECT: Duration = Duration::from_secs(10);

/// How long a question to that server may take, several hosts of a connection string included: it answers from
/// memory, and making a slot writes one small file.
pub const BASE_BACKUP_QUESTION: Duration = Duration::from_secs(60);

/// How long the server may be silent before the first byte: it writes a checkpoint first, which takes minutes with
/// much memory and a slow disk, and measures its directory.
pub const BASE_BACKUP_BEGIN: Duration = Duration::from_secs(600);

/// How long it may be silent after that. `pg_basebackup` reports once a second as long as anything comes, and
/// the slowest rate that can be asked for is 32 KiB a second.
pub const BASE_BACKUP_IDLE: Duration = Duration::from_secs(60);

/// How long the comparison with the manifest may take. It reads everything once more, from memory for the most part;
/// the deadline of the whole work is the same.
pub const BASE_BACKUP_VERIFY: Duration = Duration::from_secs(3600);

/// How long dropping a slot may take at the end of the process, which it delays: the server has to notice that the
/// standby is gone, which is a matter of its closed connection.
pub const BASE_BACKUP_RELEASE: Duration = Duration::from_secs(5);

/// Lines of `pg_basebackup` that are kept for its error: the last ones say why it ended.
pub const BASE_BACKUP_MESSAGES: usize = 8;

// ---- archives -----------------------------------------------------------------------------------------

/// Bytes read from a source at once, and written to a file at once: large enough that system calls and
/// hand-overs between threads do not show, small enough to stay in a processor's cache.
pub const UNPACK_CHUNK: usize = 64 * 1024;

/// Chunks that may wait between source and unpacker, so that a short stall of one does not stop the other.
/// With the size of the source's chunks this is
/// what bounds the memory of an unpacker.
pub const UNPACK_CHUNKS: usize = 8;

/// Entries of an archive, extended headers included. A cluster has some thousand files for each database and
/// one more for each GiB of a table; beyond this it is somebody who wants our inodes.
pub const UNPACK_ENTRIES: u64 = 10_000_000;

/// Bytes of all files of an archive together, by their headers, and of the unpacked stream. More than any
/// cluster that is restored from one stream within the deadline of the work; the file system has the last word below it.
pub const UNPACK_BYTES: u64 = 16 << 40;

/// Bytes of an extended header (a long name, or a pax header). Two names of [`UNPACK_NAME`] and some times and
/// owners fit several times over; it is held in memory.
pub const UNPACK_EXTENSION: u64 = 64 * 1024;

/// Longest path of an entry, in bytes: PostgreSQL's `MAXPGPATH`.
pub const UNPACK_NAME: usize = 1024;

/// Longest name of one file, in bytes: `NAME_MAX` of Linux.
pub const UNPACK_COMPONENT: usize = 255;

/// Directories an entry may lie in, one within the other. PostgreSQL needs four; each costs a system call and
/// a level of recursion when the directory is removed again.
pub const UNPACK_DEPTH: usize = 32;

/// Zero bytes that may follow the end of an archive. `tar` fills its last record, 10 KiB unless told otherwise;
/// devices wanted up to some MiB.
pub const UNPACK_PADDING: u64 = 16 << 20;

/// Largest window of zstd, as a power of two, and so the memory a stream may claim: 8 MiB, which every level up
/// to 19 stays within and RFC 8878 wants supported.
pub const UNPACK_ZSTD_WINDOW: u32 = 23;

/// How long a connection to a server of archives may take.
pub const ARCHIVE_CONNECT: Duration = Duration::from_secs(10);

/// How long such a server may be silent, before its answer and in the middle of it. There is no bound on the
/// whole, which depends on the size; an object store that has to fetch from a slow tier takes some seconds.
pub const ARCHIVE_IDLE: Duration = Duration::from_secs(30);

/// Attempts in a row that got less than [`ARCHIVE_PROGRESS`] before a download is given up. With the pauses in
/// between they outlast the restart of a server.
pub const ARCHIVE_ATTEMPTS: u32 = 8;

/// Pause before the second attempt; it doubles with each further one, up to [`ARCHIVE_PAUSE_MAX`].
pub const ARCHIVE_PAUSE: Duration = Duration::from_millis(200);

/// Longest pause between two attempts.
pub const ARCHIVE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Bytes after which a download counts as working, so that earlier failures are forgotten: a large archive
/// may take many connections. It also bounds the number of attempts by the size of the archive.
pub const ARCHIVE_PROGRESS: u64 = 16 << 20;

/// Redirects that are followed: from a name to an object store takes one or two.
pub const ARCHIVE_REDIRECTS: usize = 5;

// ---- neon ---------------------------------------------------------------------------------------------

/// How long a pageserver may take to let us in: one connection, and a signature that it checks.
pub const PAGESERVER_CONNECT: Duration = Duration::from_secs(10);

/// How long a pageserver may take to begin with a base backup. It waits up to five minutes for the log to reach
/// the place asked for, and then answers with an error of its own that says more than ours. Over gRPC it may begin its
/// answer before it waits, so the first piece is given as much.
pub const PAGESERVER_ANSWER: Duration = Duration::from_secs(330);

/// How long a pageserver may be silent in the middle of a base backup: it may have to fetch layers from an object
/// store, which takes some seconds for each.
pub const PAGESERVER_IDLE: Duration = Duration::from_secs(60);

/// How often a pageserver is asked over HTTP/2 whether it is still there, and how long it may take to say so.
/// Shorter than [`PAGESERVER_IDLE`], as nothing has to be fetched for this answer.
pub const PAGESERVER_PING: Duration = Duration::from_secs(20);

/// Longest message of a pageserver's over libpq, in bytes. It sends base backups in pieces of some hundred KiB;
/// a message is held in memory as a whole.
pub const PAGESERVER_MESSAGE: i32 = 16 * 1024 * 1024;

/// Rows of a pageserver's answer that are read: its commands answer with one.
pub const PAGESERVER_ROWS: usize = 16;

// ---- postgres -----------------------------------------------------------------------------------------

/// How long a program may take to print its version: it reads nothing but its own file, so this bounds a
/// program that is something else, or a dead network file system.
pub const VERSION_PROBE: Duration = Duration::from_secs(10);

/// What is kept of each output stream of a helper program, in bytes; the tail, because errors come last.
pub const HELPER_OUTPUT: usize = 64 * 1024;

/// Bytes taken at once from a helper whose output is passed on: what a pipe of Linux holds.
pub const HELPER_PIECE: usize = 64 * 1024;

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

/// Characters of the message with which a server gave up that are shown in the status: a sentence, and some names.
pub const LAST_WORDS: usize = 1000;

/// How long the end of a swept server's log is awaited. A process that inherited the pipe and is not ours
/// must not hold up a stop.
pub const LOG_DRAIN: Duration = Duration::from_secs(1);

/// Longest line of `postgresql.conf`, in bytes. The server's reader goes over a line from its beginning for every
/// 8 KiB of it: here it needs some 0.1 s, for a mebibyte a second, for ten a minute, and the postmaster serves
/// nobody meanwhile. The longest that make sense, lists of some hundred pageservers, have a tenth of it.
pub const CONF_LINE: usize = 256 * 1024;

// ---- catalog ------------------------------------------------------------------------------------------

/// How long one connection attempt to our own server may take: it is local, and a full backlog or a frozen
/// server must end in an error instead of a hang.
pub const CONNECT: Duration = Duration::from_secs(10);

/// How long a statement of ours waits for a lock that somebody else holds. Shorter than the two minutes the known
/// client waits for the whole of `/configure`, so that it is told what is in the way.
pub const CATALOG_LOCK: Duration = Duration::from_secs(60);

/// Statements in one message: enough to make round trips cheap, and a bound on what both sides hold however long
/// a transaction is.
pub const CATALOG_BATCH: usize = 1024;

/// Steps of one apply that are logged one by one: all that a usual change has. A new compute with thousands of roles
/// must not push everything else out of a log.
pub const CATALOG_LOGGED: usize = 100;

/// Longest verifier of a password, in bytes: what PostgreSQL 18 allows, and several times what any program makes.
/// Older servers fail to store one that does not fit into a page.
pub const CATALOG_VERIFIER: usize = 512;

/// How long a server without a free connection slot is asked again. Sessions of a busy pool come and go within
/// that; one that stays full needs somebody's help, and the error says so.
pub const SLOT_PATIENCE: Duration = Duration::from_secs(15);

/// Pause between two such attempts: each is a fork of the postmaster's.
pub const SLOT_PAUSE: Duration = Duration::from_millis(200);

/// How long cancelled statements may take to end. The work is abandoned either way; this only says how long the
/// abandoning may be delayed by a server which accepts no connection. Well within [`CANCEL_GRACE`].
pub const CANCEL_REQUEST: Duration = Duration::from_secs(1);

/// Pause after a request to cancel a statement before it is asked again: obeying takes the server a few
/// milliseconds, and each request is a fork of the postmaster's.
pub const CANCEL_AGAIN: Duration = Duration::from_millis(100);

/// How often a server looks whether we are still there while it executes a statement of ours: without that, one
/// that waits for a lock would go on waiting, holding others, long after this program was killed, a request was
/// given up, or its client has gone.
pub const CATALOG_ABANDONED: Duration = Duration::from_secs(1);

/// How long the sender of an active replication slot may take to end before its database is dropped. It only
/// has to notice a signal; a drop that comes too early is refused and repeated by the next apply.
pub const SLOT_RELEASE: Duration = Duration::from_secs(5);

/// Sessions that requests have open at once; the next one waits. A server for ten clients must keep some for
/// its users, and a session is needed for milliseconds.
pub const REQUEST_SESSIONS: usize = 4;

/// How long a request waits for one of [`REQUEST_SESSIONS`] before its client is told to come back. Only
/// statements that wait for a lock can keep them that long.
pub const REQUEST_WAIT: Duration = Duration::from_secs(10);

/// How long the statements of a request may take: one or two that read the catalog or write one row, so what
/// takes longer waits for somebody's lock.
pub const REQUEST: Duration = Duration::from_secs(30);

/// How long `POST /extensions` may take: the script of a large extension takes some ten seconds, and one that
/// updates may rewrite tables.
pub const EXTENSION_REQUEST: Duration = Duration::from_secs(300);

/// How often a statement is tried that loses against the same change by somebody else. One of those who compete
/// gets through in each round, and they are no more than [`REQUEST_SESSIONS`] and an apply.
pub const CONTENTION_TRIES: usize = 8;

/// Statements of `pg_stat_statements` that are told, as in the original.
pub const INSIGHTS: i64 = 100;

/// How long a schema dump may take, the client's reading included: a hundred thousand tables take minutes, and
/// all the while the dump holds locks and a snapshot which keep vacuum from cleaning up.
pub const SCHEMA_DUMP: Duration = Duration::from_secs(600);

/// Schema dumps at once; the next client is told to come back. Each is a process with the whole schema in its
/// memory.
pub const SCHEMA_DUMPS: usize = 4;

/// How long one question about the settings may take: the server reads a file of some hundred lines and answers
/// from memory, in milliseconds. A server that was frozen after it let us in must end in an error.
pub const SETTINGS_QUERY: Duration = Duration::from_secs(10);

/// How long a standby may take to replay the log of the primary it replaces, as in the original. The log was
/// finished before the request, so what is missing is in flight or lost.
pub const PROMOTION_CATCH_UP: Duration = Duration::from_secs(20);

/// How often a standby is asked how far it is. Nobody writes while it catches up, so every pause counts; a question
/// costs the server microseconds.
pub const PROMOTION_POLL: Duration = Duration::from_millis(50);

/// How long the server may take to end its recovery once it was told to: its own default.
pub const PG_PROMOTE: Duration = Duration::from_secs(60);

/// Characters shown of a refused setting's value, and of what the server says to it, which quotes the value: whoever
/// put a document there knows it by its beginning.
pub const SETTING_SHOWN: usize = 400;

// ---- control plane ------------------------------------------------------------------------------------

/// Attempts to get the spec, in all (cli, section 4).
pub const CONTROL_PLANE_ATTEMPTS: usize = 3;

/// Pause after the first attempt (cli, section 4); doubled after the next.
pub const CONTROL_PLANE_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause, also where the control plane asks for a longer one: what is asked of it next ends with its last
/// attempt, and whoever waits for that (a supervisor, the machine) comes back later by itself.
pub const CONTROL_PLANE_PAUSE_MAX: Duration = Duration::from_secs(3);

/// Redirects that are followed: to a name of its own, to another scheme, to a path. The original's ten are no more use.
pub const CONTROL_PLANE_REDIRECTS: usize = 5;

/// Characters of a place in the control plane's answer that an error shows: the names in it that are no fields of
/// ours can be as long as the answer.
pub const CONTROL_PLANE_PATH: usize = 200;

/// How long one attempt may take, body included: the default of the client the original uses.
pub const CONTROL_PLANE_REQUEST: Duration = Duration::from_secs(30);

/// Bytes of the control plane's answer, which is a spec like the body of `/configure`.
pub const CONTROL_PLANE_BYTES: usize = HTTP_CONFIGURE_BYTES;

/// How long a client of the control plane's is kept for the next fetch. To make one means to read all certificates this
/// machine trusts, which is most of the cost of a fetch, and a control plane that is down is asked again and again; an
/// operator's own that is replaced is in force after that time.
pub const CONTROL_PLANE_CLIENT: Duration = Duration::from_secs(600);
