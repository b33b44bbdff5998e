//! A cluster that archives are made of.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::node::Place;
use super::pageserver::Pageserver;
use super::pg::{ADMIN, Server};

/// A real cluster with a table in it, stopped in order after these statements.
pub(crate) fn stopped_cluster(statements: &[&str]) -> Place {
    let place = Place::new();
    place.configure(&place.kept_spec());
    let node = place.start(&[]);
    node.wait_status("running");
    place.sql("create table kept as select 42 as answer");
    for statement in statements {
        place.sql(statement);
    }
    node.terminate();
    drop(node);
    place
}

/// A real cluster with a table in it, and settings that must not survive.
pub(crate) struct Origin {
    pub(crate) place: Place,
}

impl Origin {
    pub(crate) fn new() -> Self {
        Self { place: stopped_cluster(&["alter system set work_mem = '77MB'"]) }
    }

    /// A tar of it in its place, by the arguments that come after the name; the last may be `-C`.
    pub(crate) fn tar(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let path = self.place.path().join(name);
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&path).args(arguments);
        if arguments.last() == Some(&"-C") {
            tar.arg(self.place.pgdata()).arg(".");
        } else {
            tar.arg("-C").arg(self.place.path()).arg("pgdata");
        }
        assert!(tar.status().unwrap().success());
        path
    }
}

/// A spec of storage kind `archive` with these parameters.
pub(crate) fn archive_spec(place: &Place, storage: Value) -> Value {
    let mut spec = place.spec();
    spec["storage"] = storage;
    spec["storage"]["kind"] = json!("archive");
    spec
}

/// The restored cluster is what was archived, less what belongs to its place.
pub(crate) fn answers(place: &Place) {
    assert_eq!(place.sql("select answer from kept"), "42");
    assert_eq!(place.sql("show work_mem"), "4MB");
    assert_eq!(place.sql("select pg_is_in_recovery()"), "f");
}

/// A server to copy. Whoever comes to its copy on this machine is let in, as with a cluster of ours.
pub(crate) fn source() -> Server {
    let source = Server::start("");
    let path = source.data().join("pg_hba.conf");
    let rules = fs::read_to_string(&path).expect("initdb has written it");
    fs::write(&path, format!("host all all 127.0.0.1/32 trust\n{rules}")).expect("an own file");
    source
}

/// A spec that copies this server, and becomes a primary of its own.
pub(crate) fn copy_spec(place: &Place, source: &Server) -> Value {
    let source = format!("host={} port={} user={ADMIN}", source.socket_dir().display(), source.port());
    let mut spec = place.spec();
    spec["storage"] = json!({ "kind": "base_backup", "source": source });
    spec
}

/// A spec for a replica on Neon storage, as far as an ordinary PostgreSQL can be one.
pub(crate) fn replica_spec(place: &Place, pageserver: &Pageserver) -> Value {
    let mut spec = place.spec();
    spec["storage"] = json!({ "kind": "neon" });
    spec["mode"] = json!("Replica");
    spec["skip_pg_catalog_updates"] = json!(true);
    spec["tenant_id"] = json!("0123456789abcdef0123456789abcdef");
    spec["timeline_id"] = json!("fedcba9876543210fedcba9876543210");
    spec["pageserver_connstring"] = json!(pageserver.libpq_url());
    spec
}
