//! Directories for work in progress, in the cache.
//!
//! What a killed process left is told by its lock, which nobody holds any more, and removed by the next one.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::StorageError;

/// How their names begin.
const PREFIX: &str = ".building-";

/// Makes sure that there is a cache, and that it is ours.
pub(super) fn prepare(cache: &Path) -> Result<(), StorageError> {
    if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(cache) {
        return Err(StorageError::io("make directory", cache)(error));
    }
    owned_by_us(cache)
}

/// A name in a cache that nobody else uses; whatever stands there later goes with the next clean-up.
pub(super) fn name(cache: &Path) -> PathBuf {
    cache.join(format!("{PREFIX}{}", uuid::Uuid::new_v4()))
}

/// A directory that nobody else knows of, mode 0700. Its lock tells it from one that a killed process left; dropped
/// where it was made, it is removed.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) path: PathBuf,
    _lock: Flock<File>,
}

impl Scratch {
    /// In a cache that was [prepared](prepare).
    pub(super) fn begin(cache: &Path) -> Result<Self, StorageError> {
        loop {
            let path = name(cache);
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

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.path.exists() {
            remove_any(&self.path);
        }
    }
}

/// Removes what killed processes left in a cache.
pub(super) fn remove_abandoned(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let named = path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(PREFIX));
        if named
            && let Ok(dir) = File::open(&path)
            && let Ok(_lock) = Flock::lock(dir, FlockArg::LockExclusiveNonblock)
        {
            remove_any(&path);
        }
    }
}

/// Removes a file or a tree, or says that it could not.
pub(super) fn remove_any(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = removed {
        // The next clean-up tries again; a leftover costs disk space, nothing else.
        tracing::warn!(path = %path.display(), %error, "cannot remove what is not needed any more");
    }
}

/// Refuses what belongs to somebody else, who could put anything there.
pub(super) fn owned_by_us(path: &Path) -> Result<(), StorageError> {
    let owner = fs::metadata(path).map_err(StorageError::io("look at", path))?.uid();
    if owner == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(StorageError::CacheNotOurs { path: path.to_owned(), owner })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_removed_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(format!("{PREFIX}left"));
        fs::create_dir_all(left.join("data")).unwrap();
        let live = Scratch::begin(dir.path()).unwrap();
        remove_abandoned(dir.path());
        assert!(!left.exists());
        assert!(live.path.exists());
    }

    #[test]
    fn a_cache_of_somebody_elses_is_refused() {
        let error = owned_by_us(Path::new("/proc/1")).err();
        let ours = nix::unistd::geteuid().as_raw() == fs::metadata("/proc/1").unwrap().uid();
        assert_eq!(error.is_none(), ours);
    }
}
