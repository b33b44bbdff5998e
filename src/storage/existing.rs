//! `existing`: the data directory as it stands; a new cluster only if there is nothing.

use std::fs::File;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Context, Prepared, Storage, StorageError, blocking, initdb, same_version};
use crate::postgres::{ClearRule, Contents, DataDir, Installation};

/// Keeps the data directory across restarts.
///
/// A directory that another kind had filled is kept as well, and from then on counts as data to keep. One that
/// such a kind, or this one, had not finished filling is made anew.
#[derive(Debug)]
pub struct Existing;

impl Storage for Existing {
    fn kind(&self) -> &'static str {
        "existing"
    }

    fn prepare<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Prepared, StorageError>> {
        prepare(context).boxed()
    }

    fn judge<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StorageError>> {
        let (pgdata, installation) = (context.pgdata.clone(), context.installation.clone());
        blocking(&context.cancel, move |_| usable(&pgdata, &installation).map(drop)).boxed()
    }
}

/// What is in the directory, unless it is something that cannot be used.
fn usable(pgdata: &DataDir, installation: &Installation) -> Result<Contents, StorageError> {
    let contents = pgdata.contents()?;
    match &contents {
        Contents::Ours | Contents::Cluster { .. } => same_version(pgdata, installation)?,
        Contents::Empty | Contents::Unfinished => {}
        Contents::Other { .. } => {
            let (path, found) = (pgdata.path().to_owned(), contents.to_string());
            return Err(StorageError::NotACluster { path, found });
        }
    }
    Ok(contents)
}

async fn prepare(context: &Context) -> Result<Prepared, StorageError> {
    let (pgdata, installation) = (context.pgdata.clone(), context.installation.clone());
    let kept = blocking(&context.cancel, move |_| {
        // First of all: a directory that cannot be used is not touched.
        let contents = usable(&pgdata, &installation)?;
        pgdata.ensure_unused()?;
        if matches!(contents, Contents::Empty | Contents::Unfinished) {
            return Ok(false);
        }
        pgdata.tighten()?;
        pgdata.finish_kept()?;
        Ok(true)
    })
    .await?;
    if kept {
        return Ok(Prepared::Kept);
    }
    initdb::fill(context, ClearRule::default()).await?;
    let pgdata = context.pgdata.clone();
    blocking(&context.cancel, move |_| {
        // Nothing was synced so far, neither by initdb nor while copying; these data are meant to last.
        let dir = File::open(pgdata.path()).map_err(StorageError::io("open", pgdata.path()))?;
        rustix::fs::syncfs(dir).map_err(|errno| StorageError::io("sync", pgdata.path())(errno.into()))?;
        Ok(pgdata.finish_kept()?)
    })
    .await?;
    Ok(Prepared::Created)
}
