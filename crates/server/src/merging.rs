//! Two neighbours that become one.
//!
//! Each ends by a seal of its own, which says what goes on if both do, and what goes on from it alone if
//! the other does not: the leader of the lower one proposes its seal, and the leader of the upper one
//! answers with the same wish as soon as its node has applied that ([`Answers`]). Which of the two it
//! is, is decided by one change of the range map, which any node makes that has applied the seals
//! ([`decided`]; RANGE-20, RANGE-21).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use trireme_coordinator::recipes::succession::Decided;
use trireme_replication::ReplicaError;
use trireme_types::{CohortConfig, CohortId, KeyRange, Merge, NodeId, Seal, Successor};

use crate::cohort::HostedCohort;
use crate::routes::Routes;
use crate::succession::{Refused, alone, check_leads, check_may_end, propose_seal};

/// How long a cohort that has ended waits for its neighbour to end, too, before it goes on by itself. Its
/// range is served by none meanwhile. The neighbour's leader is known and sees the seal with the next entry
/// or beacon; an election takes longer than this, and is not waited for.
const NEIGHBOUR_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the seal by which a cohort that is led here ends, to be one with its neighbour above `border`;
/// `alone` is what goes on from it otherwise.
pub(crate) fn merge_seal(
    routes: &Routes,
    hosted: &HostedCohort,
    alone: Successor,
    border: &Bytes,
) -> Result<Seal, Refused> {
    let cohort = hosted.descriptor.cohort;
    if alone.range.end.as_ref() != Some(border) {
        let border = trireme_types::printable(border);
        return Err(Refused::NotNow(format!("the range of {cohort} does not end at {border}")));
    }
    let entry = routes.map.find(border);
    let with = entry.cohort;
    let config = check_may_end(routes, with)?;
    if !have_same_nodes(&alone, config) {
        let names = |nodes: &[NodeId]| {
            let nodes: BTreeSet<_> = nodes.iter().collect();
            nodes.into_iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
        };
        let (own, other) = (names(&alone.replicas), names(&config.replicas));
        let reason = format!(
            "the replicas of {cohort} are on {own} and those of {with} on {other}: move them first"
        );
        return Err(Refused::Invalid(reason));
    }
    for id in [cohort, with] {
        if routes.invitations.get(&id).is_some_and(|it| it.invitation.leaving.is_some()) {
            return Err(Refused::NotNow(format!("a replica of {id} is moving")));
        }
    }
    let Some(other) = routes.hosted.get(&with).filter(|other| !other.table.is_sealed()) else {
        return Err(Refused::NotNow(format!("cohort {with} has no replica here that serves")));
    };
    if other.replica.leader().is_none() {
        return Err(Refused::NotNow(format!("no node leads cohort {with}")));
    }
    let range = KeyRange { end: entry.range.end.clone(), ..alone.range.clone() };
    let successor = Successor { range, ..alone.clone() };
    Ok(Seal { successors: vec![alone], merge: Some(Merge { with, successor }.into()) })
}

/// Refuses if what a cohort and its neighbour above `border` know together is more than one cohort may.
pub(crate) async fn check_room(
    routes: &Routes,
    hosted: &HostedCohort,
    border: &Bytes,
) -> Result<(), Refused> {
    let with = routes.map.find(border).cohort;
    // Without a replica here the seal is refused.
    let Some(other) = routes.hosted.get(&with) else { return Ok(()) };
    let (lower, upper) = (hosted.table.clone(), other.table.clone());
    // What is being applied to either may wait for the disk.
    let look = tokio::task::spawn_blocking(move || lower.reason_against_merge(&upper));
    match look.await.map_err(|error| Refused::Unknown(error.to_string()))? {
        None => Ok(()),
        Some(reason) => {
            let cohort = hosted.descriptor.cohort;
            Err(Refused::Invalid(format!("{cohort} and {with} cannot be one: {reason}")))
        }
    }
}

