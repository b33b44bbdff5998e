//! What a running server makes of the configuration files on disk.
//!
//! The view `pg_file_settings` reads the files anew at each query and tells which lines could not be applied. It
//! does not tell why: a postmaster's setting that would be right after a restart has the same error as nonsense.
//! The column `pending_restart` does not tell them apart either, because a session inherits the mark of an earlier
//! change. But while it reads, the server remarks on each line it does not take, at the level `debug3`, and the
//! SQLSTATE of that remark is the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tokio::sync::mpsc;
use tokio_postgres::Row;
use tokio_postgres::error::{DbError, SqlState};
use tokio_util::sync::CancellationToken;

use super::SettingsError;
use crate::catalog::{self, Connection, ConnectionSettings};
use crate::limits;

/// Settings that name an object of a database. The postmaster, which is in none, takes any name; a session looks
/// it up in its own database, which says nothing of the others.
const OF_A_DATABASE: [&str; 4] =
    ["default_table_access_method", "default_tablespace", "default_text_search_config", "temp_tablespaces"];

/// Parts of names of PostgreSQL's own settings whose value may hold a password. Those of extensions always may.
const SECRET: [&str; 5] = ["command", "conninfo", "key", "pass", "secret"];

/// Names of earlier versions which the server still reads, and the names it shows them under.
const RENAMED: [(&str, &str); 3] =
    [("sort_mem", "work_mem"), ("ssl_ecdh_curve", "ssl_groups"), ("vacuum_mem", "maintenance_work_mem")];

/// What `pg_file_settings` says of a name that is none.
const UNKNOWN: &str = "unrecognized configuration parameter";

/// A session in which the server is asked about its settings.
pub struct Session {
    connection: Connection,
    notices: mpsc::UnboundedReceiver<DbError>,
}

/// What would become of the files on disk if the server read them now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The line that decides for each setting, by its name in lower case.
    lines: BTreeMap<String, FileLine>,
    /// Settings that are right and that only a restart can change, removed ones included; in order. All that wait, not
    /// only the latest ones. The server's own mark stays when a setting is taken off the file that was never in force.
    pub needs_restart: Vec<String>,
    /// What the server does not take.
    pub refused: Vec<Refusal>,
    /// Settings whose value names something that this session's database does not have.
    pub unjudged: Vec<String>,
}

/// A line which the server does not take, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The setting, unless the line is not even one.
    pub name: Option<String>,
    /// The value, unless it may be a secret.
    pub value: Option<String>,
    /// File and number of the line.
    pub place: Option<(String, i32)>,
    /// What the server says.
    pub reason: String,
    /// What would be right, as far as the server knows.
    pub expected: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, &self.value) {
            (Some(name), Some(value)) => write!(f, "{name} = '{}'", value.escape_debug())?,
            (Some(name), None) => f.write_str(name)?,
            (None, _) => f.write_str("a line")?,
        }
        if let Some((file, line)) = &self.place {
            write!(f, " ({file} line {line})")?;
        }
        write!(f, ": {}", self.reason)?;
        if let Some(expected) = &self.expected {
            write!(f, "; right is {expected}")?;
        }
        Ok(())
    }
}

/// A row of `pg_file_settings`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FileLine {
    pub(super) place: Option<(String, i32)>,
    pub(super) name: Option<String>,
    pub(super) value: Option<String>,
    pub(super) error: Option<String>,
}

/// A row of `pg_settings`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) context: String,
    pub(super) vartype: String,
    pub(super) unit: Option<String>,
    pub(super) min: Option<String>,
    pub(super) max: Option<String>,
    pub(super) values: Option<Vec<String>>,
    pub(super) pending_restart: bool,
    pub(super) source: String,
    pub(super) place: Option<(String, i32)>,
}

/// What the server remarked on a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remark {
    pub(super) code: SqlState,
    pub(super) message: String,
    pub(super) more: Option<String>,
}

