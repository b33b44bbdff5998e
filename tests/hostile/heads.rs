//! Heads: floods, bytes that are no text, many at once, half-closed clients.

use std::io::Write;
use std::net::Shutdown;

use compute_ctl::limits;

use crate::support::node::{COMPUTE_ID, Place, http, token};
use crate::{MIB, Siege, code, post, rest};

fn get(path: &str, more: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n").into_bytes()
}

#[test]
fn floods_of_headers_are_refused() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let many = "a: b\r\n".repeat(1000);
    let large = format!("a: {}\r\n", "b".repeat(limits::HTTP_HEAD_BYTES));
    for (bytes, wanted) in [
        (get("/metrics", &many), Some(431)),
        (get("/metrics", &large), Some(431)),
        (get(&format!("/metrics?{}", "x".repeat(limits::HTTP_HEAD_BYTES)), ""), Some(431)),
        (get("/metrics", &format!("{large}{large}{large}")), Some(431)),
    ] {
        for port in [place.external, place.internal] {
            let code = code(port, &bytes);
            assert!(code == wanted || code == Some(414) || code.is_none(), "{code:?}");
        }
    }
    // Without an end of the line, and without an end of the head.
    for piece in [vec![b'x'; MIB], "a: b\r\n".repeat(100_000).into_bytes()] {
        let mut stream = siege.connect();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
        let taken = (0..1000).take_while(|_| stream.write_all(&piece).is_ok()).count();
        assert!(taken < 100, "{taken} mebibytes");
    }
    // A token of the usual size has its room.
    assert_eq!(code(place.external, &get("/metrics", &format!("a: {}\r\n", "b".repeat(8192)))), Some(200));
    siege.ends_within(16 * MIB);
}

#[test]
fn slow_heads_of_the_largest_size_are_bounded_in_all() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let head = get("/metrics", &format!("a: {}", "b".repeat(limits::HTTP_HEAD_BYTES - 200)));
    let clients = 1000;
    let mut streams = Vec::new();
    for _ in 0..clients {
        let mut stream = siege.connect();
        stream.write_all(&head[..head.len() - 2]).unwrap();
        streams.push(stream);
    }
    siege.others_are_served();
    drop(streams);
    // The head, in a buffer that grows by doubling, and what a connection needs besides.
    siege.ends_within(clients * (2 * limits::HTTP_HEAD_BYTES + 32 * 1024));
}

#[test]
fn what_is_not_utf_8_is_an_answer_and_nothing_else() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let bearer = format!("Authorization: Bearer {}\r\n", token(COMPUTE_ID));
    let line = |path: &[u8], more: &[u8]| {
        [
            b"GET ",
            path,
            b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n",
            bearer.as_bytes(),
            more,
            b"\r\n",
        ]
        .concat()
    };
    let with_body = |body: &[u8]| {
        let more = format!("Connection: close\r\nContent-Length: {}", body.len());
        [&post("/configure", &more)[..], body].concat()
    };
    for (bytes, wanted) in [
        (line(b"/\xff\xfe", b""), &[400, 404][..]),
        (line(b"/status\xff", b""), &[400, 404]),
        (line(b"/status?\xff", b""), &[200, 400]),
        (line(b"/%ff%fe", b""), &[404]),
        (line(b"/database_schema?database=%ff", b""), &[400, 500]),
        (line(b"/database_schema?database=\xff", b""), &[400, 500]),
        (line(b"/database_schema?database=%00", b""), &[400, 404, 500]),
        (line(b"/status", b"X: \xff\r\n"), &[200]),
        (line(b"/status", b"\xff: x\r\n"), &[400]),
        (line(b"/status", b"X-Request-Id: \xff\r\n"), &[400]),
        (line(b"/status", b"Accept-Charset: \xc3\x28\r\n"), &[200]),
        (get("/status", "Authorization: Bearer \u{fffd}\r\n"), &[400, 401]),
        (
            b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: \xff\r\n\r\n"
                .to_vec(),
            &[400],
        ),
        (b"\xff\xfe /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(), &[400]),
        (b"GET /status HTTP/\xff\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(), &[400]),
        (with_body(b"\xff"), &[400]),
        (with_body(b"{\"spec\": \"\xff\"}"), &[400, 422]),
        (with_body(b"{\"\xc3\x28\": 1}"), &[400, 422]),
    ] {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let code = code(place.external, &bytes).unwrap_or_else(|| panic!("no answer to {shown:?}"));
        assert!(wanted.contains(&code), "{shown:?}: {code}");
    }
    let plain = b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: \xff\r\n\r\n"
        .to_vec();
    assert_eq!(code(place.internal, &plain), Some(404));
    siege.ends_within(16 * MIB);
}

#[test]
fn requests_that_come_all_at_once_are_answered_in_turn() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let mut stream = siege.connect();
    let ids: Vec<String> = (0..1000).map(|number| format!("request-{number}")).collect();
    let all: String = ids
        .iter()
        .enumerate()
        .map(|(at, id)| {
            let last = if at + 1 == ids.len() { "Connection: close\r\n" } else { "" };
            format!("GET /nowhere HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {id}\r\n{last}\r\n")
        })
        .collect();
    stream.write_all(all.as_bytes()).unwrap();
    let answers = rest(&mut stream);
    let told: Vec<&str> = answers.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
    assert_eq!(told, ids);
    siege.ends_within(16 * MIB);
}

#[test]
fn clients_that_ask_and_never_read_are_not_served_endlessly() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000);
    let clients = 30;
    let mut streams = Vec::new();
    for _ in 0..clients {
        let mut stream = siege.connect();
        stream.set_nonblocking(true).unwrap();
        // As much as the kernel takes: thousands of requests.
        while stream.write(&request).is_ok() {}
        streams.push(stream);
    }
    siege.others_are_served();
    // Whatever was asked, the server holds one answer for each, and a buffer full of requests.
    siege.ends_within(clients * 256 * 1024);
    drop(streams);
}

#[test]
fn a_client_that_has_nothing_more_to_say_is_answered() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    // What has to wait for others is given up, since nothing tells such a client from one that has gone.
    for bytes in [get("/metrics", ""), b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()] {
        let mut stream = siege.connect();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = rest(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }
    // Half a request and then nothing more is nothing to wait for.
    let mut stream = siege.connect();
    stream.write_all(b"GET /metrics HTT").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let answer = rest(&mut stream);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    // And one that went away does not undo what it asked for.
    let mut stream = siege.connect();
    let body = crate::support::node::config(&place.spec()).to_string();
    let head = post("/configure", &format!("Content-Length: {}", body.len()));
    stream.write_all(&[&head[..], body.as_bytes()].concat()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    siege.node.wait_status("running");
    assert_eq!(http(place.external, "GET", "/metrics", None, None).unwrap().0, 200);
    siege.node.terminate();
}
