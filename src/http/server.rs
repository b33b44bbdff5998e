//! Binding, accepting, limits on connections, graceful stop.
//!
//! warp's own server has no limits and no deadline for its stop, so the accept loop is ours; warp makes the
//! service. HTTP/1.1, and HTTP/2 with prior knowledge, as the original's servers speak (http-api, section 1).
//! Who leaves when there are too many connections is decided in `house`.

mod house;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::Service;
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use self::house::{Guest, House, Watched};
use super::{Context, dispatch};
use crate::limits;
use crate::telemetry;

/// Where the two servers listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindSpec {
    /// Addresses of the external server.
    pub external: ExternalAddress,
    /// Its port; 0 for any that is free.
    pub external_port: u16,
    /// Port of the internal server, which listens on the loopback addresses only; 0 for any that is free.
    pub internal_port: u16,
}

/// Addresses of the external server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalAddress {
    /// All of them, of both families; IPv4 only on a host without IPv6.
    All,
    /// Only this one.
    Only(IpAddr),
}

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The control plane's.
    External,
    /// Postgres's.
    Internal,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::External => "external",
            Side::Internal => "internal",
        })
    }
}

/// A server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("the {side} HTTP server cannot listen on {address}")]
pub struct BindError {
    /// Which server.
    pub side: Side,
    /// Where it should have listened.
    pub address: SocketAddr,
    /// Why it cannot.
    #[source]
    pub source: io::Error,
}

/// Why the servers do not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No token is needed, yet other machines could connect.
    #[error("the external HTTP server may go without tokens on a loopback address only, and {0} is none")]
    OpenToOthers(SocketAddr),
    /// A listening socket cannot be handed to the runtime.
    #[error("the listening sockets cannot be used")]
    Runtime(#[source] io::Error),
}

/// Both servers, listening: the kernel accepts connections, nobody answers yet.
#[derive(Debug)]
pub struct Listeners {
    external: Bound,
    internal: Vec<Bound>,
}

#[derive(Debug)]
struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listeners {
    /// Binds both servers, or none.
    ///
    /// # Errors
    /// Names the server and the address that is not to be had.
    pub fn bind(spec: &BindSpec) -> Result<Self, BindError> {
        Ok(Listeners { external: bind_external(spec)?, internal: bind_internal(spec.internal_port)? })
    }

    /// Where the external server listens; the port is the real one.
    pub fn external(&self) -> SocketAddr {
        self.external.address
    }

    /// Where the internal server listens: 127.0.0.1, and `[::1]` where there is one, with the same port.
    pub fn internal(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.internal.iter().map(|bound| bound.address)
    }

    /// The internal server's port, which Postgres is told.
    pub fn internal_port(&self) -> u16 {
        self.internal.first().map_or(0, |bound| bound.address.port())
    }

    /// Serves until `shutdown` is cancelled, and then until all answers under way have left, for at most
    /// [`limits::HTTP_DRAIN`]. Cancel after the engine has ended: by then every request has its answer.
    ///
    /// # Errors
    /// Before anything is served; see [`ServeError`].
    pub async fn serve(self, context: Context, shutdown: CancellationToken) -> Result<(), ServeError> {
        let address = self.external.address;
        if context.auth.is_open() && !address.ip().is_loopback() {
            return Err(ServeError::OpenToOthers(address));
        }
        let places = places();
        let external = Server::new(super::external(context.clone()), places, &shutdown);
        let internal = Server::new(super::internal(context), places, &shutdown);
        let mut accepting = vec![(self.external, external)];
        accepting.extend(self.internal.into_iter().map(|bound| (bound, internal.clone())));
        let connections = TaskTracker::new();
        let abort = CancellationToken::new();
        // All must be usable before the first one answers.
        let mut loops = Vec::new();
        for (bound, server) in accepting {
            let listener = tokio::net::TcpListener::from_std(bound.listener).map_err(ServeError::Runtime)?;
            loops.push(server.accept(listener, &connections, &abort));
        }
        futures_util::future::join_all(loops).await;
        connections.close();
        if timeout(limits::HTTP_DRAIN, connections.wait()).await.is_err() {
            tracing::warn!("gave up on HTTP clients that did not read their answers");
            abort.cancel();
            connections.wait().await;
        }
        Ok(())
    }
}

fn bind_external(spec: &BindSpec) -> Result<Bound, BindError> {
    let port = spec.external_port;
    let (first, second) = match spec.external {
        ExternalAddress::All => (Ipv6Addr::UNSPECIFIED.into(), Some(Ipv4Addr::UNSPECIFIED.into())),
        ExternalAddress::Only(address) => (address, None),
    };
    match (listen(SocketAddr::new(first, port)), second) {
        (Err((_, error)), Some(second)) if no_such_family(&error) => listen(SocketAddr::new(second, port)),
        (bound, _) => bound,
    }
    .map_err(|(address, source)| BindError { side: Side::External, address, source })
}

fn bind_internal(port: u16) -> Result<Vec<Bound>, BindError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match listen_on_loopback(port) {
            // Somebody else has on one address what is free on the other.
            Err((_, error))
                if port == 0
                    && error.kind() == io::ErrorKind::AddrInUse
                    && tries < limits::HTTP_PORT_TRIES => {}
            Err((address, source)) => return Err(BindError { side: Side::Internal, address, source }),
            Ok(bound) => return Ok(bound),
        }
    }
}

