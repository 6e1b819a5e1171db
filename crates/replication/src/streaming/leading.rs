//! The leader's part: beginning and ending to lead, proposing, committing.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use trireme_types::{Entry, EntryKind, Epoch, Lsn, NodeId};

use super::catch_up::WriteStall;
use super::{Progress, Shared, Streams};
use crate::core::{Effect, Moment, Rest, Terms, Ticket};
use crate::replica::{Measures, ReplicaError};

/// What only a leader knows.
#[derive(Debug)]
pub(crate) struct Leading {
    /// The epoch of what it sends and proposes.
    pub(crate) epoch: Epoch,
    pub(crate) followers: BTreeMap<NodeId, Progress>,
    pub(crate) measures: Measures,
    /// When it began to lead.
    pub(crate) since: Moment,
    /// Its first entry, of the epoch in which it began to lead: when this is committed, so is all that
    /// its predecessors had committed, and it knows so (S1).
    pub(crate) no_op: Lsn,
    /// Its table holds all that its predecessors acknowledged.
    pub(super) serves: bool,
    /// Reads that wait until it serves and has its lease.
    pub(super) reads: Vec<Ticket>,
    /// Whether new writes are appended to the log, or held.
    is_open: bool,
    /// The callers that wait for an entry, by the entry.
    waiting: VecDeque<(Lsn, Ticket)>,
    /// Writes that wait until the cohort is open and nothing holds them up.
    held: VecDeque<(Ticket, Bytes)>,
    pub(super) write_stall: Option<WriteStall>,
    /// When a catch-up may hold up writes again.
    pub(super) write_stall_after: Moment,
    /// The commit point that the followers are sent, and since when.
    pub(super) advertised_commit: Lsn,
    pub(super) advertised_at: Moment,
    /// Until when it holds the lease under which no other replica commits anything; `None` before it
    /// has one. The core keeps it, and may do so late.
    pub(super) lease: Option<Moment>,
    /// When `advertised_commit` was last seen to be the newest commit point, under the lease.
    pub(super) current_at: Option<Moment>,
}

/// Beginning and ending.
impl Leading {
    /// Begins to lead in `epoch`: appends a no-op, and sends every follower its first beacon, which it
    /// answers with its position. Writes are held until [`Leading::open`].
    pub(crate) fn begin<C: Streams>(
        cx: &mut Shared<C>,
        epoch: Epoch,
        followers: impl IntoIterator<Item = NodeId>,
    ) -> Self {
        //= SPIN-30
        //= PAC-30
        let no_op = append(cx, epoch, EntryKind::NoOp, Bytes::new());
        let mut leading = Self {
            epoch,
            followers: followers.into_iter().map(|node| (node, Progress::probing(true))).collect(),
            measures: cx.measures,
            since: cx.now,
            no_op,
            serves: false,
            reads: Vec::new(),
            is_open: false,
            waiting: VecDeque::new(),
            held: VecDeque::new(),
            write_stall: None,
            write_stall_after: cx.now,
            advertised_commit: Lsn::ZERO,
            advertised_at: cx.now,
            lease: None,
            current_at: None,
        };
        tracing::info!(epoch, %no_op, "begins to lead");
        leading.on_timeout(cx);
        leading
    }

    /// Stops leading: ends what it gave out, before anything else.
    pub(crate) fn stop<C: Streams>(&self, cx: &mut Shared<C>) {
        tracing::info!(epoch = self.epoch, "leads no more");
        cx.measures = self.measures;
        //= SPIN-12
        cx.journal.push(Effect::EndReads);
        cx.journal.write_gathered();
        // What was gathered and not sent is in the log, where the next leader finds it.
        drop(cx.journal.take_unsent());
    }

    /// Refuses what waits at a replica that has stopped leading: what is in the log may be committed
    /// by another leader or not, what was held was never in it.
    pub(crate) fn refuse_callers<C: Streams>(self, cx: &mut Shared<C>, leader: Option<NodeId>) {
        for (_, ticket) in self.waiting {
            let error = ReplicaError::Ambiguous("the replica lost its lead meanwhile".into());
            cx.journal.refuse(ticket, error);
        }
        let held = self.held.into_iter().map(|(ticket, _)| ticket);
        for ticket in held.chain(self.reads) {
            cx.journal.refuse(ticket, ReplicaError::NotLeader { leader });
        }
    }
}

/// Proposing and committing.
impl Leading {
    /// Appends a write to the log, or holds it (SPIN-1, SPIN-2).
    pub(crate) fn propose<C: Streams>(
        &mut self,
        cx: &mut Shared<C>,
        ticket: Ticket,
        payload: Bytes,
    ) {
        if !self.is_open || self.write_stall.is_some() {
            self.held.push_back((ticket, payload));
            return;
        }
        let lsn = append(cx, self.epoch, EntryKind::Commands, payload);
        self.waiting.push_back((lsn, ticket));
    }

    /// Appends writes to the log from now on, first those that were held.
    pub(crate) fn open<C: Streams>(&mut self, cx: &mut Shared<C>) {
        self.is_open = true;
        self.take_held(cx);
    }

    /// Holds writes from now on.
    pub(crate) const fn close(&mut self) {
        self.is_open = false;
    }

    pub(crate) const fn is_open(&self) -> bool {
        self.is_open
    }

