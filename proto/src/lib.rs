//! Trireme's wire formats: the code made from `trireme/v1/*.proto`, and its conversion to and from
//! the shared types, which happens in [`convert`] and nowhere else.
//!
//! A message off the wire is not to be trusted: [`convert`] checks it once, and what it returns
//! needs no further check.

pub mod convert;

/// Version 1 of the formats: messages, clients and servers, as generated.
#[expect(missing_docs, clippy::all, reason = "generated; the .proto files hold the documentation")]
#[allow(unreachable_pub, unused_qualifications, clippy::use_self, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("trireme.v1");

    /// The descriptors of all definitions, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("trireme.v1");
}
