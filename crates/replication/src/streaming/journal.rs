//! A core's side of its cohort's log: what is in it, what of it is on disk, how far it is committed.

use std::collections::VecDeque;

use bytes::Bytes;
use trireme_storage::{IoId, LogWrite};
use trireme_types::{Entry, Lsn, NodeId};

use super::{Beacon, Preceding};
use crate::core::{
    Core, DurableSeqs, Effect, EpochRuns, Moment, Outbox, Recovered, Reply, Ticket, When,
};
use crate::freshness::LeaderClock;
use crate::replica::ReplicaError;
use crate::transport::Lane;

/// The log of one replica, as its core knows it, and the core's outbox: writes to the log leave
/// through it alone, so that it always knows what they amount to.
#[derive(Debug)]
pub(crate) struct Journal<C: Core> {
    log: EpochRuns,
    durable: DurableSeqs,
    /// Never ahead of the log.
    committed: Lsn,
    /// The newest commit point that was written down.
    recorded_commit: Lsn,
    /// Entries of `log` that are still to be written: a leader gathers what one batch proposes.
    gathered: Vec<Entry>,
    /// Entries that were gathered and not sent yet.
    unsent: Vec<Entry>,
    /// The newest write that is forced: all but commit points are.
    last_forced: IoId,
    /// The newest write that is on disk.
    synced: IoId,
    installs: Installs,
    /// The newest commit point that a leader named together with the moment, on this replica's
    /// clock, as of which it was the newest.
    current: Option<(Lsn, Moment)>,
    leader_clock: LeaderClock,
    outbox: Outbox<C>,
}

/// The most snapshots that are to be installed at once: one that is being installed, and a newer one
/// that waits. Each takes the table's size on the disk, so what else comes is refused and sent again.
const INSTALLS_MAX: usize = 2;

/// The most refused snapshots whose senders wait for the installations to end; they take their size
/// on the disk meanwhile. As many as a large cohort has other replicas, since each sends one at a time.
const SUPERSEDED_MAX: usize = 6;

/// Snapshots of other replicas that are being installed or wait for it.
#[derive(Debug, Default)]
struct Installs {
    /// Those under way, by the entry that each includes, which rises.
    under_way: VecDeque<(Ticket, Lsn)>,
    /// Offers that bring nothing beyond those under way: they are answered with where the replica
    /// stands when all of those are in the table, since before that their senders would send the
    /// same again.
    superseded: Vec<Ticket>,
}

/// What becomes of a snapshot that is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// It is installed, or a newer one is; the ticket comes back from [`Journal::installed`] or
    /// [`Journal::outdated`].
    Accepted,
    /// It brings nothing, and is to be answered at once.
    Old,
}

/// What became of entries that a follower was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The follower's log is the leader's up to here, once that is durable.
    Matched(Lsn),
    /// It lacks what comes before.
    Gap,
}

impl<C: Core> Journal<C> {
    /// Returns the log as it was found, and has committed what is known to be (SPIN-40): a table may
    /// have reached its disk before the commit point did.
    pub(crate) fn new(recovered: &Recovered) -> Self {
        let log = recovered.log.clone();
        let committed = recovered.commit_point.max(recovered.applied);
        let mut journal = Self {
            durable: DurableSeqs::starting_at(log.last().seq),
            log,
            committed,
            recorded_commit: recovered.commit_point,
            gathered: Vec::new(),
            unsent: Vec::new(),
            last_forced: IoId(0),
            synced: IoId(0),
            installs: Installs::default(),
            current: None,
            leader_clock: LeaderClock::default(),
            outbox: Outbox::new(),
        };
        let applied = recovered.applied;
        if applied.seq > journal.log.purged().seq && !journal.log.holds(applied) {
            // A snapshot was installed, and the replica stopped before its log said so.
            journal.replace_before(applied);
        }
        //= SPIN-40
        if committed > applied {
            journal.outbox.push(Effect::Commit { upto: committed });
        }
        journal
    }

    pub(crate) const fn log(&self) -> &EpochRuns {
        &self.log
    }

