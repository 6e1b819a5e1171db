//! Seam A: a replication protocol as a state machine without I/O.
//!
//! A protocol of our own (Spinnaker, PacificA) is a [`Core`]: a plain value that is given what
//! happened ([`Event`]) and says what is to be done ([`Effect`]). It has no runtime, no clock, no
//! randomness and no file, so the same events always give the same effects: a script can hold back
//! one disk, drop one message, and show line by line what the protocol does about it.
//!
//! ```text
//!            events, with the time                        effects, in order
//!   peers ──── Message ─────────────►┌────────────┐─── Send, SendLog, SendSnapshot ──► peers
//!   callers ── Propose, Read, … ────►│            │─── Reply, ReplyOutcomes ─────────► callers
//!   log ────── Durable ─────────────►│    Core    │─── Persist ──────────────────────► log
//!   table ──── Applied ─────────────►│            │─── Commit, InstallSnapshot ──────► table
//!   elsewhere  Coordination, Peer… ─►└────────────┘─── Coordinate ───────────────────► coordinator
//! ```
//!
//! # The rules of the seam
//!
//! 1. `handle` neither fails nor blocks. What cannot be done is answered, ignored or asked again.
//! 2. The driver hands over as many events as are waiting and then drains once; what is drained
//!    together is one batch. Effects are performed in the order in which they were drained.
//! 3. Whatever goes out says when it may ([`When`]). So "force in parallel with propose" is a
//!    `Persist` beside a `Send` that may go `Now`; "acknowledge only what is on disk" is a `Send`
//!    that waits for `Durable`; "read after apply" is a `Reply` that waits for `Applied`.
//!    Forgetting the condition is visible in a script; there is no order of calls to remember.
//! 4. The core numbers its writes itself, 1, 2, ..., in the order of its [`Effect::Persist`]
//!    ([`Outbox`] does it), and the log is FIFO: one watermark shows how far they are durable.
//! 5. The core never reads the log. It keeps [`EpochRuns`], the address of every entry, in a few
//!    words, and asks for entries to be sent ([`Effect::SendLog`]).
//! 6. The core never sees what a command does. Outcomes come from the table, and the driver joins
//!    them to the callers who wait ([`Effect::ReplyOutcomes`]).
//! 7. Messages may be lost, and a restart loses whatever was not durable; nothing else may be
//!    assumed of them except that those of one lane arrive in the order in which they left.
//!
//! # Catching up
//!
//! One `SendLog` sends as many entries as one message may hold, and [`Event::LogSent`] reports how
//! far it came, after the message was handed to the network. A core that asks for the next piece
//! only then, and sends entries along with its messages (`Send`) only to replicas that lack none,
//! keeps everything in order and at most one piece per replica and term in memory.

mod durable_seqs;
mod epoch_runs;
mod moment;
mod outbox;
mod rest;

use std::error::Error;
use std::fmt::{self, Debug};
use std::ops::Range;

use bytes::Bytes;
use trireme_storage::{IoId, LogWrite};
use trireme_types::{CohortId, Entry, Epoch, Lsn, NodeId, Protocol};

pub(crate) use self::durable_seqs::DurableSeqs;
pub use self::epoch_runs::EpochRuns;
pub use self::moment::Moment;
pub use self::outbox::Outbox;
pub use self::rest::{Rest, Terms};
use crate::replica::{Measures, ReplicaError, Role};
use crate::transport::Lane;

/// A replication protocol, as one replica runs it. The [module's documentation](self) has the rules
/// that it keeps.
pub trait Core: Debug + Sized + Send + 'static {
    /// The protocol's name.
    const PROTOCOL: Protocol;

    /// What replicas say to each other.
    type Message: Message;

    /// What a message adds to entries that the driver reads from the log.
    type Context: Debug + Send + 'static;

    /// What the protocol asks of the coordinator: a compare-and-set, a candidacy, a watch.
    type CoordinatorRequest: Debug + Send + 'static;

    /// What the coordinator says: the answer to a request, a change, the state of the session.
    type CoordinatorEvent: Debug + Send + 'static;

    /// Handles what happened. `now` never goes back.
    fn handle(&mut self, now: Moment, event: Event<Self>);

    /// Moves what is to be done to the end of `effects`, in order. Called once before the first
    /// event, for what a restart asks for, and then after every batch of events.
    fn drain_effects(&mut self, effects: &mut Vec<Effect<Self>>);

    /// Checks what must hold of the core between any two events; what does not is a defect, and the
    /// replica must not go on. Called after every batch, so it must be cheap.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }

    /// Returns when [`Event::Timeout`] is due, if nothing else happens before.
    fn next_timeout(&self) -> Option<Moment>;

    /// Returns what the replica could rest as: nothing is under way, and nothing will be before
    /// something happens. While it rests its timeouts do not come, and neither do beacons. What it has missed
    /// comes first, as [`Event::Heard`] or [`Event::Supported`], when anything happens.
    fn rest(&self) -> Option<Rest> {
        None
    }

    /// Describes the replica.
    fn status(&self) -> CoreStatus;

    /// Returns the message that carries these entries, which are consecutive.
    fn entries_message(context: Self::Context, entries: Vec<Entry>) -> Self::Message;
}

