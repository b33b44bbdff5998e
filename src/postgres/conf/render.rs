//! The text of `postgresql.conf`.

use std::fmt::Display;

use thiserror::Error;

use super::file::OVERRIDE_FILE;
use super::parse::{SyntaxError, is_name, is_value_token};
use super::{effective, parse};
use crate::catalog::Profile;
use crate::limits;
use crate::spec::document::{ComputeAudit, ComputeMode, ComputeSpec, GenericOption};

/// Settings of the caller, rendered last, so that they win: pairs of name and value.
pub type ConfExtras<'a> = [(&'a str, &'a str)];

/// Everything the text depends on.
#[derive(Clone, Copy, Debug)]
pub struct Conf<'a> {
    /// The wanted node.
    pub spec: &'a ComputeSpec,
    /// Whether the settings which only Neon's build reads are written in any case.
    pub profile: Profile,
    /// Name of the privileged role.
    pub privileged_role: &'a str,
    /// Port of the internal HTTP server, where Postgres asks for extensions.
    pub internal_http_port: u16,
    /// Whether Postgres serves TLS: a certificate is configured and the spec has the feature. The files are
    /// `server.crt` and `server.key` in the data directory.
    pub tls: bool,
    /// Whether shared memory must be mapped from files, see [`strict_overcommit`].
    pub mmap_shared_memory: bool,
    /// Port forced by lakebase mode, which also writes the settings of `databricks_settings`.
    pub lakebase_port: Option<u16>,
    /// The caller's own settings.
    pub extras: &'a ConfExtras<'a>,
}

/// Why there is no configuration.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfError {
    /// Not a name the server would read.
    #[error("{name:?} is not the name of a setting")]
    Name {
        /// The name.
        name: String,
    },
    /// A line of the file cannot hold it.
    #[error("the value of setting {name:?} contains a line feed, a carriage return or a NUL byte")]
    Control {
        /// The setting.
        name: String,
    },
    /// The spec gives no value; a name alone is a syntax error of the file.
    #[error("setting {name:?} has no value")]
    NoValue {
        /// The setting.
        name: String,
    },
    /// Its type lets it stand unquoted, but its form does not.
    #[error("the value of setting {name:?} must be quoted: its vartype should be \"string\"")]
    NotAToken {
        /// The setting.
        name: String,
    },
    /// The server would read on it for very long.
    #[error("the line for setting {name:?} is longer than {} bytes", limits::CONF_LINE)]
    TooLong {
        /// The beginning of the setting's name.
        name: String,
    },
    /// The same for the verbatim part.
    #[error("postgresql_conf of the spec: line {line} is longer than {} bytes", limits::CONF_LINE)]
    VerbatimTooLong {
        /// Number of the line, from 1.
        line: usize,
    },
    /// The verbatim part has a line the server would refuse.
    #[error("postgresql_conf of the spec: {0}")]
    Verbatim(SyntaxError),
    /// The verbatim part has a NUL byte.
    #[error("postgresql_conf of the spec contains a NUL byte")]
    VerbatimNul,
}

/// Whether the kernel refuses memory that may never be touched (`vm.overcommit_memory` is 2). POSIX shared
/// memory is then better replaced by mapped files.
pub fn strict_overcommit() -> bool {
    std::fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "2")
}

/// Renders the whole file, with the include of the override file as its last line.
///
/// # Errors
/// [`ConfError`] names the setting.
pub fn render(conf: &Conf<'_>) -> Result<String, ConfError> {
    let spec = conf.spec;
    let mut lines = Lines::default();
    if let Some(verbatim) = &spec.cluster.postgresql_conf {
        if verbatim.contains('\0') {
            return Err(ConfError::VerbatimNul);
        }
        if let Some(index) = verbatim.split('\n').position(|line| line.len() > limits::CONF_LINE) {
            return Err(ConfError::VerbatimTooLong { line: index + 1 });
        }
        parse(verbatim).map_err(ConfError::Verbatim)?;
        lines.verbatim(verbatim);
    }
    storage(&mut lines, spec)?;
    if conf.tls {
        lines.raw("ssl", "on");
        lines.quoted("ssl_cert_file", "server.crt")?;
        lines.quoted("ssl_key_file", "server.key")?;
    }
    let locale = if cfg!(target_os = "macos") { "C" } else { "C.UTF-8" };
    for name in ["lc_messages", "lc_monetary", "lc_time", "lc_numeric"] {
        lines.quoted(name, locale)?;
    }
    mode(&mut lines, conf)?;
    if conf.mmap_shared_memory {
        lines.raw("dynamic_shared_memory_type", "mmap");
    }
    if conf.profile == Profile::Neon {
        lines.quoted("neon.privileged_role_name", conf.privileged_role)?;
    }
    if let Some(settings) = &spec.cluster.settings {
        lines.comment("settings of the spec: begin");
        for setting in settings {
            lines.option(setting)?;
        }
        lines.comment("settings of the spec: end");
    }
    audit(&mut lines, conf)?;
    if conf.profile == Profile::Neon {
        lines.raw("neon.extension_server_port", conf.internal_http_port);
        lines.raw("neon.disable_logical_replication_subscribers", spec.drop_subscriptions_before_start);
    }
    if spec.logs_export_host.is_some() {
        lines.quoted("log_destination", "stderr,syslog")?;
    }
    lakebase(&mut lines, conf)?;
    for (name, value) in conf.extras {
        lines.quoted(name, value)?;
    }
    lines.verbatim(&format!("include_if_exists = '{OVERRIDE_FILE}'"));
    Ok(lines.0)
}

