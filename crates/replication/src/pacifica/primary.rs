//! The primary: reconciling, committing, serving under its leases.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use trireme_types::{CohortConfig, Epoch, Incarnation, Lsn, NodeId};

use super::Shared;
use super::candidates::Removal;
use super::proposal::Purpose;
use crate::core::{Effect, Moment, Reply, Rest, Ticket, When};
use crate::replica::ReplicaError;
use crate::streaming::{ACK_LEASES, Leading, Position, Progress};

/// How long requests wait for a primary that cannot serve, before they are refused.
const HOLD_MAX: Duration = Duration::from_secs(1);

/// For how many graces a primary waits for the configuration manager before it sends no more beacons.
/// Long enough that a manager which is away for every replica for a moment finds the cohort as it was;
/// a primary that it alone is away from is replaced after that.
const SILENT_AFTER_GRACES: u32 = 5;

/// What only a primary knows.
#[derive(Debug)]
pub(super) struct Primary {
    /// Its no-op ends its reconciliation, and has the version in which it became primary; it has been
    /// the primary of every one since.
    pub(super) leading: Leading,
    /// Which incarnation of each replica it counts or brings up to date.
    pub(super) incarnations: BTreeMap<NodeId, Incarnation>,
    /// When it last began to count the lease of each replica.
    pub(super) counted: BTreeMap<NodeId, Moment>,
    /// Until when it holds the leases of all; as of the last check.
    pub(super) lease_until: Moment,
    /// Since when it serves nothing, until the manager has decided.
    suspended_since: Option<Moment>,
    pub(super) removals: BTreeMap<NodeId, Removal>,
    /// The caller that waits for the lead to have moved.
    pub(super) transfer: Option<Ticket>,
    /// Where it is to move to, once everything is committed.
    successor: Option<NodeId>,
}

/// Why a primary is one no more.
#[derive(Clone, Copy, Debug)]
pub(super) enum StepDown {
    /// So that a secondary can take its place, though the configuration still names it.
    ForOthers,
    /// A newer configuration is installed.
    Replaced,
}

/// Whether the primary goes on: one that steps down does nothing after that.
pub(super) type Lead = ControlFlow<StepDown>;

pub(super) const GOES_ON: Lead = ControlFlow::Continue(());

/// Beginning, going on, ending.
impl Primary {
    /// Begins as the primary of this configuration, and reconciles (PAC-30).
    pub(super) fn begin(cx: &mut Shared, config: &CohortConfig) -> Self {
        let node = cx.node;
        let secondaries: Vec<_> = config.replicas.iter().copied().filter(|n| *n != node).collect();
        let counted = secondaries.iter().map(|node| (*node, cx.now)).collect();
        //= PAC-30
        if cx.own.options.faults.drops_what_it_prepared() {
            cx.journal.truncate_after(cx.journal.committed().seq);
        }
        let mut leading = Leading::begin(cx, config.version, secondaries);
        if cx.own.options.faults.serves_before_reconciling() {
            leading.serve_at_once();
        }
        Self {
            leading,
            incarnations: config.incarnations.clone(),
            counted,
            lease_until: Moment::START,
            suspended_since: None,
            removals: BTreeMap::new(),
            transfer: None,
            successor: None,
        }
    }

    /// Goes on in a configuration with the same primary: replicas were removed or added.
    pub(super) fn go_on(&mut self, cx: &mut Shared) -> Lead {
        let (now, node) = (cx.now, cx.node);
        let Some(config) = cx.own.config.clone() else { return GOES_ON };
        let listed: Vec<_> = config.replicas.iter().copied().filter(|n| *n != node).collect();
        self.leading.epoch = config.version;
        self.suspended_since = None;
        let named = config.incarnations.iter().filter(|(node, _)| listed.contains(node));
        self.incarnations.extend(named);
        self.refuse_held_if_too_few(cx);
        let is_gone =
            |(node, follower): &(&NodeId, &Progress)| follower.is_voter() && !listed.contains(node);
        let gone: Vec<_> =
            self.leading.followers.iter().filter(is_gone).map(|(node, _)| *node).collect();
        for node in gone {
            self.forget(cx, node);
            self.note_removal(now, node);
        }
        let is_new = |node: &NodeId| self.leading.followers.get(node).is_none_or(|f| !f.is_voter());
        if listed.iter().any(is_new) {
            cx.journal.push(Effect::EndReads);
        }
        for &node in &listed {
            let follower = self.leading.followers.entry(node).or_insert(Progress::probing(true));
            follower.become_voter();
            self.counted.entry(node).or_insert(now);
        }
        self.give_up_transfer_to_others_than(cx, &listed);
        // What is under way in the old version may be refused by now: a replica that lacks it reports
        // its position.
        self.leading.probe_all(cx);
        self.check_leases(cx)?;
        self.advance(cx);
        GOES_ON
    }

