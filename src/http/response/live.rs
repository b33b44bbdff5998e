//! Answers about the course of the compute: its history, its events as they come, its graph.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use compute_states::ComputeStatus;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{sleep, timeout};
use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use warp::reply::{Reply, Response};

use super::{Problem, json, with_letter};
use crate::engine::history::{History, Next, Transition};
use crate::limits;

/// The overview of the machine, as the generator of the diagrams draws it. A test keeps the file true.
const OVERVIEW: &str = include_str!("../../../diagrams/overview.json");

/// Kept for watchers that hear nothing else: a comment (HTML, section 9.2).
const HEARTBEAT: Bytes = Bytes::from_static(b": still here\n\n");

#[derive(Serialize)]
struct HistoryBody<'a> {
    #[serde(flatten)]
    present: Present,
    dropped: u64,
    transitions: Vec<TransitionBody<'a>>,
}

/// The status now, and for how long.
#[derive(Serialize)]
struct Present {
    began: String,
    status: ComputeStatus,
    since: String,
    in_status_ms: u64,
    last: u64,
}

#[derive(Serialize)]
struct TransitionBody<'a> {
    seq: u64,
    from: ComputeStatus,
    to: ComputeStatus,
    /// The name by which diagrams (as JSON) and metrics know it too.
    cause: Option<String>,
    label: Option<String>,
    time: String,
    lasted_ms: u64,
    epoch: Option<u64>,
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct GapBody {
    lost: Option<u64>,
    after: u64,
}

impl Present {
    fn of(history: &History) -> Self {
        Present {
            began: with_letter(history.began),
            status: history.status,
            since: with_letter(history.since),
            in_status_ms: milliseconds(history.time_in_status()),
            last: history.last(),
        }
    }
}

impl<'a> TransitionBody<'a> {
    fn of(transition: &'a Transition) -> Self {
        TransitionBody {
            seq: transition.seq,
            from: transition.from,
            to: transition.to,
            cause: transition.cause.map(|cause| format!("{cause:?}")),
            label: transition.cause.map(|cause| cause.to_string()),
            time: with_letter(transition.at),
            lasted_ms: milliseconds(transition.lasted),
            epoch: transition.epoch.map(|epoch| epoch.0),
            error: transition.error.as_deref(),
        }
    }
}

/// The answer of `GET /history`: the newest `limit` transitions of those that are kept, oldest first.
pub(in crate::http) fn history(history: &History, limit: Option<usize>) -> Response {
    let transitions = history.transitions();
    let skipped = limit.map_or(0, |limit| transitions.len().saturating_sub(limit));
    let body = HistoryBody {
        present: Present::of(history),
        dropped: history.dropped(),
        transitions: transitions.skip(skipped).map(|transition| TransitionBody::of(transition)).collect(),
    };
    uncached(json(StatusCode::OK, &body))
}

/// 400: the place to go on from is no number.
pub(in crate::http) fn bad_event_id() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "the last event id should be the number of a transition")
}

/// 503: there are as many watchers as there may be.
pub(in crate::http) fn too_many_watchers() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many clients watch already").again()
}

/// The answer of `GET /events`: the present status, then what follows the transition `after` (by default the
/// newest) until the loop ends.
pub(in crate::http) fn events(feed: Feed, after: Option<u64>, place: OwnedSemaphorePermit) -> Response {
    let watcher = Watcher { feed, seen: None, after, _place: place };
    let pieces = stream::unfold(watcher, async |mut watcher| {
        let piece = watcher.next().await?;
        Some((Ok::<_, Infallible>(piece), watcher))
    });
    let mut response = warp::reply::stream(pieces).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    uncached(response)
}

/// Where watchers look, and what wakes them. The loop wakes one task, however many they are, which wakes them all a little
/// later: what follows upon each other is one packet for each.
#[derive(Clone)]
pub(in crate::http) struct Feed {
    histories: watch::Receiver<Arc<History>>,
    news: watch::Receiver<()>,
}

impl Feed {
    /// Of what is published here, until nobody publishes any more.
    pub(in crate::http) fn of(histories: watch::Receiver<Arc<History>>) -> Self {
        let (wake, news) = watch::channel(());
        let mut published = histories.clone();
        tokio::spawn(async move {
            while published.changed().await.is_ok() {
                sleep(limits::EVENTS_GATHERED).await;
                published.mark_unchanged();
                wake.send_replace(());
            }
        });
        Feed { histories, news }
    }

    fn history(&self) -> Arc<History> {
        self.histories.borrow().clone()
    }
}

/// One who is sent events. What it has not read yet is in the history and nowhere else, so one that does not read
/// costs no more than one that does.
struct Watcher {
    feed: Feed,
    /// The number of the transition that was sent last, once the status was sent.
    seen: Option<u64>,
    after: Option<u64>,
    /// Its room among the watchers.
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        let Some(seen) = self.seen else {
            let history = self.feed.history();
            let after = self.after.unwrap_or(history.last());
            self.seen = Some(after);
            return Some(event("state", after, &Present::of(&history)));
        };
        loop {
            match self.feed.history().after(seen) {
                Some(Next::Transition(transition)) => {
                    self.seen = Some(transition.seq);
                    return Some(transition.rendered(|transition| {
                        event("transition", transition.seq, &TransitionBody::of(transition))
                    }));
                }
                Some(Next::Gap { lost, after }) => {
                    self.seen = Some(after);
                    return Some(event("gap", after, &GapBody { lost, after }));
                }
                None => {}
            }
            match timeout(limits::EVENTS_HEARTBEAT, self.feed.news.changed()).await {
                Ok(Ok(())) => {}
                // The loop has ended, and everything was sent.
                Ok(Err(_)) => return None,
                Err(_) => return Some(HEARTBEAT),
            }
        }
    }
}

