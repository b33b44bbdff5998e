//! Which request goes where, and what is checked before it does.
//!
//! The order is fixed: the request id, then path (404) and method (405), then the token, then the query or the
//! body, and only then the machine.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::Instant;

use compute_states::TerminateMode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, HeaderValue, Method};
use warp::path::FullPath;
use warp::reject::Rejection;
use warp::reply::{Reply, Response};

use super::Context;
use super::body::{Received, Room, Unread};
use super::query::{self, query};
use super::response::{self, Problem, View, WrongMethod};
use crate::limits;
use crate::spec::document::{ConfigurationRequest, PromotionRequest};

mod postgres;

/// Carries the number by which a request is found in the logs.
const REQUEST_ID: &str = "x-request-id";

/// Methods of the reading routes, as the header `allow` lists them.
const READ: &str = "GET,HEAD";

/// Method of the working routes, as the header `allow` lists it.
const WORK: &str = "POST";

/// What all handlers share.
struct Shared {
    context: Context,
    bodies: Room,
}

impl Shared {
    fn view(&self) -> View<'_> {
        View { specs: &*self.context.specs, progress: &self.context.progress }
    }
}

/// Who may use a route.
#[derive(Clone, Copy, Debug)]
enum Access {
    Token,
    Anyone,
}

impl Access {
    fn check(self, shared: &Shared, headers: &HeaderMap) -> Result<(), Problem> {
        match self {
            Access::Token => Ok(shared.context.auth.check(headers)?),
            Access::Anyone => Ok(()),
        }
    }
}

/// The routes of the external server, which the control plane uses.
pub fn external(context: Context) -> BoxedFilter<(Response,)> {
    let shared = share(context);
    finish([
        guarded("/status", READ, &shared).map(|guarded: Guarded| status(guarded?)).boxed(),
        route("/metrics", READ, &shared).map(metrics).boxed(),
        spec("/configure", &shared, |problem| problem, configure),
        promote(&shared),
        json("/plan", Access::Token, limits::HTTP_CONFIGURE_BYTES, &shared, postgres::plan),
        guarded("/terminate", WORK, &shared).and(query()).then(terminate).boxed(),
        guarded("/dbs_and_roles", READ, &shared).then(postgres::list).boxed(),
        guarded("/database_schema", READ, &shared).and(query()).then(postgres::dump_schema).boxed(),
        guarded("/check_writability", WORK, &shared).then(postgres::check_writability).boxed(),
        guarded("/insights", READ, &shared).then(postgres::insights).boxed(),
    ])
}

/// The routes of the internal server, which Postgres uses.
pub fn internal(context: Context) -> BoxedFilter<(Response,)> {
    let shared = share(context);
    finish([
        route("/refresh_configuration", WORK, &shared).then(refresh).boxed(),
        json("/grants", Access::Anyone, limits::HTTP_BODY_BYTES, &shared, postgres::grant),
        json("/extensions", Access::Anyone, limits::HTTP_BODY_BYTES, &shared, postgres::install_extension),
    ])
}

/// What a handler comes to.
type Handled = Result<Response, Problem>;

/// What all handlers share, for those who may have it.
type Guarded = Result<Arc<Shared>, Problem>;

fn status(shared: Arc<Shared>) -> Handled {
    Ok(response::status(&shared.context.engine.snapshot(), shared.view()))
}

fn metrics(shared: Arc<Shared>) -> Handled {
    let context = &shared.context;
    context.metrics.preparation(&context.progress);
    response::metrics(context.metrics.render(context.engine.queue_depth()))
}

async fn configure(shared: Arc<Shared>, request: Received<ConfigurationRequest>) -> Handled {
    let specs = shared.context.specs.clone();
    // The checks of a large spec take as long as reading it.
    let accepted = tokio::task::spawn_blocking(move || {
        let Received { value, room: _room } = request;
        specs.accept(value.spec).map_err(Problem::bad_spec)
    });
    let accepted = accepted.await.unwrap_or_else(|_| Err(Problem::bug()))?;
    let answer = shared.context.engine.configure(accepted.outline).await;
    drop(accepted.held);
    response::answered(answer, shared.view())
}

/// Faults of the body are bare text here, as in the original.
fn promote(shared: &Arc<Shared>) -> BoxedFilter<(Handled,)> {
    spec("/promote", shared, Problem::plainly, begin_promotion)
}

async fn begin_promotion(shared: Arc<Shared>, request: Received<PromotionRequest>) -> Handled {
    let specs = shared.context.specs.clone();
    let accepted = tokio::task::spawn_blocking(move || {
        let Received { value, room: _room } = request;
        let accepted = specs.accept(value.spec).map_err(Problem::bad_spec)?;
        Ok((accepted, value.wal_flush_lsn))
    });
    let (accepted, lsn) = accepted.await.unwrap_or_else(|_| Err(Problem::bug()))?;
    let answer = shared.context.engine.promote(accepted.outline, lsn).await;
    drop(accepted.held);
    response::answered(answer, shared.view())
}

