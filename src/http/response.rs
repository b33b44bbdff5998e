//! The one place that knows status codes and bodies; those of requests to Postgres are in [`postgres`].

use std::fmt::Display;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use compute_states::{ComputeStatus, Lsn, Refusal, Reply as Reaction, TerminationResult};
use futures_util::Stream;
use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::Offset;
use serde::Serialize;
use warp::http::StatusCode;
use warp::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use warp::reply::{Reply, Response};

use super::auth::Denied;
use super::dispatch::Missing;
use super::routes::CommunicatorError;
use super::{Identity, SpecIntake};
use crate::activity::Kind;
use crate::engine::{Promoted, Rejected, Snapshot, WorkError, queue::Answer};
use crate::limits;
use crate::postgres::settings::{Report, Reported};
use crate::storage::{Phase, Progress};
use crate::telemetry::StartupFigures;
use crate::telemetry::chain;

pub(super) mod live;
pub(super) mod page;
pub(super) mod postgres;

/// A request that cannot be served.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    text: String,
    /// What the log gets instead, where the text may quote what the client sent.
    logged: Option<String>,
    /// The text as the framework of the original writes it, where some routes send that.
    original: Option<String>,
    plain: bool,
    retry: bool,
    /// Whoever asks is told again and again, and the log must not be full of it.
    quiet: bool,
}

impl Problem {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Problem {
            status,
            text: text.into(),
            logged: None,
            original: None,
            plain: false,
            retry: false,
            quiet: false,
        }
    }

    /// A fault of the body: in lower case, what it quotes included (http-api, section 2).
    fn of_body(status: StatusCode, original: String) -> Self {
        let text = original.to_lowercase();
        Problem { original: Some(original), ..Problem::new(status, text) }
    }

    /// The other family: bare text, as the framework writes it.
    pub(super) fn plainly(self) -> Self {
        match self.original {
            Some(text) => Problem { text, original: None, plain: true, ..self },
            None => self,
        }
    }

    /// 400: the spec is not one this node could serve.
    pub(super) fn bad_spec(text: String) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, text)
    }

    /// 400, as bare text: the query is not what it should be.
    pub(super) fn bad_query(fault: &impl Display) -> Self {
        let text = format!("Failed to deserialize query string: {fault}");
        Problem { plain: true, ..Problem::new(StatusCode::BAD_REQUEST, text) }
    }

    /// 400: the same in the other family, in lower case except for letters beyond ASCII (http-api, section 2).
    pub(super) fn bad_query_json(fault: &impl Display) -> Self {
        let text = format!("Failed to deserialize query string: {fault}").to_ascii_lowercase();
        Problem::new(StatusCode::BAD_REQUEST, text)
    }

    /// 412: not in this status.
    pub(super) fn wrong_status(status: ComputeStatus) -> Self {
        Problem::new(StatusCode::PRECONDITION_FAILED, format!("invalid compute status: {status}"))
    }

    /// 415: the body does not say that it is JSON.
    pub(super) fn not_json() -> Self {
        let text = "Expected request with `Content-Type: application/json`";
        Problem::of_body(StatusCode::UNSUPPORTED_MEDIA_TYPE, text.to_owned())
    }

    /// 413: more than the limit.
    pub(super) fn body_too_long() -> Self {
        let text = "Failed to buffer the request body: length limit exceeded";
        Problem::of_body(StatusCode::PAYLOAD_TOO_LARGE, text.to_owned())
    }

    /// 408: the body did not arrive in time.
    pub(super) fn body_too_slow() -> Self {
        let text = "Failed to buffer the request body: it took too long";
        Problem::of_body(StatusCode::REQUEST_TIMEOUT, text.to_owned())
    }

    /// 400: the body broke off.
    pub(super) fn body_broken(fault: &impl Display) -> Self {
        Problem::of_body(StatusCode::BAD_REQUEST, format!("Failed to buffer the request body: {fault}"))
    }

    /// 400 or 422: the body is not JSON, or JSON of another shape.
    pub(super) fn bad_body(fault: &serde_path_to_error::Error<serde_json::Error>) -> Self {
        let (status, what) = match fault.inner().classify() {
            serde_json::error::Category::Data => {
                (StatusCode::UNPROCESSABLE_ENTITY, "Failed to deserialize the JSON body into the target type")
            }
            _ => (StatusCode::BAD_REQUEST, "Failed to parse the request body as JSON"),
        };
        let logged = format!("{what}: {}: {}", fault.path(), crate::secret::without_values(fault.inner()));
        Problem { logged: Some(logged), ..Problem::of_body(status, format!("{what}: {fault}")) }
    }

    /// The same, and another try is worth it in a moment.
    pub(super) fn again(self) -> Self {
        Problem { retry: true, ..self }
    }

    /// 503: worth another try in a moment.
    pub(super) fn busy() -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, Rejected::Busy.to_string()).again()
    }

    /// 503: not now, as a probe sees it.
    pub(super) fn unavailable(text: impl Into<String>) -> Self {
        Problem { quiet: true, ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, text) }
    }

    /// 503: there is no compute to ask yet, and what it is waiting for.
    pub(super) fn starting() -> Self {
        Problem::unavailable("only starting: the spec, PostgreSQL or the data directory is still waited for")
    }

    /// 501: the original has this, and this program does not.
    pub(super) fn not_built(what: &str) -> Self {
        let text = format!("not implemented: {what}");
        Problem { quiet: true, ..Problem::new(StatusCode::NOT_IMPLEMENTED, text) }
    }

    /// 412: as in the original when it is built without them.
    pub(super) fn no_failpoints() -> Self {
        Problem::new(StatusCode::PRECONDITION_FAILED, "this program is built without failpoints")
    }

    /// 500: a bug of ours; what it was is in the log.
    pub(super) fn bug() -> Self {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let status = match denied {
            Denied::NoToken => StatusCode::BAD_REQUEST,
            Denied::Unverified | Denied::NoAudience | Denied::OtherAudience => StatusCode::UNAUTHORIZED,
            Denied::NoComputeId | Denied::OtherComputeId | Denied::WebPage | Denied::OtherHost => {
                StatusCode::FORBIDDEN
            }
        };
        Problem::new(status, denied.to_string())
    }
}

