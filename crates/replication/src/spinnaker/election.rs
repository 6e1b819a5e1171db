//! Who leads next (§7): what the coordinator shows of it, and which replicas suspect the leader.

use std::collections::BTreeMap;
use std::time::Duration;

use trireme_types::{Epoch, NodeId};

use super::stall::StepBack;
use super::{Candidate, ElectionView, RoleState, Shared, Spinnaker, SpinnakerOptions};
use crate::core::Moment;
use crate::streaming::wire::HardState;

/// After how long a replica asks the coordinator again for what it does not see yet.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// For how much longer than it needs to a replica waits for another that is silent, as a part of
/// the grace: a follower for its leader, to which it owes nothing any more after a grace; a leader for
/// its followers, without which it reads nothing any more after a lease. Smaller replaces a leader
/// sooner whose link is dead one way; larger bears longer pauses of a busy machine. With the default
/// periods a follower bears 1.5 s of silence, fifteen beacons, and a leader 1.3 s.
pub(super) const SLACK_DIVISOR: u32 = 2;

/// How long others let a successor stand first that their leader has named.
pub(super) const HEAD_START: Duration = Duration::from_millis(200);

/// What a replica knows of its cohort's elections, in every role.
#[derive(Debug)]
pub(crate) struct Election {
    pub(super) options: SpinnakerOptions,
    /// The newest epoch of which it knows a leader.
    pub(super) epoch: Epoch,
    /// The election, as the coordinator last showed it.
    pub(super) view: Option<ElectionView>,
    /// The newest epoch whose leader has resigned.
    pub(super) resigned: Epoch,
    pub(super) step_back: StepBack,
    /// When the coordinator was first seen to know no leader of the newest epoch.
    pub(super) leaderless_since: Option<Moment>,
    /// The replicas that have no leader which they support, and as of when.
    pub(super) suspicions: BTreeMap<NodeId, Moment>,
}

impl Election {
    /// Returns what a replica knows whose log ends in `epoch`.
    pub(super) fn new(options: SpinnakerOptions, epoch: Epoch) -> Self {
        Self {
            options,
            epoch,
            view: None,
            resigned: 0,
            step_back: StepBack::default(),
            leaderless_since: None,
            suspicions: BTreeMap::new(),
        }
    }

    /// Returns the replicas that stand in the next round.
    pub(super) fn standing(&self) -> impl Iterator<Item = &Candidate> {
        let counts_all = self.options.faults.counts_old_candidates();
        self.view.iter().flat_map(move |view| {
            //= SPIN-23
            view.candidates.iter().filter(move |c| c.round == view.round() || counts_all)
        })
    }

    /// Returns the replica that wins the round, once a majority stands: the one with the longest log,
    /// of equals the one that stood first (SPIN-24).
    pub(super) fn winner(&self) -> Option<&Candidate> {
        let replicas = &self.options.replicas;
        let standing: Vec<_> =
            self.standing().filter(|candidate| replicas.contains(&candidate.node)).collect();
        //= SPIN-24
        if standing.len() <= replicas.len() / 2 {
            return None;
        }
        standing.into_iter().max_by_key(|c| (c.last, std::cmp::Reverse(c.sequence)))
    }

    /// Knows of a leader of `epoch`, or that there was one.
    pub(super) fn adopt(&mut self, epoch: Epoch) {
        self.epoch = self.epoch.max(epoch);
        self.leaderless_since = None;
        self.suspicions.clear();
    }
}

impl Shared {
    /// Promises to accept nothing from a leader of an epoch below `epoch` (SPIN-21).
    pub(super) fn promise(&mut self, epoch: Epoch) {
        if epoch > self.state.promised {
            self.keep(HardState { promised: epoch, ..self.state });
        }
    }

    /// Returns true if a replica is a member of the cohort.
    pub(super) fn is_member(&self, node: NodeId) -> bool {
        self.own.options.replicas.contains(&node)
    }

    pub(super) fn others(&self) -> impl Iterator<Item = NodeId> + use<> {
        let node = self.node;
        self.own.options.replicas.clone().into_iter().filter(move |other| *other != node)
    }

    /// Returns how many followers make a majority together with their leader.
    pub(super) fn followers_needed(&self) -> usize {
        self.own.options.replicas.len() / 2
    }

    /// Counts the replicas, this one among them, that have no leader which they support.
    pub(super) fn suspecting(&self) -> usize {
        let recent = |node: &NodeId| {
            let suspected_at = self.own.suspicions.get(node);
            suspected_at.is_some_and(|at| self.now < *at + self.timing.grace)
        };
        let stands = |node: &NodeId| self.own.standing().any(|candidate| candidate.node == *node);
        1 + self.others().filter(|other| recent(other) || stands(other)).count()
    }

    /// Returns true if the leader's session has ended, and it has not come back within a grace.
    pub(super) fn is_leaderless_for_long(&self) -> bool {
        //= SPIN-27
        self.own.leaderless_since.is_some_and(|since| self.now >= since + self.timing.grace)
    }

