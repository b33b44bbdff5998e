//! OpenTelemetry traces: spans to a collector, over OTLP as protobuf over HTTP.
//!
//! Off unless an endpoint is named by `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, and with
//! `OTEL_SDK_DISABLED=true`. The original sends to `localhost:4318` unless told not to; a compute without a collector
//! would then try in vain for ever, and say so. The other variables are those of the SDK.
//!
//! A collector is never waited for: spans go by a bounded queue to a thread of their own, and what it cannot get rid of
//! is lost. At the end that thread gets a moment for the rest, and only if the collector has answered before.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;
use warp::http::{HeaderMap, Version};

use super::chain;
use crate::control_plane::trusting_client;
use crate::limits;

const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const TIMEOUTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];

/// The name of the span of a request.
pub(super) const HTTP: &str = "HTTP";

/// Whether anybody looks at parents that come from outside.
static ON: AtomicBool = AtomicBool::new(false);

/// The way to the collector.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    collector: Arc<Collector>,
}

impl Traces {
    /// What the environment asks for, if it asks for traces.
    ///
    /// # Errors
    /// In words, if it asks for something that cannot be done. There are no traces then.
    pub fn begin() -> Result<Option<Self>, String> {
        let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value == "true");
        let Some(endpoint) = ENDPOINTS.into_iter().find_map(variable).filter(|_| !disabled) else {
            return Ok(None);
        };
        let collector = Arc::new(Collector::new(&endpoint)?);
        let exporter = SpanExporter::builder()
            .with_http()
            .with_shared_http_client(collector.clone())
            .build()
            .map_err(|error| chain(&error))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder().with_service_name("compute_ctl").build())
            .build();
        ON.store(true, Ordering::Relaxed);
        Ok(Some(Traces { provider, collector }))
    }

    /// What makes OpenTelemetry's spans of ours.
    pub(super) fn layer<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("global"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .boxed()
    }

    /// Sends what is left, if the collector takes it soon.
    pub fn end(self) {
        let bound = match self.collector.known() {
            Known::Answers => limits::TRACE_FLUSH,
            Known::Nothing => limits::TRACE_FLUSH_UNKNOWN,
            // The subscriber holds what belongs to it, so that nothing ends, and nothing is waited for.
            Known::Fails => return,
        };
        if self.provider.shutdown_with_timeout(bound).is_err() {
            tracing::debug!("the collector of traces did not take the last ones");
        }
    }
}

/// The span of a request to one of our servers. It tells nothing of what the headers carry, tokens for one, and continues
/// the trace that they name.
/// Nothing where nobody would see it: clients poll.
pub(crate) fn request<B>(request: &warp::http::Request<B>) -> Span {
    if !ON.load(Ordering::Relaxed) && !super::log::is_json() {
        return Span::none();
    }
    let uri = request.uri();
    let span = tracing::info_span!(
        parent: None,
        HTTP,
        http.request.method = request.method().as_str(),
        network.protocol.name = "http",
        network.protocol.version = protocol(request.version()),
        otel.kind = "server",
        url.path = cut(uri.path()),
        url.query = uri.query().map(|query| cut(&shown(query)).to_owned()),
        http.response.status_code = tracing::field::Empty,
    );
    continue_request(&span, request.headers());
    span
}

/// As much of an address as anybody wants to read: whoever sends a longer one shall not fill logs with it.
pub(crate) fn cut(text: &str) -> &str {
    text.char_indices().nth(limits::TRACE_URL).map_or(text, |(end, _)| &text[..end])
}

/// A query without what no route knows: somebody may have put a token there.
fn shown(query: &str) -> String {
    const KNOWN: [&str; 7] =
        ["mode", "if_idle", "limit", "last_event_id", "database", "is_library", "from_endpoint"];
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if !KNOWN.contains(&name) => format!("{name}=…"),
        None if !KNOWN.contains(&pair) => "…".to_owned(),
        _ => pair.to_owned(),
    });
    pairs.collect::<Vec<_>>().join("&")
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

