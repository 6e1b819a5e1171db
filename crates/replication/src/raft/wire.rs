//! Raft's messages on the wire: from openraft's types to protobuf and back.

use std::io;

use openraft::alias::VoteOf;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use prost::Message;
use trireme_proto::v1;
use trireme_proto::v1::raft_append_reply::Result as AppendResult;
use trireme_proto::v1::raft_message::Body;
use trireme_types::{Entry, EntryKind};

use super::types::{
    LogId, RaftEntry, RaftId, SnapshotMeta, StoredMembership, TypeConfig, decode_membership,
    encode_membership, from_log, log_id, lsn, malformed, to_log, vote, vote_message,
};

pub(super) type Append = AppendEntriesRequest<TypeConfig>;
pub(super) type AppendReply = AppendEntriesResponse<TypeConfig>;
pub(super) type Ballot = VoteRequest<TypeConfig>;
pub(super) type BallotReply = VoteResponse<TypeConfig>;
pub(super) type TransferLeader = TransferLeaderRequest<TypeConfig>;

/// Returns the name of a message, for the log.
pub(super) fn name(body: &Body) -> String {
    match body {
        Body::Append(append) if append.entries.is_empty() => "commit point".to_owned(),
        Body::Append(append) => format!("append {}", append.entries.len()),
        Body::AppendReply(_) => "ack".to_owned(),
        Body::Vote(_) => "vote?".to_owned(),
        Body::PreVote(_) => "pre-vote?".to_owned(),
        Body::VoteReply(_) => "vote".to_owned(),
        Body::TransferLeader(_) => "transfer".to_owned(),
        Body::TransferLeaderReply(_) => "transferred".to_owned(),
        Body::Probe(_) => "probe".to_owned(),
        Body::ProbeReply(_) => "probe answer".to_owned(),
        Body::Join(_) => "join".to_owned(),
        Body::Lost(_) => "lost".to_owned(),
        Body::Failed(_) => "failed".to_owned(),
    }
}

pub(super) fn append_message(append: Append) -> v1::RaftAppend {
    v1::RaftAppend {
        vote: Some(vote_message(&append.vote)),
        previous: append.prev_log_id.map(lsn_message),
        entries: append.entries.into_iter().map(entry_message).collect(),
        leader_commit: append.leader_commit.map(lsn_message),
        // The clock is the network's to add.
        sent_us: 0,
        current_at_us: None,
    }
}

pub(super) fn append(message: v1::RaftAppend) -> io::Result<Append> {
    Ok(Append {
        vote: required_vote(message.vote)?,
        prev_log_id: optional_log_id(message.previous)?,
        entries: message.entries.into_iter().map(entry).collect::<io::Result<_>>()?,
        leader_commit: optional_log_id(message.leader_commit)?,
    })
}

pub(super) fn append_reply_message(reply: AppendReply) -> v1::RaftAppendReply {
    let result = match reply {
        AppendReply::Success => AppendResult::Success(true),
        AppendReply::PartialSuccess(matching) => {
            AppendResult::Partial(v1::PartialSuccess { matching: matching.map(lsn_message) })
        }
        AppendReply::Conflict => AppendResult::Conflict(true),
        AppendReply::HigherVote(vote) => AppendResult::HigherVote(vote_message(&vote)),
    };
    v1::RaftAppendReply { result: Some(result) }
}

pub(super) fn append_reply(message: v1::RaftAppendReply) -> io::Result<AppendReply> {
    match message.result.ok_or_else(|| malformed("an append's answer without a result"))? {
        AppendResult::Success(_) => Ok(AppendReply::Success),
        AppendResult::Partial(partial) => {
            Ok(AppendReply::PartialSuccess(optional_log_id(partial.matching)?))
        }
        AppendResult::Conflict(_) => Ok(AppendReply::Conflict),
        AppendResult::HigherVote(higher) => Ok(AppendReply::HigherVote(vote(higher))),
    }
}

pub(super) fn ballot_message(ballot: &Ballot) -> v1::RaftVoteRequest {
    v1::RaftVoteRequest {
        vote: Some(vote_message(&ballot.vote)),
        last: ballot.last_log_id.map(lsn_message),
        leader_transfer: ballot.leadership_transfer,
    }
}

pub(super) fn ballot(message: v1::RaftVoteRequest) -> io::Result<Ballot> {
    let mut ballot = Ballot::new(required_vote(message.vote)?, optional_log_id(message.last)?);
    ballot.leadership_transfer = message.leader_transfer;
    Ok(ballot)
}

pub(super) fn ballot_reply_message(reply: &BallotReply) -> v1::RaftVoteReply {
    v1::RaftVoteReply {
        vote: Some(vote_message(&reply.vote)),
        granted: reply.vote_granted,
        last: reply.last_log_id.map(lsn_message),
    }
}

pub(super) fn ballot_reply(message: v1::RaftVoteReply) -> io::Result<BallotReply> {
    let vote = required_vote(message.vote)?;
    Ok(BallotReply::new(vote, optional_log_id(message.last)?, message.granted))
}

pub(super) fn transfer_message(transfer: &TransferLeader) -> v1::RaftTransferLeader {
    v1::RaftTransferLeader {
        from: Some(vote_message(transfer.from_leader())),
        to: transfer.to_node_id().node,
        last: transfer.last_log_id().copied().map(lsn_message),
        to_incarnation: transfer.to_node_id().incarnation,
    }
}

