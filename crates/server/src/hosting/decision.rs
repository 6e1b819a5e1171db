//! Which replicas a node is to hold, as a function of what is known.

use std::collections::{BTreeMap, BTreeSet};

use trireme_coordinator::recipes::catalog::CatalogState;
use trireme_coordinator::recipes::invitations::{AllInvitations, Invitation};
use trireme_coordinator::recipes::succession::{is_over, successors};
use trireme_types::{CohortConfig, CohortId, NodeId};

/// What the node has of a cohort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Local {
    /// A replica runs.
    pub(super) is_hosted: bool,
    /// There is something of the cohort in the log or in the tables.
    pub(super) has_data: bool,
}

/// What is to change on the node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The cohorts whose replica is to be opened.
    pub(super) open: BTreeSet<CohortId>,
    /// The cohorts whose replica is to be closed, and then what is left of it discarded.
    pub(super) close: BTreeSet<CohortId>,
    /// The cohorts of which something is left here that is needed no more.
    pub(super) discard: BTreeSet<CohortId>,
}

/// Compares what the node is to hold with what it has. A cohort that the catalog does not know is
/// left alone: whatever that means, it does not mean that its rows may go. So is one that is none of its
/// own as long as it is not known whom the cohort invites.
pub(super) fn plan(
    node: NodeId,
    configs: &BTreeMap<CohortId, CohortConfig>,
    invitations: Option<&AllInvitations>,
    local: &BTreeMap<CohortId, Local>,
) -> Plan {
    let mut plan = Plan::default();
    let invited = |cohort: CohortId| Some(invitations?.get(&cohort)?.invitation);
    let of = |cohort| local.get(&cohort).copied().unwrap_or_default();
    let is_to_be_held = |config: &CohortConfig| {
        let invitation = invited(config.cohort).filter(|it| it.node == node);
        let local = of(config.cohort);
        // What it began with elsewhere is here too, or will be.
        let unsettled = config.origin.as_ref().filter(|origin| !origin.is_settled);
        let brings_along = |ended: CohortId| {
            // Its place is another's.
            let leaving = invited(ended).and_then(|it| it.leaving);
            of(ended).has_data && leaving.is_none_or(|leaving| leaving.node != node)
        };
        let inherits =
            unsettled.is_some_and(|origin| origin.seals().all(|(ended, _)| brings_along(ended)));
        (is_to_hold(node, config, invitation, local.has_data || inherits), local)
    };
    let origins = configs.values().filter_map(|config| config.origin.as_ref());
    let ended: BTreeSet<_> =
        origins.flat_map(|origin| origin.seals().map(|(ended, _)| ended)).collect();
    for (&cohort, config) in configs {
        let (mut holds, Local { is_hosted, has_data }) = is_to_be_held(config);
        let mut may_go = invitations.is_some();
        if ended.contains(&cohort) && is_over(configs, cohort) {
            //= RANGE-10
            let waits = successors(configs, cohort).into_iter().any(|successor| {
                // One that has itself ended and is over begins nowhere any more.
                let (holds, local) = is_to_be_held(successor);
                holds && !local.is_hosted && !is_over(configs, successor.cohort)
            });
            if waits {
                // One of them may begin on what is here.
                continue;
            }
            (holds, may_go) = (false, true);
        }
        match (holds, is_hosted) {
            (true, false) => plan.open.insert(cohort),
            (false, true) if may_go => plan.close.insert(cohort),
            (false, false) if may_go && has_data => plan.discard.insert(cohort),
            (_, true) | (false, false) => continue,
        };
    }
    plan
}

/// Returns true if a node is to hold a replica: if it is in the cohort, or is invited to take a member's
/// place; or if the cohort lacks one and the node is invited to be it or was in the cohort before and can
/// come back by itself.
fn is_to_hold(
    node: NodeId,
    config: &CohortConfig,
    invitation: Option<Invitation>,
    has_data: bool,
) -> bool {
    //= RANGE-17
    let is_to_learn = invitation.is_some_and(|it| it.leaving.is_some());
    let is_member = config.replicas.contains(&node);
    let is_missing = config.replicas_missing() > 0;
    is_member || is_to_learn || (is_missing && (invitation.is_some() || has_data))
}

