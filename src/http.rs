//! The external and the internal server.
//!
//! They translate: a request becomes an event, the machine's answer becomes a status code and a body. Nothing
//! here decides what is allowed in which state. Requests that change nothing the machine knows of go to Postgres
//! instead; those which need a running one go by the published status.
//!
//! | module | what lives there |
//! |---|---|
//! | [`server`] | binding, accepting, limits on connections, graceful stop |
//! | `routes` | what there is to ask for, and the work |
//! | `dispatch` | which request goes where; what is checked before it does |
//! | `openapi` | what the servers say of themselves |
//! | `body`, `query` | what requests carry |
//! | [`auth`], `site` | tokens; what stands in for them where none is needed |
//! | `response` | the one place that knows status codes and bodies |

use std::path::Path;
use std::sync::Arc;

use compute_states::{Revision, SpecOutline};

use crate::catalog::Requests;
use crate::engine::Handle;
use crate::postgres::settings::Reported;
use crate::spec::document::ComputeSpec;
use crate::spec::store::StoredSpec;
use crate::storage::Progress;
use crate::telemetry::Metrics;

pub mod auth;
mod body;
mod dispatch;
mod openapi;
mod query;
mod response;
mod routes;
pub mod server;
mod site;

pub use auth::Auth;
pub use routes::{external, internal};
pub use server::{BindError, BindSpec, ExternalAddress, Listeners, ServeError, Servers};

/// What both servers need of the rest of the program. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The way into the event loop.
    pub engine: Handle,
    /// What `GET /metrics` shows.
    pub metrics: Arc<Metrics>,
    /// How far the preparation of the data directory is.
    pub progress: Arc<Progress>,
    /// Where specs go.
    pub specs: Arc<dyn SpecIntake>,
    /// The way to Postgres.
    pub postgres: Requests,
    /// Who may use the external server.
    pub auth: Auth,
    /// Settings that are wanted and not in force.
    pub settings: Reported,
    /// The data directory, where the communicator's socket is.
    pub pgdata: Arc<Path>,
}

/// Where the specs that clients send go, and what is known of those that went there.
pub trait SpecIntake: Send + Sync + 'static {
    /// Checks a spec and keeps it, so that the machine can speak of it by number. Called outside the
    /// asynchronous threads, because a large spec takes a while.
    ///
    /// # Errors
    /// What is wrong with it, in words for the client (400).
    fn accept(&self, spec: ComputeSpec) -> Result<Accepted, String>;

    /// Checks a spec and keeps nothing. Called outside the asynchronous threads too.
    ///
    /// # Errors
    /// What is wrong with it, in words for the client (400).
    fn judge(&self, spec: ComputeSpec) -> Result<StoredSpec, String>;

    /// Whose data a kept spec speaks of. Called by each `GET /status`, so it must not wait.
    fn identity(&self, revision: Revision) -> Identity;
}

/// A spec that was taken in.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// By which the machine knows it.
    pub outline: SpecOutline,
    /// Held until the request is answered: however many other requests come meanwhile, the document stays.
    pub held: Option<Arc<StoredSpec>>,
}

/// Whose data a spec speaks of, as `/status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// 32 hexadecimal digits, if the spec names a tenant.
    pub tenant: Option<String>,
    /// 32 hexadecimal digits, if the spec names a timeline.
    pub timeline: Option<String>,
}