pub(super) fn transfer(message: v1::RaftTransferLeader) -> io::Result<TransferLeader> {
    let from = required_vote(message.from)?;
    let to = RaftId { node: message.to, incarnation: message.to_incarnation };
    Ok(TransferLeader::new(from, to, optional_log_id(message.last)?))
}

/// Returns the header that goes before a snapshot: the leader's vote, and what openraft wants to
/// know of the snapshot before it is installed.
pub(super) fn snapshot_header(
    to: RaftId,
    vote: &VoteOf<TypeConfig>,
    meta: &SnapshotMeta,
) -> Vec<u8> {
    let membership = &meta.last_membership;
    v1::RaftSnapshotHeader {
        vote: Some(vote_message(vote)),
        last: meta.last_log_id.map(lsn_message),
        membership_lsn: membership.log_id().map(lsn_message),
        membership: encode_membership(membership.membership()),
        to_incarnation: to.incarnation,
    }
    .encode_to_vec()
}

/// Returns the leader's vote, what the snapshot is, and the incarnation that it is for.
pub(super) fn parse_snapshot_header(
    bytes: &[u8],
) -> io::Result<(VoteOf<TypeConfig>, SnapshotMeta, u64)> {
    let header = v1::RaftSnapshotHeader::decode(bytes).map_err(malformed)?;
    let membership = decode_membership(&header.membership)?;
    let membership_id = optional_log_id(header.membership_lsn)?;
    let meta = SnapshotMeta {
        last_log_id: optional_log_id(header.last)?,
        last_membership: StoredMembership::new(membership_id, membership),
    };
    Ok((required_vote(header.vote)?, meta, header.to_incarnation))
}

pub(super) fn snapshot_reply(reply: &SnapshotResponse<TypeConfig>) -> Vec<u8> {
    v1::RaftSnapshotReply { vote: Some(vote_message(&reply.vote)) }.encode_to_vec()
}

pub(super) fn parse_snapshot_reply(bytes: &[u8]) -> io::Result<SnapshotResponse<TypeConfig>> {
    let reply = v1::RaftSnapshotReply::decode(bytes).map_err(malformed)?;
    Ok(SnapshotResponse::new(required_vote(reply.vote)?))
}

fn entry_message(entry: RaftEntry) -> v1::RaftEntry {
    let Entry { lsn, kind, payload } = to_log(entry);
    let kind = match kind {
        EntryKind::Commands => 1,
        EntryKind::NoOp => 2,
        EntryKind::Protocol => 3,
    };
    v1::RaftEntry { lsn: Some(lsn.into()), kind, payload }
}

fn entry(message: v1::RaftEntry) -> io::Result<RaftEntry> {
    let kind = match message.kind {
        1 => EntryKind::Commands,
        2 => EntryKind::NoOp,
        3 => EntryKind::Protocol,
        other => return Err(malformed(format_args!("an entry of kind {other}"))),
    };
    let lsn = message.lsn.ok_or_else(|| malformed("an entry without an address"))?;
    from_log(Entry { lsn: lsn.into(), kind, payload: message.payload })
}

pub(super) fn required_vote(message: Option<v1::RaftVote>) -> io::Result<VoteOf<TypeConfig>> {
    message.map(vote).ok_or_else(|| malformed("a message without a vote"))
}

fn optional_log_id(message: Option<v1::Lsn>) -> io::Result<Option<LogId>> {
    let Some(message) = message else { return Ok(None) };
    match log_id(message.into()) {
        Some(id) => Ok(Some(id)),
        None => Err(malformed("an address with sequence 0")),
    }
}

fn lsn_message(id: LogId) -> v1::Lsn {
    lsn(id).into()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use openraft::EntryPayload;

    use super::super::types::{Proposal, RaftMembership, Vote};
    use super::*;

    fn sample() -> Append {
        let entry = |index, payload| RaftEntry { log_id: LogId::new_term_index(3, index), payload };
        let ids = [1, 2].map(|node| RaftId { node, incarnation: 0 });
        let members = RaftMembership::new_with_defaults(vec![ids.into()], []);
        Append {
            vote: Vote::new_committed(3, RaftId { node: 2, incarnation: 8 }),
            prev_log_id: Some(LogId::new_term_index(2, 6)),
            entries: vec![
                entry(7, EntryPayload::Blank),
                entry(8, EntryPayload::Normal(Proposal(Bytes::from_static(b"x")))),
                entry(9, EntryPayload::Membership(members)),
            ],
            leader_commit: None,
        }
    }

    #[test]
    fn an_append_survives_the_wire() {
        let bytes = append_message(sample()).encode_to_vec();
        let read = append(v1::RaftAppend::decode(&bytes[..]).unwrap()).unwrap();
        assert_eq!(read.vote, sample().vote);
        assert_eq!(read.prev_log_id, sample().prev_log_id);
        assert_eq!(read.entries, sample().entries);
    }

    #[test]
    fn messages_that_lack_a_part_are_refused() {
        assert!(append(v1::RaftAppend { vote: None, ..append_message(sample()) }).is_err());
        let zero = Some(v1::Lsn { epoch: 1, seq: 0 });
        assert!(append(v1::RaftAppend { previous: zero, ..append_message(sample()) }).is_err());
        let mut odd = append_message(sample());
        odd.entries[0].kind = 9;
        assert!(append(odd).is_err());
        assert!(append_reply(v1::RaftAppendReply { result: None }).is_err());
        assert!(parse_snapshot_header(b"\xff").is_err());
    }
}
