//! From a spec to the facts the rest of the program works with.
//!
//! A spec says one thing in several ways: pageservers in three forms, identifiers in a field or in a setting.
//! Here each gets one form, and what is missing becomes an error. Error texts are the ones the original answers
//! with (reference: http-api §5), because clients match on them.

use std::fmt;
use std::str::FromStr;

use super::base_backup;
use super::conninfo::Conninfo;
use super::document::{
    ComputeMode, ComputeSpec, GenericOption, PageserverConnectionInfo, PageserverProtocol, StorageSpec,
};
use super::fault::JsonPath;
use super::safekeepers::{self, Address};
use crate::secret::Secret;

/// Why a spec that decodes still says too little, or something impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Neither pageservers nor another source of data.
    #[error(
        "pageserver connection information should be provided (without Neon storage, name another source \
         of data, such as \"storage\": {{\"kind\": \"initdb\"}})"
    )]
    NoPageservers,
    /// The pageservers contradict each other.
    #[error("invalid pageserver connection information: {0}")]
    Pageservers(String),
    /// `neon.stripe_size` is no number.
    #[error("invalid neon.stripe_size: not a number")]
    StripeSize,
    /// A primary on Neon storage without safekeepers.
    #[error("safekeeper connstrings should be provided")]
    NoSafekeepers,
    /// The list of safekeepers is there, and empty.
    #[error("safekeeper_connstrings is empty")]
    SafekeepersEmpty,
    /// A safekeeper is listed twice.
    #[error("duplicate entry in safekeeper_connstrings: {0}!")]
    DuplicateSafekeeper(String),
    /// What should be a safekeeper is none.
    #[error("invalid entry in {field}: {text:?} (expected host:port)")]
    Safekeeper {
        /// Where it stands.
        field: String,
        /// What stands there.
        text: String,
    },
    /// Neon storage without a tenant.
    #[error("tenant id should be provided")]
    NoTenant,
    /// No identifier.
    #[error("invalid tenant id")]
    Tenant,
    /// Neon storage without a timeline.
    #[error("timeline id should be provided")]
    NoTimeline,
    /// No identifier.
    #[error("invalid timeline id")]
    Timeline,
    /// The LSN of a pinned compute is none.
    #[error("invalid LSN in mode Static: {0}")]
    Lsn(#[from] LsnParseError),
}

impl ResolveError {
    /// The field to mend, as a path within the spec.
    pub fn path(&self) -> JsonPath {
        let field = match self {
            Self::NoPageservers | Self::Pageservers(_) => "pageserver_connection_info",
            Self::StripeSize => "shard_stripe_size",
            Self::NoSafekeepers
            | Self::SafekeepersEmpty
            | Self::DuplicateSafekeeper(_)
            | Self::Safekeeper { .. } => "safekeeper_connstrings",
            Self::NoTenant | Self::Tenant => "tenant_id",
            Self::NoTimeline | Self::Timeline => "timeline_id",
            Self::Lsn(_) => "mode",
        };
        JsonPath::root().key(field)
    }
}

/// What a spec asks for, in one form each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedSpec {
    /// The tenant; always there for [`StorageKind::Neon`].
    pub tenant: Option<TenantId>,
    /// The timeline; always there for [`StorageKind::Neon`].
    pub timeline: Option<TimelineId>,
    /// The pageservers; always there for [`StorageKind::Neon`] and for it only.
    pub pageservers: Option<Pageservers>,
    /// The safekeepers in the spec's order. Some for primaries on Neon storage, and none for all others, who have no
    /// business with them.
    pub safekeepers: Vec<Address>,
    /// Primary, replica or pinned.
    pub mode: Mode,
    /// Where the data directory comes from.
    pub storage: StorageKind,
    /// The server that a standby of storage kind `base_backup` follows. None for all others: what they were made of is
    /// of no more use to them once they run.
    pub upstream: Option<Conninfo>,
}

