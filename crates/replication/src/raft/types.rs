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
use trireme_types::{Entry, EntryKind, Lsn, NodeId, Outcome};

/// Who a replica is to Raft: its node, and which of the replicas that the node has had of the cohort.
///
/// What a replica has voted and acknowledged is its own: one that lost what it had stored must never
/// be taken for the one that stored it, since that one's acknowledgements are counted and its votes
/// are cast. So it comes back under another incarnation, as a learner without a vote. The first
/// replica of a cohort on its node has incarnation 0; the later ones are drawn by chance, so that a
/// number is not given twice however old the disk is that comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RaftId {
    pub(super) node: u64,
    pub(super) incarnation: u64,
}

impl RaftId {
    /// Returns the identity of the first replica on a node.
    pub(super) const fn first(node: NodeId) -> Self {
        Self { node: node.0, incarnation: 0 }
    }

    pub(super) const fn node(self) -> NodeId {
        NodeId(self.node)
    }
}

/// What openraft's conformance suite names its nodes with.
#[cfg(test)]
impl From<u64> for RaftId {
    fn from(node: u64) -> Self {
        Self::first(NodeId(node))
    }
}

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.incarnation {
            0 => write!(f, "{}", self.node()),
            incarnation => write!(f, "{}/{incarnation:x}", self.node()),
        }
    }
}

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
        NodeId = RaftId,
        Node = EmptyNode,
        LeaderId = leader_id_std::LeaderId<u64, RaftId>,
        AsyncRuntime = super::runtime::Runtime,
);

pub(super) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(super) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(super) type RaftEntry = openraft::alias::EntryOf<TypeConfig>;
pub(super) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(super) type RaftMembership = Membership<RaftId, EmptyNode>;

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
        node: vote.leader_id.voted_for.node,
        committed: vote.committed,
        incarnation: vote.leader_id.voted_for.incarnation,
        own_incarnation: 0,
    }
}

/// Returns the vote that was stored or sent.
pub(super) fn vote(message: v1::RaftVote) -> Vote {
    let v1::RaftVote { term, node, committed, incarnation, .. } = message;
    let candidate = RaftId { node, incarnation };
    if committed { Vote::new_committed(term, candidate) } else { Vote::new(term, candidate) }
}

/// Returns a Raft entry as the cohort's log stores it.
pub(super) fn to_log(entry: RaftEntry) -> Entry {
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (EntryKind::NoOp, Bytes::new()),
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
        EntryKind::NoOp => EntryPayload::Blank,
        EntryKind::Commands => EntryPayload::Normal(Proposal(entry.payload)),
        EntryKind::Protocol => EntryPayload::Membership(decode_membership(&entry.payload)?),
    };
    let log_id = log_id(entry.lsn).ok_or_else(|| malformed("an entry with sequence 0"))?;
    Ok(RaftEntry { log_id, payload })
}

/// Returns the bytes of a membership, in entries and beside the table's data.
pub(super) fn encode_membership(membership: &RaftMembership) -> Bytes {
    let configs = membership.get_joint_config().iter();
    let (nodes, node_incarnations) = split(membership.nodes().map(|(&id, _)| id));
    let message = v1::RaftMembership {
        configs: configs
            .map(|voters| {
                let (voters, incarnations) = split(voters.iter().copied());
                v1::RaftVoters { voters, incarnations }
            })
            .collect(),
        nodes,
        node_incarnations,
    };
    message.encode_to_vec().into()
}

/// Returns the membership that [`encode_membership`] wrote.
pub(super) fn decode_membership(bytes: &[u8]) -> io::Result<RaftMembership> {
    let message = v1::RaftMembership::decode(bytes).map_err(malformed)?;
    let mut configs = Vec::new();
    for v1::RaftVoters { voters, incarnations } in message.configs {
        configs.push(join(voters, incarnations)?.into_iter().collect());
    }
    let nodes = join(message.nodes, message.node_incarnations)?;
    Ok(RaftMembership::new_with_defaults(configs, nodes))
}

/// Returns the nodes of identities and their incarnations, which are left out if all are 0: so does
/// a membership read that was written before there were any.
fn split(ids: impl Iterator<Item = RaftId>) -> (Vec<u64>, Vec<u64>) {
    let (nodes, mut incarnations): (Vec<_>, Vec<_>) =
        ids.map(|id| (id.node, id.incarnation)).unzip();
    if incarnations.iter().all(|incarnation| *incarnation == 0) {
        incarnations.clear();
    }
    (nodes, incarnations)
}

fn join(nodes: Vec<u64>, mut incarnations: Vec<u64>) -> io::Result<Vec<RaftId>> {
    if incarnations.is_empty() {
        incarnations.resize(nodes.len(), 0);
    }
    if incarnations.len() != nodes.len() {
        return Err(malformed("a membership with nodes that lack an incarnation"));
    }
    let ids = nodes.into_iter().zip(incarnations);
    Ok(ids.map(|(node, incarnation)| RaftId { node, incarnation }).collect())
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

    fn id(node: u64, incarnation: u64) -> RaftId {
        RaftId { node, incarnation }
    }

    #[test]
    fn memberships_survive_the_disk() {
        let first = |nodes: [u64; 3]| -> BTreeSet<RaftId> {
            nodes.into_iter().map(|node| id(node, 0)).collect()
        };
        let joint = vec![first([1, 2, 3]), first([2, 3, 4])];
        let membership = RaftMembership::new_with_defaults(joint, [id(5, 0)]);
        assert_eq!(decode_membership(&encode_membership(&membership)).unwrap(), membership);
        let swap = vec![first([1, 2, 3]), [id(1, 0), id(2, 0), id(3, 9)].into()];
        let membership = RaftMembership::new_with_defaults(swap, [id(3, 7)]);
        assert_eq!(decode_membership(&encode_membership(&membership)).unwrap(), membership);
        assert!(decode_membership(b"\xff\xff\xff").is_err());
    }

    /// Version 0.1.0 knew no incarnations: what it wrote names the first replicas.
    #[test]
    fn what_was_written_without_incarnations_names_the_first_replicas() {
        let old = v1::RaftMembership {
            configs: vec![v1::RaftVoters { voters: vec![1, 2, 3], incarnations: vec![] }],
            nodes: vec![1, 2, 3],
            node_incarnations: vec![],
        };
        let voters: BTreeSet<RaftId> = [id(1, 0), id(2, 0), id(3, 0)].into();
        let read = decode_membership(&old.encode_to_vec()).unwrap();
        assert_eq!(read, RaftMembership::new_with_defaults(vec![voters], []));
        assert_eq!(encode_membership(&read), old.encode_to_vec(), "and is written as it was");
        let vote_bytes = [0x08, 5, 0x10, 2, 0x18, 1];
        let read = vote(v1::RaftVote::decode(&vote_bytes[..]).unwrap());
        assert_eq!(read, Vote::new_committed(5, id(2, 0)));
        let odd = v1::RaftMembership { node_incarnations: vec![1], ..old };
        assert!(decode_membership(&odd.encode_to_vec()).is_err());
    }
}
