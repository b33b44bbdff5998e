//! Each route by itself: routing, tokens, bodies, queries, answers.

use compute_ctl::activity::{Activity, Kind, Seen, Sighting};
use compute_ctl::http::{self, Auth, BindSpec, ExternalAddress, Listeners, ServeError, Servers};
use compute_ctl::limits;
use compute_states::{ComputeStatus, Epoch, Policy};
use hyper::body::Body as _;
use serde_json::json;
use tokio::net::TcpStream;

use crate::begin;
use crate::support::{
    Answer, COMPUTE_ID, Node, Part, TENANT, TIMELINE, Way, read, request, send, signed, spec, token, tokens,
};

// ---- routing ------------------------------------------------------------------------------------------

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_answered_before_anything_else() {
    let node = Node::empty().await;
    let external = http::external(node.context.clone());
    let internal = http::internal(node.context.clone());
    for (routes, method, path, code, allow) in [
        (&external, "GET", "/", 404, None),
        (&external, "GET", "/nothing", 404, None),
        (&external, "GET", "/status/", 404, None),
        (&external, "POST", "/terminate/", 404, None),
        (&external, "POST", "/terminate//", 404, None),
        (&external, "GET", "//status", 404, None),
        (&external, "GET", "/Status", 404, None),
        (&external, "GET", "/%73tatus", 404, None),
        (&external, "GET", "/refresh_configuration", 405, Some("POST")),
        (&external, "POST", "/", 404, None),
        (&external, "POST", "/ui", 405, Some("GET,HEAD")),
        (&external, "GET", "/ui/", 404, None),
        (&external, "POST", "/history", 405, Some("GET,HEAD")),
        (&external, "POST", "/events", 405, Some("GET,HEAD")),
        (&external, "DELETE", "/fsm", 405, Some("GET,HEAD")),
        (&internal, "GET", "/history", 404, None),
        (&internal, "GET", "/events", 404, None),
        (&internal, "GET", "/ui", 404, None),
        (&external, "POST", "/configure_telemetry", 404, None),
        (&external, "POST", "/status", 405, Some("GET,HEAD")),
        (&external, "DELETE", "/metrics", 405, Some("GET,HEAD")),
        (&external, "GET", "/configure", 405, Some("POST")),
        (&external, "PUT", "/configure", 405, Some("POST")),
        (&external, "GET", "/terminate", 405, Some("POST")),
        (&external, "HEAD", "/terminate", 405, Some("POST")),
        (&external, "OPTIONS", "/terminate?mode=fast", 405, Some("POST")),
        (&external, "POST", "/dbs_and_roles", 405, Some("GET,HEAD")),
        (&external, "POST", "/database_schema?database=x", 405, Some("GET,HEAD")),
        (&external, "GET", "/database_schema/", 404, None),
        (&external, "POST", "/insights", 405, Some("GET,HEAD")),
        (&external, "GET", "/check_writability", 405, Some("POST")),
        (&external, "POST", "/grants", 404, None),
        (&external, "POST", "/extensions", 404, None),
        (&internal, "GET", "/status", 404, None),
        (&internal, "GET", "/grants", 405, Some("POST")),
        (&internal, "DELETE", "/extensions", 405, Some("POST")),
        (&internal, "POST", "/check_writability", 404, None),
        (&internal, "POST", "/terminate", 404, None),
        (&internal, "GET", "/metrics", 404, None),
        (&internal, "POST", "/refresh_configuration/", 404, None),
        (&internal, "GET", "/refresh_configuration", 405, Some("POST")),
    ] {
        let answer = warp::test::request().method(method).path(path).reply(routes).await;
        let case = format!("{method} {path}");
        assert_eq!(answer.status(), code, "{case}");
        assert_eq!(
            answer.headers().get("allow").map(|allow| allow.as_bytes()),
            allow.map(str::as_bytes),
            "{case}"
        );
        assert!(answer.body().is_empty(), "{case}");
        assert!(answer.headers().contains_key("x-request-id"), "{case}");
    }
    assert_eq!(node.engine.snapshot().status, ComputeStatus::Empty);
    node.stop().await;
}

