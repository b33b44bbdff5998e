//! The server that is copied.

use compute_ctl::spec::base_backup::decode;
use compute_ctl::storage::{BaseBackup, Patience, Prepared, Storage, StorageError};
use serde_json::{Value, json};

use crate::support::cut::{Act, Proxy};
use crate::support::lab::{Lab, PATIENCE, chain, names, patiently};
use crate::support::pg::{self, ADMIN, Server};

/// In the rows of table `kept`, as it is on disk.
pub(crate) const CANARY: &[u8] = b"a canary in a table";

/// A password that must show nowhere.
pub(crate) const PASSWORD: &str = "hunter2-of-the-copier";

/// A server with a table, a role that may replicate and another one that may not.
pub(crate) struct Origin {
    pub(crate) server: Server,
}

impl Origin {
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    pub(crate) fn with(conf: &str) -> Self {
        let origin = Self { server: Server::start(conf) };
        let canary = std::str::from_utf8(CANARY).unwrap();
        origin.sql(&format!("create role copier login replication password '{PASSWORD}'"));
        origin.sql("create role nobody login password 'x'");
        origin.sql(&format!(
            "create table kept as select 42 as answer, '{canary}'::text as canary from generate_series(1, 20000)"
        ));
        origin.sql("alter system set work_mem = '77MB'");
        origin
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        let mut psql = pg::command("psql");
        psql.args(["-XwtAq", "-v", "ON_ERROR_STOP=1", "-U", ADMIN, "-d", "postgres", "-c", sql]);
        psql.args(["-p", &self.server.port().to_string()]).arg("-h").arg(self.server.socket_dir());
        let output = psql.output().unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(crate) fn slots(&self) -> String {
        self.sql("select string_agg(slot_name, ',' order by 1) from pg_replication_slots where not temporary")
    }

    pub(crate) fn proxy(&self, act: Act) -> Proxy {
        Proxy::start(self.server.port(), act)
    }

    /// Parameters to copy it.
    pub(crate) fn parameters(&self) -> Value {
        parameters(self.server.port())
    }
}

/// Parameters to copy what listens on a port.
pub(crate) fn parameters(port: u16) -> Value {
    json!({
        "source": format!("postgresql://copier@127.0.0.1:{port}/?application_name=copy"), "password": PASSWORD,
    })
}

/// With these changed.
pub(crate) fn but(mut parameters: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        parameters[name] = value.clone();
    }
    parameters
}

/// As long as a loaded machine may need.
pub(crate) const CALM: Patience = Patience { begin: PATIENCE, idle: PATIENCE };

pub(crate) fn backup(parameters: Value, standby: bool) -> BaseBackup {
    backup_with(parameters, standby, CALM)
}

pub(crate) fn backup_with(parameters: Value, standby: bool, patience: Patience) -> BaseBackup {
    let parameters = serde_json::from_value(parameters).unwrap();
    BaseBackup::with_patience(decode(&parameters, standby).unwrap(), patience)
}

/// Prepares a new directory, which is empty again after a failure.
pub(crate) async fn fails(lab: &Lab, backup: &BaseBackup) -> StorageError {
    let name = format!("pgdata-{}", uuid());
    let pgdata = lab.claim(&name);
    let error = match patiently(backup.prepare(&lab.context(&pgdata))).await {
        Ok(Prepared::Created | Prepared::Kept) => panic!("it did not fail"),
        Err(error) => error,
    };
    assert_eq!(names(pgdata.path()), Vec::<String>::new(), "left behind after: {error}");
    no_program(lab);
    let text = chain(&error);
    assert!(!text.contains(PASSWORD) && text.contains("127.0.0.1"), "{text}");
    error
}

fn uuid() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// No program that copies is about anything of the laboratory, neither alive nor dead.
pub(crate) fn no_program(lab: &Lab) {
    let about = crate::support::lab::processes_about(lab.dir.path());
    assert!(about.iter().all(|(_, command)| !command.contains("backup")), "{about:?}");
}
