//! A node's hosting on a real log, real tables and a real coordinator. The replicas are of a
//! protocol whose configurations do not change in practice, which opening and closing does not
//! know.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use trireme_coordinator::recipes::catalog::{Catalog, ClusterSpec, CompareAndSet};
use trireme_coordinator::recipes::invitations::Invitation;
use trireme_coordinator::recipes::membership::NodeInfo;
use trireme_coordinator::recipes::succession::Decided;
use trireme_replication::Replica;
use trireme_replication::pulse::{PulseFaults, Pulses};
use trireme_storage::fs::{MemFs, RealFs};
use trireme_storage::{
    LogBounds, LogIdentity, LogOptions, LogWrite, SharedLog, TableOptions, Tables,
};
use trireme_types::{
    ClusterId, CohortConfig, Command, CommandBatch, Condition, KeyRange, Lsn, Merge, NodeId,
    Operation, Protocol, RangeMap, Seal, Successor, Timing,
};

use super::*;
use crate::backpressure::Backpressure;
use crate::continuity::{Continuity, Remembered};
use crate::data_folder::DataFolder;
use crate::memory::NodeMemory;
use crate::protocols::SharedCoordinator;
use crate::routes::NodeDirectory;
use crate::testing::EmbeddedCoordinator;
use crate::transport::{PeerTransport, TransportOptions};

const ME: NodeId = NodeId(1);
const ONE: CohortId = CohortId(1);
const TWO: CohortId = CohortId(2);

/// How long what must come may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn config(cohort: CohortId, version: u64, replicas: &[u64], wanted: usize) -> CohortConfig {
    CohortConfig {
        cohort,
        version,
        protocol: Protocol::Raft,
        replicas: replicas.iter().copied().map(NodeId).collect(),
        replicas_wanted: wanted,
        incarnations: [].into(),
        origin: None,
    }
}

/// One node that hosts two cohorts, each with a row.
struct Fixture {
    coordinator: Coordinator,
    log: SharedLog,
    tables: Tables,
    router: Arc<Router>,
    running: JoinHandle<()>,
    stop: CancellationToken,
    discard_after: Duration,
    data: DataFolder,
    _server: EmbeddedCoordinator,
    folder: TempDir,
}

impl Fixture {
    /// Starts one that deletes at once what it does not need any more.
    async fn start() -> Self {
        Self::start_with(Duration::ZERO).await
    }

    async fn start_with(discard_after: Duration) -> Self {
        let folder = TempDir::new().unwrap();
        let data = DataFolder::open(folder.path()).unwrap();
        let server = EmbeddedCoordinator::start().await;
        let coordinator = server.connect().await;
        let map = RangeMap::from_splits(&[Bytes::from("m")]).unwrap();
        let configs = [ONE, TWO].map(|cohort| config(cohort, 1, &[1], 1)).to_vec();
        let spec = ClusterSpec { cluster: ClusterId(7), map, configs };
        Catalog::bootstrap(&coordinator, spec).await.unwrap();
        let identity = LogIdentity { cluster: ClusterId(7), node: ME };
        let (log, tables) = (folder.path().join("log"), folder.path().join("tables"));
        let log = SharedLog::open(Arc::new(RealFs), &log, identity, LogOptions::default()).unwrap();
        let tables = Tables::open(&tables, TableOptions::default()).unwrap();
        let (router, running, stop) = host(&coordinator, &data, discard_after, &log, &tables).await;
        let _server = server;
        let fixture = Self {
            coordinator,
            log,
            tables,
            router,
            running,
            stop,
            discard_after,
            data,
            _server,
            folder,
        };
        for (cohort, key) in [(ONE, "a"), (TWO, "z")] {
            fixture.put(cohort, key).await;
        }
        fixture
    }

    /// Closes all replicas, has something done meanwhile, and hosts anew.
    async fn restart(&mut self, meanwhile: impl AsyncFnOnce(&Self)) {
        self.close().await;
        meanwhile(self).await;
        (self.router, self.running, self.stop) =
            host(&self.coordinator, &self.data, self.discard_after, &self.log, &self.tables).await;
    }

