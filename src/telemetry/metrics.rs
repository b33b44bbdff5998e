//! The metrics of `GET /metrics`.
//!
//! Names and labels of the original's families are the original's; families of our own start with
//! `compute_ctl_` too and are listed in the README.

mod original;
mod states;
mod upstream;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use compute_states::{Cause, ComputeStatus, EffectKind, EventKind, Verdict};
use prometheus::core::Collector;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

mod activity;

pub use activity::Downtime;

use crate::spec::resolve::Lsn;
use crate::storage::Progress;
use crate::telemetry::{Startup, StartupFigures};
use original::Original;
pub use original::{Attacher, InstalledExtension};
use states::States;

pub use upstream::Upstream;

/// Label of the image this program was built into. A compile-time value, as in the original.
pub const BUILD_TAG: &str = match option_env!("BUILD_TAG") {
    Some(tag) => tag,
    None => "latest",
};

/// Verdicts by name; the order in which each event's counters are kept.
const VERDICTS: [&str; 5] = ["moved", "taken", "latched", "refused", "stale"];

/// The families of the original, in the order in which it sends them.
const ORDER: [&str; 15] = [
    "compute_ctl_up",
    "compute_installed_extensions",
    "compute_ctl_cplane_requests_total",
    "compute_ctl_remote_ext_requests_total",
    "compute_ctl_db_migration_failed_total",
    "compute_audit_log_dir_size",
    "compute_pg_current_downtime_ms",
    "compute_pg_downtime_ms_total",
    "compute_ctl_lfc_prewarms_total",
    "compute_ctl_lfc_prewarm_errors_total",
    "compute_ctl_lfc_offloads_total",
    "compute_ctl_lfc_offload_errors_total",
    "pg_cctl_pagestream_request_errors_total",
    "pg_cctl_configure_statement_timeout_errors_total",
    "pg_cctl_attached",
];

