//! What supervision costs, as ratios to a bare Postgres doing the same on the same data in the same run.
//!
//! Pairs are interleaved, so that whatever else the machine does falls on both sides. No figure is asserted.
//! `cargo bench --bench node -- start` runs one part (`start`, `catalog`, `stop`, `crash`, `memory`).

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/pairs.rs"]
mod pairs;

use cluster::{Cluster, until};
use pairs::{Pairs, millis, percentile};

fn main() {
    // `cargo test --benches` runs benchmarks too, with this flag, to see that they start at all.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let pairs = std::env::var("PAIRS").ok().and_then(|pairs| pairs.parse().ok()).unwrap_or(30);
    let bench = Bench { cluster: Cluster::new() };
    println!("PostgreSQL: {}; {pairs} interleaved pairs each\n", bench.cluster.version());
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
    cluster: Cluster,
}

impl Bench {
    fn config(&self, catalog: Catalog) -> PathBuf {
        let names = (0..10).map(|number| format!("r{number}"));
        let roles = match catalog {
            Catalog::Skipped => Vec::new(),
            _ => names.map(|name| json!({ "name": name })).collect(),
        };
        let databases = match catalog {
            Catalog::Database => vec![json!({ "name": "d0", "owner": "r0" })],
            _ => Vec::new(),
        };
        self.cluster.config(&roles, &databases, catalog == Catalog::Skipped)
    }

    /// Until the published status is this one.
    fn status(&self, wanted: impl Fn(&str) -> bool) {
        until("the status", || {
            self.cluster.http("GET", "/metrics", "").is_some_and(|body| wanted(&status_of(&body)))
        });
    }

    fn start(&self, pairs: usize, title: &str, catalog: Catalog, target: &str) {
        let config = self.config(catalog);
        let mut figures = Pairs::default();
        for _ in 0..pairs {
            let data = self.cluster.data();
            let begun = Instant::now();
            let mut bare = self.cluster.bare(&data);
            self.cluster.answers();
            if catalog == Catalog::Database {
                assert!(self.cluster.query("CREATE DATABASE d0"), "a database can be made");
            }
            figures.floor.push(begun.elapsed());
            bare.stop(Signal::SIGINT);

            let data = self.cluster.data();
            let begun = Instant::now();
            let mut supervised = self.cluster.supervised(&data, &config);
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
            let data = self.cluster.data();
            let mut bare = self.cluster.bare(&data);
            self.cluster.answers();
            let begun = Instant::now();
            bare.stop(Signal::SIGINT);
            figures.floor.push(begun.elapsed());

            let data = self.cluster.data();
            let mut supervised = self.cluster.supervised(&data, &config);
            self.status(|status| status == "running");
            let begun = Instant::now();
            let answer = self.cluster.http("POST", "/terminate?mode=immediate", "");
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
            let data = self.cluster.data();
            let mut bare = self.cluster.bare(&data);
            self.cluster.answers();
            let begun = Instant::now();
            bare.stop(Signal::SIGKILL);
            figures.floor.push(begun.elapsed());

            let data = self.cluster.data();
            let mut supervised = self.cluster.supervised(&data, &config);
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
        let data = self.cluster.data();
        let config = self.config(Catalog::Roles);
        let mut supervised = self.cluster.supervised(&data, &config);
        self.status(|status| status == "running");
        let [resident, _] = supervised.memory();
        println!("memory at running (target 12 MB)\n  {resident} kB resident");
        supervised.stop(Signal::SIGTERM);
    }
}

fn status_of(metrics: &str) -> String {
    let line = metrics.lines().find(|line| line.starts_with("compute_ctl_up{")).unwrap_or_default();
    line.split("status=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default().to_owned()
}
