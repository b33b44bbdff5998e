//! Who may use the external server (http-api, section 3; decisions, section 5).
//!
//! Every key of the set is tried with its own algorithm, EdDSA or RS256 and never a symmetric one; a key needs
//! no `kid`. No environment variable opens the server. Tokens are never logged.
//!
//! Checking a signature takes longer than all else that `GET /status` does, and clients poll with the same token: what
//! was found out of one is kept. Its expiry is looked at each time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use warp::http::HeaderMap;
use warp::http::header::AUTHORIZATION;

use super::site::{self, Foreign};
use crate::limits;

/// How far the clock of whoever signed a token may be off, in seconds (http-api, section 3).
const LEEWAY: f64 = 60.0;

/// Bytes of an Ed25519 public key (RFC 8032).
const ED25519_BYTES: usize = 32;

/// Who may use the external server. Cheap to clone.
#[derive(Clone)]
pub struct Auth(Arc<Rule>);

enum Rule {
    Open,
    Tokens { keys: Vec<Key>, compute_id: String, verified: Verified },
}

/// What was found out of the tokens that one of the keys signed. They are told apart by a digest, so that none is kept.
#[derive(Default)]
struct Verified(Mutex<HashMap<[u8; 32], Judgement>>);

#[derive(Clone, Copy)]
struct Judgement {
    /// In seconds since 1970.
    expiry: Option<f64>,
    /// What it is good for as long as it has not expired.
    verdict: Result<(), Denied>,
}

struct Key {
    key: DecodingKey,
    validation: Validation,
}

/// Why a request is turned away. `Display` is the text of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("invalid authorization token")]
    NoToken,
    #[error("failed to verify authorization token")]
    Unverified,
    #[error("missing audience in authorization token claims")]
    NoAudience,
    #[error("invalid audience in authorization token claims")]
    OtherAudience,
    #[error("missing compute_id in authorization token claims")]
    NoComputeId,
    #[error("invalid compute ID in authorization token claims")]
    OtherComputeId,
    #[error("requests from web pages are not accepted without a token")]
    WebPage,
    #[error("requests to other hosts than localhost are not accepted without a token")]
    OtherHost,
}

impl From<Foreign> for Denied {
    fn from(foreign: Foreign) -> Self {
        match foreign {
            Foreign::Page => Denied::WebPage,
            Foreign::Host => Denied::OtherHost,
        }
    }
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    compute_id: Option<String>,
    #[serde(default)]
    scope: Option<Scope>,
    #[serde(default)]
    aud: Option<Vec<String>>,
    /// Any JSON: what is not a number is not an expiry (observed, http-api, section 3).
    #[serde(default)]
    exp: serde_json::Value,
}

#[derive(Deserialize)]
enum Scope {
    #[serde(rename = "compute_ctl:admin")]
    Admin,
}

impl Auth {
    /// Nobody needs a token. Only for a server on a loopback address; [`serve`](super::Servers::serve)
    /// refuses anything else.
    pub fn open() -> Self {
        Auth(Arc::new(Rule::Open))
    }

    /// Clients need a token that one of `keys` verifies, for the compute `compute_id`. Keys that cannot be used
    /// are reported in the log, once; without any usable key every token is turned away.
    pub fn tokens(keys: &JwkSet, compute_id: impl Into<String>) -> Self {
        let keys = keys.keys.iter().filter_map(Key::new).collect();
        Auth(Arc::new(Rule::Tokens { keys, compute_id: compute_id.into(), verified: Verified::default() }))
    }

    /// Whether nobody needs a token.
    pub fn is_open(&self) -> bool {
        matches!(*self.0, Rule::Open)
    }

    /// Whether a request with this token is let through.
    #[cfg(test)]
    pub(crate) fn admits(&self, token: &str) -> bool {
        let token = warp::http::HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is ASCII");
        self.check(&HeaderMap::from_iter([(AUTHORIZATION, token)])).is_ok()
    }

    /// Lets a request through, or says why not.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Denied> {
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
        let now = jiff::Timestamp::now().as_second() as f64;
        self.check_at(headers, now)
    }

    fn check_at(&self, headers: &HeaderMap, now: f64) -> Result<(), Denied> {
        match &*self.0 {
            Rule::Open => Ok(site::check(headers)?),
            Rule::Tokens { keys, compute_id, verified } => {
                let token = bearer(headers).ok_or(Denied::NoToken)?;
                let judgement = verified.look_up(token, || {
                    let claims = keys.iter().find_map(|key| key.verify(token)).ok_or(Denied::Unverified)?;
                    Ok(Judgement { expiry: claims.exp.as_f64(), verdict: claims.check(compute_id) })
                })?;
                match judgement.expiry {
                    Some(expiry) if expiry < now - LEEWAY => Err(Denied::Unverified),
                    _ => judgement.verdict,
                }
            }
        }
    }
}

