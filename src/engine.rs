//! The event loop around the pure machine.
