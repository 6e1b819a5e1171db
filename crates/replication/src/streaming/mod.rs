//! Leading a cohort by streaming its log, and following one who does: what Spinnaker and PacificA
//! have in common, written once.
//!
//! # What it does
//!
//! A leader numbers writes under its epoch, forces them to its own log and sends them to its
//! followers at the same time (`Leading`); a follower takes what continues its log, forces it and
//! acknowledges it (`Journal::take`). Who must have acknowledged an entry before it is committed,
//! and whose support a leader needs to serve, is what the protocols differ in: they ask `Leading`
//! how far each replica is and decide.
//!
//! # One follower, as its leader sees it
//!
//! ```text
//!          ReportPosition                everything sent
//!   Probing ──────────► CatchingUp ───────────────────────► Replicating
//!      ▲                    ▲   pieces of the log, or a       │  every entry as it is proposed
//!      │                    │   snapshot and then pieces      │
//!      │                    └──────── ReportPosition ────────┘  (it found a gap)
//!      └── a new leader knows no follower's position
//! ```
//!
//! * A follower says where it stands when it first hears of an epoch, and whenever it lacks what
//!   comes before a proposal. If its last entry is in the leader's log, its whole log is the
//!   leader's up to there: an epoch has one leader, who gives each sequence once, and every entry
//!   was appended behind the one that precedes it. Both ends see to that: entries are sent only if
//!   the one before them is still in the log when they are read, and are appended only behind that
//!   very one, in epochs that never fall. If its last entry is another, it starts again from its
//!   commit point.
//! * Catching up is by committed entries alone, one piece at a time, while writes go on; the
//!   uncommitted rest follows last, and while that is on its way new writes wait
//!   (Spinnaker §6.1, S15). The wait is bounded by [`WRITE_STALL_MAX`] and measured.
//! * At most `WINDOW_BYTES` are sent ahead of a follower's acknowledgements. One that does not keep
//!   up with that falls back to catching up.
//! * What is lost on the way is noticed by the follower as a gap, or by the leader when an
//!   acknowledgement is overdue (`PROBE_AFTER`): it sends a message without entries, which is
//!   acknowledged or answered with a gap.
//!
//! # The commit point
//!
//! Every commit period the leader records how far the log is committed, and advertises it with what it
//! sends next; if nothing is sent, by a message without entries. Until it advertises a point it
//! writes none down, so a commit period bounds how far a successor is behind (Spinnaker §5, §D.1).
//!
//! # The age of timeline reads
//!
//! With each commit point goes the moment as of which it was the newest: now, while the point is
//! the newest that the leader has and its lease holds; else when both were last so. A leader that
//! has not committed an entry of its own yet names none. Followers count the age of their state
//! from there (SPIN-70, PAC-70).
//!
//! # Support
//!
//! Everything that a leader sends carries the time on its clock; a follower gives the time back and
//! thereby supports the leader: for the grace, counted from when it received the message, it helps
//! no other to lead. The leader counts its lease from the time in the message, which is earlier, so
//! it stops before its followers are free, however late it or they look at their clocks (S5, P1).
//! A leader that has sent nothing for a beacon interval sends a beacon, and so does one whose data is
//! not acknowledged: an acknowledgement may wait for a slow disk, the answer to a beacon does not.
//!
//! No clock, no I/O, no order by chance in here: it is part of the cores.

mod catch_up;
mod contact;
mod events;
mod faults;
mod following;
mod journal;
#[cfg(test)]
mod journal_test;
mod leading;
mod progress;
mod serving;
mod shared;
mod support;
pub(crate) mod wire;

/// Returns the newest epoch that a replica has promised itself to, by the hard state in its log;
/// `None` if that is none of a protocol of our own.
pub fn promised_epoch(hard_state: bytes::Bytes) -> Option<Epoch> {
    wire::HardState::decode(hard_state).ok().map(|state| state.promised)
}

use std::fmt;
use std::time::Duration;

use trireme_types::{Epoch, Lsn, NodeId};

pub(crate) use self::events::{drain, handle};
pub use self::faults::StreamingFaults;
pub(crate) use self::faults::deliberate_faults;
pub(crate) use self::following::Following;
pub(crate) use self::journal::{Journal, Offer, Taken};
pub(crate) use self::leading::Leading;
pub(crate) use self::progress::Progress;
pub(crate) use self::shared::{RoleStatus, Shared};
pub(crate) use self::support::Support;

