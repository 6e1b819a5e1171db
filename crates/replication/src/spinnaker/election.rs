//! Who leads next (§7): doubt, fence, candidacy, and what the coordinator says of it.

use std::time::Duration;

use trireme_types::{Epoch, NodeId};

use super::follower::Following;
use super::{Candidate, ElectionRequest, ElectionView, RoleState, Spinnaker, SpinnakerMessage};
use crate::core::{Effect, Moment, When};

/// After how long a replica asks the coordinator again for what it does not see yet.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// For how much longer than it needs to a replica waits for another that says nothing, as a part of
/// the grace: a follower for its leader, whom it owes nothing any more after a grace; a leader for
/// its followers, without whom it reads nothing any more after a lease. Smaller replaces a leader
/// sooner whose link is dead one way; larger bears longer pauses of a busy machine. With the default
/// periods a follower bears 1.5 s of silence, fifteen beacons, and a leader 1.3 s.
pub(super) const SLACK_DIVISOR: u32 = 2;

/// How long others let a successor stand first that their leader has named.
const HEAD_START: Duration = Duration::from_millis(200);

/// A replica's standing in an election.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidacy {
    /// The epoch that a leader is sought for.
    pub(super) round: Epoch,
    /// When what the coordinator does not show is asked for again.
    pub(super) retry_at: Moment,
}

impl Spinnaker {
    /// Takes in the election as the coordinator holds it.
    pub(super) fn on_view(&mut self, view: ElectionView) {
        let (epoch, leader) = (view.epoch, view.leader);
        //= SPIN-28
        // The first view counts however old it is: a replica does nothing without one.
        if self.view.as_ref().is_some_and(|known| epoch < known.epoch.max(self.epoch)) {
            return;
        }
        self.remember(&view);
        self.view = Some(view);
        // Whoever leads the newest epoch was elected by a majority that has promised the same.
        self.promise(epoch);
        let is_leading = matches!(&self.role, RoleState::Leader(_));
        if is_leading && epoch == self.epoch {
            return self.on_view_of_leader(leader.is_some());
        }
        match &self.role {
            RoleState::Candidate(candidacy) if epoch < candidacy.round => {}
            RoleState::Candidate(candidacy) => {
                let round = candidacy.round;
                return self.on_decided(round, epoch, leader);
            }
            _ if epoch > self.epoch => match leader {
                Some((leader, of)) if leader != self.node => self.follow(leader, of),
                _ => self.without_leader(epoch),
            },
            _ => {}
        }
        self.note_leaderless(epoch, leader);
        self.defer_to_base();
        self.consider_standing();
    }

