use super::*;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;

fn cluster(path: &Path) {
    fs::create_dir_all(path.join("global")).unwrap();
    fs::create_dir_all(path.join("pg_tblspc")).unwrap();
    fs::write(path.join("PG_VERSION"), "15\n").unwrap();
    fs::write(path.join("global/pg_control"), "control").unwrap();
}

fn lock_file(pid: u32, segment: &str) -> String {
    format!("{pid}\n/data\n1700000000\n5432\n/tmp\nlocalhost\n{segment}\nready   \n")
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn none() -> CancellationToken {
    CancellationToken::new()
}

#[test]
fn a_second_claim_fails_through_a_symlink_too_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("data"), dir.path().join("link"));
    symlink(&path, &link).unwrap();
    let first = DataDir::claim(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    cluster(&path);
    for way in [&path, &link] {
        assert!(matches!(DataDir::claim(way), Err(PgdataError::Locked { .. })));
    }
    assert_eq!(names(&path), ["PG_VERSION", "global", "pg_tblspc"]);
    drop(first);
    assert_eq!(DataDir::claim(&link).unwrap().path(), fs::canonicalize(&path).unwrap());
}

#[test]
fn a_foreign_directory_is_refused_untouched_with_the_flag_named() {
    let dir = tempfile::tempdir().unwrap();
    cluster(dir.path());
    let data = DataDir::claim(dir.path()).unwrap();
    let error = data.clear(ClearRule::default(), &none()).unwrap_err().to_string();
    for part in [OVERRIDE_FLAG, "PostgreSQL 15 cluster", data.path().to_str().unwrap()] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(names(dir.path()), ["PG_VERSION", "global", "pg_tblspc"]);
    data.clear(ClearRule { overwrite_foreign: true, neon: false }, &none()).unwrap();
    assert_eq!(names(dir.path()), [MARKER]);
}

#[test]
fn what_neon_may_remove() {
    let rule = ClearRule { neon: true, overwrite_foreign: false };
    let cluster = |neon| Contents::Cluster { version: "15".into(), neon, moved_from: None };
    assert!(rule.permits(&cluster(true)));
    assert!(!rule.permits(&cluster(false)));
    assert!(rule.permits(&Contents::Other { example: "x".into() }));
    assert!(!ClearRule::default().permits(&cluster(true)));
    assert!(!ClearRule::default().permits(&Contents::Other { example: "x".into() }));
}

#[test]
fn the_marker_tells_what_is_ours_and_a_copy_elsewhere_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let data = DataDir::claim(&one).unwrap();
    assert_eq!(data.contents().unwrap(), Contents::Empty);
    fs::create_dir(one.join("lost+found")).unwrap();
    assert_eq!(data.contents().unwrap(), Contents::Empty, "a new file system");
    data.clear(ClearRule::default(), &none()).unwrap();
    assert_eq!(data.contents().unwrap(), Contents::Unfinished);
    cluster(&one);
    data.finish_disposable().unwrap();
    assert_eq!(data.contents().unwrap(), Contents::Ours);

    fs::create_dir(&two).unwrap();
    cluster(&two);
    fs::copy(one.join(MARKER), two.join(MARKER)).unwrap();
    let copy = DataDir::claim(&two).unwrap();
    let error = copy.clear(ClearRule::default(), &none()).unwrap_err().to_string();
    assert!(error.contains(&format!("copied or moved from {}", data.path().display())), "{error}");

    data.finish_kept().unwrap();
    assert!(matches!(data.contents().unwrap(), Contents::Cluster { moved_from: None, .. }));
}

#[test]
fn clearing_follows_no_link_and_keeps_the_directory_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (elsewhere, path) = (dir.path().join("tablespace"), dir.path().join("data"));
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("table"), "rows").unwrap();
    let data = DataDir::claim(&path).unwrap();
    cluster(&path);
    data.finish_disposable().unwrap();
    symlink(&elsewhere, path.join("pg_tblspc/16384")).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    data.clear(ClearRule::default(), &none()).unwrap();
    assert_eq!(names(&path), [MARKER]);
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(fs::read_to_string(elsewhere.join("table")).unwrap(), "rows");
}

#[test]
fn a_cancelled_clearing_leaves_a_directory_known_as_ours() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::claim(dir.path()).unwrap();
    cluster(dir.path());
    data.finish_disposable().unwrap();
    let cancel = none();
    cancel.cancel();
    assert!(matches!(data.clear(ClearRule::default(), &cancel), Err(PgdataError::Cancelled { .. })));
    assert_eq!(data.contents().unwrap(), Contents::Unfinished);
    data.clear(ClearRule::default(), &none()).unwrap();
    assert_eq!(names(dir.path()), [MARKER]);
}

#[test]
fn a_live_process_with_the_pid_of_a_dead_server_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::claim(dir.path()).unwrap();
    let file = dir.path().join(LOCK_FILE);
    // This very process: alive, but no PostgreSQL. And one that is nobody's.
    for pid in [std::process::id(), 1, 4_194_305] {
        fs::write(&file, lock_file(pid, "  123 456")).unwrap();
        data.ensure_unused().unwrap();
        assert!(!file.exists(), "the stale file goes");
    }
}

#[test]
fn a_program_that_calls_itself_postgres_here_is_a_server_with_or_without_lock_file() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::claim(&dir.path().join("data")).unwrap();
    let program = dir.path().join("postgres");
    // A link, not a copy: a file just written cannot be run while another thread's fork holds it open.
    symlink("/bin/sleep", &program).unwrap();
    let mut start = std::process::Command::new(&program);
    let mut here = start.arg0("sleep").arg("600").current_dir(data.path()).spawn().unwrap();
    let file = data.path().join(LOCK_FILE);
    for with_file in [false, true] {
        if with_file {
            fs::write(&file, lock_file(here.id(), "")).unwrap();
        }
        let error = data.ensure_unused().unwrap_err();
        assert!(error.to_string().contains(&here.id().to_string()), "{error}");
        assert!(matches!(
            data.clear(ClearRule { neon: true, overwrite_foreign: true }, &none()),
            Err(PgdataError::Alive { .. })
        ));
        assert_eq!(file.exists(), with_file);
    }
    // A PostgreSQL, alive, with the pid of the file, but it works elsewhere: another server got the number.
    let mut elsewhere = start.current_dir(dir.path()).spawn().unwrap();
    here.kill().unwrap();
    here.wait().unwrap();
    fs::write(&file, lock_file(elsewhere.id(), "")).unwrap();
    let unused = data.ensure_unused();
    elsewhere.kill().unwrap();
    elsewhere.wait().unwrap();
    unused.unwrap();
    assert!(!file.exists());
}

#[test]
fn lock_files_are_read_as_the_server_writes_them() {
    let file = LockFile::parse(&lock_file(42, "  5432001    98304"));
    assert_eq!(
        file,
        LockFile { pid: Some(42), segment: Some((5_432_001, 98_304)), status: Some("ready".into()) }
    );
    assert_eq!(LockFile::parse("-7\n/data\n").pid, Some(7), "a stand-alone backend");
    assert_eq!(LockFile::parse(""), LockFile::default());
}

#[test]
fn errors_name_the_path_and_keep_their_cause() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [&file, &dir.path().join("absent/data")] {
        let error = DataDir::claim(path).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }
}
