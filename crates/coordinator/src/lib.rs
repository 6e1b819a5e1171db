//! The coordinator: ZooKeeper's way of working over etcd.
//!
//! # What it guarantees
//!
//! - A **session** lives as long as this process is heard of at the coordinator. This process
//!   knows that it has ended before anybody else can own what it owned, by its own monotonic
//!   clock, however the connection or the process itself was held up (S5).
//! - A **change** ([`Coordinator::multi`] and what is built on it) is atomic, may be conditional
//!   on versions, and is carried out once: when its answer is lost it is sent again until it is
//!   known what became of it, or it fails as [`CoordinatorError::Ambiguous`], which is the one
//!   error after which the change may still happen.
//! - A **watch** delivers the state and then every change in order, across broken connections,
//!   servers that come back, and compactions, after which it delivers the state again.
//! - An idle process sends one keep-alive in a third of its session's time and nothing else,
//!   however much it watches (M19, M33).
//!
//! # How ZooKeeper's words are made of etcd's
//!
//! | here                  | in etcd                                                     |
//! |-----------------------|-------------------------------------------------------------|
//! | session               | lease, kept alive by a task of this process                 |
//! | node `/a/b`           | key `<namespace>/a/b`                                       |
//! | ephemeral             | key attached to the lease                                   |
//! | version of a node     | mod revision: unique and rising over all nodes              |
//! | sequence of a node    | create revision                                             |
//! | sequential node       | a name that no one else gets, in the order of sequences    |
//! | multi                 | transaction on compares of mod and create revisions         |
//! | watch                 | watch from the revision after the delivered state            |
//!
//! A node needs no parent, and its children are found by their common beginning: reading or
//! watching children costs as much as there are nodes anywhere below, so folders are kept flat.
//!
//! # What is left out
//!
//! Access lists, quotas, and containers. Time spent with the whole machine suspended does not
//! count on its monotonic clock: a machine that may be suspended is no place for a node.
//!
//! `docs/coordinator.md` describes how each part works, and what is kept where.

mod change;
mod coordinator;
mod error;
mod link;
mod marks;
mod node;
mod options;
mod path;
mod read;
pub mod recipes;
mod session;
mod watch;

pub use change::{MULTI_BYTES_MAX, MULTI_OPS_MAX};
pub use coordinator::{Coordinator, CoordinatorCounters, SessionState};
pub use error::{CoordinatorError, ErrorClass};
pub use node::{
    CreateMode, Created, Line, MultiDone, Node, NodeVersion, Nodes, Op, Scope, SessionId,
};
pub use options::{CoordinatorOptions, DEFAULT_NAMESPACE, TlsSettings, UserPassword};
pub use watch::{NodeChange, OneShotWatch, Watch, WatchEvent};

/// The README's example is compiled with the other examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