    /// Ends what it gave out; `leader` is the primary now, as far as is known.
    pub(super) fn end(self, cx: &mut Shared, leader: Option<NodeId>) {
        self.leading.stop(cx);
        self.leading.refuse_callers(cx, leader);
        if let Some(ticket) = self.transfer {
            cx.journal.reply(ticket, Reply::Done, When::Now);
        }
    }

    /// Returns what it could rest as.
    pub(super) fn rest(&self, cx: &Shared) -> Option<Rest> {
        let is_free = self.suspended_since.is_none()
            && self.transfer.is_none()
            && self.successor.is_none()
            && cx.now < self.lease_until;
        is_free.then(|| self.leading.rest(cx)).flatten()
    }

    /// Serves nothing until the manager has decided.
    fn suspend(&mut self, cx: &mut Shared) {
        self.suspended_since = Some(cx.now);
        self.leading.end_lease(cx.now);
        cx.journal.push(Effect::EndReads);
    }

    /// A newer configuration was named by a replica that rejects this primary's messages.
    pub(super) fn on_reject_stale_epoch(&mut self, cx: &mut Shared, version: Epoch) -> Lead {
        if version <= self.leading.epoch {
            return GOES_ON;
        }
        tracing::info!(version, "a newer configuration is installed");
        if cx.own.pending.as_ref().is_some_and(|pending| pending.config.version == version) {
            // It may be the one that this primary asked for: the manager decides whose it is.
            if self.suspended_since.is_none() {
                self.suspend(cx);
            }
            self.open_or_close(cx);
            return GOES_ON;
        }
        //= PAC-12
        ControlFlow::Break(StepDown::Replaced)
    }
}

/// What secondaries and candidates send.
impl Primary {
    pub(super) fn on_prepared(
        &mut self,
        cx: &mut Shared,
        from: NodeId,
        (version, upto): (Epoch, Lsn),
        supports: Option<Moment>,
    ) -> Lead {
        if !self.has_sent(version) {
            return GOES_ON;
        }
        self.leading.on_ack(cx, from, upto);
        self.on_support(cx, from, supports)?;
        self.advance(cx);
        self.consider_adding(cx, from)
    }

    pub(super) fn on_beacon_ack(
        &mut self,
        cx: &mut Shared,
        from: NodeId,
        version: Epoch,
        supports: Option<Moment>,
    ) -> Lead {
        if !self.has_sent(version) {
            return GOES_ON;
        }
        self.on_support(cx, from, supports)?;
        self.consider_adding(cx, from)
    }

    /// Returns true if a message of this version is an answer to what this primary sent: in its newest
    /// version or an earlier one of its own. What an acknowledgement says of a log stays true.
    fn has_sent(&self, version: Epoch) -> bool {
        (self.leading.no_op.epoch..=self.leading.epoch).contains(&version)
    }

    fn on_support(&mut self, cx: &mut Shared, from: NodeId, supports: Option<Moment>) -> Lead {
        if let Some(sent) = supports {
            //= PAC-20
            let from_receipt = cx.own.options.faults.leases_from_receipt();
            let counted = if from_receipt { cx.now } else { sent };
            self.leading.on_support(cx.now, from, counted);
        }
        self.check_leases(cx)
    }

