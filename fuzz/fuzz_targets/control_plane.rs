//! Answers of the control plane: any status, headers and body are interpreted without a panic, have a class, and what
//! is wrong is told without a value of the document.
//!
//! An input is a line with the status code, lines with headers (`name: value`), an empty line, and the body.

#![no_main]

use compute_ctl::control_plane::FetchError;
use compute_ctl::control_plane::answer::{self, Rejection};
use compute_ctl::limits;
use compute_ctl::spec::document::ComputeConfig;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Put behind every text of a document, and never to be seen again.
const CANARY: &str = "-canary-of-the-fuzzer";

/// Longest error: a place, and what serde says without values, which may list the members of a closed set.
const LONGEST_ERROR: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let (head, body) = match data.windows(2).position(|pair| pair == b"\n\n") {
        Some(end) => (&data[..end], &data[end + 2..]),
        None => (data, &[][..]),
    };
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.trim().parse().ok());
    let Some(status) = status.and_then(|code: u16| StatusCode::from_u16(code).ok()) else { return };
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if let (Ok(name), Ok(value)) = (name.trim().parse::<HeaderName>(), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    interpret(status, &headers, body);
    if let Ok(mut document) = serde_json::from_slice::<Value>(body) {
        // With the status as it is, what lies deeper is reached.
        for spared in ["status", ""] {
            mark(&mut document, spared);
            let error = interpret(status, &headers, document.to_string().as_bytes());
            assert!(error.is_none_or(|text| !text.contains(CANARY)), "quoted of {document}");
        }
    }
});

/// The text of the error, if there is one.
fn interpret(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let rejection = match answer::head(status, headers).and_then(|()| answer::body(body)) {
        Ok(config) => {
            assert_eq!(status, StatusCode::OK);
            understood(&config);
            return None;
        }
        Err(rejection) => rejection,
    };
    let text = rejection.to_string();
    assert!(!text.is_empty() && text.len() <= LONGEST_ERROR, "{} bytes: {text}", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
    let error = match rejection {
        Rejection::Again { error, after } => {
            assert!(after <= limits::CONTROL_PLANE_PAUSE_MAX, "{after:?}");
            assert!([200, 429, 502, 503, 504].contains(&status.as_u16()), "{status} is asked for again");
            FetchError::Exhausted(error)
        }
        Rejection::Final(error) => error,
    };
    // Each has one; which, the unit tests say.
    let _class = error.class();
    Some(text)
}

/// What is accepted is the document that was sent: it reads back as the same.
fn understood(config: &ComputeConfig) {
    let written = serde_json::to_value(config).expect("a document can be written");
    let mut answer = written.clone();
    answer["status"] = "empty".into();
    let again = answer::body(answer.to_string().as_bytes());
    let again = again.unwrap_or_else(|error| panic!("{error}\n{written}"));
    let rewritten = serde_json::to_value(&again).expect("a document can be written");
    // Members of keys which nobody knows may go: they are the key set's own affair.
    assert_eq!(written.get("spec"), rewritten.get("spec"));
}

/// Puts the canary behind every text but that of one member of the document.
fn mark(value: &mut Value, spared: &str) {
    match value {
        Value::String(text) => text.push_str(CANARY),
        Value::Array(items) => items.iter_mut().for_each(|item| mark(item, "")),
        Value::Object(members) => {
            for (_, member) in members.iter_mut().filter(|(name, _)| *name != spared) {
                mark(member, "");
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
