//! The directory unpacked into, reached through its handle only.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Refusal, UnpackError};

const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);
const NEW_FILE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why something could not be made.
#[derive(Debug)]
pub(super) enum TreeError {
    /// The entry's fault.
    Refused(Refusal),
    /// The world's fault.
    Io { action: &'static str, source: io::Error },
}

impl TreeError {
    fn io(action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Io { action, source: errno.into() }
    }

    /// As the error of an entry.
    pub(super) fn of(self, name: &str, path: &[String]) -> UnpackError {
        match self {
            Self::Refused(refusal) => UnpackError::Entry { name: name.to_owned(), refusal },
            Self::Io { action, source } => UnpackError::Io { action, path: path.iter().collect(), source },
        }
    }
}

/// A directory tree. Paths are lists of names that were judged before: no `..`, no `/`, nothing empty.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// The directory last worked in; archives keep the files of one together.
    last: Option<(Vec<String>, OwnedFd)>,
}

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Self, UnpackError> {
        let opened = rustix::fs::openat(CWD, root, DIRECTORY, Mode::empty());
        let root = opened.map_err(|errno| UnpackError::Io {
            action: "open directory",
            path: PathBuf::from(root),
            source: errno.into(),
        })?;
        Ok(Self { root, last: None })
    }

    /// Makes a directory; one that is there already is as good.
    pub(super) fn directory(&mut self, path: &[String]) -> Result<(), TreeError> {
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        let parent = self.enter(parents)?;
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => match kind(parent, name)? {
                FileType::Directory => Ok(()),
                _ => Err(TreeError::Refused(Refusal::Twice)),
            },
            Err(errno) => Err(TreeError::io("make directory")(errno)),
        }
    }

    /// Makes a file that was not there before.
    pub(super) fn file(&mut self, path: &[String], executable: bool) -> Result<File, TreeError> {
        let (name, parents) = named(path)?;
        let mode = Mode::RUSR | Mode::WUSR | if executable { Mode::XUSR } else { Mode::empty() };
        match rustix::fs::openat(self.enter(parents)?, name, NEW_FILE, mode) {
            Ok(file) => Ok(file.into()),
            Err(Errno::EXIST) => Err(TreeError::Refused(Refusal::Twice)),
            Err(errno) => Err(TreeError::io("make file")(errno)),
        }
    }

    /// Makes a symlink. Where it leads was judged before.
    pub(super) fn symlink(&mut self, path: &[String], target: &str) -> Result<(), TreeError> {
        let (name, parents) = named(path)?;
        made(rustix::fs::symlinkat(target, self.enter(parents)?, name), "make symlink")
    }

    /// Makes a hard link to a plain file in the tree.
    pub(super) fn hard_link(&mut self, path: &[String], target: &[String]) -> Result<(), TreeError> {
        let leaves = || {
            TreeError::Refused(Refusal::HardLinkLeaves { target: super::shown(target.join("/").as_bytes()) })
        };
        let (target_name, target_parents) = target.split_last().ok_or_else(leaves)?;
        let from = match walk(self.root.as_fd(), target_parents, false) {
            Err(TreeError::Refused(_)) => return Err(leaves()),
            other => other?,
        };
        match rustix::fs::statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
            Ok(_) | Err(Errno::NOENT) => return Err(leaves()),
            Err(errno) => return Err(TreeError::io("look at the target of")(errno)),
        }
        let (name, parents) = named(path)?;
        let to = self.enter(parents)?;
        made(rustix::fs::linkat(&from, target_name, to, name, AtFlags::empty()), "make hard link")
    }

    /// A directory of the tree, made as far as it is not there. No symlink is followed.
    fn enter(&mut self, path: &[String]) -> Result<BorrowedFd<'_>, TreeError> {
        if path.is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            self.last = Some((path.to_vec(), walk(self.root.as_fd(), path, true)?));
        }
        Ok(self.last.as_ref().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }
}

/// Opens a directory below `root`. No symlink is followed.
fn walk(root: BorrowedFd<'_>, path: &[String], make: bool) -> Result<OwnedFd, TreeError> {
    let mut here = rustix::fs::openat(root, ".", DIRECTORY, Mode::empty()).map_err(TreeError::io("open"))?;
    for name in path {
        let opened = match rustix::fs::openat(&here, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) if make => {
                rustix::fs::mkdirat(&here, name, Mode::RWXU)
                    .map_err(TreeError::io("make directory above"))?;
                rustix::fs::openat(&here, name, DIRECTORY, Mode::empty())
            }
            other => other,
        };
        here = match opened {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                return Err(TreeError::Refused(Refusal::NotADirectory));
            }
            Err(errno) => return Err(TreeError::io("open directory above")(errno)),
        };
    }
    Ok(here)
}

fn named(path: &[String]) -> Result<(&String, &[String]), TreeError> {
    path.split_last().ok_or(TreeError::Refused(Refusal::Nameless))
}

fn made(result: Result<(), Errno>, action: &'static str) -> Result<(), TreeError> {
    match result {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(TreeError::Refused(Refusal::Twice)),
        Err(errno) => Err(TreeError::io(action)(errno)),
    }
}

fn kind(parent: BorrowedFd<'_>, name: &str) -> Result<FileType, TreeError> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    Ok(FileType::from_raw_mode(stat.map_err(TreeError::io("look at"))?.st_mode))
}

/// Writes all of a block.
pub(super) fn write(file: &mut File, block: &[u8]) -> Result<(), TreeError> {
    file.write_all(block).map_err(|source| TreeError::Io { action: "write", source })
}
