//! The primary's part: reconciling, committing, serving under its leases.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use trireme_types::{EntryKind, Epoch, Incarnation, Lsn, NodeId};

use super::follower::Following;
use super::reconfiguration::{Purpose, Removal};
use super::{Pacifica, PacificaMessage, RoleState};
use crate::core::{Effect, Moment, Reply, Ticket, When};
use crate::replica::ReplicaError;
use crate::streaming::{Leading, Position};

/// How long requests wait for a primary that cannot serve, before they are refused.
const HOLD_MAX: Duration = Duration::from_secs(1);

/// For how many graces a primary waits for the configuration manager before it sends no more beacons.
/// Long enough that a manager which is away for everybody for a moment finds the cohort as it was; a
/// primary that it alone is away from is replaced after that.
const SILENT_AFTER_GRACES: u32 = 5;

/// What only a primary knows.
#[derive(Debug)]
pub(super) struct Primary {
    pub(super) leading: Leading,
    /// The version in which it became primary; it has been the primary of every one since.
    pub(super) first: Epoch,
    /// When it became primary.
    since: Moment,
    /// Which incarnation of each replica it counts or brings up to date.
    pub(super) incarnations: BTreeMap<NodeId, Incarnation>,
    /// When it last began to count the lease of each replica.
    pub(super) counted: BTreeMap<NodeId, Moment>,
    /// The entry that ends its reconciliation.
    no_op: Lsn,
    /// Everything up to the no-op is committed and in the table.
    is_reconciled: bool,
    /// Until when it holds the leases of all; as of the last time that it looked.
    pub(super) lease_until: Moment,
    /// It has given up serving until the manager has decided.
    pub(super) suspended_since: Option<Moment>,
    /// Reads that wait until it may serve.
    reads: Vec<Ticket>,
    pub(super) removals: BTreeMap<NodeId, Removal>,
    /// Who waits for the lead to have moved.
    pub(super) transfer: Option<Ticket>,
    /// Where it is to move to, once everything is committed.
    successor: Option<NodeId>,
}

impl Primary {
    /// Says whether it has waited for the manager for so long that it is a primary no more to
    /// anybody: whoever reaches the manager may take its place (PAC-26).
    fn is_silent(&self, now: Moment, grace: Duration) -> bool {
        self.suspended_since.is_some_and(|since| now >= since + SILENT_AFTER_GRACES * grace)
    }

    /// Returns its first entry, and until when a state that includes it is the newest (PAC-70).
    pub(super) fn current(&self) -> Option<(Lsn, Moment)> {
        //= PAC-70
        let serves = self.is_reconciled && self.suspended_since.is_none();
        serves.then_some((self.no_op, self.lease_until))
    }

    /// Says whether it may answer strong reads at `now`.
    pub(super) fn serves(&self, now: Moment) -> bool {
        self.is_reconciled && self.suspended_since.is_none() && now < self.lease_until
    }
}

impl Pacifica {
    /// Becomes the primary of the newest configuration, and reconciles (PAC-30).
    pub(super) fn become_primary(&mut self) {
        let Some(config) = &self.config else { return };
        let (version, now) = (config.version, self.now);
        let secondaries: Vec<_> =
            config.replicas.iter().copied().filter(|node| *node != self.node).collect();
        let counted = secondaries.iter().map(|node| (*node, now)).collect();
        let incarnations = config.incarnations.clone();
        let timing = self.options.timing;
        let mut leading = Leading::new(now, version, timing, secondaries, self.measures);
        //= PAC-30
        let no_op = leading.append(&mut self.journal, EntryKind::NoOp, Bytes::new());
        tracing::info!(version, %no_op, "primary: reconciling");
        leading.on_timeout(now, &mut self.journal);
        let primary = Primary {
            leading,
            first: version,
            since: now,
            incarnations,
            counted,
            no_op,
            is_reconciled: self.options.faults.serves_before_reconciling,
            lease_until: Moment::START,
            suspended_since: None,
            reads: Vec::new(),
            removals: BTreeMap::new(),
            transfer: None,
            successor: None,
        };
        self.set_role(RoleState::Primary(Box::new(primary)));
        self.check_leases();
        self.advance();
    }

