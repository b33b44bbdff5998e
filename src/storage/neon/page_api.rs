//! A pageserver over gRPC: package `page_api`, service `PageService`, as far as this program uses it.
//!
//! The messages are written down here instead of being generated: four small ones, whose numbers are the
//! contract. They need no compiler of protocols at build time.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::error::{Fault, PageserverError};
use super::libpq::{named, unnamed};
use crate::limits;
use crate::secret::Secret;
use crate::spec::resolve::{Pageserver, ShardIndex, TenantId, TimelineId};

/// Request of `GetBaseBackup`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GetBaseBackupRequest {
    /// Where in the log; 0 for the newest.
    #[prost(uint64, tag = "1")]
    pub lsn: u64,
    /// For a compute that does not write.
    #[prost(bool, tag = "2")]
    pub replica: bool,
    /// With all relations, for debugging.
    #[prost(bool, tag = "3")]
    pub full: bool,
    /// How the tar is compressed.
    #[prost(enumeration = "BaseBackupCompression", tag = "4")]
    pub compression: i32,
}

/// How a base backup is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum BaseBackupCompression {
    /// Refused by the server.
    Unknown = 0,
    /// Not at all.
    None = 1,
    /// gzip.
    Gzip = 2,
}

/// A piece of a base backup.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GetBaseBackupResponseChunk {
    /// Never empty.
    #[prost(bytes = "bytes", tag = "1")]
    pub chunk: Bytes,
}

/// Request of `LeaseLsn`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LeaseLsnRequest {
    /// What is to be kept; never 0.
    #[prost(uint64, tag = "1")]
    pub lsn: u64,
}