    /// Returns the newest entry.
    pub(crate) fn last(&self) -> Lsn {
        self.log.last()
    }

    /// Returns the newest entry that is on disk with all before it.
    pub(crate) fn durable(&self) -> Lsn {
        let seq = self.durable.durable().min(self.last().seq);
        self.log.lsn_at(seq).unwrap_or_else(|| self.log.purged())
    }

    pub(crate) const fn committed(&self) -> Lsn {
        self.committed
    }

    /// Records as of when the commit point in a leader's message was the newest.
    pub(crate) fn take_current(&mut self, now: Moment, from: NodeId, beacon: &Beacon) {
        //= SPIN-70
        //= PAC-70
        let Beacon { epoch, committed, sent, current_at } = *beacon;
        // Every message says something of the leader's clock.
        let local = self.leader_clock.local(now, (from, epoch), sent, current_at.unwrap_or(sent));
        if let (Some(_), Some(as_of)) = (current_at, local)
            && self.current.is_none_or(|(point, at)| (point.seq, at) <= (committed.seq, as_of))
        {
            self.current = Some((committed, as_of));
        }
    }

    /// Returns the newest commit point of which it is known as of when it was the newest.
    pub(crate) const fn current(&self) -> Option<(Lsn, Moment)> {
        self.current
    }

    /// Adds a leader's own entry. It is written and sent with all others of the batch.
    pub(crate) fn propose(&mut self, entry: Entry) {
        self.log.append(entry.lsn);
        self.gathered.push(entry);
    }

    /// Writes what was gathered, so that it can be read.
    pub(crate) fn write_gathered(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let entries = std::mem::take(&mut self.gathered);
        self.unsent.extend_from_slice(&entries);
        self.force(LogWrite::Append(entries));
    }

    /// Writes what was gathered and returns what is to be sent.
    pub(crate) fn take_unsent(&mut self) -> Vec<Entry> {
        self.write_gathered();
        std::mem::take(&mut self.unsent)
    }

    /// Takes what a leader sent: skips what is known, drops what stands in the place of the leader's
    /// entries, and appends the rest. The drop is a record in its place in the log and so durable
    /// before anything that follows it (SPIN-43; S9).
    ///
    /// Nothing is taken unless the log holds the very entry that precedes them. The epochs of a log
    /// never fall, and a leader has no entry of an epoch after its own: entries that break this come
    /// from a log that changed while it was read.
    pub(crate) fn take(&mut self, preceding: &Preceding, mut entries: Vec<Entry>) -> Taken {
        let Preceding { previous, epoch, .. } = *preceding;
        //= SPIN-3
        let precedes = match self.log.lsn_at(previous.seq) {
            Some(lsn) => lsn == previous,
            None => previous.seq < self.log.purged().seq,
        };
        let epochs = entries.iter().map(|entry| entry.lsn.epoch);
        let epochs = std::iter::once(previous.epoch).chain(epochs).chain([epoch]);
        if !precedes || !epochs.is_sorted() {
            return Taken::Gap;
        }
        let matched = entries.last().map_or(previous, |entry| entry.lsn);
        let committed = self.committed.seq;
        let known = entries
            .iter()
            .take_while(|entry| entry.lsn.seq <= committed || self.log.holds(entry.lsn))
            .count();
        entries.drain(..known);
        if let Some(first) = entries.first() {
            if first.lsn.seq <= self.last().seq {
                //= SPIN-43
                self.truncate_after(first.lsn.seq - 1);
            }
            entries.iter().for_each(|entry| self.log.append(entry.lsn));
            self.force(LogWrite::Append(entries));
        }
        Taken::Matched(matched)
    }

    /// Drops every entry after `seq`, for good.
    ///
    /// # Panics
    ///
    /// If one of them is committed.
    pub(crate) fn truncate_after(&mut self, seq: u64) {
        let committed = self.committed;
        assert!(seq >= committed.seq, "{committed} is committed and was to be dropped after {seq}");
        if seq < self.last().seq {
            self.write_gathered();
            self.log.truncate_after(seq);
            self.force(LogWrite::TruncateAfter { seq });
        }
    }