/// Merges what the coordinator sent. A configuration or map that is older than what is known is
/// passed over, since it may come from a member of the coordinator that lags behind.
pub(super) fn merge(known: &mut CatalogState, sent: CatalogState) {
    for (cohort, config) in sent.configs {
        let is_older = known.configs.get(&cohort).is_some_and(|it| it.version > config.version);
        if !is_older {
            known.configs.insert(cohort, config);
        }
    }
    if sent.map.version >= known.map.version {
        (known.map, known.map_revision) = (sent.map, sent.map_revision);
    }
    known.revision = known.revision.max(sent.revision);
}

#[cfg(test)]
mod tests {
    use trireme_coordinator::recipes::catalog::ConfigNodes;
    use trireme_coordinator::recipes::invitations::{Leaving, Standing, Why};
    use trireme_coordinator::{Line, NodeVersion};
    use trireme_types::{ClusterId, Lsn, Origin, Protocol, RangeMap};

    use super::*;

    const ME: NodeId = NodeId(4);
    const HOSTED: Local = Local { is_hosted: true, has_data: true };
    const LEFT_OVER: Local = Local { is_hosted: false, has_data: true };
    const EMPTY: Local = Local { is_hosted: true, has_data: false };
    const NOTHING: Local = Local { is_hosted: false, has_data: false };

    fn config(version: u64, replicas: &[u64]) -> CohortConfig {
        CohortConfig {
            cohort: CohortId(1),
            version,
            protocol: Protocol::Pacifica,
            replicas: replicas.iter().copied().map(NodeId).collect(),
            replicas_wanted: 3,
            incarnations: [].into(),
            origin: None,
        }
    }

    fn invitations(node: u64) -> AllInvitations {
        let invitation = Invitation { node: NodeId(node), at: 1, leaving: None };
        [(CohortId(1), Standing { invitation, version: NodeVersion(1) })].into()
    }

    /// What becomes of the cohort: opened, closed, discarded.
    fn decided(replicas: &[u64], invited: Option<u64>, local: Local) -> [bool; 3] {
        let configs = [(CohortId(1), config(2, replicas))].into();
        let invitations = invited.map(invitations).unwrap_or_default();
        let plan = plan(ME, &configs, Some(&invitations), &[(CohortId(1), local)].into());
        [plan.open, plan.close, plan.discard].map(|set| set.contains(&CohortId(1)))
    }

    const STAYS: [bool; 3] = [false; 3];
    const OPENED: [bool; 3] = [true, false, false];
    const CLOSED: [bool; 3] = [false, true, false];
    const DISCARDED: [bool; 3] = [false, false, true];

    #[test]
    fn a_member_holds_a_replica_whatever_else_is_so() {
        assert_eq!(decided(&[1, 2, 4], None, NOTHING), OPENED);
        assert_eq!(decided(&[1, 4], Some(5), LEFT_OVER), OPENED);
        assert_eq!(decided(&[1, 2, 4], None, HOSTED), STAYS);
    }

    #[test]
    fn an_invited_node_holds_a_replica_as_long_as_one_is_missing() {
        assert_eq!(decided(&[1, 2], Some(4), NOTHING), OPENED);
        assert_eq!(decided(&[1, 2], Some(4), EMPTY), STAYS);
        assert_eq!(decided(&[1, 2], Some(5), NOTHING), STAYS);
        assert_eq!(decided(&[1, 2], None, EMPTY), CLOSED, "the invitation was withdrawn");
        assert_eq!(decided(&[1, 2, 3], Some(4), NOTHING), STAYS, "the invitation is moot");
        assert_eq!(decided(&[1, 2, 3], Some(4), EMPTY), CLOSED);
    }

