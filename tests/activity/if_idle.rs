//! Terminations that spare what is at work, on a real server with real clients.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::node::{Node, Place, eventually};
use crate::support::processes::Process;
use crate::{Alice, quiet, seen, started};

const IF_IDLE: &str = "/terminate?mode=immediate&if_idle=true";

/// Asks until the answer is another than that something is at work.
fn until_idle(node: &Node<'_>) -> (u16, String) {
    node.wait("an idle server", |node| {
        let (code, body) = node.post(IF_IDLE, None);
        (code != 409).then_some((code, body))
    })
}

#[test]
fn a_session_is_spared_and_counted_and_an_idle_compute_ends() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &[]);
    let alice = Alice::connect(place.postgres).unwrap();
    let (code, body) = node.post(IF_IDLE, None);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &body["error"]), (409, &"the compute is not idle: 1 idle session".into()), "{body}");
    assert_eq!(body["activity"]["sessions"]["idle"], 1, "{body}");
    alice.run("begin").unwrap();
    let (code, body) = node.post(IF_IDLE, None);
    assert!(code == 409 && body.contains("1 session idle in transaction"), "{body}");
    alice.run("commit").unwrap();
    drop(alice);
    let before = place.processes();
    assert_eq!(until_idle(&node), (200, r#"{"lsn":null}"#.to_owned()));
    node.ends_with(0, &before);
    assert_eq!(place.cluster_state(), "shut down");
}

/// Whoever stands between the door and a session holds back, even one who has said nothing yet.
#[test]
fn a_client_that_is_logging_in_is_spared() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &[]);
    let mut stranger = TcpStream::connect((Ipv4Addr::LOCALHOST, place.postgres)).unwrap();
    let arriving = |node: &Node<'_>| {
        node.wait("a client that is logging in", |node| {
            let (code, body) = node.post(IF_IDLE, None);
            assert_eq!(code, 409, "{body}");
            body.contains("the compute is not idle: 1 arriving session\"").then_some(())
        });
    };
    arriving(&node);
    // The length of a start-up packet, and nothing of it.
    stranger.write_all(&[0, 0, 0, 41]).unwrap();
    arriving(&node);
    drop(stranger);
    // What the check has seen does not stay: the next look of the monitor tells what there is.
    seen(&node, "nobody", |activity| activity["sessions"]["arriving"] == 0);
    assert_eq!(until_idle(&node).0, 200);
}

/// What is there besides whoever arrives is told as well.
#[test]
fn a_refusal_tells_everything_that_was_seen() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &["--idle-ignores", "idle-sessions"]);
    let alice = Alice::connect(place.postgres).unwrap();
    alice.run("select 1").unwrap();
    let stranger = TcpStream::connect((Ipv4Addr::LOCALHOST, place.postgres)).unwrap();
    let body = node.wait("a client that is logging in", |node| {
        let (code, body) = node.post(IF_IDLE, None);
        assert_eq!(code, 409, "{body}");
        body.contains("the compute is not idle: 1 arriving session\"").then_some(body)
    });
    let body: Value = serde_json::from_str(&body).unwrap();
    let sessions = &body["activity"]["sessions"];
    assert_eq!((&sessions["idle"], &sessions["arriving"]), (&1.into(), &1.into()), "{body}");
    drop((alice, stranger));
    assert_eq!(until_idle(&node).0, 200);
}

/// The process that collects the log is in no view of the server's, and nobody's session.
#[test]
fn a_server_that_collects_its_log_can_be_idle() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[("logging_collector", "on")]), &[]);
    assert_eq!(place.sql("show logging_collector"), "on");
    assert_eq!(until_idle(&node), (200, r#"{"lsn":null}"#.to_owned()));
}

/// Clients come and go while the compute is asked again and again. Whoever was let in is served to the end.
#[test]
fn nobody_who_was_let_in_is_killed() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &[]);
    let over = AtomicBool::new(false);
    let served = AtomicU64::new(0);
    let client = |seed: u64| {
        let mut random = seed;
        while !over.load(Ordering::Relaxed) {
            // Anybody may be turned away, but only at the door.
            if let Ok(alice) = Alice::connect(place.postgres) {
                alice.run("select 1").expect("whoever was let in is served");
                alice.run("begin; select 2; commit").expect("to the end");
                served.fetch_add(1, Ordering::Relaxed);
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            std::thread::sleep(Duration::from_millis(random >> 58));
        }
    };
    let ended = std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=2).map(|seed| scope.spawn(move || client(seed))).collect();
        eventually("somebody was served", || (served.load(Ordering::Relaxed) > 20).then_some(()));
        let ended = until_idle(&node);
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no client was let in and killed");
        }
        ended
    });
    assert_eq!(ended, (200, r#"{"lsn":null}"#.to_owned()));
    assert_eq!(node.exit_code(), 0);
}

/// It is not ours to let a server go on that somebody else has stopped, and nothing can be said about it.
#[test]
fn on_doubt_it_is_refused() {
    let place = Place::new();
    let node = started(&place, &quiet(&place, &[]), &[]);
    let postmaster = Process::of(node.postmaster()).unwrap();
    postmaster.signal(Signal::SIGSTOP);
    eventually("a stopped process", || (Process::of(postmaster.pid)?.state == 'T').then_some(()));
    let (code, body) = node.post(IF_IDLE, None);
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("whether the compute is idle could not be found out: "), "{body}");
    assert_eq!(Process::of(postmaster.pid).unwrap().state, 'T');
    postmaster.signal(Signal::SIGCONT);
    assert_eq!(until_idle(&node).0, 200);
}
