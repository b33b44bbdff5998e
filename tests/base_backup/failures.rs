//! Servers that refuse, hang and die.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use compute_ctl::postgres::{Contents, Installation};
use compute_ctl::storage::{BaseBackupError, Context, Patience, Prepared, Storage, StorageError};
use serde_json::{Value, json};

use crate::origin::{CALM, CANARY, Origin, backup, backup_with, but, fails, no_program, parameters};
use crate::support::cut::Act;
use crate::support::lab::{Lab, chain, patiently, until};

fn from(port: u16, source: &str, password: Option<&str>) -> Value {
    json!({ "source": format!("host=127.0.0.1 port={port} {source}"), "password": password })
}

#[tokio::test]
async fn what_a_server_says_is_told_and_classed() {
    let (lab, origin) = (Lab::new().await, Origin::with("max_wal_senders = 2\nmax_replication_slots = 2"));
    let port = origin.server.port();
    for (parameters, words, passes) in [
        (parameters(1), "Connection refused", true),
        (from(port, "user=copier", Some("wrong")), "password authentication failed", false),
        (from(port, "user=copier", None), "no password supplied", false),
        (from(port, "user=nobody", Some("x")), "replication", false),
        (from(port, "user=absent", Some("x")), "authentication failed", false),
        (from(port, "user=copier sslmode=require", Some("x")), "does not support SSL", false),
    ] {
        let error = fails(&lab, &backup(parameters, true)).await;
        let text = chain(&error);
        assert!(text.contains(words) && text.contains("127.0.0.1:"), "{words}: {text}");
        assert_eq!(error.is_unreachable(), passes, "{text}");
    }
    // Too many at once is over when one of them has gone.
    origin.sql("select pg_create_physical_replication_slot('a'), pg_create_physical_replication_slot('b')");
    let error = fails(&lab, &backup(origin.parameters(), true)).await;
    assert!(error.is_unreachable() && error.to_string().contains("in use"), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_anywhere_leaves_nothing() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    for at in [0, 1, 50, 400, 600, 20_000, 1_000_000, 15_000_000] {
        let proxy = origin.proxy(Act::Break(at));
        let error = fails(&lab, &backup(parameters(proxy.port()), true)).await;
        assert!(error.is_unreachable(), "{at}: {}", chain(&error));
    }
}

#[tokio::test]
async fn silence_is_an_end() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    let hasty = Patience { idle: Duration::from_millis(300), ..CALM };
    let proxy = origin.proxy(Act::Hang(5_000_000));
    let error = fails(&lab, &backup_with(parameters(proxy.port()), true, hasty)).await;
    let silent = matches!(error, StorageError::BaseBackup(BaseBackupError::Silent { .. }));
    assert!(silent && error.is_unreachable(), "{error}");
    // No server begins at once.
    let hasty = Patience { begin: Duration::ZERO, ..CALM };
    let error = fails(&lab, &backup_with(origin.parameters(), true, hasty)).await;
    assert!(matches!(error, StorageError::BaseBackup(BaseBackupError::Silent { .. })), "{error}");
    // A server that takes connections and never says a word.
    let proxy = origin.proxy(Act::Hang(0));
    let source = format!("host=127.0.0.1 port={} user=copier connect_timeout=2", proxy.port());
    let error = fails(&lab, &backup(json!({ "source": source }), true)).await;
    assert!(error.is_unreachable() && error.to_string().contains("timeout expired"), "{error}");
}

#[tokio::test]
async fn a_cancelled_copy_leaves_no_program_and_is_removed_by_the_next_try() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    for (number, at) in [0, 50, 400, 20_000, 1_000_000, 15_000_000].into_iter().enumerate() {
        let proxy = origin.proxy(Act::Hang(at));
        let here = backup(parameters(proxy.port()), true);
        let pgdata = lab.claim(&format!("cancelled-{number}"));
        let context = lab.context(&pgdata);
        let strike = async {
            let proxy = tokio::task::spawn_blocking(move || {
                proxy.wait();
                proxy
            });
            let proxy = proxy.await.unwrap();
            context.cancel.cancel();
            proxy
        };
        let (prepared, proxy) = tokio::join!(here.prepare(&context), strike);
        let error = prepared.unwrap_err();
        assert!(error.is_cancelled(), "{at}: {error}");
        no_program(&lab);
        proxy.act(Act::Pass);
        assert_eq!(patiently(here.prepare(&lab.context(&pgdata))).await.unwrap(), Prepared::Created);
    }
}

