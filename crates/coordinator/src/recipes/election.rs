//! Leader election of one cohort, in the form of Spinnaker (Spinnaker §7; M27 to M29).
//!
//! ```text
//! /cohorts/<id>/epoch                            the epoch of the newest leader
//! /cohorts/<id>/leader                           ephemeral: who leads, under which epoch
//! /cohorts/<id>/rounds/<round>/candidate-<...>   ephemeral, sequential: who stands, with what log
//! ```
//! A round is the epoch that it elects a leader for: the stored epoch plus one. Each replica that
//! stands first promises, durably, to accept nothing from an epoch below the round (S2), and then
//! publishes the end of its log. When a majority of the replicas stands, the one with the highest
//! end wins, of equals the one that stood first. The winner creates the leader node, or takes it
//! over from a leader that the majority has given up, and stores the epoch, in one atomic change
//! that requires the epoch to be the round's predecessor.
//!
//! - Candidates belong to their round: those of an old one are never looked at again (S3). A
//!   replica that stands twice in one round counts once, as it stood last.
//! - However many believe to have won, one change is carried out; the others find the epoch
//!   moved on (S4). That includes a late candidate with a longer log: it follows.
//! - A winner that dies before its change goes with its session; those who wait see its candidate
//!   vanish and count again. The epoch has not moved, so the round is still theirs.
//! - There is no leader without its epoch stored, so that no epoch is led twice.
//!
//! The leader node says who should lead, never who may be obeyed: that is for the epochs in the
//! replicas' own messages to decide.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use trireme_types::{CohortId, Epoch, Lsn, NodeId};

use super::{decode, encode, malformed};
use crate::{
    Coordinator, CoordinatorError, CreateMode, MULTI_OPS_MAX, Node, NodeChange, NodeVersion, Nodes,
    Op, Scope, SessionId, Watch, WatchEvent,
};

pub(super) const ROOT: &str = "/cohorts";

/// One replica's part in its cohort's elections.
#[derive(Clone, Debug)]
pub struct Election {
    coordinator: Coordinator,
    cohort: CohortId,
    node: NodeId,
}

/// A leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The node that leads.
    pub node: NodeId,
    /// The epoch that it leads in.
    pub epoch: Epoch,
    /// The session that its leadership is bound to.
    pub session: SessionId,
}

/// A replica that stands in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The replica's node.
    pub node: NodeId,
    /// The end of its log.
    pub last: Lsn,
    /// When it stood, among all candidates.
    pub sequence: u64,
    /// The session that stands for it.
    pub session: SessionId,
}

/// An election at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectionState {
    /// The epoch of the newest leader; 0 if there never was one.
    pub epoch: Epoch,
    /// The leader, as long as its session lives and no other has taken over.
    pub leader: Option<Leader>,
    /// Those who stand for the next epoch, one for each node.
    pub candidates: BTreeMap<NodeId, Candidate>,
    epoch_version: Option<NodeVersion>,
    leader_version: Option<NodeVersion>,
}

/// How a campaign ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Campaign {
    /// This replica leads.
    Elected(Leader),
    /// Another one does, in this round's epoch or a later one.
    Led(Leader),
    /// The round is over, and its winner is gone already: a new round is due.
    Stale {
        /// The newest leader's epoch.
        epoch: Epoch,
    },
}

/// The value of the epoch's node.
#[derive(Debug, Serialize, Deserialize)]
struct EpochNode {
    epoch: Epoch,
}

/// The value of the leader's node.
#[derive(Debug, Serialize, Deserialize)]
struct LeaderNode {
    node: NodeId,
    epoch: Epoch,
}

/// The value of a candidate's node.
#[derive(Debug, Serialize, Deserialize)]
struct CandidateNode {
    node: NodeId,
    last: Lsn,
}

impl ElectionState {
    /// Returns the round that a replica would stand in now.
    pub fn round(&self) -> Epoch {
        self.epoch + 1
    }

    /// Returns who wins among `replicas`, once a majority of them stands: the candidate with the
    /// highest end of the log; of equals, the first.
    pub fn winner(&self, replicas: &[NodeId]) -> Option<Candidate> {
        let replicas: BTreeSet<_> = replicas.iter().collect();
        let standing = self.candidates.values().filter(|c| replicas.contains(&c.node));
        let standing: Vec<_> = standing.copied().collect();
        if standing.len() <= replicas.len() / 2 {
            return None;
        }
        standing.into_iter().max_by_key(|c| (c.last, std::cmp::Reverse(c.sequence)))
    }
}

impl Election {
    /// Returns `node`'s part in the elections of `cohort`.
    pub fn new(coordinator: &Coordinator, cohort: CohortId, node: NodeId) -> Self {
        Self { coordinator: coordinator.clone(), cohort, node }
    }