fn listen_on_loopback(port: u16) -> Result<Vec<Bound>, (SocketAddr, io::Error)> {
    let v4 = listen((Ipv4Addr::LOCALHOST, port).into())?;
    let port = v4.address.port();
    match listen((Ipv6Addr::LOCALHOST, port).into()) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err((_, error)) if no_such_family(&error) => Ok(vec![v4]),
        Err(fault) => Err(fault),
    }
}

/// Whether the host has no address of that family: no protocol, or no interface that speaks it.
fn no_such_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}

fn listen(address: SocketAddr) -> Result<Bound, (SocketAddr, io::Error)> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            // Both families, whatever the system's default says.
            socket.set_only_v6(false)?;
        } else if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // A port whose last connections the kernel still remembers is free.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(limits::HTTP_BACKLOG)?;
        let listener = TcpListener::from(socket);
        Ok(Bound { address: listener.local_addr()?, listener })
    };
    listen().map_err(|error| (address, error))
}

/// Connections each server may hold, as far as there are files for them: the rest of the program must not go
/// without because of its clients.
pub(super) fn places() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let for_each = usize::try_from(files.saturating_sub(limits::FILES_ELSEWHERE) / 2).unwrap_or(usize::MAX);
    for_each.clamp(limits::HTTP_CONNECTIONS_LEAST, limits::HTTP_CONNECTIONS)
}

/// Gives a request a path that has none, as `CONNECT` names a host instead of one: warp panics at those.
pub fn give_path<B>(request: &mut Request<B>) {
    if request.uri().path_and_query().is_none() {
        *request.uri_mut() = hyper::Uri::from_static("/");
    }
}

/// One of the two servers.
#[derive(Clone)]
struct Server {
    routes: BoxedFilter<(Response,)>,
    house: Arc<House>,
    builder: Builder<TokioExecutor>,
    shutdown: CancellationToken,
}

impl Server {
    fn new(routes: BoxedFilter<(Response,)>, places: usize, shutdown: &CancellationToken) -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HTTP_HEAD_READ)
            .max_buf_size(limits::HTTP_HEAD_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits::HTTP_STREAMS)
            .max_header_list_size(limits::HTTP_HEAD_BYTES as u32)
            .initial_stream_window_size(limits::HTTP_WINDOW)
            .initial_connection_window_size(limits::HTTP_WINDOW)
            .max_send_buf_size(limits::HTTP_PIECE)
            .keep_alive_interval(limits::HTTP_PING)
            .keep_alive_timeout(limits::HTTP_PING);
        Server { routes, house: House::new(places), builder, shutdown: shutdown.clone() }
    }

    /// Accepts until the shutdown; each connection is a task of `connections`.
    async fn accept(
        self,
        listener: tokio::net::TcpListener,
        connections: &TaskTracker,
        abort: &CancellationToken,
    ) {
        let server = Arc::new(self);
        let shutdown = server.shutdown.clone();
        let next = async || {
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((stream, server.house.admit().await))
        };
        while let Some(accepted) = shutdown.run_until_cancelled(next()).await {
            match accepted {
                Ok((stream, guest)) => {
                    let (server, abort) = (server.clone(), abort.clone());
                    connections.spawn(async move {
                        abort.run_until_cancelled(server.connection(stream, guest)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!("an HTTP connection could not be accepted: {error}");
                    // There may be no file for it.
                    server.house.make_room();
                    shutdown.run_until_cancelled(sleep(limits::HTTP_ACCEPT_PAUSE)).await;
                }
            }
        }
    }

    async fn connection(&self, stream: TcpStream, guest: Guest) {
        // Answers are small and complete; waiting to fill a packet only delays them. Without it they still go.
        let _ = stream.set_nodelay(true);
        // A client that vanished without a word while it waits for an answer is not noticed otherwise.
        let probes = TcpKeepalive::new().with_time(limits::HTTP_PING).with_interval(limits::HTTP_PING);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&probes);
        let service = TowerToHyperService::new(warp::service(self.routes.clone()));
        let service = hyper::service::service_fn(|mut request: Request<Incoming>| {
            give_path(&mut request);
            let answer = match guest.begins(request.version() == Version::HTTP_2) {
                Some(under_way) => {
                    let span = telemetry::trace::request(&request);
                    Ok((service.call(request).instrument(span.clone()), span, under_way))
                }
                None => Err(dispatch::busy(request.headers())),
            };
            async move {
                Ok::<_, Infallible>(match answer {
                    Ok((answer, span, under_way)) => {
                        let response = answer.await?;
                        span.record("http.response.status_code", response.status().as_u16());
                        response.map(|body| Watched::new(body, Some(under_way)))
                    }
                    Err(busy) => busy.map(|body| Watched::new(body, None)),
                })
            }
        });
        let mut connection = std::pin::pin!(self.builder.serve_connection(TokioIo::new(stream), service));
        let mut given_up = std::pin::pin!(guest.given_up());
        let (mut stopping, mut leaving) = (false, false);
        let result = loop {
            tokio::select! {
                // A request that has arrived is seen before anything else, and so is served.
                biased;
                result = connection.as_mut() => break result,
                () = self.shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = guest.asked_to_leave(), if !leaving => {
                    if guest.is_idle() {
                        return;
                    }
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut given_up => return,
            }
        };
        if let Err(error) = result {
            // Clients come and go as they like.
            tracing::debug!("an HTTP connection ended: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