impl ResolvedSpec {
    /// Works a spec out.
    pub fn new(spec: &ComputeSpec) -> Result<Self, ResolveError> {
        let storage = match &spec.storage {
            Some(StorageSpec::Neon) => StorageKind::Neon,
            Some(StorageSpec::Initdb) => StorageKind::Initdb,
            Some(StorageSpec::Existing) => StorageKind::Existing,
            Some(StorageSpec::BaseBackup(_)) => StorageKind::BaseBackup,
            Some(StorageSpec::Archive(_)) => StorageKind::Archive,
            None => StorageKind::Neon,
        };
        let neon = storage == StorageKind::Neon;
        let mode = match &spec.mode {
            ComputeMode::Primary => Mode::Primary,
            ComputeMode::Replica => Mode::Replica,
            ComputeMode::Static(lsn) => Mode::Static(lsn.parse()?),
        };
        let pageservers = if neon { Some(Pageservers::of(spec)?) } else { None };
        let safekeepers = if neon { safekeeper_list(spec)? } else { Vec::new() };
        let tenant = spec.tenant_id.as_deref().or_else(|| spec.setting("neon.tenant_id"));
        let tenant = tenant.map(str::parse).transpose().map_err(|InvalidId| ResolveError::Tenant)?;
        let timeline = spec.timeline_id.as_deref().or_else(|| spec.setting("neon.timeline_id"));
        let timeline = timeline.map(str::parse).transpose().map_err(|InvalidId| ResolveError::Timeline)?;
        if neon && tenant.is_none() {
            return Err(ResolveError::NoTenant);
        }
        if neon && timeline.is_none() {
            return Err(ResolveError::NoTimeline);
        }
        let upstream = match &spec.storage {
            // Faults of the parameters are told by whoever judges the document as a whole.
            Some(StorageSpec::BaseBackup(parameters)) if mode != Mode::Primary => {
                base_backup::decode(parameters, true).ok().map(|decoded| decoded.source)
            }
            _ => None,
        };
        Ok(Self { tenant, timeline, pageservers, safekeepers, mode, storage, upstream })
    }

    /// Whether the safekeepers must be synchronised once Postgres has stopped.
    pub fn final_sync(&self) -> bool {
        self.storage == StorageKind::Neon && self.mode == Mode::Primary
    }

    /// Whether a running server gets what it reads from the same servers with both, so that a refresh has nothing to do:
    /// pageservers on Neon storage, whichever of the three forms of the spec they came from; the upstream of a standby
    /// of kind `base_backup`, with what it takes to be let in there; none for the other kinds.
    pub fn same_sources(&self, other: &Self) -> bool {
        self.pageservers == other.pageservers && self.upstream == other.upstream
    }
}

/// Those of a primary.
fn safekeeper_list(spec: &ComputeSpec) -> Result<Vec<Address>, ResolveError> {
    if spec.mode != ComputeMode::Primary {
        return Ok(Vec::new());
    }
    let fields = spec.safekeeper_connstrings.iter().enumerate();
    let mut list: Vec<(String, &str)> =
        fields.map(|(index, entry)| (format!("safekeeper_connstrings[{index}]"), entry.as_str())).collect();
    if list.is_empty() {
        let setting = spec.setting("neon.safekeepers").ok_or(ResolveError::NoSafekeepers)?;
        list = safekeepers::entries(setting).map(|entry| ("neon.safekeepers".to_owned(), entry)).collect();
    }
    if list.is_empty() {
        return Err(ResolveError::SafekeepersEmpty);
    }
    let mut sorted: Vec<&str> = list.iter().map(|(_, entry)| *entry).collect();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ResolveError::DuplicateSafekeeper(pair[0].to_owned()));
    }
    let address = |(field, text): (String, &str)| {
        text.parse().map_err(|_| ResolveError::Safekeeper { field, text: text.to_owned() })
    };
    list.into_iter().map(address).collect()
}

