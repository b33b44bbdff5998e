use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use warp::Filter;
use warp::path::FullPath;
use warp::reply::Reply;

use super::bind::listen;
use super::*;

fn only_loopback(external_port: u16, internal_port: u16) -> BindSpec {
    BindSpec { external: ExternalAddress::Only(Ipv4Addr::LOCALHOST.into()), external_port, internal_port }
}

#[test]
fn the_internal_server_has_one_port_on_loopback_addresses_only() {
    let listeners = Listeners::bind(&only_loopback(0, 0)).expect("some port is free");
    let addresses: Vec<_> = listeners.internal().collect();
    assert!(!addresses.is_empty());
    for address in &addresses {
        assert!(address.ip().is_loopback(), "{address}");
        assert_eq!(address.port(), listeners.internal_port());
        std::net::TcpStream::connect(address).expect("the kernel accepts");
    }
    assert_ne!(listeners.internal_port(), 0);
    assert_ne!(listeners.external().port(), 0);
}

#[test]
fn the_external_server_can_be_reached_by_both_families() {
    let spec = BindSpec { external: ExternalAddress::All, ..only_loopback(0, 0) };
    let listeners = Listeners::bind(&spec).expect("some port is free");
    let address = listeners.external();
    assert!(address.ip().is_unspecified(), "{address}");
    std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).expect("IPv4 is served");
    if address.is_ipv6() && listeners.internal().count() == 2 {
        std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).expect("IPv6 is served");
    }
}

#[test]
fn a_port_in_use_is_named_with_its_server() {
    let taken = Listeners::bind(&only_loopback(0, 0)).expect("some port is free");
    let port = taken.external().port();
    let error = Listeners::bind(&only_loopback(port, 0)).expect_err("it is taken");
    assert_eq!(error.side, Side::External);
    assert_eq!(error.to_string(), format!("the external HTTP server cannot listen on 127.0.0.1:{port}"));
    let error = Listeners::bind(&only_loopback(0, port)).expect_err("it is taken");
    assert_eq!((error.side, error.address.port()), (Side::Internal, port));
    assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    // Somebody else's port on the second address is an error too, not a server with half an ear.
    if let Ok(half) = listen((Ipv6Addr::LOCALHOST, 0).into()) {
        let port = half.address.port();
        let error = Listeners::bind(&only_loopback(0, port)).expect_err("half is taken");
        assert_eq!((error.side, error.address.port()), (Side::Internal, port));
    }
}

// ---- a full house -------------------------------------------------------------------------------------

/// More than the kernel keeps for a client that does not read.
const LARGE: usize = 32 << 20;

/// Some pieces, which are taken one by one.
const PIECES: usize = 4 * limits::HTTP_PIECE;

/// A server with so many places. A request for `/held` waits for a permit of the gate.
async fn serving(places: usize, gate: &Arc<Semaphore>) -> SocketAddr {
    let (address, opening) = opened(places, &CancellationToken::new()).await;
    opening.serve(routes(gate));
    address
}

/// A server that has no routes yet.
async fn opened(places: usize, shutdown: &CancellationToken) -> (SocketAddr, Arc<Opening>) {
    let opening = Opening::new(shutdown);
    let server = Server::new(opening.clone(), places);
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("some port is free");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(accept_all(vec![(listener, server)], shutdown.clone()));
    (address, opening)
}

fn routes(gate: &Arc<Semaphore>) -> opening::Routes {
    let gate = gate.clone();
    let answer = move |path: FullPath| {
        let gate = gate.clone();
        async move {
            match path.as_str() {
                "/held" => {
                    gate.acquire().await.expect("it is never closed").forget();
                    "held".into_response()
                }
                "/large" => vec![b'x'; LARGE].into_response(),
                "/pieces" => vec![b'x'; PIECES].into_response(),
                _ => "quick".into_response(),
            }
        }
    };
    warp::path::full().then(answer).boxed()
}

fn shut() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(0))
}

struct Client(TcpStream);

impl Client {
    async fn new(to: SocketAddr) -> Self {
        Client(TcpStream::connect(to).await.expect("it listens"))
    }

    async fn send(&mut self, path: &str) {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        self.0.write_all(head.as_bytes()).await.expect("it is connected");
    }

