//! The backup's part.

use trireme_replication::core::{Effect, Moment, Reply, Ticket};
use trireme_storage::LogWrite;
use trireme_types::{Entry, Lsn, NodeId};

use super::{AppendContext, PbMessage, PrimaryBackup};

impl PrimaryBackup {
    pub(super) fn on_append(
        &mut self,
        now: Moment,
        from: NodeId,
        context: AppendContext,
        entries: Vec<Entry>,
    ) {
        if from != self.primary || context.epoch < self.epoch {
            return;
        }
        // The primary tells every commit at once.
        self.current = Some((context.committed, now));
        if context.epoch > self.epoch {
            self.adopt(context.epoch);
        }
        if !self.log.holds(context.previous) && context.previous > self.committed {
            self.report_gap();
            return;
        }
        let matched = entries.last().map_or(context.previous, |entry| entry.lsn);
        self.take_entries(entries);
        let when = self.when_durable();
        self.outbox.send(from, PbMessage::Ack { epoch: self.epoch, upto: matched }, when);
        let committed = context.committed.min(matched);
        if committed > self.committed {
            self.commit(committed);
        }
    }

    /// Appends what the log does not hold, after taking away what stands in its place.
    fn take_entries(&mut self, mut entries: Vec<Entry>) {
        let held = entries
            .iter()
            .take_while(|entry| entry.lsn <= self.committed || self.log.holds(entry.lsn))
            .count();
        entries.drain(..held);
        let Some(first) = entries.first() else { return };
        if first.lsn.seq <= self.log.last().seq {
            let seq = first.lsn.seq - 1;
            assert!(seq >= self.committed.seq, "{} is committed at {seq}", self.committed);
            self.log.truncate_after(seq);
            self.persist(LogWrite::TruncateAfter { seq });
        }
        self.append(entries);
    }

    /// Asks for what follows the commit point: what stands behind it may be of an older epoch.
    pub(super) fn report_gap(&mut self) {
        let gap = PbMessage::Gap { epoch: self.epoch, committed: self.committed };
        let when = self.when_durable();
        self.outbox.send(self.primary, gap, when);
    }

    pub(super) fn on_snapshot(&mut self, ticket: Ticket, upto: Lsn) {
        if upto > self.committed {
            self.outbox.push(Effect::InstallSnapshot { ticket });
        } else {
            self.answer_snapshot(ticket);
        }
    }

    pub(super) fn on_installed(&mut self, ticket: Ticket, upto: Lsn) {
        self.committed = upto;
        self.log.purge(upto);
        self.persist(LogWrite::Purge { upto });
        self.answer_snapshot(ticket);
    }

    pub(super) fn on_outdated(&mut self, ticket: Ticket) {
        self.answer_snapshot(ticket);
    }

    fn answer_snapshot(&mut self, ticket: Ticket) {
        let ack = PbMessage::Ack { epoch: self.epoch, upto: self.committed };
        let when = self.when_durable();
        self.outbox.reply(ticket, Reply::Message(ack), when);
    }
}
