//! The node among the others: its own registration, and the updates of theirs.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use trireme_coordinator::recipes::membership::{
    Member, Membership, MembershipWatch, NodeInfo, RegisterError, next_incarnation,
};
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_proto::v1;
use trireme_types::NodeId;

use super::NodeError;
use crate::data_folder::{DataFolder, DataFolderError, NodeFile};
use crate::routes::NodeDirectory;
use crate::transport::PeerTransport;

/// How long a starting node waits for the session of its predecessor to end.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait before a session is sought again.
const RENEW_PAUSE: Duration = Duration::from_secs(1);

/// Returns what the coordinator is to know of the node.
pub(super) fn info(file: &NodeFile, folder: &DataFolder) -> Result<NodeInfo, NodeError> {
    Ok(NodeInfo { place: folder.place()?, ..file.record() })
}

/// Registers the node at the coordinator. One that was there with other data, or was started
/// more often than its folder knows, has lost what it acknowledged since: it comes back as a newcomer,
/// whose folder must be empty, and never as if it still had that (S14). One whose place another process
/// holds does not come.
pub(super) async fn register(
    coordinator: &Coordinator,
    file: &mut NodeFile,
    folder: &DataFolder,
) -> Result<(), NodeError> {
    let endpoints = file.coordinator.join(",");
    let refused = |source| NodeError::Coordinator { endpoints: endpoints.clone(), source };
    let not_registered = |error| match error {
        RegisterError::Coordinator(source) => refused(source),
        taken => NodeError::AlreadyAlive(taken),
    };
    finish_setting_aside(file, folder)?;
    let membership = Membership::new(coordinator);
    let now = info(file, folder)?;
    let free = membership.wait_until_free(file.node, &now, PREDECESSOR_TIMEOUT).await;
    free.map_err(not_registered)?;
    let known = membership.list().await.map_err(refused)?;
    let member = known.iter().find(|member| member.id == file.node).map(|member| &member.info);
    if let Some(member) = member {
        let has_data = file.has_log || folder.has_data()?;
        let is_known =
            member.folder == file.record().folder || (member.has_unknown_folder() && has_data);
        if !is_known && member.incarnation < file.incarnation {
            tracing::warn!("the coordinator is older than this folder, which has replaced another");
        } else if !is_known {
            if has_data {
                let (node, path) = (file.node, folder.path().to_owned());
                return Err(NodeError::OtherData { node, path });
            }
            tracing::warn!(
                node = %file.node,
                lost = member.folder,
                "the node's disk is lost; it comes back with nothing, as a newcomer"
            );
            // Durable before the coordinator knows the node by this folder: after a crash between
            // the two, this happens again; in the other order, it would be forgotten that data was lost.
            (file.rejoins, file.incarnation) = (true, next_incarnation(member.incarnation));
            folder.write(file)?;
        } else if member.starts > file.starts {
            come_back_from_an_older_copy(file, folder, member)?;
        }
    }
    count_start(file, folder)?;
    let now = info(file, folder)?;
    let registered = membership.register_within(file.node, &now, PREDECESSOR_TIMEOUT).await;
    registered.map_err(not_registered)
}

/// Counts this start, on the disk, before any other node learns of it. On a disk that is full the node starts
/// all the same: what the count is for is noticed by the one who comes later.
fn count_start(file: &mut NodeFile, folder: &DataFolder) -> Result<(), NodeError> {
    file.starts = file.starts.saturating_add(1);
    match folder.write(file) {
        Err(DataFolderError::Io { source, .. }) if source.kind() == ErrorKind::StorageFull => {
            file.starts -= 1;
            tracing::warn!("the disk is full: this start is not counted");
            Ok(())
        }
        done => Ok(done?),
    }
}

/// Has a node whose folder is an older copy come back as one that has lost its data: what the folder
/// holds is older than what the node has acknowledged. It is set aside, and not deleted.
fn come_back_from_an_older_copy(
    file: &mut NodeFile,
    folder: &DataFolder,
    member: &NodeInfo,
) -> Result<(), NodeError> {
    tracing::error!(
        node = %file.node,
        folder_starts = file.starts,
        known_starts = member.starts,
        "the folder is an older copy of this node's: what it holds is set aside, and the node comes \
         back with nothing, as a newcomer"
    );
    (file.starts, file.data_id) = (member.starts, rand::random());
    file.incarnation = next_incarnation(member.incarnation);
    (file.rejoins, file.has_log, file.sets_aside) = (true, false, true);
    folder.write(file)?;
    finish_setting_aside(file, folder)
}

/// Sets aside what is to be: the folder remembers it, so that a crash changes nothing.
fn finish_setting_aside(file: &mut NodeFile, folder: &DataFolder) -> Result<(), NodeError> {
    if file.sets_aside {
        let path = folder.set_data_aside()?;
        tracing::warn!(path = %path.display(), "what the folder held is set aside");
        file.sets_aside = false;
        folder.write(file)?;
    }
    Ok(())
}

