//! A protocol that is just large enough to use every part of the seam: one primary, appointed for
//! good, and backups that must all acknowledge.
//!
//! * The primary numbers proposals, forces them to its log and sends them in parallel; what every
//!   replica has on disk is committed. The commit point travels with the next append, or alone
//!   after [`COMMIT_PERIOD`].
//! * A backup that lacks what comes before an append says so, and is sent the log from its commit
//!   point on; or a snapshot, if the log does not reach back so far.
//! * A primary that starts takes a new epoch, durable before the first message under it, so that
//!   what it may have sent and lost in a crash is never taken for what it sends now.
//!
//! It is no protocol to use: the primary's death ends writing for as long as it lasts.

#![allow(dead_code, reason = "the scripts and the tests of the driver use different parts")]

mod backup;
mod message;
mod primary;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use trireme_replication::core::{
    Core, CoreStatus, Effect, EpochRuns, Event, Moment, Outbox, Recovered, Reply, Ticket, When,
};
use trireme_replication::{Measures, ReplicaError, Role};
use trireme_storage::{IoId, LogWrite};
use trireme_types::{Entry, Epoch, Lsn, NodeId, Protocol};

pub(crate) use self::message::{AppendContext, PbMessage};
use self::primary::Primary;

/// After how long without an acknowledgement the primary sends again.
pub(crate) const RESEND_PERIOD: Duration = Duration::from_millis(100);

/// After how long the primary tells a commit point that no append has carried.
pub(crate) const COMMIT_PERIOD: Duration = Duration::from_millis(20);

/// One replica.
#[derive(Debug)]
pub(crate) struct PrimaryBackup {
    node: NodeId,
    nodes: Vec<NodeId>,
    primary: NodeId,
    epoch: Epoch,
    log: EpochRuns,
    durable: Lsn,
    committed: Lsn,
    /// What the log's newest entry was after each write that is not known to be durable.
    forcing: VecDeque<(IoId, Lsn)>,
    /// Set at the primary.
    leading: Option<Primary>,
    current: Option<(Lsn, Moment)>,
    outbox: Outbox<Self>,
}

impl PrimaryBackup {
    /// Returns a replica as its disk describes it.
    pub(crate) fn new(recovered: Recovered, nodes: &[NodeId], primary: NodeId) -> Self {
        let Recovered { node, log, hard_state, commit_point, applied, .. } = recovered;
        let epoch = hard_state.map_or(0, |state| decode_epoch(&state));
        // A table may have reached its disk before the commit point did.
        let committed = commit_point.max(applied);
        let mut replica = Self {
            node,
            nodes: nodes.to_vec(),
            primary,
            epoch,
            durable: log.last(),
            log,
            committed,
            forcing: VecDeque::new(),
            leading: None,
            current: None,
            outbox: Outbox::new(),
        };
        if committed > applied {
            replica.outbox.push(Effect::Commit { upto: committed });
        }
        if node == primary {
            replica.lead();
        } else {
            replica.report_gap();
        }
        replica
    }

    fn lead(&mut self) {
        self.adopt(self.epoch + 1);
        let backups = self.nodes.iter().copied().filter(|node| *node != self.node);
        let next = self.committed.seq + 1;
        self.leading = Some(Primary::new(self.outbox.last_write(), backups, next));
        self.send_to_all();
    }

    /// Takes a new epoch. It is durable before anything is sent under it that waits for the
    /// newest write, and everything does.
    fn adopt(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        let state = Bytes::from(epoch.to_string());
        self.persist(LogWrite::HardState(state));
    }

    fn append(&mut self, entries: Vec<Entry>) {
        for entry in &entries {
            self.log.append(entry.lsn);
        }
        self.persist(LogWrite::Append(entries));
    }

    fn persist(&mut self, write: LogWrite) {
        let io = self.outbox.persist(write);
        self.forcing.push_back((io, self.log.last()));
    }

    /// Returns the condition that everything written so far is on disk.
    fn when_durable(&self) -> When {
        self.forcing.back().map_or(When::Now, |&(io, _)| When::Durable(io))
    }

    fn commit(&mut self, upto: Lsn) {
        self.committed = upto;
        self.outbox.persist(LogWrite::CommitPoint(upto));
        self.outbox.push(Effect::Commit { upto });
    }

