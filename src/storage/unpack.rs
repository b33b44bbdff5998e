//! A stream of tar, plain or compressed, onto the disk.
//!
//! It serves whatever sends a data directory as tar: archives here, and base backups of Neon's or PostgreSQL's.
//! Archives are hostile. Nothing is created, changed or removed outside the directory unpacked into, whatever
//! the entries say; what cannot belong to a data directory is refused with the entry's name and the reason,
//! and ends the work.
//!
//! * A path is walked from the directory's own handle, one component at a time, never through a symlink; a
//!   file is created and never opened, so that no entry can write through what an earlier one has left.
//! * Symlinks point inside: relative, and `..` only in front. Hard links lead to files of the same archive.
//! * Devices, FIFOs, sparse files and whatever else is not a file, directory or link are refused.
//! * Owners and times are ignored; directories get 0700, files 0600, or 0700 when their owner may run them.
//! * Names, sizes and counts are bounded ([`Limits`]), by what the headers say and before anything is read.
//! * The stream is read to its true end: an error after what looks like the end is an error, and so is
//!   anything but zeros there.
//!
//! The work of tar and decompression is done on a blocking thread, which reads a file by itself and is fed with
//! anything else through a bounded channel. Doing it in the runtime, each file operation sent to a pool of
//! threads, took two to three times as long.

mod entries;
mod stream;
mod tree;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::postgres::DataDir;
use crate::storage::Progress;
use entries::Feed;
use stream::Piece;

/// How the tar is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As the first bytes tell.
    #[default]
    Auto,
    /// Not at all.
    Tar,
    /// gzip, of one or more members.
    Gzip,
    /// zstd, of one or more frames.
    Zstd,
}

/// The wire name, as in `storage.format`.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tar => "tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// What an archive may amount to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries, extended headers included.
    pub entries: u64,
    /// Bytes of all files together, and of the unpacked stream.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: limits::UNPACK_ENTRIES, bytes: limits::UNPACK_BYTES }
    }
}

/// How an archive is to be read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The compression.
    pub format: Format,
    /// Directories to drop from the front of each name, as `tar --strip-components` does.
    pub strip_components: usize,
    /// Entries of these names directly in the directory, and what lies below them, are left out. Our own
    /// marker always is.
    pub leave_out: &'static [&'static str],
    /// Zero blocks are skipped and entries may follow them, up to the true end of the stream, which must still
    /// end with one. Otherwise nothing but zeros may follow the first.
    pub ignore_zero_blocks: bool,
    /// Whether the SHA-256 of the stream as it was received is wanted.
    pub digest: bool,
    /// Bounds.
    pub limits: Limits,
}

/// What unpacking came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries that were made: files, directories and links.
    pub entries: u64,
    /// The SHA-256 of the source, if it was asked for.
    pub digest: Option<[u8; 32]>,
}

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// An entry is refused.
    #[error("archive entry {name:?}: {refusal}")]
    Entry {
        /// Its name as it stands in the archive, cut if it is long.
        name: String,
        /// Why.
        refusal: Refusal,
    },
    /// The archive as a whole is not what it should be.
    #[error("the archive {0}")]
    Shape(Shape),
    /// The tar or the compression is damaged.
    #[error("the archive is damaged after entry {after:?}")]
    Damaged {
        /// The last entry that was whole, cut if it is long.
        after: String,
        /// What the decoder says.
        source: io::Error,
    },
    /// Not even the first entry can be read.
    #[error("this is no tar archive, or its beginning is damaged")]
    NoArchive(#[source] io::Error),
    /// The source failed, not the archive.
    #[error("the archive cannot be read")]
    Source(#[source] io::Error),
    /// A file cannot be written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what, within the directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The caller gave up.
    #[error("unpacking was cancelled")]
    Cancelled,
    /// A bug of ours.
    #[error("unpacking panicked")]
    Panicked,
}

/// What is wrong with an archive as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shape {
    /// The stream ends without the mark that every archive ends with.
    #[error("ends without its end mark: it was cut off")]
    CutOff,
    /// Something follows the end mark.
    #[error("is followed by something else than zeros, or by too many of these")]
    Followed,
    /// The format was declared, and is another.
    #[error("was declared to be {declared}, and is not")]
    Undeclared {
        /// What was declared.
        declared: Format,
    },
    /// Compressed in a way that is not read.
    #[error("is compressed by {found}; tar, tar with gzip and tar with zstd are read")]
    Unread {
        /// The program.
        found: &'static str,
    },
    /// Too many entries.
    #[error("has more than {max} entries")]
    Entries {
        /// The most there may be.
        max: u64,
    },
    /// Too long a stream.
    #[error("has more than {max} bytes when unpacked")]
    Bytes {
        /// The most there may be.
        max: u64,
    },
    /// An extended header describes an entry that does not follow.
    #[error("ends after the description of an entry that does not follow")]
    Dangling,
}

