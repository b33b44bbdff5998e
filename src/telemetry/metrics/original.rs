//! Families of the original that nothing else in this file's parent moves, by its names and labels.
//!
//! Some belong to things this build does not do yet (the file cache, remote extensions, audit logs). Those without
//! labels read 0 from the first scrape, because scrapers ask for them.

use std::sync::{Mutex, OnceLock, PoisonError};

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::register;

/// An extension as `compute_installed_extensions` counts it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstalledExtension {
    /// Its name.
    pub name: String,
    /// The version that is installed.
    pub version: String,
    /// Whether it belongs to the superuser that `initdb` has made.
    pub owned_by_superuser: bool,
}

impl InstalledExtension {
    /// The last field as the original writes it.
    pub fn owner_flag(&self) -> &'static str {
        if self.owned_by_superuser { "1" } else { "0" }
    }
}

/// Who attaches itself, where that is told in metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attacher {
    /// The compute.
    pub compute_id: String,
    /// The instance it runs in.
    pub instance_id: String,
}

#[derive(Debug)]
pub(super) struct Original {
    extensions: IntGaugeVec,
    /// In how many databases each extension is, by the last look.
    installed: Mutex<Vec<(InstalledExtension, i64)>>,
    attached: IntGaugeVec,
    attacher: OnceLock<Attacher>,
    /// Tenant and timeline, by the last word.
    attached_to: Mutex<Option<(String, String)>>,
    statement_timeouts: IntCounter,
}

impl Original {
    pub(super) fn new(registry: &Registry) -> Self {
        let at_zero = [
            ("compute_ctl_lfc_prewarms_total", "Prewarms of the file cache that were begun"),
            ("compute_ctl_lfc_prewarm_errors_total", "Prewarms of the file cache that failed"),
            ("compute_ctl_lfc_offloads_total", "Offloads of the file cache's state that were begun"),
            ("compute_ctl_lfc_offload_errors_total", "Offloads of the file cache's state that failed"),
        ];
        for (name, help) in at_zero {
            register(registry, IntCounter::new(name, help));
        }
        register(registry, Gauge::new("compute_audit_log_dir_size", "Bytes of audit logs on disk"));
        register(
            registry,
            IntCounterVec::new(
                Opts::new("compute_ctl_remote_ext_requests_total", "Downloads of extension archives"),
                &["http_status", "filename"],
            ),
        );
        let extensions = register(
            registry,
            IntGaugeVec::new(
                Opts::new("compute_installed_extensions", "Databases that have an extension, by its version"),
                &["extension_name", "version", "owned_by_superuser"],
            ),
        );
        let attached = register(
            registry,
            IntGaugeVec::new(
                Opts::new("pg_cctl_attached", "1 for what this compute is attached to"),
                &["pg_compute_id", "pg_instance_id", "tenant_id", "timeline_id"],
            ),
        );
        let statement_timeouts = register(
            registry,
            IntCounter::new(
                "pg_cctl_configure_statement_timeout_errors_total",
                "Statements on the catalog that Postgres cancelled at their timeout",
            ),
        );
        Original {
            extensions,
            installed: Mutex::default(),
            attached,
            attacher: OnceLock::new(),
            attached_to: Mutex::default(),
            statement_timeouts,
        }
    }

    /// In how many databases each extension is. One that is nowhere any more has no sample.
    pub(super) fn installed<'a>(&self, found: impl IntoIterator<Item = (&'a InstalledExtension, usize)>) {
        let count = |databases| i64::try_from(databases).unwrap_or(i64::MAX);
        let found = found.into_iter().map(|(extension, databases)| (extension.clone(), count(databases)));
        *self.installed.lock().unwrap_or_else(PoisonError::into_inner) = found.collect();
    }

    pub(super) fn tell_attachments_of(&self, attacher: Attacher) {
        // It is the same for the whole life of the process.
        let _only_the_first = self.attacher.set(attacher);
    }

    /// The present tenant and timeline.
    pub(super) fn attached(&self, to: Option<(&str, &str)>) {
        let to = to.map(|(tenant, timeline)| (tenant.to_owned(), timeline.to_owned()));
        *self.attached_to.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    /// Has the samples be those of the present. Only one scrape may do it at a time.
    pub(super) fn bring_up_to_date(&self) {
        self.extensions.reset();
        for (extension, databases) in self.installed.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let labels = [&extension.name, &extension.version, extension.owner_flag()];
            self.extensions.with_label_values(&labels).set(*databases);
        }
        let Some(Attacher { compute_id, instance_id }) = self.attacher.get() else { return };
        self.attached.reset();
        if let Some((tenant, timeline)) = &*self.attached_to.lock().unwrap_or_else(PoisonError::into_inner) {
            self.attached.with_label_values(&[compute_id, instance_id, tenant, timeline]).set(1);
        }
    }

    pub(super) fn statement_timed_out(&self) {
        self.statement_timeouts.inc();
    }
}
