//! Every route in every state that can be held from outside, on the real program with a real Postgres.
//!
//! What is answered stands in `expected.md`; `UPDATE_FIXTURES=1` writes it again, for somebody to review. Left out is
//! `configuration_pending`, which lasts for as long as a spec takes to be read.

// Helpers here are test code as well, though the lint sees that of `#[test]` functions only.
#![allow(clippy::unwrap_used)]

mod answer;
mod routes;
mod states;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use answer::Answer;
use routes::{ROUTES, Route};
use states::{STATES, State};
use support::node::{Node, Place};

/// How long an answer is awaited before whatever holds the state is let go: far longer than the program needs to
/// refuse something.
const HELD: Duration = Duration::from_secs(2);

/// States that are held at the same time.
const AT_ONCE: usize = 3;

#[test]
fn every_route_in_every_state() {
    let mut sections = Vec::new();
    for states in STATES.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let running: Vec<_> = states.iter().map(|state| scope.spawn(|| section(state))).collect();
            sections.extend(running.into_iter().map(|section| section.join().expect("see above")));
        });
    }
    let seen = format!("# What each route answers in each state\n\n{}", sections.join("\n"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix/expected.md");
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        fs::write(&file, &seen).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap();
    let mut different = String::new();
    let mut state = "";
    for (line, was) in seen.lines().zip(expected.lines()) {
        if line.starts_with("## ") {
            state = line;
        }
        if line != was {
            different.push_str(&format!("{state}\n  expected {was}\n  seen     {line}\n"));
        }
    }
    assert!(seen == expected, "UPDATE_FIXTURES=1 accepts this:\n{different}");
}

/// The answers in one state.
fn section(state: &State) -> String {
    let mut lines = Vec::new();
    let mut left: &[Route] = &ROUTES;
    while !left.is_empty() {
        let place = (state.place)();
        let (node, hold) = (state.hold)(&place);
        let mut hold = Some(hold);
        let mut spent = false;
        while let ([route, rest @ ..], false) = (left, spent) {
            left = rest;
            let answer = ask(&place, &node, route, || drop(hold.take()));
            lines.push(format!("| {} | {answer} |", route.title()));
            // What has moved on, or has been let go, holds no longer.
            spent = hold.is_none() || route.moves && answer.is_success();
        }
    }
    format!(
        "## {}\n\n{}\n\n| Route | Code | Content type | Body |\n|---|---|---|---|\n{}\n",
        state.title,
        state.how,
        lines.join("\n")
    )
}

/// Asks, and lets go what holds the state if the answer waits for that. It comes within the route's bound, or fails.
fn ask(place: &Place, node: &Node<'_>, route: &'static Route, let_go: impl FnOnce()) -> Answer {
    let begun = Instant::now();
    let request = route.request(place);
    let port = route.port(place);
    let (sender, answers) = mpsc::channel();
    std::thread::spawn(move || sender.send(Answer::of(port, &request, route)));
    let answer = answers.recv_timeout(if route.waits { HELD } else { route.bound });
    answer
        .or_else(|_| {
            assert!(route.waits, "{} took more than {:?}\n{}", route.title(), route.bound, node.log());
            let_go();
            answers.recv_timeout(route.bound.saturating_sub(begun.elapsed()))
        })
        .unwrap_or_else(|_| panic!("{} took more than {:?}\n{}", route.title(), route.bound, node.log()))
}
