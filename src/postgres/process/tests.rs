use super::*;

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script);
    command
}

/// Resolves when the process is gone or a zombie; the event is a pidfd's.
async fn ended(pid: i32) {
    if let Some(fd) = Stat::of(pid).and_then(|stat| proctable::pin(&stat)) {
        proctable::watched(fd).unwrap().readable().await.unwrap().retain_ready();
    }
}

#[tokio::test]
async fn output_and_status_are_told() {
    let output =
        run(shell("echo out; echo err >&2; exit 3"), &CancellationToken::new(), limits::VERSION_PROBE)
            .await
            .unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(output.status.code(), Some(3));
}

#[tokio::test]
async fn a_log_is_passed_on_whole_before_the_end_is_told() {
    let (sender, messages) = std::sync::mpsc::channel();
    let log = LogSink::new(move |message| sender.send(message.to_owned()).unwrap());
    let script = "echo 0/1; echo '2026-01-02 03:04:05 UTC LOG:  one' >&2; echo '  more' >&2; exit 3";
    let output =
        run_logged(shell(script), &CancellationToken::new(), limits::VERSION_PROBE, log).await.unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"0/1\n"[..], &b""[..]));
    assert_eq!(output.status.code(), Some(3));
    let seen: Vec<String> = messages.try_iter().collect();
    assert_eq!(seen, ["PG:2026-01-02 03:04:05 UTC LOG:  one\u{200b}  more\n"]);
}

#[tokio::test]
async fn a_flood_of_output_neither_blocks_nor_grows() {
    let script = "head -c 3000000 /dev/zero; echo; echo end";
    let output = run(shell(script), &CancellationToken::new(), limits::INITDB).await.unwrap();
    assert_eq!(output.stdout.len(), limits::HELPER_OUTPUT);
    assert!(output.stdout.ends_with(b"\nend\n"));
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let error = run(Command::new("/no/such"), &CancellationToken::new(), limits::INITDB).await.unwrap_err();
    assert!(matches!(&error, RunError::Spawn { source, .. } if source.kind() == io::ErrorKind::NotFound));
    assert!(error.to_string().contains("/no/such"));
}

/// Runs a script that writes the pid of a background process, reads it when it is there, and returns it with
/// the process as it was then.
async fn grandchild(fifo: &Path) -> i32 {
    let fifo = fifo.to_owned();
    let line = tokio::task::spawn_blocking(move || fs::read_to_string(fifo)).await.unwrap().unwrap();
    line.trim().parse().unwrap()
}

fn fifo(dir: &Path) -> PathBuf {
    let path = dir.join("fifo");
    unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    path
}

#[tokio::test]
async fn cancelling_ends_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(dir.path());
    let cancel = CancellationToken::new();
    // The shell itself ignores what can be ignored, the background process writes no end of output.
    let script = format!("trap '' TERM INT HUP; yes & echo $! > {}; wait", fifo.display());
    let child = cancel.clone();
    let task = tokio::spawn(async move { run(shell(&script), &child, limits::INITDB).await });
    let pid = grandchild(&fifo).await;
    let before = Stat::of(pid).unwrap();
    cancel.cancel();
    assert!(matches!(task.await.unwrap(), Err(RunError::Cancelled { .. })));
    let after = Stat::of(pid).filter(|stat| stat.start == before.start && !stat.is_dead());
    assert!(after.is_none(), "{after:?}");
}

#[tokio::test]
async fn dropping_the_future_ends_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(dir.path());
    let script = format!("sleep 600 & echo $! > {}; wait", fifo.display());
    let task =
        tokio::spawn(async move { run(shell(&script), &CancellationToken::new(), limits::INITDB).await });
    let pid = grandchild(&fifo).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    ended(pid).await;
}

#[tokio::test]
async fn a_deadline_ends_the_whole_group_and_what_is_left_behind_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(dir.path());
    let none = CancellationToken::new();
    let error = run(shell("sleep 600"), &none, Duration::from_millis(1)).await.unwrap_err();
    assert!(matches!(error, RunError::TimedOut { .. }));
    // The program ends well but leaves a process that holds the pipes.
    let script = format!("sleep 600 & echo $! > {}", fifo.display());
    let task = tokio::spawn(async move { run(shell(&script), &none, limits::INITDB).await });
    let pid = grandchild(&fifo).await;
    assert!(task.await.unwrap().unwrap().status.success());
    ended(pid).await;
}

#[tokio::test]
async fn a_child_has_its_own_group_and_no_descriptors_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let _open = File::create(dir.path().join("open")).unwrap();
    let script = "cut -d' ' -f1,5 /proc/$$/stat; ls -l /proc/$$/fd | grep -c open";
    let output = run(shell(script), &CancellationToken::new(), limits::INITDB).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    let (pid, group) = lines.next().unwrap().split_once(' ').unwrap();
    assert_eq!(pid, group);
    assert_eq!(lines.next(), Some("0"));
}

#[tokio::test]
async fn the_control_planes_token_is_only_passed_on_purpose() {
    let mut inheriting = shell("true");
    Group::spawn(&mut inheriting).unwrap().finish().await.unwrap();
    let passed =
        |command: &Command| command.get_envs().find(|(name, _)| *name == TOKEN_VARIABLE).unwrap().1.is_some();
    assert!(!passed(&inheriting));
    let mut given = shell("true");
    given.env(TOKEN_VARIABLE, "token");
    Group::spawn(&mut given).unwrap().finish().await.unwrap();
    assert!(passed(&given));
}

#[tokio::test]
async fn reaping_orphans_leaves_managed_children_their_status() {
    let group = Group::spawn(&mut shell("exit 7")).unwrap();
    group.exited().await.unwrap();
    // A zombie now. Whatever else is reaped, this one is not.
    // (Only asked for this one: other tests have children that nobody manages.)
    assert_eq!(reap_adopted_if(|stat| stat.pid == group.pid()), 0);
    assert_eq!(group.finish().await.unwrap().code(), Some(7));
    assert!(!group.signal(rustix::process::Signal::KILL), "nothing to signal any more");
}

#[test]
fn privileges_are_not_dropped_to_a_user_that_does_not_exist() {
    let result = drop_privileges("no-such-user", &[]);
    if Uid::effective().is_root() {
        assert!(matches!(result, Err(PrivilegeError::NoUser { .. })));
        assert!(matches!(drop_privileges("root", &[]), Err(PrivilegeError::Superuser { .. })));
    } else {
        assert!(result.is_ok(), "nothing to drop");
    }
}
