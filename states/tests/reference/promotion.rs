//! A standby becomes a primary: nothing that a status shows, and nothing that may happen beside other work.

use super::*;
use compute_states::Lsn;

impl Node {
    /// Accepted where a Postgres serves and nothing has failed, or is being asked for once more. One at a time, and once for all.
    pub(super) fn promote(&mut self, final_sync: bool) -> Say {
        let request = self.new_request();
        let spec = self.new_spec(final_sync);
        if self.promotion == Promotion::Done {
            self.reply(request, Reply::Promoted);
            return Say::Taken;
        }
        if !self.promotable() {
            return self.refuse(request, Refusal::CannotPromote);
        }
        if self.promotion != Promotion::No {
            if self.promoters.len() >= self.policy.max_waiters {
                return self.refuse(request, Refusal::TooManyWaiters);
            }
            self.promoters.push(request);
            return Say::Latched(None);
        }
        self.promoters.push(request);
        let lsn = log_of(spec);
        if self.status == S::RefreshConfigurationPending && self.pausing() {
            self.cancel(&[Thing::Timer(Timer::RefreshBackoff)]);
            self.go_before_refresh();
            self.begin_promotion(spec, lsn);
            Say::Taken
        } else if self.status == S::Running {
            self.begin_promotion(spec, lsn);
            Say::Taken
        } else {
            self.promotion = Promotion::Wanted(spec, lsn);
            Say::Latched(None)
        }
    }

    fn promotable(&self) -> bool {
        let stuck = self.pausing() && self.unapplied.is_some();
        self.serves && self.status != S::Failed && !stuck
    }

    fn pausing(&self) -> bool {
        self.waits_for(Thing::Timer(Timer::RefreshBackoff))
    }

    /// Decisions: a promotion does not wait for a control plane that is away, but for a spec that is wanted.
    pub(super) fn goes_before_refresh(&self) -> bool {
        matches!(self.promotion, Promotion::Wanted(..)) && self.serves && self.unapplied.is_none()
    }

    /// The refresh is not forgotten.
    pub(super) fn go_before_refresh(&mut self) {
        self.status = S::Running;
        self.fault = None;
        self.latched = true;
    }

    /// While it is, nothing else begins.
    pub(super) fn promoting(&self) -> bool {
        matches!(self.promotion, Promotion::UnderWay(_) | Promotion::Applying)
    }

    fn begin_promotion(&mut self, spec: Spec, lsn: Lsn) {
        self.promotion = Promotion::UnderWay(spec);
        self.look_is_over();
        self.ask(Ask::Promote { spec: spec.revision, lsn });
    }

    /// The server is a primary, or was left as it was.
    pub(super) fn promoted(&mut self, well: bool) {
        let Promotion::UnderWay(spec) = self.promotion else { unreachable!("it was under way") };
        if well {
            self.promotion = Promotion::Applying;
            self.wanted = Some(spec);
            self.applied = Some(spec);
            self.apply(false);
        } else {
            self.promotion = Promotion::No;
            self.answer_promoters(Reply::PromoteFailed);
            self.latch_again();
        }
    }

    /// Its settings and catalog are what they should be, or not.
    pub(super) fn promoted_applied(&mut self, well: bool) {
        if well {
            self.promotion = Promotion::Done;
            self.answer_promoters(Reply::Promoted);
            self.latch_again();
        } else {
            self.promotion = Promotion::Half;
            self.answer_promoters(Reply::PromoteFailed);
            self.latched |= self.waits_for(Thing::Timer(Timer::LatchedRefresh));
            self.cancel(&[Thing::Timer(Timer::LatchedRefresh)]);
            self.fail_alive(FaultKind::ApplyFailed(WORK_FAILS), Thing::Apply);
        }
    }

    /// One refresh is enough.
    fn latch_again(&mut self) {
        self.latched &= !self.waits_for(Thing::Timer(Timer::LatchedRefresh));
        self.arm_latched();
    }

    fn answer_promoters(&mut self, reply: Reply) {
        for request in std::mem::take(&mut self.promoters) {
            self.reply(request, reply);
        }
    }

    /// What becomes of it where the event has led.
    pub(super) fn promotion_follows(&mut self) {
        match (self.promotion, self.status) {
            (Promotion::Wanted(spec, lsn), S::Running) => self.begin_promotion(spec, lsn),
            (Promotion::Half, S::Running) => {
                self.promotion = Promotion::Done;
                self.answer_promoters(Reply::Promoted);
            }
            _ if self.promotable() => {}
            (promotion, status) => {
                self.promotion = match promotion {
                    Promotion::Wanted(..) | Promotion::UnderWay(_) => Promotion::No,
                    Promotion::Applying => Promotion::Half,
                    other => other,
                };
                self.answer_promoters(match status {
                    S::Failed | S::RefreshConfigurationPending => Reply::PromoteFailed,
                    _ => Reply::PromoteSuperseded,
                });
            }
        }
    }
}

/// How much of the log is asked for with a spec: another for each.
pub fn log_of(spec: Spec) -> Lsn {
    Lsn(spec.revision << 24)
}
