//! Snapshots, whole and broken.

use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::Instant;
use trireme_proto::v1::snapshot_frame::Frame;
use trireme_proto::v1::{SnapshotFrame, SnapshotStart};
use trireme_replication::{SendError, Transport};
use trireme_server::transport::{ConnectionLane, TransportOptions};
use trireme_storage::{CohortTable, SnapshotReader, TableOptions, Tables};
use trireme_types::{
    CohortId, Command, CommandBatch, Condition, Entry, EntryKind, KeyRange, Lsn, NodeId, Operation,
};

use crate::support::{CLUSTER, Node, SNAPSHOT_STEP, Stranger, eventually, pair};

const COHORT: CohortId = CohortId(5);

/// A table, and what must live as long as it is used.
struct Source {
    table: CohortTable,
    _tables: Tables,
    _folder: TempDir,
}

impl Source {
    fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tables = Tables::open(folder.path(), TableOptions::default()).unwrap();
        let table = tables.cohort(COHORT, KeyRange::all()).unwrap();
        Self { table, _tables: tables, _folder: folder }
    }

    fn snapshot(&self) -> SnapshotReader {
        self.table.snapshot().unwrap()
    }
}

fn value(number: u32) -> Bytes {
    Bytes::from(number.to_be_bytes().repeat(1024))
}

/// Returns a table of so many rows of 4 KiB each.
fn filled(rows: u32) -> Source {
    let source = Source::empty();
    let commands = (0..rows).map(|number| {
        let key = Bytes::from(format!("key-{number:06}"));
        let operation = Operation::Put { key, value: value(number), condition: Condition::None };
        Command { request: None, operation }
    });
    let payload = CommandBatch { commands: commands.collect(), clock: 0 }.encode();
    let entry = Entry { lsn: Lsn::new(1, 1), kind: EntryKind::Commands, payload };
    source.table.apply(&[entry]).unwrap();
    source
}

async fn send(node: &Node, to: NodeId, snapshot: SnapshotReader) -> Result<Bytes, SendError> {
    node.transport.send_snapshot(to, COHORT, Bytes::from_static(b"header"), snapshot).await
}

