//! Seam B: what the server holds of each cohort on its node, whatever the protocol.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use trireme_storage::StagedSnapshot;
use trireme_types::{CohortId, CommandBatch, Epoch, Lsn, NodeId, Outcome, Protocol, Seal};

use crate::transport::Lane;

/// One node's member of one cohort.
///
/// Every method may be called from many tasks at once. None blocks its thread for I/O.
#[async_trait]
pub trait Replica: Send + Sync + 'static {
    /// Replicates a batch as one log entry and returns what became of each command, once the entry
    /// is committed and applied here.
    async fn propose(&self, batch: CommandBatch) -> Result<Vec<Outcome>, ReplicaError>;

    /// Replicates what ends the cohort as one log entry, and returns once that is committed and applied
    /// here. Of several seals the first counts: the table says which.
    async fn seal(&self, seal: &Seal) -> Result<(), ReplicaError>;

    /// Returns when the table holds every write that was acknowledged before the call, by whatever
    /// node. The state read after it may be given to a client only if the permit still holds when
    /// the state has been read ([`ReadPermit::validate`]; S5).
    async fn read_barrier(&self) -> Result<ReadPermit, ReplicaError>;

    /// Returns how old a state of the table was that was read, from `at` on, for a timeline read;
    /// `applied` is the newest entry that it includes. An error means that a client should ask
    /// another replica: this one lacks what it once had, and does not know how much.
    fn freshness(&self, applied: Lsn, at: Instant) -> Result<Freshness, ReplicaError>;

    /// Takes a message from another replica of the cohort. Never waits: a message that finds no
    /// room is dropped, as a network may drop it.
    fn deliver(&self, from: NodeId, lane: Lane, payload: Bytes);

    /// Takes a snapshot that another replica of the cohort sent, and returns the protocol's answer.
    async fn install_snapshot(
        &self,
        from: NodeId,
        header: Bytes,
        snapshot: StagedSnapshot,
    ) -> Result<Bytes, ReplicaError>;

    /// Hears that a node answers (again). A protocol that watches over its peers by itself need not
    /// listen.
    fn peer_alive(&self, _node: NodeId) {}

    /// Hears that the connection to a node broke, or that the node missed its pings.
    fn peer_lost(&self, _node: NodeId) {}

    /// Hands leadership to another replica; returns when the request is under way.
    async fn transfer_leader(&self, to: NodeId) -> Result<(), ReplicaError>;

    /// Asks the replica to give up its log through `upto`, as far as its table has it on disk and the
    /// protocol allows, because the node's shared log has grown too long (S10).
    async fn release_log(&self, upto: u64) -> Result<(), ReplicaError>;

    /// Returns the node that leads the cohort, as far as this replica knows.
    fn leader(&self) -> Option<NodeId>;

    /// Describes the replica.
    fn status(&self) -> ReplicaStatus;

    /// Stops the replica; returns when it does nothing any more.
    async fn shutdown(&self);
}

/// A right to answer one strong read, or many that were waiting together.
#[derive(Clone, Debug)]
pub struct ReadPermit {
    valid: Option<Right>,
}

/// A right that ends at a moment, or earlier if it is ended.
#[derive(Clone, Debug)]
struct Right {
    until: Instant,
    has_ended: Arc<AtomicBool>,
}

/// Gives out permits and can end all of them at once, as when a leader gives up its lead.
#[derive(Debug, Default)]
pub(crate) struct ReadLeases {
    has_ended: Arc<AtomicBool>,
}

impl ReadLeases {
    /// Returns a permit that holds until `instant`, unless it is ended before.
    pub(crate) fn permit(&self, instant: Instant) -> ReadPermit {
        let has_ended = Arc::clone(&self.has_ended);
        ReadPermit { valid: Some(Right { until: instant, has_ended }) }
    }

    /// Ends every permit that was given out.
    pub(crate) fn end(&mut self) {
        // Pairs with the load in `validate`: a permit that is validated after this sees it.
        std::mem::take(&mut self.has_ended).store(true, Ordering::SeqCst);
    }
}

