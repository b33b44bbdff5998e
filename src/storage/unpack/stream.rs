//! From pieces of a source to the bytes of a tar.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use super::{Format, Shape, UnpackError};
use crate::limits;
use crate::storage::Progress;

/// What a source sends.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    /// There is no more, and that is right.
    End,
    Failed(io::Error),
}

/// Enough to know every format by.
const MAGIC: usize = 6;

/// What a reader cannot tell in an `io::Error` that passes through decoders: they may swallow or rewrap it.
#[derive(Clone, Default)]
pub(super) struct Trouble(Rc<RefCell<Option<UnpackError>>>);

impl Trouble {
    /// Remembers the first error; the one returned only has to stop whoever reads.
    fn set(&self, error: UnpackError) -> io::Error {
        self.0.borrow_mut().get_or_insert(error);
        io::Error::other("the stream was interrupted")
    }

    pub(super) fn take(&self) -> Option<UnpackError> {
        self.0.borrow_mut().take()
    }
}

/// What is noted of all that is received.
#[derive(Clone)]
pub(super) struct Notes {
    pub(super) digest: Rc<RefCell<Option<Sha256>>>,
    pub(super) progress: Arc<Progress>,
    pub(super) trouble: Trouble,
}

impl Notes {
    fn take_down(&self, chunk: &[u8]) {
        self.progress.add_received(chunk.len() as u64);
        if let Some(digest) = self.digest.borrow_mut().as_mut() {
            digest.update(chunk);
        }
    }
}

/// A source as a reader, on the blocking thread.
pub(super) trait Source: BufRead {
    /// The first bytes, which stay to be read. Fewer than [`MAGIC`] only when there are no more.
    fn peek(&mut self) -> io::Result<&[u8]>;
}

/// A file, read where it is unpacked: handed over from another thread it would be copied twice more.
pub(super) struct Noted {
    file: File,
    notes: Notes,
}

impl Noted {
    pub(super) fn source(file: File, notes: Notes) -> BufReader<Self> {
        BufReader::with_capacity(limits::UNPACK_CHUNK, Self { file, notes })
    }
}

impl Read for Noted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            Ok(length) => {
                self.notes.take_down(&buffer[..length]);
                Ok(length)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => Err(self.notes.trouble.set(UnpackError::Source(error))),
        }
    }
}

impl Source for BufReader<Noted> {
    fn peek(&mut self) -> io::Result<&[u8]> {
        // A file gives less than is asked for at its end only.
        self.fill_buf()
    }
}

/// Pieces from elsewhere.
pub(super) struct Pieces {
    receiver: Receiver<Piece>,
    current: Bytes,
    ended: bool,
    notes: Notes,
}

impl Pieces {
    pub(super) fn new(receiver: Receiver<Piece>, notes: Notes) -> Self {
        Self { receiver, current: Bytes::new(), ended: false, notes }
    }

    fn receive(&mut self) -> io::Result<Bytes> {
        match self.receiver.blocking_recv() {
            Some(Piece::Data(chunk)) => {
                self.notes.take_down(&chunk);
                Ok(chunk)
            }
            Some(Piece::End) => {
                self.ended = true;
                Ok(Bytes::new())
            }
            Some(Piece::Failed(error)) => Err(self.notes.trouble.set(UnpackError::Source(error))),
            None => Err(self.notes.trouble.set(UnpackError::Cancelled)),
        }
    }
}

impl Source for Pieces {
    fn peek(&mut self) -> io::Result<&[u8]> {
        while self.current.len() < MAGIC && !self.ended {
            let more = self.receive()?;
            let mut joined = BytesMut::from(&self.current[..]);
            joined.extend_from_slice(&more);
            self.current = joined.freeze();
        }
        Ok(&self.current)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            self.current = self.receive()?;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// What the first bytes of a stream tell.
fn recognise(magic: &[u8]) -> Result<Format, Shape> {
    let begins = |with: &[u8]| magic.starts_with(with);
    // A skippable frame of zstd has any of sixteen last bytes, which come first.
    let skippable = magic.len() >= 4 && magic[0] & 0xf0 == 0x50 && magic[1..4] == [0x2a, 0x4d, 0x18];
    if begins(&[0x1f, 0x8b]) {
        Ok(Format::Gzip)
    } else if begins(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable {
        Ok(Format::Zstd)
    } else if begins(b"\xfd7zXZ\0") {
        Err(Shape::Unread { found: "xz" })
    } else if begins(b"BZh") {
        Err(Shape::Unread { found: "bzip2" })
    } else if begins(&[0x04, 0x22, 0x4d, 0x18]) {
        Err(Shape::Unread { found: "lz4" })
    } else if begins(b"PK\x03\x04") {
        Err(Shape::Unread { found: "zip" })
    } else {
        Ok(Format::Tar)
    }
}

/// The tar inside.
pub(super) fn decode(mut source: Box<dyn Source>, declared: Format) -> Result<Box<dyn Read>, UnpackError> {
    let found = match source.peek() {
        Ok(magic) => recognise(magic),
        // Both are told by the trouble that the caller looks at first.
        Err(error) => return Err(UnpackError::NoArchive(error)),
    };
    let format = match declared {
        Format::Auto => found.map_err(UnpackError::Shape)?,
        // A tar begins with a name, and a name may begin with anything.
        Format::Tar => Format::Tar,
        declared if found == Ok(declared) => declared,
        declared => return Err(UnpackError::Shape(Shape::Undeclared { declared })),
    };
    // Headers are read 512 bytes at a time, which is too little for a decoder's call.
    Ok(match format {
        Format::Gzip => Box::new(BufReader::with_capacity(limits::UNPACK_CHUNK, MultiGzDecoder::new(source))),
        Format::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(source).map_err(UnpackError::NoArchive)?;
            decoder.window_log_max(limits::UNPACK_ZSTD_WINDOW).map_err(UnpackError::NoArchive)?;
            Box::new(BufReader::with_capacity(limits::UNPACK_CHUNK, decoder))
        }
        Format::Auto | Format::Tar => source,
    })
}

/// Counts what is read, and ends when it is too much or no longer wanted: of a few bytes of source, a decoder
/// can make any amount.
pub(super) struct Counted {
    inner: Box<dyn Read>,
    count: Rc<Cell<u64>>,
    max: u64,
    cancel: CancellationToken,
    trouble: Trouble,
}

impl Counted {
    pub(super) fn new(
        inner: Box<dyn Read>,
        count: Rc<Cell<u64>>,
        max: u64,
        cancel: CancellationToken,
        trouble: Trouble,
    ) -> Self {
        Self { inner, count, max, cancel, trouble }
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(self.trouble.set(UnpackError::Cancelled));
        }
        let length = self.inner.read(buffer)?;
        let count = self.count.get().saturating_add(length as u64);
        self.count.set(count);
        if count > self.max {
            return Err(self.trouble.set(UnpackError::Shape(Shape::Bytes { max: self.max })));
        }
        Ok(length)
    }
}
