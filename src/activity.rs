//! What can be at work in a Postgres, how it is counted, and what of it counts.
//!
//! The list is the original's (metrics-and-monitor, section 3), asked in one round trip. Beside *that* something is at
//! work this tells *what*: by kind and count. An operator may have a kind ignored: it is still counted and shown, but
//! neither makes the compute active nor holds it back.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use clap::ValueEnum;
use jiff::Timestamp;
use serde::Serialize;

pub mod look;

/// A kind of activity. In the order in which the original asks, which decides what is told as the reason when there
/// are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The statistics of a database of users moved since the last look, whoever did it.
    Statistics,
    /// A session executes something, or does not say what it does.
    ActiveSession,
    /// A session waits for its client inside a transaction.
    IdleInTransaction,
    /// A session waits for its client.
    IdleSession,
    /// A logical subscriber, or whoever else streams changes of one database.
    LogicalWalsender,
    /// A standby, or a base backup.
    PhysicalWalsender,
    /// A subscription of this server that is being served.
    Subscription,
    /// An autovacuum worker.
    Autovacuum,
}

/// What the command line calls one or several kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Source {
    /// Sessions that execute something.
    ActiveSessions,
    /// Sessions that wait for their client inside a transaction.
    IdleInTransaction,
    /// Sessions that wait for their client.
    IdleSessions,
    /// Logical and physical walsenders.
    Walsenders,
    /// Logical subscribers.
    LogicalWalsenders,
    /// Standbys and base backups.
    PhysicalWalsenders,
    /// Subscriptions of this server.
    Subscriptions,
    /// Autovacuum workers.
    Autovacuum,
    /// Moved statistics.
    Statistics,
}

impl Source {
    fn kinds(self) -> &'static [Kind] {
        match self {
            Source::ActiveSessions => &[Kind::ActiveSession],
            Source::IdleInTransaction => &[Kind::IdleInTransaction],
            Source::IdleSessions => &[Kind::IdleSession],
            Source::Walsenders => &[Kind::LogicalWalsender, Kind::PhysicalWalsender],
            Source::LogicalWalsenders => &[Kind::LogicalWalsender],
            Source::PhysicalWalsenders => &[Kind::PhysicalWalsender],
            Source::Subscriptions => &[Kind::Subscription],
            Source::Autovacuum => &[Kind::Autovacuum],
            Source::Statistics => &[Kind::Statistics],
        }
    }
}

/// What counts on this node; the same for its whole life.
#[derive(Debug, Default)]
pub struct Rules {
    ignored: BTreeSet<Kind>,
    statistics: OnceLock<bool>,
}

impl Rules {
    /// With these sources ignored.
    pub fn ignoring(sources: &[Source]) -> Self {
        let ignored = sources.iter().flat_map(|source| source.kinds()).copied().collect();
        Rules { ignored, statistics: OnceLock::new() }
    }

    /// Whether statistics are looked at is said by the spec the compute has started with; later ones change nothing.
    pub fn started_with(&self, statistics: bool) {
        let _only_the_first = self.statistics.set(statistics);
    }

    /// Whether statistics are looked at.
    pub fn statistics(&self) -> bool {
        self.statistics.get().copied().unwrap_or(false)
    }

    fn count(&self, kind: Kind) -> bool {
        !self.ignored.contains(&kind)
    }
}

/// What was seen at one look, those that are ignored included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Sessions that execute something, or do not say what they do.
    pub active_sessions: u32,
    /// Sessions that wait for their client inside a transaction.
    pub idle_in_transaction: u32,
    /// Sessions that wait for their client.
    pub idle_sessions: u32,
    /// Sessions that are only being set up. Nothing is known about them, so they make nobody active; but they hold
    /// back.
    pub arriving_sessions: u32,
    /// Walsenders with a database.
    pub logical_walsenders: u32,
    /// Walsenders without one.
    pub physical_walsenders: u32,
    /// Logical slots in use. Slots are told and never count: what uses one is a walsender.
    pub active_slots: u32,
    /// Logical slots that nobody uses.
    pub inactive_slots: u32,
    /// Subscriptions that are being served.
    pub subscriptions: u32,
    /// Autovacuum workers.
    pub autovacuum_workers: u32,
    /// Whether the statistics moved since the look before; unknown at the first one, and where they are not looked at.
    pub statistics_moved: Option<bool>,
}