    /// Gives up the log up to `upto`, which the table has on disk (S10), or as far as it is committed.
    pub(crate) fn release(&mut self, upto: u64) {
        let upto = upto.min(self.committed.seq);
        if let Some(upto) = self.log.lsn_at(upto)
            && upto.seq > self.log.purged().seq
        {
            self.write_gathered();
            self.log.purge(upto);
            self.force(LogWrite::Purge { upto });
        }
    }

    /// Has a snapshot that includes `upto` installed, unless it brings nothing beyond what is committed
    /// here or is being installed already (C2). Those under way are installed in the order of what
    /// they include.
    pub(crate) fn offer_snapshot(&mut self, ticket: Ticket, upto: Lsn) -> Offer {
        let newest = self.installs.under_way.back().map(|(_, newest)| newest.seq);
        if upto.seq <= self.committed.seq && newest.is_none() {
            return Offer::Old;
        }
        let is_full = self.installs.under_way.len() >= INSTALLS_MAX;
        let is_superseded = newest.is_some_and(|newest| upto.seq <= newest) || is_full;
        if is_superseded || upto.seq <= self.committed.seq {
            if self.installs.superseded.len() >= SUPERSEDED_MAX {
                return Offer::Old;
            }
            self.installs.superseded.push(ticket);
        } else {
            self.installs.under_way.push_back((ticket, upto));
            self.outbox.push(Effect::InstallSnapshot { ticket });
        }
        Offer::Accepted
    }

    /// Records that the table was replaced by the snapshot offered under `ticket`. Returns the
    /// tickets that are to be answered with where the replica stands now.
    pub(crate) fn installed(&mut self, ticket: Ticket, upto: Lsn) -> Vec<Ticket> {
        self.replace_before(upto);
        self.outdated(ticket)
    }

    /// Records that the snapshot offered under `ticket` was not installed, since the table has passed
    /// it. Returns the tickets that are to be answered with where the replica stands now.
    pub(crate) fn outdated(&mut self, ticket: Ticket) -> Vec<Ticket> {
        self.installs.under_way.retain(|(other, _)| *other != ticket);
        let mut answered = vec![ticket];
        if self.installs.under_way.is_empty() {
            answered.append(&mut self.installs.superseded);
        }
        answered
    }

    /// Has the log go on behind `upto`, which the table includes, if it does not hold it.
    fn replace_before(&mut self, upto: Lsn) {
        self.write_gathered();
        if !self.log.holds(upto) && upto.seq < self.last().seq {
            // What comes after another entry than the snapshot's is of another history.
            self.log.truncate_after(upto.seq);
            self.force(LogWrite::TruncateAfter { seq: upto.seq });
        }
        self.log.purge(upto);
        self.committed = self.committed.max(upto);
        self.recorded_commit = self.recorded_commit.max(upto);
        self.force(LogWrite::Purge { upto });
    }

    /// Writes the replica's hard state.
    pub(crate) fn keep(&mut self, state: Bytes) -> When {
        self.write_gathered();
        self.force(LogWrite::HardState(state));
        When::Durable(self.last_forced)
    }

    /// Commits the log up to `seq`, as far as it goes; returns whether that was news.
    pub(crate) fn commit(&mut self, seq: u64) -> bool {
        let seq = seq.min(self.last().seq);
        match self.log.lsn_at(seq) {
            Some(upto) if seq > self.committed.seq => {
                self.write_gathered();
                self.committed = upto;
                self.outbox.push(Effect::Commit { upto });
                true
            }
            _ => false,
        }
    }

    /// Writes down how far the log is committed, without forcing it (Spinnaker §5).
    pub(crate) fn record_commit_point(&mut self) {
        if self.committed > self.recorded_commit {
            self.write_gathered();
            self.recorded_commit = self.committed;
            self.outbox.persist(LogWrite::CommitPoint(self.committed));
        }
    }

    /// Records that every write up to this one is on disk.
    pub(crate) fn on_durable(&mut self, upto: IoId) {
        self.durable.completed(upto);
        self.synced = upto;
    }