    /// The next answer's body, which has five bytes or four.
    async fn answer(&mut self) -> String {
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\nquick") && !read.ends_with(b"\r\n\r\nheld") {
            let byte = self.0.read_u8().await;
            read.push(
                byte.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&read))),
            );
        }
        String::from_utf8(read.split_off(read.len() - 5)).expect("text").trim().to_owned()
    }

    async fn ask(&mut self) {
        self.send("/quick").await;
        assert_eq!(self.answer().await, "quick");
    }

    async fn is_shown_out(&mut self) {
        assert_eq!(self.0.read(&mut [0]).await.expect("an orderly end"), 0);
    }
}

#[tokio::test]
async fn the_connection_that_was_idle_for_longest_makes_room() {
    let server = serving(3, &shut()).await;
    let mut first = Client::new(server).await;
    first.ask().await;
    let mut half = Client::new(server).await;
    half.0.write_all(b"GET /quick HT").await.expect("it is connected");
    let mut second = Client::new(server).await;
    second.ask().await;
    first.ask().await;
    // By now the one with half a head is idle for longest, and then the second one.
    let mut third = Client::new(server).await;
    third.ask().await;
    half.is_shown_out().await;
    let mut fourth = Client::new(server).await;
    fourth.ask().await;
    second.is_shown_out().await;
    for client in [&mut first, &mut third, &mut fourth] {
        client.ask().await;
    }
}

#[tokio::test]
async fn nobody_loses_an_answer_to_those_who_come_later() {
    let gate = shut();
    let server = serving(2, &gate).await;
    let mut busy = [Client::new(server).await, Client::new(server).await];
    for client in &mut busy {
        client.send("/held").await;
    }
    let mut later = Client::new(server).await;
    later.send("/quick").await;
    let early = timeout(limits::HTTP_ACCEPT_PAUSE * 4, later.answer()).await;
    assert!(early.is_err(), "there was no place for {early:?}");
    gate.add_permits(1);
    assert_eq!(later.answer().await, "quick");
    gate.add_permits(1);
    for client in &mut busy {
        assert_eq!(client.answer().await, "held");
    }
}

#[tokio::test]
async fn who_has_to_leave_is_given_the_rest_of_its_answer() {
    let opening = Opening::new(&CancellationToken::new());
    opening.serve(routes(&shut()));
    let server = Server::new(opening, 1);
    let house = server.house.clone();
    // With less room in the kernel than a piece needs, the last one is handed over long before it is sent.
    let small = || {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_send_buffer_size(4096).expect("it can be small");
        socket.set_recv_buffer_size(4096).expect("it can be small");
        socket
    };
    let socket = small();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("some port is free");
    let listener = socket.listen(8).expect("it can listen");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(accept_all(vec![(listener, server)], CancellationToken::new()));

    let mut reader = Client(small().connect(address).await.expect("it listens"));
    reader.send("/pieces").await;
    let mut piece = vec![0; 1024];
    let mut read = reader.0.read(&mut piece).await.expect("it is answered");
    while read < PIECES && !house.is_somebody_idle() {
        read += reader.0.read(&mut piece).await.expect("it is answered");
        tokio::task::yield_now().await;
    }
    let mut later = Client::new(address).await;
    later.send("/quick").await;
    // Time enough for it to be asked to leave, which it cannot before it has everything.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let mut rest = Vec::new();
    reader.0.read_to_end(&mut rest).await.expect("an orderly end");
    assert!(read + rest.len() > PIECES, "{} bytes came of {PIECES} and a head", read + rest.len());
    assert_eq!(later.answer().await, "quick");
}

