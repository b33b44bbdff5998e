//! The one bounded queue, and the handle by which events get into it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use compute_states::{Epoch, Event, Lsn, Reply, RequestId, SpecOutline, TerminateMode};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::Span;

use super::history::History;
use super::{Hold, PromotionTimes, Recording, Snapshot};
use crate::activity::Seen;
use crate::limits;
use crate::telemetry::Metrics;

/// Size of one place in the queue, for whoever wants to compare it with a bare channel.
pub const ENVELOPE_BYTES: usize = size_of::<Envelope>();

/// What travels through the queue.
#[derive(Debug)]
pub(super) struct Envelope {
    pub input: Input,
    /// Held by client requests until they are taken out, so that they can never fill the reserve.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// What an envelope holds.
#[derive(Debug)]
pub(super) enum Input {
    Event(Event),
    /// A failed result, with its text.
    Failure(Event, Arc<str>),
    /// A server that was promoted, and how long that took.
    Promoted(Event, PromotionTimes),
    /// An observation, what was seen, what of it counts in words, and what keeps it so.
    Activity {
        event: Event,
        seen: Seen,
        note: Option<Arc<str>>,
        hold: Option<Hold>,
    },
    /// A request and who waits for its answer.
    Request {
        event: Event,
        request: RequestId,
        reply: oneshot::Sender<Answer>,
        /// That of the request.
        span: Span,
    },
    /// Not an event: something asked of the loop itself.
    Control(Control),
}

#[derive(Debug)]
pub(super) enum Control {
    Journal(oneshot::Sender<Recording>),
    /// A sign of life.
    Sign(oneshot::Sender<()>),
}

/// The answer to a request, with the status as it was at that moment.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What the machine answered.
    pub reply: Reply,
    /// What was published when it did.
    pub snapshot: Arc<Snapshot>,
    /// The text of the failure that led to it, if one did.
    pub failure: Option<Arc<str>>,
}

/// Why a request got no answer from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The queue is full: worth another try in a moment.
    #[error("too many requests are waiting")]
    Busy,
    /// The loop has ended: the process is about to.
    #[error("the compute is shutting down")]
    Gone,
}

/// The way into the loop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    queue: mpsc::Sender<Envelope>,
    /// One permit per place in the queue that client requests may use.
    places: Arc<Semaphore>,
    next_request: Arc<AtomicU64>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    history: watch::Receiver<Arc<History>>,
    metrics: Arc<Metrics>,
    /// The sign of life that is awaited: one at a time, so that whoever asks cannot fill the queue with it.
    sign: Arc<Mutex<Option<oneshot::Receiver<()>>>>,
}

impl Handle {
    pub(super) fn new(
        queue: mpsc::Sender<Envelope>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        history: watch::Receiver<Arc<History>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Handle {
            queue,
            places: Arc::new(Semaphore::new(limits::QUEUE - limits::QUEUE_RESERVE)),
            next_request: Arc::new(AtomicU64::new(1)),
            snapshots,
            history,
            metrics,
            sign: Arc::default(),
        }
    }

    /// What is published now. Never waits and never enters the queue.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// To be told of each change of what is published.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// The last transitions. Never waits and never enters the queue.
    pub fn history(&self) -> Arc<History> {
        self.history.borrow().clone()
    }

    /// To be told of each transition. Ends with the loop.
    pub fn watch_history(&self) -> watch::Receiver<Arc<History>> {
        self.history.clone()
    }

