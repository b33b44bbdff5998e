//! Safekeepers: what they are asked, what their answers come to, and the program that makes them agree.

// The whole file is a test; the lint knows only test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use compute_ctl::postgres::Installation;
use compute_ctl::postgres::process::RunError;
use compute_ctl::spec::document::ComputeSpec;
use compute_ctl::spec::resolve::Lsn;
use compute_ctl::spec::store::StoredSpec;
use compute_ctl::storage::neon::safekeepers::SyncError;
use compute_ctl::storage::{Context, EndOfLog, Phase, Safekeepers, StorageError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::lab::{Lab, PATIENCE};
use support::node::{Node, Place, eventually, port};
use support::pageserver::archive::Origin;
use support::pageserver::{Answer, Door, Pageserver, Refusal, Sending};
use support::processes;
use support::safekeeper::{Safekeeper, SyncProgram, Way};

const TENANT: &str = "3f1c5d2a9b8e4f70a1b2c3d4e5f60718";
const TIMELINE: &str = "8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d";
const TOKEN: &str = "the-token-of-the-storage";

/// A spec for a primary with these safekeepers and some members replaced.
fn spec(safekeepers: &[String], changes: &Value) -> StoredSpec {
    let mut spec = json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "tenant_id": TENANT,
        "timeline_id": TIMELINE,
        "pageserver_connstring": "postgresql://no_user@127.0.0.1:1",
        "safekeeper_connstrings": safekeepers,
        "storage_auth_token": TOKEN,
        "cluster": {"roles": [], "databases": []},
    });
    for (key, value) in changes.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let spec: ComputeSpec = serde_json::from_value(spec).unwrap();
    StoredSpec::new(spec).unwrap()
}

fn of(safekeepers: &[&Safekeeper]) -> Safekeepers {
    let addresses: Vec<String> = safekeepers.iter().map(|safekeeper| safekeeper.address()).collect();
    Safekeepers::of(&spec(&addresses, &json!({}))).unwrap()
}

/// What three safekeepers come to; whoever may be silent is given only so much time.
async fn told(ways: [Way; 3], budget: Duration) -> String {
    let safekeepers = ways.map(Safekeeper::start);
    let asking = of(&safekeepers.each_ref());
    let asked = asking.check(budget);
    // Not after the budget, which may be longer than anybody's patience.
    let told =
        tokio::time::timeout(PATIENCE, asked).await.expect("it does not wait for those who are silent");
    told.map_or_else(|error| error.to_string(), |end| end.to_string())
}

/// As long as nobody is silent there is no need for a bound, and a loaded machine might miss a short one.
const ANY: Duration = Duration::from_secs(24 * 3600);

const AT: Way = Way::At("0/16B9188", "0/16B9188");

#[tokio::test]
async fn a_majority_that_agrees_is_believed() {
    for silent in [Way::Hang, Way::HangAtQuery, Way::Garbage, Way::Refuse("no"), Way::OtherColumns] {
        assert_eq!(told([AT, silent.clone(), AT], ANY).await, "0/16B9188", "{silent:?}");
    }
    assert_eq!(told([AT, AT, AT], ANY).await, "0/16B9188");
    let virgin = Safekeeper::start(Way::At("0/0", "0/0"));
    assert_eq!(of(&[&virgin]).check(ANY).await.unwrap(), EndOfLog::Empty);
}

#[tokio::test]
async fn a_majority_that_does_not_is_told_apart() {
    let other = Way::At("0/16B9188", "0/16B9100");
    for (ways, expected) in [
        ([AT, Way::NoTimeline, Way::Garbage], "a safekeeper does not have the timeline"),
        ([Way::NoTimeline, Way::NoTimeline, Way::NoTimeline], "a safekeeper does not have the timeline"),
        ([AT, other.clone(), Way::Garbage], "do not agree on what is committed"),
        ([AT, Way::At("0/16B9190", "0/16B9188"), Way::Garbage], "do not agree on what is written"),
        ([other.clone(), other, Way::Hang], "0/16B9188, and know of 0/16B9100"),
    ] {
        let told = told(ways.clone(), ANY).await;
        assert!(told.contains(expected), "{ways:?}: {told}");
    }
}

