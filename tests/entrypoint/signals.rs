//! Signals, also as PID 1 of a namespace; orphans; the terminal.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid, mkfifo};
use serde_json::Value;

use crate::stop::stop_process;
use crate::support::node::{Node, Place, eventually};
use crate::support::pg;
use crate::support::processes::{self, Process};

/// Words before a program that make it PID 1 of a namespace of its own.
fn as_pid_1() -> Option<Vec<&'static str>> {
    let mut words = vec!["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    if !geteuid().is_root() {
        words.extend(["--user", "--map-current-user"]);
    }
    let possible = Command::new(words[0]).args(&words[1..]).arg("true").output();
    if possible.as_ref().is_ok_and(|output| output.status.success()) {
        return Some(words);
    }
    let text = format!("NOT TESTED as PID 1: this machine permits no pid namespace: {possible:?}");
    assert!(std::env::var_os("CI").is_none(), "{text}");
    eprintln!("{text}");
    None
}

/// Starts a node, as PID 1 if there are words for it; and its process id as it is seen from here.
fn started<'a>(place: &'a Place, by: &[&str]) -> (Node<'a>, i32) {
    place.configure(&place.spec());
    let mut command = place.wrapped(by);
    command.args(place.arguments());
    let node = place.run(command);
    node.wait_status("running");
    let pid = if by.is_empty() { node.pid } else { processes::children(node.pid)[0].pid };
    (node, pid)
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn stops_cleanly(by: &[&str]) {
    for asked in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let place = Place::new();
        let (node, pid) = started(&place, by);
        place.sql("create table t as select 1");
        let before = place.processes();
        assert!(before.iter().any(|process| process.name == "postgres"), "{before:?}");
        signal(pid, asked);
        node.ends_with(0, &before);
        assert!(node.log().contains("database system is shut down"), "{asked}: {}", node.log());
        assert_eq!(place.cluster_state(), "shut down", "{asked}");
        assert_eq!(node.transitions().last().unwrap(), "terminated", "{asked}");
    }
}

#[test]
fn each_stop_signal_ends_in_a_clean_shutdown() {
    stops_cleanly(&[]);
}

#[test]
fn each_stop_signal_ends_in_a_clean_shutdown_of_pid_1() {
    if let Some(words) = as_pid_1() {
        stops_cleanly(&words);
    }
}

/// Has Postgres start something in the background that loses its parent, ends it, and sees that it was reaped.
fn reaps_orphans(by: &[&str]) {
    let place = Place::new();
    let (node, pid) = started(&place, by);
    let gate = place.path().join("gate");
    mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    pg::give(&gate);
    let script = place.script("orphan", &format!("read line < {}", gate.display()));
    for _ in 0..3 {
        let program = format!("cat >/dev/null; setsid {} >/dev/null 2>&1 &", script.display());
        place.sql(&format!("copy (select 1) to program '{program}'"));
        let orphan = eventually("an adopted orphan", || {
            place.processes().into_iter().find(|process| process.name == "orphan" && process.parent == pid)
        });
        // Opening waits for the orphan's own opening; closing ends its wait.
        drop(fs::OpenOptions::new().write(true).open(&gate).unwrap());
        node.wait("the orphan was reaped", |_| (!orphan.exists()).then_some(()));
    }
    let zombies: Vec<Process> =
        processes::children(pid).into_iter().filter(|process| process.state == 'Z').collect();
    assert!(zombies.is_empty(), "{zombies:?}");
    let before = place.processes();
    signal(pid, Signal::SIGTERM);
    node.ends_with(0, &before);
}

#[test]
fn orphans_are_adopted_and_reaped() {
    reaps_orphans(&[]);
}

#[test]
fn orphans_are_adopted_and_reaped_by_pid_1() {
    if let Some(words) = as_pid_1() {
        reaps_orphans(&words);
    }
}

#[test]
fn what_sessions_left_in_the_background_goes_with_the_node() {
    for environment in ["", "env -i"] {
        let place = Place::new();
        let (node, pid) = started(&place, &[]);
        let script = place.script("orphan", "sleep 1000");
        let program = format!("cat >/dev/null; {environment} setsid {} >/dev/null 2>&1 &", script.display());
        place.sql(&format!("copy (select 1) to program '{program}'"));
        let before = eventually("an adopted orphan with a child", || {
            let all = place.processes();
            let orphan = all.iter().find(|process| process.name == "orphan" && process.parent == pid)?.pid;
            let child = processes::children(orphan).pop()?;
            Some(all.into_iter().chain([child]).collect::<Vec<_>>())
        });
        signal(pid, Signal::SIGTERM);
        node.ends_with(0, &before);
    }
}

#[test]
fn a_second_signal_does_not_wait_for_sessions_and_a_third_kills() {
    for (signals, code) in [(2, 0), (3, 76)] {
        let place = Place::new();
        let (node, pid) = started(&place, &[]);
        let session = place.session("select");
        // It cannot end while it stands still, so the shutdown waits for it.
        stop_process(&session.backend);
        let before = place.processes();
        for number in 1..=signals {
            signal(pid, Signal::SIGTERM);
            match number {
                1 => drop(node.wait_status("termination_pending_immediate")),
                2 => node.wait_log("received immediate shutdown request"),
                _ => {}
            }
        }
        node.ends_with(code, &before);
        assert_eq!(place.cluster_state(), "in production", "there was no checkpoint");
    }
}

