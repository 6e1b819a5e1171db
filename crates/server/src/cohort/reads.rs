//! The queue of a cohort's strong reads: what waits shares one barrier.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use trireme_proto::v1;
use trireme_proto::v1::response::Result as Answer;
use trireme_replication::{Freshness, Replica, ReplicaError};
use trireme_storage::{CohortTable, Row, ScanPage, TableError};
use trireme_types::{Consistency, KeyRange};

use crate::refusal;
use crate::request::ReplyTo;
use crate::routes::NodeDirectory;

/// The most strong reads that wait in one cohort's queue; past it a client is told `BUSY`.
const QUEUE_READS_MAX: usize = 65_536;

/// The most reads that one barrier serves before the next one may begin.
const READS_MAX: usize = 8192;

/// A read that waits for its barrier.
pub(crate) struct PendingRead {
    pub(crate) read: Read,
    pub(crate) consistency: Consistency,
    pub(crate) deadline: Instant,
    pub(crate) reply: ReplyTo,
}

/// What a read asks for.
pub(crate) enum Read {
    /// The value of one key.
    Get(Bytes),
    /// A page of the rows in a range.
    Scan {
        /// The keys, all within the cohort's range.
        range: KeyRange,
        /// The most rows.
        limit: usize,
        /// Highest key first.
        reverse: bool,
    },
}

/// The queue of one cohort's reads. Dropping it ends its task once the queue is empty.
pub(super) struct ReadQueue {
    queue: mpsc::Sender<PendingRead>,
    reader: Reader,
}

#[derive(Clone)]
struct Reader {
    replica: Arc<dyn Replica>,
    table: CohortTable,
    directory: Arc<NodeDirectory>,
}

impl ReadQueue {
    pub(super) fn start(
        replica: Arc<dyn Replica>,
        table: CohortTable,
        directory: Arc<NodeDirectory>,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_READS_MAX);
        let reader = Reader { replica, table, directory };
        tokio::spawn(reader.clone().run(waiting));
        Self { queue, reader }
    }

    pub(super) fn push(&self, read: PendingRead) {
        if read.consistency == Consistency::Timeline {
            let answer = self.reader.read_timeline(&read.read);
            return read.reply.send(answer);
        }
        match self.queue.try_send(read) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(read)) => {
                read.reply.refuse(refusal::busy("too many reads wait for the cohort"));
            }
            Err(mpsc::error::TrySendError::Closed(read)) => {
                read.reply.refuse(refusal::unavailable("the node is stopping"));
            }
        }
    }
}

impl Reader {
    async fn run(self, mut waiting: mpsc::Receiver<PendingRead>) {
        let mut reads = Vec::new();
        while waiting.recv_many(&mut reads, READS_MAX).await > 0 {
            let now = Instant::now();
            let (late, timely): (Vec<_>, Vec<_>) =
                reads.drain(..).partition(|read| read.deadline <= now);
            late.into_iter().for_each(|read| read.reply.refuse(refusal::expired()));
            if timely.is_empty() {
                continue;
            }
            match self.replica.read_barrier().await {
                // The next barrier begins while these reads are answered.
                Ok(permit) => drop(tokio::spawn(self.clone().answer(timely, permit))),
                Err(error) => self.refuse(timely, &error),
            }
        }
    }

    async fn answer(self, reads: Vec<PendingRead>, permit: trireme_replication::ReadPermit) {
        let answers: Vec<_> = reads.iter().map(|read| self.read(&read.read)).collect();
        // S5: what was read may be given away only if the right to read it still holds now.
        match permit.confirm() {
            Ok(()) => {
                for (read, answer) in reads.into_iter().zip(answers) {
                    read.reply.send(answer);
                }
            }
            Err(error) => self.refuse(reads, &error),
        }
    }

    fn refuse(&self, reads: Vec<PendingRead>, error: &ReplicaError) {
        let error = refusal::of_replica(error, |node| self.directory.node(node));
        for read in reads {
            read.reply.refuse(error.clone());
        }
    }

    fn read(&self, read: &Read) -> Answer {
        let answer = match read {
            Read::Get(key) => self.table.get(key).map(|row| get_answer(row, None)),
            Read::Scan { range, limit, reverse } => {
                let page = self.table.scan(range, *limit, *reverse);
                page.map(|page| scan_answer(page, range, *reverse, None))
            }
        };
        answer.unwrap_or_else(failed)
    }

    /// Reads whatever state the replica has, and says which that was and how old it may be.
    fn read_timeline(&self, read: &Read) -> Answer {
        let began = Instant::now();
        let answer = match read {
            Read::Get(key) => self.table.get_with_applied(key).map(|(row, applied)| {
                let freshness = self.replica.freshness(applied, began);
                freshness.map(|freshness| get_answer(row, Some(freshness)))
            }),
            Read::Scan { range, limit, reverse } => {
                let page = self.table.scan_with_applied(range, *limit, *reverse);
                page.map(|(page, applied)| {
                    let freshness = self.replica.freshness(applied, began);
                    freshness.map(|freshness| scan_answer(page, range, *reverse, Some(freshness)))
                })
            }
        };
        match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                Answer::Error(refusal::of_replica(&error, |node| self.directory.node(node)))
            }
            Err(error) => failed(error),
        }
    }
}

fn failed(error: TableError) -> Answer {
    match error {
        TableError::Dropped(_) => {
            Answer::Error(refusal::unavailable("the replica is not here any more"))
        }
        error => {
            tracing::error!(%error, "a read failed");
            Answer::Error(refusal::internal(error))
        }
    }
}

fn get_answer(row: Option<Row>, freshness: Option<Freshness>) -> Answer {
    let (row, freshness) = (row.map(row_message), freshness.map(freshness_message));
    Answer::Get(v1::GetResponse { row, freshness })
}

fn scan_answer(
    page: ScanPage,
    range: &KeyRange,
    reverse: bool,
    freshness: Option<Freshness>,
) -> Answer {
    let covered = covered(range, page.rows.last().filter(|_| page.more), reverse);
    Answer::Scan(v1::ScanResponse {
        rows: page.rows.into_iter().map(row_message).collect(),
        covered_start: covered.start,
        covered_end: covered.end,
        freshness: freshness.map(freshness_message),
    })
}

/// Returns the part of `range` that a page covers which was cut short after the row `last`.
fn covered(range: &KeyRange, last: Option<&Row>, reverse: bool) -> KeyRange {
    match last {
        None => range.clone(),
        Some(row) if reverse => KeyRange { start: row.key.clone(), end: range.end.clone() },
        Some(row) => {
            // The first key after `row` is its key with a zero byte behind it.
            let end = Bytes::from([&row.key[..], &[0]].concat());
            KeyRange { start: range.start.clone(), end: Some(end) }
        }
    }
}

fn row_message(row: Row) -> v1::Row {
    v1::Row { key: row.key, value: row.value, version: row.version.0 }
}

fn freshness_message(freshness: Freshness) -> v1::Freshness {
    // Rounded up, since it is a bound.
    let milliseconds = |age: Duration| u64::try_from(age.as_micros().div_ceil(1000));
    let age_ms = freshness.age.map(|age| milliseconds(age).unwrap_or(u64::MAX));
    v1::Freshness { applied: Some(freshness.applied.into()), age_ms }
}
