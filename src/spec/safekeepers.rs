//! Addresses of safekeepers, as specs and the setting `neon.safekeepers` have them.

use std::fmt;
use std::str::FromStr;

/// Where a safekeeper listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IPv4 address. Neon's Postgres ends the host at the first colon, so it takes no other.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// A text that is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not `host:port`")]
pub struct InvalidAddress;

/// From `host:port`. The host goes unquoted into connection strings, and into a list with commas, so that only what
/// names and addresses consist of is taken.
impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let (host, port) = text.split_once(':').ok_or(InvalidAddress)?;
        let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if host.is_empty() || !host.bytes().all(named) {
            return Err(InvalidAddress);
        }
        // `parse` would also take a sign.
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0).ok_or(InvalidAddress)?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The entries of the setting, without the generation of the membership (`g#7:`) that may stand in front of all.
pub fn entries(setting: &str) -> impl Iterator<Item = &str> {
    let list = match setting.trim().strip_prefix("g#").and_then(|rest| rest.split_once(':')) {
        Some((generation, list)) if generation.bytes().all(|byte| byte.is_ascii_digit()) => list,
        _ => setting,
    };
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_plain_host_and_a_port() {
        let address: Address = "safekeeper-5.eu_1.example:6500".parse().unwrap();
        assert_eq!((address.host.as_str(), address.port), ("safekeeper-5.eu_1.example", 6500));
        assert_eq!(address.to_string(), "safekeeper-5.eu_1.example:6500");
        for bad in [
            "",
            "a",
            ":1",
            "a:",
            "a:0",
            "a:+1",
            "a:65536",
            "::1:5454",
            "[::1]:5454",
            "a b:1",
            "a,b:1",
            "a:1 ",
        ] {
            assert_eq!(bad.parse::<Address>(), Err(InvalidAddress), "{bad:?}");
        }
        assert!("postgresql://a:1".parse::<Address>().is_err() && "/run:1".parse::<Address>().is_err());
    }

    #[test]
    fn a_generation_is_no_part_of_the_first_address() {
        for (setting, expected) in [
            ("g#7:a:1,b:2", vec!["a:1", "b:2"]),
            (" a:1 , b:2,", vec!["a:1", "b:2"]),
            ("g#x:1", vec!["g#x:1"]),
            ("", vec![]),
        ] {
            assert_eq!(entries(setting).collect::<Vec<_>>(), expected, "{setting:?}");
        }
    }
}
