use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::postgres::Installation;

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
            overwrite_foreign: false,
            restart: false,
            cancel: CancellationToken::new(),
        };
        Bench { dir, context }
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("pgdata.warmup")
    }
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
    assert!(!bench.place().exists());
}
