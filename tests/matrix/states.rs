//! The states, and what holds a node in each of them.

use std::any::Any;
use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::lock::{LOCK, waits_for_the_lock, with_a_role};
use crate::support::node::{Node, Place, config, eventually};
use crate::support::pg;
use crate::support::processes::Process;

pub(crate) struct State {
    pub(crate) title: &'static str,
    /// In words for the reader.
    pub(crate) how: &'static str,
    /// Where a node can be held in it.
    pub(crate) place: fn() -> Place,
    pub(crate) hold: for<'a> fn(&'a Place) -> (Node<'a>, Hold),
}

/// Lets go when it is dropped.
pub(crate) type Hold = Box<dyn Any + Send>;

pub(crate) const STATES: [State; 12] = [
    State { title: "empty", how: "There is no spec yet.", place: Place::new, hold: empty },
    State {
        title: "init, preparing",
        how: "`initdb` does not end.",
        place: Place::without_template,
        hold: initdb,
    },
    State { title: "init, starting", how: "Postgres does not come up.", place: Place::new, hold: starting },
    State { title: "running", how: "Postgres serves.", place: Place::new, hold: running },
    State {
        title: "configuration",
        how: "A role is to be made, and a lock keeps it waiting.",
        place: Place::new,
        hold: configuration,
    },
    State {
        title: "refresh_configuration_pending",
        how: "The new configuration cannot be read.",
        place: Place::new,
        hold: refresh_pending,
    },
    State {
        title: "refresh_configuration",
        how: "What had failed is applied, and a lock keeps it waiting.",
        place: Place::new,
        hold: refresh,
    },
    State {
        title: "failed, with Postgres",
        how: "A database was to belong to a role that does not exist.",
        place: Place::new,
        hold: failed,
    },
    State {
        title: "failed, without Postgres",
        how: "Postgres refused its settings.",
        place: Place::new,
        hold: failed_start,
    },
    State {
        title: "termination_pending_fast",
        how: "A frozen session keeps Postgres from ending.",
        place: Place::new,
        hold: |place| terminating(place, "fast"),
    },
    State {
        title: "termination_pending_immediate",
        how: "A frozen session keeps Postgres from ending.",
        place: Place::new,
        hold: |place| terminating(place, "immediate"),
    },
    State {
        title: "terminated",
        how: "Postgres has ended, and the program lingers.",
        place: Place::new,
        hold: terminated,
    },
];

fn nothing() -> Hold {
    Box::new(())
}

fn empty(place: &Place) -> (Node<'_>, Hold) {
    place.configure(&Value::Null);
    let node = place.start(&[]);
    node.wait_status("empty");
    (node, nothing())
}

/// A node whose program of this name goes no further.
fn stalled<'a>(place: &'a Place, program: &str) -> (Node<'a>, Hold) {
    for name in ["postgres", "initdb"] {
        let real = pg::command(name).get_program().to_str().unwrap().to_owned();
        let first = if name == program { "exec sleep 1000" } else { ":" };
        place.script(
            &format!("bin/{name}"),
            &format!("[ \"$1\" = --version ] || {first}\nexec {real} \"$@\""),
        );
    }
    place.configure(&place.spec());
    let program = place.path().join("bin/postgres");
    let node = place.start(&["--pgbin", program.to_str().unwrap()]);
    node.wait("the stall", |_| place.processes().iter().any(|process| process.name == "sleep").then_some(()));
    node.wait_status("init");
    (node, nothing())
}

fn initdb(place: &Place) -> (Node<'_>, Hold) {
    stalled(place, "initdb")
}

fn starting(place: &Place) -> (Node<'_>, Hold) {
    stalled(place, "postgres")
}

fn running(place: &Place) -> (Node<'_>, Hold) {
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    (node, nothing())
}

fn configuration(place: &Place) -> (Node<'_>, Hold) {
    let (node, _) = running(place);
    let session = place.session(LOCK);
    drop(node.post_later("/configure", Some(&config(&with_a_role(place)))));
    waits_for_the_lock(place, &node);
    node.wait_status("configuration");
    (node, Box::new(session))
}

/// A file that can be read again once this is dropped.
struct Broken(PathBuf, Vec<u8>);

impl Drop for Broken {
    fn drop(&mut self) {
        fs::write(&self.0, &self.1).expect("an own file");
    }
}

fn refresh_pending(place: &Place) -> (Node<'_>, Hold) {
    let (node, _) = running(place);
    let file = place.config_file();
    let broken = Broken(file.clone(), fs::read(&file).unwrap());
    fs::write(&file, "{").unwrap();
    assert_eq!(node.refresh(), 200);
    node.wait_status("refresh_configuration_pending");
    (node, Box::new(broken))
}

/// From a failure, as the specs speak of no other pageservers, and a refresh of a running compute needs those.
fn refresh(place: &Place) -> (Node<'_>, Hold) {
    let (node, _) = running(place);
    let mut spec = with_a_role(place);
    spec["cluster"]["databases"] = json!([{ "name": "other", "owner": "somebody" }]);
    assert_eq!(node.configure(&spec).0, 500);
    place.sql("create role somebody");
    let session = place.session(&format!("drop role if exists late; {LOCK}"));
    assert_eq!(node.refresh(), 200);
    node.wait_status("refresh_configuration");
    waits_for_the_lock(place, &node);
    (node, Box::new(session))
}

fn failed(place: &Place) -> (Node<'_>, Hold) {
    let (node, _) = running(place);
    let mut spec = place.spec();
    spec["cluster"]["databases"] = json!([{ "name": "other", "owner": "nobody at all" }]);
    assert_eq!(node.configure(&spec).0, 500);
    node.wait_status("failed");
    (node, nothing())
}

fn failed_start(place: &Place) -> (Node<'_>, Hold) {
    let mut spec = place.spec();
    let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
    settings.push(json!({ "name": "shared_buffers", "value": "1", "vartype": "integer" }));
    place.configure(&spec);
    let node = place.start(&[]);
    node.wait_status("failed");
    (node, nothing())
}

/// A server process that stands still until this is dropped.
struct Frozen(Process);

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGCONT);
    }
}

fn terminating<'a>(place: &'a Place, mode: &str) -> (Node<'a>, Hold) {
    let (node, _) = running(place);
    let session = place.session("select");
    let frozen = Frozen(session.backend.clone());
    session.backend.signal(Signal::SIGSTOP);
    eventually("a process that stands still", || {
        Process::of(session.backend.pid).filter(|now| now.state == 'T')
    });
    drop(node.post_later(&format!("/terminate?mode={mode}"), None));
    node.wait_status(&format!("termination_pending_{mode}"));
    (node, Box::new((frozen, session)))
}

fn terminated(place: &Place) -> (Node<'_>, Hold) {
    let (node, _) = running(place);
    assert_eq!(node.post("/terminate", None).0, 200);
    node.wait_status("terminated");
    (node, nothing())
}
