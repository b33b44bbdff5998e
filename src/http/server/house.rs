//! The connections of one server: how many there may be, what each is doing, and who leaves when all places are
//! taken.
//!
//! A connection without a request under way is idle, whether it waits for the next request or never sent one. When
//! the house is full the one that has been idle for longest makes room for who comes: neither sloppy nor hostile
//! clients can keep others out, and nobody loses an answer.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::limits;

/// The places of one server.
pub(super) struct House {
    places: Arc<Semaphore>,
    /// Requests of HTTP/2 connections, of which one place can have many.
    streams: Arc<Semaphore>,
    idle: Mutex<Queue>,
}

/// Idle connections in the order in which they became idle.
#[derive(Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, Arc<Record>>,
}

impl House {
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(House {
            places: Arc::new(Semaphore::new(places)),
            streams: Arc::new(Semaphore::new(limits::HTTP_ALL_STREAMS)),
            idle: Mutex::default(),
        })
    }

    /// A place for a connection that was accepted, for which another one may have to leave.
    pub(super) async fn admit(self: &Arc<Self>) -> Guest {
        let mut place = self.places.clone().try_acquire_owned().ok();
        while place.is_none() {
            self.make_room();
            // Whoever was asked to leave is idle, so that this takes no time; and where nobody was idle, soon
            // somebody may be.
            let left = timeout(limits::HTTP_ACCEPT_PAUSE, self.places.clone().acquire_owned()).await;
            place = left.ok().map(|place| place.expect("places are never closed"));
        }
        let doing = Doing {
            since: Instant::now(),
            begun: false,
            requests: 0,
            untaken: 0,
            asked_to_leave: false,
            idle: Idle::Gone,
        };
        let record = Arc::new(Record { doing: Mutex::new(doing), leave: Notify::new() });
        self.rests(&record, &mut record.doing());
        Guest { house: self.clone(), record, _place: place }
    }

    /// Asks the connection that has been idle for longest to leave.
    pub(super) fn make_room(&self) {
        let longest = self.queue().waiting.pop_first();
        if let Some((_, record)) = longest {
            record.doing().asked_to_leave = true;
            record.leave.notify_one();
        }
    }

    #[cfg(test)]
    pub(super) fn is_somebody_idle(&self) -> bool {
        !self.queue().waiting.is_empty()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a connection at the end of the queue.
    fn rests(&self, record: &Arc<Record>, doing: &mut Doing) {
        let mut queue = self.queue();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.insert(number, record.clone());
        doing.idle = Idle::Since(number);
    }

    /// Takes it out of the queue.
    fn works(&self, doing: &mut Doing, now: Idle) {
        if let Idle::Since(number) = std::mem::replace(&mut doing.idle, now) {
            self.queue().waiting.remove(&number);
        }
    }
}

/// A connection, for as long as it has its place.
pub(super) struct Guest {
    house: Arc<House>,
    record: Arc<Record>,
    _place: Option<OwnedSemaphorePermit>,
}

/// What a connection is doing, shared with its requests.
struct Record {
    doing: Mutex<Doing>,
    leave: Notify,
}

struct Doing {
    /// The last time anything happened: a request began or ended, a piece of an answer was taken.
    since: Instant,
    begun: bool,
    requests: u32,
    /// Answers of which the client has to take something before there can be more.
    untaken: u32,
    asked_to_leave: bool,
    idle: Idle,
}

#[derive(Clone, Copy)]
enum Idle {
    /// With its number in the queue.
    Since(u64),
    Busy,
    /// Not there any more, though requests may be.
    Gone,
}

impl Record {
    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// A request begins; nothing if there are too many of its kind already.
    pub(super) fn begins(&self, shares_its_connection: bool) -> Option<UnderWay> {
        let stream = match shares_its_connection {
            true => Some(self.house.streams.clone().try_acquire_owned().ok()?),
            false => None,
        };
        let mut doing = self.record.doing();
        self.house.works(&mut doing, Idle::Busy);
        doing.begun = true;
        doing.requests += 1;
        doing.since = Instant::now();
        Some(UnderWay {
            house: self.house.clone(),
            record: self.record.clone(),
            untaken: false,
            _stream: stream,
        })
    }

    /// Resolves when somebody else needs the place.
    pub(super) async fn asked_to_leave(&self) {
        self.record.leave.notified().await;
    }

    /// Whether it has had a request at all.
    pub(super) fn was_served(&self) -> bool {
        self.record.doing().begun
    }

    /// Resolves when the client is not worth waiting for: it sent no whole request, or it does not take what it
    /// asked for, be it the rest that is under way when it has to leave.
    pub(super) async fn given_up(&self) {
        sleep(limits::HTTP_HEAD_READ).await;
        if !self.record.doing().begun {
            return;
        }
        loop {
            let (since, stuck) = {
                let doing = self.record.doing();
                let waits = doing.requests == 0 && doing.asked_to_leave;
                (doing.since, waits || doing.requests > 0 && doing.requests == doing.untaken)
            };
            if !stuck {
                sleep(limits::HTTP_STALL).await;
            } else if since.elapsed() < limits::HTTP_STALL {
                sleep_until(since + limits::HTTP_STALL).await;
            } else {
                return;
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.house.works(&mut self.record.doing(), Idle::Gone);
    }
}

/// A request, until its answer was handed over whole or given up.
pub(super) struct UnderWay {
    house: Arc<House>,
    record: Arc<Record>,
    untaken: bool,
    _stream: Option<OwnedSemaphorePermit>,
}

impl UnderWay {
    /// Whose turn it is: the client's, to take something, or somebody else's.
    fn turn(&mut self, clients: bool) {
        let mut doing = self.record.doing();
        doing.since = Instant::now();
        match (self.untaken, clients) {
            (false, true) => doing.untaken += 1,
            (true, false) => doing.untaken -= 1,
            _ => {}
        }
        self.untaken = clients;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.turn(false);
        let mut doing = self.record.doing();
        doing.requests -= 1;
        if doing.requests == 0 && matches!(doing.idle, Idle::Busy) {
            self.house.rests(&self.record, &mut doing);
        }
    }
}

/// The body of an answer, handed over piece by piece, so that it shows whether the client takes them.
pub(super) struct Watched<B> {
    body: B,
    /// What is left of the piece at hand.
    rest: Bytes,
    /// None for a request that was turned away.
    request: Option<UnderWay>,
}

impl<B> Watched<B> {
    pub(super) fn new(body: B, request: Option<UnderWay>) -> Self {
        let mut watched = Watched { body, rest: Bytes::new(), request };
        watched.turn(true);
        watched
    }

    fn turn(&mut self, clients: bool) {
        if let Some(request) = &mut self.request {
            request.turn(clients);
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            // Who asks for more has taken what there was.
            this.turn(false);
            let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
            this.turn(true);
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => this.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        } else {
            this.turn(true);
        }
        let piece = this.rest.split_to(this.rest.len().min(limits::HTTP_PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, inner) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest + inner.lower());
        if let Some(upper) = inner.upper() {
            hint.set_upper(rest + upper);
        }
        hint
    }
}