    /// Returns the election as it is.
    pub async fn state(&self) -> Result<ElectionState, CoordinatorError> {
        let nodes = self.coordinator.subtree(&self.root()).await?;
        ElectionNodes::from(nodes).state(&self.root())
    }

    /// Watches the election.
    pub fn watch(&self) -> Result<ElectionWatch, CoordinatorError> {
        let root = self.root();
        let watch = self.coordinator.watch(&root, Scope::Subtree)?;
        Ok(ElectionWatch { watch, root, nodes: ElectionNodes::default() })
    }

    /// Stands in `round` with a log that ends at `last`. Before that, the replica must have
    /// promised durably to accept nothing from an epoch below `round` (S2). Returns whether it
    /// stands: not if the round is not the next one any more. What this coordinator has sent of the
    /// election saves asking for it.
    pub async fn stand(
        &self,
        round: Epoch,
        last: Lsn,
        known: Option<ElectionState>,
    ) -> Result<bool, CoordinatorError> {
        let session = self.coordinator.session_id();
        let mut known = known.filter(|known| known.round() >= round);
        loop {
            let state = match known.take() {
                Some(known) => known,
                None => self.state().await?,
            };
            if state.round() != round {
                return Ok(false);
            }
            let mine = state.candidates.get(&self.node);
            if mine.is_some_and(|mine| mine.session == session && mine.last == last) {
                return Ok(true);
            }
            let candidate = Op::Create {
                path: format!("{}/rounds/{round}/candidate-", self.root()),
                value: encode(&CandidateNode { node: self.node, last }),
                mode: CreateMode::EphemeralSequential,
            };
            match self.coordinator.multi(vec![self.epoch_is(&state), candidate]).await {
                Ok(_) => return Ok(true),
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the lead in `round` if this replica has won it among `replicas`; `None` if it has
    /// not, or not yet. What this coordinator has sent of the election saves asking for it.
    pub async fn try_lead(
        &self,
        round: Epoch,
        replicas: &[NodeId],
        known: Option<ElectionState>,
    ) -> Result<Option<Leader>, CoordinatorError> {
        // A majority of candidates that is known stays one, however many more stand by now.
        let mut known = known.filter(|known| {
            known.round() > round || (known.round() == round && self.wins(known, replicas))
        });
        loop {
            let state = match known.take() {
                Some(known) => known,
                None => self.state().await?,
            };
            let session = self.coordinator.session_id();
            if state.round() != round || !self.wins(&state, replicas) {
                // An answer that was lost may have made this replica the leader already.
                return Ok(state.leader.filter(|l| l.epoch == round && l.session == session));
            }
            //= SPIN-25
            match self.coordinator.multi(self.takeover(&state, round)).await {
                Ok(_) => return Ok(Some(Leader { node: self.node, epoch: round, session })),
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes this replica the leader of `epoch` again, if that still is the epoch and no replica
    /// leads: its session had expired. Returns whether it leads.
    pub async fn reclaim(&self, epoch: Epoch) -> Result<bool, CoordinatorError> {
        loop {
            let state = self.state().await?;
            let session = self.coordinator.session_id();
            if state.epoch != epoch || state.leader.is_some() {
                return Ok(state.leader.is_some_and(|leader| leader.session == session));
            }
            let leader = Op::Create {
                path: self.leader_path(),
                value: encode(&LeaderNode { node: self.node, epoch }),
                mode: CreateMode::Ephemeral,
            };
            match self.coordinator.multi(vec![self.epoch_is(&state), leader]).await {
                Ok(_) => return Ok(true),
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Stands in `round` and waits until the round is decided. Can be cancelled: the candidate
    /// then stays until its session ends or its round is over.
    pub async fn campaign(
        &self,
        round: Epoch,
        last: Lsn,
        replicas: &[NodeId],
    ) -> Result<Campaign, CoordinatorError> {
        let mut watch = self.watch()?;
        self.stand(round, last, None).await?;
        loop {
            // Without its session the replica stands no more.
            let told = tokio::select! {
                told = watch.next() => told,
                () = self.coordinator.session_expired() => None,
            };
            let state = told.ok_or(CoordinatorError::SessionExpired)??;
            if state.epoch >= round {
                let session = self.coordinator.session_id();
                return Ok(match state.leader {
                    Some(leader) if leader.session == session => Campaign::Elected(leader),
                    Some(leader) => Campaign::Led(leader),
                    None => Campaign::Stale { epoch: state.epoch },
                });
            }
            if self.wins(&state, replicas)
                && let Some(leader) = self.try_lead(round, replicas, Some(state.clone())).await?
            {
                return Ok(Campaign::Elected(leader));
            }
        }
    }

    /// Makes `epoch` the newest epoch if the one that is stored is older: the coordinator has lost
    /// what it knew, or was put back to what it knew earlier, and rounds must go on above those that
    /// replicas have acted in. What an older leader has left there goes with it. Returns whether there
    /// was something to do.
    pub async fn bring_forward(&self, epoch: Epoch) -> Result<bool, CoordinatorError> {
        loop {
            let state = self.state().await?;
            if state.epoch >= epoch {
                return Ok(false);
            }
            let (path, value) = (self.epoch_path(), encode(&EpochNode { epoch }));
            let mut ops = vec![match state.epoch_version {
                None => Op::Create { path, value, mode: CreateMode::Persistent },
                Some(expected) => Op::Set { path, value, expected: Some(expected) },
            }];
            if state.leader.is_some_and(|leader| leader.epoch < epoch) {
                ops.push(Op::Delete { path: self.leader_path(), expected: state.leader_version });
            }
            match self.coordinator.multi(ops).await {
                Ok(_) => return Ok(true),
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives up the lead, if this session has it, so that others need not wait for its end.
    pub async fn resign(&self) -> Result<(), CoordinatorError> {
        let path = self.leader_path();
        let Some(node) = self.coordinator.get(&path).await? else { return Ok(()) };
        if node.owner != Some(self.coordinator.session_id()) {
            return Ok(());
        }
        match self.coordinator.delete(&path, Some(node.version)).await {
            Err(error) if is_conflict(&error) => Ok(()),
            other => other,
        }
    }

    /// Deletes the candidates of rounds that are over. They are never read, so that this is only
    /// for tidiness, and any leader may do it at any time.
    pub async fn clean_up(&self) -> Result<(), CoordinatorError> {
        let nodes = self.coordinator.subtree(&self.root()).await?;
        let nodes = ElectionNodes::from(nodes);
        let epoch = nodes.state(&self.root())?.epoch;
        let is_over =
            |node: &&Node| candidate_round(&self.root(), node).is_some_and(|round| round <= epoch);
        let old: Vec<_> = nodes.0.values().filter(is_over).collect();
        for some in old.chunks(MULTI_OPS_MAX) {
            let delete =
                |node: &&Node| Op::Delete { path: node.path.clone(), expected: Some(node.version) };
            match self.coordinator.multi(some.iter().map(delete).collect()).await {
                // One has gone with its session meanwhile: each by itself.
                Err(error) if is_conflict(&error) => self.delete_each(some).await?,
                done => drop(done?),
            }
        }
        Ok(())
    }

    async fn delete_each(&self, nodes: &[&Node]) -> Result<(), CoordinatorError> {
        for node in nodes {
            match self.coordinator.delete(&node.path, Some(node.version)).await {
                Err(error) if !is_conflict(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns true if this session's candidate wins among `replicas`.
    fn wins(&self, state: &ElectionState, replicas: &[NodeId]) -> bool {
        let session = self.coordinator.session_id();
        let winner = state.winner(replicas);
        winner.is_some_and(|winner| winner.node == self.node && winner.session == session)
    }

    /// Returns the steps that make this node the leader of `round`: all of them or none.
    fn takeover(&self, state: &ElectionState, round: Epoch) -> Vec<Op> {
        let value = encode(&LeaderNode { node: self.node, epoch: round });
        let path = self.leader_path();
        let leader = match state.leader_version {
            None => Op::Create { path, value, mode: CreateMode::Ephemeral },
            Some(expected) => Op::Claim { path, value, expected },
        };
        let value = encode(&EpochNode { epoch: round });
        let path = self.epoch_path();
        let epoch = match state.epoch_version {
            None => Op::Create { path, value, mode: CreateMode::Persistent },
            Some(expected) => Op::Set { path, value, expected: Some(expected) },
        };
        vec![epoch, leader]
    }

    fn epoch_is(&self, state: &ElectionState) -> Op {
        match state.epoch_version {
            None => Op::CheckAbsent { path: self.epoch_path() },
            Some(expected) => Op::Check { path: self.epoch_path(), expected },
        }
    }

    fn root(&self) -> String {
        root_of(self.cohort)
    }

    fn epoch_path(&self) -> String {
        format!("{}/epoch", self.root())
    }

    fn leader_path(&self) -> String {
        format!("{}/leader", self.root())
    }
}

/// A watch of an election. Dropping it ends it.
#[derive(Debug)]
pub struct ElectionWatch {
    watch: Watch,
    root: String,
    nodes: ElectionNodes,
}

impl ElectionWatch {
    /// Returns the election: at first as it is, then whenever it has changed. `None` once the
    /// coordinator is closed. Can be cancelled.
    pub async fn next(&mut self) -> Option<Result<ElectionState, CoordinatorError>> {
        match self.watch.next().await? {
            WatchEvent::State(nodes) => self.nodes = ElectionNodes::from(nodes),
            WatchEvent::Changes { changes, .. } => {
                changes.into_iter().for_each(|change| self.nodes.apply(change));
            }
        }
        Some(self.nodes.state(&self.root))
    }
}

/// An election's nodes at one moment.
#[derive(Debug, Default)]
pub(super) struct ElectionNodes(pub(super) BTreeMap<String, Node>);

impl From<Nodes> for ElectionNodes {
    fn from(nodes: Nodes) -> Self {
        Self(nodes.nodes.into_iter().map(|node| (node.path.clone(), node)).collect())
    }
}

impl ElectionNodes {
    pub(super) fn apply(&mut self, change: NodeChange) {
        match change {
            NodeChange::Put(node) => self.0.insert(node.path.clone(), node),
            NodeChange::Deleted { path } => self.0.remove(&path),
        };
    }

    pub(super) fn state(&self, root: &str) -> Result<ElectionState, CoordinatorError> {
        let epoch_node = self.0.get(&format!("{root}/epoch"));
        let leader_node = self.0.get(&format!("{root}/leader"));
        let epoch = epoch_node.map(decode::<EpochNode>).transpose()?.map_or(0, |node| node.epoch);
        let leader = leader_node.map(leader).transpose()?;
        let mut candidates = BTreeMap::new();
        for node in self.0.values() {
            if candidate_round(root, node) != Some(epoch + 1) {
                continue;
            }
            let candidate = candidate(node)?;
            let known: &mut Candidate = candidates.entry(candidate.node).or_insert(candidate);
            if known.sequence < candidate.sequence {
                *known = candidate;
            }
        }
        let epoch_version = epoch_node.map(|node| node.version);
        let leader_version = leader_node.map(|node| node.version);
        Ok(ElectionState { epoch, leader, candidates, epoch_version, leader_version })
    }
}

/// Returns the path that everything about a cohort's election lies below.
pub(super) fn root_of(cohort: CohortId) -> String {
    format!("{ROOT}/{}", cohort.0)
}

/// Returns the cohort whose election a path belongs to.
pub(super) fn cohort_of(path: &str) -> Option<CohortId> {
    let (cohort, _) = path.strip_prefix(ROOT)?.strip_prefix('/')?.split_once('/')?;
    cohort.parse().ok().map(CohortId)
}

fn leader(node: &Node) -> Result<Leader, CoordinatorError> {
    let LeaderNode { node: id, epoch } = decode(node)?;
    let session = node.owner.ok_or_else(|| malformed(node, "it is not ephemeral"))?;
    Ok(Leader { node: id, epoch, session })
}

fn candidate(node: &Node) -> Result<Candidate, CoordinatorError> {
    let CandidateNode { node: id, last } = decode(node)?;
    let session = node.owner.ok_or_else(|| malformed(node, "it is not ephemeral"))?;
    Ok(Candidate { node: id, last, sequence: node.sequence, session })
}

/// Returns the round that a node is a candidate of, if it is one.
fn candidate_round(root: &str, node: &Node) -> Option<Epoch> {
    let (round, _) = node.path.strip_prefix(root)?.strip_prefix("/rounds/")?.split_once('/')?;
    round.parse().ok()
}

fn is_conflict(error: &CoordinatorError) -> bool {
    error.class() == crate::ErrorClass::Conflict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(candidates: &[(u64, Lsn, u64)]) -> ElectionState {
        let candidates = candidates.iter().map(|&(node, last, sequence)| {
            let (node, session) = (NodeId(node), SessionId(1));
            (node, Candidate { node, last, sequence, session })
        });
        let candidates = candidates.collect();
        let (epoch_version, leader_version) = (None, None);
        ElectionState { epoch: 0, leader: None, candidates, epoch_version, leader_version }
    }

    #[test]
    fn the_highest_end_of_a_majority_wins_and_ties_go_by_sequence() {
        let replicas = [NodeId(1), NodeId(2), NodeId(3)];
        let winner = |candidates: &[(u64, Lsn, u64)]| {
            state(candidates).winner(&replicas).map(|winner| winner.node.0)
        };
        assert_eq!(winner(&[(1, Lsn::new(1, 9), 1)]), None, "one of three never elects");
        assert_eq!(winner(&[(1, Lsn::new(1, 9), 1), (4, Lsn::new(1, 9), 2)]), None, "no replica");
        assert_eq!(winner(&[(1, Lsn::new(1, 22), 1), (2, Lsn::new(2, 21), 2)]), Some(2));
        assert_eq!(winner(&[(1, Lsn::new(1, 5), 8), (3, Lsn::new(1, 5), 7)]), Some(3));
    }
}