    /// Appends the writes that are held, unless they are still to be held.
    pub(super) fn take_held<C: Streams>(&mut self, cx: &mut Shared<C>) {
        for (ticket, payload) in std::mem::take(&mut self.held) {
            self.propose(cx, ticket, payload);
        }
    }

    /// Records an acknowledgement: the follower's log is the leader's up to `upto`, on its disk.
    pub(crate) fn on_ack<C: Streams>(&mut self, cx: &mut Shared<C>, from: NodeId, upto: Lsn) {
        let Some(follower) = self.followers.get_mut(&from) else { return };
        // What the log does not hold was never sent in this epoch. What was not sent since the follower
        // reported its position is an acknowledgement from before that, perhaps of a disk that it has
        // lost since: it is sent again.
        let is_held = cx.journal.log().holds(upto) || upto.seq <= cx.journal.committed().seq;
        if !is_held || upto.seq >= follower.next() {
            return;
        }
        if follower.on_ack(cx.now, upto) {
            // There may be room again for the next piece.
            self.send_next(cx, from);
        }
    }

    /// Records that the follower supports this leader, by acknowledging a message sent at `sent`.
    pub(crate) fn on_support(&mut self, now: Moment, from: NodeId, sent: Moment) {
        if let Some(follower) = self.followers.get_mut(&from) {
            follower.on_support(now, sent);
        }
    }

    /// Records that a follower that has rested supports this leader, and owes nothing.
    pub(crate) fn on_rested(&mut self, now: Moment, from: NodeId, sent: Moment) {
        if let Some(follower) = self.followers.get_mut(&from) {
            follower.on_support(now, sent);
            follower.note_progress(now);
        }
    }

    /// Returns what a leader could rest as: it serves, its followers have all that it has, and no
    /// one waits.
    pub(crate) fn rest<C: Streams>(&self, cx: &Shared<C>) -> Option<Rest> {
        let last = cx.journal.last();
        let committed = cx.journal.committed();
        let is_settled = committed == last && cx.is_settled() && self.advertised_commit == last;
        let is_free = self.reads.is_empty() && self.waiting.is_empty() && self.held.is_empty();
        let serves = self.serves && self.is_open && self.write_stall.is_none();
        let has_all = |follower: &Progress| follower.is_voter() && follower.has_all(last);
        let rests = is_settled && is_free && serves && self.followers.values().all(has_all);
        let followers = || self.followers.keys().copied().collect();
        let terms = Terms { epoch: self.epoch, committed };
        rests.then(|| Rest::Leads { terms, followers: followers() })
    }

    /// Records that a follower sent something on the data lane, or the reason why it does not.
    pub(crate) fn on_data(&mut self, now: Moment, from: NodeId) {
        if let Some(follower) = self.followers.get_mut(&from) {
            follower.on_data(now);
        }
    }

    /// Checks what must hold of a leader with this log.
    pub(crate) fn validate<C: Streams>(&self, cx: &Shared<C>) -> Result<(), String> {
        let last = cx.journal.last();
        if last.epoch > self.epoch {
            return Err(format!("it leads epoch {}, and its log ends with {last}", self.epoch));
        }
        if self.advertised_commit > cx.journal.committed() {
            let committed = cx.journal.committed();
            return Err(format!(
                "{committed} is committed, and {} was advertised",
                self.advertised_commit
            ));
        }
        if self.waiting.back().is_some_and(|(lsn, _)| *lsn > last) {
            return Err(format!("a caller waits for an entry behind {last}"));
        }
        for (node, follower) in &self.followers {
            follower
                .validate(last.seq, cx.now)
                .map_err(|rule| format!("follower {node}: {rule}"))?;
        }
        Ok(())
    }

    /// Commits up to `seq`: a caller that waits for an entry is answered once it is applied (SPIN-6).
    pub(crate) fn commit<C: Streams>(&mut self, cx: &mut Shared<C>, seq: u64) {
        if seq <= cx.journal.committed().seq {
            return;
        }
        while let Some(&(lsn, ticket)) = self.waiting.front()
            && lsn.seq <= seq
        {
            self.waiting.pop_front();
            //= SPIN-6
            cx.journal.push(Effect::ReplyOutcomes { ticket, lsn });
        }
        cx.journal.commit(seq);
    }

    /// Returns how many followers are voters.
    pub(crate) fn voters(&self) -> usize {
        self.followers.values().filter(|follower| follower.is_voter()).count()
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

    /// Returns the sequence up to which `needed` of the voters among the followers have the log on disk.
    pub(crate) fn matched_by(&self, needed: usize) -> Option<u64> {
        let Some(nth) = needed.checked_sub(1) else { return Some(u64::MAX) };
        let voters = self.followers.values().filter(|follower| follower.is_voter());
        let mut matched: Vec<_> = voters.map(|follower| follower.match_lsn().seq).collect();
        matched.sort_unstable_by(|a, b| b.cmp(a));
        matched.get(nth).copied()
    }

    pub(crate) fn progress(&self) -> Vec<(NodeId, Lsn)> {
        self.followers.iter().map(|(node, follower)| (*node, follower.match_lsn())).collect()
    }
}

/// Appends an entry behind all others and returns its address.
fn append<C: Streams>(cx: &mut Shared<C>, epoch: Epoch, kind: EntryKind, payload: Bytes) -> Lsn {
    //= SPIN-1
    //= PAC-1
    let lsn = Lsn::new(epoch, cx.journal.last().seq + 1);
    cx.journal.propose(Entry { lsn, kind, payload });
    lsn
}
