//! The follower's part: taking what the leader proposes, and catching up.

use trireme_types::{Entry, Epoch, Lsn, NodeId};

use super::{RoleState, Spinnaker, SpinnakerMessage};
use crate::core::{Moment, Reply, Ticket, When};
use crate::streaming::wire::HardState;
use crate::streaming::{Beacon, Offer, Preceding, Taken};

/// What a follower knows of its leader.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// Who leads, as far as it knows.
    pub(super) leader: Option<NodeId>,
    /// When it last heard from it, or of it.
    pub(super) heard: Option<Moment>,
    /// The connection to the leader's node broke, and has not come back.
    pub(super) is_lost: bool,
    /// The leader streams its log to it: something that continues its log has arrived.
    pub(super) is_streaming: bool,
    /// When it last said where it stands in this epoch.
    pub(super) joined: Option<Moment>,
    /// The replica that should stand before this one does, since the leader wants it so, and until
    /// when.
    pub(super) successor: Option<(NodeId, Moment)>,
    /// When it last told the others that it has no leader.
    pub(super) suspected_at: Option<Moment>,
}

impl Following {
    /// Checks what must hold of what it knows.
    pub(super) fn validate(&self, node: NodeId) -> Result<(), String> {
        match self.leader {
            Some(leader) if leader == node => Err("it follows itself".into()),
            Some(_) if self.heard.is_none() => {
                Err("it follows a leader of whom it never heard".into())
            }
            None if self.is_streaming => Err("it is sent a log, and follows no leader".into()),
            _ => Ok(()),
        }
    }
}

impl Spinnaker {
    pub(super) fn on_propose(&mut self, from: NodeId, preceding: &Preceding, entries: Vec<Entry>) {
        if !self.accepts(from, preceding.epoch) {
            return;
        }
        self.journal.take_current(self.now, from, &preceding.beacon());
        //= SPIN-3
        let Taken::Matched(matched) = self.journal.take(preceding, entries) else {
            self.report_position(from, preceding.epoch);
            return;
        };
        if let RoleState::Follower(following) = &mut self.role {
            following.is_streaming = true;
        }
        //= SPIN-4
        let supports = self.supporting(preceding.sent);
        let when = self.journal.when_durable();
        let ack = SpinnakerMessage::Ack { epoch: preceding.epoch, upto: matched, supports };
        self.journal.send(from, ack, when);
        self.take_commit_point(preceding.committed.seq.min(matched.seq));
    }

    pub(super) fn on_beacon(&mut self, from: NodeId, beacon: Beacon) {
        let Beacon { epoch, committed, sent, .. } = beacon;
        if !self.accepts(from, epoch) {
            return;
        }
        self.journal.take_current(self.now, from, &beacon);
        let supports = self.supporting(sent);
        let (is_learner, awaits_disk) = (self.state.is_learner, !self.journal.is_durable());
        let ack = SpinnakerMessage::BeaconAck { epoch, supports, is_learner, awaits_disk };
        self.journal.signal(from, ack);
        if self.journal.log().holds(committed) {
            self.take_commit_point(committed.seq);
        }
        // Where it stands may have been lost on the way.
        if matches!(&self.role, RoleState::Follower(following) if !following.is_streaming) {
            self.report_position(from, epoch);
        }
    }

    /// Says whether a message of a leader may be taken, and takes in who that is (SPIN-22).
    fn accepts(&mut self, from: NodeId, epoch: Epoch) -> bool {
        //= SPIN-44
        // A learner goes by the coordinator's word first: it may have promised itself to a leader
        // that is newer than the one it hears.
        if self.state.is_learner && self.view.is_none() {
            return false;
        }
        //= SPIN-22
        if epoch < self.state.promised || epoch < self.epoch {
            let promised = self.state.promised.max(self.epoch);
            self.journal.signal(from, SpinnakerMessage::RejectStaleEpoch { epoch: promised });
            return false;
        }
        //= SPIN-12
        // What a leader sent before it resigned may arrive after that, by another lane.
        if epoch <= self.resigned {
            return false;
        }
        let leader = self.leader();
        match &mut self.role {
            RoleState::Follower(following) if leader == Some(from) && epoch == self.epoch => {
                following.heard = Some(self.now);
                following.is_lost = false;
                true
            }
            // An epoch has one leader, and it is another.
            _ if epoch == self.epoch && leader.is_some_and(|leader| leader != from) => false,
            // Without the fence a candidate goes on serving its old leader (S2).
            RoleState::Candidate(_) if self.options.faults.publishes_without_fence => true,
            _ => {
                self.follow(from, epoch);
                true
            }
        }
    }