#[tokio::test]
async fn a_dropped_copy_ends_its_program() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    let proxy = origin.proxy(Act::Hang(1_000_000));
    let here = backup(parameters(proxy.port()), true);
    let pgdata = lab.claim("pgdata");
    let context = lab.context(&pgdata);
    let below = pgdata.path().join("base_backup");
    {
        let prepare = here.prepare(&context);
        tokio::select! {
            prepared = prepare => panic!("{prepared:?}"),
            () = until(|| below.join("backup_label").exists()) => {}
        }
    }
    until(|| {
        let about = crate::support::lab::processes_about(lab.dir.path());
        about.iter().all(|(_, command)| !command.contains("pg_basebackup"))
    })
    .await;
    assert_eq!(pgdata.contents().unwrap(), Contents::Unfinished);
}

#[tokio::test]
async fn a_program_that_a_killed_node_has_left_is_ended_first() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    let proxy = origin.proxy(Act::Hang(1_000_000));
    let pgdata = lab.claim("pgdata");
    let below = pgdata.path().join("base_backup");
    let conninfo = format!("host=127.0.0.1 port={} user=copier", proxy.port());
    let mut left = Command::new(lab.installation.tool("pg_basebackup"));
    left.arg("-D").arg(&below).arg("-d").arg(&conninfo).env("PGPASSWORD", crate::origin::PASSWORD);
    let mut left = left.spawn().unwrap();
    until(|| below.join("backup_label").exists()).await;
    // The directory looks as that node had left it.
    let marker = format!("filling\n{}\n", pgdata.path().display());
    fs::write(pgdata.path().join(".compute_ctl"), marker).unwrap();
    let here = backup(origin.parameters(), true);
    assert_eq!(patiently(here.prepare(&lab.context(&pgdata))).await.unwrap(), Prepared::Created);
    use std::os::unix::process::ExitStatusExt;
    until(|| left.try_wait().unwrap().is_some()).await;
    assert_eq!(left.wait().unwrap().signal(), Some(9));
}

#[tokio::test]
async fn a_copy_that_is_not_what_was_sent_is_not_used() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    let proxy = origin.proxy(Act::Replace(CANARY, b"A CANARY IN A TABLE"));
    let parameters = but(parameters(proxy.port()), json!({ "sslmode": "disable" }));
    let error = fails(&lab, &backup(parameters.clone(), true)).await;
    let damaged = matches!(error, StorageError::BaseBackup(BaseBackupError::Damaged { .. }));
    assert!(damaged && error.to_string().contains("checksum mismatch"), "{error}");
    assert!(!error.is_unreachable());
    let unseen = backup(but(parameters, json!({ "manifest": false })), true);
    patiently(unseen.prepare(&lab.context(&lab.claim("unseen")))).await.unwrap();
}

#[tokio::test]
async fn another_version_is_named() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    let bin = lab.path("bin");
    fs::create_dir(&bin).unwrap();
    for name in ["psql", "pg_basebackup", "initdb"] {
        std::os::unix::fs::symlink(lab.installation.tool(name), bin.join(name)).unwrap();
    }
    script(&bin.join("postgres"), "echo 'postgres (PostgreSQL) 99.1'");
    let installation = Installation::find(Some(&bin.join("postgres")), None).await.unwrap();
    let pgdata = lab.claim("pgdata");
    let context = Context { installation, ..lab.context(&pgdata) };
    let error = patiently(backup(origin.parameters(), true).prepare(&context)).await.unwrap_err();
    assert!(matches!(error, StorageError::BaseBackup(BaseBackupError::WrongVersion { .. })), "{error}");
    let major = lab.installation.version().major.to_string();
    assert!(error.to_string().contains(&major) && error.to_string().contains("99.1"), "{error}");
}

fn script(path: &Path, body: &str) {
    // Written by another process: a file that this one had open for writing cannot be run while a fork of another
    // thread still holds it.
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$2"; chmod 755 "$2""#;
    assert!(Command::new("sh").args(["-c", write, "sh", body]).arg(path).status().unwrap().success());
}