fn refusal(answer: Result<Bytes, SendError>) -> String {
    match answer {
        Err(SendError::Refused { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_many_chunks_arrives_as_it_was() {
    const ROWS: u32 = 2500;
    let (one, two) = pair().await;
    let source = filled(ROWS);
    let answer = send(&one, two.id, source.snapshot()).await;
    assert_eq!(answer, Ok(Bytes::from_static(b"taken")));
    let (from, cohort, header, staged) = two.handler.snapshots.lock().pop().unwrap();
    assert_eq!((from, cohort, &header[..]), (one.id, COHORT, &b"header"[..]));
    let copy = Source::empty();
    let (copy, source) = (&copy.table, &source.table);
    copy.install(staged).unwrap();
    assert_eq!(copy.applied(), Lsn::new(1, 1));
    for number in 0..ROWS {
        let key = format!("key-{number:06}");
        let row = copy.get(key.as_bytes()).unwrap().unwrap();
        assert_eq!(row.value, value(number));
        assert_eq!(Some(row), source.get(key.as_bytes()).unwrap());
    }
}

#[tokio::test]
async fn what_the_handler_says_against_a_snapshot_is_passed_on() {
    let (one, two) = pair().await;
    *two.handler.snapshot_answer.lock() = Err("no such cohort".to_owned());
    let source = filled(3);
    let answer = send(&one, two.id, source.snapshot()).await;
    assert_eq!(refusal(answer), "no such cohort");
    let nobody = send(&one, NodeId(9), source.snapshot()).await;
    assert_eq!(nobody, Err(SendError::Unreachable(NodeId(9))));
}

#[tokio::test]
async fn streams_that_are_cut_or_damaged_are_not_taken_and_leave_no_file() {
    let two = Node::start(2).await;
    let source = filled(300);
    let mut reader = source.snapshot();
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        chunks.push(Frame::Chunk(chunk));
    }
    assert!(chunks.len() > 4);
    let start =
        Frame::Start(SnapshotStart { cohort: 5, header: Bytes::new(), knows_progress: true });
    let end = Frame::End(true);
    let streams = [
        // It ends early and says that this is the end, ...
        ([&[start.clone()][..], &chunks[..3], slice::from_ref(&end)].concat(), true),
        // misses a part, ...
        ([&[start.clone()][..], &chunks[..2], &chunks[3..], slice::from_ref(&end)].concat(), true),
        // is longer than it is, ...
        ([&[start.clone()][..], &chunks, &chunks[..1], slice::from_ref(&end)].concat(), true),
        // or breaks off.
        ([&[start][..], &chunks].concat(), false),
        (chunks, false),
    ];
    for (stream, is_answered) in streams {
        let mut sender = Stranger::come(two.address, 1, 2, ConnectionLane::Snapshot).await;
        for frame in stream {
            sender.send(&SnapshotFrame { frame: Some(frame) }).await;
        }
        if is_answered {
            let answer: SnapshotFrame = sender.receive().await.unwrap();
            assert!(matches!(answer.frame, Some(Frame::Refused(_))), "{answer:?}");
        }
        drop(sender);
    }
    // Whole ones after them are taken, as soon as the end of the last ones has been noticed: those
    // did not use up the room for snapshots.
    let one = Node::start(1).await;
    one.knows(two.id, two.address);
    for _ in 0..3 {
        let mut answer = send(&one, two.id, source.snapshot()).await;
        let deadline = Instant::now() + Duration::from_secs(5);
        while answer.is_err() && Instant::now() < deadline {
            answer = send(&one, two.id, source.snapshot()).await;
        }
        assert_eq!(answer, Ok(Bytes::from_static(b"taken")));
    }
    assert_eq!(two.handler.snapshots.lock().len(), 3);
    two.handler.snapshots.lock().clear();
    assert_eq!(two.handler.files(), 0);
}

#[tokio::test]
async fn more_snapshots_at_a_time_than_there_is_room_for_are_refused() {
    let options =
        TransportOptions { snapshots_max: 2, ..TransportOptions::new(CLUSTER, NodeId(2)) };
    let (one, two) = (Arc::new(Node::start(1).await), Node::start_with(options).await);
    one.knows(two.id, two.address);
    let source = filled(1000);
    let to = two.id;
    two.handler.snapshot_gate.forget_permits(usize::MAX);
    let mut under_way = Vec::new();
    for _ in 0..2 {
        let (one, snapshot) = (one.clone(), source.snapshot());
        under_way.push(tokio::spawn(async move { send(&one, to, snapshot).await }));
    }
    let begun = || two.handler.snapshots_begun.load(Ordering::Relaxed);
    eventually("both have arrived", || begun() == 2).await;
    let answer = send(&one, to, source.snapshot()).await;
    assert_eq!(refusal(answer), "2 snapshots are being received already");
    two.handler.snapshot_gate.add_permits(2);
    for answer in under_way {
        assert_eq!(answer.await.unwrap(), Ok(Bytes::from_static(b"taken")));
    }
    eventually("there is room again", || two.handler.snapshots.lock().len() == 2).await;
}

#[tokio::test]
async fn a_snapshot_whose_receiver_goes_away_ends_with_an_error() {
    let one = Node::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.knows(NodeId(2), listener.local_addr().unwrap());
    let source = filled(1000);
    let receiver = async {
        // The first connections are those of the lanes.
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (called, lane) = Stranger::be_called(socket).await;
            if lane == ConnectionLane::Snapshot {
                drop(called);
                return;
            }
        }
    };
    let (answer, ()) = tokio::join!(send(&one, NodeId(2), source.snapshot()), receiver);
    assert!(!refusal(answer).is_empty());
}

/// Two nodes whose snapshots may stand still for so long while they are installed.
async fn pair_with_limit(limit: Duration) -> (Node, Node) {
    let options = |id| TransportOptions {
        snapshot_install_timeout: limit,
        snapshot_step_timeout: Duration::from_secs(1),
        ..TransportOptions::new(CLUSTER, NodeId(id))
    };
    let (one, two) = (Node::start_with(options(1)).await, Node::start_with(options(2)).await);
    one.knows(two.id, two.address);
    (one, two)
}

/// A snapshot that took longer to install than a fixed limit was refused, sent anew, and installed
/// all the same: on a slow disk a replica was never brought up to date.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_waited_for_as_long_as_its_installation_comes_further() {
    let (one, two) = pair_with_limit(SNAPSHOT_STEP * 8).await;
    // Longer than both ends' limits together.
    two.handler.snapshot_steps.store(40, Ordering::Relaxed);
    let answer = send(&one, two.id, filled(3).snapshot()).await;
    assert_eq!(answer, Ok(Bytes::from_static(b"taken")));
    assert_eq!(two.handler.snapshots_begun.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_whose_installation_stands_still_is_given_up() {
    let (one, two) = pair_with_limit(Duration::from_millis(500)).await;
    two.handler.snapshot_gate.forget_permits(usize::MAX);
    let answer = send(&one, two.id, filled(3).snapshot()).await;
    assert_eq!(refusal(answer), "its installation makes no progress");
}
