//! The clients of the original, played from its interface alone: what they send, what they accept, what they read of
//! an answer. The program and its Postgres are real.

// Helpers here are test code as well, though the lint sees that of `#[test]` functions only.
#![allow(clippy::unwrap_used)]

mod control_plane;
mod inside;
mod python;
#[path = "../support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};
use support::node::{COMPUTE_ID, DEADLINE, PUBLIC_KEY, Place, signed};

/// What a client sees of an answer.
#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    fn expect(self, code: u16) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// What the Rust clients take for success.
    #[track_caller]
    fn succeeded(self) -> Self {
        assert!(self.code < 400, "{self:?}");
        self
    }

    fn says(&self, header: &str) -> bool {
        self.head.lines().any(|line| line.eq_ignore_ascii_case(header))
    }
}

/// One request to a host and port. A body that comes in chunks is put together.
fn ask(to: (&str, u16), method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
    let mut stream = TcpStream::connect(to).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}",
        to.0, to.1
    )
    .unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("it is answered");
    let all = String::from_utf8(all).expect("answers are text");
    let (head, body) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer: {all:?}"));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(body) } else { body.to_owned() };
    Answer { code, head: head.to_owned(), body }
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n").expect("the length of a chunk");
        let length = usize::from_str_radix(length, 16).expect("a number");
        if length == 0 {
            return body;
        }
        body.push_str(&after[..length]);
        rest = &after[length + 2..];
    }
}

/// What the Rust client sends with everything but a termination.
fn compute_token() -> String {
    signed(&json!({ "compute_id": COMPUTE_ID, "scope": null, "aud": null }))
}

/// What it sends with a termination.
fn admin_token() -> String {
    signed(&json!({ "compute_id": null, "scope": "compute_ctl:admin", "aud": ["compute"] }))
}

/// A request to the external server.
fn outside(place: &Place, token: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let authorization = format!("Authorization: Bearer {token}");
    let mut headers = vec![authorization.as_str()];
    if body.is_some() {
        headers.push("Content-Type: application/json");
    }
    let body = body.map(ToString::to_string).unwrap_or_default();
    ask(("127.0.0.1", place.external), method, path, &headers, &body)
}

/// The document around a spec, with a key as the original's tooling writes it.
fn document(spec: &Value) -> Value {
    let key = json!({
        "use": "sig", "key_ops": ["verify"], "alg": "EdDSA", "kid": "a-key", "kty": "OKP", "crv": "Ed25519",
        "x": PUBLIC_KEY,
    });
    json!({ "spec": spec, "compute_ctl_config": { "jwks": { "keys": [key] }, "tls": null } })
}

/// Puts a document where a node of this place reads it at its start.
fn write_down(place: &Place, document: &Value) {
    std::fs::write(place.config_file(), document.to_string()).unwrap();
    support::pg::give(&place.config_file());
}

/// The fields of `/status` that the original sends, in its order.
#[track_caller]
fn is_a_status(answer: &Answer) -> Value {
    let at = ["start_time", "tenant", "timeline", "status", "last_active", "error"].map(|field| {
        answer.body.find(&format!("\"{field}\":")).unwrap_or_else(|| panic!("{field}: {answer:?}"))
    });
    assert!(at.is_sorted(), "{answer:?}");
    answer.json()
}
