//! openraft's network over the node's transport.
//!
//! Appends are pipelined: a follower's stream of them leaves without waiting for answers, and the
//! transport keeps their order. Heartbeats, which openraft sends through a client of its own,
//! take the heartbeat lane, so that they never wait behind data.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered};
use futures::{FutureExt, Stream, StreamExt};
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{ReplicationClosed, StreamingError};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RPCTypes, RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, EmptyNode, OptionalSend};
use parking_lot::Mutex;
use trireme_proto::v1;
use trireme_proto::v1::raft_message::Body;

use super::calls::{Call, CallError, Calls, network, unexpected, unreachable};
use super::log_holds::LogHolds;
use super::state_machine::SnapshotData;
use super::types::{LogId, RaftId, TypeConfig, Vote, lsn, lsn_or_zero, vote_message};
use super::wire;
use crate::transport::Lane;

/// The most appends to one follower that wait for their answers.
const APPENDS_IN_FLIGHT_MAX: usize = 32;

/// How long an append may wait for its answer, which comes once the follower's disk has the
/// entries. Shorter would turn a slow disk into appends sent again and again; what is lost on the
/// way is noticed much sooner ([`Calls`]).
const APPEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Makes one replica's connections to the others.
pub(super) struct RaftNetworkMaker {
    calls: Arc<Calls>,
    acknowledged: Arc<Acknowledged>,
    holds: Arc<LogHolds>,
}

impl RaftNetworkMaker {
    pub(super) fn new(calls: Arc<Calls>, holds: Arc<LogHolds>) -> Self {
        Self { calls, acknowledged: Arc::default(), holds }
    }

    fn client(&self, target: RaftId, lane: Lane) -> RaftClient {
        let (calls, acknowledged) = (self.calls.clone(), self.acknowledged.clone());
        RaftClient { to: target, lane, calls, acknowledged, holds: self.holds.clone() }
    }
}

/// The newest entry that each replica has acknowledged to this one as the leader of its newest term.
///
/// A follower keeps what it has acknowledged as long as the leader's term lasts. One that refuses an
/// append because it lacks such an entry has lost it: its disk came back older, or it acknowledged
/// from memory and crashed. openraft would wait for it for ever, since it takes its acknowledgement
/// for good.
#[derive(Default)]
struct Acknowledged {
    last: Mutex<HashMap<RaftId, (Vote, Option<LogId>)>>,
}

impl Acknowledged {
    /// Records that a replica has the log up to an entry.
    fn record(&self, replica: RaftId, vote: Vote, last: Option<LogId>) {
        let mut all = self.last.lock();
        let known = all.entry(replica).or_insert((vote, None));
        if known.0 != vote {
            *known = (vote, None);
        }
        known.1 = known.1.max(last);
    }

    /// Returns the newest entry that a replica has acknowledged, if the one that it lacks is not
    /// beyond.
    fn lost(&self, replica: RaftId, vote: Vote, lacks: LogId) -> Option<LogId> {
        let all = self.last.lock();
        let (of, last) = all.get(&replica)?;
        (*last).filter(|last| *of == vote && lacks <= *last)
    }
}

impl RaftNetworkFactory<TypeConfig> for RaftNetworkMaker {
    type Network = RaftClient;

    async fn new_client(&mut self, target: RaftId, _node: &EmptyNode) -> RaftClient {
        self.client(target, Lane::Data)
    }

    async fn new_heartbeat_client(&mut self, target: RaftId, _node: &EmptyNode) -> RaftClient {
        self.client(target, Lane::Heartbeat)
    }
}

/// One replica's way to another one, on one lane.
pub(super) struct RaftClient {
    to: RaftId,
    lane: Lane,
    calls: Arc<Calls>,
    acknowledged: Arc<Acknowledged>,
    holds: Arc<LogHolds>,
}

impl RaftClient {
    async fn ask(&self, kind: RPCTypes, body: Body, option: &RPCOption) -> Result<Body, CallError> {
        self.calls.ask(self.to, self.lane, body)?.answer(kind, option.soft_ttl()).await
    }

