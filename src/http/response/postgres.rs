//! Answers of the routes that work with Postgres itself.

use futures_util::stream;
use serde::Serialize;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::{Reply, Response};

use super::{Problem, json, probed};
use crate::catalog::requests::{
    DumpError, ExtensionInstallRequest, Listing, PlanRequestError, ReadinessError, RequestError, SchemaDump,
    SetRoleGrantsRequest, with_causes,
};
use crate::catalog::{ApplyError, PlanDocument};
use crate::telemetry::chain;

#[derive(Serialize)]
struct Installed<'a> {
    extension: &'a str,
    version: &'a str,
}

/// The answer of `GET /dbs_and_roles`.
pub(in crate::http) fn listing(listing: Result<Listing, RequestError>) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, &listing.map_err(|error| failed("", &error))?))
}

/// The answer of `GET /insights`: a JSON string that contains JSON.
pub(in crate::http) fn insights(insights: Result<String, RequestError>) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, &insights.map_err(|error| failed("", &error))?))
}

/// The answer of `POST /check_writability`.
pub(in crate::http) fn writable(written: Result<(), RequestError>) -> Result<Response, Problem> {
    written.map_err(|error| failed("", &error))?;
    Ok(json(StatusCode::OK, &true))
}

/// The answer of `GET /hadron_liveness_probe`. Why a server is not ready is for the log.
pub(in crate::http) fn is_ready(ready: Result<(), ReadinessError>) -> Result<Response, Problem> {
    match ready {
        Ok(()) => Ok(probed()),
        Err(error) => {
            let logged = Some(with_causes(&error));
            Err(Problem { logged, ..Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()) })
        }
    }
}

/// The answer of `POST /grants`.
pub(in crate::http) fn granted(
    granted: Result<(), RequestError>,
    request: &SetRoleGrantsRequest,
) -> Result<Response, Problem> {
    granted.map_err(|error| failed("failed to grant role privileges to the schema: ", &error))?;
    Ok(json(StatusCode::CREATED, request))
}

/// The answer of `POST /extensions`.
pub(in crate::http) fn installed(
    installed: Result<(), RequestError>,
    request: &ExtensionInstallRequest,
) -> Result<Response, Problem> {
    installed.map_err(|error| failed("failed to install extension: ", &error))?;
    let body = Installed { extension: &request.extension, version: &request.version };
    Ok(json(StatusCode::CREATED, &body))
}

/// The answer of `POST /plan`. A spec that is impossible on this server is a conflict with what is there.
pub(in crate::http) fn plan(plan: Result<PlanDocument, PlanRequestError>) -> Result<Response, Problem> {
    let status = match &plan {
        Err(PlanRequestError::Catalog(ApplyError::Plan(_))) => StatusCode::CONFLICT,
        Err(PlanRequestError::Busy) => return Err(Problem::busy()),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        Ok(document) => return Ok(json(StatusCode::OK, document)),
    };
    Err(Problem::new(status, plan.err().map(|error| chain(&error)).unwrap_or_default()))
}

/// The answer of `GET /database_schema`: SQL, under the label which the original gives it.
pub(in crate::http) fn schema(dump: Result<SchemaDump, DumpError>) -> Result<Response, Problem> {
    let dump = dump.map_err(|error| no_schema(&error))?;
    // Once it has failed there is nothing more, and the connection ends without the mark of a whole body.
    let pieces = stream::unfold(Some(dump), async |dump| {
        let mut dump = dump?;
        let piece = dump.next().await?;
        let rest = piece.is_ok().then_some(dump);
        Some((piece, rest))
    });
    let mut response = warp::reply::stream(pieces).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// 500 with the outermost message, or 503 when it is worth another try. The log has the causes as well.
fn failed(what: &str, error: &RequestError) -> Problem {
    if let RequestError::Busy = error {
        return Problem::busy();
    }
    let logged = Some(format!("{what}{}", with_causes(error)));
    Problem { logged, ..Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{what}{error}")) }
}

/// The texts are the original's and say little; the log says more.
fn no_schema(error: &DumpError) -> Problem {
    let (status, text) = match error {
        DumpError::Busy => return Problem::busy(),
        DumpError::NoSuchDatabase { .. } => (StatusCode::NOT_FOUND, "database does not exist"),
        DumpError::NoHost => (StatusCode::INTERNAL_SERVER_ERROR, "unexpected I/O error"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "failed to execute pg_dump"),
    };
    Problem { logged: Some(format!("{text}: {}", with_causes(error))), ..Problem::new(status, text) }
}