use crate::core::{Core, Moment};

/// The longest time for which a follower's catch-up may hold up new writes (M22, S15).
pub const WRITE_STALL_MAX: Duration = Duration::from_millis(50);

/// How long writes flow freely after a catch-up had to give up holding them up.
const WRITE_STALL_PAUSE: Duration = Duration::from_secs(1);

/// After how long without an acknowledgement a leader asks a follower whether something was lost.
/// Longer than most forced writes take, shorter than a lease.
pub(crate) const PROBE_AFTER: Duration = Duration::from_millis(200);

/// For how many leases a follower may acknowledge nothing of what it was sent, before it is taken for one
/// that does not answer. More bears slower disks; fewer ends a stall sooner.
pub(crate) const ACK_LEASES: u32 = 3;

/// The bytes of entries that a follower may have been sent and not have acknowledged, before it is
/// sent no more. A follower whose disk is slow must not have its memory, and the network's queues,
/// filled with what it cannot write yet: it falls behind, and catches up piece by piece. As much as
/// proposals may be under way at a leader, so that no follower falls behind that is waited for.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;

/// The bytes of entries after which a proposal message is closed and another begun.
const PROPOSAL_BYTES_MAX: usize = 1024 * 1024;

/// What a leader's message says before its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preceding {
    /// The leader's epoch.
    pub epoch: Epoch,
    /// The entry before the first one.
    pub previous: Lsn,
    /// How far the log is committed, as far as the leader advertises.
    pub committed: Lsn,
    /// When the leader sent it, on its own clock.
    pub sent: Moment,
    /// As of when `committed` was the newest commit point, on the leader's clock; `None` if the
    /// leader does not know yet how far its predecessors had committed.
    pub current_at: Option<Moment>,
}

impl Preceding {
    /// Returns the sign of life that is in the message.
    pub(crate) const fn beacon(&self) -> Beacon {
        let Self { epoch, committed, sent, current_at, .. } = *self;
        Beacon { epoch, committed, sent, current_at }
    }
}

impl fmt::Display for Preceding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, previous, committed, .. } = self;
        write!(f, "after {previous} committed={committed} e{epoch}")
    }
}

/// A beacon: a leader's sign of life by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// The leader's epoch.
    pub epoch: Epoch,
    /// How far the log is committed, as far as the leader advertises.
    pub committed: Lsn,
    /// When the leader sent it, on its own clock.
    pub sent: Moment,
    /// As of when `committed` was the newest commit point, on the leader's clock; `None` if the
    /// leader does not know yet how far its predecessors had committed.
    pub current_at: Option<Moment>,
}

/// Where a follower stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The newest entry that it knows to be committed.
    pub committed: Lsn,
    /// The newest entry in its log, on its disk.
    pub last: Lsn,
    /// Whether it has lost what it once had, or never was a member: its acknowledgements count for
    /// nothing yet (S14).
    pub is_learner: bool,
}

/// A protocol whose leader streams its log, with the messages that this takes.
pub(crate) trait Streams: Core<Context = Preceding> {
    /// What only this protocol keeps, in every role.
    type Own: fmt::Debug + Send;

    /// Returns the message that is a sign of life by itself.
    fn beacon_message(beacon: Beacon) -> Self::Message;

    /// Returns the message that goes with a snapshot.
    fn snapshot_message(epoch: Epoch) -> Self::Message;

    /// Returns the message that reports the replica's position to the leader of `epoch`.
    fn position_message(cx: &Shared<Self>, epoch: Epoch) -> Self::Message;

    /// Returns the message that rejects a leader of an epoch before `promised`.
    fn reject_message(promised: Epoch) -> Self::Message;

    /// Returns the epoch under which the replica acts.
    fn epoch(cx: &Shared<Self>) -> Epoch;

    /// Returns the mistakes that the replica makes in what both protocols do alike.
    fn faults(cx: &Shared<Self>) -> StreamingFaults;

    /// Returns the replica that leads, as far as this one knows.
    fn leader(&self) -> Option<NodeId>;

    /// Returns what every role works on, and what only a leader knows if the replica is one.
    fn parts(&mut self) -> (&mut Shared<Self>, Option<&mut Leading>);

    /// Handles a message of another replica.
    fn on_message(&mut self, from: NodeId, message: Self::Message);

    /// Has a leader that has rested draw its conclusions from what its followers supported meanwhile, before it
    /// handles anything.
    fn on_supported(&mut self) {}
}
