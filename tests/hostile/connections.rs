//! Connections: thousands that do nothing, and files for fewer than come.

use std::io::Write;
use std::net::TcpStream;

use compute_ctl::limits;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::node::{Place, config};
use crate::{MIB, Siege, connect};

/// As many files as this process may have, less what it needs itself.
fn files() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    usize::try_from(hard).unwrap_or(usize::MAX) - 200
}

#[test]
fn ten_thousand_idle_connections_keep_nobody_out() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let wanted = files().min(10_000);
    println!("{wanted} connections");
    let mut idle: Vec<TcpStream> = Vec::with_capacity(wanted);
    for number in 0..wanted {
        let port = if number % 10 == 0 { place.internal } else { place.external };
        let mut stream = connect(port);
        match number % 3 {
            0 => {}
            // Slowly, and never more.
            1 => stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").unwrap(),
            _ => stream.write_all(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap(),
        }
        idle.push(stream);
        if number % 500 == 0 {
            siege.others_are_served();
        }
    }
    siege.others_are_served();
    // One server's house is full, the other has room for all who came. Each has a buffer for a head, and its state,
    // which is larger in a program that was not optimised.
    siege.ends_within((limits::HTTP_CONNECTIONS + wanted / 10) * 2 * limits::HTTP_HEAD_BYTES);
    drop(idle);
}

#[test]
fn clients_leave_files_for_everything_else() {
    let place = Place::new();
    place.configure(&serde_json::Value::Null);
    let files = limits::FILES_ELSEWHERE + 200;
    let mut program = place.wrapped(&["sh", "-c", &format!("ulimit -n {files}; exec \"$@\""), "sh"]);
    program.args(place.arguments());
    let siege = Siege::to(&place, place.run(program));
    let mut idle: Vec<TcpStream> = Vec::new();
    for number in 0..2000 {
        let port = if number % 2 == 0 { place.internal } else { place.external };
        idle.push(connect(port));
        if number % 200 == 0 {
            siege.others_are_served();
        }
    }
    // It can still start everything a Postgres needs.
    let spec = config(&place.spec());
    assert_eq!(siege.node.post("/configure", Some(&spec)).0, 200, "{}", siege.node.log());
    assert!(!siege.node.log().contains("could not be accepted"), "{}", siege.node.log());
    siege.node.terminate();
    drop(idle);
}

#[test]
fn postgres_and_its_clients_are_not_disturbed_by_a_flood() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    files();
    let mut idle: Vec<TcpStream> =
        (0..limits::HTTP_CONNECTIONS + 500).map(|_| connect(place.external)).collect();
    // Those that come last have a place.
    let last = idle.pop().expect("there are thousands");
    assert_eq!(place.sql("select 1"), "1");
    drop(last);
    assert_eq!(node.configure(&place.spec()).0, 200);
    let before = place.processes();
    assert_eq!(node.post("/terminate?mode=immediate", None).0, 200);
    node.ends_with(0, &before);
    drop(idle);
}

/// A bound of some mebibytes for thousands of connections would be none if a node at rest varied by as much.
#[test]
fn a_node_at_rest_needs_no_more_memory() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    for _ in 0..200 {
        siege.others_are_served();
    }
    siege.ends_within(8 * MIB);
}