impl From<Rejected> for Problem {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Busy => Problem::busy(),
            Rejected::Gone => Problem::new(StatusCode::SERVICE_UNAVAILABLE, rejected.to_string()),
        }
    }
}

impl Reply for Problem {
    fn into_response(self) -> Response {
        let (code, text) = (self.status.as_u16(), self.logged.as_ref().unwrap_or(&self.text));
        if self.quiet {
            tracing::debug!(code, "{text}");
        } else if self.status.is_server_error() {
            tracing::error!(code, "{text}");
        } else {
            // The client's fault: anybody could fill the log with errors otherwise.
            tracing::info!(code, "{text}");
        }
        let mut response = if self.plain {
            warp::reply::with_header(self.text, CONTENT_TYPE, "text/plain; charset=utf-8").into_response()
        } else {
            json(self.status, &Failure { error: &self.text })
        };
        *response.status_mut() = self.status;
        if self.retry {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(limits::HTTP_RETRY_AFTER));
        }
        response
    }
}

#[derive(Serialize)]
struct Failure<'a> {
    error: &'a str,
}

/// The outcome of a promotion.
#[derive(Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
enum Promotion {
    Completed { lsn_wait_time_ms: u64, pg_promote_time_ms: u64, reconfigure_time_ms: u64 },
    Failed { error: String },
}

#[derive(Serialize)]
struct Terminated {
    lsn: Option<String>,
}

/// Fields in the order in which they are sent; nulls are sent.
#[derive(Serialize)]
struct Status<'a> {
    start_time: String,
    tenant: Option<String>,
    timeline: Option<String>,
    status: ComputeStatus,
    last_active: Option<String>,
    error: Option<&'a str>,
    /// Not known to the original, whose clients skip what they do not know; absent when nothing is prepared.
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<Preparation>,
    /// What was seen at work, while a Postgres serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    activity: Option<AtWork>,
    /// The same; absent when everything that is wanted is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<&'a Report>,
}