async fn terminate(shared: Guarded, query: Option<String>) -> Handled {
    let shared = shared?;
    let mode = query.as_deref().map_or(Ok(TerminateMode::Fast), termination_mode)?;
    detached(async move { response::answered(shared.context.engine.terminate(mode).await, shared.view()) })
        .await
}

async fn refresh(shared: Arc<Shared>) -> Handled {
    // Whatever comes of it: each call is a sign of trouble with a pageserver.
    shared.context.metrics.refresh_requested();
    response::answered(shared.context.engine.refresh().await, shared.view())
}

/// Work that goes on when the client goes away, because dropping the handler does not drop it.
async fn detached(work: impl Future<Output = Handled> + Send + 'static) -> Handled {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Problem::bug()))
}

fn termination_mode(query: &str) -> Result<TerminateMode, Problem> {
    #[derive(Deserialize)]
    struct Query {
        mode: TerminateMode,
    }
    query::parse(query).map(|Query { mode }| mode).map_err(|error| Problem::bad_query(&error))
}

// ---- filters ------------------------------------------------------------------------------------------

fn share(context: Context) -> Arc<Shared> {
    Arc::new(Shared { context, bodies: Room::new() })
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

/// The same for clients with a token only.
fn guarded(
    path: &'static str,
    allow: &'static str,
    shared: &Arc<Shared>,
) -> impl Filter<Extract = (Guarded,), Error = Rejection> + Clone + use<> {
    route(path, allow, shared).and(warp::header::headers_cloned()).map(
        |shared: Arc<Shared>, headers: HeaderMap| {
            Access::Token.check(&shared, &headers)?;
            Ok(shared)
        },
    )
}

/// A POST with a JSON body of at most `limit` bytes, which is read once it is known that the client may send it.
/// The work is dropped when the client goes away.
fn json<T, W, F>(
    path: &'static str,
    access: Access,
    limit: usize,
    shared: &Arc<Shared>,
    work: W,
) -> BoxedFilter<(Handled,)>
where
    T: DeserializeOwned + Send + 'static,
    W: Fn(Arc<Shared>, Received<T>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Handled> + Send + 'static,
{
    received(path, access, limit, shared)
        .then(move |received: Result<(Arc<Shared>, Unread), Problem>| {
            let work = work.clone();
            async move {
                let (shared, body) = received?;
                work(shared, body.read().await?).await
            }
        })
        .boxed()
}

/// A POST with a spec, for clients with a token. Once it has arrived the work goes on, whether the client waits for
/// the answer or not. Problems of the body have the form of the route.
fn spec<T, W, F>(
    path: &'static str,
    shared: &Arc<Shared>,
    form: fn(Problem) -> Problem,
    work: W,
) -> BoxedFilter<(Handled,)>
where
    T: DeserializeOwned + Send + 'static,
    W: Fn(Arc<Shared>, Received<T>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Handled> + Send + 'static,
{
    received(path, Access::Token, limits::HTTP_CONFIGURE_BYTES, shared)
        .then(move |received: Result<(Arc<Shared>, Unread), Problem>| {
            let work = work.clone();
            async move {
                let (shared, body) = received.map_err(form)?;
                detached(async move { work(shared, body.read().await.map_err(form)?).await }).await
            }
        })
        .boxed()
}

/// A POST with a body, which is taken in once it is known that the client may send it.
fn received(
    path: &'static str,
    access: Access,
    limit: usize,
    shared: &Arc<Shared>,
) -> impl Filter<Extract = (Result<(Arc<Shared>, Unread), Problem>,), Error = Rejection> + Clone + use<> {
    route(path, WORK, shared).and(warp::header::headers_cloned()).and(warp::body::stream()).then(
        move |shared: Arc<Shared>, headers: HeaderMap, body| async move {
            access.check(&shared, &headers)?;
            let body = shared.bodies.receive(&headers, body, limit).await?;
            Ok((shared, body))
        },
    )
}

/// Around all routes: the request id, the answers of requests no route took, and the log.
fn finish<const N: usize>(routes: [BoxedFilter<(Handled,)>; N]) -> BoxedFilter<(Response,)> {
    let first_that_fits = |one: BoxedFilter<_>, other: BoxedFilter<_>| one.or(other).unify().boxed();
    let routes = routes
        .into_iter()
        .reduce(first_that_fits)
        .expect("there are routes")
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

/// The answer to a request that is one too many, in place of all routes.
pub(super) fn busy(headers: &HeaderMap) -> Response {
    let id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    stamp(Problem::busy().into_response(), &id.map_or_else(new_request_id, str::to_owned))
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
