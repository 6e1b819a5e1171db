//! `trireme compare`: the protocols side by side.
//!
//! A run brings up one cluster of processes per protocol, drives the same seeded stream of
//! operations at each, in turns, has each suffer the same faults at the same times, judges every
//! history with the linearizability checker, and writes a report: `report.json` and one page that
//! needs nothing but a browser.
//!
//! - [`suite`] says what is run: workloads, faults, and how long each takes.
//! - [`load`] has callers at work and records every operation; [`pace`] is the open loop.
//! - [`run`](mod@run) starts clusters, takes turns among them, and fills the [`report`].
//! - [`judge`] decides whether a history can be explained and whether anything was lost.
//! - [`claims`] holds what papers and seeds claim against what was measured.
//! - `predictions` holds what a write cost against what the protocols predict.
//! - [`expectation`] and [`baseline`] judge a report against bounds, and against an earlier one.
//! - [`page`] draws the report; [`terminal`] sums it up.
//!
//! What makes the figures comparable: the clusters share machine, disk, program, durability,
//! engine and periods; they are idle while another is driven; a caller's choices depend on the seed
//! alone, not on the protocol; every round drives every cluster before the next round begins.

pub mod baseline;
pub mod claims;
pub mod etcd;
pub mod expectation;
pub mod judge;
pub mod keys;
pub mod load;
mod machine;
pub mod pace;
pub mod page;
mod predictions;
pub mod report;
pub mod run;
mod statistics;
pub mod store;
pub mod suite;
pub mod terminal;

pub use run::{Options, Run};
