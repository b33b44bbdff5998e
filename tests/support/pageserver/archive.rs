//! Base backups of a real cluster, in the order in which a pageserver sends them.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::super::node::Place;
use super::super::origin::stopped_cluster;
use super::super::pg;

/// A real cluster, stopped in order, with a table in it.
pub(crate) struct Origin {
    place: Place,
}

impl Origin {
    pub(crate) fn new() -> Self {
        Self { place: stopped_cluster(&[]) }
    }

    /// Its base backup.
    pub(crate) fn base_backup(&self) -> Vec<u8> {
        gzipped(&archive(&self.place.pgdata(), true))
    }

    /// Where its last checkpoint is: the newest place in its log.
    pub(crate) fn checkpoint(&self) -> String {
        let output = pg::command("pg_controldata").arg(self.place.pgdata()).output();
        let text = String::from_utf8_lossy(&output.expect("it runs").stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("Latest checkpoint location:"));
        line.unwrap_or_else(|| panic!("no checkpoint in {text}")).trim().to_owned()
    }
}

/// Compresses like a pageserver: one member, quickly.
pub(crate) fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("writing into memory");
    encoder.finish().expect("writing into memory")
}

/// The tar of a stopped cluster: directories, settings, everything else, the signal files (the present one only if
/// asked for), the control file, the log. Unlike a pageserver's it has the relations in it, which an
/// ordinary PostgreSQL cannot fetch.
fn archive(pgdata: &Path, present_signal: bool) -> Vec<u8> {
    let mut names = Vec::new();
    list(pgdata, "", &mut names);
    names.sort();
    let mut tar = tar::Builder::new(Vec::new());
    let is_dir = |name: &String| pgdata.join(name).is_dir();
    for name in names.iter().filter(|name| is_dir(name)) {
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        tar.append_data(&mut header, format!("{name}/"), &[][..]).expect("writing into memory");
    }
    let mut add = |name: &str, data: &[u8]| {
        let mut header = header(tar::EntryType::Regular, 0o600, data.len());
        tar.append_data(&mut header, name, data).expect("writing into memory");
    };
    let read = |name: &str| fs::read(pgdata.join(name)).expect("an own file");
    let settings = ["pg_hba.conf", "pg_ident.conf"];
    for name in settings {
        add(name, &read(name));
    }
    add("postgresql.auto.conf", b"");
    let apart = |name: &str| {
        let top = ["postmaster.opts", "postgresql.conf", "postgresql.auto.conf", "global/pg_control"];
        top.contains(&name)
            || settings.contains(&name)
            || name.starts_with("pg_wal/")
            || name.starts_with('.')
            || name.starts_with("compute_ctl")
    };
    for name in names.iter().filter(|name| !is_dir(name) && !apart(name)) {
        add(name, &read(name));
    }
    let signals: &[&str] =
        if present_signal { &["neon.signal", "zenith.signal"] } else { &["zenith.signal"] };
    for name in signals {
        add(name, b"PREV LSN: none");
    }
    add("global/pg_control", &read("global/pg_control"));
    for name in names.iter().filter(|name| !is_dir(name) && name.starts_with("pg_wal/")) {
        add(name, &read(name));
    }
    tar.into_inner().expect("writing into memory")
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header
}

/// The names below a directory.
fn list(root: &Path, below: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(below)).expect("an own directory").map(Result::unwrap) {
        let name = entry.file_name().into_string().expect("plain names");
        let name = if below.is_empty() { name } else { format!("{below}/{name}") };
        if entry.file_type().expect("it is there").is_dir() {
            names.push(name.clone());
            list(root, &name, names);
        } else {
            names.push(name);
        }
    }
}
