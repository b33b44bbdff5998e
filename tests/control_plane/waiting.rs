//! Waiting costs nothing: the processor time of the program itself while there is nothing to do.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};
use serde_json::json;

use crate::command;
use crate::refresh::running;
use crate::support::control_plane::{Act, ControlPlane};
use crate::support::node::{Node, Place, eventually};

/// Long enough for a hundredth of it to be some ticks of the kernel's clock.
const PERIOD: Duration = Duration::from_secs(4);

/// Processor time of the program, all threads together.
fn used(node: &Node<'_>) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", node.pid)).unwrap();
    // The name in parentheses may be anything; from the state on there are numbers. utime and stime are the 14th and the
    // 15th of all (proc_pid_stat(5)).
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    let rate = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    Duration::from_millis(ticks * 1000 / u64::try_from(rate).unwrap())
}

/// Fails unless a period comes in which the program uses less than a hundredth of one processor. What was begun before
/// the wait may still have to end; what spins never does. `wait` is a period, and says so by coming back.
fn rests(node: &Node<'_>, what: &str, mut wait: impl FnMut()) {
    let mut seen = Vec::new();
    eventually(&format!("{what} without work"), || {
        let (before, begin) = (used(node), Instant::now());
        wait();
        let ratio = (used(node) - before).as_secs_f64() / begin.elapsed().as_secs_f64();
        seen.push(ratio);
        eprintln!("{what}: {:.2} % of a processor", ratio * 100.0);
        (ratio < 0.01).then_some(())
    });
}

/// The period itself; nothing is waited for.
fn period() {
    std::thread::sleep(PERIOD);
}

#[test]
fn a_node_that_waits_for_something_uses_nothing() {
    let place = Place::new();
    let control_plane = ControlPlane::start(Act::empty());
    let node = place.run(command(&place, &control_plane.base()));
    node.wait_status("empty");
    rests(&node, "empty", period);
    assert_eq!(node.configure(&place.spec()).0, 200);
    rests(&node, "running", period);
    node.terminate();

    // An answer that does not come, at the start.
    let control_plane = ControlPlane::start(Act::Hang);
    let node = place.run(command(&place, &control_plane.base()));
    control_plane.wait_asked(1);
    rests(&node, "a start without an answer", period);
    node.signal(Signal::SIGTERM);
    node.ends_with(0, &[]);
}

#[test]
fn so_does_one_that_tries_again_and_again() {
    let place = Place::new();
    let control_plane = ControlPlane::start(Act::Hang);
    let node = running(&place, &control_plane);
    control_plane.act(Act::status(404));
    assert_eq!(node.refresh(), 200);
    // From one attempt to another: the pauses grow, so that this takes longer each time.
    rests(&node, "a refresh that fails", || control_plane.wait_asked(control_plane.asked() + 1));
    control_plane.act(Act::Hang);
    control_plane.wait_asked(control_plane.asked() + 1);
    rests(&node, "a refresh without an answer", period);
    node.terminate();
}

#[test]
fn so_does_one_that_has_failed() {
    let place = Place::new();
    let mut spec = place.spec();
    let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
    // An address that no machine has.
    settings.retain(|setting| setting["name"] != "listen_addresses");
    settings.push(json!({ "name": "listen_addresses", "value": "203.0.113.1", "vartype": "string" }));
    place.configure(&spec);
    let node = place.start(&[]);
    node.wait_status("failed");
    rests(&node, "failed", period);
    node.signal(Signal::SIGTERM);
    node.exit_code();
}
