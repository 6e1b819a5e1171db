//! What waits for a replica's task: all of it bounded, none of it making its sender wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use trireme_types::{NodeId, Outcome};

use super::DriverOptions;
use super::storage::{IoId, LogError, StagedSnapshot};
use crate::core::{Core, Event};
use crate::replica::{ReadPermit, ReplicaError};

/// The most reconfigurations, transfers, releases and snapshots that wait at once. Each is rare.
const CONTROLS_MAX: usize = 64;

/// The most words of the coordinator that wait at once: answers to requests, of which a core has a
/// few under way, and changes of what it watches.
const COORDINATIONS_MAX: usize = 1024;

/// How an answer finds its caller.
pub(super) type Answer<T> = oneshot::Sender<Result<T, ReplicaError>>;

/// A proposal on its way to the core.
pub(super) struct Proposal {
    pub(super) payload: Bytes,
    pub(super) answer: Answer<Vec<Outcome>>,
    pub(super) admitted: Admitted,
}

/// A rare request on its way to the core.
pub(super) enum Control {
    TransferLeader { to: NodeId, answer: Answer<()> },
    ReleaseLog { upto: u64, answer: Answer<()> },
    Snapshot { from: NodeId, header: Bytes, snapshot: StagedSnapshot, answer: Answer<Bytes> },
}

impl Control {
    /// Answers that it was not done.
    pub(super) fn refuse(self, error: ReplicaError) {
        // A caller that has gone needs no answer.
        match self {
            Self::TransferLeader { answer, .. } | Self::ReleaseLog { answer, .. } => {
                drop(answer.send(Err(error)));
            }
            Self::Snapshot { answer, .. } => drop(answer.send(Err(error))),
        }
    }
}

/// What the task takes out at once, in the order in which it is handled.
pub(super) struct Taken<C: Core> {
    /// The highest number of a durable write, or the error that ended the log.
    pub(super) durable: Result<IoId, LogError>,
    /// What the driver's own tasks and the coordinator said.
    pub(super) notices: VecDeque<Event<C>>,
    /// The nodes whose liveness changed.
    pub(super) peers: BTreeMap<NodeId, bool>,
    pub(super) messages: Vec<(NodeId, Bytes)>,
    pub(super) controls: Vec<Control>,
    pub(super) reads: Vec<Answer<ReadPermit>>,
    pub(super) proposals: Vec<Proposal>,
    /// Why the driver's own tasks cannot go on, if so.
    pub(super) failure: Option<String>,
    pub(super) phase: Phase,
}

/// Whether the replica takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// What is under way is finished, nothing else is begun.
    Draining,
    /// Nobody holds the replica any more, or it has stopped.
    Closed,
}

/// What waits for a replica's task.
pub(super) struct Mailbox<C: Core> {
    waiting: Mutex<Waiting<C>>,
    /// Told when something comes in.
    arrived: Notify,
    admission: Admission,
    options: DriverOptions,
}

struct Waiting<C: Core> {
    durable: Result<IoId, LogError>,
    notices: VecDeque<Event<C>>,
    coordinations: usize,
    peers: BTreeMap<NodeId, bool>,
    messages: VecDeque<(NodeId, Bytes)>,
    message_bytes: usize,
    controls: Vec<Control>,
    reads: Vec<Answer<ReadPermit>>,
    proposals: VecDeque<Proposal>,
    failure: Option<String>,
    phase: Phase,
    /// What requests are told from now on, once the replica takes none.
    refusal: Option<ReplicaError>,
}

/// Gives out room for proposals.
#[derive(Default)]
pub(super) struct Admission {
    under_way: Arc<UnderWay>,
}

