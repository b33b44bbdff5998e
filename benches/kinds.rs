//! How long kinds of storage take to prepare a data directory, as ratios to the tools that do the same.
//!
//! Both sides take turns, and the directory is removed after each run, so that nobody pays for the other's pages.
//! Where temporary files lie (`TMPDIR`) decides what is measured: a disk whose write-back is the bottleneck makes
//! everything equal, a tmpfs shows what programs cost.
//! `cargo bench --bench kinds -- initdb` runs one part (`initdb`, `base_backup`); `PAIRS` is the number of pairs (20).

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use compute_ctl::postgres::{DataDir, Installation};
use compute_ctl::spec::base_backup::decode;
use compute_ctl::storage::{BaseBackup, Context, Initdb, Role, Storage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
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
    if runs("base_backup") {
        bench.base_backup(pairs.min(10));
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

    fn base_backup(&self, pairs: usize) {
        let source = Source::start(self);
        let connstr = format!("host=127.0.0.1 port={} user=cloud_admin", source.port);
        let copy = |verified: bool| {
            let parameters = json!({ "source": connstr, "manifest": verified });
            let parameters = serde_json::from_value(parameters).expect("an object");
            BaseBackup::new(decode(&parameters, false).expect("good parameters"))
        };
        let (mut bare, mut verified) = (Pairs::default(), Pairs::default());
        for _ in 0..pairs {
            for (figures, manifest) in [(&mut bare, false), (&mut verified, true)] {
                let mut tool = Command::new(self.installation.tool("pg_basebackup"));
                tool.args(["-X", "stream", "-c", "fast", "--no-sync", "-d", &connstr, "-D"]).arg(self.out());
                figures.floor.push(self.tool(tool));
                figures.ours.push(self.prepare(&copy(manifest)));
            }
        }
        bare.print("base backup, not compared with its manifest", "pg_basebackup", "1.1");
        verified.print("base backup, every file compared with its manifest", "pg_basebackup", "no target");
    }
}

/// A server to copy, with a table of some size in it.
struct Source {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Source {
    fn start(bench: &Bench) -> Self {
        let dir = bench.root.path().join("source");
        let data = dir.join("data");
        fs::create_dir(&dir).expect("an own directory");
        let made = Command::new(bench.installation.tool("initdb"))
            .args(["--no-sync", "--username=cloud_admin", "--locale=C.UTF-8", "--auth=trust", "--pgdata"])
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        assert!(made.is_ok_and(|status| status.success()), "initdb failed");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("some port is free");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n"
        );
        fs::write(data.join("postgresql.conf"), settings).expect("an own file");
        let log = fs::File::create(dir.join("log")).expect("an own file");
        let child = Command::new(bench.installation.postgres()).arg("-D").arg(&data).stderr(log).spawn();
        let source = Self { child: child.expect("postgres starts"), port, dir };
        source.psql("create table t as select n, repeat('row ', 60) from generate_series(1, 1000000) n");
        source.psql("checkpoint");
        source
    }

    fn psql(&self, sql: &str) {
        let begun = Instant::now();
        loop {
            let connstr = format!("host=127.0.0.1 port={} user=cloud_admin dbname=postgres", self.port);
            let output =
                Command::new("psql").args(["-Xq", "-c", sql, &connstr]).output().expect("psql starts");
            if output.status.success() {
                return;
            }
            // It may still be starting.
            let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(begun.elapsed() < Duration::from_secs(60), "{output:?}\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        // It is our child and was not waited for.
        let _ = kill(pid, Signal::SIGINT);
        let _ = self.child.wait();
    }
}

/// The one template in the cache.
fn template(cache: &Path) -> PathBuf {
    let mut entries = fs::read_dir(cache).expect("it was made");
    let entry = entries.next().expect("there is a template").expect("an own directory");
    entry.path().join("data")
}