fn have_same_nodes(one: &Successor, other: &CohortConfig) -> bool {
    let set = |nodes: &[NodeId]| nodes.iter().copied().collect::<BTreeSet<_>>();
    set(&one.replicas) == set(&other.replicas)
}

/// The seals that are being proposed here in answer to those of neighbours.
#[derive(Default)]
pub(crate) struct Answers {
    proposed: BTreeMap<CohortId, JoinHandle<Result<(), ReplicaError>>>,
}

impl Answers {
    /// Ends each cohort that is led here whose neighbour has ended with the wish to go on as one with it.
    pub(crate) fn give(&mut self, routes: &Routes, node: NodeId) {
        self.proposed.retain(|_, proposing| !proposing.is_finished());
        for (&neighbour, ended) in &routes.hosted {
            let Some((hosted, seal)) = answer(routes, node, neighbour, ended) else { continue };
            let cohort = hosted.descriptor.cohort;
            self.proposed.entry(cohort).or_insert_with(|| {
                tracing::info!(%cohort, with = %neighbour, "ends, to be one with its neighbour");
                propose_seal(hosted, seal)
            });
        }
    }
}

/// Returns the cohort that `neighbour` wants to be one with, and the seal by which it ends; `None` if
/// it should not, or has ended already.
fn answer<'a>(
    routes: &'a Routes,
    node: NodeId,
    neighbour: CohortId,
    ended: &HostedCohort,
) -> Option<(&'a Arc<HostedCohort>, Seal)> {
    // Nearly always none is sealed.
    if !ended.table.is_sealed() {
        return None;
    }
    let Merge { with, successor } = *ended.table.seal()?.1.merge.clone()?;
    if [neighbour, with].iter().any(|id| routes.map.of_cohort(*id).is_none()) {
        return None;
    }
    let hosted = routes.hosted.get(&with).filter(|hosted| !hosted.table.is_sealed())?;
    check_leads(hosted, node).ok()?;
    let config = check_may_end(routes, with).ok()?;
    have_same_nodes(&successor, config).then(|| {
        let successors = vec![alone(hosted, config, node)];
        (hosted, Seal { successors, merge: Some(Merge { with: neighbour, successor }.into()) })
    })
}

