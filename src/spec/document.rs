//! Wire types of the config and spec documents.
//!
//! Field names, defaults and spellings are the original's (reference: spec-format). Unknown fields are
//! ignored everywhere, an absent optional field equals `null`. Fields with a default which are no `Option`
//! may be absent but refuse an explicit `null`, as in the original. The only field of our own is
//! [`ComputeSpec::storage`], which the original ignores.
//!
//! Identifiers and LSNs stay text here: [`super::fault`] judges them all at once with their positions, and
//! [`super::resolve`] turns them into types. `Debug` of these types never shows a value that may hold a secret.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::secret::Secret;

/// The `--config` file: a spec, if there is one yet, and what `compute_ctl` itself needs to know.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ComputeConfig {
    /// The wanted node. `null` or absent starts an empty compute, which waits for `POST /configure`.
    #[serde(default)]
    pub spec: Option<ComputeSpec>,
    /// Settings of the supervisor, fixed for the life of the process.
    pub compute_ctl_config: ComputeCtlConfig,
}

/// The body of `POST /configure`: like the config file, but the spec is required.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ConfigurationRequest {
    /// The wanted node.
    pub spec: ComputeSpec,
    /// Parsed because the contract requires it, and otherwise unused: keys are fixed at process start.
    pub compute_ctl_config: ComputeCtlConfig,
}

/// The body of `POST /promote`.
#[derive(Clone, Debug, Deserialize)]
pub struct PromotionRequest {
    /// What the node is to be.
    pub spec: ComputeSpec,
    /// The end of the log of the primary it replaces, as terminating that one has told.
    #[serde(deserialize_with = "lsn")]
    pub wal_flush_lsn: compute_states::Lsn,
}

fn lsn<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<compute_states::Lsn, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// The control plane's answer to a request for this compute's spec.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ControlPlaneConfigResponse {
    /// The wanted node, if the control plane has attached one.
    #[serde(default)]
    pub spec: Option<ComputeSpec>,
    /// Whether a tenant is attached. `Attached` without a spec is an error of the control plane.
    pub status: ControlPlaneComputeStatus,
    /// Settings of the supervisor.
    pub compute_ctl_config: ComputeCtlConfig,
}

/// Whether the control plane has attached a tenant to this compute.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ControlPlaneComputeStatus {
    /// Nothing attached; the spec is normally absent.
    Empty,
    /// A tenant is attached; the spec must be present.
    Attached,
}

/// Settings of the supervisor itself.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ComputeCtlConfig {
    /// Public keys (RFC 7517) which verify the control plane's tokens.
    pub jwks: jsonwebtoken::jwk::JwkSet,
    /// Certificate and key of the node.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
}

/// PEM files of the node's certificate.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct TlsConfig {
    /// Path of the private key.
    pub key_path: String,
    /// Path of the certificate.
    pub cert_path: String,
}

