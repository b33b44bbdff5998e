//! Remembering what a server program said of its version.
//!
//! Asking costs an `exec` of a large program, which is a good part of what supervision adds to a start. The
//! answer cannot change while the file does not, so it is kept with everything that tells one file from
//! another. A script is not remembered: it may run any other file, and answer what that one says.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file in the cache directory.
const NAME: &str = "postgres-version.json";

/// An answer, and the program that gave it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    program: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds. The change time is set by the kernel, so nobody can put another file there
    /// under the same one.
    changed: (i64, i64),
    answer: String,
}

impl Remembered {
    fn new(program: &Path, answer: String) -> io::Result<Self> {
        let metadata = program.metadata()?;
        Ok(Remembered {
            program: program.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            answer,
        })
    }
}

/// What this very program answered before, if that is remembered. A memory that belongs to somebody else
/// counts for nothing, nor does one of a script.
pub(super) fn recall(cache: &Path, program: &Path) -> Option<String> {
    let path = cache.join(NAME);
    let ours = nix::unistd::geteuid().as_raw();
    if cache.metadata().ok()?.uid() != ours || path.symlink_metadata().ok()?.uid() != ours {
        return None;
    }
    let remembered: Remembered = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let now = Remembered::new(program, remembered.answer.clone()).ok()?;
    (now == remembered && !is_script(program).ok()?).then_some(remembered.answer)
}

fn is_script(program: &Path) -> io::Result<bool> {
    let mut begin = Vec::new();
    File::open(program)?.take(2).read_to_end(&mut begin)?;
    Ok(begin == b"#!")
}

/// Remembers an answer, unless a script gave it.
///
/// # Errors
/// If the cache cannot be written; then the program is asked again next time.
pub(super) fn keep(cache: &Path, program: &Path, answer: String) -> io::Result<()> {
    if is_script(program)? {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(cache)?;
    let text = serde_json::to_vec(&Remembered::new(program, answer)?)?;
    // Put in place whole, so that nobody reads half of it.
    let half = cache.join(format!("{NAME}.{}", std::process::id()));
    fs::write(&half, text)?;
    fs::rename(&half, cache.join(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_remembered_until_the_program_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, program) = (dir.path().join("cache"), dir.path().join("postgres"));
        fs::write(&program, "one").unwrap();
        assert_eq!(recall(&cache, &program), None);
        keep(&cache, &program, "15.1".to_owned()).unwrap();
        assert_eq!(recall(&cache, &program).as_deref(), Some("15.1"));

        assert_eq!(recall(&cache, dir.path()), None, "another program");
        fs::write(&program, "another").unwrap();
        assert_eq!(recall(&cache, &program), None, "a changed program");
        fs::write(cache.join(NAME), "no JSON").unwrap();
        assert_eq!(recall(&cache, &program), None, "a broken memory");
    }

    #[test]
    fn a_script_is_not_believed_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, script) = (dir.path().join("cache"), dir.path().join("postgres"));
        fs::write(&script, "#!/bin/sh\nexec /another \"$@\"\n").unwrap();
        keep(&cache, &script, "15.1".to_owned()).unwrap();
        assert_eq!(recall(&cache, &script), None);
        // Nor is what was remembered by whoever did not know that.
        fs::create_dir_all(&cache).unwrap();
        let remembered = Remembered::new(&script, "15.1".to_owned()).unwrap();
        fs::write(cache.join(NAME), serde_json::to_vec(&remembered).unwrap()).unwrap();
        assert_eq!(recall(&cache, &script), None);
    }
}
