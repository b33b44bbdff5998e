//! The last transitions, for whoever wants to know how the compute came to be what it is.
//!
//! The loop writes one entry per change of the status and nothing else, so other events cost nothing. What is
//! published is immutable: a reader takes a reference and is done with the loop, which waits for none. A reader
//! that falls behind what the ring holds finds out by the numbers.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use compute_states::{Cause, ComputeStatus, Epoch, Event};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::limits;

/// One change of the status.
#[derive(Debug)]
pub struct Transition {
    /// Its number in the life of the process, from 1, without gaps.
    pub seq: u64,
    /// The status before.
    pub from: ComputeStatus,
    /// The status after.
    pub to: ComputeStatus,
    /// Why.
    pub cause: Option<Cause>,
    /// When.
    pub at: Timestamp,
    /// How long the status before had lasted.
    pub lasted: Duration,
    /// The work, timer or postmaster whose event it was; none for requests and signals.
    pub epoch: Option<Epoch>,
    /// What had gone wrong, if the compute failed.
    pub error: Option<Arc<str>>,
    rendered: OnceLock<Bytes>,
}

impl Transition {
    /// The form in which it is sent to watchers. Made when the first one asks, and shared by all of them.
    pub fn rendered(&self, render: impl FnOnce(&Transition) -> Bytes) -> Bytes {
        self.rendered.get_or_init(|| render(self)).clone()
    }
}

/// What is known of the past at one moment.
#[derive(Clone, Debug)]
pub struct History {
    /// When it begins: numbers of a history that began at another time are of another process.
    pub began: Timestamp,
    /// The present status.
    pub status: ComputeStatus,
    /// Since when.
    pub since: Timestamp,
    /// The same moment on the clock that nobody sets.
    entered: Instant,
    /// The last transitions, oldest first.
    transitions: VecDeque<Arc<Transition>>,
    /// The number of the newest one, 0 before the first.
    last: u64,
}

/// What follows a certain transition.
#[derive(Clone, Debug)]
pub enum Next {
    /// This one.
    Transition(Arc<Transition>),
    /// The ring has lost some: the oldest there is follows next.
    Gap {
        /// How many are lost, if it can be told: not if the number is one that was never given.
        lost: Option<u64>,
        /// The number after which to go on.
        after: u64,
    },
}

impl History {
    fn new(status: ComputeStatus) -> Self {
        let now = Timestamp::now();
        History {
            began: now,
            status,
            since: now,
            entered: Instant::now(),
            transitions: VecDeque::new(),
            last: 0,
        }
    }

    /// The last transitions, oldest first.
    pub fn transitions(&self) -> impl DoubleEndedIterator<Item = &Arc<Transition>> + ExactSizeIterator {
        self.transitions.iter()
    }

    /// The number of the newest transition, 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Transitions that are not kept any more.
    pub fn dropped(&self) -> u64 {
        self.last - self.transitions.len() as u64
    }

    /// How long the present status has lasted.
    pub fn time_in_status(&self) -> Duration {
        self.entered.elapsed()
    }

    /// What comes after the transition `seq`, 0 for the first of all; nothing if that is the newest.
    pub fn after(&self, seq: u64) -> Option<Next> {
        if seq == self.last {
            return None;
        }
        let dropped = self.dropped();
        if seq > self.last {
            return Some(Next::Gap { lost: None, after: dropped });
        }
        match seq.checked_sub(dropped) {
            None => Some(Next::Gap { lost: Some(dropped - seq), after: dropped }),
            Some(index) => {
                // Less than `last - dropped`, which is the length.
                self.transitions.get(usize::try_from(index).ok()?).cloned().map(Next::Transition)
            }
        }
    }
}

/// What the loop knows of a transition.
pub(crate) struct Change {
    pub(crate) to: ComputeStatus,
    pub(crate) cause: Option<Cause>,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) error: Option<Arc<str>>,
}

/// The history, as the loop writes it.
pub(crate) struct Recorder {
    published: watch::Sender<Arc<History>>,
}