/// Where the data directory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageKind {
    /// Pageservers and safekeepers.
    Neon,
    /// A fresh cluster at each start.
    Initdb,
    /// The data directory as it stands.
    Existing,
    /// A base backup of another server.
    BaseBackup,
    /// A tar archive.
    Archive,
}

/// The wire name, as in `storage.kind`.
impl fmt::Display for StorageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Neon => "neon",
            Self::Initdb => "initdb",
            Self::Existing => "existing",
            Self::BaseBackup => "base_backup",
            Self::Archive => "archive",
        })
    }
}

/// What kind of compute this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Reads and writes.
    Primary,
    /// Follows a primary.
    Replica,
    /// Pinned to an LSN.
    Static(Lsn),
}

/// The name used by `neon.compute_mode` and in messages.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Static(_) => "static",
        })
    }
}

/// The pageservers, whichever form the spec named them in. Two values are equal when a compute would do the
/// same with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pageservers {
    /// Number of shards; 0 for an unsharded tenant, which differs from one shard.
    pub shard_count: u8,
    /// Pages of 8 KiB per stripe; `None` for an unsharded tenant.
    pub stripe_size: Option<u32>,
    /// Protocol of base backups and leases.
    pub protocol: PageserverProtocol,
    /// The pageservers of each shard in shard order; no list is empty, the first pageserver is the one to ask.
    pub shards: Vec<Vec<Pageserver>>,
}

/// One pageserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pageserver {
    /// Node id, if the spec tells.
    pub node_id: Option<u64>,
    /// libpq connection string.
    pub libpq_url: Option<Secret>,
    /// gRPC URL.
    pub grpc_url: Option<Secret>,
}

impl Pageservers {
    fn of(spec: &ComputeSpec) -> Result<Self, ResolveError> {
        if let Some(info) = &spec.pageserver_connection_info {
            return Self::from_info(info);
        }
        if let Some(list) = &spec.pageserver_connstring {
            return Self::from_list(list, spec.shard_stripe_size);
        }
        let list = spec.setting("neon.pageserver_connstring").ok_or(ResolveError::NoPageservers)?;
        let stripe_size = spec.setting("neon.stripe_size").map(str::parse).transpose();
        Self::from_list(list, stripe_size.map_err(|_| ResolveError::StripeSize)?)
    }

    fn from_info(info: &PageserverConnectionInfo) -> Result<Self, ResolveError> {
        let wrong = |problem: String| Err(ResolveError::Pageservers(problem));
        let mut shards = Vec::new();
        for number in 0..info.shard_count.max(1) {
            let index = ShardIndex { number, count: info.shard_count };
            // Keys may be in either case, so they are compared as indexes.
            let shard = info.shards.iter().find(|(key, _)| key.parse() == Ok(index));
            let Some((_, shard)) = shard else {
                return wrong(format!("shard {index} is missing"));
            };
            let servers: Vec<Pageserver> = shard
                .pageservers
                .iter()
                .map(|server| Pageserver {
                    node_id: server.id,
                    libpq_url: server.libpq_url.clone().map(Secret::new),
                    grpc_url: server.grpc_url.clone().map(Secret::new),
                })
                .collect();
            let Some(first) = servers.first() else {
                return wrong(format!("shard {index} has no pageserver"));
            };
            let (url, name) = match info.prefer_protocol {
                PageserverProtocol::Libpq => (&first.libpq_url, "libpq_url"),
                PageserverProtocol::Grpc => (&first.grpc_url, "grpc_url"),
            };
            if url.is_none() {
                return wrong(format!("shard {index} has no {name}"));
            }
            shards.push(servers);
        }
        let stripe_size = info.stripe_size.filter(|_| info.shard_count > 0);
        if info.shard_count > 1 && stripe_size.is_none() {
            return wrong("several shards without a stripe size".to_owned());
        }
        Ok(Self { shard_count: info.shard_count, stripe_size, protocol: info.prefer_protocol, shards })
    }

