//! Cohorts that end, and their successors.
//!
//! A change of a range is a *seal*: an entry of its cohort's log that names the successors. The leader
//! proposes it ([`Changes`]), if a replica is to move once that has been prepared ([`crate::moving`]). Once
//! it is applied, it is decided, and any node that has applied it can do the rest ([`Succession`]), the leader
//! at once and the others if it does not:
//!
//! 1. the catalog is changed, so that the successors have ids and the range; if two cohorts are to become
//!    one, once both have ended ([`crate::merging`]);
//! 2. every node begins their replicas on what the one that ended has there ([`crate::hosting`]);
//! 3. once a successor serves, and all its replicas have begun, its leader notes that it is settled. When
//!    all are, the replicas of the one that ended are given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use trireme_coordinator::recipes::catalog::Catalog;
use trireme_coordinator::recipes::invitations::Invitations;
use trireme_coordinator::recipes::succession::{has_room, is_over, successors};
use trireme_replication::{ReplicaError, Role};
use trireme_types::limits::check_range_count;
use trireme_types::{
    CohortConfig, CohortId, CommandBatch, KeyRange, NodeId, Origin, Protocol, Seal, Successor,
    check_split_key, printable,
};

use crate::cohort::HostedCohort;
use crate::continuity::Continuity;
use crate::merging::{Answers, check_room, decided, merge_seal};
use crate::moving::Move;
use crate::protocols::SharedCoordinator;
use crate::routes::{NodeDirectory, Router, Routes};

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
    pub(crate) coordinator: Arc<SharedCoordinator>,
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
        let mut answers = Answers::default();
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
            answers.give(&routes, self.node);
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
            let Some(decided) = decided(routes, cohort, hosted, since.elapsed()) else { continue };
            if !self.continuity.may_change(cohort).await {
                continue;
            }
            let done = match self.coordinator.known_catalog() {
                Some(known) => self.catalog.succeed_known(&known, &decided).await,
                None => self.catalog.succeed(&decided).await,
            };
            match done {
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
            let origin = config.origin.as_ref().filter(|origin| !origin.is_settled)?;
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
fn serves_alone(hosted: &HostedCohort, origin: &Origin, node: NodeId) -> bool {
    if hosted.replica.leader() != Some(node) {
        return false;
    }
    let status = hosted.replica.status();
    status.role == Role::Leader && status.committed.seq > origin.base().seq
}

/// Returns true if every replica that a cohort should have, which is led here, is known to have begun.
fn have_begun(hosted: &HostedCohort, config: &CohortConfig, origin: &Origin) -> bool {
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
    /// It is to be cut in two, of which the upper one begins at this key.
    Split(Bytes),
    /// One of its replicas is to be on another node.
    Move(Move),
    /// It is to be one with the range above it, which begins at this key.
    Merge(Bytes),
}

impl Change {
    /// Returns the cohorts that serve the range, in key order, if it is as it should be already: of a
    /// split, the two at its border.
    fn is_done(&self, routes: &Routes, serving: &[&CohortConfig]) -> Option<Vec<CohortId>> {
        match (self, serving) {
            (Self::Protocol(protocol), [one]) if one.protocol == *protocol => {
                Some(vec![one.cohort])
            }
            (Self::Move(wanted), [one]) if wanted.is_done(one) => Some(vec![one.cohort]),
            (Self::Protocol(_) | Self::Move(_), _) => None,
            (Self::Merge(border), _) => {
                let entry = routes.map.find(border);
                (entry.range.start != *border).then(|| vec![entry.cohort])
            }
            (Self::Split(at), _) => {
                let pairs = routes.map.ranges().windows(2);
                let mut borders = pairs.filter(|pair| pair[1].range.start == *at);
                borders.next().map(|pair| pair.iter().map(|entry| entry.cohort).collect())
            }
        }
    }
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
#[derive(Clone)]
pub(crate) struct Changes {
    pub(crate) node: NodeId,
    pub(crate) router: Arc<Router>,
    pub(crate) directory: Arc<NodeDirectory>,
    pub(crate) invitations: Invitations,
}

impl Changes {
    /// Changes the range of a cohort; safe to repeat. Returns the cohorts that serve it then: its
    /// successors, if it has ended already.
    pub(crate) async fn change(
        &self,
        cohort: CohortId,
        change: &Change,
    ) -> Result<Vec<CohortId>, Refused> {
        let routes = self.router.routes();
        if routes.map.of_cohort(cohort).is_none() {
            return went_on(&routes, cohort, change);
        }
        let Some(hosted) = routes.hosted.get(&cohort) else {
            return Err(Refused::NotNow(format!("cohort {cohort} has no replica here")));
        };
        let config = routes.configs.get(&cohort).filter(|_| !hosted.table.is_sealed());
        if let Some(done) = change.is_done(&routes, config.as_slice()) {
            return Ok(done);
        }
        if let (Change::Move(wanted), Some(config)) = (change, config) {
            self.prepare(&routes, hosted, config, *wanted).await?;
        }
        if let Change::Merge(border) = change {
            check_room(&routes, hosted, border).await?;
        }
        self.seal(&routes, hosted, change).await?;
        let until = Instant::now() + CHANGE_TIMEOUT;
        loop {
            let routes = self.router.routes();
            if routes.map.of_cohort(cohort).is_none() {
                return went_on(&routes, cohort, change);
            }
            if Instant::now() >= until {
                let reason = "it is decided, and the coordinator does not know it yet";
                return Err(Refused::Unknown(reason.to_owned()));
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends the cohort, unless that has happened already.
    pub(crate) async fn seal(
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
        match propose_seal(hosted, seal)
            .await
            .map_err(|error| Refused::Unknown(error.to_string()))?
        {
            Ok(()) => Ok(()),
            Err(error @ (ReplicaError::Ambiguous(_) | ReplicaError::Failed(_))) => {
                Err(Refused::Unknown(error.to_string()))
            }
            Err(error) => Err(Refused::NotNow(error.to_string())),
        }
    }
}

/// Proposes the end of a cohort that is led here. Goes on if the caller does not: reads are held until it
/// is known what has become of the seal.
pub(crate) fn propose_seal(
    hosted: &Arc<HostedCohort>,
    seal: Seal,
) -> JoinHandle<Result<(), ReplicaError>> {
    let (hosted, held) = (Arc::clone(hosted), hosted.hold_reads());
    tokio::spawn(async move {
        let sealed = hosted.replica.seal(&seal).await;
        if sealed.is_ok() {
            // What is proposed behind it carries its commit to the others, who would else hear of it
            // with the next beacon.
            drop(hosted.replica.propose(CommandBatch::default()).await);
        }
        drop(held);
        sealed
    })
}

/// Returns the cohorts that serve the range of one that has ended, if they are as was asked for.
fn went_on(routes: &Routes, cohort: CohortId, change: &Change) -> Result<Vec<CohortId>, Refused> {
    let serving = serving(routes, cohort);
    if let Some(done) = change.is_done(routes, &serving) {
        return Ok(done);
    }
    let names: Vec<_> = serving.iter().map(|config| config.cohort.to_string()).collect();
    let reason = match &names[..] {
        [] => format!("there is no cohort {cohort}"),
        names => format!("cohort {cohort} has ended; succeeded by {}", names.join(" and ")),
    };
    Err(match change {
        // One that is missing may be the one that was to come.
        Change::Move(_) if serving.iter().any(|config| config.replicas_missing() > 0) => {
            Refused::NotNow(format!("{reason}, which lacks a replica"))
        }
        Change::Protocol(_) | Change::Move(_) => Refused::Invalid(reason),
        // It is the key that is meant, which another cohort serves.
        Change::Split(_) | Change::Merge(_) => Refused::NotNow(reason),
    })
}

/// Returns the configurations of the cohorts that serve what one did that has ended, in key order: its successors, or theirs in their turn.
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

/// Refuses unless a cohort is led here.
pub(crate) fn check_leads(hosted: &HostedCohort, node: NodeId) -> Result<(), Refused> {
    let (leader, cohort) = (hosted.replica.leader(), hosted.descriptor.cohort);
    if leader == Some(node) {
        return Ok(());
    }
    let leader = leader.map_or_else(|| "no node".to_owned(), |leader| leader.to_string());
    Err(Refused::NotNow(format!("{leader} leads cohort {cohort}")))
}

/// Returns the seal by which a cohort that is led here is changed, or why it cannot be.
fn next_seal(
    routes: &Routes,
    hosted: &HostedCohort,
    node: NodeId,
    change: &Change,
) -> Result<Seal, Refused> {
    let cohort = hosted.descriptor.cohort;
    check_leads(hosted, node)?;
    let config = check_may_end(routes, cohort)?;
    let alone = alone(hosted, config, node);
    Ok(Seal::new(match change {
        Change::Protocol(protocol) => vec![Successor { protocol: *protocol, ..alone }],
        Change::Move(wanted) => {
            wanted.check_is_prepared(hosted)?;
            vec![Successor { replicas: wanted.applied_to(&alone.replicas), ..alone }]
        }
        Change::Split(at) => {
            let halves = halves(&alone.range, at)?;
            check_split(routes, cohort, config.protocol, &halves)?;
            halves.map(|range| Successor { range, ..alone.clone() }).into()
        }
        Change::Merge(border) => return merge_seal(routes, hosted, alone, border),
    }))
}

/// Returns the configuration of a cohort that is served, unless it must not end now.
pub(crate) fn check_may_end(routes: &Routes, cohort: CohortId) -> Result<&CohortConfig, Refused> {
    let Some(config) = routes.configs.get(&cohort) else {
        return Err(Refused::NotNow(format!("the catalog does not know cohort {cohort} yet")));
    };
    //= RANGE-11
    let mut before = config.origin.iter().flat_map(|origin| origin.seals());
    if let (Some(origin), Some((before, _))) =
        (&config.origin, before.find(|(before, _)| !is_over(&routes.configs, *before)))
    {
        let reason = match origin.is_settled {
            true => format!("another successor of {before} than {cohort} is not settled yet"),
            false => format!("cohort {cohort} is a successor of {before} and is not settled yet"),
        };
        return Err(Refused::NotNow(reason));
    }
    //= RANGE-14
    if config.replicas_missing() > 0 {
        let reason = format!("cohort {cohort} lacks a replica");
        return Err(Refused::NotNow(reason));
    }
    Ok(config)
}

/// Returns what goes on from a cohort that is led here if nothing is to be other than it was.
pub(crate) fn alone(hosted: &HostedCohort, config: &CohortConfig, node: NodeId) -> Successor {
    //= RANGE-1
    // The leader applies the seal first, and so begins first.
    let others = config.replicas.iter().copied().filter(|other| *other != node);
    Successor {
        range: hosted.descriptor.range.clone(),
        protocol: config.protocol,
        replicas: std::iter::once(node).chain(others).collect(),
        replicas_wanted: config.replicas_wanted(),
    }
}

/// Cuts a range in two.
fn halves(whole: &KeyRange, at: &Bytes) -> Result<[KeyRange; 2], Refused> {
    check_split_key(at).map_err(|error| Refused::Invalid(error.to_string()))?;
    let lower = KeyRange { start: whole.start.clone(), end: Some(at.clone()) };
    let upper = KeyRange { start: at.clone(), end: whole.end.clone() };
    if lower.is_empty() || !whole.contains(at) {
        let reason = format!("the key {} lies not within {whole}", printable(at));
        return Err(Refused::NotNow(reason));
    }
    Ok([lower, upper])
}

/// Checks that the catalog can have the halves in the place of the cohort's range. Once it is sealed, it
/// must: the range is served by none before.
fn check_split(
    routes: &Routes,
    cohort: CohortId,
    protocol: Protocol,
    halves: &[KeyRange],
) -> Result<(), Refused> {
    //= RANGE-15
    let ranges = routes.map.ranges().iter();
    let protocols = ranges.filter_map(|entry| Some(routes.configs.get(&entry.cohort)?.protocol));
    check_range_count(protocols.chain([protocol])).map_err(Refused::Invalid)?;
    let halves = halves.iter().map(|half| (half.clone(), cohort));
    let Some(Ok(map)) = routes.map.replace(&[cohort], halves) else {
        return Err(Refused::NotNow(format!("cohort {cohort} serves no range that can be cut")));
    };
    if !has_room(&map) {
        let reason = "the borders of all ranges together are longer than the coordinator can hold";
        return Err(Refused::Invalid(reason.to_owned()));
    }
    Ok(())
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
    use trireme_types::limits::{KEY_BYTES_MAX, RANGES_MAX_RAFT};
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
        let map = map.replace(&[CohortId(1)], [(map.ranges()[0].range.clone(), COHORT)]);
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
        let origin = |is_settled| {
            Some(Origin { cohort: CohortId(1), seal: Lsn::new(2, 9), is_settled, upper: None })
        };
        config(&mut fixture, &|config| config.origin = origin(false));
        assert_eq!(refused(&fixture), "cohort c4 is a successor of c1 and is not settled yet");
        config(&mut fixture, &|config| config.origin = origin(true));
        propose(&fixture).unwrap();
        let other = CohortId(5);
        let sibling = CohortConfig { cohort: other, ..fixture.routes.configs[&COHORT].clone() };
        let unsettled = CohortConfig { origin: origin(false), ..sibling.clone() };
        fixture.routes.configs.insert(other, unsettled);
        assert_eq!(refused(&fixture), "another successor of c1 than c4 is not settled yet");
        fixture.routes.configs.insert(other, sibling);
        config(&mut fixture, &|config| config.replicas.truncate(2));
        assert_eq!(refused(&fixture), "cohort c4 lacks a replica");
        fixture.replica.transfer_leader(NodeId(2)).await.unwrap();
        assert_eq!(refused(&fixture), "n2 leads cohort c4");
    }

    /// [RANGE-1] [RANGE-15]
    #[tokio::test]
    async fn a_split_has_two_halves_and_is_proposed_only_if_the_catalog_can_have_them() {
        let mut fixture = fixture();
        let split = |fixture: &Fixture, at: &[u8]| {
            let change = Change::Split(Bytes::copy_from_slice(at));
            next_seal(&fixture.routes, &fixture.hosted, ME, &change)
        };
        let seal = split(&fixture, b"m").unwrap();
        let [low, high] = &seal.successors[..] else { panic!("{seal:?}") };
        assert_eq!(low.range, KeyRange::new("", Some("m")));
        assert_eq!(high.range, KeyRange::new("m", None::<&str>));
        for half in [low, high] {
            assert_eq!(
                (half.protocol, &half.replicas[..]),
                (Protocol::Raft, &[ME, NodeId(2), NodeId(3)][..])
            );
        }
        let refused = |fixture: &Fixture, at: &[u8]| split(fixture, at).unwrap_err();
        let invalid = |text: &str| Refused::Invalid(text.to_owned());
        assert_eq!(refused(&fixture, b""), invalid("a split key must not be empty"));
        let long = refused(&fixture, &[b'k'; 5_000]);
        assert!(
            matches!(&long, Refused::Invalid(reason) if reason.contains("longer than 4096 bytes"))
        );

        let own = fixture.routes.configs[&COHORT].clone();
        let mut check = |splits: &[Bytes], at: &[u8]| {
            let map = RangeMap::from_splits(splits).unwrap();
            let configs = map.ranges().iter().map(|entry| {
                let cohort = entry.cohort;
                (cohort, CohortConfig { cohort, ..own.clone() })
            });
            (fixture.routes.configs, fixture.routes.map) = (configs.collect(), map);
            let whole = &fixture.routes.map.of_cohort(COHORT).unwrap().range;
            let halves = halves(whole, &Bytes::copy_from_slice(at)).unwrap();
            check_split(&fixture.routes, COHORT, Protocol::Raft, &halves)
        };
        let mut many: Vec<_> =
            (1..RANGES_MAX_RAFT).map(|at| Bytes::from(format!("{at:04}"))).collect();
        let reason = check(&many, b"0003x").unwrap_err().to_string();
        assert!(reason.contains("too many ranges: 1001 by raft"), "{reason}");
        many.pop();
        assert_eq!(check(&many, b"0003x"), Ok(()));
        // Borders that take half of what a change may have.
        let long = (0x80..).map(|at| Bytes::from(vec![at; KEY_BYTES_MAX]));
        let long: Vec<_> = long.take(17).collect();
        assert_eq!(check(&long, b"\x82\xff"), Ok(()));
        let reason = check(&long, &[&[0x82], &[0xff; KEY_BYTES_MAX - 1][..]].concat()).unwrap_err();
        assert!(matches!(&reason, Refused::Invalid(it) if it.contains("longer than the coord")));
    }

    #[tokio::test]
    async fn a_split_is_done_where_there_is_a_border_whatever_became_of_the_cohort() {
        let Fixture { mut routes, .. } = fixture();
        let done = |routes: &Routes, at: &'static str| {
            went_on(routes, COHORT, &Change::Split(Bytes::from_static(at.as_bytes())))
        };
        let mut replace = |cohort: u64, by: [(&'static str, Option<&'static str>, u64); 2]| {
            let origin = Origin {
                cohort: CohortId(cohort),
                seal: Lsn::new(2, 9),
                is_settled: true,
                upper: None,
            };
            let halves = by.map(|(start, end, id)| (KeyRange::new(start, end), CohortId(id)));
            for (_, id) in &halves {
                let own = routes.configs[&COHORT].clone();
                let config = CohortConfig { cohort: *id, origin: Some(origin.clone()), ..own };
                routes.configs.insert(*id, config);
            }
            routes.map = routes.map.replace(&[CohortId(cohort)], halves).unwrap().unwrap();
        };
        replace(4, [("", Some("m"), 5), ("m", None, 6)]);
        replace(5, [("", Some("f"), 7), ("f", Some("m"), 8)]);
        assert_eq!(done(&routes, "m"), Ok(vec![CohortId(8), CohortId(6)]));
        assert_eq!(done(&routes, "f"), Ok(vec![CohortId(7), CohortId(8)]));
        let reason = "cohort c4 has ended; succeeded by c7 and c8 and c6".to_owned();
        assert_eq!(done(&routes, "z"), Err(Refused::NotNow(reason.clone())));
        let protocol = went_on(&routes, COHORT, &Change::Protocol(Protocol::Raft));
        assert_eq!(protocol, Err(Refused::Invalid(reason)));
        let upper = went_on(&routes, CohortId(5), &Change::Protocol(Protocol::Raft));
        assert!(upper.is_err(), "it has two successors");
    }

    #[tokio::test]
    async fn a_merge_is_done_where_there_is_no_border_whichever_cohort_was_asked() {
        let Fixture { mut routes, .. } = fixture();
        let merge = Change::Merge(Bytes::from("m"));
        assert_eq!(merge.is_done(&routes, &[]), Some(vec![COHORT]));
        let halves = [(KeyRange::new("", Some("m")), 5), (KeyRange::new("m", None::<&str>), 6)];
        let halves = halves.map(|(range, id)| (range, CohortId(id)));
        routes.map = routes.map.replace(&[COHORT], halves).unwrap().unwrap();
        assert_eq!(merge.is_done(&routes, &[]), None);
        assert_eq!(
            went_on(&routes, COHORT, &merge).unwrap_err().to_string(),
            "there is no cohort c4"
        );
    }

    /// [RANGE-9]
    #[tokio::test]
    async fn a_successor_has_begun_everywhere_when_all_have_passed_its_base() {
        let fixture = fixture();
        let origin =
            Origin { cohort: CohortId(1), seal: Lsn::new(2, 9), is_settled: false, upper: None };
        let config = &fixture.routes.configs[&COHORT];
        for (progress, has_begun) in
            [(&[(2, 10), (3, 10)][..], true), (&[(2, 10)], false), (&[(2, 10), (3, 0)], false)]
        {
            fixture.replica.lead(progress);
            assert_eq!(have_begun(&fixture.hosted, config, &origin), has_begun, "{progress:?}");
        }
        assert!(!serves_alone(&fixture.hosted, &origin, ME), "it has committed nothing");
    }

    /// [RANGE-4]
    #[tokio::test]
    async fn strong_reads_are_held_back_while_a_seal_is_on_its_way() {
        let fixture = fixture();
        let read = async |consistency| {
            let (caller, answer) = oneshot::channel();
            let reply = ReplyTo::Call { caller, node: Arc::<NodeAnswers>::default() };
            let read = Read::Get(Bytes::from("k"));
            fixture.hosted.read(PendingRead {
                read,
                consistency,
                deadline: deadline(Instant::now(), 0),
                reply,
            });
            match answer.await.unwrap() {
                Answer::Error(error) => Some(error.code()),
                _ => None,
            }
        };
        assert_eq!(read(Consistency::Strong).await, None, "it leads");
        let held = fixture.hosted.hold_reads();
        let also_held = fixture.hosted.hold_reads();
        drop(held);
        assert_eq!(read(Consistency::Strong).await, Some(v1::ErrorCode::Busy));
        assert_eq!(read(Consistency::Timeline).await, None, "it may be old");
        drop(also_held);
        assert_eq!(read(Consistency::Strong).await, None, "none is on its way any more");
    }
}
