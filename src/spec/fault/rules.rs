//! What a document that decodes must still fulfil before anything is done with it.
//!
//! The original judges storage information only, and lets the rest fail half-way through a start. Here names,
//! passwords, options and settings are judged first, and strictly: they end up in SQL and in configuration
//! files, some of them unquoted. What may go there is asked of the functions that will write it, so that a
//! document which passes here does not fail there.

use std::collections::BTreeSet;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, KeyAlgorithm};

use super::{Fault, JsonPath, Severity};
use crate::catalog::attributes::{DatabaseAttributes, OptionError, RoleAttributes};
use crate::catalog::{plan::is_scram, quote};
use crate::limits;
use crate::postgres::conf;
use crate::spec::document::{
    ComputeCtlConfig, ComputeMode, ComputeSpec, GenericOption, PageserverConnectionInfo, PageserverProtocol,
    StorageSpec,
};
use crate::spec::resolve::{Lsn, ShardIndex, TenantId};
use crate::spec::{archive, base_backup};

/// Everything wrong or odd with a spec, without positions. `root` is where the spec stands in its document.
pub fn examine(spec: &ComputeSpec, root: &JsonPath) -> Vec<Fault> {
    let mut examination = Examination::default();
    examination.identity(spec, root);
    examination.pageservers(spec, root);
    examination.safekeepers(spec, root);
    examination.cluster(spec, &root.key("cluster"));
    examination.deltas(spec, &root.key("delta_operations"));
    examination.services(spec, root);
    examination.storage(spec, &root.key("storage"));
    examination.found
}

/// Everything wrong or odd with `compute_ctl_config`, which always stands at the top of its document.
pub(super) fn examine_ctl(config: &ComputeCtlConfig) -> Vec<Fault> {
    let mut examination = Examination::default();
    let root = JsonPath::root().key("compute_ctl_config");
    let keys = root.key("jwks").key("keys");
    if config.jwks.keys.is_empty() {
        examination.note(
            keys.clone(),
            "no key, so that no token is ever accepted",
            "at least one public key",
        );
    }
    for (index, key) in config.jwks.keys.iter().enumerate() {
        let verifies = match &key.algorithm {
            AlgorithmParameters::OctetKeyPair(pair) => {
                pair.curve == EllipticCurve::Ed25519
                    && matches!(key.common.key_algorithm, None | Some(KeyAlgorithm::EdDSA))
            }
            AlgorithmParameters::RSA(_) => {
                matches!(key.common.key_algorithm, None | Some(KeyAlgorithm::RS256))
            }
            _ => false,
        };
        if !verifies {
            let expected =
                "`kty` OKP with `crv` Ed25519, `x` and `alg` EdDSA, or RSA with `n`, `e` and `alg` RS256";
            examination.note(keys.index(index), "a key which never verifies a token", expected);
        }
    }
    if let Some(tls) = &config.tls {
        for (field, path) in [("key_path", &tls.key_path), ("cert_path", &tls.cert_path)] {
            if path.is_empty() || path.contains('\0') {
                examination.fault(root.key("tls").key(field), "no path", "the path of a PEM file");
            }
        }
    }
    examination.found
}

/// Whether a text is a placeholder which some wrapper script was to replace: `${NAME}`, or a name in capitals
/// with an underscore, such as `TENANT_ID`.
pub fn is_placeholder(text: &str) -> bool {
    let name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
        Some(inner) => name(inner),
        None => {
            text.starts_with(|c: char| c.is_ascii_uppercase())
                && text.contains('_')
                && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        }
    }
}

#[derive(Default)]
struct Examination {
    found: Vec<Fault>,
    faults: usize,
    notes: usize,
}

impl Examination {
    fn push(&mut self, severity: Severity, path: JsonPath, found: &str, expected: &str) {
        // More than are listed are never needed; a hostile document must not cost memory for each entry. Faults
        // are counted apart from notes, or enough of the latter would get any document accepted.
        let count = match severity {
            Severity::Fault => &mut self.faults,
            Severity::Note => &mut self.notes,
        };
        if *count < limits::FAULTS_LISTED {
            *count += 1;
            let (found, expected) = (found.to_owned(), expected.to_owned());
            self.found.push(Fault { path, position: None, severity, found, expected });
        }
    }

