//! Requests and answers as they are on the wire, compared byte by byte with `tests/fixtures/http`. `UPDATE_FIXTURES=1`
//! writes the files again, and what has changed is read before it is committed.
//!
//! In the files a token is shown as its claims, `{id}` stands for a request id that was made up, and `{time}` for the
//! time of the start; the date and the end of each line (CR LF) are left out. Each code must be one which the server's
//! own description has for the operation.

use std::net::SocketAddr;
use std::path::PathBuf;

use compute_ctl::limits;
use compute_states::ComputeStatus;
use serde_json::{Value, json};

use crate::lifecycle::in_status;
use crate::support::{Answer, COMPUTE_ID, Node, Part, Way, send, signed, spec};
use crate::{EXTENSION, GRANT};

const JSON: &str = "content-type: application/json";

/// The exchanges of one file.
struct Book {
    name: &'static str,
    text: String,
}

impl Book {
    fn new(name: &'static str) -> Self {
        Book { name, text: String::new() }
    }

    /// With the token of the compute.
    async fn outside(&mut self, node: &Node, line: &str, head: &[&str], body: &str) {
        self.with_token(node, line, &json!({ "compute_id": COMPUTE_ID }), head, body).await;
    }

    async fn with_token(&mut self, node: &Node, line: &str, claims: &Value, head: &[&str], body: &str) {
        let token = signed(claims);
        let bearer = format!("authorization: Bearer {token}");
        let head = [&[bearer.as_str()], head].concat();
        self.ask(node, node.external, line, &head, body, &[(&token, &format!("<{claims}>"))]).await;
    }

    async fn anyone(&mut self, node: &Node, line: &str, head: &[&str], body: &str) {
        self.ask(node, node.external, line, head, body, &[]).await;
    }

    async fn inside(&mut self, node: &Node, line: &str, head: &[&str], body: &str) {
        self.ask(node, node.internal[0], line, head, body, &[]).await;
    }

