//! What is kept of an answer: all that does not differ from run to run.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use serde_json::Value;

use crate::routes::Route;

#[derive(Debug)]
pub(crate) struct Answer {
    code: u16,
    content_type: String,
    body: String,
}

/// The fields of a status that are always there.
const STATUS: [&str; 6] = ["start_time", "tenant", "timeline", "status", "last_active", "error"];

impl Answer {
    /// Sends the request and reads the answer. Of a stream of events, which has no end, only the head is read.
    pub(crate) fn of(port: u16, request: &[u8], route: &Route) -> Self {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens");
        stream.write_all(request).expect("it reads");
        let mut lines = BufReader::new(stream);
        let (mut head, mut line) = (Vec::new(), String::new());
        while lines.read_line(&mut line).expect("it answers") > 2 {
            head.push(std::mem::take(&mut line).trim_end().to_owned());
        }
        let code = head.first().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let code = code.unwrap_or_else(|| panic!("{}: no answer, {head:?}", route.title()));
        let content_type = head.iter().find_map(|line| line.strip_prefix("content-type: "));
        let content_type = content_type.unwrap_or_default().to_owned();
        let mut body = String::new();
        if content_type != "text/event-stream" {
            lines.read_to_string(&mut body).expect("the whole of it");
        }
        let allow = head.iter().find_map(|line| line.strip_prefix("allow: "));
        let body = allow.map_or_else(|| told(&body, code, route), |allow| format!("allow: {allow}"));
        Answer { code, content_type, body }
    }

    pub(crate) fn is_success(&self) -> bool {
        self.code < 300
    }
}

/// A body in short: an error or an outcome as it is, of anything larger the names of its parts.
fn told(body: &str, code: u16, route: &Route) -> String {
    let Ok(body) = serde_json::from_str::<Value>(body) else {
        return if body.is_empty() { String::new() } else { "text".to_owned() };
    };
    match &body {
        Value::Object(fields) if fields.len() == 1 && !(route.quotes_postgres && code == 500) => {
            body.to_string()
        }
        Value::Object(fields) => {
            let names = fields.keys().map(String::as_str);
            // What a status tells beyond the original's six fields depends on what has been seen so far.
            let is_status = fields.contains_key("start_time");
            let names: Vec<&str> = names.filter(|name| !is_status || STATUS.contains(name)).collect();
            let status = fields.get("status").and_then(Value::as_str);
            let status = status.map(|status| format!(", status {status}")).unwrap_or_default();
            format!("{{{}}}{status}", names.join(", "))
        }
        Value::Array(_) => "[…]".to_owned(),
        Value::String(_) => "a string".to_owned(),
        other => other.to_string(),
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} | {} | {}", self.code, self.content_type, self.body.replace('|', "\\|"))
    }
}
