//! What an empty compute does while it waits for a spec: it makes what every start needs, and starts a
//! throw-away server once, so that programs, libraries and the template are in the page cache.
//!
//! All of it can be cancelled at any moment, and nothing waits for it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::postgres::{
    ClearRule, DataDir, Fact, Launch, LogSink, PgdataError, Postmaster, SpawnError, StopMode,
};
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
    #[error("work on the throw-away data directory panicked; this is a bug")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Makes the template, and starts and stops a server on a clone of it, beside the data directory as the
/// original does (`.warmup`). Ends early, and in order, when the context is cancelled.
///
/// What is found there and is not ours stays, whatever the operator allows for the data directory: nobody gave
/// this one to us.
pub(super) async fn warm_up(context: &Context) -> Result<(), WarmUpError> {
    storage::warm_up(context).await.map_err(WarmUpError::Template)?;
    let place = beside(context.pgdata.path());
    let claimed = blocking(move || DataDir::claim(&place).map_err(WarmUpError::Pgdata)).await?;
    let throw_away = Context {
        pgdata: claimed.clone(),
        overwrite_foreign: false,
        restart: false,
        // Nobody waits for this one.
        progress: Arc::default(),
        ..context.clone()
    };
    let outcome = start_and_stop(&throw_away).await;
    // Also what a cancelled preparation left. What it refused is refused here again.
    let removed = blocking(move || remove(&claimed)).await;
    outcome.and(removed)
}

async fn start_and_stop(context: &Context) -> Result<(), WarmUpError> {
    storage::Initdb.prepare(context).await.map_err(WarmUpError::Storage)?;
    let socket = context.pgdata.path().to_string_lossy().into_owned();
    let settings = [
        ("listen_addresses", String::new()),
        ("unix_socket_directories", socket),
        // In the directory, and so gone with it even if the server has to be killed.
        ("dynamic_shared_memory_type", "mmap".to_owned()),
    ];
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
    // Only a server that ends by itself gives its shared memory back; the sweep kills one that has not.
    let exited = async { while !matches!(facts.recv().await, Some(Fact::Exited(_)) | None) {} };
    let _swept_if_late = timeout(limits::WARM_UP_STOP, exited).await;
    server.sweep(limits::WARM_UP_SWEEP).await;
    Ok(())
}

/// Removes the directory if it is ours and no server lives on it.
fn remove(throw_away: &DataDir) -> Result<(), WarmUpError> {
    // Not to be cancelled: it is short, and nobody else would do it.
    throw_away.clear(ClearRule::default(), &CancellationToken::new()).map_err(WarmUpError::Pgdata)?;
    throw_away.finish_kept().map_err(WarmUpError::Pgdata)?;
    std::fs::remove_dir(throw_away.path()).map_err(WarmUpError::Remove)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WarmUpError> + Send + 'static,
) -> Result<T, WarmUpError> {
    tokio::task::spawn_blocking(work).await.map_err(WarmUpError::Panicked)?
}

/// `<pgdata>.warmup`.
fn beside(pgdata: &Path) -> PathBuf {
    let mut name = OsString::from(pgdata);
    name.push(".warmup");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;
