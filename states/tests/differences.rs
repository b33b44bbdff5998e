//! Histories in which the machine and the reference table once differed and the decisions sided with the table. Each
//! goes through both, and what matters most about its last step is said here once more.

use compute_states::{
    ComputeStatus, Effect, EffectKind, Exit, ExitReason, Machine, Policy, Reply, TerminateMode, Timer,
};

mod harness;
mod reference;

use harness::{Real, Run};
use reference::{Input, News, Outcome, Thing};

const PREPARED: Input = good(Thing::Prepare);
const READY: Input = postmaster(News::Ready);
const APPLIED: Input = good(Thing::Apply);

const fn good(work: Thing) -> Input {
    Input::Ended { work, outcome: Outcome::Good, back: 0 }
}

const fn bad(work: Thing) -> Input {
    Input::Ended { work, outcome: Outcome::Bad, back: 0 }
}

const fn fired(timer: Timer) -> Input {
    Input::Fired { timer, back: 0 }
}

const fn postmaster(news: News) -> Input {
    Input::Postmaster { news, back: 0 }
}

/// Goes through all inputs but the last with both oracles watching, and returns what the last one led to.
fn last_of(history: &[Input]) -> (ComputeStatus, Vec<Effect>) {
    let mut run = Run::new(Real(Machine::new(Policy::default())), false);
    let (last, first) = history.split_last().expect("a history");
    for input in first {
        run.step(input).unwrap_or_else(|complaint| panic!("{input:?}: {}", complaint.text));
    }
    let mut machine = run.subject.0.clone();
    let event = run.clone().event(last);
    let effects = machine.handle(&event).effects().to_vec();
    run.step(last).unwrap_or_else(|complaint| panic!("{last:?}: {}", complaint.text));
    (machine.status(), effects)
}

/// Decisions: a refresh that finds no spec ends with the cause `Detached` and exit code 1, whatever the code of the
/// Postgres that had crashed before.
#[test]
fn a_refresh_after_a_failure_that_finds_no_spec_is_detached() {
    let (status, effects) = last_of(&[
        Input::Booted { spec: Some(false) },
        Input::Ended { work: Thing::Prepare, outcome: Outcome::Worse, back: 0 },
        Input::Refresh,
        Input::Ended { work: Thing::Fetch, outcome: Outcome::NoSpec, back: 0 },
        good(Thing::Sweep),
    ]);
    assert_eq!(status, ComputeStatus::Terminated);
    assert_eq!(effects.last(), Some(&Effect::Exit { reason: ExitReason::Detached }));
}

/// Decisions: a refresh in ConfigurationPending is latched, and done once after the work, also when that failed.
#[test]
fn a_refresh_latched_before_a_rejected_first_spec_is_done() {
    let (status, _) = last_of(&[
        Input::Booted { spec: None },
        Input::Configure { final_sync: false },
        Input::Refresh,
        bad(Thing::Resolve),
    ]);
    assert_eq!(status, ComputeStatus::RefreshConfigurationPending);
}

/// As in Running: the latched refresh waits for the configuration that came in between.
#[test]
fn a_refresh_latched_before_a_failed_configuration_outlives_the_next_one() {
    let (status, effects) = last_of(&[
        Input::Booted { spec: Some(false) },
        PREPARED,
        READY,
        APPLIED,
        Input::Configure { final_sync: false },
        good(Thing::Resolve),
        Input::Refresh,
        bad(Thing::Apply),
        Input::Configure { final_sync: false },
        good(Thing::Resolve),
        APPLIED,
    ]);
    assert_eq!(status, ComputeStatus::Running);
    let latched =
        effects.iter().any(|effect| matches!(effect, Effect::ArmTimer { timer: Timer::LatchedRefresh, .. }));
    assert!(latched, "{effects:?}");
}

/// Architecture: nothing that follows an exit starts before the old postmaster is reaped. A final sync beside a
/// postmaster that may still write would be two writers of one log.
#[test]
fn no_final_sync_beside_a_postmaster_whose_end_is_not_confirmed() {
    let (status, effects) = last_of(&[
        Input::Booted { spec: Some(true) },
        PREPARED,
        READY,
        bad(Thing::Apply),
        fired(Timer::StopDeadline),
        fired(Timer::StopDeadline),
        fired(Timer::StopDeadline),
        good(Thing::Sweep),
    ]);
    assert_eq!(status, ComputeStatus::Failed);
    let sync = effects.iter().any(|effect| matches!(effect, Effect::FinalSync { .. }));
    assert!(!sync, "{effects:?}");
}