    /// Has the node die, has something done once its tables are as they were on the disk, and hosts anew.
    async fn crash(&mut self, meanwhile: impl AsyncFnOnce(&Self)) {
        self.close().await;
        let left = self.folder.path().join("left");
        copy_folder(&self.folder.path().join("tables"), &left);
        self.tables = Tables::open(&left, TableOptions::default()).unwrap();
        meanwhile(self).await;
        (self.router, self.running, self.stop) =
            host(&self.coordinator, &self.data, self.discard_after, &self.log, &self.tables).await;
    }

    async fn close(&mut self) {
        self.stop.cancel();
        (&mut self.running).await.unwrap();
        for hosted in self.router.routes().hosted.values() {
            hosted.replica.shutdown().await;
        }
    }

    fn hosted(&self, cohort: CohortId) -> Option<Arc<dyn Replica>> {
        self.router.routes().hosted.get(&cohort).map(|hosted| hosted.replica.clone())
    }

    async fn put(&self, cohort: CohortId, key: &'static str) {
        let (key, value) = (Bytes::from(key), Bytes::from("1"));
        let operation = Operation::Put { key, value, condition: Condition::None };
        let batch = CommandBatch { commands: vec![Command { request: None, operation }], clock: 0 };
        let replica = self.hosted(cohort).unwrap();
        self.until("a write", async || replica.propose(batch.clone()).await.is_ok()).await;
    }

    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so().await {
            assert!(Instant::now() < deadline, "{what} has not come within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Has the coordinator know a configuration.
    async fn propose(&self, config: CohortConfig) {
        let catalog = Catalog::new(&self.coordinator);
        let installed = catalog.compare_and_set_cohort(config.clone()).await;
        assert_eq!(installed, Ok(CompareAndSet::Installed(config)));
    }

    /// Has the coordinator and the node know a configuration.
    async fn install(&self, config: CohortConfig) {
        self.propose(config.clone()).await;
        self.until("the newest configuration", async || {
            self.router.routes().configs[&config.cohort] == config
        })
        .await;
    }

    /// Has the coordinator know an invitation of the node.
    async fn propose_invitation(&self, cohort: CohortId) {
        let invitation = Invitation { node: ME, at: 1, leaving: None };
        let invitations = Invitations::new(&self.coordinator);
        assert_eq!(invitations.invite(cohort, None, invitation).await, Ok(true));
    }

    async fn invite(&self, cohort: CohortId) {
        self.propose_invitation(cohort).await;
        self.until("the invited replica", async || self.hosted(cohort).is_some()).await;
    }

    async fn withdraw(&self, cohort: CohortId) {
        let invitations = Invitations::new(&self.coordinator);
        let standing = invitations.all().await.unwrap()[&cohort];
        assert_eq!(invitations.withdraw(cohort, standing).await, Ok(true));
    }

    /// Waits until nothing of a cohort is on the node, and it can pin no segment.
    async fn until_gone(&self, cohort: CohortId) {
        self.until("the end of a replica", async || {
            self.hosted(cohort).is_none()
                && !self.log.cohorts().contains(&cohort)
                && !self.tables.cohorts().contains(&cohort)
        })
        .await;
    }

    /// Waits until the node knows that it is invited and hosts a replica that has nothing. Before
    /// it knows, it may close the replica, since what is to come back must have something.
    async fn until_anew(&self, cohort: CohortId) {
        self.until("a replica that begins anew", async || {
            let routes = self.router.routes();
            let has_nothing = |hosted: &Arc<HostedCohort>| {
                hosted.table.applied() == Lsn::ZERO
                    && self.log.cohort(cohort).bounds() == LogBounds::default()
            };
            routes.invitations.contains_key(&cohort)
                && routes.hosted.get(&cohort).is_some_and(has_nothing)
        })
        .await;
    }

    /// Ends a cohort of Raft and returns those that go on with its range, cut at the border.
    async fn split(&self, cohort: CohortId, borders: [Option<&'static str>; 3]) -> Vec<CohortId> {
        let half = |pair: &[Option<&'static str>]| Successor {
            range: KeyRange::new(pair[0].unwrap(), pair[1]),
            protocol: Protocol::Raft,
            replicas: vec![ME],
            replicas_wanted: 1,
        };
        let seal = Seal::new(borders.windows(2).map(half).collect());
        let replica = self.hosted(cohort).unwrap();
        self.until("the seal", async || replica.seal(&seal).await.is_ok()).await;
        let (at, _) = self.router.routes().hosted[&cohort].table.seal().unwrap();
        let catalog = Catalog::new(&self.coordinator);
        let ids = catalog.succeed(&Decided::alone(cohort, at, &seal)).await.unwrap();
        let ids: Vec<_> = ids.into_iter().map(|config| config.cohort).collect();
        let are_here = async || ids.iter().all(|&id| self.hosted(id).is_some());
        self.until("the halves", are_here).await;
        ids
    }

    /// Ends two cohorts of Raft and returns the one that goes on from both.
    async fn merge(&self, ended: [CohortId; 2], range: KeyRange) -> CohortId {
        let successor = |range| Successor {
            range,
            protocol: Protocol::Raft,
            replicas: vec![ME],
            replicas_wanted: 1,
        };
        let both = successor(range);
        let mut seals = Vec::new();
        for (cohort, with) in [(ended[0], ended[1]), (ended[1], ended[0])] {
            let hosted = self.router.routes().hosted[&cohort].clone();
            let merge = Merge { with, successor: both.clone() };
            let alone = successor(hosted.descriptor.range.clone());
            let seal = Seal { successors: vec![alone], merge: Some(merge.into()) };
            self.until("the seal", async || hosted.replica.seal(&seal).await.is_ok()).await;
            seals.push((cohort, hosted.table.seal().unwrap().0));
        }
        let decided = Decided::merged([seals[0], seals[1]], both);
        let next = Catalog::new(&self.coordinator).succeed(&decided).await.unwrap()[0].cohort;
        self.until("the one", async || self.hosted(next).is_some()).await;
        next
    }

    fn has(&self, cohort: CohortId, key: &str) -> bool {
        let routes = self.router.routes();
        let hosted = routes.hosted.get(&cohort);
        hosted.is_some_and(|hosted| hosted.table.get(key.as_bytes()).unwrap().is_some())
    }

    fn applied(&self, cohort: CohortId) -> Lsn {
        self.router.routes().hosted[&cohort].table.applied()
    }

    async fn stop(mut self) {
        self.close().await;
        self.coordinator.close().await.unwrap();
    }
}

/// Hosts what the catalog places on the node.
async fn host(
    coordinator: &Coordinator,
    data: &DataFolder,
    discard_after: Duration,
    log: &SharedLog,
    tables: &Tables,
) -> (Arc<Router>, JoinHandle<()>, CancellationToken) {
    let peers = Peers::new(PathBuf::new(), Backpressure::new(u64::MAX));
    let (opener, catalog) = opener(coordinator, data, discard_after, (log, tables), &peers).await;
    let hosting = Hosting::start(opener, peers, catalog).await.unwrap();
    let (router, stop) = (hosting.router(), CancellationToken::new());
    let running = tokio::spawn(hosting.run(coordinator.clone(), stop.clone()));
    (router, running, stop)
}

/// Returns what opens replicas, and the catalog that they are opened by.
async fn opener(
    coordinator: &Coordinator,
    data: &DataFolder,
    discard_after: Duration,
    (log, tables): (&SharedLog, &Tables),
    peers: &Arc<Peers>,
) -> (Opener, CatalogState) {
    let catalog = Catalog::new(coordinator).load().await.unwrap().unwrap();
    let remembered = Remembered::start(data, ME, coordinator, catalog).await.unwrap();
    let catalog = remembered.catalog.clone();
    let directory = Arc::<NodeDirectory>::default();
    let (nodes, record) = (directory.clone(), NodeInfo::new("127.0.0.1:1"));
    let continuity =
        Continuity::new(ME, coordinator.clone(), remembered, log.clone(), nodes, record);
    let options = TransportOptions::new(ClusterId(7), ME);
    let (end, ended) = watch::channel(());
    tables.on_seal(Box::new(move |_| {
        end.send_replace(());
    }));
    let transport = PeerTransport::new(options, peers.clone(), Handle::current());
    let opener = Opener {
        node: ME,
        timing: Timing::default(),
        min_replicas_for_write: 1,
        mistakes: Default::default(),
        rejoins: false,
        log: log.clone(),
        tables: tables.clone(),
        pulses: Pulses::start(transport.clone(), Timing::default(), PulseFaults::default()),
        transport,
        directory,
        coordinator: SharedCoordinator::start(
            coordinator,
            continuity.clone(),
            CancellationToken::new(),
        )
        .unwrap(),
        continuity,
        discard_after,
        backpressure: Backpressure::new(u64::MAX),
        ended,
        fail: Arc::new(|reason| panic!("{reason}")),
        readers: crate::readers::Readers::start().unwrap(),
        consensus: Handle::current(),
        applying: Default::default(),
    };
    (opener, catalog)
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy_folder(&path, &copy),
            false => drop(std::fs::copy(path, copy).unwrap()),
        }
    }
}

fn is_same(one: &Arc<dyn Replica>, other: Option<&Arc<dyn Replica>>) -> bool {
    other.is_some_and(|other| Arc::ptr_eq(one, other))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_place_is_taken_goes_with_its_log_and_rows_and_the_others_stay() {
    let fixture = Fixture::start().await;
    let two = fixture.hosted(TWO).unwrap();
    fixture.install(config(ONE, 2, &[2], 1)).await;
    fixture.until_gone(ONE).await;
    assert!(is_same(&two, fixture.hosted(TWO).as_ref()), "the other cohort was touched");
    let table = fixture.router.table();
    assert_eq!(table.ranges[0].replicas, [2], "clients are told the newest configuration");

    // It is not missed, so that nobody's invitation counts.
    fixture.install(config(ONE, 3, &[2, 3], 2)).await;
    let invitation = Invitation { node: ME, at: 3, leaving: None };
    let invitations = Invitations::new(&fixture.coordinator);
    invitations.invite(ONE, None, invitation).await.unwrap();
    fixture.until("the news of it", async || !fixture.router.routes().invitations.is_empty()).await;
    assert!(fixture.hosted(ONE).is_none());
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invited_replica_is_opened_closed_when_uninvited_and_stays_once_it_has_joined() {
    let fixture = Fixture::start().await;
    fixture.install(config(ONE, 2, &[2], 1)).await;
    fixture.until_gone(ONE).await;
    fixture.install(config(ONE, 3, &[2], 2)).await;
    assert!(fixture.hosted(ONE).is_none(), "it was not asked");
    fixture.invite(ONE).await;
    fixture.withdraw(ONE).await;
    fixture.until_gone(ONE).await;

    fixture.invite(ONE).await;
    let invited = fixture.hosted(ONE).unwrap();
    fixture.install(config(ONE, 4, &[2, 1], 2)).await;
    fixture.withdraw(ONE).await;
    fixture.until("the news of it", async || fixture.router.routes().invitations.is_empty()).await;
    assert!(is_same(&invited, fixture.hosted(ONE).as_ref()), "it was opened anew");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_replica_that_has_data_stays_until_its_place_is_taken() {
    let fixture = Fixture::start().await;
    let removed = fixture.hosted(ONE).unwrap();
    fixture.install(config(ONE, 2, &[2], 2)).await;
    assert!(is_same(&removed, fixture.hosted(ONE).as_ref()));
    fixture.install(config(ONE, 3, &[2, 1], 2)).await;
    assert!(is_same(&removed, fixture.hosted(ONE).as_ref()));
    fixture.install(config(ONE, 4, &[2, 3], 2)).await;
    fixture.until_gone(ONE).await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_to_go_goes_at_the_start_too_and_the_rest_comes_back_as_it_was() {
    let mut fixture = Fixture::start().await;
    let applied = fixture.applied(TWO);
    fixture.restart(async |fixture| fixture.propose(config(ONE, 2, &[2], 1)).await).await;
    fixture.until_gone(ONE).await;
    // It may have elected itself meanwhile, which is an entry.
    assert!(fixture.applied(TWO) >= applied);
    fixture.put(TWO, "y").await;
    fixture.stop().await;
}

/// A crash in the middle of discarding may leave rows without their log, or a log without its rows.
/// If the replica is asked for again by then, it begins anew: what is left must neither be built
/// upon nor keep the node from starting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_interrupted_discard_has_left_is_not_built_upon() {
    let mut fixture = Fixture::start().await;
    fixture
        .restart(async |fixture| {
            fixture.log.forget_cohort(ONE).unwrap();
            fixture.propose(config(ONE, 2, &[2], 2)).await;
            fixture.propose_invitation(ONE).await;
        })
        .await;
    fixture.until_anew(ONE).await;

    fixture.put(TWO, "y").await;
    fixture
        .restart(async |fixture| {
            let upto = fixture.log.cohort(TWO).bounds().last;
            fixture.log.cohort(TWO).submit(LogWrite::Purge { upto }).unwrap();
            fixture.tables.drop_cohort(TWO).unwrap();
            fixture.propose(config(TWO, 2, &[2], 2)).await;
            fixture.propose_invitation(TWO).await;
        })
        .await;
    fixture.until_anew(TWO).await;
    fixture.stop().await;
}

/// The catalog may be wrong: what a replica has held is kept for a while, without holding any of the
/// log, and is not built upon when the node is asked to hold a replica again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_to_be_here_any_more_is_set_aside_and_deleted_later() {
    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(300);
    let mut fixture = Fixture::start_with(LONG).await;
    let remembered = |fixture: &Fixture| NodeMemory::read(fixture.data.path()).unwrap().unwrap();
    fixture.install(config(ONE, 2, &[2], 1)).await;
    fixture
        .until("a replica that is set aside", async || {
            fixture.hosted(ONE).is_none() && !fixture.log.cohorts().contains(&ONE)
        })
        .await;
    let since = remembered(&fixture).set_aside[&ONE];
    assert!(fixture.tables.cohorts().contains(&ONE), "its rows are deleted");
    // It is no reason to hold a replica, and stays over a restart.
    fixture.restart(async |fixture| fixture.propose(config(ONE, 3, &[2], 2)).await).await;
    fixture
        .until("the newest configuration", async || {
            fixture.router.routes().configs[&ONE].version == 3
        })
        .await;
    assert!(fixture.hosted(ONE).is_none(), "no invitation has come");
    assert_eq!(remembered(&fixture).set_aside[&ONE], since);
    assert!(fixture.tables.cohorts().contains(&ONE));

    // Asked for again, it begins with nothing, as one that has lost what it acknowledged.
    fixture.invite(ONE).await;
    assert_eq!(fixture.applied(ONE), Lsn::ZERO);
    assert!(remembered(&fixture).set_aside.is_empty());
    assert!(remembered(&fixture).given_up.contains(&ONE));

    fixture.discard_after = SHORT;
    fixture.restart(async |_| {}).await;
    fixture.install(config(TWO, 2, &[2], 1)).await;
    fixture.until_gone(TWO).await;
    fixture
        .until("the end of what is set aside", async || {
            !remembered(&fixture).set_aside.contains_key(&TWO)
        })
        .await;
    fixture.stop().await;
}

/// A coordinator that was put back to what it knew earlier is brought forward, and closes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_catalog_is_brought_forward_before_anything_is_done_by_it() {
    let mut fixture = Fixture::start().await;
    fixture.install(config(ONE, 2, &[2, 1], 2)).await;
    fixture.install(config(TWO, 2, &[2], 1)).await;
    fixture.until_gone(TWO).await;
    fixture
        .restart(async |fixture| {
            // What etcd does when it is put back: the nodes of the changes are not there.
            for cohort in [ONE, TWO] {
                let path = format!("/catalog/cohorts/{}", cohort.0);
                fixture.coordinator.delete(&path, None).await.unwrap();
            }
        })
        .await;
    let catalog = Catalog::new(&fixture.coordinator).load().await.unwrap().unwrap();
    assert_eq!(catalog.configs[&ONE], config(ONE, 2, &[2, 1], 2));
    assert_eq!(catalog.configs[&TWO], config(TWO, 2, &[2], 1));
    assert!(fixture.hosted(ONE).is_some());
    assert!(fixture.hosted(TWO).is_none(), "it was given up under a version that is known");
    fixture.stop().await;
}

/// A log that came back without the rows that it purged would be of no use to a member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_dropped_only_when_their_log_is_gone_from_the_disk() {
    let folder = TempDir::new().unwrap();
    let server = EmbeddedCoordinator::start().await;
    let coordinator = server.connect().await;
    let map = RangeMap::from_splits(&[]).unwrap();
    let spec = ClusterSpec { cluster: ClusterId(7), map, configs: vec![config(ONE, 1, &[2], 1)] };
    Catalog::bootstrap(&coordinator, spec).await.unwrap();
    let data = DataFolder::open(folder.path()).unwrap();
    let identity = LogIdentity { cluster: ClusterId(7), node: ME };
    let (fs, path) = (Arc::new(MemFs::new()), folder.path());
    let log = SharedLog::open_stepped(fs, path, identity, LogOptions::default()).unwrap();
    let tables = Tables::open(&path.join("tables"), TableOptions::default()).unwrap();
    let _table = tables.cohort(ONE, KeyRange::all()).unwrap();
    let state = LogWrite::HardState(Bytes::from_static(b"vote"));
    log.cohort(ONE).submit(state).unwrap();
    while log.step() {}

    let peers = Peers::new(PathBuf::new(), Backpressure::new(u64::MAX));
    let (opener, _) = opener(&coordinator, &data, Duration::ZERO, (&log, &tables), &peers).await;
    let mut discarding = std::pin::pin!(opener.discard(ONE));
    let early = tokio::time::timeout(Duration::from_millis(100), discarding.as_mut()).await;
    assert!(early.is_err(), "it ends before the log has written anything");
    assert_eq!(tables.cohorts(), [ONE], "the rows are gone, and their log is not");
    while log.step() {}
    tokio::time::timeout(PATIENCE, discarding).await.unwrap().unwrap();
    assert_eq!((tables.cohorts(), log.cohorts()), (vec![], vec![]));
    coordinator.close().await.unwrap();
}

/// What each replica watches by itself costs the coordinator, and all nodes, the square of the cohorts
/// when all of them change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_has_one_watch_of_a_kind_whatever_the_number_of_its_cohorts() {
    const COHORTS: usize = 40;
    let (folder, server) = (TempDir::new().unwrap(), EmbeddedCoordinator::start().await);
    let coordinator = server.connect().await;
    let splits: Vec<_> = (1..COHORTS).map(|id| Bytes::from(format!("{id:03}"))).collect();
    let configs = (1..=COHORTS as u64).map(|id| {
        let protocol = if id % 2 == 0 { Protocol::Spinnaker } else { Protocol::Pacifica };
        CohortConfig { protocol, ..config(CohortId(id), 1, &[1], 1) }
    });
    let map = RangeMap::from_splits(&splits).unwrap();
    let spec = ClusterSpec { cluster: ClusterId(7), map, configs: configs.collect() };
    Catalog::bootstrap(&coordinator, spec).await.unwrap();
    let data = DataFolder::open(folder.path()).unwrap();
    let identity = LogIdentity { cluster: ClusterId(7), node: ME };
    let (log, tables) = (folder.path().join("log"), folder.path().join("tables"));
    let log = SharedLog::open(Arc::new(RealFs), &log, identity, LogOptions::default()).unwrap();
    let tables = Tables::open(&tables, TableOptions::default()).unwrap();
    let (router, running, stop) = host(&coordinator, &data, Duration::ZERO, &log, &tables).await;
    let deadline = Instant::now() + PATIENCE;
    let lead = || {
        let routes = router.routes();
        let led = routes.hosted.values().filter(|it| it.replica.leader() == Some(ME));
        led.count()
    };
    while lead() < COHORTS {
        assert!(Instant::now() < deadline, "only {} of {COHORTS} are led", lead());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The catalog, the invitations and the elections.
    assert_eq!(coordinator.counters().watches, 3);
    stop.cancel();
    running.await.unwrap();
    for hosted in router.routes().hosted.values() {
        hosted.replica.shutdown().await;
    }
    coordinator.close().await.unwrap();
}

/// Cohorts of each protocol end, and others go on, with a restart in between. [RANGE-6] [RANGE-10]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cohort_goes_on_where_another_one_ended() {
    let mut fixture = Fixture::start().await;
    let mut cohort = ONE;
    for (number, protocol) in
        (1..).zip([Protocol::Spinnaker, Protocol::Raft, Protocol::Pacifica, Protocol::Raft])
    {
        let before = fixture.router.routes().hosted[&cohort].table.get(b"a").unwrap().unwrap();
        let range = KeyRange::new("", Some("m"));
        let successor = Successor { range, protocol, replicas: vec![ME], replicas_wanted: 1 };
        let seal = Seal::new(vec![successor]);
        let replica = fixture.hosted(cohort).unwrap();
        fixture.until("the seal", async || replica.seal(&seal).await.is_ok()).await;
        let (at, found) = fixture.router.routes().hosted[&cohort].table.seal().unwrap();
        assert_eq!(*found, seal);
        let catalog = Catalog::new(&fixture.coordinator);
        let next = catalog.succeed(&Decided::alone(cohort, at, &seal)).await.unwrap()[0].cohort;
        assert_eq!(next, CohortId(2 + number));
        fixture.until("the successor", async || fixture.hosted(next).is_some()).await;
        assert!(fixture.hosted(cohort).is_some(), "it is not settled");
        fixture.put(next, "b").await;
        fixture.restart(async |_| {}).await;
        fixture.put(next, "a").await;
        let hosted = fixture.router.routes().hosted[&next].clone();
        let row = |key: &[u8]| hosted.table.get(key).unwrap().unwrap();
        assert_eq!(row(b"a").version.0, row(b"b").version.0 + 1, "every write is counted once");
        assert_eq!(row(b"b").version.0, before.version.0 + 1);
        assert_eq!(hosted.replica.status().protocol, protocol);
        drop(hosted);
        catalog.settle(next).await.unwrap();
        fixture.until_gone(cohort).await;
        cohort = next;
    }
    fixture.stop().await;
}