/// Returns what goes on from a cohort that ended here `since` ago; `None` as long as that depends on its
/// neighbour.
pub(crate) fn decided(
    routes: &Routes,
    cohort: CohortId,
    hosted: &HostedCohort,
    since: Duration,
) -> Option<Decided> {
    let (at, seal) = hosted.table.seal()?;
    let by_itself = Decided::alone(cohort, at, &seal);
    //= RANGE-21
    let Some(Merge { with, successor }) = seal.merge.as_deref() else { return Some(by_itself) };
    if routes.map.of_cohort(*with).is_none() {
        return Some(by_itself);
    }
    let neighbour = routes.hosted.get(with);
    let Some((neighbour, (other_at, other))) =
        neighbour.and_then(|it| Some((it, it.table.seal()?)))
    else {
        return (since >= NEIGHBOUR_TIMEOUT).then_some(by_itself);
    };
    let answer = Merge { with: cohort, successor: successor.clone() };
    if other.merge.as_deref() != Some(&answer) {
        return Some(by_itself);
    }
    //= RANGE-20
    let mut ended = [(cohort, at), (*with, other_at)];
    if neighbour.descriptor.range.start < hosted.descriptor.range.start {
        ended.reverse();
    }
    Some(Decided::merged(ended, successor.clone()))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use trireme_coordinator::NodeVersion;
    use trireme_coordinator::recipes::invitations::{Invitation, Leaving, Standing, Why};
    use trireme_replication::Replica as _;
    use trireme_storage::{TableOptions, Tables};
    use trireme_types::{Entry, EntryKind, Lsn, Protocol, RangeMap};

    use super::*;
    use crate::backpressure::Backpressure;
    use crate::readers::Readers;
    use crate::routes::NodeDirectory;
    use crate::testing::FakeReplica;

    const ME: NodeId = NodeId(1);
    const LOWER: CohortId = CohortId(1);
    const UPPER: CohortId = CohortId(2);

    struct Fixture {
        replicas: [Arc<FakeReplica>; 2],
        routes: Routes,
        _tables: Tables,
        _folder: TempDir,
    }

    /// Two cohorts of three replicas, of which those here lead.
    fn fixture() -> Fixture {
        let folder = TempDir::new().unwrap();
        let tables = Tables::open(folder.path(), TableOptions::default()).unwrap();
        let map = RangeMap::from_splits(&[Bytes::from("m")]).unwrap();
        let replicas = [LOWER, UPPER].map(|cohort| FakeReplica::new(ME.0, cohort.0));
        let hosted = map.ranges().iter().zip(&replicas).map(|(descriptor, replica)| {
            replica.lead(&[]);
            let table = tables.cohort(descriptor.cohort, descriptor.range.clone()).unwrap();
            let hosted = HostedCohort::start(
                descriptor.clone(),
                replica.clone(),
                table,
                Arc::<NodeDirectory>::default(),
                Backpressure::new(u64::MAX),
                Readers::start().unwrap(),
            );
            (descriptor.cohort, hosted)
        });
        let hosted = hosted.collect();
        let config = |cohort, replicas: [u64; 3]| CohortConfig {
            cohort,
            version: 1,
            protocol: if cohort == LOWER { Protocol::Raft } else { Protocol::Pacifica },
            replicas: replicas.map(NodeId).into(),
            replicas_wanted: 3,
            incarnations: [].into(),
            origin: None,
        };
        let configs = [config(LOWER, [2, 1, 3]), config(UPPER, [3, 2, 1])];
        let configs = configs.map(|config| (config.cohort, config)).into();
        let routes = Routes { map, configs, invitations: [].into(), hosted };
        Fixture { replicas, routes, _tables: tables, _folder: folder }
    }

    impl Fixture {
        fn propose(&self) -> Result<Seal, Refused> {
            let config = &self.routes.configs[&LOWER];
            let hosted = &self.routes.hosted[&LOWER];
            merge_seal(&self.routes, hosted, alone(hosted, config, ME), &Bytes::from("m"))
        }

        fn refused(&self) -> String {
            self.propose().unwrap_err().to_string()
        }

        fn config(&mut self, cohort: CohortId) -> &mut CohortConfig {
            self.routes.configs.get_mut(&cohort).unwrap()
        }

        /// Has the seal be applied here.
        fn seal(&self, cohort: CohortId, seal: &Seal) -> Lsn {
            let table = &self.routes.hosted[&cohort].table;
            let lsn = Lsn::new(4, table.applied().seq + cohort.0);
            table
                .apply(&[Entry { lsn, kind: EntryKind::Commands, payload: seal.encode() }])
                .unwrap();
            lsn
        }

        fn answer(&self) -> Option<Seal> {
            let ended = &self.routes.hosted[&LOWER];
            answer(&self.routes, ME, LOWER, ended).map(|(_, seal)| seal)
        }

        fn decided(&self, cohort: CohortId, since: Duration) -> Option<Decided> {
            decided(&self.routes, cohort, &self.routes.hosted[&cohort], since)
        }
    }

    /// [RANGE-1] [RANGE-20]
    #[tokio::test]
    async fn both_seals_name_one_successor_and_what_goes_on_alone() {
        let fixture = fixture();
        let first = fixture.propose().unwrap();
        let merge = *first.merge.clone().unwrap();
        assert_eq!((merge.with, &merge.successor.range), (UPPER, &KeyRange::all()));
        assert_eq!(merge.successor.protocol, Protocol::Raft, "the lower one's");
        assert_eq!(merge.successor.replicas, [ME, NodeId(2), NodeId(3)]);
        assert_eq!(first.successors[0].range, KeyRange::new("", Some("m")));
        assert_eq!(fixture.answer(), None, "it has not ended yet");
        let at = fixture.seal(LOWER, &first);
        let second = fixture.answer().unwrap();
        assert_eq!(second.merge, Some(Merge { with: LOWER, ..merge.clone() }.into()));
        assert_eq!(second.successors[0].range, KeyRange::new("m", None::<&str>));
        assert_eq!(second.successors[0].protocol, Protocol::Pacifica);
        assert_eq!(fixture.decided(LOWER, Duration::ZERO), None, "it may end yet");
        let other = fixture.seal(UPPER, &second);
        let one = Decided::merged([(LOWER, at), (UPPER, other)], merge.successor);
        for cohort in [LOWER, UPPER] {
            assert_eq!(fixture.decided(cohort, Duration::ZERO).as_ref(), Some(&one));
        }
        assert_eq!(fixture.answer(), None, "it has ended");
    }

    /// [RANGE-21]
    #[tokio::test]
    async fn a_cohort_goes_on_alone_if_its_neighbour_does_not_end_or_with_another_wish() {
        let fixture = fixture();
        let seal = fixture.propose().unwrap();
        let alone = Decided::alone(LOWER, fixture.seal(LOWER, &seal), &seal);
        let soon = NEIGHBOUR_TIMEOUT - Duration::from_millis(1);
        assert_eq!(fixture.decided(LOWER, soon), None);
        assert_eq!(fixture.decided(LOWER, NEIGHBOUR_TIMEOUT).as_ref(), Some(&alone));
        let own = fixture.answer().unwrap();
        let other_wish = Seal { merge: None, ..own };
        let at = fixture.seal(UPPER, &other_wish);
        assert_eq!(fixture.decided(LOWER, Duration::ZERO), Some(alone));
        let upper = Decided::alone(UPPER, at, &other_wish);
        assert_eq!(fixture.decided(UPPER, Duration::ZERO), Some(upper));
    }

    /// [RANGE-21]
    #[tokio::test]
    async fn a_cohort_goes_on_alone_if_its_neighbour_serves_no_range_any_more() {
        let mut fixture = fixture();
        let seal = fixture.propose().unwrap();
        let alone = Decided::alone(LOWER, fixture.seal(LOWER, &seal), &seal);
        let next = [(KeyRange::new("m", None::<&str>), CohortId(7))];
        fixture.routes.map = fixture.routes.map.replace(&[UPPER], next).unwrap().unwrap();
        assert_eq!(fixture.decided(LOWER, Duration::ZERO), Some(alone));
        assert_eq!(fixture.answer(), None);
    }

    /// [RANGE-11] [RANGE-14]
    #[tokio::test]
    async fn no_seal_is_proposed_for_a_merge_that_cannot_be() {
        let mut fixture = fixture();
        fixture.config(UPPER).replicas = [1, 2, 4].map(NodeId).into();
        let reason =
            "the replicas of c1 are on n1, n2, n3 and those of c2 on n1, n2, n4: move them first";
        assert_eq!(fixture.refused(), reason);
        fixture.config(UPPER).replicas.pop();
        assert_eq!(fixture.refused(), "cohort c2 lacks a replica");
        fixture.config(UPPER).replicas.push(NodeId(3));
        fixture.replicas[1].transfer_leader(NodeId(2)).await.unwrap();
        fixture.propose().unwrap();
        let leaving = Some(Leaving { node: NodeId(2), why: Why::Asked });
        let invitation = Invitation { node: NodeId(4), at: 1, leaving };
        let standing = Standing { invitation, version: NodeVersion(1) };
        fixture.routes.invitations.insert(UPPER, standing);
        assert_eq!(fixture.refused(), "a replica of c2 is moving");
        fixture.routes.invitations.clear();

        let seal = fixture.propose().unwrap();
        fixture.seal(LOWER, &seal);
        assert_eq!(fixture.answer(), None, "another node leads the upper one");
        fixture.replicas[1].lead(&[]);
        fixture.config(UPPER).replicas.pop();
        assert_eq!(fixture.answer(), None, "it lacks a replica");
    }
}
