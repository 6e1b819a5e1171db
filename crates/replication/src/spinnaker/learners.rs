//! A leader's learners: replicas that are no members of the cohort, and are brought up to date to become
//! members of one that goes on from it (SPIN-48).

use trireme_types::NodeId;

use super::Shared;
use super::leader::Leader;
use crate::core::Moment;
use crate::streaming::{Position, Progress};

/// How many replicas that are no members are brought up to date at a time.
const LEARNERS_MAX: usize = 1;

impl Leader {
    /// Returns true if a replica may be brought up to date: a member, or an invited one that finds room.
    pub(super) fn admits(&mut self, cx: &Shared, node: NodeId, position: Position) -> bool {
        if self.leading.followers.contains_key(&node) {
            return true;
        }
        //= SPIN-48
        if !position.is_learner || self.learners(cx).count() >= LEARNERS_MAX {
            return false;
        }
        tracing::info!(%node, "a replica that is no member is brought up to date");
        self.leading.followers.insert(node, Progress::learning(cx.now));
        true
    }

    /// Forgets learners that do not answer, or acknowledge nothing of what they are sent: others may have
    /// their turn.
    pub(super) fn forget_silent_learners(&mut self, cx: &mut Shared) {
        let is_silent = |follower: &Progress| follower.given_up_at(cx.timing) <= cx.now;
        let silent = self.learners(cx).filter(|(_, follower)| is_silent(follower));
        let silent: Vec<_> = silent.map(|(node, _)| node).collect();
        for node in silent {
            tracing::info!(%node, "the learner does not answer, or makes no progress");
            self.leading.forget(cx, node);
        }
    }

    pub(super) fn next_silent_learner(&self, cx: &Shared) -> Option<Moment> {
        self.learners(cx).map(|(_, follower)| follower.given_up_at(cx.timing)).min()
    }

    /// Returns those who are sent the log and are no members.
    fn learners(&self, cx: &Shared) -> impl Iterator<Item = (NodeId, &Progress)> {
        let followers = self.leading.followers.iter().map(|(node, follower)| (*node, follower));
        followers.filter(|(node, _)| !cx.is_member(*node))
    }

    /// Checks that no learner counts, and that there are no more than there may be.
    pub(super) fn validate_learners(&self, cx: &Shared) -> Result<(), String> {
        let is_careless = cx.own.options.faults.counts_the_invited();
        let mut voters = self.learners(cx).filter(|(_, follower)| follower.is_voter());
        if let Some((node, _)) = voters.next().filter(|_| !is_careless) {
            return Err(format!("{node} counts, and is no member"));
        }
        match self.learners(cx).count() {
            count if count > LEARNERS_MAX => Err(format!("{count} learners at once")),
            _ => Ok(()),
        }
    }
}
