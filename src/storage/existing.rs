//! `existing`: the data directory as it stands; a new cluster only if there is nothing.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::role::{self, Role};
use super::{Context, Prepared, Storage, StorageError, blocking, initdb, same_version};
use crate::postgres::{ClearRule, Contents, DataDir, Installation};

/// Keeps the data directory across restarts.
///
/// A directory that another kind had filled is kept as well, and from then on counts as data to keep. One that
/// such a kind, or this one, had not finished filling is made anew.
///
/// A cluster becomes a standby when the spec says so, and stays one until it has been promoted: a spec for a
/// primary, which is also one that does not name a mode, is refused on a standby's directory.
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
        let (pgdata, installation, role) =
            (context.pgdata.clone(), context.installation.clone(), context.role);
        blocking(&context.cancel, move |_| usable(&pgdata, &installation, role).map(drop)).boxed()
    }
}

/// What is in the directory, unless it is something that cannot be used.
fn usable(pgdata: &DataDir, installation: &Installation, role: Role) -> Result<Contents, StorageError> {
    let contents = pgdata.contents()?;
    match &contents {
        Contents::Ours | Contents::Cluster { .. } => {
            same_version(pgdata, installation)?;
            role::judge_existing(pgdata.path(), role)?;
        }
        Contents::Empty | Contents::Unfinished if role == Role::Standby => {
            return Err(StorageError::NoStandby { path: pgdata.path().to_owned() });
        }
        Contents::Empty | Contents::Unfinished => {}
        Contents::Other { .. } => {
            let (path, found) = (pgdata.path().to_owned(), contents.to_string());
            return Err(StorageError::NotACluster { path, found });
        }
    }
    Ok(contents)
}

async fn prepare(context: &Context) -> Result<Prepared, StorageError> {
    let (pgdata, installation, role) = (context.pgdata.clone(), context.installation.clone(), context.role);
    let kept = blocking(&context.cancel, move |_| {
        // First of all: a directory that cannot be used is not touched.
        let contents = usable(&pgdata, &installation, role)?;
        pgdata.ensure_unused()?;
        if matches!(contents, Contents::Empty | Contents::Unfinished) {
            return Ok(false);
        }
        if role == Role::Standby {
            role::stand_by(pgdata.path())?;
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
        super::sync(pgdata.path())?;
        Ok(pgdata.finish_kept()?)
    })
    .await?;
    Ok(Prepared::Created)
}
