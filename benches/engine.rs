//! Events a second through queue, loop, journal and metrics, over a raw channel with payloads of the same size.
//!
//! `cargo bench --bench engine`. Targets: at least 1,000,000 events a second, and at least half of the channel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use compute_ctl::engine::queue::ENVELOPE_BYTES;
use compute_ctl::engine::{self, Done, Facts, Handle, Work, WorkError, World};
use compute_ctl::limits;
use compute_ctl::telemetry::Metrics;
use compute_states::{
    ComputeStatus, Epoch, Event, Exit, FetchedSpec, Lsn, Policy, Revision, SpecOutline, StopMode,
};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

#[path = "support/compare.rs"]
mod compare;

use compare::{Subject, compare};

const ROUNDS: usize = 30;
const PRODUCERS: u64 = 4;
const EVENTS: u64 = 200_000;
const SPEC: SpecOutline = SpecOutline { revision: Revision(1), final_sync: false };

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("threads can be had");
    let stale = Event::TimerFired { epoch: Epoch(1_000_000) };
    let forwarded = Event::ReloadSignalled;
    compare(
        &format!("{PRODUCERS} producers, one consumer, {ENVELOPE_BYTES} bytes an envelope"),
        ROUNDS,
        vec![
            Subject::new("raw channel, taken one by one", EVENTS, || raw(&runtime, 1)),
            Subject::new("raw channel, taken in batches", EVENTS, || raw(&runtime, limits::QUEUE_BATCH)),
            Subject::new("engine, events nobody waits for", EVENTS, || engine(&runtime, stale)),
            Subject::new("engine, events with an effect", EVENTS, || engine(&runtime, forwarded)),
        ],
    );
}

fn raw(runtime: &Runtime, batch: usize) -> Duration {
    runtime.block_on(async {
        let (sender, mut queue) = mpsc::channel::<[u8; ENVELOPE_BYTES]>(limits::QUEUE);
        let begun = Instant::now();
        let consumer = tokio::spawn(async move {
            let mut taken = Vec::with_capacity(batch);
            let mut sum = 0_u64;
            while queue.recv_many(&mut taken, batch).await > 0 {
                sum += taken.drain(..).map(|payload| u64::from(payload[0])).sum::<u64>();
            }
            sum
        });
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|_| {
                let sender = sender.clone();
                tokio::spawn(async move {
                    for _ in 0..EVENTS / PRODUCERS {
                        sender.send([1; ENVELOPE_BYTES]).await.expect("the consumer is there");
                    }
                })
            })
            .collect();
        drop(sender);
        for producer in producers {
            producer.await.expect("no panic");
        }
        assert_eq!(consumer.await.expect("no panic"), EVENTS);
        begun.elapsed()
    })
}

fn engine(runtime: &Runtime, event: Event) -> Duration {
    runtime.block_on(async {
        let (engine, handle) = engine::new(Arc::new(Willing), Policy::default(), Arc::new(Metrics::new()));
        let running = tokio::spawn(engine.run());
        handle.report(Event::Booted { spec: Some(SPEC) }).await;
        let mut status = handle.watch();
        status.wait_for(|it| it.status == ComputeStatus::Running).await.expect("the loop runs");
        let begun = Instant::now();
        let producers: Vec<_> =
            (0..PRODUCERS).map(|_| tokio::spawn(produce(handle.clone(), event))).collect();
        for producer in producers {
            producer.await.expect("no panic");
        }
        // The loop answers in order, so whatever was sent before is handled.
        let recording = handle.recording().await.expect("the loop runs");
        let took = begun.elapsed();
        assert!(recording.entries.last().is_some_and(|entry| entry.seq >= EVENTS));
        running.abort();
        took
    })
}

async fn produce(handle: Handle, event: Event) {
    for _ in 0..EVENTS / PRODUCERS {
        handle.report(event).await;
    }
}

/// A world in which everything succeeds at once, and the postmaster stays.
struct Willing;

impl World for Willing {
    fn run(
        &self,
        work: Work,
        _: CancellationToken,
    ) -> impl Future<Output = Result<Done, WorkError>> + Send + 'static {
        std::future::ready(Ok(match work {
            Work::FetchSpec { .. } => Done::Fetched(FetchedSpec::NoSpec),
            Work::FinalSync { .. } => Done::Synced(Lsn(1)),
            _ => Done::Done,
        }))
    }

    fn start_postmaster(
        &self,
        _: Epoch,
        _: Revision,
        facts: Facts,
    ) -> impl Future<Output = Result<Exit, WorkError>> + Send + 'static {
        serve(facts)
    }

    fn stop_postmaster(&self, _: Epoch, _: StopMode) {}

    fn reload_postmaster(&self, _: Epoch) {}

    fn random(&self) -> u64 {
        4
    }
}

async fn serve(facts: Facts) -> Result<Exit, WorkError> {
    facts.ready().await;
    std::future::pending().await
}