    /// Lets the range's base node stand first when the cohort has never had a leader.
    fn defer_to_base(&mut self) {
        let is_first = self.epoch == 0 && self.view.as_ref().is_some_and(|view| view.epoch == 0);
        let Some(base) = self.options.base.filter(|base| is_first && *base != self.node) else {
            return;
        };
        let until = self.now + HEAD_START;
        match &mut self.role {
            RoleState::Follower(following) if following.successor.is_none() => {
                following.successor = Some((base, until));
                // The base node needs to know that it is not alone.
                self.send_suspicion();
            }
            _ => {}
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

    /// Takes in that the round is over in which the replica stands (SPIN-26).
    fn on_decided(&mut self, round: Epoch, epoch: Epoch, leader: Option<(NodeId, Epoch)>) {
        //= SPIN-26
        match leader {
            Some((node, of)) if node == self.node && of == round => self.take_over(round),
            Some((node, of)) if node != self.node => {
                self.follow(node, of);
                self.consider_standing();
            }
            // Whoever won is gone already.
            _ => {
                self.without_leader(epoch);
                self.consider_standing();
            }
        }
    }

    /// Takes in that `epoch` has, or had, a leader that cannot be followed.
    fn without_leader(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.set_role(RoleState::Follower(Following::default()));
    }

    /// Takes in whether the coordinator knows the leader that the replica follows (SPIN-27).
    fn note_leaderless(&mut self, epoch: Epoch, leader: Option<(NodeId, Epoch)>) {
        let is_known = leader.is_some() || epoch < self.epoch;
        match (is_known, self.leaderless_since) {
            (true, _) => self.leaderless_since = None,
            (false, None) => self.leaderless_since = Some(self.now),
            (false, Some(_)) => {}
        }
    }

    /// Says whether the leader's session has ended, and it has not come back within a grace.
    pub(super) fn is_leaderless_for_long(&self) -> bool {
        //= SPIN-27
        self.leaderless_since.is_some_and(|since| self.now >= since + self.options.timing.grace)
    }

    /// Returns when a follower has reason to seek another leader.
    fn suspects_from(&self, following: &Following) -> Moment {
        let grace = self.options.timing.grace;
        let (Some(_), Some(heard)) = (following.leader, following.heard) else {
            return Moment::START;
        };
        let silent = if following.is_lost { heard } else { heard + grace + grace / SLACK_DIVISOR };
        let leaderless = self.leaderless_since.map_or(Moment::FAR, |since| since + grace);
        silent.min(leaderless)
    }

    /// Returns when a follower has no leader that it supports: it has reason to seek another, and is
    /// free of its promise.
    fn free_from(&self, following: &Following) -> Moment {
        self.suspects_from(following).max(self.support.until())
    }

    /// Returns when such a follower may stand: those who are to be first have had their time.
    fn stands_from(&self, following: &Following) -> Moment {
        let has_stood = |successor| self.candidates().any(|standing| standing.node == successor);
        let head_start = match following.successor {
            Some((successor, until)) if !has_stood(successor) => until,
            _ => Moment::START,
        };
        self.free_from(following).max(head_start).max(self.step_back.until())
    }

    /// Returns those who stand in the next round.
    fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        let counts_all = self.options.faults.counts_old_candidates;
        self.view.iter().flat_map(move |view| {
            //= SPIN-23
            view.candidates.iter().filter(move |c| c.round == view.round() || counts_all)
        })
    }

    /// Does what a follower without a leader, or a candidate, has to do next.
    pub(super) fn consider_standing(&mut self) {
        if self.state.is_learner || self.view.is_none() {
            return;
        }
        match &self.role {
            RoleState::Follower(following) if self.now >= self.free_from(following) => {
                let may_stand = self.now >= self.stands_from(following);
                self.send_suspicion();
                //= SPIN-20
                if may_stand && self.suspecting() > self.options.replicas.len() / 2 {
                    self.stand();
                }
            }
            RoleState::Candidate(_) => self.pursue(false),
            _ => {}
        }
    }

    /// Counts the replicas, this one among them, that have no leader which they support.
    fn suspecting(&self) -> usize {
        let recent = |node: &NodeId| {
            let suspected_at = self.suspicions.get(node);
            suspected_at.is_some_and(|at| self.now < *at + self.options.timing.grace)
        };
        let stands = |node: &NodeId| self.candidates().any(|candidate| candidate.node == *node);
        1 + self.others().filter(|other| recent(other) || stands(other)).count()
    }

    /// Tells the others that this replica has no leader, once in a beacon interval.
    fn send_suspicion(&mut self) {
        let (now, interval) = (self.now, self.options.timing.beacon_interval);
        let RoleState::Follower(following) = &mut self.role else { return };
        if following.suspected_at.is_some_and(|suspected_at| now < suspected_at + interval) {
            return;
        }
        following.suspected_at = Some(now);
        for other in self.others() {
            self.journal.signal(other, SpinnakerMessage::SuspectLeader { epoch: self.epoch });
        }
    }

    pub(super) fn on_suspect_leader(&mut self, from: NodeId, epoch: Epoch) {
        if epoch < self.epoch {
            // It was under way when its sender began to follow, or does not know the leader yet.
            return;
        }
        if let RoleState::Follower(following) = &mut self.role
            && following.leader == Some(from)
        {
            // Who leads has no doubt: it was started again, and knows nothing of its lead.
            following.is_lost = true;
        }
        self.suspicions.insert(from, self.now);
        self.consider_standing();
    }

    /// Promises, and then publishes where the log ends.
    fn stand(&mut self) {
        let Some(round) = self.view.as_ref().map(ElectionView::round) else { return };
        // The view is behind what the replica has heard from a leader.
        if round <= self.epoch {
            return;
        }
        tracing::info!(round, last = %self.journal.last(), "standing");
        //= SPIN-21
        if !self.options.faults.publishes_without_fence {
            self.promise(round);
        }
        self.set_role(RoleState::Candidate(Candidacy { round, retry_at: self.now + RETRY }));
        self.publish(round);
        self.pursue(false);
    }

    fn publish(&mut self, round: Epoch) {
        let fenced = self.journal.when_durable();
        let is_faulty = self.options.faults.publishes_without_fence;
        //= SPIN-21
        let when = if is_faulty { When::Now } else { fenced };
        let request = ElectionRequest::Stand { round, last: self.journal.last() };
        self.journal.push(Effect::Coordinate { request, when });
    }

    /// Goes on with a candidacy: asks for the lead once the replica has won.
    fn pursue(&mut self, again: bool) {
        let RoleState::Candidate(Candidacy { round, .. }) = self.role else { return };
        let Some(view) = &self.view else { return };
        if view.round() != round {
            return;
        }
        let mine = self.candidates().find(|candidate| candidate.node == self.node);
        match (self.winner(), mine) {
            (Some(winner), Some(_)) if winner.node == self.node => {
                let request = ElectionRequest::Lead { round };
                self.journal.push(Effect::Coordinate { request, when: When::Now });
            }
            (_, None) if again => self.publish(round),
            _ => {}
        }
    }

    /// Returns who wins the round, once a majority stands: the longest log, of equals the one that
    /// stood first (SPIN-24).
    fn winner(&self) -> Option<&Candidate> {
        let replicas = &self.options.replicas;
        let standing: Vec<_> =
            self.candidates().filter(|candidate| replicas.contains(&candidate.node)).collect();
        //= SPIN-24
        if standing.len() <= replicas.len() / 2 {
            return None;
        }
        standing.into_iter().max_by_key(|c| (c.last, std::cmp::Reverse(c.sequence)))
    }

    /// Stands at once if it is the successor that its leader has named; otherwise lets that one be
    /// the first.
    pub(super) fn await_successor(&mut self, successor: Option<NodeId>) {
        if let RoleState::Follower(following) = &mut self.role {
            let until = self.now + HEAD_START;
            following.successor = successor.map(|successor| (successor, until));
        }
        if successor == Some(self.node) && !self.state.is_learner {
            self.stand();
        } else {
            self.consider_standing();
        }
    }

    pub(super) fn on_peer_alive(&mut self, node: NodeId) {
        match &mut self.role {
            RoleState::Follower(following) => {
                // A leader that is back sends a beacon at once. One that was killed and started again
                // is there too, and leads no more: only its word counts (`accepts`).
                // Whoever is there now has not heard that there is no leader.
                following.suspected_at = None;
                if following.successor.is_some() {
                    self.send_suspicion();
                }
                self.consider_standing();
            }
            RoleState::Leader(leader) => leader.leading.probe(self.now, &mut self.journal, node),
            RoleState::Candidate(_) => {}
        }
    }

    pub(super) fn on_peer_lost(&mut self, node: NodeId) {
        self.suspicions.remove(&node);
        if let RoleState::Follower(following) = &mut self.role
            && following.leader == Some(node)
        {
            following.is_lost = true;
            self.consider_standing();
        }
    }

    pub(super) fn on_timeout(&mut self) {
        match &mut self.role {
            RoleState::Follower(_) => self.consider_standing(),
            RoleState::Candidate(candidacy) => {
                candidacy.retry_at = self.now + RETRY;
                self.pursue(true);
            }
            RoleState::Leader(_) => self.on_timeout_of_leader(),
        }
    }

    /// Returns when a follower has something to do about its leader.
    pub(super) fn next_suspicion(&self) -> Option<Moment> {
        let RoleState::Follower(following) = &self.role else { return None };
        if self.state.is_learner || self.view.is_none() {
            return None;
        }
        let free = self.free_from(following);
        match following.suspected_at {
            Some(suspected_at) if free <= self.now => {
                let again = suspected_at + self.options.timing.beacon_interval;
                let stands = Some(self.stands_from(following)).filter(|at| *at > self.now);
                Some(stands.map_or(again, |stands| stands.min(again)))
            }
            _ => Some(free),
        }
    }
}
