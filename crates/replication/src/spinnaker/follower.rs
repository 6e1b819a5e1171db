//! The follower: it takes what its leader proposes, and suspects a leader that is not there.

use trireme_types::{Entry, Epoch, Lsn, NodeId};

use super::election::{HEAD_START, SLACK_DIVISOR};
use super::{Shared, SpinnakerMessage};
use crate::core::{Moment, Rest, Ticket};
use crate::streaming::wire::HardState;
use crate::streaming::{Beacon, Following, Preceding};

/// What only a follower knows.
#[derive(Debug, Default)]
pub(super) struct Follower {
    pub(super) following: Following,
    /// The connection to the leader's node broke, and has not come back.
    is_lost: bool,
    /// The replica that should stand before this one does, since the leader wants it so, and until
    /// when.
    successor: Option<(NodeId, Moment)>,
    /// When it last sent the others its suspicion.
    suspected_at: Option<Moment>,
}

/// Following a leader.
impl Follower {
    pub(super) fn of(leader: NodeId, now: Moment) -> Self {
        Self { following: Following::of(leader, now), ..Self::default() }
    }

    /// Records that its leader is there.
    pub(super) const fn on_heard(&mut self, now: Moment) {
        self.following.heard = Some(now);
        self.is_lost = false;
    }

    pub(super) fn on_propose(
        &mut self,
        cx: &mut Shared,
        from: NodeId,
        preceding: &Preceding,
        entries: Vec<Entry>,
    ) {
        //= SPIN-3
        let accepted = self.following.accept_entries(cx, from, preceding, entries);
        let Some(matched) = accepted else { return };
        //= SPIN-4
        let supports = self.support(cx, preceding.sent);
        let when = cx.journal.when_durable();
        let ack = SpinnakerMessage::Ack { epoch: preceding.epoch, upto: matched, supports };
        cx.journal.send(from, ack, when);
        cx.commit_as_follower(preceding.committed.seq.min(matched.seq));
    }

    pub(super) fn on_beacon(&mut self, cx: &mut Shared, from: NodeId, beacon: Beacon) {
        let Beacon { epoch, sent, .. } = beacon;
        let supports = self.support(cx, sent);
        let (is_learner, awaits_disk) = (cx.state.is_learner, !cx.journal.is_durable());
        let ack = SpinnakerMessage::BeaconAck { epoch, supports, is_learner, awaits_disk };
        cx.journal.signal(from, ack);
        self.following.on_beacon(cx, from, &beacon);
    }

    /// Returns what to acknowledge a message of this time with, and keeps what that promises: the
    /// grace counts from now (SPIN-11).
    fn support(&self, cx: &mut Shared, sent: Moment) -> Option<Moment> {
        if self.following.leader.is_none() || cx.is_leaderless_for_long() {
            return None;
        }
        //= SPIN-11
        cx.support.renew(cx.now);
        Some(sent)
    }

    /// Counts again after its disk was lost, if it has all that its leader takes it to have.
    pub(super) fn on_readmit(&self, cx: &mut Shared, from: NodeId, epoch: Epoch, upto: Lsn) {
        let is_from_leader = self.following.leader == Some(from) && epoch == cx.own.epoch;
        //= SPIN-44
        // A leader that does not know yet that the disk was lost readmits a replica that had caught up.
        let has_all = cx.journal.log().holds(upto) || upto.seq <= cx.journal.committed().seq;
        if is_from_leader && cx.state.is_learner && !cx.own.options.is_invited && has_all {
            tracing::info!("caught up: the replica counts again");
            cx.keep(HardState { is_learner: false, ..cx.state });
        }
    }

    /// Returns true if it is its leader that resigns; it is free of its promise then.
    pub(super) fn on_resign(&mut self, cx: &mut Shared, from: NodeId, epoch: Epoch) -> bool {
        if self.following.leader != Some(from) || epoch != cx.own.epoch {
            return false;
        }
        //= SPIN-12
        cx.support.release(cx.now);
        cx.own.resigned = cx.own.resigned.max(epoch);
        let heard = self.following.heard;
        *self = Self::default();
        self.following.heard = heard;
        true
    }

    /// Answers a snapshot from another replica, or has it installed.
    pub(super) fn on_snapshot(
        cx: &mut Shared,
        ticket: Ticket,
        message: &SpinnakerMessage,
        upto: Lsn,
    ) {
        match message {
            SpinnakerMessage::Snapshot { epoch } if cx.rejects_snapshot(ticket, *epoch) => {}
            SpinnakerMessage::Snapshot { epoch } if upto.seq > cx.journal.committed().seq => {
                //= SPIN-42
                // What it holds then was written by a leader of that epoch or an earlier one.
                cx.promise(*epoch);
                cx.install_snapshot(ticket, upto);
            }
            _ => cx.answer_snapshot(ticket),
        }
    }

    /// Returns what it could rest as.
    pub(super) fn rest(&self, cx: &Shared) -> Option<Rest> {
        let seeks = self.is_lost || self.successor.is_some() || self.suspected_at.is_some();
        // What it has promised to a later leader it must not forget at rest.
        let is_bound = cx.state.promised > cx.own.epoch;
        (!seeks && !is_bound).then(|| cx.rest(&self.following, cx.own.epoch)).flatten()
    }

