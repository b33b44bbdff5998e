//! Leases of pinned computes: how all pageservers are asked, over both protocols, and the whole program that keeps one.

// The whole file is a test; the lint knows only test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use compute_ctl::spec::store::StoredSpec;
use compute_ctl::storage::neon::PageserverError;
use compute_ctl::storage::neon::lease::{Answer, Pin};
use serde_json::{Value, json};
use support::node::{Node, Place};
use support::pageserver::archive::Origin;
use support::pageserver::{self, Door, Lease, Pageserver, Refusal, Request, Sending, Transport, What};

const TENANT: &str = "0123456789abcdef0123456789abcdef";
const TIMELINE: &str = "fedcba9876543210fedcba9876543210";
const TOKEN: &str = "a-token-of-the-spec";
const BOTH: [Transport; 2] = [Transport::Libpq, Transport::Grpc];

/// As long as a loaded machine may need for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a spec has to say about these pageservers, a list for each shard.
fn about(shards: &[&[&Pageserver]], transport: Transport, mode: &Value) -> Value {
    let count = if shards.len() == 1 { 0 } else { shards.len() };
    let shards = shards.iter().enumerate().map(|(number, servers)| {
        let urls =
            |server: &&Pageserver| json!({ "libpq_url": server.libpq_url(), "grpc_url": server.grpc_url() });
        let servers: Vec<Value> = servers.iter().map(urls).collect();
        (format!("{number:02x}{count:02x}"), json!({ "pageservers": servers }))
    });
    let shards: serde_json::Map<String, Value> = shards.collect();
    json!({
        "tenant_id": TENANT,
        "timeline_id": TIMELINE,
        "mode": mode,
        "storage_auth_token": TOKEN,
        "pageserver_connection_info": {
            "shard_count": count,
            "stripe_size": 8,
            "prefer_protocol": match transport {
                Transport::Libpq => "libpq",
                Transport::Grpc => "grpc",
            },
            "shards": shards,
        },
    })
}

fn pin(shards: &[&[&Pageserver]], transport: Transport) -> Pin {
    let mut document = json!({
        "format_version": 1.0, "suspend_timeout_seconds": -1, "cluster": { "roles": [], "databases": [] },
    });
    let facts = about(shards, transport, &json!({ "Static": "1/16B9188" }));
    document.as_object_mut().unwrap().extend(facts.as_object().unwrap().clone());
    Pin::of(&StoredSpec::new(serde_json::from_value(document).unwrap()).unwrap()).unwrap()
}

async fn ask(shards: &[&[&Pageserver]], transport: Transport) -> Result<Answer, PageserverError> {
    pin(shards, transport).ask(PATIENCE, PATIENCE).await
}

/// One that leases in this way, to who has the token.
fn leasing(leases: impl IntoIterator<Item = Lease>) -> Pageserver {
    let door = Door::Token(TOKEN.to_owned(), Refusal::new("28P01", 16, "no"));
    Pageserver::start([]).leasing(leases).behind(door)
}

fn leases(server: &Pageserver) -> Vec<Request> {
    let mut requests = server.requests();
    requests.retain(|request| request.what == What::Lease);
    requests
}

#[tokio::test]
async fn every_pageserver_of_every_shard_is_asked_and_the_earliest_end_counts() {
    for transport in BOTH {
        let [a, b, c] = [5_000, 3_250, 4_000].map(|millis| leasing([Lease::Until(millis)]));
        let answer = ask(&[&[&a], &[&b, &c]], transport).await.unwrap();
        assert_eq!(answer, Answer::Until(Duration::from_millis(3_250)));
        for (server, shard) in [(&a, "0002"), (&b, "0102"), (&c, "0102")] {
            let expected = Request {
                transport,
                application: None,
                options: None,
                token: Some(TOKEN.to_owned()),
                tenant: TENANT.to_owned(),
                timeline: TIMELINE.to_owned(),
                shard: Some(shard.to_owned()),
                lsn: 0x1_016B_9188,
                what: What::Lease,
            };
            assert_eq!(server.requests(), [expected]);
        }
        // A tenant that is not sharded is called by its own name.
        assert_eq!(ask(&[&[&a]], transport).await.unwrap(), Answer::Until(Duration::from_secs(5)));
        let shard = (transport == Transport::Grpc).then(|| "0000".to_owned());
        assert_eq!(a.requests()[1].shard, shard);
    }
}

