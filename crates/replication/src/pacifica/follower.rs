//! The part of a secondary or a candidate: preparing what the primary orders, and catching up.

use trireme_types::{Entry, Epoch, Lsn, NodeId};

use super::{Pacifica, PacificaMessage, RoleState};
use crate::core::{Moment, Reply, Ticket, When};
use crate::replica::ReplicaError;
use crate::streaming::{Beacon, Offer, Preceding, Taken};

/// What a secondary or a candidate knows of its primary.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// The primary, as far as it knows.
    pub(super) leader: Option<NodeId>,
    /// When it last heard from it.
    pub(super) heard: Option<Moment>,
    /// The primary streams its log to it: something that continues its log has arrived.
    pub(super) is_streaming: bool,
    /// When it last said where it stands.
    pub(super) joined: Option<Moment>,
}

impl Pacifica {
    pub(super) fn on_prepare(&mut self, from: NodeId, preceding: &Preceding, entries: Vec<Entry>) {
        if !self.accepts(from, preceding.epoch) {
            return;
        }
        self.journal.take_current(self.now, from, &preceding.beacon());
        //= PAC-3
        let Taken::Matched(matched) = self.journal.take(preceding, entries) else {
            self.report_position(from, preceding.epoch);
            return;
        };
        if let RoleState::Follower(following) = &mut self.role {
            following.is_streaming = true;
        }
        //= PAC-4
        let supports = self.supporting(preceding.sent);
        let when = self.journal.when_durable();
        let epoch = preceding.epoch;
        let incarnation = self.incarnation;
        let prepared = PacificaMessage::Prepared { epoch, upto: matched, supports, incarnation };
        self.journal.send(from, prepared, when);
        self.take_committed_point(preceding.committed.seq.min(matched.seq));
    }

    pub(super) fn on_beacon(&mut self, from: NodeId, beacon: Beacon) {
        let Beacon { epoch, committed, sent, .. } = beacon;
        if !self.accepts(from, epoch) {
            return;
        }
        self.journal.take_current(self.now, from, &beacon);
        let supports = self.supporting(sent);
        let incarnation = self.incarnation;
        self.journal.signal(from, PacificaMessage::BeaconAck { epoch, supports, incarnation });
        if self.journal.log().holds(committed) {
            self.take_committed_point(committed.seq);
        }
        // Where it stands may have been lost on the way.
        if matches!(&self.role, RoleState::Follower(following) if !following.is_streaming) {
            self.report_position(from, epoch);
        }
    }

    /// Says whether a message of a primary may be taken, and takes in who that is (PAC-12).
    fn accepts(&mut self, from: NodeId, version: Epoch) -> bool {
        if matches!(self.role, RoleState::Idle) {
            return false;
        }
        //= PAC-12
        if version < self.state.promised && !self.options.faults.takes_old_versions {
            let epoch = self.state.promised;
            self.journal.signal(from, PacificaMessage::RejectStaleEpoch { epoch });
            return false;
        }
        // A version has one primary. Of one that is newer than what the manager has told, whoever
        // acts in it is the primary.
        let told = self.config.as_ref().filter(|config| config.version == version);
        if told.is_some_and(|config| config.replicas.first() != Some(&from)) {
            return false;
        }
        self.promise(version);
        // Another primary acts in the version that this replica asked for: it will not be its own.
        self.pending.take_if(|pending| pending.config.version <= version);
        match &mut self.role {
            RoleState::Follower(following) if following.leader == Some(from) => {
                following.heard = Some(self.now);
            }
            // Without the check an old primary can still write at the new one (P5).
            RoleState::Primary(_) if self.options.faults.takes_old_versions => {}
            _ => self.follow(from),
        }
        true
    }

    /// Prepares for `primary` from now on.
    pub(super) fn follow(&mut self, primary: NodeId) {
        tracing::info!(%primary, version = self.state.promised, "following");
        // A new primary is given its time to be heard.
        self.support.hold(self.now + self.options.timing.grace);
        let (leader, heard) = (Some(primary), Some(self.now));
        self.set_role(RoleState::Follower(Following { leader, heard, ..Following::default() }));
    }

    /// Returns what to acknowledge a message of this time with, and keeps what that promises: the
    /// grace counts from now. A secondary that has asked to be primary promises nothing more.
    fn supporting(&mut self, sent: Moment) -> Option<Moment> {
        //= PAC-21
        let asks = self.pending.is_some() || self.named.is_some();
        if asks || !matches!(self.role, RoleState::Follower(_)) {
            return None;
        }
        //= PAC-22
        self.support.renew(self.now);
        Some(sent)
    }

