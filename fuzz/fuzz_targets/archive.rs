//! Archives: nothing outside the directory is touched, whatever the entries say; what is made inside is harmless;
//! limits hold; nothing panics.
//!
//! The input is text in records, separated by U+001E. The first record holds flags: `g` and `z` compress, `i` skips
//! zero blocks, `s` strips a directory, `n` leaves the end mark away, `p` sends small pieces. Each further
//! record is an entry: a letter for its kind, listed in [`tar`], then name, link and contents, separated by
//! U+001F. An input that begins with `!` is a stream as it stands.

#![no_main]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use compute_ctl::postgres::pgdata::MARKER;
use compute_ctl::postgres::{ClearRule, DataDir};
use compute_ctl::storage::Progress;
use compute_ctl::storage::unpack::{Format, Limits, Options, UnpackError, unpack};
use futures_util::stream;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const LIMITS: Limits = Limits { entries: 64, bytes: 1 << 20 };

struct Place {
    outside: PathBuf,
    pgdata: Arc<DataDir>,
    marker: String,
    runtime: Runtime,
}

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let outside = std::env::temp_dir().join(format!("fuzz-archive-{}", std::process::id()));
        fs::create_dir_all(outside.join("neighbour")).expect("a temporary directory");
        fs::write(outside.join("file"), "untouched").expect("a temporary directory");
        let pgdata = DataDir::claim(&outside.join("pgdata")).expect("an own directory");
        pgdata.clear(ClearRule::default(), &CancellationToken::new()).expect("it is empty");
        let marker = fs::read_to_string(pgdata.path().join(MARKER)).expect("it was just written");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        Place { outside, pgdata, marker, runtime }
    })
}

fuzz_target!(|data: &[u8]| {
    let (bytes, flags) = match data.strip_prefix(b"!") {
        Some(raw) => (raw.to_vec(), String::new()),
        None => described(&String::from_utf8_lossy(data)),
    };
    let has = |flag: char| flags.contains(flag);
    let options = Options {
        format: Format::Auto,
        strip_components: usize::from(has('s')),
        leave_out: &["postmaster.pid"],
        ignore_zero_blocks: has('i'),
        digest: false,
        limits: LIMITS,
    };
    let pieces = bytes.chunks(if has('p') { 100 } else { 100_000 });
    let pieces: Vec<_> = pieces.map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let place = place();
    let progress = Arc::new(Progress::default());
    let never = CancellationToken::new();
    let work = unpack(stream::iter(pieces), place.pgdata.clone(), options, progress.clone(), &never);
    let outcome = place.runtime.block_on(work);
    match &outcome {
        Ok(unpacked) => assert!(unpacked.entries <= LIMITS.entries),
        Err(UnpackError::Panicked | UnpackError::Cancelled | UnpackError::Source(_)) => panic!("{outcome:?}"),
        Err(error) => assert!(error.to_string().len() < 2000, "an error as long as its cause wants"),
    }
    assert!(progress.written() <= LIMITS.bytes && progress.received() <= bytes.len() as u64);
    place.outside_is_untouched();
    place.inside_is_harmless(outcome.is_ok().then_some(&progress));
    place.empty();
});

