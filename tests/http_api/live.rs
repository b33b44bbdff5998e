//! The history, the events as they come, the graph, and the page.

use std::collections::VecDeque;
use std::net::SocketAddr;

use compute_ctl::http::Auth;
use compute_ctl::limits;
use compute_states::{ComputeStatus, Event, Policy};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::begin;
use crate::support::{Node, Part, Way, request, send, spec, token};

/// One event of a stream, as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    id: u64,
    name: String,
    data: Value,
}

/// A client that watches.
struct Watcher {
    stream: BufReader<TcpStream>,
    head: String,
    text: String,
    parsed: VecDeque<Sent>,
}

impl Watcher {
    async fn new(node: &Node) -> Self {
        Self::with(node.external, "/events", "").await
    }

    /// Asks with more lines in the head, and reads the head of the answer.
    async fn with(to: SocketAddr, path: &str, more: &str) -> Self {
        Self::asking(to, path, &format!("authorization: Bearer {}\r\n{more}", token())).await
    }

    async fn asking(to: SocketAddr, path: &str, more: &str) -> Self {
        let mut stream = TcpStream::connect(to).await.expect("the server listens");
        let bytes = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{more}\r\n");
        stream.write_all(bytes.as_bytes()).await.expect("the server reads");
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        let whole = async {
            while !head.ends_with("\r\n\r\n") {
                assert_ne!(stream.read_line(&mut head).await.expect("it answers"), 0, "no whole answer");
            }
        };
        // An answer that never comes is a failure and not a hang.
        tokio::time::timeout(std::time::Duration::from_secs(60), whole).await.expect("an answer comes");
        Watcher { stream, head, text: String::new(), parsed: VecDeque::new() }
    }

    /// The next event, or nothing at the end of the stream, which must be a whole one.
    async fn next(&mut self) -> Option<Sent> {
        while self.parsed.is_empty() {
            let mut size = String::new();
            self.stream.read_line(&mut size).await.expect("chunks");
            let size =
                usize::from_str_radix(size.trim(), 16).unwrap_or_else(|_| panic!("no chunk: {size:?}"));
            if size == 0 {
                return None;
            }
            let mut piece = vec![0; size + 2];
            self.stream.read_exact(&mut piece).await.expect("whole chunks");
            self.text.push_str(std::str::from_utf8(&piece[..size]).expect("UTF-8"));
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
                // A comment has no data.
                if let Some(data) = field("data: ") {
                    self.parsed.push_back(Sent {
                        id: field("id: ").and_then(|id| id.parse().ok()).expect("a number"),
                        name: field("event: ").expect("a name").to_owned(),
                        data: serde_json::from_str(data).expect("JSON"),
                    });
                }
                self.text = rest.to_owned();
            }
        }
        self.parsed.pop_front()
    }

    async fn transition(&mut self) -> Sent {
        let sent = self.next().await.expect("the stream goes on");
        assert_eq!(
            (sent.name.as_str(), sent.data["seq"].as_u64()),
            ("transition", Some(sent.id)),
            "{sent:?}"
        );
        sent
    }

    async fn rest(&mut self) -> Vec<Sent> {
        let mut rest = Vec::new();
        while let Some(sent) = self.next().await {
            rest.push(sent);
        }
        rest
    }
}

fn statuses(transitions: &[Value]) -> Vec<(&str, &str)> {
    let text = |value: &'_ Value| value.as_str().map(str::len).is_some();
    assert!(transitions.iter().all(|transition| text(&transition["from"]) && text(&transition["time"])));
    transitions
        .iter()
        .map(|transition| {
            (transition["to"].as_str().expect("text"), transition["cause"].as_str().expect("text"))
        })
        .collect()
}

/// Makes more transitions than are kept.
async fn overflow(node: &Node) {
    while node.engine.history().dropped() == 0 {
        node.engine.refresh().await.expect("the engine lives");
        node.reaches(ComputeStatus::Running).await;
    }
}

