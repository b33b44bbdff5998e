//! Bodies, as JSON schemas.

use serde_json::{Value, json};

/// A reference to one of [`all`].
pub(super) fn named(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

pub(super) fn all() -> Value {
    json!({
        "Error": record(&["error"], json!({ "error": { "type": "string" } })),
        "Status": record(
            &["start_time", "tenant", "timeline", "status", "last_active", "error"],
            json!({
                "start_time": { "type": "string", "format": "date-time" },
                "tenant": hex_id(),
                "timeline": hex_id(),
                "status": { "enum": statuses() },
                "last_active": { "type": ["string", "null"], "format": "date-time" },
                "error": { "type": ["string", "null"] },
                "storage": record(
                    &["phase", "received_bytes", "written_bytes", "files"],
                    json!({
                        "phase": { "type": "string" },
                        "received_bytes": count(),
                        "written_bytes": count(),
                        "files": count(),
                    }),
                ),
                "activity": named("Activity"),
                "settings": record(
                    &["pending_restart", "rejected"],
                    json!({
                        "pending_restart": list(json!({ "type": "string" })),
                        "rejected": list(record(
                            &["name", "reason"],
                            json!({ "name": { "type": ["string", "null"] }, "reason": { "type": "string" } }),
                        )),
                    }),
                ),
            }),
        ),
        "Activity": record(
            &["last_kind", "sessions", "walsenders", "logical_slots", "subscriptions", "autovacuum_workers"],
            json!({
                "last_kind": { "type": ["string", "null"] },
                "sessions": counts(&["active", "idle_in_transaction", "idle", "arriving"]),
                "walsenders": counts(&["logical", "physical"]),
                "logical_slots": counts(&["active", "inactive"]),
                "subscriptions": count(),
                "autovacuum_workers": count(),
                "statistics_moved": { "type": ["boolean", "null"] },
            }),
        ),
        "NotIdle": record(
            &["error", "activity"],
            json!({
                "error": { "type": "string" },
                "activity": { "anyOf": [named("Activity"), { "type": "null" }] },
            }),
        ),
        "Startup": counts(&[
            "wait_for_spec_ms", "sync_sk_check_ms", "sync_safekeepers_ms", "pageserver_connect_micros",
            "basebackup_ms", "basebackup_bytes", "start_postgres_ms", "config_ms", "total_startup_ms",
            "load_ext_ms", "num_ext_downloaded", "largest_ext_size", "total_ext_download_size",
        ]),
        "History": present(&["dropped", "transitions"], json!({
            "dropped": count(),
            "transitions": list(record(
                &["seq", "from", "to", "cause", "label", "time", "lasted_ms", "epoch", "error"],
                json!({
                    "seq": count(),
                    "from": { "enum": statuses() },
                    "to": { "enum": statuses() },
                    "cause": { "type": ["string", "null"] },
                    "label": { "type": ["string", "null"] },
                    "time": { "type": "string", "format": "date-time" },
                    "lasted_ms": count(),
                    "epoch": { "type": ["integer", "null"] },
                    "error": { "type": ["string", "null"] },
                }),
            )),
        })),
        "Graph": present(&["states", "transitions"], json!({
            "states": list(record(
                &["name", "status", "initial", "final", "current"],
                json!({
                    "name": { "type": "string" },
                    "status": { "enum": statuses() },
                    "initial": { "type": "boolean" },
                    "final": { "type": "boolean" },
                    "current": { "type": "boolean" },
                }),
            )),
            "transitions": list(record(
                &["from", "to", "event", "cause", "label"],
                json!({
                    "from": { "enum": statuses() },
                    "to": { "enum": statuses() },
                    "event": { "type": "string" },
                    "cause": { "type": "string" },
                    "label": { "type": "string" },
                }),
            )),
        })),
        "Terminated": record(&["lsn"], json!({ "lsn": { "type": ["string", "null"], "pattern": LSN } })),
        "Promoted": record(
            &["status", "lsn_wait_time_ms", "pg_promote_time_ms", "reconfigure_time_ms"],
            json!({
                "status": { "const": "completed" },
                "lsn_wait_time_ms": count(),
                "pg_promote_time_ms": count(),
                "reconfigure_time_ms": count(),
            }),
        ),
        "PromotionFailed": record(
            &["status", "error"],
            json!({ "status": { "const": "failed" }, "error": { "type": "string" } }),
        ),
        "Listing": record(
            &["roles", "databases"],
            json!({
                "roles": list(record(
                    &["name", "encrypted_password", "options"],
                    json!({
                        "name": { "type": "string" },
                        "encrypted_password": { "type": ["string", "null"] },
                        "options": { "type": "null" },
                    }),
                )),
                "databases": list(record(
                    &["name", "owner", "options", "restrict_conn", "invalid"],
                    json!({
                        "name": { "type": "string" },
                        "owner": { "type": "string" },
                        "options": { "type": "null" },
                        "restrict_conn": { "type": "boolean" },
                        "invalid": { "type": "boolean" },
                    }),
                )),
            }),
        ),
        "Plan": record(
            &["summary", "changes", "migrations", "database", "server_version", "profile"],
            json!({
                "summary": record(
                    &["add", "change", "remove", "destructive"],
                    json!({ "add": count(), "change": count(), "remove": count(), "destructive": count() }),
                ),
                "changes": list(json!({ "type": "object" })),
                "migrations": list(json!({ "type": "object" })),
                "database": { "type": ["string", "null"] },
                "server_version": { "type": ["integer", "null"] },
                "profile": { "type": "string" },
            }),
        ),
        "ConfigurationRequest": record(
            &["spec", "compute_ctl_config"],
            json!({
                "spec": named("Spec"),
                "compute_ctl_config": record(
                    &["jwks"],
                    json!({ "jwks": record(&["keys"], json!({ "keys": { "type": "array", "maxItems": 0 } })) }),
                ),
            }),
        ),
        "PromotionRequest": record(
            &["spec", "wal_flush_lsn"],
            json!({ "spec": named("Spec"), "wal_flush_lsn": { "type": "string", "pattern": LSN } }),
        ),
        "Spec": record(
            &["format_version", "cluster", "suspend_timeout_seconds"],
            json!({
                "format_version": { "type": "number", "minimum": 1, "maximum": 2 },
                "suspend_timeout_seconds": { "type": "integer", "minimum": -1, "maximum": 1_000_000 },
                "cluster": record(
                    &["roles", "databases"],
                    json!({ "roles": list(role()), "databases": list(database()) }),
                ),
                "tenant_id": hex_id(),
                "timeline_id": hex_id(),
                "skip_pg_catalog_updates": { "type": "boolean" },
            }),
        ),
        "GrantRequest": record(
            &["database", "schema", "privileges", "role"],
            json!({
                "database": { "type": "string" },
                "schema": { "type": "string" },
                "privileges": list(json!({ "enum": [
                    "SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "USAGE",
                    "CREATE", "CONNECT", "TEMPORARY", "EXECUTE",
                ] })),
                "role": { "type": "string" },
            }),
        ),
        "ExtensionRequest": record(
            &["extension", "database", "version"],
            json!({
                "extension": { "type": "string" },
                "database": { "type": "string" },
                "version": { "type": "string" },
            }),
        ),
        "Extension": record(
            &["extension", "version"],
            json!({ "extension": { "type": "string" }, "version": { "type": "string" } }),
        ),
        "Failpoints": list(record(
            &["name", "actions"],
            json!({ "name": { "type": "string" }, "actions": { "type": "string" } }),
        )),
    })
}

const LSN: &str = "^[0-9A-F]{1,8}/[0-9A-F]{1,8}$";

/// What is not listed may be there, and is ignored in requests.
fn record(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

fn list(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

/// A record of the present status and of what else there is.
fn present(required: &[&str], properties: Value) -> Value {
    let shown = ["began", "status", "since", "in_status_ms", "last"];
    let mut schema = record(&[&shown, required].concat(), properties);
    let time = || json!({ "type": "string", "format": "date-time" });
    for (name, of) in shown.into_iter().zip([time(), json!({ "enum": statuses() }), time(), count(), count()])
    {
        schema["properties"][name] = of;
    }
    schema
}

/// A record of numbers.
fn counts(names: &[&str]) -> Value {
    record(names, names.iter().map(|name| ((*name).to_owned(), count())).collect())
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn hex_id() -> Value {
    json!({ "type": ["string", "null"], "pattern": "^[0-9a-f]{32}$" })
}

fn role() -> Value {
    record(
        &["name"],
        json!({ "name": { "type": "string" }, "encrypted_password": { "type": ["string", "null"] } }),
    )
}

fn database() -> Value {
    record(&["name", "owner"], json!({ "name": { "type": "string" }, "owner": { "type": "string" } }))
}

/// The wire names, from the type itself.
fn statuses() -> Vec<Value> {
    compute_states::ComputeStatus::ALL.iter().map(|status| json!(status)).collect()
}