/// Where pages and WAL go. The stripe size must precede the connection string: the server derives shards
/// from both when it reads the latter.
fn storage(lines: &mut Lines, spec: &ComputeSpec) -> Result<(), ConfError> {
    let info = spec.pageserver_connection_info.as_ref();
    let stripe_size = match info {
        Some(info) => info.stripe_size,
        None => spec.shard_stripe_size,
    };
    if let Some(size) = stripe_size {
        lines.raw("neon.stripe_size", size);
    }
    let urls = match info {
        // Keys begin with the number of the shard in hexadecimal, so their order is the shards'.
        Some(info) => info
            .shards
            .values()
            .map(|shard| shard.pageservers.first()?.libpq_url.as_deref())
            .collect::<Option<Vec<_>>>()
            .filter(|urls| !urls.is_empty())
            .map(|urls| urls.join(",")),
        None => spec.pageserver_connstring.clone(),
    };
    if let Some(urls) = urls {
        lines.quoted("neon.pageserver_connstring", &urls)?;
    }
    if !spec.safekeeper_connstrings.is_empty() {
        let generation = spec.safekeepers_generation.map(|n| format!("g#{n}:")).unwrap_or_default();
        lines
            .quoted("neon.safekeepers", &format!("{generation}{}", spec.safekeeper_connstrings.join(",")))?;
    }
    for (name, value) in [
        ("neon.tenant_id", spec.tenant_id.as_ref().map(|id| id.to_ascii_lowercase())),
        ("neon.timeline_id", spec.timeline_id.as_ref().map(|id| id.to_ascii_lowercase())),
        ("neon.project_id", spec.project_id.clone()),
        ("neon.branch_id", spec.branch_id.clone()),
        ("neon.endpoint_id", spec.endpoint_id.clone()),
    ] {
        if let Some(value) = value {
            lines.quoted(name, &value)?;
        }
    }
    Ok(())
}

fn mode(lines: &mut Lines, conf: &Conf<'_>) -> Result<(), ConfError> {
    let (name, lsn) = match &conf.spec.mode {
        ComputeMode::Primary => ("primary", None),
        ComputeMode::Replica => ("replica", None),
        ComputeMode::Static(lsn) => ("static", Some(lsn)),
    };
    if conf.profile == Profile::Neon {
        lines.quoted("neon.compute_mode", name)?;
    }
    if conf.spec.mode != ComputeMode::Primary {
        lines.raw("hot_standby", "on");
    }
    if let Some(lsn) = lsn {
        lines.quoted("recovery_target_lsn", lsn.trim())?;
        if conf.profile == Profile::Standard {
            // The server's default, said aloud: this node stays there.
            lines.raw("recovery_target_action", "pause");
        }
    }
    Ok(())
}

/// After the spec's settings, so that these cannot switch auditing off.
fn audit(lines: &mut Lines, conf: &Conf<'_>) -> Result<(), ConfError> {
    let (what, parameters) = match conf.spec.audit_log_level {
        ComputeAudit::Disabled => return Ok(()),
        ComputeAudit::Log | ComputeAudit::Base => {
            lines.comment("audit: begin");
            lines.quoted("pgaudit.log", "ddl,role")?;
            lines.raw("pgaudit.log_catalog", "off");
            lines.quoted("shared_preload_libraries", &preload(conf, &["pgaudit"])?)?;
            lines.comment("audit: end");
            return Ok(());
        }
        ComputeAudit::Hipaa | ComputeAudit::Extended => ("all, -misc", "off"),
        ComputeAudit::Full => ("all", "on"),
    };
    lines.comment("audit: begin");
    lines.raw("pgaudit.log_parameter", parameters);
    lines.quoted("pgaudit.log", what)?;
    lines.raw("pgaudit.log_catalog", "off");
    lines.raw("pgaudit.log_rotation_age", 5);
    lines.quoted("shared_preload_libraries", &preload(conf, &["pgaudit", "pgauditlogtofile"])?)?;
    lines.comment("audit: end");
    Ok(())
}

