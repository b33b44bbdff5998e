//! A control plane that answers as it is told, byte for byte: HTTP done wrong is half of what it is for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::node::{DEADLINE, config};

/// What becomes of a request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Status, further header lines (each with its end) and body.
    Answer(u16, String, String),
    /// These bytes, and the end of the connection.
    Raw(Vec<u8>),
    /// Nothing, and the connection stays open.
    Hang,
    /// A body without an end.
    Endless,
}

impl Act {
    /// A body with status 200.
    pub(crate) fn body(body: impl Into<String>) -> Self {
        Act::Answer(200, String::new(), body.into())
    }

    /// A status without a body.
    pub(crate) fn status(status: u16) -> Self {
        Act::Answer(status, String::new(), String::new())
    }

    /// The answer that a compute is attached, with this spec.
    pub(crate) fn attached(spec: &Value) -> Self {
        let mut answer = config(spec);
        answer["status"] = json!("attached");
        Act::body(answer.to_string())
    }

    /// The answer that there is nothing for this compute.
    pub(crate) fn empty() -> Self {
        let mut answer = config(&Value::Null);
        answer["status"] = json!("empty");
        Act::body(answer.to_string())
    }

    /// A redirect.
    pub(crate) fn redirect(to: &str) -> Self {
        Act::Answer(302, format!("Location: {to}\r\n"), String::new())
    }
}

/// Listens on a port of its own.
pub(crate) struct ControlPlane {
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    act: Act,
    closed: bool,
    heads: Vec<String>,
    streams: Vec<TcpStream>,
}

impl ControlPlane {
    pub(crate) fn start(act: Act) -> Self {
        Self::start_on(0, act)
    }

    /// On a port that one had before.
    pub(crate) fn start_on(port: u16, act: Act) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { act, closed: false, heads: Vec::new(), streams: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = std::thread::spawn({
            let shared = shared.clone();
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let mut state = shared.lock();
                    if state.closed {
                        return;
                    }
                    state.streams.push(stream.try_clone().unwrap());
                    drop(state);
                    let shared = shared.clone();
                    std::thread::spawn(move || shared.serve(stream));
                }
            }
        });
        ControlPlane { port, shared, accepting: Some(accepting) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// For `--control-plane-uri`.
    pub(crate) fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What becomes of requests from now on.
    pub(crate) fn act(&self, act: Act) {
        self.shared.lock().act = act;
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.shared.lock().heads.len()
    }

    /// Waits until it was asked so often.
    pub(crate) fn wait_asked(&self, times: usize) {
        let state = self.shared.lock();
        let fewer = |state: &mut State| state.heads.len() < times;
        let (state, timeout) = self.shared.changed.wait_timeout_while(state, DEADLINE, fewer).unwrap();
        assert!(!timeout.timed_out(), "asked {} times, not {times}", state.heads.len());
    }

    /// The heads of all requests.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.shared.lock().heads.clone()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// One request on each connection.
    fn serve(&self, mut stream: TcpStream) {
        let mut head = String::new();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while !head.ends_with("\r\n\r\n") {
            if !matches!(reader.read_line(&mut head), Ok(1..)) {
                return;
            }
        }
        let act = {
            let mut state = self.lock();
            state.heads.push(head);
            self.changed.notify_all();
            state.act.clone()
        };
        // A client that has heard enough goes, which is seen here as an error.
        let _ = match act {
            Act::Answer(status, headers, body) => {
                let length = body.len();
                write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n\
                     Content-Length: {length}\r\n{headers}\r\n{body}"
                )
            }
            Act::Raw(bytes) => stream.write_all(&bytes),
            Act::Hang => std::io::copy(&mut reader, &mut std::io::sink()).map(|_| ()),
            Act::Endless => {
                let piece = format!("10000\r\n{}\r\n", "[".repeat(0x10000));
                let begun = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                begun.and_then(|()| {
                    loop {
                        stream.write_all(piece.as_bytes())?;
                    }
                })
            }
        };
        let _ = stream.shutdown(Shutdown::Write);
        // What was not read would make the kernel reset the connection, and the answer with it.
        let _ = reader.read_to_end(&mut Vec::new());
    }
}