#[tokio::test]
async fn answers_without_a_body_have_no_content_type() {
    let node = Node::empty().await;
    for (bytes, status) in [
        (request("GET", "/nothing", "", ""), "404 Not Found"),
        (request("GET", "/terminate", "", ""), "405 Method Not Allowed"),
    ] {
        let answer = send(node.external, &bytes).await;
        answer.assert(status, None, "");
        assert_eq!(answer.header("content-length"), Some("0"), "{answer:?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn head_is_answered_like_get_without_the_body() {
    let node = Node::running().await;
    for path in ["/status", "/metrics"] {
        let get = node.get(path).await;
        let head = send(node.external, &request("HEAD", path, &token(), "")).await;
        assert_eq!(head.status, "200 OK");
        assert_eq!(head.body, "");
        assert_eq!(head.header("content-type"), get.header("content-type"));
        let length: usize =
            head.header("content-length").and_then(|length| length.parse().ok()).expect("kept");
        assert!(length > 0);
        if path == "/status" {
            assert_eq!(length, get.body.len());
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn every_answer_carries_the_request_id() {
    let node = Node::empty().await;
    let ask = async |path: &str, id: &[u8]| {
        let mut bytes =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n").into_bytes();
        if !id.is_empty() {
            bytes.extend([b"x-request-id: ", id, b"\r\n"].concat());
        }
        bytes.extend(b"\r\n");
        send(node.external, &bytes).await
    };
    for path in ["/metrics", "/status", "/nothing", "/terminate"] {
        let answer = ask(path, b"any text ~ at-all").await;
        assert_eq!(answer.header("x-request-id"), Some("any text ~ at-all"), "{answer:?}");
        let answer = ask(path, b"").await;
        let id = answer.header("x-request-id").expect("one is made");
        assert_eq!(uuid::Uuid::parse_str(id).expect("a UUID").get_version_num(), 4);
        for unreadable in [&b"caf\xc3\xa9"[..], b"\xff"] {
            let answer = ask(path, unreadable).await;
            answer.assert_error("400 Bad Request", "x-request-id should be visible ASCII");
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn http_2_is_spoken_with_prior_knowledge() {
    let node = Node::empty().await;
    let stream = TcpStream::connect(node.external).await.expect("it listens");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .expect("HTTP/2 is spoken");
    let client = tokio::spawn(connection);
    for (path, code) in [("/metrics", 200), ("/status", 400), ("/nothing", 404)] {
        let request =
            hyper::Request::get(format!("http://localhost{path}")).body(String::new()).expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), code, "{path}");
        assert!(answer.headers().contains_key("x-request-id"));
    }
    // Only the head of an answer, and for an answer without an end as well.
    let token = signed(&json!({ "compute_id": COMPUTE_ID }));
    for (path, length) in [("/status", true), ("/events", false)] {
        let request = hyper::Request::head(format!("http://localhost{path}"))
            .header("authorization", format!("Bearer {token}"))
            .body(String::new())
            .expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(answer.headers().contains_key("content-length"), length, "{path}");
        assert!(answer.body().is_end_stream(), "{path}");
    }
    drop(sender);
    node.stop().await;
    client.await.expect("no panic").expect("an orderly end");
}

#[tokio::test]
async fn a_request_without_a_path_is_answered() {
    let node = Node::empty().await;
    for server in [node.external, node.internal[0]] {
        let answer =
            send(server, b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                .await;
        assert_eq!(answer.status, "404 Not Found");
        assert!(answer.header("x-request-id").is_some());
    }
    node.stop().await;
}

#[tokio::test]
async fn both_loopback_addresses_serve_the_internal_routes() {
    let node = Node::empty().await;
    for address in &node.internal {
        let answer = send(
            *address,
            b"POST /refresh_configuration HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        )
        .await;
        assert_eq!(answer.status, "500 Internal Server Error");
    }
    node.stop().await;
}

/// Whoever is on the machine may use the internal server, but not what a browser on it has loaded elsewhere.
#[tokio::test]
async fn the_internal_server_is_not_for_web_pages() {
    let node = Node::empty().await;
    for path in ["/refresh_configuration", "/grants", "/extensions", "/extension_server/x", "/failpoints"] {
        for (head, error) in [
            ("host: localhost\r\norigin: https://example.com", "requests from web pages are not accepted"),
            ("host: example.com", "requests"),
        ] {
            let request =
                format!("POST {path} HTTP/1.1\r\n{head}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            let answer = send(node.internal[0], request.as_bytes()).await;
            assert_eq!(answer.status, "403 Forbidden", "{path}");
            assert!(answer.body.contains(error), "{path}: {}", answer.body);
        }
    }
    node.stop().await;
}

// ---- authentication -----------------------------------------------------------------------------------

#[tokio::test]
async fn tokens_decide_before_query_and_body_are_looked_at() {
    let node = Node::empty().await;
    let admin = "compute_ctl:admin";
    for (token, status, error) in [
        (String::new(), "400 Bad Request", "invalid authorization token"),
        ("nonsense".to_owned(), "401 Unauthorized", "failed to verify authorization token"),
        (
            signed(&json!({"compute_id": COMPUTE_ID, "exp": 1})),
            "401 Unauthorized",
            "failed to verify authorization token",
        ),
        (
            signed(&json!({"scope": admin})),
            "401 Unauthorized",
            "missing audience in authorization token claims",
        ),
        (
            signed(&json!({"scope": admin, "aud": ["other"]})),
            "401 Unauthorized",
            "invalid audience in authorization token claims",
        ),
        (signed(&json!({})), "403 Forbidden", "missing compute_id in authorization token claims"),
        (
            signed(&json!({"compute_id": "another"})),
            "403 Forbidden",
            "invalid compute ID in authorization token claims",
        ),
    ] {
        for (method, path, body) in [
            ("GET", "/status", ""),
            ("POST", "/configure", "not json"),
            ("POST", "/terminate?mode=bogus", ""),
            ("GET", "/dbs_and_roles", ""),
            ("GET", "/database_schema", ""),
            ("GET", "/insights", ""),
            ("POST", "/check_writability", ""),
        ] {
            let answer = send(node.external, &request(method, path, &token, body)).await;
            answer.assert_error(status, error);
        }
    }
    assert_eq!(node.engine.snapshot().status, ComputeStatus::Empty);
    let metrics = send(node.external, &request("GET", "/metrics", "", "")).await;
    assert_eq!(metrics.status, "200 OK");
    node.stop().await;
}

#[tokio::test]
async fn the_token_the_real_client_makes_for_terminate_is_accepted() {
    let node = Node::empty().await;
    let token = signed(&json!({"compute_id": null, "scope": "compute_ctl:admin", "aud": ["compute"]}));
    let answer = send(node.external, &request("POST", "/terminate?mode=immediate", &token, "")).await;
    answer.assert("200 OK", Some("application/json"), r#"{"lsn":null}"#);
    node.stop().await;
}

#[tokio::test]
async fn a_server_without_tokens_serves_loopback_and_nothing_else() {
    let node = Node::with(Policy::default(), Auth::open()).await;
    let answer = send(node.external, &request("GET", "/status", "", "")).await;
    assert_eq!(answer.status, "200 OK");
    let page =
        b"POST /terminate HTTP/1.1\r\nhost: x\r\norigin: https://example.com\r\nconnection: close\r\n\r\n";
    let answer = send(node.external, page).await;
    answer.assert_error("403 Forbidden", "requests from web pages are not accepted without a token");

    let spec = BindSpec { external: ExternalAddress::All, external_port: 0, internal_port: 0 };
    let listeners = Listeners::bind(&spec).expect("some port is free");
    let mut servers = Servers::open(listeners, &tokio::runtime::Handle::current()).expect("they listen");
    let refused = servers.serve(node.context.clone());
    servers.end().await;
    assert!(matches!(refused, Err(ServeError::OpenToOthers(_))), "{refused:?}");
    node.stop().await;
}

// ---- reading ------------------------------------------------------------------------------------------

#[tokio::test]
async fn status_has_its_fields_in_order_with_nulls() {
    let node = Node::empty().await;
    let check = |answer: &Answer, rest: &str| {
        let body = answer.json();
        let start = body["start_time"].as_str().expect("text");
        assert!(start.ends_with('Z'), "{start}");
        let snapshot = node.engine.snapshot();
        assert_eq!(start.parse::<jiff::Timestamp>().expect("RFC 3339"), snapshot.start_time);
        answer.assert("200 OK", Some("application/json"), &format!(r#"{{"start_time":"{start}",{rest}}}"#));
    };
    let answer = node.get("/status").await;
    check(&answer, r#""tenant":null,"timeline":null,"status":"empty","last_active":null,"error":null"#);

    let waited = node.engine.snapshot().start_time;
    let configured = node.post("/configure", &spec(json!({}))).await;
    assert!(node.engine.snapshot().start_time > waited, "the wait for a spec is no part of the start");
    let ids = format!(r#""tenant":"{TENANT}","timeline":"{TIMELINE}""#);
    let running = format!(r#"{ids},"status":"running","last_active":null,"error":null"#);
    check(&configured, &running);
    check(&node.get("/status").await, &running);

    let mut snapshots = node.engine.watch();
    let postmaster = node.world.postmaster();
    let activity = Activity { idle_sessions: 2, physical_walsenders: 1, ..Activity::default() };
    let newest = Some(Sighting { at: jiff::Timestamp::now(), kind: Kind::PhysicalWalsender });
    node.engine.observe(postmaster, Seen { activity, newest });
    snapshots.wait_for(|snapshot| snapshot.last_active.is_some()).await.expect("the engine lives");
    let answer = node.get("/status").await;
    let body = answer.json();
    let active = body["last_active"].as_str().expect("text");
    assert!(active.ends_with("+00:00"), "{active}");
    let counts = concat!(
        r#","activity":{"last_kind":"physical_walsender","#,
        r#""sessions":{"active":0,"idle_in_transaction":0,"idle":2,"arriving":0},"#,
        r#""walsenders":{"logical":0,"physical":1},"logical_slots":{"active":0,"inactive":0},"#,
        r#""subscriptions":0,"autovacuum_workers":0,"statistics_moved":null}"#,
    );
    check(&answer, &format!(r#"{ids},"status":"running","last_active":"{active}","error":null{counts}"#));

    node.world.set(Part::Apply, Way::Fail("no such role"));
    node.post("/configure", &spec(json!({}))).await;
    let answer = node.get("/status").await;
    let failed =
        format!(r#"{ids},"status":"failed","last_active":"{active}","error":"no such role"{counts}"#);
    check(&answer, &failed);
    node.stop().await;
}

#[tokio::test]
async fn what_was_seen_at_work_is_of_the_present_postgres_and_never_moves_back() {
    let node = Node::running().await;
    let postmaster = node.world.postmaster();
    let observe = |postmaster, idle_sessions, newest: Option<(i64, Kind)>| {
        let activity = Activity { idle_sessions, ..Activity::default() };
        let at = |second| jiff::Timestamp::from_second(second).expect("in range");
        let newest = newest.map(|(second, kind)| Sighting { at: at(second), kind });
        node.engine.observe(postmaster, Seen { activity, newest });
    };
    observe(postmaster, 1, Some((2000, Kind::Autovacuum)));
    observe(postmaster, 2, Some((1000, Kind::IdleSession)));
    observe(postmaster, 3, None);
    observe(Epoch(postmaster.0 + 1), 4, Some((3000, Kind::ActiveSession)));
    // A request comes after all of them.
    assert_eq!(node.post("/configure", &spec(json!({}))).await.status, "200 OK");
    let status = node.get("/status").await.json();
    assert_eq!(status["last_active"], "1970-01-01T00:33:20+00:00", "{status}");
    assert_eq!(status["activity"]["last_kind"], "autovacuum", "{status}");
    assert_eq!(status["activity"]["sessions"]["idle"], 3, "{status}");
    node.stop().await;
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let node = Node::running().await;
    let answer = send(node.external, &request("GET", "/metrics", "", "")).await;
    assert_eq!(answer.status, "200 OK");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4"));
    answer.assert_common();
    let up: Vec<&str> = answer.body.lines().filter(|line| line.starts_with("compute_ctl_up{")).collect();
    assert_eq!(up, [r#"compute_ctl_up{build_tag="latest",status="running"} 1"#]);
    node.stop().await;
}

// ---- POST /configure ----------------------------------------------------------------------------------

#[tokio::test]
async fn faults_of_the_body_are_told_in_lower_case() {
    let node = Node::empty().await;
    let expected = "expected request with `content-type: application/json`";
    for content_type in
        ["", "content-type: text/plain\r\n", "content-type: application/jsonp\r\n", "content-type: json\r\n"]
    {
        let bytes = format!(
            "POST /configure HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: bearer {}\r\n{content_type}\
             content-length: 2\r\n\r\n{{}}",
            token()
        );
        let answer = send(node.external, bytes.as_bytes()).await;
        answer.assert_error("415 Unsupported Media Type", expected);
    }
    let parse = "failed to parse the request body as json";
    let shape = "failed to deserialize the json body into the target type";
    let wrong_type = spec(json!({"operation_uuid": 5, "suspend_timeout_seconds": "LONG"}));
    let column = wrong_type.find(":5,").expect("it is in there") + 2;
    for (body, status, error) in [
        ("{}", "422 Unprocessable Entity", format!("{shape}: missing field `spec` at line 1 column 2")),
        (
            "[]",
            "422 Unprocessable Entity",
            format!(
                "{shape}: invalid length 0, expected struct configurationrequest with 2 elements at line 1 column 2"
            ),
        ),
        ("{\"spec\"", "400 Bad Request", format!("{parse}: eof while parsing an object at line 1 column 7")),
        ("nonsense", "400 Bad Request", format!("{parse}: expected ident at line 1 column 2")),
        (
            "{\"spec\": {\"cluster\": {\"roles\": [x",
            "400 Bad Request",
            format!("{parse}: spec.cluster.roles[0]: expected value at line 1 column 33"),
        ),
        (
            &wrong_type,
            "422 Unprocessable Entity",
            format!(
                "{shape}: spec.operation_uuid: invalid type: integer `5`, expected a string at line 1 column {column}"
            ),
        ),
        (
            r#"{"spec": {"format_version": "ÄBC"}}"#,
            "422 Unprocessable Entity",
            format!(
                "{shape}: spec.format_version: invalid type: string \"äbc\", expected f32 at line 1 column 34"
            ),
        ),
    ] {
        node.post("/configure", body).await.assert_error(status, &error);
    }
    let answer = send(node.external, &{
        let head = format!(
            "POST /configure HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: bearer {}\r\n\
             content-type: application/json\r\n\r\n",
            token()
        );
        head.into_bytes()
    })
    .await;
    answer.assert_error("400 Bad Request", &format!("{parse}: eof while parsing a value at line 1 column 0"));
    assert_eq!(node.engine.snapshot().status, ComputeStatus::Empty);
    node.stop().await;
}

#[tokio::test]
async fn json_by_suffix_with_parameters_and_with_something_behind_it_is_accepted() {
    for content_type in ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"] {
        let node = Node::empty().await;
        let body = spec(json!({"unknown_to_us": true})) + " trailing";
        let bytes = format!(
            "POST /configure HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: bearer {}\r\n\
             content-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
            token(),
            body.len()
        );
        let answer = send(node.external, bytes.as_bytes()).await;
        assert_eq!(answer.status, "200 OK", "{answer:?}");
        node.stop().await;
    }
}

#[tokio::test]
async fn a_body_may_be_larger_than_the_original_allows_but_not_endless() {
    let node = Node::empty().await;
    let answer = node.post("/configure", &spec(json!({"project_id": "x".repeat(3 << 20)}))).await;
    assert_eq!(answer.status, "200 OK", "{answer:?}");
    let head = |length: String| {
        format!(
            "POST /configure HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: bearer {}\r\n\
             content-type: application/json\r\n{length}\r\n\r\n",
            token()
        )
    };
    let limit = limits::HTTP_CONFIGURE_BYTES;
    let error = "failed to buffer the request body: length limit exceeded";
    let announced = head(format!("content-length: {}", limit + 1));
    let answer = send(node.external, announced.as_bytes()).await;
    answer.assert_error("413 Payload Too Large", error);

    let mut unannounced = head("transfer-encoding: chunked".to_owned()).into_bytes();
    unannounced.extend(format!("{:x}\r\n", limit + 1).into_bytes());
    unannounced.resize(unannounced.len() + limit + 1, b' ');
    let answer = send(node.external, &unannounced).await;
    answer.assert_error("413 Payload Too Large", error);
    node.stop().await;
}

#[tokio::test]
async fn a_spec_that_cannot_be_served_is_refused_before_the_status_is_looked_at() {
    let node = Node::empty().await;
    node.world.set(Part::Resolve, Way::Hang);
    let _waiting = begin(&node, "/configure", &spec(json!({}))).await;
    node.reaches(ComputeStatus::ConfigurationPending).await;
    let answer = node.post("/configure", &spec(json!({"project_id": "refused"}))).await;
    answer.assert_error("400 Bad Request", "pageserver connection information should be provided");
    let answer = node.post("/configure", &spec(json!({}))).await;
    answer.assert_error("412 Precondition Failed", "invalid compute status: configuration-pending");
    node.stop().await;
}

#[tokio::test]
async fn a_bug_in_the_intake_is_an_answer_too() {
    let node = Node::empty().await;
    let answer = node.post("/configure", &spec(json!({"project_id": "panic"}))).await;
    answer.assert_error("500 Internal Server Error", "internal error");
    node.stop().await;
}

#[tokio::test]
async fn a_failed_configuration_quotes_its_cause() {
    let node = Node::running().await;
    node.world.set(Part::Apply, Way::Fail("role \"a\"\nis gone"));
    let answer = node.post("/configure", &spec(json!({}))).await;
    answer
        .assert_error("500 Internal Server Error", r#"compute configuration failed: "role \"a\"\nis gone""#);
    node.stop().await;

    let node = Node::empty().await;
    node.world.set(Part::Storage, Way::Fail("disk"));
    let answer = node.post("/configure", &spec(json!({}))).await;
    answer.assert_error("500 Internal Server Error", r#"compute configuration failed: "disk""#);
    let answer = node.post("/configure", &spec(json!({}))).await;
    answer.assert_error("412 Precondition Failed", "invalid compute status: failed");
    node.stop().await;
}

#[tokio::test]
async fn a_configuration_overtaken_by_a_termination_is_answered() {
    let node = Node::empty().await;
    node.world.set(Part::Storage, Way::Hang);
    let mut waiting = begin(&node, "/configure", &spec(json!({}))).await;
    node.reaches(ComputeStatus::Init).await;
    let answer = node.post("/terminate?mode=immediate", "").await;
    answer.assert("200 OK", Some("application/json"), r#"{"lsn":null}"#);
    read(&mut waiting).await.assert_error(
        "500 Internal Server Error",
        r#"compute configuration failed: "the compute went down before the spec was applied""#,
    );
    node.stop().await;
}

// ---- POST /terminate ----------------------------------------------------------------------------------

#[tokio::test]
async fn the_query_of_terminate() {
    let text = "Failed to deserialize query string: ";
    for (query, fault) in [
        ("?", "missing field `mode`"),
        ("?foo=1", "missing field `mode`"),
        ("?mode=bogus", "mode: unknown variant `bogus`, expected `fast` or `immediate`"),
        ("?mode=Immediate", "mode: unknown variant `Immediate`, expected `fast` or `immediate`"),
        ("?mode=", "mode: unknown variant ``, expected `fast` or `immediate`"),
        ("?mode=fast&mode=fast", "duplicate field `mode`"),
    ] {
        let node = Node::running().await;
        let answer = node.post(&format!("/terminate{query}"), "").await;
        answer.assert("400 Bad Request", Some("text/plain; charset=utf-8"), &format!("{text}{fault}"));
        assert_eq!(node.engine.snapshot().status, ComputeStatus::Running);
        node.stop().await;
    }
    for (query, pending) in [
        ("", ComputeStatus::TerminationPendingFast),
        ("?mode=fast", ComputeStatus::TerminationPendingFast),
        ("?mode=immediate", ComputeStatus::TerminationPendingImmediate),
        ("?mode=immediate&x=1", ComputeStatus::TerminationPendingImmediate),
        ("?x=1&mode=immediat%65", ComputeStatus::TerminationPendingImmediate),
    ] {
        let node = Node::running().await;
        node.world.set(Part::Stop, Way::Hang);
        let mut waiting = begin(&node, &format!("/terminate{query}"), "ignored, whatever it is").await;
        node.reaches(pending).await;
        node.world.set(Part::Stop, Way::Succeed);
        read(&mut waiting).await.assert("200 OK", Some("application/json"), r#"{"lsn":null}"#);
        node.stop().await;
    }
}

#[tokio::test]
async fn a_synchronised_primary_tells_where_its_log_ends() {
    let node = Node::empty().await;
    node.post("/configure", &spec(json!({"safekeepers_generation": 1}))).await;
    let answer = node.post("/terminate", "").await;
    answer.assert("200 OK", Some("application/json"), r#"{"lsn":"0/28F10D8"}"#);
    let answer = node.post("/terminate", "").await;
    answer.assert("201 Created", Some("application/json"), r#"{"lsn":"0/28F10D8"}"#);
    node.stop().await;
}

#[tokio::test]
async fn a_final_sync_that_failed_is_told_with_its_reason() {
    let node = Node::empty().await;
    node.post("/configure", &spec(json!({"safekeepers_generation": 1}))).await;
    node.world.set(Part::FinalSync, Way::Fail("no quorum"));
    let answer = node.post("/terminate", "").await;
    answer.assert_error("500 Internal Server Error", "failed to sync safekeepers: no quorum");
    node.stop().await;
}

#[tokio::test]
async fn more_clients_than_can_wait_are_turned_away() {
    let node = Node::with(Policy { max_waiters: 1, ..Policy::default() }, tokens()).await;
    node.configured().await;
    node.world.set(Part::Stop, Way::Hang);
    let mut waiting = begin(&node, "/terminate", "").await;
    node.reaches(ComputeStatus::TerminationPendingFast).await;
    let answer = node.post("/terminate", "").await;
    answer.assert_error("503 Service Unavailable", "too many clients wait already");
    assert_eq!(answer.header("retry-after"), Some("1"));
    node.world.set(Part::Stop, Way::Succeed);
    assert_eq!(read(&mut waiting).await.status, "200 OK");
    node.stop().await;
}

#[tokio::test]
async fn the_figures_of_the_start_are_for_clients_with_a_token() {
    let node = Node::running().await;
    let answer = send(node.external, &request("GET", "/metrics.json", "", "")).await;
    assert_eq!(answer.status, "400 Bad Request", "{answer:?}");
    let answer = node.get("/metrics.json").await;
    assert_eq!((answer.status.as_str(), answer.header("content-type")), ("200 OK", Some("application/json")));
    let figures: serde_json::Value = serde_json::from_str(&answer.body).expect("it is JSON");
    assert_eq!(figures.as_object().map(serde_json::Map::len), Some(13), "{figures}");
    node.stop().await;
}
