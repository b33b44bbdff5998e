//! The data directory, the storage kinds and the postmaster against the real PostgreSQL.

// The whole file is a test; the lint knows only test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use compute_ctl::postgres::pgdata::{MARKER, OVERRIDE_FLAG};
use compute_ctl::postgres::{
    ClearRule, Contents, DataDir, DoorError, Fact, Installation, PgdataError, Postmaster, SpawnError,
    StopMode, SweepOutcome, process,
};
use compute_ctl::storage::{Existing, Initdb, Prepared, Storage, StorageError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::lab::{Lab, PATIENCE, children_named, names, next, patiently, processes_about, until};
use tokio_util::sync::CancellationToken;

/// The pid that somebody writes into a fifo, once.
async fn read_pid(fifo: &Path) -> i32 {
    let fifo = fifo.to_owned();
    let text =
        patiently(tokio::task::spawn_blocking(move || fs::read_to_string(fifo))).await.unwrap().unwrap();
    text.trim().parse().unwrap()
}

fn fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap().starts_with('Z'))
}

async fn stop(postmaster: Postmaster, mut facts: tokio::sync::mpsc::UnboundedReceiver<Fact>) {
    assert!(postmaster.signal(StopMode::Fast));
    let Some(Fact::Exited(status)) = next(&mut facts).await else { panic!("no exit") };
    assert_eq!(status.code(), Some(0));
    assert!(matches!(postmaster.sweep(PATIENCE).await, SweepOutcome::Clean { .. }));
}

#[tokio::test]
async fn a_server_starts_serves_reloads_and_stops_cleanly() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    assert_eq!(pgdata.contents().unwrap(), Contents::Ours);
    let (postmaster, mut facts) = lab.spawn(&pgdata);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));

    let stat = fs::read_to_string(format!("/proc/{}/stat", postmaster.pid())).unwrap();
    let group = stat.rsplit(") ").next().unwrap().split(' ').nth(2).unwrap();
    assert_eq!(group, postmaster.pid().to_string(), "leads a group of its own");

    let client = lab.connect().await;
    client.batch_execute("create table kept as select 1 as one").await.unwrap();
    fs::write(pgdata.path().join("postgresql.auto.conf"), "work_mem = '7MB'\n").unwrap();
    assert!(postmaster.reload());
    patiently(async {
        while client.query_one("show work_mem", &[]).await.unwrap().get::<_, String>(0) != "7MB" {}
    })
    .await;

    let second = Postmaster::spawn(lab.launch(&pgdata, &[]));
    assert!(matches!(second, Err(SpawnError::AlreadyRunning { .. })));
    let refused = pgdata.clear(ClearRule::default(), &CancellationToken::new());
    assert!(matches!(refused, Err(PgdataError::Alive { .. })), "{refused:?}");

    assert!(postmaster.signal(StopMode::Fast));
    let Some(Fact::Exited(status)) = next(&mut facts).await else { panic!("no exit") };
    assert_eq!(status.code(), Some(0));
    assert_eq!(next(&mut facts).await, None, "the exit is told once, and last");
    for late in [StopMode::Fast, StopMode::Immediate, StopMode::Kill] {
        assert!(!postmaster.signal(late), "a reaped process is not signalled");
    }
    assert!(!postmaster.reload());
    assert_eq!(postmaster.sweep(PATIENCE).await, SweepOutcome::Clean { signalled: 0 });
    assert_eq!(lab.control(&pgdata, "Database cluster state").await, "shut down");
    let log = lab.log.lock().unwrap();
    assert!(log.lines().all(|line| line.starts_with("PG:")), "{log}");
    assert!(log.contains("database system is shut down"), "the log is whole after the sweep: {log}");
}

