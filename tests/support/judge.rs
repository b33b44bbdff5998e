//! What must hold of a run that is over: of its end, its answers and its journal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use compute_ctl::engine::queue::Answer;
use compute_ctl::engine::{Ended, Recording, Rejected};
use compute_states::{ComputeStatus, Event, ExitReason, Reply, RequestId};

use super::{Finish, Script, word};

impl Script {
    /// The status that came with an answer shows what the answer says.
    pub(crate) fn judge(&mut self, answer: &Result<Answer, Rejected>) {
        let Answer { reply, snapshot, .. } = match answer {
            Ok(answer) => answer,
            Err(rejected) => return self.seen.note(format!("{rejected:?}")),
        };
        self.seen.note(format!("reply: {}", word(reply)));
        let status = snapshot.status;
        use ComputeStatus::*;
        let shows = match reply {
            Reply::Configured => status == Running && snapshot.error.is_none(),
            // A start that failed goes on to what a refresh finds, if one was asked for meanwhile.
            Reply::ConfigureFailed => {
                matches!(status, Init | Failed | RefreshConfigurationPending) && snapshot.error.is_some()
            }
            Reply::ConfigureSuperseded => {
                matches!(status, TerminationPendingFast | TerminationPendingImmediate)
            }
            // In `Running` it waits for a promotion.
            Reply::RefreshAccepted => matches!(status, RefreshConfigurationPending | Init | Failed | Running),
            Reply::Promoted => snapshot.promotion.is_some(),
            // It does not wait for a refresh that pauses after a spec which could not be applied.
            Reply::PromoteFailed => match status {
                Running | Failed => true,
                RefreshConfigurationPending => snapshot.error.is_some(),
                _ => false,
            },
            Reply::PromoteSuperseded => {
                matches!(status, TerminationPendingFast | TerminationPendingImmediate)
            }
            Reply::NotIdle => status == Running && snapshot.activity.is_some(),
            Reply::IdleUnknown => status == Running,
            Reply::Terminated(_) | Reply::AlreadyTerminated(_) => status == Terminated,
            Reply::Refused { status: said, .. } => status == *said,
        };
        if !shows || snapshot.error.is_some() != snapshot.fault.is_some() {
            self.world.broken(format!("{reply:?} came with {snapshot:?}"));
        }
    }

    pub(crate) fn judge_end(&mut self, ended: Ended, finish: Finish) {
        self.seen.note(match ended {
            Ended::Exit(reason) => format!("ended: {}", word(&reason)),
            other => format!("ended: {}", word(&other)),
        });
        match ended {
            Ended::MachinePanicked => self.world.broken("the machine panicked".to_owned()),
            Ended::Abandoned if finish != Finish::Abandon => {
                self.world.broken("abandoned while there are handles".to_owned());
            }
            Ended::Exit(reason) if reason != ExitReason::StopKilled && self.world.has_unkillable() => {
                // A crash or a failed start is reported as such, whatever could not be ended afterwards.
                let worse = matches!(reason, ExitReason::StartFailed | ExitReason::PostgresExited(_));
                if !worse && reason != ExitReason::Detached {
                    self.world.broken(format!("{reason:?}, though a postmaster could not be ended"));
                }
            }
            _ => {}
        }
    }

    pub(crate) fn judge_recording(
        &mut self,
        recording: &Recording,
        answers: &[Result<Answer, Rejected>],
        statuses: &[ComputeStatus],
        last: ComputeStatus,
    ) -> u64 {
        let mut owed: BTreeMap<RequestId, Vec<Reply>> = BTreeMap::new();
        let (mut results, mut exits) = (BTreeSet::new(), BTreeSet::new());
        let replayed = recording.replay(|entry, step| {
            self.seen.note(entry.event.kind().name());
            results.extend(entry.event.settles());
            exits.extend(entry.event.ends_postmaster());
            match entry.event {
                Event::ConfigureRequested { request, .. }
                | Event::TerminateRequested { request, .. }
                | Event::TerminateIfIdleRequested { request, .. }
                | Event::PromoteRequested { request, .. }
                | Event::RefreshRequested { request } => {
                    owed.entry(request).or_default();
                }
                _ => {}
            }
            for effect in step.effects() {
                self.seen.note(effect.kind().name());
                match *effect {
                    compute_states::Effect::Reply { request, reply } => {
                        owed.entry(request).or_default().push(reply);
                    }
                    compute_states::Effect::PrepareStorage { restart: true, .. } => {
                        self.seen.note("restarted")
                    }
                    _ => {}
                }
            }
        });
        // Observations are all that a journal leaves out, and it numbers them.
        if recording.entries.windows(2).any(|pair| pair[1].seq != pair[0].seq + 1) {
            self.seen.note(compute_states::EventKind::ActivityObserved.name());
        }
        match replayed {
            Ok(machine) if machine.status() != last => {
                self.world.broken(format!("{last} is published at the end, in {}", machine.status()));
            }
            Ok(_) => {}
            Err(error) => self.world.broken(format!("the journal does not replay: {error}")),
        }
        // Changes of the status may come too fast to be seen, but not in another order.
        let mut changes = recording.entries.iter().map(|entry| entry.status);
        let complete = recording.entries.first().is_none_or(|entry| entry.seq == 0);
        if !complete {
            self.seen.note("the ring overflowed");
        } else {
            let seen_in_order =
                statuses.iter().skip_while(|s| **s == ComputeStatus::Empty).all(|s| changes.any(|c| c == *s));
            if !seen_in_order {
                self.world.broken(format!("published {statuses:?}, which the journal does not say"));
            }
            self.judge_answers(&owed, answers);
            // Virtual time stands still until everything is handled, so nothing may be under way from before.
            let last = recording.entries.last().map_or(0, |entry| entry.at_us);
            let (work, postmasters) = self.world.ended_before(self.begun + Duration::from_micros(last));
            if results.len() < work || exits.len() < postmasters {
                self.world.broken(format!(
                    "{work} pieces of work and {postmasters} postmasters ended; {} and {} results came",
                    results.len(),
                    exits.len()
                ));
            }
        }
        recording.entries.last().map_or(0, |entry| entry.seq + 1)
    }

    /// Each request that the machine has seen was answered once, and exactly these answers arrived.
    fn judge_answers(&self, owed: &BTreeMap<RequestId, Vec<Reply>>, answers: &[Result<Answer, Rejected>]) {
        let mut given: Vec<Reply> = Vec::new();
        for (request, replies) in owed {
            if replies.len() != 1 {
                self.world.broken(format!("{request:?} was answered {} times: {replies:?}", replies.len()));
            }
            given.extend(replies);
        }
        let mut arrived: Vec<Reply> = answers.iter().flatten().map(|answer| answer.reply).collect();
        given.sort_unstable();
        arrived.sort_unstable();
        if given != arrived {
            let (given, arrived) = (given.len(), arrived.len());
            self.world.broken(format!("{given} answers were given, others arrived ({arrived})"));
        }
    }
}
