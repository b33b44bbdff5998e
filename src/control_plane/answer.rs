//! What an answer of the control plane means: pure functions of its head and its body.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderName, RETRY_AFTER};
use serde::de::DeserializeOwned;

use super::{AttemptError, FetchError};
use crate::limits;
use crate::secret::without_values;
use crate::spec::document::{ComputeConfig, ControlPlaneComputeStatus, ControlPlaneConfigResponse};

/// An answer without a config.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// Another attempt may get one.
    #[error("{error}")]
    Again {
        /// What was wrong.
        #[source]
        error: AttemptError,
        /// How long the control plane wants to be left alone, as far as that can be granted.
        after: Duration,
    },
    /// Another attempt would get the same.
    #[error(transparent)]
    Final(FetchError),
}

/// Judges status and headers; the body is worth reading if all is well.
///
/// # Errors
/// A status other than 200, or a length beyond [`limits::CONTROL_PLANE_BYTES`].
pub fn head(status: StatusCode, headers: &HeaderMap) -> Result<(), Rejection> {
    match status {
        StatusCode::OK if number(headers, CONTENT_LENGTH) > Some(limits::CONTROL_PLANE_BYTES as u64) => {
            Err(too_long())
        }
        StatusCode::OK => Ok(()),
        // The first two are the original's list.
        StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS => {
            let wish = Duration::from_secs(number(headers, RETRY_AFTER).unwrap_or_default());
            let after = wish.min(limits::CONTROL_PLANE_PAUSE_MAX);
            Err(Rejection::Again { error: AttemptError::Unavailable(status), after })
        }
        status => Err(Rejection::Final(FetchError::Status(status))),
    }
}

/// Reads the body of an answer whose head is well.
///
/// # Errors
/// A text that is no such document, or one that contradicts itself.
pub fn body(body: &[u8]) -> Result<ComputeConfig, Rejection> {
    let decoded = decode(body).map_err(|fault| again(AttemptError::Format(fault)))?;
    let ControlPlaneConfigResponse { spec, status, compute_ctl_config } = decoded;
    // The other contradiction, empty with a spec, is taken for the spec, as in the original.
    if spec.is_none() && status == ControlPlaneComputeStatus::Attached {
        return Err(Rejection::Final(FetchError::AttachedWithoutSpec));
    }
    Ok(ComputeConfig { spec, compute_ctl_config })
}

/// Decodes the whole of a text. What is wrong is told with its place and without its value.
pub(crate) fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    let mut decoder = serde_json::Deserializer::from_slice(json);
    let decoded = serde_path_to_error::deserialize(&mut decoder).map_err(|error| {
        format!("{}: {}", place(&error.path().to_string()), without_values(error.inner()))
    })?;
    decoder.end().map_err(|error| without_values(&error))?;
    Ok(decoded)
}

/// A path as it can be shown: its names may be the document's own, of any length and any characters.
fn place(path: &str) -> String {
    let mut shown: String =
        path.chars().take(limits::CONTROL_PLANE_PATH).flat_map(char::escape_debug).collect();
    if path.chars().nth(limits::CONTROL_PLANE_PATH).is_some() {
        shown.push('…');
    }
    shown
}

pub(super) fn too_long() -> Rejection {
    again(AttemptError::TooLong)
}

fn again(error: AttemptError) -> Rejection {
    Rejection::Again { error, after: Duration::ZERO }
}

fn number(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    const ATTACHED: &str = r#"{"status":"attached","compute_ctl_config":{"jwks":{"keys":[]}},"spec":{
        "format_version":1.0,"suspend_timeout_seconds":-1,"cluster":{"roles":[],"databases":[]}}}"#;

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for code in 100..=999 {
            let status = StatusCode::from_u16(code).unwrap();
            let again = matches!(head(status, &HeaderMap::new()), Err(Rejection::Again { .. }));
            assert_eq!(again, [429, 502, 503, 504].contains(&code), "{status}");
            assert_eq!(head(status, &HeaderMap::new()).is_ok(), code == 200, "{status}");
        }
    }

    #[test]
    fn a_wish_to_be_left_alone_is_granted_within_bounds() {
        let longest = limits::CONTROL_PLANE_PAUSE_MAX;
        for (wish, granted) in [
            ("1", Duration::from_secs(1)),
            (" 2 ", Duration::from_secs(2)),
            ("18446744073709551615", longest),
            ("-1", Duration::ZERO),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Duration::ZERO),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(wish))]);
            let Err(Rejection::Again { after, .. }) = head(StatusCode::SERVICE_UNAVAILABLE, &headers) else {
                panic!("it passes")
            };
            assert_eq!(after, granted, "{wish}");
        }
    }

    #[test]
    fn a_length_beyond_all_is_enough_to_see() {
        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("9999999999"))]);
        let error = head(StatusCode::OK, &headers).unwrap_err();
        assert_eq!(error.to_string(), AttemptError::TooLong.to_string());
    }

    #[test]
    fn the_document_is_all_there_is() {
        assert!(body(ATTACHED.as_bytes()).unwrap().spec.is_some());
        let error = body(format!("{ATTACHED} and more").as_bytes()).unwrap_err();
        assert!(error.to_string().contains("trailing characters at line 2"), "{error}");
    }

    #[test]
    fn a_fault_is_named_by_its_place_and_without_its_value() {
        for (from, to, words) in [
            (r#""attached""#, r#""hunter2""#, "status: unknown variant, expected `empty` or `attached`"),
            (r#""compute_ctl_config""#, r#""other""#, "missing field `compute_ctl_config`"),
            ("-1", r#""hunter2""#, "spec.suspend_timeout_seconds: invalid type, expected i64"),
            ("1.0", "null", "spec.format_version: invalid type, expected f32"),
            (r#""keys":[]"#, r#""keys":"hunter2""#, "compute_ctl_config.jwks.keys: invalid type"),
        ] {
            let text = ATTACHED.replacen(from, to, 1);
            let error = body(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn a_long_name_does_not_make_a_long_error() {
        let name = r"\u0007".repeat(100_000);
        let spec = format!(r#""pgbouncer_settings":{{"{name}":1}},"format_version""#);
        let text = ATTACHED.replacen(r#""format_version""#, &spec, 1);
        let error = body(text.as_bytes()).unwrap_err().to_string();
        assert!(error.len() < 4000 && error.contains("pgbouncer_settings"), "{error}");
        assert!(!error.contains('\u{7}'), "{error}");
    }
}