#[tokio::test]
async fn nothing_outlives_a_killed_postmaster() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    let pid_of_command = lab.path("fifo");
    fifo(&pid_of_command);
    // An archive command that goes elsewhere and never ends: no backend, not in the directory.
    let command = format!("cd /; echo $$ > {}; exec sleep 600", pid_of_command.display());
    let archive = [("archive_mode", "on"), ("archive_command", command.as_str())];
    let (postmaster, mut facts) = lab.spawn_with(&pgdata, &archive);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));
    let mut sessions = Vec::new();
    for _ in 0..5 {
        let client = lab.connect().await;
        sessions.push(tokio::spawn(async move { client.batch_execute("select pg_sleep(600)").await }));
    }
    let client = lab.connect().await;
    client.batch_execute("create table t(); select pg_switch_wal()").await.unwrap();
    let orphan = read_pid(&pid_of_command).await;
    until(|| processes_about(pgdata.path()).iter().filter(|(_, c)| c.contains("SELECT")).count() == 5).await;

    kill(Pid::from_raw(postmaster.pid()), Signal::SIGKILL).unwrap();
    let Some(Fact::Exited(status)) = next(&mut facts).await else { panic!("no exit") };
    assert_eq!((status.code(), status.signal()), (None, Some(9)));
    assert_eq!(facts.recv().await, None);
    // As yet its orphans may live, and then nobody may start another server.
    let SweepOutcome::Clean { signalled } = postmaster.sweep(PATIENCE).await else {
        panic!("something is left")
    };
    assert!(signalled >= 1, "the archive command does not end by itself");
    assert!(!alive(orphan));
    assert_eq!(processes_about(pgdata.path()), []);
    pgdata.ensure_unused().unwrap();
    for session in sessions {
        assert!(session.await.unwrap().is_err());
    }

    // Started again in place, by the same process: the data are kept and recovered, though in the lock file
    // there now stands a process that lives.
    let lock_file = pgdata.path().join("postmaster.pid");
    fs::write(&lock_file, format!("{}\n{}\n0\n5432\n\n\n\nready   \n", std::process::id(), "/data")).unwrap();
    let context = compute_ctl::storage::Context { restart: true, ..lab.context(&pgdata) };
    assert_eq!(Initdb.prepare(&context).await.unwrap(), Prepared::Kept);
    assert!(!lock_file.exists());
    // And once more a stale one, dead this time, which says `ready`: it counts for nothing.
    fs::write(&lock_file, "4194301\n/data\n0\n5432\n\n\n\nready   \n").unwrap();
    let (postmaster, mut facts) = lab.spawn(&pgdata);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));
    let first = fs::read_to_string(&lock_file).unwrap();
    assert_eq!(first.lines().next().unwrap(), postmaster.pid().to_string());
    lab.connect().await.batch_execute("select from t").await.unwrap();
    stop(postmaster, facts).await;
}

#[tokio::test]
async fn kill_reaches_all_backends_even_of_a_frozen_server() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    let (postmaster, mut facts) = lab.spawn(&pgdata);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));
    let _client = lab.connect().await;
    for (pid, _) in processes_about(pgdata.path()) {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    }
    assert!(postmaster.signal(StopMode::Fast), "sent, though nobody can act on it");
    assert!(postmaster.signal(StopMode::Kill));
    assert!(matches!(next(&mut facts).await, Some(Fact::Exited(status)) if status.signal() == Some(9)));
    assert!(matches!(postmaster.sweep(PATIENCE).await, SweepOutcome::Clean { .. }));
    assert_eq!(processes_about(pgdata.path()), []);
}

/// One that was stopped by whomever hears what it is told all the same: it is not killed after a while.
#[tokio::test]
async fn a_postmaster_that_is_stopped_is_stopped_in_order() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    for (mode, state) in [(StopMode::Fast, "shut down"), (StopMode::Immediate, "in production")] {
        let (postmaster, mut facts) = lab.spawn(&pgdata);
        assert_eq!(next(&mut facts).await, Some(Fact::Ready));
        kill(Pid::from_raw(postmaster.pid()), Signal::SIGSTOP).unwrap();
        assert!(postmaster.signal(mode));
        assert!(matches!(next(&mut facts).await, Some(Fact::Exited(status)) if status.signal().is_none()));
        assert!(matches!(postmaster.sweep(PATIENCE).await, SweepOutcome::Clean { .. }));
        assert_eq!(lab.control(&pgdata, "Database cluster state").await, state);
    }
}

