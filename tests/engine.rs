//! The loop itself: admission, publication, panics, cancellation, its ends.
//!
//! Time is paused and moves only when nothing is left to do, so no test waits and none depends on speed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use compute_ctl::activity::{Activity, Seen};
use compute_ctl::engine::{
    self, Done, Ended, Engine, Facts, Handle, Hold, PromotionTimes, Rejected, Work, WorkError, World,
};
use compute_ctl::limits;
use compute_ctl::telemetry::Metrics;
use compute_states::{
    Cause, ComputeStatus, Epoch, Event, EventKind, Exit, ExitReason, FailureClass, FetchedSpec, Lsn, Policy,
    Refusal, Reply, RestartPolicy, Revision, SpecOutline, StopMode, TerminateMode, TerminationResult,
    Verdict,
};
use futures_util::poll;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How a kind of work goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Fails,
    /// So many times, for a reason that passes.
    FailsAtFirst(usize),
    Panics,
    PanicsAtOnce,
    HangsUntilCancelled,
    HangsForGood,
    /// Until the test lets it go on.
    Waits,
}

/// A world in which everything succeeds at once but what a test says, and which writes down what was done.
#[derive(Clone)]
struct Scripted(Arc<Script>);

struct Script {
    does: BTreeMap<&'static str, Does>,
    log: Mutex<Vec<String>>,
    go_on: Notify,
    postmaster: watch::Sender<Option<Exit>>,
}

const SPEC: SpecOutline = SpecOutline { revision: Revision(7), final_sync: false };

impl Scripted {
    fn new(does: &[(&'static str, Does)]) -> Self {
        Scripted(Arc::new(Script {
            does: does.iter().copied().collect(),
            log: Mutex::default(),
            go_on: Notify::new(),
            postmaster: watch::channel(None).0,
        }))
    }

    fn note(&self, what: impl Into<String>) {
        self.0.log.lock().expect("no test panics while it writes").push(what.into());
    }

    fn log(&self) -> Vec<String> {
        self.0.log.lock().expect("no test panics while it writes").clone()
    }

    fn does(&self, name: &str) -> Option<Does> {
        self.0.does.get(name).copied()
    }

    /// The loop, with this world, not running yet.
    fn engine(&self, policy: Policy) -> (Engine<Scripted>, Handle) {
        engine::new(Arc::new(self.clone()), policy, Arc::new(Metrics::new()))
    }
}

/// Says so when it is dropped.
struct Drops(Scripted, String);

impl Drop for Drops {
    fn drop(&mut self) {
        self.0.note(format!("{} dropped", self.1));
    }
}

fn name(work: Work) -> &'static str {
    match work {
        Work::WarmUp => "WarmUp",
        Work::ResolveSpec { .. } => "ResolveSpec",
        Work::PrepareStorage { .. } => "PrepareStorage",
        Work::ApplySpec { .. } => "ApplySpec",
        Work::Promote { .. } => "Promote",
        Work::CheckIdle { .. } => "CheckIdle",
        Work::FetchSpec { .. } => "FetchSpec",
        Work::Sweep => "Sweep",
        Work::FinalSync { .. } => "FinalSync",
    }
}

impl World for Scripted {
    fn run(
        &self,
        work: Work,
        token: CancellationToken,
    ) -> impl Future<Output = Result<Done, WorkError>> + Send + 'static {
        let (name, world) = (name(work), self.clone());
        let does = self.does(name);
        assert_ne!(does, Some(Does::PanicsAtOnce), "boom at once");
        self.note(name);
        async move {
            let drops = Drops(world.clone(), name.to_owned());
            match does {
                None => {}
                Some(Does::Fails) => {
                    return Err(WorkError::plain(FailureClass::Permanent, "it cannot be done"));
                }
                Some(Does::FailsAtFirst(times))
                    if world.log().iter().filter(|done| *done == name).count() <= times =>
                {
                    return Err(WorkError::plain(FailureClass::Transient, "it cannot be done yet"));
                }
                Some(Does::FailsAtFirst(_)) => {}
                Some(Does::Panics | Does::PanicsAtOnce) => panic!("boom"),
                Some(Does::HangsUntilCancelled) => {
                    token.cancelled().await;
                    return Err(WorkError::cancelled());
                }
                Some(Does::HangsForGood) => std::future::pending().await,
                Some(Does::Waits) => world.0.go_on.notified().await,
            }
            // Only what was given up is of interest.
            std::mem::forget(drops);
            Ok(match work {
                Work::FetchSpec { .. } => {
                    Done::Fetched(FetchedSpec::Spec { spec: SPEC, same_pageservers: true })
                }
                Work::Promote { .. } => Done::Promoted(PromotionTimes {
                    lsn_wait: Duration::from_millis(12),
                    pg_promote: Duration::from_millis(345),
                }),
                Work::CheckIdle { .. } => {
                    let seen = Seen { activity: Activity::default(), newest: None };
                    Done::Idle { seen, hold: Hold::new(Drops(world, "the hold".to_owned())) }
                }
                Work::FinalSync { .. } => Done::Synced(Lsn(1)),
                _ => Done::Done,
            })
        }
    }