    pub(super) fn on_report_position(
        &mut self,
        cx: &mut Shared,
        from: NodeId,
        version: Epoch,
        (position, incarnation): (Position, Incarnation),
    ) -> Lead {
        if version > cx.state.promised || !self.admits(cx, from, incarnation) {
            return GOES_ON;
        }
        // Whether it is a voter is for the configuration to say, not for the replica.
        let position = Position { is_learner: false, ..position };
        let before = self.match_seq(from);
        //= PAC-41
        self.leading.on_report_position(cx, from, position);
        if self.match_seq(from) > before
            && let Some(follower) = self.leading.followers.get_mut(&from)
        {
            // A snapshot brings it forward without a single entry.
            follower.note_progress(cx.now);
        }
        self.advance(cx);
        self.consider_adding(cx, from)
    }

    fn match_seq(&self, node: NodeId) -> Option<u64> {
        self.leading.followers.get(&node).map(|follower| follower.match_lsn().seq)
    }
}

/// Committing and serving.
impl Primary {
    pub(super) fn on_propose(&mut self, cx: &mut Shared, ticket: Ticket, payload: Bytes) {
        //= PAC-8
        if cx.own.has_too_few() {
            return cx.refuse_as_too_few(ticket);
        }
        if self.has_waited(cx.now) {
            return refuse_as_suspended(cx, ticket);
        }
        self.leading.propose(cx, ticket, payload);
    }

    /// Commits what is on the disks of all (PAC-5).
    pub(super) fn advance(&mut self, cx: &mut Shared) {
        let Some(matched) = self.leading.matched_by(self.leading.voters()) else { return };
        //= PAC-5
        let seq = matched.min(cx.journal.durable().seq);
        if cx.own.has_too_few() && !cx.own.options.faults.judges_the_minimum_early() {
            //= PAC-9
            for (lsn, ticket) in self.leading.take_waiting_tickets(seq) {
                let reason = "too few replicas are left to acknowledge the write".into();
                let error = Reply::Error(ReplicaError::Ambiguous(reason));
                // A read that is asked for after this answer must not miss what a later one finds.
                cx.journal.reply(ticket, error, When::Applied(lsn));
            }
        }
        self.leading.commit(cx, seq);
        self.open_or_close(cx);
        self.try_transfer(cx);
    }

    /// Accepts new writes as long as the primary is one: everything up to its no-op is committed, and
    /// it holds its leases.
    fn open_or_close(&mut self, cx: &mut Shared) {
        //= PAC-31
        let opens = self.leading.is_established(&cx.journal)
            && self.suspended_since.is_none()
            && self.transfer.is_none()
            && cx.now < self.lease_until;
        match (opens, self.leading.is_open()) {
            (true, false) => self.leading.open(cx),
            (false, true) => self.leading.close(),
            _ => {}
        }
    }

    /// Returns its first entry, and until when a state that includes it is the newest (PAC-70).
    pub(super) fn current(&self) -> Option<(Lsn, Moment)> {
        //= PAC-70
        let serves = self.leading.serves() && self.suspended_since.is_none();
        serves.then_some((self.leading.no_op, self.lease_until))
    }

    /// Returns true if it may answer strong (linearizable) reads at `now`.
    pub(super) fn serves(&self, now: Moment) -> bool {
        self.leading.serves() && self.suspended_since.is_none() && now < self.lease_until
    }

    /// Serves strong reads once the table holds everything up to the no-op (PAC-31).
    pub(super) fn begin_serving(&mut self, cx: &mut Shared, applied: Lsn) {
        //= PAC-31
        if self.leading.begin_serving(cx.now, applied) {
            self.answer_reads(cx);
        }
    }

    pub(super) fn on_read(&mut self, cx: &mut Shared, ticket: Ticket) -> Lead {
        self.leading.add_read(ticket);
        //= PAC-24
        // A lease may have ended since the last check: the clock decides, not a timer.
        self.check_leases(cx)?;
        self.refuse_waiting(cx);
        GOES_ON
    }

    /// Answers the reads that wait, if the primary serves: they hold until its leases end (PAC-7).
    fn answer_reads(&mut self, cx: &mut Shared) {
        //= PAC-7
        let serves = self.serves(cx.now);
        let is_careless = cx.own.options.faults.serves_while_removing() && self.leading.serves();
        if serves || is_careless {
            let until = serves.then_some(self.lease_until);
            self.leading.answer_reads(&mut cx.journal, until);
        }
    }
}

