//! The peer transport, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod links;
mod messages;
mod snapshots;
mod strangers;
mod support;
