//! What keeps web pages away from a server that asks for no token.
//!
//! Any page in a browser on this machine can send requests to a loopback address. Two signs give it away, and
//! browsers let no page forge either:
//!
//! - `Origin` names the page's own site. Only the page this server itself delivers may be it.
//! - `Host` is what the browser was told to go to. A name that its owner first points at his own server and then
//!   at 127.0.0.1 (DNS rebinding) makes a foreign page one of "the same site"; it is still the foreign name.
//!
//! Without a `Host` it is no browser: those have sent it since HTTP/1.1, and speak HTTP/2 over TLS only.

use std::net::{IpAddr, SocketAddr};

use warp::http::HeaderMap;
use warp::http::header::{HOST, HeaderValue, ORIGIN};

/// What gives a request away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It comes from a page that is not this server's.
    Page,
    /// It was sent to a name that is not this machine's.
    Host,
}

/// Lets requests through that come from the page of this server or from no page at all.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Foreign> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(host.to_str().map_err(|_| Foreign::Host)?),
        (Some(_), Some(_)) => return Err(Foreign::Host),
    };
    let own = |origin: &HeaderValue| {
        let site = origin.to_str().ok()?.strip_prefix("http://")?;
        Some(site.eq_ignore_ascii_case(host?))
    };
    if !headers.get_all(ORIGIN).iter().all(|origin| own(origin) == Some(true)) {
        return Err(Foreign::Page);
    }
    match host {
        Some(host) if !is_loopback(host) => Err(Foreign::Host),
        _ => Ok(()),
    }
}

/// Whether a name or address, perhaps with a port, is one of this machine's own.
fn is_loopback(authority: &str) -> bool {
    if let Ok(address) = authority.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.parse::<u16>().is_ok() => name,
        _ => authority,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    // What is below `localhost` never leaves the machine either (RFC 6761, section 6.3).
    address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(host: Option<&str>, origin: Option<&str>) -> Result<(), Foreign> {
        let mut headers = HeaderMap::new();
        for (name, value) in [(HOST, host), (ORIGIN, origin)] {
            if let Some(value) = value {
                headers.insert(name, HeaderValue::from_str(value).expect("ASCII"));
            }
        }
        check(&headers)
    }

    #[test]
    fn only_names_and_addresses_of_this_machine_are_served() {
        for host in [
            "localhost",
            "localhost:3080",
            "LocalHost:1",
            "a.localhost:3080",
            "127.0.0.1",
            "127.0.0.1:3080",
            "127.8.9.10:1",
            "[::1]",
            "[::1]:3080",
        ] {
            assert_eq!(ours(Some(host), None), Ok(()), "{host}");
        }
        for host in [
            "",
            "example.com",
            "example.com:3080",
            "127.0.0.1.example.com",
            "localhost.example.com:3080",
            "notlocalhost",
            "192.168.0.1:3080",
            "0.0.0.0:3080",
            "[::]:3080",
            "[::ffff:1.2.3.4]:1",
            "127.0.0.1@example.com",
            "localhost:x",
            "localhost:3080:1",
            "::1:x",
        ] {
            assert_eq!(ours(Some(host), None), Err(Foreign::Host), "{host}");
        }
        assert_eq!(ours(None, None), Ok(()));
    }

    #[test]
    fn a_page_must_be_our_own() {
        assert_eq!(ours(Some("127.0.0.1:3080"), Some("http://127.0.0.1:3080")), Ok(()));
        assert_eq!(ours(Some("localhost:3080"), Some("http://LOCALHOST:3080")), Ok(()));
        for origin in [
            "null",
            "",
            "http://example.com",
            "https://127.0.0.1:3080",
            "http://127.0.0.1",
            "http://127.0.0.1:3081",
            "http://localhost:3080",
            "127.0.0.1:3080",
            "http://127.0.0.1:3080.example.com",
        ] {
            assert_eq!(ours(Some("127.0.0.1:3080"), Some(origin)), Err(Foreign::Page), "{origin}");
        }
        // A rebound name is the same site to the browser, and not to us.
        assert_eq!(ours(Some("example.com:3080"), Some("http://example.com:3080")), Err(Foreign::Host));
        assert_eq!(ours(None, Some("http://127.0.0.1:3080")), Err(Foreign::Page));
    }

    #[test]
    fn what_is_said_twice_is_not_believed() {
        let mut headers = HeaderMap::new();
        headers.append(HOST, HeaderValue::from_static("localhost"));
        headers.append(HOST, HeaderValue::from_static("localhost"));
        assert_eq!(check(&headers), Err(Foreign::Host));
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("localhost"));
        headers.append(ORIGIN, HeaderValue::from_static("http://localhost"));
        headers.append(ORIGIN, HeaderValue::from_static("http://example.com"));
        assert_eq!(check(&headers), Err(Foreign::Page));
        headers.remove(ORIGIN);
        headers.insert(ORIGIN, HeaderValue::from_bytes(b"http://localhost\xff").expect("opaque bytes"));
        assert_eq!(check(&headers), Err(Foreign::Page));
    }
}
