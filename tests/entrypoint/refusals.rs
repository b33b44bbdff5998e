//! What cannot be served ends with a code and a message of its own, and touches nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::node::{Place, eventually, port};
use crate::support::pg::{self, ADMIN, Server};

/// Mode, time of the last change and contents of everything in a directory.
type Tree = BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)>;

fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let contents = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if metadata.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, (metadata.mode(), metadata.mtime(), metadata.mtime_nsec(), contents));
    }
    found
}

/// Runs a command line that must be refused with this code and these words, without touching the data directory.
fn refused(place: &Place, command: Command, code: i32, words: &[&str]) {
    let before = tree(&place.pgdata());
    let node = place.run(command);
    node.ends_with(code, &[]);
    let log = node.log();
    for word in words {
        assert!(log.contains(word), "{word:?} not in\n{log}");
    }
    // Said once, and not once more as its own cause.
    let last = log.lines().last().unwrap_or_default();
    let twice = words.iter().all(|word| last.matches(word).count() > 1);
    assert!(!twice, "{last}");
    let after = tree(&place.pgdata());
    let changed: Vec<_> = after.iter().filter(|(path, was)| before.get(*path) != Some(was)).collect();
    let gone: Vec<_> = before.keys().filter(|path| !after.contains_key(*path)).collect();
    // As root the empty directory is made for the unprivileged user before it is known what is in the way.
    let only_made = before.is_empty() && after.len() == 1;
    assert!((changed.is_empty() || only_made) && gone.is_empty(), "{changed:?} {gone:?}");
}

fn flat(place: &Place, more: &[&str]) -> Command {
    let mut command = place.program();
    command.args(place.arguments()).args(more);
    command
}

#[test]
fn bad_flags() {
    let place = Place::new();
    place.configure(&place.spec());
    let port = place.external.to_string();
    for (more, words) in [
        (&["--nonsense"][..], "--nonsense"),
        (&["--restart", "perhaps"], "perhaps"),
        (&["--crash-linger", "5"], "--crash-linger"),
        (&["--privileged-role-name", "A"], "--privileged-role-name"),
    ] {
        refused(&place, flat(&place, more), 2, &[words]);
    }
    let mut command = place.program();
    command.args(["--config", "x", "--compute-id", "x", "--connstr", "postgresql://u@localhost/d"]);
    refused(&place, command, 2, &["--pgdata"]);
    // Who connects is not left to the name of whoever runs this.
    let anonymous = |word: String| {
        if word.starts_with("postgresql://") { "postgresql://localhost/d".to_owned() } else { word }
    };
    let mut command = place.program();
    command.args(place.arguments().into_iter().map(anonymous));
    refused(&place, command, 2, &["--connstr", "user"]);
    let mut command = place.program();
    let same = |word: String| if word == place.internal.to_string() { port.clone() } else { word };
    command.args(place.arguments().into_iter().map(same));
    refused(&place, command, 2, &[&port]);
}

#[test]
fn bad_and_unreadable_configs() {
    let place = Place::new();
    let name = place.config_file();
    let name = name.to_str().unwrap();
    refused(&place, flat(&place, &[]), 66, &[name, "No such file"]);

    let mut spec = place.spec();
    spec["cluster"]["settings"][3]["value"] = json!("16MB\nfsync = off");
    place.configure(&spec);
    refused(&place, flat(&place, &[]), 78, &[name, "line 1", "spec.cluster.settings[3].value"]);

    fs::write(name, "{\n  \"spec\": }").unwrap();
    refused(&place, flat(&place, &[]), 78, &[name, "line 2"]);

    let mut spec = place.spec();
    spec.as_object_mut().unwrap().remove("storage");
    place.configure(&spec);
    refused(&place, flat(&place, &[]), 78, &["pageserver connection information", "initdb"]);

    let mut spec = place.spec();
    spec["mode"] = json!("Replica");
    place.configure(&spec);
    refused(&place, flat(&place, &[]), 78, &["mode replica"]);
}

#[test]
fn programs_that_are_missing_too_old_or_something_else() {
    let place = Place::new();
    place.configure(&place.spec());
    for (name, body, code, words) in [
        ("absent/postgres", None, 69, "there is no PostgreSQL server at"),
        ("old/postgres", Some("echo 'postgres (PostgreSQL) 14.9'"), 71, "14.9"),
        ("other/postgres", Some("echo hello"), 69, "hello"),
        ("failing/postgres", Some("exit 3"), 69, "does not answer"),
    ] {
        let path = match body {
            Some(body) => place.script(name, body),
            None => place.path().join(name),
        };
        let path = path.to_str().unwrap();
        refused(&place, flat(&place, &["--pgbin", path]), code, &[path, words]);
    }
}

#[test]
fn ports_in_use() {
    let place = Place::new();
    place.configure(&place.spec());
    for (which, number) in [("external", place.external), ("internal", place.internal)] {
        let _taken = TcpListener::bind(("127.0.0.1", number)).unwrap();
        refused(&place, flat(&place, &[]), 72, &[which, &number.to_string(), "in use"]);
    }
}

#[test]
fn the_port_of_postgres_in_use() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    node.terminate();
    // Who listens there would be taken for Postgres; and the data of before must not be lost for it.
    let _taken = TcpListener::bind(("127.0.0.1", place.postgres)).unwrap();
    refused(&place, flat(&place, &[]), 72, &[&format!("port {}", place.postgres), "in use"]);
}