// ---- history ------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_history_tells_every_transition_with_its_cause() {
    let node = Node::empty().await;
    let answer = node.get("/history").await;
    assert_eq!(
        (answer.header("content-type"), answer.header("cache-control")),
        (Some("application/json"), Some("no-store"))
    );
    let body = answer.json();
    assert_eq!((&body["status"], &body["dropped"], &body["last"]), (&json!("empty"), &json!(0), &json!(0)));
    assert_eq!(body["transitions"], json!([]));
    node.configured().await;
    node.world.set(Part::Apply, Way::Fail("no such role"));
    node.post("/configure", &spec(json!({}))).await;
    let body = node.get("/history").await.json();
    assert_eq!((&body["status"], &body["last"]), (&json!("failed"), &json!(6)));
    let transitions = body["transitions"].as_array().expect("a list");
    assert_eq!(
        statuses(transitions),
        [
            ("configuration_pending", "ConfigureRequested"),
            ("init", "SpecResolved"),
            ("running", "Started"),
            ("configuration_pending", "ConfigureRequested"),
            ("configuration", "SpecResolved"),
            ("failed", "ReconfigureFailed"),
        ]
    );
    for (index, transition) in transitions.iter().enumerate() {
        assert_eq!(transition["seq"], index + 1);
        let before = if index == 0 { json!("empty") } else { transitions[index - 1]["to"].clone() };
        assert_eq!(transition["from"], before);
        assert!(transition["lasted_ms"].is_u64() && transition["label"].is_string(), "{transition}");
        let failed = transition["to"] == "failed";
        assert_eq!(transition["error"].as_str(), failed.then_some("no such role"));
        // Requests have no epoch; what they have started has.
        assert_eq!(
            transition["epoch"].is_null(),
            transition["cause"] == "ConfigureRequested",
            "{transition}"
        );
    }
    assert_eq!(transitions[5]["time"], body["since"]);
    assert_eq!(transitions[0]["label"], "received a /configure request with spec");
    // What had gone wrong is told where it did, and not with what follows.
    node.world.set(Part::Fetch, Way::Hang);
    assert_eq!(node.refresh().await.status, "200 OK");
    let pending = node.reaches(ComputeStatus::RefreshConfigurationPending).await;
    assert_eq!(pending.error.as_deref(), Some("no such role"), "it is still what is wrong");
    let body = node.get("/history").await.json();
    assert_eq!((&body["last"], &body["transitions"][6]["error"]), (&json!(7), &Value::Null), "{body}");
    node.stop().await;
}

#[tokio::test]
async fn the_history_can_be_asked_for_less() {
    let node = Node::running().await;
    for (limit, expected) in [("0", 0), ("1", 1), ("2", 2), ("3", 3), ("99999", 3)] {
        let body = node.get(&format!("/history?limit={limit}")).await.json();
        let transitions = body["transitions"].as_array().expect("a list");
        assert_eq!(transitions.len(), expected);
        assert!(transitions.last().is_none_or(|newest| newest["seq"] == 3));
    }
    let error =
        "failed to deserialize query string: limit: invalid value: string \"-1\", expected a whole number";
    node.get("/history?limit=-1").await.assert_error("400 Bad Request", error);
    node.stop().await;
}

#[tokio::test]
async fn an_old_history_says_how_much_of_it_is_gone() {
    let node = Node::running().await;
    overflow(&node).await;
    let body = node.get("/history").await.json();
    let transitions = body["transitions"].as_array().expect("a list");
    let dropped = body["dropped"].as_u64().expect("a number");
    assert_eq!(transitions.len(), limits::HISTORY);
    assert_eq!(transitions[0]["seq"].as_u64(), Some(dropped + 1));
    assert_eq!(body["last"].as_u64(), Some(dropped + limits::HISTORY as u64));
    node.stop().await;
}