/// Two cohorts become one, with a crash before anything of that is on the disk but its log, and once more with
/// what was cut off meanwhile. [RANGE-8] [RANGE-10] [RANGE-20]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_cohorts_become_one() {
    let mut fixture = Fixture::start().await;
    let catalog = Catalog::new(&fixture.coordinator);
    let both = fixture.merge([ONE, TWO], KeyRange::all()).await;
    assert_eq!(both, CohortId(3));
    fixture.put(both, "b").await;
    fixture.put(both, "y").await;
    fixture.crash(async |it| assert!(!it.tables.has_begun(both), "it is on the disk")).await;
    let has = |fixture: &Fixture, cohort| {
        ["a", "b", "y", "z"]
            .map(|key| fixture.has(cohort, key))
            .into_iter()
            .filter(|it| *it)
            .count()
    };
    fixture.put(both, "c").await;
    assert_eq!(has(&fixture, both), 4);
    assert!(fixture.hosted(ONE).is_some() && fixture.hosted(TWO).is_some());
    catalog.settle(both).await.unwrap();
    fixture.until_gone(ONE).await;
    fixture.until_gone(TWO).await;
    fixture.restart(async |_| {}).await;
    assert_eq!(has(&fixture, both), 4);
    let parts = fixture.split(both, [Some(""), Some("b"), None]).await;
    fixture.put(parts[1], "x").await;
    for &part in &parts {
        catalog.settle(part).await.unwrap();
    }
    fixture.until_gone(both).await;
    let again = fixture.merge([parts[0], parts[1]], KeyRange::all()).await;
    fixture.put(again, "w").await;
    fixture.restart(async |_| {}).await;
    fixture.put(again, "w").await;
    assert_eq!(has(&fixture, again), 4);
    let version = |key: &str| {
        let routes = fixture.router.routes();
        routes.hosted[&again].table.get(key.as_bytes()).unwrap().unwrap().version.0
    };
    assert!(version("w") > version("x"), "no version comes twice");
    fixture.stop().await;
}

