//! Leases: what a compute that is pinned to an LSN reads stays there for as long as it says that it needs it.
//!
//! Every pageserver of every shard grants one for itself, and says until when. The earliest end counts. One that
//! refuses has collected the garbage already: what it has lost it will not have again, so that nobody is asked any
//! more, and the compute serves what it can.
//!
//! Here is how to ask; [`keep()`] says when.

mod keep;

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tonic::Code;

use super::error::{Fault, PageserverError};
use super::libpq::Session;
use super::page_api::{LeaseLsnRequest, PageApi};
use crate::secret::Secret;
use crate::spec::document::PageserverProtocol;
use crate::spec::resolve::{Lsn, Mode, Pageserver, Pageservers, ShardIndex, TenantId, TimelineId};
use crate::spec::store::StoredSpec;

pub use keep::{Outcome, keep};

/// What a pinned compute needs, and whom it has to tell.
#[derive(Clone, Debug)]
pub struct Pin {
    tenant: TenantId,
    timeline: TimelineId,
    lsn: Lsn,
    pageservers: Pageservers,
    token: Option<Secret>,
}

/// What asking all pageservers came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All of them grant it, the first until then, since the Unix epoch.
    Until(Duration),
    /// One of them refuses for good.
    Refused {
        /// Which.
        server: String,
    },
}

impl Pin {
    /// Of a spec; none unless it is for a pinned compute on Neon's storage.
    pub fn of(stored: &StoredSpec) -> Option<Self> {
        let resolved = &stored.resolved;
        let Mode::Static(lsn) = resolved.mode else { return None };
        Some(Self {
            tenant: resolved.tenant.clone()?,
            timeline: resolved.timeline.clone()?,
            lsn,
            pageservers: resolved.pageservers.clone()?,
            token: stored.document.storage_auth_token.clone(),
        })
    }

    /// Whose data it is about.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Which of their timelines.
    pub fn timeline(&self) -> &TimelineId {
        &self.timeline
    }

    /// The place in the log.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Whether both are pinned to the same.
    pub fn is_where(&self, other: &Self) -> bool {
        (&self.tenant, &self.timeline, self.lsn) == (&other.tenant, &other.timeline, other.lsn)
    }

    /// Takes over pageservers and token of a newer spec, and tells whether there are others to ask now. The place
    /// stays: a running server is pinned to where it was started.
    pub fn turn(&mut self, stored: &StoredSpec) -> bool {
        self.token.clone_from(&stored.document.storage_auth_token);
        match &stored.resolved.pageservers {
            Some(pageservers) if *pageservers != self.pageservers => {
                self.pageservers = pageservers.clone();
                true
            }
            _ => false,
        }
    }

    /// Asks every pageserver, all at once, each over a connection of its own. `connect` bounds how long each may take to
    /// let us in, `answer` how long to answer.
    ///
    /// # Errors
    /// One of them has not answered, and none has refused. The others have granted theirs all the same.
    pub async fn ask(&self, connect: Duration, answer: Duration) -> Result<Answer, PageserverError> {
        let mut asked = FuturesUnordered::new();
        for (shard, servers) in (0..).zip(&self.pageservers.shards) {
            let shard = ShardIndex { number: shard, count: self.pageservers.shard_count };
            asked.extend(servers.iter().map(|server| self.ask_one(server, shard, connect, answer)));
        }
        let mut answers = Vec::new();
        while let Some(answer) = asked.next().await {
            answers.push(answer);
        }
        combined(answers)
    }

    async fn ask_one(
        &self,
        server: &Pageserver,
        shard: ShardIndex,
        connect: Duration,
        answer: Duration,
    ) -> Result<Answer, PageserverError> {
        match self.pageservers.protocol {
            PageserverProtocol::Libpq => {
                let mut session = Session::open(server, self.token.as_ref(), None, connect).await?;
                let rows = session.rows(&self.command(shard), answer).await?;
                let name = session.server();
                let protocol = |text| PageserverError::of(name)(Fault::Protocol(text));
                let valid_until = rows.into_iter().next().and_then(|row| row.into_iter().next());
                match valid_until.ok_or_else(|| protocol("no row where a lease was asked for"))? {
                    None => Ok(Answer::Refused { server: name.to_owned() }),
                    Some(millis) => {
                        let millis = millis.parse().map_err(|_| protocol("a lease that ends at no time"))?;
                        Ok(Answer::Until(Duration::from_millis(millis)))
                    }
                }
            }
            PageserverProtocol::Grpc => {
                let who = (&self.tenant, &self.timeline, shard);
                let mut api = PageApi::connect(server, who, self.token.as_ref(), connect).await?;
                let lease = match api.lease_lsn(LeaseLsnRequest { lsn: self.lsn.0 }, answer).await {
                    Err(PageserverError {
                        fault: Fault::Status { code: Code::FailedPrecondition, .. },
                        server,
                    }) => return Ok(Answer::Refused { server }),
                    other => other?,
                };
                let expires = lease.expires.and_then(|expires| {
                    let nanos = u32::try_from(expires.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
                    Some(Duration::new(u64::try_from(expires.seconds).ok()?, nanos))
                });
                let none =
                    || PageserverError::of(api.server())(Fault::Protocol("a lease that ends at no time"));
                expires.map(Answer::Until).ok_or_else(none)
            }
        }
    }

    fn command(&self, shard: ShardIndex) -> String {
        let suffix = if shard.count == 0 { String::new() } else { format!("-{shard}") };
        format!("lease lsn {}{suffix} {} {}", self.tenant, self.timeline, self.lsn)
    }
}

/// What the answers of all pageservers come to: one that refuses decides, then one that failed, then the earliest end.
fn combined(answers: Vec<Result<Answer, PageserverError>>) -> Result<Answer, PageserverError> {
    let (mut first, mut failed) = (Duration::MAX, None);
    for answer in answers {
        match answer {
            Ok(refused @ Answer::Refused { .. }) => return Ok(refused),
            Ok(Answer::Until(end)) => first = first.min(end),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(Answer::Until(first)), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(seconds: u64) -> Result<Answer, PageserverError> {
        Ok(Answer::Until(Duration::from_secs(seconds)))
    }

    fn failed(server: &str) -> Result<Answer, PageserverError> {
        Err(PageserverError::of(server)(Fault::Ended("early")))
    }

    fn refused() -> Result<Answer, PageserverError> {
        Ok(Answer::Refused { server: "r".to_owned() })
    }

    #[test]
    fn the_earliest_end_counts_then_a_failure_then_a_refusal() {
        let all = |answers| match combined(answers) {
            Ok(Answer::Until(end)) => format!("until {}", end.as_secs()),
            Ok(Answer::Refused { server }) => format!("refused by {server}"),
            Err(error) => format!("failed at {}", error.server),
        };
        assert_eq!(all(vec![until(7), until(5), until(9)]), "until 5");
        assert_eq!(all(vec![until(7), failed("a"), failed("b")]), "failed at a");
        assert_eq!(all(vec![failed("a"), refused(), until(1)]), "refused by r");
    }
}
