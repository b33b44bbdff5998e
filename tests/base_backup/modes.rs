//! Modes Replica and Static on the other kinds.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::node::{Place, eventually};
use crate::support::pg;
use crate::support::processes::Process;

/// A primary that is a node of this program, with a table, and a copy of its data elsewhere.
struct Primary {
    place: Place,
}

impl Primary {
    fn new() -> Self {
        let place = Place::new();
        place.configure(&place.kept_spec());
        Self { place }
    }

    fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=cloud_admin", self.place.postgres)
    }
}

/// A spec of this kind and mode that follows a primary by its own settings.
fn following(place: &Place, storage: Value, mode: Value, primary: &Primary) -> Value {
    let mut spec = place.spec();
    spec["storage"] = storage;
    spec["mode"] = mode;
    let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
    settings.push(json!({ "name": "primary_conninfo", "value": primary.conninfo(), "vartype": "string" }));
    spec
}

fn copy(from: &Place, to: &Place) {
    pg::restore(&from.pgdata(), &to.pgdata());
}

#[test]
fn a_replica_on_existing_data_and_on_an_archive_follows_its_primary() {
    let primary = Primary::new();
    let node = primary.place.start(&[]);
    node.wait_status("running");
    primary.place.sql("create table kept as select 42 as answer");
    node.terminate();
    let tar = primary.place.path().join("a.tar");
    let mut command = Command::new("tar");
    let tarred = command.arg("-cf").arg(&tar).arg("-C").arg(primary.place.pgdata()).arg(".").status();
    assert!(tarred.unwrap().success());
    pg::give(&tar);
    let existing = Place::new();
    copy(&primary.place, &existing);
    let restored = Place::new();
    let node = primary.place.start(&[]);
    node.wait_status("running");
    for (place, storage) in
        [(&existing, json!({ "kind": "existing" })), (&restored, json!({ "kind": "archive", "source": tar }))]
    {
        let spec = following(place, storage, json!("Replica"), &primary);
        place.configure(&spec);
        let standby = place.start(&[]);
        standby.wait_status("running");
        primary.place.sql("create table if not exists news (n int); insert into news values (1)");
        let rows = primary.place.sql("select count(*) from news");
        eventually("the primary's rows on the standby", || {
            (place.try_sql("postgres", "select count(*) from news").ok().as_ref() == Some(&rows))
                .then_some(())
        });
        assert_eq!(place.sql("select pg_is_in_recovery()"), "t");
        // Settings are changed as on a primary, in sessions that only read.
        let mut changed = spec.clone();
        let settings = changed["cluster"]["settings"].as_array_mut().unwrap();
        settings.push(json!({ "name": "work_mem", "value": "9MB", "vartype": "string" }));
        let (code, body) = standby.configure(&changed);
        assert_eq!(code, 200, "{body}");
        assert_eq!(place.sql("show work_mem"), "9MB");
        let settings = changed["cluster"]["settings"].as_array_mut().unwrap();
        settings.push(json!({ "name": "work_mem", "value": "9XB", "vartype": "string" }));
        let (code, body) = standby.configure(&changed);
        assert!(code != 200 && body.to_string().contains("work_mem"), "{code} {body}");
        assert_eq!(place.sql("show work_mem"), "9MB");
        standby.terminate();
    }
    // A standby's data are no primary's because a spec, which may just not name a mode, says so.
    existing.configure(&existing.kept_spec());
    let refused = existing.start(&[]);
    assert_eq!(refused.exit_code(), 73, "{}", refused.log());
    assert!(refused.log().contains("POST /promote"), "{}", refused.log());
    assert!(existing.pgdata().join("standby.signal").exists());
    // Promoted, they are.
    existing.configure(&following(&existing, json!({ "kind": "existing" }), json!("Replica"), &primary));
    let standby = existing.start(&[]);
    standby.wait_status("running");
    assert_eq!(existing.sql("select pg_promote()"), "t");
    standby.terminate();
    existing.configure(&existing.kept_spec());
    let promoted = existing.start(&[]);
    promoted.wait_status("running");
    existing.sql("insert into kept values (43)");
    promoted.terminate();
    node.terminate();
}

