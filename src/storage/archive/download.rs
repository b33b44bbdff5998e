//! An archive over HTTP: one stream of bytes, whatever happens to the connections below it.
//!
//! A connection that breaks, or is silent for too long, is replaced by another one that asks for the rest
//! (`Range`), on condition that the archive is still the same (`If-Range`, with its strong `ETag` or its
//! `Last-Modified`). A server that sends all of it again is taken up on it, and what is known is skipped.
//! An archive that has changed in between is an error: half of it is on the disk already.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, stream};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED,
    RANGE,
};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::timeout;

use crate::control_plane::trusting_client;
use crate::limits;
use crate::secret::Secret;

/// How patient a download is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Attempts in a row without progress.
    pub attempts: u32,
    /// How long the server may be silent.
    pub idle: Duration,
    /// Pause before the second attempt, doubled with each further one.
    pub pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { attempts: limits::ARCHIVE_ATTEMPTS, idle: limits::ARCHIVE_IDLE, pause: limits::ARCHIVE_PAUSE }
    }
}

/// Why an archive could not be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The client cannot be made: no trusted certificates on this machine, most likely.
    #[error("no HTTP client for the archive")]
    Client(#[source] reqwest::Error),
    /// The token cannot be sent in a header.
    #[error("the token for the archive has characters that no header may have")]
    Token,
    /// The server said no, and will again.
    #[error("the server answers {0} to the request for the archive")]
    Status(StatusCode),
    /// Too many redirects, or one from https to something else.
    #[error("a redirect of the archive's server is not followed")]
    Redirect(#[source] reqwest::Error),
    /// Another archive is there now.
    #[error("the archive was changed on its server while it was downloaded")]
    Changed,
    /// The connection broke, and nothing would tell whether the rest belongs to the beginning.
    #[error(
        "the download broke off and cannot be resumed: the server sends neither a strong ETag nor Last-Modified, \
         and no sha256 was given"
    )]
    NotResumable(#[source] AttemptError),
    /// A part was asked for, and another one came.
    #[error("the server answers a request for the bytes from {wanted} with a Content-Range of {got:?}")]
    Range {
        /// First byte asked for.
        wanted: u64,
        /// What came.
        got: String,
    },
    /// More came than there is.
    #[error("the server sends more than the {total} bytes that it announced")]
    TooLong {
        /// What was announced.
        total: u64,
    },
    /// No attempt got any further.
    #[error("the archive cannot be downloaded: {attempts} attempts in a row failed")]
    Exhausted {
        /// How many.
        attempts: u32,
        /// How the last one failed.
        source: AttemptError,
    },
}

/// Why one attempt ended that was worth another.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// No connection, or it broke.
    #[error("the connection to the archive's server failed")]
    Transport(#[source] reqwest::Error),
    /// Nothing came for too long.
    #[error("the archive's server was silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// The server is not well at the moment.
    #[error("the archive's server answers {0}")]
    Status(StatusCode),
    /// The answer ended early.
    #[error("the connection ended after {got} of {total} bytes")]
    Short {
        /// What came.
        got: u64,
        /// What was announced.
        total: u64,
    },
}

impl DownloadError {
    /// Whether it may work later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Exhausted { .. } | Self::NotResumable(_) | Self::Changed)
    }
}

enum Failed {
    Again(AttemptError),
    Final(DownloadError),
}

/// A download under way.
#[derive(Debug)]
pub(super) struct Download {
    client: Client,
    url: Url,
    authorization: Option<HeaderValue>,
    timing: Timing,
    /// A wrong mixture would be noticed, by a checksum of the whole.
    verified: bool,
    response: Option<Response>,
    /// What the archive is known by.
    validator: Option<HeaderValue>,
    total: Option<u64>,
    /// Bytes handed out.
    position: u64,
    /// Bytes of this answer that were handed out before.
    skip: u64,
    failures: u32,
    /// Bytes since the last failure.
    gained: u64,
}

