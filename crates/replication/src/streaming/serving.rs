//! When a leader serves: its lease, its reads, and as of when its commit point is the newest.

use trireme_types::{Lsn, Timing};

use super::{Journal, Leading, Streams};
use crate::core::{Moment, Reply, Ticket, When};

impl Leading {
    /// Serves once the table, which includes `applied`, holds its no-op, and so all before it (C4).
    /// Returns true if it begins to.
    pub(crate) fn begin_serving(&mut self, now: Moment, applied: Lsn) -> bool {
        if self.serves || applied.seq < self.no_op.seq {
            return false;
        }
        self.serves = true;
        let after = now.since(self.since);
        self.measures.takeovers += 1;
        self.measures.last_takeover = Some(after);
        tracing::info!(epoch = self.epoch, ?after, "serves");
        true
    }

    /// Serves before it may: the mistake of a leader that takes what it has for all.
    pub(crate) const fn serve_at_once(&mut self) {
        self.serves = true;
    }

    /// Returns true if its table holds all that its predecessors acknowledged.
    pub(crate) const fn serves(&self) -> bool {
        self.serves
    }

    /// Returns true if its no-op is committed, and so all that its predecessors had committed.
    pub(crate) const fn is_established<C: Streams>(&self, journal: &Journal<C>) -> bool {
        journal.committed().seq >= self.no_op.seq
    }

    /// Has a read wait until the leader may answer it.
    pub(crate) fn add_read(&mut self, ticket: Ticket) {
        self.reads.push(ticket);
    }

    /// Answers the reads that wait: they hold until `until`.
    pub(crate) fn answer_reads<C: Streams>(
        &mut self,
        journal: &mut Journal<C>,
        until: Option<Moment>,
    ) {
        for ticket in std::mem::take(&mut self.reads) {
            journal.reply(ticket, Reply::Read { until }, When::Now);
        }
    }

    /// Gives up the reads that wait.
    pub(crate) fn take_reads(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.reads)
    }

    /// Returns until when the leader has the support of `needed` of its followers that are voters.
    pub(crate) fn lease_until(&self, timing: Timing, needed: usize) -> Option<Moment> {
        let Some(nth) = needed.checked_sub(1) else { return Some(Moment::FAR) };
        let voters = self.followers.values().filter(|follower| follower.is_voter());
        let mut supported: Vec<_> = voters.filter_map(|follower| follower.supported()).collect();
        supported.sort_unstable_by(|a, b| b.cmp(a));
        supported.get(nth).map(|&sent| sent + timing.lease)
    }

    /// Records until when the leader holds its lease.
    pub(crate) const fn set_lease(&mut self, until: Option<Moment>) {
        self.lease = until;
    }

    /// Gives up the lease: another replica may lead from now on.
    pub(crate) fn end_lease(&mut self, now: Moment) {
        self.lease = self.lease.map(|until| until.min(now));
    }

    /// Returns as of when `point` is the newest commit point, which it is as far as this leader
    /// knows: now, or when its lease ended. Until it has committed an entry of its own, it does not
    /// know how far its predecessors had come.
    pub(super) fn current_at(&self, now: Moment, point: Lsn) -> Option<Moment> {
        //= SPIN-70
        //= PAC-70
        self.lease.map(|until| until.min(now)).filter(|_| point.epoch >= self.no_op.epoch)
    }
}