#[tokio::test]
async fn nothing_of_it_is_told_without_a_token() {
    let node = Node::running().await;
    for (method, path) in
        [("GET", "/history"), ("GET", "/events"), ("GET", "/fsm"), ("POST", "/refresh_configuration")]
    {
        let answer = send(node.external, &request(method, path, "", "")).await;
        answer.assert_error("400 Bad Request", "invalid authorization token");
    }
    assert_eq!(node.engine.snapshot().status, ComputeStatus::Running);
    node.stop().await;
}

// ---- events -------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_watcher_is_told_the_present_and_then_everything_to_the_end() {
    let node = Node::empty().await;
    let mut watcher = Watcher::new(&node).await;
    assert!(watcher.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", watcher.head);
    assert!(watcher.head.contains("content-type: text/event-stream\r\n"), "{}", watcher.head);
    let first = watcher.next().await.expect("the stream begins");
    assert_eq!((first.id, first.name.as_str(), &first.data["status"]), (0, "state", &json!("empty")));
    node.configured().await;
    for (id, to) in [(1, "configuration_pending"), (2, "init"), (3, "running")] {
        let sent = watcher.transition().await;
        assert_eq!((sent.id, sent.data["to"].as_str()), (id, Some(to)));
    }
    let kept = node.get("/history").await.json();
    let node_stops = tokio::spawn(node.stop());
    let rest = watcher.rest().await;
    node_stops.await.expect("it stops");
    let to: Vec<_> = rest.iter().map(|sent| sent.data["to"].as_str().expect("text")).collect();
    assert_eq!(to, ["termination_pending_immediate", "terminated"]);
    assert_eq!(kept["transitions"][2]["seq"], rest[0].id - 1);
}

#[tokio::test]
async fn a_watcher_that_comes_back_gets_what_it_has_missed() {
    let node = Node::running().await;
    let kept = node.get("/history").await.json();
    for (path, more, from) in [
        ("/events", "last-event-id: 0\r\n", 0),
        ("/events", "last-event-id: 2\r\n", 2),
        ("/events?last_event_id=1", "", 1),
        // The address is that of the first request; the header is newer.
        ("/events?last_event_id=0", "last-event-id: 2\r\n", 2),
        ("/events?last_event_id=3", "", 3),
    ] {
        let mut watcher = Watcher::with(node.external, path, more).await;
        let first = watcher.next().await.expect("the stream begins");
        // Whoever is cut off now comes back with the same number.
        assert_eq!((first.id, first.name.as_str()), (from, "state"));
        assert_eq!(first.data["status"], "running");
        for seq in from + 1..=3 {
            let sent = watcher.transition().await;
            assert_eq!((sent.id, &sent.data), (seq, &kept["transitions"][seq as usize - 1]));
        }
    }
    for (path, more) in [("/events", "last-event-id: x\r\n"), ("/events", "last-event-id: -1\r\n")] {
        let watcher = Watcher::with(node.external, path, more).await;
        assert!(watcher.head.starts_with("HTTP/1.1 400 "), "{}", watcher.head);
    }
    node.get("/events?last_event_id=x").await.assert_error(
        "400 Bad Request",
        "failed to deserialize query string: last_event_id: invalid value: string \"x\", expected a whole number",
    );
    node.stop().await;
}