#[tokio::test]
async fn a_dropped_handle_stops_the_server() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    let (postmaster, mut facts) = lab.spawn(&pgdata);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));
    drop(postmaster);
    assert!(matches!(next(&mut facts).await, Some(Fact::Exited(_))));
    until(|| processes_about(pgdata.path()).is_empty()).await;
}

#[tokio::test]
async fn a_server_that_cannot_start_has_exited_and_was_never_ready() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    let (postmaster, mut facts) = lab.spawn_with(&pgdata, &[("shared_buffers", "nonsense")]);
    assert!(matches!(next(&mut facts).await, Some(Fact::Exited(status)) if status.code() == Some(1)));
    assert_eq!(next(&mut facts).await, None);
    postmaster.sweep(PATIENCE).await;
    assert!(lab.log.lock().unwrap().contains("nonsense"));
}

#[tokio::test]
async fn a_standby_that_serves_nobody_is_alive_and_not_ready() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    fs::write(pgdata.path().join("standby.signal"), "").unwrap();
    let waiting =
        [("hot_standby", "off"), ("restore_command", "false"), ("wal_retrieve_retry_interval", "100ms")];
    let (postmaster, mut facts) = lab.spawn_with(&pgdata, &waiting);
    for _ in 0..2 {
        assert_eq!(patiently(facts.recv()).await, Some(Fact::Progressed));
    }
    assert!(fs::read_to_string(pgdata.path().join("postmaster.pid")).unwrap().contains("standby"));
    assert!(postmaster.signal(StopMode::Immediate));
    assert!(matches!(next(&mut facts).await, Some(Fact::Exited(_))));
    assert!(matches!(postmaster.sweep(PATIENCE).await, SweepOutcome::Clean { .. }));
}

#[tokio::test]
async fn a_server_that_replays_much_is_seen_to_advance_until_it_is_ready() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    let lasting = [("max_wal_size", "100GB"), ("checkpoint_timeout", "1d"), ("fsync", "off")];
    let (mut postmaster, mut facts) = lab.spawn_with(&pgdata, &lasting);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));
    // As much as this machine takes longer for than the time between two looks.
    let mut rows = 400_000;
    loop {
        let client = lab.connect().await;
        client.batch_execute("create table if not exists much (n int primary key, t text)").await.unwrap();
        let more = format!(
            "insert into much select n, repeat('x', 50) from generate_series(1, {rows}) n on conflict (n) do \
             update set t = excluded.t"
        );
        patiently(client.batch_execute(&more)).await.unwrap();
        assert!(postmaster.signal(StopMode::Kill));
        assert!(matches!(next(&mut facts).await, Some(Fact::Exited(_))));
        assert!(matches!(postmaster.sweep(PATIENCE).await, SweepOutcome::Clean { .. }));
        pgdata.ensure_unused().unwrap();
        (postmaster, facts) = lab.spawn_with(&pgdata, &lasting);
        let mut advances = 0;
        while patiently(facts.recv()).await == Some(Fact::Progressed) {
            advances += 1;
        }
        let count = lab.connect().await.query_one("select count(*) from much", &[]).await.unwrap();
        assert_eq!(count.get::<_, i64>(0), rows);
        if advances > 0 {
            break;
        }
        rows *= 2;
        assert!(rows < 10_000_000, "no machine replays that in a moment");
    }
    stop(postmaster, facts).await;
}

