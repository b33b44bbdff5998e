//! Sessions with our own server for catalog work.

use std::fmt;
use std::fmt::Write as _;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::str::FromStr;
use std::task::Poll;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Socket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Profile;
use crate::limits;
use crate::secret::Secret;

/// How these sessions show up in `pg_stat_activity`. The name is the original's: its users filter on it.
const APPLICATION_NAME: &str = "compute_ctl:apply_config";

/// Options which keep `ALTER DATABASE … SET` and `ALTER ROLE … SET` of users out of our sessions. The search
/// path is truly empty: with the usual `''` it would name a schema which a user could create.
///
/// Nor is anything of them logged by the server: the statements hold verifiers of passwords, and it logs whole
/// statements when `log_statement` says so, and when one of them fails.
const GUARD: [(&str, &str); 17] = [
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("search_path", ""),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    // Libraries which a database's owner names need not exist, and then no session would begin. Those of
    // `session_preload_libraries` are a superuser's.
    ("local_preload_libraries", ""),
    // Triggers of users, event triggers among them, would run with our rights.
    ("session_replication_role", "replica"),
    ("log_statement", "none"),
    ("log_min_error_statement", "panic"),
    ("log_min_duration_statement", "-1"),
    ("log_min_duration_sample", "-1"),
    ("log_duration", "off"),
    ("debug_print_parse", "off"),
    ("debug_print_rewritten", "off"),
    ("debug_print_plan", "off"),
    // Whoever may monitor can read the statements it has seen.
    ("pg_stat_statements.track", "none"),
];

/// What protects sessions on newer servers only, which is set once it is known that it is one: version, setting
/// and value. The server would refuse a session that begins with a setting it does not know.
const NEWER_GUARD: [(u32, &str, &str); 2] = [(17, "transaction_timeout", "0"), (17, "event_triggers", "off")];

/// What Neon's build needs on top: no audit of our own statements, and no report of them to the control
/// plane, which knows them already.
const NEON_GUARD: [(&str, &str); 2] = [("pgaudit.log", "none"), ("neon.forward_ddl", "false")];

/// Where and as whom to connect. `Debug` hides the password.
#[derive(Clone)]
pub struct ConnectionSettings {
    config: Config,
    database: String,
}

impl ConnectionSettings {
    /// Reads the connection string of the `--connstr` flag (URL or keywords) and adds the guard options of
    /// catalog sessions. Options of the string itself come last, so they win.
    ///
    /// # Errors
    /// [`ConnectError::Settings`] for a malformed string, [`ConnectError::NoUser`] for one without a user.
    pub fn new(connstr: &Secret, profile: Profile) -> Result<Self, ConnectError> {
        let mut config = Config::from_str(connstr.reveal()).map_err(ConnectError::Settings)?;
        let user = config.get_user().ok_or(ConnectError::NoUser)?.to_owned();
        let database = config.get_dbname().unwrap_or(&user).to_owned();
        let mut options = String::new();
        let neon: &[_] = if profile == Profile::Neon { &NEON_GUARD } else { &[] };
        // A lock that somebody holds must end in an error which says so.
        let patience = format!("{}ms", limits::CATALOG_LOCK.as_millis());
        // A session that nobody listens to any more must not go on working beside the next one.
        let look = format!("{}ms", limits::CATALOG_ABANDONED.as_millis());
        let own = [
            ("role", user.as_str()),
            ("lock_timeout", patience.as_str()),
            ("client_connection_check_interval", look.as_str()),
        ];
        for (name, value) in own.iter().chain(&GUARD).chain(neon) {
            // Writing to a String cannot fail.
            let _ = write!(options, "-c {name}={} ", escape_option(value));
        }
        options.push_str(config.get_options().unwrap_or_default());
        config.options(options.trim_end()).application_name(APPLICATION_NAME).dbname(&database);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(limits::CONNECT);
        }
        Ok(Self { config, database })
    }

    /// The same under another `application_name`.
    #[must_use]
    pub fn named(mut self, application_name: &str) -> Self {
        self.config.application_name(application_name);
        self
    }

    /// The same with one more setting of the server for the session; it wins over all that are there.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        let before = self.config.get_options().unwrap_or_default();
        let options = format!("{before} -c {name}={}", escape_option(value));
        self.config.options(options.trim_start());
        self
    }

    /// As the client library takes them, password included.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// The same for a session in which the server refuses to change anything, whatever the connection string says.
    #[must_use]
    pub fn read_only(&self) -> Self {
        self.clone().with("default_transaction_read_only", "on")
    }

    /// The same for another database.
    #[must_use]
    pub fn in_database(&self, database: &str) -> Self {
        let mut settings = self.clone();
        settings.config.dbname(database);
        settings.database = database.to_owned();
        settings
    }

    /// The database these settings lead to.
    pub fn database(&self) -> &str {
        &self.database
    }
}

