//! The pure state machine of a compute node.
//!
//! [`Machine::handle`] takes one [`Event`] and returns a [`Step`]: the [`Effect`]s to carry out and a
//! [`Verdict`] on the event. Nothing here touches the world. The crate is `no_std` and forbids unsafe code,
//! so a clock, a file, a socket, a thread, a lock or a source of randomness cannot even be named; time
//! enters as [`Event::TimerFired`] and leaves as [`Effect::ArmTimer`].
//!
//! | module | what lives there |
//! |---|---|
//! | [`event`] | inputs |
//! | [`effect`] | outputs |
//! | [`verdict`] | what became of an event, and why |
//! | [`machine`] | the face, and the wiring to `statig` |
//! | [`state`] | one file per state, and the superstates whose handlers they share |
//! | [`idle_check`] | a region beside the states: a termination that is to happen only if nothing is at work |
//! | [`promotion`] | a region beside the states: a standby becomes a primary |
//! | [`explore`] | walks the machine over every reachable shape and every sample event |
//! | [`diagram`] | renders that walk: Mermaid, DOT, JSON, table |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod diagram;
pub mod effect;
pub mod event;
pub mod explore;
pub mod idle_check;
pub mod ids;
pub mod machine;
pub mod policy;
pub mod promotion;
pub mod state;
pub mod status;
pub mod verdict;

pub use effect::{Effect, EffectKind, ExitReason, Reply, StopMode, TerminationResult, Timer};
pub use event::{Event, EventKind, Exit, FailureClass, FetchedSpec, SpecOutline, TerminateMode};
pub use idle_check::IdleCheck;
pub use ids::{Epoch, Lsn, RequestId, Revision};
pub use machine::Machine;
pub use policy::{Policy, RestartPolicy};
pub use promotion::Promotion;
pub use state::{Fault, FaultKind, State};
pub use status::ComputeStatus;
pub use verdict::{Cause, Refusal, Step, Verdict};
