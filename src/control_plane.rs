//! Fetching the spec: from the control plane, or from the file that stands in for it.
//!
//! One request, a few attempts (cli, section 4; protocols/control-plane, sections 2 to 4). What an answer means is
//! in [`answer`]; what is fetched is not interpreted here.
//!
//! On the wire this is the original: base and id are put together as they stand, the header is sent even without
//! a token (`Bearer ` and nothing after it, which a server may tell from no header at all), environment variables
//! for proxies are honoured. Deliberately different is what helps when something is wrong: 429 and 504 pass too,
//! pauses grow and have jitter, few redirects are followed and never with the token to another host, the answer
//! has a longest length, and the system's certificates are trusted.

pub mod answer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use compute_states::FailureClass;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response, StatusCode};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::secret::Secret;
use crate::spec::document::ComputeConfig;
use crate::spec::fault::{self, ConfigError, Shape};
use crate::telemetry::{self, Metrics};

use answer::Rejection;
pub(crate) use answer::decode;

/// Holds the bearer token for the control plane. Read for each fetch; unset is the empty token.
pub const TOKEN_VARIABLE: &str = "NEON_CONTROL_PLANE_TOKEN";

/// Label of the request in the metrics.
const RPC: &str = "GetConfig";

/// Label of an attempt that got no answer.
const NO_STATUS: &str = "unknown";

/// Where the spec comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, read anew for each fetch.
    File {
        /// Its path.
        path: PathBuf,
        /// What it may hold.
        shape: Shape,
    },
    /// A control plane.
    ControlPlane(ControlPlane),
}

/// A control plane, and who asks it.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    url: String,
    token: fn() -> Secret,
    client: Kept,
}

/// The client of the last fetch, and when it was made.
type Kept = Arc<Mutex<Option<(Instant, Client)>>>;

