//! What a running node says of itself, on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use trireme_replication::raft::LOG_DIRECTIVE;

/// What is logged unless the environment says otherwise.
const DEFAULT_LEVEL: &str = "info";

/// The environment variable that holds another filter, such as `debug`.
const FILTER_VARIABLE: &str = "TRIREME_LOG";

/// Starts logging for the whole process.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE)
        .unwrap_or_else(|_| EnvFilter::new(format!("{DEFAULT_LEVEL},{LOG_DIRECTIVE}")));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // A terminal that is closed takes no more text: nothing is left to report that on, and the
        // process has a cluster to stop.
        .log_internal_errors(false)
        .init();
}
