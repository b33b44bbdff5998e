//! A world without PostgreSQL for the HTTP tests, the servers over it, and a client that shows every byte.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use compute_ctl::activity::{Activity, Rules, Seen};
use compute_ctl::catalog::{ConnectionSettings, Profile, Requests};
use compute_ctl::engine::{
    self, Done, Facts, Handle, Hold, Outcome, PromotionTimes, Snapshot, Work, WorkError, World,
};
use compute_ctl::http::{
    Accepted, Auth, BindSpec, Context, ExternalAddress, Identity, Listeners, Servers, SpecIntake,
};
use compute_ctl::postgres::settings::Reported;
use compute_ctl::secret::Secret;
use compute_ctl::spec::document::ComputeSpec;
use compute_ctl::spec::store::StoredSpec;
use compute_ctl::telemetry::Metrics;
use compute_states::{
    ComputeStatus, Epoch, Event, Exit, FailureClass, FetchedSpec, Lsn, Policy, Revision, SpecOutline,
    StopMode,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const COMPUTE_ID: &str = "compute-1";
pub(crate) const TENANT: &str = "c9269c359e9a199fad1ea0981246a78f";
pub(crate) const TIMELINE: &str = "ece7de74d4b8cbe5433a68ce4d1b97b4";

/// How the world deals with one kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Succeed,
    Fail(&'static str),
    /// Goes on until it is cancelled, or until another way is set.
    Hang,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Resolve,
    Storage,
    Apply,
    Promote,
    CheckIdle,
    Fetch,
    Stop,
    FinalSync,
}

/// Does nothing, in the ways it is told.
pub(crate) struct Fake {
    ways: watch::Sender<HashMap<Part, Way>>,
    stops: Mutex<HashMap<Epoch, watch::Sender<bool>>>,
    fetched: AtomicU64,
    /// Whether something is at work in Postgres.
    pub(crate) busy: AtomicBool,
}

impl Fake {
    fn new() -> Arc<Self> {
        Arc::new(Fake {
            ways: watch::channel(HashMap::new()).0,
            stops: Mutex::new(HashMap::new()),
            fetched: AtomicU64::new(1000),
            busy: AtomicBool::new(false),
        })
    }

    pub(crate) fn set(&self, part: Part, way: Way) {
        self.ways.send_modify(|ways| {
            ways.insert(part, way);
        });
    }

    /// The postmaster that was started last.
    pub(crate) fn postmaster(&self) -> Epoch {
        let stops = self.stops.lock().expect("nobody panics with it");
        *stops.keys().max().expect("one was started")
    }

    /// Waits until the part is not told to hang, and does what it is told then.
    fn go(&self, part: Part) -> impl Future<Output = Result<(), WorkError>> + Send + 'static {
        let mut ways = self.ways.subscribe();
        async move {
            let way = ways
                .wait_for(|ways| ways.get(&part) != Some(&Way::Hang))
                .await
                .map_err(|_| WorkError::cancelled())?
                .get(&part)
                .copied();
            match way {
                Some(Way::Fail(text)) => Err(WorkError::plain(FailureClass::Permanent, text)),
                _ => Ok(()),
            }
        }
    }
}

impl World for Fake {
    fn run(
        &self,
        work: Work,
        token: CancellationToken,
    ) -> impl Future<Output = Result<Done, WorkError>> + Send + 'static {
        let part = match work {
            Work::ResolveSpec { .. } => Some(Part::Resolve),
            Work::PrepareStorage { .. } => Some(Part::Storage),
            Work::ApplySpec { .. } => Some(Part::Apply),
            Work::Promote { .. } => Some(Part::Promote),
            Work::CheckIdle { .. } => Some(Part::CheckIdle),
            Work::FetchSpec { .. } => Some(Part::Fetch),
            Work::FinalSync { .. } => Some(Part::FinalSync),
            Work::WarmUp | Work::Sweep => None,
        };
        let done = match work {
            Work::FetchSpec { .. } => {
                let revision = Revision(self.fetched.fetch_add(1, Ordering::Relaxed));
                let spec = SpecOutline { revision, final_sync: false };
                Done::Fetched(FetchedSpec::Spec { spec, same_pageservers: false })
            }
            Work::Promote { .. } => Done::Promoted(PromotionTimes {
                lsn_wait: Duration::from_millis(12),
                pg_promote: Duration::from_millis(345),
            }),
            Work::CheckIdle { .. } if self.busy.load(Ordering::Relaxed) => {
                let activity = Activity { active_sessions: 2, physical_walsenders: 1, ..Activity::default() };
                let text = activity.holding_back(&Rules::default()).expect("there is something").into();
                Done::Busy { seen: Seen { activity, newest: None }, text }
            }
            Work::CheckIdle { .. } => {
                let seen = Seen { activity: Activity::default(), newest: None };
                Done::Idle { seen, hold: Hold::new(()) }
            }
            Work::FinalSync { .. } => Done::Synced(Lsn(0x028F_10D8)),
            _ => Done::Done,
        };
        let going = part.map(|part| self.go(part));
        async move {
            if let Some(going) = going {
                token.run_until_cancelled(going).await.unwrap_or(Err(WorkError::cancelled()))?;
            }
            Ok(done)
        }
    }

    fn start_postmaster(
        &self,
        postmaster: Epoch,
        _: Revision,
        facts: Facts,
    ) -> impl Future<Output = Result<Exit, WorkError>> + Send + 'static {
        let (stop, mut stopped) = watch::channel(false);
        self.stops.lock().expect("nobody panics with it").insert(postmaster, stop);
        let stopping = self.go(Part::Stop);
        async move {
            facts.ready().await;
            // Nobody can tell it to go any more.
            let _ = stopped.wait_for(|stop| *stop).await;
            stopping.await?;
            Ok(Exit::Code(0))
        }
    }

    fn stop_postmaster(&self, postmaster: Epoch, _: StopMode) {
        if let Some(stop) = self.stops.lock().expect("nobody panics with it").get(&postmaster) {
            stop.send_replace(true);
        }
    }

    fn reload_postmaster(&self, _: Epoch) {}

    fn random(&self) -> u64 {
        0
    }
}