/// Begins a new session whenever the old one has expired, as after a long pause of the process. If
/// another process has taken the node's place meanwhile, this one calls `fail`: two must not act as
/// one node.
pub(super) async fn keep_registered(
    coordinator: Coordinator,
    (node, info): (NodeId, NodeInfo),
    fail: Arc<dyn Fn(String) + Send + Sync>,
) {
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
        if let Err(taken) = come_back(&membership, &coordinator, node, &info).await {
            return fail(taken.to_string());
        }
    }
}

/// Registers the node again as long as its session lives. Fails if another process has taken its place.
async fn come_back(
    membership: &Membership,
    coordinator: &Coordinator,
    node: NodeId,
    info: &NodeInfo,
) -> Result<(), RegisterError> {
    while coordinator.session_is_live() {
        match membership.register_again(node, info).await {
            Ok(()) => {
                tracing::info!("registered again");
                break;
            }
            // `Outlived`: the coordinator was put back to a state with a process that this one has
            // replaced. That session ends by itself.
            Err(error @ (RegisterError::Coordinator(_) | RegisterError::Outlived { .. })) => {
                tracing::warn!(%error, "the node could not be registered again yet");
                tokio::time::sleep(RENEW_PAUSE).await;
            }
            Err(taken) => return Err(taken),
        }
    }
    Ok(())
}

/// Keeps the addresses of the nodes up to date.
pub(super) struct DirectoryUpdates {
    members: MembershipWatch,
    directory: Arc<NodeDirectory>,
    transport: Arc<PeerTransport>,
}

