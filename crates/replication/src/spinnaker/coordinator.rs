//! What a replica asks of the coordinator, and what the coordinator says.
//!
//! ```text
//! /cohorts/<id>/epoch                            the epoch of the newest leader
//! /cohorts/<id>/leader                           ephemeral: who leads, under which epoch
//! /cohorts/<id>/rounds/<round>/candidate-<...>   ephemeral, sequential: who stands, with what log
//! ```
//!
//! A request may be lost, and an answer is not awaited: what a request has done is seen in the next
//! view. So the replica asks again until it sees that what it wants has happened or can not.

use std::fmt;

use trireme_types::{Epoch, Lsn, NodeId};

/// What a replica asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ElectionRequest {
    /// Make it a candidate of `round`, with a log that ends at `last`; unless the round is over.
    Stand {
        /// The round: the epoch that a leader is sought for.
        round: Epoch,
        /// The end of its log.
        last: Lsn,
    },
    /// Make it the leader, and `round` the epoch, in one atomic change that is refused if the epoch
    /// is not the round's predecessor (SPIN-25).
    Lead {
        /// The round that it has won.
        round: Epoch,
    },
    /// Make it the leader of `epoch` again, if that still is the epoch and no replica leads: its session
    /// had expired, and it has the support of a majority all the same (SPIN-27).
    Reclaim {
        /// Its epoch.
        epoch: Epoch,
    },
}

/// A replica that stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The replica's node.
    pub node: NodeId,
    /// The round that it stands in.
    pub round: Epoch,
    /// The end of its log.
    pub last: Lsn,
    /// When it stood, among all candidates.
    pub sequence: u64,
}

/// A cohort's election at one moment, as the coordinator holds it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ElectionView {
    /// The epoch of the newest leader; 0 if there never was one.
    pub epoch: Epoch,
    /// Who leads, as long as its session lives, and in which epoch.
    pub leader: Option<(NodeId, Epoch)>,
    /// Those who stand, one for each node and round.
    pub candidates: Vec<Candidate>,
}

impl ElectionView {
    /// Returns the round that decides on the next leader.
    pub const fn round(&self) -> Epoch {
        self.epoch + 1
    }
}

impl fmt::Debug for ElectionRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stand { round, last } => write!(f, "stand in round {round} with {last}"),
            Self::Lead { round } => write!(f, "lead in round {round}"),
            Self::Reclaim { epoch } => write!(f, "lead e{epoch} again"),
        }
    }
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, round, last, sequence } = self;
        write!(f, "{node} in {round} with {last} as #{sequence}")
    }
}

impl fmt::Debug for ElectionView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.epoch)?;
        match self.leader {
            Some((node, epoch)) => write!(f, " led by {node} in e{epoch}")?,
            None => write!(f, " without leader")?,
        }
        let standing = self.candidates.iter().filter(|candidate| candidate.round > self.epoch);
        f.write_str(", standing: ")?;
        f.debug_list().entries(standing).finish()
    }
}
