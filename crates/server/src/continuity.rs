//! Whether the coordinator is what it was.
//!
//! A coordinator that was put back to what it knew earlier answers as ever, and gives out numbers
//! that were given out before. Neither it nor a node that knows no more than it can notice that: only
//! who knows more can. So the node compares the catalog with what it remembers, at its start and
//! whenever the catalog has changed, and brings forward what is older there. And it asks nothing of
//! the coordinator that cannot be taken back, a new configuration or a part in an election, until
//! those have been asked who would know more:
//!
//! - for PacificA, every replica of the newest configuration. Each configuration that was acted in is
//!   remembered by all its replicas, and its successor is proposed by one of them. So if all replicas
//!   of a configuration know of no newer one, none was ever acted in, and no write acknowledged in
//!   it. A node that kept running asks a majority: it has seen each change until the coordinator
//!   was gone.
//! - for Spinnaker, a majority. The leader of an epoch was elected by a majority that had promised it,
//!   on disk, so that one of those asked knows it; rounds go on above the highest.
//! - for Raft, none. The coordinator has no part in its terms.
//!
//! None has to be asked while the coordinator's *line* is the one that the node last trusted: no
//! start of an embedded coordinator and no new leader of an etcd cluster lies between. And a command that
//! has compared the catalog with the folders of all nodes, as `trireme up` does at its start, notes
//! the line, and PacificA's replicas go by that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;
use trireme_coordinator::recipes::catalog::{Catalog, CatalogState};
use trireme_coordinator::recipes::election::Election;
use trireme_coordinator::recipes::elections::epochs;
use trireme_coordinator::recipes::knowledge::{
    BringForwardError, Knowledge, WrittenKnowledge, compared,
};
use trireme_coordinator::recipes::membership::NodeInfo;
use trireme_coordinator::recipes::trust::{Asking, KnowsMore, Trust, knows_more};
use trireme_coordinator::{Coordinator, CoordinatorError, Line};
use trireme_proto::v1;
use trireme_replication::streaming::promised_epoch;
use trireme_storage::SharedLog;
use trireme_types::{CohortConfig, CohortId, Epoch, NodeId};

use crate::data_folder::DataFolder;
use crate::memory::{Memory, MemoryError, NodeMemory};
use crate::node::NodeError;
use crate::routes::NodeDirectory;

/// How long a node may take to answer what it knows.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait before those are asked again who have not answered.
const ASK_PAUSE: Duration = Duration::from_millis(300);

/// How often the log names the nodes whose answers are missing.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(5);

/// The most bytes of what a node knows.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A node's answer on what it knows.
#[derive(Debug, Serialize, Deserialize)]
pub struct NodeKnowledge {
    /// The node.
    pub node: NodeId,
    /// Who it is, as the coordinator should know it.
    pub record: NodeInfo,
    /// The map and the configurations that it remembers.
    pub known: WrittenKnowledge,
    /// The newest epoch that each of its replicas of Spinnaker has promised.
    pub promised: BTreeMap<CohortId, Epoch>,
}

/// What a node needs to know whether the coordinator is what it was.
pub(crate) struct Continuity {
    node: NodeId,
    coordinator: Coordinator,
    memory: Memory,
    log: SharedLog,
    directory: Arc<NodeDirectory>,
    record: NodeInfo,
    trust: Mutex<Trust>,
    /// The epochs that the coordinator has been brought forward to.
    epoch_floors: Mutex<BTreeMap<CohortId, Epoch>>,
    /// When the newest read of the line was begun that has ended, and whether it was answered. Held
    /// while one is under way.
    line_read: tokio::sync::Mutex<Option<(Instant, bool)>>,
    /// Wakes the task that asks.
    changed: Notify,
}

/// What a starting node knows before its log is open.
pub(crate) struct Remembered {
    memory: Memory,
    trust: Trust,
    /// The catalog, as new as what the node remembers.
    pub(crate) catalog: CatalogState,
}