/// The libraries to preload with `added` at the end. They are compared whole: a list with `pgauditlogtofile`
/// does not contain `pgaudit`.
fn preload(conf: &Conf<'_>, added: &[&str]) -> Result<String, ConfError> {
    const NAME: &str = "shared_preload_libraries";
    let cluster = &conf.spec.cluster;
    let setting = cluster.settings.iter().flatten().rev().find(|setting| setting.name == NAME);
    let present = match (setting, &cluster.postgresql_conf) {
        (Some(setting), _) => setting.value.clone(),
        (None, Some(text)) => effective(text, NAME).map_err(ConfError::Verbatim)?,
        (None, None) => None,
    };
    let default = if conf.profile == Profile::Neon { "neon" } else { "" };
    let present = present.unwrap_or_else(|| default.to_owned());
    let mut libraries: Vec<&str> =
        present.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    for library in added {
        if !libraries.iter().any(|present| present.trim_matches('"') == *library) {
            libraries.push(library);
        }
    }
    Ok(libraries.join(","))
}

fn lakebase(lines: &mut Lines, conf: &Conf<'_>) -> Result<(), ConfError> {
    let Some(port) = conf.lakebase_port else { return Ok(()) };
    lines.raw("port", port);
    if let Some(settings) = &conf.spec.databricks_settings {
        lines.comment("databricks: begin");
        lines.quoted("ssl_ca_file", &settings.pg_compute_tls_settings.ca_file)?;
        lines.quoted("databricks.workspace_url", &settings.databricks_workspace_host)?;
        lines.raw("databricks.enable_databricks_identity_login", true);
        lines.raw("databricks.enable_sql_restrictions", true);
        lines.comment("databricks: end");
    }
    Ok(())
}

/// The line of one setting, with its line feed.
pub(super) fn line(name: &str, value: &str) -> Result<String, ConfError> {
    let mut lines = Lines::default();
    lines.quoted(name, value)?;
    Ok(lines.0)
}

/// The text so far.
#[derive(Default)]
struct Lines(String);

impl Lines {
    /// Text as it is, and a line feed if it lacks one.
    fn verbatim(&mut self, text: &str) {
        self.0.push_str(text);
        if !text.is_empty() && !text.ends_with('\n') {
            self.0.push('\n');
        }
    }

    fn comment(&mut self, text: &str) {
        self.verbatim(&format!("# {text}"));
    }

    /// A value of our own making, which needs no quotes.
    fn raw(&mut self, name: &str, value: impl Display) {
        self.verbatim(&format!("{name} = {value}"));
    }

    /// A value in quotes, with quotes and backslashes doubled.
    fn quoted(&mut self, name: &str, value: &str) -> Result<(), ConfError> {
        check_name(name)?;
        if value.contains(['\n', '\r', '\0']) {
            return Err(ConfError::Control { name: name.to_owned() });
        }
        let value = value.replace('\'', "''").replace('\\', "\\\\");
        self.line(name, &format!("{name} = '{value}'"))
    }

    fn line(&mut self, name: &str, line: &str) -> Result<(), ConfError> {
        if line.len() > limits::CONF_LINE {
            return Err(ConfError::TooLong { name: name.chars().take(limits::NAME).collect() });
        }
        self.verbatim(line);
        Ok(())
    }

    /// An entry of `cluster.settings`.
    fn option(&mut self, option: &GenericOption) -> Result<(), ConfError> {
        let GenericOption { name, value, vartype } = option;
        let value = value.as_deref().ok_or_else(|| ConfError::NoValue { name: name.clone() })?;
        if vartype == "string" {
            return self.quoted(name, value);
        }
        check_name(name)?;
        if !is_value_token(value) || value.contains(['\n', '\r', '\0']) {
            return Err(ConfError::NotAToken { name: name.clone() });
        }
        self.line(name, &format!("{name} = {value}"))
    }
}

fn check_name(name: &str) -> Result<(), ConfError> {
    if is_name(name) { Ok(()) } else { Err(ConfError::Name { name: name.to_owned() }) }
}