impl Verified {
    /// What is known of a token, or what is found out of it now. Nothing is kept of one that no key has signed: those
    /// cost whoever sends them as much as us.
    fn look_up(
        &self,
        token: &str,
        find_out: impl FnOnce() -> Result<Judgement, Denied>,
    ) -> Result<Judgement, Denied> {
        let digest = Sha256::digest(token).into();
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(judgement) = known().get(&digest).copied() {
            return Ok(judgement);
        }
        let judgement = find_out()?;
        let mut known = known();
        if known.len() >= limits::HTTP_TOKENS {
            known.clear();
        }
        known.insert(digest, judgement);
        Ok(judgement)
    }
}

impl Key {
    fn new(jwk: &Jwk) -> Option<Self> {
        let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
            (AlgorithmParameters::OctetKeyPair(pair), None | Some(KeyAlgorithm::EdDSA))
                if pair.curve == EllipticCurve::Ed25519 =>
            {
                Some(Algorithm::EdDSA)
            }
            (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Some(Algorithm::RS256),
            _ => None,
        };
        let key = algorithm.and_then(|algorithm| {
            let key = DecodingKey::from_jwk(jwk).ok()?;
            let whole = algorithm != Algorithm::EdDSA
                || key.try_get_as_bytes().is_ok_and(|bytes| bytes.len() == ED25519_BYTES);
            whole.then(|| Key { key, validation: validation(algorithm) })
        });
        if key.is_none() {
            let kid = jwk.common.key_id.as_deref().unwrap_or("without kid");
            tracing::warn!(kid, "a key of the key set is not a whole EdDSA or RS256 key and is not used");
        }
        key
    }

    /// The claims of a token that this key signed, whether it has expired or not.
    fn verify(&self, token: &str) -> Option<Claims> {
        Some(jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation).ok()?.claims)
    }
}

impl Claims {
    fn check(&self, compute_id: &str) -> Result<(), Denied> {
        match (&self.scope, &self.aud, &self.compute_id) {
            (Some(Scope::Admin), None, _) => Err(Denied::NoAudience),
            (Some(Scope::Admin), Some(aud), _) if aud.iter().any(|aud| aud == "compute") => Ok(()),
            (Some(Scope::Admin), Some(_), _) => Err(Denied::OtherAudience),
            (None, _, None) => Err(Denied::NoComputeId),
            (None, _, Some(id)) if id == compute_id => Ok(()),
            (None, _, Some(_)) => Err(Denied::OtherComputeId),
        }
    }
}

