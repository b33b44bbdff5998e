//! The real program and a control plane that does wrong, at the start and at a refresh: what comes of each fault is
//! stated, nothing hangs, nothing spins.

// Helpers here are test code as well, though the lint sees that of `#[test]` functions only.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod faults;
mod refresh;
mod start;
mod waiting;

use std::process::Command;

use support::node::{COMPUTE_ID, Place};

/// Starts on this control plane instead of a config file.
fn command(place: &Place, base: &str) -> Command {
    let mut command = place.program();
    let arguments = place.arguments();
    let config = arguments.iter().position(|word| word == "--config").unwrap();
    command.args(&arguments[..config]).args(&arguments[config + 2..]);
    command.args(["--control-plane-uri", base]).env_remove("NEON_CONTROL_PLANE_TOKEN");
    command
}

/// Where it is asked.
fn path() -> String {
    format!("/compute/api/v2/computes/{COMPUTE_ID}/spec")
}
