//! The primary's part.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use trireme_replication::Lane;
use trireme_replication::core::{Effect, Moment, Reply, Ticket, When};
use trireme_storage::{IoId, LogWrite};
use trireme_types::{Entry, EntryKind, Lsn, NodeId};

use super::{AppendContext, COMMIT_PERIOD, PbMessage, PrimaryBackup, RESEND_PERIOD};

/// What only the primary knows.
#[derive(Debug)]
pub(crate) struct Primary {
    /// The write that made the epoch durable; nothing leaves before it.
    epoch_io: IoId,
    backups: BTreeMap<NodeId, Backup>,
    /// Who waits for which entry.
    waiting: VecDeque<(Lsn, Ticket)>,
    /// When acknowledgements are overdue.
    resend_at: Option<Moment>,
    /// When the commit point is told by itself.
    tell_at: Option<Moment>,
}

#[derive(Debug, Default)]
struct Backup {
    /// The log is known to be the same up to here, on the backup's disk.
    acked: Lsn,
    /// The first entry that was not sent.
    next: u64,
    /// A piece of the log, or a snapshot, is on its way out.
    is_sending: bool,
}

impl Primary {
    pub(super) fn new(epoch_io: IoId, backups: impl Iterator<Item = NodeId>, next: u64) -> Self {
        let backups = backups.map(|node| (node, Backup { next, ..Backup::default() })).collect();
        Self { epoch_io, backups, waiting: VecDeque::new(), resend_at: None, tell_at: None }
    }

    pub(super) fn next_timeout(&self) -> Option<Moment> {
        self.resend_at.into_iter().chain(self.tell_at).min()
    }

    pub(super) fn progress(&self) -> Vec<(NodeId, Lsn)> {
        self.backups.iter().map(|(node, backup)| (*node, backup.acked)).collect()
    }
}

impl PrimaryBackup {
    pub(super) fn on_propose(&mut self, now: Moment, ticket: Ticket, payload: Bytes) {
        if self.leading.is_none() {
            return self.refuse(ticket, "");
        }
        let previous = self.log.last();
        let lsn = Lsn::new(self.epoch, previous.seq + 1);
        let entry = Entry { lsn, kind: EntryKind::Commands, payload };
        self.append(vec![entry.clone()]);
        let context = AppendContext { epoch: self.epoch, previous, committed: self.committed };
        let when = self.when_sendable();
        let Some(leading) = &mut self.leading else { return };
        leading.waiting.push_back((lsn, ticket));
        leading.resend_at.get_or_insert(now + RESEND_PERIOD);
        leading.tell_at = None;
        for (&to, backup) in &mut leading.backups {
            // One who lacks earlier entries gets this one with them, from the log.
            if !backup.is_sending && backup.next == lsn.seq {
                backup.next += 1;
                let message = PbMessage::Append { context, entries: vec![entry.clone()] };
                self.outbox.send(to, message, when);
            }
        }
    }

    /// Returns when a message of this epoch may leave: once the epoch is durable.
    fn when_sendable(&self) -> When {
        let Some(leading) = &self.leading else { return When::Now };
        match self.forcing.front() {
            Some((oldest, _)) if *oldest <= leading.epoch_io => When::Durable(leading.epoch_io),
            _ => When::Now,
        }
    }

    pub(super) fn on_ack(&mut self, now: Moment, from: NodeId, upto: Lsn) {
        if !self.log.holds(upto) && upto > self.committed {
            return;
        }
        let Some(leading) = &mut self.leading else { return };
        let Some(backup) = leading.backups.get_mut(&from) else { return };
        if upto > backup.acked {
            backup.acked = upto;
            backup.next = backup.next.max(upto.seq + 1);
            leading.resend_at = leading.resend_at.map(|_| now + RESEND_PERIOD);
        }
        self.advance(now);
    }

    pub(super) fn on_gap(&mut self, from: NodeId, committed: Lsn) {
        let Some(leading) = &mut self.leading else { return };
        let Some(backup) = leading.backups.get_mut(&from) else { return };
        backup.acked = committed;
        backup.next = committed.seq + 1;
        self.send_to(from);
    }

    pub(super) fn on_peer_alive(&mut self, node: NodeId) {
        let Some(leading) = &mut self.leading else { return };
        let Some(backup) = leading.backups.get_mut(&node) else { return };
        backup.next = backup.acked.max(self.committed).seq + 1;
        self.send_to(node);
    }

