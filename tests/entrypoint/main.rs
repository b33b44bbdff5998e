//! The program as its users meet it: the real binary on a real PostgreSQL, seen from outside.

// Helpers here are test code as well, though the lint sees that of `#[test]` functions only.
#![allow(clippy::unwrap_used)]

mod client;
mod crash;
mod extensions;
mod figures;
mod logging;
mod plan;
mod probes;
mod refusals;
mod requests;
mod settings;
mod signals;
mod start;
mod stop;
#[path = "../support/mod.rs"]
mod support;
mod traces;
