//! From a tar's headers to files: what each entry is, and whether it may be.
//!
//! The reader of headers is used in its raw mode: in the other one it would take extended headers of any size
//! into memory, and follow their sizes where they contradict the header.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::Read;
use std::rc::Rc;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType, PaxExtensions};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use super::stream::{Counted, Noted, Notes, Piece, Pieces, Source, Trouble, decode};
use super::tree::{self, Tree, TreeError};
use super::{Options, Refusal, Shape, UnpackError, Unpacked, shown};
use crate::limits;
use crate::postgres::DataDir;
use crate::postgres::pgdata::{MARKER, MARKER_NEW};
use crate::storage::Progress;

const BLOCK: u64 = 512;

/// Where the bytes come from.
pub(super) enum Feed {
    Pieces(Receiver<Piece>),
    File(File),
}

/// Unpacks a feed. Blocks.
pub(super) fn unpack(
    feed: Feed,
    into: &DataDir,
    options: Options,
    progress: Arc<Progress>,
    cancel: CancellationToken,
) -> Result<Unpacked, UnpackError> {
    let trouble = Trouble::default();
    let digest = Rc::new(RefCell::new(options.digest.then(Sha256::new)));
    let notes = Notes { digest: digest.clone(), progress: progress.clone(), trouble: trouble.clone() };
    let source: Box<dyn Source> = match feed {
        Feed::Pieces(receiver) => Box::new(Pieces::new(receiver, notes)),
        Feed::File(file) => Box::new(Noted::source(file, notes)),
    };
    let unpacked = read(source, into, &options, &progress, cancel, &trouble);
    // Whatever the decoders made of it, this is the cause.
    if let Some(error) = trouble.take() {
        return Err(error);
    }
    let entries = unpacked?;
    let digest = digest.borrow_mut().take().map(|digest| digest.finalize().into());
    Ok(Unpacked { entries, digest })
}

fn read(
    source: Box<dyn Source>,
    into: &DataDir,
    options: &Options,
    progress: &Progress,
    cancel: CancellationToken,
    trouble: &Trouble,
) -> Result<u64, UnpackError> {
    let count = Rc::new(Cell::new(0));
    // What is not the contents of files is bounded by the number of entries.
    let beside = options.limits.entries.saturating_mul(limits::UNPACK_EXTENSION + 2 * BLOCK);
    let max = options.limits.bytes.saturating_add(beside).saturating_add(limits::UNPACK_PADDING);
    let tar = decode(source, options.format)?;
    let mut archive = Archive::new(Counted::new(tar, count.clone(), max, cancel, trouble.clone()));
    archive.set_ignore_zeros(options.ignore_zero_blocks);
    let mut unpacker = Unpacker {
        tree: Tree::open(into.path())?,
        options,
        progress,
        buffer: vec![0; limits::UNPACK_CHUNK],
        seen: 0,
        made: 0,
        bytes: 0,
        last: String::new(),
        described: Described::default(),
    };
    let end = unpacker.all(&mut archive)?;
    // The reader of headers takes the end of the stream for the end of the archive.
    if count.get() <= end {
        return Err(UnpackError::Shape(Shape::CutOff));
    }
    let Unpacker { last: after, mut buffer, made, .. } = unpacker;
    let mut rest = archive.into_inner();
    let mut padding = 0;
    loop {
        let length =
            rest.read(&mut buffer).map_err(|source| UnpackError::Damaged { after: after.clone(), source })?;
        padding += length as u64;
        if buffer[..length].iter().any(|byte| *byte != 0) || padding > limits::UNPACK_PADDING {
            return Err(UnpackError::Shape(Shape::Followed));
        }
        if length == 0 {
            return Ok(made);
        }
    }
}

struct Unpacker<'a> {
    tree: Tree,
    options: &'a Options,
    progress: &'a Progress,
    buffer: Vec<u8>,
    /// Headers so far.
    seen: u64,
    /// Entries made so far.
    made: u64,
    /// Bytes of files so far, by their headers.
    bytes: u64,
    /// The name of the last entry that was whole.
    last: String,
    described: Described,
}

/// What extended headers say about the entry that follows them.
#[derive(Default)]
struct Described {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    any: bool,
}

