//! Names that others parse, pinned: statuses on the wire, events and machines in the journal, verdicts in metrics.

use compute_states::{
    Cause, ComputeStatus, Epoch, Event, EventKind, Exit, FailureClass, FetchedSpec, Lsn, Machine, Policy,
    Refusal, RequestId, Revision, SpecOutline, TerminateMode, Verdict,
};

const SPEC: SpecOutline = SpecOutline { revision: Revision(1), final_sync: true };

/// The original's names: in `/status`, in errors, logs and metrics, and in the refusal of a refresh.
#[test]
fn statuses_have_the_originals_names() {
    let names = [
        (ComputeStatus::Empty, "empty", "empty", "Empty"),
        (
            ComputeStatus::ConfigurationPending,
            "configuration_pending",
            "configuration-pending",
            "ConfigurationPending",
        ),
        (ComputeStatus::Init, "init", "init", "Init"),
        (ComputeStatus::Configuration, "configuration", "configuration", "Configuration"),
        (ComputeStatus::Running, "running", "running", "Running"),
        (
            ComputeStatus::RefreshConfigurationPending,
            "refresh_configuration_pending",
            "refresh-configuration-pending",
            "RefreshConfigurationPending",
        ),
        (
            ComputeStatus::RefreshConfiguration,
            "refresh_configuration",
            "refresh-configuration",
            "RefreshConfiguration",
        ),
        (ComputeStatus::Failed, "failed", "failed", "Failed"),
        (
            ComputeStatus::TerminationPendingFast,
            "termination_pending_fast",
            "termination-pending-fast",
            "TerminationPendingFast",
        ),
        (
            ComputeStatus::TerminationPendingImmediate,
            "termination_pending_immediate",
            "termination-pending-immediate",
            "TerminationPendingImmediate",
        ),
        (ComputeStatus::Terminated, "terminated", "terminated", "Terminated"),
    ];
    assert_eq!(names.map(|name| name.0), ComputeStatus::ALL);
    for (status, wire, display, plain) in names {
        // The status is a plain JSON string: a client once broke on an object in its place.
        let json = serde_json::to_string(&status).expect("a status can be written");
        assert_eq!(json, format!("\"{wire}\""));
        assert_eq!(serde_json::from_str::<ComputeStatus>(&json).expect("and read"), status);
        assert_eq!(status.to_string(), display);
        assert_eq!(status.name(), plain);
        assert_eq!(format!("{status:?}"), plain);
    }
    assert!(
        serde_json::from_str::<ComputeStatus>("\"termination_pending\"").is_err(),
        "the older name is gone"
    );
}

