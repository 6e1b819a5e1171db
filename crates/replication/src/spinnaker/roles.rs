//! Which role a replica has, and how it takes another: what no role decides by itself.

use std::ops::ControlFlow;

use trireme_types::{Epoch, NodeId};

use super::candidate::Candidacy;
use super::follower::Follower;
use super::leader::{Lead, Leader, Resignation};
use super::{ElectionView, Shared, Spinnaker, SpinnakerMessage};
use crate::streaming::Streams as _;

/// What the replica does in the cohort.
#[derive(Debug)]
pub(super) enum RoleState {
    Follower(Follower),
    Candidate(Candidacy),
    Leader(Box<Leader>),
}

/// Acting in a role.
impl Spinnaker {
    /// Has the leader act, if the replica is one, and resign, if that is what it comes to.
    pub(super) fn as_leader(&mut self, act: impl FnOnce(&mut Leader, &mut Shared) -> Lead) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        if let ControlFlow::Break(resignation) = act(leader, &mut self.shared) {
            self.resign(resignation);
        }
    }

    /// Has the follower act, if the replica is one.
    pub(super) fn as_follower(&mut self, act: impl FnOnce(&mut Follower, &mut Shared)) {
        match &mut self.role {
            RoleState::Follower(follower) => act(follower, &mut self.shared),
            // Without the fence a candidate goes on serving its old leader (S2).
            RoleState::Candidate(_) if self.shared.own.options.faults.publishes_without_fence() => {
                act(&mut Follower::default(), &mut self.shared);
            }
            _ => {}
        }
    }

    /// Has a follower without a leader, or a candidate, do what is next.
    pub(super) fn consider_standing(&mut self) {
        let cx = &mut self.shared;
        if cx.state.is_learner || cx.own.view.is_none() {
            return;
        }
        match &mut self.role {
            RoleState::Follower(follower) => {
                if follower.consider_standing(cx) {
                    self.become_candidate();
                }
            }
            RoleState::Candidate(candidacy) => candidacy.pursue(cx, false),
            RoleState::Leader(_) => {}
        }
    }

    /// Returns true if a message of a leader may be accepted, and follows that leader (SPIN-22).
    pub(super) fn accepts(&mut self, from: NodeId, epoch: Epoch) -> bool {
        let cx = &mut self.shared;
        //= SPIN-44
        // A learner goes by what the coordinator shows first: it may have promised itself to a leader
        // that is newer than the one it hears.
        if cx.state.is_learner && cx.own.view.is_none() {
            return false;
        }
        //= SPIN-22
        if epoch < cx.state.promised || epoch < cx.own.epoch {
            let promised = cx.state.promised.max(cx.own.epoch);
            cx.journal.signal(from, SpinnakerMessage::RejectStaleEpoch { epoch: promised });
            return false;
        }
        //= SPIN-12
        // What a leader sent before it resigned may arrive after that, by another lane.
        if epoch <= cx.own.resigned {
            return false;
        }
        let leader = self.leader();
        let cx = &mut self.shared;
        let is_known_epoch = epoch == cx.own.epoch;
        match &mut self.role {
            RoleState::Follower(follower) if leader == Some(from) && is_known_epoch => {
                follower.on_heard(cx.now);
                true
            }
            // An epoch has one leader, and it is another.
            _ if is_known_epoch && leader.is_some_and(|leader| leader != from) => false,
            // Without the fence a candidate goes on serving its old leader (S2).
            RoleState::Candidate(_) if cx.own.options.faults.publishes_without_fence() => true,
            _ => {
                self.follow(from, epoch);
                true
            }
        }
    }

    pub(super) fn on_suspect_leader(&mut self, from: NodeId, epoch: Epoch) {
        let cx = &mut self.shared;
        if epoch < cx.own.epoch {
            // It was under way when its sender began to follow, or does not know the leader yet.
            return;
        }
        if let RoleState::Follower(follower) = &mut self.role {
            follower.on_suspicion(from);
        }
        cx.own.suspicions.insert(from, cx.now);
        self.consider_standing();
    }

    pub(super) fn on_resign(&mut self, from: NodeId, epoch: Epoch, successor: Option<NodeId>) {
        if let RoleState::Follower(follower) = &mut self.role
            && follower.on_resign(&mut self.shared, from, epoch)
        {
            self.await_successor(successor);
        }
    }

    pub(super) fn on_peer_alive(&mut self, node: NodeId) {
        match &mut self.role {
            RoleState::Follower(follower) => {
                follower.on_peer_alive(&mut self.shared, node);
                self.consider_standing();
            }
            RoleState::Leader(leader) => leader.leading.probe(&mut self.shared, node),
            RoleState::Candidate(_) => {}
        }
    }

    pub(super) fn on_peer_lost(&mut self, node: NodeId) {
        self.shared.own.suspicions.remove(&node);
        if let RoleState::Follower(follower) = &mut self.role
            && follower.on_peer_lost(node)
        {
            self.consider_standing();
        }
    }

    pub(super) fn on_timeout(&mut self) {
        match &mut self.role {
            RoleState::Follower(follower) if self.shared.own.options.is_invited => {
                follower.on_timeout_of_invited(&mut self.shared);
            }
            RoleState::Follower(_) => self.consider_standing(),
            RoleState::Candidate(candidacy) => candidacy.on_timeout(&mut self.shared),
            RoleState::Leader(_) => self.as_leader(Leader::on_timeout),
        }
    }
}