    pub(super) fn on_timeout(&mut self, now: Moment) {
        let last = self.log.last();
        let Some(leading) = &mut self.leading else { return };
        if leading.resend_at.is_some_and(|at| at <= now) {
            leading.resend_at = Some(now + RESEND_PERIOD);
            for backup in leading.backups.values_mut().filter(|backup| backup.acked < last) {
                // One who lacks more than this says so.
                backup.next = backup.acked.max(self.committed).seq + 1;
            }
            self.send_to_all();
        }
        let Some(leading) = &mut self.leading else { return };
        if leading.tell_at.is_some_and(|at| at <= now) {
            leading.tell_at = None;
            self.tell_commit_point();
        }
    }

    fn tell_commit_point(&mut self) {
        let (previous, committed) = (self.log.last(), self.committed);
        let context = AppendContext { epoch: self.epoch, previous, committed };
        let when = self.when_sendable();
        let Some(leading) = &self.leading else { return };
        for (&to, backup) in &leading.backups {
            if backup.next == previous.seq + 1 {
                let message = PbMessage::Append { context, entries: Vec::new() };
                let lane = Lane::Heartbeat;
                self.outbox.push(Effect::Send { to, lane, message, when });
            }
        }
    }

    /// Commits what every replica has on disk (M42).
    pub(super) fn advance(&mut self, now: Moment) {
        let Some(leading) = &mut self.leading else { return };
        let acked = leading.backups.values().map(|backup| backup.acked.seq).min();
        let seq = acked.map_or(self.durable.seq, |acked| acked.min(self.durable.seq));
        let last = self.log.last();
        if leading.backups.values().all(|backup| backup.acked == last) {
            leading.resend_at = None;
        }
        if seq <= self.committed.seq {
            return;
        }
        leading.tell_at.get_or_insert(now + COMMIT_PERIOD);
        while let Some(&(lsn, ticket)) = leading.waiting.front()
            && lsn.seq <= seq
        {
            leading.waiting.pop_front();
            self.outbox.push(Effect::ReplyOutcomes { ticket, lsn });
        }
        let upto = self.log.lsn_at(seq).expect("what was acknowledged is in the log");
        self.commit(upto);
    }

    pub(super) fn send_to_all(&mut self) {
        let Some(leading) = &self.leading else { return };
        let backups: Vec<_> = leading.backups.keys().copied().collect();
        for to in backups {
            self.send_to(to);
        }
    }

    /// Sends a backup what it lacks, unless a piece is on its way.
    fn send_to(&mut self, to: NodeId) {
        let when = self.when_sendable();
        let Some(leading) = &mut self.leading else { return };
        let Some(backup) = leading.backups.get_mut(&to) else { return };
        let end = self.log.last().seq + 1;
        if backup.is_sending || backup.next >= end {
            return;
        }
        backup.is_sending = true;
        let Some(previous) = self.log.lsn_at(backup.next - 1) else {
            let message = PbMessage::Snapshot { epoch: self.epoch };
            self.outbox.push(Effect::SendSnapshot { to, message, when });
            return;
        };
        let (epoch, committed) = (self.epoch, self.committed);
        let context = AppendContext { epoch, previous, committed };
        let seqs = backup.next..end;
        self.outbox.push(Effect::SendLog { to, previous, seqs, context, when });
    }

    pub(super) fn on_log_sent(&mut self, now: Moment, to: NodeId, start: u64, next: u64) {
        let Some(leading) = &mut self.leading else { return };
        let Some(backup) = leading.backups.get_mut(&to) else { return };
        leading.resend_at.get_or_insert(now + RESEND_PERIOD);
        backup.is_sending = false;
        // Unless the backup has said meanwhile what it wants.
        if backup.next == start {
            backup.next = next;
        }
        self.send_to(to);
    }

    pub(super) fn on_snapshot_sent(&mut self, now: Moment, to: NodeId, answer: Option<PbMessage>) {
        let Some(leading) = &mut self.leading else { return };
        let Some(backup) = leading.backups.get_mut(&to) else { return };
        backup.is_sending = false;
        match answer {
            Some(answer) => {
                self.on_message(now, to, answer);
                self.send_to(to);
            }
            None => leading.resend_at = Some(now + RESEND_PERIOD),
        }
    }

    pub(super) fn on_release(&mut self, ticket: Ticket, upto: u64) {
        let upto = upto.min(self.committed.seq);
        if let Some(upto) = self.log.lsn_at(upto) {
            self.log.purge(upto);
            self.persist(LogWrite::Purge { upto });
        }
        self.outbox.reply(ticket, Reply::Done, When::Now);
    }
}