#[tokio::test]
async fn a_minority_decides_nothing_and_each_failure_is_told() {
    for (way, reason) in [
        (Way::Garbage, ""),
        (Way::Refuse("tenant is gone"), "tenant is gone"),
        (Way::OtherColumns, "no LSN in column flush_lsn"),
        (Way::At("0/1", "x"), "no LSN in column commit_lsn"),
    ] {
        let told = told([way.clone(), AT, way.clone()], ANY).await;
        assert!(told.starts_with("fewer than 2 of 3 safekeepers answer: 127.0.0.1:"), "{way:?}: {told}");
        assert!(told.contains(reason), "{way:?}: {told}");
    }
    // Whoever is silent has had its time.
    let told = told([Way::Hang, Way::HangAtQuery, Way::NoTimeline], Duration::from_millis(50)).await;
    assert!(told.contains("no answer within 50ms"), "{told}");
    let nobody: Vec<String> = (0..3).map(|_| format!("127.0.0.1:{}", port())).collect();
    let error = Safekeepers::of(&spec(&nobody, &json!({}))).unwrap().check(ANY).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_safekeeper_is_asked_about_the_timeline_with_the_token() {
    let safekeeper = Safekeeper::start(AT);
    of(&[&safekeeper]).check(ANY).await.unwrap();
    let [asked] = &safekeeper.asked()[..] else { panic!("{:?}", safekeeper.asked()) };
    let parameter = |wanted: &str| {
        asked.parameters.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    };
    assert_eq!(parameter("user"), Some("no_user"));
    assert_eq!(parameter("options"), Some(format!("-c timeline_id={TIMELINE} tenant_id={TENANT}").as_str()));
    assert_eq!((asked.password.as_str(), asked.query.as_str()), (TOKEN, "TIMELINE_STATUS"));
    assert!(!format!("{:?}", of(&[&safekeeper])).contains(TOKEN));
}

#[test]
fn only_primaries_on_neon_storage_have_safekeepers() {
    let list = ["127.0.0.1:1".to_owned()];
    assert!(Safekeepers::of(&spec(&list, &json!({}))).is_some());
    for changes in [
        json!({"storage": {"kind": "initdb"}}),
        json!({"storage": {"kind": "existing"}}),
        json!({"mode": "Replica"}),
        json!({"mode": {"Static": "0/1"}}),
    ] {
        assert!(Safekeepers::of(&spec(&list, &changes)).is_none(), "{changes}");
    }
}

/// A context whose PostgreSQL is the script of a place.
async fn context(lab: &Lab, program: &SyncProgram<'_>, cache: &Path) -> Context {
    Context {
        installation: Installation::find(Some(&program.pgbin), None).await.unwrap(),
        cache: cache.to_owned(),
        conf: "neon.safekeepers = 'g#7:a:1'\n".into(),
        ..lab.context(&lab.claim("pgdata"))
    }
}

#[tokio::test]
async fn who_does_not_agree_is_made_to_with_the_settings_and_the_token() {
    let (lab, place) = (Lab::new().await, Place::new());
    let (program, cache) = (SyncProgram::new(&place), place.path().join("own-cache"));
    let context = context(&lab, &program, &cache).await;
    let safekeeper = Safekeeper::start(Way::NoTimeline);
    program.says("echo ' 0/16B9188'");
    let safekeepers = of(&[&safekeeper]);
    assert_eq!(safekeepers.agree(&context).await.unwrap(), EndOfLog::At(Lsn(0x16b_9188)));
    assert_eq!(context.progress.phase(), Phase::Agreeing);
    let measured = context.progress.measured();
    assert!(!measured.safekeeper_check.is_zero() && !measured.safekeeper_sync.is_zero(), "{measured:?}");
    program.says("echo 0/0");
    assert_eq!(safekeepers.agree(&context).await.unwrap(), EndOfLog::Empty);
    let runs = program.runs();
    assert_eq!(runs.len(), 2);
    for run in &runs {
        assert!(Path::new(&run.pgdata).starts_with(&cache), "{run:?}");
        assert_eq!((run.token.as_str(), run.conf.as_str()), (TOKEN, "neon.safekeepers = 'g#7:a:1'"));
    }
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0, "nothing of it is left");
    assert_eq!(fs::read_dir(context.pgdata.path()).unwrap().count(), 0, "it is not touched");
}

