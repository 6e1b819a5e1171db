//! What is asked for again and again until it is done.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{ClientError, Place};

/// How long to wait before asking again.
const PAUSE: Duration = Duration::from_millis(50);

/// What stands in the way of what is asked for, until a deadline.
pub(crate) struct Asking<N> {
    until: Instant,
    noted: Option<String>,
    note: N,
}

impl<N: FnMut(&str) + Send> Asking<N> {
    /// Begins to ask, for as long as `deadline`. `note` is called with what stands in the way, whenever
    /// that is another thing than before.
    pub(crate) fn new(deadline: Duration, note: N) -> Self {
        Self { until: Instant::now() + deadline, noted: None, note }
    }

    /// Waits before it is asked again, since this stands in the way; fails past the deadline.
    pub(crate) async fn pause(&mut self, place: Place, missing: String) -> Result<(), ClientError> {
        if Instant::now() >= self.until {
            return Err(ClientError::Unavailable { place, reason: missing });
        }
        if self.noted.as_ref() != Some(&missing) {
            (self.note)(&missing);
            self.noted = Some(missing);
        }
        sleep(PAUSE).await;
        Ok(())
    }
}
