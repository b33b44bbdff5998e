//! The program killed while it makes a data directory, at each of many points: the next start succeeds.
//!
//! A point is a number of changes in the directory (files made, moved, closed after writing, removed), so the blow
//! falls at different steps of the work whatever the machine's speed is.

// The whole file is a test; the lint knows only test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::node::{Node, Place};
use support::origin::{Origin, archive_spec, copy_spec, replica_spec, source};
use support::pageserver::{self, Answer, Pageserver, Sending};

/// Counts changes below a directory that may not be there yet. What is in a new directory when it comes to be watched
/// counts as made.
struct Changes {
    inotify: Inotify,
    watched: BTreeMap<WatchDescriptor, PathBuf>,
    seen: usize,
}

impl Changes {
    fn below(parent: &Path) -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let mut changes = Self { inotify, watched: BTreeMap::new(), seen: 0 };
        changes.watch(parent);
        changes
    }

    fn watch(&mut self, path: &Path) {
        let wanted = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE;
        // What is gone again needs no watch.
        if let Ok(watch) = self.inotify.add_watch(path, wanted) {
            self.watched.insert(watch, path.to_owned());
        }
    }

    /// Watches a new directory.
    fn enter(&mut self, path: &Path) {
        self.watch(path);
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            self.seen += 1;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.enter(&entry.path());
            }
        }
    }

    /// How many there were so far. `is_counted` tells by its path whether a change is one of those.
    fn count(&mut self, is_counted: impl Fn(&Path) -> bool) -> usize {
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return self.seen,
                Err(error) => panic!("{error}"),
            };
            for event in events {
                let Some(parent) = self.watched.get(&event.wd) else { continue };
                let path = event.name.map_or_else(|| parent.clone(), |name| parent.join(name));
                if !is_counted(&path) {
                    continue;
                }
                self.seen += 1;
                if event.mask.contains(AddWatchFlags::IN_ISDIR | AddWatchFlags::IN_CREATE) {
                    self.enter(&path);
                }
            }
        }
    }
}

/// Whether it was killed at that point; not, when it has come to serve before.
fn killed(node: &Node<'_>, place: &Place, changes: &mut Changes, at: usize) -> bool {
    let inside = |path: &Path| path.starts_with(place.pgdata()) || path.starts_with(place.cache());
    node.wait("a change or the start", |node| {
        if changes.count(inside) >= at {
            node.signal(Signal::SIGKILL);
            return Some(true);
        }
        node.status().is_some_and(|body| body["status"] == "running").then_some(false)
    })
}

/// Kills it at ever later points, until it comes to serve.
fn sweep(new: impl Fn() -> Place, spec: impl Fn(&Place) -> Value, look: impl Fn(&Place)) {
    let mut points = Vec::new();
    let mut at = 1;
    loop {
        let place = new();
        place.configure(&spec(&place));
        let mut changes = Changes::below(place.path());
        let node = place.start(&[]);
        let struck = killed(&node, &place, &mut changes, at);
        if struck {
            assert_eq!(node.killed_by(), Some(9), "{}", node.log());
            points.push(at);
        } else {
            node.terminate();
        }
        drop(node);
        let again = place.start(&[]);
        again.wait_status("running");
        look(&place);
        again.terminate();
        if !struck {
            break;
        }
        at = at * 5 / 2 + 1;
    }
    assert!(points.len() >= 5, "only killed at {points:?}");
}

/// Works, and has data of its own.
fn serves(place: &Place) {
    assert_eq!(place.sql("select count(*) from pg_class where relkind = 'r' and relname = 'pg_class'"), "1");
}

#[test]
fn a_fresh_cluster() {
    sweep(Place::new, Place::spec, serves);
}

#[test]
fn a_fresh_cluster_and_its_template() {
    sweep(Place::without_template, Place::spec, serves);
}

#[test]
fn a_cluster_that_is_kept() {
    sweep(Place::new, Place::kept_spec, serves);
}

#[test]
fn an_archive() {
    let origin = Origin::new();
    let path = origin.tar("plain.tar", &["-C"]);
    let spec = |place: &Place| archive_spec(place, json!({ "source": path }));
    sweep(Place::new, spec, support::origin::answers);
    assert!(fs::metadata(&path).is_ok(), "the archive stays");
}

#[test]
fn a_copy_of_another_server() {
    let source = source();
    sweep(Place::new, |place| copy_spec(place, &source), serves);
}

#[test]
fn a_replica_on_neon_storage() {
    let backup = pageserver::archive::Origin::new().base_backup();
    let pageserver = Pageserver::start([Answer::Archive(Sending::new(&backup))]);
    sweep(Place::new, |place| replica_spec(place, &pageserver), serves);
}
