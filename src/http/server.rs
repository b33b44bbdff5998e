//! Binding, accepting, limits on connections, graceful stop.
//!
//! warp's own server has no limits and no deadline for its stop, so the accept loop is ours; warp makes the
//! service. HTTP/1.1, and HTTP/2 with prior knowledge, as the original's servers speak (http-api, section 1).
//! Who leaves when there are too many connections is decided in `house`.

mod bind;
mod house;
mod opening;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use nix::sys::resource::{Resource, getrlimit};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use self::house::{Guest, House, Watched};
use self::opening::Opening;
use super::Context;
use super::dispatch::{self, SharesConnection};
use super::response::Problem;
use crate::limits;
use crate::telemetry;

pub use bind::{BindError, BindSpec, ExternalAddress, Listeners, Side};

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

/// Both servers. They answer from the moment they exist: probes first, and what there is to ask for when there is something.
pub struct Servers {
    external: (SocketAddr, Arc<Opening>),
    internal: (Vec<SocketAddr>, Arc<Opening>),
    runtime: Handle,
    shutdown: CancellationToken,
    accepting: Option<JoinHandle<()>>,
}

impl Servers {
    /// Answers on these from now on, in a runtime of its own perhaps.
    ///
    /// # Errors
    /// See [`ServeError`]; nobody was answered then.
    pub fn open(listeners: Listeners, runtime: &Handle) -> Result<Self, ServeError> {
        let _inside = runtime.enter();
        let shutdown = CancellationToken::new();
        let external = (listeners.external(), Opening::new(&shutdown));
        let internal = (listeners.internal().collect(), Opening::new(&shutdown));
        let places = places();
        let inner = Server::new(internal.1.clone(), places);
        let mut bound = vec![(listeners.external, Server::new(external.1.clone(), places))];
        bound.extend(listeners.internal.into_iter().map(|bound| (bound, inner.clone())));
        // All must be usable before the first one answers.
        let mut usable = Vec::new();
        for (bound, server) in bound {
            let listener = tokio::net::TcpListener::from_std(bound.listener).map_err(ServeError::Runtime)?;
            usable.push((listener, server));
        }
        let accepting = runtime.spawn(accept_all(usable, shutdown.clone()));
        Ok(Servers { external, internal, runtime: runtime.clone(), shutdown, accepting: Some(accepting) })
    }

    /// Where the external server listens; the port is the real one.
    pub fn external(&self) -> SocketAddr {
        self.external.0
    }

    /// Where the internal server listens: 127.0.0.1, and `[::1]` where there is one, with the same port.
    pub fn internal(&self) -> &[SocketAddr] {
        &self.internal.0
    }

    /// The internal server's port, which Postgres is told.
    pub fn internal_port(&self) -> u16 {
        self.internal.0.first().map_or(0, SocketAddr::port)
    }

    /// Serves all there is from now on.
    ///
    /// # Errors
    /// Without tokens only for an external server that other machines cannot reach.
    pub fn serve(&self, context: Context) -> Result<(), ServeError> {
        let address = self.external.0;
        if context.auth.is_open() && !address.ip().is_loopback() {
            return Err(ServeError::OpenToOthers(address));
        }
        let _inside = self.runtime.enter();
        let (external, internal) = (super::external(context.clone()), super::internal(context));
        self.external.1.serve(external);
        self.internal.1.serve(internal);
        Ok(())
    }

    /// Accepts nothing more, and waits until all answers under way have left, for at most [`limits::HTTP_DRAIN`]. Only
    /// after the engine has ended: by then every request has its answer.
    pub async fn end(&mut self) {
        self.shutdown.cancel();
        if let Some(accepting) = self.accepting.take()
            && let Err(error) = accepting.await
        {
            tracing::error!(%error, "an HTTP server ended by a fault of its own; this is a bug");
        }
    }
}

/// Accepts until the shutdown, and sees those out who were accepted.
async fn accept_all(listeners: Vec<(tokio::net::TcpListener, Server)>, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    let loops = listeners.into_iter().map(|(listener, server)| {
        let (connections, shutdown, abort) = (&connections, &shutdown, &abort);
        async move { server.accept(listener, connections, shutdown, abort).await }
    });
    futures_util::future::join_all(loops).await;
    connections.close();
    if timeout(limits::HTTP_DRAIN, connections.wait()).await.is_err() {
        tracing::warn!("gave up on HTTP clients that did not read their answers");
        abort.cancel();
        connections.wait().await;
    }
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
    opening: Arc<Opening>,
    house: Arc<House>,
    builder: Builder<TokioExecutor>,
}

impl Server {
    fn new(opening: Arc<Opening>, places: usize) -> Self {
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
        Server { opening, house: House::new(places), builder }
    }

    /// Accepts until the shutdown; each connection is a task of `connections`.
    async fn accept(
        self,
        listener: tokio::net::TcpListener,
        connections: &TaskTracker,
        shutdown: &CancellationToken,
        abort: &CancellationToken,
    ) {
        let server = Arc::new(self);
        let next = async || {
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((stream, server.house.admit().await))
        };
        while let Some(accepted) = shutdown.run_until_cancelled(next()).await {
            match accepted {
                Ok((stream, guest)) => {
                    let (server, shutdown, abort) = (server.clone(), shutdown.clone(), abort.clone());
                    connections.spawn(async move {
                        abort.run_until_cancelled(server.connection(stream, guest, &shutdown)).await;
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

    async fn connection(&self, stream: TcpStream, guest: Guest, shutdown: &CancellationToken) {
        // Answers are small and complete; waiting to fill a packet only delays them. Without it they still go.
        let _ = stream.set_nodelay(true);
        // A client that vanished without a word while it waits for an answer is not noticed otherwise.
        let probes = TcpKeepalive::new().with_time(limits::HTTP_PING).with_interval(limits::HTTP_PING);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&probes);
        let service = hyper::service::service_fn(|mut request: Request<Incoming>| {
            give_path(&mut request);
            let shares = request.version() == Version::HTTP_2;
            if shares {
                request.extensions_mut().insert(SharesConnection);
            }
            let under_way = guest.begins(shares);
            let opening = self.opening.clone();
            async move {
                let Some(under_way) = under_way else {
                    let busy = dispatch::instead(request.method(), request.headers(), Err(Problem::busy()));
                    return Ok::<_, Infallible>(busy.map(|body| Watched::new(body, None)));
                };
                let span = telemetry::trace::request(&request);
                let response = opening.answer(request).instrument(span.clone()).await;
                span.record("http.response.status_code", response.status().as_u16());
                Ok(response.map(|body| Watched::new(body, Some(under_way))))
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
                () = shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = guest.asked_to_leave(), if !leaving => {
                    // Who was answered may not have everything yet.
                    if !guest.was_served() {
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
