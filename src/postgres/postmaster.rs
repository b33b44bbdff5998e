//! The postmaster: start, readiness, stop signals, exit, and what it leaves behind.
//!
//! One task owns the process and tells what happens to it. How long to wait for what, and when to go from one
//! [`StopMode`] to the next, is decided elsewhere (by the state machine).

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::door::Door;
use super::install::Installation;
use super::log::{self, LogSink};
use super::pgdata::{DataDir, Occupied};
use super::process::{self, Group};
use super::proctable::{self, Stat};
use super::readiness::Watch;
use crate::limits;
use crate::secret::Secret;

/// Names the postmaster in the environment of all it starts, archive and restore commands included. They are
/// recognised by it when they have been orphaned.
pub(super) const TAG: &str = "COMPUTE_CTL_POSTMASTER";

/// What a server is started with.
#[derive(Debug)]
pub struct Launch {
    /// The programs.
    pub installation: Installation,
    /// Where the data are. Stays claimed while the server lives.
    pub pgdata: Arc<DataDir>,
    /// Settings given on the command line, which override every file; none in an ordinary start.
    pub options: Vec<(String, String)>,
    /// Environment on top of our own, which is passed on except for the token for the control plane.
    pub env: Vec<(OsString, Secret)>,
    /// Where its log goes.
    pub log: LogSink,
}

/// Why no server was started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// One of ours runs there already.
    #[error("a server started by this compute_ctl still runs on {path}")]
    AlreadyRunning {
        /// The data directory.
        path: PathBuf,
    },
    /// The program could not be run, or not be watched.
    #[error("cannot start {program}")]
    Start {
        /// The server program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What is told about a server. [`Fact::Exited`] comes exactly once and last; [`Fact::Ready`] at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Not ready yet, but working: its startup process (WAL replay, or the fsync of all files before it), or
    /// the postmaster itself before there is one, has done something since the last time. A process that is
    /// stopped or stuck does nothing, so a readiness deadline may be renewed on this.
    Progressed,
    /// It accepts connections.
    Ready,
    /// It has ended and is reaped. Processes of its may still live: see [`Postmaster::sweep`].
    Exited(ExitStatus),
}

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// SIGINT: sessions are ended, a shutdown checkpoint is written.
    Fast,
    /// SIGQUIT: no checkpoint; the next start recovers.
    Immediate,
    /// SIGKILL to the postmaster, its group and every process that belongs to it: backends lead sessions of
    /// their own and are not in its group.
    Kill,
}

/// What a sweep achieved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SweepOutcome {
    /// No process of the server is left, neither alive nor, among our children, as a zombie.
    Clean {
        /// How many had to be signalled because they had not ended by themselves.
        signalled: usize,
    },
    /// The deadline came first (processes stuck in the kernel).
    Left {
        /// Those still there.
        pids: Vec<i32>,
    },
}

/// A server that was started. Dropping it while the server lives stops the server immediately (SIGQUIT); its
/// task still reaps it.
#[derive(Debug)]
pub struct Postmaster {
    shared: Arc<Shared>,
    exited: watch::Receiver<bool>,
    log_ended: watch::Receiver<bool>,
}

#[derive(Debug)]
pub(super) struct Shared {
    group: Group,
    /// The program, to recognise backends.
    program: PathBuf,
    /// What the postmaster runs once it is ready: another file, if the program is a script around the server.
    /// Servers write over their environment, so that they are known by this alone when they are orphaned.
    running: OnceLock<PathBuf>,
    /// Environment entry of all descendants that were not forked from the postmaster itself.
    tag: String,
    pgdata: Arc<DataDir>,
    /// Held by whoever has shut its door.
    pub(super) door: Arc<Mutex<()>>,
}

