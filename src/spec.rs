//! The spec: what a control plane (or a person with a file) wants this compute to be.
//!
//! [`document`] holds the wire types, [`archive`] and [`base_backup`] the parameters of storage kinds, [`conninfo`] takes connection
//! strings apart, [`fault`] says what is wrong with a document and where, [`resolve`] turns a document into the facts the rest of the program works with, and [`store`]
//! keeps documents by revision, so that the state machine can talk of them by number.

pub mod archive;
pub mod base_backup;
pub mod conninfo;
pub mod document;
pub mod fault;
pub mod parameters;
pub mod resolve;
pub mod safekeepers;
pub mod store;
