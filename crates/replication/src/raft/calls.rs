//! Questions and answers over a transport that only carries messages.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::AnyError;
use openraft::errors::{NetworkError, RPCError, Timeout, Unreachable};
use openraft::network::RPCTypes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;
use trireme_proto::v1;
use trireme_proto::v1::raft_message::Body;
use trireme_types::{CohortId, NodeId};

use super::heard::Heard;
use super::types::TypeConfig;
use crate::transport::{Lane, SendError, Transport};

pub(super) type CallError = RPCError<TypeConfig>;

/// The questions of one replica that await an answer.
pub(super) struct Calls {
    cohort: CohortId,
    node: NodeId,
    transport: Arc<dyn Transport>,
    heard: Arc<Heard>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Body>>>,
}

impl Calls {
    pub(super) fn new(
        cohort: CohortId,
        node: NodeId,
        transport: Arc<dyn Transport>,
        heard: Arc<Heard>,
    ) -> Arc<Self> {
        let next = AtomicU64::new(1);
        Arc::new(Self { cohort, node, transport, heard, next, waiting: Mutex::default() })
    }

    /// Returns what knows the age of this replica's commit point.
    pub(super) fn heard(&self) -> &Heard {
        &self.heard
    }

    pub(super) fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    pub(super) fn cohort(&self) -> CohortId {
        self.cohort
    }

    /// Sends a question at once, and returns what waits for its answer.
    pub(super) fn ask(
        self: &Arc<Self>,
        to: NodeId,
        lane: Lane,
        question: Body,
    ) -> Result<Call, CallError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().insert(id, sender);
        let call = Call { id, to, calls: self.clone(), answer };
        self.send(to, lane, id, question).map_err(|error| unreachable(&error))?;
        Ok(call)
    }

    /// Answers another replica's question. An answer that cannot be sent is lost, as on any network.
    pub(super) fn answer(&self, to: NodeId, lane: Lane, id: u64, body: Body) {
        if let Err(error) = self.send(to, lane, id, body) {
            tracing::debug!(%to, cohort = %self.cohort, %error, "an answer was not sent");
        }
    }

    /// Takes an answer from another replica; one that nobody awaits any more is dropped.
    pub(super) fn complete(&self, id: u64, body: Body) {
        if let Some(waiting) = self.waiting.lock().remove(&id) {
            // Who asked may have given up this instant.
            let _gone = waiting.send(body);
        }
    }

    fn send(&self, to: NodeId, lane: Lane, call: u64, body: Body) -> Result<(), SendError> {
        let message = v1::RaftMessage { call, body: Some(body) };
        self.transport.send(to, self.cohort, lane, message.encode_to_vec().into())
    }
}

/// One question under way. Dropping it forgets the question.
pub(super) struct Call {
    id: u64,
    to: NodeId,
    calls: Arc<Calls>,
    answer: oneshot::Receiver<Body>,
}

impl Call {
    /// Waits for the answer, no longer than `limit`.
    pub(super) async fn answer(
        mut self,
        kind: RPCTypes,
        limit: Duration,
    ) -> Result<Body, CallError> {
        match tokio::time::timeout(limit, &mut self.answer).await {
            Ok(Ok(Body::Failed(reason))) => {
                let error = AnyError::error(format!("{} could not answer: {reason}", self.to));
                Err(RPCError::Network(NetworkError::new(&error)))
            }
            Ok(Ok(body)) => Ok(body),
            Ok(Err(_)) => Err(network("the replica has stopped")),
            Err(_) => Err(RPCError::Timeout(Timeout {
                action: kind,
                id: self.calls.node.0,
                target: self.to.0,
                timeout: limit,
            })),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.waiting.lock().remove(&self.id);
    }
}

pub(super) fn unreachable(error: &SendError) -> CallError {
    RPCError::Unreachable(Unreachable::new(error))
}

/// The error for an answer that answers another question.
pub(super) fn unexpected(body: &Body) -> CallError {
    network(&format!("an answer of another kind: {body:?}"))
}

/// The error for an answer that says nothing.
pub(super) fn network(what: &str) -> CallError {
    RPCError::Network(NetworkError::new(&AnyError::error(what)))
}
