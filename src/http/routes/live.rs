//! The routes that show how the compute came to be what it is, and what becomes of it.
//!
//! All of them read what the loop has published; none enters its queue.

use std::sync::Arc;

use serde::Deserialize;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::HeaderMap;

use super::{Guarded, Handled, READ, Shared, guarded, query, route};
use crate::http::query::query as query_string;
use crate::http::response::{Problem, live as response, page};
use crate::http::seat::Seat;

/// The position of a watcher that comes back, as browsers and other clients of such streams send it.
const LAST_EVENT_ID: &str = "last-event-id";

pub(super) fn history(shared: Guarded, query: Option<String>) -> Handled {
    #[derive(Deserialize)]
    struct Query {
        #[serde(default, deserialize_with = "query::number")]
        limit: Option<usize>,
    }
    let shared = shared?;
    let Query { limit } =
        query::parse(&query.unwrap_or_default()).map_err(|error| Problem::bad_query_json(&error))?;
    Ok(response::history(&shared.context.engine.history(), limit))
}

pub(super) fn graph(shared: Guarded) -> Handled {
    Ok(response::graph(&shared?.context.engine.history()))
}

pub(super) fn events(shared: &Arc<Shared>) -> BoxedFilter<(Handled,)> {
    guarded("/events", READ, shared)
        .and(query_string())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<Seat>())
        .map(|shared: Guarded, query: Option<String>, headers: HeaderMap, seat: Option<Seat>| {
            let shared = shared?;
            let after = position(&headers, query.as_deref())?;
            // A request that came over no connection is one of a test's.
            if let Some(seat) = seat {
                seat.watch().map_err(|_| response::too_many_watchers())?;
            }
            Ok(response::events(shared.context.engine.watch_history(), after))
        })
        .boxed()
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
pub(super) fn page(shared: &Arc<Shared>) -> BoxedFilter<(Handled,)> {
    route("/ui", READ, shared).map(|_| Ok(page::page())).boxed()
}

/// Where nobody needs a token, it is also what a person finds who opens the server's address.
pub(super) fn front(shared: &Arc<Shared>) -> BoxedFilter<(Handled,)> {
    let open = shared.context.auth.is_open();
    warp::any()
        .and_then(move || std::future::ready(if open { Ok(()) } else { Err(warp::reject::not_found()) }))
        .untuple_one()
        .and(route("/", READ, shared))
        .map(|_| Ok(page::page()))
        .boxed()
}