/// One event of each kind, as the journal writes it.
fn events() -> Vec<(Event, &'static str)> {
    let (epoch, postmaster, request) = (Epoch(7), Epoch(8), RequestId(9));
    let class = FailureClass::TimedOut;
    vec![
        (Event::Booted { spec: None }, r#"{"booted":{"spec":null}}"#),
        (
            Event::ConfigureRequested { request, spec: SPEC },
            r#"{"configure_requested":{"request":9,"spec":{"revision":1,"final_sync":true}}}"#,
        ),
        (
            Event::TerminateRequested { request, mode: TerminateMode::Fast },
            r#"{"terminate_requested":{"request":9,"mode":"fast"}}"#,
        ),
        (
            Event::TerminateIfIdleRequested { request, mode: TerminateMode::Immediate },
            r#"{"terminate_if_idle_requested":{"request":9,"mode":"immediate"}}"#,
        ),
        (
            Event::PromoteRequested { request, spec: SPEC, lsn: Lsn(40) },
            r#"{"promote_requested":{"request":9,"spec":{"revision":1,"final_sync":true},"lsn":40}}"#,
        ),
        (Event::RefreshRequested { request }, r#"{"refresh_requested":{"request":9}}"#),
        (Event::RefreshHinted, r#""refresh_hinted""#),
        (Event::StopSignalled, r#""stop_signalled""#),
        (Event::ReloadSignalled, r#""reload_signalled""#),
        (Event::WarmUpEnded { epoch }, r#"{"warm_up_ended":{"epoch":7}}"#),
        (Event::SpecResolved { epoch }, r#"{"spec_resolved":{"epoch":7}}"#),
        (Event::SpecRejected { epoch, class }, r#"{"spec_rejected":{"epoch":7,"class":"timed_out"}}"#),
        (Event::StoragePrepared { epoch }, r#"{"storage_prepared":{"epoch":7}}"#),
        (Event::StorageFailed { epoch, class }, r#"{"storage_failed":{"epoch":7,"class":"timed_out"}}"#),
        (Event::SpecApplied { epoch }, r#"{"spec_applied":{"epoch":7}}"#),
        (Event::ApplyFailed { epoch, class }, r#"{"apply_failed":{"epoch":7,"class":"timed_out"}}"#),
        (Event::Promoted { epoch }, r#"{"promoted":{"epoch":7}}"#),
        (Event::PromoteFailed { epoch, class }, r#"{"promote_failed":{"epoch":7,"class":"timed_out"}}"#),
        (Event::FoundIdle { epoch }, r#"{"found_idle":{"epoch":7}}"#),
        (Event::FoundBusy { epoch }, r#"{"found_busy":{"epoch":7}}"#),
        (Event::IdleCheckFailed { epoch, class }, r#"{"idle_check_failed":{"epoch":7,"class":"timed_out"}}"#),
        (
            Event::SpecFetched { epoch, fetched: FetchedSpec::Spec { spec: SPEC, same_pageservers: false } },
            r#"{"spec_fetched":{"epoch":7,"fetched":{"spec":{"spec":{"revision":1,"final_sync":true},"same_pageservers":false}}}}"#,
        ),
        (Event::FetchFailed { epoch, class }, r#"{"fetch_failed":{"epoch":7,"class":"timed_out"}}"#),
        (Event::Swept { epoch }, r#"{"swept":{"epoch":7}}"#),
        (Event::FinalSyncDone { epoch, lsn: Lsn(40) }, r#"{"final_sync_done":{"epoch":7,"lsn":40}}"#),
        (Event::FinalSyncFailed { epoch, class }, r#"{"final_sync_failed":{"epoch":7,"class":"timed_out"}}"#),
        (
            Event::SpawnFailed { postmaster, class },
            r#"{"spawn_failed":{"postmaster":8,"class":"timed_out"}}"#,
        ),
        (Event::PostmasterProgressed { postmaster }, r#"{"postmaster_progressed":{"postmaster":8}}"#),
        (Event::PostmasterReady { postmaster }, r#"{"postmaster_ready":{"postmaster":8}}"#),
        (
            Event::PostmasterExited { postmaster, exit: Exit::Signal(9) },
            r#"{"postmaster_exited":{"postmaster":8,"exit":{"signal":9}}}"#,
        ),
        (
            Event::ActivityObserved { postmaster, busy: true },
            r#"{"activity_observed":{"postmaster":8,"busy":true}}"#,
        ),
        (Event::TimerFired { epoch }, r#"{"timer_fired":{"epoch":7}}"#),
    ]
}

/// A journal outlives the program that wrote it.
#[test]
fn events_keep_their_form_in_the_journal() {
    let events = events();
    let kinds: Vec<EventKind> = events.iter().map(|(event, _)| event.kind()).collect();
    assert_eq!(kinds, EventKind::ALL, "one of each kind");
    for (event, json) in events {
        assert_eq!(serde_json::to_string(&event).expect("an event can be written"), json);
        assert_eq!(serde_json::from_str::<Event>(json).expect("and read"), event);
    }
}

#[test]
fn verdicts_have_their_names() {
    let cause = Cause::Started;
    let told = Some(Refusal::CannotRefresh);
    let verdicts = [
        (Verdict::Moved(cause), "moved", r#"{"moved":"started"}"#, "started Postgres"),
        (Verdict::Taken(cause), "taken", r#"{"taken":"started"}"#, "started Postgres"),
        (
            Verdict::Latched { cause: Cause::RefreshLatched, told },
            "latched",
            r#"{"latched":{"cause":"refresh_latched","told":"cannot_refresh"}}"#,
            "refresh will follow the present work, though refused: cannot refresh in this state",
        ),
        (
            Verdict::Refused(Refusal::InvalidStatus),
            "refused",
            r#"{"refused":"invalid_status"}"#,
            "invalid compute status",
        ),
        (Verdict::Stale, "stale", r#""stale""#, "nobody waits for it"),
    ];
    for (verdict, name, json, text) in verdicts {
        assert_eq!(verdict.name(), name);
        assert_eq!(serde_json::to_string(&verdict).expect("a verdict can be written"), json);
        assert_eq!(serde_json::from_str::<Verdict>(json).expect("and read"), verdict);
        assert_eq!(verdict.to_string(), text);
    }
}

/// A first configuration, a termination during it, and its end.
const LIFE: [Event; 9] = [
    Event::Booted { spec: None },
    Event::ConfigureRequested { request: RequestId(1), spec: SPEC },
    Event::SpecResolved { epoch: Epoch(2) },
    Event::StoragePrepared { epoch: Epoch(3) },
    Event::PostmasterReady { postmaster: Epoch(4) },
    Event::SpecApplied { epoch: Epoch(6) },
    Event::TerminateRequested { request: RequestId(2), mode: TerminateMode::Fast },
    Event::PostmasterExited { postmaster: Epoch(4), exit: Exit::Code(0) },
    Event::Swept { epoch: Epoch(8) },
];

/// A machine read back from a journal is the same, and goes on the same way, at every point of a life.
#[test]
fn a_machine_survives_its_journal() {
    let mut machine = Machine::new(Policy::default());
    for event in LIFE {
        let json = serde_json::to_string(&machine).expect("a machine can be written");
        let mut replayed: Machine = serde_json::from_str(&json).expect("and read");
        assert_eq!(replayed, machine);
        assert_eq!(replayed.fingerprint(), machine.fingerprint());
        let expected = machine.handle(&event);
        assert_eq!(replayed.handle(&event), expected, "{event:?}");
        assert_eq!(replayed, machine);
        assert_ne!(expected.verdict(), Verdict::Stale, "{event:?} was meant to do something");
    }
}

/// The same numbers in every run and on every machine of 64 bits: a replay compares them with a journal's.
#[test]
#[cfg(target_pointer_width = "64")]
fn fingerprints_are_stable() {
    let mut machine = Machine::new(Policy::default());
    let mut seen = vec![machine.fingerprint()];
    for event in LIFE {
        machine.handle(&event);
        seen.push(machine.fingerprint());
    }
    let mut distinct = seen.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), seen.len(), "each step made a difference");
    assert_eq!(seen, GOLDEN, "a changed fingerprint makes old journals unreplayable: {seen:#x?}");

    // The policy is part of a machine and of its journal, but not of the number.
    let other = Policy { max_waiters: 1, ..Policy::default() };
    assert_ne!(Machine::new(other), Machine::new(Policy::default()));
    assert_eq!(Machine::new(other).fingerprint(), seen[0]);
}

#[cfg(target_pointer_width = "64")]
const GOLDEN: [u64; 10] = [
    0xbfe8_b9a5_cd86_e0ee,
    0x394e_734c_c7a8_d87a,
    0x8943_34b2_907e_3285,
    0xc4c4_bdec_9ce5_2242,
    0x0355_d536_45af_a595,
    0xc32e_0ed6_9f7b_b287,
    0x98fd_ab7a_9ed3_4e24,
    0x3779_b94a_5483_68f5,
    0x0bd4_3d16_a7be_c4fc,
    0xc875_1469_0ae5_e46d,
];