/// The wanted node.
#[derive(Clone, Deserialize, Serialize)]
pub struct ComputeSpec {
    /// Version of the format; never checked, `1.0` in practice.
    pub format_version: f32,
    /// Correlates log lines with the control plane's operation.
    #[serde(default)]
    pub operation_uuid: Option<String>,
    /// Optional behaviours asked for.
    #[serde(default)]
    pub features: Vec<ComputeFeature>,
    /// Swap to set up, in bytes.
    #[serde(default)]
    pub swap_size_bytes: Option<u64>,
    /// Disk quota to set, in bytes; 0 removes the quota.
    #[serde(default)]
    pub disk_quota_bytes: Option<u64>,
    /// Whether the file cache must not be resized with memory.
    #[serde(default)]
    pub disable_lfc_resizing: Option<bool>,
    /// Roles, databases and settings.
    pub cluster: Cluster,
    /// Renames and deletions, which a list of wanted things cannot express.
    #[serde(default)]
    pub delta_operations: Option<Vec<DeltaOp>>,
    /// Skip all catalog work, for a fast wake-up.
    #[serde(default)]
    pub skip_pg_catalog_updates: bool,
    /// Tenant, 32 hexadecimal digits; falls back to the setting `neon.tenant_id`.
    #[serde(default)]
    pub tenant_id: Option<String>,
    /// Timeline, 32 hexadecimal digits; falls back to the setting `neon.timeline_id`.
    #[serde(default)]
    pub timeline_id: Option<String>,
    /// Where the pageservers are.
    #[serde(default)]
    pub pageserver_connection_info: Option<PageserverConnectionInfo>,
    /// Where the pageservers are, in the older form: comma-separated, one per shard.
    #[serde(default)]
    pub pageserver_connstring: Option<String>,
    /// Stripe size that goes with the older form, in pages of 8 KiB.
    #[serde(default)]
    pub shard_stripe_size: Option<u32>,
    /// Written as `neon.project_id`.
    #[serde(default)]
    pub project_id: Option<String>,
    /// Written as `neon.branch_id`.
    #[serde(default)]
    pub branch_id: Option<String>,
    /// Written as `neon.endpoint_id`.
    #[serde(default)]
    pub endpoint_id: Option<String>,
    /// Generation of the safekeeper membership.
    #[serde(default)]
    pub safekeepers_generation: Option<u32>,
    /// Safekeepers, `host:port` each.
    #[serde(default)]
    pub safekeeper_connstrings: Vec<String>,
    /// Primary, replica, or pinned to an LSN.
    #[serde(default)]
    pub mode: ComputeMode,
    /// Password towards pageservers and safekeepers.
    #[serde(default)]
    pub storage_auth_token: Option<Secret>,
    /// Extensions that can be downloaded.
    #[serde(default)]
    pub remote_extensions: Option<RemoteExtSpec>,
    /// Settings of the connection pooler, in the document's order.
    #[serde(default)]
    pub pgbouncer_settings: Option<PgbouncerSettings>,
    /// Configuration of the local proxy.
    #[serde(default)]
    pub local_proxy_config: Option<LocalProxySpec>,
    /// Databases worked on in parallel by a reconfiguration.
    #[serde(default = "default_reconfigure_concurrency")]
    pub reconfigure_concurrency: usize,
    /// Drop all inherited logical subscriptions, once per timeline.
    #[serde(default)]
    pub drop_subscriptions_before_start: bool,
    /// How much is audited.
    #[serde(default)]
    pub audit_log_level: ComputeAudit,
    /// `host:port` of a log collector.
    #[serde(default)]
    pub logs_export_host: Option<String>,
    /// `host:port` of the endpoint storage.
    #[serde(default)]
    pub endpoint_storage_addr: Option<String>,
    /// Bearer token for the endpoint storage.
    #[serde(default)]
    pub endpoint_storage_token: Option<Secret>,
    /// Load the file cache's saved state after the start.
    #[serde(default)]
    pub autoprewarm: bool,
    /// Save the file cache's state every so many seconds.
    #[serde(default)]
    pub offload_lfc_interval_seconds: Option<std::num::NonZeroU64>,
    /// Idle seconds before the control plane suspends the compute; 0 and -1 mean never.
    pub suspend_timeout_seconds: i64,
    /// Settings of one deployment flavour.
    #[serde(default)]
    pub databricks_settings: Option<DatabricksSettings>,
    /// Where the data directory comes from; unknown to the original. See [`StorageSpec`].
    #[serde(default)]
    pub storage: Option<StorageSpec>,
}

fn default_reconfigure_concurrency() -> usize {
    1
}

/// Names the compute and counts the rest: connection strings, settings and options may hold secrets.
impl fmt::Debug for ComputeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComputeSpec")
            .field("operation_uuid", &self.operation_uuid)
            .field("tenant_id", &self.tenant_id)
            .field("timeline_id", &self.timeline_id)
            .field("mode", &self.mode)
            .field("storage", &self.storage)
            .field("roles", &self.cluster.roles.len())
            .field("databases", &self.cluster.databases.len())
            .finish_non_exhaustive()
    }
}

impl ComputeSpec {
    /// Value of the first entry of `cluster.settings` with exactly this name, if it has one.
    pub fn setting(&self, name: &str) -> Option<&str> {
        let settings = self.cluster.settings.as_deref().unwrap_or_default();
        settings.iter().find(|setting| setting.name == name)?.value.as_deref()
    }
}

