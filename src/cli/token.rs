//! `compute_ctl token`: signs a token for testing, or prints the key set that verifies such tokens.
//!
//! The claims are those of the original's clients, and the key set has what theirs has (http-api, section 3). No token
//! names its key: every key of a set is tried.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, JwkSet, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use pkcs8::{ObjectIdentifier, PrivateKeyInfo};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::args::TokenArgs;
use super::options::{UsageFault, invalid};
use super::{ExitCode, Streams};
use crate::limits;

/// RFC 8410, section 3.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// RFC 8017, appendix C.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// What `token` is asked for.
#[derive(Clone, Debug)]
pub struct TokenOptions {
    key: PathBuf,
    wanted: Wanted,
}

#[derive(Clone, Debug)]
enum Wanted {
    KeySet,
    Token { bearer: Bearer, life: Duration },
}

#[derive(Clone, Debug)]
enum Bearer {
    /// May talk to this compute.
    Compute(String),
    /// May talk to every compute.
    Admin,
}

impl TokenOptions {
    pub(super) fn new(args: TokenArgs) -> Result<Self, UsageFault> {
        let bearer = match args.compute_id {
            Some(id) if id.is_empty() => return Err(invalid("--compute-id must not be empty")),
            Some(id) => Bearer::Compute(id),
            None => Bearer::Admin,
        };
        let wanted = match args.jwks {
            true => Wanted::KeySet,
            false => Wanted::Token { bearer, life: args.life.unwrap_or(limits::TOKEN_LIFE) },
        };
        Ok(TokenOptions { key: args.key, wanted })
    }
}