    /// [RANGE-17] The place of a member is to be taken, of which none is missing.
    #[test]
    fn a_node_that_is_to_take_a_members_place_holds_a_replica_until_it_is_not_invited_any_more() {
        let invited = |is_over: bool, local: Local| {
            let leaving = Some(Leaving { node: NodeId(3), why: Why::Asked });
            let invitation = Invitation { node: ME, at: 1, leaving };
            let standing = Standing { invitation, version: NodeVersion(1) };
            let origin = Some(Origin {
                cohort: CohortId(1),
                seal: Lsn::new(3, 9),
                is_settled: true,
                upper: None,
            });
            let next = CohortConfig { cohort: CohortId(5), origin, ..config(1, &[1, 2, 4]) };
            let mut configs: BTreeMap<_, _> = [(CohortId(1), config(2, &[1, 2, 3]))].into();
            configs.extend(is_over.then_some((CohortId(5), next)));
            let local = [(CohortId(1), local), (CohortId(5), HOSTED)].into();
            let plan = plan(ME, &configs, Some(&[(CohortId(1), standing)].into()), &local);
            [plan.open, plan.close, plan.discard].map(|set| set.contains(&CohortId(1)))
        };
        assert_eq!(invited(false, NOTHING), OPENED);
        assert_eq!(invited(false, HOSTED), STAYS);
        assert_eq!(invited(true, HOSTED), CLOSED, "nothing of it is needed any more");
        assert_eq!(decided(&[1, 2, 3], None, HOSTED), CLOSED, "the invitation was withdrawn");
    }

    /// A node that was started again took itself for one that is not invited, and gave up what its own
    /// successor's replica had begun with.
    #[test]
    fn nothing_goes_before_it_is_known_whom_the_cohorts_invite() {
        let decided = |is_over: bool, local: Local| {
            let origin = Some(Origin {
                cohort: CohortId(1),
                seal: Lsn::new(3, 9),
                is_settled: is_over,
                upper: None,
            });
            let next = CohortConfig { cohort: CohortId(5), origin, ..config(1, &[1, 2, 4]) };
            let configs =
                [config(2, &[1, 2, 3]), next].map(|config| (config.cohort, config)).into();
            let local = [(CohortId(1), local), (CohortId(5), HOSTED)].into();
            let plan = plan(ME, &configs, None, &local);
            [plan.open, plan.close, plan.discard].map(|set| set.contains(&CohortId(1)))
        };
        assert_eq!([decided(false, LEFT_OVER), decided(false, HOSTED)], [STAYS, STAYS]);
        assert_eq!([decided(true, LEFT_OVER), decided(true, HOSTED)], [DISCARDED, CLOSED]);
    }

    /// P13: a replica that was removed because its node was away for a moment comes back with what
    /// it has; once another has taken its place, it goes, and holds no segment of the log any more.
    #[test]
    fn a_removed_replica_stays_until_its_place_is_taken() {
        assert_eq!(decided(&[1, 2], None, HOSTED), STAYS);
        assert_eq!(decided(&[1, 2], Some(5), LEFT_OVER), OPENED);
        assert_eq!(decided(&[1, 2, 3], None, HOSTED), CLOSED);
        assert_eq!(decided(&[1, 2, 3], None, LEFT_OVER), DISCARDED);
        assert_eq!(decided(&[1, 2, 3], None, NOTHING), STAYS);
    }

    /// [RANGE-10]
    #[test]
    fn what_has_ended_stays_until_nothing_of_it_is_needed() {
        let successor = |id, is_settled| CohortConfig {
            cohort: CohortId(id),
            origin: Some(Origin {
                cohort: CohortId(1),
                seal: Lsn::new(3, 9),
                is_settled,
                upper: None,
            }),
            ..config(1, &[1, 2, 4])
        };
        let decided = |settled: [bool; 2], hosted: [bool; 2], ended: Local| {
            let (left, right) = (successor(5, settled[0]), successor(6, settled[1]));
            let all = [config(1, &[1, 2, 4]), left, right];
            let configs = all.into_iter().map(|config| (config.cohort, config)).collect();
            let here = |is_hosted| Local { is_hosted, has_data: is_hosted };
            let local = [
                (CohortId(1), ended),
                (CohortId(5), here(hosted[0])),
                (CohortId(6), here(hosted[1])),
            ];
            let plan = plan(ME, &configs, Some(&AllInvitations::new()), &local.into());
            [plan.open, plan.close, plan.discard].map(|set| set.contains(&CohortId(1)))
        };
        let both = [true, true];
        assert_eq!(decided([true, false], both, HOSTED), STAYS, "the other half needs it");
        assert_eq!(decided([true, false], both, LEFT_OVER), OPENED, "after a restart, too");
        assert_eq!(decided(both, [true, false], HOSTED), STAYS, "this node has not begun yet");
        assert_eq!(decided(both, [true, false], LEFT_OVER), STAYS);
        assert_eq!(decided(both, both, HOSTED), CLOSED);
        assert_eq!(decided(both, both, LEFT_OVER), DISCARDED);
        assert_eq!(decided(both, both, NOTHING), STAYS);
    }

