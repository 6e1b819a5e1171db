//! `trireme coordinator rebuild`: what a coordinator has lost comes back from what the nodes know.
//!
//! What nodes know was installed once. So the newest configuration of each cohort that any of them
//! knows is one that may be acted in, if all who could know a newer one were asked: every replica of it
//! for PacificA, where each of them could have proposed its successor; a majority where the replicas
//! do not change, which says who they are as well as all would.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use trireme_coordinator::recipes::catalog::Catalog;
use trireme_coordinator::recipes::election::Election;
use trireme_coordinator::recipes::knowledge::{Knowledge, give_up, note_compared, restore_record};
use trireme_coordinator::recipes::membership::{Membership, NodeInfo, next_incarnation};
use trireme_coordinator::recipes::trust::{KnowsMore, knows_more};
use trireme_coordinator::{Coordinator, CoordinatorOptions};
use trireme_server::{DataFolder, NodeMemory, ask_at};
use trireme_types::{ClusterId, CohortConfig, CohortId, Epoch, NodeId};

use super::{UsageError, output};

/// How long a node may take to answer what it knows.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of `trireme coordinator rebuild`.
#[derive(Args)]
pub(crate) struct RebuildArgs {
    /// Data folders of stopped nodes and addresses (HOST:PORT) of running ones; every node of the
    /// cluster.
    #[arg(long, value_name = "FOLDER|HOST:PORT", value_delimiter = ',', required = true)]
    from: Vec<String>,
    /// Endpoints of the coordinator.
    #[arg(long, value_name = "URL", value_delimiter = ',', required = true)]
    coordinator: Vec<String>,
    /// Nodes whose data is lost for good. Writes that only they held are lost; they can rejoin with
    /// an empty data folder only.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    without: Vec<NodeId>,
}

impl RebuildArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut remembered = Remembered::default();
        for from in &self.from {
            let path = Path::new(from);
            if path.is_dir() {
                let node = remembered.add_folder(path)?;
                node.with_context(|| format!("{from} holds no node that has served a cluster"))?;
            } else if from.contains('/') || !from.contains(':') {
                let reason = format!("'{from}' is neither a folder nor HOST:PORT");
                return Err(UsageError(reason).into());
            } else {
                remembered.add_answer(from).await?;
            }
        }
        if let Some(node) = self.without.iter().find(|node| remembered.records.contains_key(node)) {
            let reason = format!("{node} is given by --from and by --without");
            return Err(UsageError(reason).into());
        }
        let endpoints = self.coordinator.join(",");
        let context = || format!("the coordinator at {endpoints}");
        let options = CoordinatorOptions::new(self.coordinator.clone());
        let coordinator = Coordinator::connect(options).await.with_context(context)?;
        let done =
            remembered.bring_back(&coordinator, &self.without).await.with_context(context)?;
        coordinator.close().await.with_context(context)?;
        for warning in remembered.without_a_majority(&self.without)? {
            // There is nowhere left to say that stderr cannot be written.
            let _unwritten = writeln!(io::stderr(), "trireme: {warning}");
        }
        let Knowledge { cluster, map, .. } = remembered.known()?;
        let ranges = map.ranges().len();
        Ok(output::line(format!("{} cluster={cluster} ranges={ranges}", done.name()))?)
    }
}

/// What became of the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Brought {
    /// There was none.
    Created,
    /// It was older.
    Forward,
    /// It was as new.
    Unchanged,
}

impl Brought {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Forward => "brought-forward",
            Self::Unchanged => "unchanged",
        }
    }
}

/// What the nodes of a cluster know.
#[derive(Default)]
pub(crate) struct Remembered {
    known: Option<Knowledge>,
    records: BTreeMap<NodeId, NodeInfo>,
    promised: BTreeMap<CohortId, Epoch>,
    /// Folders that were expected and are empty or not there.
    missing: BTreeMap<NodeId, PathBuf>,
    /// Folders of nodes that have served, written by a version that did not remember what.
    forgetful: Vec<PathBuf>,
}

impl Remembered {
    /// Reads what the folders of a cluster's nodes know.
    pub(crate) fn of_folders(
        folders: impl Iterator<Item = (NodeId, PathBuf)>,
    ) -> anyhow::Result<Self> {
        let mut remembered = Self::default();
        for (id, path) in folders {
            match remembered.add_folder(&path)? {
                Some(found) if found != id => {
                    bail!("{} holds node {found}, not node {id}", path.display())
                }
                Some(_) => {}
                None => drop(remembered.missing.insert(id, path)),
            }
        }
        Ok(remembered)
    }

