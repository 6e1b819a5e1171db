//! What is asked for again and again until it is done.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use trireme_types::NodeId;

use crate::{ClientError, Place};

/// How long to wait before asking again.
const PAUSE: Duration = Duration::from_millis(50);

/// What stands in the way of what is asked for, until a deadline.
pub(crate) struct Asking<N> {
    deadline: Duration,
    until: Instant,
    /// The deadline counts from when what stands in the way was last another thing than before.
    is_renewed: bool,
    noted: Option<String>,
    note: N,
}

impl<N: FnMut(&str) + Send> Asking<N> {
    /// Begins to ask, for as long as `deadline`. `note` is called with what stands in the way, whenever
    /// that is another thing than before.
    pub(crate) fn new(deadline: Duration, note: N) -> Self {
        Self { deadline, until: Instant::now() + deadline, is_renewed: false, noted: None, note }
    }

    /// Begins to ask, until what stands in the way has been the same for as long as `deadline`.
    pub(crate) fn until_nothing_changes(deadline: Duration, note: N) -> Self {
        Self { is_renewed: true, ..Self::new(deadline, note) }
    }

    /// Waits before it is asked again, since this stands in the way; fails past the deadline.
    pub(crate) async fn pause(&mut self, place: Place, missing: String) -> Result<(), ClientError> {
        self.wait(missing, |reason| ClientError::Unavailable { place, reason }).await
    }

    /// Waits before it is asked again, since this stands in the way of a node; fails past the deadline.
    pub(crate) async fn pause_for(
        &mut self,
        node: NodeId,
        missing: String,
    ) -> Result<(), ClientError> {
        self.wait(missing, |reason| ClientError::Unfinished { node, reason }).await
    }

    async fn wait(
        &mut self,
        missing: String,
        failure: impl FnOnce(String) -> ClientError,
    ) -> Result<(), ClientError> {
        let is_new = self.noted.as_ref() != Some(&missing);
        if is_new && self.is_renewed {
            self.until = Instant::now() + self.deadline;
        }
        if Instant::now() >= self.until {
            return Err(failure(missing));
        }
        if is_new {
            (self.note)(&missing);
            self.noted = Some(missing);
        }
        sleep(PAUSE).await;
        Ok(())
    }
}
