//! One node's disk.
//!
//! * [`fs`]: the few file operations that the log needs, behind a trait so small that an in-memory
//!   file system can crash ([`fs::MemFs`]).
//! * [`log`]: the shared log: one write-ahead log per node that carries the logs of all its cohorts,
//!   with one write and one forced sync for everything that waits.
//! * [`table`]: the engines, and [`Tables`], one per node: one keyspace that all cohorts share, so
//!   that one flush moves the point from which each of them needs its log (S10).
//! * [`cohort_table`]: [`CohortTable`], one cohort's part of it: it applies log entries, judges
//!   conditions, keeps the sessions that make retries safe, and answers reads.
//! * [`snapshot`]: a cohort's whole state as a stream of checked chunks, and its way back.
//!
//! Nothing here knows a leader, a quorum or a protocol. The tables have no log of their own: after
//! a crash a table stands at some earlier consistent point, [`CohortTable::applied`], and whoever
//! owns the cohort's log applies the entries after it again.
//!
//! `docs/storage-format.md` and `docs/table-format.md` give every byte on disk,
//! `docs/log-pointers.md` the order of the points in a cohort's log.

pub mod cohort_table;
pub mod fs;
pub mod log;
pub mod snapshot;
pub mod table;
#[cfg(test)]
mod tests;

pub use cohort_table::begin::Beginning;
pub use cohort_table::{APPLY_RESIDENT_BYTES_MAX, Applied, CohortTable, Row, ScanPage};
pub use log::{
    CohortLog, IoId, LogBounds, LogError, LogErrorClass, LogHolder, LogIdentity, LogMetrics,
    LogOptions, LogWrite, Refused, SharedLog,
};
pub use snapshot::{
    SnapshotError, SnapshotHeader, SnapshotProgress, SnapshotReader, SnapshotReceiver,
    StagedSnapshot,
};
pub use table::folder::is_catching_panics;
pub use table::{TableError, TableMetrics, TableOptions, Tables};
