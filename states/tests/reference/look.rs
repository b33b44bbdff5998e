//! A termination that spares what is at work: decided by a look, which nothing else may happen beside.

use super::*;

impl Node {
    /// Only a Postgres that serves, in a compute that does nothing else, can be said to be idle. What goes down
    /// already spares nobody.
    pub(super) fn terminate_if_idle(&mut self, mode: TerminateMode) -> Say {
        match self.status {
            S::TerminationPendingFast | S::TerminationPendingImmediate | S::Terminated => {
                return self.terminate(mode);
            }
            _ => {}
        }
        let request = self.new_request();
        if self.status != S::Running {
            return self.refuse(request, Refusal::InvalidStatus);
        }
        if self.promoting() {
            return self.refuse(request, Refusal::Promoting);
        }
        if self.lookers.is_empty() {
            self.look_mode = mode;
            self.lookers.push(request);
            self.ask(Ask::CheckIdle);
            return Say::Taken;
        }
        if self.lookers.len() >= self.policy.max_waiters {
            return self.refuse(request, Refusal::TooManyWaiters);
        }
        self.lookers.push(request);
        if mode == TerminateMode::Immediate {
            self.look_mode = mode;
        }
        Say::Latched(None)
    }

    /// Nothing is at work, something is, or nobody can tell; on doubt nothing is stopped.
    pub(super) fn looked(&mut self, outcome: Outcome) {
        let lookers = std::mem::take(&mut self.lookers);
        if outcome == Outcome::Good {
            self.waiters.extend(lookers);
            return self.go_down(Ending::Requested(self.look_mode));
        }
        let reply = if outcome == Outcome::Worse { Reply::NotIdle } else { Reply::IdleUnknown };
        for request in lookers {
            self.reply(request, reply);
        }
    }

    /// Something else has begun.
    pub(super) fn look_is_over(&mut self) {
        self.cancel(&[Thing::CheckIdle]);
        let status = self.status;
        for request in std::mem::take(&mut self.lookers) {
            self.reply(request, Reply::Refused { refusal: Refusal::WorkBegun, status });
        }
    }

    /// What becomes of it where the event has led: a termination is what they wanted.
    pub(super) fn look_follows(&mut self) {
        match self.status {
            S::Running => {}
            S::TerminationPendingFast | S::TerminationPendingImmediate => {
                self.cancel(&[Thing::CheckIdle]);
                let lookers = std::mem::take(&mut self.lookers);
                self.waiters.extend(lookers);
            }
            _ => self.look_is_over(),
        }
    }
}