impl Unpacker<'_> {
    /// Makes all entries, and tells where in the stream the last one ends.
    fn all(&mut self, archive: &mut Archive<Counted>) -> Result<u64, UnpackError> {
        let mut end = 0;
        let entries = archive.entries().map_err(UnpackError::NoArchive)?;
        for entry in entries.raw(true) {
            let mut entry = entry.map_err(|source| match self.seen {
                0 => UnpackError::NoArchive(source),
                _ => UnpackError::Damaged { after: self.last.clone(), source },
            })?;
            self.seen += 1;
            if self.seen > self.options.limits.entries {
                return Err(UnpackError::Shape(Shape::Entries { max: self.options.limits.entries }));
            }
            end = entry.raw_file_position().saturating_add(entry.size().next_multiple_of(BLOCK));
            self.one(&mut entry)?;
        }
        if self.described.any {
            return Err(UnpackError::Shape(Shape::Dangling));
        }
        Ok(end)
    }

    fn one(&mut self, entry: &mut Entry<'_, Counted>) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        let own_name = entry.header().path_bytes().into_owned();
        let refused = |name: &[u8]| {
            let name = shown(name);
            move |refusal| UnpackError::Entry { name, refusal }
        };
        let extension = matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        );
        if extension {
            let data = self.extension(entry, &own_name)?;
            return self.described.take_in(kind, data).map_err(refused(&own_name));
        }
        let described = std::mem::take(&mut self.described);
        let name = described.name.unwrap_or(own_name);
        let size = entry.size();
        if described.size.is_some_and(|said| said != size) {
            let refusal = Refusal::Extension { what: "contradicts the size in the header" };
            return Err(refused(&name)(refusal));
        }
        let link = described.link.or_else(|| entry.header().link_name_bytes().map(Into::into));
        let member = self.member(kind, &name, link.as_deref().unwrap_or_default(), size);
        let member = member.map_err(refused(&name))?;
        self.last = shown(&name);
        let Some(Member { path, kind }) = member else { return Ok(()) };
        let tree_error = |error: TreeError| error.of(&shown(&name), &path);
        match kind {
            Kind::Directory => self.tree.directory(&path).map_err(tree_error)?,
            Kind::Symlink { target } => self.tree.symlink(&path, &target).map_err(tree_error)?,
            Kind::HardLink { target } => self.tree.hard_link(&path, &target).map_err(tree_error)?,
            Kind::File => {
                let max = self.options.limits.bytes;
                if size > max - self.bytes {
                    return Err(refused(&name)(Refusal::TooLarge { size, max }));
                }
                self.bytes += size;
                self.file(entry, &name, &path, size)?;
            }
        }
        self.made += 1;
        Ok(())
    }

    fn file(
        &mut self,
        entry: &mut Entry<'_, Counted>,
        name: &[u8],
        path: &[String],
        size: u64,
    ) -> Result<(), UnpackError> {
        let tree_error = |error: TreeError| error.of(&shown(name), path);
        let executable = entry.header().mode().is_ok_and(|mode| mode & 0o100 != 0);
        let mut file = self.tree.file(path, executable).map_err(tree_error)?;
        let mut got = 0;
        while got < size {
            let length = entry
                .read(&mut self.buffer)
                .map_err(|source| UnpackError::Damaged { after: shown(name), source })?;
            if length == 0 {
                let refusal = Refusal::CutOff { got, size };
                return Err(UnpackError::Entry { name: shown(name), refusal });
            }
            tree::write(&mut file, &self.buffer[..length]).map_err(tree_error)?;
            got += length as u64;
            self.progress.add_written(length as u64);
        }
        self.progress.add_file();
        Ok(())
    }

    /// The contents of an extended header.
    fn extension(&self, entry: &mut Entry<'_, Counted>, name: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let refused = |refusal| Err(UnpackError::Entry { name: shown(name), refusal });
        let size = entry.size();
        if size > limits::UNPACK_EXTENSION {
            return refused(Refusal::Extension { what: "is too large" });
        }
        let mut data = Vec::new();
        entry
            .read_to_end(&mut data)
            .map_err(|source| UnpackError::Damaged { after: self.last.clone(), source })?;
        match data.len() as u64 {
            got if got < size => refused(Refusal::CutOff { got, size }),
            _ => Ok(data),
        }
    }

    /// What an entry is to become; `None` for one that is left out.
    fn member(
        &self,
        kind: EntryType,
        name: &[u8],
        link: &[u8],
        size: u64,
    ) -> Result<Option<Member>, Refusal> {
        let path = parts(name, self.options.strip_components)?;
        let reserved = |path: &[String]| {
            path.first().is_some_and(|first| {
                let is = |name: &&str| *name == first;
                [MARKER, MARKER_NEW].iter().any(is) || self.options.leave_out.iter().any(is)
            })
        };
        let kind = match kind {
            // Before there was a type for directories, they were files with a slash at the end.
            EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => {
                let leaves = || Refusal::SymlinkLeaves { target: shown(link) };
                let lands = lands(link, &path).ok_or_else(leaves)?;
                // Whoever writes there would write our marker.
                if reserved(&lands) {
                    return Err(leaves());
                }
                Kind::Symlink { target: String::from_utf8(link.to_vec()).map_err(|_| leaves())? }
            }
            EntryType::Link => {
                let leaves = || Refusal::HardLinkLeaves { target: shown(link) };
                let target = parts(link, self.options.strip_components).map_err(|_| leaves())?;
                if reserved(&target) {
                    return Err(leaves());
                }
                Kind::HardLink { target }
            }
            EntryType::Char | EntryType::Block => return Err(Refusal::Kind { what: "a device" }),
            EntryType::Fifo => return Err(Refusal::Kind { what: "a FIFO" }),
            EntryType::GNUSparse => return Err(Refusal::Kind { what: "a sparse file" }),
            _ => return Err(Refusal::Kind { what: "an entry of an unknown type" }),
        };
        if !matches!(kind, Kind::File) && size > 0 {
            return Err(Refusal::Contents);
        }
        if matches!(kind, Kind::File) && path.is_empty() {
            return Err(Refusal::Nameless);
        }
        Ok((!reserved(&path)).then_some(Member { path, kind }))
    }
}

