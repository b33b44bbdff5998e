//! Catalog work that serving does not wait for: numbered migrations, and the newest version of Neon's extension.
//!
//! Its failure changes nothing that a client was promised. It is told, counted, and tried again with the next
//! apply. It ends with the Postgres it works in.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::error::chain;
use crate::catalog::step::Step;
use crate::catalog::{ConnectionSettings, connect_patiently, migrations};
use crate::telemetry::Metrics;

/// What is left to be done.
#[derive(Debug)]
pub(super) enum Task {
    /// These migrations.
    Migrations(Vec<Step>),
    /// The newest version of the extension `neon`, for a spec that skips all other catalog work.
    UpdateNeon,
}

/// The one such task there is at a time.
#[derive(Debug, Default)]
pub(super) struct Afterwards(Mutex<Option<AbortOnDropHandle<()>>>);

impl Afterwards {
    /// Begins a task, in place of one that is still under way.
    pub(super) fn begin(&self, task: Task, settings: ConnectionSettings, metrics: Arc<Metrics>) {
        if matches!(&task, Task::Migrations(pending) if pending.is_empty()) {
            return;
        }
        let handle = tokio::spawn(run(task, settings, metrics));
        self.replace(Some(AbortOnDropHandle::new(handle)));
    }

    /// Ends what is under way: its Postgres is to go.
    pub(super) fn end(&self) {
        self.replace(None);
    }

    fn replace(&self, handle: Option<AbortOnDropHandle<()>>) {
        // Every change is one assignment, so a panic elsewhere cannot have left half of one behind.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = handle;
    }
}

async fn run(task: Task, settings: ConnectionSettings, metrics: Arc<Metrics>) {
    // The task as a whole is aborted instead.
    let token = CancellationToken::new();
    let name = match task {
        Task::Migrations(_) => "compute_ctl:migrations",
        Task::UpdateNeon => "compute_ctl:post_apply_config",
    };
    let connection = match connect_patiently(&settings.named(name), &token).await {
        Ok(Some(connection)) => connection,
        Ok(None) => return,
        Err(error) => {
            tracing::error!("catalog work after the start was not begun: {}", chain(&error));
            return;
        }
    };
    match task {
        Task::Migrations(pending) => {
            if let Err(error) = migrations::run(&connection, &pending, &token).await {
                metrics.migration_failed(error.id);
                tracing::error!("{}", chain(&error));
            }
        }
        Task::UpdateNeon => {
            if let Err(error) = connection.client().batch_execute("ALTER EXTENSION neon UPDATE").await {
                tracing::error!("extension neon was not updated: {}", chain(&error));
            }
        }
    }
}
