//! The leader's part: proposing, telling the commit point, staying in touch.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use trireme_types::{Entry, EntryKind, Epoch, Lsn, NodeId, Timing};

use super::catch_up::WriteStall;
use super::{
    Beacon, Follower, Journal, PROBE_AFTER, PROPOSAL_BYTES_MAX, Preceding, Stage, Streams,
};
use crate::core::{Effect, Moment, Ticket, When};
use crate::replica::{Measures, ReplicaError};

/// What only a leader knows.
#[derive(Debug)]
pub(crate) struct Leading {
    /// The epoch of what it sends and proposes.
    pub(crate) epoch: Epoch,
    pub(crate) timing: Timing,
    pub(crate) followers: BTreeMap<NodeId, Follower>,
    pub(crate) measures: Measures,
    /// Whether new writes are taken into the log, or held.
    is_open: bool,
    /// Who waits for which entry.
    waiting: VecDeque<(Lsn, Ticket)>,
    /// Writes that wait until the cohort is open and nothing holds them up.
    held: VecDeque<(Ticket, Bytes)>,
    pub(super) write_stall: Option<WriteStall>,
    /// When a catch-up may hold up writes again.
    pub(super) write_stall_after: Moment,
    /// How far the followers were told that the log is committed, and when.
    advertised_commit: Lsn,
    told_at: Moment,
    /// The epoch in which it began to lead: what it has committed of that epoch or a later one
    /// includes all that its predecessors had.
    first: Epoch,
    /// Until when it holds the lease under which nobody else commits anything; `None` before it
    /// has one. The core keeps it, and may do so late.
    lease: Option<Moment>,
    /// When `told` was last seen to be the newest commit point, under the lease.
    current_at: Option<Moment>,
}

impl Leading {
    /// Begins to lead in `epoch`. Writes are held until [`Leading::open`].
    pub(crate) fn new(
        now: Moment,
        epoch: Epoch,
        timing: Timing,
        followers: impl IntoIterator<Item = NodeId>,
        measures: Measures,
    ) -> Self {
        Self {
            epoch,
            timing,
            followers: followers.into_iter().map(|node| (node, Follower::new(true))).collect(),
            measures,
            is_open: false,
            waiting: VecDeque::new(),
            held: VecDeque::new(),
            write_stall: None,
            write_stall_after: now,
            advertised_commit: Lsn::ZERO,
            told_at: now,
            first: epoch,
            lease: None,
            current_at: None,
        }
    }

    /// Takes a write (SPIN-1, SPIN-2).
    pub(crate) fn propose<C: Streams>(
        &mut self,
        journal: &mut Journal<C>,
        ticket: Ticket,
        payload: Bytes,
    ) {
        if !self.is_open || self.write_stall.is_some() {
            self.held.push_back((ticket, payload));
            return;
        }
        let lsn = self.append(journal, EntryKind::Commands, payload);
        self.waiting.push_back((lsn, ticket));
    }

    /// Adds an entry behind all others and returns its address.
    pub(crate) fn append<C: Streams>(
        &mut self,
        journal: &mut Journal<C>,
        kind: EntryKind,
        payload: Bytes,
    ) -> Lsn {
        //= SPIN-1
        //= PAC-1
        let lsn = Lsn::new(self.epoch, journal.last().seq + 1);
        journal.propose(Entry { lsn, kind, payload });
        lsn
    }

    /// Takes writes into the log from now on, those first that were held.
    pub(crate) fn open<C: Streams>(&mut self, journal: &mut Journal<C>) {
        self.is_open = true;
        self.take_held(journal);
    }

    /// Holds writes from now on.
    pub(crate) const fn close(&mut self) {
        self.is_open = false;
    }

    pub(crate) const fn is_open(&self) -> bool {
        self.is_open
    }

    pub(super) fn take_held<C: Streams>(&mut self, journal: &mut Journal<C>) {
        if !self.is_open || self.write_stall.is_some() {
            return;
        }
        for (ticket, payload) in std::mem::take(&mut self.held) {
            self.propose(journal, ticket, payload);
        }
    }

