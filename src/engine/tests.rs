use compute_states::{Epoch, Exit, StopMode};
use tokio_util::sync::CancellationToken;

use super::*;

/// A world in which nothing ever ends.
struct Idle;

impl World for Idle {
    fn run(
        &self,
        _: Work,
        _: CancellationToken,
    ) -> impl Future<Output = Result<Done, WorkError>> + Send + 'static {
        std::future::pending()
    }

    fn start_postmaster(
        &self,
        _: Epoch,
        _: Revision,
        _: Facts,
    ) -> impl Future<Output = Result<Exit, WorkError>> + Send + 'static {
        std::future::pending()
    }

    fn stop_postmaster(&self, _: Epoch, _: StopMode) {}

    fn reload_postmaster(&self, _: Epoch) {}

    fn random(&self) -> u64 {
        4
    }
}

/// No history of events makes the machine panic, as far as anybody knows. One that has run out of epochs does,
/// where overflows are checked: in test builds.
#[tokio::test(start_paused = true)]
async fn a_machine_that_panics_ends_the_loop_and_leaves_its_journal() {
    let (mut engine, handle) = new(Arc::new(Idle), Policy::default(), Arc::new(Metrics::new()));
    let mut machine = serde_json::to_value(&engine.machine).expect("a machine can be written");
    machine["compute"]["last_epoch"] = u64::MAX.into();
    engine.machine = serde_json::from_value(machine).expect("and read");
    engine.journal = Journal::new(&engine.machine);
    let running = tokio::spawn(engine.run());
    handle.report(Event::RefreshHinted).await;
    handle.report(Event::Booted { spec: None }).await;
    assert_eq!(handle.refresh().await.expect_err("nobody answers"), Rejected::Gone);
    let outcome = running.await.expect("the panic does not get out");
    assert_eq!(outcome.ended, Ended::MachinePanicked);
    assert_eq!(outcome.recording.entries.len(), 1, "what led to it");
    outcome.recording.replay(|_, _| {}).expect("it replays");
}