fn continue_request(span: &Span, headers: &HeaderMap) {
    if ON.load(Ordering::Relaxed) && headers.contains_key("traceparent") {
        let context = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
        // There is no other way to fail than a span nobody looks at.
        let _ = span.set_parent(context);
    }
}

/// Has a span continue the trace that this process was started in, if its environment says so.
pub(crate) fn continue_environment(span: &Span) {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    let carried = [("TRACEPARENT", "traceparent"), ("TRACESTATE", "tracestate")];
    let carrier: HashMap<String, String> =
        carried.into_iter().filter_map(|(name, key)| Some((key.to_owned(), variable(name)?))).collect();
    if carrier.contains_key("traceparent") {
        let _ = span.set_parent(TraceContextPropagator::new().extract(&carrier));
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What is known of the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Known {
    Nothing,
    Answers,
    Fails,
}

/// Sends requests from the exporter's thread, which has no runtime of its own.
struct Collector {
    client: reqwest::Client,
    runtime: Mutex<tokio::runtime::Runtime>,
    known: AtomicU8,
}

impl Collector {
    fn new(endpoint: &str) -> Result<Self, String> {
        let timeout = TIMEOUTS.into_iter().find_map(|name| variable(name)?.parse().ok());
        let timeout = timeout.map_or(limits::TRACE_EXPORT, Duration::from_millis);
        let settings = || {
            let redirects = reqwest::redirect::Policy::none();
            reqwest::Client::builder().timeout(timeout).redirect(redirects)
        };
        let client = trusting_client(endpoint, settings).map_err(|error| chain(&error.without_url()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = Mutex::new(runtime.map_err(|error| error.to_string())?);
        Ok(Collector { client, runtime, known: AtomicU8::new(Known::Nothing as u8) })
    }

    fn known(&self) -> Known {
        match self.known.load(Ordering::Relaxed) {
            known if known == Known::Answers as u8 => Known::Answers,
            known if known == Known::Fails as u8 => Known::Fails,
            _ => Known::Nothing,
        }
    }

    /// Notes how a request went; a change for the worse is told.
    fn note(&self, result: &Result<Response<Bytes>, HttpError>) {
        let (known, fault) = match result {
            Ok(response) if response.status().is_success() => (Known::Answers, String::new()),
            Ok(response) => (Known::Fails, format!("it answers {}", response.status())),
            Err(error) => (Known::Fails, chain(&**error)),
        };
        let before = self.known.swap(known as u8, Ordering::Relaxed);
        if known == Known::Fails && before != known as u8 {
            tracing::warn!("the collector of traces does not take them: {fault}");
        }
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        // Such a URL may hold a password.
        let response = self.client.execute(request).await.map_err(reqwest::Error::without_url)?;
        let status = response.status();
        let mut body = Vec::new();
        let mut response = response;
        while let Some(piece) = response.chunk().await.map_err(reqwest::Error::without_url)? {
            if body.len() + piece.len() > limits::TRACE_ANSWER {
                return Err("its answer is too long".into());
            }
            body.extend_from_slice(&piece);
        }
        Ok(Response::builder().status(status).body(body.into())?)
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("known", &self.known()).finish_non_exhaustive()
    }
}

impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> BoxFuture<'b, Result<Response<Bytes>, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        async move {
            // Blocks the exporter's thread, which has nothing else to do.
            let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
            let result = runtime.block_on(self.send(request));
            self.note(&result);
            result
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_query_only_what_routes_know_is_told() {
        for (query, told) in [
            ("mode=fast&if_idle=true", "mode=fast&if_idle=true"),
            ("mode&limit=3", "mode&limit=3"),
            ("token=abc&mode=fast", "token=…&mode=fast"),
            ("eyJhbGciOiJFZERTQSJ9.e30.c2ln", "…"),
            ("limit=3&eyJhbGciOiJFZERTQSJ9", "limit=3&…"),
        ] {
            assert_eq!(shown(query), told, "{query}");
        }
    }

    #[test]
    fn a_long_address_is_cut_between_two_letters() {
        assert_eq!(cut("/status"), "/status");
        assert_eq!(cut(&"é".repeat(limits::TRACE_URL + 1)), "é".repeat(limits::TRACE_URL));
    }
}