#[test]
fn what_cannot_be_a_standby_is_refused() {
    let place = Place::new();
    let mut spec = place.spec();
    spec["mode"] = json!("Replica");
    let mut off = place.kept_spec();
    off["mode"] = json!("Replica");
    let settings = off["cluster"]["settings"].as_array_mut().unwrap();
    settings.push(json!({ "name": "hot_standby", "value": "OF", "vartype": "string" }));
    let mut empty = place.kept_spec();
    empty["mode"] = json!({ "Static": "0/1" });
    for (spec, code, words) in [
        (spec, 78, "a fresh cluster has no primary"),
        (off, 78, "hot_standby off"),
        (empty, 73, "no cluster that could be a standby"),
    ] {
        place.configure(&spec);
        let node = place.start(&[]);
        assert_eq!(node.exit_code(), code, "{}", node.log());
        assert!(node.log().contains(words), "{}", node.log());
        assert_eq!(fs::read_dir(place.pgdata()).map_or(0, |entries| entries.count()), 0);
    }
}

#[test]
fn how_a_crashed_cluster_is_synced_before_it_recovers_is_a_setting() {
    let place = Place::new();
    let mut spec = place.kept_spec();
    let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
    settings.push(json!({ "name": "recovery_init_sync_method", "value": "syncfs", "vartype": "enum" }));
    place.configure(&spec);
    let node = place.start(&[]);
    node.wait_status("running");
    Process::of(node.postmaster()).unwrap().signal(Signal::SIGKILL);
    node.exit_code();
    let node = place.start(&[]);
    node.wait_status("running");
    node.wait_log("database system was not properly shut down");
    assert_eq!(place.sql("show recovery_init_sync_method"), "syncfs");
    node.terminate();
}

/// An archive, and an archive of WAL beside it.
#[test]
fn an_archive_is_restored_to_a_point() {
    let primary = Primary::new();
    let wal = primary.place.path().join("wal");
    fs::create_dir(&wal).unwrap();
    pg::give(&wal);
    let mut spec = primary.place.kept_spec();
    let command = format!("cp %p {}/%f", wal.display());
    let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
    settings.push(json!({ "name": "archive_mode", "value": "on", "vartype": "string" }));
    settings.push(json!({ "name": "archive_command", "value": command, "vartype": "string" }));
    primary.place.configure(&spec);
    let node = primary.place.start(&[]);
    node.wait_status("running");
    let backup = primary.place.path().join("backup");
    let mut command = pg::command("pg_basebackup");
    command.args(["-Ft", "-Xfetch", "-cfast", "-h127.0.0.1", "-Ucloud_admin", "-p"]);
    let output = command.arg(primary.place.postgres.to_string()).arg("-D").arg(&backup).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    primary.place.sql("create table early as select 1");
    let lsn = primary.place.sql("select pg_current_wal_insert_lsn()");
    primary.place.sql("create table late as select 1");
    // A fast shutdown archives what there is.
    primary.place.sql("select pg_switch_wal()");
    node.terminate();

    let place = Place::new();
    let setting = |name: &str, value: &str| json!({ "name": name, "value": value, "vartype": "string" });
    let restore = setting("restore_command", &format!("cp {}/%f %p", wal.display()));
    for (mode, more, recovering, late) in [
        (json!("Primary"), Some(setting("recovery_target_lsn", &lsn)), "f", false),
        (json!("Primary"), None, "f", true),
        (json!({ "Static": lsn }), None, "t", false),
    ] {
        let mut spec = place.spec();
        spec["storage"] = json!({ "kind": "archive", "source": backup.join("base.tar") });
        spec["mode"] = mode.clone();
        let settings = spec["cluster"]["settings"].as_array_mut().unwrap();
        settings.push(restore.clone());
        settings.extend(more);
        place.configure(&spec);
        let node = place.start(&[]);
        node.wait_status("running");
        // A primary is not ready before it has come to its end, when it could only be read.
        assert_eq!(place.sql("show hot_standby"), if mode == "Primary" { "off" } else { "on" });
        eventually("the first table", || place.try_sql("postgres", "select from early").ok());
        if mode != "Primary" {
            eventually("the pause", || {
                (place.sql("select pg_get_wal_replay_pause_state()") == "paused").then_some(())
            });
        }
        assert_eq!(place.sql("select pg_is_in_recovery()"), recovering);
        assert_eq!(place.try_sql("postgres", "select from late").is_ok(), late, "{mode}");
        node.signal(Signal::SIGTERM);
        node.ends_with(0, &[]);
    }
}
