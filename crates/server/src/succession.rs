//! Cohorts that end, and their successors.
//!
//! A change of a range is a *seal*: an entry of its cohort's log that names the successors. The leader
//! proposes it ([`Changes`]); once it is applied, it is decided, and any node that has applied it can do the
//! rest ([`Succession`]), the leader at once and the others if it does not:
//!
//! 1. the catalog is changed, so that the successors have ids and the range;
//! 2. every node begins their replicas on what the one that ended has there ([`crate::hosting`]);
//! 3. once a successor serves, and all its replicas have begun, its leader notes that it is settled. When
//!    all are, the replicas of the one that ended are given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use trireme_coordinator::recipes::catalog::Catalog;
use trireme_coordinator::recipes::succession::successors;
use trireme_replication::{ReplicaError, Role};
use trireme_types::{
    CohortConfig, CohortId, CommandBatch, NodeId, Origin, Protocol, Seal, Successor,
};

use crate::cohort::HostedCohort;
use crate::continuity::Continuity;
use crate::routes::{Router, Routes};

/// How often it is looked whether there is something to do that nothing has reported.
const INTERVAL: Duration = Duration::from_millis(500);

/// How often it is while something is under way.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);

/// How long a replica that does not lead leaves the change of the catalog to the one that does. Much
/// longer than that takes, and short, since the range does not serve meanwhile.
const HEAD_START: Duration = Duration::from_millis(500);

/// How long a successor that serves waits for its replicas that have not begun yet. One that begins
/// later is sent all rows, so this is longer than most restarts of a node; as long as it lasts, the
/// log of the cohort that ended is kept, and the successor cannot end.
const STRAGGLER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a change is waited for after it was decided. What it still lacks is done all the same.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// Carries out what seals have decided.
pub(crate) struct Succession {
    pub(crate) node: NodeId,
    pub(crate) router: Arc<Router>,
    pub(crate) catalog: Catalog,
    pub(crate) continuity: Arc<Continuity>,
    /// Changes whenever a cohort has ended here.
    pub(crate) ended: watch::Receiver<()>,
}

/// Since when what is under way has been seen to be, by the cohort that ends or goes on.
type Seen = BTreeMap<CohortId, Instant>;

impl Succession {
    /// Runs until its task is aborted.
    pub(crate) async fn run(mut self) {
        let (mut sealed, mut unsettled) = (Seen::new(), Seen::new());
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_busy = !sealed.is_empty() || !unsettled.is_empty();
            tokio::select! {
                _ = ticks.tick() => {}
                _ = self.ended.changed() => {}
                () = sleep(BUSY_INTERVAL), if is_busy => {}
            }
            let routes = self.router.routes();
            self.succeed(&routes, &mut sealed).await;
            self.settle(&routes, &mut unsettled).await;
        }
    }

    /// Records the successors of cohorts that have ended here in the catalog.
    async fn succeed(&self, routes: &Routes, seen: &mut Seen) {
        let ended = routes.hosted.iter().filter(|(cohort, hosted)| {
            hosted.table.is_sealed() && routes.map.of_cohort(**cohort).is_some()
        });
        let ended: BTreeMap<_, _> = ended.collect();
        seen.retain(|cohort, _| ended.contains_key(cohort));
        for (&cohort, hosted) in ended {
            let since = *seen.entry(cohort).or_insert_with(Instant::now);
            let leads = hosted.replica.leader() == Some(self.node);
            if !leads && since.elapsed() < HEAD_START {
                continue;
            }
            let Some((at, seal)) = hosted.table.seal() else { continue };
            if !self.continuity.may_change(cohort).await {
                continue;
            }
            match self.catalog.succeed(cohort, at, &seal).await {
                Ok(configs) => {
                    let ids: Vec<_> = configs.iter().map(|config| config.cohort).collect();
                    tracing::info!(%cohort, successors = ?ids, "the cohort has successors");
                }
                Err(error) => {
                    tracing::warn!(%cohort, %error, "the successors are not known to the catalog yet")
                }
            }
        }
    }

    /// Records of the successors led here that they need nothing any more of the cohorts that ended.
    async fn settle(&self, routes: &Routes, seen: &mut Seen) {
        let led = routes.hosted.iter().filter_map(|(&cohort, hosted)| {
            let config = routes.configs.get(&cohort)?;
            let origin = config.origin.filter(|origin| !origin.is_settled)?;
            serves_alone(hosted, origin, self.node).then_some((cohort, (hosted, config, origin)))
        });
        let led: BTreeMap<_, _> = led.collect();
        seen.retain(|cohort, _| led.contains_key(cohort));
        for (cohort, (hosted, config, origin)) in led {
            let since = *seen.entry(cohort).or_insert_with(Instant::now);
            //= RANGE-9
            if !have_begun(hosted, config, origin) && since.elapsed() < STRAGGLER_TIMEOUT {
                continue;
            }
            if !self.continuity.may_change(cohort).await {
                continue;
            }
            match self.catalog.settle(cohort).await {
                Ok(()) => tracing::info!(%cohort, before = %origin.cohort, "the cohort is settled"),
                Err(error) => tracing::warn!(%cohort, %error, "the cohort is not settled yet"),
            }
        }
    }
}