/// Where the data directory comes from, tagged by `kind`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StorageSpec {
    /// Neon's pageservers and safekeepers; also what a spec without `storage` means when it carries
    /// pageserver information.
    Neon,
    /// A fresh cluster at each start, cloned from a cached template.
    Initdb,
    /// The data directory as it stands; `initdb` only if it is empty.
    Existing,
    /// A base backup streamed from another PostgreSQL.
    BaseBackup(StorageParameters),
    /// A tar archive from a path or a URL.
    Archive(StorageParameters),
}

/// Parameters of a storage kind, as they stand in the document; which are needed is for that kind to say.
#[derive(Clone, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct StorageParameters(pub serde_json::Map<String, serde_json::Value>);

/// Names only: a connection string may hold a password.
impl fmt::Debug for StorageParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// An optional behaviour asked for by name. Decoded from a string and nothing else, hence the detour: a
/// derived enum would also take an object with one key.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case", from = "String")]
pub enum ComputeFeature {
    /// The activity monitor also compares database statistics.
    ActivityMonitorExperimental,
    /// Apply [`ComputeCtlConfig::tls`].
    TlsExperimental,
    /// A name this version does not know; without effect.
    UnknownFeature,
}

impl From<String> for ComputeFeature {
    fn from(name: String) -> Self {
        match name.as_str() {
            "activity_monitor_experimental" => Self::ActivityMonitorExperimental,
            "tls_experimental" => Self::TlsExperimental,
            _ => Self::UnknownFeature,
        }
    }
}

/// Settings of the connection pooler: names and values in the document's order.
///
/// The original keeps the order, because the settings are written to an ini file one after the other. A
/// repeated name keeps its first place and its last value.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PgbouncerSettings(pub Vec<(String, String)>);

/// Names only: a value may hold a password.
impl fmt::Debug for PgbouncerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Serialize for PgbouncerSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for PgbouncerSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = PgbouncerSettings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object whose values are strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut settings: Vec<(String, String)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    match settings.iter_mut().find(|(known, _)| *known == name) {
                        Some(known) => known.1 = value,
                        None => settings.push((name, value)),
                    }
                }
                Ok(PgbouncerSettings(settings))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// What kind of compute this is.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum ComputeMode {
    /// Reads and writes.
    #[default]
    Primary,
    /// Pinned to one LSN, `X/Y` in hexadecimal.
    Static(String),
    /// Follows a primary.
    Replica,
}

/// How much is audited.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum ComputeAudit {
    /// Nothing.
    #[default]
    Disabled,
    /// Deprecated name of [`ComputeAudit::Base`].
    Log,
    /// DDL and roles.
    Base,
    /// Deprecated name of [`ComputeAudit::Extended`].
    Hipaa,
    /// Everything but `misc`, without parameters.
    Extended,
    /// Everything, with parameters.
    Full,
}

/// Roles, databases and settings.
#[derive(Clone, Default, Deserialize, Serialize)]
pub struct Cluster {
    /// Logged only.
    #[serde(default)]
    pub cluster_id: Option<String>,
    /// Unused.
    #[serde(default)]
    pub name: Option<String>,
    /// Unused.
    #[serde(default)]
    pub state: Option<String>,
    /// Roles that must exist. Absence from the list never drops one.
    pub roles: Vec<Role>,
    /// Databases that must exist. Absence from the list never drops one.
    pub databases: Vec<Database>,
    /// Copied verbatim to the top of `postgresql.conf`.
    #[serde(default)]
    pub postgresql_conf: Option<String>,
    /// Settings, which override `postgresql_conf`.
    #[serde(default)]
    pub settings: Option<Vec<GenericOption>>,
}

/// Without `postgresql_conf`, which may hold passwords.
impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("roles", &self.roles)
            .field("databases", &self.databases)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// One entry of `delta_operations`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct DeltaOp {
    /// `delete_db`, `rename_db`, `delete_role`, `rename_role`; anything else is ignored.
    pub action: String,
    /// The object's present name.
    pub name: String,
    /// The new name; required by the renames.
    #[serde(default)]
    pub new_name: Option<String>,
}

/// A role that must exist.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// A SCRAM verifier, or an MD5 digest without the prefix `md5`; `null` for no password.
    #[serde(default)]
    pub encrypted_password: Option<Secret>,
    /// Options of `CREATE ROLE` and `ALTER ROLE`.
    #[serde(default)]
    pub options: Option<Vec<GenericOption>>,
}

