//! A client of a running compute's external server, for the sub-commands that ask one.

use std::sync::OnceLock;
use std::time::Duration;
use std::{error, fmt, io};

use compute_states::ComputeStatus;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::timeout;

use crate::catalog::PlanDocument;
use crate::control_plane;
use crate::limits;
use crate::secret::Secret;

pub(super) mod events;

use events::Events;

/// A running compute.
#[derive(Clone)]
pub struct Compute {
    /// Base URL, with a slash at its end.
    base: Url,
    token: Option<Secret>,
    /// Made for the first request: to make one means to read all certificates that this machine trusts. The next request
    /// finds the connection of the one before.
    client: OnceLock<Client>,
}

/// Why a compute gave no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The token cannot be sent in a header.
    #[error("the token has characters that no header may have")]
    Token,
    /// The client cannot be made: no trusted certificates on this machine, most likely.
    #[error("no HTTP client")]
    Client(#[source] reqwest::Error),
    /// No connection, no answer in time, or an answer that broke off.
    #[error("no answer from the compute at {at}")]
    Transport {
        /// Scheme, host and port.
        at: String,
        /// Why.
        source: Box<dyn error::Error + Send + Sync>,
    },
    /// It said no.
    #[error("the compute at {at} answered {status}{}", with(.error))]
    Refused {
        /// Scheme, host and port.
        at: String,
        /// Its status.
        status: StatusCode,
        /// Its reason, if it gave one.
        error: Option<String>,
    },
    /// Longer than any answer.
    #[error("the answer of the compute at {at} has more than {} bytes", limits::PLAN_BYTES)]
    TooLong {
        /// Scheme, host and port.
        at: String,
    },
    /// Something else listens there, or another version.
    #[error("the answer of the compute at {at} is not what it should be: {fault}")]
    Format {
        /// Scheme, host and port.
        at: String,
        /// Where and what, without values.
        fault: String,
    },
}

fn with(error: &Option<String>) -> String {
    error.as_ref().map(|error| format!(": {error}")).unwrap_or_default()
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Without a slash at its beginning.
    pub(super) path: &'static str,
    pub(super) query: Vec<(&'static str, String)>,
    /// JSON.
    pub(super) body: Option<String>,
    /// How long it may take, answer included; for ever, if that is up to the compute's work.
    pub(super) within: Option<Duration>,
}

impl Request {
    /// Reads something that is at hand.
    pub(super) fn get(path: &'static str) -> Self {
        Request { method: Method::GET, ..Request::post(path, limits::CLIENT_READ) }
    }

    /// Has something done.
    pub(super) fn post(path: &'static str, within: impl Into<Option<Duration>>) -> Self {
        Request { method: Method::POST, path, query: Vec::new(), body: None, within: within.into() }
    }
}

/// A yes.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
}

/// What `/status` says. Fields that the original has not are optional, and may be of any shape.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Status {
    pub(super) start_time: String,
    pub(super) tenant: Option<String>,
    pub(super) timeline: Option<String>,
    pub(super) status: ComputeStatus,
    pub(super) last_active: Option<String>,
    pub(super) error: Option<String>,
    #[serde(flatten)]
    pub(super) more: serde_json::Map<String, serde_json::Value>,
}

