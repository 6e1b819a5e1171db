//! Keeps the node's shared log short.
//!
//! A segment of the log can go only when no cohort needs an entry in it, and one idle cohort would
//! hold all later segments (S10). So when the log has grown past its limit, the node asks
//! whoever holds the oldest segment to let go of it, and flushes the tables first if that cohort's
//! rows are not on disk yet; one flush serves every cohort.

use std::sync::Arc;
use std::time::Duration;

use trireme_storage::{SharedLog, Tables};
use trireme_types::CohortId;

use crate::routes::Router;

/// How often the log's length is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// The most cohorts that are asked in a row before the length is looked at again.
const REQUESTS_MAX: usize = 64;

/// What the upkeep of one node needs.
pub(crate) struct Maintenance {
    pub(crate) log: SharedLog,
    pub(crate) tables: Tables,
    pub(crate) router: Arc<Router>,
    /// The bytes of segments past which the oldest are to go. More let a follower that was away
    /// longer catch up from the log; fewer make recovery and catch-up by snapshot come sooner.
    pub(crate) log_bytes_max: u64,
}

impl Maintenance {
    /// Runs until its task is aborted.
    pub(crate) async fn run(self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for _ in 0..REQUESTS_MAX {
                // What still counts in the segments may be little: one entry of an idle cohort
                // holds its own segment and all later ones.
                let is_short = self.log.metrics().segment_bytes <= self.log_bytes_max;
                if is_short || !self.shorten().await {
                    break;
                }
            }
        }
    }

    /// Asks the cohort that holds the oldest segment to let go of it; says whether that may have
    /// helped.
    async fn shorten(&self) -> bool {
        let Some((cohort, upto)) = self.log.pinned_by() else { return false };
        match self.release(cohort, upto).await {
            Ok(()) => self.log.pinned_by().is_none_or(|(holder, _)| holder != cohort),
            Err(error) => {
                tracing::warn!(%cohort, upto, error, "the log could not be shortened");
                false
            }
        }
    }

    async fn release(&self, cohort: CohortId, upto: u64) -> Result<(), String> {
        let hosted = self.router.routes().hosted.get(&cohort).cloned();
        // One that is not served yet, or not any more, is Hosting's: it may be opening, and need its
        // log, or about to be discarded.
        let Some(hosted) = hosted else { return Ok(()) };
        if hosted.table.persisted().seq < upto {
            let tables = self.tables.clone();
            let flush = tokio::task::spawn_blocking(move || tables.flush());
            flush.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        }
        hosted.replica.release_log(upto).await.map_err(|error| error.to_string())
    }
}
