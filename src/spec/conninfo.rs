//! libpq's connection strings, taken apart and put together again (PostgreSQL manual, "Connection Strings").
//!
//! Both forms are read, keywords and URL; keywords are written. What a string may say is judged by name, so that a
//! mistyped parameter is found before a program of PostgreSQL's meets it, and so that nothing passes which
//! whoever uses the string decides for itself.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use crate::secret::Secret;

/// Parameters of libpq 15 to 18 which a string may have. Not among them: `replication`, which the programs set;
/// `service`, which would bring parameters from a file that nobody judges; `sslpassword`, which has no other way
/// than the command line.
const KNOWN: [&str; 43] = [
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "options",
    "passfile",
    "password",
    "port",
    "require_auth",
    "requirepeer",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// What is wrong with a connection string, without anything of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConninfoError {
    /// No keyword, or a keyword without a value, or a quote that is not closed.
    #[error("neither keywords `name=value` nor a URL")]
    Form,
    /// A `%` in a URL without two hexadecimal digits, or of text that is not UTF-8.
    #[error("a URL with a wrong `%` escape")]
    Escape,
    /// A line break or NUL: the string becomes a line of `postgresql.conf`.
    #[error("a value with a line break or NUL")]
    Control,
    /// Not libpq's.
    #[error("a connection parameter that libpq does not have")]
    Unknown,
    /// Not the string's business.
    #[error("a connection parameter (`replication`, `service`, `sslpassword`) that is not served here")]
    Unserved,
}

impl ConninfoError {
    /// The same as a text that stands in a report.
    pub fn found(self) -> &'static str {
        match self {
            Self::Form => "neither keywords `name=value` nor a URL",
            Self::Escape => "a URL with a wrong `%` escape",
            Self::Control => "a value with a line break or NUL",
            Self::Unknown => "a connection parameter that libpq does not have",
            Self::Unserved => {
                "a connection parameter (`replication`, `service`, `sslpassword`) that is not served here"
            }
        }
    }
}

/// Parameters of a connection. Shown as `host:port` only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Conninfo(BTreeMap<String, String>);

impl Conninfo {
    /// Reads either form.
    ///
    /// # Errors
    /// What is wrong, without anything of the text.
    pub fn parse(text: &str) -> Result<Self, ConninfoError> {
        let url = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let parameters = match url {
            Some(rest) => from_url(rest)?,
            None => from_keywords(text)?,
        };
        let mut read = Self::default();
        for (name, value) in parameters {
            if value.contains(['\n', '\r', '\0']) {
                return Err(ConninfoError::Control);
            }
            match name.as_str() {
                "replication" | "service" | "servicefile" | "sslpassword" => {
                    return Err(ConninfoError::Unserved);
                }
                known if KNOWN.contains(&known) => {}
                _ => return Err(ConninfoError::Unknown),
            }
            read.0.insert(name, value);
        }
        Ok(read)
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets a parameter.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// The password, if the string has it.
    pub fn password(&self) -> Option<Secret> {
        self.get("password").map(Secret::new)
    }

    /// As keywords, without the password: for a command line, which everybody on the machine can read.
    pub fn public(&self) -> String {
        self.keywords(|name| name != "password")
    }

    /// As keywords, password included.
    pub fn whole(&self) -> Secret {
        Secret::new(self.keywords(|_| true))
    }

    fn keywords(&self, wanted: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        for (name, value) in self.0.iter().filter(|(name, _)| wanted(name)) {
            let space = if text.is_empty() { "" } else { " " };
            // Quoted only where it must be, because people read it. Writing to a String cannot fail.
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+".contains(c);
            let _ = match !value.is_empty() && value.chars().all(plain) {
                true => write!(text, "{space}{name}={value}"),
                false => {
                    let value = value.replace('\\', "\\\\").replace('\'', "\\'");
                    write!(text, "{space}{name}='{value}'")
                }
            };
        }
        text
    }
}

/// Where it leads: each host with its port, and nothing else.
impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.get("host").or_else(|| self.get("hostaddr")).unwrap_or("local socket");
        let ports: Vec<&str> = self.get("port").unwrap_or_default().split(',').collect();
        for (index, host) in hosts.split(',').enumerate() {
            // One port is for all hosts.
            let port =
                if ports.len() == 1 { ports[0] } else { ports.get(index).copied().unwrap_or_default() };
            let port = if port.is_empty() { "5432" } else { port };
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{host}:{port}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

type Parameters = Vec<(String, String)>;

fn from_keywords(text: &str) -> Result<Parameters, ConninfoError> {
    let mut parameters = Parameters::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or(ConninfoError::Form)?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(ConninfoError::Form);
        }
        let (value, after) = value(after.trim_start())?;
        parameters.push((name.to_owned(), value));
        rest = after.trim_start();
    }
    match parameters.is_empty() {
        true => Err(ConninfoError::Form),
        false => Ok(parameters),
    }
}

