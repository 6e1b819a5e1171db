//! What leaves the replica, and what has to wait before it may.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use trireme_types::{CohortId, Entry, Lsn, NodeId, PATH};

use super::mailbox::Mailbox;
use super::storage::{CohortLog, CohortTable, IoId, TableError};
use crate::core::{Core, Effect, Event, Message, When};
use crate::simulation;
use crate::transport::{Lane, Transport};

/// Effects whose condition does not hold yet, in the order of the core.
pub(super) struct Held<C: Core> {
    by_disk: VecDeque<(IoId, Effect<C>)>,
    by_table: VecDeque<(u64, Effect<C>)>,
}

impl<C: Core> Held<C> {
    pub(super) const fn new() -> Self {
        Self { by_disk: VecDeque::new(), by_table: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_disk.is_empty() && self.by_table.is_empty()
    }

    /// Keeps an effect that waits for `when`.
    pub(super) fn keep(&mut self, when: When, effect: Effect<C>) {
        match when {
            When::Now => self.by_disk.push_back((IoId(0), effect)),
            When::Durable(io) => self.by_disk.push_back((io, effect)),
            When::Applied(lsn) => self.by_table.push_back((lsn.seq, effect)),
        }
    }

    /// Takes out the next effect that may leave, now that this much is durable and applied.
    pub(super) fn release(&mut self, durable: IoId, applied: u64) -> Option<Effect<C>> {
        if self.by_disk.front().is_some_and(|(io, _)| *io <= durable) {
            return self.by_disk.pop_front().map(|(_, effect)| effect);
        }
        if self.by_table.front().is_some_and(|(seq, _)| *seq <= applied) {
            return self.by_table.pop_front().map(|(_, effect)| effect);
        }
        None
    }
}

/// Sends for one replica. What takes long is sent by tasks of its own, which report to the mailbox.
pub(super) struct Sender<C: Core> {
    pub(super) cohort: CohortId,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) log: CohortLog,
    pub(super) table: CohortTable,
    pub(super) mailbox: Arc<Mailbox<C>>,
    pub(super) send_log_bytes_max: usize,
    pub(super) tasks: JoinSet<()>,
}

impl<C: Core> Sender<C> {
    /// Hands a message to the network, which may lose it.
    pub(super) fn send(&self, to: NodeId, lane: Lane, message: &C::Message) {
        tracing::trace!(target: PATH, %to, body = %message, "path: sent");
        send(&*self.transport, self.cohort, to, lane, message.encode());
    }

    /// Sends entries of the log if they still follow `previous`: the core fixed what goes before them,
    /// and the log may have changed since. They leave at once if they are in memory; what must come
    /// from the disk is read by a task of its own.
    pub(super) fn send_log(
        &mut self,
        to: NodeId,
        previous: Lsn,
        seqs: Range<u64>,
        context: C::Context,
    ) {
        let (log, cohort, bytes_max) = (self.log.clone(), self.cohort, self.send_log_bytes_max);
        let cached = log.read_after_cached(previous, seqs.end, bytes_max);
        let (transport, mailbox) = (Arc::clone(&self.transport), Arc::clone(&self.mailbox));
        let end = seqs.end;
        let send_all = move |entries: Option<Vec<Entry>>| {
            let mut next = seqs.start;
            // Nothing goes out if the log has been given up beyond the first, or was replaced.
            if let Some(entries) = entries {
                next += entries.len() as u64;
                let message = C::entries_message(context, entries);
                tracing::trace!(target: PATH, %to, body = %message, "path: sent");
                send(&*transport, cohort, to, Lane::Data, message.encode());
            }
            mailbox.notice(Event::LogSent { to, seqs, next });
        };
        if let Some(entries) = cached {
            return send_all(entries);
        }
        let mailbox = Arc::clone(&self.mailbox);
        let reading = move || match log.read_after(previous, end, bytes_max) {
            Ok(entries) => send_all(entries),
            Err(error) => mailbox.fail(format!("could not read what to send: {error}")),
        };
        simulation::spawn_blocking_into(&mut self.tasks, reading);
    }

    /// Sends the table.
    pub(super) fn send_snapshot(&mut self, to: NodeId, message: &C::Message) {
        let (table, cohort, header) = (self.table.clone(), self.cohort, message.encode());
        let (transport, mailbox) = (Arc::clone(&self.transport), Arc::clone(&self.mailbox));
        let sending = async move {
            let snapshot = match simulation::blocking(move || table.snapshot()).await {
                Ok(Ok(snapshot)) => snapshot,
                // A replica that lacks what the log does not hold any more comes to a successor without it.
                //= RANGE-13
                Ok(Err(TableError::Sealed(_))) => {
                    return mailbox.notice(Event::SnapshotSent { to, answer: None });
                }
                Ok(Err(error)) => {
                    return mailbox.fail(format!("could not take a snapshot: {error}"));
                }
                Err(error) => return mailbox.fail(format!("taking a snapshot broke off: {error}")),
            };
            let sent = transport.send_snapshot(to, cohort, header, snapshot).await;
            let answer = match sent {
                Ok(answer) => decode::<C>(to, answer),
                Err(error) => {
                    tracing::warn!(%to, %error, "a snapshot did not get there");
                    None
                }
            };
            mailbox.notice(Event::SnapshotSent { to, answer });
        };
        simulation::spawn_into(&mut self.tasks, sending);
    }

