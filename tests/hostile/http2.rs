//! HTTP/2 with prior knowledge: many streams, large heads, requests that are taken back, clients that take nothing.

use std::net::Ipv4Addr;

use compute_ctl::limits;
use hyper::Request;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::support::node::{COMPUTE_ID, Place, token};
use crate::{MIB, Siege};

fn in_time<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bounded = async { tokio::time::timeout(crate::support::node::DEADLINE, work).await };
    runtime.block_on(bounded).expect("nothing hangs")
}

async fn connect(place: &Place, adjust: impl FnOnce(&mut Builder<TokioExecutor>)) -> SendRequest<String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, place.external)).await.expect("it listens");
    let mut builder = Builder::new(TokioExecutor::new());
    adjust(&mut builder);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("HTTP/2 is spoken");
    tokio::spawn(connection);
    sender
}

fn get(path: &str) -> Request<String> {
    Request::get(format!("http://x{path}")).body(String::new()).expect("a request")
}

#[test]
fn many_requests_on_one_connection_are_answered() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    in_time(async {
        let mut sender = connect(&place, |_| {}).await;
        // With this answer it knows how many there may be at once.
        assert_eq!(sender.send_request(get("/metrics")).await.expect("an answer").status(), 200);
        let answers: Vec<_> = (0..2000).map(|_| sender.send_request(get("/metrics"))).collect();
        for answer in answers {
            assert_eq!(answer.await.expect("an answer").status(), 200);
        }
    });
    siege.ends_within(32 * MIB);
}

#[test]
fn large_heads_are_refused() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    in_time(async {
        for (name, count) in [("a", 1), ("b", 200)] {
            let mut sender = connect(&place, |builder| {
                builder.max_header_list_size(16 * MIB as u32);
            })
            .await;
            let mut request = get("/metrics");
            for number in 0..count {
                let name = format!("{name}{number}").parse::<hyper::header::HeaderName>().expect("a name");
                let value = "x".repeat(MIB / count).parse().expect("a value");
                request.headers_mut().append(name, value);
            }
            // Refused in whatever way.
            if let Ok(answer) = sender.send_request(request).await {
                assert_eq!(answer.status(), 431);
            }
        }
    });
    siege.ends_within(16 * MIB);
}

#[test]
fn requests_that_are_taken_back_at_once_cost_little() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    in_time(async {
        for _ in 0..20 {
            let mut sender = connect(&place, |_| {}).await;
            for _ in 0..40 {
                if sender.is_closed() {
                    break;
                }
                let requests: Vec<_> = (0..50).map(|_| sender.send_request(get("/metrics"))).collect();
                tokio::task::yield_now().await;
                // Dropped right after they were sent, which takes them back.
                drop(requests);
                tokio::task::yield_now().await;
            }
        }
    });
    siege.ends_within(32 * MIB);
}

#[test]
fn clients_that_take_nothing_share_what_there_is_for_them() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let connections = 40;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _held = runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..connections {
            let mut sender = connect(&place, |builder| {
                builder.initial_stream_window_size(0);
            })
            .await;
            for _ in 0..64 {
                // Each has its head, and not a byte of its body.
                let answer = sender.send_request(get("/metrics")).await.expect("an answer");
                assert!(matches!(answer.status().as_u16(), 200 | 503), "{answer:?}");
                held.push(answer);
            }
        }
        assert!(held.iter().any(|answer| answer.status() == 503), "somebody was told to come back");
        held
    });
    // A few kilobytes for each of the requests there may be, and for each connection.
    siege.ends_within(64 * MIB);
}

#[test]
fn watchers_leave_room_for_others() {
    let place = Place::new();
    let siege = Siege::lay(&place);
    let watch = || {
        let mut request = get("/events");
        let token = format!("Bearer {}", token(COMPUTE_ID)).parse().expect("a value");
        request.headers_mut().insert("authorization", token);
        request
    };
    in_time(async {
        let (mut held, mut refused) = (Vec::new(), 0);
        let mut senders = Vec::new();
        for _ in 0..10 {
            let mut sender = connect(&place, |_| {}).await;
            for _ in 0..60 {
                let answer = sender.send_request(watch()).await.expect("an answer");
                match answer.status().as_u16() {
                    200 => held.push(answer),
                    code => {
                        assert_eq!((code, &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
                        refused += 1;
                    }
                }
            }
            senders.push(sender);
        }
        assert_eq!((held.len(), refused), (limits::EVENTS_STREAMS, 600 - limits::EVENTS_STREAMS));
        let mut another = connect(&place, |_| {}).await;
        assert_eq!(another.send_request(get("/metrics")).await.expect("an answer").status(), 200);
        // Who goes leaves a seat.
        drop(held.pop());
        while another.send_request(watch()).await.expect("an answer").status() != 200 {}
    });
    siege.ends_within(32 * MIB);
}
