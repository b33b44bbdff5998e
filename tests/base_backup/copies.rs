//! What is copied, and what becomes of it.

use std::fs;
use std::path::Path;

use compute_ctl::postgres::Contents;
use compute_ctl::storage::{BaseBackupError, Context, Phase, Prepared, Role, Storage, StorageError};
use serde_json::json;

use crate::origin::{Origin, backup, but, fails, parameters};
use crate::support::lab::{Lab, names, patiently};

#[tokio::test]
async fn a_copy_is_what_the_spec_says_and_nothing_of_its_place() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    // As if the server had been prepared by this program.
    fs::write(origin.server.data().join(".compute_ctl"), "complete\n/elsewhere\n").unwrap();
    fs::write(origin.server.data().join(".compute_ctl.pgpass"), "*:*:*:*:another's\n").unwrap();
    for (standby, signal) in [(true, "standby.signal"), (false, "recovery.signal")] {
        let pgdata = lab.claim(&format!("standby-{standby}"));
        let context = lab.context(&pgdata);
        let changes = json!({ "max_rate": 1_048_576, "compress": "gzip", "checkpoint": "fast" });
        let backup = backup(but(origin.parameters(), changes), standby);
        assert_eq!(patiently(backup.prepare(&context)).await.unwrap(), Prepared::Created);
        assert_eq!(pgdata.contents().unwrap(), Contents::Ours);
        assert_eq!(context.progress.phase(), Phase::Verifying);
        assert!(context.progress.received() > 20_000_000, "{:?}", context.progress);
        let names = names(pgdata.path());
        let signals: Vec<_> = names.iter().filter(|name| name.ends_with(".signal")).collect();
        assert_eq!(signals, [signal]);
        let strange =
            |name: &String| ["manifest", "base_backup", "pgpass"].iter().any(|part| name.contains(part));
        assert!(!names.iter().any(strange), "{names:?}");
        assert_eq!(fs::read_to_string(pgdata.path().join("postgresql.auto.conf")).unwrap(), "");
        // The same process starts the server again, and what it left is kept; a new one begins anew.
        fs::write(pgdata.path().join("written"), "").unwrap();
        let again = Context { restart: true, ..lab.context(&pgdata) };
        assert_eq!(patiently(backup.prepare(&again)).await.unwrap(), Prepared::Kept);
        assert_eq!(patiently(backup.prepare(&lab.context(&pgdata))).await.unwrap(), Prepared::Created);
        assert!(!pgdata.path().join("written").exists());
    }
    assert_eq!(origin.slots(), "");
}

#[tokio::test]
async fn a_copy_is_kept_as_long_as_it_is_one_of_its_source() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    let pgdata = lab.claim("pgdata");
    let reuse = |port| but(parameters(port), json!({ "reuse": true }));
    let here = backup(reuse(origin.server.port()), true);
    assert_eq!(patiently(here.prepare(&lab.context(&pgdata))).await.unwrap(), Prepared::Created);
    fs::write(pgdata.path().join("written"), "").unwrap();
    assert_eq!(patiently(here.prepare(&lab.context(&pgdata))).await.unwrap(), Prepared::Kept);
    // A source that is away is no reason to throw the copy away.
    let nobody = backup(reuse(1), true);
    assert_eq!(patiently(nobody.prepare(&lab.context(&pgdata))).await.unwrap(), Prepared::Kept);
    // Another cluster is one, and the operator's to give.
    let other = Origin::start();
    let elsewhere = backup(reuse(other.server.port()), true);
    let error = patiently(elsewhere.prepare(&lab.context(&pgdata))).await.unwrap_err();
    assert!(matches!(error, StorageError::BaseBackup(BaseBackupError::OtherSystem { .. })), "{error}");
    // Nor does a standby become a primary by being called one.
    let primary = backup(reuse(origin.server.port()), false);
    for refused in
        [primary.judge(&lab.context(&pgdata)).await, primary.prepare(&lab.context(&pgdata)).await.map(drop)]
    {
        assert!(matches!(refused, Err(StorageError::IsStandby { .. })), "{refused:?}");
    }
    fs::remove_file(pgdata.path().join("standby.signal")).unwrap();
    let error = here.prepare(&lab.context(&pgdata)).await.unwrap_err();
    assert!(matches!(error, StorageError::IsPrimary { .. }), "{error}");
    assert!(pgdata.path().join("written").exists());
    // One that was not finished is not a copy.
    let marker = pgdata.path().join(".compute_ctl");
    let text = fs::read_to_string(&marker).unwrap().replace("complete", "filling");
    fs::write(&marker, text).unwrap();
    assert_eq!(patiently(here.prepare(&lab.context(&pgdata))).await.unwrap(), Prepared::Created);
    assert!(!pgdata.path().join("written").exists());
}

