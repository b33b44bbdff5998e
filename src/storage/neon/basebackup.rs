//! One base backup of one pageserver, over either protocol: a gzipped tar as a stream of pieces.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};

use super::Neon;
use super::error::{Fault, PageserverError};
use super::libpq::{CopyOut, Session};
use super::page_api::{BaseBackupChunks, BaseBackupCompression, GetBaseBackupRequest, PageApi};
use crate::spec::document::PageserverProtocol;
use crate::spec::resolve::{Lsn, Mode, ShardIndex};
use tokio::time::Instant;

/// A base backup that a server has begun to send.
#[derive(Debug)]
pub(super) struct BaseBackup {
    /// Whose.
    pub(super) server: String,
    /// How long it took to be let in.
    pub(super) connected: Duration,
    pieces: Pieces,
    /// The piece that was waited for, until it is handed out.
    first: Option<Bytes>,
    idle: Duration,
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
        let (server, connected, pieces) = match neon.pageservers.protocol {
            PageserverProtocol::Libpq => {
                let session = Session::open(pageserver, token, Some(neon.mode), patience.connect).await?;
                let (server, connected) = (session.server().to_owned(), began.elapsed());
                let copy = session.copy_out(&command(neon, lsn), patience.answer).await?;
                (server, connected, Pieces::Libpq(copy))
            }
            PageserverProtocol::Grpc => {
                let shard = ShardIndex { number: 0, count: neon.pageservers.shard_count };
                let who = (&neon.tenant, &neon.timeline, shard);
                let mut api = PageApi::connect(pageserver, who, token, patience.connect).await?;
                let (server, connected) = (api.server().to_owned(), began.elapsed());
                let request = GetBaseBackupRequest {
                    lsn: lsn.map_or(0, |lsn| lsn.0),
                    replica: neon.mode != Mode::Primary,
                    full: false,
                    compression: BaseBackupCompression::Gzip.into(),
                };
                let chunks = api.get_base_backup(request, patience.answer).await?;
                (server, connected, Pieces::Grpc(chunks))
            }
        };
        let mut backup = Self { server, connected, pieces, first: None, idle: patience.idle };
        // An answer may begin before its server has found out whether there is anything to send, above all over gRPC.
        let first = backup.next(patience.answer).await;
        let first = first.and_then(|first| first.ok_or(Fault::Protocol("a base backup without a byte")));
        backup.first = Some(first.map_err(PageserverError::of(&backup.server))?);
        Ok(backup)
    }

    /// The bytes. They end only after the server has said that this is all; its errors are [`PageserverError`]s.
    pub(super) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::try_unfold(self, |mut this| async move {
            if let Some(first) = this.first.take() {
                return Ok(Some((first, this)));
            }
            let next = this.next(this.idle).await;
            let next = next.map_err(|fault| io::Error::other(PageserverError::of(&this.server)(fault)))?;
            Ok(next.map(|piece| (piece, this)))
        })
    }

    async fn next(&mut self, within: Duration) -> Result<Option<Bytes>, Fault> {
        match &mut self.pieces {
            Pieces::Libpq(copy) => copy.next(within).await,
            Pieces::Grpc(chunks) => chunks.next(within).await,
        }
    }
}

fn command(neon: &Neon, lsn: Option<Lsn>) -> String {
    let lsn = lsn.map(|lsn| format!(" {lsn}")).unwrap_or_default();
    let replica = if neon.mode == Mode::Primary { "" } else { " --replica" };
    format!("basebackup {} {}{lsn} --gzip{replica}", neon.tenant, neon.timeline)
}