    /// The older form: one entry means unsharded, and its stripe size is dropped.
    fn from_list(list: &str, stripe_size: Option<u32>) -> Result<Self, ResolveError> {
        let wrong = |problem: &str| Err(ResolveError::Pageservers(problem.to_owned()));
        let entries: Vec<&str> = list.split(',').map(str::trim).collect();
        if entries.iter().any(|entry| entry.is_empty()) {
            return wrong("a connection string is empty");
        }
        let Ok(count) = u8::try_from(entries.len()) else {
            return wrong("more than 255 shards");
        };
        if count > 1 && stripe_size.is_none() {
            return wrong("several shards without a stripe size");
        }
        let server = |entry: &&str| {
            vec![Pageserver { node_id: None, libpq_url: Some(Secret::new(*entry)), grpc_url: None }]
        };
        Ok(Self {
            shard_count: if count == 1 { 0 } else { count },
            stripe_size: stripe_size.filter(|_| count > 1),
            protocol: PageserverProtocol::Libpq,
            shards: entries.iter().map(server).collect(),
        })
    }
}

/// A text which is no identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not exactly 32 hexadecimal digits")]
pub struct InvalidId;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The 32 digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        /// From exactly 32 hexadecimal digits in either case.
        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                if digits { Ok(Self(text.to_ascii_lowercase())) } else { Err(InvalidId) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier! {
    /// A tenant: 32 hexadecimal digits, kept in lower case.
    TenantId
}
identifier! {
    /// A timeline: 32 hexadecimal digits, kept in lower case.
    TimelineId
}

/// A text which is no LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("LsnParseError")]
pub struct LsnParseError;

/// A place in the write-ahead log, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// From `X/Y`, two hexadecimal numbers of 32 bits each in any case; blanks around it do not matter.
impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, LsnParseError> {
        let half = |text: &str| {
            // `from_str_radix` would also take a sign.
            let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
            u32::from_str_radix(text, 16).ok().filter(|_| digits).ok_or(LsnParseError)
        };
        let (high, low) = text.trim().split_once('/').ok_or(LsnParseError)?;
        Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

/// Upper case, without padding, as PostgreSQL prints it.
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// Which shard of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardIndex {
    /// Counted from 0.
    pub number: u8,
    /// 0 for an unsharded tenant.
    pub count: u8,
}

/// From exactly 4 hexadecimal digits in either case, number then count.
impl FromStr for ShardIndex {
    type Err = InvalidShardIndex;

    fn from_str(text: &str) -> Result<Self, InvalidShardIndex> {
        if text.len() != 4 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InvalidShardIndex);
        }
        let both = u16::from_str_radix(text, 16).map_err(|_| InvalidShardIndex)?;
        let [number, count] = both.to_be_bytes();
        Ok(Self { number, count })
    }
}

impl fmt::Display for ShardIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}", self.number, self.count)
    }
}

/// A text which is no shard index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not exactly 4 hexadecimal digits")]
pub struct InvalidShardIndex;

/// A copy of the spec in which placeholders for identifiers and safekeepers are filled in, so that a template can be
/// judged beyond them. Never for a spec that is to be started.
pub(crate) fn with_placeholders_filled(spec: &ComputeSpec) -> ComputeSpec {
    let mut spec = spec.clone();
    let zeros = || "0".repeat(32);
    for id in [&mut spec.tenant_id, &mut spec.timeline_id].into_iter().flatten() {
        if super::fault::is_placeholder(id) {
            *id = zeros();
        }
    }
    for (index, safekeeper) in spec.safekeeper_connstrings.iter_mut().enumerate() {
        if super::fault::is_placeholder(safekeeper) {
            *safekeeper = format!("placeholder-{index}:1");
        }
    }
    for GenericOption { name, value, .. } in spec.cluster.settings.iter_mut().flatten() {
        if let Some(value) = value
            && ["neon.tenant_id", "neon.timeline_id"].contains(&name.as_str())
            && super::fault::is_placeholder(value)
        {
            *value = zeros();
        }
    }
    spec
}

#[cfg(test)]
mod tests;
