//! The pure state machine of a compute node.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