/// A message between replicas of one cohort, with its form on the wire. Displayed, it is short: it
/// names entries, and holds none.
pub trait Message: Debug + fmt::Display + Sized + Send + 'static {
    /// Why bytes are no message.
    type DecodeError: Error + Send + Sync + 'static;

    /// Returns the bytes that stand for the message.
    fn encode(&self) -> Bytes;

    /// Reads what `encode` wrote, by whatever version. What cannot be read is dropped, as if the
    /// network had lost it.
    fn decode(bytes: Bytes) -> Result<Self, Self::DecodeError>;
}

/// Names one caller, or several who wait for the same answer, at the replica that gave the ticket
/// out. Every ticket is answered exactly once; an answer to an unknown one is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event<C: Core> {
    /// Another replica said something.
    Message {
        /// Which.
        from: NodeId,
        /// What.
        message: C::Message,
    },
    /// A caller wants these commands replicated as one entry.
    Propose {
        /// The caller.
        ticket: Ticket,
        /// The payload of an entry of kind `Commands`.
        payload: Bytes,
    },
    /// Callers want to read what was acknowledged so far. All that were waiting share the ticket.
    Read {
        /// The callers.
        ticket: Ticket,
    },
    /// Leadership is to move.
    TransferLeader {
        /// Who waits for it to be under way.
        ticket: Ticket,
        /// Where to.
        to: NodeId,
    },
    /// The log up to here is to be given up; the table has persisted all of it.
    ReleaseLog {
        /// Who waits for it to be under way.
        ticket: Ticket,
        /// The last entry to give up.
        upto: u64,
    },
    /// Every write up to this one is on disk.
    Durable {
        /// The newest durable write.
        upto: IoId,
    },
    /// The table includes every entry up to this one.
    Applied {
        /// The newest applied entry.
        upto: Lsn,
    },
    /// A [`Effect::SendLog`] is done: its message was handed to the network.
    LogSent {
        /// The replica that it was sent to.
        to: NodeId,
        /// The range that was asked for.
        seqs: Range<u64>,
        /// The first entry that was not sent: `seqs.start` if nothing was, because the log does not
        /// hold that entry, or not behind the one that should precede it (any more).
        next: u64,
    },
    /// A [`Effect::SendSnapshot`] is done.
    SnapshotSent {
        /// The replica that it was sent to.
        to: NodeId,
        /// What that replica answered; `None` if the snapshot did not get there whole.
        answer: Option<C::Message>,
    },
    /// Another replica's snapshot has arrived, whole and verified. The core has it installed
    /// ([`Effect::InstallSnapshot`]) or answers the ticket without that.
    SnapshotOffered {
        /// The sender, who waits for an answer.
        ticket: Ticket,
        /// The sender.
        from: NodeId,
        /// What the sender said with it.
        message: C::Message,
        /// The newest entry that the snapshot includes.
        upto: Lsn,
    },
    /// The snapshot has taken the table's place, durably. Stands for `Applied` too.
    SnapshotInstalled {
        /// The ticket under which it was offered.
        ticket: Ticket,
        /// The newest entry that it includes.
        upto: Lsn,
    },
    /// The snapshot offered under this ticket was not installed: the table includes all of it already.
    SnapshotOutdated {
        /// The ticket.
        ticket: Ticket,
    },
    /// The coordinator said something.
    Coordination(C::CoordinatorEvent),
    /// The node answers pings (again).
    PeerAlive {
        /// The node.
        node: NodeId,
    },
    /// The connection to the node broke, or it has missed its pings.
    PeerLost {
        /// The node.
        node: NodeId,
    },
    /// A follower has rested: this is the newest beacon of its leader, which was acknowledged for it.
    Heard {
        /// The leader.
        leader: NodeId,
        /// What it rests under.
        terms: Terms,
        /// When the beacon was sent, on the leader's clock.
        sent: Moment,
    },
    /// A leader has rested: each of these followers, which owed nothing all the while, has acknowledged
    /// a beacon that was sent at this moment.
    Supported {
        /// The followers.
        by: Vec<(NodeId, Moment)>,
    },
    /// The moment that `next_timeout` named has come.
    Timeout,
}

