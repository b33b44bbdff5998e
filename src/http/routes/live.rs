//! The routes that show how the compute came to be what it is, and what becomes of it.
//!
//! All of them read what the loop has published; none enters its queue.

use serde::Deserialize;
use warp::http::HeaderMap;

use super::{Handled, Request, Work, asked, query};
use crate::engine::Handle;
use crate::http::response::{Problem, live as response, page as shell};

/// The position of a watcher that comes back, as browsers and other clients of such streams send it.
const LAST_EVENT_ID: &str = "last-event-id";

pub(super) async fn history(Request { shared, query, .. }: Request) -> Handled {
    #[derive(Deserialize)]
    struct Query {
        #[serde(default, deserialize_with = "query::number")]
        limit: Option<usize>,
    }
    let Query { limit } =
        query::parse(&query.unwrap_or_default()).map_err(|error| Problem::bad_query_json(&error))?;
    Ok(response::history(&shared.context.engine.history(), limit))
}

pub(super) async fn graph(Request { shared, .. }: Request) -> Handled {
    Ok(response::graph(&shared.context.engine.history()))
}

pub(super) fn events(engine: &Handle) -> Work {
    let feed = response::Feed::of(engine.watch_history());
    asked(move |request: Request| {
        let feed = feed.clone();
        async move {
            let after = position(&request.headers, request.query.as_deref())?;
            let seat = request.seat().ok_or_else(response::too_many_watchers)?;
            Ok(response::events(feed, after, seat))
        }
    })
}

/// Where the stream is to go on. The header is newer than the address: a browser that connects again sends it to
/// the same address as before.
fn position(headers: &HeaderMap, query: Option<&str>) -> Result<Option<u64>, Problem> {
    #[derive(Deserialize)]
    struct Query {
        #[serde(default, deserialize_with = "query::number")]
        last_event_id: Option<u64>,
    }
    if let Some(id) = headers.get(LAST_EVENT_ID) {
        let id = id.to_str().ok().and_then(|id| id.parse().ok());
        return id.map(Some).ok_or_else(response::bad_event_id);
    }
    let Query { last_event_id } =
        query::parse(query.unwrap_or_default()).map_err(|error| Problem::bad_query_json(&error))?;
    Ok(last_event_id)
}

/// The page itself says nothing of the compute, so it needs no token: a browser has no way to send one with an
/// address. It asks for one, and for everything it shows.
pub(super) async fn page(_: Request) -> Handled {
    Ok(shell::page())
}
