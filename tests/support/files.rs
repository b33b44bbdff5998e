//! A server of one file that can be told to fail in the ways servers and connections fail.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How one request is answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// With the file, or the part of it that was asked for.
    File(File),
    /// With a status, and a header line or none.
    Status(u16, String),
    /// Not at all; the connection stays open.
    Silence,
}

/// A file and how it is sent.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) bytes: Arc<Vec<u8>>,
    /// What the client may know it by.
    pub(crate) validator: Option<String>,
    /// Whether parts are sent.
    pub(crate) ranges: bool,
    /// How many bytes are sent before the connection breaks.
    pub(crate) breaks: Option<usize>,
    /// Whether the connection stays open, silent, instead of breaking.
    pub(crate) hangs: bool,
    /// The length that is announced, if it is a lie; none at all for `Some(None)`.
    pub(crate) length: Option<Option<usize>>,
    /// The first byte that is sent when another one was asked for.
    pub(crate) wrong_start: Option<usize>,
}

impl File {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: Arc::new(bytes.to_vec()),
            validator: Some("ETag: \"one\"".to_owned()),
            ranges: true,
            breaks: None,
            hangs: false,
            length: None,
            wrong_start: None,
        }
    }
}

/// The server. It answers as told, and then with the last answer for ever.
pub(crate) struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<Vec<String>>>>,
    /// Connections that are kept open.
    open: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("some port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let mut answers: VecDeque<Answer> = answers.into_iter().collect();
        let (requests, open) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (seen, held) = (requests.clone(), open.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let Some(request) = head(&stream) else { return };
                lock(&seen).push(request.clone());
                let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
                // A client that hangs up early is what some tests are about.
                if let Some(open) = reply(stream, &request, answer.expect("there is an answer")) {
                    lock(&held).push(open);
                }
            }
        });
        Self { port, requests, open, thread: Some(thread) }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The requests so far: each its lines.
    pub(crate) fn requests(&self) -> Vec<Vec<String>> {
        lock(&self.requests).clone()
    }

    /// The values of a header in the requests so far.
    pub(crate) fn header(&self, name: &str) -> Vec<Option<String>> {
        let value = |line: &String| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then(|| value.to_owned())
        };
        self.requests().iter().map(|lines| lines.iter().find_map(value)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        lock(&self.open).clear();
        // A connection without a request ends the thread.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines of a request; `None` when there is none.
fn head(stream: &TcpStream) -> Option<Vec<String>> {
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    (!head.is_empty()).then_some(head)
}

/// Answers; returns the connection if it is to stay open.
fn reply(mut stream: TcpStream, request: &[String], answer: Answer) -> Option<TcpStream> {
    let File { bytes, validator, ranges, breaks, hangs, length, wrong_start } = match answer {
        Answer::Silence => return Some(stream),
        Answer::Status(status, header) => {
            let header = if header.is_empty() { header } else { format!("{header}\r\n") };
            let head =
                format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n{header}\r\n");
            let _ = stream.write_all(head.as_bytes());
            return None;
        }
        Answer::File(file) => file,
    };
    let line = |name: &str| {
        let same = |line: &&String| line.to_ascii_lowercase().starts_with(name);
        request.iter().find(same).map(|line| line[name.len()..].trim().to_owned())
    };
    // Only on condition that it is still the same file.
    let condition = line("if-range:");
    let same = condition.is_none_or(|condition| {
        validator.as_ref().is_some_and(|validator| validator.ends_with(&format!(": {condition}")))
    });
    let asked = line("range:")
        .filter(|_| ranges && same)
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let from = asked.unwrap_or(0);
    if from > bytes.len() {
        return reply(stream, request, Answer::Status(416, String::new()));
    }
    let mut head = match asked {
        Some(from) => format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {}-{}/{}\r\n",
            wrong_start.unwrap_or(from),
            bytes.len() - 1,
            bytes.len()
        ),
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
    };
    if let Some(length) = length.unwrap_or(Some(bytes.len() - from)) {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    if let Some(validator) = validator {
        head.push_str(&format!("{validator}\r\n"));
    }
    head.push_str("Connection: close\r\n\r\n");
    let body = &bytes[from..];
    let sent = stream.write_all(head.as_bytes()).and_then(|()| {
        stream.write_all(&body[..breaks.unwrap_or(body.len()).min(body.len())])?;
        stream.flush()
    });
    if hangs && sent.is_ok() {
        return Some(stream);
    }
    let _ = stream.shutdown(Shutdown::Write);
    None
}
