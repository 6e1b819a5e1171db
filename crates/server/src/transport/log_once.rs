//! Logs each cause about each peer once, so that a peer that tries again and again does not fill
//! the log.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;

use parking_lot::Mutex;
use trireme_types::NodeId;

/// The most causes that are remembered. Past it all are forgotten, and each may be said once
/// more.
const CAUSES_MAX: usize = 1024;

/// Whom a log line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// A node, by what it says or by whom we mean to reach.
    Node(NodeId),
    /// A caller that has not said hello.
    Address(IpAddr),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// What has been said already.
#[derive(Default)]
pub(super) struct LogOnce {
    said: Mutex<HashSet<(Who, String)>>,
}

impl LogOnce {
    /// Returns true the first time that a cause is given for a peer.
    pub(super) fn is_first(&self, who: Who, cause: &str) -> bool {
        let mut said = self.said.lock();
        if said.len() >= CAUSES_MAX {
            said.clear();
        }
        said.insert((who, cause.to_owned()))
    }

    /// Forgets what was said about a node, with which all is well now.
    pub(super) fn forget(&self, node: NodeId) {
        self.said.lock().retain(|(who, _)| *who != Who::Node(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_said_once_per_peer_until_all_is_well() {
        let log_once = LogOnce::default();
        let (one, two) = (Who::Node(NodeId(1)), Who::Node(NodeId(2)));
        assert!(log_once.is_first(one, "cause"));
        assert!(!log_once.is_first(one, "cause"));
        assert!(log_once.is_first(one, "another") && log_once.is_first(two, "cause"));
        log_once.forget(NodeId(1));
        assert!(log_once.is_first(one, "cause") && !log_once.is_first(two, "cause"));
    }

    #[test]
    fn memory_is_bounded() {
        let log_once = LogOnce::default();
        for cause in 0..3 * CAUSES_MAX {
            log_once.is_first(Who::Node(NodeId(1)), &cause.to_string());
        }
        assert!(log_once.said.lock().len() <= CAUSES_MAX);
    }
}