    /// Says whether everything that was to be forced up to now is on disk.
    pub(crate) fn is_durable(&self) -> bool {
        self.gathered.is_empty() && self.last_forced <= self.synced
    }

    /// Returns the condition that everything in the log, and the hard state, is on disk.
    pub(crate) fn when_durable(&mut self) -> When {
        self.write_gathered();
        match self.last_forced {
            IoId(0) => When::Now,
            io => When::Durable(io),
        }
    }

    /// Checks what must hold of a log.
    pub(crate) fn validate(&self) -> Result<(), String> {
        let (purged, committed, last) = (self.log.purged(), self.committed, self.last());
        if committed.seq > last.seq {
            return Err(format!("{committed} is committed, and the log ends with {last}"));
        }
        if committed.seq >= purged.seq && !self.log.holds(committed) {
            return Err(format!("{committed} is committed, and the log holds another there"));
        }
        if self.recorded_commit > committed {
            return Err(format!(
                "{} was recorded as committed, not {committed}",
                self.recorded_commit
            ));
        }
        if !self.log.is_rising() {
            return Err(format!("the log's epochs fall: {:?}", self.log));
        }
        if self.synced > self.outbox.last_write() || self.last_forced > self.outbox.last_write() {
            return Err("a write is durable that was never made".into());
        }
        Ok(())
    }

    /// Sends a message on the data lane.
    pub(crate) fn send(&mut self, to: NodeId, message: C::Message, when: When) {
        self.outbox.send(to, message, when);
    }

    /// Sends a message that must not wait behind data, at once.
    pub(crate) fn signal(&mut self, to: NodeId, message: C::Message) {
        let (lane, when) = (Lane::Heartbeat, When::Now);
        self.outbox.push(Effect::Send { to, lane, message, when });
    }

    pub(crate) fn reply(&mut self, ticket: Ticket, reply: Reply<C>, when: When) {
        self.outbox.reply(ticket, reply, when);
    }

    pub(crate) fn refuse(&mut self, ticket: Ticket, error: ReplicaError) {
        self.outbox.refuse(ticket, error);
    }

    pub(crate) fn push(&mut self, effect: Effect<C>) {
        self.outbox.push(effect);
    }

    /// Moves what is to be done to the end of `effects`.
    pub(crate) fn drain_into(&mut self, effects: &mut Vec<Effect<C>>) {
        self.write_gathered();
        self.outbox.drain_into(effects);
    }

    fn force(&mut self, write: LogWrite) {
        let next = IoId(self.outbox.last_write().0 + 1);
        self.durable.submitted(next, &write);
        self.last_forced = self.outbox.persist(write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spinnaker::Spinnaker;

    #[test]
    fn what_breaks_an_invariant_is_named() {
        let broken = |break_it: fn(&mut Journal<Spinnaker>)| {
            let mut log = EpochRuns::starting_after(Lsn::new(1, 2));
            (3..=9).for_each(|seq| log.append(Lsn::new(1, seq)));
            let mut journal = Journal::new(&Recovered {
                log,
                commit_point: Lsn::new(1, 6),
                applied: Lsn::new(1, 6),
                ..Recovered::nothing()
            });
            assert_eq!(journal.validate(), Ok(()));
            break_it(&mut journal);
            journal.validate().expect_err("an invariant is broken")
        };
        let ahead = broken(|journal| journal.committed = Lsn::new(1, 10));
        assert!(ahead.contains("the log ends with 1.9"), "{ahead}");
        let other = broken(|journal| journal.committed = Lsn::new(2, 6));
        assert!(other.contains("the log holds another there"), "{other}");
        let recorded = broken(|journal| journal.recorded_commit = Lsn::new(1, 7));
        assert!(recorded.contains("1.7 was recorded as committed, not 1.6"), "{recorded}");
        let falling = broken(|journal| journal.log.append(Lsn::new(0, 10)));
        assert!(falling.contains("epochs fall"), "{falling}");
        let synced = broken(|journal| journal.synced = IoId(1));
        assert!(synced.contains("never made"), "{synced}");
        let forced = broken(|journal| journal.last_forced = IoId(1));
        assert!(forced.contains("never made"), "{forced}");
    }
}