/// When something may leave the replica. What waits for the same condition leaves in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At once.
    Now,
    /// When this write, and so every earlier one, is on disk. Never name a commit point: it is
    /// written along with the next forced write, whenever that comes.
    Durable(IoId),
    /// When the table includes the entry with this sequence.
    Applied(Lsn),
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::Durable(io) => write!(f, "durable({})", io.0),
            Self::Applied(lsn) => write!(f, "applied({lsn})"),
        }
    }
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect<C: Core> {
    /// Write to the cohort's log. The n-th write of this core has the number n. What was appended
    /// can be sent and applied at once; that it is durable is reported by [`Event::Durable`].
    Persist(LogWrite),
    /// Send a message.
    Send {
        /// To which replica.
        to: NodeId,
        /// By which way.
        lane: Lane,
        /// What.
        message: C::Message,
        /// When it may leave.
        when: When,
    },
    /// Send entries of the log, as many of these as one message may hold, on the data lane, unless
    /// `previous` does not precede them any more when the log is read: the tail was replaced, and the
    /// entries there are others than the core meant. [`Event::LogSent`] follows. A core that leads
    /// has at most one under way to each replica; one that stopped leading may still have one of its
    /// last term under way when it leads again.
    SendLog {
        /// To which replica.
        to: NodeId,
        /// The entry before the first.
        previous: Lsn,
        /// Which entries.
        seqs: Range<u64>,
        /// What the message says besides.
        context: C::Context,
        /// When they may be read and leave.
        when: When,
    },
    /// Send the table. [`Event::SnapshotSent`] follows. As with `SendLog`, one of an earlier term may
    /// still be under way.
    SendSnapshot {
        /// To which replica.
        to: NodeId,
        /// What to say with it.
        message: C::Message,
        /// When it may be taken and leave.
        when: When,
    },
    /// Put the snapshot offered under this ticket in the table's place, after those that were to be
    /// installed before. [`Event::SnapshotInstalled`] follows, or [`Event::SnapshotOutdated`]; the
    /// ticket stays open.
    InstallSnapshot {
        /// The ticket.
        ticket: Ticket,
    },
    /// Apply every entry up to this one, which is committed, in the background.
    Commit {
        /// The newest committed entry.
        upto: Lsn,
    },
    /// Answer a proposal with what became of this entry, once the table has applied it. Drained no
    /// later than the `Commit` that covers the entry.
    ReplyOutcomes {
        /// The proposal.
        ticket: Ticket,
        /// The entry that it became.
        lsn: Lsn,
    },
    /// End every right to read that was given out with an end of its own: what was not read and
    /// confirmed by now is not given to a client. Takes effect before any later effect, so a core
    /// gives out such rights at once ([`When::Now`]) or not at all.
    EndReads,
    /// Answer a caller.
    Reply {
        /// Which.
        ticket: Ticket,
        /// With what.
        reply: Reply<C>,
        /// When it may leave.
        when: When,
    },
    /// Ask something of the coordinator.
    Coordinate {
        /// What.
        request: C::CoordinatorRequest,
        /// When it may leave: a position is published only once it is durable (S2, C3).
        when: When,
    },
}

/// An answer to a caller.
#[derive(Debug)]
pub enum Reply<C: Core> {
    /// What was asked is done, or under way.
    Done,
    /// The read may go on.
    Read {
        /// Until when what it finds may be given out; `None` if that never changes.
        until: Option<Moment>,
    },
    /// To the sender of a snapshot.
    Message(C::Message),
    /// It was not done, or that is not known.
    Error(ReplicaError),
}

/// What a replica finds on its disk when it starts: all that a core is made from, besides its
/// options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The node.
    pub node: NodeId,
    /// The cohort.
    pub cohort: CohortId,
    /// The address of every entry in the log.
    pub log: EpochRuns,
    /// What the last `HardState` write said.
    pub hard_state: Option<Bytes>,
    /// The newest commit point that was written and not lost (S8): a core that starts
    /// commits up to here and no further, since what follows it may never have been committed.
    pub commit_point: Lsn,
    /// The newest entry that the table includes.
    pub applied: Lsn,
    /// The newest applied entry of kind `Protocol`.
    pub protocol_state: Option<(Lsn, Bytes)>,
}

#[cfg(test)]
impl Recovered {
    /// Returns what n1 finds of cohort c1 on an empty disk.
    pub(crate) fn nothing() -> Self {
        Self {
            node: NodeId(1),
            cohort: CohortId(1),
            log: EpochRuns::starting_after(Lsn::ZERO),
            hard_state: None,
            commit_point: Lsn::ZERO,
            applied: Lsn::ZERO,
            protocol_state: None,
        }
    }
}

/// A description of a core at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreStatus {
    /// What the replica does in the cohort.
    pub role: Role,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// A commit point, and the moment as of which it is known to be the newest: a state that
    /// includes it includes all that was acknowledged before. A leader that serves names its first
    /// entry and the end of its lease, which lies ahead. `None` if the replica knows of none.
    pub current: Option<(Lsn, Moment)>,
    /// The newest epoch it knows.
    pub epoch: Epoch,
    /// The newest entry in its log.
    pub last: Lsn,
    /// The newest entry on its disk.
    pub durable: Lsn,
    /// The newest entry that it knows to be committed.
    pub committed: Lsn,
    /// The entry after this is the oldest that its log holds.
    pub purged: Lsn,
    /// The members of the cohort.
    pub replicas: Vec<NodeId>,
    /// The leader's view of how far the others have come; empty elsewhere.
    pub progress: Vec<(NodeId, Lsn)>,
    /// What it has measured of itself.
    pub measures: Measures,
}