#[tokio::test]
async fn one_refusal_decides_and_one_failure_spoils_the_rest() {
    let refusal = || Refusal::new("XX000", 14, "not today");
    for transport in BOTH {
        let granted = leasing([Lease::Until(5_000)]);
        let failing = leasing([Lease::Error(refusal())]);
        let refusing = leasing([Lease::Refused]);
        let error = ask(&[&[&granted], &[&failing]], transport).await.unwrap_err();
        assert!(error.fault.to_string().contains("not today"), "{}", error.fault);
        let answer = ask(&[&[&failing, &granted], &[&refusing]], transport).await.unwrap();
        let url = if transport == Transport::Libpq { refusing.libpq_url() } else { refusing.grpc_url() };
        let Answer::Refused { server } = answer else { panic!("{answer:?}") };
        assert!(url.ends_with(&server), "{server}");
        // Silence is not waited out.
        let silent = leasing([Lease::Silence]);
        let error =
            pin(&[&[&silent]], transport).ask(PATIENCE, Duration::from_millis(200)).await.unwrap_err();
        assert!(error.fault.to_string().contains("silent"), "{}", error.fault);
    }
}

#[test]
fn only_pinned_computes_on_neon_storage_have_leases() {
    let server = leasing([]);
    for changes in [
        json!({ "mode": "Replica" }),
        json!({ "mode": "Primary", "safekeeper_connstrings": ["sk:1"] }),
        json!({ "storage": { "kind": "existing" } }),
    ] {
        let mut document = json!({
            "format_version": 1.0, "suspend_timeout_seconds": -1, "cluster": { "roles": [], "databases": [] },
        });
        let facts = about(&[&[&server]], Transport::Libpq, &json!({ "Static": "0/1" }));
        let document_fields = document.as_object_mut().unwrap();
        document_fields.extend(facts.as_object().unwrap().clone());
        document_fields.extend(changes.as_object().unwrap().clone());
        let stored = StoredSpec::new(serde_json::from_value(document).unwrap()).unwrap();
        assert!(Pin::of(&stored).is_none(), "{changes}");
    }
}

/// A base backup and where it was taken, for all tests that run at the same time.
fn cluster() -> &'static (Vec<u8>, String) {
    static CLUSTER: OnceLock<(Vec<u8>, String)> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let origin = Origin::new();
        (origin.base_backup(), origin.checkpoint())
    })
}

/// The same with a base backup.
fn serving(leases: impl IntoIterator<Item = Lease>) -> Pageserver {
    let server = leasing(leases);
    server.answer([pageserver::Answer::Archive(Sending::new(&cluster().0))]);
    server
}

fn spec(place: &Place, server: &Pageserver, transport: Transport) -> Value {
    let mut spec = place.spec();
    spec["storage"] = Value::Null;
    spec["skip_pg_catalog_updates"] = json!(true);
    let facts = about(&[&[server]], transport, &json!({ "Static": cluster().1 }));
    spec.as_object_mut().unwrap().extend(facts.as_object().unwrap().clone());
    spec
}

/// Some seconds from now, for a lease and as the gauge has it.
fn from_now(seconds: u64) -> (Lease, String) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let end = now + Duration::from_secs(seconds);
    (Lease::Until(u64::try_from(end.as_millis()).unwrap()), end.as_secs().to_string())
}

/// A sample of the family, labels included.
fn metric(node: &Node<'_>, sample: &str) -> Option<String> {
    let (_, text) = node.request("GET", "/metrics", None).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(sample)?.trim().to_owned()))
}

fn outcomes(node: &Node<'_>, outcome: &str) -> Option<String> {
    metric(node, &format!("compute_ctl_lsn_lease_requests_total{{outcome=\"{outcome}\"}}"))
}

fn wait_end(node: &Node<'_>, end: &str) {
    let sample = format!("compute_ctl_lsn_lease_end_timestamp_seconds{{lsn=\"{}\"}}", cluster().1);
    node.wait("the end of the lease", |node| (metric(node, &sample).as_deref() == Some(end)).then_some(()));
}

