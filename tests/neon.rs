//! Storage kind `neon`: base backups of a pageserver over both protocols, all ways in which they fail, and the
//! whole program on a real cluster.

// The whole file is a test; the lint knows only test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::error::Error;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use compute_ctl::postgres::{Contents, DataDir};
use compute_ctl::secret::Secret;
use compute_ctl::spec::resolve::{Lsn, Pageserver as Address, ShardIndex};
use compute_ctl::spec::store::StoredSpec;
use compute_ctl::storage::neon::libpq::Session;
use compute_ctl::storage::neon::page_api::{LeaseLsnRequest, PageApi, Timestamp};
use compute_ctl::storage::neon::{Agreement, Neon, NeonError, Patience};
use compute_ctl::storage::{Context, Prepared, Storage, StorageError};
use futures_util::FutureExt;
use serde_json::{Value, json};
use support::lab::{Lab, names, patiently, until};
use support::node::{Node, Place};
use support::pageserver::archive::{Origin, gzipped};
use support::pageserver::{
    Answer, Door, Lease, Pageserver, Refusal, Request, Sending, Then, Transport, What,
};

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

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// A try that must fail, leave nothing, and show nothing that is secret.
async fn fails(lab: &Lab, neon: &Neon) -> StorageError {
    let pgdata = lab.claim(&format!("pgdata-{}", uuid::Uuid::new_v4()));
    // Something of an earlier life, which is ours to remove.
    fs::write(pgdata.path().join("old"), "data").unwrap();
    let error = patiently(neon.prepare(&lab.context(&pgdata))).await.unwrap_err();
    let left = names(pgdata.path());
    assert!(left.is_empty() || left == ["old"], "left behind: {left:?} after: {}", chain(&error));
    assert!(!chain(&error).contains(TOKEN), "{}", chain(&error));
    error
}

#[tokio::test]
async fn each_mode_asks_for_its_place_in_the_log() {
    let lab = Lab::new().await;
    let bytes = whole(&lab);
    let at: Agreement = |_, _| async { Ok(Some(Lsn(0x1_0000_0020))) }.boxed();
    let nowhere: Agreement = |_, _| async { Ok(Some(Lsn(0))) }.boxed();
    let none: Agreement = |_, _| async { Ok(None) }.boxed();
    for transport in BOTH {
        for (mode, agreement, lsn, is_replica, name) in [
            (json!("Primary"), at, 0x1_0000_0020, false, "primary"),
            (json!("Primary"), nowhere, 0, false, "primary"),
            (json!("Primary"), none, 0, false, "primary"),
            (json!({ "Static": "0/169AD58" }), NOBODY, 0x0169_ad58, true, "static"),
            (json!("Replica"), NOBODY, 0, true, "replica"),
        ] {
            let server = Pageserver::start([sends(&bytes)]);
            let neon = Neon::with(&stored(&about(&server, transport, &mode)), PATIENT, agreement).unwrap();
            let pgdata = lab.claim(&format!("pgdata-{}", uuid::Uuid::new_v4()));
            let context = lab.context(&pgdata);
            assert_eq!(patiently(neon.prepare(&context)).await.unwrap(), Prepared::Created);
            let said = |text: &str| (transport == Transport::Libpq).then(|| text.to_owned());
            let expected = Request {
                transport,
                application: said("compute_ctl"),
                options: said(&format!("-c neon.compute_mode={name}")),
                // Nobody asked for it over libpq.
                token: (transport == Transport::Grpc).then(|| TOKEN.to_owned()),
                tenant: TENANT.to_owned(),
                timeline: TIMELINE.to_owned(),
                shard: (transport == Transport::Grpc).then(|| "0000".to_owned()),
                lsn,
                what: What::BaseBackup { gzip: true, replica: is_replica },
            };
            assert_eq!(server.requests(), [expected]);
            assert_eq!(pgdata.contents().unwrap(), Contents::Ours);
            let mut made = vec![".compute_ctl", "PG_VERSION", "base", "global", "neon.signal"];
            made.extend(is_replica.then_some("standby.signal"));
            made.push("zenith.signal");
            assert_eq!(names(pgdata.path()), made);
            let signal = fs::read_to_string(pgdata.path().join("neon.signal")).unwrap();
            assert_eq!(signal, "PREV LSN: 0/1234");
            assert_eq!(context.progress.received(), bytes.len() as u64);
            assert_eq!(context.progress.files(), 4);
        }
    }
}