/// Leases.
impl Primary {
    /// Checks every lease. When one has ended, the primary stops serving, and has the secondaries that
    /// do not renew theirs taken out of the configuration (PAC-23).
    pub(super) fn check_leases(&mut self, cx: &mut Shared) -> Lead {
        let now = cx.now;
        let ends = self.take_in_leases(cx);
        if now < self.lease_until {
            cx.note_leases();
            self.open_or_close(cx);
            self.answer_reads(cx);
            return GOES_ON;
        }
        //= PAC-23
        self.open_or_close(cx);
        let lapsed: Vec<_> =
            ends.into_iter().filter(|(_, end)| *end <= now).map(|(node, _)| node).collect();
        self.remove(cx, &lapsed)?;
        if cx.own.options.faults.serves_while_removing() {
            self.answer_reads(cx);
        }
        GOES_ON
    }

    /// Takes in until when each secondary supports it. A candidate that asks a primary that has rested would
    /// be refused without: that serves by the leases of before (PAC-40).
    pub(super) fn take_in_leases(&mut self, cx: &Shared) -> Vec<(NodeId, Moment)> {
        let mut ends: Vec<_> = self.lease_ends(cx.timing.lease).collect();
        ends.sort_unstable_by_key(|(_, end)| *end);
        //= PAC-20
        let nth = if cx.own.options.faults.lease_of_majority() { ends.len() / 2 } else { 0 };
        self.lease_until = ends.get(nth).map_or(Moment::FAR, |(_, end)| *end);
        // A replica that it handed over to, or was taken out by, may lead before its leases end.
        let lease = self.suspended_since.map_or(self.lease_until, |at| self.lease_until.min(at));
        self.leading.set_lease(Some(lease));
        ends
    }

    /// Returns when the lease of each voter ends.
    fn lease_ends(&self, lease: Duration) -> impl Iterator<Item = (NodeId, Moment)> {
        let voters = self.leading.followers.iter().filter(|(_, follower)| follower.is_voter());
        voters.map(move |(node, follower)| {
            let counted = self.counted.get(node).copied().unwrap_or_default();
            // Before its first acknowledgement a secondary gives no lease, and is given the time of
            // one to answer.
            let supported = follower.supported().map_or(Moment::START, |sent| sent + lease);
            // A lease of beacons alone would keep one whose disk hangs (P14).
            //= PAC-25
            let hung = follower.progressed().max(counted) + ACK_LEASES * lease;
            (*node, supported.min(hung))
        })
    }

    /// Has secondaries taken out that do not renew their lease.
    fn remove(&mut self, cx: &mut Shared, lapsed: &[NodeId]) -> Lead {
        let (now, lease) = (cx.now, cx.timing.lease);
        // One that has not answered yet is given a lease's time to.
        let is_due = |node: &NodeId| {
            let counted = self.counted.get(node).copied().unwrap_or_default();
            counted + lease <= now
        };
        let due: Vec<_> = lapsed.iter().copied().filter(is_due).collect();
        if due.is_empty() {
            return GOES_ON;
        }
        if self.would_be_useless_without(cx, &due) {
            return self.step_down_for_others();
        }
        //= PAC-33
        self.suspended_since.get_or_insert(now);
        cx.propose(Purpose::Remove(&due), Some(&self.incarnations));
        GOES_ON
    }
}

/// Requests that wait.
impl Primary {
    /// Returns true if requests have waited long enough for a primary that serves nothing.
    fn has_waited(&self, now: Moment) -> bool {
        self.suspended_since.is_some_and(|since| now >= since + HOLD_MAX)
    }

    /// Refuses what has waited for too long: the configuration manager does not answer.
    fn refuse_waiting(&mut self, cx: &mut Shared) {
        if self.has_waited(cx.now) {
            let mut waiting = self.leading.take_reads();
            waiting.extend(self.leading.take_held_tickets());
            waiting.into_iter().for_each(|ticket| refuse_as_suspended(cx, ticket));
        }
    }

