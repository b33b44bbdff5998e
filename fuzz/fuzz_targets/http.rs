//! Requests to both servers, in process: whatever comes in is answered, with a request id and with a code which the
//! description of the server knows for it, and nothing panics.
//!
//! An input is the text of a request. Its first line is a letter for the server (`e` external, which asks for a token,
//! `o` the same open to everybody, `i` internal), `-` or `r` for a compute that has no spec or one that runs, a method
//! and what is asked for; headers follow, an empty line, and the body. Any bytes may stand anywhere.

#![no_main]

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use compute_ctl::catalog::{ConnectionSettings, Profile, Requests};
use compute_ctl::engine::{self, Done, Facts, Handle, PromotionTimes, Work, WorkError, World};
use compute_ctl::http::{self, Accepted, Auth, Context, Identity, SpecIntake};
use compute_ctl::secret::Secret;
use compute_ctl::spec::document::ComputeSpec;
use compute_ctl::spec::store::StoredSpec;
use compute_ctl::telemetry::Metrics;
use compute_states::{
    ComputeStatus, Epoch, Event, Exit, FetchedSpec, Lsn, Policy, Revision, SpecOutline, StopMode,
};
use http_body_util::{BodyExt, Full};
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::Service;
use hyper::{Method, Request, Uri};
use hyper_util::service::TowerToHyperService;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::reply::Response;

thread_local! {
    static NODES: RefCell<[Option<Node>; 2]> = const { RefCell::new([None, None]) };
}

fuzz_target!(|data: &[u8]| {
    let Some(asked) = Asked::read(data) else { return };
    NODES.with_borrow_mut(|nodes| {
        let place = &mut nodes[usize::from(asked.running)];
        let node = place.get_or_insert_with(|| Node::new(asked.running));
        node.check(asked);
        // What has changed is no beginning for the next one.
        if node.status() != node.first {
            *place = None;
        }
    });
});

struct Asked {
    server: u8,
    running: bool,
    request: Request<Full<Bytes>>,
}

impl Asked {
    /// Nothing for what hyper would not have let through.
    fn read(data: &[u8]) -> Option<Self> {
        let (line, mut rest) = split(data);
        let (&server, line) = line.split_first()?;
        let (&state, line) = line.split_first()?;
        let line = line.strip_prefix(b" ")?;
        let space = line.iter().position(|byte| *byte == b' ')?;
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.method_mut() = Method::from_bytes(&line[..space]).ok()?;
        *request.uri_mut() = Uri::try_from(&line[space + 1..]).ok()?;
        loop {
            let (line, after) = split(rest);
            rest = after;
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { break };
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
            request.headers_mut().append(name, value);
        }
        *request.body_mut() = Full::new(Bytes::copy_from_slice(rest));
        Some(Asked { server, running: state == b'r', request })
    }
}

/// A line, and what is behind it.
fn split(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &[]),
    }
}

/// All servers over one engine.
struct Node {
    runtime: Runtime,
    engine: Handle,
    first: ComputeStatus,
    external: Served,
    open: Served,
    internal: Served,
}

struct Served {
    routes: BoxedFilter<(Response,)>,
    document: Value,
}

impl Node {
    fn new(running: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let metrics = Arc::new(Metrics::new());
        let (engine, handle) = engine::new(Arc::new(Nothing::default()), Policy::default(), metrics.clone());
        let keys = serde_json::from_str(include_str!("../../tests/fixtures/keys/jwks.json"));
        let keys = keys.expect("a key set");
        // Nobody listens on this port: it is for one service, and only root can have it.
        let settings = Secret::new("host=127.0.0.1 port=1 user=cloud_admin dbname=postgres");
        let settings = ConnectionSettings::new(&settings, Profile::Standard).expect("it is well-formed");
        let context = Context {
            engine: handle.clone(),
            metrics,
            progress: Arc::default(),
            settings: Default::default(),
            specs: Arc::new(Anything),
            postgres: Requests::new(settings, "/nonexistent/pg_dump".into(), "neon_superuser".to_owned()),
            auth: Auth::tokens(&keys, "compute-1"),
            pgdata: Path::new("/nonexistent").into(),
        };
        let open = Context { auth: Auth::open(), ..context.clone() };
        runtime.block_on(async {
            tokio::spawn(engine.run());
            handle.report(Event::Booted { spec: None }).await;
            if running {
                let spec = SpecOutline { revision: Revision(1), final_sync: false };
                handle.configure(spec).await.expect("the engine lives");
            }
        });
        let serve = |routes| Served::new(routes, &runtime);
        let routes = {
            let _inside = runtime.enter();
            [http::external(context.clone()), http::internal(context), http::external(open)]
        };
        let [external, internal, open] = routes.map(serve);
        let first = handle.snapshot().status;
        Node { engine: handle, first, external, open, internal, runtime }
    }

