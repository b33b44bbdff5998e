//! Part of the spec module.
