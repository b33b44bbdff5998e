use std::fs;
use std::io::{Seek, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use futures_util::{FutureExt, stream};
use tar::{EntryType, Header};

use super::*;
use crate::postgres::{ClearRule, Contents};

/// Writes tars that no honest program writes.
#[derive(Clone, Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, kind: EntryType, name: &[u8], link: &[u8], size: u64, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o6777);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(EntryType::Regular, name.as_bytes(), b"", data.len() as u64, data)
    }

    fn dir(self, name: &str) -> Self {
        self.raw(EntryType::Directory, name.as_bytes(), b"", 0, b"")
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.raw(kind, name.as_bytes(), target.as_bytes(), 0, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Link, name, target)
    }

    fn extension(self, kind: EntryType, data: &[u8]) -> Self {
        self.raw(kind, b"extension", b"", data.len() as u64, data)
    }

    fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            // The length counts itself.
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|length| length - length.to_string().len() == rest).unwrap();
            data.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
        }
        self.extension(EntryType::XHeader, &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A directory to unpack into, beside a file that nobody may touch.
struct Place {
    dir: tempfile::TempDir,
    pgdata: Arc<DataDir>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        let pgdata = DataDir::claim(&dir.path().join("pgdata")).unwrap();
        pgdata.clear(ClearRule::default(), &CancellationToken::new()).unwrap();
        Self { dir, pgdata }
    }

    /// Unpacks pieces of a length.
    fn unpack_in(&self, bytes: &[u8], piece: usize, options: Options) -> Result<Unpacked, UnpackError> {
        let pieces: Vec<_> = bytes.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        self.stream(stream::iter(pieces), options)
    }

    fn stream(
        &self,
        source: impl Stream<Item = io::Result<Bytes>> + Send,
        options: Options,
    ) -> Result<Unpacked, UnpackError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let progress = Arc::new(Progress::default());
        let never = CancellationToken::new();
        let unpacked = runtime.block_on(unpack(source, self.pgdata.clone(), options, progress, &never));
        self.outside_untouched();
        unpacked
    }

    /// The same from a file.
    fn unpack_file(&self, bytes: &[u8], options: Options) -> Result<Unpacked, UnpackError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (progress, never) = (Arc::new(Progress::default()), CancellationToken::new());
        let work = unpack_file(file, self.pgdata.clone(), options, progress.clone(), &never);
        let unpacked = runtime.block_on(work)?;
        assert_eq!(progress.received(), bytes.len() as u64);
        Ok(unpacked)
    }

    fn unpack(&self, bytes: &[u8]) -> Result<Unpacked, UnpackError> {
        self.unpack_in(bytes, 1000, Options::default())
    }

    /// Removes what [`good`] has made.
    fn empty(&self) {
        let _ = (fs::remove_dir_all(self.path("a")), fs::remove_file(self.path("two")));
    }

    fn outside_untouched(&self) {
        let mut names: Vec<_> = fs::read_dir(&self.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["outside", "pgdata"]);
        assert_eq!(fs::read_to_string(self.dir.path().join("outside")).unwrap(), "untouched");
        assert_eq!(self.pgdata.contents().unwrap(), Contents::Unfinished);
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.pgdata.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

#[track_caller]
fn refuses(tar: Tar, name: &str, is: impl Fn(&Refusal) -> bool) {
    let found = Place::new().unpack(&tar.end());
    match &found {
        Err(UnpackError::Entry { name: found, refusal }) if found == name && is(refusal) => {}
        _ => panic!("{found:?}"),
    }
}

#[track_caller]
fn misshapen(bytes: &[u8], shape: Shape) {
    let found = Place::new().unpack(bytes);
    assert!(matches!(&found, Err(UnpackError::Shape(found)) if *found == shape), "{found:?}");
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn good() -> Tar {
    Tar::default().dir("./").dir("./a").file("./a/one", b"1").file("two", &[b'2'; 3000])
}

#[test]
fn all_formats_and_piece_lengths_give_the_same_files() {
    let tar = good().symlink("a/link", "../two").hard_link("three", "two").end();
    for (format, bytes) in [
        (Format::Tar, tar.clone()),
        (Format::Gzip, gzip(&tar)),
        (Format::Zstd, zstd::encode_all(&tar[..], 3).unwrap()),
    ] {
        let ways = [(Some(1), Format::Auto), (Some(7), format), (Some(100_000), Format::Auto)];
        for (piece, format) in ways.into_iter().chain([(None, Format::Auto), (None, format)]) {
            let place = Place::new();
            let options = Options { format, digest: true, ..Options::default() };
            let unpacked = match piece {
                Some(piece) => place.unpack_in(&bytes, piece, options),
                None => place.unpack_file(&bytes, options),
            };
            let unpacked = unpacked.unwrap();
            assert_eq!(unpacked.entries, 6);
            assert_eq!(unpacked.digest.unwrap()[..], <sha2::Sha256 as sha2::Digest>::digest(&bytes)[..]);
            assert_eq!((place.text("a/one"), place.text("three")), ("1".into(), "2".repeat(3000)));
            assert_eq!(fs::read_link(place.path("a/link")).unwrap(), Path::new("../two"));
            assert_eq!(mode(&place.path("a")), 0o700);
            // Set-uid and the rights of others are not taken over.
            assert_eq!(mode(&place.path("two")), 0o700);
        }
    }
}

#[test]
fn progress_counts_what_was_done() {
    let place = Place::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (progress, never) = (Arc::new(Progress::default()), CancellationToken::new());
    let bytes = good().end();
    let source = stream::iter([Ok(Bytes::from(bytes.clone()))]);
    let work = unpack(source, place.pgdata.clone(), Options::default(), progress.clone(), &never);
    runtime.block_on(work).unwrap();
    assert_eq!((progress.received(), progress.files(), progress.written()), (bytes.len() as u64, 2, 3001));
    progress.reset();
    assert_eq!(progress.received(), 0);
}

#[test]
fn names_come_from_extended_headers_too() {
    let deep = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let place = Place::new();
    let tar = Tar::default()
        .extension(EntryType::GNULongName, format!("{deep}\0").as_bytes())
        .file("cut", b"gnu")
        .extension(EntryType::XGlobalHeader, b"20 comment=whatever\n")
        .pax(&[("path", "päx"), ("mtime", "1.5"), ("size", "3")])
        .file("cut", b"pax")
        .extension(EntryType::GNULongLink, b"two/../three")
        .symlink("refused", "cut");
    assert!(matches!(
        place.unpack(&tar.end()),
        Err(UnpackError::Entry { refusal: Refusal::SymlinkLeaves { target }, .. }) if target == "two/../three"
    ));
    assert_eq!((place.text(&deep), place.text("päx")), ("gnu".into(), "pax".into()));
    assert!(!place.path("cut").exists());
}

#[test]
fn directories_that_are_not_listed_are_made() {
    let place = Place::new();
    place.unpack(&Tar::default().file("a/b/c", b"x").dir("a/b").dir("a").end()).unwrap();
    assert_eq!((place.text("a/b/c"), mode(&place.path("a/b"))), ("x".into(), 0o700));
}

#[test]
fn leading_directories_are_stripped() {
    let place = Place::new();
    let tar = Tar::default().dir("data/").file("data/a/one", b"1").hard_link("data/two", "data/a/one").end();
    let options = Options { strip_components: 1, ..Options::default() };
    place.unpack_in(&tar, 1000, options).unwrap();
    assert_eq!((place.text("a/one"), place.text("two")), ("1".into(), "1".into()));
    let beside = Tar::default().file("readme", b"").end();
    let found = place.unpack_in(&beside, 1000, options);
    assert!(matches!(found, Err(UnpackError::Entry { refusal: Refusal::Nameless, .. })), "{found:?}");
}

#[test]
fn paths_that_leave_the_directory_are_refused() {
    refuses(Tar::default().file("../outside", b"x"), "../outside", |r| *r == Refusal::Upwards);
    refuses(Tar::default().file("a/../../outside", b"x"), "a/../../outside", |r| *r == Refusal::Upwards);
    refuses(Tar::default().file("a/..", b"x"), "a/..", |r| *r == Refusal::Upwards);
    refuses(Tar::default().dir("/tmp"), "/tmp", |r| *r == Refusal::Absolute);
    refuses(Tar::default().pax(&[("path", "/x")]).file("good", b""), "/x", |r| *r == Refusal::Absolute);
    let long = Tar::default().extension(EntryType::GNULongName, b"../x").file("good", b"");
    refuses(long, "../x", |r| *r == Refusal::Upwards);
}

#[test]
fn links_that_leave_the_directory_are_refused() {
    let leaves = |r: &Refusal| matches!(r, Refusal::SymlinkLeaves { .. });
    for target in ["/etc", "..", "../outside", "a/..", "a/../../outside", "", "../../pgdata/x"] {
        refuses(Tar::default().dir("a").symlink("l", target), "l", leaves);
    }
    refuses(Tar::default().symlink("a/b", "../../x"), "a/b", leaves);
    refuses(Tar::default().symlink("pg_tblspc/16384", "/srv/fast"), "pg_tblspc/16384", leaves);
    // Each of these two is inside by its text; together they would not be.
    refuses(Tar::default().symlink("a/b/up", "../..").symlink("l", "a/b/up/../outside"), "l", leaves);
    let leaves = |r: &Refusal| matches!(r, Refusal::HardLinkLeaves { .. });
    for target in ["/etc/passwd", "../outside", "missing", "a", "s", "a/missing/x", "s/x", ""] {
        let tar = Tar::default().file("f", b"").dir("a").symlink("s", "f").hard_link("l", target);
        refuses(tar, "l", leaves);
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let inside = Tar::default().dir("a").file("f", b"old").symlink("l", "a").symlink("k", "f");
    refuses(inside.clone().file("l/x", b"x"), "l/x", |r| *r == Refusal::NotADirectory);
    refuses(inside.clone().dir("l/x"), "l/x", |r| *r == Refusal::NotADirectory);
    refuses(inside.clone().dir("l/x/y"), "l/x/y", |r| *r == Refusal::NotADirectory);
    refuses(inside.clone().symlink("l/x", "y"), "l/x", |r| *r == Refusal::NotADirectory);
    refuses(inside.clone().hard_link("l/x", "f"), "l/x", |r| *r == Refusal::NotADirectory);
    refuses(inside.clone().file("k", b"new"), "k", |r| *r == Refusal::Twice);
    refuses(inside.clone().dir("l"), "l", |r| *r == Refusal::Twice);
    refuses(inside.file("f/x", b"x"), "f/x", |r| *r == Refusal::NotADirectory);
}

#[test]
fn no_entry_comes_twice() {
    let tar = good();
    refuses(tar.clone().file("two", b""), "two", |r| *r == Refusal::Twice);
    refuses(tar.clone().file("a", b""), "a", |r| *r == Refusal::Twice);
    refuses(tar.clone().dir("two"), "two", |r| *r == Refusal::Twice);
    refuses(tar.clone().symlink("two", "a"), "two", |r| *r == Refusal::Twice);
    refuses(tar.hard_link("a/one", "two"), "a/one", |r| *r == Refusal::Twice);
}

#[test]
fn our_marker_is_out_of_reach() {
    let place = Place::new();
    let marker = place.text(".compute_ctl");
    let tar = good()
        .file(".compute_ctl", b"complete\n/\n")
        .dir("./.compute_ctl.new/")
        .file(".compute_ctl.new/x", b"")
        .file("a/.compute_ctl", b"elsewhere");
    place.unpack(&tar.end()).unwrap();
    assert_eq!(place.text(".compute_ctl"), marker);
    assert!(!place.path(".compute_ctl.new").exists());
    assert_eq!(place.text("a/.compute_ctl"), "elsewhere");
    let symlink = |r: &Refusal| matches!(r, Refusal::SymlinkLeaves { .. });
    refuses(Tar::default().symlink("l", ".compute_ctl"), "l", symlink);
    refuses(Tar::default().symlink("a/l", "../.compute_ctl.new"), "a/l", symlink);
    let hard = |r: &Refusal| matches!(r, Refusal::HardLinkLeaves { .. });
    refuses(Tar::default().hard_link("l", ".compute_ctl"), "l", hard);
}

#[test]
fn what_is_to_be_left_out_is() {
    let place = Place::new();
    let options = Options { leave_out: &["a", "big"], ..Options::default() };
    let unpacked = place.unpack_in(&good().file("big", &[1; 2000]).file("b/a", b"kept").end(), 100, options);
    assert_eq!(unpacked.unwrap().entries, 3);
    assert!(!place.path("a").exists() && !place.path("big").exists());
    assert_eq!(place.text("b/a"), "kept");
}

#[test]
fn special_files_are_refused() {
    for (kind, words) in [
        (EntryType::Char, "a device"),
        (EntryType::Block, "a device"),
        (EntryType::Fifo, "a FIFO"),
        (EntryType::GNUSparse, "a sparse file"),
        (EntryType::new(b'M'), "an entry of an unknown type"),
    ] {
        let is = |r: &Refusal| matches!(r, Refusal::Kind { what } if *what == words);
        refuses(Tar::default().raw(kind, b"x", b"", 0, b""), "x", is);
    }
    let sparse = |r: &Refusal| matches!(r, Refusal::Kind { what: "a sparse file" });
    refuses(Tar::default().pax(&[("GNU.sparse.major", "1")]).file("x", b""), "extension", sparse);
    let place = Place::new();
    let _ = place.unpack(&Tar::default().raw(EntryType::Fifo, b"x", b"", 0, b"").end());
    assert!(!fs::symlink_metadata(place.path("x")).is_ok_and(|x| x.file_type().is_fifo()));
}

#[test]
fn names_are_text_and_not_too_long() {
    refuses(Tar::default().raw(EntryType::Regular, b"a\xff", b"", 0, b""), "a\u{fffd}", |r| {
        *r == Refusal::NotText
    });
    let long_name =
        |name: &str| Tar::default().extension(EntryType::GNULongName, name.as_bytes()).file("x", b"");
    refuses(long_name("a\0b"), "a\0b", |r| *r == Refusal::NotText);
    let long = "n".repeat(256);
    refuses(long_name(&long), &format!("{}…", &long[..200]), |r| *r == Refusal::TooLong);
    let deep = "d/".repeat(40);
    refuses(long_name(&format!("{deep}f")), &format!("{deep}f"), |r| *r == Refusal::TooLong);
    let long = "n/".repeat(600);
    refuses(long_name(&long), &format!("{}…", &long[..200]), |r| *r == Refusal::TooLong);
    refuses(Tar::default().file("./.", b"x"), "./.", |r| *r == Refusal::Nameless);
    refuses(Tar::default().symlink(".", "x"), ".", |r| matches!(r, Refusal::SymlinkLeaves { .. }));
    refuses(Tar::default().file("f", b"").hard_link("", "f"), "", |r| *r == Refusal::Nameless);
}

#[test]
fn extended_headers_may_not_contradict() {
    let what = |words: &'static str| move |r: &Refusal| matches!(r, Refusal::Extension { what } if what.contains(words));
    refuses(Tar::default().pax(&[("size", "9")]).file("x", b"1"), "x", what("contradicts"));
    let twice = Tar::default().pax(&[("path", "a"), ("path", "b")]).file("x", b"");
    refuses(twice, "extension", what("repeats"));
    let twice = Tar::default().pax(&[("path", "a")]).extension(EntryType::GNULongName, b"b").file("x", b"");
    refuses(twice, "extension", what("repeats"));
    for data in [&b"5 a=b\n"[..], b"x", b"\n9 path=a\n", b"6 a=b\n\n9 path=x\n", b"7 size=x\n"] {
        refuses(
            Tar::default().extension(EntryType::XHeader, data).file("x", b""),
            "extension",
            what("cannot"),
        );
    }
    let global = Tar::default().extension(EntryType::XGlobalHeader, b"9 path=a\n").file("x", b"");
    refuses(global, "extension", what("all entries"));
    let huge = Tar::default().raw(EntryType::GNULongName, b"huge", b"", 1 << 40, b"");
    refuses(huge, "huge", what("too large"));
    misshapen(&Tar::default().extension(EntryType::GNULongName, b"a").end(), Shape::Dangling);
}

#[test]
fn only_files_have_contents() {
    for kind in [EntryType::Directory, EntryType::Symlink, EntryType::Link] {
        let tar = Tar::default().file("f", b"").raw(kind, b"x", b"f", 3, b"abc");
        refuses(tar, "x", |r| *r == Refusal::Contents);
    }
    // The oldest way to write a directory.
    let place = Place::new();
    place.unpack(&Tar::default().raw(EntryType::new(0), b"old/", b"", 0, b"").end()).unwrap();
    assert!(place.path("old").is_dir());
}

#[test]
fn sizes_and_counts_are_bounded_before_anything_is_read() {
    let place = Place::new();
    let options = Options { limits: Limits { entries: 3, bytes: 2000 }, ..Options::default() };
    let tar = Tar::default().file("a", &[1; 1500]);
    let found = place.unpack_in(&tar.clone().file("b", &[1; 501]).end(), 1000, options);
    let is = Refusal::TooLarge { size: 501, max: 2000 };
    assert!(matches!(&found, Err(UnpackError::Entry { refusal, .. }) if *refusal == is), "{found:?}");
    assert!(!place.path("b").exists());
    let many = Tar::default().dir("a").dir("b").extension(EntryType::XGlobalHeader, b"").dir("c");
    let found = Place::new().unpack_in(&many.end(), 1000, options);
    assert!(matches!(found, Err(UnpackError::Shape(Shape::Entries { max: 3 }))), "{found:?}");
    // A header costs nothing, whatever it declares.
    let bomb = Tar::default().raw(EntryType::Regular, b"bomb", b"", u64::MAX / 2, b"");
    refuses(bomb, "bomb", |r| matches!(r, Refusal::TooLarge { .. }));
    // What is only skipped counts as well.
    let options =
        Options { limits: Limits { entries: 1, bytes: 0 }, leave_out: &["x"], ..Options::default() };
    let zeros = vec![0; usize::try_from(limits::UNPACK_PADDING + limits::UNPACK_EXTENSION + 4096).unwrap()];
    let found = Place::new().unpack_in(&gzip(&Tar::default().file("x", &zeros).end()), 1000, options);
    assert!(matches!(found, Err(UnpackError::Shape(Shape::Bytes { .. }))), "{found:?}");
}

#[test]
fn a_stream_that_is_cut_off_is_told_wherever_it_ends() {
    let whole = good().end();
    let end = whole.len() - 1024;
    let place = Place::new();
    // Headers are read as a whole, so that a few bytes of each block tell about all.
    for cut in (0..=end).filter(|cut| [0, 1, 511].contains(&(cut % 512))) {
        place.empty();
        let found = place.unpack_in(&whole[..cut], 4096, Options::default());
        assert!(found.is_err(), "{cut}");
        if cut % 512 == 0 && matches!(cut, 0 | 512 | 1024) {
            assert!(matches!(found, Err(UnpackError::Shape(Shape::CutOff))), "{cut}: {found:?}");
        }
    }
    // One block of zeros is enough, as some programs write no more.
    Place::new().unpack(&whole[..end + 512]).unwrap();
    for compressed in [gzip(&whole), zstd::encode_all(&whole[..], 3).unwrap()] {
        for cut in 0..compressed.len() {
            place.empty();
            assert!(place.unpack(&compressed[..cut]).is_err(), "{cut}");
            place.empty();
            assert!(place.unpack_file(&compressed[..cut], Options::default()).is_err(), "{cut}");
        }
    }
    let size = whole.len() as u64;
    let short = Tar::default().raw(EntryType::Regular, b"x", b"", size, b"").end();
    let cut_off = Refusal::CutOff { got: 1024, size };
    let found = Place::new().unpack(&short);
    assert!(matches!(&found, Err(UnpackError::Entry { refusal, .. }) if *refusal == cut_off), "{found:?}");
}

#[test]
fn nothing_follows_the_end() {
    let tar = good().end();
    let with = |more: &[u8]| [&tar[..], more].concat();
    Place::new().unpack(&with(&[0; 10_000])).unwrap();
    misshapen(&with(b"x"), Shape::Followed);
    misshapen(&with(&Tar::default().file("late", b"").end()), Shape::Followed);
    misshapen(&with(&vec![0; usize::try_from(limits::UNPACK_PADDING).unwrap()]), Shape::Followed);
    misshapen(&gzip(&with(b"x")), Shape::Followed);
    for compressed in [gzip(&tar), zstd::encode_all(&tar[..], 3).unwrap()] {
        let found = Place::new().unpack(&[&compressed[..], b"garbage"].concat());
        assert!(matches!(found, Err(UnpackError::Damaged { .. })), "{found:?}");
        // Two members or frames are one stream.
        let (first, second) = tar.split_at(700);
        let two = [gzip(first), gzip(second)].concat();
        assert_eq!(Place::new().unpack(&two).unwrap().entries, 4);
    }
}

#[test]
fn zero_blocks_are_skipped_where_that_is_wanted() {
    let place = Place::new();
    let options = Options { ignore_zero_blocks: true, ..Options::default() };
    let tar = [good().end(), Tar::default().file("late", b"!").end()].concat();
    place.unpack_in(&tar, 1000, options).unwrap();
    assert_eq!(place.text("late"), "!");
    let found = Place::new().unpack_in(&[&tar[..], b"x"].concat(), 1000, options);
    assert!(matches!(found, Err(UnpackError::Damaged { .. })), "{found:?}");
    let found = Place::new().unpack_in(&tar[..tar.len() - 1024], 1000, options);
    assert!(matches!(found, Err(UnpackError::Shape(Shape::CutOff))), "{found:?}");
}

#[test]
fn an_error_after_what_looks_like_the_end_is_an_error() {
    let tar = good().end();
    for bytes in [gzip(&tar), zstd::encode_all(&tar[..], 3).unwrap(), tar] {
        let pieces = [Ok(Bytes::from(bytes)), Err(io::Error::other("told too late"))];
        let found = Place::new().stream(stream::iter(pieces), Options::default());
        assert!(
            matches!(&found, Err(UnpackError::Source(error)) if error.to_string() == "told too late"),
            "{found:?}"
        );
    }
}

#[test]
fn what_is_no_archive_is_told_from_what_is_damaged() {
    let html = b"<!DOCTYPE html><html>".repeat(50);
    assert!(matches!(Place::new().unpack(&html), Err(UnpackError::NoArchive(_))));
    let mut damaged = good().end();
    damaged[1024] ^= 1;
    let found = Place::new().unpack(&damaged);
    assert!(matches!(&found, Err(UnpackError::Damaged { after, .. }) if after == "./a"), "{found:?}");
    misshapen(b"\xfd7zXZ\0....", Shape::Unread { found: "xz" });
    misshapen(b"BZh91AY", Shape::Unread { found: "bzip2" });
    let declared = Options { format: Format::Zstd, ..Options::default() };
    let found = Place::new().unpack_in(&gzip(&good().end()), 100, declared);
    let is = Shape::Undeclared { declared: Format::Zstd };
    assert!(matches!(&found, Err(UnpackError::Shape(shape)) if *shape == is), "{found:?}");
    // A checksum inside the compression.
    let mut damaged = gzip(&good().end());
    let crc = damaged.len() - 8;
    damaged[crc] ^= 1;
    assert!(matches!(Place::new().unpack(&damaged), Err(UnpackError::Damaged { .. })));
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(24).unwrap();
    encoder.write_all(&good().end()).unwrap();
    let found = Place::new().unpack(&encoder.finish().unwrap());
    assert!(matches!(found, Err(UnpackError::NoArchive(_))), "{found:?}");
}

#[test]
fn a_cancelled_unpacking_ends_whether_the_source_is_silent_or_endless() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let header = Bytes::from(Tar::default().raw(EntryType::Regular, b"endless", b"", 1 << 40, b"").0);
    let zeros = Bytes::from(vec![0; 1000]);
    let silent = stream::iter([Ok(header.clone())]).chain(stream::pending()).boxed();
    let endless = stream::iter([Ok(header)]).chain(stream::repeat_with(move || Ok(zeros.clone()))).boxed();
    for source in [silent, endless] {
        let place = Place::new();
        let (progress, cancel) = (Arc::new(Progress::default()), CancellationToken::new());
        let work = unpack(source, place.pgdata.clone(), Options::default(), progress.clone(), &cancel);
        let started = async {
            while !place.path("endless").exists() {
                tokio::task::yield_now().await;
            }
            cancel.cancel();
        };
        let (found, ()) = runtime.block_on(async { tokio::join!(work, started) });
        assert!(matches!(found, Err(UnpackError::Cancelled)), "{found:?}");
        place.outside_untouched();
    }
}

#[test]
fn a_dropped_unpacking_lets_the_directory_go() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let place = Place::new();
    let (progress, never) = (Arc::new(Progress::default()), CancellationToken::new());
    let held = Arc::downgrade(&place.pgdata);
    runtime.block_on(async {
        let source = stream::pending::<io::Result<Bytes>>();
        let work = unpack(source, place.pgdata.clone(), Options::default(), progress, &never);
        assert!(work.now_or_never().is_none());
        drop(place);
        while held.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_refusal_does_not_wait_for_a_silent_source() {
    let bytes = Bytes::from(Tar::default().file("../x", b"").end());
    let source = stream::iter([Ok(bytes)]).chain(stream::pending());
    let found = Place::new().stream(source, Options::default());
    assert!(matches!(found, Err(UnpackError::Entry { refusal: Refusal::Upwards, .. })), "{found:?}");
}
