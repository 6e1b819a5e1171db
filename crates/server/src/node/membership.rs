//! The node among the others: its own registration, and the news of theirs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use trireme_coordinator::recipes::catalog::CatalogState;
use trireme_coordinator::recipes::membership::{
    Member, Membership, MembershipWatch, NodeInfo, RegisterError,
};
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_proto::v1;
use trireme_types::{CohortConfig, CohortId, NodeId};

use super::NodeError;
use crate::data_folder::{DataFolder, NodeFile};
use crate::factory::takes_back_without_data;
use crate::routes::NodeDirectory;
use crate::transport::PeerTransport;

/// How long a starting node waits for the session of its predecessor to end.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait before a session is sought again.
const RENEW_PAUSE: Duration = Duration::from_secs(1);

fn info(file: &NodeFile) -> NodeInfo {
    NodeInfo {
        folder: format!("{:016x}", file.data_id),
        ..NodeInfo::new(file.reached_at().to_owned())
    }
}

/// Tells the coordinator that the node is there. One that was there with other data, which is lost
/// then, comes back only if it can do so as a newcomer: never as if it still had what it
/// acknowledged (S14).
pub(super) async fn register(
    coordinator: &Coordinator,
    catalog: &CatalogState,
    file: &mut NodeFile,
    folder: &DataFolder,
) -> Result<(), NodeError> {
    let endpoints = file.coordinator.join(",");
    let refused = |source| NodeError::Coordinator { endpoints: endpoints.clone(), source };
    let membership = Membership::new(coordinator);
    let info = info(file);
    let known = membership.list().await.map_err(refused)?;
    if let Some(member) = known.iter().find(|member| member.id == file.node)
        && member.info.folder != info.folder
    {
        let is_empty = !file.has_log && !folder.has_data()?;
        check_newcomer(file.node, is_empty, &catalog.configs, folder.path())?;
        tracing::warn!(
            node = %file.node,
            lost = member.info.folder,
            "the node's disk is lost; it comes back with nothing, as a newcomer"
        );
        // Durable before the coordinator knows the node by this folder: after a crash between the
        // two, this happens again; in the other order, nobody would know that data was lost.
        file.rejoins = true;
        folder.write(file)?;
    }
    match membership.register_within(file.node, &info, PREDECESSOR_TIMEOUT).await {
        Ok(()) => Ok(()),
        Err(RegisterError::Coordinator(source)) => Err(refused(source)),
        Err(alive) => Err(NodeError::AlreadyAlive(alive)),
    }
}

/// Checks that a node whose data is not what it is known with can come as a newcomer: with an empty
/// folder, and only if every cohort that counts on the node can take back a replica without data.
fn check_newcomer(
    node: NodeId,
    is_empty: bool,
    configs: &BTreeMap<CohortId, CohortConfig>,
    path: &Path,
) -> Result<(), NodeError> {
    if !is_empty {
        return Err(NodeError::OtherData { node, path: path.to_owned() });
    }
    let mut here = configs.values().filter(|config| config.replicas.contains(&node));
    match here.find(|config| !takes_back_without_data(config.protocol)) {
        None => Ok(()),
        Some(&CohortConfig { cohort, protocol, .. }) => {
            Err(NodeError::LostDisk { node, path: path.to_owned(), cohort, protocol })
        }
    }
}

/// Begins a new session whenever the old one has expired, as after a long pause of the process.
pub(super) async fn keep_registered(coordinator: Coordinator, file: NodeFile) {
    let membership = Membership::new(&coordinator);
    loop {
        coordinator.session_expired().await;
        tracing::warn!("the session at the coordinator has expired");
        let renewed = async {
            coordinator.renew().await?;
            Ok::<_, CoordinatorError>(())
        };
        if let Err(error) = renewed.await {
            tracing::warn!(%error, "no new session yet");
            tokio::time::sleep(RENEW_PAUSE).await;
            continue;
        }
        match membership.register_within(file.node, &info(&file), PREDECESSOR_TIMEOUT).await {
            Ok(()) => tracing::info!("registered again"),
            Err(error) => tracing::error!(%error, "the node could not be registered again"),
        }
    }
}

/// Keeps the addresses of the nodes up to date.
pub(super) struct News {
    members: MembershipWatch,
    directory: Arc<NodeDirectory>,
    transport: Arc<PeerTransport>,
}

impl News {
    pub(super) fn new(
        coordinator: &Coordinator,
        directory: Arc<NodeDirectory>,
        transport: Arc<PeerTransport>,
    ) -> Result<Self, CoordinatorError> {
        let members = Membership::new(coordinator).watch()?;
        Ok(Self { members, directory, transport })
    }