#[test]
fn a_lease_is_renewed_while_the_compute_serves() {
    // Before the leases begin to run out.
    cluster();
    let renewed = |transport| {
        let ((first, _), (second, end)) = (from_now(12), from_now(3600));
        let server = serving([first, second]);
        let place = Place::new();
        place.configure(&spec(&place, &server, transport));
        let node = place.start(&[]);
        node.wait_status("running");
        wait_end(&node, &end);
        assert_eq!(leases(&server).len(), 2);
        assert_eq!(outcomes(&node, "granted").as_deref(), Some("2"));
        assert!(!node.log().contains(TOKEN), "the token is in the log");
        node.terminate();
    };
    // Both at once, for most of it is waiting.
    std::thread::scope(|scope| {
        for transport in BOTH {
            scope.spawn(move || renewed(transport));
        }
    });
}

#[test]
fn a_lease_that_is_refused_is_told_once_and_the_compute_serves_on() {
    for transport in BOTH {
        let (server, other) = (serving([Lease::Refused]), serving([from_now(3600).0]));
        let place = Place::new();
        place.configure(&spec(&place, &server, transport));
        let node = place.start(&[]);
        node.wait_status("running");
        node.wait("the refusal", |node| (outcomes(node, "refused").as_deref() == Some("1")).then_some(()));
        assert_eq!(place.sql("select answer from kept"), "42");
        // Nobody can bring back what is gone.
        let (code, body) = node.configure(&spec(&place, &other, transport));
        assert_eq!((code, &body["status"]), (200, &json!("running")), "{body}");
        node.terminate();
        assert_eq!(node.log().matches("refuses a lease").count(), 1);
        assert_eq!((leases(&server).len(), leases(&other).len()), (1, 0));
    }
}

#[test]
fn a_lease_moves_with_the_pageservers_at_once() {
    let unwell = || Lease::Error(Refusal::new("XX000", 14, "not today"));
    for (transport, first, refresh) in [
        // Until then nobody would ask again, or nobody would be asked.
        (Transport::Libpq, from_now(3600).0, false),
        (Transport::Grpc, from_now(3600).0, true),
        (Transport::Libpq, Lease::Silence, true),
        (Transport::Grpc, Lease::Silence, false),
        (Transport::Grpc, unwell(), false),
    ] {
        let (lease, end) = from_now(7200);
        let (before, after) = (serving([first.clone()]), serving([lease]));
        let place = Place::new();
        place.configure(&spec(&place, &before, transport));
        let node = place.start(&[]);
        node.wait_status("running");
        node.wait("the first request", |_| (!leases(&before).is_empty()).then_some(()));
        assert!(leases(&after).is_empty());
        if refresh {
            place.configure(&spec(&place, &after, transport));
            assert_eq!(node.refresh(), 200);
        } else {
            let (code, body) = node.configure(&spec(&place, &after, transport));
            assert_eq!(code, 200, "{body}");
        }
        wait_end(&node, &end);
        assert_eq!(leases(&after).len(), 1, "{first:?}");
        // The one that is not there any more is left alone from now on.
        let asked = leases(&before).len();
        node.terminate();
        assert_eq!(leases(&before).len(), asked, "{first:?}");
        if matches!(first, Lease::Error(_)) {
            assert!(
                node.log().contains("no lease yet: ") && node.log().contains("not today"),
                "{}",
                node.log()
            );
        } else {
            assert_eq!(asked, 1, "{first:?}");
        }
    }
}

#[test]
fn a_lease_is_asked_for_while_the_base_backup_is_not_there_yet() {
    let (lease, end) = from_now(3600);
    let server = serving([lease]);
    server.answer([pageserver::Answer::Silence]);
    let place = Place::new();
    place.configure(&spec(&place, &server, Transport::Libpq));
    let node = place.start(&[]);
    wait_end(&node, &end);
    let lsn = &cluster().1;
    node.wait_log(&format!(
        "lsn_lease_bg_task{{tenant_id={TENANT} timeline_id={TIMELINE} lsn={lsn}}}: lease granted"
    ));
    assert_eq!(node.status().unwrap()["status"], "init");
    node.terminate();
}