#[tokio::test]
async fn who_agrees_already_is_left_alone() {
    let (lab, place) = (Lab::new().await, Place::new());
    let program = SyncProgram::new(&place);
    let context = context(&lab, &program, &place.path().join("own-cache")).await;
    program.says("exit 1");
    let safekeepers = [AT, AT, AT].map(Safekeeper::start);
    // A loaded machine may miss the time they have; then it is the program that fails.
    for _ in 0..20 {
        if let Ok(end) = of(&safekeepers.each_ref()).agree(&context).await {
            assert_eq!(end, EndOfLog::At(Lsn(0x16b_9188)));
            return;
        }
    }
    panic!("they are never asked in time");
}

#[tokio::test]
async fn a_failure_is_tried_again() {
    let (lab, place) = (Lab::new().await, Place::new());
    let (program, cache) = (SyncProgram::new(&place), place.path().join("own-cache"));
    let context = context(&lab, &program, &cache).await;
    let safekeeper = Safekeeper::start(Way::NoTimeline);
    for first in ["exit 1", "echo nonsense", "echo 0/1; echo 0/2", "true", "kill -9 $$"] {
        let before = program.runs().len();
        program.says_once(first, "echo 0/5");
        assert_eq!(of(&[&safekeeper]).agree(&context).await.unwrap(), EndOfLog::At(Lsn(5)), "{first}");
        assert_eq!(program.runs().len(), before + 2, "{first}");
    }
}

#[tokio::test]
async fn a_failure_is_told_with_what_the_program_said() {
    let (lab, place) = (Lab::new().await, Place::new());
    let program = SyncProgram::new(&place);
    let context = context(&lab, &program, &place.path().join("own-cache")).await;
    let safekeepers = of(&[&Safekeeper::start(Way::NoTimeline)]);
    let sync = || safekeepers.sync(context.installation.postgres(), place.path(), &context.cancel);
    program.says("echo '2026-01-02 03:04:05 UTC FATAL:  another compute is running' >&2; echo out; exit 1");
    let error = sync().await.unwrap_err();
    assert!(error.may_pass() && !error.is_cancelled());
    let text = error.to_string();
    for part in ["another compute is running", "\"out\"", "exit status: 1"] {
        assert!(text.contains(part), "{text}");
    }
    program.says("echo nonsense");
    let text = sync().await.unwrap_err().to_string();
    assert!(text.contains("did not print one LSN") && text.contains("nonsense"), "{text}");
    // However much it says.
    program
        .says("head -c 1000000 /dev/zero | tr '\\0' x; head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1");
    assert!(sync().await.unwrap_err().to_string().len() < 4000);
}

