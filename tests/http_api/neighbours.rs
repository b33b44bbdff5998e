//! Routes that ask somebody else, and those behind which there is nothing yet.

use std::sync::Arc;

use compute_ctl::http::{self, Context};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use crate::support::{Answer, Node, request, send, token};

const ERROR: &str = "500 Internal Server Error";

// ---- what is not there --------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_not_built_says_so_behind_the_token() {
    let node = Node::running().await;
    let prewarm = "not implemented: prewarming of the local file cache";
    let offload = "not implemented: offloading of the local file cache";
    for (method, path, error) in [
        ("GET", "/lfc/prewarm", prewarm),
        ("POST", "/lfc/prewarm", prewarm),
        ("POST", "/lfc/prewarm?from_endpoint=ep-1", prewarm),
        ("DELETE", "/lfc/prewarm", prewarm),
        ("GET", "/lfc/offload", offload),
        ("POST", "/lfc/offload", offload),
    ] {
        let answer = send(node.external, &request(method, path, &token(), "")).await;
        answer.assert_error("501 Not Implemented", error);
        let answer = send(node.external, &request(method, path, "", "")).await;
        answer.assert_error("400 Bad Request", "invalid authorization token");
    }
    for path in ["/extension_server/anon.tar.zst", "/extension_server/a/b.so?is_library=true"] {
        let answer = node.post_inside(path, "").await;
        answer.assert_error("501 Not Implemented", "not implemented: downloading of remote extensions");
    }
    node.stop().await;
}

#[tokio::test]
async fn paths_with_several_methods_and_those_with_an_open_end_are_routed_too() {
    let node = Node::empty().await;
    let external = http::external(node.context.clone());
    let internal = http::internal(node.context.clone());
    for (routes, method, path, code, allow) in [
        (&external, "PUT", "/lfc/prewarm", 405, Some("GET,HEAD,POST,DELETE")),
        (&external, "DELETE", "/lfc/offload", 405, Some("GET,HEAD,POST")),
        (&external, "GET", "/lfc/prewarm/", 404, None),
        (&external, "GET", "/lfc", 404, None),
        (&external, "POST", "/hadron_liveness_probe", 405, Some("GET,HEAD")),
        (&external, "POST", "/autoscaling_metrics", 405, Some("GET,HEAD")),
        (&external, "POST", "/livez", 405, Some("GET,HEAD")),
        (&external, "POST", "/failpoints", 404, None),
        (&external, "POST", "/extension_server/x", 404, None),
        (&internal, "POST", "/extension_server/", 404, None),
        (&internal, "POST", "/extension_server", 404, None),
        (&internal, "POST", "//extension_server/x", 404, None),
        (&internal, "GET", "/extension_server/x", 405, Some("POST")),
        (&internal, "GET", "/failpoints", 405, Some("POST")),
        (&internal, "GET", "/autoscaling_metrics", 404, None),
        (&internal, "GET", "/lfc/prewarm", 404, None),
        (&internal, "DELETE", "/readyz", 405, Some("GET,HEAD")),
    ] {
        let answer = warp::test::request().method(method).path(path).reply(routes).await;
        let case = format!("{method} {path}");
        assert_eq!(answer.status(), code, "{case}");
        let allowed = answer.headers().get("allow").map(|allow| allow.to_str().expect("text"));
        assert_eq!(allowed, allow, "{case}");
        assert!(answer.body().is_empty(), "{case}");
    }
    node.stop().await;
}

#[tokio::test]
async fn failpoints_are_read_and_refused() {
    let node = Node::empty().await;
    for (body, status, error) in [
        ("[]", "412 Precondition Failed", "this program is built without failpoints"),
        (
            r#"[{"name":"compute-prewarm","actions":"exit"},{"name":"compute-migration","action":"return(0)"}]"#,
            "412 Precondition Failed",
            "this program is built without failpoints",
        ),
        (
            r#"[{"name":"compute-prewarm"}]"#,
            "422 Unprocessable Entity",
            "failed to deserialize the json body into the target type: [0]: missing field `actions` at line 1 column 27",
        ),
        ("", "415 Unsupported Media Type", "expected request with `content-type: application/json`"),
    ] {
        node.post_inside("/failpoints", body).await.assert_error(status, error);
    }
    node.stop().await;
}

// ---- the communicator ---------------------------------------------------------------------------------

