//! What the outside can do.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use compute_states::{EffectKind, Epoch, Event, Exit, FailureClass, FetchedSpec, Lsn, Revision, StopMode};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::queue::{Envelope, Input};
use crate::activity::Seen;
use crate::telemetry::Metrics;

/// The outside, as far as the loop needs it. One implementation is real, one is simulated.
pub trait World: Send + Sync + 'static {
    /// Runs one piece of work to its end. When `token` is cancelled it ends soon, having ended and reaped
    /// every process it started; how soon is bounded by [`limits::CANCEL_GRACE`](crate::limits::CANCEL_GRACE),
    /// after which it is dropped.
    fn run(
        &self,
        work: Work,
        token: CancellationToken,
    ) -> impl Future<Output = Result<Done, WorkError>> + Send + 'static;

    /// Spawns a postmaster and ends when it was reaped. An error means that there never was a process.
    fn start_postmaster(
        &self,
        postmaster: Epoch,
        spec: Revision,
        facts: Facts,
    ) -> impl Future<Output = Result<Exit, WorkError>> + Send + 'static;

    /// Tells a postmaster to go, without waiting. If it is only being spawned, as soon as it exists.
    fn stop_postmaster(&self, postmaster: Epoch, mode: StopMode);

    /// Lets a postmaster read its settings again, without waiting.
    fn reload_postmaster(&self, postmaster: Epoch);

    /// A random number. A simulated world draws it from its seed.
    fn random(&self) -> u64;
}

/// A piece of work, which ends in exactly one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Warm caches while there is nothing else to do.
    WarmUp,
    /// Check that this node can serve the spec.
    ResolveSpec {
        /// Which spec.
        spec: Revision,
    },
    /// Make the data directory ready for a start.
    PrepareStorage {
        /// Which spec.
        spec: Revision,
        /// Whether Postgres is started again after a crash inside this process.
        restart: bool,
    },
    /// Bring settings and catalog to what the spec says.
    ApplySpec {
        /// Which spec.
        spec: Revision,
        /// On which postmaster.
        postmaster: Epoch,
        /// Whether this postmaster has just been started.
        first: bool,
    },
    /// Make a primary of the standby that serves.
    Promote {
        /// What the node is to be.
        spec: Revision,
        /// Which postmaster.
        postmaster: Epoch,
        /// How much of the log it must have replayed before.
        lsn: Lsn,
    },
    /// Look whether anything is at work, and if not, keep everybody out until the result was handled.
    CheckIdle {
        /// Which postmaster.
        postmaster: Epoch,
    },
    /// Ask for the present spec.
    FetchSpec {
        /// What was applied last.
        applied: Option<Revision>,
    },
    /// End what postmasters and helpers left behind.
    Sweep,
    /// Bring the safekeepers to agree on the end of the log.
    FinalSync {
        /// Which spec names the safekeepers.
        spec: Revision,
    },
}

/// How a piece of work ended well.
#[derive(Debug)]
pub enum Done {
    /// There is nothing more to say.
    Done,
    /// A fetch found this.
    Fetched(FetchedSpec),
    /// The server is a primary, and this is how long that took.
    Promoted(PromotionTimes),
    /// Nothing is at work, and nothing will be as long as this is held.
    Idle {
        /// What was seen, which does not count.
        seen: Seen,
        /// What keeps it so.
        hold: Hold,
    },
    /// Something is at work.
    Busy {
        /// What was seen.
        seen: Seen,
        /// That which counts, in words.
        text: Arc<str>,
    },
    /// A final sync came to this end of the log.
    Synced(Lsn),
}

/// Something that stays as it is until this is dropped.
pub struct Hold {
    _held: Box<dyn Any + Send + Sync>,
}

impl Hold {
    /// Of a guard whose drop lets go.
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Hold { _held: Box::new(guard) }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

/// How long the first two parts of a promotion took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromotionTimes {
    /// Until the log of the old primary was replayed.
    pub lsn_wait: Duration,
    /// From then until the server was a primary.
    pub pg_promote: Duration,
}

/// How a piece of work ended badly.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct WorkError {
    /// What kind of failure, which is all that the machine sees.
    pub class: FailureClass,
    /// The whole chain of causes, for the log, the journal and the `error` field of the status. Free of
    /// secrets.
    pub text: Arc<str>,
}