fn validation(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    // Both are checked here, by rules of their own.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::{Value, json};
    use warp::http::HeaderValue;
    use warp::http::header::{HOST, ORIGIN};

    use super::*;

    const ED25519: &[u8] = include_bytes!("../../tests/fixtures/keys/ed25519.der");
    const OTHER_ED25519: &[u8] = include_bytes!("../../tests/fixtures/keys/other-ed25519.der");
    const RSA: &[u8] = include_bytes!("../../tests/fixtures/keys/rsa.der");
    const JWKS: &str = include_str!("../../tests/fixtures/keys/jwks.json");

    fn ed25519(claims: &Value) -> String {
        signed(Algorithm::EdDSA, &EncodingKey::from_ed_der(ED25519), claims)
    }

    fn signed(algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, key).expect("the key fits the algorithm")
    }

    fn keys() -> Value {
        serde_json::from_str(JWKS).expect("the fixture is JSON")
    }

    fn auth(keys: Value) -> Auth {
        Auth::tokens(&serde_json::from_value(keys).expect("a key set"), "compute-1")
    }

    fn check(auth: &Auth, token: &str) -> Result<(), Denied> {
        let mut headers = HeaderMap::new();
        headers.insert(
            AUTHORIZATION,
            HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is ASCII"),
        );
        auth.check(&headers)
    }

    #[test]
    fn every_row_of_the_decision_table() {
        let auth = auth(keys());
        let admin = "compute_ctl:admin";
        for (claims, expected) in [
            (json!({"compute_id": "compute-1", "scope": null, "aud": null}), Ok(())),
            (json!({"compute_id": null, "scope": admin, "aud": ["compute"]}), Ok(())),
            (json!({"compute_id": "other", "scope": admin, "aud": ["x", "compute"]}), Ok(())),
            (json!({"scope": admin}), Err(Denied::NoAudience)),
            (json!({"scope": admin, "aud": null}), Err(Denied::NoAudience)),
            (json!({"scope": admin, "aud": ["console"]}), Err(Denied::OtherAudience)),
            (json!({"scope": admin, "aud": []}), Err(Denied::OtherAudience)),
            (json!({}), Err(Denied::NoComputeId)),
            (json!({"compute_id": null, "aud": ["compute"]}), Err(Denied::NoComputeId)),
            (json!({"compute_id": "compute-2"}), Err(Denied::OtherComputeId)),
            (json!({"compute_id": "compute-1", "aud": ["anything"]}), Ok(())),
            (json!({"compute_id": "compute-1", "scope": "tenant"}), Err(Denied::Unverified)),
            (json!({"compute_id": "compute-1", "aud": "compute"}), Err(Denied::Unverified)),
            (json!({"compute_id": 1}), Err(Denied::Unverified)),
            (json!({"compute_id": "compute-1", "nbf": 4_102_444_800_u64, "iat": "x", "iss": 7}), Ok(())),
        ] {
            assert_eq!(check(&auth, &ed25519(&claims)), expected, "{claims}");
        }
    }

    #[test]
    fn an_expiry_counts_if_it_is_a_number() {
        let auth = auth(keys());
        let now = jiff::Timestamp::now().as_second();
        for (exp, expected) in [
            (json!(now + 3600), Ok(())),
            (json!(now - 30), Ok(())),
            (json!(now - 3600), Err(Denied::Unverified)),
            (json!(1.5), Err(Denied::Unverified)),
            (json!(-1), Err(Denied::Unverified)),
            (json!("never"), Ok(())),
            (json!(null), Ok(())),
        ] {
            let token = ed25519(&json!({"compute_id": "compute-1", "exp": exp}));
            assert_eq!(check(&auth, &token), expected, "{exp}");
        }
    }

    #[test]
    fn what_is_known_of_a_token_outlives_neither_it_nor_the_room_there_is() {
        let auth = auth(keys());
        let check_at = |token: &str, now| {
            let token = HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is ASCII");
            auth.check_at(&HeaderMap::from_iter([(AUTHORIZATION, token)]), now)
        };
        let claims = |number: u32| json!({"compute_id": "compute-1", "exp": 1000, "number": number});
        let token = ed25519(&claims(0));
        assert_eq!(
            [900.0, 1060.0, 1061.0].map(|now| check_at(&token, now)),
            [Ok(()), Ok(()), Err(Denied::Unverified)]
        );
        let other = ed25519(&json!({"compute_id": "compute-2", "exp": 1000}));
        assert_eq!([0.0, 0.0].map(|now| check_at(&other, now)), [Err(Denied::OtherComputeId); 2]);
        assert_eq!([0.0, 0.0].map(|now| check_at(&format!("{token}x"), now)), [Err(Denied::Unverified); 2]);
        let Rule::Tokens { verified, .. } = &*auth.0 else { panic!("it wants tokens") };
        let known = || verified.0.lock().expect("nobody panicked").len();
        assert_eq!(known(), 2, "the forged one is not kept");
        for number in 0..=limits::HTTP_TOKENS as u32 {
            assert_eq!(check_at(&ed25519(&claims(number)), 900.0), Ok(()), "{number}");
            assert!(known() <= limits::HTTP_TOKENS);
        }
    }

    #[test]
    fn each_key_is_tried_with_its_own_algorithm() {
        let claims = json!({"compute_id": "compute-1"});
        let rsa = EncodingKey::from_rsa_der(RSA);
        let both = auth(keys());
        assert_eq!(check(&both, &ed25519(&claims)), Ok(()));
        assert_eq!(check(&both, &signed(Algorithm::RS256, &rsa, &claims)), Ok(()));
        assert_eq!(check(&both, &signed(Algorithm::RS384, &rsa, &claims)), Err(Denied::Unverified));
        assert_eq!(check(&both, &signed(Algorithm::PS256, &rsa, &claims)), Err(Denied::Unverified));
        let stranger = signed(Algorithm::EdDSA, &EncodingKey::from_ed_der(OTHER_ED25519), &claims);
        assert_eq!(check(&both, &stranger), Err(Denied::Unverified));
    }

    #[test]
    fn the_key_that_fits_may_be_the_last_one() {
        let mut keys = keys();
        let list = keys["keys"].as_array_mut().expect("a list");
        list.insert(
            0,
            json!({"kty": "OKP", "crv": "Ed25519", "x": "LQvbdC7ShrjK_sXtlUyf6zzjcN99H9k-frekZB1EHiA"}),
        );
        list.reverse();
        assert_eq!(check(&auth(keys), &ed25519(&json!({"compute_id": "compute-1"}))), Ok(()));
    }

    #[test]
    fn a_public_key_is_never_used_as_a_shared_secret() {
        let claims = json!({"compute_id": "compute-1"});
        let secret = "c2VjcmV0";
        let symmetric = json!({"keys": [{"kty": "oct", "k": secret, "alg": "HS256"}]});
        let key = EncodingKey::from_base64_secret(secret).expect("base64");
        let token = signed(Algorithm::HS256, &key, &claims);
        assert_eq!(check(&auth(symmetric), &token), Err(Denied::Unverified));
        let public = keys()["keys"][1]["n"].as_str().expect("text").to_owned();
        let token = signed(Algorithm::HS256, &EncodingKey::from_secret(public.as_bytes()), &claims);
        assert_eq!(check(&auth(keys()), &token), Err(Denied::Unverified));
    }

    #[test]
    fn a_key_that_cannot_be_used_does_no_harm() {
        let short = json!({"keys": [
            {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
            {"kty": "OKP", "crv": "Ed25519", "x": "*"},
            {"kty": "RSA", "n": "", "e": ""},
            {"kty": "RSA", "alg": "RS512", "n": "AQAB", "e": "AQAB"},
            {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"},
        ]});
        let claims = json!({"compute_id": "compute-1"});
        let rsa = signed(Algorithm::RS256, &EncodingKey::from_rsa_der(RSA), &claims);
        for token in [ed25519(&claims), rsa] {
            assert_eq!(check(&auth(short.clone()), &token), Err(Denied::Unverified));
            assert_eq!(check(&auth(json!({"keys": []})), &token), Err(Denied::Unverified));
        }
    }

    #[test]
    fn a_key_that_is_meant_for_something_else_is_not_used() {
        let claims = json!({"compute_id": "compute-1"});
        let tokens = [ed25519(&claims), signed(Algorithm::RS256, &EncodingKey::from_rsa_der(RSA), &claims)];
        for (index, field, value) in
            [(0, "crv", "P-256"), (0, "alg", "ES256"), (1, "alg", "RS512"), (1, "alg", "PS256")]
        {
            let mut keys = keys();
            keys["keys"][index][field] = json!(value);
            let auth = auth(keys);
            assert_eq!(check(&auth, &tokens[index]), Err(Denied::Unverified), "{field} {value}");
            assert_eq!(check(&auth, &tokens[1 - index]), Ok(()), "the other key: {field} {value}");
        }
    }

    #[test]
    fn the_header_must_hold_a_bearer_token() {
        let auth = auth(keys());
        let token = ed25519(&json!({"compute_id": "compute-1"}));
        for (value, expected) in [
            (format!("Bearer {token}"), Ok(())),
            (format!("bearer {token}"), Ok(())),
            (format!("BEARER   {token}"), Ok(())),
            (token.clone(), Err(Denied::NoToken)),
            (format!("Basic {token}"), Err(Denied::NoToken)),
            (format!("Bearer{token}"), Err(Denied::NoToken)),
            ("Bearer nonsense".to_owned(), Err(Denied::Unverified)),
            (format!("Bearer {token}x"), Err(Denied::Unverified)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_str(&value).expect("ASCII"));
            assert_eq!(auth.check(&headers), expected, "{value}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(auth.check(&headers), Err(Denied::NoToken));
        headers.insert(AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff").expect("opaque bytes"));
        assert_eq!(auth.check(&headers), Err(Denied::NoToken));
    }

    #[test]
    fn an_open_server_still_turns_other_web_pages_away() {
        let auth = Auth::open();
        let mut headers = HeaderMap::new();
        assert_eq!(auth.check(&headers), Ok(()));
        headers.insert(warp::http::header::ORIGIN, HeaderValue::from_static("https://example.com"));
        assert_eq!(auth.check(&headers), Err(Denied::WebPage));
        headers.remove(ORIGIN);
        headers.insert(HOST, HeaderValue::from_static("example.com"));
        assert_eq!(auth.check(&headers), Err(Denied::OtherHost));
    }
}