/// What is at work in Postgres: kinds and counts.
#[derive(Serialize)]
struct AtWork {
    last_kind: Option<Kind>,
    sessions: Sessions,
    walsenders: Walsenders,
    logical_slots: Slots,
    subscriptions: u32,
    autovacuum_workers: u32,
    statistics_moved: Option<bool>,
}

#[derive(Serialize)]
struct NotIdle {
    error: String,
    activity: Option<AtWork>,
}

#[derive(Serialize)]
struct Sessions {
    active: u32,
    idle_in_transaction: u32,
    idle: u32,
    arriving: u32,
}

#[derive(Serialize)]
struct Walsenders {
    logical: u32,
    physical: u32,
}

#[derive(Serialize)]
struct Slots {
    active: u32,
    inactive: u32,
}

impl AtWork {
    fn of(snapshot: &Snapshot) -> Option<Self> {
        snapshot.activity.map(|seen| AtWork {
            last_kind: snapshot.last_kind,
            sessions: Sessions {
                active: seen.active_sessions,
                idle_in_transaction: seen.idle_in_transaction,
                idle: seen.idle_sessions,
                arriving: seen.arriving_sessions,
            },
            walsenders: Walsenders { logical: seen.logical_walsenders, physical: seen.physical_walsenders },
            logical_slots: Slots { active: seen.active_slots, inactive: seen.inactive_slots },
            subscriptions: seen.subscriptions,
            autovacuum_workers: seen.autovacuum_workers,
            statistics_moved: seen.statistics_moved,
        })
    }
}

/// How far the preparation of the data directory is.
#[derive(Serialize)]
struct Preparation {
    phase: String,
    received_bytes: u64,
    written_bytes: u64,
    files: u64,
}

impl Preparation {
    fn of(progress: &Progress) -> Option<Self> {
        let phase = progress.phase();
        (phase != Phase::Idle).then(|| Preparation {
            phase: phase.to_string(),
            received_bytes: progress.received(),
            written_bytes: progress.written(),
            files: progress.files(),
        })
    }
}

/// What an answer tells beside the machine's snapshot.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) specs: &'a dyn SpecIntake,
    pub(super) progress: &'a Progress,
    pub(super) settings: &'a Reported,
}

/// What the machine answered, or why it did not.
pub(super) fn answered(answer: Result<Answer, Rejected>, view: View<'_>) -> Result<Response, Problem> {
    let Answer { reply, snapshot, failure } = answer?;
    let error = || snapshot.error.as_deref().unwrap_or("unknown error");
    let internal = |text| Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, text));
    match reply {
        Reaction::Configured => Ok(status(&snapshot, view)),
        Reaction::ConfigureFailed => internal(format!("compute configuration failed: {:?}", error())),
        Reaction::ConfigureSuperseded => {
            let text = "the compute went down before the spec was applied";
            internal(format!("compute configuration failed: {text:?}"))
        }
        Reaction::Promoted => match snapshot.promotion {
            Some(promoted) => Ok(promotion_completed(promoted)),
            None => Err(Problem::bug()),
        },
        Reaction::PromoteFailed => {
            Ok(promotion_failed(&WorkError::on_one_line(failure.as_deref().unwrap_or(error()))))
        }
        Reaction::PromoteSuperseded => Ok(promotion_failed("the compute went down before it was promoted")),
        Reaction::Refused { refusal: Refusal::CannotPromote, status } => {
            Ok(promotion_failed(&format!("invalid compute status: {status}")))
        }
        Reaction::RefreshAccepted => Ok(StatusCode::OK.into_response()),
        Reaction::NotIdle => Ok(not_idle(failure.as_deref().unwrap_or("something is at work"), &snapshot)),
        Reaction::IdleUnknown => {
            let why = WorkError::on_one_line(failure.as_deref().unwrap_or("unknown error"));
            let text = format!("whether the compute is idle could not be found out: {why}");
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, text).again())
        }
        Reaction::Terminated(TerminationResult::Stopped(lsn)) => Ok(terminated(StatusCode::OK, lsn)),
        Reaction::AlreadyTerminated(TerminationResult::Stopped(lsn)) => {
            Ok(terminated(StatusCode::CREATED, lsn))
        }
        Reaction::Terminated(TerminationResult::FinalSyncFailed)
        | Reaction::AlreadyTerminated(TerminationResult::FinalSyncFailed) => {
            internal(format!("failed to sync safekeepers: {}", error()))
        }
        Reaction::Refused { refusal, status } => Err(match refusal {
            Refusal::InvalidStatus => Problem::wrong_status(status),
            Refusal::CannotRefresh => Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("Cannot refresh compute configuration in state {status:?}"),
            ),
            Refusal::WorkBegun => {
                Problem::new(StatusCode::CONFLICT, format!("the compute is not idle: {refusal}"))
            }
            // In status running nothing else is in the way of a spec, and this is soon over.
            Refusal::Promoting | Refusal::TooManyWaiters => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, refusal.to_string()).again()
            }
            // Nothing a client could do helps; for a refresh any code but 200 keeps Postgres's clock going.
            Refusal::PostmasterUnconfirmed | Refusal::NothingToReload | Refusal::CannotPromote => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, refusal.to_string())
            }
        }),
    }
}