    /// Follows a leader of an epoch that is not older than any this replica has promised itself to.
    pub(super) fn follow(&mut self, leader: NodeId, epoch: Epoch) {
        self.promise(epoch);
        self.epoch = self.epoch.max(epoch);
        self.leaderless_since = None;
        self.suspicions.clear();
        tracing::info!(%leader, epoch, "following");
        let heard = Some(self.now);
        let following = Following { leader: Some(leader), heard, ..Following::default() };
        self.set_role(RoleState::Follower(following));
    }

    /// Returns what to acknowledge a message of this time with, and keeps what that promises: the
    /// grace counts from now (SPIN-11).
    fn supporting(&mut self, sent: Moment) -> Option<Moment> {
        let is_following = matches!(&self.role, RoleState::Follower(f) if f.leader.is_some());
        if !is_following || self.is_leaderless_for_long() {
            return None;
        }
        //= SPIN-11
        self.support.renew(self.now);
        Some(sent)
    }

    /// Says where the replica stands, at most once in a beacon interval, and not again while a
    /// stalled disk still holds back that it did: each time the leader starts anew.
    fn report_position(&mut self, leader: NodeId, epoch: Epoch) {
        let (now, interval) = (self.now, self.options.timing.beacon_interval);
        let is_durable = self.journal.is_durable();
        let RoleState::Follower(following) = &mut self.role else { return };
        if following.joined.is_some_and(|joined| now < joined + interval || !is_durable) {
            return;
        }
        following.joined = Some(now);
        let join = SpinnakerMessage::ReportPosition { epoch, position: self.position() };
        let when = self.journal.when_durable();
        self.journal.send(leader, join, when);
    }

    //= SPIN-8
    fn take_commit_point(&mut self, seq: u64) {
        if self.journal.commit(seq) {
            self.journal.record_commit_point();
        }
    }

    pub(super) fn on_readmit(&mut self, from: NodeId, epoch: Epoch, upto: Lsn) {
        let is_from_leader = self.leader() == Some(from) && epoch == self.epoch;
        //= SPIN-44
        // A leader that does not know yet that the disk was lost welcomes whoever had caught up.
        let has_all = self.journal.log().holds(upto) || upto.seq <= self.journal.committed().seq;
        if is_from_leader && self.state.is_learner && has_all {
            tracing::info!("caught up: the replica counts again");
            self.keep(HardState { is_learner: false, ..self.state });
        }
    }

    pub(super) fn on_resign(&mut self, from: NodeId, epoch: Epoch, successor: Option<NodeId>) {
        let RoleState::Follower(following) = &mut self.role else { return };
        if following.leader != Some(from) || epoch != self.epoch {
            return;
        }
        //= SPIN-12
        self.support.release(self.now);
        self.resigned = self.resigned.max(epoch);
        *following = Following { heard: following.heard, ..Following::default() };
        self.await_successor(successor);
    }

    pub(super) fn on_snapshot(&mut self, ticket: Ticket, message: SpinnakerMessage, upto: Lsn) {
        let SpinnakerMessage::Snapshot { epoch } = message else {
            return self.answer_snapshot(ticket);
        };
        if epoch < self.state.promised {
            let refuse = SpinnakerMessage::RejectStaleEpoch { epoch: self.state.promised };
            self.journal.reply(ticket, Reply::Message(refuse), When::Now);
        } else if upto.seq > self.journal.committed().seq {
            //= SPIN-42
            // What it holds then was written by a leader of that epoch or an earlier one.
            self.promise(epoch);
            if self.journal.offer_snapshot(ticket, upto) == Offer::Old {
                self.answer_snapshot(ticket);
            }
        } else {
            self.answer_snapshot(ticket);
        }
    }

    pub(super) fn on_installed(&mut self, ticket: Ticket, upto: Lsn) {
        self.applied = self.applied.max(upto);
        let answered = self.journal.installed(ticket, upto);
        answered.into_iter().for_each(|ticket| self.answer_snapshot(ticket));
    }

    pub(super) fn on_outdated(&mut self, ticket: Ticket) {
        let answered = self.journal.outdated(ticket);
        answered.into_iter().for_each(|ticket| self.answer_snapshot(ticket));
    }

    fn answer_snapshot(&mut self, ticket: Ticket) {
        let join =
            SpinnakerMessage::ReportPosition { epoch: self.epoch, position: self.position() };
        let when = self.journal.when_durable();
        self.journal.reply(ticket, Reply::Message(join), when);
    }
}
