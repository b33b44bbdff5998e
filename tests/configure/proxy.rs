//! Stands between the program and Postgres, and makes something happen at one exact message.
//!
//! Requests of catalog sessions are counted, over all of them, and passed on one at a time: the next one is held
//! back until the server has answered the one before. So at each request it is known what the server has done:
//! all that came before, and nothing else. A request is whatever is answered by `ReadyForQuery` (PostgreSQL
//! manual, "Message Flow").

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Sessions whose requests are counted: those that apply a spec, and those that carry out migrations.
const COUNTED: [&[u8]; 2] =
    [b"application_name\0compute_ctl:apply_config\0", b"application_name\0compute_ctl:migrations\0"];

/// What happens at a request. Its session ends with it.
pub(crate) struct Cut {
    /// Which request, from 0.
    pub(crate) at: usize,
    /// Whether the server gets it, and is at work on it when it happens.
    pub(crate) passed_on: bool,
    /// What happens.
    pub(crate) act: Box<dyn Fn() + Send + Sync>,
}

/// Listens on a Unix socket in a directory of its own.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    socket: PathBuf,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    server: PathBuf,
    /// What was asked, in order; nothing for what was prepared before.
    requests: Mutex<Vec<String>>,
    cut: Option<Cut>,
    closed: AtomicBool,
}

/// The file name of a server's socket.
pub(crate) fn socket_name(port: u16) -> String {
    format!(".s.PGSQL.{port}")
}

impl Proxy {
    /// For the server whose socket is in `server`; it gets a directory below that one.
    pub(crate) fn start(server: &Path, port: u16, cut: Option<Cut>) -> Self {
        let dir = server.join("proxy");
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join(socket_name(port));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let shared = Arc::new(Shared {
            server: server.join(socket_name(port)),
            requests: Mutex::default(),
            cut,
            closed: AtomicBool::new(false),
        });
        let accepting = std::thread::spawn({
            let shared = shared.clone();
            move || {
                for client in listener.incoming().map_while(Result::ok) {
                    if shared.closed.load(Ordering::SeqCst) {
                        return;
                    }
                    let shared = shared.clone();
                    // A session that breaks is what this is for.
                    std::thread::spawn(move || shared.serve(client).unwrap_or_default());
                }
            }
        });
        Proxy { shared, socket, accepting: Some(accepting) }
    }

    /// The directory of its socket.
    pub(crate) fn dir(&self) -> &Path {
        self.socket.parent().unwrap()
    }

    /// What was asked until now.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn serve(&self, mut client: UnixStream) -> io::Result<()> {
        let startup = packet(&mut client, Vec::new())?;
        let mut server = UnixStream::connect(&self.server)?;
        server.write_all(&startup)?;
        let (answered, answers) = mpsc::channel();
        let back = {
            let (from, to) = (server.try_clone()?, client.try_clone()?);
            std::thread::spawn(move || answer(from, to, &answered).unwrap_or_default())
        };
        let counted = COUNTED.iter().any(|name| startup.windows(name.len()).any(|part| part == *name));
        let passed = (|| {
            if counted && answers.recv().is_err() {
                return Ok(());
            }
            loop {
                let message = message(&mut client)?;
                let is_request = counted && matches!(message[0], b'Q' | b'S');
                let number = is_request.then(|| self.count(&message));
                let cut = self.cut.as_ref().filter(|cut| Some(cut.at) == number);
                if cut.is_none_or(|cut| cut.passed_on) {
                    server.write_all(&message)?;
                }
                if let Some(cut) = cut {
                    (cut.act)();
                    return Ok(());
                }
                if is_request && answers.recv().is_err() {
                    return Ok(());
                }
            }
        })();
        // A client that has finished is told to the server, which then closes; both ends are gone after that.
        let _ = server.shutdown(Shutdown::Both);
        let _ = client.shutdown(Shutdown::Both);
        let _ = back.join();
        passed
    }
}

impl Shared {
    fn count(&self, message: &[u8]) -> usize {
        let text = if message[0] == b'Q' { &message[5..message.len() - 1] } else { &[] };
        let mut requests = self.requests.lock().unwrap();
        requests.push(String::from_utf8_lossy(text).into_owned());
        requests.len() - 1
    }
}

/// Passes on what the server says, and tells whenever it is ready for the next request.
fn answer(mut from: UnixStream, mut to: UnixStream, answered: &Sender<()>) -> io::Result<()> {
    let passed = (|| {
        loop {
            let message = message(&mut from)?;
            to.write_all(&message)?;
            if message[0] == b'Z' {
                // Nobody counts in a session that is only passed on.
                let _ = answered.send(());
            }
        }
    })();
    let _ = to.shutdown(Shutdown::Both);
    passed
}

/// A message with its type.
fn message(from: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut kind = [0];
    from.read_exact(&mut kind)?;
    packet(from, kind.to_vec())
}

/// A length that counts itself, and as much as it says.
fn packet(from: &mut UnixStream, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let rest = u64::from(u32::from_be_bytes(length)).checked_sub(4).ok_or(io::ErrorKind::InvalidData)?;
    bytes.extend(length);
    from.take(rest).read_to_end(&mut bytes)?;
    Ok(bytes)
}