    /// Sends what the batch has proposed to everybody who is in step, as few messages to each.
    pub(crate) fn send_gathered<C: Streams>(&mut self, now: Moment, journal: &mut Journal<C>) {
        //= SPIN-2
        //= PAC-2
        // The write to the log has been submitted, and nothing here waits for it.
        let entries = journal.take_unsent();
        let Some(first) = entries.first().map(|entry| entry.lsn.seq) else { return };
        self.advertise_commit(now, journal);
        let mut previous =
            journal.log().lsn_at(first - 1).unwrap_or_else(|| journal.log().purged());
        for piece in pieces(&entries) {
            let first = piece[0].lsn.seq;
            let preceding = self.preceding(now, journal, previous);
            let next = first + piece.len() as u64;
            let bytes = piece.iter().map(|entry| entry.payload.len()).sum();
            for (&to, follower) in &mut self.followers {
                if follower.stage == Stage::Replicating && follower.next == first {
                    if !follower.has_room() {
                        tracing::debug!(follower = %to, "does not keep up");
                        follower.stage = Stage::CatchingUp;
                        continue;
                    }
                    follower.sent(next - 1, bytes);
                    follower.last_sent_at = Some(now);
                    follower.probe_at.get_or_insert(now + PROBE_AFTER);
                    let message = C::entries_message(preceding, piece.to_vec());
                    journal.send(to, message, When::Now);
                }
            }
            previous = piece[piece.len() - 1].lsn;
        }
    }

    /// Takes in an acknowledgement: the follower's log is the leader's up to `upto`, on its disk.
    pub(crate) fn on_ack<C: Streams>(
        &mut self,
        now: Moment,
        journal: &mut Journal<C>,
        from: NodeId,
        upto: Lsn,
    ) {
        let Some(follower) = self.followers.get_mut(&from) else { return };
        // What the log does not hold was never sent in this epoch. What was not sent since the follower
        // said where it stands is an acknowledgement from before that, perhaps of a disk that it has
        // lost since: it is sent again.
        let is_held = journal.log().holds(upto) || upto.seq <= journal.committed().seq;
        if !is_held || upto.seq >= follower.next {
            return;
        }
        if upto.seq > follower.match_lsn.seq && follower.stage != Stage::Probing {
            follower.progressed = now;
            follower.on_ack(upto);
            follower.probe_at = follower.is_owing().then(|| now + PROBE_AFTER);
            // There may be room again for the next piece.
            self.send_next(now, journal, from);
        }
    }

    /// Takes in that the follower supports this leader, by acknowledging a message of `sent`.
    pub(crate) fn on_support(&mut self, now: Moment, from: NodeId, sent: Moment) {
        if let Some(follower) = self.followers.get_mut(&from) {
            follower.support(sent, now);
        }
    }

    /// Records that a follower said something on the data lane, or why it does not.
    pub(crate) fn heard_data(&mut self, from: NodeId, now: Moment) {
        if let Some(follower) = self.followers.get_mut(&from) {
            follower.heard_data(now);
        }
    }

    /// Checks what must hold of a leader with this log.
    pub(crate) fn validate<C: Streams>(
        &self,
        journal: &Journal<C>,
        now: Moment,
    ) -> Result<(), String> {
        let last = journal.last();
        if last.epoch > self.epoch {
            return Err(format!("it leads epoch {}, and its log ends with {last}", self.epoch));
        }
        if self.advertised_commit > journal.committed() {
            let committed = journal.committed();
            return Err(format!(
                "{committed} is committed, and {} was advertised",
                self.advertised_commit
            ));
        }
        if self.waiting.back().is_some_and(|(lsn, _)| *lsn > last) {
            return Err(format!("a caller waits for an entry behind {last}"));
        }
        for (node, follower) in &self.followers {
            follower.validate(last.seq, now).map_err(|rule| format!("follower {node}: {rule}"))?;
        }
        Ok(())
    }

    /// Commits up to `seq`: whoever waits for an entry is answered once it is applied (SPIN-6).
    pub(crate) fn commit<C: Streams>(&mut self, journal: &mut Journal<C>, seq: u64) -> bool {
        if seq <= journal.committed().seq {
            return false;
        }
        while let Some(&(lsn, ticket)) = self.waiting.front()
            && lsn.seq <= seq
        {
            self.waiting.pop_front();
            //= SPIN-6
            journal.push(Effect::ReplyOutcomes { ticket, lsn });
        }
        journal.commit(seq)
    }

    /// Stops leading: what is in the log may be committed by another leader or not, what was held
    /// was never in it.
    pub(crate) fn end<C: Streams>(self, journal: &mut Journal<C>, leader: Option<NodeId>) {
        for (_, ticket) in self.waiting {
            let error = ReplicaError::Ambiguous("the replica lost its lead meanwhile".into());
            journal.refuse(ticket, error);
        }
        for (ticket, _) in self.held {
            journal.refuse(ticket, ReplicaError::NotLeader { leader });
        }
    }