    /// Says where the replica stands, at most once in a beacon interval, and not again while a
    /// stalled disk still holds back that it did: each time the primary starts anew.
    pub(super) fn report_position(&mut self, primary: NodeId, version: Epoch) {
        let (now, interval) = (self.now, self.options.timing.beacon_interval);
        let is_durable = self.journal.is_durable();
        let RoleState::Follower(following) = &mut self.role else { return };
        if following.joined.is_some_and(|joined| now < joined + interval) {
            return;
        }
        let has_joined = following.joined.replace(now).is_some();
        if has_joined && !is_durable {
            return;
        }
        let join = self.join(version);
        let when = self.journal.when_durable();
        self.journal.send(primary, join, when);
    }

    /// Returns the message that says where this incarnation stands.
    fn join(&self, epoch: Epoch) -> PacificaMessage {
        let (position, incarnation) = (self.position(), self.incarnation);
        PacificaMessage::ReportPosition { epoch, position, incarnation }
    }

    //= PAC-6
    fn take_committed_point(&mut self, seq: u64) {
        if self.journal.commit(seq) {
            self.journal.record_commit_point();
        }
    }

    /// Asks the primary to take this replica in, from time to time, as long as it hears nothing from
    /// it (PAC-40).
    pub(super) fn on_timeout_of_follower(&mut self) {
        let version = self.state.promised;
        match &self.role {
            RoleState::Follower(following) if self.now >= self.asks_from(following) => {
                let Some(primary) = following.leader else { return };
                //= PAC-40
                self.report_position(primary, version);
            }
            _ => {}
        }
        self.consider_taking_over();
    }

    /// Returns when a candidate asks to be taken in (again).
    fn asks_from(&self, following: &Following) -> Moment {
        if self.is_listed(self.node) || following.leader.is_none() {
            return Moment::FAR;
        }
        let grace = self.options.timing.grace;
        let heard = if following.is_streaming { following.heard } else { None };
        let quiet = heard.map_or(Moment::START, |heard| heard + grace);
        following.joined.map_or(Moment::START, |joined| joined + grace).max(quiet)
    }

    pub(super) fn next_of_follower(&self, following: &Following) -> Option<Moment> {
        let take_over = self.may_take_over_from();
        [take_over, self.asks_from(following)].into_iter().min().filter(|at| *at < Moment::FAR)
    }

    pub(super) fn on_snapshot(&mut self, ticket: Ticket, message: PacificaMessage, upto: Lsn) {
        let PacificaMessage::Snapshot { epoch } = message else {
            return self.answer_snapshot(ticket);
        };
        if matches!(self.role, RoleState::Idle) {
            // Said at once, where it stands would have the same snapshot sent again at once.
            let reason = "the replica does not know its part yet".into();
            return self.journal.refuse(ticket, ReplicaError::Unavailable(reason));
        }
        let is_following = matches!(self.role, RoleState::Follower(_));
        if epoch < self.state.promised {
            let refuse = PacificaMessage::RejectStaleEpoch { epoch: self.state.promised };
            self.journal.reply(ticket, Reply::Message(refuse), When::Now);
        } else if upto.seq > self.journal.committed().seq && is_following {
            //= PAC-42
            if self.journal.offer_snapshot(ticket, upto) == Offer::Old {
                self.answer_snapshot(ticket);
            }
        } else {
            self.answer_snapshot(ticket);
        }
    }

    pub(super) fn on_installed(&mut self, ticket: Ticket, upto: Lsn) {
        let answered = self.journal.installed(ticket, upto);
        answered.into_iter().for_each(|ticket| self.answer_snapshot(ticket));
    }

    pub(super) fn on_outdated(&mut self, ticket: Ticket) {
        let answered = self.journal.outdated(ticket);
        answered.into_iter().for_each(|ticket| self.answer_snapshot(ticket));
    }

    fn answer_snapshot(&mut self, ticket: Ticket) {
        let join = self.join(self.state.promised);
        let when = self.journal.when_durable();
        self.journal.reply(ticket, Reply::Message(join), when);
    }

    pub(super) fn on_peer_alive(&mut self, node: NodeId) {
        match &mut self.role {
            RoleState::Follower(following) if following.leader == Some(node) => {
                // Whoever was away may not know that this replica waits for it.
                following.joined = None;
            }
            RoleState::Primary(primary) => {
                primary.leading.probe(self.now, &mut self.journal, node);
            }
            _ => {}
        }
    }

    pub(super) fn on_timeout(&mut self) {
        self.retry_pending();
        self.act_if_free();
        self.ask_to_go_on();
        match &self.role {
            RoleState::Idle => {}
            RoleState::Follower(_) => self.on_timeout_of_follower(),
            RoleState::Primary(_) => self.on_timeout_of_primary(),
        }
    }
}