#[tokio::test]
async fn a_sharded_tenant_is_asked_for_at_its_first_shard() {
    let lab = Lab::new().await;
    let bytes = whole(&lab);
    for transport in BOTH {
        let (first, second) = (Pageserver::start([sends(&bytes)]), Pageserver::start([]));
        let mut facts = about(&first, transport, &json!("Replica"));
        let info = &mut facts["pageserver_connection_info"];
        info["shard_count"] = json!(2);
        info["stripe_size"] = json!(32768);
        let shard = |server: &Pageserver| json!({ "pageservers": [{ "libpq_url": server.libpq_url(), "grpc_url": server.grpc_url() }] });
        info["shards"] = json!({ "0002": shard(&first), "0102": shard(&second) });
        let neon = Neon::with(&stored(&facts), PATIENT, NOBODY).unwrap();
        let pgdata = lab.claim(&format!("pgdata-{}", uuid::Uuid::new_v4()));
        patiently(neon.prepare(&lab.context(&pgdata))).await.unwrap();
        let shards: Vec<_> = first.requests().into_iter().map(|request| request.shard).collect();
        assert_eq!(shards, [(transport == Transport::Grpc).then(|| "0002".to_owned())]);
        assert_eq!(second.requests(), []);
    }
}

#[tokio::test]
async fn the_token_is_shown_to_a_server_that_asks() {
    let lab = Lab::new().await;
    let bytes = whole(&lab);
    let refusal = Refusal::new("28P01", 16, "invalid token");
    for transport in BOTH {
        let server = Pageserver::start([sends(&bytes)]);
        let server = server.behind(Door::Token(TOKEN.to_owned(), refusal.clone()));
        let mut facts = about(&server, transport, &json!("Replica"));
        // The spec's token counts, not the address's.
        let url = server.libpq_url().replace("no_user@", "no_user:another@");
        let first = "/pageserver_connection_info/shards/0000/pageservers/0/libpq_url";
        *facts.pointer_mut(first).unwrap() = json!(url);
        let pgdata = lab.claim(&format!("pgdata-{}", uuid::Uuid::new_v4()));
        let neon = Neon::with(&stored(&facts), PATIENT, NOBODY).unwrap();
        patiently(neon.prepare(&lab.context(&pgdata))).await.unwrap();
        assert_eq!(server.requests()[0].token.as_deref(), Some(TOKEN));
        // Another one.
        facts["storage_auth_token"] = json!("another-token");
        let error = fails(&lab, &Neon::with(&stored(&facts), PATIENT, NOBODY).unwrap()).await;
        let text = chain(&error);
        assert!(text.contains("invalid token") && !text.contains("another"), "{text}");
        assert!(!error.is_unreachable(), "{text}");
        // None: what the address has, or nothing.
        facts["storage_auth_token"] = Value::Null;
        let error = fails(&lab, &Neon::with(&stored(&facts), PATIENT, NOBODY).unwrap()).await;
        assert!(chain(&error).contains("invalid token"), "{}", chain(&error));
        *facts.pointer_mut(first).unwrap() = json!(server.libpq_url());
        let error = fails(&lab, &Neon::with(&stored(&facts), PATIENT, NOBODY).unwrap()).await;
        let words = if transport == Transport::Libpq { "asks for a token" } else { "invalid token" };
        assert!(chain(&error).contains(words) && !error.is_unreachable(), "{}", chain(&error));
    }
}

#[tokio::test]
async fn a_token_is_not_given_away_in_another_form() {
    let lab = Lab::new().await;
    let server = Pageserver::start([]).behind(Door::Md5);
    let error = fails(&lab, &replica(&server, Transport::Libpq, PATIENT)).await;
    let text = chain(&error);
    assert!(text.contains("an authentication that no pageserver asks for"), "{text}");
    assert!(!error.is_unreachable(), "{text}");
}