    fn fault(&mut self, path: JsonPath, found: &str, expected: &str) {
        self.push(Severity::Fault, path, found, expected);
    }

    fn note(&mut self, path: JsonPath, found: &str, expected: &str) {
        self.push(Severity::Note, path, found, expected);
    }

    /// A text of the wrong form: only a note if it is a placeholder.
    fn form(&mut self, path: JsonPath, text: &str, found: &str, expected: &str) {
        if is_placeholder(text) {
            let found = format!("the placeholder `{text}`");
            self.note(path, &found, &format!("{expected}, once it is filled in"));
        } else {
            self.fault(path, found, expected);
        }
    }

    /// Text which goes into a configuration file or an environment, where a line must stay a line.
    fn one_line(&mut self, path: JsonPath, text: &str) {
        if text.contains(['\n', '\r', '\0']) {
            self.fault(path, "text with a line break or NUL", "text on one line");
        }
    }

    /// Name of a role or database. Any character but NUL is legal in PostgreSQL.
    fn name(&mut self, path: JsonPath, name: &str) {
        let found = match name {
            "" => "an empty name",
            name if name.contains('\0') => "a name with NUL",
            name if name.len() > limits::NAME => "a name longer than PostgreSQL keeps",
            _ => return,
        };
        self.fault(path, found, "a name of 1 to 63 bytes without NUL");
    }

    fn identity(&mut self, spec: &ComputeSpec, root: &JsonPath) {
        for (field, setting, value) in [
            ("tenant_id", "neon.tenant_id", spec.tenant_id.as_deref()),
            ("timeline_id", "neon.timeline_id", spec.timeline_id.as_deref()),
        ] {
            let (path, value) = match value {
                Some(value) => (root.key(field), Some(value)),
                None => (setting_path(spec, root, setting), spec.setting(setting)),
            };
            if let Some(value) = value.filter(|value| value.parse::<TenantId>().is_err()) {
                self.form(path, value, "no such identifier", "exactly 32 hexadecimal digits");
            }
        }
        if let ComputeMode::Static(lsn) = &spec.mode
            && lsn.parse::<Lsn>().is_err()
        {
            let path = root.key("mode").key("Static");
            self.form(path, lsn, "no LSN", "an LSN `X/Y`, two hexadecimal numbers of up to 8 digits");
        }
        for (field, value) in [
            ("project_id", &spec.project_id),
            ("branch_id", &spec.branch_id),
            ("endpoint_id", &spec.endpoint_id),
            ("endpoint_storage_addr", &spec.endpoint_storage_addr),
            ("pageserver_connstring", &spec.pageserver_connstring),
        ] {
            if let Some(value) = value {
                self.one_line(root.key(field), value);
            }
        }
        for (field, token) in [
            ("storage_auth_token", &spec.storage_auth_token),
            ("endpoint_storage_token", &spec.endpoint_storage_token),
        ] {
            if let Some(token) = token {
                self.one_line(root.key(field), token.reveal());
            }
        }
        if !spec.format_version.is_finite() {
            let path = root.key("format_version");
            self.fault(path, "a number out of range", "a number, `1.0` in practice");
        }
        if spec.reconfigure_concurrency == 0 {
            let path = root.key("reconfigure_concurrency");
            self.fault(
                path,
                "0, with which a reconfiguration would wait for ever",
                "an integer from 1 upwards",
            );
        }
    }

    fn pageservers(&mut self, spec: &ComputeSpec, root: &JsonPath) {
        if let Some(info) = &spec.pageserver_connection_info {
            self.shards(info, &root.key("pageserver_connection_info"));
        }
        let legacy = match &spec.pageserver_connstring {
            Some(list) => {
                Some((list.as_str(), root.key("pageserver_connstring"), spec.shard_stripe_size.is_some()))
            }
            None => spec.setting("neon.pageserver_connstring").map(|list| {
                let striped = spec.setting("neon.stripe_size").is_some();
                (list, setting_path(spec, root, "neon.pageserver_connstring"), striped)
            }),
        };
        if let Some((list, path, striped)) = legacy {
            let entries = list.split(',').count();
            if list.split(',').any(|entry| entry.trim().is_empty()) {
                self.fault(path, "an empty entry", "one connection string per shard, separated by commas");
            } else if entries > 255 {
                self.fault(path, "more than 255 entries", "at most 255 shards");
            } else if entries > 1 && !striped && spec.pageserver_connection_info.is_none() {
                let expected = "`shard_stripe_size` beside a list of several pageservers";
                self.fault(path, "several shards without a stripe size", expected);
            }
        }
        if let Some(size) = spec.setting("neon.stripe_size").filter(|size| size.parse::<u32>().is_err()) {
            let path = setting_path(spec, root, "neon.stripe_size");
            self.form(path, size, "no number", "a number of pages, 0 to 4294967295");
        }
    }

