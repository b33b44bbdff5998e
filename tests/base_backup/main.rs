//! Storage kind `base_backup`, and modes Replica and Static: copies of a second real PostgreSQL, through a network
//! that breaks, and the whole program on them.

// The whole binary is a test; the lint knows only test functions.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod copies;
mod failures;
mod modes;
mod origin;
mod standby;
mod tls;
mod upstream;
