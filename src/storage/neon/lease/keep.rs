//! When to ask for a lease, and when again.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::{Answer, Pin};
use crate::limits;
use crate::storage::neon::PageserverError;
use crate::telemetry::chain;

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is granted until then, since the Unix epoch.
    Granted(Duration),
    /// It is refused for good, by this pageserver; nobody is asked any more.
    Refused(String),
    /// It is not known, for this reason, and asked for again.
    Failed(String),
}

/// Keeps a lease: asks at once, again before it ends, again after a failure, and at once when there are others to ask.
/// Each time the newest pin is asked for. Ends when the lease is refused for good, and when nobody is left to change
/// the pin; dropping it ends it at once.
///
/// `clock` tells the time since the Unix epoch, by which servers say when a lease ends.
pub async fn keep<F>(
    mut pins: watch::Receiver<Pin>,
    ask: impl Fn(Pin) -> F,
    clock: impl Fn() -> Duration,
    mut report: impl FnMut(Outcome),
) where
    F: Future<Output = Result<Answer, PageserverError>>,
{
    let mut failures = 0;
    loop {
        let pin = pins.borrow_and_update().clone();
        let answer = tokio::select! {
            biased;
            // Whom it asks may not answer, and that may be why there are others.
            changed = pins.changed() => match changed {
                Ok(()) => {
                    failures = 0;
                    continue;
                }
                Err(_) => return,
            },
            answer = ask(pin) => answer,
        };
        let mut failed = |reason: &dyn Display| {
            report(Outcome::Failed(reason.to_string()));
            failures += 1;
            retry_after(failures - 1)
        };
        let pause = match answer {
            Ok(Answer::Refused { server }) => return report(Outcome::Refused(server)),
            Ok(Answer::Until(end)) => match end.checked_sub(clock()) {
                Some(valid) if !valid.is_zero() => {
                    failures = 0;
                    report(Outcome::Granted(end));
                    renew_after(valid)
                }
                _ => failed(&"the lease ends before it begins: is a clock wrong?"),
            },
            Err(error) => failed(&chain(&error)),
        };
        tokio::select! {
            () = sleep(pause) => {}
            changed = pins.changed() => match changed {
                Ok(()) => failures = 0,
                Err(_) => return,
            },
        }
    }
}

/// How long after it was granted a lease is renewed: so that there is time for another try or two.
fn renew_after(valid: Duration) -> Duration {
    valid.saturating_sub(limits::LEASE_MARGIN).max(valid / 2).max(limits::LEASE_PAUSE)
}