impl Download {
    pub(super) fn new(
        url: &Url,
        token: Option<&Secret>,
        verified: bool,
        timing: Timing,
    ) -> Result<Self, DownloadError> {
        let authorization = match token {
            Some(token) => {
                let value = HeaderValue::from_str(&format!("Bearer {}", token.reveal()));
                let mut value = value.map_err(|_| DownloadError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let settings = || {
            Client::builder()
                .connect_timeout(limits::ARCHIVE_CONNECT)
                .redirect(redirects())
                // It would tell the next server what a signed URL signs.
                .referer(false)
        };
        let client = trusting_client(url.as_str(), settings).map_err(DownloadError::Client)?;
        Ok(Self {
            client,
            url: url.clone(),
            authorization,
            timing,
            verified,
            response: None,
            validator: None,
            total: None,
            position: 0,
            skip: 0,
            failures: 0,
            gained: 0,
        })
    }

    /// Waits until the server has begun to send the archive.
    pub(super) async fn begin(&mut self) -> Result<(), DownloadError> {
        while self.response.is_none() {
            match self.request().await {
                Ok(response) => self.response = Some(response),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Again(error)) => self.failed(error).await?,
            }
        }
        Ok(())
    }

    /// The archive's bytes. Errors are [`DownloadError`]s.
    pub(super) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::try_unfold(self, |mut this| async move {
            let next = this.next().await.map_err(io::Error::other)?;
            Ok(next.map(|chunk| (chunk, this)))
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, DownloadError> {
        loop {
            self.begin().await?;
            let Some(response) = &mut self.response else { continue };
            let error = match timeout(self.timing.idle, response.chunk()).await {
                Ok(Ok(Some(chunk))) => match self.accept(chunk)? {
                    Some(chunk) => return Ok(Some(chunk)),
                    None => continue,
                },
                Ok(Ok(None)) => match self.total {
                    Some(total) if self.position < total => AttemptError::Short { got: self.position, total },
                    _ => return Ok(None),
                },
                Ok(Err(error)) => AttemptError::Transport(error.without_url()),
                Err(_) => AttemptError::Silent(self.timing.idle),
            };
            self.response = None;
            self.failed(error).await?;
        }
    }

    /// The part of a chunk that is new.
    fn accept(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, DownloadError> {
        let known = chunk.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        chunk.advance(known);
        self.skip -= known as u64;
        if chunk.is_empty() {
            return Ok(None);
        }
        self.position += chunk.len() as u64;
        if let Some(total) = self.total.filter(|total| self.position > *total) {
            return Err(DownloadError::TooLong { total });
        }
        self.gained += chunk.len() as u64;
        if self.gained >= limits::ARCHIVE_PROGRESS {
            self.failures = 0;
        }
        Ok(Some(chunk))
    }

    /// Counts a failed attempt, and pauses before the next.
    async fn failed(&mut self, error: AttemptError) -> Result<(), DownloadError> {
        self.gained = 0;
        self.failures += 1;
        if self.failures >= self.timing.attempts {
            return Err(DownloadError::Exhausted { attempts: self.failures, source: error });
        }
        if self.position > 0 && self.validator.is_none() && !self.verified {
            return Err(DownloadError::NotResumable(error));
        }
        tracing::warn!(
            attempt = self.failures,
            position = self.position,
            "download of the archive interrupted: {}",
            crate::telemetry::chain(&error)
        );
        let factor = 1_u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX);
        let pause = self.timing.pause.saturating_mul(factor).min(limits::ARCHIVE_PAUSE_MAX);
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn request(&mut self) -> Result<Response, Failed> {
        // Compressed once more on the way, it would be another archive.
        let mut request = self.client.get(self.url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if self.position > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.position));
            if let Some(validator) = &self.validator {
                request = request.header(IF_RANGE, validator);
            }
        }
        let response = match timeout(self.timing.idle, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_redirect() => {
                return Err(Failed::Final(DownloadError::Redirect(error.without_url())));
            }
            Ok(Err(error)) => return Err(Failed::Again(AttemptError::Transport(error.without_url()))),
            Err(_) => return Err(Failed::Again(AttemptError::Silent(self.timing.idle))),
        };
        match response.status() {
            StatusCode::OK => self.whole(&response)?,
            StatusCode::PARTIAL_CONTENT if self.position > 0 => self.rest(&response)?,
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED if self.position > 0 => {
                return Err(Failed::Final(DownloadError::Changed));
            }
            status @ (StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT) => return Err(Failed::Again(AttemptError::Status(status))),
            status => return Err(Failed::Final(DownloadError::Status(status))),
        }
        Ok(response)
    }

    /// The archive from its beginning.
    fn whole(&mut self, response: &Response) -> Result<(), Failed> {
        let (validator, total) = (validator(response.headers()), response.content_length());
        if self.position == 0 {
            (self.validator, self.total) = (validator, total);
        } else if validator != self.validator || (self.total.is_some() && total != self.total) {
            return Err(Failed::Final(DownloadError::Changed));
        }
        self.skip = self.position;
        Ok(())
    }

    /// The archive from where it broke off.
    fn rest(&mut self, response: &Response) -> Result<(), Failed> {
        let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let range = range.unwrap_or_default();
        let wrong = || Failed::Final(DownloadError::Range { wanted: self.position, got: range.to_owned() });
        // `bytes 100-199/200`, where the last number may be `*`.
        let (from, to) =
            range.strip_prefix("bytes ").and_then(|range| range.split_once('-')).ok_or_else(wrong)?;
        let (_, total) = to.split_once('/').ok_or_else(wrong)?;
        if from.parse() != Ok(self.position) {
            return Err(wrong());
        }
        let changed = match (total.parse::<u64>(), self.total) {
            (Ok(total), Some(known)) => total != known,
            _ => false,
        };
        let other = validator(response.headers()).is_some_and(|now| Some(now) != self.validator);
        if changed || other {
            return Err(Failed::Final(DownloadError::Changed));
        }
        self.skip = 0;
        Ok(())
    }
}

/// A weak tag says that two archives mean the same, and not that they are the same.
fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    let strong = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"));
    strong.or_else(|| headers.get(LAST_MODIFIED)).cloned()
}

fn redirects() -> Policy {
    Policy::custom(|attempt| {
        let downgrade = attempt.previous().last().is_some_and(|previous| previous.scheme() == "https")
            && attempt.url().scheme() != "https";
        if downgrade {
            attempt.error("it leads from https to an unencrypted place")
        } else if attempt.previous().len() > limits::ARCHIVE_REDIRECTS {
            attempt.error("there are too many of them, one after the other")
        } else {
            attempt.follow()
        }
    })
}
