//! The end of the program: whoever waits for `/terminate` is answered first.

use std::io::Write;

use compute_states::Policy;
use nix::sys::signal::Signal;

use crate::support::node::{COMPUTE_ID, Place, eventually, token};
use crate::support::processes::Process;
use crate::{connect, rest};

#[test]
fn every_one_of_many_terminations_is_answered_before_the_program_goes() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    let session = place.session("select");
    session.backend.signal(Signal::SIGSTOP);
    eventually("a process that stands still", || {
        Process::of(session.backend.pid).filter(|now| now.state == 'T')
    });
    let before = place.processes();
    let head = format!(
        "POST /terminate?mode=immediate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 0\r\n\r\n",
        token(COMPUTE_ID)
    );
    let asked = 2 * Policy::default().max_waiters;
    let mut clients: Vec<_> = (0..asked)
        .map(|_| {
            // Kept open by the client's wish, so that the end is the server's to give.
            let mut stream = connect(place.external);
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    node.wait("all requests", |node| {
        (node.log().matches("path=\"/terminate\"").count() >= asked).then_some(())
    });
    session.backend.signal(Signal::SIGCONT);
    let (mut done, mut refused) = (0, 0);
    for client in &mut clients {
        let answer = rest(client);
        if answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(r#"{"lsn":null}"#) {
            done += 1;
        } else {
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer:?}");
            refused += 1;
        }
    }
    assert_eq!((done, refused), (Policy::default().max_waiters, asked - Policy::default().max_waiters));
    node.ends_with(0, &before);
}