impl DirectoryUpdates {
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
            None => tracing::warn!("the coordinator sent no nodes"),
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
            draining: member.is_draining,
        }));
        let addresses = members.iter().map(|member| (member.id, member.info.address.clone()));
        self.transport.set_addresses(addresses.collect());
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use trireme_coordinator::recipes::knowledge;
    use trireme_types::{ClusterId, Durability, Engine};

    use super::*;
    use crate::testing::EmbeddedCoordinator;

    const ME: NodeId = NodeId(2);

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
        let register = async |dir: &TempDir, file: NodeFile| {
            let coordinator = embedded.connect().await;
            let folder = DataFolder::open(dir.path()).unwrap();
            let mut file = folder.read().unwrap().unwrap_or(file);
            folder.write(&file).unwrap();
            let registered = register(&coordinator, &mut file, &folder).await;
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
        assert!(second.incarnation > first.incarnation);
        let incarnation = second.incarnation;
        assert_eq!(second, NodeFile { starts: 1, incarnation, ..half.clone() });
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

    /// The coordinator is put back to a state in which the node's predecessor was registered, whose folder
    /// this one has replaced. The node waits until that session is gone; it does not stop, as it does if
    /// another process holds its place.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_predecessor_that_a_coordinator_put_back_brings_along_is_outlived() {
        let embedded = EmbeddedCoordinator::start().await;
        let (earlier, own) = (embedded.connect().await, embedded.connect().await);
        let record = file(&embedded).record();
        let place = |place: &str| NodeInfo { place: place.to_owned(), ..record.clone() };
        let predecessor = NodeInfo { starts: 4, incarnation: 0, ..place("1:1") };
        let wiped = NodeInfo { starts: 1, incarnation: 1, folder: "b".to_owned(), ..place("1:2") };
        let moved = NodeInfo { starts: 5, ..place("2:1") };
        Membership::new(&earlier).register(ME, &predecessor).await.unwrap();
        let membership = Membership::new(&own);
        for later in [&wiped, &moved] {
            let refused = membership.register_again(ME, later).await.unwrap_err();
            assert!(matches!(refused, RegisterError::Outlived { .. }), "{refused}");
        }
        // One that is as new is no predecessor: two processes must not act as one node.
        let copy = NodeInfo { starts: 4, ..place("2:1") };
        let refused = membership.register_again(ME, &copy).await.unwrap_err();
        assert!(matches!(refused, RegisterError::AlreadyAlive { .. }), "{refused}");

        let back = tokio::spawn(async move {
            let back = come_back(&membership, &own, ME, &wiped).await;
            (back, membership.list().await, own.session_id())
        });
        earlier.close().await.unwrap();
        let (back, members, session) = back.await.unwrap();
        back.unwrap();
        let members = members.unwrap();
        let found = members.iter().map(|member| (member.session, member.info.folder.as_str()));
        assert_eq!(found.collect::<Vec<_>>(), [(Some(session), "b")]);
    }

    /// A node loses its disk twice, and the coordinator is put back in between: both newcomers follow the
    /// same record. The later one was given the incarnation of the one before it, and ended when the
    /// coordinator was put back to a state in which that one was registered.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_newcomer_is_newer_than_one_that_the_coordinator_has_forgotten() {
        let embedded = EmbeddedCoordinator::start().await;
        let start = async || {
            let dir = TempDir::new().unwrap();
            let coordinator = embedded.connect().await;
            let folder = DataFolder::open(dir.path()).unwrap();
            let mut file = file(&embedded);
            register(&coordinator, &mut file, &folder).await.unwrap();
            coordinator.close().await.unwrap();
            file
        };
        let put_back = async |record: &NodeInfo| {
            let coordinator = embedded.connect().await;
            coordinator.delete("/nodes/2", None).await.unwrap();
            knowledge::restore_record(&coordinator, ME, record).await.unwrap();
            coordinator.close().await.unwrap();
        };
        let first = start().await;
        let second = start().await;
        put_back(&first.record()).await;
        // Two losses of a disk are further apart than the clock is fine.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let third = start().await;
        put_back(&second.record()).await;

        let coordinator = embedded.connect().await;
        let membership = Membership::new(&coordinator);
        come_back(&membership, &coordinator, ME, &third.record()).await.unwrap();
        let members = membership.list().await.unwrap();
        let folders: Vec<_> = members.into_iter().map(|member| member.info.folder).collect();
        assert_eq!(folders, [third.record().folder]);
        coordinator.close().await.unwrap();
    }

    /// A folder counts the starts of its node. One that counts fewer than the coordinator knows of is an
    /// older copy, and is emptied; what it held is kept. A coordinator that knows of fewer was put back.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_folder_that_counts_fewer_starts_than_are_known_is_set_aside() {
        let embedded = EmbeddedCoordinator::start().await;
        let dir = TempDir::new().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        let start = async || {
            let coordinator = embedded.connect().await;
            let mut file = folder.read().unwrap().unwrap_or_else(|| file(&embedded));
            let registered = register(&coordinator, &mut file, &folder).await;
            coordinator.close().await.unwrap();
            registered.map(|()| folder.read().unwrap().unwrap())
        };
        let first = start().await.unwrap();
        std::fs::create_dir(folder.log()).unwrap();
        std::fs::write(folder.log().join("00000000000000000001.log"), "old").unwrap();
        let old = NodeFile { has_log: true, ..first };
        folder.write(&old).unwrap();
        assert_eq!(start().await.unwrap(), NodeFile { starts: 2, ..old.clone() });

        folder.write(&old).unwrap();
        let emptied = start().await.unwrap();
        assert!(emptied.rejoins && !emptied.has_log && !folder.log().exists(), "{emptied:?}");
        assert_eq!(emptied.starts, 3);
        assert!(emptied.incarnation > old.incarnation);
        assert_ne!(emptied.data_id, old.data_id);
        let kept = std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path());
        let kept: Vec<_> = kept.filter(|path| path.join("log").is_dir()).collect();
        assert_eq!(kept.len(), 1, "{kept:?}");

        // The coordinator is put back to what it knew when the node had its first folder.
        let coordinator = embedded.connect().await;
        let record = Membership::new(&coordinator).list().await.unwrap().remove(0);
        let earlier = NodeInfo { starts: 1, incarnation: 0, ..old.record() };
        coordinator.delete("/nodes/2", None).await.unwrap();
        knowledge::restore_record(&coordinator, record.id, &earlier).await.unwrap();
        coordinator.close().await.unwrap();
        let later = start().await.unwrap();
        assert_eq!(later, NodeFile { starts: 4, ..emptied });
    }

    /// On a disk that is full a node starts all the same, as the one that it was: the start is not
    /// counted, here as little as at the coordinator. No other error is borne.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_start_that_a_full_disk_cannot_count_is_a_start() {
        let embedded = EmbeddedCoordinator::start().await;
        let dir = TempDir::new().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        let start = async || {
            let coordinator = embedded.connect().await;
            let mut file = folder.read().unwrap().unwrap_or_else(|| file(&embedded));
            let registered = register(&coordinator, &mut file, &folder).await;
            let known = Membership::new(&coordinator).list().await.unwrap();
            coordinator.close().await.unwrap();
            let known = known.first().map(|member| member.info.starts);
            registered.map(|()| (file, known, folder.read().unwrap()))
        };
        let (first, known, _) = start().await.unwrap();
        assert_eq!((first.starts, known), (1, Some(1)));
        // What is written to this device finds no room, and so does the next description.
        let next = dir.path().join("node.json.new");
        std::os::unix::fs::symlink("/dev/full", &next).unwrap();
        for _ in 0..2 {
            let found = start().await.unwrap();
            assert_eq!(found, (first.clone(), Some(1), Some(first.clone())));
        }
        std::fs::remove_file(&next).unwrap();
        std::fs::create_dir(&next).unwrap();
        let failed = start().await.unwrap_err();
        assert!(matches!(failed, NodeError::Folder(DataFolderError::Io { .. })), "{failed}");
        std::fs::remove_dir(&next).unwrap();
        let (second, known, kept) = start().await.unwrap();
        assert_eq!(second, NodeFile { starts: 2, ..first });
        assert_eq!((known, kept), (Some(2), Some(second)), "there is room again");
    }
}
