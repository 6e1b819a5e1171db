//! How a cohort's replicas agree.
//!
//! Two seams hold the protocols apart from everything else:
//!
//! - [`Replica`] (seam B) is what the server holds of each cohort, whatever the protocol;
//! - [`core::Core`] (seam A) is what a protocol of our own implements: a state machine without
//!   I/O, clock or randomness, run by [`driver::CoreReplica`].
//!
//! [`raft`] implements `Replica` over openraft and is the only place that names openraft.

pub mod core;
pub mod driver;
mod freshness;
pub mod pacifica;
pub mod pulse;
mod queue;
pub mod raft;
mod replica;
pub mod simulation;
pub mod spinnaker;
pub mod streaming;
mod transport;

pub use replica::{
    ErrorClass, Freshness, Measures, ReadPermit, Replica, ReplicaError, ReplicaStatus, Role,
};
pub use transport::{Lane, SendError, Transport};