/// Returns true if the replica here leads and has committed an entry of its own cohort: whatever the
/// protocol asks for has what the cohort began with, and the log of the one before it brings back nothing.
fn serves_alone(hosted: &HostedCohort, origin: Origin, node: NodeId) -> bool {
    if hosted.replica.leader() != Some(node) {
        return false;
    }
    let status = hosted.replica.status();
    status.role == Role::Leader && status.committed.seq > origin.base().seq
}

/// Returns true if every replica that a cohort should have, which is led here, is known to have begun.
fn have_begun(hosted: &HostedCohort, config: &CohortConfig, origin: Origin) -> bool {
    let status = hosted.replica.status();
    let has_begun = |node: &NodeId| {
        let matched = status.progress.iter().find(|(other, _)| other == node);
        *node == status.node || matched.is_some_and(|(_, lsn)| lsn.seq > origin.base().seq)
    };
    config.replicas_missing() == 0 && config.replicas.iter().all(has_begun)
}

/// How a range is to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is to be replicated by another protocol.
    Protocol(Protocol),
}

/// Why a range was not changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The change makes no sense, now or ever.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be done now, or not here: nothing has changed, and another try may do it.
    #[error("{0}")]
    NotNow(String),
    /// It is not known whether it is done: another try finds out.
    #[error("{0}")]
    Unknown(String),
}

/// Changes ranges whose cohorts are led here.
pub(crate) struct Changes {
    pub(crate) node: NodeId,
    pub(crate) router: Arc<Router>,
}

