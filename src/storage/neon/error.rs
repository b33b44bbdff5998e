//! What goes wrong between this program and a pageserver.

use std::io;
use std::time::Duration;

use tonic::{Code, Status};

use crate::storage::unpack::{Shape, UnpackError};
use crate::telemetry::chain;

/// A request to a pageserver failed.
#[derive(Debug, thiserror::Error)]
#[error("the request to pageserver {server} failed")]
pub struct PageserverError {
    /// Which one: host and port, and its node id if the spec tells.
    pub server: String,
    /// How.
    #[source]
    pub fault: Fault,
}

impl PageserverError {
    pub(super) fn of(server: &str) -> impl Fn(Fault) -> Self + use<> {
        let server = server.to_owned();
        move |fault| Self { server: server.clone(), fault }
    }

    /// Whether it may work later: see [`Fault::is_transient`].
    pub fn is_transient(&self) -> bool {
        self.fault.is_transient()
    }
}

/// How a request to a pageserver failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The spec's address cannot be used. What it says is not shown: it may hold a password.
    #[error("its address in the spec {0}")]
    Address(&'static str),
    /// No connection.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// The same over gRPC.
    #[error("no connection")]
    Channel(#[source] tonic::transport::Error),
    /// The connection was lost.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// The connection ended in the middle.
    #[error("the connection ended {0}")]
    Ended(&'static str),
    /// Nothing came for too long.
    #[error("it was silent for {} s {during}", after.as_secs_f32())]
    Silent {
        /// What was waited for.
        during: &'static str,
        /// How long.
        after: Duration,
    },
    /// It wants a password, and there is none.
    #[error("it asks for a token, and the spec has neither storage_auth_token nor a password in its address")]
    NoToken,
    /// It wants another proof than a password in clear text.
    #[error("it asks for an authentication that no pageserver asks for")]
    Authentication,
    /// The token cannot be sent in a header.
    #[error("storage_auth_token has characters that no header may have")]
    Token,
    /// It says no, over libpq.
    #[error("it answers with error {code}: {message}")]
    Refused {
        /// The SQLSTATE.
        code: String,
        /// What it says, cut if it is long.
        message: String,
    },
    /// It says no, or the call broke, over gRPC.
    #[error("it answers with gRPC status {code:?}: {message}")]
    Status {
        /// The code.
        code: Code,
        /// What it says, or what happened to the connection, cut if it is long.
        message: String,
    },
    /// Something came that does not belong there.
    #[error("it does not keep to the protocol: {0}")]
    Protocol(&'static str),
}

impl Fault {
    pub(super) fn status(status: &Status) -> Self {
        // Of a call that broke, the message says next to nothing and the causes say all.
        let message = match std::error::Error::source(status) {
            Some(cause) => format!("{}: {}", status.message(), chain(cause)),
            None => status.message().to_owned(),
        };
        Self::Status { code: status.code(), message: shortened(&message) }
    }

    /// Whether the same request may succeed later.
    ///
    /// The original tries again after every error. Here an answer ends it that cannot become another one before
    /// the spec does: nobody who may not read a tenant is let in by asking again, and each such try would cost a
    /// client of `/configure` a minute. Everything else is tried again, for the servers tell less than one would
    /// like: over libpq a tenant that is being moved, a timeline that was never there, a wait that took too long and
    /// an LSN that was garbage collected all are `XX000`. Therefore `NOT_FOUND` is transient as well, which also
    /// is what a shard answers while it moves.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect(_)
            | Self::Channel(_)
            | Self::Broken(_)
            | Self::Ended(_)
            | Self::Silent { .. }
            | Self::Protocol(_) => true,
            Self::Address(_) | Self::NoToken | Self::Authentication | Self::Token => false,
            // Not let in; not supported; not understood.
            Self::Refused { code, .. } => {
                !["28", "0A", "22", "42"].iter().any(|class| code.starts_with(class))
            }
            Self::Status { code, .. } => !matches!(
                code,
                Code::Unauthenticated
                    | Code::PermissionDenied
                    | Code::InvalidArgument
                    | Code::OutOfRange
                    | Code::FailedPrecondition
                    | Code::Unimplemented
            ),
        }
    }
}

/// What a server says, as far as a log is to carry it.
pub(super) fn shortened(text: &str) -> String {
    const LONGEST: usize = 1000;
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Why Neon's storage did not become a data directory.
#[derive(Debug, thiserror::Error)]
pub enum NeonError {
    /// A primary, and nobody to ask where its log ends: a bug.
    #[error("a primary on Neon storage without safekeepers; this is a bug")]
    NoAgreement,
    /// A pageserver does not give a base backup.
    #[error("no base backup from Neon storage")]
    Pageserver(#[source] PageserverError),
    /// What it gives cannot be unpacked.
    #[error("the base backup of pageserver {server} cannot be unpacked")]
    Unpack {
        /// Which one.
        server: String,
        /// Why.
        source: UnpackError,
    },
    /// It has unpacked something else.
    #[error(
        "the base backup of pageserver {server} is no whole cluster: {lacks} is missing or not what it should be"
    )]
    NotACluster {
        /// Which one.
        server: String,
        /// The file that a cluster has.
        lacks: &'static str,
    },
}

impl NeonError {
    /// Whether the same may succeed later.
    ///
    /// A damaged base backup is one whose making or sending was interrupted: it is made anew for each request. One
    /// that is not compressed as was asked, or holds entries that no data directory has, would be made so again.
    pub(in crate::storage) fn is_transient(&self) -> bool {
        match self {
            Self::NoAgreement => false,
            Self::Pageserver(error) => error.is_transient(),
            Self::Unpack { source, .. } => matches!(
                source,
                UnpackError::Damaged { .. }
                    | UnpackError::NoArchive(_)
                    | UnpackError::Source(_)
                    | UnpackError::Shape(Shape::CutOff | Shape::Followed | Shape::Dangling)
            ),
            // `pg_control` comes late, so that what was cut off lacks it.
            Self::NotACluster { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str) -> Fault {
        Fault::Refused { code: code.to_owned(), message: String::new() }
    }

    fn status(code: Code) -> Fault {
        Fault::Status { code, message: String::new() }
    }

    #[test]
    fn what_may_pass_is_told_from_what_does_not() {
        for code in ["57P01", "08006", "XX000", "53300", ""] {
            assert!(refused(code).is_transient(), "{code}");
        }
        for code in ["28P01", "28000", "0A000", "42601", "22023"] {
            assert!(!refused(code).is_transient(), "{code}");
        }
        for code in [Code::Unavailable, Code::Internal, Code::Cancelled, Code::Unknown, Code::NotFound] {
            assert!(status(code).is_transient(), "{code:?}");
        }
        for code in [
            Code::Unauthenticated,
            Code::PermissionDenied,
            Code::InvalidArgument,
            Code::FailedPrecondition,
            Code::Unimplemented,
        ] {
            assert!(!status(code).is_transient(), "{code:?}");
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let cut = shortened(&"ä".repeat(5000));
        assert_eq!(cut.chars().count(), 1001);
        assert!(cut.ends_with('…'));
    }
}
