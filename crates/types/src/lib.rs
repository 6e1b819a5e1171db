//! The words that every crate of Trireme shares: identifiers, log addresses, key ranges, commands
//! and cohort configurations.
//!
//! Nothing here does I/O, reads a clock or knows a protocol. `docs/glossary.md` gives each word
//! its one meaning.

mod command;
mod config;
mod entry;
mod id;
pub mod limits;
mod lsn;
mod path;
mod range;
mod range_map;
mod seal;
mod timing;

pub use command::{
    BatchDecodeError, Command, CommandBatch, Condition, Operation, Outcome, RequestId, Version,
};
pub use config::{
    CohortConfig, Consistency, Durability, Engine, PlacementError, Protocol, UnknownName,
    chained_placement,
};
pub use entry::{Entry, EntryKind};
pub use id::{ClientId, ClusterId, CohortId, Incarnation, NodeId, ParseIdError};
pub use lsn::{Epoch, Lsn};
pub use path::PATH;
pub use range::{KeyRange, first_after, printable};
pub use range_map::{RangeDescriptor, RangeMap, RangeMapError, check_split_key, even_splits};
pub use seal::{Merge, Origin, Payload, Seal, Successor, Upper};
pub use timing::{InvalidTiming, PERIOD_MAX, Timing, TimingChange};
