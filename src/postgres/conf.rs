//! `postgresql.conf`: rendered from the spec, read back, replaced atomically.
//!
//! The order of the parts is the original's, and it matters: of two lines for one setting the later wins.
//! Values of the spec are quoted here and nowhere else. What would not survive that (line feeds, NUL, names
//! that are no names) is refused with the setting named, because one bad line keeps the server from starting.

mod file;
mod parse;
mod render;

pub use file::{
    OVERRIDE_FILE, WriteError, append_line, clear_override, enable_subscribers, holds, lift_size_limit,
    overridden, override_again, override_with, read, restore, write, write_atomic,
};
pub use parse::{Entry, Fault, SyntaxError, parse};
pub(crate) use parse::{is_name, is_value_token};
pub use render::{Conf, ConfError, ConfExtras, render, strict_overcommit};

use std::path::PathBuf;

use crate::spec::document::Cluster;

/// The value in force of one setting in a text of configuration, without included files: the last line that
/// sets it. A name is compared without regard to case, as the server does.
///
/// # Errors
/// A line which the server would refuse.
pub fn effective(text: &str, name: &str) -> Result<Option<String>, SyntaxError> {
    Ok(last(&parse(text)?, name))
}

/// Where a server with this configuration can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Port of TCP and part of the socket's name.
    pub port: u16,
    /// First directory of `unix_socket_directories`; `None` when the text does not set it and the server's
    /// built-in default applies, or when it sets it to nothing.
    pub socket_directory: Option<PathBuf>,
    /// `listen_addresses`, if set; the server's default is `localhost`.
    pub listen_addresses: Option<String>,
}

/// Port of a server whose configuration does not set one.
pub const DEFAULT_PORT: u16 = 5432;

/// Where a server with this configuration can be reached.
///
/// # Errors
/// A line which the server would refuse. A port out of range counts as not set: the server will say so.
pub fn listening(text: &str) -> Result<Listening, SyntaxError> {
    let entries = parse(text)?;
    // A list, separated by commas, whose elements may stand in double quotes.
    let first = |list: String| {
        let first = list.split(',').next().unwrap_or_default().trim().trim_matches('"').to_owned();
        (!first.is_empty()).then(|| PathBuf::from(first))
    };
    Ok(Listening {
        port: last(&entries, "port").and_then(|port| port.parse().ok()).unwrap_or(DEFAULT_PORT),
        socket_directory: last(&entries, "unix_socket_directories").and_then(first),
        listen_addresses: last(&entries, "listen_addresses"),
    })
}

/// The port in force in a text of configuration, [`DEFAULT_PORT`] if it sets none.
///
/// # Errors
/// A line which the server would refuse.
pub fn effective_port(text: &str) -> Result<u16, SyntaxError> {
    Ok(listening(text)?.port)
}

/// The value of `max_connections` a spec asks for, if it is a number. See [`declared`].
pub fn max_connections(cluster: &Cluster) -> Option<u32> {
    declared(cluster, "max_connections")?.parse().ok()
}

/// What a spec says of a setting: in its settings, else in its verbatim configuration. A setting hides the
/// verbatim part even when it has no value, as it does in the file.
pub fn declared(cluster: &Cluster, name: &str) -> Option<String> {
    let setting =
        cluster.settings.iter().flatten().rev().find(|setting| setting.name.eq_ignore_ascii_case(name));
    match (setting, &cluster.postgresql_conf) {
        (Some(setting), _) => setting.value.clone(),
        (None, Some(text)) => effective(text, name).ok()?,
        (None, None) => None,
    }
}

/// Whether the server takes this value of a setting for `off`: a beginning, in any case, of a word that says so.
pub fn is_off(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    // `o` alone could be `on` as well.
    value == "0"
        || value.len() > 1 && "off".starts_with(&value)
        || !value.is_empty() && ["false", "no"].iter().any(|word| word.starts_with(&value))
}

fn last(entries: &[Entry], name: &str) -> Option<String> {
    entries
        .iter()
        .rev()
        .find(|entry| !entry.is_include() && entry.name.eq_ignore_ascii_case(name))
        .map(|entry| entry.value.clone())
}

#[cfg(test)]
mod tests;