#[tokio::test]
async fn a_flood_of_silent_connections_keeps_nobody_out() {
    let server = serving(16, &shut()).await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        for _ in 0..16 {
            silent.push(Client::new(server).await);
        }
        Client::new(server).await.ask().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_of_an_answer_is_shown_out_and_who_takes_it_slowly_is_not() {
    let server = serving(2, &shut()).await;
    let mut sleeper = Client::new(server).await;
    sleeper.send("/large").await;
    let mut slow = Client::new(server).await;
    slow.send("/large").await;
    let (mut piece, mut read) = (vec![0; 1 << 20], 0);
    while read < LARGE {
        sleep(limits::HTTP_HEAD_READ / 2).await;
        let length = slow.0.read(&mut piece).await.expect("it is answered");
        assert_ne!(length, 0, "only {read} bytes came");
        read += length;
    }
    let mut rest = Vec::new();
    // What the kernel has, and then an end or a reset.
    let _ = sleeper.0.read_to_end(&mut rest).await;
    assert!(rest.len() < LARGE);
}

#[tokio::test]
async fn http_2_takes_no_more_than_its_share_of_the_requests() {
    let gate = shut();
    let server = serving(limits::HTTP_CONNECTIONS, &gate).await;
    let connect = async || {
        let stream = TokioIo::new(TcpStream::connect(server).await.expect("it listens"));
        let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
        let (sender, connection) = made.expect("HTTP/2 is spoken");
        tokio::spawn(connection);
        sender
    };
    let get = |path: &str| Request::get(format!("http://x{path}")).body(String::new()).expect("a request");
    let mut held = Vec::new();
    let streams = limits::HTTP_STREAMS as usize;
    for _ in 0..limits::HTTP_ALL_STREAMS / streams {
        let mut sender = connect().await;
        // The first one goes before the server has said how many there may be.
        sender.send_request(get("/quick")).await.expect("an answer");
        held.extend((0..streams).map(|_| tokio::spawn(sender.send_request(get("/held")))));
    }
    let mut another = connect().await;
    let refused = loop {
        let answer = another.send_request(get("/quick")).await.expect("an answer");
        if answer.status() != 200 {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(refused.headers().contains_key("x-request-id"));
    // The others share nothing with them.
    Client::new(server).await.ask().await;
    gate.add_permits(held.len());
    for answer in held {
        assert_eq!(answer.await.expect("no panic").expect("an answer").status(), 200);
    }
    assert_eq!(another.send_request(get("/quick")).await.expect("an answer").status(), 200);
}

// ---- before there are routes --------------------------------------------------------------------------

impl Client {
    /// The code of the next answer, which is of some hundred bytes, and its whole text.
    async fn told(&mut self, end: &str) -> (u16, String) {
        let mut read = String::new();
        while !read.ends_with(end) {
            read.push(self.0.read_u8().await.unwrap_or_else(|error| panic!("{error} after {read:?}")).into());
        }
        (read["HTTP/1.1 ".len()..][..3].parse().expect("a code"), read)
    }
}

#[tokio::test]
async fn probes_are_answered_and_what_is_asked_early_is_answered_late() {
    let (address, opening) = opened(8, &CancellationToken::new()).await;
    let mut early = Client::new(address).await;
    early.send("/quick").await;
    let mut probe = Client::new(address).await;
    for (path, code) in [("/livez", 200), ("/readyz", 503), ("/startupz", 503)] {
        probe.send(path).await;
        let (told, answer) = probe.told(if code == 200 { "\"ok\"" } else { "}" }).await;
        assert_eq!(told, code, "{path}: {answer}");
        assert!(answer.contains("\r\nx-request-id: "), "{answer}");
    }
    opening.serve(routes(&shut()));
    assert_eq!(early.answer().await, "quick");
    probe.ask().await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_too_early_is_told_to_come_again() {
    let (address, opening) = opened(8, &CancellationToken::new()).await;
    let mut early = Client::new(address).await;
    early.send("/quick").await;
    let (code, answer) = early.told("}").await;
    assert_eq!(code, 503, "{answer}");
    assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    opening.serve(routes(&shut()));
    early.ask().await;
}

#[tokio::test]
async fn who_has_asked_is_answered_when_nothing_comes_of_the_compute() {
    let shutdown = CancellationToken::new();
    let (address, _opening) = opened(8, &shutdown).await;
    let mut early = Client::new(address).await;
    early.send("/quick").await;
    // Behind it on another connection: by then the first one was read.
    let mut probe = Client::new(address).await;
    probe.send("/livez").await;
    probe.told("\"ok\"").await;
    shutdown.cancel();
    assert_eq!(early.told("}").await.0, 503);
    early.is_shown_out().await;
}
