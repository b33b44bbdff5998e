//! The gRPC side: its frames and trailers over HTTP/2, without a library for them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::{HeaderMap, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};

use super::{Answer, Door, Lease, Refusal, Request, State, Then, Transport, What};

const FAILED_PRECONDITION: u32 = 9;
const INVALID_ARGUMENT: u32 = 3;
const UNIMPLEMENTED: u32 = 12;

#[derive(Clone, PartialEq, Message)]
struct BaseBackup {
    #[prost(uint64, tag = "1")]
    lsn: u64,
    #[prost(bool, tag = "2")]
    replica: bool,
    #[prost(bool, tag = "3")]
    full: bool,
    #[prost(int32, tag = "4")]
    compression: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Chunk {
    #[prost(bytes = "vec", tag = "1")]
    chunk: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct LeaseRequest {
    #[prost(uint64, tag = "1")]
    lsn: u64,
}

#[derive(Clone, PartialEq, Message)]
struct LeaseAnswer {
    #[prost(message, optional, tag = "1")]
    expires: Option<Time>,
}

#[derive(Clone, PartialEq, Message)]
struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

pub(super) async fn serve(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            if matches!(state.door(), Door::Silent) {
                // Held open, and not even read.
                std::future::pending::<()>().await;
            }
            let close = Arc::new(Notify::new());
            let closed = close.clone();
            let service = hyper::service::service_fn(move |request| {
                let (state, close) = (state.clone(), close.clone());
                async move { Ok::<_, Infallible>(answer(request, state, close).await) }
            });
            let serving =
                http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A client that hangs up early is what some tests are about.
                _ = serving => {}
                () = closed.notified() => {}
            }
        });
    }
}

/// An answer's frames, as they are made.
struct Frames(mpsc::Receiver<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    state: Arc<State>,
    close: Arc<Notify>,
) -> Response<Frames> {
    let (sender, receiver) = mpsc::channel(1);
    let (head, body) = request.into_parts();
    let message = first_message(body).await;
    tokio::spawn(async move {
        let Err(end) = reply(&head, &message, &state, &sender).await else { return };
        match end {
            End::Status(status, text) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", status.into());
                trailers.insert("grpc-message", text.parse().expect("plain text"));
                let _ = sender.send(Frame::trailers(trailers)).await;
            }
            End::Close => close.notify_one(),
            End::Hang => sender.closed().await,
        }
    });
    Response::builder()
        .header("content-type", "application/grpc")
        .body(Frames(receiver))
        .expect("a plain answer")
}

/// How an answer ends; without any of these its stream just ends.
enum End {
    Status(u32, &'static str),
    Close,
    Hang,
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        End::Status(refusal.status, refusal.message)
    }
}

async fn reply(
    head: &hyper::http::request::Parts,
    message: &[u8],
    state: &State,
    sender: &mpsc::Sender<Frame<Bytes>>,
) -> Result<(), End> {
    let header = |name: &str| head.headers.get(name)?.to_str().ok().map(str::to_owned);
    let token = header("authorization");
    let token = token.and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned));
    if let Door::Token(wanted, refusal) = state.door()
        && token != Some(wanted)
    {
        return Err(refusal.into());
    }
    let missing = |what| move || End::Status(INVALID_ARGUMENT, what);
    let (tenant, timeline, shard) = (
        header("neon-tenant-id").ok_or_else(missing("missing neon-tenant-id"))?,
        header("neon-timeline-id").ok_or_else(missing("missing neon-timeline-id"))?,
        header("neon-shard-id").ok_or_else(missing("missing neon-shard-id"))?,
    );
    let request = |lsn, what| Request {
        transport: Transport::Grpc,
        application: None,
        options: None,
        token,
        tenant,
        timeline,
        shard: Some(shard),
        lsn,
        what,
    };
    let garbled = |_| End::Status(INVALID_ARGUMENT, "no such message");
    match head.uri.path() {
        "/page_api.PageService/GetBaseBackup" => {
            let asked = BaseBackup::decode(message).map_err(garbled)?;
            if asked.full || !(1..=2).contains(&asked.compression) {
                return Err(End::Status(INVALID_ARGUMENT, "a full backup or no known compression"));
            }
            let what = What::BaseBackup { gzip: asked.compression == 2, replica: asked.replica };
            match state.backup(request(asked.lsn, what)) {
                Answer::Archive(sending) => {
                    for piece in sending.pieces() {
                        send(sender, &Chunk { chunk: piece.to_vec() }).await?;
                    }
                    match sending.then {
                        Then::Finish => Err(End::Status(0, "")),
                        Then::Hang => Err(End::Hang),
                        Then::Close => Err(End::Close),
                        Then::Error(refusal) => Err(refusal.into()),
                        Then::HalfAnEnd => Ok(()),
                    }
                }
                Answer::Error(refusal) => Err(refusal.into()),
                Answer::Silence => Err(End::Hang),
                Answer::Close => Err(End::Close),
            }
        }
        "/page_api.PageService/LeaseLsn" => {
            let asked = LeaseRequest::decode(message).map_err(garbled)?;
            match state.lease(request(asked.lsn, What::Lease)) {
                Lease::Until(millis) => {
                    let part = |number: u64| i64::try_from(number).expect("a time");
                    let nanos = i32::try_from(millis % 1000 * 1_000_000).expect("below a second");
                    let expires = Some(Time { seconds: part(millis / 1000), nanos });
                    send(sender, &LeaseAnswer { expires }).await?;
                    Err(End::Status(0, ""))
                }
                Lease::Refused => Err(End::Status(FAILED_PRECONDITION, "the LSN was garbage collected")),
                Lease::Error(refusal) => Err(refusal.into()),
                Lease::Silence => Err(End::Hang),
            }
        }
        _ => Err(End::Status(UNIMPLEMENTED, "no such method")),
    }
}

/// Frames a message, and ends the answer when nobody reads it any more.
async fn send(sender: &mpsc::Sender<Frame<Bytes>>, message: &impl Message) -> Result<(), End> {
    let body = message.encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(body.len()).expect("a small message").to_be_bytes());
    frame.extend(body);
    sender.send(Frame::data(frame.into())).await.map_err(|_| End::Close)
}

/// The only message of a request.
async fn first_message(mut body: Incoming) -> Bytes {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
    {
        if let Ok(data) = frame.into_data() {
            bytes.extend(data);
        }
    }
    let mut bytes = Bytes::from(bytes);
    // Not compressed, and its length.
    bytes.advance(5.min(bytes.len()));
    bytes
}
