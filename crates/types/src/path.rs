//! What is logged of the path of a request.

/// The target of the events that show the path of a request through a node: asked, sent, received,
/// forced to disk, applied, answered. They are logged by `TRIREME_LOG=trireme::path=trace`, and each
/// begins with `path: `.
pub const PATH: &str = "trireme::path";
