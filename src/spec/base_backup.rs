//! The parameters of storage kind `base_backup`.

use super::conninfo::Conninfo;
use super::document::StorageParameters;
use super::parameters::{ParameterFault, Reader};
use crate::limits;

/// Whose backup, how it is taken, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseBackupSpec {
    /// How to reach the server, password included.
    pub source: Conninfo,
    /// Whether the copy follows the server. Otherwise it is a primary of its own.
    pub standby: bool,
    /// The slot that keeps WAL for the standby.
    pub slot: Option<String>,
    /// Whether the slot is this node's own: made if it is not there, dropped when the copy is of no more use.
    pub create_slot: bool,
    /// Whether a finished copy is kept from one start of this program to the next.
    pub reuse: bool,
    /// Whether the server writes its checkpoint at once.
    pub fast_checkpoint: bool,
    /// Most KiB a second.
    pub max_rate: Option<u32>,
    /// How the server compresses what it sends.
    pub compress: Compression,
    /// Whether the copy is compared with the server's manifest.
    pub verify: bool,
}

impl BaseBackupSpec {
    /// Whether nobody needs the slot once this node has ended: the copy it was made for is made anew.
    pub fn slot_ends_with_node(&self) -> bool {
        self.create_slot && !self.reuse
    }
}

/// Compression by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// None.
    None,
    /// gzip.
    Gzip,
    /// LZ4, if both builds of PostgreSQL have it.
    Lz4,
    /// Zstandard, if both builds of PostgreSQL have it.
    Zstd,
}

impl Compression {
    /// As `pg_basebackup --compress` takes it.
    pub fn argument(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "server-gzip",
            Self::Lz4 => "server-lz4",
            Self::Zstd => "server-zstd",
        }
    }
}

const SOURCE: &str = "a connection string of PostgreSQL's, `host=… user=…` or `postgresql://user@host`";
const PASSWORD: &str = "the password on one line, here or in `source`";
const SSLMODE: &str =
    "`disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`, here or in `source`";
const SSLROOTCERT: &str = "the absolute path of a file with certificates, or `system`, here or in `source`";
const SLOT: &str = "1 to 63 lower-case letters, digits and `_`";
const ROLE: &str = "`standby` with mode Replica or Static, `primary` with mode Primary";
const RATE: &str = "a number of KiB a second from 32 to 1048576";

const KNOWN: [&str; 12] = [
    "source",
    "password",
    "sslmode",
    "sslrootcert",
    "slot",
    "create_slot",
    "role",
    "reuse",
    "checkpoint",
    "max_rate",
    "compress",
    "manifest",
];

/// Reads the parameters. `standby` is what the spec's mode says.
///
/// # Errors
/// All faults at once, never none.
pub fn decode(parameters: &StorageParameters, standby: bool) -> Result<BaseBackupSpec, Vec<ParameterFault>> {
    let mut reader = Reader::new(parameters);
    let source = source(&mut reader);
    let role = [("standby", true), ("primary", false)];
    if reader.value("role").is_some()
        && let Some(role) = reader.choice("role", &role, ROLE)
        && role != standby
    {
        let found =
            if standby { "a primary, while `mode` is a standby's" } else { "a standby in mode Primary" };
        reader.fault("role", None, found, ROLE);
    }
    let (slot, create_slot) = slot(&mut reader, standby);
    let reuse = reader.flag("reuse", false);
    let checkpoint = [("fast", true), ("spread", false)];
    let fast_checkpoint = reader.choice("checkpoint", &checkpoint, "`fast` or `spread`");
    let max_rate = max_rate(&mut reader);
    let compress = [
        ("none", Compression::None),
        ("gzip", Compression::Gzip),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
    ];
    let compress = reader.choice("compress", &compress, "`none`, `gzip`, `lz4` or `zstd`");
    let verify = reader.flag("manifest", true);
    let expected = "`source`, `password`, `sslmode`, `sslrootcert`, `slot`, `create_slot`, `role`, `reuse`, \
                    `checkpoint`, `max_rate`, `compress` or `manifest`";
    reader.unknown(&KNOWN, "a parameter that base backups do not have", expected);
    match (source, fast_checkpoint, compress) {
        (Some(source), Some(fast_checkpoint), Some(compress)) if reader.faults.is_empty() => {
            Ok(BaseBackupSpec {
                source,
                standby,
                slot,
                create_slot,
                reuse,
                fast_checkpoint,
                max_rate,
                compress,
                verify,
            })
        }
        _ => Err(reader.faults),
    }
}

fn source(reader: &mut Reader<'_>) -> Option<Conninfo> {
    let text = reader.required("source", SOURCE);
    let mut source = match text.map(Conninfo::parse)? {
        Ok(source) => Some(source),
        Err(error) => {
            // What has the form of a connection string may hold a password, and is no placeholder.
            let shown = text.filter(|text| !text.contains([':', '=']));
            reader.fault("source", shown, error.found(), SOURCE);
            None
        }
    };
    for (field, expected) in [("password", PASSWORD), ("sslmode", SSLMODE), ("sslrootcert", SSLROOTCERT)] {
        let Some(value) = reader.string(field, expected) else { continue };
        if value.is_empty() || value.contains(['\n', '\r', '\0']) {
            reader.fault(field, None, "an empty text, or one with a line break or NUL", expected);
        } else if let Some(source) = &mut source {
            if source.get(field).is_some() {
                reader.fault(field, None, "a second one beside that of `source`", expected);
            } else {
                source.set(field, value);
            }
        }
    }
    let source = source?;
    if let Some(mode) = source.get("sslmode") {
        const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
        if !MODES.contains(&mode) {
            let field = if reader.value("sslmode").is_some() { "sslmode" } else { "source" };
            reader.fault(field, None, "an unknown `sslmode`", SSLMODE);
        }
    }
    Some(source)
}