impl Admission {
    /// Takes room for a proposal of so many bytes, unless that would pass a limit.
    pub(super) fn admit(
        &self,
        bytes: usize,
        proposals_max: usize,
        bytes_max: usize,
    ) -> Result<Admitted, ReplicaError> {
        let under_way = Arc::clone(&self.under_way);
        let proposals = under_way.proposals.fetch_add(1, Ordering::Relaxed);
        let waiting = under_way.bytes.fetch_add(bytes, Ordering::Relaxed);
        // Dropping it gives the room back.
        let admitted = Admitted { under_way, bytes };
        if proposals >= proposals_max || waiting + bytes > bytes_max {
            return Err(ReplicaError::Busy);
        }
        Ok(admitted)
    }
}

/// The proposals that are not answered yet.
#[derive(Default)]
struct UnderWay {
    proposals: AtomicUsize,
    bytes: AtomicUsize,
}

/// Room taken by a proposal, given back when this is dropped.
pub(super) struct Admitted {
    under_way: Arc<UnderWay>,
    bytes: usize,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.under_way.proposals.fetch_sub(1, Ordering::Relaxed);
        self.under_way.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<C: Core> Mailbox<C> {
    pub(super) fn new(options: DriverOptions) -> Self {
        let waiting = Waiting {
            durable: Ok(IoId(0)),
            notices: VecDeque::new(),
            coordinations: 0,
            peers: BTreeMap::new(),
            messages: VecDeque::new(),
            message_bytes: 0,
            controls: Vec::new(),
            reads: Vec::new(),
            proposals: VecDeque::new(),
            failure: None,
            phase: Phase::Open,
            refusal: None,
        };
        Self {
            waiting: Mutex::new(waiting),
            arrived: Notify::new(),
            admission: Admission::default(),
            options,
        }
    }

    /// Takes a proposal, or refuses it because too many are under way.
    pub(super) fn propose(
        &self,
        payload: Bytes,
        answer: Answer<Vec<Outcome>>,
    ) -> Result<(), ReplicaError> {
        let DriverOptions { proposals_max, proposal_bytes_max, .. } = self.options;
        let admitted = self.admission.admit(payload.len(), proposals_max, proposal_bytes_max)?;
        self.put(|waiting| {
            waiting.proposals.push_back(Proposal { payload, answer, admitted });
            Ok(())
        })
    }

    pub(super) fn read(&self, answer: Answer<ReadPermit>) -> Result<(), ReplicaError> {
        let max = self.options.reads_max;
        self.put(|waiting| {
            if waiting.reads.len() >= max {
                return Err(ReplicaError::Busy);
            }
            waiting.reads.push(answer);
            Ok(())
        })
    }

    pub(super) fn control(&self, control: Control) -> Result<(), ReplicaError> {
        self.put(|waiting| {
            if waiting.controls.len() >= CONTROLS_MAX {
                return Err(ReplicaError::Busy);
            }
            waiting.controls.push(control);
            Ok(())
        })
    }

    pub(super) fn coordination(&self, event: C::CoordinatorEvent) -> Result<(), ReplicaError> {
        self.put(|waiting| {
            if waiting.coordinations >= COORDINATIONS_MAX {
                return Err(ReplicaError::Busy);
            }
            waiting.coordinations += 1;
            waiting.notices.push_back(Event::Coordination(event));
            Ok(())
        })
    }

    /// Takes a message of another replica; says whether there was room for it.
    pub(super) fn message(&self, from: NodeId, payload: Bytes) -> bool {
        {
            let mut waiting = self.waiting.lock();
            let bytes = waiting.message_bytes + payload.len();
            let is_full = bytes > self.options.message_bytes_max
                || waiting.messages.len() >= self.options.messages_max;
            if is_full || waiting.phase == Phase::Closed {
                return false;
            }
            waiting.message_bytes = bytes;
            waiting.messages.push_back((from, payload));
        }
        self.arrived.notify_one();
        true
    }

    /// Takes in whether a node can be reached; only the newest word counts.
    pub(super) fn peer(&self, node: NodeId, is_alive: bool) {
        self.waiting.lock().peers.insert(node, is_alive);
        self.arrived.notify_one();
    }

    /// Takes in how far the log is durable. Called on the log's thread: it must not wait.
    pub(super) fn durable(&self, result: Result<IoId, LogError>) {
        {
            let durable = &mut self.waiting.lock().durable;
            match (&mut *durable, result) {
                (Ok(known), Ok(upto)) => *known = upto.max(*known),
                (Ok(_), Err(error)) => *durable = Err(error),
                (Err(_), _) => {}
            }
        }
        self.arrived.notify_one();
    }

    /// Takes what one of the driver's own tasks says. Each answers one effect, and a core has few
    /// under way, which bounds their number.
    pub(super) fn notice(&self, event: Event<C>) {
        self.waiting.lock().notices.push_back(event);
        self.arrived.notify_one();
    }

    /// Takes in that the replica cannot go on.
    pub(super) fn fail(&self, reason: String) {
        self.waiting.lock().failure.get_or_insert(reason);
        self.arrived.notify_one();
    }

    /// Takes no more requests: they are told `refusal`.
    pub(super) fn close(&self, phase: Phase, refusal: ReplicaError) {
        {
            let mut waiting = self.waiting.lock();
            if waiting.phase == Phase::Open || phase == Phase::Closed {
                waiting.phase = phase;
                // A replica that failed says so also to those who come after its shutdown.
                if !matches!(waiting.refusal, Some(ReplicaError::Failed(_))) {
                    waiting.refusal = Some(refusal);
                }
            }
        }
        self.arrived.notify_one();
    }

    /// Returns when something has come in since the last time.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes out what waits: of messages and proposals as many as fit into one batch.
    pub(super) fn take(&self) -> Taken<C> {
        let mut waiting = self.waiting.lock();
        let max = self.options.batch_events_max;
        let messages = max.min(waiting.messages.len());
        let messages: Vec<_> = waiting.messages.drain(..messages).collect();
        let message_bytes: usize = messages.iter().map(|(_, payload)| payload.len()).sum();
        waiting.message_bytes -= message_bytes;
        let proposals = max.min(waiting.proposals.len());
        let proposals = waiting.proposals.drain(..proposals).collect();
        waiting.coordinations = 0;
        if !waiting.messages.is_empty() || !waiting.proposals.is_empty() {
            self.arrived.notify_one();
        }
        Taken {
            durable: waiting.durable.clone(),
            notices: std::mem::take(&mut waiting.notices),
            peers: std::mem::take(&mut waiting.peers),
            messages,
            controls: std::mem::take(&mut waiting.controls),
            reads: std::mem::take(&mut waiting.reads),
            proposals,
            failure: waiting.failure.take(),
            phase: waiting.phase,
        }
    }

    /// Says whether a request waits.
    pub(super) fn has_requests(&self) -> bool {
        let waiting = self.waiting.lock();
        !(waiting.proposals.is_empty() && waiting.reads.is_empty() && waiting.controls.is_empty())
    }

    /// Puts a request in, if the replica takes any.
    fn put(
        &self,
        put: impl FnOnce(&mut Waiting<C>) -> Result<(), ReplicaError>,
    ) -> Result<(), ReplicaError> {
        {
            let mut waiting = self.waiting.lock();
            if let Some(refusal) = &waiting.refusal {
                return Err(refusal.clone());
            }
            put(&mut waiting)?;
        }
        self.arrived.notify_one();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_proposals_is_bounded_in_number_and_bytes_and_comes_back() {
        let admission = Admission::default();
        let first = admission.admit(60, 2, 100).expect("there is room");
        assert_eq!(admission.admit(50, 2, 100).err(), Some(ReplicaError::Busy), "too many bytes");
        let second = admission.admit(40, 2, 100).expect("a refusal takes no room");
        assert_eq!(admission.admit(0, 2, 100).err(), Some(ReplicaError::Busy), "too many");
        drop(first);
        let third = admission.admit(60, 2, 100).expect("what was answered gives its room back");
        drop((second, third));
    }
}