impl Postmaster {
    /// Starts a server in a process group of its own, with nothing on standard input and both outputs going to
    /// the log. Facts arrive on the receiver. Must be called inside the runtime.
    ///
    /// Whether a *foreign* server lives on the directory is not asked here, but by
    /// [`DataDir::ensure_unused`] when the directory is prepared.
    pub fn spawn(launch: Launch) -> Result<(Self, mpsc::UnboundedReceiver<Fact>), SpawnError> {
        let Launch { installation, pgdata, options, env, log } = launch;
        let program = installation.postgres().to_owned();
        let place =
            pgdata.occupy().ok_or_else(|| SpawnError::AlreadyRunning { path: pgdata.path().to_owned() })?;
        let failed = |source| SpawnError::Start { program: program.clone(), source };

        // Before the server exists, so that no change of its lock file is missed.
        let watch = Watch::new(pgdata.path());
        let (reader, writer) = io::pipe().map_err(failed)?;
        let log_ended = log::collect(reader, log).map_err(failed)?;
        let tag = format!("{TAG}={}", uuid::Uuid::new_v4());
        let mut command = Command::new(&program);
        // It goes there anyway. Before that, it fails if it may not return to where it was started, as after a
        // start by root from root's home.
        command.current_dir(pgdata.path());
        command.arg("-D").arg(pgdata.path()).stdin(Stdio::null());
        command.stdout(writer.try_clone().map_err(failed)?).stderr(writer);
        for (name, value) in options {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        for (name, value) in &env {
            command.env(name, value.reveal());
        }
        command.env(TAG, tag.trim_start_matches(TAG).trim_start_matches('='));
        let group = Group::spawn(&mut command).map_err(failed)?;
        // The command holds our ends of the pipe, and the log would never end.
        drop(command);

        let shared =
            Arc::new(Shared { group, program, running: OnceLock::new(), tag, pgdata, door: Arc::default() });
        let (facts, receiver) = mpsc::unbounded_channel();
        let (exit, exited) = watch::channel(false);
        tokio::spawn(own(Arc::clone(&shared), watch, place, facts, exit));
        Ok((Self { shared, exited, log_ended }, receiver))
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.shared.group.pid()
    }

    /// Asks it to stop, without waiting. `false` when it had been reaped before; nobody else is ever signalled.
    /// Must be called inside the runtime.
    pub fn signal(&self, mode: StopMode) -> bool {
        match mode {
            StopMode::Fast => self.shared.ask(Signal::INT),
            StopMode::Immediate => self.shared.ask(Signal::QUIT),
            StopMode::Kill => {
                // The postmaster first: then nothing new is forked while the rest is looked up.
                let delivered = self.shared.group.signal(Signal::KILL);
                self.shared.group.kill();
                let shared = Arc::clone(&self.shared);
                tokio::task::spawn_blocking(move || {
                    for stat in shared.living() {
                        proctable::signal(&stat, Signal::KILL);
                    }
                });
                delivered
            }
        }
    }

    /// Has it read its configuration files again (SIGHUP), without waiting. `false` when it had been reaped.
    pub fn reload(&self) -> bool {
        self.shared.group.signal(Signal::HUP)
    }

    /// By which clients can be kept out for a moment.
    pub fn door(&self) -> Door {
        Door::new(Arc::clone(&self.shared))
    }

    /// Returns when all that a dead server had written to its log was passed on. A process that inherited the
    /// pipe may hold it open, and is not waited for.
    pub async fn log_drained(&self) {
        let mut log_ended = self.log_ended.clone();
        let _held_by_a_stranger = timeout(limits::LOG_DRAIN, log_ended.wait_for(|ended| *ended)).await;
    }

    /// Returns when no process of the server is left and its log was passed on, or at the deadline.
    ///
    /// For after the exit; a postmaster that still lives is killed with all that belongs to it. What does not end by
    /// itself at once is asked (SIGQUIT, or SIGTERM for commands it had started), then killed. Only
    /// processes proven to be the server's are touched: its program working in its directory, those that carry
    /// its mark in their environment, and descendants of either; each by pid *and* start time.
    pub async fn sweep(&self, deadline: Duration) -> SweepOutcome {
        let end = Instant::now() + deadline;
        let mut exited = self.exited.clone();
        if !*exited.borrow() {
            self.signal(StopMode::Kill);
        }
        if timeout_at(end, exited.wait_for(|exited| *exited)).await.is_err() {
            return SweepOutcome::Left { pids: vec![self.pid()] };
        }
        let polite = Instant::now() + limits::SWEEP_POLITE;
        let mut asked = HashSet::new();
        loop {
            let shared = Arc::clone(&self.shared);
            let look = move || {
                process::reap_adopted_if(Stat::is_postgres);
                shared.living()
            };
            // The table cannot be read only if the runtime is being shut down.
            let living = tokio::task::spawn_blocking(look).await.unwrap_or_default();
            if living.is_empty() {
                break;
            }
            let now = Instant::now();
            if now >= end {
                return SweepOutcome::Left { pids: living.iter().map(|stat| stat.pid).collect() };
            }
            for stat in &living {
                let known = !asked.insert((stat.pid, stat.start));
                match (now >= polite, known) {
                    (true, _) => proctable::signal(stat, Signal::KILL),
                    (false, true) => {}
                    (false, false) if self.shared.is_server(stat) => proctable::signal(stat, Signal::QUIT),
                    (false, false) => proctable::signal(stat, Signal::TERM),
                }
            }
            let until = if now < polite { polite.min(end) } else { end };
            let until = until.min(now + limits::SWEEP_LOOK);
            let _look_again = timeout_at(until, proctable::all_ended(&living)).await;
            reap_commands(&living);
        }
        self.log_drained().await;
        SweepOutcome::Clean { signalled: asked.len() }
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        if !*self.exited.borrow() {
            self.shared.ask(Signal::QUIT);
        }
    }
}

/// Commands the server had started, adopted by us: unlike backends they cannot be told by name once dead.
fn reap_commands(processes: &[Stat]) {
    let ours: HashSet<(i32, u64)> = processes.iter().map(|stat| (stat.pid, stat.start)).collect();
    process::reap_adopted_if(|stat| ours.contains(&(stat.pid, stat.start)));
}

/// Owns the process until it is reaped.
async fn own(
    shared: Arc<Shared>,
    watch: Watch,
    place: Occupied,
    facts: mpsc::UnboundedSender<Fact>,
    exit: watch::Sender<bool>,
) {
    // Nobody listens any more if a send fails; the process is reaped all the same.
    let exited = {
        let exited = shared.group.exited();
        tokio::pin!(exited);
        tokio::select! {
            biased;
            result = &mut exited => result,
            () = watch.ready(shared.group.pid()) => {
                shared.note_program();
                let _ = facts.send(Fact::Ready);
                exited.await
            }
            () = report_progress(&shared, &facts) => exited.await,
        }
    };
    let status = match exited.and_then(|()| shared.group.reap()) {
        Ok(status) => status,
        Err(error) => {
            // Only a foreign waitpid in this process can take the status away.
            tracing::error!(%error, "the server's exit status is lost");
            ExitStatus::from_raw(255 << 8)
        }
    };
    drop(place);
    exit.send_replace(true);
    let _ = facts.send(Fact::Exited(status));
}

/// Samples what the server does until the receiver is gone.
async fn report_progress(shared: &Arc<Shared>, facts: &mpsc::UnboundedSender<Fact>) {
    let mut before = HashMap::new();
    while !facts.is_closed() {
        tokio::time::sleep(limits::PROGRESS_SAMPLE).await;
        let sampled = Arc::clone(shared);
        let Ok(now) = tokio::task::spawn_blocking(move || sampled.startup_work()).await else { break };
        if now != before {
            let _ = facts.send(Fact::Progressed);
        }
        before = now;
    }
    std::future::pending().await
}

impl Shared {
    pub(super) fn pid(&self) -> i32 {
        self.group.pid()
    }