    /// Notes how far the log is committed and tells it from now on, once in a commit period
    /// (SPIN-7).
    fn advertise_commit<C: Streams>(&mut self, now: Moment, journal: &mut Journal<C>) -> bool {
        if journal.committed() <= self.advertised_commit || now < self.advertise_at() {
            return false;
        }
        //= SPIN-7
        self.advertised_commit = journal.committed();
        self.told_at = now;
        self.current_at = self.current_at(now, self.advertised_commit);
        journal.record_commit_point();
        true
    }

    fn advertise_at(&self) -> Moment {
        self.told_at + self.timing.commit_period
    }

    pub(super) fn preceding<C: Streams>(
        &mut self,
        now: Moment,
        journal: &Journal<C>,
        previous: Lsn,
    ) -> Preceding {
        let (committed, current_at) =
            (self.advertised_commit, self.advertised_current_at(now, journal));
        Preceding { epoch: self.epoch, previous, committed, sent: now, current_at }
    }

    /// Keeps until when the leader holds its lease.
    pub(crate) const fn set_lease(&mut self, until: Option<Moment>) {
        self.lease = until;
    }

    /// Gives up the lease: somebody else may lead from now on.
    pub(crate) fn end_lease(&mut self, now: Moment) {
        self.lease = self.lease.map(|until| until.min(now));
    }

    /// Returns as of when `point` is the newest commit point, which it is as far as this leader
    /// knows: now, or when its lease ended. Until it has committed an entry of its own, it does not
    /// know how far its predecessors had come.
    pub(super) fn current_at(&self, now: Moment, point: Lsn) -> Option<Moment> {
        //= SPIN-70
        //= PAC-70
        self.lease.map(|until| until.min(now)).filter(|_| point.epoch >= self.first)
    }

    /// Returns as of when what the followers are told was the newest commit point.
    fn advertised_current_at<C: Streams>(
        &mut self,
        now: Moment,
        journal: &Journal<C>,
    ) -> Option<Moment> {
        if journal.committed() == self.advertised_commit {
            self.current_at = self.current_at.max(self.current_at(now, self.advertised_commit));
        }
        self.current_at
    }

    /// Does what is due at `now`.
    pub(crate) fn on_timeout<C: Streams>(&mut self, now: Moment, journal: &mut Journal<C>) {
        self.end_write_stall_if_due(now, journal);
        self.note_who_owes_nothing(now, journal);
        if self.advertise_commit(now, journal) {
            let is_due = |follower: &Follower| {
                follower.stage == Stage::Replicating && follower.next > journal.last().seq
            };
            let due: Vec<_> =
                self.followers.iter().filter(|(_, f)| is_due(f)).map(|(node, _)| *node).collect();
            due.into_iter().for_each(|to| self.send_empty(now, journal, to));
        }
        let overdue = |follower: &Follower| follower.probe_at.is_some_and(|at| at <= now);
        let due: Vec<_> =
            self.followers.iter().filter(|(_, f)| overdue(f)).map(|(node, _)| *node).collect();
        due.into_iter().for_each(|to| self.probe(now, journal, to));
        self.send_beacons(now, journal);
    }

    /// Notes who has everything: his time to acknowledge counts from what comes next.
    fn note_who_owes_nothing<C: Streams>(&mut self, now: Moment, journal: &Journal<C>) {
        let last = journal.last().seq;
        for follower in
            self.followers.values_mut().filter(|follower| follower.match_lsn.seq >= last)
        {
            follower.progressed = now;
        }
    }

    /// Sends a message without entries: it tells the commit point, and whoever lacks what comes
    /// before it says so.
    pub(super) fn send_empty<C: Streams>(
        &mut self,
        now: Moment,
        journal: &mut Journal<C>,
        to: NodeId,
    ) {
        let Some(follower) = self.followers.get_mut(&to) else { return };
        let Some(previous) = journal.log().lsn_at(follower.next - 1) else { return };
        follower.last_sent_at = Some(now);
        let preceding = self.preceding(now, journal, previous);
        let message = C::entries_message(preceding, Vec::new());
        journal.send(to, message, When::Now);
    }