struct Member {
    path: Vec<String>,
    kind: Kind,
}

enum Kind {
    File,
    Directory,
    Symlink { target: String },
    HardLink { target: Vec<String> },
}

impl Described {
    fn take_in(&mut self, kind: EntryType, mut data: Vec<u8>) -> Result<(), Refusal> {
        match kind {
            EntryType::GNULongName | EntryType::GNULongLink => {
                while data.last() == Some(&0) {
                    data.pop();
                }
                let slot = if kind == EntryType::GNULongName { &mut self.name } else { &mut self.link };
                self.any = true;
                once(slot, data)
            }
            EntryType::XHeader => {
                self.any = true;
                self.pax(&data)
            }
            // Of all entries that follow: dates and comments may be, names may not.
            _ => {
                let mut all = Self::default();
                all.pax(&data)?;
                match all {
                    Self { name: None, link: None, size: None, .. } => Ok(()),
                    _ => Err(Refusal::Extension { what: "gives all entries one name or size" }),
                }
            }
        }
    }

    fn pax(&mut self, data: &[u8]) -> Result<(), Refusal> {
        let unreadable = || Refusal::Extension { what: "cannot be read" };
        // The reader would take an empty line for the end, and say nothing about the rest.
        if data.first() == Some(&b'\n') || data.windows(2).any(|pair| pair == b"\n\n") {
            return Err(unreadable());
        }
        for record in PaxExtensions::new(data) {
            let record = record.map_err(|_| unreadable())?;
            match record.key().map_err(|_| unreadable())? {
                "path" => once(&mut self.name, record.value_bytes().to_vec())?,
                "linkpath" => once(&mut self.link, record.value_bytes().to_vec())?,
                "size" => {
                    let size = record.value().ok().and_then(|size| size.parse().ok());
                    once(&mut self.size, size.ok_or_else(unreadable)?)?;
                }
                key if key.starts_with("GNU.sparse.") => return Err(Refusal::Kind { what: "a sparse file" }),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Two that say the same thing are read in this way by one program, and in that by another.
fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Refusal> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Refusal::Extension { what: "repeats what was said before" }),
    }
}

/// The parts of a path, as far as it may be one.
fn parts(name: &[u8], strip: usize) -> Result<Vec<String>, Refusal> {
    if name.len() > limits::UNPACK_NAME {
        return Err(Refusal::TooLong);
    }
    let text = std::str::from_utf8(name).ok().filter(|text| !text.contains('\0'));
    let text = text.ok_or(Refusal::NotText)?;
    if text.starts_with('/') {
        return Err(Refusal::Absolute);
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(Refusal::Upwards);
    }
    if parts.len() > limits::UNPACK_DEPTH || parts.iter().any(|part| part.len() > limits::UNPACK_COMPONENT) {
        return Err(Refusal::TooLong);
    }
    Ok(parts.into_iter().skip(strip).map(str::to_owned).collect())
}

/// Where a symlink at `path` leads, if that is inside whatever else the archive holds.
///
/// The link lies in a real directory, for no symlink is followed to make it, so `..` in front goes up through
/// real directories. What comes after may pass other symlinks, but these lead inside as well, and nothing
/// goes up from there: `..` is allowed in front only.
fn lands(target: &[u8], path: &[String]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(target).ok()?;
    let long = text.is_empty() || text.len() > limits::UNPACK_NAME;
    if long || text.starts_with('/') || text.contains('\0') {
        return None;
    }
    let (_, parents) = path.split_last()?;
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let up = parts.iter().take_while(|part| **part == "..").count();
    let down = &parts[up..];
    if up > parents.len() || down.contains(&"..") {
        return None;
    }
    let kept = parents[..parents.len() - up].iter().cloned();
    Some(kept.chain(down.iter().map(|part| (*part).to_owned())).collect())
}