#[tokio::test]
async fn every_failure_is_named_and_leaves_nothing() {
    let lab = Lab::new().await;
    let bytes = whole(&lab);
    let sending = Sending::new(&bytes);
    let part = |then: Then| Answer::Archive(Sending { upto: Some(bytes.len() / 2), then, ..sending.clone() });
    let end = |then: Then| Answer::Archive(Sending { then, ..sending.clone() });
    let refusal = |sqlstate, status, text| Refusal::new(sqlstate, status, text);
    let internal = refusal("XX000", 13, "the layer is gone");
    let followed = [bytes.as_slice(), b"and more"].concat();
    let twice = [bytes.as_slice(), &gzipped(b"something else")].concat();
    let uncompressed = backupish(&lab, |_| {});
    let control = backupish(&lab, |_| {});
    let without = |missing: &str| {
        let mut tar = tar::Builder::new(Vec::new());
        let version = format!("{}\n", lab.installation.version().major);
        let files: [(&str, &[u8]); 2] =
            [("PG_VERSION", version.as_bytes()), ("global/pg_control", &[1; 8192])];
        for (name, data) in files.into_iter().filter(|(name, _)| *name != missing) {
            add(&mut tar, name, data);
        }
        gzipped(&tar.into_inner().unwrap())
    };
    let other_version = {
        let mut tar = tar::Builder::new(Vec::new());
        add(&mut tar, "PG_VERSION", b"9\n");
        add(&mut tar, "global/pg_control", &[1; 8192]);
        gzipped(&tar.into_inner().unwrap())
    };
    // What is answered, what the error says over libpq and over gRPC, and whether it may pass.
    let cases: Vec<(Answer, [&str; 2], bool)> = vec![
        (Answer::Close, ["the connection ended before it answered", "gRPC status"], true),
        (
            Answer::Error(internal.clone()),
            ["error XX000: the layer is gone", "Internal: the layer is gone"],
            true,
        ),
        (
            Answer::Error(refusal("57P01", 14, "shutting down")),
            ["error 57P01: shutting down", "Unavailable: shutting down"],
            true,
        ),
        (Answer::Error(refusal("08006", 1, "moving")), ["error 08006", "Cancelled"], true),
        (Answer::Error(refusal("XX000", 5, "no such tenant")), ["XX000: no such tenant", "NotFound"], true),
        (Answer::Error(refusal("28000", 7, "not yours")), ["28000: not yours", "PermissionDenied"], false),
        (Answer::Error(refusal("42601", 3, "what?")), ["42601: what?", "InvalidArgument: what?"], false),
        (Answer::Error(refusal("0A000", 9, "archived")), ["0A000: archived", "FailedPrecondition"], false),
        (part(Then::Close), ["ended in the middle of a base backup", "gRPC status"], true),
        (
            part(Then::Error(internal.clone())),
            ["XX000: the layer is gone", "Internal: the layer is gone"],
            true,
        ),
        (part(Then::Finish), ["damaged", "damaged"], true),
        // The archive is whole, and its server says that it is not.
        (end(Then::Close), ["ended in the middle of a base backup", "gRPC status"], true),
        (end(Then::HalfAnEnd), ["ended in the middle of a base backup", "missing grpc-status"], true),
        (end(Then::Error(internal)), ["XX000: the layer is gone", "Internal: the layer is gone"], true),
        (sends(&followed), ["damaged", "damaged"], true),
        (sends(&twice), ["damaged", "damaged"], true),
        (sends(b"garbage, and not little of it"), ["declared to be gzip"; 2], false),
        (sends(b""), ["without a byte"; 2], true),
        (sends(&uncompressed), ["declared to be gzip"; 2], false),
        (sends(&gzipped(b"garbage")), ["no tar archive"; 2], true),
        (sends(&gzipped(&control[..control.len() - 1024])), ["cut off"; 2], true),
        (sends(&without("PG_VERSION")), ["PG_VERSION is missing"; 2], true),
        (sends(&without("global/pg_control")), ["global/pg_control is missing"; 2], true),
        (sends(&other_version), ["PostgreSQL 9"; 2], false),
    ];
    for (answer, words, passes) in cases {
        for (transport, words) in BOTH.into_iter().zip(words) {
            let server = Pageserver::start([answer.clone()]);
            let error = fails(&lab, &replica(&server, transport, PATIENT)).await;
            let text = chain(&error);
            assert!(text.contains(words), "{transport:?}: {words:?} is not in: {text}");
            assert_eq!(error.is_unreachable(), passes, "{transport:?}: {text}");
            assert!(!error.is_cancelled() && !error.is_disk_full(), "{text}");
            if !text.contains("PostgreSQL 9") {
                let url = if transport == Transport::Libpq { server.libpq_url() } else { server.grpc_url() };
                let port = url.rsplit(':').next().unwrap();
                assert!(text.contains(&format!("pageserver 7 at 127.0.0.1:{port}")), "{text}");
            }
            // The next try finds nothing of it.
            server.answer([sends(&bytes)]);
            let pgdata = lab.claim(&format!("pgdata-{}", uuid::Uuid::new_v4()));
            patiently(replica(&server, transport, PATIENT).prepare(&lab.context(&pgdata))).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_no_data_directory_has_is_refused_for_good() {
    let lab = Lab::new().await;
    let link = |kind, name: &'static str, target: &'static str| {
        move |tar: &mut tar::Builder<Vec<u8>>| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o600);
            header.set_size(0);
            // Past the checks of the library that writes.
            let bytes = &mut header.as_mut_bytes()[..100];
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
            header.set_cksum();
            tar.append(&header, &[][..]).unwrap();
        }
    };
    let file = |name| link(tar::EntryType::Regular, name, "");
    let outside = lab.path("outside");
    for (change, words) in [
        (Box::new(file("../outside")) as Box<dyn FnOnce(&mut tar::Builder<Vec<u8>>)>, "\"..\""),
        (Box::new(file("/tmp/outside")), "absolute"),
        (Box::new(link(tar::EntryType::Symlink, "pg_dynshmem", "/dev/shm")), "leaves the directory"),
        (Box::new(link(tar::EntryType::Link, "passwd", "../outside")), "hard link"),
        (Box::new(link(tar::EntryType::Char, "null", "")), "a device"),
    ] {
        let bytes = gzipped(&backupish(&lab, change));
        for transport in BOTH {
            let server = Pageserver::start([sends(&bytes)]);
            let error = fails(&lab, &replica(&server, transport, PATIENT)).await;
            let text = chain(&error);
            assert!(text.contains(words) && !error.is_unreachable(), "{text}");
            assert!(matches!(error, StorageError::Neon(NeonError::Unpack { .. })), "{error:?}");
            assert!(!outside.exists());
        }
    }
}

#[tokio::test]
async fn a_base_backup_may_be_cut_off_anywhere() {
    let lab = Lab::new().await;
    let bytes = whole(&lab);
    let places = [1, 9, 17, 600, bytes.len() / 3, bytes.len() - 9, bytes.len() - 8, bytes.len() - 1];
    for transport in BOTH {
        for upto in places {
            for then in [Then::Finish, Then::Close, Then::Error(Refusal::new("XX000", 13, "late"))] {
                let cut = Sending { upto: Some(upto), then: then.clone(), ..Sending::new(&bytes) };
                let server = Pageserver::start([Answer::Archive(cut)]);
                let error = fails(&lab, &replica(&server, transport, PATIENT)).await;
                // Of one byte nobody knows yet that it begins a gzip.
                let passes = error.is_unreachable() || (upto == 1 && matches!(then, Then::Finish));
                assert!(passes, "{transport:?} {upto} {then:?}: {}", chain(&error));
            }
        }
    }
}

#[tokio::test]
async fn pieces_may_have_any_length() {
    let lab = Lab::new().await;
    let bytes = whole(&lab);
    for transport in BOTH {
        for piece in [100, 4096, 1 << 20] {
            let server = Pageserver::start([Answer::Archive(Sending { piece, ..Sending::new(&bytes) })]);
            let pgdata = lab.claim(&format!("pgdata-{}", uuid::Uuid::new_v4()));
            patiently(replica(&server, transport, PATIENT).prepare(&lab.context(&pgdata))).await.unwrap();
        }
    }
}

/// All that keeps a try waiting.
fn silences(bytes: &[u8]) -> Vec<(Door, Answer)> {
    let upto = |upto| Answer::Archive(Sending { upto: Some(upto), then: Then::Hang, ..Sending::new(bytes) });
    vec![
        (Door::Silent, Answer::Silence),
        (Door::Open, Answer::Silence),
        (Door::Open, upto(0)),
        (Door::Open, upto(bytes.len() / 2)),
        (Door::Open, upto(bytes.len())),
    ]
}

#[tokio::test]
async fn silence_is_not_waited_out() {
    let lab = Lab::new().await;
    for transport in BOTH {
        for (door, answer) in silences(&whole(&lab)) {
            let server = Pageserver::start([answer.clone()]).behind(door.clone());
            let error = fails(&lab, &replica(&server, transport, HASTY)).await;
            let text = chain(&error);
            assert!(
                text.contains("silent for 0.3 s") && error.is_unreachable(),
                "{door:?} {answer:?}: {text}"
            );
        }
        // Nobody listens there any more.
        let server = Pageserver::start([]);
        let neon = replica(&server, transport, PATIENT);
        drop(server);
        let error = fails(&lab, &neon).await;
        let text = chain(&error);
        assert!(text.contains("refused") && error.is_unreachable(), "{text}");
    }
}

/// A directory in which something waits, and the state it must be in when the wait is cancelled.
async fn waits(server: &Pageserver, pgdata: &Arc<DataDir>, context: &Context, answer: &Answer) {
    let sent = match answer {
        Answer::Archive(Sending { upto: Some(upto), .. }) => *upto as u64,
        _ => 0,
    };
    until(|| !server.requests().is_empty() && context.progress.received() == sent).await;
    if sent > 0 {
        until(|| pgdata.path().join("base/1/ballast").exists()).await;
    }
}

#[test]
fn a_cancelled_or_forgotten_try_leaves_no_task() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let lab = runtime.block_on(Lab::new());
    let alive = runtime.metrics();
    let bytes = whole(&lab);
    for transport in BOTH {
        for (door, answer) in silences(&bytes) {
            let silent = matches!(door, Door::Silent);
            for forgotten in [false, true] {
                let server = Pageserver::start([answer.clone()]).behind(door.clone());
                let pgdata = lab.claim(&format!("pgdata-{}", uuid::Uuid::new_v4()));
                let context = lab.context(&pgdata);
                let neon = replica(&server, transport, PATIENT);
                runtime.block_on(async {
                    let reached = async {
                        if silent {
                            // Nothing of the request is seen: it is enough that it has begun.
                            until(|| context.progress.phase() == compute_ctl::storage::Phase::Connecting)
                                .await;
                        } else {
                            waits(&server, &pgdata, &context, &answer).await;
                        }
                        if !forgotten {
                            context.cancel.cancel();
                        }
                    };
                    let mut preparing = neon.prepare(&context);
                    let outcome = tokio::select! {
                        outcome = &mut preparing => Some(outcome),
                        () = reached => None,
                    };
                    if forgotten {
                        assert!(outcome.is_none());
                        drop(preparing);
                    } else {
                        let outcome = match outcome {
                            Some(outcome) => outcome,
                            None => patiently(preparing).await,
                        };
                        let error = outcome.unwrap_err();
                        assert!(error.is_cancelled(), "{transport:?} {door:?} {answer:?}: {}", chain(&error));
                    }
                    until(|| alive.num_alive_tasks() == 0).await;
                    // The unpacker's thread gives the directory back as its last act.
                    until(|| Arc::strong_count(&pgdata) == 2).await;
                    // And another try finds everything as it needs it.
                    server.answer([sends(&bytes)]);
                    let server = Pageserver::start([sends(&bytes)]);
                    let neon = replica(&server, transport, PATIENT);
                    patiently(neon.prepare(&lab.context(&pgdata))).await.unwrap();
                    assert_eq!(pgdata.contents().unwrap(), Contents::Ours);
                });
            }
        }
    }
}