impl fmt::Debug for ConnectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionSettings").field("database", &self.database).finish_non_exhaustive()
    }
}

/// The guard of a session as statements, for people who begin one of their own. What can be set at its beginning only
/// is left out.
pub(super) fn guard_sql(profile: Profile, server_version: u32) -> Vec<String> {
    let patience = format!("{}ms", limits::CATALOG_LOCK.as_millis());
    let neon: &[_] = if profile == Profile::Neon { &NEON_GUARD } else { &[] };
    let newer = NEWER_GUARD.iter().filter(|(since, _, _)| *since <= server_version / 10_000);
    let settings = [("lock_timeout", patience.as_str())];
    settings
        .iter()
        .chain(&GUARD)
        .filter(|(name, _)| !name.ends_with("_preload_libraries"))
        .chain(neon)
        .copied()
        .chain(newer.map(|(_, name, value)| (*name, *value)))
        // `SET` would make a list of one empty name of an empty search path.
        .map(|(name, value)| format!("SELECT pg_catalog.set_config('{name}', '{value}', false)"))
        .collect()
}

/// Options are split at white space; a backslash keeps the next character (PostgreSQL manual, libpq
/// `options`).
fn escape_option(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        if c.is_ascii_whitespace() || c == '\x0b' || c == '\\' {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Why there is no session.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The connection string cannot be read.
    #[error("the connection string is malformed")]
    Settings(#[source] tokio_postgres::Error),
    /// Guessing the user from the process would depend on who started it.
    #[error("the connection string names no user")]
    NoUser,
    /// Neither accepted nor refused in [`limits::CONNECT`].
    #[error(
        "connecting to database {database:?} took longer than {:?}: the server is overloaded or stopped, or \
         somebody has locked what a login reads",
        limits::CONNECT
    )]
    TimedOut {
        /// Where to.
        database: String,
    },
    /// No server there, login refused, no such database, TLS demanded, …
    #[error("cannot connect to database {database:?}{}", sqlstate(.source))]
    Failed {
        /// Where to.
        database: String,
        /// What the server or the network said.
        source: tokio_postgres::Error,
    },
    /// All slots stayed taken, those for superusers included.
    #[error(
        "cannot connect to database {database:?}: no connection slot was free for {:?}; end sessions, or raise \
         max_connections{}",
        limits::SLOT_PATIENCE,
        sqlstate(.source)
    )]
    Full {
        /// Where to.
        database: String,
        /// What the server said last.
        source: tokio_postgres::Error,
    },
}

impl ConnectError {
    /// The server's SQLSTATE, if it was the server which refused: `28P01` for a wrong password, `57P03`
    /// while it is starting, …
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Failed { source, .. } | Self::Full { source, .. } => source.code().map(SqlState::code),
            Self::Settings(_) | Self::NoUser | Self::TimedOut { .. } => None,
        }
    }

    /// Whether the server has no place for one more session.
    pub fn is_full(&self) -> bool {
        self.sqlstate() == Some(SqlState::TOO_MANY_CONNECTIONS.code())
    }

    /// What it is when it stayed so for the whole of [`limits::SLOT_PATIENCE`].
    fn for_good(self) -> Self {
        match self {
            Self::Failed { database, source } if source.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => {
                Self::Full { database, source }
            }
            other => other,
        }
    }

    /// Whether the server takes no sessions for now: it starts, or starts again after one of its processes has
    /// crashed, or is about to end.
    fn is_starting(&self) -> bool {
        self.sqlstate() == Some(SqlState::CANNOT_CONNECT_NOW.code())
    }
}

/// ` (SQLSTATE xxxxx)`, or nothing when the error did not come from the server.
pub(super) fn sqlstate(error: &tokio_postgres::Error) -> String {
    error.code().map(|state| format!(" (SQLSTATE {})", state.code())).unwrap_or_default()
}

/// One session. Dropping it closes the socket at once, whatever is under way.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    settings: ConnectionSettings,
    _driver: AbortOnDropHandle<()>,
}

