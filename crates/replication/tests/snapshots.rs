//! Snapshots that two senders offer to one replica at once, on a real log and a real table: the older
//! one is refused and harms nothing (C2), whichever comes first and whatever the protocol.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use trireme_replication::core::{Core, Message, Recovered};
use trireme_replication::driver::{Coordination, CoreReplica, DriverOptions, Wiring};
use trireme_replication::pacifica::{Newest, Pacifica, PacificaMessage, PacificaOptions};
use trireme_replication::spinnaker::{Spinnaker, SpinnakerMessage, SpinnakerOptions};
use trireme_replication::{Lane, Replica, ReplicaError, SendError, Transport};
use trireme_storage::fs::MemFs;
use trireme_storage::{
    CohortTable, LogIdentity, LogOptions, SharedLog, SnapshotReader, SnapshotReceiver,
    StagedSnapshot, TableOptions, Tables,
};
use trireme_types::{
    ClusterId, CohortConfig, CohortId, Command, CommandBatch, Condition, Entry, EntryKind,
    Incarnation, KeyRange, Lsn, NodeId, Operation, Protocol,
};

const COHORT: CohortId = CohortId(1);

/// The replica that is offered the snapshots.
const NODE: NodeId = NodeId(3);

/// How long an answer may take that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A network that leads nowhere.
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

/// A coordinator that answers nothing.
struct Silent;

impl<C: Core> Coordination<C> for Silent {
    fn request(&self, _: C::CoordinatorRequest) {}
}

fn fill(table: &CohortTable, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        let put = |number: u64| Command {
            request: None,
            operation: Operation::Put {
                key: Bytes::from(format!("key-{seq}-{number}")),
                value: Bytes::from(vec![b'v'; 200]),
                condition: Condition::None,
            },
        };
        let payload = CommandBatch { commands: (0..200).map(put).collect(), clock: 0 }.encode();
        let entry = Entry { lsn: Lsn::new(1, seq), kind: EntryKind::Commands, payload };
        table.apply(&[entry]).expect("the donor's table takes it");
    }
}

fn staged(table: &CohortTable, folder: &Path) -> StagedSnapshot {
    let mut reader = table.snapshot().expect("a snapshot can be taken");
    let mut receiver = SnapshotReceiver::new(folder).expect("it can be received");
    while let Some(chunk) = reader.next_chunk().expect("it can be read") {
        receiver.push(&chunk).expect("there is room");
    }
    receiver.finish().expect("it is whole")
}

/// Offers both snapshots in this order, and expects that both senders are answered, the replica goes
/// on, and its table is the newer one.
async fn offer<C: Core>(
    older_first: bool,
    header: Bytes,
    make: impl FnOnce(Recovered) -> Result<C, String>,
    begin: impl FnOnce(&CoreReplica<C>),
) {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let tables = |name: &str| {
        let tables = Tables::open(&folder.path().join(name), TableOptions::default());
        tables.expect("tables open")
    };
    let (donors, owns) = (tables("donor"), tables("own"));
    let donor = donors.cohort(COHORT, KeyRange::all()).expect("a table opens");
    fill(&donor, 1..=60);
    let older = staged(&donor, folder.path());
    fill(&donor, 61..=65);
    let newer = staged(&donor, folder.path());
    let table = owns.cohort(COHORT, KeyRange::all()).expect("a table opens");
    let identity = LogIdentity { cluster: ClusterId(1), node: NODE };
    let log =
        SharedLog::open(Arc::new(MemFs::new()), Path::new("/log"), identity, LogOptions::default())
            .expect("a log opens");
    let failure: Arc<Mutex<Option<ReplicaError>>> = Arc::default();
    let failed = Arc::clone(&failure);
    let wiring = Wiring {
        log: log.cohort(COHORT),
        table: table.clone(),
        transport: Arc::new(Nowhere),
        coordination: Arc::new(Silent),
        pulses: None,
        on_failure: Box::new(move |error| *failed.lock() = Some(error.clone())),
    };
    let replica = CoreReplica::start(NODE, wiring, DriverOptions::default(), make);
    let replica = Arc::new(replica.expect("the replica starts"));
    begin(&replica);
    let send = |from: u64, snapshot| {
        let (replica, header) = (Arc::clone(&replica), header.clone());
        async move { replica.install_snapshot(NodeId(from), header, snapshot).await }
    };
    let both = async {
        // The branches of a join are polled in order, so they are offered in order.
        if older_first {
            tokio::join!(send(1, older), send(2, newer))
        } else {
            let (newer, older) = tokio::join!(send(1, newer), send(2, older));
            (older, newer)
        }
    };
    let (older, newer) = tokio::time::timeout(PATIENCE, both).await.expect("both are answered");
    for answer in [older, newer] {
        C::Message::decode(answer.expect("the replica goes on")).expect("it says where it stands");
    }
    assert_eq!(table.applied(), Lsn::new(1, 65));
    assert_eq!(*failure.lock(), None);
    replica.shutdown().await;
}

async fn offer_to_spinnaker(older_first: bool) {
    let replicas = vec![NodeId(1), NodeId(2), NODE];
    let make = |recovered| Spinnaker::new(&recovered, SpinnakerOptions::new(replicas));
    let header = SpinnakerMessage::Snapshot { epoch: 1 }.encode();
    offer::<Spinnaker>(older_first, header, make, |_| {}).await;
}

async fn offer_to_pacifica(older_first: bool) {
    let make = |recovered| Pacifica::new(&recovered, PacificaOptions::new(Incarnation(3)));
    let header = PacificaMessage::Snapshot { epoch: 1 }.encode();
    let begin = |replica: &CoreReplica<Pacifica>| {
        let config = CohortConfig {
            cohort: COHORT,
            version: 1,
            protocol: Protocol::Pacifica,
            replicas: vec![NodeId(1)],
            replicas_wanted: 2,
            incarnations: BTreeMap::new(),
            origin: None,
        };
        replica.coordination(Newest(config)).expect("there is room for the configuration");
    };
    offer::<Pacifica>(older_first, header, make, begin).await;
}

/// [SPIN-42]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spinnaker_replica_takes_the_newer_of_two_snapshots() {
    offer_to_spinnaker(false).await;
    offer_to_spinnaker(true).await;
}

/// [PAC-42]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pacifica_replica_takes_the_newer_of_two_snapshots() {
    offer_to_pacifica(false).await;
    offer_to_pacifica(true).await;
}