#[tokio::test]
async fn the_log_keeps_messages_together_and_survives_bytes_that_are_no_text() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    let archive = [("archive_mode", "on"), ("archive_command", r"printf 'bad \377 byte\n' >&2")];
    let (postmaster, mut facts) = lab.spawn_with(&pgdata, &archive);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));
    let client = lab.connect().await;
    client.batch_execute("create table t(); select pg_switch_wal()").await.unwrap();
    until(|| lab.log.lock().unwrap().contains("bad \u{fffd} byte")).await;
    client.batch_execute("do $$ begin raise log E'first\nsecond'; end $$").await.unwrap();
    drop(client);
    stop(postmaster, facts).await;
    let log = lab.log.lock().unwrap();
    let message = log.lines().find(|line| line.contains("first")).unwrap();
    assert!(message.contains("first\u{200b}\tsecond"), "{message}");
}

#[tokio::test]
async fn a_foreign_server_is_noticed_and_left_alone() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    let before = names(pgdata.path());
    let pg_ctl = |arguments: &[&str]| {
        let mut command = Command::new(lab.installation.tool("pg_ctl"));
        let options = format!("-c listen_addresses= -c unix_socket_directories={}", lab.dir.path().display());
        command
            .args(arguments)
            .args(["-o", &options, "-l"])
            .arg(lab.path("log"))
            .arg("-D")
            .arg(pgdata.path());
        command
    };
    // Left behind by pg_ctl in a session of its own; `run` ends what stays in the group only.
    let none = CancellationToken::new();
    assert!(process::run(pg_ctl(&["start", "-w"]), &none, PATIENCE).await.unwrap().status.success());
    let lock_file = fs::read_to_string(pgdata.path().join("postmaster.pid")).unwrap();
    let pid: i32 = lock_file.lines().next().unwrap().parse().unwrap();

    let everything = ClearRule { neon: true, overwrite_foreign: true };
    let with_lock_file = pgdata.clear(everything, &none);
    let initdb = Initdb.prepare(&lab.context(&pgdata)).await;
    let existing = Existing.prepare(&lab.context(&pgdata)).await;
    fs::rename(pgdata.path().join("postmaster.pid"), lab.path("aside")).unwrap();
    let without_lock_file = pgdata.clear(everything, &none);
    fs::rename(lab.path("aside"), pgdata.path().join("postmaster.pid")).unwrap();
    let served = lab.connect().await.query_one("select 1", &[]).await.is_ok();
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    until(|| {
        process::reap_adopted();
        processes_about(pgdata.path()).is_empty()
    })
    .await;

    assert!(matches!(with_lock_file, Err(PgdataError::Alive { .. })), "{with_lock_file:?}");
    assert!(matches!(without_lock_file, Err(PgdataError::Alive { .. })), "{without_lock_file:?}");
    for prepared in [initdb, existing] {
        assert!(matches!(prepared, Err(StorageError::Pgdata(PgdataError::Alive { .. }))), "{prepared:?}");
    }
    assert!(served);
    for name in before {
        assert!(pgdata.path().join(&name).exists(), "{name} is gone");
    }
}

#[tokio::test]
async fn initdb_wipes_its_own_and_refuses_others() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    let first = lab.control(&pgdata, "Database system identifier").await;
    fs::write(pgdata.path().join("core"), "x").unwrap();
    assert_eq!(Initdb.prepare(&lab.context(&pgdata)).await.unwrap(), Prepared::Created);
    assert!(!pgdata.path().join("core").exists());
    let second = lab.control(&pgdata, "Database system identifier").await;
    assert_ne!(first, second, "a clone is a cluster of its own");
    let (postmaster, mut facts) = lab.spawn(&pgdata);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));
    let row = lab.connect().await;
    let row =
        row.query_one("select system_identifier::text, current_user::text from pg_control_system()", &[]);
    let row = row.await.unwrap();
    assert_eq!((row.get::<_, String>(0), row.get::<_, &str>(1)), (second, "cloud_admin"));
    stop(postmaster, facts).await;

    // The same directory without our marker is somebody's.
    fs::remove_file(pgdata.path().join(MARKER)).unwrap();
    let before = names(pgdata.path());
    let error = Initdb.prepare(&lab.context(&pgdata)).await.unwrap_err().to_string();
    assert!(error.contains(OVERRIDE_FLAG) && error.contains(pgdata.path().to_str().unwrap()), "{error}");
    assert_eq!(names(pgdata.path()), before);
    let context = compute_ctl::storage::Context { overwrite_foreign: true, ..lab.context(&pgdata) };
    assert_eq!(Initdb.prepare(&context).await.unwrap(), Prepared::Created);
}