/// The token was cancelled before the work was done.
#[derive(Clone, Copy, Debug, Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Connection {
    /// The session itself.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How it was made.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// Awaits `work`, which runs statements on this session, unless the token is cancelled first: then the
    /// server is asked to stop, and the work is dropped when it has ended, or after [`limits::CANCEL_REQUEST`].
    /// Work that has not begun does not begin any more.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub async fn unless_cancelled<T>(
        &self,
        token: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> Result<T, Cancelled> {
        if token.is_cancelled() {
            return Err(Cancelled);
        }
        let mut work = pin!(work);
        tokio::select! {
            biased;
            () = token.cancelled() => {}
            done = &mut work => return Ok(done),
        }
        // A request stops the statement it meets; one that comes between two of them is lost. What is not stopped
        // would go on by itself, beside the work of whoever comes next.
        let ended = async {
            loop {
                tokio::select! {
                    biased;
                    _ = &mut work => return,
                    () = self.cancel_statement() => {}
                }
            }
        };
        // What does not end is abandoned, and the server notices that by itself.
        let _ = tokio::time::timeout(limits::CANCEL_REQUEST, ended).await;
        Err(Cancelled)
    }

    /// Asks once, and allows the server a moment to obey.
    async fn cancel_statement(&self) {
        // Whether it arrives shows in what becomes of the statement.
        let _ = self.client.cancel_token().cancel_query(NoTls).await;
        tokio::time::sleep(limits::CANCEL_AGAIN).await;
    }
}

/// Opens a session, without TLS, in at most [`limits::CONNECT`].
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(settings: &ConnectionSettings) -> Result<Connection, ConnectError> {
    let (client, connection) = open(settings).await?;
    let database = settings.database.clone();
    let newer = newer_guard(connection.parameter("server_version").unwrap_or_default());
    let name = database.clone();
    let driver = tokio::spawn(async move {
        // An error here is also given to whoever waits for an answer on the client.
        if let Err(error) = connection.await {
            tracing::debug!(%error, database = name, "catalog session ended");
        }
    });
    let connection =
        Connection { client, settings: settings.clone(), _driver: AbortOnDropHandle::new(driver) };
    if !newer.is_empty() {
        let set = tokio::time::timeout(limits::CONNECT, connection.client.batch_execute(&newer)).await;
        set.map_err(|_| ConnectError::TimedOut { database: database.clone() })?
            .map_err(|source| ConnectError::Failed { database, source })?;
    }
    Ok(connection)
}

/// Opens a session, and while the server has no place for one more, or takes none because it is starting, tries
/// again for [`limits::SLOT_PATIENCE`]: others give places back all the time, and a server which starts again
/// after a crash of one of its processes is ready soon. Nothing, when the token was cancelled first.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_patiently(
    settings: &ConnectionSettings,
    token: &CancellationToken,
) -> Result<Option<Connection>, ConnectError> {
    let end = tokio::time::Instant::now() + limits::SLOT_PATIENCE;
    loop {
        let Some(connected) = token.run_until_cancelled(connect(settings)).await else { return Ok(None) };
        let error = match connected {
            Ok(connection) => return Ok(Some(connection)),
            Err(error) => error,
        };
        if !error.is_full() && !error.is_starting() {
            return Err(error);
        }
        if tokio::time::Instant::now() >= end {
            return Err(error.for_good());
        }
        tracing::debug!(database = settings.database(), "no session yet: {error}");
        token.run_until_cancelled(tokio::time::sleep(limits::SLOT_PAUSE)).await;
    }
}

/// What to set in a session with a server that calls its version this: `17.2 (Debian 17.2-1)`, `18beta1`.
fn newer_guard(server_version: &str) -> String {
    let digits = server_version.bytes().take_while(u8::is_ascii_digit).count();
    let major: u32 = server_version[..digits].parse().unwrap_or_default();
    let known = NEWER_GUARD.iter().filter(|(since, _, _)| *since <= major);
    known.map(|(_, name, value)| format!("SET {name} = {value};")).collect()
}