impl Recorder {
    pub(crate) fn new(status: ComputeStatus) -> Self {
        Recorder { published: watch::channel(Arc::new(History::new(status))).0 }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<History>> {
        self.published.subscribe()
    }

    /// Copies the ring, which is some hundred references, so that readers of the old one need not be waited for.
    pub(crate) fn push(&self, change: Change) {
        let Change { to, cause, epoch, error } = change;
        let mut next = History::clone(&self.published.borrow());
        let (from, lasted) = (next.status, next.entered.elapsed());
        if next.transitions.len() == limits::HISTORY {
            next.transitions.pop_front();
        }
        next.last += 1;
        next.status = to;
        next.since = Timestamp::now();
        next.entered = Instant::now();
        next.transitions.push_back(Arc::new(Transition {
            seq: next.last,
            from,
            to,
            cause,
            at: next.since,
            lasted,
            epoch,
            error,
            rendered: OnceLock::new(),
        }));
        self.published.send_replace(Arc::new(next));
    }
}

/// The work, timer or postmaster which an event is about.
pub(super) fn concerned(event: &Event) -> Option<Epoch> {
    event.settles().or(match *event {
        Event::TimerFired { epoch } => Some(epoch),
        Event::PostmasterProgressed { postmaster } | Event::PostmasterReady { postmaster } => {
            Some(postmaster)
        }
        _ => event.ends_postmaster(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(transitions: usize) -> Arc<History> {
        let recorder = Recorder::new(ComputeStatus::Empty);
        for number in 0..transitions {
            let to = if number % 2 == 0 { ComputeStatus::Init } else { ComputeStatus::Failed };
            recorder.push(Change { to, cause: None, epoch: Some(Epoch(number as u64)), error: None });
        }
        recorder.watch().borrow().clone()
    }

    fn seq(next: Option<Next>) -> Option<u64> {
        match next? {
            Next::Transition(transition) => Some(transition.seq),
            Next::Gap { lost, after } => panic!("a gap of {lost:?} before {after}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_transition_knows_how_long_the_status_before_it_had_lasted() {
        let recorder = Recorder::new(ComputeStatus::Empty);
        tokio::time::advance(Duration::from_millis(1500)).await;
        let change = Change { to: ComputeStatus::Init, cause: None, epoch: None, error: None };
        recorder.push(change);
        tokio::time::advance(Duration::from_millis(20)).await;
        let history = recorder.watch().borrow().clone();
        let transition = history.transitions().next().expect("there is one").clone();
        assert_eq!((transition.from, transition.to), (ComputeStatus::Empty, ComputeStatus::Init));
        assert_eq!(transition.lasted, Duration::from_millis(1500));
        assert_eq!(history.time_in_status(), Duration::from_millis(20));
    }

    #[test]
    fn an_event_tells_whom_it_concerns() {
        use compute_states::Exit;
        let (postmaster, epoch) = (Epoch(7), Epoch(8));
        for (event, expected) in [
            (Event::TimerFired { epoch }, Some(epoch)),
            (Event::FoundIdle { epoch }, Some(epoch)),
            (Event::PostmasterReady { postmaster }, Some(postmaster)),
            (Event::PostmasterProgressed { postmaster }, Some(postmaster)),
            (Event::PostmasterExited { postmaster, exit: Exit::Signal(9) }, Some(postmaster)),
            (Event::StopSignalled, None),
        ] {
            assert_eq!(concerned(&event), expected, "{event:?}");
        }
    }

    #[tokio::test]
    async fn one_follows_the_other_until_the_newest() {
        let history = filled(3);
        assert_eq!(
            (seq(history.after(0)), seq(history.after(2)), seq(history.after(3))),
            (Some(1), Some(3), None)
        );
        assert!(filled(0).after(0).is_none());
    }

    #[tokio::test]
    async fn the_ring_is_bounded_and_tells_what_it_has_lost() {
        let history = filled(limits::HISTORY + 5);
        assert_eq!((history.transitions().len(), history.dropped()), (limits::HISTORY, 5));
        assert!(matches!(history.after(0), Some(Next::Gap { lost: Some(5), after: 5 })));
        assert!(matches!(history.after(4), Some(Next::Gap { lost: Some(1), after: 5 })));
        assert_eq!(seq(history.after(5)), Some(6));
        assert_eq!(seq(history.after(history.last())), None);
    }

    #[tokio::test]
    async fn a_number_that_was_never_given_is_a_gap_before_all_there_is() {
        assert!(matches!(filled(2).after(3), Some(Next::Gap { lost: None, after: 0 })));
        let full = filled(limits::HISTORY + 1);
        assert!(matches!(full.after(u64::MAX), Some(Next::Gap { lost: None, after: 1 })));
    }

    #[tokio::test]
    async fn what_watchers_are_sent_is_made_once() {
        let history = filled(1);
        let transition = history.transitions().next().expect("there is one");
        let first = transition.rendered(|_| Bytes::from_static(b"once"));
        assert_eq!(first, transition.rendered(|_| panic!("it was made already")));
    }
}
