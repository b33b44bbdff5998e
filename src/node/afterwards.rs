//! Catalog work that serving does not wait for: numbered migrations, and the newest version of Neon's extension.
//!
//! Its failure changes nothing that a client was promised. It is told, counted, and tried again with the next
//! apply. It ends with the Postgres it works in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::catalog::step::Step;
use crate::catalog::{ConnectionSettings, connect_patiently, migrations};
use crate::telemetry::{Metrics, chain};

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
pub(super) struct Afterwards(Mutex<Option<Begun>>);

#[derive(Debug)]
struct Begun {
    token: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Afterwards {
    /// Begins a task. One that is still under way is ended, but not waited for: see [`Afterwards::stop`].
    pub(super) fn begin(&self, task: Task, settings: ConnectionSettings, metrics: Arc<Metrics>) {
        if matches!(&task, Task::Migrations(pending) if pending.is_empty()) {
            return;
        }
        let token = CancellationToken::new();
        let task = {
            let token = token.clone();
            // Not part of the change that it follows, which must not stay open for it.
            let span = match &task {
                Task::Migrations(_) => tracing::info_span!(parent: None, "handle_migrations"),
                Task::UpdateNeon => tracing::info_span!(parent: None, "handle_neon_extension_upgrade"),
            };
            span.follows_from(tracing::Span::current());
            tokio::spawn(async move { run(task, settings, &metrics, &token).await }.instrument(span))
        };
        *self.lock() = Some(Begun { token, task: AbortOnDropHandle::new(task) });
    }

    /// Ends what is under way and waits until its session is at rest, which takes it
    /// [`limits::CANCEL_REQUEST`](crate::limits::CANCEL_REQUEST) at most. An apply beside it would change the same
    /// roles, and the server refuses that to the later of two. What was not done, the apply plans again.
    pub(super) async fn stop(&self) {
        let begun = self.lock().take();
        if let Some(begun) = begun {
            begun.token.cancel();
            // How it ended, it has told.
            let _ = begun.task.await;
        }
    }

    /// Ends what is under way: its Postgres is to go.
    pub(super) fn end(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Begun>> {
        // Every change is one assignment, so a panic elsewhere cannot have left half of one behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(task: Task, settings: ConnectionSettings, metrics: &Metrics, token: &CancellationToken) {
    let name = match &task {
        Task::Migrations(_) => "compute_ctl:migrations",
        Task::UpdateNeon => "compute_ctl:post_apply_config",
    };
    let connection = match connect_patiently(&settings.named(name), token).await {
        Ok(Some(connection)) => connection,
        Ok(None) => return,
        Err(error) => {
            tracing::error!("catalog work after the start was not begun: {}", chain(&error));
            return;
        }
    };
    match task {
        Task::Migrations(pending) => {
            if let Err(error) = migrations::run(&connection, &pending, token).await
                && !error.is_cancelled()
            {
                metrics.migration_failed(error.id);
                tracing::error!("{}", chain(&error));
            }
        }
        Task::UpdateNeon => {
            let update = connection.client().batch_execute("ALTER EXTENSION neon UPDATE");
            if let Ok(Err(error)) = connection.unless_cancelled(token, update).await {
                tracing::error!("extension neon was not updated: {}", chain(&error));
            }
        }
    }
}
