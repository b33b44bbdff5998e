//! What a standby thinks of the server it follows.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::register;

/// Families of the watcher of a standby's upstream.
#[derive(Debug)]
pub struct Upstream {
    hints: IntCounterVec,
    suppressed: IntCounter,
    /// Without labels, but absent where nobody is followed.
    streaming: IntGaugeVec,
}

impl Upstream {
    pub(super) fn new(registry: &Registry) -> Self {
        let hints = register(
            registry,
            IntCounterVec::new(
                Opts::new(
                    "compute_ctl_refresh_hints_total",
                    "Refreshes asked for because the storage seems to have moved, by suspicion",
                ),
                &["suspicion"],
            ),
        );
        let suppressed = register(
            registry,
            IntCounter::new(
                "compute_ctl_refresh_hints_suppressed_total",
                "Signs of storage that has moved which came too soon after the last refresh asked for",
            ),
        );
        let streaming = register(
            registry,
            IntGaugeVec::new(
                Opts::new(
                    "compute_ctl_upstream_streaming",
                    "Whether the standby receives from the server it follows, when last seen",
                ),
                &[],
            ),
        );
        Upstream { hints, suppressed, streaming }
    }

    /// Counts a refresh that was asked for.
    pub fn hinted(&self, suspicion: &str) {
        self.hints.with_label_values(&[suspicion]).inc();
    }

    /// Counts a sign for which none was.
    pub fn suppressed(&self) {
        self.suppressed.inc();
    }

    /// Notes whether the standby receives; nothing where nobody is followed.
    pub fn streaming(&self, streaming: Option<bool>) {
        match streaming {
            Some(streaming) => self.streaming.with_label_values::<&str>(&[]).set(streaming.into()),
            None => self.streaming.reset(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::telemetry::Metrics;

    #[test]
    fn a_node_that_follows_nobody_says_nothing_of_it() {
        let metrics = Metrics::new();
        let seen = |name: &str| {
            let text = metrics.render(0).expect("it can be encoded");
            let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
            line.and_then(|line| line.rsplit_once(' ').map(|(_, value)| value.to_owned()))
        };
        assert_eq!(seen("compute_ctl_upstream_streaming"), None);
        metrics.upstream.streaming(Some(true));
        assert_eq!(seen("compute_ctl_upstream_streaming").as_deref(), Some("1"));
        metrics.upstream.streaming(Some(false));
        assert_eq!(seen("compute_ctl_upstream_streaming").as_deref(), Some("0"));
        metrics.upstream.streaming(None);
        assert_eq!(seen("compute_ctl_upstream_streaming"), None);
        metrics.upstream.hinted("silent");
        assert_eq!(seen(r#"compute_ctl_refresh_hints_total{suspicion="silent"}"#).as_deref(), Some("1"));
        assert_eq!(seen("compute_ctl_refresh_hints_suppressed_total").as_deref(), Some("0"));
    }
}