/// One value, and what follows it. A backslash takes the next character as it is, inside of quotes and outside.
fn value(text: &str) -> Result<(String, &str), ConninfoError> {
    let quoted = text.strip_prefix('\'');
    let text = quoted.unwrap_or(text);
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted.is_some() => return Ok((value, &text[at + 1..])),
            c if quoted.is_none() && c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted.is_some() { Err(ConninfoError::Form) } else { Ok((value, "")) }
}

/// What follows the scheme: `user:password@host:port,host:port/dbname?name=value&…`.
fn from_url(text: &str) -> Result<Parameters, ConninfoError> {
    let mut parameters = Parameters::new();
    let mut add = |name: &str, value: &str| -> Result<(), ConninfoError> {
        if !value.is_empty() {
            parameters.push((name.to_owned(), decoded(value)?));
        }
        Ok(())
    };
    let (front, query) = text.split_once('?').unwrap_or((text, ""));
    let (authority, dbname) = front.split_once('/').unwrap_or((front, ""));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    add("user", user)?;
    add("password", password)?;
    add("dbname", dbname)?;
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (name, after) = rest.split_once(']').ok_or(ConninfoError::Form)?;
                (name, after.strip_prefix(':').unwrap_or(after))
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(name);
        ports.push(port);
    }
    add("host", &names.join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        add("port", &ports.join(","))?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or(ConninfoError::Form)?;
        match (name, value) {
            // Taken over from JDBC by libpq.
            ("ssl", "true") => add("sslmode", "require")?,
            _ => add(&decoded(name)?, value)?,
        }
    }
    Ok(parameters)
}

fn decoded(text: &str) -> Result<String, ConninfoError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let (high, low) = (digit(rest.next()), digit(rest.next()));
        let value = high.zip(low).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        bytes.push(value.ok_or(ConninfoError::Escape)?);
    }
    String::from_utf8(bytes).map_err(|_| ConninfoError::Escape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> String {
        Conninfo::parse(text).unwrap().whole().reveal().to_owned()
    }

    #[test]
    fn both_forms_say_the_same() {
        let keywords = r"host = db.example  user=app password='it\'s \\ mine' port=5433 dbname=a\ b";
        let url = "postgresql://app:it's%20%5c%20mine@db.example:5433/a%20b";
        assert_eq!(whole(keywords), whole(url));
        assert_eq!(whole(&whole(url)), whole(url));
        assert_eq!(whole("postgres://h"), "host=h");
        assert_eq!(whole("postgresql://%2Fvar%2Frun"), "host=/var/run");
        assert_eq!(
            whole("postgresql://a,[::1]:5,c/?sslmode=require&application_name="),
            "host=a,::1,c port=,5, sslmode=require"
        );
        assert_eq!(whole("postgresql://h?ssl=true"), "host=h sslmode=require");
        assert_eq!(whole("options=''"), "options=''");
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, error) in [
            ("", ConninfoError::Form),
            ("host", ConninfoError::Form),
            ("host=a user", ConninfoError::Form),
            ("ho st=a", ConninfoError::Form),
            ("host='a", ConninfoError::Form),
            ("postgresql://[::1/db", ConninfoError::Form),
            ("postgresql://h?sslmode", ConninfoError::Form),
            ("postgresql://h/%4", ConninfoError::Escape),
            ("postgresql://h/%ff", ConninfoError::Escape),
            ("host='a\nb'", ConninfoError::Control),
            ("postgresql://h/%00", ConninfoError::Control),
            ("hots=a", ConninfoError::Unknown),
            ("host=a replication=1", ConninfoError::Unserved),
            ("service=a", ConninfoError::Unserved),
        ] {
            assert_eq!(Conninfo::parse(text), Err(error), "{text:?}");
            assert_eq!(error.to_string(), error.found());
        }
    }

    #[test]
    fn only_hosts_and_ports_are_shown() {
        let shown = |text: &str| {
            let read = Conninfo::parse(text).unwrap();
            assert!(!read.public().contains("hunter2"), "{}", read.public());
            format!("{read} {read:?}")
        };
        assert_eq!(shown("postgresql://me:hunter2@h:5433/db"), "h:5433 h:5433");
        assert_eq!(shown("host=a,b port=1,2 password=hunter2"), "a:1,b:2 a:1,b:2");
        assert_eq!(shown("host=a,b port=1"), "a:1,b:1 a:1,b:1");
        assert_eq!(shown("user=me"), "local socket:5432 local socket:5432");
    }
}