    /// Returns true if one of the nodes has served: there was a cluster, whatever the coordinator
    /// knows.
    pub(crate) fn has_served(&self) -> bool {
        self.known.is_some() || !self.forgetful.is_empty()
    }

    pub(crate) fn check_cluster(&self, cluster: ClusterId) -> anyhow::Result<()> {
        match &self.known {
            Some(known) if known.cluster != cluster => {
                let found = known.cluster;
                bail!(
                    "the nodes' folders are of cluster {found}, and this one of cluster {cluster}"
                )
            }
            _ => Ok(()),
        }
    }

    fn known(&self) -> anyhow::Result<&Knowledge> {
        self.known.as_ref().context("no node knows the cluster")
    }

    /// Fails if a node has served and does not remember what, so that it might know more.
    fn check_memories(&self) -> anyhow::Result<()> {
        match self.forgetful.first() {
            Some(path) => bail!(
                "{} has a log, and no memory.json that names its ranges: it was written by \
                 version 0.1.0, or the file is lost. The coordinator's own data is needed",
                path.display()
            ),
            None => Ok(()),
        }
    }

    /// Reads what a folder knows, and returns its node; `None` if it holds none that has served.
    fn add_folder(&mut self, path: &Path) -> anyhow::Result<Option<NodeId>> {
        let Some(file) = DataFolder::describe(path)? else { return Ok(None) };
        match NodeMemory::read(path)? {
            Some(memory) => {
                self.add(file.node, file.record(), &memory.known)?;
                Ok(Some(file.node))
            }
            None if file.has_log => {
                self.forgetful.push(path.to_owned());
                Ok(Some(file.node))
            }
            None => Ok(None),
        }
    }