impl Remembered {
    /// Compares the catalog with what the folder remembers and brings it forward where it is older.
    /// What is known then is on the disk.
    pub(crate) async fn start(
        folder: &DataFolder,
        node: NodeId,
        coordinator: &Coordinator,
        mut catalog: CatalogState,
    ) -> Result<Self, NodeError> {
        let before = NodeMemory::read(folder.path())?;
        if let Some(before) = &before
            && bring_forward(&before.known, coordinator).await?
        {
            tracing::warn!("the coordinator was older than what this node remembers");
            catalog = load(coordinator).await?;
        }
        let mut memory = before.clone().unwrap_or_else(|| NodeMemory {
            node,
            known: Knowledge::from(&catalog),
            line: catalog.line,
            revision: catalog.revision,
            creation: catalog.creation,
            set_aside: BTreeMap::new(),
            given_up: BTreeSet::new(),
        });
        memory.known.merge(&Knowledge::from(&catalog)).map_err(MemoryError::from)?;
        let is_trusted = memory.line == catalog.line
            && memory.creation == catalog.creation
            && memory.revision <= catalog.revision;
        let mut asking = (!is_trusted).then(|| Asking { has_restarted: true, ..Asking::default() });
        match &mut asking {
            Some(asking) => {
                let compared = compared(coordinator).await.map_err(BringForwardError::from)?;
                asking.is_compared = compared == Some(catalog.line);
            }
            None => memory.revision = catalog.revision,
        }
        let trust = Trust { line: catalog.line, creation: catalog.creation, asking };
        Ok(Self { memory: Memory::start(folder.path(), memory)?, trust, catalog })
    }
}

async fn load(coordinator: &Coordinator) -> Result<CatalogState, BringForwardError> {
    Catalog::new(coordinator).load().await?.ok_or(BringForwardError::NoCluster)
}

/// Brings the catalog forward to what is known; returns true if it was older.
async fn bring_forward(
    known: &Knowledge,
    coordinator: &Coordinator,
) -> Result<bool, BringForwardError> {
    let is_older = known.bring_forward(coordinator).await?;
    if is_older {
        tracing::warn!("the coordinator knew less than the nodes, and was brought forward");
    }
    Ok(is_older)
}