impl ReadPermit {
    /// Returns a permit that never lapses: the state is known to hold what was acknowledged before
    /// the barrier, whatever happens later.
    pub const fn lasting() -> Self {
        Self { valid: None }
    }

    /// Returns a permit that holds until `instant` on the local monotonic clock.
    pub fn until(instant: Instant) -> Self {
        ReadLeases::default().permit(instant)
    }

    /// Says, after the state has been read, whether it may be given to a client.
    pub fn validate(&self) -> Result<(), ReplicaError> {
        //= SPIN-10
        match &self.valid {
            Some(right)
                if right.has_ended.load(Ordering::SeqCst) || Instant::now() >= right.until =>
            {
                Err(ReplicaError::Unavailable("the leader's lease ended during the read".into()))
            }
            _ => Ok(()),
        }
    }
}

/// How old a state was that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// The newest entry that the state includes.
    pub applied: Lsn,
    /// A bound on its age: whatever was acknowledged longer than this before the read began is in
    /// the state. The time that the fastest message between two nodes takes comes on top. `None` if
    /// the replica does not know, since it has not applied yet what a leader named as the newest
    /// commit point after the replica had started.
    pub age: Option<Duration>,
}

impl Freshness {
    /// Returns the freshness of a state that may be given to a client. A replica that does not know
    /// how old its state is may give it if it is a state that the replica once was in: not if it is
    /// a learner, which may have lost what it had, nor before it has applied anything, or what it
    /// had known to be committed when it stopped (`recovered`).
    pub(crate) fn checked(
        applied: Lsn,
        age: Option<Duration>,
        role: Role,
        recovered: Lsn,
    ) -> Result<Self, ReplicaError> {
        let is_whole = role != Role::Learner && applied.seq > 0 && applied.seq >= recovered.seq;
        if age.is_none() && !is_whole {
            let reason = "the replica is catching up and does not know how old its state is";
            return Err(ReplicaError::Unavailable(reason.into()));
        }
        Ok(Self { applied, age })
    }
}

/// Why a replica did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// Another replica leads, or none does. Nothing was done.
    #[error("not the leader of the cohort{}", leader.map(|l| format!("; {l} is")).unwrap_or_default())]
    NotLeader {
        /// The leader, if it is known.
        leader: Option<NodeId>,
    },
    /// The replica cannot serve now. Nothing was done.
    #[error("the cohort cannot serve now: {0}")]
    Unavailable(String),
    /// A queue is full. Nothing was done.
    #[error("the cohort is busy")]
    Busy,
    /// The write may be applied, now or later, or never.
    #[error("whether the write was applied is unknown: {0}")]
    Ambiguous(String),
    /// The request can never succeed.
    #[error("{0}")]
    Invalid(String),
    /// The replica has failed for good, and its node must stop.
    #[error("the replica failed: {0}")]
    Failed(String),
}

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Try again, here, later.
    Retry,
    /// Go to that node, or find out who leads.
    Redirect(Option<NodeId>),
    /// Tell the client that nobody knows.
    Unknown,
    /// Tell the client that it is wrong.
    Invalid,
    /// Stop.
    Fatal,
}

impl ReplicaError {
    /// Returns what a caller can do about the error.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotLeader { leader } => ErrorClass::Redirect(*leader),
            Self::Unavailable(_) | Self::Busy => ErrorClass::Retry,
            Self::Ambiguous(_) => ErrorClass::Unknown,
            Self::Invalid(_) => ErrorClass::Invalid,
            Self::Failed(_) => ErrorClass::Fatal,
        }
    }
}

/// What a replica does in its cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Orders the writes and answers strong reads.
    Leader,
    /// Stores what the leader orders.
    Follower,
    /// Seeks to lead.
    Candidate,
    /// Stores what the leader orders and counts in no majority.
    Learner,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
        })
    }
}

