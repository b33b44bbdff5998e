//! Configuration files on disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

const CONF_FILE: &str = "postgresql.conf";

/// The file which `postgresql.conf` includes last, if it exists.
pub const OVERRIDE_FILE: &str = "compute_ctl_temp_override.conf";

/// Without it the limit on the cluster's size could stop the very work that makes room.
const NO_SIZE_LIMIT: &str = "neon.max_cluster_size=-1\n";

const SUBSCRIBERS_ENABLED: &str = "neon.disable_logical_replication_subscribers=false";

/// A configuration file could not be written.
#[derive(Debug, Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Writes `postgresql.conf` of a data directory.
///
/// # Errors
/// [`WriteError`] names the file.
pub fn write(pgdata: &Path, text: &str) -> Result<(), WriteError> {
    write_atomic(&pgdata.join(CONF_FILE), text)
}

/// What `postgresql.conf` of a data directory holds, if there is one. Bytes, not text: comments of a file that
/// somebody has edited may be in any encoding.
///
/// # Errors
/// If it cannot be read.
pub fn read(pgdata: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(pgdata.join(CONF_FILE)) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes `postgresql.conf` of a data directory what [`read`] said.
///
/// # Errors
/// [`WriteError`] names the file.
pub fn restore(pgdata: &Path, content: Option<&[u8]>) -> Result<(), WriteError> {
    let path = pgdata.join(CONF_FILE);
    let done = match content {
        Some(content) => replace(&path, content),
        None => fs::remove_file(&path),
    };
    done.map_err(|source| WriteError { path, source })
}

/// Whether a file holds this rendered text, or did until [`enable_subscribers`] added its line.
pub fn holds(content: &[u8], text: &str) -> bool {
    let appended = || content.strip_suffix(SUBSCRIBERS_ENABLED.as_bytes())?.strip_suffix(b"\n");
    content == text.as_bytes() || appended() == Some(text.as_bytes())
}

/// Lifts the limit on the cluster's size while roles and databases are applied. In force after a reload.
///
/// # Errors
/// [`WriteError`] names the file.
pub fn lift_size_limit(pgdata: &Path) -> Result<(), WriteError> {
    write_atomic(&pgdata.join(OVERRIDE_FILE), NO_SIZE_LIMIT)
}

/// Puts settings into the override file, where they win over `postgresql.conf`; returns whether they were not there
/// already. In force after a reload.
///
/// # Errors
/// [`WriteError`] names the file; a value that no line can hold is one, too.
pub fn override_with(pgdata: &Path, settings: &[(&str, &str)]) -> Result<bool, WriteError> {
    let path = pgdata.join(OVERRIDE_FILE);
    let mut text = String::new();
    for (name, value) in settings {
        match super::render::line(name, value) {
            Ok(line) => text.push_str(&line),
            Err(error) => {
                let source = io::Error::new(io::ErrorKind::InvalidInput, error);
                return Err(WriteError { path, source });
            }
        }
    }
    let new = overridden(pgdata) != text;
    if new {
        write_atomic(&path, &text)?;
    }
    Ok(new)
}

/// What the override file holds; nothing where there is none, or none of ours.
pub fn overridden(pgdata: &Path) -> String {
    fs::read_to_string(pgdata.join(OVERRIDE_FILE)).unwrap_or_default()
}

/// Puts back what [`overridden`] said. In force after a reload.
///
/// # Errors
/// [`WriteError`] names the file.
pub fn override_again(pgdata: &Path, text: &str) -> Result<(), WriteError> {
    write_atomic(&pgdata.join(OVERRIDE_FILE), text)
}

/// Empties the override file, which stays in place. In force after a reload.
///
/// # Errors
/// [`WriteError`] names the file.
pub fn clear_override(pgdata: &Path) -> Result<(), WriteError> {
    write_atomic(&pgdata.join(OVERRIDE_FILE), "")
}

/// Lets logical replication subscribers run again, once inherited subscriptions are dropped: a line after
/// everything else in `postgresql.conf`. In force after a reload.
///
/// # Errors
/// [`WriteError`] names the file.
pub fn enable_subscribers(pgdata: &Path) -> Result<(), WriteError> {
    append_line(&pgdata.join(CONF_FILE), SUBSCRIBERS_ENABLED).map(drop)
}

/// Adds a line to a file unless an identical one is there; returns whether it was added. A missing file is
/// made. The line goes after a line feed when the file is not empty, and none follows it, as the original
/// does.
///
/// # Errors
/// [`WriteError`] names the file.
pub fn append_line(path: &Path, line: &str) -> Result<bool, WriteError> {
    let mut text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(WriteError { path: path.to_owned(), source }),
    };
    // Bytes, not text: comments of an existing file may be in any encoding.
    if text.split(|byte| *byte == b'\n').any(|present| present == line.as_bytes()) {
        return Ok(false);
    }
    if !text.is_empty() {
        text.push(b'\n');
    }
    text.extend_from_slice(line.as_bytes());
    replace(path, &text).map_err(|source| WriteError { path: path.to_owned(), source })?;
    Ok(true)
}

/// Replaces a file in one step: a reader, such as a server that is told to reload, sees the old text or the
/// new one and never a part. Mode 0600; the owner is the directory's, so that a supervisor started as root
/// writes files which the unprivileged server can read. Not synchronised to disk: every start writes anew.
///
/// # Errors
/// [`WriteError`] names the file.
pub fn write_atomic(path: &Path, text: &str) -> Result<(), WriteError> {
    replace(path, text.as_bytes()).map_err(|source| WriteError { path: path.to_owned(), source })
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let no_file = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().ok_or_else(no_file)?.to_owned();
    name.push(format!(".{}-{}.tmp", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed)));
    let temporary = directory.join(name);
    let written = fill(&temporary, directory, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report; what is left over is overwritten by nobody.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn fill(temporary: &Path, directory: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(temporary)?;
    let owner = fs::metadata(directory)?;
    let own = file.metadata()?;
    if (owner.uid(), owner.gid()) != (own.uid(), own.gid()) && own.uid() == 0 {
        fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    file.write_all(content)
}