impl Session {
    /// Opens one.
    ///
    /// # Errors
    /// [`SettingsError::Connect`], [`SettingsError::Cancelled`].
    pub async fn open(server: &ConnectionSettings, token: &CancellationToken) -> Result<Self, SettingsError> {
        let connect = catalog::connect_with_notices(server);
        let opened = token.run_until_cancelled(connect).await.ok_or(SettingsError::Cancelled)?;
        let (connection, notices) = opened.map_err(SettingsError::Connect)?;
        Ok(Self { connection, notices })
    }

    /// What would become of the files on disk. The server is not changed.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn judge(&mut self, token: &CancellationToken) -> Result<Judgement, SettingsError> {
        // In the server's own words, so that they do not depend on the settings judged.
        self.run("SET client_min_messages = debug3; SET lc_messages = 'C'", token).await?;
        while self.notices.try_recv().is_ok() {}
        let files = "SELECT sourcefile, sourceline, name, setting, error FROM pg_catalog.pg_file_settings \
                     ORDER BY seqno";
        let lines = self.ask(files, token).await?.iter().map(FileLine::of).collect::<Vec<_>>();
        let mut remarks = Vec::new();
        while let Ok(notice) = self.notices.try_recv() {
            // Debug messages about something else have no code.
            if *notice.code() != SqlState::SUCCESSFUL_COMPLETION {
                remarks.push(Remark::of(&notice));
            }
        }
        self.run("SET client_min_messages = notice", token).await?;
        let known = self.known(token).await?;
        Ok(Judgement::of(lines, &known, remarks))
    }

    /// When the files were read that this session's settings are from, in the server's words.
    pub(super) async fn loaded(&mut self, token: &CancellationToken) -> Result<String, SettingsError> {
        let rows = self.ask("SELECT pg_catalog.pg_conf_load_time()::text", token).await?;
        Ok(rows.first().map(|row| row.get(0)).unwrap_or_default())
    }

    /// The settings which this session does not have from the line that decides, by what was judged.
    pub(super) async fn not_taken(
        &mut self,
        judgement: &Judgement,
        token: &CancellationToken,
    ) -> Result<Vec<String>, SettingsError> {
        let known = self.known(token).await?;
        let mut not_taken = judgement.not_taken(&known);
        // Settings of extensions that are not loaded are in no view.
        let hidden = judgement.hidden(&known);
        let query = "SELECT name FROM pg_catalog.unnest($1::pg_catalog.text[]) AS name \
                     WHERE pg_catalog.current_setting(name, true) IS NULL";
        let rows = self.bounded(self.connection.client().query(query, &[&hidden]), token).await?;
        not_taken.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        Ok(not_taken)
    }

    async fn known(&mut self, token: &CancellationToken) -> Result<Vec<Known>, SettingsError> {
        let query = "SELECT name, context, vartype, unit, min_val, max_val, enumvals, pending_restart, source, \
                     sourcefile, sourceline FROM pg_catalog.pg_settings";
        Ok(self.ask(query, token).await?.iter().map(Known::of).collect())
    }

    async fn ask(&self, query: &str, token: &CancellationToken) -> Result<Vec<Row>, SettingsError> {
        self.bounded(self.connection.client().query(query, &[]), token).await
    }

    async fn run(&self, statements: &str, token: &CancellationToken) -> Result<(), SettingsError> {
        self.bounded(self.connection.client().batch_execute(statements), token).await
    }

    async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
        token: &CancellationToken,
    ) -> Result<T, SettingsError> {
        let work = tokio::time::timeout(limits::SETTINGS_QUERY, work);
        match self.connection.unless_cancelled(token, work).await {
            Err(_) => Err(SettingsError::Cancelled),
            Ok(Err(_)) => Err(SettingsError::Silent),
            Ok(Ok(done)) => done.map_err(SettingsError::Ask),
        }
    }
}

