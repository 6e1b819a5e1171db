//! A cohort as its node serves it: the replica, its table, and the queues before them.

mod clock;
mod queue;
mod reads;
mod writes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use trireme_replication::Replica;
use trireme_storage::CohortTable;
use trireme_types::{Consistency, PATH, RangeDescriptor};

use crate::backpressure::Backpressure;
use crate::readers::Readers;
use crate::refusal;
use crate::routes::NodeDirectory;

pub(crate) use reads::{PendingRead, Read, ReadQueue, Reader};
pub(crate) use writes::PendingWrite;

/// One cohort that has a replica on this node.
pub(crate) struct HostedCohort {
    /// The range that the cohort serves.
    pub(crate) descriptor: RangeDescriptor,
    /// The replica.
    pub(crate) replica: Arc<dyn Replica>,
    /// Its table.
    pub(crate) table: CohortTable,
    writes: writes::WriteQueue,
    reads: Arc<ReadQueue>,
    counters: Arc<Counters>,
    backpressure: Arc<Backpressure>,
    /// How many seals of this node are on their way into the cohort's log.
    seals: AtomicUsize,
}

/// Keeps a cohort from answering strong reads that come while its seal is on the way.
pub(crate) struct ReadsHeld {
    cohort: Arc<HostedCohort>,
}

impl Drop for ReadsHeld {
    fn drop(&mut self) {
        self.cohort.seals.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a cohort did since its node started.
#[derive(Default)]
pub(crate) struct Counters {
    commands: AtomicU64,
}

impl HostedCohort {
    /// Starts the queues of a cohort on the current runtime.
    pub(crate) fn start(
        descriptor: RangeDescriptor,
        replica: Arc<dyn Replica>,
        table: CohortTable,
        directory: Arc<NodeDirectory>,
        backpressure: Arc<Backpressure>,
        readers: Arc<Readers>,
    ) -> Arc<Self> {
        let counters = Arc::<Counters>::default();
        let clock = clock::CohortClock::start(table.clone());
        let writes = writes::WriteQueue::start(
            replica.clone(),
            clock,
            directory.clone(),
            counters.clone(),
            backpressure.clone(),
        );
        let reads = ReadQueue::start(replica.clone(), table.clone(), directory, readers);
        let seals = AtomicUsize::new(0);
        Arc::new(Self { descriptor, replica, table, writes, reads, counters, backpressure, seals })
    }

    /// Queues a write, or refuses it.
    pub(crate) fn write(&self, write: PendingWrite) {
        tracing::trace!(target: PATH, "path: asked");
        if let Some(reason) = self.backpressure.refusal(self.descriptor.cohort) {
            return write.reply.refuse(refusal::busy(reason));
        }
        if self.table.is_sealed() {
            return write.reply.refuse(refusal::moved());
        }
        self.writes.push(write);
    }

    /// Has the cohort answer no strong read that comes from now on, until what this returns is dropped.
    /// A leader that reads under a lease answers from what it has applied, and other replicas may have applied
    /// a seal, and begun as its successor, before it has.
    pub(crate) fn hold_reads(self: &Arc<Self>) -> ReadsHeld {
        self.seals.fetch_add(1, Ordering::SeqCst);
        ReadsHeld { cohort: Arc::clone(self) }
    }

    /// Queues a read, or refuses it; a timeline read that needs no file is answered at once.
    pub(crate) fn read(&self, read: PendingRead) {
        //= RANGE-4
        if read.consistency == Consistency::Strong && self.seals.load(Ordering::SeqCst) > 0 {
            return read.reply.refuse(refusal::busy("the range is being changed"));
        }
        self.reads.push(read);
    }

    /// Returns how many commands clients were answered about.
    pub(crate) fn commands(&self) -> u64 {
        self.counters.commands.load(Ordering::Relaxed)
    }
}
