//! `initdb`: a fresh cluster at each start, cloned from a template that `initdb` made once.
//!
//! A template lives in the cache under a name derived from its *key*: the server's version, the superuser, the
//! options. It is built in a directory of its own beside the final place, gets a file with the key as the very
//! last thing, and is renamed into place. So a template is whole or is not there; of two processes that
//! build the same one, the second finds the place taken, drops its own and uses the first. What a killed
//! process left is told by its lock, which nobody holds any more, and removed.
//!
//! A clone is copied file by file, by several threads; `std::fs::copy` has the kernel share the blocks where
//! the file system can (XFS, Btrfs), and copy inside the kernel elsewhere. Then it gets a system identifier
//! of its own: see [`super::identity`].

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::fcntl::{Flock, FlockArg};
use tokio_util::sync::CancellationToken;

use super::{Context, Phase, Prepared, Storage, StorageError, blocking, identity, kept_for_restart, rule};
use crate::limits;
use crate::postgres::process;
use crate::postgres::{ClearRule, Installation};

/// The file of a template that holds its key, written last.
const COMPLETE: &str = "complete";

/// The cluster inside a template.
const DATA: &str = "data";

/// How names of templates under construction begin.
const BUILDING: &str = ".building-";

/// Wipes the data directory at each start of this process and fills it with a fresh cluster.
#[derive(Debug)]
pub struct Initdb;

impl Storage for Initdb {
    fn kind(&self) -> &'static str {
        "initdb"
    }

    fn prepare<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Prepared, StorageError>> {
        prepare(context).boxed()
    }

    fn judge<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StorageError>> {
        let (pgdata, rule) = (context.pgdata.clone(), rule(context));
        blocking(&context.cancel, move |_| Ok(pgdata.judge(rule)?)).boxed()
    }
}

/// Makes sure that there is a template to clone.
pub(super) async fn ensure_template(context: &Context) -> Result<(), StorageError> {
    Template::new(context).ensure(context).await
}

async fn prepare(context: &Context) -> Result<Prepared, StorageError> {
    if kept_for_restart(context).await? {
        return Ok(Prepared::Kept);
    }
    fill(context, rule(context)).await?;
    let pgdata = context.pgdata.clone();
    blocking(&context.cancel, move |_| Ok(pgdata.finish_disposable()?)).await?;
    Ok(Prepared::Created)
}

/// Clears the directory, as far as `rule` permits, and puts a fresh cluster into it. It is left marked as
/// unfinished; the caller declares what it is.
pub(super) async fn fill(context: &Context, rule: ClearRule) -> Result<(), StorageError> {
    context.progress.enter(Phase::Initializing);
    // Clearing first: it refuses what must not be touched before half a second goes into a template.
    let pgdata = context.pgdata.clone();
    blocking(&context.cancel, move |cancel| Ok(pgdata.clear(rule, cancel)?)).await?;
    let template = Template::new(context);
    template.ensure(context).await?;
    let pgdata = context.pgdata.clone();
    let understood = blocking(&context.cancel, move |cancel| {
        clone(&template.place.join(DATA), pgdata.path(), cancel)?;
        identity::renew(pgdata.path())
    });
    if understood.await? {
        return Ok(());
    }
    // Only a future control file format leads here: a cluster without an identity of its own is not good
    // enough, so this one is made the slow way.
    tracing::warn!("the cluster's control file is of an unknown format: running initdb instead of cloning");
    let pgdata = context.pgdata.clone();
    blocking(&context.cancel, move |cancel| Ok(pgdata.clear(rule, cancel)?)).await?;
    // initdb refuses a directory with our marker in it, so it works one level below.
    let below = context.pgdata.path().join("initdb");
    run_initdb(context, &below).await?;
    let up = context.pgdata.path().to_owned();
    blocking(&context.cancel, move |_| super::move_up(&below, &up)).await
}

/// The arguments besides the directory. Trust for local connections and loopback, as the original's base
/// backups have it; everything else is in `pg_hba.conf` lines added later.
fn arguments(installation: &Installation, superuser: &str) -> Vec<String> {
    // The builtin provider came with 17; 15 and 16 would take ICU if built so.
    let provider = if installation.version().major >= 17 { "builtin" } else { "libc" };
    let fixed = ["--encoding=utf8", "--locale=C.UTF-8", "--no-sync", "--no-instructions", "--auth=trust"];
    let mut arguments: Vec<String> = fixed.map(str::to_owned).into();
    arguments.push(format!("--locale-provider={provider}"));
    arguments.push(format!("--username={superuser}"));
    arguments
}

async fn run_initdb(context: &Context, into: &Path) -> Result<(), StorageError> {
    let mut command = Command::new(context.installation.tool("initdb"));
    command.args(arguments(&context.installation, &context.superuser)).arg("--pgdata").arg(into);
    // Our own working directory may be closed to us, after a start by root from root's home.
    command.current_dir("/");
    // What it prints is read by people and by `is_disk_full`; libpq's variables are none of its business.
    command.env("LC_ALL", "C.UTF-8").env_remove("PGDATA").env_remove("PGOPTIONS");
    let output = process::run(command, &context.cancel, limits::INITDB).await?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(5)..];
    Err(StorageError::Initdb { output: format!("{} ({})", tail.join("; "), output.status) })
}

/// A template's key and place.
#[derive(Clone, Debug)]
struct Template {
    cache: PathBuf,
    place: PathBuf,
    key: String,
}

