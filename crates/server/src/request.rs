//! Requests on their way through the node.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use trireme_proto::v1;
use trireme_proto::v1::response::Result as Answer;

use crate::answers::{NodeAnswers, Room, StreamAnswers};

/// How long a request may take if its client does not say.
pub(crate) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The longest that any request may take, whatever its client says.
pub(crate) const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Returns the moment after which no caller waits for an answer any more to a request that came at
/// `now`.
pub(crate) fn deadline(now: Instant, timeout_ms: u64) -> Instant {
    let timeout = match timeout_ms {
        0 => TIMEOUT_DEFAULT,
        ms => Duration::from_millis(ms).min(TIMEOUT_MAX),
    };
    now + timeout
}

/// Where the answer to one request goes.
pub(crate) enum ReplyTo {
    /// Into the stream that the request came from.
    Stream {
        /// The request's number on the stream.
        id: u64,
        /// The stream's answers.
        answers: Arc<StreamAnswers>,
    },
    /// To the unary call that made the request.
    Call {
        /// The call.
        caller: oneshot::Sender<Answer>,
        /// The answers of the node.
        node: Arc<NodeAnswers>,
    },
}

impl ReplyTo {
    /// Sends the answer; a client that is gone needs none.
    pub(crate) fn send(self, answer: Answer) {
        match self {
            Self::Stream { id, answers } => answers.send(id, answer),
            Self::Call { caller, .. } => {
                let _gone = caller.send(answer);
            }
        }
    }

    /// Sends an error as the answer.
    pub(crate) fn refuse(self, error: v1::Error) {
        self.send(Answer::Error(error));
    }

    /// Returns whether an answer may be read for it.
    pub(crate) fn room(&self) -> Room {
        match self {
            Self::Stream { answers, .. } => answers.room(),
            Self::Call { caller, .. } if caller.is_closed() => Room::Gone,
            Self::Call { node, .. } => node.room(),
        }
    }

    /// Returns the stream that a read is parked with which finds no room.
    pub(crate) fn stream(&self) -> Option<Arc<StreamAnswers>> {
        match self {
            Self::Stream { answers, .. } => Some(answers.clone()),
            Self::Call { .. } => None,
        }
    }
}
