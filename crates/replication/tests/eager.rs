//! What the driver sees to whatever the protocol does, shown with a protocol that is in a hurry: it
//! commits a proposal before anybody has it on disk.

use std::convert::Infallible;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tempfile::TempDir;
use trireme_replication::core::{
    Core, CoreStatus, Effect, EpochRuns, Event, Message, Moment, Outbox,
};
use trireme_replication::driver::{CoreReplica, DriverOptions, NoCoordination, Wiring};
use trireme_replication::{Lane, Measures, Replica, Role, SendError, Transport};
use trireme_storage::fs::MemFs;
use trireme_storage::{
    LogIdentity, LogOptions, LogWrite, SharedLog, SnapshotReader, TableOptions, Tables,
};
use trireme_types::{
    ClusterId, CohortId, CommandBatch, Entry, EntryKind, KeyRange, Lsn, NodeId, Protocol,
};

#[derive(Debug)]
struct Eager {
    log: EpochRuns,
    outbox: Outbox<Self>,
}

/// Nobody says anything.
#[derive(Debug)]
enum Silence {}

impl fmt::Display for Silence {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl Message for Silence {
    type DecodeError = fmt::Error;

    fn encode(&self) -> Bytes {
        match *self {}
    }

    fn decode(_bytes: Bytes) -> Result<Self, fmt::Error> {
        Err(fmt::Error)
    }
}

impl Core for Eager {
    const PROTOCOL: Protocol = Protocol::Spinnaker;
    type Message = Silence;
    type Context = Infallible;
    type CoordinatorRequest = Infallible;
    type CoordinatorEvent = Infallible;

    fn handle(&mut self, _now: Moment, event: Event<Self>) {
        if let Event::Propose { ticket, payload } = event {
            let lsn = Lsn::new(1, self.log.last().seq + 1);
            self.log.append(lsn);
            let entry = Entry { lsn, kind: EntryKind::Commands, payload };
            self.outbox.persist(LogWrite::Append(vec![entry]));
            self.outbox.push(Effect::ReplyOutcomes { ticket, lsn });
            self.outbox.push(Effect::Commit { upto: lsn });
        }
    }

    fn drain_effects(&mut self, effects: &mut Vec<Effect<Self>>) {
        self.outbox.drain_into(effects);
    }

    fn next_timeout(&self) -> Option<Moment> {
        None
    }

    fn status(&self) -> CoreStatus {
        let last = self.log.last();
        CoreStatus {
            role: Role::Leader,
            leader: None,
            current: None,
            epoch: 1,
            last,
            durable: Lsn::ZERO,
            committed: last,
            purged: Lsn::ZERO,
            replicas: Vec::new(),
            progress: Vec::new(),
            measures: Measures::default(),
        }
    }

    fn entries_message(context: Infallible, _entries: Vec<Entry>) -> Silence {
        match context {}
    }
}

struct Nowhere;

#[async_trait]
impl Transport for Nowhere {
    fn send(&self, to: NodeId, _: CohortId, _: Lane, _: Bytes) -> Result<(), SendError> {
        Err(SendError::Unreachable(to))
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

/// A table that ran ahead of its own log would, after a crash, stand behind a hole (S8).
#[tokio::test(start_paused = true)]
async fn nothing_is_applied_before_it_is_on_the_own_disk() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let identity = LogIdentity { cluster: ClusterId(1), node: NodeId(1) };
    let fs = Arc::new(MemFs::new());
    let log = SharedLog::open_stepped(fs, Path::new("/log"), identity, LogOptions::default())
        .expect("the log opens");
    let tables = Tables::open(folder.path(), TableOptions::default()).expect("the tables open");
    let table = tables.cohort(CohortId(1), KeyRange::all()).expect("the table opens");
    let wiring = Wiring {
        log: log.cohort(CohortId(1)),
        table: table.clone(),
        transport: Arc::new(Nowhere),
        coordination: Arc::new(NoCoordination),
        pulses: None,
        on_failure: Box::new(|error| panic!("{error}")),
    };
    let make = |_| Ok(Eager { log: EpochRuns::default(), outbox: Outbox::new() });
    let replica = CoreReplica::start(NodeId(1), wiring, DriverOptions::default(), make);
    let replica = Arc::new(replica.expect("the defaults make sense"));
    let write = tokio::spawn({
        let replica = Arc::clone(&replica);
        async move { replica.propose(CommandBatch::default()).await }
    });
    // In virtual time, this ends when every task has come to rest.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(replica.status().committed, Lsn::new(1, 1));
    assert_eq!(table.applied(), Lsn::ZERO);
    assert!(!write.is_finished());
    assert!(log.step(), "a write was waiting");
    assert_eq!(write.await.expect("no panic"), Ok(Vec::new()));
    assert_eq!(table.applied(), Lsn::new(1, 1));
    replica.shutdown().await;
}