    /// Takes another part. A primary that is none any more ends what it gave out.
    pub(super) fn set_role(&mut self, role: RoleState) {
        let new_leader = match &role {
            RoleState::Follower(following) => following.leader,
            _ => None,
        };
        let old = std::mem::replace(&mut self.role, role);
        let RoleState::Primary(primary) = old else { return };
        tracing::info!(version = self.state.promised, "primary no more");
        self.measures = primary.leading.measures;
        self.journal.push(Effect::EndReads);
        self.journal.write_gathered();
        // What was gathered and not sent is in the log, where a reconciliation finds it or drops it.
        drop(self.journal.take_unsent());
        primary.leading.end(&mut self.journal, new_leader);
        for ticket in primary.reads {
            self.journal.refuse(ticket, ReplicaError::NotLeader { leader: new_leader });
        }
        if let Some(ticket) = primary.transfer {
            self.journal.reply(ticket, Reply::Done, When::Now);
        }
    }

    pub(super) fn on_propose(&mut self, ticket: Ticket, payload: Bytes) {
        let replicas = self.config.as_ref().map_or(0, |config| config.replicas.len());
        let RoleState::Primary(primary) = &mut self.role else {
            return self.refuse_to_lead(ticket);
        };
        //= PAC-8
        let least = self.options.min_replicas_for_write;
        if replicas < least {
            return self.refuse_as_too_few(ticket);
        }
        if has_waited(self.now, primary.suspended_since) {
            return self.refuse_as_fenced(ticket);
        }
        primary.leading.propose(&mut self.journal, ticket, payload);
    }

    pub(super) fn on_prepared(
        &mut self,
        from: NodeId,
        epoch: Epoch,
        upto: Lsn,
        supports: Option<Moment>,
    ) {
        if !self.is_of_this_primary(epoch) {
            return;
        }
        let RoleState::Primary(primary) = &mut self.role else { return };
        primary.leading.on_ack(self.now, &mut self.journal, from, upto);
        self.take_support(from, supports);
        self.advance();
        self.consider_adding(from);
    }

    pub(super) fn on_beacon_ack(&mut self, from: NodeId, epoch: Epoch, supports: Option<Moment>) {
        if self.is_of_this_primary(epoch) {
            self.take_support(from, supports);
            self.consider_adding(from);
        }
    }

    /// Says whether a message of this version is an answer to what this primary sent: in its newest
    /// version or an earlier one of its own. What an acknowledgement says of a log stays true.
    fn is_of_this_primary(&self, version: Epoch) -> bool {
        matches!(&self.role, RoleState::Primary(primary)
            if (primary.first..=primary.leading.epoch).contains(&version))
    }

    fn take_support(&mut self, from: NodeId, supports: Option<Moment>) {
        let RoleState::Primary(primary) = &mut self.role else { return };
        if let Some(sent) = supports {
            //= PAC-20
            let counted = if self.options.faults.leases_from_receipt { self.now } else { sent };
            primary.leading.on_support(self.now, from, counted);
        }
        self.check_leases();
    }

    pub(super) fn on_report_position(
        &mut self,
        from: NodeId,
        version: Epoch,
        position: Position,
        incarnation: Incarnation,
    ) {
        let promised = self.state.promised;
        if version > promised || !matches!(self.role, RoleState::Primary(_)) {
            return;
        }
        if !self.admits(from, incarnation) {
            return;
        }
        let RoleState::Primary(primary) = &mut self.role else { return };
        // Whether it counts is for the configuration to say, not for the replica.
        let position = Position { is_learner: false, ..position };
        let matched =
            |primary: &Primary| primary.leading.followers.get(&from).map(|f| f.match_lsn.seq);
        let before = matched(primary);
        //= PAC-41
        primary.leading.on_report_position(self.now, &mut self.journal, from, position);
        if matched(primary) > before
            && let Some(follower) = primary.leading.followers.get_mut(&from)
        {
            // A snapshot brings it forward without a single entry.
            follower.progressed = self.now;
        }
        self.advance();
        self.consider_adding(from);
    }