impl Activity {
    /// How often a kind was seen.
    pub fn of(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Statistics => u32::from(self.statistics_moved == Some(true)),
            Kind::ActiveSession => self.active_sessions,
            Kind::IdleInTransaction => self.idle_in_transaction,
            Kind::IdleSession => self.idle_sessions,
            Kind::LogicalWalsender => self.logical_walsenders,
            Kind::PhysicalWalsender => self.physical_walsenders,
            Kind::Subscription => self.subscriptions,
            Kind::Autovacuum => self.autovacuum_workers,
        }
    }

    /// The first kind that makes the compute active at this moment. A session that only waits for its client does
    /// not: what it had done before has a time of its own.
    pub fn at_work(&self, rules: &Rules) -> Option<Kind> {
        const NOW: [Kind; 7] = [
            Kind::Statistics,
            Kind::ActiveSession,
            Kind::IdleInTransaction,
            Kind::LogicalWalsender,
            Kind::PhysicalWalsender,
            Kind::Subscription,
            Kind::Autovacuum,
        ];
        NOW.into_iter().find(|kind| rules.count(*kind) && self.of(*kind) > 0)
    }

    /// What a stop would disturb, in words; nothing when the compute is idle.
    pub fn holding_back(&self, rules: &Rules) -> Option<String> {
        let mut parts: Vec<String> = Vec::new();
        let mut note = |number: u32, one: &str, several: &str| match number {
            0 => {}
            1 => parts.push(format!("1 {one}")),
            _ => parts.push(format!("{number} {several}")),
        };
        let of = |kind: Kind| if rules.count(kind) { self.of(kind) } else { 0 };
        note(of(Kind::ActiveSession), "active session", "active sessions");
        note(of(Kind::IdleInTransaction), "session idle in transaction", "sessions idle in transaction");
        note(of(Kind::IdleSession), "idle session", "idle sessions");
        note(self.arriving_sessions, "arriving session", "arriving sessions");
        note(of(Kind::LogicalWalsender), "logical walsender", "logical walsenders");
        note(of(Kind::PhysicalWalsender), "physical walsender", "physical walsenders");
        note(of(Kind::Subscription), "subscription", "subscriptions");
        note(of(Kind::Autovacuum), "autovacuum worker", "autovacuum workers");
        if of(Kind::Statistics) > 0 {
            parts.push("statistics that moved".to_owned());
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// When something was seen at work, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// When.
    pub at: Timestamp,
    /// What.
    pub kind: Kind,
}

/// What an observation tells beside the machine's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What there was.
    pub activity: Activity,
    /// The newest sign of work, if there was any.
    pub newest: Option<Sighting>,
}

/// Sums of the statistics of all databases of users.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Milliseconds in which sessions executed something.
    pub active_time: Option<f64>,
    /// Sessions that were begun.
    pub sessions: Option<i64>,
}

/// What one look brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// What there was. That statistics moved shows in comparison only.
    pub activity: Activity,
    /// When the last of the sessions that wait for their client began to.
    pub idle_since: Option<Timestamp>,
    /// The sums, if they were asked for.
    pub statistics: Option<Statistics>,
    /// Process ids of everything that has a session or runs in the background, if they were asked for.
    pub pids: Vec<i32>,
}

/// Judges one look after the other.
#[derive(Debug, Default)]
pub struct Judge {
    statistics: Option<Statistics>,
}

