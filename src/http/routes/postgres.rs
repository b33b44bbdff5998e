//! The routes that work with Postgres itself.
//!
//! All of them end with their client: a handler that is dropped takes its session or its dump with it.

use std::sync::Arc;

use compute_states::ComputeStatus;
use serde::Deserialize;
use tracing::Instrument;

use super::{Handled, Received, Request, Shared, query};
use crate::catalog::Profile;
use crate::catalog::requests::{ExtensionInstallRequest, SetRoleGrantsRequest};
use crate::http::response::Problem;
use crate::http::response::postgres as response;
use crate::spec::document::ConfigurationRequest;
use crate::spec::store::StoredSpec;

pub(super) async fn list(Request { shared, .. }: Request) -> Handled {
    response::listing(shared.context.postgres.list().await)
}

pub(super) async fn dump_schema(Request { shared, query, .. }: Request) -> Handled {
    #[derive(Deserialize)]
    struct Query {
        database: String,
    }
    let Query { database } =
        query::parse(&query.unwrap_or_default()).map_err(|error| Problem::bad_query_json(&error))?;
    response::schema(shared.context.postgres.dump_schema(&database).await)
}

pub(super) async fn check_writability(Request { shared, .. }: Request) -> Handled {
    must_run(&shared)?;
    let span = tracing::info_span!("check_writability");
    response::writable(shared.context.postgres.check_writability().instrument(span).await)
}

pub(super) async fn insights(Request { shared, .. }: Request) -> Handled {
    must_run(&shared)?;
    response::insights(shared.context.postgres.insights().await)
}

pub(super) async fn grant(shared: Arc<Shared>, request: Received<SetRoleGrantsRequest>) -> Handled {
    must_run(&shared)?;
    let request = request.value;
    response::granted(shared.context.postgres.grant(&request).await, &request)
}

pub(super) async fn install_extension(
    shared: Arc<Shared>,
    request: Received<ExtensionInstallRequest>,
) -> Handled {
    must_run(&shared)?;
    let request = request.value;
    response::installed(shared.context.postgres.install_extension(&request).await, &request)
}

/// What `/configure` would change of roles and databases.
pub(super) async fn plan(shared: Arc<Shared>, request: Received<ConfigurationRequest>) -> Handled {
    let snapshot = shared.context.engine.snapshot();
    if snapshot.server.is_none() {
        return Err(Problem::wrong_status(snapshot.status));
    }
    let specs = shared.context.specs.clone();
    let (judged, _room) = tokio::task::spawn_blocking(move || {
        let Received { value, room } = request;
        (specs.judge(value.spec).map_err(Problem::bad_spec), room)
    })
    .await
    .map_err(|_| Problem::bug())?;
    let StoredSpec { document, resolved } = judged?;
    response::plan(shared.context.postgres.plan(&document, Profile::of(&resolved)).await)
}

fn must_run(shared: &Shared) -> Result<(), Problem> {
    match shared.context.engine.snapshot().status {
        ComputeStatus::Running => Ok(()),
        status => Err(Problem::wrong_status(status)),
    }
}