/// 409: the compute was to end only if it is idle. Told with the counts, those that do not count included.
fn not_idle(text: &str, snapshot: &Snapshot) -> Response {
    let error = format!("the compute is not idle: {text}");
    tracing::info!(code = StatusCode::CONFLICT.as_u16(), "{error}");
    json(StatusCode::CONFLICT, &NotIdle { error, activity: AtWork::of(snapshot) })
}

/// The body of `GET /status`, which a successful `/configure` answers too.
pub(super) fn status(snapshot: &Snapshot, view: View<'_>) -> Response {
    let Identity { tenant, timeline } =
        snapshot.spec.map(|revision| view.specs.identity(revision)).unwrap_or_default();
    let settings = view.settings.get();
    let body = Status {
        start_time: with_letter(snapshot.start_time),
        tenant,
        timeline,
        status: snapshot.status,
        // The original writes this one with an offset instead of the letter, and Go clients parse either.
        last_active: snapshot.last_active.map(with_offset),
        error: snapshot.error.as_deref(),
        storage: (snapshot.status == ComputeStatus::Init).then(|| Preparation::of(view.progress)).flatten(),
        activity: AtWork::of(snapshot),
        settings: (!settings.is_empty()).then_some(&*settings),
    };
    json(StatusCode::OK, &body)
}

/// The body of `GET /metrics.json`.
pub(super) fn startup(figures: &StartupFigures) -> Response {
    json(StatusCode::OK, figures)
}

/// The text of `GET /metrics`.
pub(super) fn metrics(text: Result<String, impl Display>) -> Result<Response, Problem> {
    match text {
        Ok(text) => {
            Ok(warp::reply::with_header(text, CONTENT_TYPE, "text/plain; version=0.0.4").into_response())
        }
        Err(error) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// What a probe hears when all is well.
pub(super) fn probed() -> Response {
    json(StatusCode::OK, &"ok")
}

/// A JSON document that was written before.
pub(super) fn document(text: Bytes) -> Response {
    warp::reply::with_header(text.to_vec(), CONTENT_TYPE, "application/json").into_response()
}

/// The communicator's answer: its status, its type and its body.
pub(super) fn forwarded<S>(
    answer: Result<warp::http::Response<S>, CommunicatorError>,
) -> Result<Response, Problem>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Sync + 'static,
{
    let answer = answer.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&error)))?;
    let (head, body) = answer.into_parts();
    let mut response = warp::reply::stream(body).into_response();
    *response.status_mut() = head.status;
    if let Some(content_type) = head.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    Ok(response)
}

/// A request that finds no operation: 405 if the path exists, otherwise 404. Neither has a body.
pub(super) fn not_routed(missing: Missing) -> Response {
    match missing {
        Missing::Path => StatusCode::NOT_FOUND.into_response(),
        Missing::Method(allow) => {
            let mut response = StatusCode::METHOD_NOT_ALLOWED.into_response();
            response.headers_mut().insert(ALLOW, allow);
            response
        }
    }
}

/// 400: the request id cannot be sent back.
pub(super) fn unreadable_request_id() -> Response {
    Problem::new(StatusCode::BAD_REQUEST, "x-request-id should be visible ASCII").into_response()
}