#[tokio::test]
async fn existing_keeps_what_is_there() {
    let lab = Lab::new().await;
    let pgdata = lab.claim("data");
    assert_eq!(Existing.prepare(&lab.context(&pgdata)).await.unwrap(), Prepared::Created);
    assert!(!pgdata.path().join(MARKER).exists(), "data to keep carry no marker");
    let (postmaster, mut facts) = lab.spawn(&pgdata);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));
    lab.connect().await.batch_execute("create table kept()").await.unwrap();
    stop(postmaster, facts).await;
    assert_eq!(Existing.prepare(&lab.context(&pgdata)).await.unwrap(), Prepared::Kept);
    assert!(matches!(
        Initdb.prepare(&lab.context(&pgdata)).await,
        Err(StorageError::Pgdata(PgdataError::Foreign { .. }))
    ));
    let (postmaster, mut facts) = lab.spawn(&pgdata);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));
    lab.connect().await.batch_execute("select from kept").await.unwrap();
    stop(postmaster, facts).await;

    fs::write(pgdata.path().join("PG_VERSION"), "9\n").unwrap();
    let error = Existing.prepare(&lab.context(&pgdata)).await.unwrap_err();
    assert!(matches!(&error, StorageError::WrongVersion { found, .. } if found == "9"), "{error}");

    let other = lab.claim("other");
    fs::write(other.path().join("letter"), "x").unwrap();
    let error = Existing.prepare(&lab.context(&other)).await.unwrap_err();
    assert!(matches!(&error, StorageError::NotACluster { .. }), "{error}");
    assert_eq!(names(other.path()), ["letter"]);
}

/// The installation with an `initdb` in front of the real one that writes its pid into a fifo first.
async fn slow_installation(lab: &Lab, pid: &Path) -> Installation {
    let bin = lab.path("bin");
    fs::create_dir(&bin).unwrap();
    let real = |tool| lab.installation.tool(tool).display().to_string();
    for (name, body) in [
        ("postgres", format!("exec {} \"$@\"", real("postgres"))),
        ("initdb", format!("echo $$ > {}\nexec {} \"$@\"", pid.display(), real("initdb"))),
    ] {
        // By another process: a file that we had open for writing may not be run yet.
        let mut write = Command::new("sh");
        let script = r#"printf '#!/bin/sh\n%s\n' "$1" > "$2"; chmod 755 "$2""#;
        write.args(["-c", script, "sh", &body]).arg(bin.join(name));
        process::run(write, &CancellationToken::new(), PATIENCE).await.unwrap();
    }
    Installation::find(Some(&bin.join("postgres")), None).await.unwrap()
}

#[tokio::test]
async fn initdb_cancelled_or_dropped_leaves_no_process_and_no_half_template() {
    for drop_it in [false, true] {
        let lab = Lab::new().await;
        let (pid, cache) = (lab.path("fifo"), lab.path("cache"));
        fifo(&pid);
        let pgdata = lab.claim("data");
        let context = compute_ctl::storage::Context {
            installation: slow_installation(&lab, &pid).await,
            cache: cache.clone(),
            ..lab.context(&pgdata)
        };
        let cancel = context.cancel.clone();
        let task = tokio::spawn(async move { Initdb.prepare(&context).await });
        let initdb = read_pid(&pid).await;
        // In the middle: the bootstrap process is at work.
        until(|| {
            let building = names(&cache).into_iter().find(|name| name.starts_with(".building"));
            building.is_some_and(|name| cache.join(name).join("data/base/1").exists())
        })
        .await;
        assert!(alive(initdb));
        if drop_it {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
            until(|| !alive(initdb) && processes_about(&cache).is_empty()).await;
        } else {
            cancel.cancel();
            assert!(task.await.unwrap().unwrap_err().is_cancelled());
            assert!(!alive(initdb));
            assert!(processes_about(&cache).iter().all(|(pid, _)| !alive(*pid)));
            assert_eq!(names(&cache), Vec::<String>::new());
        }
        assert_eq!(names(pgdata.path()), [MARKER]);

        // And again, to the end.
        let context = compute_ctl::storage::Context { cache: cache.clone(), ..lab.context(&pgdata) };
        assert_eq!(Initdb.prepare(&context).await.unwrap(), Prepared::Created);
        let left = names(&cache);
        assert!(left.len() == 1 && left[0].starts_with("initdb-"), "{left:?}");
    }
}