#[tokio::test]
async fn what_is_lost_is_told() {
    let node = Node::running().await;
    let unknown = async |id: u64| {
        let mut watcher = Watcher::with(node.external, &format!("/events?last_event_id={id}"), "").await;
        watcher.next().await.expect("the status");
        (watcher.next().await.expect("a gap"), watcher.transition().await)
    };
    // A number of another process: everything there is may be new.
    let (gap, next) = unknown(4).await;
    assert_eq!((gap.name.as_str(), gap.id, gap.data), ("gap", 0, json!({"lost": null, "after": 0})));
    assert_eq!(next.id, 1);
    overflow(&node).await;
    let dropped = node.engine.history().dropped();
    let (gap, next) = unknown(0).await;
    assert_eq!((gap.name.as_str(), gap.id), ("gap", dropped));
    assert_eq!(gap.data, json!({"lost": dropped, "after": dropped}));
    assert_eq!(next.id, dropped + 1);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_watcher_who_hears_nothing_is_told_that_somebody_is_there() {
    let node = Node::empty().await;
    let mut watcher = Watcher::new(&node).await;
    watcher.next().await.expect("the status");
    let mut size = String::new();
    watcher.stream.read_line(&mut size).await.expect("a chunk");
    let mut comment = String::new();
    watcher.stream.read_line(&mut comment).await.expect("a line");
    assert!(comment.starts_with(':'), "{comment:?}");
    node.stop().await;
}

#[tokio::test]
async fn a_crowd_of_watchers_gets_everything_and_is_in_nobodys_way() {
    const CROWD: usize = 1000;
    // Both ends of each connection are ours here.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("it can be asked");
    let files = hard.min(4096);
    assert!(files >= 2 * CROWD as u64 + 200, "this test needs some two thousand files, and may have {files}");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(files), hard).expect("up to the hard limit");
    // A thousand signatures take a test build half a minute.
    let node = Node::with(Policy::default(), Auth::open()).await;
    let mut watchers = Vec::new();
    for _ in 0..CROWD {
        let mut watcher = Watcher::asking(node.external, "/events", "").await;
        assert_eq!(watcher.next().await.expect("the status").data["status"], "empty");
        watchers.push(watcher);
    }
    // Far more than may ask at once, and still there is room for those who do.
    assert_eq!(node.get("/status").await.json()["status"], "empty");
    node.configured().await;
    let stops = tokio::spawn(node.stop());
    let all = watchers.into_iter().map(|mut watcher| tokio::spawn(async move { watcher.rest().await }));
    let all = futures_util::future::join_all(all.collect::<Vec<_>>()).await;
    stops.await.expect("it stops");
    let expected =
        ["configuration_pending", "init", "running", "termination_pending_immediate", "terminated"];
    for sent in all {
        let sent = sent.expect("it reads");
        let to: Vec<_> = sent.iter().map(|sent| sent.data["to"].as_str().expect("text")).collect();
        assert_eq!(to, expected);
    }
}

#[tokio::test]
async fn a_server_that_stops_does_not_wait_for_its_watchers_for_ever() {
    let mut node = Node::empty().await;
    node.world.set(Part::Storage, Way::Hang);
    let waiting = begin(&node, "/configure", &spec(json!({}))).await;
    node.reaches(ComputeStatus::Init).await;
    let mut watcher = Watcher::new(&node).await;
    watcher.next().await.expect("the status");
    node.servers.end().await;
    drop(waiting);
}

// ---- the graph ----------------------------------------------------------------------------------------

#[tokio::test]
async fn the_graph_marks_the_present_status() {
    let node = Node::running().await;
    let body = node.get("/fsm").await.json();
    assert_eq!(body["status"], "running");
    let states = body["states"].as_array().expect("a list");
    assert_eq!(states.len(), ComputeStatus::ALL.len());
    let marked = |what: &str| {
        let marked = states.iter().filter(|state| state[what] == true);
        marked.map(|state| state["status"].as_str().expect("text")).collect::<Vec<_>>()
    };
    assert_eq!(marked("current"), ["running"]);
    assert_eq!(marked("initial"), ["empty"]);
    assert_eq!(marked("final"), ["failed", "terminated"]);
    let names: Vec<_> = states.iter().map(|state| state["name"].as_str().expect("text")).collect();
    assert!(names.contains(&"RefreshConfigurationPending"), "{names:?}");
    // What happened is in it.
    let arrows = body["transitions"].as_array().expect("a list");
    for seen in node.get("/history").await.json()["transitions"].as_array().expect("a list") {
        let same =
            |arrow: &&Value| ["from", "to", "cause", "label"].iter().all(|key| arrow[key] == seen[key]);
        assert!(arrows.iter().any(|arrow| same(&arrow)), "{seen}");
    }
    node.stop().await;
}

// ---- the page -----------------------------------------------------------------------------------------

