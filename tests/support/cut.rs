//! Stands between a client and a server on loopback, and breaks what it passes on at an exact byte.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// What happens to what the server says, on each connection.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Nothing.
    Pass,
    /// The connection breaks after so many bytes.
    Break(usize),
    /// Nothing comes any more after so many bytes.
    Hang(usize),
    /// These bytes become others of the same number.
    Replace(&'static [u8], &'static [u8]),
}

/// What happens to all connections alike, those that are there included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// What [`Act`] says.
    Sound,
    /// Nothing comes any more.
    Frozen,
    /// What comes is turned upside down.
    Spoilt,
}

/// Listens on a port of its own.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    struck: Mutex<Receiver<()>>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    server: u16,
    act: Mutex<Act>,
    closed: Mutex<bool>,
    line: Mutex<Line>,
    line_changed: Condvar,
    streams: Mutex<Vec<TcpStream>>,
    strike: Mutex<Sender<()>>,
}

impl Proxy {
    pub(crate) fn start(server: u16, act: Act) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (strike, struck) = mpsc::channel();
        let shared = Arc::new(Shared {
            server,
            act: Mutex::new(act),
            closed: Mutex::new(false),
            line: Mutex::new(Line::Sound),
            line_changed: Condvar::new(),
            streams: Mutex::default(),
            strike: Mutex::new(strike),
        });
        let accepting = std::thread::spawn({
            let shared = shared.clone();
            move || {
                for client in listener.incoming().map_while(Result::ok) {
                    if *shared.closed.lock().unwrap() {
                        return;
                    }
                    shared.serve(client);
                }
            }
        });
        Proxy { port, shared, struck: Mutex::new(struck), accepting: Some(accepting) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What happens from the next connection on.
    pub(crate) fn act(&self, act: Act) {
        *self.shared.act.lock().unwrap() = act;
    }

    /// From now on nothing of what the server says arrives, on connections that are there and on new ones.
    pub(crate) fn freeze(&self) {
        self.line(Line::Frozen);
    }

    /// From now on what the server says arrives as nonsense.
    pub(crate) fn spoil(&self) {
        self.line(Line::Spoilt);
    }

    /// Breaks the connections that are there.
    pub(crate) fn cut(&self) {
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn line(&self, line: Line) {
        *self.shared.line.lock().unwrap() = line;
        self.shared.line_changed.notify_all();
    }

    /// Waits until it has happened once more.
    pub(crate) fn wait(&self) {
        self.struck.lock().unwrap().recv_timeout(super::lab::PATIENCE).expect("it never happened");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *self.shared.closed.lock().unwrap() = true;
        self.line(Line::Sound);
        self.cut();
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, client: TcpStream) {
        // A server that is gone is seen by the client as a connection that ends.
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.server)) else { return };
        self.streams.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        let act = self.act.lock().unwrap().clone();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
        let shared = self.clone();
        std::thread::spawn(move || shared.answer(server, client, &act));
    }

    fn answer(&self, mut server: TcpStream, mut client: TcpStream, act: &Act) {
        let mut passed = 0;
        let mut held = Vec::new();
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = server.read(&mut chunk) {
            let line = self.line.lock().unwrap();
            let line = *self.line_changed.wait_while(line, |line| *line == Line::Frozen).unwrap();
            if line == Line::Spoilt {
                chunk[..read].iter_mut().for_each(|byte| *byte = !*byte);
            }
            held.extend_from_slice(&chunk[..read]);
            let mut ends = None;
            let ready = match act {
                Act::Pass => held.len(),
                Act::Break(at) | Act::Hang(at) => {
                    let ready = held.len().min(at - passed);
                    ends = (passed + held.len() >= *at).then_some(act);
                    ready
                }
                Act::Replace(from, to) => {
                    let mut at = 0;
                    while let Some(found) = held[at..].windows(from.len()).position(|part| part == *from) {
                        held[at + found..at + found + to.len()].copy_from_slice(to);
                        at += found + to.len();
                        let _ = self.strike.lock().unwrap().send(());
                    }
                    // The beginning of another one may be at the end, as long as nobody waits for it.
                    let waits = read < chunk.len();
                    if waits { held.len() } else { held.len().saturating_sub(from.len()).max(at) }
                }
            };
            if client.write_all(&held[..ready]).is_err() {
                return;
            }
            held.drain(..ready);
            passed += ready;
            match ends {
                Some(Act::Break(_)) => {
                    let _ = self.strike.lock().unwrap().send(());
                    let _ = server.shutdown(Shutdown::Both);
                    break;
                }
                Some(_) => {
                    let _ = self.strike.lock().unwrap().send(());
                    // Until either side, or the end of the proxy, closes it; what comes is not passed on.
                    while let Ok(1..) = server.read(&mut chunk) {}
                    break;
                }
                None => {}
            }
        }
        let _ = client.shutdown(Shutdown::Both);
    }
}
