//! How the program ends.

use std::process;

/// Exit codes, all in one place.
///
/// PostgreSQL's own codes are small numbers and are passed through when it ended by itself, so ours beyond the
/// customary 0, 1 and 2 follow `sysexits.h`, from 64 upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitCode {
    /// 0: asked to end, and everything stopped cleanly.
    Ok,
    /// 1: a failed start, a crash by a signal, detached by the control plane, anything without its own code.
    Failure,
    /// 2: bad arguments; nothing was touched.
    Usage,
    /// 2: `plan` has found something to change. The number is the one that tools of this kind use, and that of bad
    /// arguments too, which `plan` tells on stderr.
    Changes,
    /// 3: a compute answers, but its Postgres does not serve, or not as waited for.
    NotServing,
    /// 4: a compute was not terminated, because somebody uses it.
    Busy,
    /// 65: a journal to replay is no journal, or does not lead to the states it names.
    BadJournal,
    /// 66: a config, spec or journal file cannot be read.
    Unreadable,
    /// 69: no PostgreSQL was found, or the named binary is none.
    NoPostgres,
    /// 70: a fault of this program: its state machine or loop panicked.
    Internal,
    /// 71: the found PostgreSQL has a version that is not served.
    UnsupportedPostgres,
    /// 72: a port is in use, or cannot be bound.
    PortInUse,
    /// 73: the data directory is not ours to replace, or a server lives on it.
    PgdataRefused,
    /// 74: the final safekeeper sync failed.
    FinalSyncFailed,
    /// 75: the control plane could not be asked for a spec.
    ControlPlane,
    /// 76: PostgreSQL had to be killed with SIGKILL in order to stop.
    Killed,
    /// 77: the unprivileged user is unknown, or privileges cannot be dropped.
    NoPrivilege,
    /// 78: a config or spec is invalid.
    BadConfig,
    /// PostgreSQL's own code, after it ended by itself and was not to be started again.
    Postgres(u8),
}

impl ExitCode {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failure => 1,
            Self::Usage | Self::Changes => 2,
            Self::NotServing => 3,
            Self::Busy => 4,
            Self::BadJournal => 65,
            Self::Unreadable => 66,
            Self::NoPostgres => 69,
            Self::Internal => 70,
            Self::UnsupportedPostgres => 71,
            Self::PortInUse => 72,
            Self::PgdataRefused => 73,
            Self::FinalSyncFailed => 74,
            Self::ControlPlane => 75,
            Self::Killed => 76,
            Self::NoPrivilege => 77,
            Self::BadConfig => 78,
            Self::Postgres(code) => code,
        }
    }
}

impl From<ExitCode> for process::ExitCode {
    fn from(exit: ExitCode) -> Self {
        Self::from(exit.code())
    }
}

/// Which code a config file that cannot be used ends with.
impl From<&crate::spec::fault::ConfigError> for ExitCode {
    fn from(error: &crate::spec::fault::ConfigError) -> Self {
        match error {
            crate::spec::fault::ConfigError::Unreadable { .. } => Self::Unreadable,
            crate::spec::fault::ConfigError::Invalid { .. } => Self::BadConfig,
        }
    }
}