    /// Events that wait now.
    pub fn queue_depth(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Asks for a spec to be applied, and waits until it is, or cannot be.
    ///
    /// The request goes on if the future is dropped.
    ///
    /// # Errors
    /// [`Rejected::Busy`] if the queue is full, [`Rejected::Gone`] if the loop has ended.
    pub async fn configure(&self, spec: SpecOutline) -> Result<Answer, Rejected> {
        self.request(|request| Event::ConfigureRequested { request, spec }).await
    }

    /// Asks for a standby to become a primary, and waits until it is, or cannot be. `lsn` is how much of the old
    /// primary's log it must have replayed before.
    ///
    /// The request goes on if the future is dropped.
    ///
    /// # Errors
    /// As [`Handle::configure`].
    pub async fn promote(&self, spec: SpecOutline, lsn: Lsn) -> Result<Answer, Rejected> {
        self.request(|request| Event::PromoteRequested { request, spec, lsn }).await
    }

    /// Asks for a refresh. The answer comes at once, the refresh later.
    ///
    /// # Errors
    /// As [`Handle::configure`].
    pub async fn refresh(&self) -> Result<Answer, Rejected> {
        self.request(|request| Event::RefreshRequested { request }).await
    }

    /// Asks for the end of the compute, and waits for it. Uses the reserve of the queue, so that a crowd of
    /// other requests cannot keep it out.
    ///
    /// # Errors
    /// [`Rejected::Gone`] if the loop has ended.
    pub async fn terminate(&self, mode: TerminateMode) -> Result<Answer, Rejected> {
        let (request, reply, answer) = self.new_request();
        let event = Event::TerminateRequested { request, mode };
        let input = Input::Request { event, request, reply, span: Span::current() };
        self.queue.send(Envelope { input, permit: None }).await.map_err(|_| Rejected::Gone)?;
        answer.await.map_err(|_| Rejected::Gone)
    }

    /// Asks for the end of the compute if nothing is at work in Postgres, and waits for it, or for the news that
    /// something is.
    ///
    /// The request goes on if the future is dropped.
    ///
    /// # Errors
    /// As [`Handle::configure`].
    pub async fn terminate_if_idle(&self, mode: TerminateMode) -> Result<Answer, Rejected> {
        self.request(|request| Event::TerminateIfIdleRequested { request, mode }).await
    }

    /// Reports something that happened. Uses the reserve, and waits for a place in it.
    pub async fn report(&self, event: Event) {
        // When the loop has ended nobody needs to know.
        let _ = self.queue.send(Envelope { input: Input::Event(event), permit: None }).await;
    }

    /// Reports something that may be lost when the queue is full, because it will be seen again: a suspicion,
    /// an observation.
    pub fn hint(&self, event: Event) {
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            let _ = self.queue.try_send(Envelope { input: Input::Event(event), permit: Some(permit) });
        }
    }

    /// Reports what is at work in a Postgres. It may be lost when the queue is full, because it will be seen again.
    pub fn observe(&self, postmaster: Epoch, seen: Seen) {
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            let event = Event::ActivityObserved { postmaster, busy: seen.newest.is_some() };
            let input = Input::Activity { event, seen, note: None, hold: None };
            let _ = self.queue.try_send(Envelope { input, permit: Some(permit) });
        }
    }

    /// What happened, as far back as the ring reaches.
    ///
    /// # Errors
    /// [`Rejected::Gone`] if the loop has ended.
    pub async fn recording(&self) -> Result<Recording, Rejected> {
        let (reply, recording) = oneshot::channel();
        let input = Input::Control(Control::Journal(reply));
        self.queue.send(Envelope { input, permit: None }).await.map_err(|_| Rejected::Gone)?;
        recording.await.map_err(|_| Rejected::Gone)
    }

    /// Whether the loop gives a sign of life within `deadline`. Asks it, as nothing else tells a loop that has
    /// nothing to do from one that does nothing.
    pub async fn lives(&self, deadline: Duration) -> bool {
        timeout(deadline, self.sign_of_life()).await.unwrap_or(Err(Rejected::Busy)).is_ok()
    }

    /// Dropping the future leaves the question in the queue, for whoever asks next.
    async fn sign_of_life(&self) -> Result<(), Rejected> {
        let mut awaited = self.sign.lock().await;
        if awaited.is_none() {
            let place = self.queue.reserve().await.map_err(|_| Rejected::Gone)?;
            let (reply, sign) = oneshot::channel();
            place.send(Envelope { input: Input::Control(Control::Sign(reply)), permit: None });
            *awaited = Some(sign);
        }
        let Some(sign) = awaited.as_mut() else { return Err(Rejected::Gone) };
        let lives = sign.await.map_err(|_| Rejected::Gone);
        *awaited = None;
        lives
    }

    fn new_request(&self) -> (RequestId, oneshot::Sender<Answer>, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        (RequestId(self.next_request.fetch_add(1, Ordering::Relaxed)), reply, answer)
    }

    async fn request(&self, event: impl FnOnce(RequestId) -> Event) -> Result<Answer, Rejected> {
        let Ok(permit) = self.places.clone().try_acquire_owned() else {
            self.metrics.request_rejected();
            return Err(Rejected::Busy);
        };
        let (request, reply, answer) = self.new_request();
        let input = Input::Request { event: event(request), request, reply, span: Span::current() };
        match self.queue.try_send(Envelope { input, permit: Some(permit) }) {
            Ok(()) => answer.await.map_err(|_| Rejected::Gone),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Rejected::Gone),
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.metrics.request_rejected();
                Err(Rejected::Busy)
            }
        }
    }
}