fn slot(reader: &mut Reader<'_>, standby: bool) -> (Option<String>, bool) {
    let slot = reader.string("slot", SLOT);
    let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
    if let Some(name) = slot {
        if name.is_empty() || name.len() > limits::NAME || !name.bytes().all(legal) {
            reader.fault("slot", Some(name), "no name of a slot", SLOT);
        } else if !standby {
            let expected = "no slot: a primary of its own needs no WAL once it is copied";
            reader.fault("slot", None, "a slot in mode Primary", expected);
        }
    }
    let create = reader.flag("create_slot", false);
    if create && reader.value("slot").is_none() {
        reader.fault("create_slot", None, "no slot to create", "the slot's name in `slot`");
    }
    (slot.map(str::to_owned), create)
}

fn max_rate(reader: &mut Reader<'_>) -> Option<u32> {
    let value = reader.value("max_rate")?;
    // The bounds of `BASE_BACKUP`.
    let rate =
        value.as_u64().filter(|rate| (32..=1_048_576).contains(rate)).and_then(|rate| rate.try_into().ok());
    if rate.is_none() {
        let shown = value.as_str().map(str::to_owned);
        reader.fault("max_rate", shown.as_deref(), "no such number", RATE);
    }
    rate
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value, standby: bool) -> Result<BaseBackupSpec, Vec<(String, String)>> {
        let parameters = serde_json::from_value(value).unwrap();
        let short = |fault: ParameterFault| (fault.field.clone(), fault.to_string());
        decode(&parameters, standby).map_err(|faults| faults.into_iter().map(short).collect())
    }

    #[test]
    fn all_parameters_are_read() {
        let spec = read(
            json!({
                "source": "host=db user=me", "password": "hunter2", "sslmode": "verify-ca",
                "sslrootcert": "/ca.pem", "slot": "standby_1", "create_slot": true, "role": "standby",
                "reuse": true, "checkpoint": "spread", "max_rate": 1024, "compress": "zstd", "manifest": false,
            }),
            true,
        )
        .unwrap();
        assert_eq!(spec.source.public(), "host=db sslmode=verify-ca sslrootcert=/ca.pem user=me");
        assert_eq!(spec.source.password().unwrap().reveal(), "hunter2");
        assert_eq!((spec.slot.as_deref(), spec.create_slot), (Some("standby_1"), true));
        assert!(spec.standby && spec.reuse && !spec.fast_checkpoint && !spec.verify);
        assert_eq!((spec.max_rate, spec.compress), (Some(1024), Compression::Zstd));
        assert!(!spec.slot_ends_with_node());
        assert!(!format!("{spec:?}").contains("hunter2"));
        let spec =
            read(json!({ "source": "postgresql://me@db", "slot": null, "role": null }), false).unwrap();
        assert!(!spec.standby && !spec.reuse && spec.fast_checkpoint && spec.verify);
        assert_eq!((spec.slot, spec.max_rate, spec.compress), (None, None, Compression::None));
        let spec = read(json!({ "source": "host=db", "slot": "a", "create_slot": true }), true).unwrap();
        assert!(spec.slot_ends_with_node());
    }

    #[test]
    fn each_fault_names_its_field_and_no_secret() {
        let url = "postgresql://me:hunter2@db";
        let faults = [
            (json!({}), true, "source", "missing"),
            (json!({ "source": 5 }), true, "source", "no string"),
            (json!({ "source": "hunter2" }), true, "source", "neither keywords"),
            (json!({ "source": "pasword=hunter2" }), true, "source", "libpq does not have"),
            (json!({ "source": format!("{url}?sslmode=on") }), true, "source", "unknown `sslmode`"),
            (json!({ "source": url, "sslmode": "on" }), true, "sslmode", "unknown `sslmode`"),
            (json!({ "source": url, "password": "hunter2" }), true, "password", "second one"),
            (json!({ "source": "host=db", "password": "hunter2\n" }), true, "password", "line break"),
            (json!({ "source": url, "slot": "A" }), true, "slot", "no name"),
            (json!({ "source": url, "slot": "a" }), false, "slot", "mode Primary"),
            (json!({ "source": url, "create_slot": true }), true, "create_slot", "no slot"),
            (json!({ "source": url, "create_slot": 1 }), true, "create_slot", "no boolean"),
            (json!({ "source": url, "role": "primary" }), true, "role", "a primary"),
            (json!({ "source": url, "role": "standby" }), false, "role", "a standby"),
            (json!({ "source": url, "role": "master" }), false, "role", "unknown word"),
            (json!({ "source": url, "checkpoint": "slow" }), true, "checkpoint", "unknown word"),
            (json!({ "source": url, "max_rate": 31 }), true, "max_rate", "no such number"),
            (json!({ "source": url, "max_rate": "1M" }), true, "max_rate", "no such number"),
            (json!({ "source": url, "compress": "xz" }), true, "compress", "unknown word"),
            (json!({ "source": url, "reuse": "yes" }), true, "reuse", "no boolean"),
            (json!({ "source": url, "tablespaces": {} }), true, "tablespaces", "do not have"),
        ];
        for (parameters, standby, field, words) in faults {
            let text = parameters.to_string();
            let found = read(parameters, standby).unwrap_err();
            let right = found.len() == 1 && found[0].0 == field && found[0].1.contains(words);
            assert!(right && !found[0].1.contains("hunter2"), "{text}: {found:?}");
        }
        assert_eq!(read(json!({ "source": "x", "slot": "Y", "z": 1 }), true).unwrap_err().len(), 3);
    }
}
