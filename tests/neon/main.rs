//! Storage kind `neon`: base backups of a pageserver over both protocols, all ways in which they fail, and the
//! whole program on a real cluster.

// Helpers here are test code as well, though the lint sees that of `#[test]` functions only.
#![allow(clippy::unwrap_used)]

mod asked;
mod failures;
mod program;
mod silence;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use compute_ctl::postgres::DataDir;
use compute_ctl::spec::store::StoredSpec;
use compute_ctl::storage::neon::{Agreement, Neon, Patience};
use compute_ctl::storage::{Storage, StorageError};
use futures_util::FutureExt;
use serde_json::{Value, json};
use support::lab::{Lab, chain, names, patiently};
use support::pageserver::archive::gzipped;
use support::pageserver::{Answer, Pageserver, Sending, Transport};

const TENANT: &str = "0123456789abcdef0123456789abcdef";
const TIMELINE: &str = "fedcba9876543210fedcba9876543210";
const TOKEN: &str = "a-token-of-the-spec";

const BOTH: [Transport; 2] = [Transport::Libpq, Transport::Grpc];

/// Silence is borne as long as a loaded machine may need for an answer.
const PATIENT: Patience = Patience {
    connect: Duration::from_secs(30),
    answer: Duration::from_secs(30),
    idle: Duration::from_secs(30),
};

/// The same for servers that are silent on purpose.
const HASTY: Patience = Patience {
    connect: Duration::from_millis(300),
    answer: Duration::from_millis(300),
    idle: Duration::from_millis(300),
};

/// What a spec has to say about a pageserver.
fn about(server: &Pageserver, transport: Transport, mode: &Value) -> Value {
    let protocol = match transport {
        Transport::Libpq => "libpq",
        Transport::Grpc => "grpc",
    };
    json!({
        "tenant_id": TENANT,
        "timeline_id": TIMELINE,
        "mode": mode,
        "storage_auth_token": TOKEN,
        "safekeeper_connstrings": ["sk:5454"],
        "pageserver_connection_info": {
            "shard_count": 0,
            "stripe_size": null,
            "prefer_protocol": protocol,
            "shards": { "0000": { "pageservers": [
                { "id": 7, "libpq_url": server.libpq_url(), "grpc_url": server.grpc_url() },
            ] } },
        },
    })
}

fn stored(facts: &Value) -> StoredSpec {
    let mut document = json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": { "roles": [], "databases": [] },
    });
    document.as_object_mut().unwrap().extend(facts.as_object().unwrap().clone());
    StoredSpec::new(serde_json::from_value(document).unwrap()).unwrap()
}

/// Safekeepers that are not there to agree.
const NOBODY: Agreement = |_, _| async { panic!("nobody has to agree") }.boxed();

fn replica(server: &Pageserver, transport: Transport, patience: Patience) -> Neon {
    Neon::with(&stored(&about(server, transport, &json!("Replica"))), patience, NOBODY).unwrap()
}

fn add(tar: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(data.len() as u64);
    tar.append_data(&mut header, name, data).unwrap();
}

/// A tar that passes for a base backup for the installed version, without the trouble of a cluster.
fn backupish(lab: &Lab, change: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    tar.append_data(&mut header, "base/1/", &[][..]).unwrap();
    add(&mut tar, "PG_VERSION", format!("{}\n", lab.installation.version().major).as_bytes());
    // Nothing that repeats, so that it does not become small.
    let ballast: Vec<u8> =
        (0..100_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    add(&mut tar, "base/1/ballast", &ballast);
    // Once more, as pageservers do.
    tar.append_data(&mut header, "base/1/", &[][..]).unwrap();
    change(&mut tar);
    add(&mut tar, "zenith.signal", b"PREV LSN: 0/1234");
    add(&mut tar, "global/pg_control", &[1; 8192]);
    tar.into_inner().unwrap()
}

fn whole(lab: &Lab) -> Vec<u8> {
    gzipped(&backupish(lab, |_| {}))
}

fn sends(bytes: &[u8]) -> Answer {
    Answer::Archive(Sending::new(bytes))
}

/// A directory nobody has used yet.
fn fresh(lab: &Lab) -> Arc<DataDir> {
    lab.claim(&format!("pgdata-{}", uuid::Uuid::new_v4()))
}

/// A try that must fail, leave nothing, and show nothing that is secret.
async fn fails(lab: &Lab, neon: &Neon) -> StorageError {
    let pgdata = fresh(lab);
    // Something of an earlier life, which is ours to remove.
    fs::write(pgdata.path().join("old"), "data").unwrap();
    let error = patiently(neon.prepare(&lab.context(&pgdata))).await.unwrap_err();
    let left = names(pgdata.path());
    assert!(left.is_empty() || left == ["old"], "left behind: {left:?} after: {}", chain(&error));
    assert!(!chain(&error).contains(TOKEN), "{}", chain(&error));
    error
}
