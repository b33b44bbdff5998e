//! A client of a running compute's external server, for the sub-commands that ask one.

use std::fmt;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use thiserror::Error;

use crate::catalog::PlanDocument;
use crate::control_plane;
use crate::limits;
use crate::secret::Secret;

/// A running compute.
#[derive(Clone)]
pub struct Compute {
    /// Base URL, with a slash at its end.
    base: Url,
    token: Option<Secret>,
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
        source: reqwest::Error,
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
    /// Longer than any plan.
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
        Ok(Self { base, token })
    }

    /// What the compute would change if this config, as JSON, was sent to `/configure`. Takes at most
    /// [`limits::PLAN`].
    pub(super) async fn plan(&self, config: String) -> Result<PlanDocument, ClientError> {
        control_plane::init_tls();
        let url = self.base.join("plan").unwrap_or_else(|_| self.base.clone());
        let client = control_plane::client(url.as_str(), limits::PLAN).map_err(ClientError::Client)?;
        let mut request = client.post(url).header(CONTENT_TYPE, "application/json").body(config);
        if let Some(token) = &self.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.reveal()))
                .map_err(|_| ClientError::Token)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let answer = request.send().await.map_err(|error| self.transport(error))?;
        let status = answer.status();
        let body = self.body(answer).await?;
        if status != StatusCode::OK {
            let error = serde_json::from_slice(&body).ok().map(|Refusal { error }| error);
            return Err(ClientError::Refused { at: self.at(), status, error });
        }
        control_plane::decode(&body).map_err(|fault| ClientError::Format { at: self.at(), fault })
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
        ClientError::Transport { at: self.at(), source: error.without_url() }
    }

    fn at(&self) -> String {
        self.base.origin().ascii_serialization()
    }
}

/// Without the token.
impl fmt::Debug for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Compute").field(&self.at()).finish()
    }
}