    fn shards(&mut self, info: &PageserverConnectionInfo, root: &JsonPath) {
        let shards = root.key("shards");
        let mut seen = BTreeSet::new();
        for (key, shard) in &info.shards {
            let path = shards.key(key);
            match key.parse::<ShardIndex>() {
                Err(_) => self.form(
                    path.clone(),
                    key,
                    "no shard index",
                    "4 hexadecimal digits, number and count: `0104` is shard 1 of 4, `0000` an unsharded tenant",
                ),
                Ok(index) if index.count != info.shard_count => {
                    let found = format!("a shard of {}, while `shard_count` is {}", index.count, info.shard_count);
                    self.fault(path.clone(), &found, "shards which end in the hexadecimal `shard_count`");
                }
                Ok(index) if index.number >= index.count.max(1) => {
                    self.fault(path.clone(), "a shard number beyond the count", "numbers from 0 to count - 1");
                }
                Ok(index) => {
                    seen.insert(index.number);
                }
            }
            let Some(first) = shard.pageservers.first() else {
                self.fault(path.key("pageservers"), "an empty list", "at least one pageserver");
                continue;
            };
            let (field, url) = match info.prefer_protocol {
                PageserverProtocol::Libpq => ("libpq_url", &first.libpq_url),
                PageserverProtocol::Grpc => ("grpc_url", &first.grpc_url),
            };
            let path = path.key("pageservers").index(0).key(field);
            match url {
                None => self.fault(path, "missing", "a URL for the preferred protocol"),
                Some(url) => self.one_line(path, url),
            }
        }
        if let Some(missing) = (0..info.shard_count.max(1)).find(|number| !seen.contains(number)) {
            let index = ShardIndex { number: missing, count: info.shard_count };
            self.fault(shards, &format!("no shard `{index}`"), "every shard from 0 to `shard_count` - 1");
        }
        if info.shard_count > 1 && info.stripe_size.is_none() {
            self.fault(root.key("stripe_size"), "missing", "a stripe size, as there are several shards");
        }
    }

    fn safekeepers(&mut self, spec: &ComputeSpec, root: &JsonPath) {
        let list = root.key("safekeeper_connstrings");
        let mut seen = BTreeSet::new();
        for (index, safekeeper) in spec.safekeeper_connstrings.iter().enumerate() {
            let path = list.index(index);
            if !safekeeper.contains(':') || safekeeper.contains([',', '\'', '\n', '\r', '\0']) {
                self.form(path, safekeeper, "no safekeeper address", "`host:port`");
            } else if spec.mode == ComputeMode::Primary && !seen.insert(safekeeper) {
                self.fault(path, "a safekeeper listed before", "each safekeeper once");
            }
        }
        // The setting stands in for an empty list, of a primary only.
        let stands_in = spec.mode == ComputeMode::Primary && spec.safekeeper_connstrings.is_empty();
        if let Some(setting) = spec.setting("neon.safekeepers").filter(|_| stands_in) {
            let mut entries = setting.split(',').map(str::trim).filter(|entry| !entry.is_empty());
            let mut seen = BTreeSet::new();
            if !entries.all(|entry| seen.insert(entry)) {
                let path = setting_path(spec, root, "neon.safekeepers");
                self.fault(path, "a safekeeper listed twice", "each safekeeper once");
            }
        }
    }

