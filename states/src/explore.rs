//! Explore.
