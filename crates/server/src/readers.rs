//! The threads that read what may lie in files.
//!
//! A read that waits for the disk must not hold up a thread that carries messages or answers. What
//! is in memory is read where the request is; the rest comes here, in batches: all strong reads that
//! one barrier served, or the timeline reads of a cohort that wait together. Gets and scans have
//! threads of their own, so that a get waits for no scan.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};
use trireme_replication::ReadPermit;

use crate::cohort::{PendingRead, Reader};
use crate::refusal;

#[cfg(test)]
mod tests;

/// The threads that gets are read on: as many as may wait for the disk at the same time.
const GET_THREADS: usize = 4;

/// The threads that scans are read on. A page is mostly work for a processor, of which a scan must
/// not take all.
const SCAN_THREADS: usize = 2;

/// The most reads that wait for the threads of a kind; past it a client gets `BUSY`.
const QUEUE_READS_MAX: usize = 65_536;

/// The gets that a thread takes at once. More cost less a read; fewer let other cohorts' batches
/// begin sooner.
const GETS_AT_ONCE: usize = 32;

/// The reader threads of one node. They end when it is dropped.
pub(crate) struct Readers {
    gets: Arc<Lane>,
    scans: Arc<Lane>,
}

/// Reads of one cohort that wait for a thread.
pub(crate) struct FileReads {
    pub(crate) reader: Reader,
    /// The right to answer them, if they are strong.
    pub(crate) permit: Option<ReadPermit>,
    pub(crate) reads: VecDeque<PendingRead>,
}

/// The threads for one kind of read.
struct Lane {
    /// How many reads a thread takes at once.
    at_once: usize,
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<FileReads>,
    reads: usize,
    idle: usize,
    is_closed: bool,
}

impl Readers {
    /// Starts the threads.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        // Built first, so that the threads that started end even if another cannot.
        let readers = Arc::new(Self { gets: Lane::new(GETS_AT_ONCE), scans: Lane::new(1) });
        for (name, lane, count) in
            [("get", &readers.gets, GET_THREADS), ("scan", &readers.scans, SCAN_THREADS)]
        {
            for _ in 0..count {
                let lane = lane.clone();
                thread::Builder::new().name(name.to_owned()).spawn(move || lane.run())?;
            }
        }
        Ok(readers)
    }

    /// Queues gets, or refuses them.
    pub(crate) fn get(&self, reads: FileReads) {
        self.gets.push(reads);
    }

    /// Queues scans, or refuses them.
    pub(crate) fn scan(&self, reads: FileReads) {
        self.scans.push(reads);
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        for lane in [&self.gets, &self.scans] {
            lane.queue.lock().is_closed = true;
            lane.filled.notify_all();
        }
    }
}

impl Lane {
    fn new(at_once: usize) -> Arc<Self> {
        Arc::new(Self { at_once, queue: Mutex::default(), filled: Condvar::new() })
    }

    fn push(&self, mut batch: FileReads) {
        let mut queue = self.queue.lock();
        if queue.reads + batch.reads.len() > QUEUE_READS_MAX || queue.is_closed {
            drop(queue);
            for read in batch.reads {
                read.reply.refuse(refusal::busy("too many reads wait for files"));
            }
            return;
        }
        queue.reads += batch.reads.len();
        match queue.batches.back_mut() {
            // Timeline reads come one by one.
            Some(last) if last.goes_with(&batch) => last.reads.append(&mut batch.reads),
            _ => queue.batches.push_back(batch),
        }
        if queue.idle > 0 {
            self.filled.notify_one();
        }
    }

    fn run(&self) {
        while let Some(batch) = self.next() {
            // A panic of an engine ends the process, as any panic does (see `panics`).
            batch.reader.read_files(batch.reads, batch.permit);
        }
    }

    /// Waits for reads and takes some; `None` once the lane is closed.
    fn next(&self) -> Option<FileReads> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_closed {
                queue.batches.clear();
                return None;
            }
            let Some(mut batch) = queue.batches.pop_front() else {
                queue.idle += 1;
                self.filled.wait(&mut queue);
                queue.idle -= 1;
                continue;
            };
            if batch.reads.len() > self.at_once {
                let rest = batch.reads.split_off(self.at_once);
                let reader = batch.reader.clone();
                let permit = batch.permit.clone();
                // At the end, so that the batches take turns, and other threads help with this one.
                queue.batches.push_back(FileReads { reader, permit, reads: rest });
                if queue.idle > 0 {
                    self.filled.notify_one();
                }
            }
            queue.reads -= batch.reads.len();
            return Some(batch);
        }
    }
}

impl FileReads {
    fn goes_with(&self, other: &Self) -> bool {
        self.permit.is_none() && other.permit.is_none() && self.reader.is_of(&other.reader)
    }
}
