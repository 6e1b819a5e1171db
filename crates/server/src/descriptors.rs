//! The descriptors of the process, and who may have how many.
//!
//! Files and connections share one limit, and a log or a table that finds no descriptor ends the
//! node. So the limit is shared out at start: log, tables and peers have theirs in reserve, and
//! clients get what is left.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The descriptors of the process itself: its runtimes, its way to the coordinator, and the files
/// that a flush or a compaction has open beside those kept for reads.
const OWN: usize = 78;

/// The least that may be left beside the log's files, so that every share suffices for a small
/// cluster.
const SHARED_LEAST: usize = 206;

/// The most connections of clients, however many descriptors there are. Each takes some 50 KiB of
/// memory, and a client of ours needs one.
const CLIENTS_MAX: usize = 4096;

/// The most connections that have not said what they are.
const SILENT_MAX: usize = 256;

/// The most connections that peers may open: far more than a cluster of the intended size needs.
const PEERS_MAX: usize = 1024;

/// The most files that the tables keep open for reads.
const TABLE_FILES_MAX: usize = 256;

/// The least share of peers, connections without a name, and files.
const SHARE_LEAST: usize = 16;

/// How many descriptors each may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// Files that the tables keep open for reads.
    pub(crate) table_files: usize,
    /// Connections that peers open. As many are in reserve for those to peers.
    pub(crate) peers: usize,
    /// Connections that have not said what they are.
    pub(crate) silent: usize,
    /// Connections of clients.
    pub(crate) clients: usize,
}

/// The limit is too low for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the process may have {limit} open files (ulimit -n), and a node with a log of up to {log_files} \
     files needs at least {least}"
)]
pub struct TooFewDescriptors {
    limit: usize,
    log_files: usize,
    least: usize,
}

impl Descriptors {
    /// Raises the limit of the process as far as it may, and shares out what is left of it beside the
    /// log, which has `log_files` files open.
    pub(crate) fn reserve(log_files: usize) -> Result<Self, TooFewDescriptors> {
        let limit = raise_limit();
        let shares = Self::share_out(limit, log_files)?;
        tracing::info!(limit, ?shares, "descriptors");
        Ok(shares)
    }

    fn share_out(limit: usize, log_files: usize) -> Result<Self, TooFewDescriptors> {
        let shared = limit.saturating_sub(log_files);
        if shared < SHARED_LEAST {
            let least = log_files.saturating_add(SHARED_LEAST);
            return Err(TooFewDescriptors { limit, log_files, least });
        }
        let share = |part: usize, most: usize| (shared / part).clamp(SHARE_LEAST, most);
        let (table_files, peers) = (share(4, TABLE_FILES_MAX), share(16, PEERS_MAX));
        let silent = share(16, SILENT_MAX);
        let clients = (shared - OWN - table_files - 2 * peers - silent).min(CLIENTS_MAX);
        Ok(Self { table_files, peers, silent, clients })
    }
}

/// Raises the soft limit to the hard one, and returns what holds then.
fn raise_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let current = getrlimit(Resource::Nofile).current;
    current.map_or(usize::MAX, |current| usize::try_from(current).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_fit_the_limit_and_leave_clients_some() {
        let limits =
            [224, 256, 1000, 1024, 4096, 65_536, 1 << 20, usize::MAX].map(|limit| (limit, 18));
        let long_logs = [(16_386 + SHARED_LEAST, 16_386), (65_536, 16_386)];
        for (limit, log_files) in limits.into_iter().chain(long_logs) {
            let shares = Descriptors::share_out(limit, log_files).unwrap();
            let Descriptors { table_files, peers, silent, clients } = shares;
            let files = log_files + OWN + table_files;
            assert!(files + 2 * peers + silent + clients <= limit, "{limit}: {shares:?}");
            assert!((SHARE_LEAST..=CLIENTS_MAX).contains(&clients), "{limit}: {shares:?}");
        }
    }

    #[test]
    fn a_limit_that_is_too_low_is_named() {
        let error = Descriptors::share_out(223, 18).unwrap_err().to_string();
        assert!(error.contains("223 open files") && error.contains("at least 224"), "{error}");
        let error = Descriptors::share_out(4096, 16_386).unwrap_err().to_string();
        assert!(error.contains("16386 files") && error.contains("at least 16592"), "{error}");
    }
}
