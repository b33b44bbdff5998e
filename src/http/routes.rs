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
use super::dispatch::{self, Access, Handled, Operation, Request, Shared, Work, asked, detached, json, spec};
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
mod live;
mod postgres;
mod probes;

pub(super) use communicator::CommunicatorError;

/// The routes of the external server, which the control plane uses. To be called in the runtime that serves them.
pub fn external(context: Context) -> BoxedFilter<(Response,)> {
    use Access::{Anyone, Token};
    const SPEC: usize = limits::HTTP_CONFIGURE_BYTES;
    let open = context.auth.is_open();
    let mut operations = vec![
        Operation::get("/status", Token, about::status(), asked(status)),
        Operation::get("/metrics", Anyone, about::metrics(), asked(metrics)),
        Operation::post("/configure", Token, about::configure(), spec(|problem| problem, configure)),
        // Faults of the body are bare text here, as in the original.
        Operation::post("/promote", Token, about::promote(), spec(Problem::plainly, promote)),
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
        Operation::get("/autoscaling_metrics", Anyone, about::communicator(), asked(communicator::metrics)),
        Operation::get("/lfc/prewarm", Token, about::prewarm_state(), asked(absent::prewarm)),
        Operation::post("/lfc/prewarm", Token, about::prewarm(), asked(absent::prewarm)),
        Operation::delete("/lfc/prewarm", Token, about::cancel_prewarm(), asked(absent::prewarm)),
        Operation::get("/lfc/offload", Token, about::offload_state(), asked(absent::offload)),
        Operation::post("/lfc/offload", Token, about::offload(), asked(absent::offload)),
        Operation::get("/livez", Anyone, about::live(), asked(probes::live)),
        Operation::get("/readyz", Anyone, about::ready(), asked(probes::ready)),
        Operation::get("/startupz", Anyone, about::started(), asked(probes::started)),
        Operation::get("/openapi.json", Anyone, openapi::openapi(), asked(openapi::serve)),
        Operation::get("/metrics.json", Token, about::startup(), asked(startup)),
        Operation::get("/history", Token, about::history(), asked(live::history)),
        Operation::get("/events", Token, about::events(), live::events(&context.engine)),
        Operation::get("/fsm", Token, about::graph(), asked(live::graph)),
        Operation::post("/refresh_configuration", Token, about::refresh(), asked(refresh_by_hand)),
        Operation::get("/ui", Anyone, about::page(), asked(live::page)),
    ];
    // Where nobody needs a token, the page is also what a person finds who opens the server's address.
    operations.extend(open.then(|| Operation::get("/", Anyone, about::page(), asked(live::page))));
    dispatch::serve(Side::External, context, operations)
}

/// The routes of the internal server, which Postgres uses.
pub fn internal(context: Context) -> BoxedFilter<(Response,)> {
    use Access::{Anyone, Local};
    const NAMES: usize = limits::HTTP_BODY_BYTES;
    dispatch::serve(
        Side::Internal,
        context,
        vec![
            Operation::post("/refresh_configuration", Local, inside::refresh(), asked(refresh)),
            Operation::post("/grants", Local, inside::grant(), json(NAMES, postgres::grant)),
            Operation::post(
                "/extensions",
                Local,
                inside::install_extension(),
                json(NAMES, postgres::install_extension),
            ),
            Operation::post(
                "/extension_server/{*filename}",
                Local,
                inside::remote_extension(),
                asked(absent::remote_extension),
            ),
            Operation::post("/failpoints", Local, inside::failpoints(), json(NAMES, absent::failpoints)),
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
    // Looked up when it is asked for, so that it is right whatever has changed the spec.
    let present = context.engine.snapshot().spec.map(|revision| context.specs.identity(revision));
    let present = present.unwrap_or_default();
    context.metrics.attached(present.tenant.as_deref().zip(present.timeline.as_deref()));
    response::metrics(context.metrics.render(context.engine.queue_depth()))
}

async fn startup(Request { shared, .. }: Request) -> Handled {
    Ok(response::startup(&shared.context.metrics.startup().figures()))
}

async fn configure(shared: Arc<Shared>, request: Received<ConfigurationRequest>) -> Handled {
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
}

async fn promote(shared: Arc<Shared>, request: Received<PromotionRequest>) -> Handled {
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
}

async fn terminate(Request { shared, query, .. }: Request) -> Handled {
    let Termination { mode, if_idle } = query.as_deref().map_or(Ok(Termination::default()), termination)?;
    detached(async move {
        let engine = &shared.context.engine;
        let answer = match if_idle {
            Flag::False => engine.terminate(mode).await,
            Flag::True => engine.terminate_if_idle(mode).await,
        };
        response::answered(answer, shared.view())
    })
    .await
}

async fn refresh(Request { shared, .. }: Request) -> Handled {
    // Whatever comes of it: each call is a sign of trouble with a pageserver.
    shared.context.metrics.refresh_requested();
    response::answered(shared.context.engine.refresh().await, shared.view())
}

/// The same for a person, and so no sign of trouble.
async fn refresh_by_hand(Request { shared, .. }: Request) -> Handled {
    response::answered(shared.context.engine.refresh().await, shared.view())
}

/// How a compute is to end, and whether only if it is idle.
#[derive(Deserialize)]
struct Termination {
    #[serde(default = "fast")]
    mode: TerminateMode,
    if_idle: Flag,
}

impl Default for Termination {
    fn default() -> Self {
        Termination { mode: fast(), if_idle: Flag::False }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Flag {
    True,
    False,
}

fn fast() -> TerminateMode {
    TerminateMode::Fast
}

/// The original knows the mode alone, and asks for it wherever there is a query; with our own condition it may be
/// left out.
fn termination(query: &str) -> Result<Termination, Problem> {
    #[derive(Deserialize)]
    struct Query {
        mode: TerminateMode,
    }
    let names = form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name);
    let meant = |name: &str| name.to_ascii_lowercase().replace(['-', '_'], "") == "ifidle";
    // Anything else that is not known is ignored. This would end a compute that is in use.
    if let Some(name) = names.into_iter().find(|name| name != "if_idle" && meant(name)) {
        return Err(Problem::bad_query(&format!("unknown field `{name}`, expected `if_idle`")));
    }
    let conditional = form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "if_idle");
    let read = match conditional {
        true => query::parse(query),
        false => query::parse(query).map(|Query { mode }| Termination { mode, ..Termination::default() }),
    };
    read.map_err(|error| Problem::bad_query(&error))
}
