//! What an empty compute does while it waits for a spec: it makes what every start needs, and starts a
//! throw-away server once, so that programs, libraries and the template are in the page cache.
//!
//! All of it can be cancelled at any moment, and nothing waits for it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::limits;
use crate::postgres::{DataDir, Fact, Launch, LogSink, PgdataError, Postmaster, SpawnError, StopMode};
use crate::storage::{self, Context, Storage, StorageError};

/// Why there was no warm-up. Nothing depends on it.
#[derive(Debug, thiserror::Error)]
pub(super) enum WarmUpError {
    #[error("the template could not be made")]
    Template(#[source] StorageError),
    #[error("the throw-away data directory could not be made")]
    Storage(#[source] StorageError),
    #[error("the throw-away data directory cannot be used")]
    Pgdata(#[source] PgdataError),
    #[error("the throw-away server could not be started")]
    Spawn(#[source] SpawnError),
    #[error("the throw-away data directory could not be removed")]
    Remove(#[source] std::io::Error),
}

/// Makes the template, and starts and stops a server on a clone of it, beside the data directory as the
/// original does (`.warmup`). Ends early, and in order, when the context is cancelled.
pub(super) async fn warm_up(context: &Context) -> Result<(), WarmUpError> {
    storage::warm_up(context).await.map_err(WarmUpError::Template)?;
    let place = beside(context.pgdata.path());
    let claimed = {
        let place = place.clone();
        tokio::task::spawn_blocking(move || DataDir::claim(&place)).await
    };
    // A panic in there is a bug, and as little a reason to stop as any other failure here.
    let Ok(claimed) = claimed else { return Ok(()) };
    let pgdata = claimed.map_err(WarmUpError::Pgdata)?;
    let throw_away = Context { pgdata, ..context.clone() };
    let outcome = start_and_stop(&throw_away).await;
    drop(throw_away);
    let removed = tokio::fs::remove_dir_all(&place).await.map_err(WarmUpError::Remove);
    outcome.and(removed)
}

async fn start_and_stop(context: &Context) -> Result<(), WarmUpError> {
    storage::Initdb.prepare(context).await.map_err(WarmUpError::Storage)?;
    let socket = context.pgdata.path().to_string_lossy().into_owned();
    let settings = [("listen_addresses", String::new()), ("unix_socket_directories", socket)];
    let launch = Launch {
        installation: context.installation.clone(),
        pgdata: context.pgdata.clone(),
        options: settings.map(|(name, value)| (name.to_owned(), value)).into(),
        env: Vec::new(),
        // What it says is about nobody's data.
        log: LogSink::new(|_| {}),
    };
    let (server, mut facts) = Postmaster::spawn(launch).map_err(WarmUpError::Spawn)?;
    let ready = async { while !matches!(facts.recv().await, Some(Fact::Ready | Fact::Exited(_)) | None) {} };
    context.cancel.run_until_cancelled(ready).await;
    server.signal(StopMode::Immediate);
    server.sweep(limits::WARM_UP_SWEEP).await;
    Ok(())
}

/// `<pgdata>.warmup`.
fn beside(pgdata: &Path) -> PathBuf {
    let mut name = OsString::from(pgdata);
    name.push(".warmup");
    PathBuf::from(name)
}
