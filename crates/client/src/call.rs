//! One request on its way over one stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::oneshot;
use tokio::time::Instant;
use trireme_proto::v1;

/// What a server said; `None` if the answer holds nothing that this build knows.
pub(crate) type Answer = Option<v1::response::Result>;

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// It was never sent.
    NotSent(String),
    /// It may have been sent, and no answer will come.
    Lost(String),
    /// No answer came in time.
    Late {
        /// Whether it may have been sent.
        sent: bool,
    },
}

/// A call on its way to the stream.
pub(crate) struct Call {
    pub(crate) operation: v1::request::Operation,
    pub(crate) waiter: Waiter,
}

/// The stream's end of a call.
pub(crate) struct Waiter {
    deadline: Instant,
    claim: Arc<Claim>,
    reply: oneshot::Sender<Result<Answer, CallError>>,
}

/// The caller's end of a call. A call that was not sent before this is dropped never is.
pub(crate) struct PendingCall {
    claim: Arc<Claim>,
    reply: oneshot::Receiver<Result<Answer, CallError>>,
}

/// Decides between the stream that would send a call and the caller who would give it up. What
/// the first of them does stands, so that the caller knows for certain whether a call that it
/// gives up can have reached a server.
struct Claim(AtomicU8);

const WAITING: u8 = 0;
const SENT: u8 = 1;
const ABANDONED: u8 = 2;

/// Returns the two ends of a call.
pub(crate) fn new(operation: v1::request::Operation, deadline: Instant) -> (Call, PendingCall) {
    let claim = Arc::new(Claim(AtomicU8::new(WAITING)));
    let (sender, receiver) = oneshot::channel();
    let waiter = Waiter { deadline, claim: Arc::clone(&claim), reply: sender };
    (Call { operation, waiter }, PendingCall { claim, reply: receiver })
}

impl Waiter {
    /// Returns when the caller gives up at the latest.
    pub(crate) const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Claims the call for sending; `false` if its caller has given it up.
    pub(crate) fn claim(&self) -> bool {
        self.claim.decide(SENT)
    }

    /// Returns true if no caller waits for the answer.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Hands the caller the answer, or the reason why there is none.
    pub(crate) fn answer(self, answer: Result<Answer, CallError>) {
        // A caller that gave up drops its end; the answer is of no use to anybody then.
        let _unheard = self.reply.send(answer);
    }
}

impl PendingCall {
    /// Waits for the answer until `until` completes, and gives the call up then.
    pub(crate) async fn wait(
        mut self,
        until: impl Future<Output = ()>,
    ) -> Result<Answer, CallError> {
        tokio::select! {
            biased;
            answer = &mut self.reply => answer.unwrap_or_else(|_closed| {
                // The stream's task ended without a word, which it does when its runtime stops.
                let sent = !self.claim.decide(ABANDONED);
                let reason = "the client's runtime has stopped".to_owned();
                Err(if sent { CallError::Lost(reason) } else { CallError::NotSent(reason) })
            }),
            () = until => Err(CallError::Late { sent: !self.claim.decide(ABANDONED) }),
        }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.claim.decide(ABANDONED);
    }
}

impl Claim {
    /// Returns whether the call is `choice` now, by this decision or an earlier equal one.
    fn decide(&self, choice: u8) -> bool {
        match self.0.compare_exchange(WAITING, choice, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(decided) => decided == choice,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::sleep_until;

    use super::*;

    fn get() -> v1::request::Operation {
        v1::request::Operation::Get(v1::GetRequest::default())
    }

    #[tokio::test]
    async fn a_call_given_up_before_it_is_sent_never_is() {
        let now = Instant::now();
        let (call, pending) = new(get(), now);
        let late = pending.wait(sleep_until(now)).await;
        assert!(matches!(late, Err(CallError::Late { sent: false })), "{late:?}");
        assert!(!call.waiter.claim());
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_learns_that_its_call_was_sent() {
        let soon = Instant::now() + Duration::from_millis(1);
        let (call, pending) = new(get(), soon);
        assert!(call.waiter.claim());
        let late = pending.wait(sleep_until(soon)).await;
        assert!(matches!(late, Err(CallError::Late { sent: true })), "{late:?}");
        assert!(call.waiter.is_abandoned());
    }
}
