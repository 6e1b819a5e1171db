//! The Trireme server: what stands between the network and the replicas.
//!
//! - [`transport`] carries messages between nodes; `listener` sorts connections by who calls.
//! - `routes` finds the cohort of a key and checks the route that a client took.
//! - `cohort` gathers writes into batches and strong reads behind shared barriers, alike for every
//!   protocol.
//! - `services` is the gRPC face of it.
//! - `hosting` opens and closes the node's replicas as the catalog asks for.
//! - [`Node`] puts a node together from its data folder; `protocols` is the only place that
//!   knows which protocols there are.
//! - `faults` disturbs a node that was started to allow it.
//! - `replacement` asks nodes to hold replicas that cohorts have lost.
//! - `memory` keeps what the node knows of the catalog, and `continuity` compares the coordinator
//!   with it. `checked_json` is the form of these files, and of `up`'s own.
//! - `catalog_feed` is the node's one watch of the catalog, and `feed` hands to each cohort what such a
//!   watch brings of it.
//! - `maintenance` keeps the shared log within its limit; `backpressure` is what writes meet when it
//!   cannot.
//! - `descriptors` shares out the open files, `listener` and `clients` the connections, and `answers`
//!   the memory that answers may take; `readers` are the threads that wait for files.

mod answers;
mod backpressure;
mod catalog_feed;
mod checked_json;
mod clients;
mod cohort;
mod continuity;
mod data_folder;
mod descriptors;
mod draining;
mod early;
mod faults;
mod feed;
mod hosting;
mod listener;
mod maintenance;
mod memory;
mod merging;
mod moving;
mod node;
pub mod panics;
mod peers;
mod protocols;
mod readers;
mod refusal;
mod replacement;
mod request;
mod routes;
mod services;
mod splitting;
mod spreading;
mod succession;
#[cfg(test)]
mod testing;
pub mod transport;

pub use checked_json::{UnreadableJson, from_checked_json, to_checked_json};
pub use continuity::{NodeKnowledge, ask_at};
pub use data_folder::{DataFolder, DataFolderError, MIN_REPLICAS_FOR_WRITE, NodeFile};
pub use descriptors::TooFewDescriptors;
pub use faults::ForwarderError;
pub use maintenance::{InvalidLogLimit, LOG_BYTES_MIN, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
pub use memory::{MemoryError, NodeMemory};
pub use node::{
    DISCARD_AFTER_DEFAULT, Node, NodeError, NodeOptions, REPLACE_DELAY_DEFAULT,
    SPLIT_BYTES_DEFAULT, SPREAD_DELAY_DEFAULT, SPREAD_LEADS_DELAY_DEFAULT,
};
pub use protocols::Mistakes;
