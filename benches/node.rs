//! What supervision costs, as ratios to a bare Postgres doing the same on the same data in the same run.
//!
//! Pairs are interleaved, so that whatever else the machine does falls on both sides. No figure is asserted.
//! `cargo bench --bench node -- start` runs one part (`start`, `catalog`, `stop`, `crash`, `memory`).

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything here may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks. Both sides of each pair are looked at alike.
const LOOK: Duration = Duration::from_micros(500);

fn main() {
    // `cargo test --benches` runs benchmarks too, with this flag, to see that they start at all.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let pairs = std::env::var("PAIRS").ok().and_then(|pairs| pairs.parse().ok()).unwrap_or(30);
    let bench = Bench::new();
    println!("PostgreSQL: {}; {pairs} interleaved pairs each\n", bench.version());
    if runs("start") {
        bench.start(pairs, "exec -> running, catalog skipped", Catalog::Skipped, "1.10 p50, 1.25 p90");
    }
    if runs("catalog") {
        bench.start(pairs, "exec -> running, ten roles to make", Catalog::Roles, "1.5 p50");
        bench.start(
            pairs,
            "exec -> running, ten roles and a database to make",
            Catalog::Database,
            "no target",
        );
    }
    if runs("stop") {
        bench.stop(pairs);
    }
    if runs("crash") {
        bench.crash(100);
    }
    if runs("memory") {
        bench.memory();
    }
}

/// What there is to apply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Catalog {
    Skipped,
    Roles,
    /// Making a database takes Postgres longer than starting, so the floor makes one too.
    Database,
}

