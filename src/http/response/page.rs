//! The page for people: one document with its style and its script, and nothing from anywhere else.

use std::sync::LazyLock;

use uuid::Uuid;
use warp::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use warp::reply::{Reply, Response};

/// Where the style and the script of the document say what lets them run.
const NONCE: &str = "{nonce}";

static PAGE: LazyLock<String> = LazyLock::new(|| {
    let page = include_str!("../ui/index.html");
    page.replace("{style}", include_str!("../ui/style.css"))
        .replace("{script}", include_str!("../ui/script.js"))
});

/// The answer of `GET /ui`. The policy lets run what this very answer carries, and lets it talk to this very
/// server; nobody may frame it, or a page around it could have its buttons pressed.
pub(in crate::http) fn page() -> Response {
    let nonce = Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'"
    );
    let policy = HeaderValue::from_str(&policy).expect("a number in a text of ASCII");
    let mut response = PAGE.replace(NONCE, &nonce).into_response();
    for (name, value) in [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, policy),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    ] {
        response.headers_mut().insert(name, value);
    }
    response
}