    fn cluster(&mut self, spec: &ComputeSpec, root: &JsonPath) {
        let cluster = &spec.cluster;
        if let Some(text) = &cluster.postgresql_conf {
            let path = root.key("postgresql_conf");
            if text.contains('\0') {
                self.fault(path, "text with NUL", "text without NUL");
            } else if let Err(error) = conf::parse(text) {
                self.fault(path, &error.to_string(), "lines `name = value` as in postgresql.conf");
            }
        }
        let mut seen = BTreeSet::new();
        for (index, role) in cluster.roles.iter().enumerate() {
            let path = root.key("roles").index(index);
            self.name(path.key("name"), &role.name);
            if !seen.insert(&role.name) {
                self.fault(path.key("name"), "a role listed before", "each role once");
            }
            if let Some(password) = &role.encrypted_password {
                self.password(path.key("encrypted_password"), password.reveal());
            }
            let fault = |options: &[GenericOption]| RoleAttributes::parse(options).err();
            self.sql_options(role.options.as_deref(), &path.key("options"), fault);
        }
        for (index, database) in cluster.databases.iter().enumerate() {
            let path = root.key("databases").index(index);
            self.name(path.key("name"), &database.name);
            self.name(path.key("owner"), &database.owner);
            let fault = |options: &[GenericOption]| DatabaseAttributes::parse(options).err();
            self.sql_options(database.options.as_deref(), &path.key("options"), fault);
        }
        for (index, setting) in cluster.settings.iter().flatten().enumerate() {
            self.setting(setting, &root.key("settings").index(index));
        }
    }

    fn password(&mut self, path: JsonPath, password: &str) {
        // PostgreSQL takes the digest in lower case only, and would hash anything else once more.
        let digest = |text: &str| text.len() == 32 && text.bytes().all(|b| b"0123456789abcdef".contains(&b));
        let expected = "a verifier `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, or the 32 \
                        hexadecimal digits (lower case) of an MD5 digest without the prefix `md5`, or null";
        let found = if digest(password) || is_scram(password) {
            return;
        } else if password.starts_with("SCRAM-SHA-256") {
            "a malformed SCRAM verifier"
        } else if password.strip_prefix("md5").is_some_and(digest) {
            "an MD5 digest with the prefix `md5`"
        } else {
            "neither a SCRAM verifier nor an MD5 digest"
        };
        // A password of capitals must not pass for a placeholder, let alone be shown as one.
        if password.starts_with("${") {
            self.form(path, password, found, expected);
        } else {
            self.fault(path, found, expected);
        }
    }

    /// Options of `CREATE ROLE` and `CREATE DATABASE`. Names and values which are no strings go in unquoted.
    fn sql_options(
        &mut self,
        options: Option<&[GenericOption]>,
        root: &JsonPath,
        fault: impl Fn(&[GenericOption]) -> Option<(String, OptionError)>,
    ) {
        for (index, option) in options.unwrap_or_default().iter().enumerate() {
            let path = root.index(index);
            // What can be written, and still means nothing.
            let wrong = fault(std::slice::from_ref(option));
            if let Some((name, fault)) = wrong.filter(|(_, fault)| !matches!(fault, OptionError::Quote(_))) {
                self.fault(path, &format!("the option {name}, which {fault}"), "an option of its form");
                continue;
            }
            if quote::option_name(&option.name).is_err() {
                let expected = "words of letters and `_`, such as `LC_COLLATE`";
                self.fault(path.key("name"), "no option", expected);
            }
            let Some(value) = &option.value else { continue };
            if option.vartype == "string" {
                if value.contains('\0') {
                    self.fault(path.key("value"), "text with NUL", "text without NUL");
                }
            } else if quote::raw_value(value).is_err() {
                let expected = "a number, a name or a quoted text; `vartype` `string` for other text";
                self.form(path.key("value"), value, "a value which cannot stand unquoted", expected);
            }
        }
        if let Some((name, OptionError::Repeated)) = fault(options.unwrap_or_default()) {
            let found = format!("the option {name}, which {}", OptionError::Repeated);
            self.fault(root.clone(), &found, "each option once");
        }
    }

    /// A line `name = value` of `postgresql.conf`, read by the rules of PostgreSQL's `guc-file.l`.
    fn setting(&mut self, setting: &GenericOption, path: &JsonPath) {
        if !conf::is_name(&setting.name) {
            let expected = "the name of a setting: letters, digits and `_`, at most one dot between";
            self.fault(path.key("name"), "no setting", expected);
        }
        let Some(value) = &setting.value else {
            self.fault(path.key("value"), "missing", "a value: a name alone is no line of postgresql.conf");
            return;
        };
        if value.contains(['\n', '\r', '\0']) {
            self.fault(path.key("value"), "a value with a line break or NUL", "a value on one line");
        } else if setting.vartype != "string" && !conf::is_value_token(value) {
            let expected =
                "a number with an optional unit, a word or a quoted text; `vartype` `string` for other text";
            self.form(path.key("value"), value, "a value which cannot stand unquoted", expected);
        }
    }

