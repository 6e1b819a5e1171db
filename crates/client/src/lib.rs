#![doc = include_str!("../README.md")]

mod asking;
mod backoff;
mod call;
mod change;
mod client;
mod drain;
mod error;
mod lead;
mod node;
mod options;
mod request;
mod retry_loop;
mod route_table;
mod routes;
mod scan;
mod session;
mod stream;
mod unanswered;

pub use bytes::Bytes;
pub use trireme_proto::v1::{
    LaneStatus, LogStatus, Measures, NodeStatus, PeerStatus, ReplicaStatus, Succession,
};
pub use trireme_types::{Consistency, KeyRange, Protocol, Version};

/// What [`Client::set_faults`] is asked for.
pub mod faults {
    pub use trireme_proto::v1::{
        DiskFault, FailedDisk, Lane, LinkFault, LostOnTheWay, SetFaultsRequest, StalledDisk,
        disk_fault, link_fault,
    };
}

pub use change::Split;
pub use client::{Client, Conditional, Freshness, Read, ReadOptions, Value};
pub use error::{ClientError, ErrorClass, Place};
pub use options::{ClientOptions, FRAME_BYTES_LEAST, STREAMS_PER_NODE_MAX};
pub use route_table::{Node, Route, RouteTable};
pub use scan::{Page, Row, Scan, ScanRange};
