//! One base backup of one pageserver, over either protocol: a gzipped tar as a stream of pieces.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};

use super::error::{Fault, PageserverError};
use super::libpq::{CopyOut, Session};
use super::page_api::{BaseBackupChunks, BaseBackupCompression, GetBaseBackupRequest, PageApi};
use super::{Neon, Patience};
use crate::spec::document::PageserverProtocol;
use crate::spec::resolve::{Lsn, Mode, ShardIndex};
use tokio::time::Instant;

/// A base backup that a server has agreed to send.
#[derive(Debug)]
pub(super) struct BaseBackup {
    /// Whose.
    pub(super) server: String,
    /// How long it took to be let in.
    pub(super) connected: Duration,
    pieces: Pieces,
    patience: Patience,
    /// Over gRPC an answer begins before the server has found out whether there is anything to send.
    begun: bool,
}

#[derive(Debug)]
enum Pieces {
    Libpq(CopyOut),
    Grpc(BaseBackupChunks),
}

impl BaseBackup {
    /// Asks the first pageserver of the first shard, which has all that is no relation, for the state at `lsn`, or the
    /// newest.
    pub(super) async fn request(neon: &Neon, lsn: Option<Lsn>) -> Result<Self, PageserverError> {
        let pageserver = neon.pageservers.shards.first().and_then(|shard| shard.first());
        let pageserver = pageserver.expect("a resolved spec has a pageserver for each shard");
        let (token, patience) = (neon.token.as_ref(), neon.patience);
        let began = Instant::now();
        match neon.pageservers.protocol {
            PageserverProtocol::Libpq => {
                let session = Session::open(pageserver, token, Some(neon.mode), patience.connect).await?;
                let connected = began.elapsed();
                let server = session.server().to_owned();
                let copy = session.copy_out(&command(neon, lsn), patience.answer).await?;
                Ok(Self { server, connected, pieces: Pieces::Libpq(copy), patience, begun: true })
            }
            PageserverProtocol::Grpc => {
                let shard = ShardIndex { number: 0, count: neon.pageservers.shard_count };
                let who = (&neon.tenant, &neon.timeline, shard);
                let mut api = PageApi::connect(pageserver, who, token, patience.connect).await?;
                let connected = began.elapsed();
                let server = api.server().to_owned();
                let request = GetBaseBackupRequest {
                    lsn: lsn.map_or(0, |lsn| lsn.0),
                    replica: neon.mode != Mode::Primary,
                    full: false,
                    compression: BaseBackupCompression::Gzip.into(),
                };
                let chunks = api.get_base_backup(request, patience.answer).await?;
                Ok(Self { server, connected, pieces: Pieces::Grpc(chunks), patience, begun: false })
            }
        }
    }

    /// The bytes. They end only after the server has said that this is all; its errors are [`PageserverError`]s.
    pub(super) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::try_unfold(self, |mut this| async move {
            let next = this.next().await;
            let next = next.map_err(|fault| io::Error::other(PageserverError::of(&this.server)(fault)))?;
            Ok(next.map(|piece| (piece, this)))
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let within = if self.begun { self.patience.idle } else { self.patience.answer };
        let piece = match &mut self.pieces {
            Pieces::Libpq(copy) => copy.next(within).await?,
            Pieces::Grpc(chunks) => chunks.next(within).await?,
        };
        self.begun = true;
        Ok(piece)
    }
}

fn command(neon: &Neon, lsn: Option<Lsn>) -> String {
    let lsn = lsn.map(|lsn| format!(" {lsn}")).unwrap_or_default();
    let replica = if neon.mode == Mode::Primary { "" } else { " --replica" };
    format!("basebackup {} {}{lsn} --gzip{replica}", neon.tenant, neon.timeline)
}