/// Keeps what is accepted. The project `refused` is not, `panic` panics, and `slow` waits for the gate.
struct Specs {
    kept: Mutex<Vec<ComputeSpec>>,
    gate: Arc<Gate>,
}

/// Holds a slow intake up.
pub(crate) struct Gate {
    pub(crate) reached: tokio::sync::Notify,
    pub(crate) open: std::sync::Barrier,
}

impl SpecIntake for Specs {
    fn judge(&self, spec: ComputeSpec) -> Result<StoredSpec, String> {
        StoredSpec::new(spec).map_err(|error| error.to_string())
    }

    fn accept(&self, spec: ComputeSpec) -> Result<Accepted, String> {
        match spec.project_id.as_deref() {
            Some("refused") => return Err("pageserver connection information should be provided".to_owned()),
            Some("panic") => panic!("a bug in the intake"),
            Some("slow") => {
                self.gate.reached.notify_one();
                self.gate.open.wait();
            }
            _ => {}
        }
        let final_sync = spec.safekeepers_generation.is_some();
        let mut specs = self.kept.lock().expect("nobody panics with it");
        specs.push(spec);
        let outline = SpecOutline { revision: Revision(specs.len() as u64), final_sync };
        Ok(Accepted { outline, held: None })
    }

    fn identity(&self, revision: Revision) -> Identity {
        let specs = self.kept.lock().expect("nobody panics with it");
        let spec = specs.get((revision.0 as usize).wrapping_sub(1));
        Identity {
            tenant: spec.and_then(|spec| spec.tenant_id.clone()),
            timeline: spec.and_then(|spec| spec.timeline_id.clone()),
        }
    }
}

/// Both servers over an engine over the fake world.
pub(crate) struct Node {
    pub(crate) world: Arc<Fake>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) context: Context,
    pub(crate) engine: Handle,
    pub(crate) external: SocketAddr,
    pub(crate) internal: Vec<SocketAddr>,
    pub(crate) ended: JoinHandle<Outcome>,
    pub(crate) servers: Servers,
}

impl Node {
    /// Started without a spec.
    pub(crate) async fn empty() -> Self {
        Self::with(Policy::default(), tokens()).await
    }

    pub(crate) async fn with(policy: Policy, auth: Auth) -> Self {
        // Nobody listens on this port: it is for one service, and only root can have it.
        let settings = Secret::new("host=127.0.0.1 port=1 user=cloud_admin dbname=postgres");
        let settings = ConnectionSettings::new(&settings, Profile::Standard).expect("it is well-formed");
        Self::over(
            Requests::new(settings, "/nonexistent/pg_dump".into(), "neon_superuser".to_owned()),
            policy,
            auth,
        )
        .await
    }

    /// The same with a real Postgres for the requests that need one.
    pub(crate) async fn over(postgres: Requests, policy: Policy, auth: Auth) -> Self {
        let world = Fake::new();
        let metrics = Arc::new(Metrics::new());
        let (engine, handle) = engine::new(world.clone(), policy, metrics.clone());
        let ended = tokio::spawn(engine.run());
        handle.report(Event::Booted { spec: None }).await;
        let gate = Arc::new(Gate { reached: tokio::sync::Notify::new(), open: std::sync::Barrier::new(2) });
        let specs = Arc::new(Specs { kept: Mutex::default(), gate: gate.clone() });
        let context = Context {
            engine: handle.clone(),
            metrics,
            progress: Arc::default(),
            specs,
            postgres,
            auth,
            settings: Reported::default(),
            pgdata: Path::new("/nonexistent").into(),
        };
        let spec = BindSpec {
            external: ExternalAddress::Only([127, 0, 0, 1].into()),
            external_port: 0,
            internal_port: 0,
        };
        let listeners = Listeners::bind(&spec).expect("some port is free");
        let servers = Servers::open(listeners, &tokio::runtime::Handle::current()).expect("they listen");
        servers.serve(context.clone()).expect("on a loopback address");
        let (external, internal) = (servers.external(), servers.internal().to_vec());
        Node { world, gate, context, engine: handle, external, internal, servers, ended }
    }