/// One event of the stream (HTML, section 9.2.6). JSON has no line feed in it.
fn event(name: &str, id: u64, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("numbers and texts can be written");
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n").into()
}

/// What the generator writes.
#[derive(Deserialize)]
struct Overview {
    states: Vec<String>,
    initial: Option<String>,
    r#final: Vec<String>,
    transitions: Vec<Arrow<String>>,
}

#[derive(Deserialize, Serialize)]
struct Arrow<S> {
    from: S,
    to: S,
    event: String,
    cause: String,
    label: String,
}

struct Graph {
    nodes: Vec<Node>,
    arrows: Vec<Arrow<ComputeStatus>>,
}

#[derive(Clone, Copy, Serialize)]
struct Node {
    name: &'static str,
    status: ComputeStatus,
    initial: bool,
    r#final: bool,
    current: bool,
}

#[derive(Serialize)]
struct GraphBody<'a> {
    #[serde(flatten)]
    present: Present,
    states: Vec<Node>,
    transitions: &'a [Arrow<ComputeStatus>],
}

static GRAPH: LazyLock<Graph> = LazyLock::new(|| {
    const TRUE: &str = "the file is what the generator draws of these very statuses";
    let overview: Overview = serde_json::from_str(OVERVIEW).expect(TRUE);
    let status = |name: &str| ComputeStatus::ALL.into_iter().find(|known| known.name() == name).expect(TRUE);
    let nodes = overview.states.iter().map(|name| Node {
        name: status(name).name(),
        status: status(name),
        initial: overview.initial.as_deref() == Some(name),
        r#final: overview.r#final.contains(name),
        current: false,
    });
    let nodes = nodes.collect();
    let arrows = overview.transitions.into_iter().map(|Arrow { from, to, event, cause, label }| {
        let (from, to) = (status(&from), status(&to));
        Arrow { from, to, event, cause, label }
    });
    Graph { nodes, arrows: arrows.collect() }
});

/// The answer of `GET /fsm`: the statuses, the present one marked, and what leads from one to the other.
pub(in crate::http) fn graph(history: &History) -> Response {
    let marked = |node: &Node| Node { current: node.status == history.status, ..*node };
    let body = GraphBody {
        present: Present::of(history),
        states: GRAPH.nodes.iter().map(marked).collect(),
        transitions: &GRAPH.arrows,
    };
    uncached(json(StatusCode::OK, &body))
}

/// Nothing on the way may keep it.
fn uncached(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::history::{Change, Recorder};

    fn push(recorder: &Recorder, transitions: usize) {
        for number in 0..transitions {
            let to = [ComputeStatus::Init, ComputeStatus::Failed][number % 2];
            recorder.push(Change { to, cause: None, epoch: None, error: None });
        }
    }

    fn watcher(recorder: &Recorder) -> Watcher {
        let place = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().expect("it is free");
        Watcher { feed: Feed::of(recorder.watch()), seen: None, after: None, _place: place }
    }

    async fn next(watcher: &mut Watcher) -> String {
        let piece = watcher.next().await.expect("the stream goes on");
        String::from_utf8(piece.to_vec()).expect("it is text")
    }

    #[tokio::test]
    async fn one_that_does_not_read_finds_a_gap_and_then_what_is_kept() {
        let recorder = Recorder::new(ComputeStatus::Empty);
        let mut watcher = watcher(&recorder);
        // What has been published is seen at once: whoever was answered finds what the answer says.
        push(&recorder, 1);
        assert!(next(&mut watcher).await.starts_with("id: 1\nevent: state\n"));
        push(&recorder, 1);
        assert!(next(&mut watcher).await.starts_with("id: 2\nevent: transition\n"));
        push(&recorder, limits::HISTORY + 7);
        let gap = next(&mut watcher).await;
        assert_eq!(gap, "id: 9\nevent: gap\ndata: {\"lost\":7,\"after\":9}\n\n");
        for id in 10..10 + limits::HISTORY {
            assert!(next(&mut watcher).await.starts_with(&format!("id: {id}\nevent: transition\n")));
        }
        drop(recorder);
        assert_eq!(watcher.next().await, None);
    }

    #[tokio::test]
    async fn all_watchers_are_sent_the_same_bytes() {
        let recorder = Recorder::new(ComputeStatus::Empty);
        let mut watchers = [watcher(&recorder), watcher(&recorder)];
        for watcher in &mut watchers {
            next(watcher).await;
        }
        push(&recorder, 1);
        let [one, other] = &mut watchers;
        let (one, other) = (one.next().await, other.next().await);
        let place = |piece: &Option<Bytes>| piece.as_ref().map(|piece| piece.as_ptr());
        assert!(one.is_some() && place(&one) == place(&other));
    }
}
