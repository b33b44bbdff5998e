//! `postgresql.conf`: what we render reads back as what was meant, and no text makes the reader panic.
//!
//! The input is text in records, separated by U+001E. The first record holds flags, each further one begins
//! with a letter for its kind, listed in [`records`]; U+001F separates a name from its value.

#![no_main]

use compute_ctl::catalog::Profile;
use compute_ctl::postgres::conf::{self, Conf, Entry};
use compute_ctl::spec::document::{ComputeAudit, ComputeMode, ComputeSpec, GenericOption};
use libfuzzer_sys::fuzz_target;

const BEGIN: &str = "# settings of the spec: begin";
const END: &str = "# settings of the spec: end";

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    any_text(&text);
    let mut parts = text.split('\u{1e}');
    let flags = parts.next().unwrap_or_default();
    let mut spec = empty_spec();
    let mut settings = Vec::new();
    let mut extras = Vec::new();
    records(parts, &mut spec, &mut settings, &mut extras);
    spec.audit_log_level = match flags {
        flags if flags.contains('b') => ComputeAudit::Base,
        flags if flags.contains('h') => ComputeAudit::Hipaa,
        flags if flags.contains('f') => ComputeAudit::Full,
        _ => ComputeAudit::Disabled,
    };
    spec.cluster.settings = (!settings.is_empty()).then(|| settings.clone());
    let rendered = conf::render(&Conf {
        spec: &spec,
        profile: if flags.contains('N') { Profile::Neon } else { Profile::Standard },
        privileged_role: "neon_superuser",
        internal_http_port: 3081,
        tls: flags.contains('t'),
        mmap_shared_memory: flags.contains('m'),
        lakebase_port: flags.contains('l').then_some(55432),
        extras: &extras,
    });
    if let Ok(rendered) = rendered {
        reads_back(&rendered, &spec, &settings, &extras);
    }
});

/// Whatever the text: no panic, and every value the reader found survives being written by us.
fn any_text(text: &str) {
    let Ok(entries) = conf::parse(text) else { return };
    let _ = (conf::listening(text), conf::effective_port(text), conf::effective(text, "port"));
    for Entry { line, name, value } in &entries {
        assert!(*line >= 1 && *line <= text.split('\n').count(), "line {line}");
        // The server reads a value as a C string.
        assert!(!value.contains('\0') || text.contains('\0'), "{name}: a value with a NUL byte");
    }
    let extras: Vec<(&str, &str)> = entries
        .iter()
        .filter(|entry| !entry.is_include() && !entry.value.contains(['\n', '\r', '\0']))
        .map(|entry| (entry.name.as_str(), entry.value.as_str()))
        .collect();
    let spec = empty_spec();
    let rendered = conf::render(&Conf {
        spec: &spec,
        profile: Profile::Standard,
        privileged_role: "",
        internal_http_port: 0,
        tls: false,
        mmap_shared_memory: false,
        lakebase_port: None,
        extras: &extras,
    });
    let rendered = rendered.expect("what was read can be written");
    reads_back(&rendered, &spec, &[], &extras);
}

fn records<'a>(
    parts: impl Iterator<Item = &'a str>,
    spec: &mut ComputeSpec,
    settings: &mut Vec<GenericOption>,
    extras: &mut Vec<(&'a str, &'a str)>,
) {
    for part in parts {
        let Some((kind, rest)) = part.split_at_checked(1) else { continue };
        let (name, value) = rest.split_once('\u{1f}').unwrap_or((rest, ""));
        let setting = |vartype: &str, value: Option<&str>| GenericOption {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            vartype: vartype.to_owned(),
        };
        match kind {
            "v" => spec.cluster.postgresql_conf = Some(rest.to_owned()),
            "s" => settings.push(setting("string", Some(value))),
            "r" => settings.push(setting("enum", Some(value))),
            "n" => settings.push(setting("string", None)),
            "x" => extras.push((name, value)),
            "t" => spec.tenant_id = Some(rest.to_owned()),
            "p" => spec.project_id = Some(rest.to_owned()),
            "k" => spec.safekeeper_connstrings.push(rest.to_owned()),
            "g" => spec.pageserver_connstring = Some(rest.to_owned()),
            "m" => spec.mode = ComputeMode::Static(rest.to_owned()),
            "l" => spec.logs_export_host = Some(rest.to_owned()),
            _ => {}
        }
    }
}

fn empty_spec() -> ComputeSpec {
    let text = r#"{"format_version": 1.0, "suspend_timeout_seconds": -1, "cluster": {"roles": [], "databases": []}}"#;
    serde_json::from_str(text).expect("the smallest spec decodes")
}