#[tokio::test]
async fn a_failing_initdb_says_why_and_leaves_nothing() {
    let lab = Lab::new().await;
    let pgdata = lab.claim("data");
    let cache = lab.path("cache");
    let context = compute_ctl::storage::Context {
        superuser: "pg_not_allowed".to_owned(),
        cache: cache.clone(),
        ..lab.context(&pgdata)
    };
    let error = Initdb.prepare(&context).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Initdb { output } if output.contains("pg_not_allowed")),
        "{error}"
    );
    assert_eq!(names(&cache), Vec::<String>::new());
}

#[tokio::test]
async fn an_adopted_orphan_is_reaped() {
    let lab = Lab::new().await;
    let pid = lab.path("fifo");
    fifo(&pid);
    // It leaves the group of the helper that started it, outlives that, and ends in its own time. The helper waits
    // for its pid, so that it is not killed as a straggler of the group.
    let script = format!(
        "setsid sh -c 'echo $$ > {0}; exit 2' < /dev/null > /dev/null 2>&1 & read pid < {0}; echo $pid",
        pid.display()
    );
    let mut helper = Command::new("sh");
    helper.args(["-c", &script]);
    let output = process::run(helper, &CancellationToken::new(), PATIENCE).await.unwrap();
    let orphan: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    until(|| {
        process::reap_adopted();
        !Path::new(&format!("/proc/{orphan}")).exists()
    })
    .await;
}

#[tokio::test]
async fn two_that_build_the_same_template_both_get_a_cluster() {
    let lab = Lab::new().await;
    let cache = lab.path("cache");
    let one = |name: &str| {
        let pgdata: Arc<DataDir> = lab.claim(name);
        let context = compute_ctl::storage::Context { cache: cache.clone(), ..lab.context(&pgdata) };
        async move { Initdb.prepare(&context).await.unwrap() }
    };
    let (first, second) = tokio::join!(one("one"), one("two"));
    assert_eq!((first, second), (Prepared::Created, Prepared::Created));
    assert_eq!(names(&cache).len(), 1);
    // No zombie of anything started here. What other tests have ended in its midst comes to us as an orphan, which a
    // node reaps at each signal of a child's end.
    until(|| {
        process::reap_adopted();
        children_named("initdb").is_empty()
    })
    .await;
}

