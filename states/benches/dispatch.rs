//! What one event costs in the machine, over a bare match on the same enum.
//!
//! `cargo bench -p compute-states`. Target: at most 100 ns an event.

use std::hint::black_box;
use std::time::{Duration, Instant};

use compute_states::{
    ComputeStatus, Epoch, Event, Exit, FetchedSpec, Machine, Policy, RequestId, Revision, SpecOutline, Step,
    TerminateMode,
};

#[path = "../../benches/support/compare.rs"]
mod compare;

use compare::{Subject, compare};

const ROUNDS: usize = 50;
const EVENTS: u64 = 200_000;
const SPEC: SpecOutline = SpecOutline { revision: Revision(1), final_sync: false };

fn main() {
    let stale = Event::TimerFired { epoch: Epoch(1_000_000) };
    let refused = Event::ConfigureRequested { request: RequestId(1), spec: SPEC };
    let cycle = cycle();
    let mut running = after(&cycle[..RUNNING_AFTER]);
    assert_eq!(running.status(), ComputeStatus::Running);
    let mut starting = after(&cycle[..2]);
    assert_eq!(starting.status(), ComputeStatus::ConfigurationPending);
    assert_eq!(after(&cycle).status(), ComputeStatus::Terminated);
    let cycles = EVENTS / cycle.len() as u64;

    compare(
        "machine dispatch, per event",
        ROUNDS,
        vec![
            Subject::new("bare match on the event", EVENTS, || {
                timed(|| {
                    let mut sum = 0_u64;
                    for _ in 0..EVENTS {
                        sum = sum.wrapping_add(bare(black_box(&stale)));
                    }
                    black_box(sum);
                })
            }),
            Subject::new("stale timer, through all superstates", EVENTS, || handled(&mut running, &stale)),
            Subject::new("request refused, with its reply", EVENTS, || handled(&mut starting, &refused)),
            Subject::new("whole life: configure, refresh, terminate", cycles * cycle.len() as u64, || {
                let mut step = Step::default();
                timed(|| {
                    for _ in 0..cycles {
                        let mut machine = Machine::new(Policy::default());
                        for event in &cycle {
                            machine.handle_into(black_box(event), &mut step);
                            black_box(step.effects());
                        }
                        black_box(machine.status());
                    }
                })
            }),
            Subject::new("fingerprint of a running machine", EVENTS, || {
                let machine = after(&cycle[..RUNNING_AFTER]);
                timed(|| {
                    for _ in 0..EVENTS {
                        black_box(black_box(&machine).fingerprint());
                    }
                })
            }),
        ],
    );
}

fn handled(machine: &mut Machine, event: &Event) -> Duration {
    let mut step = Step::default();
    timed(|| {
        for _ in 0..EVENTS {
            machine.handle_into(black_box(event), &mut step);
            black_box(step.effects());
        }
    })
}

fn timed(run: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    run();
    begun.elapsed()
}

fn after(events: &[Event]) -> Machine {
    let mut machine = Machine::new(Policy::default());
    for event in events {
        machine.handle(event);
    }
    machine
}

/// How many events of [`cycle`] lead to `Running` for the first time.
const RUNNING_AFTER: usize = 6;

/// The life of a compute. The epochs are those which the machine gives out.
fn cycle() -> Vec<Event> {
    let fetched = FetchedSpec::Spec { spec: SPEC, same_pageservers: true };
    vec![
        Event::Booted { spec: None },
        Event::ConfigureRequested { request: RequestId(1), spec: SPEC },
        Event::SpecResolved { epoch: Epoch(2) },
        Event::StoragePrepared { epoch: Epoch(3) },
        Event::PostmasterReady { postmaster: Epoch(4) },
        Event::SpecApplied { epoch: Epoch(6) },
        Event::ActivityObserved { postmaster: Epoch(4), busy: true },
        Event::RefreshRequested { request: RequestId(2) },
        Event::SpecFetched { epoch: Epoch(7), fetched },
        Event::ConfigureRequested { request: RequestId(3), spec: SPEC },
        Event::SpecResolved { epoch: Epoch(8) },
        Event::SpecApplied { epoch: Epoch(9) },
        Event::TerminateRequested { request: RequestId(4), mode: TerminateMode::Immediate },
        Event::PostmasterExited { postmaster: Epoch(4), exit: Exit::Code(0) },
        Event::Swept { epoch: Epoch(11) },
    ]
}

/// The least that any handling of events has to do: look which one it is and read its data.
#[inline(never)]
fn bare(event: &Event) -> u64 {
    match *event {
        Event::Booted { spec } => spec.map_or(0, |spec| spec.revision.0),
        Event::ConfigureRequested { request, spec } => request.0 + spec.revision.0,
        Event::TerminateRequested { request, .. } | Event::RefreshRequested { request } => request.0,
        Event::TerminateIfIdleRequested { request, .. } => request.0 * 2,
        Event::FoundIdle { epoch } => epoch.0 + 15,
        Event::FoundBusy { epoch } => epoch.0 + 16,
        Event::IdleCheckFailed { epoch, class } => epoch.0 * 7 + class as u64,
        Event::PromoteRequested { request, spec, lsn } => request.0 + spec.revision.0 + lsn.0,
        Event::Promoted { epoch } => epoch.0 + 14,
        Event::PromoteFailed { epoch, class } => epoch.0 * 6 + class as u64,
        Event::RefreshHinted => 1,
        Event::StopSignalled => 2,
        Event::ReloadSignalled => 3,
        Event::WarmUpEnded { epoch } => epoch.0 + 4,
        Event::SpecResolved { epoch } => epoch.0 + 5,
        Event::SpecRejected { epoch, class } => epoch.0 + class as u64,
        Event::StoragePrepared { epoch } => epoch.0 + 6,
        Event::StorageFailed { epoch, class } => epoch.0 * 2 + class as u64,
        Event::SpecApplied { epoch } => epoch.0 + 7,
        Event::ApplyFailed { epoch, class } => epoch.0 * 3 + class as u64,
        Event::SpecFetched { epoch, .. } => epoch.0 + 8,
        Event::FetchFailed { epoch, class } => epoch.0 * 4 + class as u64,
        Event::Swept { epoch } => epoch.0 + 9,
        Event::FinalSyncDone { epoch, lsn } => epoch.0 + lsn.0,
        Event::FinalSyncFailed { epoch, class } => epoch.0 * 5 + class as u64,
        Event::SpawnFailed { postmaster, class } => postmaster.0 + class as u64,
        Event::PostmasterProgressed { postmaster } => postmaster.0 + 10,
        Event::PostmasterReady { postmaster } => postmaster.0 + 11,
        Event::PostmasterExited { postmaster, .. } => postmaster.0 + 12,
        Event::ActivityObserved { postmaster, busy } => postmaster.0 + u64::from(busy),
        Event::TimerFired { epoch } => epoch.0 + 13,
    }
}
