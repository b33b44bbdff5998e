//! Making safekeepers agree: Neon's `postgres --sync-safekeepers`.

use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::EndOfLog;
use crate::limits;
use crate::postgres::LogSink;
use crate::postgres::process::{self, RunError};
use crate::secret::Secret;
use crate::spec::resolve::Lsn;

/// Why the safekeepers could not be made to agree.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The program could not be run to its end.
    #[error(transparent)]
    Run(#[from] RunError),
    /// It failed.
    #[error("postgres --sync-safekeepers failed ({status}); {printed}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The end of its log, and its standard output.
        printed: String,
    },
    /// It ended well without telling where the log ends.
    #[error("postgres --sync-safekeepers did not print one LSN; {printed}")]
    NoLsn {
        /// The end of its log, and its standard output.
        printed: String,
    },
}

impl SyncError {
    /// Another try may end better.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Failed { .. } | Self::NoLsn { .. } | Self::Run(RunError::TimedOut { .. }) => true,
            Self::Run(_) => false,
        }
    }

    /// The caller's own wish, not a failure.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Run(RunError::Cancelled { .. }))
    }
}

/// One run of the program, with the settings in `pgdata`. When it returns, or is dropped, nothing of it is left.
pub(super) async fn run(
    postgres: &Path,
    pgdata: &Path,
    token: Option<&Secret>,
    cancel: &CancellationToken,
) -> Result<EndOfLog, SyncError> {
    let mut command = Command::new(postgres);
    // It takes no `-D` in this mode.
    command.arg("--sync-safekeepers").env("PGDATA", pgdata).env_remove("NEON_AUTH_TOKEN");
    // Ours may be closed to it, as for the server itself.
    command.current_dir(pgdata);
    if let Some(token) = token {
        command.env("NEON_AUTH_TOKEN", token.reveal());
    }
    let said = Arc::new(Mutex::new(Vec::new()));
    let output = process::run_logged(command, cancel, limits::SAFEKEEPER_SYNC, listen(&said)).await?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let printed = || {
        let said = said.lock().unwrap_or_else(PoisonError::into_inner).join(" | ");
        format!("it logged {said:?}, and printed {:?}", cut(stdout.trim()))
    };
    if !output.status.success() {
        return Err(SyncError::Failed { status: output.status, printed: printed() });
    }
    match stdout.parse::<Lsn>() {
        Ok(lsn) => Ok(EndOfLog::of(lsn)),
        Err(_) => Err(SyncError::NoLsn { printed: printed() }),
    }
}

/// Passes on what the program logs, and remembers the last messages for an error.
fn listen(said: &Arc<Mutex<Vec<String>>>) -> LogSink {
    let said = said.clone();
    let mut pass = LogSink::stderr();
    LogSink::new(move |message| {
        pass.pass(message);
        // Every change is one insertion or removal, so a panic elsewhere cannot have left half of one behind.
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == limits::SAFEKEEPER_SYNC_MESSAGES {
            said.remove(0);
        }
        let text = message.strip_prefix("PG:").unwrap_or(message);
        said.push(cut(text.replace('\u{200b}', " ").trim()));
    })
}

fn cut(text: &str) -> String {
    text.chars().take(limits::SAFEKEEPER_SYNC_SHOWN).collect()
}
