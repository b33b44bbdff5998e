//! The PostgreSQL side: installation, data directory, configuration files, the postmaster.
//!
//! * [`install`] finds the programs and knows their version.
//! * [`pgdata`] owns the data directory: who lives on it, whose it is, and how it is cleared.
//! * [`conf`] and [`hba`] write the configuration files.
//! * [`settings`] changes the settings of a running server such that the outcome is known.
//! * [`postmaster`] starts the server, tells when it is ready and when it has ended, and sweeps what it left.
//! * [`door`] keeps clients out for a moment without turning them away.
//! * [`piped`] runs helper programs whose output is passed on.
//! * [`process`] runs helper programs, reaps orphans and drops privileges.

pub mod conf;
pub mod door;
pub mod hba;
pub mod install;
mod log;
mod orphan;
pub mod pgdata;
pub mod piped;
pub mod postmaster;
pub mod process;
mod proctable;
pub mod promotion;
mod readiness;
pub mod settings;
mod upstream;

pub use door::{Door, DoorError, Shut};
pub use install::{InstallError, Installation, Version};
pub use log::{LastWords, LogSink};
pub use orphan::end_orphan;
pub use pgdata::{ClearRule, Contents, DataDir, PgdataError};
pub use postmaster::{Fact, Launch, Postmaster, SpawnError, StopMode, SweepOutcome};
pub use upstream::{Said, Suspicion, UpstreamLog};