    /// Asks its leader to be brought up to date, which does not know of it (SPIN-48).
    pub(super) fn on_timeout_of_invited(&mut self, cx: &mut Shared) {
        if cx.now >= self.following.asks_from(cx.timing) {
            //= SPIN-48
            self.following.ask(cx, cx.own.epoch);
        }
    }

    /// Checks what must hold of what it knows.
    pub(super) fn validate(&self, node: NodeId) -> Result<(), String> {
        self.following.validate(node)
    }
}

/// Seeking another leader.
impl Follower {
    /// Returns when it has reason to seek another leader.
    fn suspects_from(&self, cx: &Shared) -> Moment {
        let grace = cx.timing.grace;
        let (Some(_), Some(heard)) = (self.following.leader, self.following.heard) else {
            return Moment::START;
        };
        let silent = if self.is_lost { heard } else { heard + grace + grace / SLACK_DIVISOR };
        let leaderless = cx.own.leaderless_since.map_or(Moment::FAR, |since| since + grace);
        silent.min(leaderless)
    }

    /// Returns when it has no leader that it supports: it has reason to seek another, and is free of
    /// its promise.
    fn free_from(&self, cx: &Shared) -> Moment {
        self.suspects_from(cx).max(cx.support.until())
    }

    /// Returns when it may stand: those that are to be first have had their time.
    fn stands_from(&self, cx: &Shared) -> Moment {
        let has_stood = |successor| cx.own.standing().any(|candidate| candidate.node == successor);
        let head_start = match self.successor {
            Some((successor, until)) if !has_stood(successor) => until,
            _ => Moment::START,
        };
        self.free_from(cx).max(head_start).max(cx.own.step_back.until())
    }

    /// Suspects its leader, if it has reason to. Returns true if it is to stand now.
    pub(super) fn consider_standing(&mut self, cx: &mut Shared) -> bool {
        if cx.now < self.free_from(cx) {
            return false;
        }
        let may_stand = cx.now >= self.stands_from(cx);
        self.send_suspicion(cx);
        //= SPIN-20
        may_stand && cx.suspecting() > cx.own.options.replicas.len() / 2
    }

    /// Sends the others word that it has no leader, once in a beacon interval.
    fn send_suspicion(&mut self, cx: &mut Shared) {
        let interval = cx.timing.beacon_interval;
        if self.suspected_at.is_some_and(|suspected_at| cx.now < suspected_at + interval) {
            return;
        }
        self.suspected_at = Some(cx.now);
        for other in cx.others() {
            let suspicion = SpinnakerMessage::SuspectLeader { epoch: cx.own.epoch };
            cx.journal.signal(other, suspicion);
        }
    }

    /// Records that another replica suspects the leader. If it is the leader itself, that was started
    /// again, and knows nothing of its lead.
    pub(super) fn on_suspicion(&mut self, from: NodeId) {
        if self.following.leader == Some(from) {
            self.is_lost = true;
        }
    }

    /// Lets the range's base node stand first, when the cohort has never had a leader.
    pub(super) fn defer_to(&mut self, cx: &mut Shared, base: NodeId) {
        if self.successor.is_none() {
            self.successor = Some((base, cx.now + HEAD_START));
            // The base node needs to know that it is not alone.
            self.send_suspicion(cx);
        }
    }

    /// Lets the successor stand first that its leader has named.
    pub(super) fn await_successor(&mut self, now: Moment, successor: Option<NodeId>) {
        self.successor = successor.map(|successor| (successor, now + HEAD_START));
    }

    /// Records that a node can be reached again. A leader that is back sends a beacon at once; one
    /// that was killed and started again is there too, and leads no more: only its word counts.
    pub(super) fn on_peer_alive(&mut self, cx: &mut Shared, node: NodeId) {
        self.following.on_peer_alive(node);
        // A replica that is there now has not heard that there is no leader.
        self.suspected_at = None;
        if self.successor.is_some() {
            self.send_suspicion(cx);
        }
    }

    /// Records that a node was lost. Returns true if it is the leader's.
    pub(super) fn on_peer_lost(&mut self, node: NodeId) -> bool {
        let is_leader = self.following.leader == Some(node);
        self.is_lost |= is_leader;
        is_leader
    }

    /// Returns when it has something to do about its leader.
    pub(super) fn next_timeout(&self, cx: &Shared) -> Option<Moment> {
        if cx.own.options.is_invited {
            return Some(self.following.asks_from(cx.timing)).filter(|at| *at < Moment::FAR);
        }
        if cx.state.is_learner || cx.own.view.is_none() {
            return None;
        }
        let free = self.free_from(cx);
        match self.suspected_at {
            Some(suspected_at) if free <= cx.now => {
                let again = suspected_at + cx.timing.beacon_interval;
                let stands = Some(self.stands_from(cx)).filter(|at| *at > cx.now);
                Some(stands.map_or(again, |stands| stands.min(again)))
            }
            _ => Some(free),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_an_invariant_is_named() {
        let follower = Follower::of(NodeId(2), Moment::START);
        assert_eq!(follower.validate(NodeId(1)), Ok(()));
        let itself = follower.validate(NodeId(2)).expect_err("it follows itself");
        assert!(itself.contains("itself"), "{itself}");
    }
}