    async fn ask(
        &mut self,
        node: &Node,
        server: SocketAddr,
        line: &str,
        head: &[&str],
        body: &str,
        shown: &[(&str, &str)],
    ) {
        let status = node.engine.snapshot().status;
        let mut request = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        for header in head {
            request.push_str(header);
            request.push_str("\r\n");
        }
        let announced = head.iter().any(|header| header.starts_with("content-length"));
        if !body.is_empty() && !announced {
            request.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        request.push_str(body);
        let answer = send(server, request.as_bytes()).await;
        described(node, server, line, &answer).await;
        let which = if server == node.external { "external" } else { "internal" };
        self.text.push_str(&format!("=== {which} server, status {status}\n"));
        let mut exchange = format!("{}\n\n{}\n", request.replace('\r', ""), as_sent(node, &answer));
        for (what, by) in shown {
            exchange = exchange.replace(what, by);
        }
        self.text.push_str(&exchange);
    }

    /// Compares with the file, or writes it.
    fn close(self) {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/http");
        let path = directory.join(self.name);
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            std::fs::create_dir_all(directory).expect("the sources can be written");
            std::fs::write(path, &self.text).expect("the sources can be written");
            return;
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = expected.lines().zip(self.text.lines()).position(|(one, other)| one != other);
        assert!(
            expected == self.text,
            "{} is another one from line {:?} on; UPDATE_FIXTURES=1 writes it again. Now it is:\n{}",
            path.display(),
            differs.map(|line| line + 1),
            self.text
        );
    }
}

fn as_sent(node: &Node, answer: &Answer) -> String {
    let mut text = format!("HTTP/1.1 {}\n", answer.status);
    for (name, value) in answer.headers.iter().filter(|(name, _)| name != "date") {
        let made_up = name == "x-request-id" && uuid::Uuid::parse_str(value).is_ok();
        let value = if made_up { "{id}" } else { value };
        text.push_str(&format!("{name}: {value}\n"));
    }
    let mut body = answer.body.clone();
    if let Ok(Value::Object(fields)) = serde_json::from_str(&body)
        && let Some(Value::String(start)) = fields.get("start_time")
    {
        let start_time: jiff::Timestamp = start.parse().expect("RFC 3339");
        assert_eq!(start_time, node.engine.snapshot().start_time);
        let length = answer.header("content-length").expect("it is short").to_owned();
        text = text.replace(&format!("content-length: {length}\n"), "content-length: {length}\n");
        body = body.replace(start, "{time}");
    }
    format!("{text}\n{body}\n")
}

/// That the description of the server has the code.
async fn described(node: &Node, server: SocketAddr, line: &str, answer: &Answer) {
    let code = &answer.status[..3];
    let (method, path) = line.split_once(' ').expect("a method and a path");
    let path = path.split('?').next().expect("there is a first part");
    let head = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let document = send(server, head.as_bytes()).await.json();
    let path = if path.starts_with("/extension_server/a") { "/extension_server/{filename}" } else { path };
    let operation = &document["paths"][path][method.to_lowercase()];
    let known = operation["responses"].get(code).is_some();
    let missing = operation.is_null() && ["404", "405"].contains(&code);
    // An id that cannot be read is found out before anything else.
    let unread =
        operation.is_null() && node.engine.snapshot().status == ComputeStatus::Empty && code == "400";
    assert!(known || missing || unread, "{line}: {answer:?}");
}

/// What is wrong with bodies, in the words of the route's family.
async fn bad_bodies(book: &mut Book, node: &Node, line: &str, limit: usize) {
    let inside = line.contains("grants") || line.contains("extensions") || line.contains("failpoints");
    let length = format!("content-length: {}", limit + 1);
    for (head, body) in [
        (&[][..], "{}"),
        (&["content-type: text/plain"], "{}"),
        (&[JSON], "nonsense"),
        (&[JSON], "{\"a\":"),
        (&[JSON], "{}"),
        (&[JSON], "{\"Ä\": 1}"),
        (&[JSON, &length], ""),
    ] {
        match inside {
            true => book.inside(node, line, head, body).await,
            false => book.outside(node, line, head, body).await,
        }
    }
}

#[tokio::test]
async fn routing_and_request_ids() {
    let mut book = Book::new("routing.txt");
    let node = Node::empty().await;
    for line in
        ["GET /nothing", "GET /status/", "POST /status", "GET /terminate", "PUT /lfc/prewarm", "POST /grants"]
    {
        book.anyone(&node, line, &[], "").await;
    }
    for line in ["GET /status", "GET /grants", "POST /extension_server/", "GET /extension_server/a"] {
        book.inside(&node, line, &[], "").await;
    }
    book.anyone(&node, "GET /livez", &["x-request-id: any text ~ at-all"], "").await;
    book.anyone(&node, "GET /livez", &["x-request-id: café"], "").await;
    book.anyone(&node, "GET /nothing", &["x-request-id: café"], "").await;
    book.anyone(&node, "HEAD /livez", &[], "").await;
    book.close();
    node.stop().await;
}

#[tokio::test]
async fn who_is_let_in() {
    let mut book = Book::new("tokens.txt");
    let node = Node::empty().await;
    let line = "GET /lfc/offload";
    for head in
        [&[][..], &["authorization: Basic YTpi"], &["authorization: Bearer"], &["authorization: Bearer x"]]
    {
        book.anyone(&node, line, head, "").await;
    }
    let admin = "compute_ctl:admin";
    for claims in [
        json!({ "compute_id": COMPUTE_ID, "exp": 1 }),
        json!({ "compute_id": COMPUTE_ID, "scope": "other" }),
        json!({ "compute_id": COMPUTE_ID, "aud": "compute" }),
        json!({ "scope": admin }),
        json!({ "scope": admin, "aud": ["other"] }),
        json!({ "scope": admin, "aud": ["compute"], "compute_id": null }),
        json!({}),
        json!({ "compute_id": "another" }),
        json!({ "compute_id": COMPUTE_ID, "scope": null, "aud": null }),
    ] {
        book.with_token(&node, line, &claims, &[], "").await;
    }
    book.close();
    node.stop().await;
}

#[tokio::test]
async fn reading() {
    let mut book = Book::new("reading.txt");
    let lines =
        ["GET /status", "HEAD /status", "GET /dbs_and_roles", "GET /database_schema", "GET /insights"];
    let more = ["GET /database_schema?database=x", "GET /hadron_liveness_probe", "GET /autoscaling_metrics"];
    for status in [ComputeStatus::Empty, ComputeStatus::Running, ComputeStatus::Failed] {
        let (node, waiting) = in_status(status).await;
        for line in lines.iter().chain(&more) {
            book.outside(&node, line, &[], "").await;
        }
        drop(waiting);
        node.stop().await;
    }
    book.close();
}

#[tokio::test]
async fn probes() {
    let mut book = Book::new("probes.txt");
    for status in ComputeStatus::ALL {
        let (node, waiting) = in_status(status).await;
        node.reaches(status).await;
        for line in ["GET /livez", "GET /readyz", "GET /startupz"] {
            book.anyone(&node, line, &[], "").await;
            book.inside(&node, line, &[], "").await;
        }
        drop(waiting);
        // A stop that hangs would be waited for.
        node.world.set(Part::Stop, Way::Succeed);
        node.stop().await;
    }
    book.close();
}

#[tokio::test]
async fn configure() {
    let mut book = Book::new("configure.txt");
    let line = "POST /configure";
    let node = Node::empty().await;
    bad_bodies(&mut book, &node, line, limits::HTTP_CONFIGURE_BYTES).await;
    book.outside(&node, line, &[JSON], &spec(json!({ "project_id": "refused" }))).await;
    book.outside(&node, line, &["content-type: application/x+json; a=b"], &(spec(json!({})) + " more")).await;
    book.outside(&node, "POST /plan", &[JSON], &spec(json!({}))).await;
    node.world.set(Part::Apply, Way::Fail("role \"a\"\nis gone"));
    book.outside(&node, line, &[JSON], &spec(json!({}))).await;
    node.stop().await;
    let node = Node::empty().await;
    book.outside(&node, "POST /plan", &[JSON], &spec(json!({}))).await;
    node.world.set(Part::Storage, Way::Fail("disk"));
    book.outside(&node, line, &[JSON], &spec(json!({}))).await;
    book.outside(&node, line, &[JSON], &spec(json!({}))).await;
    book.close();
    node.stop().await;
}

#[tokio::test]
async fn promote() {
    let mut book = Book::new("promote.txt");
    let node = Node::running().await;
    bad_bodies(&mut book, &node, "POST /promote", limits::HTTP_CONFIGURE_BYTES).await;
    let mut body: Value = serde_json::from_str(&spec(json!({}))).expect("JSON");
    body["wal_flush_lsn"] = json!("0/28F10D8");
    node.world.set(Part::Promote, Way::Fail("didn't catch up"));
    book.outside(&node, "POST /promote", &[JSON], &body.to_string()).await;
    body["spec"]["project_id"] = json!("refused");
    book.outside(&node, "POST /promote", &[JSON], &body.to_string()).await;
    book.close();
    node.stop().await;
}

#[tokio::test]
async fn terminate() {
    let mut book = Book::new("terminate.txt");
    let node = Node::empty().await;
    node.post("/configure", &spec(json!({ "safekeepers_generation": 1 }))).await;
    for line in [
        "POST /terminate?",
        "POST /terminate?foo=1",
        "POST /terminate?mode=bogus",
        "POST /terminate?mode=Fast",
    ] {
        book.outside(&node, line, &[], "").await;
    }
    book.outside(&node, "POST /terminate", &[], "").await;
    book.outside(&node, "POST /terminate?mode=fast&x=1", &[], "").await;
    node.stop().await;
    let node = Node::empty().await;
    node.post("/configure", &spec(json!({ "safekeepers_generation": 1 }))).await;
    node.world.set(Part::FinalSync, Way::Fail("no quorum"));
    book.outside(&node, "POST /terminate", &[], "").await;
    node.stop().await;
    let node = Node::running().await;
    book.outside(&node, "POST /terminate", &[], "").await;
    book.close();
    node.stop().await;
}

#[tokio::test]
async fn work_inside() {
    let mut book = Book::new("internal.txt");
    let small = limits::HTTP_BODY_BYTES;
    for status in [ComputeStatus::Empty, ComputeStatus::Running, ComputeStatus::Configuration] {
        let (node, waiting) = in_status(status).await;
        node.reaches(status).await;
        book.inside(&node, "POST /grants", &[JSON], GRANT).await;
        book.inside(&node, "POST /extensions", &[JSON], EXTENSION).await;
        book.outside(&node, "POST /check_writability", &[], "").await;
        let form = "content-type: application/x-www-form-urlencoded";
        book.inside(&node, "POST /refresh_configuration", &[form, "content-length: 0"], "").await;
        drop(waiting);
        node.stop().await;
    }
    let node = Node::running().await;
    for path in ["POST /grants", "POST /extensions", "POST /failpoints"] {
        bad_bodies(&mut book, &node, path, small).await;
    }
    book.inside(&node, "POST /failpoints", &[JSON], r#"[{"name":"n","action":"exit"}]"#).await;
    book.inside(&node, "POST /extension_server/a/b.so?is_library=true", &[], "").await;
    book.close();
    node.stop().await;
}

#[tokio::test]
async fn local_file_cache() {
    let mut book = Book::new("lfc.txt");
    let node = Node::running().await;
    for line in [
        "GET /lfc/prewarm",
        "POST /lfc/prewarm?from_endpoint=ep-1",
        "DELETE /lfc/prewarm",
        "GET /lfc/offload",
        "POST /lfc/offload",
    ] {
        book.outside(&node, line, &[], "").await;
    }
    book.close();
    node.stop().await;
}

/// One line for each fact, so that a change of one is a change of one line.
#[tokio::test]
async fn what_the_servers_say_of_themselves() {
    let node = Node::empty().await;
    for (name, server) in
        [("openapi-external.json", node.external), ("openapi-internal.json", node.internal[0])]
    {
        let head = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let document = send(server, head.as_bytes()).await.json();
        let text = serde_json::to_string_pretty(&document).expect("it was JSON") + "\n";
        Book { name, text }.close();
    }
    node.stop().await;
}

#[test]
fn the_token_kept_for_scripts_is_the_one_which_tests_make() {
    let kept = include_str!("../fixtures/keys/compute-1.jwt").trim_end();
    assert_eq!(kept, crate::support::token());
}
