//! Fetching the spec: from the control plane, or from the file that stands in for it.
//!
//! One request, a few attempts (cli, section 4; protocols/control-plane, sections 2 to 4). What is fetched is
//! not interpreted here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use compute_states::FailureClass;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Client, ClientBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::secret::{Secret, without_values};
use crate::spec::document::{ComputeConfig, ControlPlaneComputeStatus, ControlPlaneConfigResponse};
use crate::spec::fault::{self, ConfigError, Shape};
use crate::telemetry::Metrics;

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
}

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
    /// No connection, no answer in time, or an answer that broke off.
    #[error("could not perform the request to the control plane")]
    Transport(#[source] reqwest::Error),
    /// The control plane is not there at the moment.
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

/// How an attempt ended badly.
enum Attempt {
    Again(AttemptError),
    Final(FetchError),
}

impl From<reqwest::Error> for Attempt {
    fn from(error: reqwest::Error) -> Self {
        // A URL may hold a password, and everybody knows which one was asked.
        Attempt::Again(AttemptError::Transport(error.without_url()))
    }
}

impl Source {
    /// A control plane at `base`, asked on behalf of `compute_id`. The two are put together as they stand, as in
    /// the original: ids of one deployment have a slash in them.
    pub fn control_plane(base: &str, compute_id: &str) -> Self {
        let url = format!("{base}/compute/api/v2/computes/{compute_id}/spec");
        Source::ControlPlane(ControlPlane { url, token: token_from_environment })
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
        let client = client(&self.url, limits::CONTROL_PLANE_REQUEST).map_err(FetchError::Client)?;
        let mut attempts = 1;
        loop {
            let error = match self.attempt(&client, &authorization, metrics).await {
                Ok(config) => return Ok(config),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(error)) => error,
            };
            if attempts == limits::CONTROL_PLANE_ATTEMPTS {
                return Err(FetchError::Exhausted(error));
            }
            tracing::warn!("attempt {attempts} to get the spec failed: {error}");
            attempts += 1;
            sleep(limits::CONTROL_PLANE_PAUSE).await;
        }
    }

    async fn attempt(
        &self,
        client: &Client,
        authorization: &HeaderValue,
        metrics: &Metrics,
    ) -> Result<ComputeConfig, Attempt> {
        let answer = client.get(&self.url).header(AUTHORIZATION, authorization).send().await;
        let label = answer.as_ref().map_or(NO_STATUS.to_owned(), |answer| answer.status().to_string());
        metrics.control_plane_request(RPC, &label);
        let answer = answer?;
        match answer.status() {
            StatusCode::OK => {}
            status @ (StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE) => {
                return Err(Attempt::Again(AttemptError::Unavailable(status)));
            }
            status => return Err(Attempt::Final(FetchError::Status(status))),
        }
        let body = body(answer).await?;
        let ControlPlaneConfigResponse { spec, status, compute_ctl_config } =
            decode(&body).map_err(|fault| Attempt::Again(AttemptError::Format(fault)))?;
        if spec.is_none() && status == ControlPlaneComputeStatus::Attached {
            return Err(Attempt::Final(FetchError::AttachedWithoutSpec));
        }
        Ok(ComputeConfig { spec, compute_ctl_config })
    }
}

async fn body(mut answer: Response) -> Result<Vec<u8>, Attempt> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        if body.len() + piece.len() > limits::CONTROL_PLANE_BYTES {
            return Err(Attempt::Again(AttemptError::TooLong));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

pub(crate) fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(json))
        .map_err(|error| format!("{}: {}", error.path(), without_values(error.inner())))
}