    /// Signals the postmaster alone; `false` when it has been reaped.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        self.group.signal(signal)
    }

    /// Has the postmaster stop by a signal which it handles, and which it would not hear while it is stopped itself,
    /// by the door or by somebody else. It looks at its signals before it takes the next client.
    fn ask(&self, signal: Signal) -> bool {
        let asked = self.group.signal(signal);
        self.group.signal(Signal::CONT);
        asked
    }

    /// The living processes of the server, the postmaster included until it is reaped.
    fn living(&self) -> Vec<Stat> {
        let me = i32::try_from(std::process::id()).unwrap_or(0);
        let all = proctable::all();
        let mut ours: HashSet<i32> = all.iter().filter(|stat| self.owns(stat)).map(|stat| stat.pid).collect();
        // Descendants of those; the table is in no useful order, so until nothing is added.
        loop {
            let before = ours.len();
            ours.extend(
                all.iter().filter(|stat| ours.contains(&stat.ppid)).map(|stat| stat.pid).collect::<Vec<_>>(),
            );
            if ours.len() == before {
                break;
            }
        }
        all.into_iter().filter(|stat| stat.pid != me && !stat.is_dead() && ours.contains(&stat.pid)).collect()
    }

    fn note_program(&self) {
        if let Ok(program) = std::fs::read_link(format!("/proc/{}/exe", self.group.pid())) {
            let _noted_once = self.running.set(program);
        }
    }

    /// Whether it runs the server's program, wherever.
    fn is_server(&self, stat: &Stat) -> bool {
        stat.runs(&self.program) || self.running.get().is_some_and(|program| stat.runs(program))
    }

    fn owns(&self, stat: &Stat) -> bool {
        !stat.is_dead()
            && (self.pgdata.id().is_cwd_of(stat.pid) == Some(true) && self.is_server(stat)
                || stat.has_env(&self.tag))
    }

    /// What those processes have done that decide when the server will be ready. Others wake up by the clock
    /// while the startup process hangs, so they prove nothing.
    fn startup_work(&self) -> HashMap<i32, (String, String, Vec<u8>)> {
        let living = self.living();
        let is_startup = |stat: &&Stat| {
            let title = std::fs::read(format!("/proc/{}/cmdline", stat.pid)).unwrap_or_default();
            stat.ppid == self.group.pid() && String::from_utf8_lossy(&title).contains(": startup")
        };
        let leader = living.iter().find(is_startup).map_or(self.group.pid(), |stat| stat.pid);
        living
            .iter()
            // A restore command works for the startup process, which waits for it.
            .filter(|stat| stat.pid == leader || (leader != self.group.pid() && stat.ppid == leader))
            .map(|stat| (stat.pid, proctable::work(stat.pid)))
            .collect()
    }
}