impl Judgement {
    /// Sorts the lines. The server gives one remark for each error.
    pub(super) fn of(lines: Vec<FileLine>, known: &[Known], mut remarks: Vec<Remark>) -> Self {
        let mut judgement = Judgement::default();
        let failed: Vec<&FileLine> = lines.iter().filter(|line| line.error.is_some()).collect();
        // Most remarks name their setting. The others are in the order of the lines, so they fit if none is missing.
        let mut found: Vec<Option<Remark>> = failed.iter().map(|line| line.remark(&mut remarks)).collect();
        if found.iter().filter(|remark| remark.is_none()).count() == remarks.len() {
            let mut rest = remarks.into_iter();
            for remark in found.iter_mut().filter(|remark| remark.is_none()) {
                *remark = rest.next();
            }
        }
        for (line, remark) in failed.into_iter().zip(found) {
            judgement.sort(line, known, remark);
        }
        judgement.needs_restart.sort_unstable();
        judgement.needs_restart.dedup();
        for line in lines {
            // Of several lines the last one decides.
            if let Some(name) = &line.name {
                let name = find(known, name).map_or(name.as_str(), |known| &known.name);
                judgement.lines.insert(name.to_ascii_lowercase(), line);
            }
        }
        judgement
    }

    fn sort(&mut self, line: &FileLine, known: &[Known], remark: Option<Remark>) {
        let Some(name) = &line.name else {
            // A setting that is not on file any more has neither name nor place. All others that need a restart
            // are on file, under their name.
            match (&line.place, line.removed(known)) {
                (None, Some(removed)) => self.needs_restart.push(removed),
                _ => self.refused.push(line.refusal(None, None)),
            }
            return;
        };
        let known = find(known, name);
        let code = remark.as_ref().map(|remark| &remark.code);
        let would_change = code.is_none_or(|code| *code == SqlState::CANT_CHANGE_RUNTIME_PARAM);
        match known {
            Some(known) if known.pending_restart && would_change => {
                self.needs_restart.push(known.name.clone());
            }
            Some(known)
                if OF_A_DATABASE.contains(&known.name.as_str()) && line.is_syntactically_right(&remark) =>
            {
                self.unjudged.push(known.name.clone());
            }
            _ => self.refused.push(line.refusal(known, remark)),
        }
    }

    /// Settings whose line says something else than before, and those that came or went.
    pub(super) fn changed_since(&self, before: &Judgement) -> Vec<String> {
        let names: BTreeSet<&String> = self.lines.keys().chain(before.lines.keys()).collect();
        let changed = names.into_iter().filter(|name| self.value(name) != before.value(name));
        changed.cloned().collect()
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.lines.get(name)?.value.as_deref()
    }

    /// Settings which a session has from elsewhere than the line that decides. Not compared by value: the server
    /// normalises (units, clamped numbers, canonical names), and the line it had a value from tells more.
    fn not_taken(&self, known: &[Known]) -> Vec<String> {
        let decided = self.lines.iter().filter_map(|(name, line)| Some((find(known, name)?, line)));
        let missed = decided.filter(|(known, line)| match known.source.as_str() {
            "configuration file" => known.place != line.place,
            // A postmaster's own setting may have been computed from its line, as `wal_buffers = -1`.
            "default" => known.context != "postmaster",
            // Options of our session, of its role or database, come before the files: there is nothing to see.
            _ => false,
        });
        missed
            .map(|(known, _)| known.name.clone())
            .filter(|name| !self.needs_restart.contains(name) && !self.unjudged.contains(name))
            .collect()
    }

    /// Settings on file which `pg_settings` does not show: those of extensions that are not loaded.
    fn hidden(&self, known: &[Known]) -> Vec<String> {
        self.lines.keys().filter(|name| find(known, name).is_none()).cloned().collect()
    }
}

impl FileLine {
    fn of(row: &Row) -> Self {
        let file: Option<String> = row.get(0);
        Self { place: file.zip(row.get(1)), name: row.get(2), value: row.get(3), error: row.get(4) }
    }

