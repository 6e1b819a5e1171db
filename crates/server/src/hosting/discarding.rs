//! What is left of cohorts that are over goes, while the node's other replicas are opened and closed.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use trireme_types::CohortId;

use super::RETRY_PAUSE;
use super::opener::Opener;
use crate::node::NodeError;

/// The cohorts that are over and whose replicas are closed, until what is left of them is gone. None of them
/// is opened again.
#[derive(Default)]
pub(super) struct Discarding {
    waiting: BTreeSet<CohortId>,
    under_way: Option<UnderWay>,
    stop: CancellationToken,
}

struct UnderWay {
    cohorts: BTreeSet<CohortId>,
    task: JoinHandle<()>,
}

impl Discarding {
    /// Has what is left of these cohorts discarded, at once or after those that are under way.
    pub(super) fn add(
        &mut self,
        opener: &Arc<Opener>,
        cohorts: impl IntoIterator<Item = CohortId>,
    ) {
        self.waiting.extend(cohorts);
        if let Some(UnderWay { cohorts, .. }) = &self.under_way {
            self.waiting.retain(|cohort| !cohorts.contains(cohort));
        } else if !self.waiting.is_empty() {
            let cohorts = std::mem::take(&mut self.waiting);
            let all = discard_all(Arc::clone(opener), cohorts.clone(), self.stop.clone());
            self.under_way = Some(UnderWay { cohorts, task: tokio::spawn(all) });
        }
    }

    /// Waits for the end of what is under way; for ever, if nothing is. Can be cancelled.
    pub(super) async fn ended(&mut self) {
        let Some(UnderWay { task, .. }) = &mut self.under_way else {
            return std::future::pending().await;
        };
        if let Err(error) = task.await {
            tracing::error!(%error, "what was over was not discarded");
        }
        self.under_way = None;
    }

    /// Ends it: what has begun is done, and the rest is left for the next start.
    pub(super) async fn finish(mut self) {
        self.stop.cancel();
        if self.under_way.is_some() {
            self.ended().await;
        }
    }
}

/// Discards until all is done, or until `stop`.
async fn discard_all(
    opener: Arc<Opener>,
    mut cohorts: BTreeSet<CohortId>,
    stop: CancellationToken,
) {
    while let Err(error) = discard(&opener, &mut cohorts, &stop).await {
        tracing::warn!(%error, ?cohorts, "what is over is not discarded yet");
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(RETRY_PAUSE) => {}
        }
    }
}

async fn discard(
    opener: &Opener,
    cohorts: &mut BTreeSet<CohortId>,
    stop: &CancellationToken,
) -> Result<(), NodeError> {
    //= RANGE-10
    // What the successors took over is on the disk first: until then these logs are what would bring it back.
    opener.flush().await?;
    while let Some(&cohort) = cohorts.first()
        && !stop.is_cancelled()
    {
        opener.discard(cohort).await?;
        cohorts.remove(&cohort);
    }
    Ok(())
}
