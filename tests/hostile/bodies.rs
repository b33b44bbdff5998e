//! Bodies: endless, slow, broken.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use compute_ctl::limits;

use crate::support::node::{Place, http};
use crate::{MIB, Siege, code, connect, post, rest};

/// Writes as much of a gibibyte as the server takes.
fn pour(stream: &mut TcpStream, piece: &[u8]) -> usize {
    let mut taken = 0;
    while taken < 1 << 30 {
        match stream.write(piece) {
            Ok(written) => taken += written,
            Err(_) => break,
        }
    }
    taken
}

#[test]
fn a_gibibyte_is_not_taken() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let announced = format!("Content-Length: {}", 1_u64 << 30);
    let zeros = vec![b'0'; MIB];
    let mut chunk = format!("{MIB:x}\r\n").into_bytes();
    chunk.extend([zeros.as_slice(), b"\r\n"].concat());
    let with_body = |line: &str| {
        format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{announced}\r\n\r\n")
            .into_bytes()
    };
    // Beyond what the server reads there is what the two sockets hold.
    let buffered = 16 * MIB;
    for (head, piece, wanted, most) in [
        (post("/configure", &announced), &zeros, "413", 0),
        (post("/configure", "Transfer-Encoding: chunked"), &chunk, "413", limits::HTTP_CONFIGURE_BYTES),
        (with_body("POST /configure"), &zeros, "400", 0),
        (with_body("GET /metrics"), &zeros, "200", 0),
        (with_body("POST /nowhere"), &zeros, "404", 0),
    ] {
        let mut stream = siege.connect();
        stream.write_all(&head).unwrap();
        let taken = pour(&mut stream, piece);
        assert!(taken < most + buffered, "{taken} bytes for {wanted}");
        siege.others_are_served();
        let answer = rest(&mut stream);
        // The answer may be lost to a client that writes on and on.
        assert!(answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {wanted} ")), "{answer}");
    }
    // One body of the largest size, which grows by doubling.
    siege.ends_within(2 * limits::HTTP_CONFIGURE_BYTES + 32 * MIB);
}

#[test]
fn who_waits_for_leave_to_send_a_body_that_is_too_long_is_told() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let head = post("/configure", &format!("Connection: close\r\nContent-Length: {}", 1_u64 << 30));
    let mut stream = siege.connect();
    stream.write_all(&head).unwrap();
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(
        answer.ends_with(r#"{"error":"failed to buffer the request body: length limit exceeded"}"#),
        "{answer}"
    );
    siege.ends_within(16 * MIB);
}

#[test]
fn slow_bodies_take_only_the_room_there_is_for_them() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let begin = |port: u16, head: &[u8]| {
        let mut stream = connect(port);
        stream.write_all(&[head, b"{"].concat()).unwrap();
        stream
    };
    let large = post("/configure", &format!("Content-Length: {}", limits::HTTP_CONFIGURE_BYTES));
    let small = post("/grants", &format!("Content-Length: {}", limits::HTTP_BODY_BYTES));
    let large: Vec<TcpStream> = (0..100).map(|_| begin(place.external, &large)).collect();
    let small: Vec<TcpStream> = (0..500).map(|_| begin(place.internal, &small)).collect();
    // What needs no body is served, and what needs one is told to come back.
    siege.others_are_served();
    siege.node.wait("a house full of bodies", |node| {
        (node.post("/configure", Some(&serde_json::json!({}))).0 == 503).then_some(())
    });
    let grant = http(place.internal, "POST", "/grants", None, Some("{}")).unwrap();
    assert_eq!(grant.0, 503, "{}", grant.1);
    drop((large, small));
    siege
        .node
        .wait("room", |node| (node.post("/configure", Some(&serde_json::json!({}))).0 == 422).then_some(()));
    // They have sent one byte each.
    siege.ends_within(48 * MIB);
}

#[test]
fn broken_chunks_are_the_clients_fault() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let endless = format!("1;{}", "x".repeat(MIB));
    let trailers = format!("0\r\n{}\r\n", "x: y\r\n".repeat(10_000));
    for chunks in [
        "x\r\n{}\r\n0\r\n\r\n",
        "-1\r\n{}\r\n0\r\n\r\n",
        "+2\r\n{}\r\n0\r\n\r\n",
        "0x2\r\n{}\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n{}",
        "ffffffffffffffff\r\n{}",
        "2\r\n{}0\r\n\r\n",
        "2{}\r\n0\r\n\r\n",
        "\r\n{}\r\n0\r\n\r\n",
        "2\n{}\n0\n\n",
        "\0\r\n\r\n",
        endless.as_str(),
        trailers.as_str(),
    ] {
        let shown = &chunks[..chunks.len().min(30)];
        for (port, path) in [(place.external, "/configure"), (place.internal, "/grants")] {
            let head = post(path, "Connection: close\r\nTransfer-Encoding: chunked");
            let mut stream = connect(port);
            // It may be closed before all is written. Where more could follow, nothing does.
            let _ = stream.write_all(&[&head, chunks.as_bytes()].concat());
            let _ = stream.shutdown(Shutdown::Write);
            let answer = rest(&mut stream);
            let code = answer.split(' ').nth(1);
            assert!(matches!(code, None | Some("400" | "413" | "422")), "{shown:?}: {answer:?}");
        }
        siege.others_are_served();
    }
    // Contradictions, which could make two readers see two requests.
    for more in [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: -2",
        "Content-Length: 2x",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: x",
    ] {
        let bytes = [&post("/configure", &format!("Connection: close\r\n{more}"))[..], b"{}"].concat();
        assert!(matches!(code(place.external, &bytes), None | Some(400)), "{more}");
    }
    siege.ends_within(16 * MIB);
}

#[test]
fn a_body_that_breaks_off_holds_nothing() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    for more in ["Content-Length: 1000", "Transfer-Encoding: chunked"] {
        for _ in 0..20 {
            let mut stream = siege.connect();
            stream.write_all(&[&post("/configure", more)[..], b"3e8\r\n{"].concat()).unwrap();
        }
    }
    // There is room for four at once.
    siege
        .node
        .wait("room", |node| (node.post("/configure", Some(&serde_json::json!({}))).0 == 422).then_some(()));
    siege.ends_within(16 * MIB);
}