#[tokio::test]
async fn nothing_is_removed_that_is_not_ours_or_before_the_server_was_seen() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    let pgdata = lab.claim("pgdata");
    fs::write(pgdata.path().join("somebody's"), "data").unwrap();
    let here = backup(origin.parameters(), true);
    assert!(here.judge(&lab.context(&pgdata)).await.is_err());
    let error = here.prepare(&lab.context(&pgdata)).await.unwrap_err();
    assert!(matches!(error, StorageError::Pgdata(_)), "{error}");
    assert_eq!(names(pgdata.path()), ["somebody's"]);
    fs::remove_file(pgdata.path().join("somebody's")).unwrap();
    patiently(here.prepare(&lab.context(&pgdata))).await.unwrap();
    let before = names(pgdata.path());
    patiently(backup(parameters(1), true).prepare(&lab.context(&pgdata))).await.unwrap_err();
    assert_eq!(names(pgdata.path()), before);
}

#[tokio::test]
async fn a_slot_is_made_if_it_is_to_be_this_nodes_own() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    let slot = but(origin.parameters(), json!({ "slot": "mine" }));
    let error = fails(&lab, &backup(slot.clone(), true)).await;
    assert!(matches!(error, StorageError::BaseBackup(BaseBackupError::NoSlot { .. })), "{error}");
    let own = backup(but(slot.clone(), json!({ "create_slot": true })), true);
    for name in ["a", "b"] {
        patiently(own.prepare(&lab.context(&lab.claim(name)))).await.unwrap();
        assert_eq!(origin.slots(), "mine");
    }
    patiently(backup(slot, true).prepare(&lab.context(&lab.claim("c")))).await.unwrap();
    let reserved = "select count(*) from pg_replication_slots where restart_lsn is not null";
    assert_eq!(origin.sql(reserved), "1");
}

#[tokio::test]
async fn tablespaces_outside_are_refused_before_anything_is_copied() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    let outside = origin.server.socket_dir().join("outside");
    fs::create_dir(&outside).unwrap();
    crate::support::pg::give(&outside);
    origin.sql(&format!("create tablespace fast location '{}'", outside.display()));
    origin.sql("create table there tablespace fast as select 1");
    let before = tree(&outside);
    let error = fails(&lab, &backup(origin.parameters(), true)).await;
    let StorageError::BaseBackup(BaseBackupError::Tablespaces { locations, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!(*locations, [outside.display().to_string()]);
    // A role that is let into no database sees it too late, and touches nothing that is there.
    origin.sql("revoke connect on database postgres from public");
    let error = fails(&lab, &backup(origin.parameters(), true)).await;
    assert!(error.to_string().contains("not empty") && !error.is_unreachable(), "{error}");
    assert_eq!(tree(&outside), before);
}

fn tree(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in names(dir) {
        let path = dir.join(&name);
        if path.is_dir() {
            found.extend(tree(&path));
        }
        found.push(path.display().to_string());
    }
    found
}

#[tokio::test]
async fn an_archive_becomes_what_the_spec_says() {
    let (lab, origin) = (Lab::new().await, Origin::start());
    let pgdata = lab.claim("copy");
    patiently(backup(origin.parameters(), true).prepare(&lab.context(&pgdata))).await.unwrap();
    let tar = lab.path("a.tar");
    let mut command = std::process::Command::new("tar");
    assert!(command.arg("-cf").arg(&tar).arg("-C").arg(pgdata.path()).arg(".").status().unwrap().success());
    let parameters = serde_json::from_value(json!({ "source": tar })).unwrap();
    let archive =
        compute_ctl::storage::Archive::new(compute_ctl::spec::archive::decode(&parameters).unwrap());
    for (role, signal) in [
        (Role::Primary, None),
        (Role::Restored, Some("recovery.signal")),
        (Role::Standby, Some("standby.signal")),
    ] {
        let pgdata = lab.claim(&format!("{role:?}"));
        let context = Context { role, ..lab.context(&pgdata) };
        archive.prepare(&context).await.unwrap();
        let signals: Vec<_> =
            names(pgdata.path()).into_iter().filter(|name| name.ends_with(".signal")).collect();
        assert_eq!(signals, signal.into_iter().collect::<Vec<_>>());
        // Started again as something else, it would lose what it is.
        let other = if role == Role::Standby { Role::Primary } else { Role::Standby };
        let context = Context { role: other, restart: true, ..lab.context(&pgdata) };
        archive.prepare(&context).await.unwrap_err();
    }
}
