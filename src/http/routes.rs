//! Which request goes where, and what is checked before it does.
//!
//! The order is fixed: the request id, then path (404) and method (405), then the token, then the query or the
//! body, and only then the machine.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::Instant;

use compute_states::TerminateMode;
use futures_util::{Stream, StreamExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde::de::value::MapDeserializer;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use warp::filters::BoxedFilter;
use warp::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use warp::http::{HeaderMap, HeaderValue, Method};
use warp::path::FullPath;
use warp::reject::Rejection;
use warp::reply::{Reply, Response};
use warp::{Buf, Filter};

use super::response::{self, Problem, WrongMethod};
use super::{Context, SpecIntake};
use crate::limits;
use crate::spec::document::ConfigurationRequest;

/// Carries the number by which a request is found in the logs.
const REQUEST_ID: &str = "x-request-id";

/// Methods of the reading routes, as the header `allow` lists them.
const READ: &str = "GET,HEAD";

/// Method of the working routes, as the header `allow` lists it.
const WORK: &str = "POST";

/// What all handlers share.
struct Shared {
    context: Context,
    /// One permit per body that is held.
    bodies: Arc<Semaphore>,
}

impl Shared {
    fn specs(&self) -> &dyn SpecIntake {
        &*self.context.specs
    }
}

/// The routes of the external server, which the control plane uses.
pub fn external(context: Context) -> BoxedFilter<(Response,)> {
    let shared = share(context);
    let status = route("/status", READ, &shared).and(warp::header::headers_cloned()).map(status);
    let metrics = route("/metrics", READ, &shared).map(metrics);
    let configure = route("/configure", WORK, &shared)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(configure);
    let terminate =
        route("/terminate", WORK, &shared).and(warp::header::headers_cloned()).and(query()).then(terminate);
    finish(status.or(metrics).unify().or(configure).unify().or(terminate).unify().boxed())
}

/// The routes of the internal server, which Postgres uses.
pub fn internal(context: Context) -> BoxedFilter<(Response,)> {
    let shared = share(context);
    finish(route("/refresh_configuration", WORK, &shared).then(refresh).boxed())
}

/// What a handler comes to.
type Handled = Result<Response, Problem>;

fn status(shared: Arc<Shared>, headers: HeaderMap) -> Handled {
    shared.context.auth.check(&headers)?;
    Ok(response::status(&shared.context.engine.snapshot(), shared.specs()))
}

fn metrics(shared: Arc<Shared>) -> Handled {
    response::metrics(shared.context.metrics.render(shared.context.engine.queue_depth()))
}

async fn configure<B: Buf + Send>(
    shared: Arc<Shared>,
    headers: HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>> + Send,
) -> Handled {
    shared.context.auth.check(&headers)?;
    if !is_json(&headers) {
        return Err(Problem::not_json());
    }
    let room = shared.bodies.clone().try_acquire_owned().map_err(|_| Problem::busy())?;
    let body = timeout(limits::HTTP_BODY_READ, collect(&headers, body))
        .await
        .unwrap_or_else(|_| Err(Problem::body_too_slow()))?;
    detached(async move {
        let specs = shared.context.specs.clone();
        // Tens of megabytes take a second to parse, which is too long for a thread that serves others.
        let accepted = tokio::task::spawn_blocking(move || {
            let _room = room;
            let request: ConfigurationRequest = parse(&body)?;
            specs.accept(request.spec).map_err(Problem::bad_spec)
        });
        let accepted = accepted.await.unwrap_or_else(|_| Err(Problem::bug()))?;
        let answer = shared.context.engine.configure(accepted.outline).await;
        drop(accepted.held);
        response::answered(answer, shared.specs())
    })
    .await
}

async fn terminate(shared: Arc<Shared>, headers: HeaderMap, query: Option<String>) -> Handled {
    shared.context.auth.check(&headers)?;
    let mode = query.as_deref().map_or(Ok(TerminateMode::Fast), termination_mode)?;
    detached(async move { response::answered(shared.context.engine.terminate(mode).await, shared.specs()) })
        .await
}

async fn refresh(shared: Arc<Shared>) -> Handled {
    // Whatever comes of it: each call is a sign of trouble with a pageserver.
    shared.context.metrics.refresh_requested();
    response::answered(shared.context.engine.refresh().await, shared.specs())
}

/// Work that goes on when the client goes away, because dropping the handler does not drop it.
async fn detached(work: impl Future<Output = Handled> + Send + 'static) -> Handled {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Problem::bug()))
}

/// `application/json`, or anything that is JSON by its suffix; parameters do not matter.
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media_type.and_then(|text| text.parse::<mime::Mime>().ok()).is_some_and(|media_type| {
        media_type.type_() == mime::APPLICATION
            && (media_type.subtype() == mime::JSON || media_type.suffix() == Some(mime::JSON))
    })
}

