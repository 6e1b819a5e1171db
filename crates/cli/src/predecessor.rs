//! Waiting for the process that held a folder before this one.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use trireme_server::{DataFolder, DataFolderError};

/// How often it is looked whether it has left.
const INTERVAL: Duration = Duration::from_millis(50);

/// Waits until no process holds the folder at `path`, which need not be there, or until `deadline`;
/// returns whether one holds it still. One that is asked to stop leaves it at its very end; one that
/// was killed holds it, and its port, until the system has taken it apart.
pub(crate) async fn wait_for(path: &Path, deadline: Instant) -> Result<bool, DataFolderError> {
    let mut is_said = false;
    while DataFolder::is_in_use(path)? {
        if Instant::now() >= deadline {
            return Ok(true);
        }
        if !std::mem::replace(&mut is_said, true) {
            tracing::info!(folder = %path.display(), "waiting for another process to leave the folder");
        }
        sleep(INTERVAL).await;
    }
    Ok(false)
}