/// Taking another role.
impl Spinnaker {
    /// Follows a leader of an epoch that is not older than any this replica has promised itself to.
    pub(super) fn follow(&mut self, leader: NodeId, epoch: Epoch) {
        self.shared.promise(epoch);
        self.shared.own.adopt(epoch);
        tracing::info!(%leader, epoch, "following");
        self.become_follower(Follower::of(leader, self.shared.now));
    }

    pub(super) fn become_follower(&mut self, follower: Follower) {
        let leader = follower.following.leader;
        let old = std::mem::replace(&mut self.role, RoleState::Follower(follower));
        if let RoleState::Leader(old) = old {
            old.end(&mut self.shared, leader);
        }
    }

    /// Promises to accept nothing from a leader of an older epoch than the next round, and then stands
    /// in it.
    fn become_candidate(&mut self) {
        let cx = &mut self.shared;
        let Some(round) = cx.own.view.as_ref().map(ElectionView::round) else { return };
        // The view is behind what the replica has heard from a leader.
        if round <= cx.own.epoch {
            return;
        }
        tracing::info!(round, last = %cx.journal.last(), "standing");
        //= SPIN-21
        if !cx.own.options.faults.publishes_without_fence() {
            cx.promise(round);
        }
        self.role = RoleState::Candidate(Candidacy::begin(cx, round));
    }

    /// Takes over the cohort as the leader of `epoch`, which is stored at the coordinator (SPIN-30).
    pub(super) fn become_leader(&mut self, epoch: Epoch) {
        self.shared.own.adopt(epoch);
        self.role = RoleState::Leader(Box::new(Leader::begin(&mut self.shared, epoch)));
    }

    /// Gives up the lead and frees every follower from its promise, after every right to read that
    /// rests on it has ended (SPIN-12).
    fn resign(&mut self, Resignation { successor, is_at_fault }: Resignation) {
        if is_at_fault {
            //= SPIN-29
            self.shared.own.step_back.begin(self.shared.now, self.shared.timing.grace);
        }
        self.become_follower(Follower::default());
        let cx = &mut self.shared;
        let epoch = cx.own.epoch;
        cx.support.release(cx.now);
        cx.own.resigned = cx.own.resigned.max(epoch);
        let mut others: Vec<_> = cx.others().collect();
        others.sort_by_key(|other| Some(*other) != successor);
        for other in others {
            let resign = SpinnakerMessage::Resign { epoch, successor };
            match successor {
                // It must not come before what the successor is to have.
                Some(_) => cx.journal.send(other, resign, crate::core::When::Now),
                // The data lane may be why it resigns.
                None => cx.journal.signal(other, resign),
            }
        }
        self.await_successor(successor);
    }

    /// Stands at once if it is the successor that its leader has named; otherwise lets that one be
    /// the first.
    fn await_successor(&mut self, successor: Option<NodeId>) {
        if let RoleState::Follower(follower) = &mut self.role {
            follower.await_successor(self.shared.now, successor);
        }
        if successor == Some(self.shared.node) && !self.shared.state.is_learner {
            self.become_candidate();
        } else {
            self.consider_standing();
        }
    }
}
