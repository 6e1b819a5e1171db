//! The shared log: one write-ahead log per node that carries the logs of all its cohorts.
//!
//! # What it guarantees
//!
//! * **One log, many cohorts.** Each [`CohortLog`] is a log of its own: entries numbered without a
//!   hole, a hard state, a commit point. All of them lie in one row of files, so that whatever waits,
//!   of all cohorts, goes to disk with one write and one forced sync (M11, M13).
//! * **Order.** The log takes effect in the order of submission. After a crash it is what it was
//!   after some prefix of all submitted writes, over all cohorts, and every write that was reported
//!   durable is in that prefix.
//! * **Durable means durable.** Under [`trireme_types::Durability::Fsync`] a write is reported once
//!   the sync behind it has returned. `Os` reports it once the system has it; `Memory` at once, before
//!   it is written at all. The bytes on disk are the same under all three.
//! * **What is dropped stays dropped.** A truncation is a record in its place in the log: it drops what
//!   was written before it and nothing that comes after, over any number of restarts (S9,
//!   M24).
//! * **Damage is named.** Local recovery and every read check checksums. Damage is an error with the
//!   file and the position, never a shorter log, except where nothing tells it from a torn write: in
//!   the last block of a log that was not closed.
//! * **A failure is final.** After a failed write or sync nothing is known of the disk, and a second
//!   sync that succeeds proves nothing. The log takes no more writes; the node must stop.
//!
//! # The life of a write
//!
//! ```text
//!   submitter                          writer                            keeper
//!   ---------                          ------                            ------
//!   check it against the index
//!   change the index, put it into
//!   the queue (one lock over both)
//!   return its IoId: it is readable
//!                                      take all that waits, up to
//!                                      a block; note it in the ledger
//!                                      encode, write_at, sync_data
//!                                      index: where the entries lie
//!                                      publish the IoId, call `done`
//!                                      let old entries leave memory
//!                                      find dead segments ------------>  remove them
//!                                      half full ---------------------->  make the next
//! ```
//!
//! There is no timer: while one block is being synced, the next one's writes gather in the queue, and
//! the longer a sync takes the more of them share the next. Only a commit point does not wake the
//! writer. It goes with the next block, or after 50 ms by itself; so that its number becomes durable
//! soon too, it is then forced like everything else.
//!
//! Two structures follow the writes. A cohort's *index* says what its owner sees: what was submitted
//! counts. The *ledger* says what the physical log holds up to the writer's position. The difference
//! is what waits in the queue, and it matters: a segment must not be removed because of a purge that is
//! not on disk, and a segment must not begin with a state that the log before it does not have yet.
//!
//! # On disk
//!
//! Segments hold blocks, blocks hold records. Blocks start at sectors, so that no sector with an
//! acknowledged byte is ever written again. Each segment begins with a *restatement* of every cohort
//! (purged point, last entry, commit point, hard state), so that of older ones only entries are
//! needed, and a segment can go as soon as none of its entries counts. Segments go oldest first, so
//! a cohort that does not purge keeps every later segment (S10). [`SharedLog::holders`] names such
//! cohorts, and [`SharedLog::move_oldest`] writes their entries again at the head of the log
//! (`moving`). `docs/storage-format.md` has every byte.
//!
//! What a log may give up is bounded by what the tables have on disk: [`SharedLog::protect`] gives
//! the log the tables to ask, and from then on it refuses every purge that goes further, from whom
//! it may come.
//!
//! # Local recovery
//!
//! One scan, in which every byte is read once, replays the records of all cohorts in their order
//! (M12). The log ends where the next block is not whole. If a block behind that place says that the
//! missing one had been synced, that is damage; if none does, it is a torn write, and is overwritten
//! with zeros, so that nothing of it comes back. What was found is synced before it is used.
//!
//! # Memory
//!
//! An entry costs 24 bytes in the index and 8 in the ledger for as long as it is in the log. Entries
//! that wait for the disk are in memory, bounded by [`LogOptions::queue_bytes_max`]; recent ones stay,
//! bounded by [`LogOptions::cache_bytes`]; others are read from disk.
//!
//! # What is left out
//!
//! * One writer, one log. Several disks would be served by several logs.
//! * A reader does not pin what it has not read yet: who streams entries to a follower must not purge
//!   them.
//! * Checksums find accidents, not forgery, and nothing is encrypted or compressed.

mod cohort;
mod error;
mod format;
#[cfg(test)]
mod fuzz;
mod index;
mod keeper;
mod ledger;
mod metrics;
mod moving;
mod options;
mod queue;
mod read;
mod recovery;
mod segment;
mod shared;
mod writer;

pub use cohort::{CohortLog, IoId, LogBounds, LogWrite, Refused};
pub use error::{LogError, LogErrorClass};
pub use ledger::LogHolder;
pub use metrics::LogMetrics;
pub use options::{ENTRY_BYTES_MAX, HARD_STATE_BYTES_MAX, LogIdentity, LogOptions};
pub use shared::SharedLog;

use shared::{Core, Handle};