#[tokio::test]
async fn a_server_started_again_gets_a_new_base_backup() {
    let lab = Lab::new().await;
    let server = Pageserver::start([sends(&whole(&lab))]);
    let neon = replica(&server, Transport::Libpq, PATIENT);
    let pgdata = lab.claim("pgdata");
    for restart in [false, true] {
        let context = Context { restart, ..lab.context(&pgdata) };
        assert_eq!(neon.prepare(&context).await.unwrap(), Prepared::Created);
        assert!(!pgdata.path().join("written").exists());
        fs::write(pgdata.path().join("written"), "by the server").unwrap();
    }
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_cluster_of_its_own_is_not_removed_and_a_former_neon_one_is() {
    let lab = Lab::new().await;
    let server = Pageserver::start([sends(&whole(&lab))]);
    let neon = replica(&server, Transport::Grpc, PATIENT);
    let pgdata = lab.claim("pgdata");
    fs::create_dir(pgdata.path().join("global")).unwrap();
    fs::write(pgdata.path().join("PG_VERSION"), "15\n").unwrap();
    fs::write(pgdata.path().join("global/pg_control"), "x").unwrap();
    let context = lab.context(&pgdata);
    assert!(neon.judge(&context).await.is_err());
    let error = neon.prepare(&context).await.unwrap_err();
    assert!(matches!(error, StorageError::Pgdata(_)) && !error.is_unreachable(), "{error}");
    assert_eq!(names(pgdata.path()), ["PG_VERSION", "global"]);
    assert_eq!(server.requests(), [], "refused before anybody is asked");
    fs::write(pgdata.path().join("zenith.signal"), "PREV LSN: none").unwrap();
    neon.judge(&context).await.unwrap();
    // Not before there is something to replace it with.
    server.answer([Answer::Error(Refusal::new("XX000", 13, "not now"))]);
    neon.prepare(&context).await.unwrap_err();
    assert_eq!(names(pgdata.path()), ["PG_VERSION", "global", "zenith.signal"]);
    server.answer([sends(&whole(&lab))]);
    assert_eq!(neon.prepare(&context).await.unwrap(), Prepared::Created);
}

#[tokio::test]
async fn leases_are_asked_for_over_both_protocols() {
    let refusal = Refusal::new("XX000", 13, "not now");
    let leases =
        || [Lease::Until(1_700_000_000_123), Lease::Refused, Lease::Error(refusal.clone()), Lease::Silence];
    let server = Pageserver::start([]).leasing(leases());
    let address = Address {
        node_id: None,
        libpq_url: Some(Secret::new(server.libpq_url())),
        grpc_url: Some(Secret::new(server.grpc_url())),
    };
    let command = format!("lease lsn {TENANT}-0102 {TIMELINE} 0/16B9188 ");
    let mut session = Session::open(&address, None, None, PATIENT.connect).await.unwrap();
    let answer = session.rows(&command, PATIENT.answer).await.unwrap();
    assert_eq!(answer, [[Some("1700000000123".to_owned())]]);
    assert_eq!(session.rows(&command, PATIENT.answer).await.unwrap(), [[None]]);
    let error = session.rows(&command, PATIENT.answer).await.unwrap_err();
    assert!(chain(&error).contains("not now") && error.is_transient(), "{}", chain(&error));
    let mut session = Session::open(&address, None, None, PATIENT.connect).await.unwrap();
    let error = session.rows(&command, HASTY.answer).await.unwrap_err();
    assert!(chain(&error).contains("silent") && error.is_transient(), "{}", chain(&error));

    server.lease(leases());
    let (tenant, timeline) = (TENANT.parse().unwrap(), TIMELINE.parse().unwrap());
    let shard = ShardIndex { number: 1, count: 2 };
    let mut api =
        PageApi::connect(&address, (&tenant, &timeline, shard), None, PATIENT.connect).await.unwrap();
    let request = LeaseLsnRequest { lsn: 0x16B_9188 };
    let lease = api.lease_lsn(request.clone(), PATIENT.answer).await.unwrap();
    assert_eq!(lease.expires, Some(Timestamp { seconds: 1_700_000_000, nanos: 123_000_000 }));
    for (words, passes, patience) in
        [("FailedPrecondition", false, PATIENT), ("not now", true, PATIENT), ("silent", true, HASTY)]
    {
        let error = api.lease_lsn(request.clone(), patience.answer).await.unwrap_err();
        assert!(chain(&error).contains(words), "{}", chain(&error));
        assert_eq!(error.is_transient(), passes, "{}", chain(&error));
    }
    for request in server.requests() {
        assert_eq!((request.application, request.options), (None, None));
        assert_eq!(
            (request.shard.as_deref(), request.lsn, request.what),
            (Some("0102"), 0x16B_9188, What::Lease)
        );
    }
    assert_eq!(server.requests().len(), 8);
}

/// A spec for the whole program on an ordinary PostgreSQL.
fn spec(place: &Place, server: &Pageserver, transport: Transport, mode: &Value) -> Value {
    let mut spec = place.spec();
    spec["storage"] = Value::Null;
    spec["skip_pg_catalog_updates"] = json!(true);
    spec.as_object_mut().unwrap().extend(about(server, transport, mode).as_object().unwrap().clone());
    spec
}

fn serves_reads_only(place: &Place, node: &Node<'_>) {
    node.wait_status("running");
    assert_eq!(place.sql("select answer from kept"), "42");
    assert_eq!(place.sql("select pg_is_in_recovery()"), "t");
    let error = place.try_sql("postgres", "delete from kept").unwrap_err();
    assert!(error.contains("read-only"), "{error}");
}

#[test]
fn a_replica_and_a_pinned_compute_serve_a_real_cluster() {
    let origin = Origin::new();
    let bytes = origin.base_backup();
    let checkpoint = origin.checkpoint();
    for (transport, mode) in
        [(Transport::Libpq, json!("Replica")), (Transport::Grpc, json!({ "Static": checkpoint }))]
    {
        let server = Pageserver::start([sends(&bytes)]);
        let server = server.behind(Door::Token(TOKEN.to_owned(), Refusal::new("28P01", 16, "no")));
        let place = Place::new();
        place.configure(&spec(&place, &server, transport, &mode));
        let node = place.start(&["--restart", "on-failure"]);
        serves_reads_only(&place, &node);
        assert!(node.log().contains("base backup unpacked"), "{}", node.log());
        assert!(!node.log().contains(TOKEN), "the token is in the log");
        // A crash: the same process fetches it all anew.
        let before = node.postmaster();
        std::fs::write(place.pgdata().join("mark"), "of the first life").unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(before), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        node.wait("another postmaster", |node| (node.postmaster() != before).then_some(()));
        serves_reads_only(&place, &node);
        assert!(!place.pgdata().join("mark").exists());
        assert_eq!(server.requests().len(), 2);
        node.terminate();
        drop(node);
        // And so does another process.
        let node = place.start(&[]);
        serves_reads_only(&place, &node);
        assert_eq!(server.requests().len(), 3);
        node.terminate();
    }
}

#[test]
fn a_pageserver_that_refuses_for_good_ends_the_start() {
    let refusal = Refusal::new("28000", 7, "this tenant is another's");
    for transport in BOTH {
        let server = Pageserver::start([Answer::Error(refusal.clone())]);
        let place = Place::new();
        place.configure(&spec(&place, &server, transport, &json!("Replica")));
        let node = place.start(&[]);
        let status = node.wait_status("failed");
        let error = status["error"].as_str().unwrap();
        assert!(error.contains("this tenant is another's") && error.contains("127.0.0.1:"), "{error}");
        assert!(!error.contains(TOKEN), "{error}");
        assert_eq!(fs::read_dir(place.pgdata()).unwrap().count(), 0);
        node.signal(nix::sys::signal::Signal::SIGTERM);
        node.exit_code();
    }
}

#[test]
fn a_start_is_terminated_in_the_middle_of_a_base_backup() {
    let bytes = Origin::new().base_backup();
    let half = Sending { upto: Some(bytes.len() / 2), then: Then::Hang, ..Sending::new(&bytes) };
    for transport in BOTH {
        for (answer, phase, received) in [
            (Answer::Silence, "connecting", 0),
            (Answer::Archive(half.clone()), "receiving", bytes.len() / 2),
        ] {
            let server = Pageserver::start([answer]);
            let place = Place::new();
            place.configure(&spec(&place, &server, transport, &json!("Replica")));
            let node = place.start(&[]);
            node.wait("a base backup under way", |node| {
                let status = node.status()?;
                let storage = &status["storage"];
                let there = storage["phase"] == phase && storage["received_bytes"] == json!(received);
                (there && !server.requests().is_empty()).then_some(())
            });
            assert_eq!(node.status().unwrap()["status"], "init");
            node.terminate();
        }
    }
}
