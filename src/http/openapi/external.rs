//! What is written of the external server's operations.

use serde_json::json;

pub(in crate::http) use super::internal::refresh;
use super::{About, Family, JSON, schemas};
use crate::limits;

pub(in crate::http) fn status() -> About {
    About::new("How the compute is").answer(200, schemas::named("Status"), "never waits")
}

pub(in crate::http) fn metrics() -> About {
    let text = json!({ "type": "string" });
    About::new("Metrics for Prometheus")
        .content("200", "text/plain; version=0.0.4", text, "the exposition format")
        .error(500, "the metrics cannot be written")
}

pub(in crate::http) fn configure() -> About {
    About::new("Applies a spec, and waits until it is applied")
        .body("ConfigurationRequest", limits::HTTP_CONFIGURE_BYTES, Family::Json)
        .answer(200, schemas::named("Status"), "applied; the status afterwards")
        .error(400, "the spec cannot be served by this node")
        .error(412, "not in this status")
        .error(500, "not applied, with the cause")
        .of_machine()
}

pub(in crate::http) fn promote() -> About {
    About::new("Makes a primary of a standby, and waits until it is one")
        .body("PromotionRequest", limits::HTTP_CONFIGURE_BYTES, Family::Plain)
        .answer(200, schemas::named("Promoted"), "it is a primary")
        .error(400, "the spec cannot be served by this node")
        .answer(
            500,
            json!({ "anyOf": [schemas::named("PromotionFailed"), schemas::named("Error")] }),
            "it is none, with the cause",
        )
        .of_machine()
}

pub(in crate::http) fn plan() -> About {
    About::new("What a spec would change of roles and databases; changes nothing")
        .body("ConfigurationRequest", limits::HTTP_CONFIGURE_BYTES, Family::Json)
        .answer(200, schemas::named("Plan"), "the plan")
        .error(400, "the spec cannot be served by this node")
        .error(409, "the spec is impossible with what is there")
        .error(412, "no Postgres serves")
        .of_postgres()
}

pub(in crate::http) fn terminate() -> About {
    let mode = json!({ "type": "string", "enum": ["fast", "immediate"], "default": "fast" });
    About::new("Stops Postgres, and waits until it is down. The process ends afterwards")
        .query("mode", false, mode, Family::Plain)
        .query("if_idle", false, json!({ "type": "boolean", "default": false }), Family::Plain)
        .answer(200, schemas::named("Terminated"), "Postgres is down")
        .answer(201, schemas::named("Terminated"), "it was down before")
        .answer(409, schemas::named("NotIdle"), "somebody uses Postgres, and `if_idle` is set")
        .error(412, "not in this status")
        .error(500, "the final sync with the safekeepers failed")
        .of_machine()
}

pub(in crate::http) fn list() -> About {
    About::new("All roles, with their verifiers, and all databases")
        .answer(200, schemas::named("Listing"), "the lists")
        .of_postgres()
}

pub(in crate::http) fn dump_schema() -> About {
    About::new("The schema of a database as SQL, under the label `application/json`")
        .query("database", true, json!({ "type": "string" }), Family::Json)
        .content("200", JSON, json!({}), "SQL, not JSON; streamed")
        .error(404, "there is no such database")
        .error(500, "`pg_dump` fails")
        .error(503, "too many dumps are under way")
}

pub(in crate::http) fn check_writability() -> About {
    About::new("Writes a row")
        .while_running()
        .answer(200, json!({ "const": true }), "written, or the disk is full")
        .of_postgres()
}

pub(in crate::http) fn insights() -> About {
    About::new("The slowest statements, from `pg_stat_statements`")
        .while_running()
        .answer(200, json!({ "type": "string" }), "JSON in a JSON string")
        .of_postgres()
}

pub(in crate::http) fn hadron_liveness() -> About {
    About::new("Whether the server takes connections, as `pg_isready` sees it")
        .answer(200, json!({ "const": "ok" }), "it does")
        .error(500, "it does not, or it could not be found out")
}

pub(in crate::http) fn communicator() -> About {
    About::new("Metrics of Neon's communicator, passed on with their status and type")
        .content("default", "*/*", json!({}), "whatever the communicator answers")
        .error(500, "the communicator does not answer")
}

pub(in crate::http) fn prewarm_state() -> About {
    not_built("What became of the last prewarming of the local file cache")
}

pub(in crate::http) fn prewarm() -> About {
    not_built("Loads what the local file cache held before")
}

pub(in crate::http) fn cancel_prewarm() -> About {
    not_built("Ends the prewarming of the local file cache")
}

pub(in crate::http) fn offload_state() -> About {
    not_built("What became of the last offloading of the local file cache")
}

pub(in crate::http) fn offload() -> About {
    not_built("Keeps what the local file cache holds")
}

pub(super) fn not_built(summary: &'static str) -> About {
    About::new(summary).error(501, "not implemented")
}

pub(in crate::http) fn live() -> About {
    probe("Whether the event loop gives a sign of life")
}

pub(in crate::http) fn ready() -> About {
    probe("Whether Postgres serves, by the status")
}

pub(in crate::http) fn started() -> About {
    probe("Whether the compute has served since the process started")
}

pub(in crate::http) fn startup() -> About {
    About::new("How long the parts of the first start took").answer(
        200,
        schemas::named("Startup"),
        "0 is not yet",
    )
}

pub(in crate::http) fn history() -> About {
    About::new("The last changes of the status, with their causes")
        .query("limit", false, json!({ "type": "integer", "minimum": 0 }), Family::Json)
        .answer(200, schemas::named("History"), "oldest first")
}

pub(in crate::http) fn events() -> About {
    About::new("The changes of the status as they happen, after the one with the number in `last-event-id`")
        .query("last_event_id", false, json!({ "type": "integer", "minimum": 0 }), Family::Json)
        .content("200", "text/event-stream", json!({}), "events `state`, `transition`, `gap`, without an end")
        .error(400, "`last-event-id` is no number")
        .error(503, "too many clients watch already")
}

pub(in crate::http) fn graph() -> About {
    About::new("The statuses and what leads from one to the other, the present one marked").answer(
        200,
        schemas::named("Graph"),
        "as in the diagrams",
    )
}

pub(in crate::http) fn page() -> About {
    About::new("A page for people. It holds nothing of the compute, and asks for a token where one is needed")
        .content("200", "text/html; charset=utf-8", json!({}), "the page")
}

fn probe(summary: &'static str) -> About {
    About::new(summary).answer(200, json!({ "const": "ok" }), "yes").error(503, "no")
}
