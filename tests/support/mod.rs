//! Helpers shared by the tests on real servers.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod files;
pub(crate) mod lab;
pub(crate) mod node;
pub(crate) mod pg;
pub(crate) mod processes;
