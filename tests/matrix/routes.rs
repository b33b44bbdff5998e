//! The routes, in the order in which they are asked.

use std::time::Duration;

use compute_ctl::limits;
use serde_json::json;

use crate::support::node::{COMPUTE_ID, Place, config, token};

/// Who needs what to be asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    Nothing,
    Config,
    Promotion,
    Grant,
    Extension,
}

pub(crate) struct Route {
    external: bool,
    method: &'static str,
    path: &'static str,
    body: Body,
    /// Within which it is answered in every state.
    pub(crate) bound: Duration,
    /// Whether an answer may wait for what holds the state.
    pub(crate) waits: bool,
    /// Whether success moves the compute to another state.
    pub(crate) moves: bool,
    /// Whether a failure tells in Postgres's words why.
    pub(crate) quotes_postgres: bool,
}

/// From memory, at once; the bound is for a loaded machine.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A session, and what is done in it.
const ASKS_POSTGRES: Duration = Duration::from_secs(
    limits::REQUEST_WAIT.as_secs() + limits::CONNECT.as_secs() + limits::REQUEST.as_secs() + 10,
);

/// Real work; what holds it up here is let go.
const WORKS: Duration = Duration::from_secs(90);

const fn reads(path: &'static str) -> Route {
    Route {
        external: true,
        method: "GET",
        path,
        body: Body::Nothing,
        bound: AT_ONCE,
        waits: false,
        moves: false,
        quotes_postgres: false,
    }
}

const fn asks_postgres(method: &'static str, path: &'static str) -> Route {
    Route { method, bound: ASKS_POSTGRES, quotes_postgres: true, ..reads(path) }
}

const fn works(path: &'static str, body: Body) -> Route {
    Route { method: "POST", body, bound: WORKS, waits: true, moves: true, ..reads(path) }
}

const fn inside(path: &'static str, body: Body) -> Route {
    Route { external: false, body, ..asks_postgres("POST", path) }
}

const fn other(method: &'static str, path: &'static str) -> Route {
    Route { method, ..reads(path) }
}

/// All of them. Those that may end what holds a state come last.
pub(crate) const ROUTES: [Route; 43] = [
    reads("/livez"),
    reads("/readyz"),
    reads("/startupz"),
    reads("/status"),
    reads("/metrics"),
    reads("/metrics.json"),
    reads("/history"),
    reads("/events"),
    reads("/fsm"),
    reads("/"),
    reads("/ui"),
    reads("/openapi.json"),
    reads("/autoscaling_metrics"),
    asks_postgres("GET", "/hadron_liveness_probe"),
    asks_postgres("GET", "/insights"),
    asks_postgres("GET", "/dbs_and_roles"),
    asks_postgres("GET", "/database_schema?database=postgres"),
    asks_postgres("POST", "/check_writability"),
    Route { body: Body::Config, ..asks_postgres("POST", "/plan") },
    reads("/lfc/prewarm"),
    other("POST", "/lfc/prewarm"),
    other("DELETE", "/lfc/prewarm"),
    reads("/lfc/offload"),
    other("POST", "/lfc/offload"),
    reads("/nowhere"),
    reads("/terminate"),
    Route { external: false, ..reads("/status") },
    Route { external: false, ..reads("/openapi.json") },
    Route { external: false, ..reads("/livez") },
    Route { external: false, ..reads("/readyz") },
    Route { external: false, ..reads("/startupz") },
    Route { external: false, ..other("POST", "/failpoints") },
    inside("/extensions", Body::Extension),
    inside("/grants", Body::Grant),
    inside("/extension_server/postgis", Body::Nothing),
    Route { external: false, ..reads("/grants") },
    works("/promote", Body::Promotion),
    Route { moves: true, quotes_postgres: false, ..inside("/refresh_configuration", Body::Nothing) },
    Route { moves: true, ..other("POST", "/refresh_configuration") },
    works("/configure", Body::Config),
    works("/terminate?if_idle=true", Body::Nothing),
    works("/terminate", Body::Nothing),
    works("/terminate?mode=immediate", Body::Nothing),
];

impl Route {
    pub(crate) fn title(&self) -> String {
        let side = if self.external { "" } else { " (internal)" };
        format!("`{} {}`{side}", self.method, self.path)
    }

    pub(crate) fn port(&self, place: &Place) -> u16 {
        if self.external { place.external } else { place.internal }
    }

    pub(crate) fn request(&self, place: &Place) -> Vec<u8> {
        let body = match self.body {
            Body::Nothing => String::new(),
            Body::Config => config(&place.spec()).to_string(),
            Body::Promotion => json!({ "spec": place.spec(), "wal_flush_lsn": "0/28F10D8" }).to_string(),
            Body::Grant => json!({
                "database": "postgres", "schema": "public", "privileges": ["USAGE"], "role": "cloud_admin",
            })
            .to_string(),
            Body::Extension => {
                json!({ "extension": "citext", "database": "postgres", "version": "1.6" }).to_string()
            }
        };
        let mut head =
            format!("{} {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n", self.method, self.path);
        if self.external {
            head.push_str(&format!("Authorization: Bearer {}\r\n", token(COMPUTE_ID)));
        }
        if !body.is_empty() {
            head.push_str("Content-Type: application/json\r\n");
        }
        format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }
}
