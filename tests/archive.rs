//! Storage kind `archive`: servers that fail, archives that are wrong, and the whole program on real clusters.

// The whole file is a test; the lint knows only test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use compute_ctl::postgres::pgdata::MARKER;
use compute_ctl::postgres::{Contents, DataDir};
use compute_ctl::spec::archive::decode;
use compute_ctl::spec::document::StorageParameters;
use compute_ctl::storage::unpack::UnpackError;
use compute_ctl::storage::{
    Archive, ArchiveError, AttemptError, Context, DownloadError, Prepared, Storage, StorageError, Timing,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::files::{Answer, File, Server};
use support::lab::{Lab, chain, names, patiently, until};
use support::node::Place;
use support::origin::{Origin, answers, archive_spec as spec};
use support::pg;

/// Short pauses; silence is borne as long as a loaded machine may need for an answer.
const TIMING: Timing = Timing { attempts: 3, idle: Duration::from_secs(30), pause: Duration::from_millis(1) };

/// The same for servers that are silent on purpose.
const HASTY: Timing = Timing { idle: Duration::from_millis(300), ..TIMING };

fn archive(parameters: Value, timing: Timing) -> Archive {
    let parameters: StorageParameters = serde_json::from_value(parameters).unwrap();
    Archive::with_timing(decode(&parameters).unwrap(), timing)
}

fn add(tar: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(data.len() as u64);
    tar.append_data(&mut header, name, data).unwrap();
}

/// Names and contents.
type Files<'a> = &'a [(&'a str, &'a [u8])];

/// An archive that passes for a cluster of the installed version, without the trouble of one.
fn clusterish(lab: &Lab, more: Files<'_>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, "PG_VERSION", format!("{}\n", lab.installation.version().major).as_bytes());
    // Nothing that repeats, so that a part in the wrong place is noticed.
    let ballast: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    add(&mut tar, "base/ballast", &ballast);
    for (name, data) in more {
        add(&mut tar, name, data);
    }
    add(&mut tar, "global/pg_control", &[1; 8192]);
    tar.into_inner().unwrap()
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Prepares a new directory, which must be there afterwards just as the outcome says.
async fn prepare(lab: &Lab, archive: &Archive) -> Result<Arc<DataDir>, StorageError> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let pgdata = lab.claim(&format!("pgdata-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let prepared = patiently(archive.prepare(&lab.context(&pgdata))).await;
    match prepared {
        Ok(Prepared::Created) => {
            assert_eq!(pgdata.contents().unwrap(), Contents::Ours);
            let ballast = fs::read(pgdata.path().join("base/ballast")).unwrap();
            let numbers = ballast.chunks(4).map(|four| u32::from_le_bytes(four.try_into().unwrap()));
            assert!(numbers.eq(0..100_000), "the data are not what was archived");
            Ok(pgdata)
        }
        Ok(Prepared::Kept) => panic!("nothing was there to keep"),
        Err(error) => {
            assert_eq!(names(pgdata.path()), Vec::<String>::new(), "left behind after: {error}");
            Err(error)
        }
    }
}

async fn fetch(lab: &Lab, server: &Server, timing: Timing) -> Result<Arc<DataDir>, StorageError> {
    prepare(lab, &archive(json!({ "source": server.url("/a.tar") }), timing)).await
}

#[tokio::test]
async fn an_archive_comes_from_a_server_in_one_piece() {
    let lab = Lab::new().await;
    let bytes = clusterish(&lab, &[]);
    let server = Server::start([Answer::File(File::new(&bytes))]);
    let parameters = json!({ "source": server.url("/a.tar?x=1"), "sha256": sum(&bytes), "token": "abc" });
    let archive = archive(parameters, TIMING);
    let pgdata = lab.claim("pgdata");
    let context = lab.context(&pgdata);
    archive.prepare(&context).await.unwrap();
    assert_eq!(context.progress.received(), bytes.len() as u64);
    assert_eq!(context.progress.files(), 3);
    assert_eq!(server.requests()[0][0], "GET /a.tar?x=1 HTTP/1.1");
    assert_eq!(server.header("authorization"), [Some("Bearer abc".to_owned())]);
    assert_eq!(server.header("range"), [None]);
    // The same process starts the server again: what it left is kept, and nobody is asked.
    let context = Context { restart: true, ..lab.context(&pgdata) };
    fs::write(pgdata.path().join("written"), "by the server").unwrap();
    assert_eq!(archive.prepare(&context).await.unwrap(), Prepared::Kept);
    assert_eq!(server.requests().len(), 1);
    // A new process gets it anew.
    assert_eq!(archive.prepare(&lab.context(&pgdata)).await.unwrap(), Prepared::Created);
    assert!(!pgdata.path().join("written").exists());
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_broken_connection_is_resumed_where_it_broke() {
    let lab = Lab::new().await;
    let bytes = clusterish(&lab, &[]);
    for (validator, condition) in [
        ("ETag: \"one\"", "\"one\""),
        ("Last-Modified: Mon, 05 Jan 2026 10:00:00 GMT", "Mon, 05 Jan 2026 10:00:00 GMT"),
    ] {
        let file = File { validator: Some(validator.to_owned()), ..File::new(&bytes) };
        let first = File { breaks: Some(100_000), ..file.clone() };
        let second = File { breaks: Some(1000), ..file.clone() };
        let server = Server::start([Answer::File(first), Answer::File(second), Answer::File(file)]);
        fetch(&lab, &server, TIMING).await.unwrap();
        let ranges = [None, Some("bytes=100000-".to_owned()), Some("bytes=101000-".to_owned())];
        assert_eq!(server.header("range"), ranges);
        let condition = Some(condition.to_owned());
        assert_eq!(server.header("if-range"), [None, condition.clone(), condition]);
    }
}

#[tokio::test]
async fn a_server_that_sends_everything_again_is_taken_up_on_it() {
    let lab = Lab::new().await;
    let bytes = clusterish(&lab, &[]);
    let file = File { ranges: false, ..File::new(&bytes) };
    let broken = File { breaks: Some(100_000), ..file.clone() };
    let server = Server::start([Answer::File(broken), Answer::File(file)]);
    fetch(&lab, &server, TIMING).await.unwrap();
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn silence_is_a_broken_connection() {
    let lab = Lab::new().await;
    let bytes = clusterish(&lab, &[]);
    let file = File::new(&bytes);
    let hanging = File { breaks: Some(100_000), hangs: true, ..file.clone() };
    let server = Server::start([Answer::Silence, Answer::File(hanging), Answer::File(file)]);
    fetch(&lab, &server, HASTY).await.unwrap();
    assert_eq!(server.header("range"), [None, None, Some("bytes=100000-".to_owned())]);
    let server = Server::start([Answer::Silence]);
    let error = fetch(&lab, &server, HASTY).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    let silent = |source: &AttemptError| matches!(source, AttemptError::Silent(_));
    match error {
        StorageError::Archive(ArchiveError::Download(DownloadError::Exhausted { attempts: 3, source }))
            if silent(&source) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn what_another_archive_would_be_mixed_with_is_given_up() {
    let lab = Lab::new().await;
    let bytes = clusterish(&lab, &[]);
    let file = File::new(&bytes);
    let broken = Answer::File(File { breaks: Some(100_000), ..file.clone() });
    let changed = File { validator: Some("ETag: \"two\"".to_owned()), ..file.clone() };
    let server = Server::start([broken.clone(), Answer::File(changed)]);
    let error = fetch(&lab, &server, TIMING).await.unwrap_err();
    let is = matches!(&error, StorageError::Archive(ArchiveError::Download(DownloadError::Changed)));
    assert!(is && error.is_unreachable(), "{error:?}");
    let server = Server::start([broken.clone(), Answer::File(File::new(&bytes[..200_000]))]);
    let error = fetch(&lab, &server, TIMING).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Archive(ArchiveError::Download(DownloadError::Changed))),
        "{error:?}"
    );
    let server = Server::start([broken, Answer::File(File { wrong_start: Some(99_999), ..file.clone() })]);
    let error = fetch(&lab, &server, TIMING).await.unwrap_err();
    assert!(
        matches!(
            &error,
            StorageError::Archive(ArchiveError::Download(DownloadError::Range { wanted: 100_000, got })) if got.contains("99999")
        ),
        "{error:?}"
    );
    // A weak tag does not tell, and without a checksum nothing else would.
    let weak = File { validator: Some("ETag: W/\"one\"".to_owned()), ..file };
    let broken = Answer::File(File { breaks: Some(100_000), ..weak.clone() });
    let server = Server::start([broken.clone(), Answer::File(weak.clone())]);
    let error = fetch(&lab, &server, TIMING).await.unwrap_err();
    assert!(
        matches!(&error, StorageError::Archive(ArchiveError::Download(DownloadError::NotResumable(_)))),
        "{error:?}"
    );
    let server = Server::start([broken, Answer::File(weak)]);
    let parameters = json!({ "source": server.url("/"), "sha256": sum(&bytes) });
    prepare(&lab, &archive(parameters, TIMING)).await.unwrap();
    assert_eq!(server.header("range")[1].as_deref(), Some("bytes=100000-"));
}

#[tokio::test]
async fn lies_about_the_length_are_noticed() {
    let lab = Lab::new().await;
    let bytes = clusterish(&lab, &[]);
    let file = File::new(&bytes);
    // More than there is: the rest is asked for, and there is none.
    let long = File { length: Some(Some(bytes.len() + 1)), ..file.clone() };
    let server = Server::start([Answer::File(long)]);
    let error = fetch(&lab, &server, TIMING).await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    // Less: the archive ends before its end mark.
    let short = File { length: Some(Some(bytes.len() - 9000)), ..file.clone() };
    let server = Server::start([Answer::File(short)]);
    let error = fetch(&lab, &server, TIMING).await.unwrap_err();
    assert!(matches!(error, StorageError::Archive(ArchiveError::Unpack(_))), "{error:?}");
    // None: the end of the connection is the end of the archive.
    let server = Server::start([Answer::File(File { length: Some(None), ..file })]);
    fetch(&lab, &server, TIMING).await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_named_and_a_weakness_is_waited_out() {
    let lab = Lab::new().await;
    let file = Answer::File(File::new(&clusterish(&lab, &[])));
    let none = String::new;
    for status in [401, 403, 404, 204, 206] {
        let server = Server::start([Answer::Status(status, none())]);
        let error = fetch(&lab, &server, TIMING).await.unwrap_err();
        assert!(chain(&error).contains(&status.to_string()) && !error.is_unreachable(), "{}", chain(&error));
        assert_eq!(server.requests().len(), 1);
    }
    for status in [500, 503, 429] {
        let server = Server::start([Answer::Status(status, none())]);
        let error = fetch(&lab, &server, TIMING).await.unwrap_err();
        assert!(chain(&error).contains(&status.to_string()) && error.is_unreachable(), "{}", chain(&error));
        assert_eq!(server.requests().len(), 3);
        let server = Server::start([Answer::Status(status, none()), file.clone()]);
        fetch(&lab, &server, TIMING).await.unwrap();
    }
    // Nobody listens there any more.
    let gone = Server::start([file]).url("/");
    let error = prepare(&lab, &archive(json!({ "source": gone }), TIMING)).await.unwrap_err();
    assert!(error.is_unreachable(), "{}", chain(&error));
}

#[tokio::test]
async fn redirects_are_followed_a_few_times_and_without_the_token() {
    let lab = Lab::new().await;
    let store = Server::start([Answer::File(File::new(&clusterish(&lab, &[])))]);
    let server = Server::start([Answer::Status(302, format!("Location: {}", store.url("/b")))]);
    let parameters = json!({ "source": server.url("/a"), "token": "abc" });
    prepare(&lab, &archive(parameters, TIMING)).await.unwrap();
    assert_eq!(server.header("authorization"), [Some("Bearer abc".to_owned())]);
    assert_eq!(store.header("authorization"), [None]);
    assert_eq!(store.header("referer"), [None]);
    let circle = Server::start([Answer::Status(307, "Location: /again?signature=hunter2".to_owned())]);
    let error = fetch(&lab, &circle, TIMING).await.unwrap_err();
    let text = chain(&error);
    assert!(text.contains("redirect") && text.contains("too many") && !text.contains("hunter2"), "{text}");
    assert_eq!(circle.requests().len(), 6);
}

#[tokio::test]
async fn another_archive_than_the_spec_says_is_not_used() {
    let lab = Lab::new().await;
    let bytes = clusterish(&lab, &[]);
    let path = lab.path("a.tar");
    fs::write(&path, &bytes).unwrap();
    let expected = "0".repeat(64);
    let error =
        prepare(&lab, &archive(json!({ "source": path, "sha256": expected }), TIMING)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&expected) && text.contains(&sum(&bytes)), "{text}");
}

#[tokio::test]
async fn what_is_no_cluster_of_this_version_is_not_used() {
    let lab = Lab::new().await;
    let path = lab.path("a.tar");
    let major = format!("{}\n", lab.installation.version().major);
    let cases: [(&str, Files<'_>); 5] = [
        ("PG_VERSION is missing", &[("global/pg_control", &[1; 8192])]),
        ("global/pg_control is missing", &[("PG_VERSION", major.as_bytes())]),
        (
            "global/pg_control is missing",
            &[("PG_VERSION", major.as_bytes()), ("global/pg_control", b"short")],
        ),
        ("PostgreSQL 9", &[("PG_VERSION", b"9\n"), ("global/pg_control", &[1; 8192])]),
        (
            "PG_VERSION is missing",
            &[("data/PG_VERSION", major.as_bytes()), ("data/global/pg_control", &[1; 8192])],
        ),
    ];
    for (words, files) in cases {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, data) in files {
            add(&mut tar, name, data);
        }
        fs::write(&path, tar.into_inner().unwrap()).unwrap();
        let error = prepare(&lab, &archive(json!({ "source": path }), TIMING)).await.unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    fs::write(&path, clusterish(&lab, &[("tablespace_map", b"16384 /srv/fast\n")])).unwrap();
    let error = prepare(&lab, &archive(json!({ "source": path }), TIMING)).await.unwrap_err();
    assert!(matches!(error, StorageError::Archive(ArchiveError::Tablespaces)), "{error}");
    for (path, words) in [(lab.path("missing"), "missing"), (lab.dir.path().to_owned(), "no regular file")] {
        let error = prepare(&lab, &archive(json!({ "source": path }), TIMING)).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn an_archive_brings_no_settings_and_no_identity_of_its_place() {
    let lab = Lab::new().await;
    let path = lab.path("a.tar");
    let more: [(&str, &[u8]); 7] = [
        ("standby.signal", b""),
        ("recovery.signal", b""),
        ("postgresql.auto.conf", b"restore_command = 'sh -c evil'\n"),
        ("postmaster.pid", b"1\n"),
        ("postmaster.opts", b"x"),
        ("backup_label", b"kept"),
        (MARKER, b"complete\n/elsewhere\n"),
    ];
    fs::write(&path, clusterish(&lab, &more)).unwrap();
    let pgdata = prepare(&lab, &archive(json!({ "source": path }), TIMING)).await.unwrap();
    let expected = [MARKER, "PG_VERSION", "backup_label", "base", "global", "postgresql.auto.conf"];
    assert_eq!(names(pgdata.path()), expected);
    assert_eq!(fs::read_to_string(pgdata.path().join("postgresql.auto.conf")).unwrap(), "");
}

#[tokio::test]
async fn nothing_is_removed_that_is_not_ours_or_before_the_archive_is_there() {
    let lab = Lab::new().await;
    let pgdata = lab.claim("pgdata");
    fs::write(pgdata.path().join("somebody's"), "data").unwrap();
    let path = lab.path("a.tar");
    fs::write(&path, clusterish(&lab, &[])).unwrap();
    let archive_there = archive(json!({ "source": path }), TIMING);
    let context = lab.context(&pgdata);
    assert!(archive_there.judge(&context).await.is_err());
    let error = archive_there.prepare(&context).await.unwrap_err();
    assert!(matches!(error, StorageError::Pgdata(_)), "{error}");
    assert_eq!(names(pgdata.path()), ["somebody's"]);
    fs::remove_file(pgdata.path().join("somebody's")).unwrap();
    archive_there.prepare(&context).await.unwrap();
    let before = names(pgdata.path());
    let missing = archive(json!({ "source": lab.path("missing") }), TIMING);
    missing.prepare(&context).await.unwrap_err();
    assert_eq!(names(pgdata.path()), before);
}

#[tokio::test]
async fn a_cancelled_archive_is_removed_by_the_next_try() {
    let lab = Lab::new().await;
    let bytes = clusterish(&lab, &[]);
    let hanging = File { breaks: Some(100_000), hangs: true, ..File::new(&bytes) };
    let server = Server::start([Answer::File(hanging), Answer::File(File::new(&bytes))]);
    let archive = archive(json!({ "source": server.url("/") }), TIMING);
    let pgdata = lab.claim("pgdata");
    let context = lab.context(&pgdata);
    let partial = pgdata.path().join("base/ballast");
    let cancel = async {
        until(|| partial.exists()).await;
        context.cancel.cancel();
    };
    let (prepared, ()) = tokio::join!(archive.prepare(&context), cancel);
    let error = prepared.unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    assert!(
        matches!(error, StorageError::Archive(ArchiveError::Unpack(UnpackError::Cancelled))),
        "{error:?}"
    );
    assert_eq!(pgdata.contents().unwrap(), Contents::Unfinished);
    assert_eq!(archive.prepare(&lab.context(&pgdata)).await.unwrap(), Prepared::Created);
}

fn restores(place: &Place, storage: Value) {
    place.configure(&spec(place, storage));
    // A new process restores again, whatever was written in between.
    for _ in 0..2 {
        let node = place.start(&[]);
        node.wait_status("running");
        answers(place);
        place.sql("delete from kept");
        node.terminate();
    }
}

#[test]
fn a_cluster_is_restored_from_all_formats() {
    let origin = Origin::new();
    let place = Place::new();
    for (name, arguments, strip) in
        [("plain.tar", &["-C"][..], 0), ("data.tgz", &["-z"], 1), ("data.tar.zst", &["--zstd", "-C"], 0)]
    {
        let path = origin.tar(name, arguments);
        let sum = sum(&fs::read(&path).unwrap());
        restores(&place, json!({ "source": path, "sha256": sum, "strip_components": strip }));
    }
}

#[test]
fn a_base_backup_of_a_living_server_is_restored_from_a_server_that_breaks() {
    let origin = Origin::new();
    let running = origin.place.start(&[]);
    running.wait_status("running");
    let backup = origin.place.path().join("backup");
    let port = origin.place.postgres.to_string();
    let mut command = pg::command("pg_basebackup");
    command.args(["-Ft", "-z", "-Xfetch", "-cfast", "-h127.0.0.1", "-Ucloud_admin", "-p", &port, "-D"]);
    let output = command.arg(&backup).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = fs::read(backup.join("base.tar.gz")).unwrap();
    let file = File::new(&bytes);
    let broken = File { breaks: Some(bytes.len() / 2), ..file.clone() };
    let server =
        Server::start([Answer::Status(503, String::new()), Answer::File(broken), Answer::File(file)]);
    let place = Place::new();
    restores(&place, json!({ "source": server.url("/base.tar.gz"), "sha256": sum(&bytes) }));
    assert_eq!(server.requests().len(), 4);
    running.terminate();
}

#[test]
fn a_wrong_checksum_ends_the_start_and_leaves_nothing() {
    let place = Place::new();
    let path: PathBuf = place.path().join("a.tar");
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, "PG_VERSION", b"15\n");
    fs::write(&path, tar.into_inner().unwrap()).unwrap();
    pg::give(&path);
    place.configure(&spec(&place, json!({ "source": path, "sha256": "0".repeat(64) })));
    let node = place.start(&[]);
    node.wait_status("failed");
    let body = node.request("GET", "/status", None).unwrap().1;
    assert!(body.contains("SHA-256") && body.contains(&"0".repeat(64)), "{body}");
    assert_eq!(entries(&place.pgdata()), 0);
    node.signal(nix::sys::signal::Signal::SIGTERM);
    node.exit_code();
}

#[test]
fn wrong_parameters_are_told_before_anything_is_touched() {
    let place = Place::new();
    place.configure(&spec(&place, json!({ "source": "relative", "sha256": "12" })));
    let node = place.start(&[]);
    assert_eq!(node.exit_code(), 78, "{}", node.log());
    for field in ["spec.storage.source", "spec.storage.sha256"] {
        assert!(node.log().contains(field), "{}", node.log());
    }
    // A template that nobody has filled in is legal to check, and not to start.
    place.configure(&spec(&place, json!({ "source": "${SOURCE}" })));
    let node = place.start(&[]);
    assert_eq!(node.exit_code(), 78, "{}", node.log());
    assert!(node.log().contains("storage.source"), "{}", node.log());
    assert_eq!(entries(&place.pgdata()), 0);
}

fn entries(path: &Path) -> usize {
    fs::read_dir(path).map_or(0, |entries| entries.count())
}