    /// A node that was away while a range changed twice: what its first cohort left there was waited with for
    /// a replica of the second one, which was over, too, and never came. [RANGE-10]
    #[test]
    fn what_has_ended_goes_though_one_that_went_on_from_it_is_over_as_well() {
        let successor = |id, of| CohortConfig {
            cohort: CohortId(id),
            origin: Some(Origin {
                cohort: CohortId(of),
                seal: Lsn::new(3, 9),
                is_settled: true,
                upper: None,
            }),
            ..config(1, &[1, 2, 4])
        };
        let all = [config(1, &[1, 2, 4]), successor(5, 1), successor(6, 1), successor(7, 5)];
        let configs = all.into_iter().map(|config| (config.cohort, config)).collect();
        let decided = |hosted: &[u64]| {
            let here = hosted.iter().map(|&id| (CohortId(id), HOSTED));
            let local = here.chain([(CohortId(1), LEFT_OVER)]).collect();
            plan(ME, &configs, Some(&AllInvitations::new()), &local)
        };
        let ids = |ids: &[u64]| ids.iter().copied().map(CohortId).collect::<BTreeSet<_>>();
        let first = decided(&[]);
        assert_eq!((first.open, first.discard), (ids(&[6, 7]), ids(&[])));
        assert_eq!(decided(&[6, 7]).discard, ids(&[1]));
    }

    /// A node that was away while a cohort of PacificA went on, and was taken out of it, brings along what
    /// the one before left there.
    #[test]
    fn what_has_ended_here_is_brought_along_until_the_next_one_is_settled() {
        let decided = |is_settled, ended: Local, leaving: Option<u64>| {
            let leaving = leaving.map(|node| Leaving { node: NodeId(node), why: Why::Asked });
            let invitation = Invitation { node: NodeId(9), at: 1, leaving };
            let standing = Standing { invitation, version: NodeVersion(1) };
            let invitations = [(CohortId(1), standing)].into();
            let origin =
                Some(Origin { cohort: CohortId(1), seal: Lsn::new(3, 9), is_settled, upper: None });
            let next = CohortConfig { cohort: CohortId(5), origin, ..config(2, &[1, 2]) };
            let configs =
                [config(1, &[1, 2, 4]), next].map(|config| (config.cohort, config)).into();
            let plan = plan(ME, &configs, Some(&invitations), &[(CohortId(1), ended)].into());
            plan.open.contains(&CohortId(5))
        };
        assert!(decided(false, HOSTED, None) && decided(false, LEFT_OVER, Some(3)));
        assert!(!decided(false, NOTHING, None) && !decided(true, HOSTED, None));
        assert!(!decided(false, HOSTED, Some(ME.0)), "another node takes its place");
    }

    #[test]
    fn a_cohort_that_the_catalog_does_not_know_is_left_alone() {
        let local = [(CohortId(9), HOSTED), (CohortId(8), LEFT_OVER)].into();
        assert_eq!(plan(ME, &[].into(), Some(&invitations(4)), &local), Plan::default());
    }

    #[test]
    fn what_is_older_than_what_is_known_is_passed_over() {
        let state = |version, config: CohortConfig| {
            let mut map = RangeMap::from_splits(&[]).unwrap();
            map.version = version;
            let configs = [(CohortId(1), config)].into();
            let line = Line::default();
            let (revision, map_revision, creation) = (7, 7, 0);
            let cluster = ClusterId(1);
            let nodes = ConfigNodes::default();
            CatalogState { line, revision, creation, cluster, map, map_revision, configs, nodes }
        };
        let mut known = state(2, config(5, &[1, 2]));
        merge(&mut known, state(1, config(4, &[1, 2, 3])));
        assert_eq!(known, state(2, config(5, &[1, 2])));
        merge(&mut known, state(3, config(6, &[1, 2, 4])));
        assert_eq!(known, state(3, config(6, &[1, 2, 4])));
    }
}
