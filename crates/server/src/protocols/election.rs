//! Spinnaker's elections at the coordinator.

use std::sync::{Arc, Weak};

use trireme_coordinator::CoordinatorError;
use trireme_coordinator::recipes::election::{Election, ElectionState};
use trireme_replication::driver::CoreReplica;
use trireme_replication::spinnaker::{Candidate, ElectionRequest, ElectionView, Spinnaker};
use trireme_types::{CohortId, NodeId};

use super::pending_request::{PendingRequest, RETRY_PAUSE};
use super::shared::{RequestPermit, SharedCoordinator};

/// Carries out what a replica asks of its cohort's election, and sends it every change, until the
/// replica ends. To be called within a runtime.
pub(crate) fn elect(
    coordinator: Arc<SharedCoordinator>,
    (cohort, node): (CohortId, NodeId),
    replicas: Vec<NodeId>,
    request: &PendingRequest<Spinnaker>,
    replica: &Arc<CoreReplica<Spinnaker>>,
) {
    let server = request.server();
    let election = Election::new(&coordinator.coordinator, cohort, node);
    let end = server.end.clone();
    let permits = Arc::clone(&coordinator);
    let part = Part { election, coordinator, cohort, node, replicas };
    let (watcher, replica) = (part.clone(), Arc::downgrade(replica));
    tokio::spawn(async move {
        end.run_until_cancelled(watcher.watch(&replica)).await;
    });
    tokio::spawn(async move {
        server.serve(&permits, |request, permit| part.carry_out(request, permit)).await;
    });
}

/// One replica's part in the elections of its cohort.
#[derive(Clone)]
struct Part {
    election: Election,
    coordinator: Arc<SharedCoordinator>,
    cohort: CohortId,
    node: NodeId,
    replicas: Vec<NodeId>,
}

impl Part {
    /// Passes to the replica how the election stands, whenever that has changed. What an older coordinator
    /// says is passed over: it is brought forward, and says so then.
    async fn watch(&self, replica: &Weak<CoreReplica<Spinnaker>>) {
        let (continuity, cohort) = (&self.coordinator.continuity, self.cohort);
        while !continuity.is_cleared(cohort) {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        // The node's watch may not have come as far as the coordinator was brought.
        let mut newest = continuity.epoch_floor(cohort);
        let mut states = match self.coordinator.elections(cohort) {
            Ok(states) => states,
            Err(error) => return tracing::error!(%error, "the elections cannot be watched"),
        };
        while let Some((_, state)) = states.next().await {
            if state.epoch < newest {
                tracing::info!(epoch = state.epoch, newest, "the coordinator is older");
                continue;
            }
            newest = state.epoch;
            if !CoreReplica::notify(replica, self.view(&state)).await {
                return;
            }
        }
    }

    fn view(&self, state: &ElectionState) -> ElectionView {
        let session = self.coordinator.coordinator.session_id();
        // What an earlier session of this node holds is none of this replica's.
        let is_ours = |node, of| node != self.node || of == session;
        let leader = state.leader.filter(|leader| is_ours(leader.node, leader.session));
        let round = state.round();
        let candidates = state.candidates.values().map(|candidate| Candidate {
            node: candidate.node,
            round,
            last: candidate.last,
            sequence: candidate.sequence,
        });
        ElectionView {
            epoch: state.epoch,
            leader: leader.map(|leader| (leader.node, leader.epoch)),
            candidates: candidates.collect(),
        }
    }

    /// Has the candidates of the rounds that are over removed, which would else stay for as long as
    /// their nodes' sessions. It is not waited for: the next leader does what this one cannot.
    fn clean_up(&self) {
        let (election, end) = (self.election.clone(), self.coordinator.coordinator.clone());
        tokio::spawn(async move {
            tokio::select! {
                cleaned = election.clean_up() => {
                    if let Err(error) = cleaned {
                        tracing::debug!(%error, "candidates of old rounds were left behind");
                    }
                }
                () = end.session_expired() => {}
            }
        });
    }

    /// Carries out a request; returns true if its outcome is known.
    async fn carry_out(&self, request: ElectionRequest, _permit: RequestPermit) -> bool {
        if !self.coordinator.continuity.may_change(self.cohort).await {
            return false;
        }
        let known = self.coordinator.election(self.cohort);
        let done: Result<(), CoordinatorError> = match request {
            ElectionRequest::Stand { round, last } => {
                self.election.stand(round, last, known).await.map(drop)
            }
            ElectionRequest::Lead { round } => {
                let led = self.election.try_lead(round, &self.replicas, known).await;
                if let Ok(Some(_)) = led {
                    self.clean_up();
                }
                led.map(drop)
            }
            ElectionRequest::Reclaim { epoch } => self.election.reclaim(epoch).await.map(drop),
        };
        if let Err(error) = &done {
            tracing::info!(?request, %error, "the coordinator did not do it");
        }
        done.is_ok()
    }
}