    async fn ballot(
        &self,
        body: Body,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, CallError> {
        match self.ask(RPCTypes::Vote, body, option).await? {
            Body::VoteReply(reply) => wire::ballot_reply(reply).map_err(malformed),
            other => Err(unexpected(&other)),
        }
    }
}

impl NetBackoff<TypeConfig> for RaftClient {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl NetVote<TypeConfig> for RaftClient {
    async fn vote(
        &mut self,
        ballot: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, CallError> {
        self.ballot(Body::Vote(wire::ballot_message(&ballot)), &option).await
    }

    async fn pre_vote(
        &mut self,
        ballot: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, CallError> {
        self.ballot(Body::PreVote(wire::ballot_message(&ballot)), &option).await
    }
}

impl NetTransferLeader<TypeConfig> for RaftClient {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, CallError> {
        let body = Body::TransferLeader(wire::transfer_message(&request));
        match self.ask(RPCTypes::TransferLeader, body, &option).await? {
            Body::TransferLeaderReply(_) => Ok(Ok(())),
            other => Err(unexpected(&other)),
        }
    }
}

impl NetSnapshot<TypeConfig> for RaftClient {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let header = wire::snapshot_header(self.to, &vote, &snapshot.meta);
        // Kept until the replica follows from the log, which must not be gone by then.
        self.holds.hold(self.to, lsn_or_zero(snapshot.meta.last_log_id).seq);
        let SnapshotData::Outgoing(reader) = snapshot.snapshot else {
            return Err(network("a snapshot that was received is not passed on").into());
        };
        let transport = self.calls.transport();
        let sending =
            transport.send_snapshot(self.to.node(), self.calls.cohort(), header.into(), reader);
        let reply = tokio::select! {
            closed = cancel => {
                self.holds.release(self.to);
                return Err(StreamingError::Closed(closed));
            }
            sent = sending => sent.map_err(|error| {
                self.holds.release(self.to);
                unreachable(&error)
            })?,
        };
        Ok(wire::parse_snapshot_reply(&reply).map_err(malformed)?)
    }
}

type AppendResult = Result<StreamAppendResult<TypeConfig>, CallError>;

impl NetStreamAppend<TypeConfig> for RaftClient {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendResult>, CallError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let pipeline = AppendPipeline {
            to: self.to,
            lane: self.lane,
            calls: self.calls.clone(),
            acknowledged: self.acknowledged.clone(),
            input: Some(input),
            in_flight: FuturesOrdered::new(),
        };
        futures::future::ready(Ok(pipeline.boxed())).boxed()
    }
}

/// Sends appends as they come, and yields their answers in the same order. It ends at the first
/// answer that is not a success, since what was sent after it cannot succeed either.
struct AppendPipeline<S> {
    to: RaftId,
    lane: Lane,
    calls: Arc<Calls>,
    acknowledged: Arc<Acknowledged>,
    /// `None` once no more append may be sent.
    input: Option<S>,
    in_flight: FuturesOrdered<BoxFuture<'static, AppendResult>>,
}

impl<S> AppendPipeline<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    fn send_what_is_ready(&mut self, context: &mut Context<'_>) {
        while self.in_flight.len() < APPENDS_IN_FLIGHT_MAX {
            let Some(input) = &mut self.input else { return };
            match input.poll_next_unpin(context) {
                Poll::Ready(Some(append)) => self.send(append),
                Poll::Ready(None) => self.input = None,
                Poll::Pending => return,
            }
        }
    }

    fn send(&mut self, append: AppendEntriesRequest<TypeConfig>) {
        let (vote, previous) = (append.vote, append.prev_log_id);
        let last = append.entries.last().map(|entry| entry.log_id).or(previous);
        let mut message = wire::append_message(append);
        self.calls.heard().stamp(&mut message);
        let body = Body::Append(message);
        let call = self.calls.ask(self.to, self.lane, body);
        let (to, calls, acknowledged) = (self.to, self.calls.clone(), self.acknowledged.clone());
        self.in_flight.push_back(
            async move {
                let reply = append_reply(call?).await?;
                match (&reply, previous) {
                    (wire::AppendReply::Conflict, None) => {
                        return Err(network("a conflict before the first entry"));
                    }
                    (wire::AppendReply::Conflict, Some(lacks)) => {
                        if let Some(last) = acknowledged.lost(to, vote, lacks) {
                            return Err(report_lost(&calls, to, vote, last));
                        }
                    }
                    (wire::AppendReply::Success, _) => acknowledged.record(to, vote, last),
                    (
                        wire::AppendReply::PartialSuccess(_) | wire::AppendReply::HigherVote(_),
                        _,
                    ) => {}
                }
                Ok(reply.into_stream_result(previous, last))
            }
            .boxed(),
        );
    }
}

impl<S> Stream for AppendPipeline<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    type Item = AppendResult;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<AppendResult>> {
        self.send_what_is_ready(context);
        match self.in_flight.poll_next_unpin(context) {
            Poll::Ready(Some(result)) => {
                if !matches!(result, Ok(Ok(_))) {
                    self.input = None;
                    self.in_flight = FuturesOrdered::new();
                }
                Poll::Ready(Some(result))
            }
            Poll::Ready(None) if self.input.is_none() => Poll::Ready(None),
            // The input has registered for the next append.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// Notifies a replica that it has lost what it acknowledged, and returns why the append failed:
/// openraft must not hear of a conflict that, to it, cannot be.
fn report_lost(calls: &Calls, to: RaftId, vote: Vote, acknowledged: LogId) -> CallError {
    let acknowledged = lsn(acknowledged);
    tracing::warn!(%to, cohort = %calls.cohort(), %acknowledged,
        "a replica has lost what it had acknowledged");
    let lost =
        v1::RaftLost { vote: Some(vote_message(&vote)), acknowledged: Some(acknowledged.into()) };
    calls.notify(to, Lane::Heartbeat, Body::Lost(lost));
    network("the replica has lost what it had acknowledged")
}

async fn append_reply(call: Call) -> Result<wire::AppendReply, CallError> {
    match call.answer(RPCTypes::AppendEntries, APPEND_TIMEOUT).await? {
        Body::AppendReply(reply) => wire::append_reply(reply).map_err(malformed),
        other => Err(unexpected(&other)),
    }
}

fn malformed(error: std::io::Error) -> CallError {
    CallError::Network(openraft::errors::NetworkError::new(&AnyError::new(&error)))
}
