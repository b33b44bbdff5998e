//! What is asked of the server that is copied, by `psql` over a replication connection: it needs no more rights than
//! the backup itself, and says who the server is before anything is copied.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::BaseBackupError;
use crate::limits;
use crate::postgres::Installation;
use crate::postgres::process::{self, Output, RunError};
use crate::spec::base_backup::BaseBackupSpec;
use crate::storage::StorageError;

/// Who the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// What it has in common with its copies and with no other cluster.
    pub(super) system: u64,
    /// Its major version.
    pub(super) major: u32,
}

/// The server that is copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) spec: &'a BaseBackupSpec,
    pub(super) installation: &'a Installation,
    pub(super) cancel: &'a CancellationToken,
}

impl Source<'_> {
    /// A program of the installation's, ready to reach the server. The password is in its environment, which only
    /// its own user can read.
    pub(super) fn tool(&self, name: &str, database: Option<&str>) -> Command {
        let mut command = Command::new(self.installation.tool(name));
        // Our own working directory may be closed to us. What it says is told apart in the C locale.
        command.current_dir("/").env("LC_ALL", "C");
        let mut conninfo = self.spec.source.public();
        if let Some(database) = database {
            conninfo.push(' ');
            conninfo.push_str(database);
        }
        command.arg("--no-password").arg("-d").arg(conninfo);
        if let Some(password) = self.spec.source.password() {
            command.env("PGPASSWORD", password.reveal());
        }
        if self.spec.source.get("connect_timeout").is_none() {
            command.env("PGCONNECT_TIMEOUT", limits::BASE_BACKUP_CONNECT.as_secs().to_string());
        }
        command
    }

    /// Has the server answer some commands; a line per row.
    async fn ask(
        &self,
        what: &'static str,
        database: &str,
        commands: &[&str],
        deadline: Duration,
    ) -> Result<String, StorageError> {
        let mut psql = self.tool("psql", Some(database));
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]);
        for command in commands {
            psql.arg("-c").arg(command);
        }
        let output = self.run(psql, deadline).await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(self.failed(what, says.lines()).into())
    }

    async fn run(&self, command: Command, deadline: Duration) -> Result<Output, StorageError> {
        match process::run(command, self.cancel, deadline).await {
            Err(RunError::TimedOut { after, .. }) => Err(self.silent(after).into()),
            other => Ok(other?),
        }
    }

    pub(super) fn silent(&self, after: Duration) -> BaseBackupError {
        BaseBackupError::Silent { server: self.spec.source.to_string(), after }
    }

    /// The error of a program, from what it has printed.
    pub(super) fn failed<'b>(
        &self,
        what: &'static str,
        lines: impl Iterator<Item = &'b str>,
    ) -> BaseBackupError {
        let lines: Vec<&str> = lines.map(str::trim).filter(|line| !line.is_empty()).collect();
        let says = lines[lines.len().saturating_sub(8)..].join("; ");
        BaseBackupError::Failed { what, server: self.spec.source.to_string(), says }
    }

    /// Who the server is. Fails if the slot, when it has to be there, is not.
    pub(super) async fn identify(&self) -> Result<Identity, StorageError> {
        let read = self.spec.slot.as_ref().map(|slot| format!("READ_REPLICATION_SLOT {}", quoted(slot)));
        let mut commands = vec!["IDENTIFY_SYSTEM", "SHOW server_version_num"];
        commands.extend(read.as_deref());
        let answer = self.ask("reach", REPLICATION, &commands, limits::BASE_BACKUP_QUESTION).await?;
        let mut lines = answer.lines();
        let mut number = || lines.next()?.split('|').next()?.parse::<u64>().ok();
        let unknown = || self.failed("make sense of the answer of", answer.lines());
        let (system, version) = number().zip(number()).ok_or_else(unknown)?;
        let slot_type = lines.next().and_then(|line| line.split('|').next());
        if let (Some(slot), Some(""), false) = (&self.spec.slot, slot_type, self.spec.create_slot) {
            let (slot, server) = (slot.clone(), self.spec.source.to_string());
            return Err(BaseBackupError::NoSlot { slot, server }.into());
        }
        let major = u32::try_from(version / 10_000).map_err(|_| unknown())?;
        Ok(Identity { system, major })
    }

    /// Where the server has tablespaces outside of its data directory, if it lets us know: a role that may
    /// replicate need not be let into any database.
    pub(super) async fn tablespaces(&self) -> Result<Option<Vec<String>>, StorageError> {
        // Those of `allow_in_place_tablespaces` have a relative path, and lie inside.
        let query = "SELECT pg_catalog.pg_tablespace_location(oid) FROM pg_catalog.pg_tablespace \
                     WHERE pg_catalog.pg_tablespace_location(oid) LIKE '/%'";
        let database = if self.spec.source.get("dbname").is_some() { "" } else { "dbname=postgres" };
        match self.ask("ask", database, &[query], limits::BASE_BACKUP_QUESTION).await {
            Ok(answer) => Ok(Some(answer.lines().map(str::to_owned).collect())),
            Err(error) if error.is_cancelled() => Err(error),
            Err(error) => {
                tracing::info!("whether there are tablespaces shows in the copy only: {error}");
                Ok(None)
            }
        }
    }

    /// Makes the slot, unless it is there.
    pub(super) async fn make_slot(&self, slot: &str) -> Result<(), StorageError> {
        let command = format!("CREATE_REPLICATION_SLOT {} PHYSICAL (RESERVE_WAL)", quoted(slot));
        match self.ask("make a slot on", REPLICATION, &[&command], limits::BASE_BACKUP_QUESTION).await {
            Ok(_) => tracing::info!(slot, server = %self.spec.source, "replication slot made"),
            Err(StorageError::BaseBackup(BaseBackupError::Failed { says, .. }))
                if says.contains("already exists") => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Drops the slot once nobody uses it any more.
    pub(super) async fn drop_slot(&self, slot: &str) -> Result<(), StorageError> {
        let command = format!("DROP_REPLICATION_SLOT {} WAIT", quoted(slot));
        match self.ask("drop a slot on", REPLICATION, &[&command], limits::BASE_BACKUP_RELEASE).await {
            Ok(_) => tracing::info!(slot, server = %self.spec.source, "replication slot dropped"),
            Err(StorageError::BaseBackup(BaseBackupError::Failed { says, .. }))
                if says.contains("does not exist") => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Compares a copy with its manifest.
    pub(super) async fn verify(&self, copy: &Path) -> Result<(), StorageError> {
        let mut command = Command::new(self.installation.tool("pg_verifybackup"));
        command.current_dir("/").env("LC_ALL", "C").arg(copy);
        let output = process::run(command, self.cancel, limits::BASE_BACKUP_VERIFY).await?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let says = text.lines().map(str::trim).take(5).collect::<Vec<_>>().join("; ");
        Err(BaseBackupError::Damaged { server: self.spec.source.to_string(), says }.into())
    }
}

/// What makes a connection one for replication.
const REPLICATION: &str = "replication=true";

/// As an identifier; letters, digits and `_` are all it has.
fn quoted(slot: &str) -> String {
    format!("\"{slot}\"")
}