fn initdb(place: &Place) {
    let mut initdb = pg::command("initdb");
    initdb.args(["-U", ADMIN, "-A", "trust", "--no-sync", "--no-instructions", "-D"]).arg(place.pgdata());
    let output = initdb.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_cluster_of_somebody_else() {
    let place = Place::new();
    place.configure(&place.spec());
    initdb(&place);
    let pgdata = place.pgdata();
    let words = [pgdata.to_str().unwrap(), "--overwrite-foreign-pgdata"];
    refused(&place, flat(&place, &[]), 73, &words);
    // A lock file that a dead server left belongs to the cluster, too.
    fs::write(pgdata.join("postmaster.pid"), "999999999\n/data\n1700000000\n5432\n/tmp\n\n1 1\nready   \n")
        .unwrap();
    refused(&place, flat(&place, &[]), 73, &words);
    fs::remove_file(pgdata.join("postmaster.pid")).unwrap();

    // Nor when it arrives by a request instead of the config.
    place.configure(&Value::Null);
    let node = place.start(&[]);
    node.wait_status("empty");
    let before = tree(&pgdata);
    let (code, body) = node.configure(&place.spec());
    assert_eq!(code, 500, "{body}");
    assert!(body["error"].as_str().unwrap().contains("--overwrite-foreign-pgdata"), "{body}");
    assert_eq!(node.status().unwrap()["status"], "failed");
    assert!(before == tree(&pgdata), "the cluster was touched");
    node.signal(Signal::SIGTERM);
    node.ends_with(1, &[]);

    // The flag it names is enough.
    place.configure(&place.spec());
    let node = place.start(&["--overwrite-foreign-pgdata"]);
    node.wait_status("running");
    node.terminate();
}

#[test]
fn a_directory_that_is_no_cluster() {
    let place = Place::new();
    fs::create_dir(place.pgdata()).unwrap();
    fs::write(place.pgdata().join("letter.txt"), "dear").unwrap();
    fs::set_permissions(place.pgdata(), fs::Permissions::from_mode(0o755)).unwrap();
    pg::give(&place.pgdata());
    for spec in [place.spec(), place.kept_spec()] {
        place.configure(&spec);
        refused(&place, flat(&place, &[]), 73, &["letter.txt", place.pgdata().to_str().unwrap()]);
    }
}

#[test]
fn a_cluster_of_another_version() {
    let place = Place::new();
    place.configure(&place.kept_spec());
    initdb(&place);
    fs::write(place.pgdata().join("PG_VERSION"), "14\n").unwrap();
    refused(&place, flat(&place, &[]), 73, &["14", place.pgdata().to_str().unwrap()]);
}

#[test]
fn a_second_node_on_one_directory() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    // The postmaster's own children come and go.
    let processes = place.processes();
    let own = processes.iter().find(|process| process.name == "compute_ctl").expect("the node runs");
    let postmaster = processes.iter().find(|process| process.parent == own.pid).expect("its server runs");
    let mut second = place.program();
    let other_ports = |word: String| match word {
        word if word == place.external.to_string() || word == place.internal.to_string() => {
            port().to_string()
        }
        word => word,
    };
    second.args(place.arguments().into_iter().map(other_ports));
    let output = second.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(73), "{text}");
    assert!(text.contains("in use by another compute_ctl"), "{text}");
    assert!(text.contains(place.pgdata().to_str().unwrap()), "{text}");
    assert!(own.exists() && postmaster.exists(), "{processes:?}");
    assert_eq!(node.status().unwrap()["status"], "running");
    place.sql("select 1");
    node.terminate();
}

#[test]
fn a_directory_with_a_server_on_it() {
    let server = Server::start("");
    let place = Place::new();
    for flags in [&[][..], &["--overwrite-foreign-pgdata"]] {
        place.configure(&place.spec());
        let data = server.data();
        let mut command = place.program();
        let pgdata = place.pgdata();
        let there = |word: String| match word {
            word if Path::new(&word) == pgdata => data.to_str().unwrap().to_owned(),
            word => word,
        };
        command.args(place.arguments().into_iter().map(there)).args(flags);
        // A server says that it is ready a moment before it writes it down.
        let lock = eventually("a server that is ready", || {
            fs::read_to_string(data.join("postmaster.pid")).ok().filter(|lock| lock.contains("ready"))
        });
        refused(&place, command, 73, &[data.to_str().unwrap(), "a PostgreSQL server is running"]);
        assert_eq!(fs::read_to_string(data.join("postmaster.pid")).unwrap(), lock);
        let alive = pg::command("psql")
            .args(["-XwtAqc", "select 1", "-h", data.parent().unwrap().to_str().unwrap(), "-U", ADMIN])
            .args(["-p", &server.port().to_string(), "-d", "postgres"])
            .output();
        assert_eq!(String::from_utf8_lossy(&alive.unwrap().stdout), "1\n");
    }
}

#[test]
fn check_judges_a_file_and_starts_nothing() {
    let place = Place::new();
    place.configure(&place.spec());
    let check = |file: &Path| place.program().arg("check").arg(file).output().unwrap();
    let good = check(&place.config_file());
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    let mut spec = place.spec();
    spec["cluster"]["roles"] = json!([{ "name": "" }]);
    place.configure(&spec);
    let bad = check(&place.config_file());
    assert_eq!(bad.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&bad.stdout).contains("spec.cluster.roles[0].name"), "{bad:?}");
    assert_eq!(check(&place.path().join("absent")).status.code(), Some(66));
    assert!(!place.pgdata().exists());
}
