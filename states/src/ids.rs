//! Numbers by which the machine and the world recognise each other's things.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// Identity of one piece of work, one timer or one postmaster. Only ever increasing, so that a late result
/// can be told from the one being waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// Identity of one request that is owed exactly one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// Number under which the full spec document is kept outside the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// A position in the write-ahead log, in bytes. Printed as PostgreSQL prints `pg_lsn`: the two halves in
/// upper-case hexadecimal, without padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// A text that is no position in the write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidLsn;

impl fmt::Display for InvalidLsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("should be two hexadecimal numbers of up to 8 digits with a slash between them, such as 0/16B3748")
    }
}

impl core::error::Error for InvalidLsn {}

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let half = |text: &str| {
            // A sign is no digit, though the standard library takes one.
            let digits = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(text, 16).ok()).flatten().ok_or(InvalidLsn)
        };
        let (high, low) = text.split_once('/').ok_or(InvalidLsn)?;
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn an_lsn_prints_as_two_unpadded_halves() {
        assert_eq!(Lsn(0).to_string(), "0/0");
        assert_eq!(Lsn(0x0000_0000_028F_10D8).to_string(), "0/28F10D8");
        assert_eq!(Lsn(0xA_0000_000F).to_string(), "A/F");
    }

    #[test]
    fn an_lsn_is_read_as_postgres_reads_it() {
        for lsn in [0, 0x028F_10D8, 0xA_0000_000F, u64::MAX] {
            assert_eq!(Lsn(lsn).to_string().parse(), Ok(Lsn(lsn)));
        }
        assert_eq!("a/00f".parse(), Ok(Lsn(0xA_0000_000F)));
        for wrong in ["", "/", "0", "0/", "/0", "+1/0", "0/123456789", "0/0/0", " 0/0", "0/g"] {
            assert_eq!(wrong.parse::<Lsn>(), Err(InvalidLsn), "{wrong}");
        }
    }
}