/// Why there is no spec.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The file cannot be read, or is not what it should be.
    #[error(transparent)]
    File(ConfigError),
    /// The token cannot be sent in a header.
    #[error("the token in {TOKEN_VARIABLE} has characters that no header may have")]
    Token,
    /// The client cannot be made: no trusted certificates on this machine, most likely.
    #[error("no HTTP client for the control plane")]
    Client(#[source] reqwest::Error),
    /// The control plane said no, and will again.
    #[error("unexpected control plane response status code: {0}")]
    Status(StatusCode),
    /// The control plane contradicts itself.
    #[error("compute is attached, but spec is empty")]
    AttachedWithoutSpec,
    /// No attempt got through.
    #[error("Exhausted all attempts to retrieve the config from the control plane")]
    Exhausted(#[source] AttemptError),
    /// The caller changed its mind.
    #[error("fetching the spec was cancelled")]
    Cancelled,
}

/// Why one attempt failed that was worth another.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// No connection, or an answer that broke off.
    #[error("could not perform the request to the control plane")]
    Transport(#[source] reqwest::Error),
    /// Not done in time, whatever of it had come.
    #[error("the control plane's answer was not there within {:?}", limits::CONTROL_PLANE_REQUEST)]
    TimedOut,
    /// From one address to the next, and so on.
    #[error("the control plane redirects more than {} times", limits::CONTROL_PLANE_REDIRECTS)]
    Redirects,
    /// The control plane is not there at the moment, or has too much to do.
    #[error("the control plane is unavailable: {0}")]
    Unavailable(StatusCode),
    /// The answer is not what it should be: where and what, without values.
    #[error("could not decode the control plane's answer: {0}")]
    Format(String),
    /// The answer is longer than any spec.
    #[error("the control plane's answer has more than {} bytes", limits::CONTROL_PLANE_BYTES)]
    TooLong,
}

impl FetchError {
    /// What the machine gets to see.
    pub fn class(&self) -> FailureClass {
        match self {
            // A file is replaced while we read it, a control plane restarts.
            FetchError::File(_) | FetchError::Exhausted(_) => FailureClass::Transient,
            FetchError::Token
            | FetchError::Client(_)
            | FetchError::Status(_)
            | FetchError::AttachedWithoutSpec => FailureClass::Permanent,
            FetchError::Cancelled => FailureClass::Cancelled,
        }
    }
}

impl From<reqwest::Error> for Rejection {
    fn from(error: reqwest::Error) -> Self {
        let error = match error {
            error if error.is_redirect() => AttemptError::Redirects,
            error if error.is_timeout() => AttemptError::TimedOut,
            // A URL may hold a password, and everybody knows which one was asked.
            error => AttemptError::Transport(error.without_url()),
        };
        Rejection::Again { error, after: Duration::ZERO }
    }
}

impl Source {
    /// A control plane at `base`, asked on behalf of `compute_id`. The two are put together as they stand, as in
    /// the original: ids of one deployment have a slash in them.
    pub fn control_plane(base: &str, compute_id: &str) -> Self {
        let url = format!("{base}/compute/api/v2/computes/{compute_id}/spec");
        Source::ControlPlane(ControlPlane { url, token: token_from_environment, client: Kept::default() })
    }

    /// Gets the config as it is now. No spec in it means that nothing is attached to this compute.
    ///
    /// # Errors
    /// See [`FetchError`]; [`FetchError::Cancelled`] soon after `token` is cancelled.
    pub async fn fetch(
        &self,
        metrics: &Metrics,
        token: &CancellationToken,
    ) -> Result<ComputeConfig, FetchError> {
        let fetch = async {
            match self {
                Source::File { path, shape } => read(path, *shape).await,
                Source::ControlPlane(control_plane) => control_plane.fetch(metrics).await,
            }
        };
        token.run_until_cancelled(fetch).await.unwrap_or(Err(FetchError::Cancelled))
    }
}

/// Chooses the one provider of cryptography, which every TLS client of the process uses. Call it first thing;
/// calls after the first are without effect.
pub fn init_tls() {
    // Somebody has been here before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Reads a file as it is read at the start, on a thread of its own: a file system may hang.
async fn read(path: &Path, shape: Shape) -> Result<ComputeConfig, FetchError> {
    let path = path.to_owned();
    let loaded = tokio::task::spawn_blocking(move || fault::load(&path, shape)).await;
    match loaded {
        Ok(Ok(checked)) => {
            for note in &checked.notes {
                tracing::warn!("{note}");
            }
            Ok(checked.config)
        }
        Ok(Err(error)) => Err(FetchError::File(error)),
        Err(_) => Err(FetchError::Cancelled),
    }
}

impl ControlPlane {
    async fn fetch(&self, metrics: &Metrics) -> Result<ComputeConfig, FetchError> {
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", (self.token)().reveal()))
            .map_err(|_| FetchError::Token)?;
        authorization.set_sensitive(true);
        let client = self.client().map_err(FetchError::Client)?;
        let mut attempts = 1;
        loop {
            let (error, after) = match self.attempt(&client, &authorization, metrics).await {
                Ok(config) => return Ok(config),
                Err(Rejection::Final(error)) => return Err(error),
                Err(Rejection::Again { error, after }) => (error, after),
            };
            if attempts == limits::CONTROL_PLANE_ATTEMPTS {
                return Err(FetchError::Exhausted(error));
            }
            tracing::warn!("attempt {attempts} to get the spec failed: {}", telemetry::chain(&error));
            sleep(pause(attempts, rand::random()).max(after)).await;
            attempts += 1;
        }
    }

    /// The client of an earlier fetch, unless that was long ago.
    fn client(&self) -> Result<Client, reqwest::Error> {
        // Every change is one assignment, so a panic elsewhere cannot have left half of one behind.
        let mut kept = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, client)) = &*kept
            && made.elapsed() < limits::CONTROL_PLANE_CLIENT
        {
            return Ok(client.clone());
        }
        let settings = || {
            // To another host the client takes no token along; nor need that one know who has sent us.
            let redirects = Policy::limited(limits::CONTROL_PLANE_REDIRECTS);
            let settings = Client::builder().redirect(redirects).referer(false);
            // Requests are rare, and a connection that has waited for the next one may be dead.
            settings.timeout(limits::CONTROL_PLANE_REQUEST).pool_max_idle_per_host(0)
        };
        let client = trusting_client(&self.url, settings)?;
        *kept = Some((Instant::now(), client.clone()));
        Ok(client)
    }

    async fn attempt(
        &self,
        client: &Client,
        authorization: &HeaderValue,
        metrics: &Metrics,
    ) -> Result<ComputeConfig, Rejection> {
        let answer = client.get(&self.url).header(AUTHORIZATION, authorization).send().await;
        let label = answer.as_ref().map_or(NO_STATUS.to_owned(), |answer| answer.status().to_string());
        metrics.control_plane_request(RPC, &label);
        let answer = answer?;
        answer::head(answer.status(), answer.headers())?;
        let text = body(answer).await?;
        // Tens of megabytes, perhaps: they are decoded on a thread of their own.
        let decoded = tokio::task::spawn_blocking(move || answer::body(&text)).await;
        decoded.unwrap_or(Err(Rejection::Final(FetchError::Cancelled)))
    }
}

/// The pause after so many attempts: doubled each time, and half of it to one and a half of it, so that all those who
/// lost the same control plane at once do not come back at once. `random` is evenly distributed.
fn pause(attempts: usize, random: u32) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    let pause = limits::CONTROL_PLANE_PAUSE.saturating_mul(2_u32.saturating_pow(doublings));
    let jitter = 0.5 + f64::from(random) / f64::from(u32::MAX);
    pause.min(limits::CONTROL_PLANE_PAUSE_MAX).mul_f64(jitter).min(limits::CONTROL_PLANE_PAUSE_MAX)
}

async fn body(mut answer: Response) -> Result<Vec<u8>, Rejection> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        if body.len() + piece.len() > limits::CONTROL_PLANE_BYTES {
            return Err(answer::too_long());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// Trusts what this machine trusts: the system's certificates, or those that `SSL_CERT_FILE` names. Unlike a
/// list compiled in, that includes an operator's own authority, and it is what reqwest brings along anyway.
pub(crate) fn trusting_client(
    url: &str,
    settings: impl Fn() -> ClientBuilder,
) -> Result<Client, reqwest::Error> {
    // Without it, no client can be made.
    init_tls();
    // No proxy stands between a machine and itself.
    let builder = || if is_loopback(url) { settings().no_proxy() } else { settings() };
    match builder().build() {
        // Plain HTTP needs no certificates, and a small image has none.
        Err(_) if !url.starts_with("https:") => builder().tls_certs_only([]).build(),
        made => made,
    }
}

fn is_loopback(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn token_from_environment() -> Secret {
    let token = std::env::var_os(TOKEN_VARIABLE).unwrap_or_default();
    Secret::new(token.to_string_lossy())
}

#[cfg(test)]
mod tests;
