//! What is served before the compute is there to be asked.
//!
//! The servers answer as soon as they are bound, which is before there is a spec and before the data directory is
//! known to be free: whoever runs the container must see that the process lives. Only the probes can be answered
//! then. Everything else waits for a moment, since most starts have all they need within one, and is told to come
//! again if it takes longer, as it does when the control plane is away. No token is looked at: the keys come with
//! the spec.

use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::SetOnce;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::http::Method;
use warp::reply::Response;

use crate::http::dispatch;
use crate::http::response::{Problem, probed};
use crate::limits;

/// What one server serves.
pub(super) type Routes = BoxedFilter<(Response,)>;

/// The routes of one server, once there are any.
pub(super) struct Opening {
    routes: SetOnce<Routes>,
    shutdown: CancellationToken,
}

impl Opening {
    pub(super) fn new(shutdown: &CancellationToken) -> Arc<Self> {
        Arc::new(Opening { routes: SetOnce::new(), shutdown: shutdown.clone() })
    }

    /// Serves these from now on. Those that were there before stay.
    pub(super) fn serve(&self, routes: Routes) {
        // Nobody serves twice; and if somebody did, clients would notice nothing.
        let _ = self.routes.set(routes);
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response {
        let routes = match self.routes.get() {
            Some(routes) => routes,
            None => match self.early(&request).await {
                Ok(routes) => routes,
                Err(problem) => return dispatch::instead(request.method(), request.headers(), problem),
            },
        };
        let service = TowerToHyperService::new(warp::service(routes.clone()));
        let Ok(response) = service.call(request).await;
        response
    }

    /// What answers a request that came early: the routes after all, or this.
    async fn early(&self, request: &Request<Incoming>) -> Result<&Routes, Result<Response, Problem>> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/livez" if reads => return Err(Ok(probed())),
            "/readyz" | "/startupz" if reads => return Err(Err(Problem::starting())),
            _ => {}
        }
        tokio::select! {
            biased;
            routes = timeout(limits::HTTP_OPENING, self.routes.wait()) => {
                routes.map_err(|_| Err(Problem::starting().again()))
            }
            () = self.shutdown.cancelled() => Err(Err(Problem::starting())),
        }
    }
}
