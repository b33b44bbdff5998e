//! JSON bodies: whether a request has one, how much of it is read, and for how long.

use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use warp::Buf;
use warp::http::HeaderMap;
use warp::http::header::{CONTENT_LENGTH, CONTENT_TYPE};

use super::response::Problem;
use crate::limits;

/// Room for the bodies a server holds at once: [`limits::HTTP_BODIES_BYTES`].
pub(super) struct Room(Arc<Semaphore>);

/// A body that was read, and the room it takes for as long as it is kept.
pub(super) struct Received<T> {
    pub(super) value: T,
    pub(super) room: OwnedSemaphorePermit,
}

impl Room {
    pub(super) fn new() -> Self {
        Room(Arc::new(Semaphore::new(limits::HTTP_BODIES_BYTES)))
    }

    /// Reads a body of at most `limit` bytes, which says that it is JSON.
    pub(super) async fn receive<B>(
        &self,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<B, warp::Error>> + Send,
        limit: usize,
    ) -> Result<Unread, Problem>
    where
        B: Buf + Send,
    {
        if !is_json(headers) {
            return Err(Problem::not_json());
        }
        // What it says of itself is no less than it is: nothing behind that is read.
        let bytes = announced(headers).map_or(limit, |length| length.min(limit));
        let bytes = u32::try_from(bytes).expect("limits of bodies are far below 4 GiB");
        let room = self.0.clone().try_acquire_many_owned(bytes).map_err(|_| Problem::busy())?;
        let body = timeout(limits::HTTP_BODY_READ, collect(headers, body, limit))
            .await
            .unwrap_or_else(|_| Err(Problem::body_too_slow()))?;
        Ok(Unread { body, room })
    }
}

/// A body that has arrived whole.
pub(super) struct Unread {
    body: Vec<u8>,
    room: OwnedSemaphorePermit,
}

impl Unread {
    /// Its first JSON value. What follows is ignored, as in the original.
    pub(super) async fn read<T: DeserializeOwned + Send + 'static>(self) -> Result<Received<T>, Problem> {
        let Unread { body, room } = self;
        // Tens of megabytes take a second to parse, which is too long for a thread that serves others.
        let parse = move || Ok(Received { value: parse(&body)?, room });
        tokio::task::spawn_blocking(parse).await.unwrap_or_else(|_| Err(Problem::bug()))
    }
}

/// `application/json`, or anything that is JSON by its suffix; parameters do not matter.
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media_type.and_then(|text| text.parse::<mime::Mime>().ok()).is_some_and(|media_type| {
        media_type.type_() == mime::APPLICATION
            && (media_type.subtype() == mime::JSON || media_type.suffix() == Some(mime::JSON))
    })
}

/// How long it says that it is.
fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The whole body, unless it is too long; one that says so itself is not read at all.
async fn collect<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
    limit: usize,
) -> Result<Vec<u8>, Problem> {
    if announced(headers).is_some_and(|length| length > limit) {
        return Err(Problem::body_too_long());
    }
    let mut body = std::pin::pin!(body);
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        let mut piece = piece.map_err(|error| Problem::body_broken(&error))?;
        if bytes.len() + piece.remaining() > limit {
            return Err(Problem::body_too_long());
        }
        while piece.has_remaining() {
            let chunk = piece.chunk();
            bytes.extend_from_slice(chunk);
            let taken = chunk.len();
            piece.advance(taken);
        }
    }
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(&mut json).map_err(|error| Problem::bad_body(&error))
}
