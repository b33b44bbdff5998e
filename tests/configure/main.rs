//! A configure that is held up, and one that is cut short: how long it takes, what it says, what the next makes
//! of what it left.

// Helpers here are test code as well, though the lint sees that of `#[test]` functions only.
#![allow(clippy::unwrap_used)]

mod change;
mod crashes;
mod held;
mod killed;
mod migrations;
mod proxy;
#[path = "../support/mod.rs"]
mod support;