fn promotion_completed(promoted: Promoted) -> Response {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let body = Promotion::Completed {
        lsn_wait_time_ms: ms(promoted.times.lsn_wait),
        pg_promote_time_ms: ms(promoted.times.pg_promote),
        reconfigure_time_ms: ms(promoted.reconfigure),
    };
    json(StatusCode::OK, &body)
}

fn promotion_failed(error: &str) -> Response {
    let code = StatusCode::INTERNAL_SERVER_ERROR;
    tracing::error!(code = code.as_u16(), "the promotion failed: {error}");
    json(code, &Promotion::Failed { error: error.to_owned() })
}

fn terminated(status: StatusCode, lsn: Option<Lsn>) -> Response {
    json(status, &Terminated { lsn: lsn.map(|lsn| lsn.to_string()) })
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let mut response = warp::reply::json(body).into_response();
    // A body that cannot be written is 500 already; none of ours can fail.
    if response.status() == StatusCode::OK {
        *response.status_mut() = status;
    }
    response
}

fn with_letter(time: Timestamp) -> String {
    printer(time).timestamp_to_string(&time)
}

fn with_offset(time: Timestamp) -> String {
    printer(time).timestamp_with_offset_to_string(&time, Offset::UTC)
}

/// RFC 3339 with as many digits after the second as are needed, in groups of three.
fn printer(time: Timestamp) -> DateTimePrinter {
    let digits = match time.subsec_nanosecond() {
        0 => 0,
        nanos if nanos % 1_000_000 == 0 => 3,
        nanos if nanos % 1_000 == 0 => 6,
        _ => 9,
    };
    DateTimePrinter::new().precision(Some(digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::store::StoredSpec;

    #[test]
    fn times_have_groups_of_three_digits_and_the_zone_of_their_field() {
        for (nanos, digits) in [
            (0, ""),
            (100_000_000, ".100"),
            (654_321_000, ".654321"),
            (123_456_789, ".123456789"),
            (10, ".000000010"),
        ] {
            let time = Timestamp::new(1_753_963_200, nanos).expect("in range");
            assert_eq!(with_letter(time), format!("2025-07-31T12:00:00{digits}Z"));
            assert_eq!(with_offset(time), format!("2025-07-31T12:00:00{digits}+00:00"));
        }
    }

    #[test]
    fn what_a_body_quotes_is_not_logged() {
        let mut json = serde_json::Deserializer::from_str(r#"["hunter2"]"#);
        let fault = serde_path_to_error::deserialize::<_, Vec<bool>>(&mut json).expect_err("not a boolean");
        let problem = Problem::bad_body(&fault);
        assert!(problem.text.contains("hunter2"));
        let logged = problem.logged.expect("something else");
        assert!(!logged.contains("hunter2") && logged.contains("[0]: invalid type"), "{logged}");
    }

    #[test]
    fn an_end_of_postgres_that_is_not_confirmed_is_told() {
        struct NoSpecs;
        impl SpecIntake for NoSpecs {
            fn accept(&self, _: crate::spec::document::ComputeSpec) -> Result<crate::http::Accepted, String> {
                Err("none".to_owned())
            }
            fn judge(&self, _: crate::spec::document::ComputeSpec) -> Result<StoredSpec, String> {
                Err("none".to_owned())
            }
            fn identity(&self, _: compute_states::Revision) -> Identity {
                Identity::default()
            }
        }
        let machine = ComputeStatus::Failed;
        let snapshot = Snapshot {
            status: machine,
            fault: None,
            error: None,
            server: None,
            spec: None,
            start_time: Timestamp::UNIX_EPOCH,
            last_active: None,
            promotion: None,
            activity: None,
            last_kind: None,
            started: false,
        };
        let reply = Reaction::Refused { refusal: Refusal::PostmasterUnconfirmed, status: machine };
        let (progress, settings) = (Progress::default(), Reported::default());
        let view = View { specs: &NoSpecs, progress: &progress, settings: &settings };
        let problem = answered(Ok(Answer { reply, snapshot: snapshot.into(), failure: None }), view)
            .expect_err("refused");
        assert_eq!(problem.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(problem.text, "the end of the last postmaster is not confirmed");
    }
}
