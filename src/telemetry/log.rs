//! Logging: plain text on standard error, filtered by `RUST_LOG`.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Installs the subscriber for the whole process. The filter comes from `RUST_LOG` and is `info` without it,
/// or if it cannot be parsed. No colour and no target, as the original's readers expect (cli, section 3).
///
/// A second call is without effect, so tests may call it.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_span_events(FmtSpan::NONE)
        .try_init();
}
