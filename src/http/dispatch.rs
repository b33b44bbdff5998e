//! From a request to the operation that serves it, in one look-up.
//!
//! The order is fixed: the request id, then path (404) and method (405), then the token, then what the operation
//! looks at itself: the query, the body, the machine.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::header::CONTENT_LENGTH;
use warp::http::{HeaderMap, HeaderValue, Method};
use warp::path::FullPath;
use warp::reply::{Reply, Response};

use super::auth::Denied;
use super::body::{Received, Room, Unread};
use super::openapi::{self, About};
use super::query::query;
use super::response::{self, Problem, View};
use super::server::{self, Side};
use super::{Context, site};
use crate::limits;
use crate::telemetry;

/// Carries the number by which a request is found in the logs.
const REQUEST_ID: &str = "x-request-id";

/// How the path of an operation ends that serves everything below a directory.
const REST: &str = "{*";

/// What a handler comes to.
pub(super) type Handled = Result<Response, Problem>;

/// What serves an operation.
pub(super) type Work = Box<dyn Fn(Request) -> BoxFuture<'static, Handled> + Send + Sync>;

/// A body, as it arrives.
type Body = Pin<Box<dyn Stream<Item = Result<Bytes, warp::Error>> + Send>>;

/// What all handlers of a server share.
pub(super) struct Shared {
    pub(super) context: Context,
    /// What the server says of itself.
    pub(super) document: Bytes,
    /// Room for those who watch. Their connections are never idle, so that without a bound of their own they could
    /// take the places of all others.
    watchers: Arc<Semaphore>,
    /// The same for those over HTTP/2, whose requests have a bound of their own.
    watchers_sharing: Arc<Semaphore>,
    bodies: Room,
}

/// Marks a request whose connection carries others at the same time.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharesConnection;

impl Shared {
    pub(super) fn view(&self) -> View<'_> {
        View {
            specs: &*self.context.specs,
            progress: &self.context.progress,
            settings: &self.context.settings,
        }
    }
}

/// Who may use an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Clients with a token.
    Token,
    /// Everybody on this machine but web pages: for what changes something on a server without tokens.
    Local,
    /// Everybody.
    Anyone,
}

impl Access {
    fn check(self, shared: &Shared, headers: &HeaderMap) -> Result<(), Problem> {
        match self {
            Access::Token => Ok(shared.context.auth.check(headers)?),
            Access::Local => Ok(site::check(headers).map_err(Denied::from)?),
            Access::Anyone => Ok(()),
        }
    }
}

/// One method of one path.
pub(super) struct Operation {
    pub(super) method: Method,
    /// Exactly this path; one that ends with `{*name}` stands for all below that directory.
    pub(super) path: &'static str,
    pub(super) access: Access,
    /// What the description of the server says of it.
    pub(super) about: About,
    work: Work,
}

impl Operation {
    /// Answers GET and HEAD.
    pub(super) fn get(path: &'static str, access: Access, about: About, work: Work) -> Self {
        Operation { method: Method::GET, path, access, about, work }
    }

    pub(super) fn post(path: &'static str, access: Access, about: About, work: Work) -> Self {
        Operation { method: Method::POST, path, access, about, work }
    }

    pub(super) fn delete(path: &'static str, access: Access, about: About, work: Work) -> Self {
        Operation { method: Method::DELETE, path, access, about, work }
    }
}

/// A request that has found its operation, and was let through.
pub(super) struct Request {
    pub(super) shared: Arc<Shared>,
    /// What is behind the question mark, if there is one.
    pub(super) query: Option<String>,
    pub(super) headers: HeaderMap,
    shares: Option<SharesConnection>,
    body: Body,
}

impl Request {
    /// Room for one more who watches, if there is some.
    pub(super) fn seat(&self) -> Option<OwnedSemaphorePermit> {
        let seats = match self.shares {
            Some(SharesConnection) => &self.shared.watchers_sharing,
            None => &self.shared.watchers,
        };
        seats.clone().try_acquire_owned().ok()
    }
}

/// What answers a request.
pub(super) fn asked<W, F>(work: W) -> Work
where
    W: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Handled> + Send + 'static,
{
    Box::new(move |request| Box::pin(work(request)))
}

