use std::os::unix::fs::MetadataExt;

use super::*;

fn tree(dir: &Path) -> PathBuf {
    let from = dir.join("from");
    fs::create_dir_all(from.join("a/b")).unwrap();
    for name in ["one", "a/two", "a/b/three"] {
        fs::write(from.join(name), name).unwrap();
    }
    from
}

#[test]
fn a_clone_has_every_file_and_no_open_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (tree(dir.path()), dir.path().join("to"));
    fs::create_dir(&to).unwrap();
    clone(&from, &to, &CancellationToken::new()).unwrap();
    for name in ["one", "a/two", "a/b/three"] {
        assert_eq!(fs::read_to_string(to.join(name)).unwrap(), name);
    }
    assert_eq!(fs::metadata(to.join("a/b")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_cancelled_clone_says_so_and_a_failed_one_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (tree(dir.path()), dir.path().join("to"));
    fs::create_dir(&to).unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert!(clone(&from, &to, &cancel).unwrap_err().is_cancelled());
    fs::remove_dir_all(&to).unwrap();
    fs::create_dir_all(to.join("one")).unwrap();
    let error = clone(&from, &to, &CancellationToken::new()).unwrap_err().to_string();
    assert!(error.contains(to.join("one").to_str().unwrap()), "{error}");
}

fn template(cache: &Path) -> Template {
    Template { cache: cache.to_owned(), place: cache.join("place"), key: "key".to_owned() }
}

#[test]
fn of_two_builders_both_win_and_one_template_stays() {
    let dir = tempfile::tempdir().unwrap();
    let template = template(dir.path());
    let (one, two) = (Scratch::begin(dir.path()).unwrap(), Scratch::begin(dir.path()).unwrap());
    fs::write(one.path.join("by"), "one").unwrap();
    fs::write(two.path.join("by"), "two").unwrap();
    template.put_in_place(two).unwrap();
    template.put_in_place(one).unwrap();
    assert!(template.is_whole());
    assert_eq!(fs::read_to_string(template.place.join("by")).unwrap(), "two", "the first stays");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn a_broken_template_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let template = template(dir.path());
    fs::create_dir_all(template.place.join("half")).unwrap();
    fs::write(template.place.join(COMPLETE), "another key").unwrap();
    assert!(!template.is_whole());
    template.put_in_place(Scratch::begin(dir.path()).unwrap()).unwrap();
    assert!(template.is_whole());
    assert!(!template.place.join("half").exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
