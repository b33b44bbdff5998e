//! Sessions with our own server for catalog work.

use std::fmt;
use std::fmt::Write as _;
use std::future::{Future, poll_fn};
use std::str::FromStr;
use std::task::Poll;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio_postgres::error::DbError;
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
const GUARD: [(&str, &str); 10] = [
    ("default_transaction_read_only", "off"),
    ("search_path", ""),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("log_statement", "none"),
    ("log_min_error_statement", "panic"),
    ("log_min_duration_statement", "-1"),
    ("log_min_duration_sample", "-1"),
    ("log_duration", "off"),
];

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
        for (name, value) in [("role", user.as_str())].iter().chain(&GUARD).chain(neon) {
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
    #[error("connecting to database {database:?} took longer than {:?}", limits::CONNECT)]
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
}

impl ConnectError {
    /// The server's SQLSTATE, if it was the server which refused: `28P01` for a wrong password, `57P03`
    /// while it is starting, …
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Failed { source, .. } => source.code().map(tokio_postgres::error::SqlState::code),
            _ => None,
        }
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
    /// work is dropped and the server is asked to stop the statement it is executing.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub async fn unless_cancelled<T>(
        &self,
        token: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> Result<T, Cancelled> {
        tokio::select! {
            biased;
            () = token.cancelled() => {
                let request = self.client.cancel_token();
                // A courtesy to the server: it stops sooner. Whether it arrives changes nothing for us.
                let _ = tokio::time::timeout(limits::CANCEL_REQUEST, request.cancel_query(NoTls)).await;
                Err(Cancelled)
            }
            done = work => Ok(done),
        }
    }
}

/// Opens a session, without TLS, in at most [`limits::CONNECT`].
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(settings: &ConnectionSettings) -> Result<Connection, ConnectError> {
    let (client, connection) = open(settings).await?;
    let database = settings.database.clone();
    let driver = tokio::spawn(async move {
        // An error here is also given to whoever waits for an answer on the client.
        if let Err(error) = connection.await {
            tracing::debug!(%error, database, "catalog session ended");
        }
    });
    Ok(Connection { client, settings: settings.clone(), _driver: AbortOnDropHandle::new(driver) })
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
                "-c role=cloud_admin -c default_transaction_read_only=off -c search_path= \
                 -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 \
                 -c log_statement=none -c log_min_error_statement=panic -c log_min_duration_statement=-1 \
                 -c log_min_duration_sample=-1 -c log_duration=off -c statement_timeout=5"
            )
        );
        assert_eq!(settings.config.get_application_name(), Some("compute_ctl:apply_config"));
        assert_eq!(settings.config.get_connect_timeout(), Some(&limits::CONNECT));
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