/// The same for a caller who wants to hear what the server remarks. A remark is on the channel before the answer
/// of the statement that caused it.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_with_notices(
    settings: &ConnectionSettings,
) -> Result<(Connection, mpsc::UnboundedReceiver<DbError>), ConnectError> {
    let (client, mut connection) = open(settings).await?;
    let (sender, notices) = mpsc::unbounded_channel();
    let driver = tokio::spawn(poll_fn(move |cx| {
        loop {
            match connection.poll_message(cx) {
                Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) => {
                    // Nobody listens to the end of the session.
                    let _ = sender.send(notice);
                }
                Poll::Ready(Some(Ok(_))) => {}
                // The error is given to whoever waits for an answer on the client.
                Poll::Ready(None | Some(Err(_))) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }));
    let driver = AbortOnDropHandle::new(driver);
    Ok((Connection { client, settings: settings.clone(), _driver: driver }, notices))
}

async fn open(
    settings: &ConnectionSettings,
) -> Result<(Client, tokio_postgres::Connection<Socket, NoTlsStream>), ConnectError> {
    let database = settings.database.clone();
    // The timeout inside the configuration covers the TCP handshake only; a frozen server would accept that
    // and never answer the login.
    match tokio::time::timeout(limits::CONNECT, settings.config.connect(NoTls)).await {
        Ok(Ok(pair)) => Ok(pair),
        Ok(Err(source)) => Err(ConnectError::Failed { database, source }),
        Err(_) => Err(ConnectError::TimedOut { database }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(connstr: &str, profile: Profile) -> ConnectionSettings {
        ConnectionSettings::new(&Secret::new(connstr), profile).unwrap()
    }

    #[test]
    fn options_of_the_connection_string_come_last() {
        let settings = settings(
            "postgresql://cloud_admin@localhost/postgres?options=-c%20statement_timeout%3D5",
            Profile::Standard,
        );
        assert_eq!(
            settings.config.get_options(),
            Some(
                "-c role=cloud_admin -c lock_timeout=60000ms -c client_connection_check_interval=1000ms \
                 -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed \
                 -c search_path= -c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0 \
                 -c local_preload_libraries= -c session_replication_role=replica \
                 -c log_statement=none -c log_min_error_statement=panic -c log_min_duration_statement=-1 \
                 -c log_min_duration_sample=-1 -c log_duration=off -c debug_print_parse=off \
                 -c debug_print_rewritten=off -c debug_print_plan=off -c pg_stat_statements.track=none \
                 -c statement_timeout=5"
            )
        );
        assert_eq!(settings.config.get_application_name(), Some("compute_ctl:apply_config"));
        assert_eq!(settings.config.get_connect_timeout(), Some(&limits::CONNECT));
    }

    #[test]
    fn one_more_setting_comes_after_all_others() {
        let settings = settings("host=h user=a options='-c x=1'", Profile::Standard).with("x", "2 3");
        let options = settings.config().get_options().unwrap();
        assert!(options.ends_with(" -c x=1 -c x=2\\ 3"), "{options}");
    }

    #[test]
    fn only_neon_sessions_need_its_settings() {
        let options = |profile| {
            settings("postgresql://a@localhost/postgres", profile).config.get_options().unwrap().to_owned()
        };
        assert!(options(Profile::Neon).contains("-c pgaudit.log=none -c neon.forward_ddl=false"));
        assert!(!options(Profile::Standard).contains("pgaudit"));
    }

    #[test]
    fn a_read_only_session_is_one_whatever_the_connection_string_says() {
        let settings = settings(
            "postgresql://a@localhost/b?options=-c%20default_transaction_read_only%3Doff",
            Profile::Standard,
        );
        let options = settings.read_only().config.get_options().unwrap().to_owned();
        assert!(
            options.ends_with(" -c default_transaction_read_only=off -c default_transaction_read_only=on"),
            "{options}"
        );
    }

    #[test]
    fn a_persons_session_is_guarded_as_far_as_it_can_be_once_it_has_begun() {
        let guard = guard_sql(Profile::Standard, 150_004).join("\n");
        assert!(guard.contains("set_config('search_path', '', false)"), "{guard}");
        assert!(guard.contains("set_config('lock_timeout', '60000ms', false)"), "{guard}");
        for absent in ["preload", "transaction_timeout", "pgaudit"] {
            assert!(!guard.contains(absent), "{absent}: {guard}");
        }
        assert!(guard_sql(Profile::Neon, 170_000).join(" ").contains("'pgaudit.log', 'none'"));
        assert!(guard_sql(Profile::Standard, 170_000).join(" ").contains("'transaction_timeout', '0'"));
    }

    #[test]
    fn only_newer_servers_are_told_what_only_they_know() {
        for (version, expected) in [
            ("15.4 (Debian 15.4-1)", ""),
            ("16.9", ""),
            ("17.0", "SET transaction_timeout = 0;SET event_triggers = off;"),
            ("18beta1", "SET transaction_timeout = 0;SET event_triggers = off;"),
            ("", ""),
            ("devel", ""),
        ] {
            assert_eq!(newer_guard(version), expected, "{version}");
        }
    }

    #[test]
    fn a_role_with_spaces_stays_one_option() {
        let settings = settings("host=localhost user='a b\\\\c'", Profile::Standard);
        assert!(settings.config.get_options().unwrap().starts_with("-c role=a\\ b\\\\c -c "));
        assert_eq!(settings.database(), "a b\\c", "the database defaults to the user");
    }

    #[test]
    fn faults_and_debug_output_keep_the_password() {
        let error = ConnectionSettings::new(&Secret::new("postgresql://localhost"), Profile::Standard);
        assert!(matches!(error, Err(ConnectError::NoUser)));
        let shown = format!("{:?}", settings("postgresql://a:hunter2@localhost/d", Profile::Standard));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