    /// Refuses the writes that are held, if the configuration has too few replicas for them now.
    fn refuse_held_if_too_few(&mut self, cx: &mut Shared) {
        if cx.own.has_too_few() {
            //= PAC-8
            let held = self.leading.take_held_tickets();
            held.into_iter().for_each(|ticket| cx.refuse_as_too_few(ticket));
        }
    }
}

impl Shared {
    fn refuse_as_too_few(&mut self, ticket: Ticket) {
        let (least, replicas) = (self.own.options.min_replicas_for_write, self.own.replicas());
        let reason = format!("writes need {least} replicas, and there are {replicas}");
        self.journal.refuse(ticket, ReplicaError::Unavailable(reason));
    }
}

fn refuse_as_suspended(cx: &mut Shared, ticket: Ticket) {
    let reason = "the primary waits for the configuration manager".into();
    cx.journal.refuse(ticket, ReplicaError::Unavailable(reason));
}

/// Handing over.
impl Primary {
    /// Hands over to a secondary that has everything, by a configuration that names it as the
    /// primary (PAC-36).
    pub(super) fn on_transfer(&mut self, cx: &mut Shared, ticket: Ticket, to: NodeId) {
        if to == cx.node {
            return cx.journal.reply(ticket, Reply::Done, When::Now);
        }
        let is_secondary = self.leading.followers.get(&to).is_some_and(Progress::is_voter);
        if !is_secondary || cx.own.pending.is_some() || self.transfer.is_some() {
            let reason = format!("{to} cannot take over from {} now", cx.node);
            return cx.journal.refuse(ticket, ReplicaError::Unavailable(reason));
        }
        self.leading.close();
        self.transfer = Some(ticket);
        self.successor = Some(to);
        self.try_transfer(cx);
    }

    /// Keeps the lead if the replica that was to get it is not in the configuration any more.
    fn give_up_transfer_to_others_than(&mut self, cx: &mut Shared, secondaries: &[NodeId]) {
        let Some(to) = self.successor.take_if(|to| !secondaries.contains(to)) else { return };
        if let Some(ticket) = self.transfer.take() {
            let reason = format!("{to} was taken out of the configuration");
            cx.journal.refuse(ticket, ReplicaError::Unavailable(reason));
        }
    }

    fn try_transfer(&mut self, cx: &mut Shared) {
        let (Some(_), Some(to)) = (self.transfer, self.successor) else { return };
        if cx.journal.committed() < cx.journal.last() || cx.own.pending.is_some() {
            return;
        }
        //= PAC-36
        self.successor = None;
        self.suspend(cx);
        cx.propose(Purpose::Transfer { to }, Some(&self.incarnations));
    }
}

/// Timeouts.
impl Primary {
    pub(super) fn on_timeout(&mut self, cx: &mut Shared) -> Lead {
        self.step_down_if_it_hangs(cx)?;
        //= PAC-26
        if !self.is_silent(cx) {
            self.leading.on_timeout(cx);
        }
        self.check_leases(cx)?;
        self.forget_silent_candidates(cx);
        self.refuse_waiting(cx);
        self.advance(cx);
        GOES_ON
    }

    /// Returns true if it has waited for the manager for so long that it sends no more beacons: a
    /// replica that reaches the manager may take its place (PAC-26).
    fn is_silent(&self, cx: &Shared) -> bool {
        let silent_after = SILENT_AFTER_GRACES * cx.timing.grace;
        self.suspended_since.is_some_and(|since| cx.now >= since + silent_after)
    }

    pub(super) fn next_timeout(&self, cx: &Shared) -> Option<Moment> {
        let lease = Some(self.lease_until).filter(|end| *end > cx.now && *end < Moment::FAR);
        let refuses = self.suspended_since.map(|since| since + HOLD_MAX).filter(|at| *at > cx.now);
        let leading = self.leading.next_timeout(cx).filter(|_| !self.is_silent(cx));
        let candidates = self.next_silent_candidate(cx.timing);
        [leading, lease, refuses, candidates, self.steps_down_at(cx)].into_iter().flatten().min()
    }
}
