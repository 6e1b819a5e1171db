//! Raft, through openraft.
//!
//! # What it guarantees
//!
//! A write is acknowledged once a majority of the cohort has it on disk and the leader has applied
//! it. A strong read sees every write acknowledged before it was asked for. At most one replica
//! leads in a term; a leader that lost its majority refuses writes and strong reads.
//!
//! # How it stands in the house
//!
//! openraft's engine is private and wants to run its own tasks, so it fits seam B and not seam A.
//! One [`RaftReplica`] per cohort holds:
//!
//! - `log_store`: openraft's log, vote and commit point, all in the cohort's log, which is a view
//!   on the node's one shared log. Appends return at once and report when the shared log's group
//!   commit has made them durable, so that many cohorts share one forced write (M13), and a
//!   leader's own force runs in parallel with its followers'.
//! - `state_machine`: the cohort's table. An entry is a batch of commands; conditions and sessions
//!   are judged when it is applied, as for every protocol.
//! - `network`, `calls`, `inbound`, `wire`: openraft's calls as messages over the node's transport,
//!   which all cohorts share. Appends are pipelined; heartbeats take a lane of their own. Probes
//!   find out what was lost, so that it is sent again as soon as the lane works again.
//! - `tending`, `watchdog`: a leader whose heartbeats arrive and which cannot use its lead, since it
//!   is not answered, its entries do not flow or its table stands still, asks a follower to stand
//!   (P14).
//! - `admission`: a replica that lost what it had stored comes back under another incarnation, as a
//!   learner, and takes its predecessor's place once it has caught up (S14).
//! - `forming`: a cohort's first membership, and its first leader where it goes on from another cohort.
//! - `rest`: a replica in whose cohort nothing happens rests, with openraft's ticks off.
//! - `log_holds`: what of the log must stay for a follower that is being sent a snapshot.
//! - `replica`: the seam itself. Strong reads use ReadIndex: one exchange with a majority serves all
//!   reads that the server gathered for one barrier (C4: openraft first commits an entry of the
//!   leader's own term).
//!
//! # Names
//!
//! openraft's term is our epoch, its log index plus one our `seq`, its learner our learner, its
//! `LogEntryDiscarded` our `Ambiguous`.
//!
//! # When the log may go
//!
//! A snapshot, to openraft, is what lets the log be purged. Here the table itself is the snapshot:
//! "building" one only makes sure that the table is on disk, and the rows are read from it when
//! a follower needs them. openraft never decides on its own to build one; the node asks through
//! [`crate::Replica::release_log`].
//!
//! # Left out
//!
//! Lease reads (openraft offers them; ReadIndex needs no clock), witnesses.

mod admission;
mod calls;
mod forming;
mod heard;
mod inbound;
mod log_holds;
mod log_store;
mod network;
mod options;
mod replica;
mod rest;
mod runtime;
mod state_machine;
mod tending;
mod types;
mod watchdog;
mod wire;

#[cfg(test)]
mod faults_test;
#[cfg(test)]
mod replica_test;
#[cfg(test)]
mod rest_test;
#[cfg(test)]
mod suite_test;

/// A directive for log filters: the library logs each election, lost connection and interrupted
/// task at levels that are meant for its developers. What a node must act on, it returns.
pub const LOG_DIRECTIVE: &str = "openraft=off";

pub use forming::first_state;
pub use options::{RaftFaults, RaftOptions};
pub use replica::{RaftParts, RaftReplica};