/// Answer of `LeaseLsn`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LeaseLsnResponse {
    /// When the lease ends.
    #[prost(message, optional, tag = "1")]
    pub expires: Option<Timestamp>,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Timestamp {
    /// Seconds since the Unix epoch.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// And nanoseconds, not negative.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// A channel to a pageserver, and what every call over it carries. The channel ends with this value and the
/// streams it has given out.
#[derive(Debug)]
pub struct PageApi {
    server: String,
    grpc: Grpc<Channel>,
    metadata: MetadataMap,
}

impl PageApi {
    /// Connects.
    ///
    /// # Errors
    /// [`PageserverError`]; [`Fault::Silent`] when it takes longer than `within`.
    pub async fn connect(
        server: &Pageserver,
        (tenant, timeline, shard): (&TenantId, &TimelineId, ShardIndex),
        token: Option<&Secret>,
        within: Duration,
    ) -> Result<Self, PageserverError> {
        let endpoint = endpoint(server);
        let name = match &endpoint {
            Ok(endpoint) => {
                let uri = endpoint.uri();
                named(
                    server,
                    uri.host().unwrap_or_default().trim_matches(['[', ']']),
                    uri.port_u16().unwrap_or(80),
                )
            }
            Err(_) => unnamed(server),
        };
        let failed = PageserverError::of(&name);
        let endpoint = endpoint.map_err(&failed)?;
        let metadata = metadata(tenant, timeline, shard, token).map_err(&failed)?;
        let channel = match timeout(within, endpoint.connect()).await {
            Ok(connected) => connected.map_err(|error| failed(Fault::Channel(error)))?,
            Err(_) => return Err(failed(Fault::Silent { during: "before it let us in", after: within })),
        };
        Ok(Self { server: name, grpc: Grpc::new(channel), metadata })
    }

    /// What the server is called in errors.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Calls `GetBaseBackup`, and waits until the answer begins. Only [`BaseBackupChunks::next`] says whether all of
    /// it has come.
    ///
    /// # Errors
    /// [`PageserverError`]; [`Fault::Silent`] when it does not begin `within` that time.
    pub async fn get_base_backup(
        &mut self,
        request: GetBaseBackupRequest,
        within: Duration,
    ) -> Result<BaseBackupChunks, PageserverError> {
        let path = PathAndQuery::from_static("/page_api.PageService/GetBaseBackup");
        let failed = PageserverError::of(&self.server);
        self.ready(within).await.map_err(&failed)?;
        let codec: ProstCodec<_, GetBaseBackupResponseChunk> = ProstCodec::default();
        let call = self.grpc.server_streaming(with(&self.metadata, request), path, codec);
        match timeout(within, call).await {
            Ok(Ok(answer)) => Ok(BaseBackupChunks(answer.into_inner())),
            Ok(Err(status)) => Err(failed(Fault::status(&status))),
            Err(_) => Err(failed(Fault::Silent { during: "before it sent anything", after: within })),
        }
    }

    /// Calls `LeaseLsn`. A server that refuses the lease answers with the status `FAILED_PRECONDITION`.
    ///
    /// # Errors
    /// [`PageserverError`]; [`Fault::Silent`] when it takes longer than `within`.
    pub async fn lease_lsn(
        &mut self,
        request: LeaseLsnRequest,
        within: Duration,
    ) -> Result<LeaseLsnResponse, PageserverError> {
        let path = PathAndQuery::from_static("/page_api.PageService/LeaseLsn");
        let failed = PageserverError::of(&self.server);
        self.ready(within).await.map_err(&failed)?;
        let codec: ProstCodec<_, LeaseLsnResponse> = ProstCodec::default();
        let call = self.grpc.unary(with(&self.metadata, request), path, codec);
        match timeout(within, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(failed(Fault::status(&status))),
            Err(_) => Err(failed(Fault::Silent { during: "before it had answered a query", after: within })),
        }
    }

    async fn ready(&mut self, within: Duration) -> Result<(), Fault> {
        let silent = Fault::Silent { during: "before a request could be sent", after: within };
        timeout(within, self.grpc.ready()).await.map_err(|_| silent)?.map_err(Fault::Channel)
    }
}

/// A base backup as it comes.
#[derive(Debug)]
pub struct BaseBackupChunks(Streaming<GetBaseBackupResponseChunk>);

impl BaseBackupChunks {
    /// The next piece; `None` once the server has said that this was all of it, and that it went well. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// How it failed, [`Fault::Silent`] when nothing came `within` that time.
    pub async fn next(&mut self, within: Duration) -> Result<Option<Bytes>, Fault> {
        let silent = Err(Fault::Silent { during: "in the middle of a base backup", after: within });
        timeout(within, self.piece()).await.unwrap_or(silent)
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Fault> {
        // A stream that ends without a status is an error: a server that has sent everything ends with one.
        let message = self.0.message().await.map_err(|status| Fault::status(&status))?;
        Ok(message.map(|message| message.chunk))
    }
}

fn endpoint(server: &Pageserver) -> Result<Endpoint, Fault> {
    let url = server.grpc_url.as_ref().ok_or(Fault::Address("has no grpc_url"))?.reveal();
    let unusable = "is no URL of the form grpc://host:port";
    // The library knows the schemes of HTTP only.
    let url = match url.strip_prefix("grpc://") {
        Some(rest) => format!("http://{rest}"),
        None if url.starts_with("http://") => url.to_owned(),
        None => return Err(Fault::Address(unusable)),
    };
    let endpoint = Endpoint::from_shared(url).map_err(|_| Fault::Address(unusable))?;
    if endpoint.uri().host().is_none_or(str::is_empty) {
        return Err(Fault::Address(unusable));
    }
    // The connection breaks by itself when the server has gone without a word, however long an answer may take.
    Ok(endpoint
        .tcp_nodelay(true)
        .http2_keep_alive_interval(limits::PAGESERVER_PING)
        .keep_alive_timeout(limits::PAGESERVER_PING))
}

fn metadata(
    tenant: &TenantId,
    timeline: &TimelineId,
    shard: ShardIndex,
    token: Option<&Secret>,
) -> Result<MetadataMap, Fault> {
    let value = |text: &str| MetadataValue::<Ascii>::try_from(text).map_err(|_| Fault::Token);
    let mut metadata = MetadataMap::new();
    metadata.insert("neon-tenant-id", value(tenant.as_str())?);
    metadata.insert("neon-timeline-id", value(timeline.as_str())?);
    metadata.insert("neon-shard-id", value(&shard.to_string())?);
    if let Some(token) = token {
        let mut bearer = value(&format!("Bearer {}", token.reveal()))?;
        bearer.set_sensitive(true);
        metadata.insert("authorization", bearer);
    }
    Ok(metadata)
}

fn with<T>(metadata: &MetadataMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = metadata.clone();
    request
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn messages_are_encoded_as_the_contract_says() {
        let request = GetBaseBackupRequest {
            lsn: 0x10,
            replica: true,
            full: false,
            compression: BaseBackupCompression::Gzip.into(),
        };
        assert_eq!(request.encode_to_vec(), [0x08, 0x10, 0x10, 0x01, 0x20, 0x02]);
        assert_eq!(LeaseLsnRequest { lsn: 1 }.encode_to_vec(), [0x08, 0x01]);
        let chunk = GetBaseBackupResponseChunk::decode(&[0x0a, 0x02, b'h', b'i'][..]).unwrap();
        assert_eq!(chunk.chunk, "hi");
        let lease = LeaseLsnResponse::decode(&[0x0a, 0x04, 0x08, 0x05, 0x10, 0x07][..]).unwrap();
        assert_eq!(lease.expires, Some(Timestamp { seconds: 5, nanos: 7 }));
    }

    fn server(url: &str) -> Pageserver {
        Pageserver { node_id: None, libpq_url: None, grpc_url: Some(Secret::new(url)) }
    }

    #[test]
    fn urls_of_grpc_become_urls_of_http() {
        assert_eq!(endpoint(&server("grpc://ps:51051")).unwrap().uri(), "http://ps:51051/");
        assert_eq!(endpoint(&server("http://ps:51051")).unwrap().uri(), "http://ps:51051/");
        for url in ["postgresql://ps:1", "ps:51051", "grpc://", "grpc://hunter2 :1", "https://ps:1"] {
            let error = endpoint(&server(url)).map(|_| ()).unwrap_err();
            assert!(matches!(error, Fault::Address(_)), "{url}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn every_call_says_who_asks_for_what() {
        let id = "0123456789abcdef0123456789ABCDEF";
        let shard = ShardIndex { number: 11, count: 16 };
        let (tenant, timeline) = (id.parse().unwrap(), id.parse().unwrap());
        let metadata =
            |token: Option<&str>| super::metadata(&tenant, &timeline, shard, token.map(Secret::new).as_ref());
        let full = metadata(Some("abc")).unwrap();
        let text = |key| full.get(key).map(|value| value.to_str().unwrap());
        assert_eq!(text("neon-tenant-id"), Some(id.to_lowercase().as_str()));
        assert_eq!(text("neon-timeline-id"), Some(id.to_lowercase().as_str()));
        assert_eq!(text("neon-shard-id"), Some("0b10"));
        assert_eq!(text("authorization"), Some("Bearer abc"));
        assert!(!format!("{full:?}").contains("abc\""), "{full:?}");
        assert!(metadata(None).unwrap().get("authorization").is_none());
        assert!(matches!(metadata(Some("a\nb")), Err(Fault::Token)));
    }
}
