//! A cluster that archives are made of.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::node::Place;

/// A real cluster with a table in it, and settings that must not survive.
pub(crate) struct Origin {
    pub(crate) place: Place,
}

impl Origin {
    pub(crate) fn new() -> Self {
        let place = Place::new();
        place.configure(&place.kept_spec());
        let node = place.start(&[]);
        node.wait_status("running");
        place.sql("create table kept as select 42 as answer");
        place.sql("alter system set work_mem = '77MB'");
        node.terminate();
        drop(node);
        Self { place }
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