    /// Forgets the tasks that have ended.
    pub(super) fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended {
                self.mailbox.fail(format!("sending broke off: {error}"));
            }
        }
    }
}

/// Reads another replica's message. One that cannot be read is as good as lost.
pub(super) fn decode<C: Core>(from: NodeId, payload: Bytes) -> Option<C::Message> {
    match C::Message::decode(payload) {
        Ok(message) => {
            tracing::trace!(target: PATH, %from, body = %message, "path: received");
            Some(message)
        }
        Err(error) => {
            tracing::warn!(%from, %error, "dropped a message that cannot be read");
            None
        }
    }
}

fn send(transport: &dyn Transport, cohort: CohortId, to: NodeId, lane: Lane, payload: Bytes) {
    if let Err(error) = transport.send(to, cohort, lane, payload) {
        // The protocol sees it as any other loss, and sends again.
        tracing::debug!(%to, %error, "a message did not leave");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use async_trait::async_trait;
    use parking_lot::Mutex;
    use trireme_storage::fs::MemFs;
    use trireme_storage::{
        LogIdentity, LogOptions, LogWrite, SharedLog, SnapshotReader, TableOptions, Tables,
    };
    use trireme_types::{ClusterId, EntryKind, KeyRange};

    use super::*;
    use crate::core::Moment;
    use crate::driver::DriverOptions;
    use crate::spinnaker::Spinnaker;
    use crate::streaming::Preceding;
    use crate::transport::SendError;

    const COHORT: CohortId = CohortId(1);

    #[derive(Default)]
    struct Sent(Mutex<Vec<Bytes>>);

    #[async_trait]
    impl Transport for Sent {
        fn send(&self, _: NodeId, _: CohortId, _: Lane, bytes: Bytes) -> Result<(), SendError> {
            self.0.lock().push(bytes);
            Ok(())
        }

        async fn send_snapshot(
            &self,
            to: NodeId,
            _: CohortId,
            _: Bytes,
            _: SnapshotReader,
        ) -> Result<Bytes, SendError> {
            Err(SendError::Unreachable(to))
        }
    }

    /// The core fixes what precedes the entries, and they are read later: those that took others'
    /// places meanwhile went out as the successors of an entry that was not there any more, and a
    /// follower that had it took them.
    #[tokio::test]
    async fn entries_that_do_not_follow_what_the_core_meant_any_more_are_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        let identity = LogIdentity { cluster: ClusterId(1), node: NodeId(1) };
        let fs = Arc::new(MemFs::new());
        let log = SharedLog::open(fs, Path::new("/log"), identity, LogOptions::default()).unwrap();
        let log = log.cohort(COHORT);
        let tables = Tables::open(folder.path(), TableOptions::default()).unwrap();
        let (sent, mailbox) = (Arc::new(Sent::default()), Mailbox::new(DriverOptions::default()));
        let mailbox: Arc<Mailbox<Spinnaker>> = Arc::new(mailbox);
        let mut sender = Sender {
            cohort: COHORT,
            transport: Arc::clone(&sent) as Arc<dyn Transport>,
            log: log.clone(),
            table: tables.cohort(COHORT, KeyRange::all()).unwrap(),
            mailbox: Arc::clone(&mailbox),
            send_log_bytes_max: 1024,
            tasks: JoinSet::new(),
        };
        let entry = |lsn| Entry { lsn, kind: EntryKind::NoOp, payload: Bytes::new() };
        let append = |epoch, seqs: Range<u64>| {
            let entries = seqs.map(|seq| entry(Lsn::new(epoch, seq))).collect();
            log.submit(LogWrite::Append(entries)).unwrap();
        };
        let previous = Lsn::new(1, 2);
        let context = Preceding {
            epoch: 2,
            previous,
            committed: Lsn::new(1, 1),
            sent: Moment::START,
            current_at: None,
        };
        let mut send = async || {
            sender.send_log(NodeId(2), previous, 3..4, context);
            while sender.tasks.join_next().await.is_some() {}
            let notices = mailbox.take().notices;
            let next = notices.into_iter().find_map(|notice| match notice {
                Event::LogSent { next, .. } => Some(next),
                _ => None,
            });
            (next, std::mem::take(&mut *sent.0.lock()))
        };

        append(1, 1..4);
        let message = <Spinnaker as Core>::entries_message(context, vec![entry(Lsn::new(1, 3))]);
        assert_eq!(send().await, (Some(4), vec![message.encode()]));
        log.submit(LogWrite::TruncateAfter { seq: 1 }).unwrap();
        append(2, 2..4);
        assert_eq!(send().await, (Some(3), vec![]));
    }
}
