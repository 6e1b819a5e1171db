//! The engines under the tables, and the one keyspace per node that the cohorts share.
//!
//! # What is guaranteed
//!
//! * A [`WriteBatch`] is visible as a whole or not at all, to readers and after a crash.
//! * [`Tables::flush`] makes everything applied before it durable, for every cohort at once; only
//!   then does [`crate::CohortTable::persisted`] move, which is where the log may be cut (S10).
//! * A failed write or flush poisons: nothing is written any more, [`Tables::on_failure`] is told
//!   once, and nothing is tried again. A disk that has lost a write cannot be asked which one.
//! * Memory is bounded: a writer waits while [`MEMTABLES_MAX`] memtables' worth of writes are not
//!   on disk yet, and no flush starts while compaction lags too far behind.
//!
//! # How it works
//!
//! All cohorts live in one engine, under keys that begin with the cohort's number (`keys`). Each
//! log entry's rows, the cohort's applied point, its write counter and the sessions that changed go
//! into one batch, so that any state the engine comes back with after a crash is a state that the
//! cohort once had, and says which.
//!
//! Two threads look after the engine (`maintenance`): one flushes when enough was written, one
//! compacts after each flush. Neither holds up readers; writers wait only for the bound above.
//!
//! Two engines exist: `lsm` (default) and `sled`. A folder belongs to the engine that made it; its
//! `FORMAT` file says which.
//!
//! # What is left out
//!
//! There is no checksum here over rows at rest: both engines have their own over blocks and
//! records. There is no way to move a folder from one engine to the other; a snapshot does that.

mod batch;
mod checksums;
mod core;
mod engine;
mod error;
pub(crate) mod folder;
pub(crate) mod keys;
mod lsm;
mod lsm_files;
mod lsm_merge;
mod maintenance;
mod row_cache;
pub(crate) mod rows;
mod sled;
mod tables;

pub use self::batch::{Change, WriteBatch};
pub(crate) use self::core::{Core, Points};
pub use self::core::{MEMTABLES_MAX, TableMetrics};
pub use self::engine::{ScanBudget, Scanned, Span, TableEngine, View, Visit};
pub use self::error::TableError;
pub(crate) use self::tables::PersistedPoints;
pub use self::tables::{TableOptions, Tables};