impl Continuity {
    pub(crate) fn new(
        node: NodeId,
        coordinator: Coordinator,
        Remembered { memory, trust, .. }: Remembered,
        log: SharedLog,
        directory: Arc<NodeDirectory>,
        record: NodeInfo,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            coordinator,
            memory,
            log,
            directory,
            record,
            trust: Mutex::new(trust),
            epoch_floors: Mutex::default(),
            line_read: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Returns what the node remembers.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Remembers what the coordinator says: it is on the disk when this returns. What is older than
    /// what is remembered is brought forward at the coordinator, in time.
    pub(crate) async fn remember(&self, seen: &CatalogState) -> Result<(), MemoryError> {
        let is_trusted = self.note(seen.line, Some(seen.creation));
        let said = Knowledge::from(seen);
        self.memory
            .update(|memory| {
                let is_new = memory.known.merge(&said)?;
                if is_trusted && (is_new || memory.line != seen.line) {
                    (memory.line, memory.revision) = (seen.line, seen.revision);
                    memory.creation = seen.creation;
                }
                Ok(())
            })
            .await?;
        if self.memory.get().known.is_ahead_of(seen) {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Remembers configurations, all with one write, and returns those of them that are the newest known:
    /// no replica is to act in another. One that contradicts what is known is refused.
    pub(crate) async fn remember_configs(
        &self,
        configs: &[CohortConfig],
    ) -> Result<Vec<CohortConfig>, MemoryError> {
        self.memory
            .update(|memory| {
                for config in configs {
                    match memory.known.check(config) {
                        Ok(()) => drop(memory.known.take(config)),
                        Err(error) => tracing::error!(%error, "a configuration is refused"),
                    }
                }
                Ok(())
            })
            .await?;
        let known = self.memory.get();
        let is_newest =
            |config: &&CohortConfig| known.known.configs.get(&config.cohort) == Some(*config);
        let newest: Vec<_> = configs.iter().filter(is_newest).cloned().collect();
        if newest.len() < configs.len() {
            self.changed.notify_one();
        }
        Ok(newest)
    }

    /// Notes the line that the coordinator is in; returns true if it is trusted.
    fn note_line(&self, line: Line) -> bool {
        self.note(line, None)
    }

    /// Notes the line that the coordinator is in, and which creation of the catalog it has, if that is
    /// known; returns true if they are trusted.
    fn note(&self, line: Line, creation: Option<i64>) -> bool {
        let mut trust = self.trust.lock();
        if trust.note(line, creation) {
            tracing::info!(
                ?line,
                creation = trust.creation,
                "the coordinator was started, or has another leader"
            );
            self.changed.notify_one();
        }
        trust.asking.is_none()
    }

    /// Returns true if the cohort's replica here may have the coordinator change something now. Cohorts
    /// that ask together share the read of the coordinator's line that was begun after they asked.
    pub(crate) async fn may_change(&self, cohort: CohortId) -> bool {
        let asked = Instant::now();
        let mut newest = self.line_read.lock().await;
        let is_answered = match *newest {
            Some((begun, is_answered)) if begun >= asked => is_answered,
            _ => {
                let begun = Instant::now();
                let read = self.coordinator.line().await;
                if let Ok((line, _)) = read {
                    self.note_line(line);
                }
                *newest = Some((begun, read.is_ok()));
                read.is_ok()
            }
        };
        drop(newest);
        is_answered && self.is_cleared(cohort)
    }

    /// Returns true if the coordinator was last seen in this line.
    pub(crate) fn is_in(&self, line: Line) -> bool {
        self.trust.lock().line == line
    }

    /// Returns the epoch that the coordinator was brought forward to for a cohort, below which nothing
    /// that it said before counts.
    pub(crate) fn epoch_floor(&self, cohort: CohortId) -> Epoch {
        self.epoch_floors.lock().get(&cohort).copied().unwrap_or_default()
    }

    /// Returns true if it is known that the coordinator knows all that is to be known of the cohort.
    pub(crate) fn is_cleared(&self, cohort: CohortId) -> bool {
        let memory = self.memory.get();
        self.trust.lock().is_cleared(self.node, memory.known.configs.get(&cohort))
    }

    /// Returns what the node waits for before it goes on as it should; `None` if it does not.
    pub(crate) fn waits_for(&self) -> Option<String> {
        let trust = self.trust.lock();
        let asking = trust.asking.as_ref()?;
        let memory = self.memory.get();
        let mine = memory.known.configs.values().filter(|it| it.replicas.contains(&self.node));
        let waiting: Vec<_> = mine
            .map(|it| (it.cohort, asking.missing(self.node, it)))
            .filter(|(_, m)| !m.is_empty())
            .collect();
        let (cohort, _) = waiting.first()?;
        let nodes: BTreeSet<_> = waiting.iter().flat_map(|(_, nodes)| nodes).collect();
        let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
        Some(format!(
            "the coordinator was started since this node last knew it, and may have been put back to \
             an older state: what {} knows is needed before cohort {cohort} and {} more can go on",
            nodes.join(", "),
            waiting.len() - 1,
        ))
    }

    /// Returns what the node knows, for those that ask.
    pub(crate) fn knowledge(&self) -> NodeKnowledge {
        let memory = self.memory.get();
        NodeKnowledge {
            node: self.node,
            record: self.record.clone(),
            promised: self.promised(&memory.known),
            known: WrittenKnowledge::from(&memory.known),
        }
    }

    /// Returns the newest epoch that each replica of Spinnaker here has promised or acted in.
    fn promised(&self, known: &Knowledge) -> BTreeMap<CohortId, Epoch> {
        let cohorts = self.log.cohorts().into_iter();
        let cohorts = cohorts.filter(|cohort| known.configs.get(cohort).is_some_and(has_epochs));
        let epoch = |cohort: CohortId| {
            let log = self.log.cohort(cohort);
            let promised = log.hard_state().and_then(promised_epoch).unwrap_or_default();
            (cohort, promised.max(log.bounds().last.epoch))
        };
        cohorts.map(epoch).collect()
    }

    /// Asks whom there is to ask, and brings the catalog forward, whenever there is reason to. Runs
    /// until its task is aborted.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut complained = Instant::now();
        loop {
            let caught_up = self.catch_up().await;
            let is_asking = self.trust.lock().asking.is_some();
            if caught_up.is_ok() && !is_asking {
                self.changed.notified().await;
                complained = Instant::now();
                continue;
            }
            if complained.elapsed() >= COMPLAINT_INTERVAL {
                complained = Instant::now();
                match (caught_up, self.waits_for()) {
                    (Err(error), _) => {
                        tracing::warn!(%error, "the coordinator is not known to be what it was");
                    }
                    (Ok(()), Some(reason)) => tracing::warn!("{reason}"),
                    (Ok(()), None) => {}
                }
            }
            sleep(ASK_PAUSE).await;
        }
    }

    async fn catch_up(&self) -> Result<(), BringForwardError> {
        let (line, _) = self.coordinator.line().await?;
        self.note_line(line);
        bring_forward(&self.memory.get().known, &self.coordinator).await?;
        let Some(asking) = self.trust.lock().asking.clone() else { return Ok(()) };
        let is_compared = compared(&self.coordinator).await? == Some(line);
        let mine = self.my_cohorts();
        let to_ask: BTreeSet<_> = mine.iter().flat_map(|it| it.replicas.iter().copied()).collect();
        let to_ask =
            to_ask.into_iter().filter(|node| *node != self.node && !asking.answered.contains(node));
        let answers = join_all(to_ask.map(|node| self.ask(node))).await;
        let answers: Vec<_> = answers.into_iter().flatten().collect();
        for answer in &answers {
            self.take(answer).await?;
        }
        bring_forward(&self.memory.get().known, &self.coordinator).await?;
        let answered = asking.answered.into_iter().chain(answers.iter().map(|it| it.node));
        let answered: BTreeSet<_> = answered.collect();
        let raised = self.raise_epochs(&answered, &asking.raised, &answers).await?;
        // The line that was brought forward must be the one that was asked about.
        let now = self.coordinator.line().await?;
        if now.0 == line {
            self.conclude(now, is_compared, answered, raised).await;
        }
        Ok(())
    }

    /// Returns the configurations of the cohorts that the node is in.
    fn my_cohorts(&self) -> Vec<CohortConfig> {
        let memory = self.memory.get();
        let mine = memory.known.configs.values().filter(|it| it.replicas.contains(&self.node));
        mine.cloned().collect()
    }

    /// Remembers what another node knows.
    async fn take(&self, answer: &NodeKnowledge) -> Result<(), BringForwardError> {
        let known = Knowledge::try_from(answer.known.clone()).map_err(|reason| {
            let path = format!("what {} knows", answer.node);
            CoordinatorError::Malformed { path, reason }
        })?;
        let remembered = self.memory.update(|memory| memory.known.merge(&known).map(drop)).await;
        remembered.map_err(|error| match error {
            MemoryError::Conflict(conflict) => BringForwardError::Conflict(conflict),
            MemoryError::Folder(error) => {
                CoordinatorError::Unavailable(format!("it cannot be remembered: {error}")).into()
            }
        })
    }

    /// Brings the epochs of the cohorts forward of which a majority has answered.
    async fn raise_epochs(
        &self,
        answered: &BTreeSet<NodeId>,
        raised: &BTreeSet<CohortId>,
        answers: &[NodeKnowledge],
    ) -> Result<BTreeSet<CohortId>, CoordinatorError> {
        let mut promised = self.trust_promises(answers);
        for (cohort, epoch) in self.promised(&self.memory.get().known) {
            let known = promised.entry(cohort).or_default();
            *known = epoch.max(*known);
        }
        let mut raised = raised.clone();
        let mut stored = None;
        for config in self.my_cohorts() {
            let has_answered = |node: &&NodeId| **node == self.node || answered.contains(node);
            let count = config.replicas.iter().filter(has_answered).count();
            let cohort = config.cohort;
            let is_due = has_epochs(&config)
                && count > config.replicas.len() / 2
                && !raised.contains(&cohort);
            if is_due {
                let epoch = promised.get(&cohort).copied().unwrap_or_default();
                let election = Election::new(&self.coordinator, cohort, self.node);
                // One read for all: nearly always, none is older.
                let stored = match &stored {
                    Some(stored) => stored,
                    None => stored.insert(epochs(&self.coordinator).await?),
                };
                let is_older = stored.get(&cohort).copied().unwrap_or_default() < epoch;
                if is_older && election.bring_forward(epoch).await? {
                    tracing::warn!(%cohort, epoch, "the coordinator knew an older epoch");
                }
                self.epoch_floors.lock().insert(cohort, epoch);
                raised.insert(cohort);
            }
        }
        Ok(raised)
    }

    /// Notes what nodes have promised, of which not all may have answered yet.
    fn trust_promises(&self, answers: &[NodeKnowledge]) -> BTreeMap<CohortId, Epoch> {
        let mut trust = self.trust.lock();
        let Some(asking) = &mut trust.asking else { return BTreeMap::new() };
        let promised = answers.iter().flat_map(|answer| &answer.promised);
        asking.note_promises(promised.map(|(cohort, epoch)| (*cohort, *epoch)));
        asking.promised.clone()
    }

    /// Notes what has been found out of a line, unless it is over.
    async fn conclude(
        &self,
        (line, revision): (Line, i64),
        is_compared: bool,
        answered: BTreeSet<NodeId>,
        raised: BTreeSet<CohortId>,
    ) {
        let settled = {
            let mut trust = self.trust.lock();
            if trust.line != line {
                return;
            }
            let Some(asking) = trust.asking.as_mut() else { return };
            (asking.is_compared, asking.answered, asking.raised) = (is_compared, answered, raised);
            let is_cleared = |config: &CohortConfig| asking.missing(self.node, config).is_empty();
            let is_settled = self.my_cohorts().iter().all(is_cleared);
            if is_settled {
                trust.asking = None;
            }
            is_settled.then_some(trust.creation)
        };
        if let Some(creation) = settled {
            tracing::info!(?line, "the coordinator knows all that its nodes know");
            let remembered = self.memory.update(|memory| {
                (memory.line, memory.revision, memory.creation) = (line, revision, creation);
                Ok(())
            });
            if let Err(error) = remembered.await {
                // The next start asks again.
                tracing::warn!(%error, "the coordinator's line is not remembered");
            }
        }
    }

    /// Asks a node what it knows; `None` if it does not answer, or is another than was meant.
    async fn ask(&self, node: NodeId) -> Option<NodeKnowledge> {
        let address = self.directory.node(node)?.address;
        let answer = timeout(ANSWER_TIMEOUT, ask_at(&address)).await;
        match answer.map_err(|_| "it did not answer".to_owned()).and_then(|answer| answer) {
            Ok(answer) if answer.node == node => Some(answer),
            Ok(answer) => {
                tracing::info!(%node, found = %answer.node, address, "another node answers");
                None
            }
            Err(error) => {
                tracing::debug!(%node, address, error, "a node has not said what it knows");
                None
            }
        }
    }
}

/// Returns true if the cohort's epochs are given out by the coordinator.
fn has_epochs(config: &CohortConfig) -> bool {
    knows_more(config.protocol) == KnowsMore::SomeOfAMajority
}

/// Asks the node at an address what it knows.
pub async fn ask_at(address: &str) -> Result<NodeKnowledge, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
    let endpoint = endpoint.connect_timeout(ANSWER_TIMEOUT);
    let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
    let mut client =
        v1::admin_client::AdminClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let answer = client.knowledge(v1::KnowledgeRequest {}).await;
    let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
    serde_json::from_slice(&answer.json).map_err(|error| error.to_string())
}
