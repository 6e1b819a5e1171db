//! The leader's part: taking over, committing, serving, handing over.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use trireme_types::{EntryKind, Epoch, Lsn, NodeId, Timing};

use super::election::{RETRY, SLACK_DIVISOR};
use super::follower::Following;
use super::stall::Stall;
use super::{ElectionRequest, RoleState, Spinnaker, SpinnakerMessage};
use crate::core::{Effect, Moment, Reply, Ticket, When};
use crate::replica::ReplicaError;
use crate::streaming::{Follower, Journal, Leading, Position, Stage};

/// How long a leader that is to hand over waits for its successor to have all that it has.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);

/// What only a leader knows.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) leading: Leading,
    /// When it was elected.
    since: Moment,
    /// Its first entry: older ones are committed with it, and not before (S1).
    no_op: Lsn,
    /// Its table holds all that its predecessors acknowledged.
    serves: bool,
    pub(super) stall: Stall,
    /// Reads that wait until it serves and has its lease.
    reads: Vec<Ticket>,
    hand_over: Option<HandOver>,
    /// When it asks for its node at the coordinator again.
    reclaim_at: Option<Moment>,
}

#[derive(Debug)]
struct HandOver {
    ticket: Ticket,
    to: NodeId,
    until: Moment,
}

impl Leader {
    /// Checks what must hold of a leader of this epoch.
    pub(super) fn validate(
        &self,
        epoch: Epoch,
        journal: &Journal<Spinnaker>,
        now: Moment,
    ) -> Result<(), String> {
        let own = self.leading.epoch;
        if own != epoch || self.no_op.epoch != own {
            let no_op = self.no_op;
            return Err(format!("it leads epoch {own} behind {no_op} and knows epoch {epoch}"));
        }
        if self.serves && journal.committed() < self.no_op {
            return Err(format!("it serves, and {} is not committed", self.no_op));
        }
        self.leading.validate(journal, now)
    }
}

impl Spinnaker {
    /// Takes over the cohort as the leader of `epoch`, which is stored at the coordinator
    /// (SPIN-30).
    pub(super) fn take_over(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.leaderless_since = None;
        self.suspicions.clear();
        let (now, timing) = (self.now, self.options.timing);
        let mut leading = Leading::new(now, epoch, timing, self.others(), self.measures);
        //= SPIN-30
        let no_op = leading.append(&mut self.journal, EntryKind::NoOp, Bytes::new());
        tracing::info!(epoch, %no_op, "elected: taking over");
        // The first word to everybody, who answers with where he stands.
        leading.on_timeout(now, &mut self.journal);
        let leader = Leader {
            leading,
            since: now,
            no_op,
            serves: false,
            stall: Stall::default(),
            reads: Vec::new(),
            hand_over: None,
            reclaim_at: None,
        };
        self.set_role(RoleState::Leader(Box::new(leader)));
    }

    /// Takes another part. A leader that stops leading ends what it gave out first (SPIN-12).
    pub(super) fn set_role(&mut self, role: RoleState) {
        let new_leader = match &role {
            RoleState::Follower(following) => following.leader,
            _ => None,
        };
        let old = std::mem::replace(&mut self.role, role);
        let RoleState::Leader(leader) = old else { return };
        tracing::info!(epoch = self.epoch, "leads no more");
        self.measures = leader.leading.measures;
        //= SPIN-12
        self.journal.push(Effect::EndReads);
        self.journal.write_gathered();
        // What was gathered and not sent is in the log, where whoever leads next finds it.
        drop(self.journal.take_unsent());
        let no_op = leader.no_op;
        if self.journal.last() == no_op && self.journal.committed() < no_op {
            //= SPIN-34
            // Its leader alone could have committed it, and leads no more.
            self.journal.truncate_after(no_op.seq - 1);
        }
        leader.leading.end(&mut self.journal, new_leader);
        for ticket in leader.reads {
            self.journal.refuse(ticket, ReplicaError::NotLeader { leader: new_leader });
        }
        if let Some(hand_over) = leader.hand_over {
            let error = ReplicaError::Unavailable("the replica lost its lead meanwhile".into());
            self.journal.refuse(hand_over.ticket, error);
        }
    }