impl Place {
    fn outside_is_untouched(&self) {
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path)
                .expect("it is there")
                .map(|entry| entry.expect("it is").file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&self.outside), ["file", "neighbour", "pgdata"]);
        assert!(names(&self.outside.join("neighbour")).is_empty());
        let file = self.outside.join("file");
        assert_eq!(fs::read_to_string(&file).expect("it is there"), "untouched");
        assert_eq!(fs::symlink_metadata(file).expect("it is there").nlink(), 1);
        let marker = self.pgdata.path().join(MARKER);
        assert_eq!(fs::read_to_string(&marker).expect("it is there"), self.marker);
        assert_eq!(fs::symlink_metadata(marker).expect("it is there").nlink(), 1);
    }

    fn inside_is_harmless(&self, finished: Option<&Progress>) {
        let root = self.pgdata.path();
        let handle = fs::File::open(root).expect("it is there");
        let (mut todo, mut files, mut bytes) = (vec![root.to_owned()], Vec::new(), 0);
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(directory).expect("ours are readable") {
                let path = entry.expect("it is there").path();
                let metadata = fs::symlink_metadata(&path).expect("it is there");
                let kind = metadata.file_type();
                if path == root.join(MARKER) {
                    continue;
                }
                assert_ne!(path, root.join("postmaster.pid"), "it was to be left out");
                if kind.is_symlink() {
                    // The kernel itself says whether one gets out through it.
                    let relative = path.strip_prefix(root).expect("it lies below");
                    let opened = rustix::fs::openat2(
                        &handle,
                        relative,
                        OFlags::PATH,
                        Mode::empty(),
                        ResolveFlags::BENEATH,
                    );
                    assert_ne!(opened.err(), Some(Errno::XDEV), "{} leads outside", path.display());
                    continue;
                }
                assert_eq!(metadata.permissions().mode() & 0o7077, 0, "{}", path.display());
                assert!(kind.is_dir() || kind.is_file(), "{} is special", path.display());
                if kind.is_dir() {
                    todo.push(path);
                } else if !files.contains(&metadata.ino()) {
                    files.push(metadata.ino());
                    bytes += metadata.len();
                }
            }
        }
        assert!(bytes <= LIMITS.bytes && files.len() as u64 <= LIMITS.entries);
        if let Some(progress) = finished {
            assert_eq!((progress.files(), progress.written()), (files.len() as u64, bytes));
        }
    }

    fn empty(&self) {
        for entry in fs::read_dir(self.pgdata.path()).expect("it is there") {
            let entry = entry.expect("it is there");
            if entry.file_name() != MARKER {
                let directory = entry.file_type().expect("it is there").is_dir();
                let remove =
                    if directory { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
                remove.expect("ours can be removed");
            }
        }
    }
}

/// A stream from its description, and the flags.
fn described(text: &str) -> (Vec<u8>, String) {
    let mut records = text.split('\u{1e}');
    let flags = records.next().unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    for record in records.take(100) {
        tar(record, &mut bytes);
    }
    if !flags.contains('n') {
        bytes.extend([0; 1024]);
    }
    if flags.contains('g') {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&bytes).expect("into memory");
        bytes = encoder.finish().expect("into memory");
    }
    if flags.contains('z') {
        bytes = zstd::encode_all(&bytes[..], 1).expect("into memory");
    }
    (bytes, flags)
}

/// One entry, however wrong.
fn tar(record: &str, into: &mut Vec<u8>) {
    let mut chars = record.chars();
    let letter = chars.next().unwrap_or('f');
    let mut fields = chars.as_str().split('\u{1f}');
    let mut field = || fields.next().unwrap_or_default().as_bytes();
    let (name, link, contents) = (field(), field(), field());
    let kind = match letter {
        'f' | 'F' | 'N' => b'0',
        'd' => b'5',
        's' => b'2',
        'h' => b'1',
        'c' => b'3',
        'b' => b'4',
        'p' => b'6',
        'S' => b'S',
        'L' => b'L',
        'K' => b'K',
        'x' | 'X' => b'x',
        'g' => b'g',
        'o' => 0,
        // Not an entry: a block of zeros, and any bytes.
        'Z' => return into.extend([0; 512]),
        'R' => return into.extend_from_slice(name),
        other => u8::try_from(other).unwrap_or(b'7'),
    };
    let mut pax = Vec::new();
    let contents = match letter {
        // A record of a pax header, with the length it should have.
        'x' => {
            let rest = link.len() + contents.len() + 3;
            let length =
                (rest..).find(|length| length - length.to_string().len() == rest).unwrap_or_default();
            pax.extend_from_slice(format!("{length} ").as_bytes());
            pax.extend_from_slice(link);
            pax.push(b'=');
            pax.extend_from_slice(contents);
            pax.push(b'\n');
            &pax[..]
        }
        'L' | 'K' => name,
        _ => contents,
    };
    let mut header = tar::Header::new_gnu();
    let old = header.as_old_mut();
    let fit = |to: &mut [u8], from: &[u8]| {
        let length = to.len().min(from.len());
        to[..length].copy_from_slice(&from[..length]);
    };
    fit(&mut old.name, name);
    fit(&mut old.linkname, if letter == 'x' { b"" } else { link });
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o7777);
    // `F` declares more than there is, `N` a size as large as a number can be.
    header.set_size(match letter {
        'F' => contents.len() as u64 * 1000,
        'N' => u64::MAX,
        _ => contents.len() as u64,
    });
    header.set_cksum();
    into.extend_from_slice(header.as_bytes());
    into.extend_from_slice(contents);
    into.resize(into.len().next_multiple_of(512), 0);
}
