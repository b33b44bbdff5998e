//! Numbers by which the machine and the world recognise each other's things.

use core::fmt;

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
}