    pub(super) fn on_ack(
        &mut self,
        from: NodeId,
        epoch: Epoch,
        upto: Lsn,
        supports: Option<Moment>,
    ) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        if epoch != leader.leading.epoch {
            return;
        }
        leader.leading.heard_data(from, self.now);
        leader.leading.on_ack(self.now, &mut self.journal, from, upto);
        if let Some(sent) = supports {
            leader.leading.on_support(self.now, from, sent);
        }
        self.advance();
        self.welcome(from);
        self.answer_reads();
    }

    pub(super) fn on_beacon_ack(
        &mut self,
        from: NodeId,
        epoch: Epoch,
        supports: Option<Moment>,
        (is_learner, awaits_disk): (bool, bool),
    ) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        if epoch != leader.leading.epoch {
            return;
        }
        if let Some(sent) = supports {
            leader.leading.on_support(self.now, from, sent);
        }
        if awaits_disk {
            // It owes no acknowledgement, so that none comes shows nothing.
            leader.leading.heard_data(from, self.now);
        }
        let counts =
            |follower: &&Follower| follower.is_voter && follower.stage == Stage::Replicating;
        if let Some(follower) = leader.leading.followers.get(&from).filter(counts)
            && is_learner
            && let Some(upto) = self.journal.log().lsn_at(follower.next - 1)
        {
            // The word that it counts again was lost; or it has lost its disk since, and the word
            // that it stands nowhere is on its way.
            self.journal.send(from, SpinnakerMessage::Readmit { epoch, upto }, When::Now);
        }
        self.answer_reads();
    }

    pub(super) fn on_report_position(&mut self, from: NodeId, epoch: Epoch, position: Position) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        if epoch == leader.leading.epoch {
            //= SPIN-32
            //= SPIN-41
            let acked = |leader: &Leader| {
                let follower = leader.leading.followers.get(&from);
                follower.filter(|f| f.stage != Stage::Probing).map(|f| f.match_lsn.seq)
            };
            let before = acked(leader);
            leader.leading.on_report_position(self.now, &mut self.journal, from, position);
            // One that says the same again has received nothing of what it was sent.
            if acked(leader) > before {
                leader.leading.heard_data(from, self.now);
            }
            self.advance();
            self.welcome(from);
        }
    }

    pub(super) fn on_log_sent(&mut self, to: NodeId, seqs: &Range<u64>, next: u64) {
        if let RoleState::Leader(leader) = &mut self.role {
            leader.leading.on_log_sent(self.now, &mut self.journal, to, seqs, next);
        }
    }

    pub(super) fn on_snapshot_sent(&mut self, to: NodeId, answer: Option<SpinnakerMessage>) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        match answer {
            Some(answer) => {
                leader.leading.on_snapshot_sent(to);
                self.on_message(to, answer);
            }
            None => leader.leading.on_snapshot_lost(self.now, to),
        }
    }

    /// Takes back a follower that had lost its disk, once it has all that it may ever have
    /// acknowledged and this leader has all that was ever committed (SPIN-44; S14).
    fn welcome(&mut self, node: NodeId) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let is_established = self.journal.committed().seq >= leader.no_op.seq;
        let Some(follower) = leader.leading.followers.get_mut(&node) else { return };
        let has_all =
            follower.stage == Stage::Replicating && follower.match_lsn.seq >= follower.votes_from;
        if !follower.is_voter && has_all && is_established {
            //= SPIN-44
            follower.is_voter = true;
            let (epoch, upto) = (leader.leading.epoch, follower.match_lsn);
            self.journal.send(node, SpinnakerMessage::Readmit { epoch, upto }, When::Now);
            // What it has acknowledged already counts from now on.
            self.advance();
        }
    }

    /// Commits what is on the leader's own disk and on those of a majority (SPIN-5).
    pub(super) fn advance(&mut self) {
        let needed = self.followers_needed();
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(acked) = leader.leading.matched_by(needed) else { return };
        //= SPIN-5
        let seq = acked.min(self.journal.durable().seq);
        //= SPIN-31
        if seq < leader.no_op.seq && !self.options.faults.commits_older_epochs {
            return;
        }
        let no_op = leader.no_op;
        leader.leading.commit(&mut self.journal, seq);
        if self.options.faults.commits_older_epochs && seq + 1 >= no_op.seq {
            self.begin_serving(no_op);
        }
        let RoleState::Leader(leader) = &mut self.role else { return };
        if self.journal.committed().seq >= leader.no_op.seq
            && !leader.leading.is_open()
            && leader.hand_over.is_none()
        {
            //= SPIN-33
            leader.leading.open(&mut self.journal);
        }
        self.try_hand_over();
    }

    /// Serves strong reads once the table holds the no-op, and so all before it (C4).
    pub(super) fn begin_serving(&mut self, applied: Lsn) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        if !leader.serves && applied.seq >= leader.no_op.seq {
            //= SPIN-33
            leader.serves = true;
            self.step_back.has_served();
            let after = self.now.since(leader.since);
            leader.leading.took_over(after);
            tracing::info!(epoch = self.epoch, ?after, "serves");
            self.answer_reads();
        }
    }

    /// Returns the leader's first entry, and until when a state that includes it is the newest
    /// (SPIN-70).
    pub(super) fn current_of_leader(&self, leader: &Leader) -> Option<(Lsn, Moment)> {
        //= SPIN-70
        let lease = leader.leading.lease_until(self.followers_needed()).filter(|_| leader.serves);
        lease.map(|until| (leader.no_op, until))
    }

    pub(super) fn on_read(&mut self, ticket: Ticket) {
        let RoleState::Leader(leader) = &mut self.role else {
            return self.refuse_to_lead(ticket);
        };
        leader.reads.push(ticket);
        self.answer_reads();
    }

    /// Answers the reads that wait, if the leader may: they hold until its lease ends (SPIN-10).
    fn answer_reads(&mut self) {
        let needed = self.followers_needed();
        let RoleState::Leader(leader) = &mut self.role else { return };
        let lease = leader.leading.lease_until(needed);
        leader.leading.set_lease(lease);
        if !leader.serves {
            return;
        }
        //= SPIN-10
        let until = lease.filter(|until| self.now < *until);
        let until = match until {
            _ if self.options.faults.reads_without_lease => None,
            Some(until) => Some(until),
            None => return,
        };
        for ticket in std::mem::take(&mut leader.reads) {
            self.journal.reply(ticket, Reply::Read { until }, When::Now);
        }
    }

    pub(super) fn on_transfer(&mut self, ticket: Ticket, to: NodeId) {
        let until = self.now + HAND_OVER_MAX;
        let RoleState::Leader(leader) = &mut self.role else {
            return self.refuse_to_lead(ticket);
        };
        if to == self.node {
            return self.journal.reply(ticket, Reply::Done, When::Now);
        }
        let counts = leader.leading.followers.get(&to).is_some_and(|follower| follower.is_voter);
        if !counts || leader.hand_over.is_some() {
            let reason = format!("{to} cannot take over from {} now", self.node);
            return self.journal.refuse(ticket, ReplicaError::Unavailable(reason));
        }
        leader.leading.close();
        leader.hand_over = Some(HandOver { ticket, to, until });
        self.try_hand_over();
    }

    /// Hands over once the successor has everything and everything is committed (SPIN-46).
    fn try_hand_over(&mut self) {
        let last = self.journal.last();
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(HandOver { ticket, to, .. }) = leader.hand_over else { return };
        let successor = leader.leading.followers.get(&to);
        if self.journal.committed() < last || successor.is_none_or(|f| f.match_lsn < last) {
            return;
        }
        //= SPIN-46
        leader.hand_over = None;
        self.journal.reply(ticket, Reply::Done, When::Now);
        self.resign(Some(to));
    }

    /// Gives up the lead and frees every follower from its promise, after every right to read that
    /// rests on it has ended (SPIN-12).
    fn resign(&mut self, successor: Option<NodeId>) {
        let epoch = self.epoch;
        self.set_role(RoleState::Follower(Following::default()));
        self.support.release(self.now);
        self.resigned = self.resigned.max(epoch);
        let mut others: Vec<_> = self.others().collect();
        others.sort_by_key(|other| Some(*other) != successor);
        for other in others {
            let resign = SpinnakerMessage::Resign { epoch, successor };
            match successor {
                // It must not come before what the successor is to have.
                Some(_) => self.journal.send(other, resign, When::Now),
                // The data lane may be why it resigns.
                None => self.journal.signal(other, resign),
            }
        }
        self.await_successor(successor);
    }

    /// Gives up the lead because of a fault that may be this replica's own, and lets the others be
    /// first.
    fn step_down(&mut self) {
        //= SPIN-29
        self.step_back.begin(self.now, self.options.timing.grace);
        self.resign(None);
    }

    pub(super) fn on_reject_stale_epoch(&mut self, epoch: Epoch) {
        //= SPIN-22
        if matches!(&self.role, RoleState::Leader(leader) if epoch > leader.leading.epoch) {
            tracing::info!(epoch, "a follower has promised itself to a newer epoch");
            self.resign(None);
        }
    }

    pub(super) fn on_timeout_of_leader(&mut self) {
        let now = self.now;
        if now >= self.end_of_support() {
            //= SPIN-45
            tracing::warn!(epoch = self.epoch, "a majority does not answer: leads no more");
            return self.step_down();
        }
        if let Some(cause) = self.stalled() {
            //= SPIN-47
            tracing::warn!(epoch = self.epoch, cause, "makes no progress: leads no more");
            return self.step_down();
        }
        self.advance();
        // It may have handed over.
        let RoleState::Leader(leader) = &mut self.role else { return };
        leader.leading.on_timeout(now, &mut self.journal);
        if let Some(hand_over) = leader.hand_over.take_if(|hand_over| hand_over.until <= now) {
            let reason = format!("{} did not catch up in time", hand_over.to);
            self.journal.refuse(hand_over.ticket, ReplicaError::Unavailable(reason));
            // Writes go on, unless the cohort did not take any yet.
            self.advance();
        }
        let RoleState::Leader(leader) = &self.role else { return };
        if leader.reclaim_at.is_some_and(|at| at <= now) {
            self.reclaim();
        }
        self.answer_reads();
    }

    /// Returns when a leader gives up that a majority does not support (SPIN-45).
    fn end_of_support(&self) -> Moment {
        let RoleState::Leader(leader) = &self.role else { return Moment::FAR };
        let lease = leader.leading.lease_until(self.followers_needed());
        let Timing { lease: length, grace, .. } = self.options.timing;
        lease.unwrap_or(leader.since + length) + grace / SLACK_DIVISOR
    }

    pub(super) fn next_of_leader(&self, leader: &Leader) -> Option<Moment> {
        let hand_over = leader.hand_over.as_ref().map(|hand_over| hand_over.until);
        let stalled = leader.stall.due(self.options.timing.grace, self.now);
        let others = [hand_over, leader.reclaim_at, Some(self.end_of_support()), stalled];
        let next = leader.leading.next_timeout(&self.journal);
        others.into_iter().chain([next]).flatten().min()
    }

    /// Takes in whether the coordinator still knows that it leads, in the epoch that it does.
    pub(super) fn on_view_of_leader(&mut self, is_known: bool) {
        if let RoleState::Leader(leader) = &mut self.role {
            leader.reclaim_at = None;
        }
        if !is_known {
            self.reclaim();
        }
    }

    /// Asks for the leader's node again, whose session has ended, until the coordinator knows it
    /// (SPIN-27).
    fn reclaim(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        leader.reclaim_at = Some(self.now + RETRY);
        //= SPIN-27
        let request = ElectionRequest::Reclaim { epoch: self.epoch };
        self.journal.push(Effect::Coordinate { request, when: When::Now });
    }
}