    pub(super) fn on_log_sent(&mut self, to: NodeId, seqs: &Range<u64>, next: u64) {
        if let RoleState::Primary(primary) = &mut self.role {
            primary.leading.on_log_sent(self.now, &mut self.journal, to, seqs, next);
        }
    }

    pub(super) fn on_snapshot_sent(&mut self, to: NodeId, answer: Option<PacificaMessage>) {
        let RoleState::Primary(primary) = &mut self.role else { return };
        match answer {
            Some(answer) => {
                primary.leading.on_snapshot_sent(to);
                self.on_message(to, answer);
            }
            None => primary.leading.on_snapshot_lost(self.now, to),
        }
    }

    /// Commits what is on the disks of all (PAC-5).
    pub(super) fn advance(&mut self) {
        let RoleState::Primary(primary) = &mut self.role else { return };
        let counting = primary.leading.counting();
        let Some(acked) = primary.leading.matched_by(counting) else { return };
        //= PAC-5
        let seq = acked.min(self.journal.durable().seq);
        let replicas = self.config.as_ref().map_or(0, |config| config.replicas.len());
        let judges = !self.options.faults.judges_the_minimum_early;
        if replicas < self.options.min_replicas_for_write && judges {
            //= PAC-9
            for (lsn, ticket) in primary.leading.take_waiting_tickets(seq) {
                let reason = "too few replicas are left to acknowledge the write".into();
                let error = Reply::Error(ReplicaError::Ambiguous(reason));
                // A read that is asked for after this answer must not miss what a later one finds.
                self.journal.reply(ticket, error, When::Applied(lsn));
            }
        }
        primary.leading.commit(&mut self.journal, seq);
        self.open_or_close();
        self.try_transfer();
    }

    /// Takes new writes as long as the primary is one: everything up to the no-op is committed,
    /// and it holds its leases.
    pub(super) fn open_or_close(&mut self) {
        let now = self.now;
        let RoleState::Primary(primary) = &mut self.role else { return };
        let is_reconciled = self.journal.committed().seq >= primary.no_op.seq;
        //= PAC-31
        let opens = is_reconciled
            && primary.suspended_since.is_none()
            && primary.transfer.is_none()
            && now < primary.lease_until;
        match (opens, primary.leading.is_open()) {
            (true, false) => primary.leading.open(&mut self.journal),
            (false, true) => primary.leading.close(),
            _ => {}
        }
    }

    /// Serves strong reads once the table holds everything up to the no-op (PAC-31).
    pub(super) fn begin_serving(&mut self, applied: Lsn) {
        let RoleState::Primary(primary) = &mut self.role else { return };
        if !primary.is_reconciled && applied.seq >= primary.no_op.seq {
            //= PAC-31
            primary.is_reconciled = true;
            let after = self.now.since(primary.since);
            primary.leading.took_over(after);
            tracing::info!(version = self.state.promised, ?after, "serves");
            self.answer_reads();
        }
    }

    pub(super) fn on_read(&mut self, ticket: Ticket) {
        let RoleState::Primary(primary) = &mut self.role else {
            return self.refuse_to_lead(ticket);
        };
        primary.reads.push(ticket);
        //= PAC-24
        // A lease may have ended without anybody having looked: the clock decides, not a timer.
        self.check_leases();
        self.refuse_waiting();
    }