struct Bench {
    root: tempfile::TempDir,
    bin: PathBuf,
    ports: [u16; 3],
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory for temporary files");
        let bin = bin_dir();
        let ports = [free_port(), free_port(), free_port()];
        let bench = Bench { root, bin, ports };
        let initdb = Command::new(bench.bin.join("initdb"))
            .args(["--username=cloud_admin", "--encoding=utf8", "--locale=C.UTF-8", "--auth=trust", "-D"])
            .arg(bench.template())
            .stdout(Stdio::null())
            .status()
            .expect("initdb starts");
        assert!(initdb.success(), "initdb failed");
        bench
    }

    fn version(&self) -> String {
        let output =
            Command::new(self.bin.join("postgres")).arg("--version").output().expect("postgres starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn template(&self) -> PathBuf {
        self.root.path().join("template")
    }

    /// A fresh copy of the same cluster, with the settings both sides use.
    fn data(&self) -> PathBuf {
        let data = self.root.path().join("data");
        if data.exists() {
            fs::remove_dir_all(&data).expect("the old copy can be removed");
        }
        let copied =
            Command::new("cp").args(["-a", "--reflink=auto"]).arg(self.template()).arg(&data).status();
        assert!(copied.expect("cp starts").success(), "cp failed");
        let text = format!(
            "port={}\nlisten_addresses='127.0.0.1'\nunix_socket_directories=''\nlc_messages='C.UTF-8'\n",
            self.ports[0]
        );
        fs::write(data.join("postgresql.conf"), text).expect("the settings can be written");
        data
    }

    fn config(&self, catalog: Catalog) -> PathBuf {
        let names = (0..10).map(|number| format!("r{number}"));
        let roles = match catalog {
            Catalog::Skipped => Vec::new(),
            _ => names.map(|name| serde_json::json!({ "name": name })).collect(),
        };
        let databases = match catalog {
            Catalog::Database => vec![serde_json::json!({ "name": "d0", "owner": "r0" })],
            _ => Vec::new(),
        };
        let port = self.ports[0].to_string();
        let document = serde_json::json!({
            "spec": {
                "format_version": 1.0,
                "suspend_timeout_seconds": -1,
                "storage": { "kind": "existing" },
                "skip_pg_catalog_updates": catalog == Catalog::Skipped,
                "cluster": {
                    "roles": roles,
                    "databases": databases,
                    "settings": [
                        { "name": "port", "value": port, "vartype": "integer" },
                        { "name": "listen_addresses", "value": "127.0.0.1", "vartype": "string" },
                        { "name": "unix_socket_directories", "value": "", "vartype": "string" },
                    ],
                },
            },
            "compute_ctl_config": { "jwks": { "keys": [] } },
        });
        let path = self.root.path().join("config.json");
        fs::write(&path, document.to_string()).expect("the config can be written");
        path
    }

    fn bare(&self, data: &Path) -> Process {
        let mut command = Command::new(self.bin.join("postgres"));
        command.arg("-D").arg(data);
        Process::spawn(command)
    }

    fn supervised(&self, data: &Path, config: &Path) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_compute_ctl"));
        command.args(["run", "--standalone", "-i", "bench", "-D"]).arg(data).arg("-c").arg(config);
        command.arg("-C").arg(format!("postgresql://cloud_admin@127.0.0.1:{}/postgres", self.ports[0]));
        command.arg("-b").arg(self.bin.join("postgres"));
        command.arg("--cache-dir").arg(self.root.path().join("cache"));
        command.arg("--journal").arg(self.root.path().join("journal"));
        command.arg("--external-http-port").arg(self.ports[1].to_string());
        command.arg("--internal-http-port").arg(self.ports[2].to_string());
        Process::spawn(command)
    }

    /// Until the first `SELECT 1` has its answer.
    fn answers(&self) {
        until("Postgres answers", || query(self.ports[0], "SELECT 1"));
    }

    /// Until the published status is this one.
    fn status(&self, wanted: impl Fn(&str) -> bool) {
        until("the status", || {
            http(self.ports[1], "GET", "/metrics").is_some_and(|body| wanted(&status_of(&body)))
        });
    }

    fn start(&self, pairs: usize, title: &str, catalog: Catalog, target: &str) {
        let config = self.config(catalog);
        let mut figures = Pairs::default();
        for _ in 0..pairs {
            let data = self.data();
            let begun = Instant::now();
            let mut bare = self.bare(&data);
            self.answers();
            if catalog == Catalog::Database {
                assert!(query(self.ports[0], "CREATE DATABASE d0"), "a database can be made");
            }
            figures.floor.push(begun.elapsed());
            bare.stop(Signal::SIGINT);

            let data = self.data();
            let begun = Instant::now();
            let mut supervised = self.supervised(&data, &config);
            // Told and not asked for: answering questions would take time from the start that is measured.
            supervised.says("to=running");
            figures.ours.push(begun.elapsed());
            supervised.stop(Signal::SIGTERM);
        }
        let floor = match catalog {
            Catalog::Database => "bare postgres -> SELECT 1, CREATE DATABASE",
            _ => "bare postgres -> SELECT 1",
        };
        figures.print(title, floor, target);
    }

    fn stop(&self, pairs: usize) {
        let config = self.config(Catalog::Skipped);
        let mut figures = Pairs::default();
        for _ in 0..pairs {
            let data = self.data();
            let mut bare = self.bare(&data);
            self.answers();
            let begun = Instant::now();
            bare.stop(Signal::SIGINT);
            figures.floor.push(begun.elapsed());

            let data = self.data();
            let mut supervised = self.supervised(&data, &config);
            self.status(|status| status == "running");
            let begun = Instant::now();
            let answer = http(self.ports[1], "POST", "/terminate?mode=immediate");
            assert!(answer.is_some_and(|body| body.contains("lsn")), "terminate is answered");
            supervised.wait();
            figures.ours.push(begun.elapsed());
        }
        figures.print("terminate -> exit", "SIGINT -> bare postgres reaped", "1.15 x + 5 ms");
    }

    fn crash(&self, pairs: usize) {
        let config = self.config(Catalog::Skipped);
        let mut figures = Pairs::default();
        for _ in 0..pairs {
            let data = self.data();
            let mut bare = self.bare(&data);
            self.answers();
            let begun = Instant::now();
            bare.stop(Signal::SIGKILL);
            figures.floor.push(begun.elapsed());

            let data = self.data();
            let mut supervised = self.supervised(&data, &config);
            self.status(|status| status == "running");
            let pid = fs::read_to_string(data.join("postmaster.pid")).expect("a postmaster runs");
            let pid: i32 = pid.lines().next().and_then(|pid| pid.parse().ok()).expect("its pid");
            let begun = Instant::now();
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it can be killed");
            self.status(|status| status != "running");
            figures.ours.push(begun.elapsed());
            supervised.wait();
        }
        figures.print("SIGKILL of the postmaster -> status", "SIGKILL -> waitpid", "25 ms p99");
        let worst = percentile(&mut figures.ours, 99);
        println!("  p99 {:.1} ms\n", millis(worst));
    }

    fn memory(&self) {
        let data = self.data();
        let config = self.config(Catalog::Roles);
        let mut supervised = self.supervised(&data, &config);
        self.status(|status| status == "running");
        let status = fs::read_to_string(format!("/proc/{}/status", supervised.pid())).expect("it runs");
        let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("VmRSS unknown");
        println!("memory at running (target 12 MB)\n  {resident}");
        supervised.stop(Signal::SIGTERM);
    }
}