fn reads_back(rendered: &str, spec: &ComputeSpec, settings: &[GenericOption], extras: &[(&str, &str)]) {
    let entries = conf::parse(rendered).unwrap_or_else(|fault| panic!("{fault} of our own:\n{rendered}"));
    let pairs = |entries: &[Entry]| -> Vec<(String, String)> {
        entries.iter().map(|entry| (entry.name.clone(), entry.value.clone())).collect()
    };
    // The verbatim part comes first and is read as if it stood alone.
    let verbatim = spec.cluster.postgresql_conf.as_deref().unwrap_or_default();
    let verbatim = conf::parse(verbatim).expect("a bad verbatim part is refused");
    let (before, ours) = entries.split_at(verbatim.len());
    assert_eq!(before, verbatim);
    // The settings of the spec stand between two comments, of which the verbatim part may have likenesses.
    let line_of = |comment: &str| {
        let lines: Vec<&str> = rendered.split('\n').collect();
        lines.iter().rposition(|line| *line == comment).map_or(0, |index| index + 1)
    };
    let (begin, end) = (line_of(BEGIN), line_of(END));
    let is_setting = |entry: &&Entry| !settings.is_empty() && entry.line > begin && entry.line < end;
    let found: Vec<_> = ours.iter().filter(is_setting).cloned().collect();
    let expected: Vec<_> = settings
        .iter()
        .map(|setting| {
            let value = setting.value.clone().expect("a setting without a value is refused");
            let value = if setting.vartype == "string" { value } else { meant(&value) };
            (setting.name.clone(), value)
        })
        .collect();
    assert_eq!(pairs(&found), expected, "in\n{rendered}");
    // Then ours, the caller's, and the include.
    let (last, rest) =
        pairs(ours).split_last().map(|(last, rest)| (last.clone(), rest.to_vec())).expect("an include");
    assert_eq!(last, ("include_if_exists".to_owned(), "compute_ctl_temp_override.conf".to_owned()));
    let callers: Vec<_> =
        extras.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert!(rest.ends_with(&callers), "the caller's settings in\n{rendered}");
    // No string of the spec made a line of its own.
    let own: Vec<&Entry> =
        ours[..ours.len() - 1 - callers.len()].iter().filter(|entry| !is_setting(entry)).collect();
    for entry in &own {
        assert!(OWN.contains(&entry.name.as_str()), "{entry:?} is none of our settings");
    }
    let value = |name: &str| own.iter().find(|entry| entry.name == name).map(|entry| entry.value.clone());
    let safekeepers =
        Some(spec.safekeeper_connstrings.join(",")).filter(|_| !spec.safekeeper_connstrings.is_empty());
    assert_eq!(value("neon.tenant_id"), spec.tenant_id.as_ref().map(|id| id.to_ascii_lowercase()));
    assert_eq!(value("neon.project_id"), spec.project_id);
    assert_eq!(value("neon.pageserver_connstring"), spec.pageserver_connstring);
    assert_eq!(value("neon.safekeepers"), safekeepers);
}

/// Names of lines which we write ourselves.
const OWN: [&str; 26] = [
    "neon.pageserver_connstring",
    "neon.safekeepers",
    "neon.tenant_id",
    "neon.project_id",
    "ssl",
    "ssl_cert_file",
    "ssl_key_file",
    "lc_messages",
    "lc_monetary",
    "lc_time",
    "lc_numeric",
    "neon.compute_mode",
    "neon.privileged_role_name",
    "hot_standby",
    "recovery_target_action",
    "recovery_target_lsn",
    "dynamic_shared_memory_type",
    "neon.extension_server_port",
    "neon.disable_logical_replication_subscribers",
    "log_destination",
    "port",
    "shared_preload_libraries",
    "pgaudit.log",
    "pgaudit.log_catalog",
    "pgaudit.log_parameter",
    "pgaudit.log_rotation_age",
];

/// What a value stands for that goes into the file as it is: itself, or what is between its quotes, by the
/// rules of the manual's chapter 20.1.2 and of `DeescapeQuotedString`.
fn meant(token: &str) -> String {
    let Some(inner) = token.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) else {
        return token.to_owned();
    };
    let mut value = Vec::new();
    let mut bytes = inner.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\'' => value.extend(bytes.next()),
            b'\\' => match bytes.next() {
                Some(digit @ b'0'..=b'7') => {
                    let mut code = u32::from(digit - b'0');
                    for _ in 0..2 {
                        let Some(digit) = bytes.next_if(|byte| (b'0'..=b'7').contains(byte)) else { break };
                        code = code * 8 + u32::from(digit - b'0');
                    }
                    value.push(code.to_le_bytes()[0]);
                }
                Some(b'b') => value.push(8),
                Some(b'f') => value.push(12),
                Some(b'n') => value.push(b'\n'),
                Some(b'r') => value.push(b'\r'),
                Some(b't') => value.push(b'\t'),
                other => value.extend(other),
            },
            other => value.push(other),
        }
    }
    // A C string ends at its first NUL.
    value.truncate(value.iter().position(|byte| *byte == 0).unwrap_or(value.len()));
    String::from_utf8(value).expect("values that are no UTF-8 are refused")
}
