//! The queue of a cohort's strong reads: what waits shares one barrier.
//!
//! A row that is in memory is read where the request is. For what may lie in files the reads go on
//! to the reader threads. No read begins whose stream has no room for its answer.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::Instant;
use trireme_proto::v1;
use trireme_proto::v1::response::Result as Answer;
use trireme_replication::{Freshness, ReadPermit, Replica, ReplicaError};
use trireme_storage::{CohortTable, Row, ScanPage, TableError};
use trireme_types::{Consistency, KeyRange, Lsn, first_after};

use super::queue::{Batch, Limits, Queue};
use crate::answers::{Room, StreamAnswers};
use crate::readers::{FileReads, Readers};
use crate::refusal;
use crate::request::ReplyTo;
use crate::routes::NodeDirectory;

/// The most strong reads that wait in one cohort's queue; past it a client is answered `BUSY`.
const QUEUE_READS_MAX: usize = 65_536;

/// The most reads that one barrier serves before the next one may begin.
const READS_MAX: usize = 8192;

/// The most answers of one barrier that are read before they are sent. More cost less each; the first
/// of many must not wait for the last.
const READY_ANSWERS_MAX: usize = 64;

/// The bytes of values after which they are sent, however few.
const READY_BYTES_MAX: usize = 256 * 1024;

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

/// The queue of one cohort's reads. What waits when it is dropped is still answered.
pub(crate) struct ReadQueue {
    queue: Queue<PendingRead>,
    runtime: Handle,
    reader: Reader,
}

/// What answers a cohort's reads.
#[derive(Clone)]
pub(crate) struct Reader {
    replica: Arc<dyn Replica>,
    table: CohortTable,
    directory: Arc<NodeDirectory>,
    readers: Arc<Readers>,
    /// The queue that the reads come from, for those that must begin anew.
    queue: Weak<ReadQueue>,
}

impl ReadQueue {
    /// Starts a queue that is worked off on the current runtime.
    pub(super) fn start(
        replica: Arc<dyn Replica>,
        table: CohortTable,
        directory: Arc<NodeDirectory>,
        readers: Arc<Readers>,
    ) -> Arc<Self> {
        let limits = Limits { items: QUEUE_READS_MAX, bytes: usize::MAX, workers: 1 };
        let (queue, runtime) = (Queue::new(limits), Handle::current());
        Arc::new_cyclic(|this| {
            let reader = Reader { replica, table, directory, readers, queue: this.clone() };
            Self { queue, runtime, reader }
        })
    }

    pub(super) fn push(self: &Arc<Self>, read: PendingRead) {
        if read.consistency == Consistency::Timeline {
            return self.reader.read_timeline(read);
        }
        // Reads are counted and not weighed: what they hold is their keys.
        match self.queue.push(read, 0) {
            Ok(false) => {}
            Ok(true) => drop(self.runtime.spawn(Arc::clone(self).run())),
            Err(read) => read.reply.refuse(refusal::busy("too many reads wait for the cohort")),
        }
    }

    /// Takes whatever waits to a barrier, one after the other, until nothing waits.
    async fn run(self: Arc<Self>) {
        while let Some(Batch { items: mut reads, .. }) = self.queue.take(READS_MAX, usize::MAX) {
            let now = Instant::now();
            for late in reads.extract_if(.., |read| read.deadline <= now) {
                late.reply.refuse(refusal::expired());
            }
            if reads.is_empty() {
                continue;
            }
            let reader = &self.reader;
            match reader.replica.read_barrier().await {
                // The next barrier begins while these reads are answered.
                Ok(permit) => drop(tokio::spawn(reader.clone().answer(reads, permit))),
                Err(error) => reader.refuse(reads, &error),
            }
        }
    }
}

/// Answers that were read and not sent yet.
#[derive(Default)]
struct Ready {
    answers: Vec<(ReplyTo, Answer)>,
    bytes: usize,
}