/// The whole body, unless it is too long; one that says so itself is not read at all.
async fn collect<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
) -> Result<Vec<u8>, Problem> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > limits::HTTP_CONFIGURE_BYTES) {
        return Err(Problem::body_too_long());
    }
    let mut body = std::pin::pin!(body);
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        let mut piece = piece.map_err(|error| Problem::body_broken(&error))?;
        if bytes.len() + piece.remaining() > limits::HTTP_CONFIGURE_BYTES {
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

/// The first JSON value of a body. What follows it is ignored, as in the original.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(&mut json).map_err(|error| Problem::bad_body(&error))
}

fn termination_mode(query: &str) -> Result<TerminateMode, Problem> {
    #[derive(Deserialize)]
    struct Query {
        mode: TerminateMode,
    }
    let pairs = form_urlencoded::parse(query.as_bytes());
    let query = MapDeserializer::<_, serde::de::value::Error>::new(pairs);
    serde_path_to_error::deserialize(query)
        .map(|Query { mode }| mode)
        .map_err(|error| Problem::bad_query(&error))
}

// ---- filters ------------------------------------------------------------------------------------------

fn share(context: Context) -> Arc<Shared> {
    Arc::new(Shared { context, bodies: Arc::new(Semaphore::new(limits::HTTP_BODIES)) })
}

/// Exactly this path, and one of these methods. warp's own path filters take a trailing slash for nothing.
fn route(
    path: &'static str,
    allow: &'static str,
    shared: &Arc<Shared>,
) -> impl Filter<Extract = (Arc<Shared>,), Error = Rejection> + Clone + use<> {
    let shared = shared.clone();
    warp::path::full()
        .and(warp::method())
        .and_then(move |full: FullPath, method: Method| {
            ready(if full.as_str() != path {
                Err(warp::reject::not_found())
            } else if !allow.split(',').any(|allowed| allowed == method.as_str()) {
                Err(warp::reject::custom(WrongMethod { allow }))
            } else {
                Ok(())
            })
        })
        .untuple_one()
        .map(move || shared.clone())
}

/// The query, if there is a question mark, even with nothing behind it.
fn query() -> impl Filter<Extract = (Option<String>,), Error = Infallible> + Clone {
    warp::query::raw().map(Some).or_else(|_| ready(Ok((None,))))
}

/// Around all routes: the request id, the answers of requests no route took, and the log.
fn finish(routes: BoxedFilter<(Handled,)>) -> BoxedFilter<(Response,)> {
    let routes = routes
        .map(Handled::into_response)
        .recover(|rejection: Rejection| ready(Ok::<_, Infallible>(response::not_routed(&rejection))))
        .unify();
    // The id must be readable, because it goes into the log; warp rejects one that is not.
    let identified = warp::header::optional::<String>(REQUEST_ID)
        .map(|id: Option<String>| id.unwrap_or_else(new_request_id))
        .and(warp::method())
        .and(warp::path::full())
        .map(Seen::new)
        .and(routes)
        .map(Seen::answer);
    let unidentified = warp::any().map(|| stamp(response::unreadable_request_id(), &new_request_id()));
    identified.or(unidentified).unify().boxed()
}

/// A request under way.
struct Seen {
    id: String,
    method: Method,
    path: FullPath,
    begun: Instant,
}

impl Seen {
    fn new(id: String, method: Method, path: FullPath) -> Self {
        let seen = Seen { id, method, path, begun: Instant::now() };
        if seen.reads() {
            tracing::debug!(request_id = seen.id, method = %seen.method, path = seen.path.as_str(), "request");
        } else {
            tracing::info!(request_id = seen.id, method = %seen.method, path = seen.path.as_str(), "request");
        }
        seen
    }

    fn answer(self, response: Response) -> Response {
        let (code, latency_ms) = (response.status().as_u16(), self.begun.elapsed().as_millis());
        if self.reads() {
            tracing::debug!(request_id = self.id, code, latency_ms, "answer");
        } else {
            tracing::info!(request_id = self.id, code, latency_ms, "answer");
        }
        stamp(response, &self.id)
    }

    /// Clients poll, and a log full of that hides what matters.
    fn reads(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }
}

fn new_request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn stamp(mut response: Response, id: &str) -> Response {
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