/// A client that comes while the door is shut is not admitted, and if the server is told to stop before it opens,
/// never is; if not, it is served as if nothing had been.
#[tokio::test]
async fn behind_a_shut_door_nobody_comes_in() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    let (postmaster, mut facts) = lab.spawn(&pgdata);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));
    let inside = lab.connect().await;
    let door = postmaster.door();
    let shut = || {
        loop {
            if let Some(shut) = door.shut().unwrap() {
                return shut;
            }
        }
    };
    let pids = async || {
        let row = inside.query_one("select array_agg(pid) from pg_stat_activity", &[]).await.unwrap();
        row.get::<_, Vec<i32>>(0)
    };
    let waiting = |count: usize| {
        let socket = std::os::unix::net::UnixStream::connect(lab.path(".s.PGSQL.5432")).unwrap();
        socket.set_nonblocking(true).unwrap();
        (count, socket)
    };

    let closed = shut();
    let (_, stranger) = waiting(1);
    // Sessions go on, and the one at the door is no process yet.
    assert_eq!(closed.untold(&pids().await), 0);
    assert!(matches!(door.shut(), Err(DoorError::Held)), "one at a time");
    assert!(closed.holds().is_ok());
    // Whoever lets it go on opens the door, and whoever has shut it finds that out; nobody else shuts it meanwhile.
    kill(Pid::from_raw(postmaster.pid()), Signal::SIGCONT).unwrap();
    assert!(matches!(closed.holds(), Err(DoorError::Opened { pid }) if pid == postmaster.pid()));
    assert!(matches!(door.shut(), Err(DoorError::Held)));
    drop(closed);
    // Now the stranger is being set up, which holds the door open or shows behind it.
    until(|| door.shut().unwrap().is_some_and(|shut| shut.untold(&[]) > 0)).await;
    patiently(async {
        loop {
            let told = pids().await;
            if let Some(closed) = door.shut().unwrap()
                && closed.untold(&told) == 1
            {
                break;
            }
        }
    })
    .await;
    drop(stranger);
    patiently(async {
        loop {
            let told = pids().await;
            if let Some(closed) = door.shut().unwrap()
                && closed.untold(&told) == 0
            {
                break;
            }
        }
    })
    .await;

    let closed = shut();
    let mut config = tokio_postgres::Config::new();
    config.host_path(lab.dir.path()).user("cloud_admin").dbname("postgres");
    let client = tokio::spawn(async move { config.connect(tokio_postgres::NoTls).await.map(|_| ()) });
    // It stands at the door once the kernel has taken its connection.
    until(|| {
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        let path = lab.path(".s.PGSQL.5432");
        sockets.lines().filter(|line| line.ends_with(path.to_str().unwrap())).count() > 1
    })
    .await;
    assert_eq!(closed.untold(&pids().await), 0);
    assert!(postmaster.signal(StopMode::Fast));
    drop(closed);
    let refused = patiently(client).await.unwrap().expect_err("the server stops");
    let told = refused.as_db_error().map(|error| error.code().code().to_owned());
    assert!(told.is_none() || told.as_deref() == Some("57P03"), "{refused:?}");
    let Some(Fact::Exited(status)) = next(&mut facts).await else { panic!("no exit") };
    assert_eq!(status.code(), Some(0));
    assert!(matches!(door.shut(), Err(DoorError::Gone)));
    assert!(matches!(postmaster.sweep(PATIENCE).await, SweepOutcome::Clean { .. }));
}

/// Stopped in the midst of anything but its wait, a postmaster may be letting somebody in.
#[tokio::test]
async fn the_door_is_shut_only_while_the_postmaster_waits() {
    let lab = Lab::new().await;
    let pgdata = lab.cluster("data").await;
    let (postmaster, mut facts) = lab.spawn(&pgdata);
    assert_eq!(next(&mut facts).await, Some(Fact::Ready));
    let door = postmaster.door();
    until(|| door.shut().unwrap().is_some()).await;
    // Whoever reads it waits for somebody who writes.
    let (included, empty) = (pgdata.path().join("included.conf"), pgdata.path().join("empty.conf"));
    fifo(&included);
    fs::write(&empty, "").unwrap();
    let conf = pgdata.path().join("postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{text}\ninclude 'included.conf'\n")).unwrap();
    assert!(postmaster.reload());
    until(|| door.shut().unwrap().is_none()).await;
    let path = included.clone();
    let writes = tokio::task::spawn_blocking(move || fs::OpenOptions::new().write(true).open(path));
    let writer = patiently(writes).await.unwrap().unwrap();
    // The other processes read it after the postmaster, and nobody writes for them.
    fs::rename(&empty, &included).unwrap();
    drop(writer);
    until(|| door.shut().unwrap().is_some()).await;
    assert!(postmaster.signal(StopMode::Fast));
    let Some(Fact::Exited(status)) = next(&mut facts).await else { panic!("no exit") };
    assert_eq!(status.code(), Some(0));
}
