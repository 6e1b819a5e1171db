//! The gRPC services that a node offers.

mod admin;
mod kv;
mod sliced_body;

pub(crate) use admin::{AdminService, NodeDescription};
pub(crate) use kv::KvService;
pub(crate) use sliced_body::SliceBodies;
