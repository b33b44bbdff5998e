//! What tests of the whole share.

pub(crate) mod pg;
