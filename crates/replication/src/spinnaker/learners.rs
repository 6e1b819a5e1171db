//! A leader's learners: replicas that are no members of the cohort, and are brought up to date to become
//! members of one that goes on from it (SPIN-48).

use std::collections::BTreeMap;

use trireme_types::{NodeId, Timing};

use super::Shared;
use super::leader::Leader;
use crate::core::Moment;
use crate::streaming::{Position, Progress};

/// How many replicas that are no members are brought up to date at a time.
const LEARNERS_MAX: usize = 1;

/// The learners, and when each was taken in.
#[derive(Debug, Default)]
pub(super) struct Learners(BTreeMap<NodeId, Moment>);

impl Leader {
    /// Returns true if a replica may be brought up to date: a member, or an invited one that finds room.
    pub(super) fn admits(&mut self, cx: &Shared, node: NodeId, position: Position) -> bool {
        if cx.is_member(node) || self.learners.0.contains_key(&node) {
            return true;
        }
        //= SPIN-48
        if !position.is_learner || self.learners.0.len() >= LEARNERS_MAX {
            return false;
        }
        tracing::info!(%node, "a replica that is no member is brought up to date");
        let mut follower = Progress::probing(false);
        follower.send_empty(cx.now);
        self.leading.followers.insert(node, follower);
        self.learners.0.insert(node, cx.now);
        true
    }

    /// Forgets learners that do not answer, or acknowledge nothing of what they are sent: others may have
    /// their turn.
    pub(super) fn forget_silent_learners(&mut self, cx: &mut Shared) {
        let ends = self.ends_of_learners(cx.timing);
        let silent: Vec<_> = ends.filter(|(_, end)| *end <= cx.now).map(|(node, _)| node).collect();
        for node in silent {
            tracing::info!(%node, "the learner does not answer, or makes no progress");
            self.learners.0.remove(&node);
            self.leading.forget(cx, node);
        }
    }

    pub(super) fn next_silent_learner(&self, timing: Timing) -> Option<Moment> {
        self.ends_of_learners(timing).map(|(_, end)| end).min()
    }

    /// Returns when each learner is taken for one that does not answer, or makes no progress.
    fn ends_of_learners(&self, timing: Timing) -> impl Iterator<Item = (NodeId, Moment)> {
        self.learners.0.iter().filter_map(move |(node, begun)| {
            let follower = self.leading.followers.get(node)?;
            Some((*node, follower.is_given_up_at(*begun, timing)))
        })
    }

    /// Checks that no learner counts, and that everyone else who is sent the log is a member.
    pub(super) fn validate_learners(&self, cx: &Shared) -> Result<(), String> {
        for (node, follower) in &self.leading.followers {
            let (is_member, learns) = (cx.is_member(*node), self.learners.0.contains_key(node));
            let counts = follower.is_voter() && !cx.own.options.faults.counts_the_invited();
            if is_member == learns || (learns && counts) {
                return Err(format!("{node} is a member: {is_member}, a learner: {learns}"));
            }
        }
        if self.learners.0.len() > LEARNERS_MAX {
            return Err(format!("{} learners at once", self.learners.0.len()));
        }
        Ok(())
    }
}
