//! The gRPC services that a node offers.

mod admin;
mod kv;

pub(crate) use admin::{AdminService, NodeDescription};
pub(crate) use kv::KvService;
