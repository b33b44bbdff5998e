//! The routes that work with Postgres, as far as they get without one.

use compute_ctl::limits;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Node, request, send, token};
use crate::{EXTENSION, GRANT};

const ERROR: &str = "500 Internal Server Error";

#[tokio::test]
async fn a_postgres_that_cannot_be_reached_is_an_error() {
    let node = Node::running().await;
    let unreachable = r#"cannot connect to database "postgres""#;
    node.get("/dbs_and_roles").await.assert_error(ERROR, unreachable);
    node.get("/insights").await.assert_error(ERROR, unreachable);
    node.post("/check_writability", "").await.assert_error(ERROR, unreachable);
    let unreachable = r#"cannot connect to database "neondb""#;
    let error = format!("failed to grant role privileges to the schema: {unreachable}");
    node.post_inside("/grants", GRANT).await.assert_error(ERROR, &error);
    let error = format!("failed to install extension: {unreachable}");
    node.post_inside("/extensions", EXTENSION).await.assert_error(ERROR, &error);
    // Nor is there a program to run.
    let answer = node.get("/database_schema?database=postgres").await;
    answer.assert_error(ERROR, "failed to execute pg_dump");
    node.stop().await;
}

#[tokio::test]
async fn the_lists_and_the_schema_are_asked_for_in_any_state() {
    let node = Node::empty().await;
    node.get("/dbs_and_roles").await.assert_error(ERROR, r#"cannot connect to database "postgres""#);
    let answer = node.get("/database_schema?database=postgres").await;
    answer.assert_error(ERROR, "failed to execute pg_dump");
    node.stop().await;
}

#[tokio::test]
async fn the_query_of_the_schema_is_told_in_lower_case() {
    let node = Node::running().await;
    for query in ["", "?", "?Database=x", "?x=1"] {
        let answer = node.get(&format!("/database_schema{query}")).await;
        let error = "failed to deserialize query string: missing field `database`";
        answer.assert_error("400 Bad Request", error);
    }
    let answer = node.get("/database_schema?database=a&database=b").await;
    answer.assert_error("400 Bad Request", "failed to deserialize query string: duplicate field `database`");
    node.stop().await;
}

#[tokio::test]
async fn no_database_has_such_a_name() {
    let node = Node::running().await;
    // The server would cut the long one, and take the empty one for the name of the user.
    let too_long = "x".repeat(64);
    for name in ["", "%00", "a%00b", &too_long] {
        let answer = node.get(&format!("/database_schema?database={name}")).await;
        answer.assert_error("404 Not Found", "database does not exist");
    }
    for (name, fault) in
        [("", "is empty"), ("a\0b", "contains a NUL byte"), (&too_long, "is longer than 63 bytes")]
    {
        let body = json!({"database": name, "schema": "s", "privileges": ["USAGE"], "role": "r"});
        let error =
            format!("failed to grant role privileges to the schema: the name of the database {fault}");
        node.post_inside("/grants", &body.to_string()).await.assert_error(ERROR, &error);
        for (schema, role, what) in [(name, "r", "schema"), ("s", name, "role")] {
            let body = json!({"database": "d", "schema": schema, "privileges": ["USAGE"], "role": role});
            let error =
                format!("failed to grant role privileges to the schema: the name of the {what} {fault}");
            node.post_inside("/grants", &body.to_string()).await.assert_error(ERROR, &error);
        }
        for (extension, version, what) in [(name, "1", "extension"), ("e", name, "version")] {
            let body = json!({"extension": extension, "database": "d", "version": version});
            let error = format!("failed to install extension: the name of the {what} {fault}");
            node.post_inside("/extensions", &body.to_string()).await.assert_error(ERROR, &error);
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn faults_of_bodies_on_the_internal_server() {
    let node = Node::running().await;
    let parse = "failed to parse the request body as json";
    let shape = "failed to deserialize the json body into the target type";
    let unprocessable = "422 Unprocessable Entity";
    for (path, body, status, error) in [
        ("/grants", "{}", unprocessable, format!("{shape}: missing field `database` at line 1 column 2")),
        (
            "/grants",
            r#"{"database":"d","schema":"s","privileges":["USAGE","Usage"],"role":"r"}"#,
            unprocessable,
            format!(
                "{shape}: privileges[1]: unknown variant `usage`, expected one of `select`, `insert`, `update`, \
                 `delete`, `truncate`, `references`, `trigger`, `usage`, `create`, `connect`, `temporary`, \
                 `execute` at line 1 column 58"
            ),
        ),
        (
            "/grants",
            r#"{"database":"ÄB\"#,
            "400 Bad Request",
            format!("{parse}: database: eof while parsing a string at line 1 column 17"),
        ),
        (
            "/extensions",
            r#"{"extension":"e","database":"d"}"#,
            unprocessable,
            format!("{shape}: missing field `version` at line 1 column 32"),
        ),
        (
            "/extensions",
            "[]",
            unprocessable,
            format!(
                "{shape}: invalid length 0, expected struct extensioninstallrequest with 3 elements at line 1 column 2"
            ),
        ),
        ("/extensions", "x", "400 Bad Request", format!("{parse}: expected value at line 1 column 1")),
    ] {
        node.post_inside(path, body).await.assert_error(status, &error);
    }
    for path in ["/grants", "/extensions"] {
        let answer = node.post_inside(path, "").await;
        let error = "expected request with `content-type: application/json`";
        answer.assert_error("415 Unsupported Media Type", error);
        let too_long = " ".repeat(limits::HTTP_BODY_BYTES + 1);
        let answer = node.post_inside(path, &too_long).await;
        let error = "failed to buffer the request body: length limit exceeded";
        answer.assert_error("413 Payload Too Large", error);
    }
    // As long as it may be, with something behind it that does not matter.
    let longest = GRANT.to_owned() + &" ".repeat(limits::HTTP_BODY_BYTES - GRANT.len());
    let answer = node.post_inside("/grants", &longest).await;
    assert!(answer.body.contains("cannot connect"), "{answer:?}");
    node.stop().await;
}

#[tokio::test]
async fn head_is_answered_like_get() {
    let node = Node::empty().await;
    for path in ["/dbs_and_roles", "/database_schema?database=x"] {
        let get = node.get(path).await;
        let head = send(node.external, &request("HEAD", path, &token(), "")).await;
        assert_eq!((head.status, head.body.as_str()), (get.status, ""));
    }
    node.stop().await;
}

#[tokio::test]
async fn slow_bodies_fill_the_room_of_their_own_server_only() {
    let node = Node::running().await;
    let head = format!(
        "POST /configure HTTP/1.1\r\nhost: x\r\nauthorization: bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{{",
        token(),
        limits::HTTP_CONFIGURE_BYTES
    );
    let mut slow = Vec::new();
    for _ in 0..limits::HTTP_BODIES_BYTES / limits::HTTP_CONFIGURE_BYTES {
        let mut stream = TcpStream::connect(node.external).await.expect("it listens");
        stream.write_all(head.as_bytes()).await.expect("it reads");
        slow.push(stream);
    }
    // Until all of them are being read.
    let refused = loop {
        let answer = node.post("/configure", "[]").await;
        if !answer.status.starts_with("422") {
            break answer;
        }
    };
    refused.assert_error("503 Service Unavailable", "too many requests are waiting");
    assert_eq!(refused.header("retry-after"), Some("1"));
    node.post_inside("/grants", GRANT).await.assert_error(
        ERROR,
        r#"failed to grant role privileges to the schema: cannot connect to database "neondb""#,
    );
    drop(slow);
    while node.post("/configure", "[]").await.status.starts_with("503") {}
    node.stop().await;
}