/// A range is cut in two and its lower half once more, with a restart after each step, also while the log
/// of what has ended is all that there is of the halves' rows. What is not over yet is opened on its whole
/// range, whatever has become of the halves. [RANGE-6] [RANGE-8] [RANGE-10]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_is_cut_in_two_and_a_half_again() {
    let mut fixture = Fixture::start().await;
    fixture.put(ONE, "k").await;
    let catalog = Catalog::new(&fixture.coordinator);
    let halves = fixture.split(ONE, [Some(""), Some("f"), Some("m")]).await;
    fixture.put(halves[0], "b").await;
    fixture.put(halves[1], "l").await;
    fixture.restart(async |_| {}).await;
    // One half is settled and ends; the other one is not, so that what ended first is kept.
    catalog.settle(halves[0]).await.unwrap();
    let quarters = fixture.split(halves[0], [Some(""), Some("b"), Some("f")]).await;
    fixture.put(quarters[1], "c").await;
    fixture.restart(async |_| {}).await;
    let range = |cohort| fixture.router.routes().hosted[&cohort].descriptor.range.clone();
    assert_eq!(range(ONE), KeyRange::new("", Some("m")));
    assert_eq!(range(halves[0]), KeyRange::new("", Some("f")));
    for cohort in [halves[1], quarters[0], quarters[1]] {
        catalog.settle(cohort).await.unwrap();
    }
    fixture.until_gone(ONE).await;
    fixture.until_gone(halves[0]).await;
    fixture.restart(async |_| {}).await;
    let routes = fixture.router.routes();
    for (key, cohort) in [
        ("a", quarters[0]),
        ("b", quarters[1]),
        ("c", quarters[1]),
        ("k", halves[1]),
        ("l", halves[1]),
    ] {
        assert_eq!(routes.map.find(key.as_bytes()).cohort, cohort);
        let found = routes.hosted[&cohort].table.get(key.as_bytes()).unwrap();
        assert!(found.is_some(), "{key} is missing");
    }
    drop(routes);
    fixture.stop().await;
}

