//! The candidate: it stands in a round, and asks for the lead once it has won.

use trireme_types::Epoch;

use super::election::RETRY;
use super::{ElectionRequest, Shared};
use crate::core::{Effect, Moment, When};

/// A replica's standing in an election.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidacy {
    /// The epoch that a leader is sought for.
    pub(super) round: Epoch,
    /// When it asks again for what the coordinator does not show.
    retry_at: Moment,
}

impl Candidacy {
    /// Stands in `round`: publishes where the log ends, which the replica has fenced before.
    pub(super) fn begin(cx: &mut Shared, round: Epoch) -> Self {
        let candidacy = Self { round, retry_at: cx.now + RETRY };
        candidacy.publish(cx);
        candidacy.pursue(cx, false);
        candidacy
    }

    /// Publishes where the log ends, once that and the promise are on disk.
    fn publish(self, cx: &mut Shared) {
        let fenced = cx.journal.when_durable();
        let is_faulty = cx.own.options.faults.publishes_without_fence();
        //= SPIN-21
        let when = if is_faulty { When::Now } else { fenced };
        let request = ElectionRequest::Stand { round: self.round, last: cx.journal.last() };
        cx.journal.push(Effect::Coordinate { request, when });
    }

    /// Asks for the lead once the replica has won the round; publishes `again` what the coordinator
    /// does not show.
    pub(super) fn pursue(self, cx: &mut Shared, again: bool) {
        let round = self.round;
        if cx.own.view.as_ref().is_none_or(|view| view.round() != round) {
            return;
        }
        let node = cx.node;
        let stands = cx.own.standing().any(|candidate| candidate.node == node);
        let wins = cx.own.winner().is_some_and(|winner| winner.node == node);
        if stands && wins {
            let request = ElectionRequest::Lead { round };
            cx.journal.push(Effect::Coordinate { request, when: When::Now });
        } else if again && !stands {
            self.publish(cx);
        }
    }

    pub(super) fn on_timeout(&mut self, cx: &mut Shared) {
        self.retry_at = cx.now + RETRY;
        self.pursue(cx, true);
    }

    pub(super) const fn next_timeout(&self) -> Moment {
        self.retry_at
    }

    /// Checks what must hold of a candidate that knows of a leader of `epoch`.
    pub(super) fn validate(&self, epoch: Epoch) -> Result<(), String> {
        if self.round <= epoch {
            return Err(format!("it stands in round {} and knows epoch {epoch}", self.round));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_an_invariant_is_named() {
        let candidacy = Candidacy { round: 3, retry_at: Moment::START };
        assert_eq!(candidacy.validate(2), Ok(()));
        for epoch in [3, 4] {
            let over = candidacy.validate(epoch).expect_err("the round is over");
            assert!(over.contains("stands in round 3"), "{over}");
        }
    }
}