    /// Asks a running node what it knows.
    async fn add_answer(&mut self, address: &str) -> anyhow::Result<()> {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask_at(address)).await;
        let answer = answer
            .map_err(|_| anyhow::anyhow!("no answer"))
            .and_then(|answer| answer.map_err(anyhow::Error::msg))
            .with_context(|| format!("asking the node at {address}"))?;
        let known = Knowledge::try_from(answer.known).map_err(anyhow::Error::msg)?;
        for (cohort, epoch) in answer.promised {
            let promised = self.promised.entry(cohort).or_default();
            *promised = epoch.max(*promised);
        }
        self.add(answer.node, answer.record, &known)
    }

    fn add(&mut self, node: NodeId, record: NodeInfo, known: &Knowledge) -> anyhow::Result<()> {
        if self.records.insert(node, record).is_some() {
            bail!("node {node} is given twice");
        }
        match &mut self.known {
            Some(newest) => {
                newest.merge(known).context("what the nodes know does not go together")?;
            }
            None => self.known = Some(known.clone()),
        }
        Ok(())
    }

    /// Brings the catalog to what the nodes know: creates it if the coordinator knows no cluster, and
    /// else replaces what is older. Where a node is missing that might know more, nothing is
    /// created.
    pub(crate) async fn bring_back(
        &self,
        coordinator: &Coordinator,
        without: &[NodeId],
    ) -> anyhow::Result<Brought> {
        let is_lost = Catalog::new(coordinator).load().await?.is_none();
        if !is_lost && self.known.is_none() {
            return Ok(Brought::Unchanged);
        }
        if is_lost {
            self.check_memories()?;
        }
        let known = self.known()?;
        let missing = self.missing_for(known, without);
        let members = Membership::new(coordinator).list().await?;
        if let Some(member) = members.iter().find(|it| it.is_alive() && without.contains(&it.id)) {
            let (id, address) = (member.id, &member.info.address);
            bail!(
                "{id} cannot be given up: it has a session, and runs at {address} or did so until a \
                 moment ago"
            );
        }
        let done = if is_lost {
            if !missing.is_empty() {
                bail!(
                    "it has lost the cluster, and what {} knows is missing to bring it back{}",
                    names(missing.iter().copied()),
                    self.where_they_should_be(&missing),
                );
            }
            // Before there is a cluster that nodes could come to: an empty folder must not pass for
            // that of a node that had something.
            self.restore_records(coordinator, known).await?;
            Self::give_up(coordinator, known, without).await?;
            known.create(coordinator).await?;
            // Another process may have been faster, with less.
            known.bring_forward(coordinator).await?;
            Brought::Created
        } else {
            // Before somebody goes on without what they know.
            Self::give_up(coordinator, known, without).await?;
            let is_older = known.bring_forward(coordinator).await?;
            if is_older { Brought::Forward } else { Brought::Unchanged }
        };
        for (&cohort, &epoch) in &self.promised {
            // The epoch alone is changed, for which no node has to stand.
            Election::new(coordinator, cohort, NodeId(0)).bring_forward(epoch).await?;
        }
        if missing.is_empty() {
            let (line, _) = coordinator.line().await?;
            note_compared(coordinator, line).await?;
        }
        Ok(done)
    }

    /// Returns the nodes whose knowledge is needed and not there.
    fn missing_for(&self, known: &Knowledge, without: &[NodeId]) -> BTreeSet<NodeId> {
        let is_missing =
            |node: &NodeId| !self.records.contains_key(node) && !without.contains(node);
        let missing = |config: &CohortConfig| -> Vec<NodeId> {
            let missing: Vec<_> = config.replicas.iter().copied().filter(is_missing).collect();
            // Those that are given up count as silent, not as heard.
            let heard = config.replicas.iter().filter(|node| self.records.contains_key(node));
            let has_majority = heard.count() > config.replicas.len() / 2;
            let is_fixed = knows_more(config.protocol) != KnowsMore::All;
            if is_fixed && has_majority { Vec::new() } else { missing }
        };
        known.configs.values().flat_map(missing).collect()
    }

    fn where_they_should_be(&self, missing: &BTreeSet<NodeId>) -> String {
        let paths: Vec<_> = missing.iter().filter_map(|node| self.missing.get(node)).collect();
        match &paths[..] {
            [] => String::new(),
            paths => {
                let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
                format!(
                    " (no node is in {}); see `trireme coordinator rebuild --without`",
                    paths.join(", ")
                )
            }
        }
    }

    async fn restore_records(
        &self,
        coordinator: &Coordinator,
        known: &Knowledge,
    ) -> anyhow::Result<()> {
        for node in known.members() {
            let record = self.records.get(&node).cloned();
            let record = record.unwrap_or_else(NodeInfo::with_unknown_folder);
            restore_record(coordinator, node, &record).await?;
        }
        Ok(())
    }

    /// Records that the data of nodes are given up. What such a node knows may be newer than what the
    /// cluster goes on with, and would replace it if it came back as if nothing had happened.
    async fn give_up(
        coordinator: &Coordinator,
        known: &Knowledge,
        without: &[NodeId],
    ) -> anyhow::Result<()> {
        let records = Membership::new(coordinator).list().await?;
        let is_done = |id: NodeId| records.iter().any(|it| it.id == id && it.info.is_given_up());
        let is_recorded = |id: NodeId| records.iter().any(|it| it.id == id);
        let members: BTreeSet<_> = known.members().collect();
        let nodes = without.iter().copied();
        // An unknown node leaves nothing to be mistaken for.
        for node in nodes.filter(|id| (members.contains(id) || is_recorded(*id)) && !is_done(*id)) {
            let known = records.iter().find(|it| it.id == node).map_or(0, |it| it.info.incarnation);
            let info = NodeInfo::given_up(next_incarnation(known));
            give_up(coordinator, node, &info).await?;
        }
        Ok(())
    }

    /// Returns what is to be known of the cohorts that keep too few replicas to serve.
    fn without_a_majority(&self, without: &[NodeId]) -> anyhow::Result<Vec<String>> {
        let warning = |config: &CohortConfig| {
            let (all, cohort) = (config.replicas.len(), config.cohort);
            let kept = config.replicas.iter().filter(|node| !without.contains(node)).count();
            let is_stuck = knows_more(config.protocol) != KnowsMore::All && kept <= all / 2;
            is_stuck.then(|| {
                let protocol = config.protocol;
                format!(
                    "cohort {cohort} ({protocol}) keeps {kept} of its {all} replicas, fewer than a \
                     majority: it serves only timeline reads until more of them are found"
                )
            })
        };
        Ok(self.known()?.configs.values().filter_map(warning).collect())
    }
}

fn names(nodes: impl IntoIterator<Item = NodeId>) -> String {
    nodes.into_iter().map(|node| node.to_string()).collect::<Vec<_>>().join(", ")
}