/// The node dies before what two halves began with is on the disk, and the range that was cut in two is
/// over when it starts: both halves are opened at once, and both need its log. [RANGE-8]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_halves_begin_again_at_once_from_the_log_of_one_range() {
    let mut fixture = Fixture::start().await;
    let replica = fixture.hosted(ONE).unwrap();
    for _ in 0..20 {
        let command = |key: usize| {
            let (key, value) = (Bytes::from(format!("k{key:03}")), Bytes::from(vec![1; 1024]));
            let operation = Operation::Put { key, value, condition: Condition::None };
            Command { request: None, operation }
        };
        let batch = CommandBatch { commands: (0..100).map(command).collect(), clock: 0 };
        replica.propose(batch).await.unwrap();
    }
    let halves = fixture.split(ONE, [Some(""), Some("k050"), Some("m")]).await;
    fixture.put(halves[0], "b").await;
    fixture.put(halves[1], "l").await;
    fixture
        .crash(async |fixture| {
            for &half in &halves {
                assert!(!fixture.tables.has_begun(half), "what {half} began with is on the disk");
                Catalog::new(&fixture.coordinator).settle(half).await.unwrap();
            }
        })
        .await;
    fixture.until_gone(ONE).await;
    for (half, keys) in halves.into_iter().zip([["a", "b", "k000"], ["k050", "k099", "l"]]) {
        for key in keys {
            fixture.until(key, async || fixture.has(half, key)).await;
        }
    }
    fixture.stop().await;
}