/// Reference, defect R8: a terminate just after Postgres ended by itself must not cost the final sync.
#[test]
fn a_terminate_during_the_sync_after_a_crash_syncs_all_the_same() {
    let (_, effects) = last_of(&[
        Input::Booted { spec: Some(true) },
        PREPARED,
        READY,
        APPLIED,
        postmaster(News::Exited(Exit::Signal(9))),
        good(Thing::Sweep),
        Input::Terminate(TerminateMode::Fast),
        bad(Thing::FinalSync),
        good(Thing::Sweep),
    ]);
    let sync = effects.iter().any(|effect| matches!(effect, Effect::FinalSync { .. }));
    assert!(sync, "{effects:?}");
}

const PROMOTE: Input = Input::Promote { final_sync: true };

/// A node that serves, whose storage is suspected to have moved.
const HINTED: [Input; 5] = [Input::Booted { spec: Some(true) }, PREPARED, READY, APPLIED, Input::Hint];

fn hinted(further: &[Input]) -> (ComputeStatus, Vec<Effect>) {
    last_of(&[&HINTED, further].concat())
}

fn kinds(effects: &[Effect]) -> Vec<EffectKind> {
    effects.iter().map(Effect::kind).collect()
}

fn promotions_failed(effects: &[Effect]) -> usize {
    let failed = |effect: &&Effect| matches!(effect, Effect::Reply { reply: Reply::PromoteFailed, .. });
    effects.iter().filter(failed).count()
}

/// In a failover the primary is dead, which is what raised the hint, and the control plane may be away. A promotion
/// behind the refresh would never have begun.
#[test]
fn a_promotion_goes_before_a_refresh_that_reaches_nobody() {
    let (status, effects) = hinted(&[PROMOTE, bad(Thing::Fetch)]);
    assert_eq!((status, kinds(&effects)), (ComputeStatus::Running, vec![EffectKind::Promote]));
}

#[test]
fn a_promotion_ends_the_pause_of_a_refresh() {
    let (status, effects) = hinted(&[bad(Thing::Fetch), PROMOTE]);
    assert_eq!(status, ComputeStatus::Running);
    assert_eq!(kinds(&effects), [EffectKind::Cancel, EffectKind::Promote]);
}

/// The refresh was accepted, and the pageservers may be wrong ones for the primary, too.
#[test]
fn a_refresh_that_a_promotion_went_before_is_done_after_it() {
    let promoted = [good(Thing::Promote), APPLIED, fired(Timer::LatchedRefresh)];
    let failed = [bad(Thing::Promote), fired(Timer::LatchedRefresh)];
    for overtaken in [[PROMOTE, bad(Thing::Fetch)], [bad(Thing::Fetch), PROMOTE]] {
        for after in [&promoted[..], &failed[..]] {
            let (status, effects) = hinted(&[&overtaken[..], after].concat());
            assert_eq!(status, ComputeStatus::RefreshConfigurationPending, "{after:?}");
            assert_eq!(kinds(&effects), [EffectKind::FetchSpec], "{after:?}");
        }
    }
}

/// What serves is not what is wanted, so that there is nothing whole to promote; whoever asks hears it at once.
#[test]
fn a_promotion_does_not_wait_for_a_spec_that_cannot_be_applied() {
    let moved = Outcome::Found { same: false, final_sync: true };
    let found = Input::Ended { work: Thing::Fetch, outcome: moved, back: 0 };
    let (status, effects) = hinted(&[found, PROMOTE, bad(Thing::Apply)]);
    assert_eq!((status, promotions_failed(&effects)), (ComputeStatus::RefreshConfigurationPending, 1));

    let again = [found, bad(Thing::Apply), fired(Timer::RefreshBackoff), PROMOTE, PROMOTE, bad(Thing::Fetch)];
    let (status, effects) = hinted(&again);
    assert_eq!((status, promotions_failed(&effects)), (ComputeStatus::RefreshConfigurationPending, 2));

    let (status, effects) = hinted(&[found, bad(Thing::Apply), PROMOTE]);
    assert_eq!(status, ComputeStatus::RefreshConfigurationPending);
    assert!(matches!(effects[..], [Effect::Reply { reply: Reply::Refused { .. }, .. }]), "{effects:?}");
}
