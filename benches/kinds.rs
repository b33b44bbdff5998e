//! How long kinds of storage take to prepare a data directory, as ratios to the tools that do the same.
//!
//! Both sides take turns, and the directory is removed after each run, so that nobody pays for the other's pages.
//! Where temporary files lie (`TMPDIR`) decides what is measured: a disk whose write-back is the bottleneck makes
//! everything equal, a tmpfs shows what programs cost.
//! `cargo bench --bench kinds -- initdb` runs one part (`initdb`); `PAIRS` is the number of pairs (20).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use compute_ctl::postgres::{DataDir, Installation};
use compute_ctl::storage::{Context, Initdb, Role, Storage};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

#[path = "support/pairs.rs"]
mod pairs;

use pairs::Pairs;

fn main() {
    // `cargo test --benches` runs benchmarks too, with this flag, to see that they start at all.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let pairs = std::env::var("PAIRS").ok().and_then(|pairs| pairs.parse().ok()).unwrap_or(20);
    let bench = Bench::new();
    println!(
        "PostgreSQL {}; below {}; {pairs} interleaved pairs each\n",
        bench.installation.version(),
        bench.root.path().display()
    );
    if runs("initdb") {
        bench.initdb(pairs);
    }
}

struct Bench {
    root: tempfile::TempDir,
    runtime: Runtime,
    installation: Installation,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory for temporary files");
        let runtime = Runtime::new().expect("threads can be had");
        let installation = runtime.block_on(Installation::find(None, None)).expect("PostgreSQL is installed");
        Self { root, runtime, installation }
    }

    fn cache(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    fn out(&self) -> PathBuf {
        self.root.path().join("out")
    }

    /// Prepares a directory, and removes it.
    fn prepare(&self, storage: &dyn Storage) -> Duration {
        let out = self.out();
        let begun = Instant::now();
        let context = Context {
            installation: self.installation.clone(),
            pgdata: DataDir::claim(&out).expect("an own directory"),
            superuser: "cloud_admin".to_owned(),
            cache: self.cache(),
            conf: "".into(),
            overwrite_foreign: false,
            restart: false,
            role: Role::Primary,
            progress: Arc::default(),
            cancel: CancellationToken::new(),
        };
        self.runtime.block_on(storage.prepare(&context)).expect("it can be prepared");
        let took = begun.elapsed();
        drop(context);
        fs::remove_dir_all(&out).expect("an own directory");
        took
    }

    /// A tool that makes the same directory, which is removed.
    fn tool(&self, mut command: Command) -> Duration {
        let begun = Instant::now();
        let status = command.stdout(Stdio::null()).status();
        let took = begun.elapsed();
        assert!(status.is_ok_and(|status| status.success()), "{command:?}");
        fs::remove_dir_all(self.out()).expect("the tool has made it");
        took
    }

    fn initdb(&self, pairs: usize) {
        // Makes the template.
        self.prepare(&Initdb);
        let template = template(&self.cache());
        let (mut over_copy, mut over_initdb) = (Pairs::default(), Pairs::default());
        for _ in 0..pairs {
            let mut copy = Command::new("cp");
            copy.args(["-a", "--reflink=auto"]).arg(&template).arg(self.out());
            over_copy.floor.push(self.tool(copy));
            over_copy.ours.push(self.prepare(&Initdb));
            let mut initdb = Command::new(self.installation.tool("initdb"));
            initdb.args(["--no-sync", "--username=cloud_admin", "--locale=C.UTF-8", "--encoding=utf8"]);
            initdb.arg("--auth=trust").arg("--pgdata").arg(self.out());
            over_initdb.floor.push(self.tool(initdb));
            over_initdb.ours.push(self.prepare(&Initdb));
        }
        over_copy.print("initdb from the cached template", "cp -a --reflink=auto", "1.2");
        over_initdb.print("initdb from the cached template", "initdb --no-sync", "0.2");
    }
}

/// The one template in the cache.
fn template(cache: &Path) -> PathBuf {
    let mut entries = fs::read_dir(cache).expect("it was made");
    let entry = entries.next().expect("there is a template").expect("an own directory");
    entry.path().join("data")
}