/// For requests that are over, answer included, within `timeout`.
pub(crate) fn client(url: &str, timeout: Duration) -> Result<Client, reqwest::Error> {
    trusting_client(url, || Client::builder().timeout(timeout))
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
mod tests {
    use std::error::Error;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::TcpListener;
    use tokio::sync::Notify;
    use warp::Filter;
    use warp::http::StatusCode as Status;
    use warp::reply::{Reply, with_status};

    use super::*;

    const EMPTY: &str = r#"{"status":"empty","spec":null,"compute_ctl_config":{"jwks":{"keys":[]}}}"#;
    const ATTACHED: &str = r#"{"status":"attached","compute_ctl_config":{"jwks":{"keys":[]}},"spec":{
        "format_version":1.0,"suspend_timeout_seconds":-1,"cluster":{"roles":[],"databases":[]}}}"#;

    /// A control plane that gives these answers, one after another, and then the last one for ever. A `None`
    /// is no answer at all.
    async fn fake(answers: Vec<Option<(Status, &'static str)>>) -> (Source, Arc<AtomicUsize>, Arc<Notify>) {
        init_tls();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
        let base = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (asked, arrived) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, arrival) = (asked.clone(), arrived.clone());
        let routes = warp::path!("compute" / "api" / "v2" / "computes" / "ep" / "0" / "spec")
            .and(warp::get())
            .and(warp::header::exact("authorization", "Bearer token-of-the-test"))
            .then(move || {
                let index = count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
                let answer = answers[index];
                arrival.notify_one();
                async move {
                    match answer {
                        Some((status, body)) => with_status(body, status).into_response(),
                        None => std::future::pending().await,
                    }
                }
            });
        tokio::spawn(warp::serve(routes).incoming(listener).run());
        let Source::ControlPlane(mut control_plane) = Source::control_plane(&base, "ep/0") else {
            unreachable!("it was made as one")
        };
        control_plane.token = || Secret::new("token-of-the-test");
        (Source::ControlPlane(control_plane), asked, arrived)
    }

    async fn fetch(source: &Source, metrics: &Metrics) -> Result<ComputeConfig, FetchError> {
        source.fetch(metrics, &CancellationToken::new()).await
    }

    #[track_caller]
    fn assert_counted(metrics: &Metrics, http_status: &str, times: usize) {
        let text = metrics.render(0).expect("it can be encoded");
        let line = format!(
            r#"compute_ctl_cplane_requests_total{{http_status="{http_status}",rpc="GetConfig"}} {times}"#
        );
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }

    #[tokio::test]
    async fn an_attached_compute_gets_its_spec() {
        let (source, asked, _) = fake(vec![Some((Status::OK, ATTACHED))]).await;
        let metrics = Metrics::new();
        let config = fetch(&source, &metrics).await.expect("it is all right");
        assert!(config.spec.is_some());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_counted(&metrics, "200 OK", 1);
    }

    #[tokio::test]
    async fn an_empty_compute_gets_none() {
        let (source, ..) = fake(vec![Some((Status::OK, EMPTY))]).await;
        assert!(fetch(&source, &Metrics::new()).await.expect("it is all right").spec.is_none());
    }

    #[tokio::test]
    async fn a_control_plane_that_restarts_is_asked_again() {
        let (source, asked, _) = fake(vec![
            Some((Status::SERVICE_UNAVAILABLE, "")),
            Some((Status::BAD_GATEWAY, "")),
            Some((Status::OK, ATTACHED)),
        ])
        .await;
        let metrics = Metrics::new();
        assert!(fetch(&source, &metrics).await.expect("the third time").spec.is_some());
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        assert_counted(&metrics, "503 Service Unavailable", 1);
        assert_counted(&metrics, "502 Bad Gateway", 1);
        assert_counted(&metrics, "200 OK", 1);
    }

    #[tokio::test]
    async fn the_third_failure_is_the_last() {
        let (source, asked, _) = fake(vec![Some((Status::SERVICE_UNAVAILABLE, ""))]).await;
        let error = fetch(&source, &Metrics::new()).await.expect_err("it never answers");
        assert_eq!(error.to_string(), "Exhausted all attempts to retrieve the config from the control plane");
        assert_eq!(error.class(), FailureClass::Transient);
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn garbage_is_worth_another_attempt_and_is_not_quoted() {
        let wrong = r#"{"status":"empty","spec":"hunter2","compute_ctl_config":{"jwks":{"keys":[]}}}"#;
        let (source, asked, _) = fake(vec![Some((Status::OK, "<html>")), Some((Status::OK, wrong))]).await;
        let metrics = Metrics::new();
        let error = fetch(&source, &metrics).await.expect_err("it is never right");
        let cause = error.source().expect("the last attempt").to_string();
        assert!(cause.contains("spec: invalid type, expected struct ComputeSpec"), "{cause}");
        assert!(!cause.contains("hunter2"), "{cause}");
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        assert_counted(&metrics, "200 OK", 3);
    }

    #[tokio::test]
    async fn any_other_status_is_final() {
        for (status, text) in [
            (Status::NOT_FOUND, "404 Not Found"),
            (Status::UNAUTHORIZED, "401 Unauthorized"),
            (Status::INTERNAL_SERVER_ERROR, "500 Internal Server Error"),
            (Status::GATEWAY_TIMEOUT, "504 Gateway Timeout"),
        ] {
            let (source, asked, _) = fake(vec![Some((status, ATTACHED))]).await;
            let metrics = Metrics::new();
            let error = fetch(&source, &metrics).await.expect_err("it said no");
            assert_eq!(error.to_string(), format!("unexpected control plane response status code: {text}"));
            assert_eq!(error.class(), FailureClass::Permanent);
            assert_eq!(asked.load(Ordering::SeqCst), 1);
            assert_counted(&metrics, text, 1);
        }
    }

    #[tokio::test]
    async fn attached_without_a_spec_is_final() {
        let body = r#"{"status":"attached","compute_ctl_config":{"jwks":{"keys":[]}}}"#;
        let (source, asked, _) = fake(vec![Some((Status::OK, body))]).await;
        let error = fetch(&source, &Metrics::new()).await.expect_err("it contradicts itself");
        assert_eq!(error.to_string(), "compute is attached, but spec is empty");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_fetch_that_hangs_ends_when_it_is_cancelled() {
        let (source, _, arrived) = fake(vec![None]).await;
        let (metrics, token) = (Metrics::new(), CancellationToken::new());
        let cancel = async {
            arrived.notified().await;
            token.cancel();
        };
        let (result, ()) = tokio::join!(source.fetch(&metrics, &token), cancel);
        assert!(matches!(result, Err(FetchError::Cancelled)), "{result:?}");
    }

    #[tokio::test]
    async fn nobody_there_is_counted_and_names_no_url() {
        init_tls();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
        let base = format!("http://user:hunter2@{}", listener.local_addr().expect("it is bound"));
        drop(listener);
        let metrics = Metrics::new();
        let error = fetch(&Source::control_plane(&base, "ep"), &metrics).await.expect_err("nobody listens");
        let chain = crate::engine::WorkError::new(error.class(), &error).text;
        assert!(chain.contains("Connection refused"), "{chain}");
        assert!(!chain.contains("hunter2"), "{chain}");
        assert_counted(&metrics, "unknown", 3);
    }

    #[tokio::test]
    async fn a_file_is_read_anew_each_time() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("config.json");
        let source = Source::File { path: path.clone(), shape: Shape::Config };
        let metrics = Metrics::new();
        let error = fetch(&source, &metrics).await.expect_err("there is none");
        assert!(error.to_string().contains("config.json"), "{error}");
        for (text, attached) in [(ATTACHED, true), (EMPTY, false), (ATTACHED, true)] {
            std::fs::write(&path, text).expect("it can be written");
            let config = fetch(&source, &metrics).await.expect("it is all right");
            assert_eq!(config.spec.is_some(), attached);
        }
        std::fs::write(&path, "{\"spec\":").expect("it can be written");
        let error = fetch(&source, &metrics).await.expect_err("it is only half a file");
        assert_eq!(error.class(), FailureClass::Transient);
        assert!(error.to_string().contains("EOF while parsing"), "{error}");
    }

    #[test]
    fn loopback_is_recognised_in_all_its_forms() {
        for (url, expected) in [
            ("http://127.0.0.1:80/x", true),
            ("http://[::1]:80/x", true),
            ("http://localhost/x", true),
            ("http://control.example/x", false),
            ("http://10.0.0.1/x", false),
        ] {
            assert_eq!(is_loopback(url), expected, "{url}");
        }
    }
}