    /// Records whether the coordinator knows the leader that the replica follows (SPIN-27).
    fn note_leaderless(&mut self, epoch: Epoch, leader: Option<(NodeId, Epoch)>) {
        let is_known = leader.is_some() || epoch < self.own.epoch;
        match (is_known, self.own.leaderless_since) {
            (true, _) => self.own.leaderless_since = None,
            (false, None) => self.own.leaderless_since = Some(self.now),
            (false, Some(_)) => {}
        }
    }

    /// Takes back what the replica may have promised and its disk does not know.
    fn remember(&mut self, view: &ElectionView) {
        if self.state.promised == 0 && view.epoch > 0 {
            //= SPIN-11
            // It may have supported that leader from the heartbeat lane, whose promises wait for no
            // disk.
            let started = self.started.unwrap_or(self.now);
            self.support.renew(started);
        }
        if self.state.is_learner {
            //= SPIN-44
            // Where it still stands it is counted, so what it promised for that must hold.
            let mine = view.candidates.iter().filter(|candidate| candidate.node == self.node);
            if let Some(round) = mine.map(|candidate| candidate.round).max() {
                self.promise(round);
            }
        }
    }

    /// Returns the base node, if the cohort has never had a leader and another replica is to be it.
    fn first_to_stand(&self) -> Option<NodeId> {
        let is_first = self.own.epoch == 0 && self.own.view.as_ref().is_some_and(|v| v.epoch == 0);
        self.own.options.base.filter(|base| is_first && *base != self.node)
    }
}

impl Spinnaker {
    /// Acts on the election as the coordinator holds it.
    pub(super) fn on_view(&mut self, view: ElectionView) {
        let cx = &mut self.shared;
        let (epoch, leader) = (view.epoch, view.leader);
        //= SPIN-28
        // The first view counts however old it is: a replica does nothing without one.
        if cx.own.view.as_ref().is_some_and(|known| epoch < known.epoch.max(cx.own.epoch)) {
            return;
        }
        cx.remember(&view);
        cx.own.view = Some(view);
        // The leader of the newest epoch was elected by a majority that has promised the same.
        cx.promise(epoch);
        match &mut self.role {
            RoleState::Leader(active) if epoch == cx.own.epoch => {
                return active.on_view(cx, leader.is_some());
            }
            RoleState::Candidate(candidacy) if epoch >= candidacy.round => {
                let round = candidacy.round;
                return self.on_decided(round, epoch, leader);
            }
            _ if epoch > cx.own.epoch => self.follow_newest(epoch, leader),
            // One that is started again waits for no word of a leader, which does not know of it.
            RoleState::Follower(follower)
                if cx.own.options.is_invited && follower.following.leader.is_none() =>
            {
                self.follow_newest(epoch, leader);
            }
            _ => {}
        }
        self.shared.note_leaderless(epoch, leader);
        if let (Some(base), RoleState::Follower(follower)) =
            (self.shared.first_to_stand(), &mut self.role)
        {
            follower.defer_to(&mut self.shared, base);
        }
        self.consider_standing();
    }

    /// Ends the candidacy in `round`, which is over (SPIN-26).
    fn on_decided(&mut self, round: Epoch, epoch: Epoch, leader: Option<(NodeId, Epoch)>) {
        //= SPIN-26
        if leader == Some((self.shared.node, round)) {
            return self.become_leader(round);
        }
        self.follow_newest(epoch, leader);
        self.consider_standing();
    }

    /// Follows the leader of `epoch`; none, if the winner is gone already, or is an earlier run of this
    /// replica.
    fn follow_newest(&mut self, epoch: Epoch, leader: Option<(NodeId, Epoch)>) {
        match leader {
            Some((leader, of)) if leader != self.shared.node => self.follow(leader, of),
            _ => {
                self.shared.own.epoch = epoch;
                self.become_follower(super::Follower::default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use trireme_types::Lsn;

    use super::*;

    /// Returns who wins the first round among so many replicas, of which these stand: each with the
    /// sequence in which its log ends, in the order in which they stood.
    fn winner(replicas: u64, standing: &[(u64, u64)]) -> Option<u64> {
        let options = SpinnakerOptions::new((1..=replicas).map(NodeId).collect());
        let candidate = |((node, last), sequence): (&(u64, u64), u64)| Candidate {
            node: NodeId(*node),
            round: 1,
            last: Lsn::new(0, *last),
            sequence,
        };
        let candidates = standing.iter().zip(1..).map(candidate).collect();
        let view = ElectionView { epoch: 0, leader: None, candidates };
        let election = Election { view: Some(view), ..Election::new(options, 0) };
        election.winner().map(|winner| winner.node.0)
    }

    #[test]
    fn a_round_is_decided_by_a_majority_of_however_many_replicas() {
        for (replicas, majority) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)] {
            let standing: Vec<_> = (1..=replicas).map(|node| (node, 0)).collect();
            for count in 0..=replicas {
                let standing = &standing[..usize::try_from(count).expect("a few")];
                let decided = (count >= majority).then_some(1);
                assert_eq!(winner(replicas, standing), decided, "{count} of {replicas}");
            }
        }
        assert_eq!(winner(3, &[(1, 0), (7, 9)]), None, "n7 is no replica of the cohort");
        assert_eq!(winner(3, &[(3, 1), (1, 2), (2, 2)]), Some(1), "of the longest, the first");
    }
}