    fn start_postmaster(
        &self,
        _: Epoch,
        _: Revision,
        facts: Facts,
    ) -> impl Future<Output = Result<Exit, WorkError>> + Send + 'static {
        let does = self.does("StartPostmaster");
        assert_ne!(does, Some(Does::PanicsAtOnce), "boom at once");
        self.note("StartPostmaster");
        self.0.postmaster.send_replace(None);
        let (world, mut exit) = (self.clone(), self.0.postmaster.subscribe());
        async move {
            let drops = Drops(world, "postmaster".to_owned());
            if does == Some(Does::Fails) {
                return Err(WorkError::plain(FailureClass::Permanent, "no such program"));
            }
            facts.ready().await;
            assert_ne!(does, Some(Does::Panics), "boom");
            if does == Some(Does::HangsForGood) {
                std::future::pending::<()>().await;
            }
            let exit = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
            std::mem::forget(drops);
            Ok(exit.unwrap_or(Exit::Signal(9)))
        }
    }

    fn stop_postmaster(&self, _: Epoch, mode: StopMode) {
        self.note(format!("{mode:?}"));
        assert_ne!(self.does("Stop"), Some(Does::PanicsAtOnce), "boom at once");
        self.0.postmaster.send_replace(Some(Exit::Code(0)));
    }

    fn reload_postmaster(&self, _: Epoch) {
        self.note("reload");
    }

    fn random(&self) -> u64 {
        4
    }
}

async fn until(handle: &Handle, status: ComputeStatus) {
    handle.watch().wait_for(|snapshot| snapshot.status == status).await.expect("the loop runs");
}

/// Lets the other tasks run until the condition holds.
async fn once(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    // Yielding keeps paused time from advancing, so the bound is on the turns taken.
    tokio::select! {
        biased;
        () = wait => {}
        () = turns(100_000) => panic!("the condition never holds"),
    }
}

async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

/// Fills the part of the queue that clients may use; the loop must not be running.
async fn crowd(handle: &Handle) -> Vec<tokio::task::JoinHandle<Result<engine::queue::Answer, Rejected>>> {
    let places = limits::QUEUE - limits::QUEUE_RESERVE;
    let clients = (0..places).map(|_| {
        let handle = handle.clone();
        tokio::spawn(async move { handle.configure(SPEC).await })
    });
    let clients: Vec<_> = clients.collect();
    once(|| handle.queue_depth() == places).await;
    clients
}

