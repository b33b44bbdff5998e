//! `--standalone`: everything defaulted for a person at a terminal.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use compute_states::ComputeStatus;
use serde_json::json;
use tokio::sync::watch;

use crate::cli::{Connstr, Port, RunOptions, SpecSource};
use crate::engine::Snapshot;
use crate::spec::document::ComputeSpec;

/// The role and the database that are ready.
const NAME: &str = "app";

/// A spec for a person: a fresh cluster, loopback only, one role and one database.
pub(super) fn spec(pgdata: &Path, port: u16) -> ComputeSpec {
    // The default directory for sockets belongs to the distribution's user, and ours may be another.
    let sockets = pgdata.display().to_string();
    let document = json!({
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "storage": { "kind": "initdb" },
        "cluster": {
            "roles": [{ "name": NAME }],
            "databases": [{ "name": NAME, "owner": NAME }],
            "settings": [
                { "name": "port", "value": port.to_string(), "vartype": "integer" },
                { "name": "listen_addresses", "value": "127.0.0.1", "vartype": "string" },
                { "name": "unix_socket_directories", "value": sockets, "vartype": "string" },
            ],
        },
    });
    serde_json::from_value(document).expect("the document is a constant but for a port and a path")
}

/// The port Postgres will listen on, and how to get there: the wanted one, or a free one when it is only
/// preferred and in use.
pub(super) fn settle_port(options: &RunOptions) -> (Connstr, u16) {
    let wanted = options.postgres_port.number();
    let free = |port| TcpListener::bind(("127.0.0.1", port)).and_then(|socket| socket.local_addr());
    let port = match options.postgres_port {
        Port::Exact(port) => port,
        // A config says for itself where Postgres listens.
        Port::Preferred(port) if options.source != SpecSource::Standalone => port,
        // If there is no free port at all, Postgres will say so.
        Port::Preferred(port) => free(port).or_else(|_| free(0)).map_or(wanted, |address| address.port()),
    };
    (options.connstr.with_port(port), port)
}

/// What a person needs to know, once it is true.
#[derive(Debug)]
pub(super) struct Banner {
    lines: Vec<String>,
}

impl Banner {
    pub(super) fn new(options: &RunOptions, postgres_port: u16, http_port: u16) -> Self {
        let http = format!("http://127.0.0.1:{http_port}");
        Banner {
            lines: vec![
                "Postgres is running. Connect with:".to_owned(),
                String::new(),
                format!("  psql postgresql://{NAME}@127.0.0.1:{postgres_port}/{NAME}"),
                String::new(),
                format!("Page     {http}/"),
                format!("Status   curl {http}/status"),
                format!("Metrics  curl {http}/metrics"),
                format!("Stop     Ctrl-C, or: curl -X POST '{http}/terminate?mode=immediate'"),
                format!("Data     {} (made anew at each start)", options.pgdata.display()),
            ],
        }
    }

    /// Prints on standard output when the compute runs; never, if it ends before.
    pub(super) async fn print_when_running(self, mut published: watch::Receiver<Arc<Snapshot>>) {
        if published.wait_for(|snapshot| snapshot.status == ComputeStatus::Running).await.is_ok() {
            // Standard output may be closed, which is no reason to stop, or not be read, which may hold up
            // nothing else.
            let print = move || std::io::Write::write_all(&mut std::io::stdout(), self.boxed().as_bytes());
            let _ = tokio::task::spawn_blocking(print).await;
        }
    }

    fn boxed(&self) -> String {
        let width = self.lines.iter().map(|line| line.chars().count()).max().unwrap_or_default();
        let bar = "─".repeat(width + 2);
        let mut text = format!("╭{bar}╮\n");
        for line in &self.lines {
            text.push_str(&format!("│ {line:width$} │\n"));
        }
        text.push_str(&format!("╰{bar}╯\n"));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_box_is_as_wide_as_its_longest_line() {
        let banner = Banner { lines: vec!["a".to_owned(), "long".to_owned()] };
        assert_eq!(banner.boxed(), "╭──────╮\n│ a    │\n│ long │\n╰──────╯\n");
    }

    #[test]
    fn the_spec_of_our_own_making_is_one_this_program_accepts() {
        let spec = spec(Path::new("/some/where it's"), 5432);
        let faults = crate::spec::fault::examine(&spec, &crate::spec::fault::JsonPath::root());
        assert_eq!(faults, []);
    }
}
