//! Signals to events, and orphans to reap as PID 1.