    /// Answers the reads that wait, if the primary serves: they hold until its leases end (PAC-7).
    pub(super) fn answer_reads(&mut self) {
        let faults = self.options.faults;
        let RoleState::Primary(primary) = &mut self.role else { return };
        let is_careless = faults.serves_while_removing && primary.is_reconciled;
        //= PAC-7
        let serves = primary.serves(self.now);
        if !serves && !is_careless {
            return;
        }
        let until = serves.then_some(primary.lease_until);
        for ticket in std::mem::take(&mut primary.reads) {
            self.journal.reply(ticket, Reply::Read { until }, When::Now);
        }
    }

    /// Looks at every lease. When one has ended, the primary stops serving, and has whoever does not
    /// renew it taken out of the configuration (PAC-23).
    pub(super) fn check_leases(&mut self) {
        let (now, lease) = (self.now, self.options.timing.lease);
        let RoleState::Primary(primary) = &mut self.role else { return };
        let mut ends: Vec<_> = primary.lease_ends(lease).collect();
        ends.sort_unstable_by_key(|(_, end)| *end);
        //= PAC-20
        let nth = if self.options.faults.lease_of_majority { ends.len() / 2 } else { 0 };
        primary.lease_until = ends.get(nth).map_or(Moment::FAR, |(_, end)| *end);
        // Whoever it handed over to, or was taken out by, may lead before its leases end.
        let lease =
            primary.suspended_since.map_or(primary.lease_until, |at| primary.lease_until.min(at));
        primary.leading.set_lease(Some(lease));
        if now < primary.lease_until {
            self.note_leases();
            self.open_or_close();
            return self.answer_reads();
        }
        //= PAC-23
        self.open_or_close();
        let lapsed: Vec<_> =
            ends.into_iter().filter(|(_, end)| *end <= now).map(|(node, _)| node).collect();
        self.remove(&lapsed);
        if self.options.faults.serves_while_removing {
            self.answer_reads();
        }
    }

    /// Refuses the writes that wait to be taken, if the configuration has too few replicas for them
    /// now.
    pub(super) fn refuse_held_if_too_few(&mut self) {
        let replicas = self.config.as_ref().map_or(0, |config| config.replicas.len());
        let RoleState::Primary(primary) = &mut self.role else { return };
        if replicas < self.options.min_replicas_for_write {
            //= PAC-8
            let held = primary.leading.take_held_tickets();
            held.into_iter().for_each(|ticket| self.refuse_as_too_few(ticket));
        }
    }

    fn refuse_as_too_few(&mut self, ticket: Ticket) {
        let least = self.options.min_replicas_for_write;
        let replicas = self.config.as_ref().map_or(0, |config| config.replicas.len());
        let reason = format!("writes need {least} replicas, and there are {replicas}");
        self.journal.refuse(ticket, ReplicaError::Unavailable(reason));
    }

    fn refuse_as_fenced(&mut self, ticket: Ticket) {
        let reason = "the primary waits for the configuration manager".into();
        self.journal.refuse(ticket, ReplicaError::Unavailable(reason));
    }

    /// Refuses what has waited for too long: the configuration manager does not answer.
    fn refuse_waiting(&mut self) {
        let RoleState::Primary(primary) = &mut self.role else { return };
        if !has_waited(self.now, primary.suspended_since) {
            return;
        }
        let mut waiting = std::mem::take(&mut primary.reads);
        waiting.extend(primary.leading.take_held_tickets());
        waiting.into_iter().for_each(|ticket| self.refuse_as_fenced(ticket));
    }

    pub(super) fn on_reject_stale_epoch(&mut self, version: Epoch) {
        let now = self.now;
        let RoleState::Primary(primary) = &mut self.role else { return };
        if version <= primary.leading.epoch {
            return;
        }
        tracing::info!(version, "a newer configuration is installed");
        if self.pending.as_ref().is_some_and(|pending| pending.config.version == version) {
            // It may be the one that this primary asked for: the manager says whose it is.
            if primary.suspended_since.is_none() {
                primary.suspended_since = Some(now);
                primary.leading.end_lease(now);
                self.journal.push(Effect::EndReads);
            }
            return self.open_or_close();
        }
        //= PAC-12
        self.pending = None;
        self.named = None;
        self.set_role(RoleState::Follower(Following::default()));
    }

