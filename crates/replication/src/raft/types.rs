//! openraft's types, and how they stand in a cohort's log.
//!
//! An openraft log index counts from 0 and an [`Lsn`]'s `seq` from 1, so that [`Lsn::ZERO`] stands
//! before every entry; a Raft term is the `Lsn`'s epoch. Terms have one leader each
//! (`leader_id_std`), which is why term and index are enough to name an entry.

use std::fmt;
use std::io;

use bytes::Bytes;
use openraft::entry::EntryPayload;
use openraft::impls::leader_id_std;
use openraft::{EmptyNode, Membership};
use prost::Message;
use trireme_proto::v1;
use trireme_types::{Entry, EntryKind, Lsn, Outcome};

/// A batch of commands, encoded, on its way into the log.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proposal(pub(super) Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of commands", self.0.len())
    }
}

openraft::declare_raft_types!(
    /// What openraft is made of here.
    pub(super) TypeConfig:
        D = Proposal,
        R = Vec<Outcome>,
        NodeId = u64,
        Node = EmptyNode,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

pub(super) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(super) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(super) type RaftEntry = openraft::alias::EntryOf<TypeConfig>;
pub(super) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(super) type RaftMembership = Membership<u64, EmptyNode>;

/// Returns the entry that a log id names.
pub(super) fn lsn(id: LogId) -> Lsn {
    Lsn::new(id.leader_id.term, id.index + 1)
}

/// Returns the entry that a log id names; [`Lsn::ZERO`] for none.
pub(super) fn lsn_or_zero(id: Option<LogId>) -> Lsn {
    id.map_or(Lsn::ZERO, lsn)
}

/// Returns the log id of an entry; `None` for [`Lsn::ZERO`].
pub(super) fn log_id(lsn: Lsn) -> Option<LogId> {
    Some(LogId::new_term_index(lsn.epoch, lsn.seq.checked_sub(1)?))
}

/// Returns the vote as it is stored and sent.
pub(super) fn vote_message(vote: &Vote) -> v1::RaftVote {
    v1::RaftVote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

/// Returns the vote that was stored or sent.
pub(super) fn vote(message: v1::RaftVote) -> Vote {
    if message.committed {
        Vote::new_committed(message.term, message.node)
    } else {
        Vote::new(message.term, message.node)
    }
}

/// Returns a Raft entry as the cohort's log stores it.
pub(super) fn to_log(entry: RaftEntry) -> Entry {
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (EntryKind::Barrier, Bytes::new()),
        EntryPayload::Normal(Proposal(payload)) => (EntryKind::Commands, payload),
        EntryPayload::Membership(membership) => {
            (EntryKind::Protocol, encode_membership(&membership))
        }
    };
    Entry { lsn: lsn(entry.log_id), kind, payload }
}

/// Returns a Raft entry from what the cohort's log stored or another replica sent.
pub(super) fn from_log(entry: Entry) -> io::Result<RaftEntry> {
    let payload = match entry.kind {
        EntryKind::Barrier => EntryPayload::Blank,
        EntryKind::Commands => EntryPayload::Normal(Proposal(entry.payload)),
        EntryKind::Protocol => EntryPayload::Membership(decode_membership(&entry.payload)?),
    };
    let log_id = log_id(entry.lsn).ok_or_else(|| malformed("an entry with sequence 0"))?;
    Ok(RaftEntry { log_id, payload })
}

/// Returns the bytes of a membership, in entries and beside the table's data.
pub(super) fn encode_membership(membership: &RaftMembership) -> Bytes {
    let configs = membership.get_joint_config().iter();
    let message = v1::RaftMembership {
        configs: configs
            .map(|voters| v1::RaftVoters { voters: voters.iter().copied().collect() })
            .collect(),
        nodes: membership.nodes().map(|(&id, _)| id).collect(),
    };
    message.encode_to_vec().into()
}

/// Returns the membership that [`encode_membership`] wrote.
pub(super) fn decode_membership(bytes: &[u8]) -> io::Result<RaftMembership> {
    let message = v1::RaftMembership::decode(bytes).map_err(malformed)?;
    let configs = message.configs.into_iter().map(|c| c.voters.into_iter().collect()).collect();
    Ok(RaftMembership::new_with_defaults(configs, message.nodes))
}

/// Returns the error for bytes that say nothing.
pub(super) fn malformed(what: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed Raft data: {what}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_first_index_is_the_first_sequence() {
        assert_eq!(lsn(LogId::new_term_index(0, 0)), Lsn::new(0, 1));
        assert_eq!(log_id(Lsn::ZERO), None);
        for id in [Lsn::new(0, 1), Lsn::new(7, 42)] {
            assert_eq!(lsn_or_zero(log_id(id)), id);
        }
    }

    #[test]
    fn memberships_survive_the_disk() {
        let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])];
        let membership = RaftMembership::new_with_defaults(joint, [5]);
        assert_eq!(decode_membership(&encode_membership(&membership)).unwrap(), membership);
        assert!(decode_membership(b"\xff\xff\xff").is_err());
    }
}
