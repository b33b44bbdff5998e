//! Finding out whether nothing is at work in Postgres, such that it stays so until the answer was handled.
//!
//! First as everybody looks; a server that is at work is disturbed by nothing more. Then once more behind a shut door.
//! What that look does not show was not let in, and is not let in before the machine has decided: the door opens when
//! the hold is dropped, which comes after the stop was sent.

use jiff::Timestamp;
use thiserror::Error;
use tokio::time::timeout;

use super::Parts;
use super::work::permanent;
use crate::activity::look::Prepared;
use crate::activity::{Activity, Judge, Look, Seen};
use crate::catalog::{self, ConnectError, Connection, ConnectionSettings, Profile};
use crate::engine::{Done, Hold, WorkError};
use crate::limits;
use crate::postgres::{Door, DoorError};

use compute_states::FailureClass;

/// How this session shows up in `pg_stat_activity`.
const APPLICATION_NAME: &str = "compute_ctl:idle_check";

/// Why it could not be found out.
#[derive(Debug, Error)]
enum LookError {
    #[error("Postgres cannot be reached")]
    Connect(#[source] ConnectError),
    #[error("Postgres could not be asked for its activity")]
    Ask(#[source] tokio_postgres::Error),
    #[error("Postgres did not answer in time")]
    TimedOut,
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error("the postmaster was in the midst of something at each of {} looks", limits::IDLE_LOOKS)]
    NeverStill,
}

impl Parts {
    /// Looks, through a session of its own.
    pub(super) async fn check_idle(&self, door: Option<Door>) -> Result<Done, WorkError> {
        let door = door.ok_or_else(|| error(DoorError::Gone.into()))?;
        let settings = ConnectionSettings::new(&self.connstr, Profile::Standard).map_err(permanent)?;
        self.look(&door, &settings.named(APPLICATION_NAME)).await.map_err(error)
    }

    async fn look(&self, door: &Door, settings: &ConnectionSettings) -> Result<Done, LookError> {
        let begin = async {
            let connection = catalog::connect(settings).await.map_err(LookError::Connect)?;
            let prepared = Prepared::new(&connection).await.map_err(LookError::Ask)?;
            Ok::<_, LookError>((connection, prepared))
        };
        let (connection, prepared) =
            timeout(limits::ACTIVITY_ROUND, begin).await.map_err(|_| LookError::TimedOut)??;
        let mut judge = Judge::default();
        let look = ask(&prepared, &connection, self.rules.statistics(), false).await?;
        if let Some(busy) = self.busy(judge.judge(&look, Timestamp::now(), &self.rules)) {
            return Ok(busy);
        }
        let mut last = Activity::default();
        for _ in 0..limits::IDLE_LOOKS {
            let door = door.clone();
            let Some(shut) = blocking(move || door.shut()).await?? else { continue };
            let look = ask(&prepared, &connection, self.rules.statistics(), true).await?;
            let seen = judge.judge(&look, Timestamp::now(), &self.rules);
            if let Some(busy) = self.busy(seen) {
                return Ok(busy);
            }
            let counting = move || {
                let counted = shut.untold(&look.pids);
                // Last: what was counted behind an open door counts for nothing.
                shut.holds().map(|()| (counted, shut))
            };
            let (counted, shut) = blocking(counting).await??;
            if counted == 0 {
                return Ok(Done::Idle { seen, hold: Hold::new(shut) });
            }
            let arriving_sessions = u32::try_from(counted).unwrap_or(u32::MAX);
            last = Activity { arriving_sessions, ..seen.activity };
        }
        self.busy(Seen { activity: last, newest: None }).ok_or(LookError::NeverStill)
    }

    /// What is at work, in words, if anything is.
    fn busy(&self, seen: Seen) -> Option<Done> {
        let text = seen.activity.holding_back(&self.rules)?;
        Some(Done::Busy { seen, text: text.into() })
    }
}

/// Behind a shut door clients wait, so this is bounded closely.
async fn ask(
    prepared: &Prepared,
    connection: &Connection,
    statistics: bool,
    shut: bool,
) -> Result<Look, LookError> {
    let patience = if shut { limits::DOOR_SHUT } else { limits::ACTIVITY_ROUND };
    let look = timeout(patience, prepared.look(connection, statistics, shut)).await;
    look.map_err(|_| LookError::TimedOut)?.map_err(LookError::Ask)
}

/// It ends without a result only if the runtime is being shut down, and then there is nothing to look at.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, LookError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| DoorError::Gone.into())
}

fn error(error: LookError) -> WorkError {
    let class = match error {
        LookError::TimedOut => FailureClass::TimedOut,
        LookError::Door(DoorError::Unreadable { .. }) => FailureClass::Permanent,
        _ => FailureClass::Transient,
    };
    WorkError::new(class, &error)
}
