//! A simulated outside: work and postmasters that succeed, fail, hang, panic, die and refuse to die as a seed
//! says, and that note every promise the loop breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use compute_ctl::activity::{Activity, Seen as Found};
use compute_ctl::engine::{Done, Facts, Hold, PromotionTimes, Work, WorkError, World};
use compute_states::{Epoch, Exit, FailureClass, FetchedSpec, Lsn, Revision, SpecOutline, StopMode};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// What every panic on purpose begins with, so that the test can keep it out of its output.
pub(crate) const ON_PURPOSE: &str = "simulated:";

/// SplitMix64: small, fast, and the same everywhere and for ever.
#[derive(Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap_or(0)]
    }

    pub(crate) fn spec(&mut self) -> SpecOutline {
        SpecOutline { revision: Revision(self.below(50)), final_sync: self.percent(50) }
    }

    /// Often none at all, else up to `most`.
    pub(crate) fn pause(&mut self, most: Duration) -> Duration {
        if self.percent(25) {
            return Duration::ZERO;
        }
        Duration::from_millis(self.below(u64::try_from(most.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// How often things go wrong, in percent. Each seed has a mixture of its own, most of them with some kinds of
/// fault missing, since a world in which everything fails never gets anywhere.
#[derive(Debug)]
struct Faults {
    fails: u64,
    hangs: u64,
    ignores_cancel: u64,
    panics: u64,
    panics_at_once: u64,
    answers_wrong: u64,
    detaches: u64,
    spawn_fails: u64,
    never_ready: u64,
    dies: u64,
    ignores_fast: u64,
    ignores_immediate: u64,
    ignores_kill: u64,
    watcher_panics: u64,
    repeats_facts: u64,
}

impl Faults {
    fn draw(rng: &mut Rng) -> Self {
        let mut some = |most: u64| if rng.percent(50) { 0 } else { rng.below(most + 1) };
        Faults {
            fails: some(40),
            hangs: some(20),
            ignores_cancel: some(50),
            panics: some(15),
            panics_at_once: some(5),
            answers_wrong: some(5),
            detaches: some(10),
            spawn_fails: some(20),
            never_ready: some(20),
            dies: some(60),
            ignores_fast: some(60),
            ignores_immediate: some(60),
            ignores_kill: some(20),
            watcher_panics: some(10),
            repeats_facts: some(50),
        }
    }

    fn none() -> Self {
        Faults {
            fails: 0,
            hangs: 0,
            ignores_cancel: 0,
            panics: 0,
            panics_at_once: 0,
            answers_wrong: 0,
            detaches: 0,
            spawn_fails: 0,
            never_ready: 0,
            dies: 0,
            ignores_fast: 0,
            ignores_immediate: 0,
            ignores_kill: 0,
            watcher_panics: 0,
            repeats_facts: 0,
        }
    }
}

/// How far a postmaster is. Everything but `Gone` holds its data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Asked for; there is no process yet.
    Spawning,
    Alive,
    /// Dead, and nobody has noticed.
    Unreaped,
    /// There is no process (any more), and the loop was told, or has given it up, at this moment.
    Gone(Instant),
}

#[derive(Debug)]
struct Postmaster {
    life: Life,
    /// No signal ends it: it hangs in the kernel.
    unkillable: bool,
    told: watch::Sender<Option<StopMode>>,
}

#[derive(Debug)]
struct Inner {
    rng: Rng,
    faults: Faults,
    /// Longest ordinary duration.
    pace: Duration,
    postmasters: BTreeMap<Epoch, Postmaster>,
    /// Work under way, by name.
    working: BTreeMap<&'static str, usize>,
    /// When each piece of work ended, however it did.
    ended: Vec<Instant>,
    broken: Vec<String>,
}

/// The world. Its copies are one world.
#[derive(Clone, Debug)]
pub(crate) struct Sim(Arc<Mutex<Inner>>);

impl Sim {
    pub(crate) fn new(mut rng: Rng) -> Self {
        let faults = Faults::draw(&mut rng);
        let pace = Duration::from_millis(rng.pick(&[5, 300, 8_000, 90_000]));
        Sim(Arc::new(Mutex::new(Inner {
            rng,
            faults,
            pace,
            postmasters: BTreeMap::new(),
            working: BTreeMap::new(),
            ended: Vec::new(),
            broken: Vec::new(),
        })))
    }

    /// From now on nothing new goes wrong.
    pub(crate) fn calm(&self) {
        self.lock().faults = Faults::none();
    }

    /// Notes a broken promise.
    pub(crate) fn broken(&self, what: String) {
        self.lock().broken.push(what);
    }

    /// Every promise that was broken.
    pub(crate) fn take_broken(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().broken)
    }

    /// Whether the last postmaster is gone, and was so before this moment. Virtual time only advances when
    /// nothing is left to do, so by now the loop has handled the end of it.
    pub(crate) fn dead_since_before_now(&self) -> bool {
        let now = Instant::now();
        self.lock().postmasters.values().all(|postmaster| match postmaster.life {
            Life::Gone(when) => when < now,
            Life::Spawning | Life::Alive | Life::Unreaped => false,
        })
    }

    /// What is left, when nothing should be: work under way and processes, apart from those which no signal
    /// can end.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let inner = self.lock();
        let working =
            inner.working.iter().filter(|(_, count)| **count > 0).map(|(name, _)| (*name).to_owned());
        let processes = inner
            .postmasters
            .iter()
            .filter(|(_, postmaster)| !postmaster.is_gone() && !postmaster.unkillable)
            .map(|(epoch, postmaster)| format!("postmaster {} ({:?})", epoch.0, postmaster.life));
        working.chain(processes).collect()
    }

    /// How much work, and how many postmasters, had ended before this moment.
    pub(crate) fn ended_before(&self, moment: Instant) -> (usize, usize) {
        let inner = self.lock();
        let gone = |it: &&Postmaster| matches!(it.life, Life::Gone(when) if when < moment);
        (
            inner.ended.iter().filter(|when| **when < moment).count(),
            inner.postmasters.values().filter(gone).count(),
        )
    }

    /// Whether a process is left which no signal can end.
    pub(crate) fn has_unkillable(&self) -> bool {
        self.lock().postmasters.values().any(|postmaster| postmaster.unkillable && !postmaster.is_gone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic on purpose never happens under the lock, and after any other the test fails anyway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn life(&self, postmaster: Epoch, life: Life) {
        if let Some(known) = self.lock().postmasters.get_mut(&postmaster) {
            known.life = life;
        }
    }
}

impl Postmaster {
    fn is_gone(&self) -> bool {
        matches!(self.life, Life::Gone(_))
    }

    fn was_killed(&self) -> bool {
        *self.told.borrow() == Some(StopMode::Kill)
    }
}

/// How a piece of work goes.
#[derive(Debug)]
enum Fate {
    Ends(Result<Done, FailureClass>),
    Panics,
    /// Until it is told to stop, then this.
    Hangs(Result<Done, FailureClass>),
    /// Whatever it is told.
    HangsForGood,
}

impl Inner {
    fn holders(&self) -> impl Iterator<Item = (&Epoch, &Postmaster)> {
        self.postmasters.iter().filter(|(_, postmaster)| !postmaster.is_gone())
    }

    /// Nothing of what is named may be under way.
    fn exclusive(&mut self, what: &str, others: &[&'static str]) {
        for other in others {
            if self.working.get(other).copied().unwrap_or(0) > 0 {
                self.broken.push(format!("{what} while {other} is under way"));
            }
        }
    }

    /// No postmaster may hold the data directory.
    fn nobody_holds(&mut self, what: &str) {
        let holders: Vec<String> =
            self.holders().map(|(epoch, it)| format!("{epoch:?} {:?}", it.life)).collect();
        for holder in holders {
            self.broken.push(format!("{what} while there is postmaster {holder}"));
        }
    }

    fn check(&mut self, work: Work) {
        match work {
            Work::WarmUp | Work::ResolveSpec { .. } => {}
            Work::PrepareStorage { .. } => {
                self.nobody_holds("PrepareStorage");
                self.exclusive(
                    "PrepareStorage",
                    &["PrepareStorage", "ApplySpec", "Promote", "Sweep", "FinalSync"],
                );
            }
            Work::ApplySpec { postmaster, .. } => {
                if !self.postmasters.contains_key(&postmaster) {
                    self.broken.push(format!("ApplySpec on {postmaster:?}, which never was"));
                }
                self.exclusive(
                    "ApplySpec",
                    &["ApplySpec", "Promote", "PrepareStorage", "Sweep", "FinalSync"],
                );
            }
            Work::Promote { postmaster, .. } => {
                if !self.postmasters.contains_key(&postmaster) {
                    self.broken.push(format!("Promote of {postmaster:?}, which never was"));
                }
                self.exclusive("Promote", &["Promote", "ApplySpec", "PrepareStorage", "Sweep", "FinalSync"]);
            }
            Work::CheckIdle { postmaster } => {
                if !self.postmasters.contains_key(&postmaster) {
                    self.broken.push(format!("CheckIdle of {postmaster:?}, which never was"));
                }
            }
            Work::FetchSpec { .. } => self.exclusive("FetchSpec", &["FetchSpec"]),
            Work::Sweep => {
                self.exclusive("Sweep", &["PrepareStorage", "ApplySpec", "Promote", "Sweep", "FinalSync"]);
                let alive: Vec<Epoch> =
                    self.holders().filter(|(_, it)| !it.was_killed()).map(|(epoch, _)| *epoch).collect();
                for epoch in alive {
                    self.broken.push(format!("Sweep while {epoch:?} lives and was not told to die"));
                }
            }
            Work::FinalSync { .. } => {
                self.nobody_holds("FinalSync");
                self.exclusive(
                    "FinalSync",
                    &["FinalSync", "ApplySpec", "Promote", "PrepareStorage", "Sweep"],
                );
            }
        }
    }

    fn done(&mut self, work: Work) -> Done {
        match work {
            _ if self.rng.percent(self.faults.answers_wrong) => Done::Synced(Lsn(1)),
            Work::FetchSpec { .. } if self.rng.percent(self.faults.detaches) => {
                Done::Fetched(FetchedSpec::NoSpec)
            }
            Work::FetchSpec { .. } => Done::Fetched(FetchedSpec::Spec {
                spec: self.rng.spec(),
                same_pageservers: self.rng.percent(50),
            }),
            Work::Promote { .. } => Done::Promoted(PromotionTimes {
                lsn_wait: self.rng.pause(self.pace),
                pg_promote: self.rng.pause(self.pace),
            }),
            Work::CheckIdle { .. } => {
                let seen = Found { activity: Activity::default(), newest: None };
                match self.rng.percent(30) {
                    true => Done::Idle { seen, hold: Hold::new(()) },
                    false => Done::Busy { seen, text: "a session".into() },
                }
            }
            Work::FinalSync { .. } => Done::Synced(Lsn(self.rng.below(1 << 40))),
            _ => Done::Done,
        }
    }

    fn fate(&mut self, work: Work) -> Fate {
        let class =
            self.rng.pick(&[FailureClass::Transient, FailureClass::Permanent, FailureClass::TimedOut]);
        let result = self.done(work);
        if self.rng.percent(self.faults.hangs) {
            return match self.rng.below(100) {
                chance if chance < self.faults.ignores_cancel => Fate::HangsForGood,
                // Done before it noticed.
                chance if chance % 2 == 0 => Fate::Hangs(Ok(result)),
                _ => Fate::Hangs(Err(FailureClass::Cancelled)),
            };
        }
        if self.rng.percent(self.faults.panics) {
            return Fate::Panics;
        }
        Fate::Ends(if self.rng.percent(self.faults.fails) { Err(class) } else { Ok(result) })
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

/// Counts a piece of work for as long as its future exists.
struct Busy {
    world: Sim,
    name: &'static str,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut inner = self.world.lock();
        inner.ended.push(Instant::now());
        if let Some(count) = inner.working.get_mut(self.name) {
            *count -= 1;
        }
    }
}

/// Everything about a postmaster that is drawn before it is spawned.
#[derive(Clone, Copy, Debug)]
struct Course {
    spawn: Duration,
    spawn_fails: bool,
    progress: u64,
    step: Duration,
    ready: bool,
    repeats_facts: bool,
    dies: Option<(Duration, Exit)>,
    /// How long each kind of order takes to end it, unless it is ignored.
    fast: Option<Duration>,
    immediate: Option<Duration>,
    kill: Option<Duration>,
    reap: Duration,
    watcher_panics: bool,
}

impl Inner {
    fn course(&mut self) -> Course {
        let Inner { rng, faults, pace, .. } = self;
        let pace = *pace;
        let exits = [Exit::Code(0), Exit::Code(1), Exit::Code(2), Exit::Signal(9), Exit::Signal(11)];
        let mut order = |ignored: u64| (!rng.percent(ignored)).then(|| rng.pause(pace));
        let (fast, immediate) = (order(faults.ignores_fast), order(faults.ignores_immediate));
        let kill = (!rng.percent(faults.ignores_kill)).then(|| rng.pause(Duration::from_millis(50)));
        Course {
            spawn: rng.pause(Duration::from_millis(20)),
            spawn_fails: rng.percent(faults.spawn_fails),
            progress: rng.below(4),
            step: rng.pause(pace),
            ready: !rng.percent(faults.never_ready),
            repeats_facts: rng.percent(faults.repeats_facts),
            dies: rng.percent(faults.dies).then(|| (rng.pause(pace * 8), rng.pick(&exits))),
            fast,
            immediate,
            kill,
            reap: rng.pause(Duration::from_millis(30)),
            watcher_panics: kill.is_some() && rng.percent(faults.watcher_panics),
        }
    }
}

impl World for Sim {
    fn run(
        &self,
        work: Work,
        token: CancellationToken,
    ) -> impl Future<Output = Result<Done, WorkError>> + Send + 'static {
        let (fate, took, at_once) = {
            let mut inner = self.lock();
            inner.check(work);
            let pace = inner.pace;
            let at_once = inner.faults.panics_at_once;
            (inner.fate(work), inner.rng.pause(pace), inner.rng.percent(at_once))
        };
        *self.lock().working.entry(name(work)).or_default() += 1;
        let busy = Busy { world: self.clone(), name: name(work) };
        assert!(!at_once, "{ON_PURPOSE} {work:?} panics before it has begun");
        async move {
            let _busy = busy;
            pass(took).await;
            let result = match fate {
                Fate::Ends(result) => result,
                Fate::Panics => panic!("{ON_PURPOSE} {work:?} panics"),
                Fate::Hangs(result) => {
                    token.cancelled().await;
                    pass(took.min(Duration::from_secs(2))).await;
                    result
                }
                Fate::HangsForGood => std::future::pending().await,
            };
            result.map_err(|class| WorkError::plain(class, format!("{work:?} fails")))
        }
    }

    fn start_postmaster(
        &self,
        postmaster: Epoch,
        _: Revision,
        facts: Facts,
    ) -> impl Future<Output = Result<Exit, WorkError>> + Send + 'static {
        let (course, told, at_once) = {
            let mut inner = self.lock();
            inner.nobody_holds("StartPostmaster");
            let at_once = inner.faults.panics_at_once;
            let at_once = inner.rng.percent(at_once);
            let course = inner.course();
            let (sender, told) = watch::channel(None);
            let life = if at_once { Life::Gone(Instant::now()) } else { Life::Spawning };
            let unkillable = course.kill.is_none();
            inner.postmasters.insert(postmaster, Postmaster { life, unkillable, told: sender });
            (course, told, at_once)
        };
        assert!(!at_once, "{ON_PURPOSE} no postmaster");
        let process = Process { world: self.clone(), postmaster, reaped: false };
        live(process, course, told, facts)
    }

    fn stop_postmaster(&self, postmaster: Epoch, mode: StopMode) {
        let mut inner = self.lock();
        match inner.postmasters.get(&postmaster) {
            Some(known) => drop(known.told.send_replace(Some(mode))),
            None => inner.broken.push(format!("{mode:?} for {postmaster:?}, which never was")),
        }
    }

    fn reload_postmaster(&self, postmaster: Epoch) {
        let mut inner = self.lock();
        if !inner.postmasters.contains_key(&postmaster) {
            inner.broken.push(format!("a reload for {postmaster:?}, which never was"));
        }
    }

    fn random(&self) -> u64 {
        self.lock().rng.next()
    }
}

/// The watcher's hold on a process: whoever lets go of it kills it.
struct Process {
    world: Sim,
    postmaster: Epoch,
    reaped: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut inner = self.world.lock();
        if let Some(known) = inner.postmasters.get_mut(&self.postmaster)
            && (self.reaped || !known.unkillable || known.life == Life::Spawning)
        {
            known.life = Life::Gone(Instant::now());
        }
    }
}

async fn live(
    mut process: Process,
    course: Course,
    mut told: watch::Receiver<Option<StopMode>>,
    facts: Facts,
) -> Result<Exit, WorkError> {
    let (world, postmaster) = (process.world.clone(), process.postmaster);
    pass(course.spawn).await;
    if course.spawn_fails {
        process.reaped = true;
        return Err(WorkError::plain(FailureClass::Permanent, "there is no such program"));
    }
    world.life(postmaster, Life::Alive);
    world.lock().exclusive(
        "a postmaster comes up",
        &["PrepareStorage", "ApplySpec", "Promote", "Sweep", "FinalSync"],
    );
    // On its own, so that facts also come when the postmaster is long gone.
    tokio::spawn(tell(facts, course));
    let never = Instant::now() + Duration::from_secs(1_000_000);
    let (mut death, mut exit) = match course.dies {
        Some((after, exit)) => (Instant::now() + after, exit),
        None => (never, Exit::Code(0)),
    };
    loop {
        if let Some(mode) = *told.borrow_and_update() {
            let (after, code) = match mode {
                StopMode::Fast => (course.fast, Exit::Code(0)),
                StopMode::Immediate => (course.immediate, Exit::Code(2)),
                StopMode::Kill => (course.kill, Exit::Signal(9)),
            };
            if let Some(when) = after.map(|after| Instant::now() + after)
                && when < death
            {
                (death, exit) = (when, code);
            }
        }
        tokio::select! {
            biased;
            () = sleep_until(death) => break,
            // The world outlives its processes, so the sender is there.
            _ = told.changed() => {}
        }
    }
    world.life(postmaster, Life::Unreaped);
    assert!(!course.watcher_panics, "{ON_PURPOSE} the watcher panics");
    pass(course.reap).await;
    process.reaped = true;
    Ok(exit)
}

/// Some facts come late, some twice.
async fn tell(facts: Facts, course: Course) {
    for _ in 0..course.progress {
        pass(course.step).await;
        facts.progressed().await;
    }
    if !course.ready {
        return;
    }
    pass(course.step).await;
    facts.ready().await;
    if course.repeats_facts {
        pass(course.step).await;
        facts.progressed().await;
        facts.ready().await;
    }
}

async fn pass(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

/// What a set of runs came by, to see that they get anywhere.
#[derive(Debug, Default)]
pub(crate) struct Seen(pub(crate) BTreeSet<String>);

impl Seen {
    pub(crate) fn note(&mut self, what: impl Into<String>) {
        self.0.insert(what.into());
    }
}