#[tokio::test]
async fn the_page_needs_no_token_and_runs_nothing_but_itself() {
    let node = Node::empty().await;
    let mut nonces = Vec::new();
    for _ in 0..2 {
        let answer = send(node.external, &request("GET", "/ui", "", "")).await;
        assert_eq!(
            (answer.status.as_str(), answer.header("content-type")),
            ("200 OK", Some("text/html; charset=utf-8"))
        );
        answer.assert_common();
        let policy = answer.header("content-security-policy").expect("a policy");
        for rule in
            ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "form-action 'none'"]
        {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        let nonce = policy.split_once("script-src 'nonce-").and_then(|(_, rest)| rest.split_once('\''));
        let nonce = nonce.expect("one is needed").0.to_owned();
        for tag in ["script", "style"] {
            assert_eq!(answer.body.matches(&format!("<{tag} nonce=\"{nonce}\">")).count(), 1);
            assert_eq!(answer.body.matches(&format!("<{tag}")).count(), 1);
        }
        for never in ["{nonce}", "{style}", "{script}", "src=\"", " onclick=", " style=\""] {
            assert!(!answer.body.contains(never), "{never}");
        }
        nonces.push(nonce);
    }
    assert_ne!(nonces[0], nonces[1]);
    // With tokens the address itself is nothing, as in the original.
    send(node.external, &request("GET", "/", "", "")).await.assert("404 Not Found", None, "");
    node.stop().await;
}

#[tokio::test]
async fn without_tokens_the_page_is_at_the_address_itself_and_may_ask() {
    let node = Node::with(Policy::default(), Auth::open()).await;
    for path in ["/", "/ui"] {
        let answer = send(node.external, &request("GET", path, "", "")).await;
        assert_eq!(answer.status, "200 OK");
        assert!(answer.body.contains("<title>"), "{}", answer.body);
    }
    let post = async |host: &str, origin: &str| {
        let bytes = format!(
            "POST /terminate?mode=immediate HTTP/1.1\r\nhost: {host}\r\norigin: {origin}\r\ncontent-length: 0\r\n\
             connection: close\r\n\r\n"
        );
        send(node.external, bytes.as_bytes()).await
    };
    let own = node.external.to_string();
    post(&own, "http://127.0.0.1:1")
        .await
        .assert_error("403 Forbidden", "requests from web pages are not accepted without a token");
    post("rebound.example.com", "http://rebound.example.com").await.assert_error(
        "403 Forbidden",
        "requests to other hosts than localhost are not accepted without a token",
    );
    assert_eq!(node.engine.snapshot().status, ComputeStatus::Empty);
    post(&own, &format!("http://{own}")).await.assert("200 OK", Some("application/json"), r#"{"lsn":null}"#);
    node.ended.await.expect("the engine does not panic");
}

// ---- refreshing by hand -------------------------------------------------------------------------------

#[tokio::test]
async fn a_person_can_ask_for_what_postgres_asks_for() {
    for status in ComputeStatus::ALL {
        let (node, waiting) = crate::lifecycle::in_status(status).await;
        node.world.set(Part::Fetch, Way::Hang);
        let before = crate::refreshes(&node).await;
        let answer = node.post("/refresh_configuration", "").await;
        match status {
            ComputeStatus::Init
            | ComputeStatus::Running
            | ComputeStatus::Failed
            | ComputeStatus::RefreshConfigurationPending => answer.assert("200 OK", None, ""),
            _ => answer.assert_error(
                "500 Internal Server Error",
                &format!("Cannot refresh compute configuration in state {}", status.name()),
            ),
        }
        // It is no page request that failed.
        assert_eq!(crate::refreshes(&node).await, before);
        let asked = |event: &Event| matches!(event, Event::RefreshRequested { .. });
        let recording = node.engine.recording().await.expect("the engine lives");
        assert!(recording.entries.iter().any(|entry| asked(&entry.event)));
        drop(waiting);
        node.world.set(Part::Stop, Way::Succeed);
        node.stop().await;
    }
}
