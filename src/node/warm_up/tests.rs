use std::fs;
use std::process::Command;
use std::time::Duration;

use futures_util::FutureExt;
use tempfile::TempDir;

use super::*;
use crate::postgres::Installation;

/// A bound against hanging, not an expectation.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory for one warm-up, with programs that note who they are before they become the real ones.
struct Bench {
    dir: TempDir,
    context: Context,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let real = Installation::find(None, None).await.expect("these tests need PostgreSQL");
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for name in ["postgres", "initdb"] {
            let started = dir.path().join(format!("{name}.started"));
            // Written by another process: a file that we had open for writing cannot be run while another
            // thread's fork still holds it.
            let write = r#"printf '#!/bin/sh\necho "$$ $*" >>"%s"\nexec "%s" "$@"\n' "$1" "$2" >"$3"; chmod 755 "$3""#;
            let mut command = Command::new("sh");
            command.args(["-c", write, "sh"]).args([started, real.tool(name), bin.join(name)]);
            assert!(command.status().unwrap().success());
        }
        let context = Context {
            installation: Installation::find(Some(&bin.join("postgres")), None).await.unwrap(),
            pgdata: DataDir::claim(&dir.path().join("pgdata")).unwrap(),
            superuser: "cloud_admin".to_owned(),
            cache: dir.path().join("cache"),
            conf: "".into(),
            overwrite_foreign: false,
            restart: false,
            role: storage::Role::Primary,
            progress: Arc::default(),
            cancel: CancellationToken::new(),
        };
        Bench { dir, context }
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("pgdata.warmup")
    }

    /// Process ids and arguments of the servers that were started.
    fn servers(&self) -> Vec<(i32, String)> {
        let text = fs::read_to_string(self.dir.path().join("postgres.started")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let all = lines.map(|(pid, arguments)| (pid.parse().unwrap(), arguments.to_owned()));
        all.filter(|(_, arguments)| arguments.starts_with("-D")).collect()
    }

    /// Shared memory segments made by them.
    fn segments(&self) -> Vec<String> {
        let servers = self.servers();
        let table = fs::read_to_string("/proc/sysvipc/shm").unwrap();
        let creator = |line: &str| line.split_ascii_whitespace().nth(4).unwrap().parse::<i32>().unwrap();
        let made = table.lines().skip(1).filter(|line| servers.iter().any(|(pid, _)| *pid == creator(line)));
        made.map(str::to_owned).collect()
    }

    fn nothing_left(&self) {
        let servers = self.servers();
        assert_eq!(servers.len(), 1, "{servers:?}");
        assert_eq!(self.segments(), [""; 0]);
        // Its other kind of shared memory carries nobody's mark, so what is looked at is where it was made.
        assert!(servers[0].1.contains("dynamic_shared_memory_type=mmap"), "{servers:?}");
        assert!(!self.place().exists());
    }
}

#[tokio::test]
async fn a_warm_up_leaves_nothing() {
    let bench = Bench::new().await;
    warm_up(&bench.context).await.unwrap();
    bench.nothing_left();
}

#[tokio::test]
async fn a_warm_up_cancelled_while_its_server_starts_leaves_nothing() {
    let bench = Bench::new().await;
    let cancel = async {
        while bench.segments().is_empty() {
            tokio::task::yield_now().await;
        }
        bench.context.cancel.cancel();
    };
    let (outcome, ()) = tokio::join!(warm_up(&bench.context), timeout(PATIENCE, cancel).map(|_| ()));
    outcome.unwrap();
    assert!(bench.context.cancel.is_cancelled(), "there was a segment to be seen");
    bench.nothing_left();
}

#[tokio::test]
async fn what_is_not_ours_stays_as_it_is() {
    let mut bench = Bench::new().await;
    bench.context.overwrite_foreign = true;
    fs::create_dir(bench.place()).unwrap();
    fs::write(bench.place().join("letter"), "theirs").unwrap();
    let error = warm_up(&bench.context).await.unwrap_err();
    assert!(
        matches!(error, WarmUpError::Storage(StorageError::Pgdata(PgdataError::Foreign { .. }))),
        "{error:?}"
    );
    let names: Vec<_> =
        fs::read_dir(bench.place()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["letter"]);
    assert_eq!(fs::read_to_string(bench.place().join("letter")).unwrap(), "theirs");
}

#[tokio::test]
async fn what_an_earlier_one_left_is_used_again() {
    let bench = Bench::new().await;
    fs::create_dir(bench.place()).unwrap();
    let left = DataDir::claim(&bench.place()).unwrap();
    left.clear(ClearRule::default(), &CancellationToken::new()).unwrap();
    fs::write(bench.place().join("half"), "").unwrap();
    drop(left);
    warm_up(&bench.context).await.unwrap();
    bench.nothing_left();
}