/// The pause after a failure, counted from 0: each is half as long again as the one before.
fn retry_after(failure: i32) -> Duration {
    let factor = 1.5_f64.powi(failure.min(64));
    limits::LEASE_PAUSE.mul_f64(factor).min(limits::LEASE_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;
    use crate::spec::store::StoredSpec;
    use crate::storage::neon::Fault;

    /// When the tests begin, by the servers' clock.
    const EPOCH: Duration = Duration::from_secs(1_700_000_000);

    fn spec(pageserver: &str, token: &str) -> StoredSpec {
        let document = json!({
            "format_version": 1.0, "suspend_timeout_seconds": -1,
            "tenant_id": "0".repeat(32), "timeline_id": "1".repeat(32), "mode": {"Static": "0/16B9188"},
            "pageserver_connstring": format!("host={pageserver}"), "storage_auth_token": token,
            "cluster": {"roles": [], "databases": []},
        });
        StoredSpec::new(serde_json::from_value(document).unwrap()).unwrap()
    }

    /// Answers of a server: how long a lease is valid that is granted now, or what else.
    #[derive(Clone, Copy, Debug)]
    enum Says {
        Valid(u64),
        Over,
        Refused,
        Failed,
        Nothing,
    }

    /// A keeper under a clock that moves by itself whenever nothing else does.
    struct Lab {
        pin: watch::Sender<Pin>,
        says: Arc<Mutex<Says>>,
        /// Second, pageserver and token of each question.
        asked: mpsc::UnboundedReceiver<(f64, String)>,
        outcomes: Arc<Mutex<Vec<Outcome>>>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Lab {
        fn new(says: Says) -> Self {
            let (pin, pins) = watch::channel(Pin::of(&spec("a", "t1")).unwrap());
            let (sender, asked) = mpsc::unbounded_channel();
            let (says, outcomes) = (Arc::new(Mutex::new(says)), Arc::<Mutex<Vec<Outcome>>>::default());
            let begun = Instant::now();
            let (answers, told) = (says.clone(), outcomes.clone());
            let task = tokio::spawn(keep(
                pins,
                move |pin| {
                    let servers =
                        pin.pageservers.shards[0][0].libpq_url.as_ref().unwrap().reveal().to_owned();
                    let token = pin.token.unwrap().reveal().to_owned();
                    let second = begun.elapsed().as_secs_f64();
                    sender.send((second, format!("{servers} {token}"))).unwrap();
                    let (answers, now) = (answers.clone(), EPOCH + begun.elapsed());
                    async move {
                        let says = *answers.lock().unwrap();
                        match says {
                            Says::Valid(seconds) => Ok(Answer::Until(now + Duration::from_secs(seconds))),
                            Says::Over => Ok(Answer::Until(now)),
                            Says::Refused => Ok(Answer::Refused { server: "a".to_owned() }),
                            Says::Failed => {
                                Err(PageserverError { server: "a".to_owned(), fault: Fault::Ended("early") })
                            }
                            Says::Nothing => std::future::pending().await,
                        }
                    }
                },
                move || EPOCH + begun.elapsed(),
                move |outcome| told.lock().unwrap().push(outcome),
            ));
            Self { pin, says, asked, outcomes, task }
        }

        fn now_says(&self, says: Says) {
            *self.says.lock().unwrap() = says;
        }

        async fn asked(&mut self) -> (f64, String) {
            // By its own clock, which costs no time.
            let asked = tokio::time::timeout(Duration::from_secs(1_000_000), self.asked.recv()).await;
            asked.expect("it asks some day").expect("the keeper lives")
        }

        /// Seconds between this many questions and the one before each.
        async fn pauses(&mut self, questions: usize) -> Vec<f64> {
            let mut before = self.asked().await.0;
            let mut pauses = Vec::new();
            for _ in 0..questions {
                let second = self.asked().await.0;
                pauses.push(((second - before) * 100.0).round() / 100.0);
                before = second;
            }
            pauses
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_renewed_a_minute_before_it_ends_or_at_half_of_its_time() {
        for (valid, pause) in [(600, 540.0), (120, 60.0), (60, 30.0), (2, 1.0), (86400, 86340.0)] {
            let pauses = Lab::new(Says::Valid(valid)).pauses(2).await;
            assert_eq!(pauses, [pause, pause], "{valid}");
        }
        assert_eq!(renew_after(Duration::from_millis(1)), limits::LEASE_PAUSE, "never at once");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_retried_ever_more_slowly_until_one_is_granted() {
        let mut lab = Lab::new(Says::Failed);
        let pauses = lab.pauses(14).await;
        assert_eq!(pauses[..4], [0.5, 0.75, 1.13, 1.69]);
        assert_eq!(pauses[12..], [60.0, 60.0]);
        lab.now_says(Says::Valid(600));
        lab.asked().await;
        lab.now_says(Says::Failed);
        // After the renewal it begins anew.
        assert_eq!(lab.pauses(2).await, [0.5, 0.75]);
        let outcomes = lab.outcomes.lock().unwrap();
        assert!(matches!(&outcomes[0], Outcome::Failed(reason) if reason.contains("early")), "{outcomes:?}");
        assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Granted(_))).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_over_already_is_a_failure() {
        assert_eq!(Lab::new(Says::Over).pauses(2).await, [0.5, 0.75]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_told_once_and_ends_it() {
        let mut lab = Lab::new(Says::Refused);
        lab.asked().await;
        lab.task.await.unwrap();
        assert_eq!(*lab.outcomes.lock().unwrap(), [Outcome::Refused("a".to_owned())]);
    }

    #[tokio::test(start_paused = true)]
    async fn other_pageservers_are_asked_at_once() {
        for says in [Says::Valid(600), Says::Failed, Says::Nothing] {
            let mut lab = Lab::new(says);
            assert_eq!(lab.asked().await, (0.0, "host=a t1".to_owned()));
            // Into its pause, or its wait.
            sleep(Duration::from_millis(200)).await;
            let turned = |server, token| lab.pin.send_if_modified(|pin| pin.turn(&spec(server, token)));
            assert!(!turned("a", "t2"), "a token is no reason to ask");
            assert!(turned("b", "t3"));
            let (second, whom) = lab.asked().await;
            assert_eq!((whom.as_str(), (second * 10.0).round()), ("host=b t3", 2.0), "{says:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_token_is_shown_the_next_time() {
        let mut lab = Lab::new(Says::Valid(600));
        lab.asked().await;
        lab.pin.send_if_modified(|pin| pin.turn(&spec("a", "t2")));
        assert_eq!(lab.asked().await, (540.0, "host=a t2".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_whoever_holds_the_pin() {
        for says in [Says::Valid(600), Says::Nothing] {
            let mut lab = Lab::new(says);
            lab.asked().await;
            drop(lab.pin);
            tokio::time::timeout(Duration::from_secs(1), lab.task).await.expect("it ends").unwrap();
        }
    }
}
