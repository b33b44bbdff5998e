//! What an operator may choose, and the deadlines the machine hands out.

use core::time::Duration;

use serde::{Deserialize, Serialize};

/// What to do when Postgres crashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Report, then end with Postgres's exit code. Whoever started the process decides.
    #[default]
    Never,
    /// Start Postgres again, within a budget.
    OnFailure,
}

/// Choices and deadlines. Fixed for the life of a machine, and part of its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// What to do when Postgres crashes.
    pub restart: RestartPolicy,
    /// Restarts allowed inside [`Policy::restart_window`].
    pub restart_budget: u8,
    /// How long a restart counts against the budget.
    pub restart_window: Duration,
    /// Postgres must be ready, or visibly recovering, this long after its spawn.
    pub start: Duration,
    /// How long a fast shutdown may take (a shutdown checkpoint is written in it).
    pub stop_fast: Duration,
    /// How long an immediate shutdown may take.
    pub stop_immediate: Duration,
    /// How long the kernel may take to deliver a kill.
    pub stop_kill: Duration,
    /// How long the processes a postmaster left behind may take to go.
    pub sweep: Duration,
    /// Final safekeeper sync for a client who waits for its LSN.
    pub final_sync: Duration,
    /// Final safekeeper sync after Postgres ended by itself: nobody waits, and neon_local gives the whole
    /// process ten seconds.
    pub unasked_final_sync: Duration,
    /// How long the process stays after `/terminate?mode=fast`, so that the control plane can read it.
    pub fast_linger: Duration,
    /// How long a failed start stays readable.
    pub failed_linger: Duration,
    /// How long a crash stays readable when there is no restart.
    pub crash_linger: Duration,
    /// How often a preparation of the data directory that met something which may pass is tried again. As in
    /// the original.
    pub storage_retries: u16,
    /// First pause before such a retry; half as much again each time, as in the original.
    pub storage_backoff: Duration,
    /// First pause after a failed refresh; doubled each time.
    pub refresh_backoff: Duration,
    /// Longest pause between two attempts of a refresh.
    pub refresh_backoff_cap: Duration,
    /// Clients that can wait for one termination; the next is refused.
    pub max_waiters: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            restart: RestartPolicy::Never,
            restart_budget: 5,
            restart_window: Duration::from_secs(300),
            start: Duration::from_secs(60),
            stop_fast: Duration::from_secs(60),
            stop_immediate: Duration::from_secs(10),
            stop_kill: Duration::from_secs(5),
            sweep: Duration::from_secs(10),
            final_sync: Duration::from_secs(30),
            unasked_final_sync: Duration::from_secs(5),
            fast_linger: Duration::from_secs(30),
            failed_linger: Duration::from_secs(30),
            crash_linger: Duration::from_millis(300),
            storage_retries: 10,
            storage_backoff: Duration::from_millis(500),
            refresh_backoff: Duration::from_millis(500),
            refresh_backoff_cap: Duration::from_secs(30),
            max_waiters: 64,
        }
    }
}

impl Policy {
    /// The pause before attempt `attempt + 1` of a refresh, without jitter.
    pub(crate) fn backoff(&self, attempt: u8) -> Duration {
        self.refresh_backoff
            .saturating_mul(1_u32.checked_shl(u32::from(attempt)).unwrap_or(u32::MAX))
            .min(self.refresh_backoff_cap)
    }

    /// The pause before retry `retry + 1` of a preparation, without jitter.
    pub(crate) fn storage_pause(&self, retry: u16) -> Duration {
        (0..retry).fold(self.storage_backoff, |pause, _| pause.saturating_mul(3) / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_cap() {
        let policy = Policy::default();
        assert_eq!(policy.backoff(0), Duration::from_millis(500));
        assert_eq!(policy.backoff(3), Duration::from_secs(4));
        assert_eq!(policy.backoff(6), Duration::from_secs(30));
        assert_eq!(policy.backoff(255), Duration::from_secs(30));
    }

    #[test]
    fn ten_retries_of_a_preparation_take_the_originals_minute() {
        let policy = Policy::default();
        assert_eq!(policy.storage_pause(0), Duration::from_millis(500));
        assert_eq!(policy.storage_pause(2), Duration::from_millis(1_125));
        let all: Duration = (0..policy.storage_retries).map(|retry| policy.storage_pause(retry)).sum();
        assert_eq!(all.as_secs(), 56);
        assert!(policy.storage_pause(u16::MAX) > Duration::from_secs(1 << 40));
    }
}
