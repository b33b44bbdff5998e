//! The file of the journal: where it is, and how it is put there.

use std::fs::{self, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::{Handle, Recording};

/// Characters of the compute id in the default name. It is there for people; a hash makes the name unique.
const NAME: usize = 64;

/// Where the journal is written. Clones are the same file.
#[derive(Clone, Debug)]
pub(super) struct JournalFile {
    path: PathBuf,
    /// The last event in the file. Held while it is written: requests and failures come at the same time.
    written: Arc<Mutex<Option<u64>>>,
}

impl JournalFile {
    /// The file named, or else one in the temporary directory: the same for each life of a compute, so that the
    /// last failure is what is found, and another for each compute.
    pub(super) fn new(named: Option<PathBuf>, compute_id: &str) -> Self {
        let path = named.unwrap_or_else(|| std::env::temp_dir().join(default_name(compute_id)));
        JournalFile { path, written: Arc::default() }
    }

    /// Asks the loop for the journal and writes it, each time this is called.
    pub(super) fn on_demand(&self, handle: &Handle) -> impl Fn() + Send + 'static {
        let (handle, this) = (handle.clone(), self.clone());
        move || {
            let (handle, this) = (handle.clone(), this.clone());
            tokio::spawn(async move {
                if let Ok(recording) = handle.recording().await {
                    this.save_later(recording);
                }
            });
        }
    }

    /// Writes it off the loop.
    pub(super) fn save_later(&self, recording: Recording) {
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.save(&recording));
    }

    /// Writes it, unless something newer was written. That it failed is logged: nothing depends on it.
    pub(super) fn save(&self, recording: &Recording) {
        // A panic while it was held has put nothing in place.
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let last = recording.entries.last().map(|entry| entry.seq);
        if *written > last {
            return;
        }
        let path = self.path.display();
        match replace(&self.path, |file| recording.write(file)) {
            Ok(()) => {
                *written = last;
                tracing::info!(%path, events = recording.entries.len(), "journal written");
            }
            Err(error) => tracing::warn!(%path, %error, "the journal could not be written"),
        }
    }
}

/// `compute_ctl-<id>-<hash>.journal`, with what no file name should have replaced.
fn default_name(compute_id: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = compute_id.chars().take(NAME).map(plain).collect();
    let mut hasher = DefaultHasher::new();
    compute_id.hash(&mut hasher);
    format!("compute_ctl-{name}-{:08x}.journal", hasher.finish() >> 32)
}

/// Puts a new file in the place of whatever is there, whole or not at all, readable by us alone.
///
/// Others may write in the directory too: nothing that is there is opened, and a link is replaced, not followed.
fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<fs::File>) -> io::Result<()>) -> io::Result<()> {
    let half = path.with_file_name(format!(".compute_ctl-{}.journal", uuid::Uuid::new_v4()));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&half)?;
    let mut file = BufWriter::new(file);
    let written = write(&mut file).and_then(|()| file.flush()).and_then(|()| fs::rename(&half, path));
    if written.is_err() {
        let _the_first_error_says_more = fs::remove_file(&half);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn each_compute_has_a_name_of_its_own() {
        assert_ne!(default_name("a/b"), default_name("a_b"));
        assert_eq!(default_name("a/b"), default_name("a/b"));
        assert!(default_name("a/b").starts_with("compute_ctl-a_b-"));
        let (long, other) = ("x".repeat(300), "x".repeat(299));
        assert_ne!(default_name(&long), default_name(&other));
        assert!(default_name(&"é".repeat(300)).len() <= 255, "NAME_MAX");
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("journal"), dir.path().join("precious"));
        fs::write(&target, "precious").unwrap();
        symlink(&target, &path).unwrap();
        replace(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        let metadata = path.symlink_metadata().unwrap();
        assert!(metadata.is_file());
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn what_was_there_stays_when_writing_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        fs::write(&path, "old").unwrap();
        replace(&path, |file| file.write_all(b"half").and(Err(io::ErrorKind::StorageFull.into())))
            .unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half is left");
    }
}