/// Why there is no token. Nothing of the key is in it.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("the key {} cannot be read", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} holds no private key: an Ed25519 or RSA key is needed, as PEM or as DER in PKCS #8", .path.display())]
    NoKey { path: PathBuf },
    #[error("the key cannot be used")]
    Signing(#[source] jsonwebtoken::errors::Error),
    #[error("the key set cannot be written")]
    Json(#[from] serde_json::Error),
}

#[derive(Serialize)]
struct Claims<'a> {
    compute_id: Option<&'a str>,
    scope: Option<&'static str>,
    aud: Option<[&'static str; 1]>,
    /// Seconds since 1970.
    exp: i64,
}

/// Prints a token, or a key set. Ends with [`ExitCode::Unreadable`] for a file that cannot be read or is no key.
pub fn run(options: &TokenOptions, streams: &mut Streams<'_>) -> ExitCode {
    match made(options) {
        Ok(text) => streams.finish(&(text + "\n"), ExitCode::Ok),
        Err(error) => {
            // Where nobody reads, the exit code has to do.
            let _ = writeln!(streams.err, "compute_ctl token: {}", crate::telemetry::chain(&error));
            match error {
                TokenError::Unreadable { .. } | TokenError::NoKey { .. } => ExitCode::Unreadable,
                TokenError::Signing(_) | TokenError::Json(_) => ExitCode::Failure,
            }
        }
    }
}

fn made(options: &TokenOptions) -> Result<String, TokenError> {
    let path = &options.key;
    let bytes =
        std::fs::read(path).map_err(|source| TokenError::Unreadable { path: path.clone(), source })?;
    let (key, algorithm) = key(&bytes).ok_or_else(|| TokenError::NoKey { path: path.clone() })?;
    match &options.wanted {
        Wanted::KeySet => {
            let mut jwk = Jwk::from_encoding_key(&key, algorithm).map_err(TokenError::Signing)?;
            jwk.common.public_key_use = Some(PublicKeyUse::Signature);
            jwk.common.key_operations = Some(vec![KeyOperations::Verify]);
            // The original panics over a token that a key without a name does not verify.
            jwk.common.key_id = Some(thumbprint(&jwk)?);
            Ok(serde_json::to_string(&JwkSet { keys: vec![jwk] })?)
        }
        Wanted::Token { bearer, life } => {
            let life = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
            let exp = jiff::Timestamp::now().as_second().saturating_add(life);
            let claims = match bearer {
                Bearer::Compute(id) => Claims { compute_id: Some(id), scope: None, aud: None, exp },
                Bearer::Admin => {
                    Claims { compute_id: None, scope: Some("compute_ctl:admin"), aud: Some(["compute"]), exp }
                }
            };
            jsonwebtoken::encode(&Header::new(algorithm), &claims, &key).map_err(TokenError::Signing)
        }
    }
}

fn key(bytes: &[u8]) -> Option<(EncodingKey, Algorithm)> {
    let rsa = |der: &[u8]| (EncodingKey::from_rsa_der(der), Algorithm::RS256);
    let pem = PrivateKeyDer::from_pem_slice(bytes).ok();
    let der = match &pem {
        Some(PrivateKeyDer::Pkcs1(key)) => return Some(rsa(key.secret_pkcs1_der())),
        Some(PrivateKeyDer::Pkcs8(key)) => key.secret_pkcs8_der(),
        Some(_) => return None,
        None => bytes,
    };
    let info = PrivateKeyInfo::try_from(der).ok()?;
    match info.algorithm.oid {
        ED25519 => Some((EncodingKey::from_ed_der(der), Algorithm::EdDSA)),
        RSA => Some(rsa(info.private_key)),
        _ => None,
    }
}

/// The digest of what makes the key (RFC 7638), as a name for it.
fn thumbprint(jwk: &Jwk) -> Result<String, serde_json::Error> {
    let parameters = serde_json::to_value(&jwk.algorithm)?;
    // In the order of their names.
    let mut members: BTreeMap<String, Value> = serde_json::from_value(parameters)?;
    // Those of section 3.2, and of RFC 8037, section 2.
    members.retain(|name, _| ["crv", "e", "kty", "n", "x"].contains(&name.as_str()));
    Ok(base64url(&Sha256::digest(serde_json::to_string(&members)?)))
}

/// RFC 4648, section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let group = |bytes: &[u8]| {
        let bits =
            (0..3).fold(0_usize, |bits, at| bits << 8 | usize::from(bytes.get(at).copied().unwrap_or(0)));
        (0..=bytes.len()).map(move |at| char::from(DIGITS[bits >> (18 - 6 * at) & 63])).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::streams::captured;
    use crate::http::Auth;

    fn run_on(key: &str, wanted: Wanted) -> (ExitCode, String, String) {
        let key = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/keys").join(key);
        captured(false, |streams| run(&TokenOptions { key, wanted }, streams))
    }

    #[test]
    fn what_one_key_signs_the_key_set_of_the_same_key_verifies() {
        for file in ["ed25519.der", "ed25519.pem", "rsa.pem", "rsa-pkcs1.pem"] {
            let (exit, set, err) = run_on(file, Wanted::KeySet);
            assert_eq!((exit, err.as_str()), (ExitCode::Ok, ""), "{file}");
            let set: Value = serde_json::from_str(&set).expect("JSON");
            assert!(set["keys"][0].get("d").is_none(), "{file}: {set}");
            assert_eq!(set["keys"][0]["key_ops"], serde_json::json!(["verify"]), "{file}");
            // A digest of 32 bytes.
            assert_eq!(set["keys"][0]["kid"].as_str().map(str::len), Some(43), "{file}: {set}");
            let auth = Auth::tokens(&serde_json::from_value(set).expect("a key set"), "compute-1");
            for (bearer, admitted) in [
                (Bearer::Compute("compute-1".into()), true),
                (Bearer::Compute("compute-2".into()), false),
                (Bearer::Admin, true),
            ] {
                let wanted = Wanted::Token { bearer: bearer.clone(), life: Duration::from_secs(60) };
                let (exit, token, _) = run_on(file, wanted);
                assert_eq!(exit, ExitCode::Ok, "{file}");
                assert_eq!(auth.admits(token.trim()), admitted, "{file}: {bearer:?}");
            }
        }
    }

    #[test]
    fn a_thumbprint_is_that_of_the_standards() {
        // RFC 7638, section 3.1, and RFC 8037, appendix A.3.
        for (key, thumbprint) in [
            (
                serde_json::json!({
                    "kty": "RSA", "e": "AQAB", "alg": "RS256", "kid": "2011-04-29",
                    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECP\
                          ebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY\
                          368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0f\
                          M4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
                }),
                "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
            ),
            (
                serde_json::json!({
                    "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
                }),
                "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
            ),
        ] {
            let key: Jwk = serde_json::from_value(key).expect("a key");
            assert_eq!(super::thumbprint(&key).expect("it can be written"), thumbprint);
        }
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648, section 10, and the two digits of its own.
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg"),
            (b"fo", "Zm8"),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg"),
            (b"\xfb\xff", "-_8"),
        ] {
            assert_eq!(base64url(bytes), text);
        }
    }

    #[test]
    fn a_token_ends_when_it_was_told_to() {
        let set: JwkSet = serde_json::from_str(&run_on("ed25519.pem", Wanted::KeySet).1).expect("a key set");
        let key = jsonwebtoken::DecodingKey::from_jwk(&set.keys[0]).expect("a key");
        let now = || jiff::Timestamp::now().as_second();
        for seconds in [60, 86_400] {
            let begin = now();
            let wanted = Wanted::Token { bearer: Bearer::Admin, life: Duration::from_secs(seconds) };
            let (_, token, _) = run_on("ed25519.pem", wanted);
            let mut validation = jsonwebtoken::Validation::new(Algorithm::EdDSA);
            validation.validate_aud = false;
            let claims =
                jsonwebtoken::decode::<Value>(token.trim(), &key, &validation).expect("it verifies").claims;
            let life = i64::try_from(seconds).expect("a few");
            let ends = claims["exp"].as_i64().expect("a number");
            assert!((begin + life..=now() + life).contains(&ends), "{claims}");
        }
    }

    #[test]
    fn what_is_no_key_is_named_and_not_quoted() {
        let (exit, out, err) = run_on("jwks.json", Wanted::KeySet);
        assert_eq!((exit, out.as_str()), (ExitCode::Unreadable, ""));
        assert!(err.contains("jwks.json holds no private key") && !err.contains("kty"), "{err}");
        assert_eq!(run_on("none.pem", Wanted::KeySet).0, ExitCode::Unreadable);
    }
}
