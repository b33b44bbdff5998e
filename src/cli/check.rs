//! The sub-command `check`: judges a config or spec file and touches nothing else.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::ExitCode;
use crate::spec::fault::{
    self, Checked, ConfigError, DocumentError, Fault, JsonPath, Position, Severity, Shape,
};
use crate::spec::resolve::{self, ResolveError, ResolvedSpec};

/// What a file comes to.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Whether the file can be used.
    ok: bool,
    /// Why it is no document at all, when it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    findings: Vec<Fault>,
}

/// Judges a file: `{spec, compute_ctl_config}` or a bare spec, told apart by their members.
///
/// Writes one line per finding as `file:line:column: …`, or one JSON object. Placeholders nobody has filled in
/// yet are notes, so that templates can be checked too. Ends with [`ExitCode::Ok`], [`ExitCode::BadConfig`]
/// or [`ExitCode::Unreadable`]; with [`ExitCode::Failure`] when `out` cannot be written.
pub fn run(file: &Path, json: bool, out: &mut dyn Write) -> ExitCode {
    let (report, exit) = match fault::read(file) {
        Err(error) => (Report::unreadable(&error), ExitCode::from(&error)),
        Ok(text) => {
            let (report, _) = judge(file, &text);
            let exit = if report.ok { ExitCode::Ok } else { ExitCode::BadConfig };
            (report, exit)
        }
    };
    match report.write(file, json, out) {
        Ok(()) => exit,
        Err(_) => ExitCode::Failure,
    }
}

/// What a text comes to, and the document, if it is one.
pub(super) fn judge(file: &Path, text: &str) -> (Report, Option<Checked>) {
    match fault::parse(text, Shape::ConfigOrSpec) {
        Err(error @ DocumentError::NotJson { .. }) => {
            (Report { error: Some(format!("{}: {error}", file.display())), ..Report::default() }, None)
        }
        Err(DocumentError::Faults(findings)) => (Report { findings, ..Report::default() }, None),
        Ok(mut checked) => {
            let mut findings = std::mem::take(&mut checked.notes);
            if let Some(spec) = &checked.config.spec {
                findings.extend(facts(spec, &checked.spec_path).map(|mut finding| {
                    finding.position = fault::position(text, &finding.path);
                    finding
                }));
            }
            let ok = findings.iter().all(|finding| finding.severity == Severity::Note);
            (Report { ok, error: None, findings }, Some(checked))
        }
    }
}

/// What keeps a spec that reads well from being started.
fn facts(spec: &crate::spec::document::ComputeSpec, root: &JsonPath) -> Option<Fault> {
    match ResolvedSpec::new(&resolve::with_placeholders_filled(spec)) {
        Err(error) => Some(Fault {
            path: root.join(&error.path()),
            position: None,
            severity: Severity::Fault,
            found: error.to_string(),
            expected: mended(&error).to_owned(),
        }),
        Ok(resolved) => resolved.storage.missing().map(|missing| Fault {
            path: root.key("storage"),
            position: None,
            severity: Severity::Note,
            found: missing.to_owned(),
            expected: "`initdb`, `existing`, `archive` or `base_backup`, if this very program is to start it"
                .to_owned(),
        }),
    }
}

/// What would make up for a missing fact.
fn mended(error: &ResolveError) -> &'static str {
    match error {
        ResolveError::NoPageservers => "`pageserver_connection_info`, `pageserver_connstring` or `storage`",
        ResolveError::Pageservers(_) => "one list of pageservers for each shard, each with its URL",
        ResolveError::StripeSize => "a number of pages in `neon.stripe_size`",
        ResolveError::NoSafekeepers | ResolveError::SafekeepersEmpty => {
            "`safekeeper_connstrings` or the setting `neon.safekeepers`, as a primary needs them"
        }
        ResolveError::DuplicateSafekeeper(_) => "each safekeeper once",
        ResolveError::NoTenant | ResolveError::Tenant => {
            "32 hexadecimal digits in `tenant_id` or the setting `neon.tenant_id`"
        }
        ResolveError::NoTimeline | ResolveError::Timeline => {
            "32 hexadecimal digits in `timeline_id` or the setting `neon.timeline_id`"
        }
        ResolveError::Lsn(_) => "an LSN `X/Y`",
    }
}

impl Report {
    /// For a file that cannot be read.
    pub(super) fn unreadable(error: &ConfigError) -> Self {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self { error: Some(format!("{error}{cause}")), ..Self::default() }
    }

    /// Whether the file can be used.
    pub(super) fn is_ok(&self) -> bool {
        self.ok
    }

    /// Adds what forbids the use of the file.
    pub(super) fn refuse(&mut self, fault: Fault) {
        self.ok = false;
        self.findings.push(fault);
    }

    /// The whole report.
    pub(super) fn write(&self, file: &Path, json: bool, out: &mut dyn Write) -> io::Result<()> {
        if json {
            serde_json::to_writer_pretty(&mut *out, self)?;
            return writeln!(out);
        }
        self.write_findings(file, out)?;
        if self.ok {
            writeln!(out, "{}: ok", file.display())?;
        }
        out.flush()
    }

    /// What there is to mend or to note, one line each.
    pub(super) fn write_findings(&self, file: &Path, out: &mut dyn Write) -> io::Result<()> {
        if let Some(error) = &self.error {
            writeln!(out, "{error}")?;
        }
        for Fault { path, position, severity, found, expected } in &self.findings {
            write!(out, "{}", file.display())?;
            if let Some(Position { line, column }) = position {
                write!(out, ":{line}:{column}")?;
            }
            let severity = match severity {
                Severity::Fault => "fault",
                Severity::Note => "note",
            };
            writeln!(out, ": {severity}: {path}: {found}; expected {expected}")?;
        }
        Ok(())
    }
}
