//! What must hold of every protocol, whatever is lost, crashes or stalls: one invariant, or a few that
//! share what they need to know, in each file.
//!
//! A violation is a panic that begins with the name of what does not hold. Each invariant has a source
//! outside of the code that it judges: a rule of the papers or a pitfall (`docs/requirements.md`), or a
//! requirement of the protocols (`docs/protocols`).
//!
//! | file | what holds | source |
//! |---|---|---|
//! | [`agreement`] | what was committed never changes | M4; SPIN-31, PAC-6 |
//! | [`log_matching`] | logs that share an entry share what precedes it | S7, S9, P9; SPIN-3, PAC-3 |
//! | [`leaders`] | an epoch has one leader | S3, S4, P3; SPIN-25, PAC-33 |
//! | [`disks`] | what was acknowledged is on enough disks | M14, S6; SPIN-5, PAC-5 |
//! | [`disks`] | a write is committed on as many disks as writes need | P10; PAC-8 |
//! | [`listed`] | there are never more replicas than are wanted, and all have what was acknowledged | P6, P8; PAC-40, PAC-45 |
//! | [`rights`] | one replica may read at a time, and no other acknowledges meanwhile | S5, P1; SPIN-10, PAC-7 |
//! | [`history`] | what was acknowledged is read, what was refused is not, what was not found does not appear | C4, S16 |
//! | [`once`] | a request is applied once, however often it is sent | C1 |
//! | [`seals`] | a cohort that ends does so with one state, which nothing changes and none reads | RANGE-2, RANGE-3, RANGE-4 |
//! | [`timeline`] | a timeline read names the state that it read, and a client's never go back | SPIN-70, PAC-70 |
//! | [`cores`] | a core keeps its own rules, knows its log, and answers every caller once | the rules of [`Core`] |
//!
//! [`Core`]: trireme_replication::core::Core

mod agreement;
pub(crate) mod cores;
mod disks;
mod history;
mod leaders;
mod listed;
pub(crate) mod log_matching;
mod once;
mod rights;
mod seals;
mod timeline;

use trireme_replication::core::Ticket;
use trireme_types::NodeId;

use self::agreement::Agreement;
use self::history::History;
use self::leaders::Leaders;
use self::rights::Rights;
use self::seals::Seals;
use self::timeline::Timeline;

pub(crate) use self::agreement::COMMITTED_NEVER_CHANGES;
pub(crate) use self::cores::{ANSWERED_ONCE, CORE_IS_VALID, POINTERS_ARE_ORDERED};
pub(crate) use self::disks::{Disks, ON_ENOUGH_DISKS, ON_THE_LEAST_DISKS};
pub(crate) use self::history::{ACKNOWLEDGED_IS_READ, NO_GHOST, REFUSED_IS_NOT_READ};
pub(crate) use self::leaders::ONE_LEADER;
pub(crate) use self::listed::{LISTED_HAVE_ALL, NOT_TOO_MANY};
pub(crate) use self::log_matching::LOGS_MATCH;
pub(crate) use self::once::APPLIED_ONCE;
pub(crate) use self::rights::{ONE_READER, READS_END_FIRST};
pub(crate) use self::seals::{
    ENDS_ALIKE, NO_READ_AFTER_THE_END, NOTHING_BEHIND_THE_SEAL, THE_SEAL_IS_KEPT,
};
pub(crate) use self::timeline::{Found, NEVER_GOES_BACK, READS_WHAT_IT_NAMES};

/// A caller at one node.
pub(crate) type Caller = (NodeId, Ticket);

/// A client and its number for a write, which every retry of the write names.
pub(crate) type Request = (u64, u64);

/// What has been seen of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    pub(crate) agreement: Agreement,
    pub(crate) disks: Disks,
    pub(crate) history: History,
    pub(crate) leaders: Leaders,
    pub(crate) rights: Rights,
    pub(crate) seals: Seals,
    pub(crate) timeline: Timeline,
}
