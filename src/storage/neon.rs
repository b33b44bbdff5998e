//! Neon's storage: pages from pageservers, the write-ahead log from safekeepers.

mod safekeepers;

pub use safekeepers::{Disagreement, EndOfLog, MemberError, Safekeepers, SyncError};