    /// Asks a follower whether something was lost.
    pub(crate) fn probe<C: Streams>(&mut self, now: Moment, journal: &mut Journal<C>, to: NodeId) {
        let Some(follower) = self.followers.get_mut(&to) else { return };
        follower.probe_at = follower.is_owing().then(|| now + PROBE_AFTER);
        match follower.stage {
            Stage::Replicating => self.send_empty(now, journal, to),
            Stage::CatchingUp if follower.has_room() => self.send_next(now, journal, to),
            Stage::CatchingUp => self.send_empty(now, journal, to),
            Stage::Probing => {}
        }
    }

    /// Sends a beacon to every follower that was sent nothing for a beacon interval (M40), or whose
    /// support what was sent does not bring.
    fn send_beacons<C: Streams>(&mut self, now: Moment, journal: &mut Journal<C>) {
        let current_at = self.advertised_current_at(now, journal);
        let beacon =
            Beacon { epoch: self.epoch, committed: self.advertised_commit, sent: now, current_at };
        let interval = self.timing.beacon_interval;
        for (&to, follower) in &mut self.followers {
            if follower.beacon_at(interval) <= now {
                follower.sent_beacon(now);
                self.measures.beacons += 1;
                journal.signal(to, C::beacon_message(beacon));
            }
        }
    }

    /// Returns when something is due.
    pub(crate) fn next_timeout<C: Streams>(&self, journal: &Journal<C>) -> Option<Moment> {
        let interval = self.timing.beacon_interval;
        let of_followers = self.followers.values().flat_map(|follower| {
            [Some(follower.beacon_at(interval)), follower.probe_at].into_iter().flatten()
        });
        let tell = (journal.committed() > self.advertised_commit).then(|| self.advertise_at());
        let write_stall = self.write_stall.as_ref().map(WriteStall::until);
        of_followers.chain(tell).chain(write_stall).min()
    }

    /// Returns how many followers count.
    pub(crate) fn counting(&self) -> usize {
        self.followers.values().filter(|follower| follower.is_voter).count()
    }

    /// Says whether writes are held.
    pub(crate) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Gives up the writes that are held: they were never in the log.
    pub(crate) fn take_held_tickets(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.held).into_iter().map(|(ticket, _)| ticket).collect()
    }

    /// Gives up waiting for the entries up to `seq` for those who proposed them.
    pub(crate) fn take_waiting_tickets(&mut self, seq: u64) -> Vec<(Lsn, Ticket)> {
        let is_covered = |(lsn, _): &&(Lsn, Ticket)| lsn.seq <= seq;
        let covered = self.waiting.iter().take_while(is_covered).count();
        self.waiting.drain(..covered).collect()
    }

    /// Asks every follower whether something was lost.
    pub(crate) fn probe_all<C: Streams>(&mut self, now: Moment, journal: &mut Journal<C>) {
        let nodes: Vec<_> = self.followers.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.probe(now, journal, node));
    }

    /// Returns until when the leader has the support of `needed` of its followers that count.
    pub(crate) fn lease_until(&self, needed: usize) -> Option<Moment> {
        let Some(nth) = needed.checked_sub(1) else { return Some(Moment::FAR) };
        let counting = self.followers.values().filter(|follower| follower.is_voter);
        let mut supported: Vec<_> = counting.filter_map(|follower| follower.supported).collect();
        supported.sort_unstable_by(|a, b| b.cmp(a));
        supported.get(nth).map(|&sent| sent + self.timing.lease)
    }

    /// Returns the sequence that `needed` of the followers that count have on disk.
    pub(crate) fn matched_by(&self, needed: usize) -> Option<u64> {
        let Some(nth) = needed.checked_sub(1) else { return Some(u64::MAX) };
        let counting = self.followers.values().filter(|follower| follower.is_voter);
        let mut acked: Vec<_> = counting.map(|follower| follower.match_lsn.seq).collect();
        acked.sort_unstable_by(|a, b| b.cmp(a));
        acked.get(nth).copied()
    }

    /// Notes that the leader serves now, after so long.
    pub(crate) const fn took_over(&mut self, after: Duration) {
        self.measures.takeovers += 1;
        self.measures.last_takeover = Some(after);
    }

    pub(crate) fn progress(&self) -> Vec<(NodeId, Lsn)> {
        self.followers.iter().map(|(node, follower)| (*node, follower.match_lsn)).collect()
    }
}

/// Cuts entries into what one message each may hold.
fn pieces(entries: &[Entry]) -> Vec<&[Entry]> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        if bytes + entry.payload.len() > PROPOSAL_BYTES_MAX && at > start {
            pieces.push(&entries[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += entry.payload.len();
    }
    pieces.push(&entries[start..]);
    pieces
}