/// What answers a request with a JSON body of at most `limit` bytes. The work is dropped when the client goes away.
pub(super) fn json<T, W, F>(limit: usize, work: W) -> Work
where
    T: DeserializeOwned + Send + 'static,
    W: Fn(Arc<Shared>, Received<T>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Handled> + Send + 'static,
{
    asked(move |request: Request| {
        let work = work.clone();
        async move {
            let (shared, body) = received(request, limit).await?;
            work(shared, body.read().await?).await
        }
    })
}

/// What answers a request with a spec. Once it has arrived the work goes on, whether the client waits for the answer
/// or not. Problems of the body have the form of the route.
pub(super) fn spec<T, W, F>(form: fn(Problem) -> Problem, work: W) -> Work
where
    T: DeserializeOwned + Send + 'static,
    W: Fn(Arc<Shared>, Received<T>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Handled> + Send + 'static,
{
    asked(move |request: Request| {
        let work = work.clone();
        async move {
            let (shared, body) = received(request, limits::HTTP_CONFIGURE_BYTES).await.map_err(form)?;
            detached(async move { work(shared, body.read().await.map_err(form)?).await }).await
        }
    })
}

/// The body, which is taken in once it is known that the client may send it.
async fn received(request: Request, limit: usize) -> Result<(Arc<Shared>, Unread), Problem> {
    let Request { shared, headers, body, .. } = request;
    let body = shared.bodies.receive(&headers, body, limit).await?;
    Ok((shared, body))
}

/// Work that goes on when the client goes away, because dropping the handler does not drop it.
pub(super) async fn detached(work: impl Future<Output = Handled> + Send + 'static) -> Handled {
    tokio::spawn(work.in_current_span()).await.unwrap_or_else(|_| Err(Problem::bug()))
}

/// The answer to a request that reaches no operation: there are too many, or it came too early.
pub(super) fn instead(method: &Method, headers: &HeaderMap, answer: Handled) -> Response {
    let id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    stamp(for_method(method, answer.into_response()), &id.map_or_else(new_request_id, str::to_owned))
}

/// All that one server serves.
pub(super) fn serve(side: Side, context: Context, operations: Vec<Operation>) -> BoxedFilter<(Response,)> {
    let document = openapi::document(side, &context.auth, &operations).to_string().into();
    let shared = Arc::new(Shared {
        context,
        document,
        watchers: Arc::new(Semaphore::new(server::places() / 2)),
        watchers_sharing: Arc::new(Semaphore::new(limits::EVENTS_STREAMS)),
        bodies: Room::new(),
    });
    let table = Arc::new(Table::new(operations));
    warp::method()
        .and(warp::path::full())
        .and(warp::header::headers_cloned())
        .and(query())
        .and(warp::ext::optional())
        .and(warp::body::stream())
        .then(move |method, path, headers: HeaderMap, query, shares, body| {
            let (shared, table) = (shared.clone(), table.clone());
            async move {
                // The id must be readable, because it goes into the log.
                let id = match headers.get(REQUEST_ID).map(HeaderValue::to_str) {
                    Some(Ok(id)) => id.to_owned(),
                    Some(Err(_)) => return stamp(response::unreadable_request_id(), &new_request_id()),
                    None => new_request_id(),
                };
                let seen = Seen::new(id, method, path);
                let response = match table.find(&seen.method, seen.path.as_str()) {
                    Ok(operation) => {
                        let request = Request { shared, query, headers, shares, body: whole(body) };
                        for_method(&seen.method, operation.run(request).await.into_response())
                    }
                    Err(missing) => response::not_routed(missing),
                };
                seen.answer(response)
            }
        })
        .boxed()
}

/// The same, without its body for HEAD; hyper leaves it out by itself over HTTP/1 only.
fn for_method(method: &Method, response: Response) -> Response {
    if method != Method::HEAD {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    Response::from_parts(parts, Response::default().into_body())
}

impl Operation {
    async fn run(&self, request: Request) -> Handled {
        self.access.check(&request.shared, &request.headers)?;
        (self.work)(request).await
    }
}

/// Pieces of a body that own their bytes; those which hyper hands out do, so nothing is copied.
fn whole<B: Buf + Send>(body: impl Stream<Item = Result<B, warp::Error>> + Send + 'static) -> Body {
    Box::pin(body.map(|piece| piece.map(|mut piece| piece.copy_to_bytes(piece.remaining()))))
}

/// Operations by path.
struct Table {
    exact: HashMap<&'static str, Endpoint>,
    /// By the directory they are below, with its slash.
    below: Vec<(&'static str, Endpoint)>,
}

/// All that one path serves.
struct Endpoint {
    allow: HeaderValue,
    operations: Vec<Operation>,
}

/// Why a request finds no operation.
#[derive(Debug)]
pub(super) enum Missing {
    /// There is no such path.
    Path,
    /// There is, with these methods.
    Method(HeaderValue),
}

impl Table {
    fn new(operations: Vec<Operation>) -> Self {
        let mut table = Table { exact: HashMap::new(), below: Vec::new() };
        let mut paths: Vec<Vec<Operation>> = Vec::new();
        for operation in operations {
            match paths.iter_mut().find(|path| path[0].path == operation.path) {
                Some(path) => path.push(operation),
                None => paths.push(vec![operation]),
            }
        }
        for operations in paths {
            let path = operations[0].path;
            let endpoint = Endpoint { allow: allow(&operations), operations };
            match path.split_once(REST) {
                Some((directory, _)) => table.below.push((directory, endpoint)),
                None => {
                    table.exact.insert(path, endpoint);
                }
            }
        }
        table
    }

    fn find(&self, method: &Method, path: &str) -> Result<&Operation, Missing> {
        let below = || {
            let fits = |directory: &str| path.strip_prefix(directory).is_some_and(|rest| !rest.is_empty());
            self.below.iter().find(|(directory, _)| fits(directory)).map(|(_, endpoint)| endpoint)
        };
        let endpoint = self.exact.get(path).or_else(below).ok_or(Missing::Path)?;
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let found = endpoint.operations.iter().find(|operation| operation.method == *method);
        found.ok_or_else(|| Missing::Method(endpoint.allow.clone()))
    }
}

/// The methods of one path, as the header `allow` lists them.
fn allow(operations: &[Operation]) -> HeaderValue {
    let names = operations.iter().map(|operation| match operation.method {
        Method::GET => "GET,HEAD",
        ref method => method.as_str(),
    });
    let names: Vec<&str> = names.collect();
    HeaderValue::from_str(&names.join(",")).expect("methods are ASCII")
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
        let path = telemetry::trace::cut(seen.path.as_str());
        if seen.reads() {
            tracing::debug!(request_id = seen.id, method = %seen.method, path, "request");
        } else {
            tracing::info!(request_id = seen.id, method = %seen.method, path, "request");
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