    pub(super) async fn first(&mut self) -> Result<(), CoordinatorError> {
        match self.members.next().await {
            Some(members) => self.take(&members?),
            None => tracing::warn!("the coordinator told of no nodes"),
        }
        Ok(())
    }

    pub(super) async fn run(mut self) {
        while let Some(members) = self.members.next().await {
            match members {
                Ok(members) => self.take(&members),
                Err(error) => tracing::error!(%error, "the nodes' records cannot be read"),
            }
        }
    }

    fn take(&self, members: &[Member]) {
        self.directory.set(members.iter().map(|member| v1::Node {
            id: member.id.0,
            address: member.info.address.clone(),
            alive: member.is_alive(),
        }));
        let addresses = members.iter().map(|member| (member.id, member.info.address.clone()));
        self.transport.set_addresses(addresses.collect());
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use trireme_types::{ClusterId, Durability, Engine, Protocol, RangeMap};

    use super::*;
    use crate::testing::EmbeddedCoordinator;

    const ME: NodeId = NodeId(2);

    fn configs(protocols: &[(Protocol, &[u64])]) -> BTreeMap<CohortId, CohortConfig> {
        let config = |(cohort, &(protocol, replicas)): (u64, &(Protocol, &[u64]))| CohortConfig {
            cohort: CohortId(cohort),
            version: 1,
            protocol,
            replicas: replicas.iter().copied().map(NodeId).collect(),
            replicas_wanted: replicas.len(),
            incarnations: [].into(),
        };
        (1..).zip(protocols).map(config).map(|config| (config.cohort, config)).collect()
    }

    fn check(is_empty: bool, protocols: &[(Protocol, &[u64])]) -> Result<(), String> {
        let checked = check_newcomer(ME, is_empty, &configs(protocols), Path::new("data"));
        checked.map_err(|error| error.to_string())
    }

    #[test]
    fn a_newcomer_is_let_in_if_its_folder_is_empty() {
        use Protocol::{Pacifica, Raft, Spinnaker};
        let all: &[u64] = &[1, 2, 3];
        assert_eq!(check(true, &[(Spinnaker, all), (Pacifica, all), (Raft, all)]), Ok(()));
        let other = check(false, &[(Spinnaker, all)]).unwrap_err();
        assert!(other.starts_with("node n2 is known with other data"), "{other}");
    }

    fn file(coordinator: &EmbeddedCoordinator) -> NodeFile {
        let (engine, durability) = (Engine::Lsm, Durability::Fsync);
        let (listen, endpoints) = ("127.0.0.1:7102".to_owned(), vec![coordinator.endpoint()]);
        NodeFile::new(ClusterId(7), ME, engine, durability, listen, endpoints)
    }

    /// What a crash leaves between the two steps of coming back, and after them, is a node that
    /// knows that it has lost its disk.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_lost_its_disk_knows_it_from_before_it_is_registered() {
        let embedded = EmbeddedCoordinator::start().await;
        let catalog = CatalogState {
            revision: 1,
            cluster: ClusterId(7),
            map: RangeMap::from_splits(&[]).unwrap(),
            map_revision: 1,
            configs: configs(&[(Protocol::Pacifica, &[1, 2, 3])]),
        };
        let register = async |dir: &TempDir, file: NodeFile| {
            let coordinator = embedded.connect().await;
            let folder = DataFolder::open(dir.path()).unwrap();
            let mut file = folder.read().unwrap().unwrap_or(file);
            folder.write(&file).unwrap();
            let registered = register(&coordinator, &catalog, &mut file, &folder).await;
            coordinator.close().await.unwrap();
            registered.map(|()| folder.read().unwrap().unwrap())
        };
        let (lost, found) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let first = register(&lost, file(&embedded)).await.unwrap();
        assert!(!first.rejoins, "it was never known with anything else");
        assert!(!register(&lost, first.clone()).await.unwrap().rejoins);

        // The process has died after the folder was written, and before the registration.
        let mut half = file(&embedded);
        half.rejoins = true;
        let second = register(&found, half.clone()).await.unwrap();
        assert_eq!(second, half);
        let again = register(&found, half).await.unwrap();
        assert!(again.rejoins, "it stays so from one start to the next");
        let wiped = TempDir::new().unwrap();
        assert!(register(&wiped, file(&embedded)).await.unwrap().rejoins, "it was lost again");

        // The disk that was lost is found again, and holds what is too old by now.
        std::fs::create_dir(lost.path().join("log")).unwrap();
        std::fs::write(lost.path().join("log").join("00000000000000000001.log"), "").unwrap();
        let other = register(&lost, first).await.unwrap_err();
        assert!(matches!(other, NodeError::OtherData { .. }), "{other}");
    }
}
