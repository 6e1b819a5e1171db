//! The messages that wait for one peer on one lane.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use trireme_proto::v1::PeerMessage;
use trireme_replication::SendError;
use trireme_types::{CohortId, NodeId};

use super::options::GATHER_BYTES;

/// What a waiting message costs beside its payload, so that empty messages do not make a queue
/// that is bounded in bytes endless.
const MESSAGE_OVERHEAD_BYTES: usize = 64;

/// A queue that is bounded in bytes and never waits for room.
pub(super) struct LaneQueue {
    to: NodeId,
    bytes_max: usize,
    message_bytes_max: usize,
    state: Mutex<State>,
    filled: Notify,
}

struct State {
    is_open: bool,
    messages: VecDeque<PeerMessage>,
    /// What the waiting messages cost.
    bytes: usize,
}

impl LaneQueue {
    /// Returns an open queue, of at most `bytes_max` bytes, of messages of at most
    /// `message_bytes_max` bytes each.
    pub(super) fn new(to: NodeId, bytes_max: usize, message_bytes_max: usize) -> Self {
        let state = State { is_open: true, messages: VecDeque::new(), bytes: 0 };
        Self { to, bytes_max, message_bytes_max, state: Mutex::new(state), filled: Notify::new() }
    }

    /// Adds a message, or says why it may not wait here.
    pub(super) fn push(&self, cohort: CohortId, payload: Bytes) -> Result<(), SendError> {
        let cost = payload.len() + MESSAGE_OVERHEAD_BYTES;
        if payload.len() > self.message_bytes_max {
            tracing::error!(
                to = %self.to, %cohort, bytes = payload.len(), max = self.message_bytes_max,
                "a message is too large for any frame and was not sent"
            );
            return Err(SendError::Full(self.to));
        }
        let mut state = self.state.lock();
        if !state.is_open {
            return Err(SendError::Unreachable(self.to));
        }
        if state.bytes + cost > self.bytes_max {
            return Err(SendError::Full(self.to));
        }
        let was_empty = state.bytes == 0;
        state.bytes += cost;
        state.messages.push_back(PeerMessage { cohort: cohort.0, payload });
        drop(state);
        // The one writer empties the queue before it waits, so only the first message wakes it.
        if was_empty {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Takes the messages that have waited longest: as many as one frame gathers, at least one if
    /// any waits.
    pub(super) fn take(&self) -> Vec<PeerMessage> {
        let mut state = self.state.lock();
        let (mut count, mut cost) = (0, 0);
        for message in &state.messages {
            let with_it = cost + message.payload.len() + MESSAGE_OVERHEAD_BYTES;
            if with_it > GATHER_BYTES && count > 0 {
                break;
            }
            (count, cost) = (count + 1, with_it);
        }
        state.bytes -= cost;
        state.messages.drain(..count).collect()
    }

    /// Returns when a message may have come since the last [`LaneQueue::take`].
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Lets messages wait from now on.
    pub(super) fn open(&self) {
        self.state.lock().is_open = true;
    }

    /// Drops what waits, and lets nothing wait from now on.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        *state = State { is_open: false, messages: VecDeque::new(), bytes: 0 };
    }

    /// Returns what the waiting messages cost, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: NodeId = NodeId(2);
    const COHORT: CohortId = CohortId(1);

    fn queue(bytes_max: usize) -> LaneQueue {
        LaneQueue::new(TO, bytes_max, 4 * GATHER_BYTES)
    }

    fn message(bytes: usize) -> Bytes {
        Bytes::from(vec![0; bytes])
    }

    #[test]
    fn what_waits_never_costs_more_than_it_may_even_if_it_is_empty() {
        let queue = queue(10 * MESSAGE_OVERHEAD_BYTES);
        for _ in 0..10 {
            assert_eq!(queue.push(COHORT, Bytes::new()), Ok(()));
        }
        assert_eq!(queue.push(COHORT, Bytes::new()), Err(SendError::Full(TO)));
        assert_eq!(queue.take().len(), 10);
        assert_eq!(queue.bytes(), 0);
        assert_eq!(queue.push(COHORT, Bytes::new()), Ok(()));
    }

    #[test]
    fn a_frame_gathers_up_to_its_size_and_a_larger_message_goes_alone() {
        let queue = queue(64 * GATHER_BYTES);
        for bytes in [GATHER_BYTES / 2, GATHER_BYTES / 4, GATHER_BYTES / 2, 3 * GATHER_BYTES, 0] {
            queue.push(COHORT, message(bytes)).unwrap();
        }
        let taken: Vec<Vec<usize>> = std::iter::from_fn(|| {
            let taken = queue.take();
            (!taken.is_empty()).then(|| taken.iter().map(|m| m.payload.len()).collect())
        })
        .collect();
        let (half, quarter) = (GATHER_BYTES / 2, GATHER_BYTES / 4);
        assert_eq!(taken, [vec![half, quarter], vec![half], vec![3 * GATHER_BYTES], vec![0]]);
        assert_eq!(queue.bytes(), 0);
        let refused = queue.push(COHORT, message(4 * GATHER_BYTES + 1));
        assert_eq!(refused, Err(SendError::Full(TO)));
    }

    #[test]
    fn closing_drops_what_waits_and_refuses_more() {
        let queue = queue(GATHER_BYTES);
        queue.push(COHORT, message(100)).unwrap();
        queue.close();
        assert_eq!(queue.push(COHORT, message(100)), Err(SendError::Unreachable(TO)));
        queue.open();
        assert!(queue.take().is_empty());
        assert_eq!(queue.bytes(), 0);
        assert_eq!(queue.push(COHORT, message(100)), Ok(()));
    }
}
