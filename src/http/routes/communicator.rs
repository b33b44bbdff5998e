//! Metrics of the communicator, the part of Neon's Postgres that speaks with pageservers. It serves them over HTTP on a
//! Unix socket in the data directory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, stream};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use warp::http::header::HOST;

use crate::http::dispatch::{Handled, Request};
use crate::http::response;
use crate::limits;

const SOCKET: &str = "neon-communicator.socket";

const PATH: &str = "/autoscaling_metrics";

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub(in crate::http) enum CommunicatorError {
    #[error("connecting to communicator control socket")]
    Connect(#[source] io::Error),
    #[error("asking the communicator for its metrics")]
    Ask(#[source] hyper::Error),
    #[error("the communicator gave no answer within {:?}", limits::COMMUNICATOR)]
    TimedOut,
}

/// What the communicator answers, passed on as it comes.
pub(super) async fn metrics(Request { shared, .. }: Request) -> Handled {
    let asked = timeout(limits::COMMUNICATOR, ask(&shared.context.pgdata)).await;
    let answer = asked.unwrap_or(Err(CommunicatorError::TimedOut));
    response::forwarded(answer.map(|(answer, connection)| answer.map(|body| pieces(body, connection))))
}

type Connection = AbortOnDropHandle<()>;

async fn ask(pgdata: &Path) -> Result<(hyper::Response<Incoming>, Connection), CommunicatorError> {
    let stream = connect(pgdata).await.map_err(CommunicatorError::Connect)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(CommunicatorError::Ask)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to the communicator ended");
        }
    }));
    let request = hyper::Request::get(PATH).header(HOST, "localhost").body(String::new());
    let request = request.expect("the parts are well-formed");
    Ok((sender.send_request(request).await.map_err(CommunicatorError::Ask)?, connection))
}

/// By way of the open directory: the path of a socket has at most 107 bytes, and that of a directory may have more.
async fn connect(pgdata: &Path) -> io::Result<UnixStream> {
    let pgdata = pgdata.to_owned();
    let directory =
        tokio::task::spawn_blocking(move || File::open(pgdata)).await.map_err(io::Error::other)??;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())).await
}

/// The pieces of a body. The last one, or an error, closes the connection.
fn pieces(body: Incoming, connection: Connection) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync {
    stream::unfold(Some((body, connection)), async |rest| {
        let (mut body, connection) = rest?;
        loop {
            let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
            let frame = match timeout(limits::COMMUNICATOR, frame).await {
                Ok(frame) => frame?.map_err(io::Error::other),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(piece)) => return Some((Ok(piece), Some((body, connection)))),
                // Trailers, which are not passed on.
                Ok(Err(_)) => {}
                Err(error) => return Some((Err(error), None)),
            }
        }
    })
}
