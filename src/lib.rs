//! `compute_ctl`: the entrypoint and supervisor of a Postgres compute node.
//!
//! What the node *decides* is a pure function of state and event, in the crate `compute-states`. What it
//! *does* is the list of effects which that function returns; this crate runs them.
//!
//! | module | what lives there |
//! |---|---|
//! | [`cli`] | command line, environment, exit codes |
//! | [`node`] | composition: builds the parts, starts the producers, awaits the engine |
//! | [`engine`] | the event loop: queue, effects, timers, journal, published status |
//! | [`spec`] | config and spec documents: types, faults, resolution, store |
//! | [`storage`] | where the data directory comes from |
//! | [`postgres`] | installation, data directory, configuration files, the postmaster |
//! | [`activity`] | what can be at work in a Postgres, and what of it counts |
//! | [`catalog`] | roles and databases: read, plan, show, apply |
//! | [`http`] | the external and the internal server |
//! | [`control_plane`] | fetching a spec |
//! | [`signals`] | signals as events, orphans as PID 1 |
//! | [`telemetry`] | logging and metrics |
//! | [`limits`] | every bound and timeout, with its reason |

pub mod activity;
pub mod catalog;
pub mod cli;
pub mod control_plane;
pub mod engine;
pub mod http;
pub mod limits;
pub mod node;
pub mod postgres;
pub mod secret;
pub mod signals;
pub mod spec;
pub mod storage;
pub mod telemetry;