    fn on_durable(&mut self, now: Moment, upto: IoId) {
        while let Some(&(io, last)) = self.forcing.front()
            && io <= upto
        {
            self.forcing.pop_front();
            self.durable = last;
        }
        if self.leading.is_some() {
            self.advance(now);
        }
    }

    fn refuse(&mut self, ticket: Ticket, why: &str) {
        let error = match self.leading {
            Some(_) => ReplicaError::Invalid(why.into()),
            None => ReplicaError::NotLeader { leader: Some(self.primary) },
        };
        self.outbox.refuse(ticket, error);
    }

    fn on_message(&mut self, now: Moment, from: NodeId, message: PbMessage) {
        match message {
            PbMessage::Append { context, entries } => self.on_append(now, from, context, entries),
            PbMessage::Ack { epoch, upto } if epoch == self.epoch => self.on_ack(now, from, upto),
            PbMessage::Gap { committed, .. } => self.on_gap(from, committed),
            PbMessage::Ack { .. } | PbMessage::Snapshot { .. } => {}
        }
    }
}

impl Core for PrimaryBackup {
    const PROTOCOL: Protocol = Protocol::Pacifica;

    type Message = PbMessage;
    type Context = AppendContext;
    type CoordinatorRequest = Infallible;
    type CoordinatorEvent = Infallible;

    fn handle(&mut self, now: Moment, event: Event<Self>) {
        match event {
            Event::Message { from, message } => self.on_message(now, from, message),
            Event::Propose { ticket, payload } => self.on_propose(now, ticket, payload),
            Event::Read { ticket } if self.leading.is_some() => {
                let reply = Reply::Read { until: None };
                self.outbox.reply(ticket, reply, When::Applied(self.committed));
            }
            Event::Read { ticket } => self.refuse(ticket, ""),
            Event::TransferLeader { ticket, .. } => {
                self.refuse(ticket, "the primary is appointed for good");
            }
            Event::ReleaseLog { ticket, upto } => self.on_release(ticket, upto),
            Event::Durable { upto } => self.on_durable(now, upto),
            Event::LogSent { to, seqs, next } => self.on_log_sent(now, to, seqs.start, next),
            Event::SnapshotSent { to, answer } => self.on_snapshot_sent(now, to, answer),
            Event::SnapshotOffered { ticket, upto, .. } => self.on_snapshot(ticket, upto),
            Event::SnapshotInstalled { ticket, upto } => self.on_installed(ticket, upto),
            Event::PeerAlive { node } => self.on_peer_alive(node),
            Event::Timeout => self.on_timeout(now),
            Event::SnapshotOutdated { ticket } => self.on_outdated(ticket),
            Event::Applied { .. } | Event::PeerLost { .. } => {}
            Event::Heard { .. } | Event::Supported { .. } => unreachable!("it never rests"),
            Event::Coordination(never) => match never {},
        }
    }

    fn drain_effects(&mut self, effects: &mut Vec<Effect<Self>>) {
        self.outbox.drain_into(effects);
    }

    fn next_timeout(&self) -> Option<Moment> {
        self.leading.as_ref().and_then(Primary::next_timeout)
    }

    fn status(&self) -> CoreStatus {
        CoreStatus {
            role: if self.leading.is_some() { Role::Leader } else { Role::Follower },
            leader: Some(self.primary),
            current: match self.leading {
                Some(_) => Some((Lsn::ZERO, Moment::FAR)),
                None => self.current,
            },
            epoch: self.epoch,
            last: self.log.last(),
            durable: self.durable,
            committed: self.committed,
            purged: self.log.purged(),
            replicas: self.nodes.clone(),
            progress: self.leading.as_ref().map_or_else(Vec::new, Primary::progress),
            measures: Measures::default(),
        }
    }

    fn entries_message(context: AppendContext, entries: Vec<Entry>) -> PbMessage {
        PbMessage::Append { context, entries }
    }
}

fn decode_epoch(state: &[u8]) -> Epoch {
    let text = std::str::from_utf8(state).expect("the log gives back what was written");
    text.parse().expect("an epoch was written")
}