    /// Started without a spec, then configured.
    pub(crate) async fn running() -> Self {
        let node = Self::empty().await;
        node.configured().await;
        node
    }

    pub(crate) async fn configured(&self) {
        let answer = self.post("/configure", &spec(json!({}))).await;
        assert_eq!(answer.status, "200 OK", "{answer:?}");
    }

    /// Waits until the status is published; a status that never comes is a failure and not a hang.
    pub(crate) async fn reaches(&self, status: ComputeStatus) -> Arc<Snapshot> {
        let mut snapshots = self.engine.watch();
        let reached = snapshots.wait_for(|snapshot| snapshot.status == status);
        let reached = tokio::time::timeout(std::time::Duration::from_secs(60), reached).await;
        let reached = reached.unwrap_or_else(|_| panic!("{status} is never reached"));
        reached.expect("the engine lives").clone()
    }

    /// A POST to the external server with the token of the compute, and JSON if there is a body.
    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        send(self.external, &request("POST", path, &token(), body)).await
    }

    /// A GET to the external server with the token of the compute.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.external, &request("GET", path, &token(), "")).await
    }

    /// A POST to the internal server, with JSON if there is a body.
    pub(crate) async fn post_inside(&self, path: &str, body: &str) -> Answer {
        send(self.internal[0], &request("POST", path, "", body)).await
    }

    /// Waits until a look at what is at work is under way.
    pub(crate) async fn looks(&self) {
        loop {
            let recording = self.engine.recording().await.expect("the engine lives");
            let asked = |event: Event| matches!(event, Event::TerminateIfIdleRequested { .. });
            if recording.entries.last().is_some_and(|entry| asked(entry.event)) {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn refresh(&self) -> Answer {
        let head = "POST /refresh_configuration HTTP/1.1\r\nhost: localhost\r\n\
            content-type: application/x-www-form-urlencoded\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        send(self.internal[0], head.as_bytes()).await
    }

    /// Has the engine end, then the servers, as the node does.
    pub(crate) async fn stop(mut self) {
        self.engine.report(Event::StopSignalled).await;
        self.ended.await.expect("the engine does not panic");
        self.servers.end().await;
    }
}

/// The body of a `/configure`; `more` is added to the spec.
pub(crate) fn spec(more: Value) -> String {
    let mut spec = json!({
        "format_version": 1.0, "suspend_timeout_seconds": -1, "tenant_id": TENANT, "timeline_id": TIMELINE,
        "cluster": {"roles": [], "databases": []},
    });
    let fields = more.as_object().expect("an object").clone();
    spec.as_object_mut().expect("an object").extend(fields);
    json!({"spec": spec, "compute_ctl_config": {"jwks": {"keys": []}}}).to_string()
}

pub(crate) fn tokens() -> Auth {
    let keys = serde_json::from_str(include_str!("../fixtures/keys/jwks.json")).expect("a key set");
    Auth::tokens(&keys, COMPUTE_ID)
}

/// The token real clients make for everything but `/terminate`.
pub(crate) fn token() -> String {
    signed(&json!({"compute_id": COMPUTE_ID, "scope": null, "aud": null}))
}

pub(crate) fn signed(claims: &Value) -> String {
    let key = EncodingKey::from_ed_der(include_bytes!("../fixtures/keys/ed25519.der"));
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &key).expect("the key fits")
}

pub(crate) fn request(method: &str, path: &str, token: &str, body: &str) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    if !token.is_empty() {
        head.push_str(&format!("authorization: Bearer {token}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    head.push_str(body);
    head.into_bytes()
}

/// An answer, as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).expect("answers are UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
        let status = status.unwrap_or_else(|| panic!("no status line: {head:?}")).to_owned();
        let headers = lines
            .map(|line| line.split_once(": ").expect("a header"))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Answer { status, headers, body: body.to_owned() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Status, content type and body in one, and that nothing is missing around them.
    #[track_caller]
    pub(crate) fn assert(&self, status: &str, content_type: Option<&str>, body: &str) {
        assert_eq!(
            (self.status.as_str(), self.header("content-type"), self.body.as_str()),
            (status, content_type, body)
        );
        self.assert_common();
    }

    /// What every answer has.
    #[track_caller]
    pub(crate) fn assert_common(&self) {
        assert!(self.header("date").is_some(), "{self:?}");
        assert!(self.header("x-request-id").is_some(), "{self:?}");
        let length = self.header("content-length").and_then(|length| length.parse().ok());
        assert!(length.is_some_and(|length: usize| length >= self.body.len()), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn assert_error(&self, status: &str, error: &str) {
        self.assert(status, Some("application/json"), &json!({ "error": error }).to_string());
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Sends bytes, and reads until the server closes.
pub(crate) async fn send(to: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(to).await.expect("the server listens");
    stream.write_all(bytes).await.expect("the server reads");
    read(&mut stream).await
}

pub(crate) async fn read(stream: &mut TcpStream) -> Answer {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the server answers");
    Answer::parse(&answer)
}
