//! Asking safekeepers whether they agree already.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_postgres::config::SslMode;
use tokio_postgres::{NoTls, SimpleQueryMessage};
use tokio_util::task::AbortOnDropHandle;

use super::{EndOfLog, Safekeepers};
use crate::catalog::requests::with_causes;
use crate::spec::resolve::Lsn;
use crate::spec::safekeepers::Address;

/// Why one safekeeper has not told its position.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// It was too slow.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// It cannot be reached, or refuses.
    #[error("{}", with_causes(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// It answers something else.
    #[error("no LSN in column {column} of its answer")]
    Column {
        /// The column.
        column: &'static str,
    },
}

/// Why the safekeepers do not agree. Never a reason to fail: they can be made to.
#[derive(Debug, thiserror::Error)]
pub enum Disagreement {
    /// Too few of them answer.
    #[error("fewer than {quorum} of {members} safekeepers answer: {failures}")]
    NoQuorum {
        /// How many had to answer.
        quorum: usize,
        /// How many there are.
        members: usize,
        /// Those that failed, with their reasons.
        failures: String,
    },
    /// One of them has never heard of the timeline.
    #[error("a safekeeper does not have the timeline")]
    NotEverywhere,
    /// They have committed different parts of the log.
    #[error("safekeepers do not agree on what is committed: {} and {}", .0, .1)]
    Commit(Lsn, Lsn),
    /// They hold different parts of the log.
    #[error("safekeepers do not agree on what is written: {} and {}", .0, .1)]
    Flush(Lsn, Lsn),
    /// They hold more than is known to be committed.
    #[error("safekeepers hold the log up to {flush}, and know of {commit} that it is committed")]
    Uncommitted {
        /// What all of them hold.
        flush: Lsn,
        /// What all of them know as committed.
        commit: Lsn,
    },
}

/// What a safekeeper says of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// It does not have it.
    Unknown,
    Known {
        flush: Lsn,
        commit: Lsn,
    },
}

impl Safekeepers {
    /// Asks all of them at once, `budget` for each from connecting to its answer. The first majority of answers
    /// decides; nobody waits for the others.
    ///
    /// # Errors
    /// [`Disagreement`], also when too few answer.
    pub async fn check(&self, budget: Duration) -> Result<EndOfLog, Disagreement> {
        let quorum = self.members.len() / 2 + 1;
        let mut asked: FuturesUnordered<_> = self
            .members
            .iter()
            .map(|member| async move {
                let answer = tokio::time::timeout(budget, self.ask(member)).await;
                (member, answer.unwrap_or(Err(MemberError::TimedOut(budget))))
            })
            .collect();
        let (mut positions, mut failures) = (Vec::new(), Vec::new());
        while positions.len() < quorum
            && failures.len() < quorum
            && let Some((member, answer)) = asked.next().await
        {
            match answer {
                Ok(position) => positions.push(position),
                Err(error) => failures.push(format!("{member}: {error}")),
            }
        }
        if positions.len() < quorum {
            let (members, failures) = (self.members.len(), failures.join("; "));
            return Err(Disagreement::NoQuorum { quorum, members, failures });
        }
        verdict(&positions)
    }

    async fn ask(&self, member: &Address) -> Result<Position, MemberError> {
        let mut config = tokio_postgres::Config::new();
        config.host(&member.host).port(member.port).user("no_user").ssl_mode(SslMode::Disable);
        // One switch with two words: the server looks for both keys among the words of the whole.
        config.options(format!("-c timeline_id={} tenant_id={}", self.timeline, self.tenant));
        if let Some(token) = &self.token {
            config.password(token.reveal());
        }
        let (client, connection) = config.connect(NoTls).await?;
        let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
        let mut answer = std::pin::pin!(client.simple_query_raw("TIMELINE_STATUS").await?);
        // Up to the first row: a description of the columns comes before it, and whatever comes after it is of no
        // interest, however long it is.
        while let Some(message) = answer.next().await {
            let SimpleQueryMessage::Row(row) = message? else { continue };
            let lsn = |column| {
                let text = row.try_get(column).ok().flatten();
                text.and_then(|text: &str| text.parse().ok()).ok_or(MemberError::Column { column })
            };
            return Ok(Position::Known { flush: lsn("flush_lsn")?, commit: lsn("commit_lsn")? });
        }
        Ok(Position::Unknown)
    }
}

/// What the answers of a majority come to; there is at least one.
fn verdict(positions: &[Position]) -> Result<EndOfLog, Disagreement> {
    let mut known = Vec::new();
    for position in positions {
        match *position {
            Position::Unknown => return Err(Disagreement::NotEverywhere),
            Position::Known { flush, commit } => known.push((flush, commit)),
        }
    }
    let Some(&(flush, commit)) = known.first() else { return Err(Disagreement::NotEverywhere) };
    if let Some((_, other)) = known.iter().find(|(_, other)| *other != commit) {
        return Err(Disagreement::Commit(commit, *other));
    }
    if let Some((other, _)) = known.iter().find(|(other, _)| *other != flush) {
        return Err(Disagreement::Flush(flush, *other));
    }
    if flush != commit {
        return Err(Disagreement::Uncommitted { flush, commit });
    }
    Ok(EndOfLog::of(flush))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(flush: u64, commit: u64) -> Position {
        Position::Known { flush: Lsn(flush), commit: Lsn(commit) }
    }

    /// What is told of the answers.
    fn told(positions: &[Position]) -> String {
        verdict(positions).map_or_else(|error| error.to_string(), |end| end.to_string())
    }

    #[test]
    fn verdicts() {
        let committed = "safekeepers do not agree on what is committed: 0/1 and 0/2";
        for (positions, expected) in [
            (vec![at(5, 5), at(5, 5)], "0/5"),
            (vec![at(0, 0), at(0, 0)], "0/0"),
            (vec![at(5, 5), Position::Unknown], "a safekeeper does not have the timeline"),
            (vec![Position::Unknown, Position::Unknown], "a safekeeper does not have the timeline"),
            (vec![at(5, 1), at(5, 2)], committed),
            // What is committed is looked at first.
            (vec![at(5, 1), at(6, 2)], committed),
            (vec![at(5, 5), at(6, 5)], "safekeepers do not agree on what is written: 0/5 and 0/6"),
            (
                vec![at(5, 4), at(5, 4)],
                "safekeepers hold the log up to 0/5, and know of 0/4 that it is committed",
            ),
        ] {
            assert_eq!(told(&positions), expected, "{positions:?}");
        }
        assert_eq!(verdict(&[at(0, 0)]).unwrap(), EndOfLog::Empty);
    }
}
