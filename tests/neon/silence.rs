//! Servers that fall silent, and tries that nobody waits for any more.

use std::sync::Arc;

use compute_ctl::postgres::{Contents, DataDir};
use compute_ctl::storage::{Context, Phase, Storage};

use crate::support::lab::{Lab, patiently, until};
use crate::support::pageserver::{Answer, Door, Pageserver, Sending, Then};
use crate::{BOTH, HASTY, PATIENT, chain, fails, fresh, replica, sends, whole};

/// All that keeps a try waiting.
fn silences(bytes: &[u8]) -> Vec<(Door, Answer)> {
    let upto = |upto| Answer::Archive(Sending { upto: Some(upto), then: Then::Hang, ..Sending::new(bytes) });
    vec![
        (Door::Silent, Answer::Silence),
        (Door::Open, Answer::Silence),
        (Door::Open, upto(0)),
        (Door::Open, upto(bytes.len() / 2)),
        (Door::Open, upto(bytes.len())),
    ]
}

#[tokio::test]
async fn silence_is_not_waited_out() {
    let lab = Lab::new().await;
    for transport in BOTH {
        for (door, answer) in silences(&whole(&lab)) {
            let server = Pageserver::start([answer.clone()]).behind(door.clone());
            let error = fails(&lab, &replica(&server, transport, HASTY)).await;
            let text = chain(&error);
            assert!(
                text.contains("silent for 0.3 s") && error.is_unreachable(),
                "{door:?} {answer:?}: {text}"
            );
        }
        // Nobody listens there any more.
        let server = Pageserver::start([]);
        let neon = replica(&server, transport, PATIENT);
        drop(server);
        let error = fails(&lab, &neon).await;
        let text = chain(&error);
        assert!(text.contains("refused") && error.is_unreachable(), "{text}");
    }
}

/// A directory in which something waits, and the state it must be in when the wait is cancelled.
async fn waits(server: &Pageserver, pgdata: &Arc<DataDir>, context: &Context, answer: &Answer) {
    let sent = match answer {
        Answer::Archive(Sending { upto: Some(upto), .. }) => *upto as u64,
        _ => 0,
    };
    until(|| !server.requests().is_empty() && context.progress.received() == sent).await;
    if sent > 0 {
        until(|| pgdata.path().join("base/1/ballast").exists()).await;
    }
}

#[test]
fn a_cancelled_or_forgotten_try_leaves_no_task() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let lab = runtime.block_on(Lab::new());
    let alive = runtime.metrics();
    let bytes = whole(&lab);
    for transport in BOTH {
        for (door, answer) in silences(&bytes) {
            let silent = matches!(door, Door::Silent);
            for forgotten in [false, true] {
                let server = Pageserver::start([answer.clone()]).behind(door.clone());
                let pgdata = fresh(&lab);
                let context = lab.context(&pgdata);
                let neon = replica(&server, transport, PATIENT);
                runtime.block_on(async {
                    let reached = async {
                        if silent {
                            // Nothing of the request is seen: it is enough that it has begun.
                            until(|| context.progress.phase() == Phase::Connecting).await;
                        } else {
                            waits(&server, &pgdata, &context, &answer).await;
                        }
                        if !forgotten {
                            context.cancel.cancel();
                        }
                    };
                    let mut preparing = neon.prepare(&context);
                    let outcome = tokio::select! {
                        outcome = &mut preparing => Some(outcome),
                        () = reached => None,
                    };
                    if forgotten {
                        assert!(outcome.is_none());
                        drop(preparing);
                    } else {
                        let outcome = match outcome {
                            Some(outcome) => outcome,
                            None => patiently(preparing).await,
                        };
                        let error = outcome.unwrap_err();
                        assert!(error.is_cancelled(), "{transport:?} {door:?} {answer:?}: {}", chain(&error));
                    }
                    until(|| alive.num_alive_tasks() == 0).await;
                    // The unpacker's thread gives the directory back as its last act.
                    until(|| Arc::strong_count(&pgdata) == 2).await;
                    // And another try finds everything as it needs it.
                    server.answer([sends(&bytes)]);
                    let server = Pageserver::start([sends(&bytes)]);
                    let neon = replica(&server, transport, PATIENT);
                    patiently(neon.prepare(&lab.context(&pgdata))).await.unwrap();
                    assert_eq!(pgdata.contents().unwrap(), Contents::Ours);
                });
            }
        }
    }
}
