//! Whoever reads the log may go away or stall; the node goes on, and ends.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::support::node::{COMPUTE_ID, Node, Place, eventually};
use crate::support::pg;

/// A log that is a FIFO, and its reading end. The program opens it by itself.
fn fifo(place: &Place) -> (PathBuf, File) {
    let path = place.path().join("log.fifo");
    mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    pg::give(&path);
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    (path, reader)
}

/// A node whose standard output and error are the FIFO.
fn started<'a>(place: &'a Place, fifo: &Path) -> Node<'a> {
    place.configure(&place.spec());
    let onto = format!("exec \"$@\" >'{}' 2>&1", fifo.display());
    let mut command = place.wrapped(&["sh", "-c", &onto, "sh"]);
    command.args(place.arguments());
    let node = place.run(command);
    node.wait_status("running");
    node
}

/// Has Postgres log more than the pipes and the queue hold, which must come to an end.
fn flood(place: &Place) {
    let sql = "do $$ begin for i in 1..200 loop raise log '%', repeat('x', 100000); end loop; end $$";
    let port = place.postgres.to_string();
    let mut psql = pg::command("psql");
    psql.args(["-Xq", "-h", "127.0.0.1", "-U", pg::ADMIN, "-d", "postgres", "-p", &port, "-c", sql]);
    let mut child = psql.spawn().unwrap();
    let ended = eventually("the end of the flood", || child.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
}

#[test]
fn a_reader_that_is_gone_does_not_end_the_node() {
    let place = Place::new();
    let (path, reader) = fifo(&place);
    let node = started(&place, &path);
    drop(reader);
    flood(&place);
    assert_eq!(node.post("/terminate?mode=wrong", None).0, 400, "something of our own to log");
    assert_eq!(node.status().unwrap()["status"], "running");
    let before = place.processes();
    node.signal(Signal::SIGTERM);
    node.ends_with(0, &before);
    assert_eq!(place.cluster_state(), "shut down");
}

#[test]
fn a_stalled_reader_blocks_neither_the_node_nor_its_end() {
    for by_signal in [true, false] {
        let place = Place::new();
        let (path, reader) = fifo(&place);
        let node = started(&place, &path);
        flood(&place);
        assert_eq!(node.status().unwrap()["status"], "running");
        assert_eq!(place.sql("select 1"), "1", "Postgres is not held up for ever either");
        let before = place.processes();
        if by_signal {
            node.signal(Signal::SIGTERM);
        } else {
            let (code, _) = node.post("/terminate?mode=immediate", None);
            assert_eq!(code, 200);
        }
        node.ends_with(0, &before);
        assert_eq!(place.cluster_state(), "shut down");
        drop(reader);
    }
}

#[test]
fn the_last_lines_are_written() {
    let place = Place::new();
    place.configure(&place.spec());
    let node = place.start(&[]);
    node.wait_status("running");
    node.signal(Signal::SIGTERM);
    node.ends_with(0, &[]);
    let log = node.log();
    assert!(log.lines().last().unwrap().contains("ended reason=Stopped"), "{log}");
    let (shut, ended) = (log.find("database system is shut down"), log.find("ended reason="));
    assert!(shut.is_some() && shut < ended, "{log}");
}

#[test]
fn a_refused_request_is_no_error() {
    let place = Place::new();
    place.configure(&place.spec());
    let mut node = place.start(&[]);
    node.wait_status("running");
    let token = node.token.take();
    assert_eq!(node.request("POST", "/terminate", None).unwrap().0, 400);
    node.token = token;
    node.terminate();
    let log = node.log();
    assert!(log.contains("code=400"), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn json_lines_are_json_postgres_included() {
    let place = Place::new();
    place.configure(&place.spec());
    let mut command = place.program();
    command.args(place.arguments()).env("COMPUTE_CTL_LOG_FORMAT", "json");
    let node = place.run(command);
    node.wait_status("running");
    assert!(place.try_sql("postgres", "select 1/0").is_err());
    place.sql("do $$ begin raise warning E'two\nlines'; end $$");
    node.terminate();
    let log = node.log();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let of_postgres = |level: &str, text: &str| {
        lines.iter().any(|line| {
            let message = line["fields"]["message"].as_str().unwrap();
            line["target"] == "postgres" && line["level"] == level && message.contains(text)
        })
    };
    assert!(of_postgres("ERROR", "ERROR:  division by zero"), "{log}");
    assert!(of_postgres("WARN", "WARNING:  two\n\tlines"), "{log}");
    assert!(of_postgres("INFO", "LOG:  database system is ready to accept connections"), "{log}");
    let transition = lines.iter().find(|line| line["fields"]["message"] == "transition").unwrap();
    assert_eq!(transition["fields"]["to"], "init", "{transition}");
    assert_eq!(
        (&transition["level"], &transition["target"]),
        (&"INFO".into(), &"compute_ctl::engine".into())
    );
    let prepared = lines.iter().find(|line| line["fields"]["message"] == "data directory prepared").unwrap();
    let spans: Vec<&str> =
        prepared["spans"].as_array().unwrap().iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(spans, ["start_compute", "prepare_pgdata"]);
    let request = lines.iter().find(|line| line["fields"]["message"] == "request").unwrap();
    assert_eq!(request["spans"][0]["url.path"], "/terminate", "{request}");
}

#[test]
fn what_a_client_sends_is_not_quoted_and_a_probe_is_no_error() {
    let place = Place::new();
    place.configure(&Value::Null);
    for format in ["json", "text"] {
        let node = place.start(&["--log-format", format]);
        node.wait_status("empty");
        assert_eq!(node.request("GET", "/readyz", None).unwrap().0, 503);
        assert_eq!(node.request("GET", "/lfc/offload", None).unwrap().0, 501);
        assert_eq!(node.post("/terminate?mode=bogus&password=hunter2", None).0, 400);
        let wrong = serde_json::json!({ "spec": { "suspend_timeout_seconds": "hunter2" } });
        let (code, body) = node.post("/configure", Some(&wrong));
        assert!(code == 422 && body.contains("hunter2"), "{code} {body}");
        node.terminate();
        let log = node.log();
        assert!(log.contains("/terminate") && log.contains("suspend_timeout_seconds"), "{log}");
        assert!(!log.contains("hunter2") && !log.contains("ERROR"), "{log}");
        // Whoever only reads is not told of: clients poll.
        assert!(!log.contains("/status") && !log.contains("/readyz"), "{log}");
    }
}

#[test]
fn text_is_the_default_and_wins_where_it_is_asked_for() {
    let place = Place::new();
    place.configure(&place.spec());
    let mut command = place.program();
    command.args(place.arguments()).args(["--log-format", "text"]).env("COMPUTE_CTL_LOG_FORMAT", "json");
    let node = place.run(command);
    node.wait_status("running");
    node.terminate();
    let log = node.log();
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_err()), "{log}");
    let ready = log.lines().find(|line| line.contains("database system is ready to accept connections"));
    assert!(ready.is_some_and(|line| line.starts_with("PG:")), "{log}");
    // What it is said in comes before what is said, but for what would stand before each line of a kind.
    assert!(log.contains(" INFO start_compute:prepare_pgdata: data directory prepared "), "{log}");
    assert!(log.contains(" INFO start_compute:apply_config:apply_spec_sql: applied: "), "{log}");
    assert!(log.contains(" INFO request request_id="), "{log}");
}

/// A node of the flavour that has log files, and where they are to be.
fn filing(place: &Place) -> (Command, PathBuf) {
    let directory = place.path().join("logs/of the node");
    let mut command = place.program();
    command.args(place.arguments()).args(["--lakebase-mode", "true"]);
    command.env("COMPUTE_CTL_LOG_DIRECTORY", &directory).env("INSTANCE_ID", "instance-under-test");
    (command, directory)
}

/// The lines of all files, the oldest first.
fn filed(directory: &Path) -> Vec<Value> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in &files {
        assert!(file.file_name().unwrap().to_str().unwrap().starts_with("pgcctl.20"), "{files:?}");
    }
    let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

#[test]
fn one_flavour_has_log_files_beside_the_log() {
    let place = Place::new();
    place.configure(&Value::Null);
    let (command, directory) = filing(&place);
    let node = place.run(command);
    node.wait_status("empty");
    let (code, body) = node.configure(&place.spec());
    assert_eq!(code, 200, "{body}");
    assert_eq!(place.sql("select 1"), "1");
    node.signal(Signal::SIGTERM);
    node.ends_with(0, &[]);

    let lines = filed(&directory);
    let log = node.log();
    // All of what this program has logged, to the last line, and nothing of what Postgres has.
    let ours: Vec<&str> = log.lines().filter(|line| !line.starts_with("PG:")).collect();
    assert_eq!(lines.len(), ours.len(), "{log}");
    for line in &lines {
        let (message, severity) = (line["message"].as_str(), line["error_severity"].as_str());
        let (message, severity) = (message.unwrap(), format!(" {} ", severity.unwrap()));
        assert!(ours.iter().any(|ours| ours.ends_with(message) && ours.contains(&severity)), "{line} {log}");
        assert_eq!(line["backend_type"], "compute_ctl_self");
    }
    let message = |text: &str| {
        let is = |line: &&Value| line["message"].as_str().unwrap().starts_with(text);
        lines.iter().find(is).unwrap_or_else(|| panic!("{text} not in {lines:?}"))
    };
    let ids = |line: &Value| (line["pg_instance_id"].clone(), line["pg_compute_id"].clone());
    let found = message("PostgreSQL found version=");
    assert_eq!(found["file_name"], "compute_ctl::node");
    assert_eq!(ids(found), ("".into(), "".into()), "nobody's yet");
    let prepared = message("data directory prepared kind=\"initdb\"");
    assert_eq!(ids(prepared), ("instance-under-test".into(), COMPUTE_ID.into()));
    message("ended reason=Stopped");
}

#[test]
fn log_files_that_cannot_be_written_hinder_nothing() {
    let place = Place::new();
    place.configure(&place.spec());
    let (command, directory) = filing(&place);
    fs::write(directory.parent().unwrap(), "in the way").unwrap();
    let node = place.run(command);
    node.wait_status("running");
    node.terminate();
    let log = node.log();
    let told = log.lines().filter(|line| line.contains(" WARN nothing can be written to log files: "));
    assert_eq!(told.count(), 1, "{log}");
}

#[test]
fn a_full_disk_of_log_files_hinders_nothing() {
    let place = Place::new();
    place.configure(&place.spec());
    let (command, directory) = filing(&place);
    fs::create_dir_all(&directory).unwrap();
    // Today's and, for who tests at midnight, tomorrow's.
    let today = jiff::Timestamp::now();
    for day in [today, today + jiff::SignedDuration::from_hours(24)] {
        let name = day.strftime("pgcctl.%Y-%m-%d").to_string();
        std::os::unix::fs::symlink("/dev/full", directory.join(name)).unwrap();
    }
    let node = place.run(command);
    node.wait_status("running");
    node.terminate();
    let log = node.log();
    let told = log.lines().filter(|line| line.contains("nothing can be written to log files: No space left"));
    assert_eq!(told.count(), 1, "{log}");
}