#[test]
fn a_signal_to_an_empty_compute_ends_it() {
    let place = Place::new();
    place.configure(&Value::Null);
    let node = place.start(&[]);
    node.wait_status("empty");
    node.signal(Signal::SIGINT);
    node.ends_with(0, &[]);
}

/// A signal to a node whose first act, reading its config, is still under way.
fn a_signal_at_the_very_beginning(by: &[&str]) {
    let place = Place::new();
    mkfifo(&place.config_file(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    pg::give(&place.config_file());
    let mut command = place.wrapped(by);
    command.args(place.arguments());
    let node = place.run(command);
    // Opening waits for the reader's own opening.
    let mut config = fs::OpenOptions::new().write(true).open(place.config_file()).unwrap();
    let pid = if by.is_empty() { node.pid } else { processes::children(node.pid)[0].pid };
    signal(pid, Signal::SIGTERM);
    config.write_all(crate::support::node::config(&place.spec()).to_string().as_bytes()).unwrap();
    drop(config);
    node.ends_with(0, &[]);
    assert!(!place.pgdata().join("PG_VERSION").exists());
}

#[test]
fn a_signal_that_comes_first_is_not_lost() {
    a_signal_at_the_very_beginning(&[]);
}

#[test]
fn a_signal_that_comes_first_is_not_lost_by_pid_1() {
    if let Some(words) = as_pid_1() {
        a_signal_at_the_very_beginning(&words);
    }
}

#[test]
fn a_signal_while_the_server_is_asked_for_its_version() {
    let place = Place::new();
    place.configure(&place.spec());
    let stalled = place.path().join("stalled");
    let program = place.script("postgres", &format!("sleep 1000 & : > {}; wait", stalled.display()));
    let node = place.start(&["--pgbin", program.to_str().unwrap()]);
    let before = node.wait("the stall, with its child", |_| {
        let before = place.processes();
        let child = before.iter().any(|process| process.name == "sleep");
        (child && stalled.exists()).then_some(before)
    });
    node.signal(Signal::SIGTERM);
    node.ends_with(0, &before);
}

#[test]
fn sighup_reloads_sigusr1_writes_the_journal_and_sigusr2_does_nothing() {
    let place = Place::new();
    let (node, pid) = started(&place, &[]);
    let conf = place.pgdata().join("postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap() + "\nwork_mem = '9MB'\n";
    fs::write(&conf, text).unwrap();
    assert_eq!(place.sql("show work_mem"), "4MB");
    signal(pid, Signal::SIGHUP);
    eventually("the reloaded setting", || (place.sql("show work_mem") == "9MB").then_some(()));

    signal(pid, Signal::SIGUSR2);
    signal(pid, Signal::SIGUSR1);
    node.wait_log("journal written");
    let output = place.program().arg("replay").arg(place.journal()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for event in ["Booted", "PostmasterReady", "SpecApplied", "ReloadSignalled"] {
        assert!(text.contains(event), "{event} not in\n{text}");
    }
    assert!(text.lines().last().unwrap().contains("running"), "{text}");

    // One changed digit, and the replay says where.
    let journal = fs::read_to_string(place.journal()).unwrap();
    fs::write(place.journal(), journal.replacen("\"running\"", "\"failed\"", 1)).unwrap();
    let output = place.program().arg("replay").arg(place.journal()).output().unwrap();
    assert_eq!(output.status.code(), Some(65));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the journal says"), "{output:?}");

    node.went(&["init", "running"]);
    node.terminate();
}

#[test]
fn ctrl_c_at_a_terminal_ends_a_tool_that_started_it_well() {
    let place = Place::new();
    let makefile = place.path().join("Makefile");
    let program = env!("CARGO_BIN_EXE_compute_ctl");
    let (pgdata, cache) = (place.pgdata(), place.cache());
    let recipe = format!(
        "run:\n\t@{program} run --standalone --pgdata {} --cache-dir {}\n",
        pgdata.display(),
        cache.display()
    );
    fs::write(&makefile, recipe).unwrap();
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--flush", "--command"]);
    command.arg(format!("make -f {} run", makefile.display())).arg("/dev/null");
    command.env("COMPUTE_CTL_TEST", place.path()).env("TMPDIR", place.path()).env_remove("MAKEFLAGS");
    command.env("SHELL", "/bin/sh").stdin(Stdio::piped());
    let (node, mut keyboard) = place.run_with_input(command);
    node.wait("the banner", |node| node.out().contains('╯').then_some(()));
    let before = place.processes();
    assert!(before.iter().any(|process| process.name == "postgres"), "{before:?}");
    keyboard.write_all(b"\x03").unwrap();
    node.ends_with(0, &before);
    assert!(node.out().contains("database system is shut down"), "{}", node.out());
}