/// A directory whose path is too long for a socket's address, and a socket in it.
fn communicator() -> (tempfile::TempDir, Arc<std::path::Path>, UnixListener) {
    let dir = tempfile::tempdir().expect("a directory");
    let pgdata = dir.path().join("x".repeat(120));
    std::fs::create_dir(&pgdata).expect("an own directory");
    // A path that is short, for the side that must bind it.
    let short = dir.path().join("s");
    std::os::unix::fs::symlink(&pgdata, &short).expect("an own directory");
    let listener = UnixListener::bind(short.join("neon-communicator.socket")).expect("nobody is there");
    (dir, pgdata.into(), listener)
}

async fn head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a request"));
    }
    String::from_utf8(head).expect("it is text")
}

fn over(node: &Node, pgdata: Arc<std::path::Path>) -> warp::filters::BoxedFilter<(warp::reply::Response,)> {
    http::external(Context { pgdata, ..node.context.clone() })
}

#[tokio::test]
async fn the_communicators_answer_is_passed_on_as_it_comes() {
    let node = Node::empty().await;
    let (_dir, pgdata, listener) = communicator();
    let (seen, go_on) = oneshot::channel();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("somebody asks");
        let asked = head(&mut stream).await;
        let answer = "HTTP/1.1 418 I'm a teapot\r\ncontent-type: text/x-metrics\r\nx-other: 1\r\n\
                      transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        stream.write_all(answer.as_bytes()).await.expect("it reads");
        go_on.await.expect("the first piece arrives by itself");
        stream.write_all(b"7\r\n second\r\n0\r\n\r\n").await.expect("it reads");
        asked
    });
    let routes = over(&node, pgdata);
    let answer = warp::test::request().path("/autoscaling_metrics").filter(&routes).await.expect("an answer");
    assert_eq!(answer.status(), 418);
    assert_eq!(answer.headers()["content-type"], "text/x-metrics");
    assert!(!answer.headers().contains_key("x-other"));
    let mut body = answer.into_body();
    let mut next = async || {
        use hyper::body::Body;
        let frame = std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context)).await;
        frame.map(|frame| frame.expect("it is whole").into_data().expect("data"))
    };
    assert_eq!(next().await.as_deref(), Some(&b"first"[..]));
    seen.send(()).expect("it waits");
    assert_eq!(next().await.as_deref(), Some(&b" second"[..]));
    assert_eq!(next().await, None);
    let asked = serving.await.expect("no panic");
    assert!(asked.starts_with("GET /autoscaling_metrics HTTP/1.1\r\n"), "{asked}");
    assert!(asked.to_lowercase().contains("host: localhost\r\n"), "{asked}");
    node.stop().await;
}

#[tokio::test]
async fn a_communicator_that_is_not_there_or_talks_nonsense_is_told_with_the_cause() {
    let node = Node::empty().await;
    let missing = "connecting to communicator control socket: No such file or directory (os error 2)";
    send(node.external, &request("GET", "/autoscaling_metrics", "", "")).await.assert_error(ERROR, missing);

    let (_dir, pgdata, listener) = communicator();
    let routes = over(&node, pgdata);
    let ask = async || {
        let answer = warp::test::request().path("/autoscaling_metrics").reply(&routes).await;
        (answer.status().as_u16(), String::from_utf8(answer.body().to_vec()).expect("text"))
    };
    let nonsense = async {
        let (mut stream, _) = listener.accept().await.expect("somebody asks");
        head(&mut stream).await;
        stream.write_all(b"nonsense\r\n\r\n").await.expect("it reads");
    };
    let ((code, body), ()) = tokio::join!(ask(), nonsense);
    assert_eq!(code, 500);
    assert!(body.starts_with(r#"{"error":"asking the communicator for its metrics: "#), "{body}");
    drop(listener);
    let refused =
        r#"{"error":"connecting to communicator control socket: Connection refused (os error 111)"}"#;
    assert_eq!(ask().await, (500, refused.to_owned()));
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_communicator_that_says_nothing_is_given_up() {
    let node = Node::empty().await;
    let (_dir, pgdata, _listener) = communicator();
    let answer = warp::test::request().path("/autoscaling_metrics").reply(&over(&node, pgdata)).await;
    assert_eq!(answer.status(), 500);
    assert_eq!(answer.body(), r#"{"error":"the communicator gave no answer within 5s"}"#);
    node.stop().await;
}

// ---- pg_isready ---------------------------------------------------------------------------------------

#[tokio::test]
async fn a_liveness_probe_without_its_program_says_what_it_would_run() {
    let node = Node::running().await;
    let answer: Answer = node.get("/hadron_liveness_probe").await;
    answer.assert_error(ERROR, "could not run `/nonexistent/pg_isready --port 1`");
    let answer = send(node.external, &request("GET", "/hadron_liveness_probe", "", "")).await;
    answer.assert_error("400 Bad Request", "invalid authorization token");
    node.stop().await;
}