impl Changes {
    /// Changes the range of a cohort; safe to repeat. Returns the cohorts that serve it then: those who
    /// went on from it, if that has happened already.
    pub(crate) async fn change(
        &self,
        cohort: CohortId,
        change: &Change,
    ) -> Result<Vec<CohortId>, Refused> {
        let routes = self.router.routes();
        if routes.map.of_cohort(cohort).is_none() {
            return self.went_on(&routes, cohort, change);
        }
        let Some(hosted) = routes.hosted.get(&cohort) else {
            return Err(Refused::NotNow(format!("cohort {cohort} has no replica here")));
        };
        let Change::Protocol(protocol) = change;
        if !hosted.table.is_sealed() && hosted.replica.status().protocol == *protocol {
            return Ok(vec![cohort]);
        }
        self.seal(&routes, hosted, change).await?;
        let until = Instant::now() + CHANGE_TIMEOUT;
        loop {
            let routes = self.router.routes();
            if routes.map.of_cohort(cohort).is_none() {
                return self.went_on(&routes, cohort, change);
            }
            if Instant::now() >= until {
                let reason = "it is decided, and the coordinator does not know it yet";
                return Err(Refused::Unknown(reason.to_owned()));
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Returns who serves the range of a cohort that has ended, if they are as was asked for.
    fn went_on(
        &self,
        routes: &Routes,
        cohort: CohortId,
        change: &Change,
    ) -> Result<Vec<CohortId>, Refused> {
        let Change::Protocol(protocol) = change;
        let serving = serving(routes, cohort);
        if serving.is_empty() {
            return Err(Refused::Invalid(format!("there is no cohort {cohort}")));
        }
        let ids: Vec<_> = serving.iter().map(|config| config.cohort).collect();
        match &serving[..] {
            [one] if one.protocol == *protocol => Ok(ids),
            _ => {
                let names: Vec<_> = ids.iter().map(ToString::to_string).collect();
                let names = names.join(" and ");
                Err(Refused::Invalid(format!("cohort {cohort} has ended; {names} went on")))
            }
        }
    }

    /// Ends the cohort, unless that has happened already.
    async fn seal(
        &self,
        routes: &Routes,
        hosted: &Arc<HostedCohort>,
        change: &Change,
    ) -> Result<(), Refused> {
        if hosted.table.is_sealed() {
            // Which change it was shows once it has successors.
            return Ok(());
        }
        let seal = next_seal(routes, hosted, self.node, change)?;
        let (hosted, held) = (Arc::clone(hosted), hosted.hold_reads());
        // The caller may go: reads are held until it is known what has become of the seal.
        let sealing = tokio::spawn(async move {
            let sealed = hosted.replica.seal(&seal).await;
            if sealed.is_ok() {
                // What is proposed behind it carries its commit to the others, who would else hear of it
                // with the next beacon.
                drop(hosted.replica.propose(CommandBatch::default()).await);
            }
            drop(held);
            sealed
        });
        match sealing.await.map_err(|error| Refused::Unknown(error.to_string()))? {
            Ok(()) => Ok(()),
            Err(error @ (ReplicaError::Ambiguous(_) | ReplicaError::Failed(_))) => {
                Err(Refused::Unknown(error.to_string()))
            }
            Err(error) => Err(Refused::NotNow(error.to_string())),
        }
    }
}

/// Returns the configurations of the cohorts that serve what one did that has ended, in the order of
/// their ids: its successors, or theirs in their turn.
fn serving(routes: &Routes, ended: CohortId) -> Vec<&CohortConfig> {
    let mut serving = Vec::new();
    // Ids rise from one to the next, so that this comes to an end.
    for successor in successors(&routes.configs, ended) {
        if routes.map.of_cohort(successor.cohort).is_some() {
            serving.push(successor);
        } else if successor.cohort > ended {
            serving.extend(self::serving(routes, successor.cohort));
        }
    }
    serving
}

/// Returns the seal by which a cohort that is led here is changed, or why it cannot be.
fn next_seal(
    routes: &Routes,
    hosted: &HostedCohort,
    node: NodeId,
    change: &Change,
) -> Result<Seal, Refused> {
    let cohort = hosted.descriptor.cohort;
    let Some(config) = routes.configs.get(&cohort) else {
        return Err(Refused::NotNow(format!("the catalog does not know cohort {cohort} yet")));
    };
    let leader = hosted.replica.leader();
    if leader != Some(node) {
        let leader = leader.map_or_else(|| "no node".to_owned(), |leader| leader.to_string());
        return Err(Refused::NotNow(format!("{leader} leads cohort {cohort}")));
    }
    //= RANGE-11
    if let Some(origin) = config.origin.filter(|origin| !origin.is_settled) {
        let reason =
            format!("cohort {cohort} is a successor of {} and is not settled yet", origin.cohort);
        return Err(Refused::NotNow(reason));
    }
    //= RANGE-14
    if config.replicas_missing() > 0 {
        let reason = format!("cohort {cohort} lacks a replica");
        return Err(Refused::NotNow(reason));
    }
    let Change::Protocol(protocol) = change;
    //= RANGE-1
    // The leader applies the seal first, and so begins first.
    let others = config.replicas.iter().copied().filter(|other| *other != node);
    let replicas = std::iter::once(node).chain(others).collect();
    let replicas_wanted = config.replicas_wanted();
    let range = hosted.descriptor.range.clone();
    let successor = Successor { range, protocol: *protocol, replicas, replicas_wanted };
    Ok(Seal { successors: vec![successor] })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tempfile::TempDir;
    use tokio::sync::oneshot;
    use trireme_coordinator::recipes::invitations::AllInvitations;
    use trireme_proto::v1;
    use trireme_proto::v1::response::Result as Answer;
    use trireme_replication::Replica as _;
    use trireme_storage::{TableOptions, Tables};
    use trireme_types::{Consistency, Lsn, RangeMap};

    use super::*;
    use crate::answers::NodeAnswers;
    use crate::backpressure::Backpressure;
    use crate::cohort::{PendingRead, Read};
    use crate::readers::Readers;
    use crate::request::{ReplyTo, deadline};
    use crate::routes::NodeDirectory;
    use crate::testing::FakeReplica;

    const ME: NodeId = NodeId(1);
    const COHORT: CohortId = CohortId(4);

    struct Fixture {
        replica: Arc<FakeReplica>,
        hosted: Arc<HostedCohort>,
        routes: Routes,
        _folder: TempDir,
    }

    /// A cohort of three replicas, of which the one here leads.
    fn fixture() -> Fixture {
        let folder = TempDir::new().unwrap();
        let tables = Tables::open(folder.path(), TableOptions::default()).unwrap();
        let map = RangeMap::from_splits(&[]).unwrap();
        let map = map.replace(CohortId(1), [(map.ranges()[0].range.clone(), COHORT)]);
        let map = map.unwrap().unwrap();
        let descriptor = map.ranges()[0].clone();
        let table = tables.cohort(COHORT, descriptor.range.clone()).unwrap();
        let replica = FakeReplica::new(ME.0, COHORT.0);
        replica.lead(&[]);
        let hosted = HostedCohort::start(
            descriptor,
            replica.clone(),
            table,
            Arc::<NodeDirectory>::default(),
            Backpressure::new(u64::MAX),
            Readers::start().unwrap(),
        );
        let config = CohortConfig {
            cohort: COHORT,
            version: 1,
            protocol: Protocol::Raft,
            replicas: vec![NodeId(2), ME, NodeId(3)],
            replicas_wanted: 3,
            incarnations: [].into(),
            origin: None,
        };
        let routes = Routes {
            map,
            configs: [(COHORT, config)].into(),
            invitations: AllInvitations::new(),
            hosted: [(COHORT, hosted.clone())].into(),
        };
        Fixture { replica, hosted, routes, _folder: folder }
    }

    /// [RANGE-1] [RANGE-11] [RANGE-14]
    #[tokio::test]
    async fn a_seal_is_the_leaders_and_names_all_replicas() {
        let mut fixture = fixture();
        let change = Change::Protocol(Protocol::Pacifica);
        let propose = |fixture: &Fixture| next_seal(&fixture.routes, &fixture.hosted, ME, &change);
        let seal = propose(&fixture).unwrap();
        let [successor] = &seal.successors[..] else { panic!("{seal:?}") };
        assert_eq!(successor.range, fixture.routes.map.ranges()[0].range);
        assert_eq!(successor.protocol, Protocol::Pacifica);
        assert_eq!(successor.replicas, [ME, NodeId(2), NodeId(3)], "the leader begins first");
        assert_eq!(successor.replicas_wanted, 3);

        let refused = |fixture: &Fixture| propose(fixture).unwrap_err().to_string();
        let config = |fixture: &mut Fixture, change: &dyn Fn(&mut CohortConfig)| {
            change(fixture.routes.configs.get_mut(&COHORT).unwrap());
        };
        let origin =
            |is_settled| Some(Origin { cohort: CohortId(1), seal: Lsn::new(2, 9), is_settled });
        config(&mut fixture, &|config| config.origin = origin(false));
        assert_eq!(refused(&fixture), "cohort c4 is a successor of c1 and is not settled yet");
        config(&mut fixture, &|config| config.origin = origin(true));
        propose(&fixture).unwrap();
        config(&mut fixture, &|config| config.replicas.truncate(2));
        assert_eq!(refused(&fixture), "cohort c4 lacks a replica");
        fixture.replica.transfer_leader(NodeId(2)).await.unwrap();
        assert_eq!(refused(&fixture), "n2 leads cohort c4");
    }

    /// [RANGE-9]
    #[tokio::test]
    async fn a_successor_has_begun_everywhere_when_all_have_passed_its_base() {
        let fixture = fixture();
        let origin = Origin { cohort: CohortId(1), seal: Lsn::new(2, 9), is_settled: false };
        let config = &fixture.routes.configs[&COHORT];
        for (progress, has_begun) in
            [(&[(2, 10), (3, 10)][..], true), (&[(2, 10)], false), (&[(2, 10), (3, 0)], false)]
        {
            fixture.replica.lead(progress);
            assert_eq!(have_begun(&fixture.hosted, config, origin), has_begun, "{progress:?}");
        }
        assert!(!serves_alone(&fixture.hosted, origin, ME), "it has committed nothing");
    }

    /// [RANGE-4]
    #[tokio::test]
    async fn strong_reads_are_held_back_while_a_seal_is_on_its_way() {
        let fixture = fixture();
        let read = async |consistency| {
            let (caller, answer) = oneshot::channel();
            let reply = ReplyTo::Call { caller, node: Arc::<NodeAnswers>::default() };
            let read = Read::Get(Bytes::from("k"));
            fixture.hosted.read(PendingRead { read, consistency, deadline: deadline(0), reply });
            match answer.await.unwrap() {
                Answer::Error(error) => Some(error.code()),
                _ => None,
            }
        };
        // The fake one refuses every barrier.
        assert_eq!(read(Consistency::Strong).await, Some(v1::ErrorCode::NotLeader));
        let held = fixture.hosted.hold_reads();
        let also_held = fixture.hosted.hold_reads();
        drop(held);
        assert_eq!(read(Consistency::Strong).await, Some(v1::ErrorCode::Busy));
        assert_eq!(read(Consistency::Timeline).await, None, "it may be old");
        drop(also_held);
        assert_eq!(read(Consistency::Strong).await, Some(v1::ErrorCode::NotLeader));
    }
}
