//! What can be wrong with a control plane's answer, and what is said of it.

use serde_json::json;

use crate::path;
use crate::support::control_plane::Act;
use crate::support::node::{Place, config};

/// A text that must not be quoted.
pub(crate) const SECRET: &str = "hunter2-of-the-spec";

const EXHAUSTED: &str = "Exhausted all attempts to retrieve the config from the control plane";

/// One way of doing wrong.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) act: Act,
    /// Requests of one fetch.
    pub(crate) requests: usize,
    /// What the error says, in this order.
    pub(crate) words: Vec<String>,
}

/// All but a control plane that is not there, or says nothing.
pub(crate) fn all(place: &Place) -> Vec<Fault> {
    let fault = |name, act, requests, words: &[&str]| Fault {
        name,
        act,
        requests,
        words: words.iter().map(|word| (*word).to_owned()).collect(),
    };
    let last = |name, act, word: &str| fault(name, act, 3, &[EXHAUSTED, word]);
    let status = |status: u16, text: &str| {
        let words = format!("unexpected control plane response status code: {status} {text}");
        fault("status", Act::Answer(status, String::new(), SECRET.to_owned()), 1, &[words.as_str()])
    };
    let mut wrong = config(&place.spec());
    wrong["status"] = json!("attached");
    wrong["spec"]["suspend_timeout_seconds"] = json!(SECRET);
    let mut keyless = wrong.clone();
    keyless["spec"] = place.spec();
    keyless.as_object_mut().unwrap().remove("compute_ctl_config");
    let mut specless = config(&json!(null));
    specless["status"] = json!("attached");
    let whole = Act::attached(&place.spec());
    let Act::Answer(_, _, body) = whole else { unreachable!("it is an answer") };
    let half =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", body.len(), &body[..body.len() / 2]);
    vec![
        status(400, "Bad Request"),
        status(401, "Unauthorized"),
        status(404, "Not Found"),
        status(500, "Internal Server Error"),
        // A redirect to nowhere.
        status(302, "Found"),
        last("busy", Act::status(429), "the control plane is unavailable: 429 Too Many Requests"),
        last("bad gateway", Act::status(502), "the control plane is unavailable: 502 Bad Gateway"),
        last("unavailable", Act::status(503), "the control plane is unavailable: 503 Service Unavailable"),
        last("gateway timeout", Act::status(504), "the control plane is unavailable: 504 Gateway Timeout"),
        last("no JSON", Act::body(format!("<html>{SECRET}")), "could not decode the control plane's answer"),
        last("no body", Act::body(""), "could not decode the control plane's answer: .: EOF while parsing"),
        last(
            "wrong schema",
            Act::body(wrong.to_string()),
            "spec.suspend_timeout_seconds: invalid type, expected i64",
        ),
        last("no keys", Act::body(keyless.to_string()), "missing field `compute_ctl_config`"),
        last("half a document", Act::body(&body[..body.len() / 2]), "EOF while parsing"),
        last(
            "half a body",
            Act::Raw(half.into_bytes()),
            "could not perform the request to the control plane",
        ),
        last("no HTTP", Act::Raw(b"\x16\x03\x01 hello\r\n\r\n".to_vec()), "could not perform the request"),
        last("no answer", Act::Raw(Vec::new()), "could not perform the request to the control plane"),
        last(
            "not UTF-8",
            Act::Raw(b"HTTP/1.1 200 OK\r\n\r\n{\"status\":\"\xff\"}".to_vec()),
            "could not decode",
        ),
        last("endless", Act::Endless, "the control plane's answer has more than 67108864 bytes"),
        last(
            "far too long",
            Act::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_vec()),
            "the control plane's answer has more than 67108864 bytes",
        ),
        fault(
            "redirects in a circle",
            Act::redirect(&path()),
            3 * 6,
            &[EXHAUSTED, "the control plane redirects more than 5 times"],
        ),
        fault(
            "attached without spec",
            Act::body(specless.to_string()),
            1,
            &["compute is attached, but spec is empty"],
        ),
    ]
}

/// The error says what it should.
#[track_caller]
pub(crate) fn told(fault: &Fault, text: &str) {
    let mut rest = text;
    for word in &fault.words {
        let found = rest.find(word.as_str());
        rest = &rest[found.unwrap_or_else(|| panic!("{}: no {word:?} in {text}", fault.name))..];
    }
    assert!(!text.contains(SECRET), "{}: {text}", fault.name);
}