/// A process whose end is waited for.
struct Process {
    child: Child,
    log: Receiver<String>,
}

impl Process {
    fn spawn(mut command: Command) -> Self {
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let stderr = child.stderr.take().expect("it is piped");
        let (lines, log) = mpsc::channel();
        // A pipe that nobody reads would stop the writer. Orphans of a killed Postgres keep it open a while.
        std::thread::spawn(move || {
            // Once nobody listens any more, the rest is still read.
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| drop(lines.send(line)));
        });
        Process { child, log }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Until it has logged this.
    fn says(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.log.recv_timeout(left).expect("the program logs what is waited for");
            if line.contains(text) {
                return;
            }
        }
    }

    fn stop(&mut self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("pids are small");
        kill(Pid::from_raw(pid), signal).expect("it runs");
        self.wait();
    }

    fn wait(&mut self) {
        self.child.wait().expect("it is our child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // After a failure in between; an ended child is no longer signalled.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Default)]
struct Pairs {
    floor: Vec<Duration>,
    ours: Vec<Duration>,
}

impl Pairs {
    fn print(&mut self, title: &str, floor: &str, target: &str) {
        println!("{title} (target {target})");
        for percent in [50, 90] {
            let (below, above) = (percentile(&mut self.floor, percent), percentile(&mut self.ours, percent));
            println!(
                "  p{percent} {:.1} ms over {:.1} ms ({floor}): ratio {:.2}, {:+.1} ms",
                millis(above),
                millis(below),
                above.as_secs_f64() / below.as_secs_f64(),
                millis(above) - millis(below),
            );
        }
        println!();
    }
}

fn percentile(figures: &mut [Duration], percent: usize) -> Duration {
    figures.sort_unstable();
    figures[(figures.len() * percent / 100).min(figures.len() - 1)]
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited too long for: {what}");
        std::thread::sleep(LOOK);
    }
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("it is bound").port()
}

fn bin_dir() -> PathBuf {
    let find = "ls -d $(dirname $(command -v postgres || echo /nowhere)) /usr/lib/postgresql/*/bin 2>/dev/null | tail -1";
    let output = Command::new("sh").args(["-c", find]).output().expect("sh starts");
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    assert!(path.join("postgres").exists(), "no PostgreSQL on this machine: see the README");
    path
}

/// The wire protocol for one statement, without a runtime whose own start would be measured.
fn query(port: u16, sql: &str) -> bool {
    let exchange = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        let mut parameters = b"\0\x03\0\0user\0cloud_admin\0database\0postgres\0\0".to_vec();
        let mut startup = u32::to_be_bytes(parameters.len() as u32 + 4).to_vec();
        startup.append(&mut parameters);
        socket.write_all(&startup)?;
        if !ready_for_query(&mut socket)? {
            return Ok(false);
        }
        let mut statement = vec![b'Q'];
        statement.extend(u32::to_be_bytes(sql.len() as u32 + 5));
        statement.extend(sql.as_bytes());
        statement.push(0);
        socket.write_all(&statement)?;
        let answered = ready_for_query(&mut socket)?;
        socket.write_all(b"X\0\0\0\x04")?;
        Ok(answered)
    };
    exchange().unwrap_or(false)
}

/// Reads messages until `ReadyForQuery` (true) or an error (false).
fn ready_for_query(socket: &mut TcpStream) -> std::io::Result<bool> {
    loop {
        let mut header = [0; 5];
        socket.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut body = vec![0; length.saturating_sub(4)];
        socket.read_exact(&mut body)?;
        match header[0] {
            b'Z' => return Ok(true),
            b'E' => return Ok(false),
            _ => {}
        }
    }
}

fn http(port: u16, method: &str, path: &str) -> Option<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn status_of(metrics: &str) -> String {
    let line = metrics.lines().find(|line| line.starts_with("compute_ctl_up{")).unwrap_or_default();
    line.split("status=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default().to_owned()
}
