//! Deterministic simulation: the real loop over a simulated world, in paused time.
//!
//! A seed decides everything: what goes wrong, what is asked and when. The same seed gives the same journal,
//! byte for byte. A failing seed is printed with the command that runs it alone, and its journal is kept.
//!
//! | variable | meaning |
//! |---|---|
//! | `SIM_SEED` | run this seed alone, and print its story |
//! | `SIM_SEEDS` | how many seeds to run instead of 10,000 |
//! | `SIM_FROM` | the first of them |

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use compute_ctl::engine::queue::Answer;
use compute_ctl::engine::{self, Handle, Outcome, Recording, Rejected, Snapshot};
use compute_ctl::limits;
use compute_ctl::telemetry::Metrics;
use compute_states::{
    ComputeStatus, EffectKind, Epoch, Event, EventKind, Lsn, Policy, Reply, RestartPolicy, TerminateMode,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

#[path = "support/judge.rs"]
mod judge;
#[path = "support/world.rs"]
mod world;

use world::{ON_PURPOSE, Rng, Seen, Sim};

const SEEDS: u64 = 10_000;

/// Below this a set of runs need not have seen everything.
const ENOUGH_TO_SEE_ALL: u64 = 2_000;

/// The longest a termination may take: the whole ladder, the sweep, the sync, the linger, and what cancelled
/// work and an unconfirmed postmaster may take when the loop has ended.
fn longest_end(policy: &Policy) -> Duration {
    policy.stop_fast
        + policy.stop_immediate
        + policy.stop_kill
        + policy.sweep
        + policy.final_sync
        + policy.fast_linger
        + limits::CANCEL_GRACE * 2
        + Duration::from_secs(1)
}

/// What one seed led to.
struct Run {
    broken: Vec<String>,
    recording: Option<Recording>,
    seen: Seen,
    events: u64,
}

#[test]
fn ten_thousand_seeds_keep_every_promise() {
    quiet_panics();
    if let Some(seed) = number("SIM_SEED") {
        let run = simulate(seed, &Arc::new(Metrics::new()));
        if let Some(recording) = &run.recording {
            for entry in &recording.entries {
                println!("{:>12} us  {:?} -> {}: {}", entry.at_us, entry.event, entry.status, entry.verdict);
            }
        }
        assert!(run.broken.is_empty(), "{}", report(seed, &run));
        return;
    }
    let from = number("SIM_FROM").unwrap_or(0);
    let count = number("SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(from);
    let failed = AtomicBool::new(false);
    let events = AtomicU64::new(0);
    let all_seen = Mutex::new(Seen::default());
    let begun = std::time::Instant::now();
    let worker = || {
        // One for all runs of a thread, since registering is slow and nothing of it is read.
        let metrics = Arc::new(Metrics::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + count || failed.load(Ordering::Relaxed) {
                return;
            }
            let run = simulate(seed, &metrics);
            let mut broken = run.broken.clone();
            if seed.is_multiple_of(16) && bytes(&run) != bytes(&simulate(seed, &metrics)) {
                broken.push("the same seed gave another journal".to_owned());
            }
            if !broken.is_empty() {
                failed.store(true, Ordering::Relaxed);
                panic!("{}", report(seed, &Run { broken, ..run }));
            }
            events.fetch_add(run.events, Ordering::Relaxed);
            all_seen.lock().unwrap_or_else(PoisonError::into_inner).0.extend(run.seen.0);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    println!("{count} seeds, {} events, {:?}", events.load(Ordering::Relaxed), begun.elapsed());
    if count >= ENOUGH_TO_SEE_ALL {
        all_was_seen(&all_seen.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A simulation which never gets anywhere proves nothing.
fn all_was_seen(seen: &Seen) {
    let statuses = ComputeStatus::ALL.iter().map(|status| status.name().to_owned());
    let events = EventKind::ALL.iter().map(|kind| kind.name().to_owned());
    let effects = EffectKind::ALL.iter().map(|kind| kind.name().to_owned());
    let ends = [
        "ended: Stopped",
        "ended: PostgresExited",
        "ended: StartFailed",
        "ended: StopKilled",
        "ended: FinalSyncFailed",
        "ended: Detached",
        "ended: Abandoned",
        "ended: dropped",
        "reply: Configured",
        "reply: ConfigureFailed",
        "reply: ConfigureSuperseded",
        "reply: RefreshAccepted",
        "reply: Promoted",
        "reply: PromoteFailed",
        "reply: PromoteSuperseded",
        "reply: NotIdle",
        "reply: IdleUnknown",
        "reply: Terminated",
        "reply: AlreadyTerminated",
        "reply: Refused",
        "Busy",
        "Gone",
        "the ring overflowed",
        "restarted",
    ];
    let missing: Vec<String> = statuses
        .chain(events)
        .chain(effects)
        .chain(ends.map(str::to_owned))
        .filter(|wanted| !seen.0.contains(wanted))
        .collect();
    assert!(missing.is_empty(), "no seed led to {missing:?}");
}

fn simulate(seed: u64, metrics: &Arc<Metrics>) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing");
    let run = AssertUnwindSafe(|| runtime.block_on(drive(seed, metrics)));
    std::panic::catch_unwind(run).unwrap_or_else(|_| Run {
        broken: vec!["the run itself panicked, see above".to_owned()],
        recording: None,
        seen: Seen::default(),
        events: 0,
    })
}

/// What clients were told.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<Vec<Result<Answer, Rejected>>>>);

impl Answers {
    fn push(&self, answer: Result<Answer, Rejected>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    }

    fn take(&self) -> Vec<Result<Answer, Rejected>> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    Terminate {
        mode: TerminateMode,
        calm: bool,
    },
    Signal,
    /// Every handle is dropped.
    Abandon,
    /// The loop's future is dropped.
    Drop,
}

/// Who asks for things, and when.
struct Script {
    rng: Rng,
    world: Sim,
    answers: Answers,
    clients: JoinSet<()>,
    /// Since when the loop has to come to an end.
    asked_to_end: Option<Instant>,
    /// When the loop began.
    begun: Instant,
    /// Whether terminations and signals also come before the finish.
    impatient: bool,
    seen: Seen,
}

async fn drive(seed: u64, metrics: &Arc<Metrics>) -> Run {
    let mut rng = Rng::new(seed);
    let restart = if rng.percent(50) { RestartPolicy::OnFailure } else { RestartPolicy::Never };
    let policy = Policy { restart, ..Policy::default() };
    let world = Sim::new(Rng::new(rng.next()));
    let (engine, handle) = engine::new(Arc::new(world.clone()), policy, metrics.clone());
    let hooked = world.clone();
    let engine = engine.on_failure(move |recording| {
        if recording.entries.last().is_none_or(|entry| entry.status != ComputeStatus::Failed) {
            hooked.broken("the failure hook was called without a failure".to_owned());
        }
    });
    let snapshots = handle.watch();
    let statuses = tokio::spawn(observe(snapshots.clone(), world.clone(), Rng::new(rng.next())));
    let finish = match rng.below(32) {
        0 => Finish::Abandon,
        1 => Finish::Drop,
        2..=4 => Finish::Signal,
        _ => Finish::Terminate {
            mode: rng.pick(&[TerminateMode::Fast, TerminateMode::Immediate]),
            calm: rng.percent(50),
        },
    };
    let mut script = Script {
        impatient: rng.percent(40),
        rng,
        world: world.clone(),
        answers: Answers::default(),
        clients: JoinSet::new(),
        asked_to_end: None,
        begun: Instant::now(),
        seen: Seen::default(),
    };
    let running = tokio::spawn(engine.run());
    script.play(&handle).await;
    let bound = script.finish(finish, &handle, &policy).await;
    // Everywhere else it must not be for want of handles that the loop ends.
    let handle = (finish != Finish::Abandon).then_some(handle);
    let ended = if finish == Finish::Drop {
        running.abort();
        let ended = running.await;
        // What was dropped with it is dropped as soon as it is its turn.
        sleep(Duration::from_millis(1)).await;
        ended.ok()
    } else {
        let aborter = running.abort_handle();
        match timeout(bound, running).await {
            Ok(outcome) => Some(outcome.expect("the loop does not panic")),
            Err(_) => {
                world.broken(format!("the loop did not end within {bound:?} after {finish:?}"));
                aborter.abort();
                None
            }
        }
    };
    drop(handle);
    script.settle(finish, ended, &snapshots, statuses).await
}

impl Script {
    async fn play(&mut self, handle: &Handle) {
        let spec = self.rng.percent(50).then(|| self.rng.spec());
        handle.report(Event::Booted { spec }).await;
        let gap = Duration::from_millis(self.rng.pick(&[3, 200, 3_000, 40_000]));
        for _ in 0..self.rng.below(50) {
            let pause = self.rng.pause(gap);
            if !pause.is_zero() {
                sleep(pause).await;
            }
            self.step(handle).await;
        }
        let pause = self.rng.pause(gap * 10);
        sleep(pause).await;
    }

    async fn step(&mut self, handle: &Handle) {
        match self.rng.below(100) {
            0..=24 => self.configure(handle),
            25..=29 => self.promote(handle),
            30..=44 => self.refresh(handle),
            45..=54 => handle.hint(Event::RefreshHinted),
            55..=64 => {
                let postmaster = Epoch(self.rng.below(12));
                handle.hint(Event::ActivityObserved { postmaster, busy: self.rng.percent(50) });
            }
            65..=67 => self.terminate_if_idle(handle),
            68..=69 => handle.report(Event::ReloadSignalled).await,
            70..=84 => self.repeat(handle).await,
            85..=89 => self.look(handle).await,
            90..=92 => self.burst(handle),
            93..=95 if self.impatient => {
                let mode = self.rng.pick(&[TerminateMode::Fast, TerminateMode::Immediate]);
                self.terminate(handle, mode);
            }
            96..=97 if self.impatient => self.signal(handle).await,
            _ => tokio::task::yield_now().await,
        }
    }

    fn configure(&mut self, handle: &Handle) {
        let (handle, answers, spec) = (handle.clone(), self.answers.clone(), self.rng.spec());
        let world = self.world.clone();
        self.clients.spawn(async move {
            let answer = handle.configure(spec).await;
            if let Ok(Answer { reply: Reply::Configured, snapshot, .. }) = &answer
                && snapshot.spec != Some(spec.revision)
            {
                world.broken(format!("configured {:?}, but {:?} is published", spec.revision, snapshot.spec));
            }
            answers.push(answer);
        });
    }

    fn promote(&mut self, handle: &Handle) {
        let (handle, answers, spec) = (handle.clone(), self.answers.clone(), self.rng.spec());
        let (world, lsn) = (self.world.clone(), Lsn(self.rng.below(1 << 40)));
        self.clients.spawn(async move {
            let answer = handle.promote(spec, lsn).await;
            if let Ok(Answer { reply: Reply::Promoted, snapshot, .. }) = &answer
                && snapshot.promotion.is_none()
            {
                world.broken("promoted, and it is not published how long it took".to_owned());
            }
            answers.push(answer);
        });
    }

    fn refresh(&mut self, handle: &Handle) {
        let (handle, answers) = (handle.clone(), self.answers.clone());
        self.clients.spawn(async move { answers.push(handle.refresh().await) });
    }

    fn terminate(&mut self, handle: &Handle, mode: TerminateMode) {
        self.asked_to_end.get_or_insert_with(Instant::now);
        let (handle, answers) = (handle.clone(), self.answers.clone());
        self.clients.spawn(async move { answers.push(handle.terminate(mode).await) });
    }

    /// It may be turned down, so it brings no end that could be counted on.
    fn terminate_if_idle(&mut self, handle: &Handle) {
        let mode = self.rng.pick(&[TerminateMode::Fast, TerminateMode::Immediate]);
        let (handle, answers) = (handle.clone(), self.answers.clone());
        self.clients.spawn(async move { answers.push(handle.terminate_if_idle(mode).await) });
    }

    async fn signal(&mut self, handle: &Handle) {
        self.asked_to_end.get_or_insert_with(Instant::now);
        handle.report(Event::StopSignalled).await;
    }

    /// A result, an exit, a fact or a timer that has been handled before comes again.
    async fn repeat(&mut self, handle: &Handle) {
        let Ok(recording) = handle.recording().await else { return };
        let repeatable: Vec<Event> = recording
            .entries
            .iter()
            .map(|entry| entry.event)
            .filter(|event| {
                event.settles().is_some()
                    || event.ends_postmaster().is_some()
                    || matches!(
                        event,
                        Event::TimerFired { .. }
                            | Event::PostmasterReady { .. }
                            | Event::PostmasterProgressed { .. }
                    )
            })
            .collect();
        if repeatable.is_empty() {
            return;
        }
        let event = self.rng.pick(&repeatable);
        let (handle, later) = (handle.clone(), self.rng.pause(Duration::from_secs(5)));
        self.clients.spawn(async move {
            sleep(later).await;
            handle.report(event).await;
        });
    }

    /// What is published is what the machine is in, as the journal on demand tells.
    async fn look(&mut self, handle: &Handle) {
        let Ok(recording) = handle.recording().await else { return };
        let Ok(answered) = recording.replay(|_, _| {}) else {
            return self.world.broken("a journal on demand does not replay".to_owned());
        };
        // Whatever was handled since then is in the second one.
        let published = handle.snapshot();
        let Ok(later) = handle.recording().await else { return };
        let told = later.entries.iter().any(|entry| entry.status == published.status);
        if !(told || answered.status() == published.status) {
            self.world.broken(format!("{} is published, and nothing led to it", published.status));
        }
    }

    /// More than the queue holds, at once.
    fn burst(&mut self, handle: &Handle) {
        let count = self.rng.pick(&[10, 10, 10, 100, limits::QUEUE + 100]);
        for number in 0..count {
            // These use the reserve, and fill it too.
            if number % 2 == 0 {
                let handle = handle.clone();
                self.clients.spawn(async move { handle.report(Event::ReloadSignalled).await });
            }
            if number % 3 == 0 {
                handle.hint(Event::RefreshHinted);
            } else {
                self.refresh(handle);
            }
        }
    }

    /// Brings the loop to its end; returns how long that may take.
    async fn finish(&mut self, finish: Finish, handle: &Handle, policy: &Policy) -> Duration {
        match finish {
            Finish::Terminate { mode, calm } => {
                if calm {
                    self.world.calm();
                }
                self.terminate(handle, mode);
            }
            Finish::Signal => self.signal(handle).await,
            // Clients hold handles until they are answered, which the longest work may delay, several times:
            // each configuration takes a resolution, a preparation and an application.
            Finish::Abandon => return Duration::from_secs(1_000_000),
            Finish::Drop => return Duration::ZERO,
        }
        let since = self.asked_to_end.map_or(Duration::ZERO, |asked| asked.elapsed());
        longest_end(policy).saturating_sub(since)
    }

    async fn settle(
        mut self,
        finish: Finish,
        ended: Option<Outcome>,
        snapshots: &watch::Receiver<Arc<Snapshot>>,
        statuses: tokio::task::JoinHandle<Vec<ComputeStatus>>,
    ) -> Run {
        for left in self.world.leftovers() {
            self.world.broken(format!("{left} is left after the end"));
        }
        // Repeated results and late facts come seconds after, and find nobody.
        sleep(Duration::from_secs(1_000)).await;
        let waiting =
            async { while self.clients.join_next().await.transpose().is_ok_and(|it| it.is_some()) {} };
        if timeout(Duration::from_secs(1), waiting).await.is_err() {
            self.world.broken("a client waits though the loop has ended".to_owned());
        }
        let statuses = statuses.await.unwrap_or_default();
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        if tasks > 0 {
            self.world.broken(format!("{tasks} tasks are left after the end"));
        }
        let answers = self.answers.take();
        for answer in &answers {
            self.judge(answer);
        }
        for status in &statuses {
            self.seen.note(status.name());
        }
        let mut events = 0;
        let recording = ended.map(|outcome| {
            self.judge_end(outcome.ended, finish);
            let last = snapshots.borrow().status;
            events = self.judge_recording(&outcome.recording, &answers, &statuses, last);
            outcome.recording
        });
        if recording.is_none() {
            self.seen.note("ended: dropped");
        }
        Run { broken: self.world.take_broken(), recording, seen: self.seen, events }
    }
}

/// Watches what is published, and looks at moments of its own too; returns the statuses in order.
async fn observe(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    world: Sim,
    mut rng: Rng,
) -> Vec<ComputeStatus> {
    let mut statuses: Vec<ComputeStatus> = Vec::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if statuses.last() != Some(&snapshot.status) {
            statuses.push(snapshot.status);
        }
        if snapshot.status == ComputeStatus::Running && world.dead_since_before_now() {
            world.broken("running, and no postmaster".to_owned());
        }
        let pause = Duration::from_millis(1) + rng.pause(Duration::from_secs(20));
        tokio::select! {
            biased;
            changed = snapshots.changed() => if changed.is_err() {
                return statuses;
            },
            () = sleep(pause) => {}
        }
    }
}

/// The name of a variant.
fn word(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn bytes(run: &Run) -> Vec<u8> {
    let mut file = Vec::new();
    if let Some(recording) = &run.recording {
        recording.write(&mut file).expect("memory can be written");
    }
    file
}

/// What a person needs who wants to see it fail again.
fn report(seed: u64, run: &Run) -> String {
    let broken: BTreeSet<&String> = run.broken.iter().collect();
    let mut text = format!("seed {seed} broke {} promises:\n", broken.len());
    for promise in broken {
        text.push_str(&format!("  - {promise}\n"));
    }
    text.push_str(&format!("again: SIM_SEED={seed} cargo test --test simulation -- --nocapture\n"));
    if run.recording.is_some() {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("simulation-{seed}.jsonl"));
        match std::fs::write(&path, bytes(run)) {
            Ok(()) => text.push_str(&format!("journal: {}\n", path.display())),
            Err(error) => text.push_str(&format!("the journal could not be kept: {error}\n")),
        }
    }
    text
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} should be a number, and is {text:?}")))
}

/// Keeps panics on purpose out of the output.
fn quiet_panics() {
    let ordinary = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let on_purpose =
            panic.payload().downcast_ref::<String>().is_some_and(|text| text.starts_with(ON_PURPOSE));
        if !on_purpose {
            ordinary(panic);
        }
    }));
}