/// All metrics of one node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// By event kind, then by verdict: looking labels up would cost more than handling the event.
    events: Vec<[IntCounter; VERDICTS.len()]>,
    transitions: IntCounterVec,
    effects: HistogramVec,
    queue_depth: IntGauge,
    rejected: IntCounter,
    refresh_requests: IntCounter,
    control_plane_requests: IntCounterVec,
    migrations_failed: IntCounterVec,
    settings_reloads: IntCounterVec,
    pending_restart: IntGauge,
    storage_retries: IntCounter,
    promotions: IntCounterVec,
    prepared_bytes: IntGaugeVec,
    leases: IntCounterVec,
    lease_end: IntGaugeVec,
    downtime: Downtime,
    rejected_settings: IntGauge,
    original: Original,
    states: States,
    startup: Startup,
    /// Of the watcher of a standby's upstream.
    pub upstream: Upstream,
    /// Held by the scrape that brings samples up to date.
    scrape: Mutex<()>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// A registry with every family in it, and the status gauge at `empty`.
    pub fn new() -> Self {
        let registry = Registry::new();
        let events = register(
            &registry,
            IntCounterVec::new(
                Opts::new("compute_ctl_events_total", "Events handled, by what became of them"),
                &["event", "verdict"],
            ),
        );
        let transitions = register(
            &registry,
            IntCounterVec::new(
                Opts::new("compute_ctl_transitions_total", "Changes of the status, by cause"),
                &["from", "to", "cause"],
            ),
        );
        let effects = register(
            &registry,
            HistogramVec::new(
                HistogramOpts::new("compute_ctl_effect_duration_seconds", "How long effects took")
                    .buckets(vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0]),
                &["effect", "outcome"],
            ),
        );
        let queue_depth =
            register(&registry, IntGauge::new("compute_ctl_queue_depth", "Events that wait in the queue"));
        let rejected = register(
            &registry,
            IntCounter::new("compute_ctl_requests_rejected_total", "Requests that found the queue full"),
        );
        let refresh_requests = register(
            &registry,
            IntCounter::new(
                "pg_cctl_pagestream_request_errors_total",
                "Calls of /refresh_configuration: trouble with pageservers, as seen by Postgres",
            ),
        );
        let migrations_failed = register(
            &registry,
            IntCounterVec::new(
                Opts::new("compute_ctl_db_migration_failed_total", "Catalog migrations that failed"),
                &["migration_id"],
            ),
        );
        let control_plane_requests = register(
            &registry,
            IntCounterVec::new(
                Opts::new("compute_ctl_cplane_requests_total", "Requests to the control plane"),
                &["rpc", "http_status"],
            ),
        );
        let settings_reloads = register(
            &registry,
            IntCounterVec::new(
                Opts::new("compute_ctl_settings_reloads_total", "Changes of Postgres's settings, by outcome"),
                &["outcome"],
            ),
        );
        let pending_restart = register(
            &registry,
            IntGauge::new(
                "compute_ctl_pending_restart_settings",
                "Settings whose new value Postgres takes only when it is started again",
            ),
        );
        let storage_retries = register(
            &registry,
            IntCounter::new(
                "compute_ctl_storage_retries_total",
                "Preparations of the data directory that failed and were tried again",
            ),
        );
        let promotions = register(
            &registry,
            IntCounterVec::new(
                Opts::new("compute_ctl_promotions_total", "Promotions of this compute, by outcome"),
                &["outcome"],
            ),
        );
        let prepared_bytes = register(
            &registry,
            IntGaugeVec::new(
                Opts::new(
                    "compute_ctl_storage_bytes",
                    "Bytes of the last preparation of the data directory: received from its source, written to files",
                ),
                &["direction"],
            ),
        );
        let leases = register(
            &registry,
            IntCounterVec::new(
                Opts::new(
                    "compute_ctl_lsn_lease_requests_total",
                    "Requests for a lease of the pinned LSN, by outcome",
                ),
                &["outcome"],
            ),
        );
        let lease_end = register(
            &registry,
            IntGaugeVec::new(
                Opts::new(
                    "compute_ctl_lsn_lease_end_timestamp_seconds",
                    "When the lease of the pinned LSN ends, at the pageserver where it ends first",
                ),
                &["lsn"],
            ),
        );
        let downtime = Downtime::new(&registry);
        let rejected_settings = register(
            &registry,
            IntGauge::new(
                "compute_ctl_rejected_settings",
                "Settings of the last change which Postgres did not take",
            ),
        );
        let (original, states) = (Original::new(&registry), States::new(&registry));
        let events = EventKind::ALL
            .iter()
            .map(|kind| VERDICTS.map(|verdict| events.with_label_values(&[kind.name(), verdict])))
            .collect();
        let upstream = Upstream::new(&registry);
        Metrics {
            registry,
            events,
            transitions,
            effects,
            queue_depth,
            rejected,
            refresh_requests,
            control_plane_requests,
            migrations_failed,
            settings_reloads,
            pending_restart,
            storage_retries,
            promotions,
            prepared_bytes,
            leases,
            lease_end,
            downtime,
            rejected_settings,
            original,
            states,
            startup: Startup::default(),
            upstream,
            scrape: Mutex::default(),
        }
    }

    /// Counts an event and what became of it.
    pub fn event(&self, kind: EventKind, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::Moved(_) => 0,
            Verdict::Taken(_) => 1,
            Verdict::Latched { .. } => 2,
            Verdict::Refused(_) => 3,
            Verdict::Stale => 4,
        };
        if let Some(counters) = self.events.get(kind as usize) {
            counters[verdict].inc();
        }
    }

    /// Counts a change of the status, and moves the status gauge along.
    pub fn transition(&self, from: ComputeStatus, to: ComputeStatus, cause: Option<Cause>) {
        let label = cause.map(|cause| format!("{cause:?}")).unwrap_or_default();
        self.transitions.with_label_values(&[&from.to_string(), &to.to_string(), &label]).inc();
        self.states.enter(to, cause);
    }

    /// Notes how long an effect took and how it ended.
    pub fn effect(&self, kind: EffectKind, outcome: &str, took: Duration) {
        self.effects.with_label_values(&[kind.name(), outcome]).observe(took.as_secs_f64());
    }

    /// Counts a request that found the queue full.
    pub fn request_rejected(&self) {
        self.rejected.inc();
    }

    /// Counts a call of `/refresh_configuration`, whatever its answer.
    pub fn refresh_requested(&self) {
        self.refresh_requests.inc();
    }

    /// Counts a request to the control plane. `http_status` is the line's text (`200 OK`), or `unknown` when
    /// there was no answer.
    pub fn control_plane_request(&self, rpc: &str, http_status: &str) {
        self.control_plane_requests.with_label_values(&[rpc, http_status]).inc();
    }

    /// Counts a failed migration of the catalog.
    pub fn migration_failed(&self, id: i64) {
        self.migrations_failed.with_label_values(&[&id.to_string()]).inc();
    }

    /// Counts a change of the settings of a running Postgres: `applied`, `refused` or `failed`.
    pub fn settings_reload(&self, outcome: &str) {
        self.settings_reloads.with_label_values(&[outcome]).inc();
    }

    /// Counts a failed preparation of the data directory that is tried again.
    pub fn storage_retried(&self) {
        self.storage_retries.inc();
    }

    /// Counts a promotion: `completed`, `failed`, or `unapplied` where the server is a primary and its spec could
    /// not be applied.
    pub fn promotion(&self, outcome: &str) {
        self.promotions.with_label_values(&[outcome]).inc();
    }

    /// Notes how far the preparation of the data directory is.
    pub fn preparation(&self, progress: &Progress) {
        for (direction, bytes) in [("received", progress.received()), ("written", progress.written())] {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.prepared_bytes.with_label_values(&[direction]).set(bytes);
        }
    }

    /// Counts a lease that is granted, and notes its end, since the Unix epoch.
    pub fn lease_granted(&self, lsn: Lsn, end: Duration) {
        self.leases.with_label_values(&["granted"]).inc();
        let seconds = i64::try_from(end.as_secs()).unwrap_or(i64::MAX);
        self.lease_end.with_label_values(&[&lsn.to_string()]).set(seconds);
    }

    /// Counts a lease that is refused for good.
    pub fn lease_refused(&self) {
        self.leases.with_label_values(&["refused"]).inc();
    }

    /// Counts a request for a lease that has failed.
    pub fn lease_failed(&self) {
        self.leases.with_label_values(&["failed"]).inc();
    }

    /// There is no lease to speak of, any more or yet.
    pub fn no_lease(&self) {
        self.lease_end.reset();
    }

    /// Notes how many settings wait for Postgres's next start.
    pub fn pending_restart(&self, settings: usize) {
        self.pending_restart.set(i64::try_from(settings).unwrap_or(i64::MAX));
    }

    /// How long Postgres was not there.
    pub fn downtime(&self) -> &Downtime {
        &self.downtime
    }

    /// Notes how many settings Postgres did not take.
    pub fn rejected_settings(&self, settings: usize) {
        self.rejected_settings.set(i64::try_from(settings).unwrap_or(i64::MAX));
    }

    /// The measurement of the first start.
    pub fn startup(&self) -> &Startup {
        &self.startup
    }

    /// Notes how the first start went.
    pub fn started(&self, figures: &StartupFigures) {
        self.states.started(figures);
    }

    /// Notes in how many databases each extension is; whatever is not among them has no sample any more.
    pub fn installed_extensions<'a>(&self, found: impl IntoIterator<Item = (&'a InstalledExtension, usize)>) {
        self.original.installed(found);
    }

    /// Has attachments shown from now on.
    pub fn tell_attachments_of(&self, attacher: Attacher) {
        self.original.tell_attachments_of(attacher);
    }

    /// Counts a statement on the catalog that Postgres has cancelled at its timeout.
    pub fn catalog_statement_timed_out(&self) {
        self.original.statement_timed_out();
    }

    /// Notes to which tenant and timeline this compute is attached at present.
    pub fn attached(&self, to: Option<(&str, &str)>) {
        self.original.attached(to);
    }

    /// The text of `GET /metrics`, in the exposition format 0.0.4.
    ///
    /// # Errors
    /// If a family cannot be encoded, which only a mistake in its labels could cause.
    pub fn render(&self, queue_depth: usize) -> Result<String, prometheus::Error> {
        let scrape = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.queue_depth.set(i64::try_from(queue_depth).unwrap_or(i64::MAX));
        self.states.bring_up_to_date();
        self.original.bring_up_to_date();
        let mut families = self.registry.gather();
        drop(scrape);
        // Counters by event and verdict which never moved would be a hundred lines of zeroes.
        for family in &mut families {
            if family.name() == "compute_ctl_events_total" {
                family.mut_metric().retain(|metric| metric.get_counter().get_value() > 0.0);
            }
        }
        families.retain(|family| !family.get_metric().is_empty());
        // The original's in its order, then ours by name.
        families
            .sort_by_key(|family| ORDER.iter().position(|name| *name == family.name()).unwrap_or(usize::MAX));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, made: Result<C, prometheus::Error>) -> C {
    let collector = made.expect("the families' names and labels are constants, and valid");
    registry.register(Box::new(collector.clone())).expect("each family is registered once");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_gauge_has_exactly_one_sample() {
        let metrics = Metrics::new();
        metrics.transition(ComputeStatus::Empty, ComputeStatus::Init, Some(Cause::SpecAtHand));
        metrics.transition(ComputeStatus::Init, ComputeStatus::Running, Some(Cause::Started));
        let text = metrics.render(0).expect("it can be encoded");
        let samples: Vec<&str> = text.lines().filter(|line| line.starts_with("compute_ctl_up{")).collect();
        assert_eq!(samples, [format!(r#"compute_ctl_up{{build_tag="{BUILD_TAG}",status="running"}} 1"#)]);
    }

    #[test]
    fn no_scrape_meets_a_moment_without_the_status() {
        let metrics = Metrics::new();
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                        let text = metrics.render(0).expect("it can be encoded");
                        assert_eq!(text.matches("\ncompute_ctl_up{").count(), 1, "{text}");
                        let state = text.lines().filter(|line| line.starts_with("compute_ctl_state{"));
                        assert_eq!(state.filter(|line| line.ends_with(" 1")).count(), 1, "{text}");
                    }
                });
            }
            for _ in 0..500 {
                metrics.transition(ComputeStatus::Running, ComputeStatus::Configuration, None);
                metrics.transition(ComputeStatus::Configuration, ComputeStatus::Running, None);
            }
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn what_is_gone_has_no_sample() {
        let metrics = Metrics::new();
        let extension = |name: &str| InstalledExtension {
            name: name.to_owned(),
            version: "1".to_owned(),
            owned_by_superuser: true,
        };
        let (a, b) = (extension("a"), extension("b"));
        metrics.installed_extensions([(&a, 2), (&b, 1)]);
        metrics.tell_attachments_of(Attacher { compute_id: "c".to_owned(), instance_id: "i".to_owned() });
        metrics.attached(Some(("t", "l")));
        assert!(metrics.render(0).expect("it can be encoded").contains("timeline_id=\"l\"} 1"));
        metrics.attached(Some(("t", "m")));
        metrics.installed_extensions([(&b, 3)]);
        let text = metrics.render(0).expect("it can be encoded");
        let samples: Vec<&str> = text
            .lines()
            .filter(|line| {
                ["compute_installed_extensions{", "pg_cctl_attached{"]
                    .iter()
                    .any(|name| line.starts_with(name))
            })
            .collect();
        let expected = [
            r#"compute_installed_extensions{extension_name="b",owned_by_superuser="1",version="1"} 3"#,
            r#"pg_cctl_attached{pg_compute_id="c",pg_instance_id="i",tenant_id="t",timeline_id="m"} 1"#,
        ];
        assert_eq!(samples, expected);
    }

    #[test]
    fn plain_counters_read_zero_from_the_first_scrape_and_labelled_ones_are_absent() {
        let text = Metrics::new().render(3).expect("it can be encoded");
        assert!(text.contains("pg_cctl_pagestream_request_errors_total 0"), "{text}");
        assert!(text.contains("compute_ctl_queue_depth 3"), "{text}");
        assert!(!text.contains("compute_ctl_events_total"), "{text}");
    }

    #[test]
    fn events_are_counted_by_kind_and_verdict() {
        let metrics = Metrics::new();
        metrics.event(EventKind::RefreshHinted, Verdict::Stale);
        metrics.event(EventKind::TimerFired, Verdict::Taken(Cause::LingerOver));
        let text = metrics.render(0).expect("it can be encoded");
        assert!(
            text.contains(r#"compute_ctl_events_total{event="RefreshHinted",verdict="stale"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"compute_ctl_events_total{event="TimerFired",verdict="taken"} 1"#), "{text}");
    }
}