#[tokio::test(start_paused = true)]
async fn a_crowd_is_refused_while_a_termination_gets_in() {
    let world = Scripted::new(&[]);
    let metrics = Arc::new(Metrics::new());
    let (engine, handle) = engine::new(Arc::new(world.clone()), Policy::default(), metrics.clone());
    let clients = crowd(&handle).await;
    let depth = handle.queue_depth();
    assert_eq!(handle.configure(SPEC).await.expect_err("no place"), Rejected::Busy);
    assert_eq!(handle.refresh().await.expect_err("no place"), Rejected::Busy);
    handle.hint(Event::RefreshHinted);
    assert_eq!(handle.queue_depth(), depth, "a hint is lost rather than taking a place of the reserve");
    let text = metrics.render(0).expect("it can be encoded");
    assert!(text.contains("compute_ctl_requests_rejected_total 2"), "{text}");

    let last = handle.clone();
    let termination = tokio::spawn(async move { last.terminate(TerminateMode::Immediate).await });
    handle.report(Event::ReloadSignalled).await;
    // Both got in.
    once(|| handle.queue_depth() == depth + 2).await;

    let outcome = engine.run().await;
    assert_eq!(outcome.ended, Ended::Exit(ExitReason::Stopped));
    let answer = termination.await.expect("no panic").expect("it is answered");
    assert_eq!(answer.reply, Reply::Terminated(TerminationResult::Stopped(None)));
    let mut refused = 0;
    for client in clients {
        match client.await.expect("no panic").expect("it is answered").reply {
            Reply::Refused { .. } => refused += 1,
            reply => assert_eq!(reply, Reply::ConfigureSuperseded),
        }
    }
    assert_eq!(refused, limits::QUEUE - limits::QUEUE_RESERVE - 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_found_it_full_is_let_in_once_it_has_drained() {
    let world = Scripted::new(&[]);
    let (engine, handle) = world.engine(Policy::default());
    let crowd = crowd(&handle).await;
    assert_eq!(handle.refresh().await.expect_err("no place"), Rejected::Busy);
    let running = tokio::spawn(engine.run());
    for client in crowd {
        client.await.expect("no panic").expect("it is answered");
    }
    let answer = handle.refresh().await.expect("there is room again");
    assert_eq!(answer.reply, Reply::RefreshAccepted);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn what_must_get_in_waits_for_a_place_and_gets_it() {
    let world = Scripted::new(&[]);
    let (engine, handle) = world.engine(Policy::default());
    for _ in 0..limits::QUEUE {
        handle.report(Event::RefreshHinted).await;
    }
    let mut termination = std::pin::pin!(handle.terminate(TerminateMode::Immediate));
    assert!(poll!(&mut termination).is_pending(), "there is no place");
    // Readers do not care.
    assert_eq!(handle.snapshot().status, ComputeStatus::Empty);
    assert_eq!(handle.watch().borrow().status, ComputeStatus::Empty);
    assert_eq!(handle.queue_depth(), limits::QUEUE);
    let running = tokio::spawn(engine.run());
    assert!(matches!(termination.await.expect("answered").reply, Reply::Terminated(_)));
    assert_eq!(running.await.expect("no panic").ended, Ended::Exit(ExitReason::Stopped));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_finds_the_queue_full_is_not_lost() {
    let world = Scripted::new(&[("PrepareStorage", Does::Waits)]);
    let (engine, handle) = world.engine(Policy::default());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    until(&handle, ComputeStatus::Init).await;
    // Tasks take their turn in this order: these fill the queue and wait in front of it, then comes the result.
    for _ in 0..limits::QUEUE * 2 {
        let handle = handle.clone();
        tokio::spawn(async move { handle.report(Event::RefreshHinted).await });
    }
    world.0.go_on.notify_one();
    let started = timeout(Duration::from_secs(1), until(&handle, ComputeStatus::Running)).await;
    assert!(started.is_ok(), "it is {}", handle.snapshot().status);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn an_answer_comes_after_what_it_says_is_published() {
    let world = Scripted::new(&[]);
    let (engine, handle) = world.engine(Policy::default());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: None }).await;
    let answer = handle.configure(SPEC).await.expect("answered");
    assert_eq!(answer.reply, Reply::Configured);
    assert_eq!(answer.snapshot.status, ComputeStatus::Running);
    assert_eq!(answer.snapshot.spec, Some(SPEC.revision));
    assert_eq!(handle.snapshot().status, ComputeStatus::Running);
    let answer = handle.terminate(TerminateMode::Fast).await.expect("answered");
    assert_eq!(answer.snapshot.status, ComputeStatus::Terminated);
    assert_eq!(running.await.expect("no panic").ended, Ended::Exit(ExitReason::Stopped));
    assert_eq!(handle.refresh().await.expect_err("it has ended"), Rejected::Gone);
    assert_eq!(handle.terminate(TerminateMode::Fast).await.expect_err("it has ended"), Rejected::Gone);
    assert_eq!(handle.recording().await.expect_err("it has ended"), Rejected::Gone);
}

#[tokio::test(start_paused = true)]
async fn storage_that_comes_back_is_waited_for() {
    let metrics = Arc::new(Metrics::new());
    let world = Scripted::new(&[("PrepareStorage", Does::FailsAtFirst(10)), ("ApplySpec", Does::Waits)]);
    let (engine, handle) = engine::new(Arc::new(world.clone()), Policy::default(), metrics.clone());
    let mut published = handle.watch();
    let begun = Instant::now();
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    published.wait_for(|snapshot| snapshot.fault.is_some()).await.expect("it runs");
    for _ in 0..10 {
        let snapshot = published.borrow_and_update().clone();
        assert_eq!(snapshot.status, ComputeStatus::Init);
        assert_eq!(snapshot.error.as_deref(), Some("it cannot be done yet"));
        published.changed().await.expect("it runs");
    }
    // It serves nothing yet, and nothing is wrong any more.
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.status, snapshot.error.as_deref()), (ComputeStatus::Init, None));
    let tries = world.log().iter().filter(|done| *done == "PrepareStorage").count();
    assert_eq!(tries, 11);
    let (least, most) = (Duration::from_secs(42), Duration::from_secs(71));
    assert!((least..most).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let text = metrics.render(0).expect("it can be encoded");
    assert!(text.contains("compute_ctl_storage_retries_total 10\n"), "{text}");
    world.0.go_on.notify_one();
    until(&handle, ComputeStatus::Running).await;
    handle.terminate(TerminateMode::Immediate).await.expect("answered");
    running.await.expect("the loop did not panic");
}

#[tokio::test(start_paused = true)]
async fn storage_that_does_not_come_back_is_given_up_or_left_when_asked() {
    for asked in [false, true] {
        let world = Scripted::new(&[("PrepareStorage", Does::FailsAtFirst(usize::MAX))]);
        let (engine, handle) = world.engine(Policy { storage_retries: 3, ..Policy::default() });
        let mut published = handle.watch();
        let running = tokio::spawn(engine.run());
        handle.report(Event::Booted { spec: None }).await;
        let configured = tokio::spawn({
            let handle = handle.clone();
            async move { handle.configure(SPEC).await.expect("answered").reply }
        });
        published.wait_for(|snapshot| snapshot.fault.is_some()).await.expect("it runs");
        let tries = || world.log().iter().filter(|done| *done == "PrepareStorage").count();
        if asked {
            let answer = handle.terminate(TerminateMode::Immediate).await.expect("answered");
            assert_eq!(answer.reply, Reply::Terminated(TerminationResult::Stopped(None)));
            assert_eq!(configured.await.expect("it is answered"), Reply::ConfigureSuperseded);
            assert_eq!(tries(), 1);
        } else {
            until(&handle, ComputeStatus::Failed).await;
            assert_eq!(handle.snapshot().error.as_deref(), Some("it cannot be done yet"));
            assert_eq!(configured.await.expect("it is answered"), Reply::ConfigureFailed);
            assert_eq!(tries(), 4);
        }
        let reason = if asked { ExitReason::Stopped } else { ExitReason::StartFailed };
        assert_eq!(running.await.expect("the loop did not panic").ended, Ended::Exit(reason));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_world_is_a_failure_and_not_the_end() {
    let cases = [
        ("ResolveSpec", Does::Panics),
        ("PrepareStorage", Does::Panics),
        ("PrepareStorage", Does::PanicsAtOnce),
        ("ApplySpec", Does::Panics),
        ("ApplySpec", Does::PanicsAtOnce),
        ("StartPostmaster", Does::Panics),
        ("StartPostmaster", Does::PanicsAtOnce),
    ];
    for case in cases {
        let world = Scripted::new(&[case]);
        let (engine, handle) = world.engine(Policy::default());
        let running = tokio::spawn(engine.run());
        handle.report(Event::Booted { spec: None }).await;
        let answer = handle.configure(SPEC).await.expect("answered");
        assert_eq!(answer.reply, Reply::ConfigureFailed, "{case:?}");
        let error = answer.snapshot.error.as_deref().unwrap_or_default();
        assert!(error.starts_with("panicked: ") && error.contains("boom"), "{case:?}: {error}");
        until(&handle, ComputeStatus::Failed).await;
        let ended = running.await.expect("the loop did not panic").ended;
        assert_eq!(ended, Ended::Exit(ExitReason::StartFailed), "{case:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_stopping_leads_down_the_ladder_and_not_out_of_the_loop() {
    let world = Scripted::new(&[("Stop", Does::PanicsAtOnce)]);
    let (engine, handle) = world.engine(Policy::default());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    until(&handle, ComputeStatus::Running).await;
    handle.terminate(TerminateMode::Immediate).await.expect("answered");
    assert_eq!(running.await.expect("no panic").ended, Ended::Exit(ExitReason::StopKilled));
    let ladder: Vec<String> = world
        .log()
        .into_iter()
        .filter(|what| ["Fast", "Immediate", "Kill"].contains(&what.as_str()))
        .collect();
    assert_eq!(ladder[..3], ["Fast", "Immediate", "Kill"]);
}

#[tokio::test(start_paused = true)]
async fn work_that_ignores_its_cancellation_is_dropped_after_its_grace() {
    let world = Scripted::new(&[("PrepareStorage", Does::HangsForGood)]);
    let (engine, handle) = world.engine(Policy::default());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    until(&handle, ComputeStatus::Init).await;
    let asked = Instant::now();
    let answer = handle.terminate(TerminateMode::Immediate).await.expect("answered");
    assert_eq!(answer.reply, Reply::Terminated(TerminationResult::Stopped(None)));
    assert!(asked.elapsed() >= limits::CANCEL_GRACE, "it had its grace");
    assert_eq!(world.log(), ["PrepareStorage", "PrepareStorage dropped", "Sweep"]);
    assert_eq!(running.await.expect("no panic").ended, Ended::Exit(ExitReason::Stopped));
}

#[tokio::test(start_paused = true)]
async fn work_that_hears_its_cancellation_is_not_waited_for() {
    let world = Scripted::new(&[("PrepareStorage", Does::HangsUntilCancelled)]);
    let (engine, handle) = world.engine(Policy::default());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    until(&handle, ComputeStatus::Init).await;
    let asked = Instant::now();
    handle.terminate(TerminateMode::Immediate).await.expect("answered");
    assert_eq!(asked.elapsed(), Duration::ZERO, "nothing had to be waited for");
    assert_eq!(running.await.expect("no panic").ended, Ended::Exit(ExitReason::Stopped));
}

/// A sweep that is given up kills processes until its grace is over. What is started after it must not be
/// among them.
#[tokio::test(start_paused = true)]
async fn nothing_is_prepared_while_a_sweep_that_was_given_up_still_runs() {
    let world = Scripted::new(&[("Sweep", Does::HangsForGood)]);
    let policy = Policy { restart: RestartPolicy::OnFailure, ..Policy::default() };
    let (engine, handle) = world.engine(policy);
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    until(&handle, ComputeStatus::Running).await;
    world.0.postmaster.send_replace(Some(Exit::Signal(9)));
    until(&handle, ComputeStatus::Failed).await;
    until(&handle, ComputeStatus::Running).await;
    let start = ["PrepareStorage", "StartPostmaster", "ApplySpec"];
    assert_eq!(world.log(), [&start[..], &["Sweep", "Sweep dropped"], &start].concat());
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn without_handles_the_loop_ends_and_takes_postgres_along() {
    let world = Scripted::new(&[]);
    let (engine, handle) = world.engine(Policy::default());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    let running = tokio::spawn(engine.run());
    until(&handle, ComputeStatus::Running).await;
    drop(handle);
    let outcome = running.await.expect("no panic");
    assert_eq!(outcome.ended, Ended::Abandoned);
    assert_eq!(world.log(), ["PrepareStorage", "StartPostmaster", "ApplySpec", "Immediate"]);
    outcome.recording.replay(|_, _| {}).expect("it replays");
}

#[tokio::test(start_paused = true)]
async fn nothing_outlives_the_loop() {
    // A postmaster which no signal ends.
    let world = Scripted::new(&[("StartPostmaster", Does::HangsForGood)]);
    let (engine, handle) = world.engine(Policy::default());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    until(&handle, ComputeStatus::Running).await;
    handle.terminate(TerminateMode::Immediate).await.expect("answered");
    // The loop has ended, though its tasks have not: nobody has to wait for them to hear that.
    let asked = Instant::now();
    assert_eq!(handle.terminate(TerminateMode::Fast).await.expect_err("too late"), Rejected::Gone);
    assert_eq!(asked.elapsed(), Duration::ZERO);
    let outcome = running.await.expect("no panic");
    assert_eq!(outcome.ended, Ended::Exit(ExitReason::StopKilled));
    assert_eq!(world.log().last().map(String::as_str), Some("postmaster dropped"));
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_is_dropped_takes_everything_along() {
    let world = Scripted::new(&[]);
    let (engine, handle) = world.engine(Policy::default());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    until(&handle, ComputeStatus::Running).await;
    running.abort();
    assert!(running.await.expect_err("it was aborted").is_cancelled());
    once(|| tokio::runtime::Handle::current().metrics().num_alive_tasks() == 0).await;
    assert_eq!(world.log().last().map(String::as_str), Some("postmaster dropped"));
}

#[tokio::test(start_paused = true)]
async fn the_journal_can_be_asked_for_at_any_time() {
    let world = Scripted::new(&[("WarmUp", Does::HangsUntilCancelled)]);
    let (engine, handle) = world.engine(Policy::default());
    let mut early = std::pin::pin!(handle.recording());
    assert!(matches!(poll!(&mut early), Poll::Pending), "it goes through the queue");
    let running = tokio::spawn(engine.run());
    assert!(early.await.expect("the loop runs").entries.is_empty());
    handle.report(Event::Booted { spec: None }).await;
    handle.report(Event::TimerFired { epoch: Epoch(99) }).await;
    let recording = handle.recording().await.expect("the loop runs");
    let verdicts: Vec<(u64, Verdict)> =
        recording.entries.iter().map(|entry| (entry.seq, entry.verdict)).collect();
    assert_eq!(verdicts, [(0, Verdict::Taken(Cause::WaitingForSpec)), (1, Verdict::Stale)]);
    recording.replay(|_, _| {}).expect("it replays");
    let again = handle.recording().await.expect("the loop runs");
    assert_eq!(again, recording, "asking leaves no trace");
    running.abort();
}

/// They change nothing that the machine knows, and there are two a second.
#[tokio::test(start_paused = true)]
async fn observations_do_not_crowd_out_what_happened() {
    let world = Scripted::new(&[]);
    let (engine, handle) = world.engine(Policy::default());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    until(&handle, ComputeStatus::Running).await;
    let served = handle.snapshot().server.expect("one serves");
    for number in 0..u32::try_from(limits::JOURNAL).expect("it is small") {
        let activity = Activity { active_sessions: number, ..Activity::default() };
        for postmaster in [served, Epoch(99)] {
            handle.observe(postmaster, Seen { activity, newest: None });
        }
        once(|| handle.snapshot().activity == Some(activity)).await;
    }
    let answer = handle.configure(SPEC).await.expect("it is answered");
    assert_eq!(answer.reply, Reply::Configured);
    let recording = handle.recording().await.expect("the loop runs");
    let kinds: Vec<EventKind> = recording.entries.iter().map(|entry| entry.event.kind()).collect();
    assert_eq!(kinds.first(), Some(&EventKind::Booted));
    assert!(!kinds.contains(&EventKind::ActivityObserved), "{kinds:?}");
    let last = recording.entries.last().expect("it is not empty").seq;
    assert!(last > 2 * limits::JOURNAL as u64, "what is left out is numbered: {last}");
    let machine = recording.replay(|_, _| {}).expect("it replays");
    assert_eq!(machine.status(), ComputeStatus::Running);
    running.abort();
}

/// A start has lasted until the server was ready, not until it has ended.
#[tokio::test(start_paused = true)]
async fn a_start_is_measured_until_the_server_is_ready() {
    let samples = |metrics: &Metrics| {
        let text = metrics.render(0).expect("it can be encoded");
        let of_starts = text.lines().filter(|line| {
            line.starts_with("compute_ctl_effect_duration_seconds_count{effect=\"StartPostmaster\"")
        });
        of_starts.map(str::to_owned).collect::<Vec<_>>()
    };
    let sample = |outcome: &str| {
        let labels = format!("effect=\"StartPostmaster\",outcome=\"{outcome}\"");
        vec![format!("compute_ctl_effect_duration_seconds_count{{{labels}}} 1")]
    };
    let (world, metrics) = (Scripted::new(&[]), Arc::new(Metrics::new()));
    let (engine, handle) = engine::new(Arc::new(world), Policy::default(), metrics.clone());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    until(&handle, ComputeStatus::Running).await;
    assert_eq!(samples(&metrics), sample("ok"));
    handle.terminate(TerminateMode::Immediate).await.expect("it is answered");
    running.await.expect("no panic");
    assert_eq!(samples(&metrics), sample("ok"));

    let (world, metrics) = (Scripted::new(&[("StartPostmaster", Does::Fails)]), Arc::new(Metrics::new()));
    let (engine, handle) = engine::new(Arc::new(world), Policy::default(), metrics.clone());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    running.await.expect("no panic");
    assert_eq!(samples(&metrics), sample("permanent"));
}

#[tokio::test(start_paused = true)]
async fn each_failure_is_handed_to_the_hook_with_its_journal() {
    let world = Scripted::new(&[("PrepareStorage", Does::Fails)]);
    let (engine, handle) = world.engine(Policy::default());
    let failures = Arc::new(Mutex::new(Vec::new()));
    let kept = failures.clone();
    let engine = engine.on_failure(move |recording| kept.lock().unwrap().push(recording));
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    assert_eq!(running.await.expect("no panic").ended, Ended::Exit(ExitReason::StartFailed));
    let failures = failures.lock().unwrap();
    let [recording] = failures.as_slice() else { panic!("{} failures", failures.len()) };
    let last = recording.entries.last().expect("something happened");
    assert_eq!(last.status, ComputeStatus::Failed);
    assert_eq!(last.note.as_deref(), Some("it cannot be done"));
    recording.replay(|_, _| {}).expect("it replays");
}

#[tokio::test(start_paused = true)]
async fn a_spawn_that_fails_says_why() {
    let world = Scripted::new(&[("StartPostmaster", Does::Fails)]);
    let (engine, handle) = world.engine(Policy::default());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    until(&handle, ComputeStatus::Failed).await;
    assert_eq!(handle.snapshot().error.as_deref(), Some("no such program"));
    assert_eq!(running.await.expect("no panic").ended, Ended::Exit(ExitReason::StartFailed));
}

/// Behind a door that is opened before the stop is on its way somebody could come in.
#[tokio::test(start_paused = true)]
async fn what_a_look_holds_is_let_go_after_the_stop_was_sent() {
    let world = Scripted::new(&[]);
    let (engine, handle) = world.engine(Policy::default());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    let mut status = handle.watch();
    status.wait_for(|it| it.status == ComputeStatus::Running).await.expect("the loop runs");
    let answer = handle.terminate_if_idle(TerminateMode::Immediate).await.expect("it is answered");
    assert_eq!(answer.reply, Reply::Terminated(TerminationResult::Stopped(None)));
    running.await.expect("no panic");
    let log = world.log();
    let place = |what: &str| log.iter().position(|done| done == what);
    let (looked, stopped) = (place("CheckIdle"), place("Fast"));
    let opened = place("the hold dropped");
    assert!(looked.is_some() && looked < stopped && stopped < opened, "{log:?}");
}

/// One that nobody waits for any more lets go at once, and stops nothing.
#[tokio::test(start_paused = true)]
async fn a_look_that_comes_too_late_lets_go_and_stops_nothing() {
    let world = Scripted::new(&[("CheckIdle", Does::Waits)]);
    let (engine, handle) = world.engine(Policy::default());
    let running = tokio::spawn(engine.run());
    handle.report(Event::Booted { spec: Some(SPEC) }).await;
    let mut status = handle.watch();
    status.wait_for(|it| it.status == ComputeStatus::Running).await.expect("the loop runs");
    let look = {
        let handle = handle.clone();
        tokio::spawn(async move { handle.terminate_if_idle(TerminateMode::Fast).await })
    };
    once(|| world.log().iter().any(|done| done == "CheckIdle")).await;
    let answer = handle.configure(SPEC).await.expect("it is answered");
    assert_eq!(answer.reply, Reply::Configured);
    let answer = look.await.expect("no panic").expect("it is answered");
    let refusal = Refusal::WorkBegun;
    assert_eq!(answer.reply, Reply::Refused { refusal, status: ComputeStatus::ConfigurationPending });
    world.0.go_on.notify_one();
    once(|| world.log().iter().any(|done| done == "the hold dropped")).await;
    assert!(!world.log().iter().any(|done| done == "Fast"), "{:?}", world.log());
    assert_eq!(handle.snapshot().status, ComputeStatus::Running);
    running.abort();
}
