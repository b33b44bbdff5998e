//! What a pageserver is asked, and what becomes of its answer.

use std::fs;

use compute_ctl::postgres::Contents;
use compute_ctl::secret::Secret;
use compute_ctl::spec::resolve::{Lsn, Pageserver as Address, ShardIndex};
use compute_ctl::storage::neon::libpq::Session;
use compute_ctl::storage::neon::page_api::{LeaseLsnRequest, PageApi, Timestamp};
use compute_ctl::storage::neon::{Agreement, Neon};
use compute_ctl::storage::{Context, Prepared, Storage, StorageError};
use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::support::lab::{Lab, names, patiently};
use crate::support::pageserver::{
    Answer, Door, Lease, Pageserver, Refusal, Request, Sending, Transport, What,
};
use crate::{
    BOTH, HASTY, NOBODY, PATIENT, TENANT, TIMELINE, TOKEN, about, chain, fails, fresh, replica, sends,
    stored, whole,
};

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
            let pgdata = fresh(&lab);
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
        let pgdata = fresh(&lab);
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
        let pgdata = fresh(&lab);
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
async fn pieces_may_have_any_length() {
    let lab = Lab::new().await;
    let bytes = whole(&lab);
    for transport in BOTH {
        for piece in [100, 4096, 1 << 20] {
            let server = Pageserver::start([Answer::Archive(Sending { piece, ..Sending::new(&bytes) })]);
            let pgdata = fresh(&lab);
            patiently(replica(&server, transport, PATIENT).prepare(&lab.context(&pgdata))).await.unwrap();
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
