//! The node among the others: its own registration, and the news of theirs.

use std::sync::Arc;
use std::time::Duration;

use trireme_coordinator::recipes::membership::{
    Member, Membership, MembershipWatch, NodeInfo, RegisterError,
};
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_proto::v1;

use super::NodeError;
use crate::data_folder::{DataFolder, NodeFile};
use crate::routes::NodeDirectory;
use crate::transport::PeerTransport;

/// How long a starting node waits for the session of its predecessor to end.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait before a session is sought again.
const RENEW_PAUSE: Duration = Duration::from_secs(1);

fn info(file: &NodeFile) -> NodeInfo {
    NodeInfo { folder: format!("{:016x}", file.data_id), ..NodeInfo::new(file.listen.clone()) }
}

/// Tells the coordinator that the node is there, unless it was there with other data: a node that
/// lost its disk must not come back as if it still had what it acknowledged (S14).
pub(super) async fn register(
    coordinator: &Coordinator,
    file: &NodeFile,
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
        return Err(NodeError::OtherData { node: file.node, path: folder.path().to_owned() });
    }
    match membership.register_within(file.node, &info, PREDECESSOR_TIMEOUT).await {
        Ok(()) => Ok(()),
        Err(RegisterError::Coordinator(source)) => Err(refused(source)),
        Err(alive) => Err(NodeError::AlreadyAlive(alive)),
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