    fn deltas(&mut self, spec: &ComputeSpec, root: &JsonPath) {
        for (index, delta) in spec.delta_operations.iter().flatten().enumerate() {
            let path = root.index(index);
            let rename = match delta.action.as_str() {
                "rename_db" | "rename_role" => true,
                "delete_db" | "delete_role" => false,
                _ => {
                    let expected = "`delete_db`, `rename_db`, `delete_role` or `rename_role`";
                    self.note(path.key("action"), "an unknown action, which is ignored", expected);
                    continue;
                }
            };
            self.name(path.key("name"), &delta.name);
            match &delta.new_name {
                Some(new_name) if rename => self.name(path.key("new_name"), new_name),
                None if rename => {
                    self.fault(path.key("new_name"), "missing", "the new name, as this renames")
                }
                _ => {}
            }
        }
    }

    fn storage(&mut self, spec: &ComputeSpec, root: &JsonPath) {
        let faults = match &spec.storage {
            Some(StorageSpec::Archive(parameters)) => archive::decode(parameters).err(),
            Some(StorageSpec::BaseBackup(parameters)) => {
                base_backup::decode(parameters, spec.mode != ComputeMode::Primary).err()
            }
            _ => None,
        };
        for fault in faults.into_iter().flatten() {
            let path = root.key(fault.field);
            match &fault.text {
                Some(text) => self.form(path, text, fault.found, fault.expected),
                None => self.fault(path, fault.found, fault.expected),
            }
        }
    }

    fn services(&mut self, spec: &ComputeSpec, root: &JsonPath) {
        if let Some(host) = spec.logs_export_host.as_deref()
            && (!host.contains(':') || host.contains(['\n', '\r', '\0', '"']))
        {
            self.form(root.key("logs_export_host"), host, "no address of a collector", "`host:port`");
        }
        for (name, value) in spec.pgbouncer_settings.iter().flat_map(|settings| &settings.0) {
            let path = root.key("pgbouncer_settings").key(name);
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                self.fault(path.clone(), "no setting of the pooler", "letters, digits and `_`");
            }
            self.one_line(path, value);
        }
        for (index, keys) in
            spec.local_proxy_config.iter().flat_map(|proxy| &proxy.jwks).flatten().enumerate()
        {
            for (role, name) in keys.role_names.iter().enumerate() {
                let path = root.key("local_proxy_config").key("jwks").index(index);
                self.name(path.key("role_names").index(role), name);
            }
        }
        for (name, data) in spec.remote_extensions.iter().flat_map(|remote| &remote.extension_data) {
            let path = root.key("remote_extensions").key("extension_data").key(name).key("control_data");
            for file in data.control_data.keys() {
                if file.is_empty() || file.starts_with('.') || file.contains(['/', '\0']) {
                    let expected = "the name of a file, without `/` and not starting with a dot";
                    self.fault(path.key(file), "no file name", expected);
                }
            }
        }
        if let Some(databricks) = &spec.databricks_settings {
            let path = root.key("databricks_settings");
            for (field, value) in [
                ("databricks_pg_hba", &databricks.databricks_pg_hba),
                ("databricks_pg_ident", &databricks.databricks_pg_ident),
                ("databricks_workspace_host", &databricks.databricks_workspace_host),
            ] {
                if value.contains(['\'', '"', '\n', '\r', '\0']) {
                    self.fault(path.key(field), "text with a quote, line break or NUL", "plain text");
                }
            }
        }
    }
}

/// Path of the value of a setting, for settings which stand in for a field.
fn setting_path(spec: &ComputeSpec, root: &JsonPath, name: &str) -> JsonPath {
    let settings = spec.cluster.settings.as_deref().unwrap_or_default();
    let index = settings.iter().position(|setting| setting.name == name).unwrap_or_default();
    root.key("cluster").key("settings").index(index).key("value")
}
