//! What each server serves, and how.
//!
//! Adding a route: a line in one of the tables here, the work in a file below `routes/`, what is written of it in
//! [`openapi`].

use std::sync::Arc;

use compute_states::TerminateMode;
use serde::Deserialize;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use super::Context;
use super::body::Received;
use super::dispatch::{self, Access, Handled, Operation, Request, Shared, asked, json, json_or};
use super::openapi;
use super::openapi::external as about;
use super::openapi::internal as inside;
use super::query;
use super::response::{self, Problem};
use super::server::Side;
use crate::limits;
use crate::spec::document::{ConfigurationRequest, PromotionRequest};

mod absent;
mod communicator;
mod postgres;
mod probes;

pub(super) use communicator::CommunicatorError;

/// The routes of the external server, which the control plane uses.
pub fn external(context: Context) -> BoxedFilter<(Response,)> {
    use Access::{Anyone, Token};
    const SPEC: usize = limits::HTTP_CONFIGURE_BYTES;
    dispatch::serve(
        Side::External,
        context,
        vec![
            Operation::get("/status", Token, about::status(), asked(status)),
            Operation::get("/metrics", Anyone, about::metrics(), asked(metrics)),
            Operation::post("/configure", Token, about::configure(), json(SPEC, configure)),
            // Faults of the body are bare text here, as in the original.
            Operation::post("/promote", Token, about::promote(), json_or(SPEC, Problem::plainly, promote)),
            Operation::post("/plan", Token, about::plan(), json(SPEC, postgres::plan)),
            Operation::post("/terminate", Token, about::terminate(), asked(terminate)),
            Operation::get("/dbs_and_roles", Token, about::list(), asked(postgres::list)),
            Operation::get("/database_schema", Token, about::dump_schema(), asked(postgres::dump_schema)),
            Operation::post(
                "/check_writability",
                Token,
                about::check_writability(),
                asked(postgres::check_writability),
            ),
            Operation::get("/insights", Token, about::insights(), asked(postgres::insights)),
            Operation::get(
                "/hadron_liveness_probe",
                Token,
                about::hadron_liveness(),
                asked(probes::hadron_liveness),
            ),
            Operation::get(
                "/autoscaling_metrics",
                Anyone,
                about::communicator(),
                asked(communicator::metrics),
            ),
            Operation::get("/lfc/prewarm", Token, about::prewarm_state(), asked(absent::prewarm)),
            Operation::post("/lfc/prewarm", Token, about::prewarm(), asked(absent::prewarm)),
            Operation::delete("/lfc/prewarm", Token, about::cancel_prewarm(), asked(absent::prewarm)),
            Operation::get("/lfc/offload", Token, about::offload_state(), asked(absent::offload)),
            Operation::post("/lfc/offload", Token, about::offload(), asked(absent::offload)),
            Operation::get("/livez", Anyone, about::live(), asked(probes::live)),
            Operation::get("/readyz", Anyone, about::ready(), asked(probes::ready)),
            Operation::get("/startupz", Anyone, about::started(), asked(probes::started)),
            Operation::get("/openapi.json", Anyone, openapi::openapi(), asked(openapi::serve)),
        ],
    )
}

/// The routes of the internal server, which Postgres uses.
pub fn internal(context: Context) -> BoxedFilter<(Response,)> {
    use Access::Anyone;
    const NAMES: usize = limits::HTTP_BODY_BYTES;
    dispatch::serve(
        Side::Internal,
        context,
        vec![
            Operation::post("/refresh_configuration", Anyone, inside::refresh(), asked(refresh)),
            Operation::post("/grants", Anyone, inside::grant(), json(NAMES, postgres::grant)),
            Operation::post(
                "/extensions",
                Anyone,
                inside::install_extension(),
                json(NAMES, postgres::install_extension),
            ),
            Operation::post(
                "/extension_server/{*filename}",
                Anyone,
                inside::remote_extension(),
                asked(absent::remote_extension),
            ),
            Operation::post("/failpoints", Anyone, inside::failpoints(), json(NAMES, absent::failpoints)),
            Operation::get("/livez", Anyone, about::live(), asked(probes::live)),
            Operation::get("/readyz", Anyone, about::ready(), asked(probes::ready)),
            Operation::get("/startupz", Anyone, about::started(), asked(probes::started)),
            Operation::get("/openapi.json", Anyone, openapi::openapi(), asked(openapi::serve)),
        ],
    )
}

async fn status(Request { shared, .. }: Request) -> Handled {
    Ok(response::status(&shared.context.engine.snapshot(), shared.view()))
}

async fn metrics(Request { shared, .. }: Request) -> Handled {
    let context = &shared.context;
    context.metrics.preparation(&context.progress);
    response::metrics(context.metrics.render(context.engine.queue_depth()))
}

async fn configure(shared: Arc<Shared>, request: Received<ConfigurationRequest>) -> Handled {
    detached(async move {
        let specs = shared.context.specs.clone();
        // The checks of a large spec take as long as reading it.
        let accepted = tokio::task::spawn_blocking(move || {
            let Received { value, room: _room } = request;
            specs.accept(value.spec).map_err(Problem::bad_spec)
        });
        let accepted = accepted.await.unwrap_or_else(|_| Err(Problem::bug()))?;
        let answer = shared.context.engine.configure(accepted.outline).await;
        drop(accepted.held);
        response::answered(answer, shared.view())
    })
    .await
}

async fn promote(shared: Arc<Shared>, request: Received<PromotionRequest>) -> Handled {
    detached(async move {
        let specs = shared.context.specs.clone();
        let accepted = tokio::task::spawn_blocking(move || {
            let Received { value, room: _room } = request;
            let accepted = specs.accept(value.spec).map_err(Problem::bad_spec)?;
            Ok((accepted, value.wal_flush_lsn))
        });
        let (accepted, lsn) = accepted.await.unwrap_or_else(|_| Err(Problem::bug()))?;
        let answer = shared.context.engine.promote(accepted.outline, lsn).await;
        drop(accepted.held);
        response::answered(answer, shared.view())
    })
    .await
}

async fn terminate(Request { shared, query, .. }: Request) -> Handled {
    let mode = query.as_deref().map_or(Ok(TerminateMode::Fast), termination_mode)?;
    detached(async move { response::answered(shared.context.engine.terminate(mode).await, shared.view()) })
        .await
}

async fn refresh(Request { shared, .. }: Request) -> Handled {
    // Whatever comes of it: each call is a sign of trouble with a pageserver.
    shared.context.metrics.refresh_requested();
    response::answered(shared.context.engine.refresh().await, shared.view())
}

/// Work that goes on when the client goes away, because dropping the handler does not drop it.
async fn detached(work: impl Future<Output = Handled> + Send + 'static) -> Handled {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Problem::bug()))
}

fn termination_mode(query: &str) -> Result<TerminateMode, Problem> {
    #[derive(Deserialize)]
    struct Query {
        mode: TerminateMode,
    }
    query::parse(query).map(|Query { mode }| mode).map_err(|error| Problem::bad_query(&error))
}