impl Reader {
    /// Returns true if both read the same cohort.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.queue, &other.queue)
    }

    /// Answers what is in memory, and has the reader threads answer the rest.
    async fn answer(self, reads: Vec<PendingRead>, permit: ReadPermit) {
        let (mut gets, mut scans) = (VecDeque::new(), VecDeque::new());
        let mut ready = Ready::default();
        for read in reads {
            let Some(read) = self.admit(read) else { continue };
            match self.read_resident(&read.read) {
                Some(answer) => {
                    ready.push(read.reply, answer);
                    if ready.is_full() {
                        self.send(&mut ready, &permit);
                    }
                }
                None if matches!(read.read, Read::Get(_)) => gets.push_back(read),
                None => scans.push_back(read),
            }
        }
        self.send(&mut ready, &permit);
        self.hand_over(gets, scans, Some(permit));
    }

    /// Sends what was read. S5: it may be given away only if the right to read it still holds now.
    fn send(&self, ready: &mut Ready, permit: &ReadPermit) {
        let Ready { answers, .. } = std::mem::take(ready);
        match permit.validate() {
            Ok(()) => answers.into_iter().for_each(|(reply, answer)| reply.send(answer)),
            Err(error) => {
                let error = refusal::of_replica(&error, |node| self.directory.node(node));
                answers.into_iter().for_each(|(reply, _)| reply.refuse(error.clone()));
            }
        }
    }

    fn read_timeline(&self, read: PendingRead) {
        let Some(read) = self.admit(read) else { return };
        match self.read_resident_timeline(&read.read) {
            Some(answer) => read.reply.send(answer),
            None if matches!(read.read, Read::Get(_)) => {
                self.hand_over([read].into(), VecDeque::new(), None);
            }
            None => self.hand_over(VecDeque::new(), [read].into(), None),
        }
    }

    fn hand_over(
        &self,
        gets: VecDeque<PendingRead>,
        scans: VecDeque<PendingRead>,
        permit: Option<ReadPermit>,
    ) {
        let batch = |reads, permit| FileReads { reader: self.clone(), permit, reads };
        if !gets.is_empty() {
            self.readers.get(batch(gets, permit.clone()));
        }
        if !scans.is_empty() {
            self.readers.scan(batch(scans, permit));
        }
    }

    /// Reads what may lie in files, on a thread that may wait for the disk.
    pub(crate) fn read_files(&self, reads: VecDeque<PendingRead>, permit: Option<ReadPermit>) {
        for read in reads {
            if read.deadline <= Instant::now() {
                read.reply.refuse(refusal::expired());
                continue;
            }
            let Some(read) = self.admit(read) else { continue };
            match &permit {
                Some(permit) => {
                    let mut ready = Ready::default();
                    ready.push(read.reply, self.read(&read.read));
                    self.send(&mut ready, permit);
                }
                None => {
                    let answer = self.read_any_state(&read.read);
                    read.reply.send(answer);
                }
            }
        }
    }

    /// Returns a read that may begin. Of the others, those whose client has gone are dropped; those
    /// that must wait until their client has taken answers begin anew then, also with a barrier.
    fn admit(&self, read: PendingRead) -> Option<PendingRead> {
        match read.reply.room() {
            Room::Free => return Some(read),
            Room::Gone => {}
            Room::Later => match read.reply.stream() {
                Some(stream) => self.park(&stream, read),
                None => read.reply.refuse(no_room()),
            },
            Room::Busy => read.reply.refuse(no_room()),
        }
        None
    }

    fn park(&self, stream: &StreamAnswers, read: PendingRead) {
        let queue = self.queue.clone();
        stream.park(Box::new(move || match queue.upgrade() {
            _ if read.deadline <= Instant::now() => read.reply.refuse(refusal::expired()),
            Some(queue) => queue.push(read),
            None => read.reply.refuse(refusal::unavailable("the node is stopping")),
        }));
    }

    fn refuse(&self, reads: Vec<PendingRead>, error: &ReplicaError) {
        let error = refusal::of_replica(error, |node| self.directory.node(node));
        for read in reads {
            read.reply.refuse(error.clone());
        }
    }

    /// Answers a strong read that needs no file; `None` if it may need one.
    fn read_resident(&self, read: &Read) -> Option<Answer> {
        let Read::Get(key) = read else { return None };
        let found = self.table.get_resident(key).transpose()?;
        Some(found.map_or_else(failed, |row| get_answer(row, None)))
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

    /// Answers a timeline read that needs no file; `None` if it may need one.
    fn read_resident_timeline(&self, read: &Read) -> Option<Answer> {
        let Read::Get(key) = read else { return None };
        let began = Instant::now();
        let found = self.table.get_resident_with_applied(key).transpose()?;
        Some(self.timeline_answer(found, began, get_answer))
    }

    /// Reads whatever state the replica has, and returns with it which that was and how old it may
    /// be.
    fn read_any_state(&self, read: &Read) -> Answer {
        let began = Instant::now();
        match read {
            Read::Get(key) => {
                self.timeline_answer(self.table.get_with_applied(key), began, get_answer)
            }
            Read::Scan { range, limit, reverse } => {
                let found = self.table.scan_with_applied(range, *limit, *reverse);
                self.timeline_answer(found, began, |page, freshness| {
                    scan_answer(page, range, *reverse, freshness)
                })
            }
        }
    }

    /// Returns the answer to a timeline read that began at `began` and found the state of `applied`.
    fn timeline_answer<T>(
        &self,
        found: Result<(T, Lsn), TableError>,
        began: Instant,
        answer: impl FnOnce(T, Option<Freshness>) -> Answer,
    ) -> Answer {
        let (found, applied) = match found {
            Ok(found) => found,
            Err(error) => return failed(error),
        };
        match self.replica.freshness(applied, began) {
            Ok(freshness) => answer(found, Some(freshness)),
            Err(error) => {
                Answer::Error(refusal::of_replica(&error, |node| self.directory.node(node)))
            }
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
    let covered = covered(range, page.last.as_ref(), reverse);
    Answer::Scan(v1::ScanResponse {
        rows: page.rows.into_iter().map(row_message).collect(),
        covered_start: covered.start,
        covered_end: covered.end,
        freshness: freshness.map(freshness_message),
    })
}

impl Ready {
    fn push(&mut self, reply: ReplyTo, answer: Answer) {
        if let Answer::Get(v1::GetResponse { row: Some(row), .. }) = &answer {
            self.bytes += row.value.len();
        }
        self.answers.push((reply, answer));
    }

    fn is_full(&self) -> bool {
        self.answers.len() >= READY_ANSWERS_MAX || self.bytes >= READY_BYTES_MAX
    }
}

fn no_room() -> v1::Error {
    refusal::busy("too many answers wait for their clients")
}

fn failed(error: TableError) -> Answer {
    match error {
        TableError::Dropped(_) | TableError::Closed => {
            Answer::Error(refusal::unavailable("the replica is not here any more"))
        }
        TableError::Sealed(_) => Answer::Error(refusal::moved()),
        error => {
            tracing::error!(%error, "a read failed");
            Answer::Error(refusal::internal(error))
        }
    }
}

/// Returns the part of `range` that a page covers which was cut short after the key `last`.
fn covered(range: &KeyRange, last: Option<&Bytes>, reverse: bool) -> KeyRange {
    match last {
        None => range.clone(),
        Some(last) if reverse => KeyRange { start: last.clone(), end: range.end.clone() },
        Some(last) => KeyRange { start: range.start.clone(), end: Some(first_after(last)) },
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
