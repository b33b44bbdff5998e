//! Where the data directory comes from.