impl Template {
    fn new(context: &Context) -> Self {
        let version = context.installation.version();
        let arguments = arguments(&context.installation, &context.superuser).join(" ");
        let key = format!("PostgreSQL {version}\n{arguments}\n");
        // Another hash, say of another build of this program, only means another name: the key is compared.
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let name = format!("initdb-{}-{:016x}", version.major, hasher.finish());
        // Absolute, because initdb runs elsewhere. It fails for an empty path only, which fails again below.
        let cache = std::path::absolute(&context.cache).unwrap_or_else(|_| context.cache.clone());
        Self { place: cache.join(name), cache, key }
    }

    fn is_whole(&self) -> bool {
        fs::read_to_string(self.place.join(COMPLETE)).is_ok_and(|key| key == self.key)
    }

    /// Makes sure that the template stands in its place.
    async fn ensure(&self, context: &Context) -> Result<(), StorageError> {
        let this = self.clone();
        let building = blocking(&context.cancel, move |_| {
            let cache = &this.cache;
            if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(cache) {
                return Err(StorageError::io("make directory", cache)(error));
            }
            owned_by_us(cache)?;
            if this.is_whole() {
                owned_by_us(&this.place)?;
                return Ok(None);
            }
            remove_abandoned(cache);
            Building::begin(cache).map(Some)
        });
        let Some(building) = building.await? else { return Ok(()) };
        tracing::info!(template = %self.place.display(), "making a template cluster");
        run_initdb(context, &building.path.join(DATA)).await?;
        let this = self.clone();
        blocking(&context.cancel, move |_| this.put_in_place(building)).await
    }

    fn put_in_place(&self, building: Building) -> Result<(), StorageError> {
        let key = building.path.join(COMPLETE);
        fs::write(&key, &self.key).map_err(StorageError::io("write", &key))?;
        loop {
            let error = match fs::rename(&building.path, &self.place) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let taken = matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::AlreadyExists
                    | io::ErrorKind::NotADirectory
            );
            if !taken {
                return Err(StorageError::io("put in place template", &self.place)(error));
            }
            if self.is_whole() {
                // Somebody was faster; ours is removed by being dropped.
                return Ok(());
            }
            // Something broken is in the way. It goes under a name that the next clean-up takes as well.
            let aside = self.cache.join(format!("{BUILDING}{}", uuid::Uuid::new_v4()));
            match fs::rename(&self.place, &aside) {
                Ok(()) => remove_any(&aside),
                // Somebody else has just moved it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StorageError::io("move aside template", &self.place)(error)),
            }
        }
    }
}

/// A template under construction. Its lock tells it from one that a killed process left; dropped before it was
/// put in place, it is removed.
#[derive(Debug)]
struct Building {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Building {
    fn begin(cache: &Path) -> Result<Self, StorageError> {
        loop {
            let path = cache.join(format!("{BUILDING}{}", uuid::Uuid::new_v4()));
            DirBuilder::new().mode(0o700).create(&path).map_err(StorageError::io("make directory", &path))?;
            let dir = match File::open(&path) {
                Ok(dir) => dir,
                // A clean-up took it between these two lines, before it was locked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StorageError::io("open", &path)(error)),
            };
            match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
                Ok(lock) if path.exists() => return Ok(Self { path, _lock: lock }),
                Ok(_) | Err((_, nix::errno::Errno::EWOULDBLOCK)) => {}
                Err((_, errno)) => return Err(StorageError::io("lock", &path)(errno.into())),
            }
        }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if self.path.exists() {
            remove_any(&self.path);
        }
    }
}

fn remove_abandoned(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let named = path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(BUILDING));
        if named
            && let Ok(dir) = File::open(&path)
            && let Ok(_lock) = Flock::lock(dir, FlockArg::LockExclusiveNonblock)
        {
            remove_any(&path);
        }
    }
}

fn remove_any(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = removed {
        // The next clean-up tries again; a leftover costs disk space, nothing else.
        tracing::warn!(path = %path.display(), %error, "cannot remove an abandoned template");
    }
}

fn owned_by_us(path: &Path) -> Result<(), StorageError> {
    let owner = fs::metadata(path).map_err(StorageError::io("look at", path))?.uid();
    if owner == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(StorageError::CacheNotOurs { path: path.to_owned(), owner })
}

/// Copies a tree of directories and plain files, which is all that a template holds, into a directory.
fn clone(from: &Path, to: &Path, cancel: &CancellationToken) -> Result<(), StorageError> {
    let mut files = Vec::new();
    plant(from, to, &mut files)?;
    // Large files first, or the one that comes last is copied while the other threads have nothing to do.
    files.sort_by_key(|(length, _, _)| std::cmp::Reverse(*length));
    let (next, stop, failed) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
    let work = || {
        while !stop.load(Ordering::Relaxed)
            && let Some((_, from, to)) = files.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let copied = match fs::copy(from, to) {
                _ if cancel.is_cancelled() => Err(StorageError::Cancelled),
                Ok(_) => Ok(()),
                Err(error) => Err(StorageError::io("copy a template's file to", to)(error)),
            };
            if let Err(error) = copied {
                stop.store(true, Ordering::Relaxed);
                failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..limits::CLONE_THREADS {
            scope.spawn(work);
        }
        work();
    });
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Makes the directories and lists the files with their sizes.
fn plant(from: &Path, to: &Path, files: &mut Vec<(u64, PathBuf, PathBuf)>) -> Result<(), StorageError> {
    for entry in fs::read_dir(from).map_err(StorageError::io("list", from))? {
        let entry = entry.map_err(StorageError::io("list", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata().map_err(StorageError::io("look at", &source))?;
        if metadata.is_dir() {
            let made = DirBuilder::new().mode(0o700).create(&target);
            made.map_err(StorageError::io("make directory", &target))?;
            plant(&source, &target, files)?;
        } else {
            files.push((metadata.len(), source, target));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