impl WorkError {
    /// From an error and its causes, written as the original does: the error, a blank line, `Caused by:`, and
    /// the causes indented, numbered if there are several.
    pub fn new(class: FailureClass, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut text = error.to_string();
        let causes: Vec<String> =
            std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string).collect();
        if !causes.is_empty() {
            text.push_str("\n\nCaused by:");
            for (number, cause) in causes.iter().enumerate() {
                if causes.len() > 1 {
                    text.push_str(&format!("\n    {number}: {cause}"));
                } else {
                    text.push_str(&format!("\n    {cause}"));
                }
            }
        }
        WorkError { class, text: text.into() }
    }

    /// The text on one line, as the original tells it where it does not tell it in lines: the error and its causes,
    /// joined by colons.
    pub fn on_one_line(text: &str) -> String {
        let Some((error, causes)) = text.split_once("\n\nCaused by:\n") else { return text.to_owned() };
        let causes = causes.lines().map(|line| {
            let line = line.trim_start();
            match line.split_once(": ") {
                Some((number, cause)) if number.bytes().all(|byte| byte.is_ascii_digit()) => cause,
                _ => line,
            }
        });
        std::iter::once(error).chain(causes).collect::<Vec<_>>().join(": ")
    }

    /// Without causes.
    pub fn plain(class: FailureClass, text: impl Into<Arc<str>>) -> Self {
        WorkError { class, text: text.into() }
    }

    /// Work that was told to stop, and did.
    pub fn cancelled() -> Self {
        WorkError::plain(FailureClass::Cancelled, "cancelled")
    }
}

/// By which a running postmaster reports what happens before its end.
#[derive(Clone, Debug)]
pub struct Facts {
    postmaster: Epoch,
    queue: mpsc::WeakSender<Envelope>,
    words: Arc<OnceLock<String>>,
    metrics: Arc<Metrics>,
    begun: Instant,
    /// Set once the start was measured.
    measured: Arc<OnceLock<()>>,
}

impl Facts {
    pub(super) fn new(postmaster: Epoch, queue: mpsc::WeakSender<Envelope>, metrics: Arc<Metrics>) -> Self {
        let begun = Instant::now();
        Facts { postmaster, queue, words: Arc::default(), metrics, begun, measured: Arc::default() }
    }

    /// Notes how long the start took, the first time it is called: how long a server lives is no part of it.
    pub(super) fn measure(&self, outcome: &str) {
        if self.measured.set(()).is_ok() {
            self.metrics.effect(EffectKind::StartPostmaster, outcome, self.begun.elapsed());
        }
    }

    /// Why it gave up, in its own words, if it says so. Told before its end is reported.
    pub fn last_words(&self, words: Option<String>) {
        if let Some(words) = words {
            let _only_the_first = self.words.set(words);
        }
    }

    pub(super) fn words(&self) -> Option<&str> {
        self.words.get().map(String::as_str)
    }

    /// It accepts connections.
    pub async fn ready(&self) {
        self.measure("ok");
        self.send(Event::PostmasterReady { postmaster: self.postmaster }).await;
    }

    /// It is not ready, but advances.
    pub async fn progressed(&self) {
        self.send(Event::PostmasterProgressed { postmaster: self.postmaster }).await;
    }

    async fn send(&self, event: Event) {
        // When the loop has ended nobody needs to know.
        if let Some(queue) = self.queue.upgrade() {
            let _ = queue.send(Envelope { input: Input::Event(event), permit: None }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner(#[source] std::io::Error);

    #[test]
    fn the_chain_of_causes_is_written_as_the_original_does() {
        let io = std::io::Error::other("disk");
        let one = WorkError::new(FailureClass::Permanent, &Inner(std::io::Error::other("disk")));
        assert_eq!(&*one.text, "inner\n\nCaused by:\n    disk");
        let two = WorkError::new(FailureClass::Permanent, &Outer(Inner(io)));
        assert_eq!(&*two.text, "outer\n\nCaused by:\n    0: inner\n    1: disk");
        assert_eq!(WorkError::on_one_line(&one.text), "inner: disk");
        assert_eq!(WorkError::on_one_line(&two.text), "outer: inner: disk");
        assert_eq!(WorkError::on_one_line("alone"), "alone");
    }
}