/// A database that must exist.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// The role which owns it.
    pub owner: String,
    /// Options of `CREATE DATABASE`.
    #[serde(default)]
    pub options: Option<Vec<GenericOption>>,
}

/// A name with an optional value: a setting, or an option of a statement.
#[derive(Clone, Deserialize, Serialize, PartialEq, Eq)]
pub struct GenericOption {
    /// Name of the setting or option.
    pub name: String,
    /// Its value; `null` for an option which is only a word.
    #[serde(default)]
    pub value: Option<String>,
    /// `string` for values that must be quoted; anything else is written as it stands.
    pub vartype: String,
}

/// Without the value: settings such as `primary_conninfo` hold passwords.
impl fmt::Debug for GenericOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GenericOption")
            .field("name", &self.name)
            .field("vartype", &self.vartype)
            .finish_non_exhaustive()
    }
}

/// Where the pageservers are.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct PageserverConnectionInfo {
    /// Number of shards; 0 for an unsharded tenant.
    pub shard_count: u8,
    /// Pages of 8 KiB per stripe; `null` for an unsharded tenant.
    #[serde(default)]
    pub stripe_size: Option<u32>,
    /// Pageservers of each shard, by shard index (`0104` is shard 1 of 4).
    pub shards: BTreeMap<String, PageserverShardInfo>,
    /// Protocol of base backups and leases.
    #[serde(default)]
    pub prefer_protocol: PageserverProtocol,
}

/// The pageservers of one shard.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct PageserverShardInfo {
    /// Never empty; the first one serves pages.
    pub pageservers: Vec<PageserverShardConnectionInfo>,
}

/// One pageserver of a shard.
#[derive(Clone, Deserialize, Serialize, PartialEq, Eq)]
pub struct PageserverShardConnectionInfo {
    /// Node id.
    #[serde(default)]
    pub id: Option<u64>,
    /// libpq connection string.
    #[serde(default)]
    pub libpq_url: Option<String>,
    /// gRPC URL.
    #[serde(default)]
    pub grpc_url: Option<String>,
}

/// Without the URLs, which may hold a password.
impl fmt::Debug for PageserverShardConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageserverShardConnectionInfo").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Protocol towards the pageservers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum PageserverProtocol {
    /// PostgreSQL's wire protocol.
    #[default]
    Libpq,
    /// The page service over gRPC.
    Grpc,
}

/// Extensions that can be downloaded.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RemoteExtSpec {
    /// Extensions anyone may have.
    #[serde(default)]
    pub public_extensions: Option<Vec<String>>,
    /// Extensions allowed for this tenant.
    #[serde(default)]
    pub custom_extensions: Option<Vec<String>>,
    /// Which extension a library belongs to.
    pub library_index: BTreeMap<String, String>,
    /// Control files by extension.
    pub extension_data: BTreeMap<String, ExtensionData>,
}

/// What is known of one downloadable extension.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ExtensionData {
    /// Files written at start, by name.
    pub control_data: BTreeMap<String, String>,
    /// Required by the format, unused: the path is computed.
    pub archive_path: String,
}

/// Configuration of the local proxy.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LocalProxySpec {
    /// Key sets it accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<Vec<JwksSettings>>,
    /// Overwritten by the supervisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
}

/// One key set of the local proxy.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct JwksSettings {
    /// Identifier.
    pub id: String,
    /// Roles reachable through this key set; created as plain login roles.
    pub role_names: Vec<String>,
    /// Where the keys are.
    pub jwks_url: String,
    /// Who issues them.
    pub provider_name: String,
    /// Audience to demand.
    #[serde(default)]
    pub jwt_audience: Option<String>,
}

/// Settings of one deployment flavour.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DatabricksSettings {
    /// Certificate files to copy into the data directory.
    pub pg_compute_tls_settings: PgComputeTlsSettings,
    /// File included into `pg_hba.conf`.
    pub databricks_pg_hba: String,
    /// File included into `pg_ident.conf`.
    pub databricks_pg_ident: String,
    /// Host of the workspace; may be empty.
    pub databricks_workspace_host: String,
}

/// Certificate files of [`DatabricksSettings`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PgComputeTlsSettings {
    /// Private key.
    pub key_file: String,
    /// Certificate.
    pub cert_file: String,
    /// Authority.
    pub ca_file: String,
}