    pub(super) fn on_timeout_of_primary(&mut self) {
        let (now, grace) = (self.now, self.options.timing.grace);
        self.step_down_if_it_hangs();
        let RoleState::Primary(primary) = &mut self.role else { return };
        //= PAC-26
        if !primary.is_silent(now, grace) {
            primary.leading.on_timeout(now, &mut self.journal);
        }
        self.check_leases();
        self.forget_silent_candidates();
        self.refuse_waiting();
        self.advance();
    }

    pub(super) fn next_of_primary(&self, primary: &Primary) -> Option<Moment> {
        let lease = Some(primary.lease_until).filter(|end| *end > self.now);
        let is_waiting = !primary.reads.is_empty() || primary.leading.is_holding();
        let fenced = primary.suspended_since.filter(|_| is_waiting).map(|since| since + HOLD_MAX);
        let candidates = self.next_silent_candidate(primary);
        let grace = self.options.timing.grace;
        let is_silent = primary.is_silent(self.now, grace);
        let leading = primary.leading.next_timeout(&self.journal).filter(|_| !is_silent);
        leading
            .into_iter()
            .chain(lease.filter(|end| *end < Moment::FAR))
            .chain(fenced)
            .chain(candidates)
            .chain(self.steps_down_at())
            .min()
    }

    /// Hands over to a secondary that has everything, by a configuration that names it as the
    /// primary (PAC-36).
    pub(super) fn on_transfer(&mut self, ticket: Ticket, to: NodeId) {
        let has_pending = self.pending.is_some();
        let RoleState::Primary(primary) = &mut self.role else {
            return self.refuse_to_lead(ticket);
        };
        if to == self.node {
            return self.journal.reply(ticket, Reply::Done, When::Now);
        }
        let is_secondary = primary.leading.followers.get(&to).is_some_and(|f| f.is_voter);
        if !is_secondary || has_pending || primary.transfer.is_some() {
            let reason = format!("{to} cannot take over from {} now", self.node);
            return self.journal.refuse(ticket, ReplicaError::Unavailable(reason));
        }
        primary.leading.close();
        primary.transfer = Some(ticket);
        primary.successor = Some(to);
        self.try_transfer();
    }

    /// Keeps the lead if whoever was to get it is not in the configuration any more.
    pub(super) fn give_up_transfer_to_others_than(&mut self, secondaries: &[NodeId]) {
        let RoleState::Primary(primary) = &mut self.role else { return };
        let Some(to) = primary.successor.take_if(|to| !secondaries.contains(to)) else { return };
        if let Some(ticket) = primary.transfer.take() {
            let reason = format!("{to} was taken out of the configuration");
            self.journal.refuse(ticket, ReplicaError::Unavailable(reason));
        }
    }

    fn try_transfer(&mut self) {
        let (last, committed) = (self.journal.last(), self.journal.committed());
        let RoleState::Primary(primary) = &mut self.role else { return };
        let (Some(_), Some(to)) = (primary.transfer, primary.successor) else { return };
        if committed < last || self.pending.is_some() {
            return;
        }
        //= PAC-36
        primary.successor = None;
        primary.suspended_since = Some(self.now);
        primary.leading.end_lease(self.now);
        self.journal.push(Effect::EndReads);
        self.propose(Purpose::Transfer { to });
    }
}

/// Says whether requests have waited long enough for a primary that stopped serving at `since`.
fn has_waited(now: Moment, since: Option<Moment>) -> bool {
    since.is_some_and(|since| now >= since + HOLD_MAX)
}
