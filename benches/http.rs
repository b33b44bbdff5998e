//! What a thousand pollers and a thousand watchers cost, and what `/status` costs over a handler that does nothing.
//!
//! Each poller asks for `/status` every 100 ms over a connection it keeps and with a token, as the original's client
//! does at a start; each watcher holds `/events`. The floor is a server of the same library with one trivial handler,
//! in a process of its own, under the same load in the same run; its watchers are answered once and hear nothing more.
//! `cargo bench --bench http -- start` runs one part (`start`, `latency`, `frozen`). No figure is asserted but one:
//! there may be no error.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use warp::Filter;

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/pairs.rs"]
mod pairs;

use cluster::{Cluster, Process, until};
use pairs::{Pairs, millis, percentile};

const POLLERS: u32 = 1000;
const WATCHERS: u32 = 1000;
/// Between two questions of one client.
const PACE: Duration = Duration::from_millis(100);
/// How long each load is measured.
const MEASURED: Duration = Duration::from_secs(5);
/// An answer of the size of a status.
const TRIVIAL: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
                       0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Tells this program, started by itself, to be the floor.
const FLOOR: &str = "--serve-the-floor";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` runs benchmarks too, with this flag, to see that they start at all.
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    more_files();
    if let [FLOOR, port] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return serve_the_floor(port.parse().expect("a port"));
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| *wanted == name);
    let pairs = std::env::var("PAIRS").ok().and_then(|pairs| pairs.parse().ok()).unwrap_or(15);
    let bench = Bench { cluster: Cluster::new() };
    println!("PostgreSQL: {}; {POLLERS} pollers, {WATCHERS} watchers\n", bench.cluster.version());
    if runs("start") {
        bench.start(pairs);
    }
    if runs("latency") {
        bench.latency("/status while Postgres serves", false);
    }
    if runs("frozen") {
        bench.latency("/status while Postgres is frozen", true);
    }
}

/// Thousands of connections need as many files.
fn more_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the kernel tells");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit anybody may");
}

/// A server with one trivial handler, until its standard input ends.
fn serve_the_floor(port: u16) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(compute_ctl::limits::HTTP_WORKERS)
        .enable_all()
        .build()
        .expect("threads can be had");
    runtime.block_on(async {
        let routes = warp::any().map(|| TRIVIAL);
        let listener =
            tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("it was free before");
        tokio::spawn(warp::serve(routes).incoming(listener).run());
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        let _whatever_it_was = ended.await;
    });
}

/// The floor as a process.
struct Floor {
    child: Child,
}

impl Floor {
    /// Where one could listen.
    fn address() -> SocketAddr {
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("some port is free");
        free.local_addr().expect("it is bound")
    }

    fn start(address: SocketAddr) -> Self {
        let program = std::env::current_exe().expect("this program has a file");
        let mut command = Command::new(program);
        command.args([FLOOR, &address.port().to_string()]).stdin(Stdio::piped());
        Floor { child: command.spawn().expect("the floor starts") }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a load came to.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    errors: u64,
    watchers: u64,
}

/// What all clients of a load look at.
#[derive(Clone)]
struct Signs {
    stop: CancellationToken,
    answered: Arc<AtomicU64>,
    /// Whether latencies are taken down: not while thousands of connections are made or ended at once.
    settled: Arc<AtomicBool>,
    origin: tokio::time::Instant,
}

/// A thousand clients of each kind against one server, in a thread of their own.
struct Load {
    signs: Signs,
    running: std::thread::JoinHandle<Seen>,
}

impl Load {
    /// Begins; clients that come before the server try again.
    fn begin(server: SocketAddr) -> Self {
        let signs = Signs {
            stop: CancellationToken::new(),
            answered: Arc::default(),
            settled: Arc::default(),
            origin: tokio::time::Instant::now(),
        };
        let shown = signs.clone();
        let running = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut clients = JoinSet::new();
                for number in 0..POLLERS {
                    clients.spawn(poll(server, number, shown.clone()));
                }
                for _ in 0..WATCHERS {
                    clients.spawn(watch_events(server, shown.clone()));
                }
                let mut seen = Seen::default();
                while let Some(one) = clients.join_next().await {
                    let one = one.expect("no panic");
                    seen.latencies.extend(one.latencies);
                    seen.errors += one.errors;
                    seen.watchers += one.watchers;
                }
                seen
            })
        });
        Load { signs, running }
    }

    /// Waits until every poller has been answered twice, and takes down what follows.
    fn settles(&self) {
        until("all pollers", || self.signs.answered.load(Ordering::Relaxed) >= u64::from(2 * POLLERS));
        self.signs.settled.store(true, Ordering::Relaxed);
    }

    fn end(self) -> Seen {
        self.signs.settled.store(false, Ordering::Relaxed);
        self.signs.stop.cancel();
        self.running.join().expect("no panic")
    }
}

/// Connects as soon as somebody listens.
async fn connected(server: SocketAddr, stop: &CancellationToken) -> Option<TcpStream> {
    while !stop.is_cancelled() {
        if let Ok(stream) = TcpStream::connect(server).await {
            let _ = stream.set_nodelay(true);
            return Some(stream);
        }
        tokio::time::sleep(PACE).await;
    }
    None
}

/// One poller. Each has moments of its own, however long its connection took to make: they do not come in crowds.
async fn poll(server: SocketAddr, number: u32, signs: Signs) -> Seen {
    let Signs { stop, answered, settled, origin } = signs;
    let mut seen = Seen::default();
    let Some(mut stream) = connected(server, &stop).await else { return seen };
    let mut pace = tokio::time::interval_at(origin + PACE * number / POLLERS, PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    while !stop.is_cancelled() {
        pace.tick().await;
        let begun = Instant::now();
        match ask(&mut stream).await {
            Ok(()) => {
                if settled.load(Ordering::Relaxed) {
                    seen.latencies.push(begun.elapsed());
                }
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                seen.errors += 1;
                let Some(again) = connected(server, &stop).await else { return seen };
                stream = again;
            }
        }
    }
    seen
}

/// One question and its answer, which is one packet unless it is cut.
async fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    let token = cluster::token();
    let asked = format!("GET /status HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(asked.as_bytes()).await?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(usize::MAX) {
            return match head.starts_with("HTTP/1.1 200 ") {
                true => Ok(()),
                false => Err(std::io::ErrorKind::Other.into()),
            };
        }
    }
}

/// One watcher: reads whatever comes until the end.
async fn watch_events(server: SocketAddr, signs: Signs) -> Seen {
    let stop = signs.stop;
    let mut seen = Seen::default();
    let Some(mut stream) = connected(server, &stop).await else { return seen };
    let token = cluster::token();
    let asked = format!("GET /events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n");
    let mut piece = [0; 4096];
    if stream.write_all(asked.as_bytes()).await.is_err() {
        seen.errors += 1;
        return seen;
    }
    match stream.read(&mut piece).await {
        Ok(length) if piece[..length].starts_with(b"HTTP/1.1 200 ") => seen.watchers += 1,
        _ => seen.errors += 1,
    }
    while let Some(read) = stop.run_until_cancelled(stream.read(&mut piece)).await {
        if !matches!(read, Ok(1..)) {
            seen.errors += 1;
            break;
        }
    }
    seen
}

fn told(seen: &Seen) {
    println!("  {} answers, {} errors; {} watched", seen.latencies.len(), seen.errors, seen.watchers);
    assert_eq!((seen.errors, seen.watchers), (0, WATCHERS.into()), "somebody was not served");
}

struct Bench {
    cluster: Cluster,
}

impl Bench {
    fn server(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.cluster.http_port()).into()
    }

    /// A node with a catalog to prepare, until it runs; how long that took.
    fn run(&self) -> (Process, Duration) {
        let roles: Vec<_> = (0..10).map(|number| json!({ "name": format!("r{number}") })).collect();
        let config = self.cluster.config(&roles, &[], false);
        let data = self.cluster.data();
        let begun = Instant::now();
        let node = self.cluster.supervised(&data, &config);
        node.says("to=running");
        (node, begun.elapsed())
    }

    /// Applies the same spec once more.
    fn configure(&self) -> Duration {
        let config = fs::read_to_string(self.cluster.config(&[json!({ "name": "late" })], &[], false));
        let begun = Instant::now();
        let answer = self.cluster.http("POST", "/configure", &config.expect("it was just written"));
        assert!(answer.is_some_and(|answer| answer.contains("\"running\"")), "it is applied");
        begun.elapsed()
    }

    /// Starts and configures with and without the load. While a node is started in peace, the floor is started under
    /// the same load, so that both have as much of the machine.
    fn start(&self, pairs: usize) {
        let (mut starts, mut configures) = (Pairs::default(), Pairs::default());
        let (mut alone, mut loaded) = (Pairs::default(), Seen::default());
        for _ in 0..pairs {
            let (mut node, took) = self.run();
            alone.floor.push(took);
            alone.ours.push(self.configure());
            node.stop(Signal::SIGTERM);

            let address = Floor::address();
            let load = Load::begin(address);
            let floor = Floor::start(address);
            let (mut node, took) = self.run();
            starts.floor.push(took);
            load.settles();
            configures.floor.push(self.configure());
            load.end();
            drop(floor);
            node.stop(Signal::SIGTERM);

            let load = Load::begin(self.server());
            let (mut node, took) = self.run();
            starts.ours.push(took);
            load.settles();
            configures.ours.push(self.configure());
            let seen = load.end();
            loaded.errors += seen.errors;
            loaded.watchers = seen.watchers;
            loaded.latencies.extend(seen.latencies);
            node.stop(Signal::SIGTERM);
        }
        starts.print(
            "exec -> running, all polling and watching",
            "the same load on another server",
            "1.10 p50",
        );
        configures.print(
            "/configure, all polling and watching",
            "the same load on another server",
            "1.10 p50",
        );
        println!(
            "  without any load: start {:.1} ms, configure {:.1} ms (p50)",
            millis(percentile(&mut alone.floor, 50)),
            millis(percentile(&mut alone.ours, 50))
        );
        told(&loaded);
        println!();
    }

    /// What an answer takes, over the floor under the same load right before.
    fn latency(&self, title: &str, frozen: bool) {
        let (mut node, _) = self.run();
        let postmaster =
            fs::read_to_string(self.cluster.data_dir().join("postmaster.pid")).expect("one runs");
        let postmaster = postmaster.lines().next().and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
        let postmaster = postmaster.expect("its pid");
        if frozen {
            kill(postmaster, Signal::SIGSTOP).expect("it can be stopped");
        }
        let mut figures = Pairs::default();
        let mut ours = Seen::default();
        for _ in 0..3 {
            let address = Floor::address();
            let floor = Floor::start(address);
            figures.floor.extend(measured(address).latencies);
            drop(floor);
            let seen = measured(self.server());
            figures.ours.extend(&seen.latencies);
            ours.errors += seen.errors;
            ours.watchers = seen.watchers;
            ours.latencies.extend(seen.latencies);
        }
        if frozen {
            kill(postmaster, Signal::SIGCONT).expect("it can go on");
        }
        println!("{title} (target 2.0 p99)");
        for percent in [50, 99] {
            let below = percentile(&mut figures.floor, percent);
            let above = percentile(&mut figures.ours, percent);
            println!(
                "  p{percent} {:.2} ms over {:.2} ms (trivial handler): ratio {:.2}",
                millis(above),
                millis(below),
                above.as_secs_f64() / below.as_secs_f64()
            );
        }
        told(&ours);
        println!();
        node.stop(Signal::SIGTERM);
    }
}

fn measured(server: SocketAddr) -> Seen {
    let load = Load::begin(server);
    load.settles();
    std::thread::sleep(MEASURED);
    load.end()
}