#[tokio::test]
async fn all_attempts_failing_is_a_failure_that_may_pass() {
    let (lab, place) = (Lab::new().await, Place::new());
    let program = SyncProgram::new(&place);
    let context = context(&lab, &program, &place.path().join("own-cache")).await;
    program.says("exit 1");
    let safekeeper = Safekeeper::start(Way::NoTimeline);
    let error = of(&[&safekeeper]).agree(&context).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert_eq!(program.runs().len(), 6);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_not_tried_again() {
    let (lab, place) = (Lab::new().await, Place::new());
    let program = SyncProgram::new(&place);
    let context = context(&lab, &program, &place.path().join("own-cache")).await;
    fs::remove_file(&program.pgbin).unwrap();
    let safekeeper = Safekeeper::start(Way::NoTimeline);
    let error = of(&[&safekeeper]).agree(&context).await.unwrap_err();
    assert!(matches!(&error, StorageError::Safekeepers(SyncError::Run(RunError::Spawn { .. }))), "{error}");
    assert!(!error.is_unreachable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn cancelled_or_dropped_it_leaves_no_process_and_no_directory() {
    let (lab, place) = (Lab::new().await, Place::new());
    let (program, cache) = (SyncProgram::new(&place), place.path().join("own-cache"));
    program.hangs();
    let safekeeper = Arc::new(Safekeeper::start(Way::NoTimeline));
    for dropped in [false, true] {
        let context = context(&lab, &program, &cache).await;
        let (cancel, pgdata) = (context.cancel.clone(), context.pgdata.clone());
        let asked = safekeeper.clone();
        let work = tokio::spawn(async move { of(&[&asked]).agree(&context).await });
        let hangs = || program.is_hanging().then(|| place.processes());
        let before = tokio::task::block_in_place(|| eventually("the program hangs", hangs));
        if dropped {
            work.abort();
            assert!(work.await.unwrap_err().is_cancelled());
        } else {
            cancel.cancel();
            assert!(work.await.unwrap().unwrap_err().is_cancelled());
        }
        let alive = |process: &processes::Process| {
            process.exists() && processes::Process::of(process.pid).is_some_and(|now| now.state != 'Z')
        };
        let gone = || (!before.iter().any(alive)).then_some(());
        if dropped {
            tokio::task::block_in_place(|| eventually("all of it has gone", gone));
        }
        assert!(gone().is_some(), "left: {before:?}");
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
        fs::remove_file(place.path().join("sync-hangs")).unwrap();
        drop(pgdata);
    }
}

/// A place for primaries of a real cluster, with everything they talk to.
struct Neighbourhood {
    place: Place,
    origin: Origin,
    pageserver: Pageserver,
    safekeeper: Safekeeper,
}

impl Neighbourhood {
    /// Its safekeeper has to be made to agree, so that it does not matter how fast it answers.
    fn new() -> Self {
        let origin = Origin::new();
        let pageserver = Pageserver::start([Answer::Archive(Sending::new(&origin.base_backup()))]);
        let door = Door::Token(TOKEN.to_owned(), Refusal::new("28P01", 16, "no"));
        let all = Neighbourhood {
            place: Place::new(),
            origin,
            pageserver: pageserver.behind(door),
            safekeeper: Safekeeper::start(Way::NoTimeline),
        };
        let mut spec = all.place.spec();
        spec["storage"] = Value::Null;
        spec["skip_pg_catalog_updates"] = json!(true);
        spec["tenant_id"] = json!(TENANT);
        spec["timeline_id"] = json!(TIMELINE);
        spec["storage_auth_token"] = json!(TOKEN);
        spec["pageserver_connstring"] = json!(all.pageserver.libpq_url());
        spec["safekeeper_connstrings"] = json!([all.safekeeper.address()]);
        spec["safekeepers_generation"] = json!(7);
        all.place.configure(&spec);
        all
    }

    fn start<'a>(&'a self, program: &SyncProgram<'_>) -> Node<'a> {
        self.place.start(&["--pgbin", program.pgbin.to_str().unwrap()])
    }

    /// A running primary, and the program that has synchronised its safekeepers.
    fn running(&self) -> (Node<'_>, SyncProgram<'_>) {
        let program = SyncProgram::new(&self.place);
        program.says(&format!("echo {}", self.origin.checkpoint()));
        let node = self.start(&program);
        node.wait_status("running");
        (node, program)
    }
}

#[test]
fn a_primary_begins_and_ends_where_its_safekeepers_agree() {
    let all = Neighbourhood::new();
    let program = SyncProgram::new(&all.place);
    let conf = format!("neon.safekeepers = 'g#7:{}'", all.safekeeper.address());
    // Where it begins, as the program and as the pageserver know it; a timeline without a log has no such place.
    let checkpoint = all.origin.checkpoint();
    for (begin, asked) in [(checkpoint.as_str(), checkpoint.parse().unwrap()), ("0/0", Lsn(0))] {
        let (runs, requests) = (program.runs().len(), all.pageserver.requests().len());
        program.says(&format!("echo {begin}"));
        let node = all.start(&program);
        node.wait_status("running");
        assert_eq!(all.place.sql("update kept set answer = answer + 1 returning answer"), "43");
        assert_eq!(
            all.pageserver.requests()[requests..].iter().map(|r| r.lsn).collect::<Vec<_>>(),
            [asked.0]
        );
        program.says("echo '2026-01-02 03:04:05 UTC LOG:  end of the log' >&2; echo 1/ABC0");
        let before = all.place.processes();
        let (code, body) = node.post("/terminate?mode=immediate", None);
        assert_eq!((code, body.as_str()), (200, r#"{"lsn":"1/ABC0"}"#), "{}", node.log());
        node.ends_with(0, &before);
        let [first, last] = &program.runs()[runs..] else { panic!("{:?}", program.runs()) };
        assert!(Path::new(&first.pgdata).starts_with(all.place.cache()), "{first:?}");
        assert_eq!(Path::new(&last.pgdata), all.place.pgdata());
        for run in [first, last] {
            assert_eq!((run.token.as_str(), run.conf.as_str()), (TOKEN, conf.as_str()));
        }
        // What it says is in the log like the words of the server.
        assert!(node.log().contains("PG:2026-01-02 03:04:05 UTC LOG:  end of the log"), "{}", node.log());
        assert!(!node.log().contains(TOKEN), "the token is in the log");
    }
}

#[test]
fn a_start_that_cannot_synchronise_can_be_ended() {
    let all = Neighbourhood::new();
    let program = SyncProgram::new(&all.place);
    for by_signal in [false, true] {
        program.hangs();
        let node = all.start(&program);
        let before = node.wait("the program hangs", |_| program.is_hanging().then(|| all.place.processes()));
        let status = node.wait_status("init");
        assert_eq!(status["storage"]["phase"], "agreeing", "{status}");
        if by_signal {
            node.signal(Signal::SIGTERM);
        } else {
            let (code, body) = node.post("/terminate?mode=immediate", None);
            assert_eq!((code, body.as_str()), (200, r#"{"lsn":null}"#), "{}", node.log());
        }
        node.ends_with(0, &before);
        fs::remove_file(all.place.path().join("sync-hangs")).unwrap();
    }
    assert!(all.pageserver.requests().is_empty(), "there was no place to ask for");
    // Between failures as well.
    program.says("echo '2026-01-02 03:04:05 UTC FATAL:  no quorum in sight' >&2; exit 1");
    let node = all.start(&program);
    node.wait_log("no quorum in sight");
    let before = all.place.processes();
    node.post("/terminate?mode=immediate", None);
    node.exit_code();
    node.nothing_left(&before);
}

#[test]
fn a_start_without_the_program_fails_and_says_so() {
    let all = Neighbourhood::new();
    let program = SyncProgram::new(&all.place);
    program.hangs();
    let node = all.start(&program);
    let running = node.wait("the program hangs", |_| program.is_hanging().then(|| all.place.processes()));
    fs::rename(&program.pgbin, program.pgbin.with_extension("gone")).unwrap();
    // A failure like any other, after which it is run again.
    let shell = running.iter().find(|process| process.name == "postgres").expect("a script has its own name");
    shell.signal(Signal::SIGKILL);
    let status = node.wait_status("failed");
    let error = status["error"].as_str().unwrap();
    assert!(error.contains("cannot run") && error.contains(program.pgbin.to_str().unwrap()), "{error}");
    node.signal(Signal::SIGTERM);
    node.exit_code();
}

#[test]
fn a_final_sync_that_fails_is_answered_and_shows_in_the_exit_code() {
    let all = Neighbourhood::new();
    let (node, program) = all.running();
    program.says("echo '2026-01-02 03:04:05 UTC FATAL:  another compute is running' >&2; exit 1");
    let before = all.place.processes();
    let (code, body) = node.post("/terminate?mode=immediate", None);
    assert_eq!(code, 500, "{body}");
    assert!(body.contains("failed to sync safekeepers: "), "{body}");
    assert!(body.contains("another compute is running"), "{body}");
    node.ends_with(74, &before);
    assert_eq!(program.runs().len(), 2, "it is tried once");
}

#[test]
fn a_final_sync_that_hangs_is_given_up_at_once_when_it_must_be() {
    let all = Neighbourhood::new();
    let (node, program) = all.running();
    program.hangs();
    let answer = node.post_later("/terminate", None);
    let before = node.wait("the program hangs", |_| program.is_hanging().then(|| all.place.processes()));
    // The first only takes the linger away.
    node.signal(Signal::SIGTERM);
    node.wait_status("termination_pending_immediate");
    assert!(program.is_hanging());
    node.signal(Signal::SIGTERM);
    let (code, body) = answer.join().unwrap();
    assert_eq!(code, 500, "{body}");
    node.ends_with(74, &before);
}

#[test]
fn the_log_is_synchronised_after_postgres_ended_by_itself_but_not_for_a_signal() {
    let all = Neighbourhood::new();
    let (node, program) = all.running();
    node.signal(Signal::SIGTERM);
    node.ends_with(0, &[]);
    assert_eq!(program.runs().len(), 1);
    drop(node);
    // Nobody waits for it, so that it has some seconds only.
    let (node, program) = all.running();
    program.hangs();
    kill(Pid::from_raw(node.postmaster()), Signal::SIGINT).unwrap();
    let before = node.wait("the program hangs", |_| program.is_hanging().then(|| all.place.processes()));
    node.ends_with(0, &before);
    assert_eq!(program.runs().len(), 3);
}