/// The body of a refusal.
#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Compute {
    /// A compute whose external server is at `url`. The error says what is wrong without quoting it.
    pub(super) fn new(url: &str, token: Option<Secret>) -> Result<Self, String> {
        let base = format!("{}/", url.trim_end_matches('/'));
        let base = Url::parse(&base).map_err(|error| error.to_string())?;
        if !["http", "https"].contains(&base.scheme()) || base.host().is_none() {
            return Err("an http or https URL is needed".to_owned());
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err("query and fragment have no place in it".to_owned());
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err("user and password have no place in it".to_owned());
        }
        Ok(Self { base, token, client: OnceLock::new() })
    }

    /// What the compute would change if this config, as JSON, was sent to `/configure`. Takes at most
    /// [`limits::PLAN`].
    pub(super) async fn plan(&self, config: String) -> Result<PlanDocument, ClientError> {
        let answer = self.ask(Request { body: Some(config), ..Request::post("plan", limits::PLAN) }).await?;
        self.decoded(&answer.body)
    }

    /// What the compute says of itself.
    pub(super) async fn status(&self) -> Result<(Status, Answer), ClientError> {
        let answer = self.ask(Request::get("status")).await?;
        Ok((self.decoded(&answer.body)?, answer))
    }

    /// What a probe says; nothing from a compute that has none, as the original.
    pub(super) async fn probe(&self, path: &'static str) -> Result<Option<bool>, ClientError> {
        match self.ask(Request::get(path)).await {
            Ok(_) => Ok(Some(true)),
            Err(ClientError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, .. }) => Ok(Some(false)),
            Err(ClientError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether by its own description it knows this field in the query of this route. The original, which describes
    /// nothing of itself, ignores fields that it does not know.
    pub(super) async fn knows(&self, route: &str, field: &str) -> Result<bool, ClientError> {
        let answer = match self.ask(Request::get("openapi.json")).await {
            Ok(answer) => answer,
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let description: serde_json::Value = self.decoded(&answer.body)?;
        let parameters = description["paths"][route]["post"]["parameters"].as_array();
        Ok(parameters.into_iter().flatten().any(|parameter| parameter["name"] == *field))
    }

    /// Its changes of state as they happen, those after `last` first if it still knows them. Nothing if it has no
    /// such route, as the original has not. Their beginning is bounded, for it is at hand; the rest is not.
    pub(super) async fn events(&self, last: Option<&str>) -> Result<Option<Events>, ClientError> {
        let request = Request { within: None, ..Request::get("events") };
        let mut builder = self.prepared(&request)?.header(ACCEPT, "text/event-stream");
        if let Some(last) = last {
            builder = builder.header("last-event-id", last);
        }
        let begun = async {
            let answer = builder.send().await.map_err(|error| self.transport(error))?;
            match answer.status() {
                StatusCode::OK => Ok(Some(Events::new(answer))),
                // Without them there is still the status, which is asked for every second anyway.
                StatusCode::NOT_FOUND | StatusCode::NOT_IMPLEMENTED => Ok(None),
                status => {
                    let headers = answer.headers().clone();
                    Err(self.refused(status, &headers, &self.body(answer).await?))
                }
            }
        };
        timeout(limits::CLIENT_READ, begun).await.unwrap_or_else(|_| {
            let within = format!("nothing came within {:?}", limits::CLIENT_READ);
            let source = io::Error::new(io::ErrorKind::TimedOut, within).into();
            Err(ClientError::Transport { at: self.at(), source })
        })
    }

    /// Asks, and takes any 2xx for a yes. A redirect is none: nothing is asked of any other server than the one named,
    /// and what follows one that answers a POST is often a GET.
    pub(super) async fn ask(&self, request: Request) -> Result<Answer, ClientError> {
        let answer = self.prepared(&request)?.send().await.map_err(|error| self.transport(error))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = self.body(answer).await?;
        match status.is_success() {
            true => Ok(Answer { status, body }),
            false => Err(self.refused(status, &headers, &body)),
        }
    }

    fn prepared(&self, request: &Request) -> Result<RequestBuilder, ClientError> {
        let mut url = self.base.join(request.path).unwrap_or_else(|_| self.base.clone());
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        let mut builder = self.client()?.request(request.method.clone(), url);
        if let Some(within) = request.within {
            builder = builder.timeout(within);
        }
        if let Some(body) = &request.body {
            builder = builder.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        if let Some(token) = &self.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.reveal()))
                .map_err(|_| ClientError::Token)?;
            value.set_sensitive(true);
            builder = builder.header(AUTHORIZATION, value);
        }
        Ok(builder)
    }

    fn client(&self) -> Result<&Client, ClientError> {
        if let Some(made) = self.client.get() {
            return Ok(made);
        }
        let settings = || Client::builder().connect_timeout(limits::CLIENT_CONNECT).redirect(Policy::none());
        let made =
            control_plane::trusting_client(self.base.as_str(), settings).map_err(ClientError::Client)?;
        Ok(self.client.get_or_init(|| made))
    }

    /// A body as what it should be.
    pub(super) fn decoded<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        control_plane::decode(body).map_err(|fault| ClientError::Format { at: self.at(), fault })
    }

    fn refused(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ClientError {
        let place = headers.get(LOCATION).filter(|_| status.is_redirection());
        if let Some(place) = place {
            let error = Some(format!("it points to {}", String::from_utf8_lossy(place.as_bytes())));
            return ClientError::Refused { at: self.at(), status, error };
        }
        let refusal = serde_json::from_slice(body).map(|Refusal { error }| error);
        // Faults of a query are bare text in the original, and here.
        let error = refusal.ok().or_else(|| {
            let text = String::from_utf8_lossy(body).trim().to_owned();
            (!text.is_empty()).then_some(text)
        });
        ClientError::Refused { at: self.at(), status, error }
    }

    async fn body(&self, mut answer: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| self.transport(error))? {
            if body.len() + piece.len() > limits::PLAN_BYTES {
                return Err(ClientError::TooLong { at: self.at() });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn transport(&self, error: reqwest::Error) -> ClientError {
        ClientError::Transport { at: self.at(), source: error.without_url().into() }
    }

    /// Scheme, host and port.
    pub(super) fn at(&self) -> String {
        self.base.origin().ascii_serialization()
    }
}

/// Without the token.
impl fmt::Debug for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Compute").field(&self.at()).finish()
    }
}
