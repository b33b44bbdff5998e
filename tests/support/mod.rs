//! Helpers shared by the tests on real servers.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod acts;
pub(crate) mod control_plane;
pub(crate) mod cut;
pub(crate) mod files;
pub(crate) mod lab;
pub(crate) mod lock;
pub(crate) mod names;
pub(crate) mod node;
pub(crate) mod oracle;
pub(crate) mod origin;
pub(crate) mod pageserver;
pub(crate) mod pg;
pub(crate) mod processes;
pub(crate) mod safekeeper;
pub(crate) mod specs;
pub(crate) mod view;
