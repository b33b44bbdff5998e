//! Logging and metrics.

pub mod log;
pub mod metrics;
pub mod startup;
pub mod trace;

use std::error::Error;

pub use metrics::Metrics;
pub use startup::{Stage, Startup, StartupFigures};
pub use trace::Traces;

/// An error and its causes in one line. Some errors have the text of their cause in their own.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = next.source();
    }
    text
}
