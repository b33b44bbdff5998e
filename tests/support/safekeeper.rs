//! Safekeepers as far as a compute asks them: `TIMELINE_STATUS`, and a program that answers `--sync-safekeepers`.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::node::Place;
use super::pg;

/// What a safekeeper does with who asks it.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// Tells what it holds, and what it knows as committed.
    At(&'static str, &'static str),
    /// It has never heard of the timeline.
    NoTimeline,
    /// Accepts, and says nothing.
    Hang,
    /// Lets one in, and does not answer.
    HangAtQuery,
    /// Refuses the question.
    Refuse(&'static str),
    /// Tells something else.
    OtherColumns,
    /// Speaks another protocol.
    Garbage,
}

/// What came in over one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// The start-up parameters.
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) password: String,
    pub(crate) query: String,
}

/// A server on a port of its own, until it is dropped.
pub(crate) struct Safekeeper {
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    way: Mutex<Way>,
    asked: Mutex<Vec<Asked>>,
    ended: AtomicBool,
}

impl Safekeeper {
    pub(crate) fn start(way: Way) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("some port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let shared =
            Arc::new(Shared { way: Mutex::new(way), asked: Mutex::default(), ended: AtomicBool::new(false) });
        let accepting = {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if shared.ended.load(Ordering::Acquire) {
                        return;
                    }
                    let shared = shared.clone();
                    // Who asks may go away at any time.
                    std::thread::spawn(move || shared.serve(stream));
                }
            })
        };
        Safekeeper { port, shared, accepting: Some(accepting) }
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// From the next connection on.
    pub(crate) fn set(&self, way: Way) {
        *self.shared.way.lock().expect("nobody panics with it") = way;
    }

    /// Everything that was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for Safekeeper {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        // To have it look.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let way = self.way.lock().expect("nobody panics with it").clone();
        let wait_for_the_end = |mut stream: TcpStream| io::copy(&mut stream, &mut io::sink()).map(drop);
        if matches!(way, Way::Hang) {
            return wait_for_the_end(stream);
        }
        let start = body(&mut stream)?;
        let words: Vec<String> = start[4..]
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let mut asked = Asked::default();
        asked.parameters.extend(words.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())));
        if matches!(way, Way::Garbage) {
            return stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
        // Cleartext password.
        message(&mut stream, b'R', &3_u32.to_be_bytes())?;
        stream.read_exact(&mut [0])?;
        asked.password = text(&body(&mut stream)?);
        message(&mut stream, b'R', &0_u32.to_be_bytes())?;
        message(&mut stream, b'Z', b"I")?;
        stream.read_exact(&mut [0])?;
        asked.query = text(&body(&mut stream)?);
        self.asked.lock().expect("nobody panics with it").push(asked);
        match way {
            Way::At(flush, commit) => row(&mut stream, &["flush_lsn", "commit_lsn"], &[flush, commit])?,
            Way::OtherColumns => row(&mut stream, &["flush", "commit"], &["0/1", "0/1"])?,
            Way::NoTimeline => columns(&mut stream, &["flush_lsn", "commit_lsn"])?,
            Way::Refuse(text) => {
                let fields = format!("SERROR\0VERROR\0CXX000\0M{text}\0\0");
                message(&mut stream, b'E', fields.as_bytes())?;
            }
            Way::HangAtQuery => return wait_for_the_end(stream),
            Way::Hang | Way::Garbage => unreachable!("it has returned"),
        }
        if !matches!(way, Way::Refuse(_)) {
            message(&mut stream, b'C', b"TIMELINE_STATUS\0")?;
        }
        message(&mut stream, b'Z', b"I")?;
        wait_for_the_end(stream)
    }
}

/// What follows a length.
fn body(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).trim_end_matches('\0').to_owned()
}

fn message(stream: &mut TcpStream, tag: u8, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len() + 4).expect("short");
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)
}

fn columns(stream: &mut TcpStream, names: &[&str]) -> io::Result<()> {
    let mut body = u16::try_from(names.len()).expect("few").to_be_bytes().to_vec();
    for name in names {
        body.extend_from_slice(name.as_bytes());
        // Terminator, table, attribute, type `text`, its size, modifier, text format.
        body.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    }
    message(stream, b'T', &body)
}

fn row(stream: &mut TcpStream, names: &[&str], values: &[&str]) -> io::Result<()> {
    columns(stream, names)?;
    let mut body = u16::try_from(values.len()).expect("few").to_be_bytes().to_vec();
    for value in values {
        body.extend_from_slice(&u32::try_from(value.len()).expect("short").to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    message(stream, b'D', &body)
}

/// A PostgreSQL that answers `--sync-safekeepers` by a script, and does everything else as itself.
pub(crate) struct SyncProgram<'a> {
    place: &'a Place,
    /// For `--pgbin`.
    pub(crate) pgbin: PathBuf,
}

/// One run of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) pgdata: String,
    pub(crate) token: String,
    /// What the line of `postgresql.conf` about safekeepers says.
    pub(crate) conf: String,
}

impl<'a> SyncProgram<'a> {
    /// In a place; it says that the log ends at 0/0.
    pub(crate) fn new(place: &'a Place) -> Self {
        let dir = place.path().display().to_string();
        for name in ["postgres", "initdb", "pg_dump"] {
            let real = pg::command(name).get_program().to_str().expect("plain names").to_owned();
            let body = match name {
                "postgres" => format!(
                    "if [ \"$1\" = --sync-safekeepers ]; then\n\
                     conf=$(grep '^neon.safekeepers' \"$PGDATA/postgresql.conf\")\n\
                     echo \"$PGDATA|$NEON_AUTH_TOKEN|$conf\" >> {dir}/sync-runs\n\
                     . {dir}/sync\n\
                     exit\nfi\nexec {real} \"$@\""
                ),
                _ => format!("exec {real} \"$@\""),
            };
            place.script(&format!("bin/{name}"), &body);
        }
        let program = SyncProgram { place, pgbin: place.path().join("bin/postgres") };
        program.says("echo 0/0");
        program
    }

    /// Runs these lines of shell from now on.
    pub(crate) fn says(&self, script: &str) {
        let (new, file) = (self.place.path().join("sync.new"), self.place.path().join("sync"));
        // In one step: it may be run at any time.
        fs::write(&new, format!("{script}\n")).expect("writing into an own directory");
        fs::rename(&new, &file).expect("within one directory");
        pg::give(&file);
    }

    /// Ends badly once, as `first` says, and from then on as `then` says.
    pub(crate) fn says_once(&self, first: &str, then: &str) {
        let file = self.place.path().join("said-once");
        let _new = fs::remove_file(&file);
        let flag = file.display();
        self.says(&format!("if [ ! -e {flag} ]; then : > {flag}; {first}\nelse {then}\nfi"));
    }

    /// Stays, with a child that would outlive it.
    pub(crate) fn hangs(&self) {
        self.says(&format!("sleep 1000 & : > {}/sync-hangs; wait", self.place.path().display()));
    }

    /// Whether it has got stuck.
    pub(crate) fn is_hanging(&self) -> bool {
        let child = self.place.processes().iter().any(|process| process.name == "sleep");
        child && self.place.path().join("sync-hangs").exists()
    }

    /// Each run so far.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let text = fs::read_to_string(self.place.path().join("sync-runs")).unwrap_or_default();
        let mut runs = Vec::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, '|').map(str::to_owned);
            let mut field = || fields.next().unwrap_or_default();
            runs.push(Run { pgdata: field(), token: field(), conf: field() });
        }
        runs
    }
}