    fn remark(&self, remarks: &mut Vec<Remark>) -> Option<Remark> {
        let name = self.name.as_deref()?;
        Some(remarks.remove(remarks.iter().position(|remark| remark.is_about(name))?))
    }

    /// The setting that was removed from the files and can only go with a restart.
    fn removed(&self, known: &[Known]) -> Option<String> {
        let error = self.error.as_deref()?;
        let mut pending = known.iter().filter(|known| known.pending_restart);
        pending.find(|known| quotes(error, &known.name)).map(|known| known.name.clone())
    }

    /// Whether a value was refused for what it names and not for its form, of which the server gives the detail.
    fn is_syntactically_right(&self, remark: &Option<Remark>) -> bool {
        let detail = remark.as_ref().and_then(|remark| remark.more.as_deref());
        detail.is_none_or(|detail| detail.contains("does not exist"))
    }

    fn refusal(&self, known: Option<&Known>, remark: Option<Remark>) -> Refusal {
        let reason = self.error.clone().unwrap_or_default();
        let shown = known.is_some_and(|known| !known.may_be_secret());
        let reason = match remark {
            // It quotes the value.
            Some(remark) if shown => match remark.more {
                Some(more) => format!("{} ({more})", remark.message),
                None => remark.message,
            },
            _ => reason,
        };
        let reason = shortened(&reason);
        let value = self.value.as_deref().filter(|_| shown).map(shortened);
        let expected = match known {
            Some(known) => known.expected(),
            None if reason == UNKNOWN => {
                Some("a setting of this server, or of an extension and with its prefix".to_owned())
            }
            None => None,
        };
        Refusal { name: self.name.clone(), value, place: self.place.clone(), reason, expected }
    }
}

impl Known {
    fn of(row: &Row) -> Self {
        let file: Option<String> = row.get(9);
        Self {
            name: row.get(0),
            context: row.get(1),
            vartype: row.get(2),
            unit: row.get(3),
            min: row.get(4),
            max: row.get(5),
            values: row.get(6),
            pending_restart: row.get(7),
            source: row.get(8),
            place: file.zip(row.get(10)),
        }
    }

    fn may_be_secret(&self) -> bool {
        let name = self.name.to_ascii_lowercase();
        self.vartype == "string" && (name.contains('.') || SECRET.iter().any(|part| name.contains(part)))
    }

    fn expected(&self) -> Option<String> {
        if self.context == "internal" {
            return Some("not to set it".to_owned());
        }
        let range = || Some(format!(" from {} to {}", self.min.as_ref()?, self.max.as_ref()?));
        let unit = || self.unit.as_ref().map(|unit| format!(", in units of {unit} if none is given"));
        let number = |kind| format!("{kind}{}{}", range().unwrap_or_default(), unit().unwrap_or_default());
        match (self.vartype.as_str(), &self.values) {
            ("bool", _) => Some("on or off".to_owned()),
            ("integer", _) => Some(number("a whole number")),
            ("real", _) => Some(number("a number")),
            ("enum", Some(values)) => Some(format!("one of {}", values.join(", "))),
            _ => None,
        }
    }
}

impl Remark {
    fn of(notice: &DbError) -> Self {
        let more: Vec<&str> = [notice.detail(), notice.hint()].into_iter().flatten().collect();
        let more = (!more.is_empty()).then(|| more.join(" "));
        Self { code: notice.code().clone(), message: notice.message().to_owned(), more }
    }

    fn is_about(&self, name: &str) -> bool {
        quotes(&self.message, name)
    }
}

fn find<'a>(known: &'a [Known], name: &str) -> Option<&'a Known> {
    let called = |name: &str| known.iter().find(|known| known.name.eq_ignore_ascii_case(name));
    let renamed = || RENAMED.iter().find(|(old, _)| old.eq_ignore_ascii_case(name));
    called(name).or_else(|| called(renamed()?.1))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(limits::SETTING_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn quotes(text: &str, name: &str) -> bool {
    text.to_ascii_lowercase().contains(&format!("\"{}\"", name.to_ascii_lowercase()))
}
