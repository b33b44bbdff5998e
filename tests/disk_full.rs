//! A disk that is full at each of many moments: what it is full for is told, and with room again the start goes on.
//!
//! The disk is a small file system in memory, mounted in a namespace of the program's own.

// The whole file is a test; the lint knows only test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::node::{Node, Place, eventually};
use support::origin::{Origin, archive_spec, copy_spec, replica_spec, source};
use support::pageserver::{self, Answer, Pageserver, Sending};

/// Room for a cluster, its first WAL included, and to spare.
const DISK_MIB: u64 = 160;

/// Mounts the disk, fills it up to some KiB, and gives up what it needed for that.
const MOUNT: &str = r#"set -e
mount -t tmpfs -o size="$1"m,mode=700 tmpfs "$2"
if [ "$3" != 0 ]; then
    head -c $(($1 * 1024 * 1024 - $3 * 1024)) /dev/zero > "$2"/filler
fi
user=$4 group=$5
shift 5
exec unshare --user --map-user="$user" --map-group="$group" "$@""#;

/// A place whose data directory lies on a disk of its own.
struct Small {
    place: Place,
}

/// What came of a start.
#[derive(Debug, PartialEq)]
enum Outcome {
    Serves,
    ToldFull,
    /// Postgres did not start.
    Failed,
}

impl Small {
    fn new() -> Self {
        let place = Place::new();
        fs::create_dir(place.path().join("disk")).unwrap();
        Self { place }
    }

    fn disk(&self) -> PathBuf {
        self.place.path().join("disk")
    }

    /// Starts a node, with this many KiB left for it; with all, for 0.
    fn start(&self, room: u64) -> Node<'_> {
        let ids = [nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()].map(|id| id.to_string());
        let numbers = [DISK_MIB.to_string(), room.to_string()];
        let disk = self.disk();
        let disk = disk.to_str().unwrap();
        let words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh"];
        let arguments = [&numbers[0], disk, &numbers[1], &ids[0], &ids[1]];
        let mut command = self.place.wrapped(&[&words[..], &arguments].concat());
        let elsewhere = self.disk().join("pgdata").to_str().unwrap().to_owned();
        let usual = self.place.pgdata().to_str().unwrap().to_owned();
        command.args(self.place.arguments().into_iter().map(|word| match word {
            word if word == usual => elsewhere.clone(),
            word => word,
        }));
        self.place.run(command)
    }

    /// The disk as the program sees it.
    fn seen_by(&self, node: &Node<'_>) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", node.pid));
        root.join(self.disk().strip_prefix("/").unwrap())
    }
}

/// Namespaces are not permitted everywhere.
fn is_possible() -> bool {
    let script = "mount -t tmpfs tmpfs /mnt && unshare --user --map-user=1 true";
    let tried =
        Command::new("unshare").args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).output();
    if tried.as_ref().is_ok_and(|output| output.status.success()) {
        return true;
    }
    let text = format!("NOT TESTED with a full disk: this machine permits no mount namespace: {tried:?}");
    assert!(std::env::var_os("CI").is_none(), "{text}");
    eprintln!("{text}");
    false
}

fn says_full(text: &str) -> bool {
    text.contains("No space left on device") || text.contains("os error 28")
}

/// Fills the disk up to ever more room, until a start has enough of it.
fn sweep(spec: impl Fn(&Place) -> Value) {
    if !is_possible() {
        return;
    }
    let (mut told, mut room) = (Vec::new(), 64);
    loop {
        let small = Small::new();
        small.place.configure(&spec(&small.place));
        let node = small.start(room);
        let outcome = eventually("a start, or why there is none", || {
            let Some(body) = node.status() else {
                return node.has_ended().then_some(Outcome::Failed);
            };
            let error = body["error"].as_str().unwrap_or_default();
            if says_full(error) {
                assert_ne!(body["status"], "running");
                return Some(Outcome::ToldFull);
            }
            match body["status"].as_str().unwrap_or_default() {
                "running" => Some(Outcome::Serves),
                "failed" => Some(Outcome::Failed),
                _ => None,
            }
        });
        match outcome {
            Outcome::Serves => {
                assert!(told.len() >= 4, "only full with {told:?} KiB left");
                node.signal(Signal::SIGTERM);
                node.ends_with(0, &[]);
                return;
            }
            Outcome::ToldFull => {
                told.push(room);
                fs::remove_file(small.seen_by(&node).join("filler")).unwrap();
                let body = node.wait("the start to go on", |node| {
                    node.status().filter(|body| body["status"] == "running" || body["status"] == "failed")
                });
                // Once Postgres has met it, the start has failed, and is Postgres's own.
                if body["status"] == "running" {
                    assert_eq!(body["error"], Value::Null);
                    small.place.sql("select pg_switch_wal() where not pg_is_in_recovery()");
                }
                node.signal(Signal::SIGTERM);
                node.exit_code();
            }
            // Postgres itself needed what there was not, and said so in the log.
            Outcome::Failed => {
                assert!(says_full(&node.log()), "{}", node.log());
                node.signal(Signal::SIGTERM);
                node.exit_code();
            }
        }
        eventually("the end of all", || small.place.processes().is_empty().then_some(()));
        room = room * 3 / 2 + 512;
    }
}

#[test]
fn a_fresh_cluster() {
    sweep(Place::spec);
}

#[test]
fn an_archive() {
    let origin = Origin::new();
    let path = origin.tar("plain.tar", &["-C"]);
    sweep(|place| archive_spec(place, json!({ "source": path })));
}

#[test]
fn a_copy_of_another_server() {
    let source = source();
    sweep(|place| copy_spec(place, &source));
}

#[test]
fn a_replica_on_neon_storage() {
    let backup = pageserver::archive::Origin::new().base_backup();
    let pageserver = Pageserver::start([Answer::Archive(Sending::new(&backup))]);
    sweep(|place| replica_spec(place, &pageserver));
}