/// A description of a replica at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The node that the replica is on.
    pub node: NodeId,
    /// Its cohort.
    pub cohort: CohortId,
    /// The protocol it speaks.
    pub protocol: Protocol,
    /// What it does in the cohort.
    pub role: Role,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// The newest epoch it knows.
    pub epoch: Epoch,
    /// The newest entry in its log.
    pub last: Lsn,
    /// The newest entry on its disk.
    pub durable: Lsn,
    /// The newest entry that it knows to be committed.
    pub committed: Lsn,
    /// The newest entry that its table includes.
    pub applied: Lsn,
    /// The entry after this is the oldest that its log holds.
    pub purged: Lsn,
    /// The members of the cohort.
    pub replicas: Vec<NodeId>,
    /// The leader's view of how far the others have come; empty elsewhere.
    pub progress: Vec<(NodeId, Lsn)>,
    /// What it has measured of itself.
    pub measures: Measures,
}

/// What a replica has measured of itself since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// How often it took over the cohort.
    pub takeovers: u64,
    /// How long the last takeover took, from the moment when the replica was to lead until its
    /// table held all that its predecessors had acknowledged, and it served.
    pub last_takeover: Option<Duration>,
    /// How many followers it has brought up to date.
    pub catch_ups: u64,
    /// The longest time for which a follower's catch-up held up writes (M22).
    pub longest_write_stall: Option<Duration>,
    /// Beacons that it sent by themselves, on no other message (M40).
    pub beacons: u64,
}

impl fmt::Display for ReplicaStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, cohort, role, epoch, last, durable, committed, applied, .. } = self;
        write!(f, "{node} {cohort} {role}")?;
        if let Some(leader) = self.leader.filter(|leader| leader != node) {
            write!(f, "({leader})")?;
        }
        write!(f, " e{epoch} last={last} durable={durable} committed={committed} applied={applied}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second look at the lease, after the state was read. [SPIN-10]
    #[test]
    fn a_permit_that_ran_out_is_not_confirmed() {
        assert!(ReadPermit::lasting().validate().is_ok());
        assert!(ReadPermit::until(Instant::now() + Duration::from_secs(60)).validate().is_ok());
        let lapsed = ReadPermit::until(Instant::now()).validate();
        assert_eq!(lapsed.unwrap_err().class(), ErrorClass::Retry);
    }

    /// [SPIN-12]
    #[test]
    fn permits_that_were_ended_are_not_confirmed_and_later_ones_are() {
        let mut leases = ReadLeases::default();
        let later = Instant::now() + Duration::from_secs(60);
        let before = leases.permit(later);
        assert!(before.validate().is_ok());
        leases.end();
        assert_eq!(before.validate().unwrap_err().class(), ErrorClass::Retry);
        assert!(leases.permit(later).validate().is_ok());
    }

    #[test]
    fn a_replica_that_may_have_lost_what_it_had_answers_only_once_it_knows_its_age() {
        let known = Some(Duration::from_millis(3));
        let (applied, nothing) = (Lsn::new(1, 7), Lsn::ZERO);
        for (applied, age, role, recovered, answers) in [
            (applied, None, Role::Follower, Lsn::new(1, 7), true),
            (applied, None, Role::Follower, Lsn::new(1, 8), false),
            (applied, None, Role::Learner, nothing, false),
            (nothing, None, Role::Follower, nothing, false),
            (applied, known, Role::Learner, Lsn::new(1, 8), true),
            (nothing, known, Role::Follower, nothing, true),
        ] {
            let freshness = Freshness::checked(applied, age, role, recovered);
            assert_eq!(freshness.is_ok(), answers, "{applied} {age:?} {role} {recovered}");
        }
    }

    #[test]
    fn a_status_reads_as_one_line() {
        let status = ReplicaStatus {
            node: NodeId(2),
            cohort: CohortId(1),
            protocol: Protocol::Raft,
            role: Role::Follower,
            leader: Some(NodeId(1)),
            epoch: 3,
            last: Lsn::new(3, 17),
            durable: Lsn::new(3, 17),
            committed: Lsn::new(3, 15),
            applied: Lsn::new(2, 14),
            purged: Lsn::ZERO,
            replicas: vec![NodeId(1), NodeId(2)],
            progress: vec![],
            measures: Measures::default(),
        };
        let line = "n2 c1 follower(n1) e3 last=3.17 durable=3.17 committed=3.15 applied=2.14";
        assert_eq!(status.to_string(), line);
    }
}
