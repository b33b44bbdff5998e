//! A pageserver for tests: it speaks the real protocols on loopback, gives out one base backup, leases LSNs, and
//! can be told to fail in the ways pageservers and connections fail.
//!
//! It knows nothing of the code under test; its messages are written down here a second time.

pub(crate) mod archive;
mod grpc;
mod libpq;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// How a request for a base backup is answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// With an archive, or a part of it.
    Archive(Sending),
    /// With an error before anything is sent.
    Error(Refusal),
    /// Not at all; the connection stays open.
    Silence,
    /// By closing the connection.
    Close,
}

/// An archive and how it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Sending {
    /// As it goes over the wire, so normally a gzipped tar.
    pub(crate) bytes: Arc<Vec<u8>>,
    /// Length of the pieces it is cut into.
    pub(crate) piece: usize,
    /// How many of its bytes are sent.
    pub(crate) upto: Option<usize>,
    /// What happens then.
    pub(crate) then: Then,
}

impl Sending {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self { bytes: Arc::new(bytes.to_vec()), piece: 64 * 1024, upto: None, then: Then::Finish }
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes[..self.upto.unwrap_or(self.bytes.len())].chunks(self.piece)
    }
}

/// What follows the last byte.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    /// What has to.
    Finish,
    /// Nothing; the connection stays open.
    Hang,
    /// The end of the connection.
    Close,
    /// An error.
    Error(Refusal),
    /// The end of the data, and the end of the connection instead of the word that it went well: CopyDone without
    /// CommandComplete, or a stream without its status.
    HalfAnEnd,
}

/// An error.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// Over libpq.
    pub(crate) sqlstate: &'static str,
    /// Over gRPC.
    pub(crate) status: u32,
    pub(crate) message: &'static str,
}

impl Refusal {
    pub(crate) fn new(sqlstate: &'static str, status: u32, message: &'static str) -> Self {
        Self { sqlstate, status, message }
    }
}

/// How a request for a lease is answered.
#[derive(Clone, Debug)]
pub(crate) enum Lease {
    /// It is granted until then, in milliseconds since the Unix epoch.
    Until(u64),
    /// It is refused for good: NULL, or `FAILED_PRECONDITION`.
    Refused,
    /// With an error.
    Error(Refusal),
    /// Not at all; the connection stays open.
    Silence,
}

/// How a connection is greeted.
#[derive(Clone, Debug, Default)]
pub(crate) enum Door {
    /// Anybody comes in.
    #[default]
    Open,
    /// Who has this token comes in; the others get this error.
    Token(String, Refusal),
    /// Over libpq somebody is asked for a proof that pageservers do not ask for.
    Md5,
    /// It is accepted, and then nothing happens.
    Silent,
}

/// Over what a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Libpq,
    Grpc,
}

/// A request, as it was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) transport: Transport,
    /// `application_name` and `options` of the connection; always none over gRPC.
    pub(crate) application: Option<String>,
    pub(crate) options: Option<String>,
    /// The token, if one was sent.
    pub(crate) token: Option<String>,
    pub(crate) tenant: String,
    pub(crate) timeline: String,
    /// Four digits: of the metadata, or after the tenant of a lease.
    pub(crate) shard: Option<String>,
    /// As a number; 0 for none.
    pub(crate) lsn: u64,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    BaseBackup { gzip: bool, replica: bool },
    Lease,
}

/// What is answered, and what was asked.
#[derive(Debug, Default)]
struct State {
    door: Mutex<Door>,
    backups: Mutex<VecDeque<Answer>>,
    leases: Mutex<VecDeque<Lease>>,
    requests: Mutex<Vec<Request>>,
}

impl State {
    fn backup(&self, request: Request) -> Answer {
        lock(&self.requests).push(request);
        next(&self.backups).unwrap_or(Answer::Error(Refusal::new("XX000", 5, "there is no such timeline")))
    }

    fn lease(&self, request: Request) -> Lease {
        lock(&self.requests).push(request);
        next(&self.leases).unwrap_or(Lease::Refused)
    }

    fn door(&self) -> Door {
        lock(&self.door).clone()
    }
}

/// The next answer; the last one is given for ever.
fn next<T: Clone>(answers: &Mutex<VecDeque<T>>) -> Option<T> {
    let mut answers = lock(answers);
    if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The server. It ends, with all its connections, when it is dropped.
pub(crate) struct Pageserver {
    state: Arc<State>,
    libpq: u16,
    grpc: u16,
    runtime: Option<Runtime>,
}

impl Pageserver {
    /// A server that answers requests for base backups in this way, and then with the last answer for ever.
    pub(crate) fn start(backups: impl IntoIterator<Item = Answer>) -> Self {
        let state = Arc::new(State::default());
        lock(&state.backups).extend(backups);
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        // Blocking, so that it can be called from where a runtime is already.
        let listen = || {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("some port is free");
            listener.set_nonblocking(true).expect("a socket of ours");
            listener
        };
        let enter = runtime.enter();
        let [libpq, grpc] =
            [listen(), listen()].map(|listener| TcpListener::from_std(listener).expect("a listener of ours"));
        drop(enter);
        let port = |listener: &TcpListener| {
            listener.local_addr().as_ref().map(SocketAddr::port).expect("it is bound")
        };
        let ports = (port(&libpq), port(&grpc));
        runtime.spawn(libpq::serve(libpq, state.clone()));
        runtime.spawn(grpc::serve(grpc, state.clone()));
        Self { state, libpq: ports.0, grpc: ports.1, runtime: Some(runtime) }
    }

    /// The same that leases in this way, and then with the last answer for ever.
    pub(crate) fn leasing(self, leases: impl IntoIterator<Item = Lease>) -> Self {
        lock(&self.state.leases).extend(leases);
        self
    }

    /// The same that greets in this way.
    pub(crate) fn behind(self, door: Door) -> Self {
        *lock(&self.state.door) = door;
        self
    }

    /// Replaces all answers to requests for base backups.
    pub(crate) fn answer(&self, backups: impl IntoIterator<Item = Answer>) {
        *lock(&self.state.backups) = backups.into_iter().collect();
    }

    /// Replaces all answers to requests for leases.
    pub(crate) fn lease(&self, leases: impl IntoIterator<Item = Lease>) {
        *lock(&self.state.leases) = leases.into_iter().collect();
    }

    pub(crate) fn libpq_url(&self) -> String {
        format!("postgresql://no_user@127.0.0.1:{}", self.libpq)
    }

    pub(crate) fn grpc_url(&self) -> String {
        format!("grpc://127.0.0.1:{}", self.grpc)
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        lock(&self.state.requests).clone()
    }
}

impl Drop for Pageserver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Without waiting: this may be a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}