    fn status(&self) -> ComputeStatus {
        self.engine.snapshot().status
    }

    fn check(&self, asked: Asked) {
        let served = match asked.server {
            b'i' => &self.internal,
            b'o' => &self.open,
            _ => &self.external,
        };
        let mut request = asked.request;
        compute_ctl::http::server::give_path(&mut request);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (head, body) = self.runtime.block_on(ask(&served.routes, request));
        assert!(head.headers.contains_key("x-request-id"), "{method} {path}: {head:?}");
        let code = head.status.as_u16();
        if code == 404 || code == 405 {
            return;
        }
        let method = method.as_str().to_lowercase();
        let described = served.document["paths"].as_object().expect("paths").iter().find(|(known, _)| {
            known.split_once('{').map_or(**known == path, |(directory, _)| path.starts_with(directory))
        });
        let item = described.map(|(_, item)| item);
        // A request id that cannot be read is refused before anything else is looked at.
        if code == 400 && item.is_none_or(|item| item[&method].is_null()) {
            return;
        }
        let item = item.unwrap_or_else(|| panic!("{method} {path} is served and not described"));
        let responses = &item[&method]["responses"];
        assert!(
            responses.get(code.to_string()).or(responses.get("default")).is_some(),
            "{method} {path} answers {code}, which is not described"
        );
        let json = head.headers.get("content-type").is_some_and(|value| value == "application/json");
        if method == "head" {
            assert!(body.is_empty(), "{path}: the answer to HEAD has a body");
        } else if json {
            let body: Result<Value, _> = serde_json::from_slice(&body);
            let body = body.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
            assert!(code < 400 || body["error"].is_string(), "{method} {path} answers {code} {body}");
            assert_ne!(body["error"], "internal error", "{method} {path}: a panic was caught");
        }
    }
}

impl Served {
    fn new(routes: BoxedFilter<(Response,)>, runtime: &Runtime) -> Self {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = Uri::from_static("/openapi.json");
        let (_, body) = runtime.block_on(ask(&routes, request));
        let document = serde_json::from_slice(&body).expect("a document");
        Served { routes, document }
    }
}

async fn ask(
    routes: &BoxedFilter<(Response,)>,
    request: Request<Full<Bytes>>,
) -> (hyper::http::response::Parts, Bytes) {
    let service = TowerToHyperService::new(warp::service(routes.clone()));
    let Ok(response) = service.call(request).await;
    let (head, body) = response.into_parts();
    // A stream of events has no end.
    if head.headers.get("content-type").is_some_and(|value| value == "text/event-stream") {
        return (head, Bytes::new());
    }
    (head, body.collect().await.expect("a whole body").to_bytes())
}

/// A world in which everything succeeds at once.
#[derive(Default)]
struct Nothing {
    stop: watch::Sender<bool>,
}

impl World for Nothing {
    fn run(
        &self,
        work: Work,
        _: CancellationToken,
    ) -> impl Future<Output = Result<Done, WorkError>> + Send + 'static {
        std::future::ready(Ok(match work {
            Work::FetchSpec { .. } => Done::Fetched(FetchedSpec::Spec {
                spec: SpecOutline { revision: Revision(2), final_sync: false },
                same_pageservers: true,
            }),
            Work::Promote { .. } => Done::Promoted(PromotionTimes::default()),
            Work::FinalSync { .. } => Done::Synced(Lsn(1)),
            _ => Done::Done,
        }))
    }

    fn start_postmaster(
        &self,
        _: Epoch,
        _: Revision,
        facts: Facts,
    ) -> impl Future<Output = Result<Exit, WorkError>> + Send + 'static {
        let mut stopped = self.stop.subscribe();
        async move {
            facts.ready().await;
            // Nobody can tell it to go any more.
            let _ = stopped.wait_for(|stop| *stop).await;
            Ok(Exit::Code(0))
        }
    }

    fn stop_postmaster(&self, _: Epoch, _: StopMode) {
        self.stop.send_replace(true);
    }

    fn reload_postmaster(&self, _: Epoch) {}

    fn random(&self) -> u64 {
        0
    }
}

/// Takes any spec.
struct Anything;

impl SpecIntake for Anything {
    fn accept(&self, spec: ComputeSpec) -> Result<Accepted, String> {
        let final_sync = spec.safekeepers_generation.is_some();
        Ok(Accepted { outline: SpecOutline { revision: Revision(3), final_sync }, held: None })
    }

    fn judge(&self, spec: ComputeSpec) -> Result<StoredSpec, String> {
        StoredSpec::new(spec).map_err(|error| error.to_string())
    }

    fn identity(&self, _: Revision) -> Identity {
        Identity::default()
    }
}
