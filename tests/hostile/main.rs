//! Clients that are broken, slow, too many or too greedy, against the real program: its memory stays bounded, and
//! others are served all the while. Most of it needs no Postgres and is done to a node without a spec.

// Helpers here are test code as well, though the lint sees that of `#[test]` functions only.
#![allow(clippy::unwrap_used)]

mod bodies;
mod connections;
mod drain;
mod heads;
mod http2;
#[path = "../support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use serde_json::Value;
use support::node::{COMPUTE_ID, DEADLINE, Node, Place, http, token};

const MIB: usize = 1 << 20;

/// A node and the most it had in memory before anything was done to it.
struct Siege<'a> {
    place: &'a Place,
    node: Node<'a>,
    calm: usize,
}

impl<'a> Siege<'a> {
    fn lay(place: &'a Place) -> Self {
        place.configure(&Value::Null);
        Self::to(place, place.start(&[]))
    }

    fn to(place: &'a Place, node: Node<'a>) -> Self {
        node.wait_status("empty");
        // What is only needed once is there before it is measured.
        assert_eq!(http(place.external, "GET", "/metrics", None, None).unwrap().0, 200);
        let calm = peak(&node);
        Siege { place, node, calm }
    }

    fn connect(&self) -> TcpStream {
        connect(self.place.external)
    }

    /// Others are served by both servers, and are told the truth.
    fn others_are_served(&self) {
        assert_eq!(self.node.status().expect("it is answered")["status"], "empty");
        assert_eq!(self.node.refresh(), 500);
    }

    /// Ends it: the most it needed beyond the calm is less than so many bytes, and it stops in order.
    fn ends_within(self, bytes: usize) {
        self.others_are_served();
        let grown = peak(&self.node).saturating_sub(self.calm);
        println!("{} KiB more at the most", grown / 1024);
        assert!(grown < bytes, "{grown} bytes more");
        assert!(!self.node.log().contains("panicked"), "{}", self.node.log());
        self.node.terminate();
    }
}

/// The most memory the program has ever had, in bytes.
fn peak(node: &Node<'_>) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells");
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Everything the server still says; what came before a reset counts.
fn rest(stream: &mut TcpStream) -> String {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => all.extend_from_slice(&piece[..length]),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                break;
            }
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// The code of the answer to these bytes, or nothing where the server only closed.
fn code(port: u16, bytes: &[u8]) -> Option<u16> {
    let mut stream = connect(port);
    // It may be closed before all is written.
    let _ = stream.write_all(bytes);
    let answer = rest(&mut stream);
    Some(answer.split(' ').nth(1)?.parse().expect("a code"))
}

/// The head of a POST with the compute's token.
fn post(path: &str, more: &str) -> Vec<u8> {
    let token = token(COMPUTE_ID);
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\n{more}\r\n\r\n"
    )
    .into_bytes()
}