/// Why an entry is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Starts with a slash.
    #[error("an absolute path")]
    Absolute,
    /// Has `..` in it.
    #[error("a path with \"..\"")]
    Upwards,
    /// Not UTF-8, or with NUL.
    #[error("a name that is not UTF-8, or has NUL in it")]
    NotText,
    /// A path or a part of it is too long, or has too many parts.
    #[error("a path that is too long or too deep")]
    TooLong,
    /// Nothing is left of the name.
    #[error("a file without a name")]
    Nameless,
    /// A part of its path is there, and no directory: a file, or a symlink, which is not followed.
    #[error("a path through something that is not a directory")]
    NotADirectory,
    /// Something of this name is there.
    #[error("given twice, or in the way of another entry")]
    Twice,
    /// A symlink that leads elsewhere, or could.
    #[error("a symlink that leaves the directory: {target:?}")]
    SymlinkLeaves {
        /// Where to, cut if it is long.
        target: String,
    },
    /// A hard link to something else than a file that came before it.
    #[error("a hard link to {target:?}, which is no file of this archive that came before")]
    HardLinkLeaves {
        /// Where to, cut if it is long.
        target: String,
    },
    /// Not a file, a directory or a link.
    #[error("{what}, which no data directory has")]
    Kind {
        /// What it is.
        what: &'static str,
    },
    /// Its contents end before its size is reached.
    #[error("cut off: {got} of {size} bytes are there")]
    CutOff {
        /// Bytes that came.
        got: u64,
        /// Bytes its header declares.
        size: u64,
    },
    /// With its size, the archive is too large.
    #[error("of {size} bytes, with which the archive exceeds {max} bytes")]
    TooLarge {
        /// Bytes its header declares.
        size: u64,
        /// The most that all files may have.
        max: u64,
    },
    /// A directory or a link with contents.
    #[error("with contents, which only a file has")]
    Contents,
    /// Its extended header is too large, contradicts its header or another one, or cannot be read.
    #[error("an extended header that {what}")]
    Extension {
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Unpacks `source` into a directory, which should be empty but for our marker. What it has made when it fails or is
/// cancelled stays there.
///
/// The directory stays claimed until the work has ended, also when the future is dropped; it then ends at
/// the next chunk.
///
/// # Errors
/// [`UnpackError`]. An error of `source` is handed on in [`UnpackError::Source`].
pub async fn unpack(
    source: impl Stream<Item = io::Result<Bytes>> + Send,
    into: Arc<DataDir>,
    options: Options,
    progress: Arc<Progress>,
    cancel: &CancellationToken,
) -> Result<Unpacked, UnpackError> {
    let (sender, receiver) = mpsc::channel(limits::UNPACK_CHUNKS);
    let token = cancel.child_token();
    let _on_drop = token.clone().drop_guard();
    let work = start(Feed::Pieces(receiver), into, options, progress, &token);
    token.run_until_cancelled(feed(source, sender)).await;
    finish(work).await
}

/// The same from a file, which is read on the thread that unpacks.
///
/// # Errors
/// [`UnpackError`].
pub async fn unpack_file(
    file: File,
    into: Arc<DataDir>,
    options: Options,
    progress: Arc<Progress>,
    cancel: &CancellationToken,
) -> Result<Unpacked, UnpackError> {
    let token = cancel.child_token();
    let _on_drop = token.clone().drop_guard();
    finish(start(Feed::File(file), into, options, progress, &token)).await
}

type Work = JoinHandle<Result<Unpacked, UnpackError>>;

fn start(
    feed: Feed,
    into: Arc<DataDir>,
    options: Options,
    progress: Arc<Progress>,
    token: &CancellationToken,
) -> Work {
    let token = token.clone();
    tokio::task::spawn_blocking(move || entries::unpack(feed, &into, options, progress, token))
}

async fn finish(work: Work) -> Result<Unpacked, UnpackError> {
    match work.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(UnpackError::Panicked),
        Err(_) => Err(UnpackError::Cancelled),
    }
}

/// Sends the source on until it ends or nobody listens. A channel that closes without its last piece was
/// abandoned.
async fn feed(source: impl Stream<Item = io::Result<Bytes>>, sender: mpsc::Sender<Piece>) {
    let mut source = pin!(source);
    loop {
        let next = tokio::select! {
            biased;
            // An unpacker that has failed must not wait for a source that is silent.
            () = sender.closed() => return,
            next = source.next() => next,
        };
        let (piece, last) = match next {
            Some(Ok(chunk)) => (Piece::Data(chunk), false),
            Some(Err(error)) => (Piece::Failed(error), true),
            None => (Piece::End, true),
        };
        if sender.send(piece).await.is_err() || last {
            return;
        }
    }
}

/// A name for an error text: what is hostile may also be long.
fn shown(name: &[u8]) -> String {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(name);
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into_owned(),
    }
}