impl Judge {
    /// What a look comes to, at a moment. The first one with statistics only stores them.
    pub fn judge(&mut self, look: &Look, now: Timestamp, rules: &Rules) -> Seen {
        let before = std::mem::replace(&mut self.statistics, look.statistics);
        let moved = before.zip(look.statistics).map(|(before, after)| before != after);
        let activity = Activity { statistics_moved: moved, ..look.activity };
        let newest = match activity.at_work(rules) {
            Some(kind) => Some(Sighting { at: now, kind }),
            None => look
                .idle_since
                .filter(|_| rules.count(Kind::IdleSession))
                .map(|at| Sighting { at, kind: Kind::IdleSession }),
        };
        Seen { activity, newest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn look(activity: Activity) -> Look {
        Look { activity, idle_since: None, statistics: None, pids: Vec::new() }
    }

    fn newest(look: &Look, rules: &Rules) -> Option<Sighting> {
        Judge::default().judge(look, at(1_000), rules).newest
    }

    #[test]
    fn the_first_kind_of_the_originals_order_is_the_reason() {
        let everything = Activity {
            active_sessions: 1,
            idle_in_transaction: 1,
            logical_walsenders: 1,
            physical_walsenders: 1,
            subscriptions: 1,
            autovacuum_workers: 1,
            ..Activity::default()
        };
        let steps = [
            (Source::ActiveSessions, Kind::ActiveSession),
            (Source::IdleInTransaction, Kind::IdleInTransaction),
            (Source::LogicalWalsenders, Kind::LogicalWalsender),
            (Source::PhysicalWalsenders, Kind::PhysicalWalsender),
            (Source::Subscriptions, Kind::Subscription),
            (Source::Autovacuum, Kind::Autovacuum),
        ];
        let mut ignored = Vec::new();
        for (source, kind) in steps {
            let rules = Rules::ignoring(&ignored);
            assert_eq!(newest(&look(everything), &rules), Some(Sighting { at: at(1_000), kind }));
            ignored.push(source);
        }
        let rules = Rules::ignoring(&ignored);
        assert_eq!(newest(&look(everything), &rules), None);
        assert_eq!(everything.holding_back(&rules), None);
    }

    #[test]
    fn what_waits_for_its_client_was_active_when_it_began_to() {
        let waiting =
            Look { idle_since: Some(at(7)), ..look(Activity { idle_sessions: 2, ..Activity::default() }) };
        let since = Sighting { at: at(7), kind: Kind::IdleSession };
        assert_eq!(newest(&waiting, &Rules::default()), Some(since));
        assert_eq!(newest(&waiting, &Rules::ignoring(&[Source::IdleSessions])), None);
    }

    #[test]
    fn slots_and_arrivals_make_nobody_active_but_arrivals_hold_back() {
        let slots = Activity { active_slots: 1, inactive_slots: 1, ..Activity::default() };
        assert_eq!(newest(&look(slots), &Rules::default()), None);
        assert_eq!(slots.holding_back(&Rules::default()), None);
        let arriving = Activity { arriving_sessions: 1, ..Activity::default() };
        assert_eq!(newest(&look(arriving), &Rules::default()), None);
        let told = arriving.holding_back(&Rules::default());
        assert_eq!(told.as_deref(), Some("1 arriving session"));
    }

    #[test]
    fn statistics_count_when_they_differ_and_not_at_the_first_look() {
        let sums = |active_time, sessions| Look {
            statistics: Some(Statistics { active_time, sessions }),
            ..look(Activity::default())
        };
        let rules = Rules::default();
        let mut judge = Judge::default();
        let mut moved = |look: &Look| judge.judge(look, at(5), &rules).activity.statistics_moved;
        assert_eq!(moved(&sums(Some(1.0), Some(3))), None);
        assert_eq!(moved(&sums(Some(1.0), Some(3))), Some(false));
        assert_eq!(moved(&sums(Some(1.5), Some(3))), Some(true));
        assert_eq!(moved(&sums(Some(1.5), Some(4))), Some(true));
        // A database was dropped: less is a difference too.
        assert_eq!(moved(&sums(None, None)), Some(true));
        assert_eq!(moved(&sums(None, None)), Some(false));
    }

    #[test]
    fn the_reason_is_told_in_words() {
        let activity = Activity {
            active_sessions: 2,
            idle_sessions: 1,
            logical_walsenders: 1,
            statistics_moved: Some(true),
            ..Activity::default()
        };
        let told = activity.holding_back(&Rules::default());
        assert_eq!(
            told.as_deref(),
            Some("2 active sessions, 1 idle session, 1 logical walsender, statistics that moved")
        );
        let told = activity.holding_back(&Rules::ignoring(&[Source::Walsenders, Source::Statistics]));
        assert_eq!(told.as_deref(), Some("2 active sessions, 1 idle session"));
    }
}
