//! Bringing a replica back that lost its data: under a new incarnation, as a learner first. And bringing
//! one up to date whose node is no member: it stays a learner, until a successor of the cohort has it as
//! a member (RANGE-17).
//!
//! The newcomer asks again and again, and the leader takes one step each time: it makes the newcomer
//! a learner; once that has caught up, it swaps the membership, the predecessor out and the newcomer
//! in, through a joint configuration. The predecessor counts until then and stores nothing, so at no
//! moment does an entry have fewer durable copies than it had; and it never votes again, because
//! what is addressed to it is refused on its node.
//!
//! openraft has the leader that proposed a joint membership propose the final one too, and no other
//! leader: if the first one dies in between, the joint one would last, in which the predecessor counts
//! and every remaining voter must live. So each leader completes a joint membership that it finds.
//!
//! An invited learner asks for as long as it is there. A leader that has not been asked for a while removes
//! it from the membership.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{ChangeMembers, EmptyNode, ServerState};
use parking_lot::Mutex;
use tokio::time::Instant;
use trireme_types::CohortId;

use super::inbound::RaftHandle;
use super::types::{LogId, RaftId, RaftMembership, StoredMembership, lsn_or_zero};

/// How far behind the commit point, in entries, a learner may be when it is made a voter. It has
/// nearly everything then; to have all of it is a race that it need not win under load.
const CAUGHT_UP_LAG: u64 = 256;

/// How many replicas whose nodes are no members are brought up to date at a time.
const INVITED_MAX: usize = 1;

/// After how long without asking an invited learner is taken to be gone: it asks every half second.
const INVITED_SILENT_MAX: Duration = Duration::from_secs(10);

/// Admits one newcomer at a time.
#[derive(Default)]
pub(super) struct Admission {
    is_busy: AtomicBool,
    /// When each invited learner asked last.
    asked: Mutex<BTreeMap<RaftId, Instant>>,
}

/// A replica that asks to be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Newcomer {
    pub(super) id: RaftId,
    /// Its node is no member: it is to learn only.
    pub(super) is_invited: bool,
}

/// What a leader does next for a newcomer.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is a member, or its node never was one, or there is no room for it.
    Nothing,
    AddLearner,
    /// Invited learners are removed from the membership.
    Remove(BTreeSet<RaftId>),
    Wait,
    /// The voters, with the newcomer in place of its predecessor, and the learners that its node
    /// began before and lost again.
    Swap {
        voters: BTreeSet<RaftId>,
        abandoned: BTreeSet<RaftId>,
    },
}

impl Admission {
    /// Takes the next step for a newcomer, if this replica leads.
    pub(super) async fn step(&self, raft: &RaftHandle, cohort: CohortId, newcomer: Newcomer) {
        let Newcomer { id, is_invited } = newcomer;
        if is_invited {
            self.note_asked(id);
        }
        if self.is_busy.swap(true, Ordering::Acquire) {
            return;
        }
        let _free = Busy(&self.is_busy);
        let step = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            if metrics.state != ServerState::Leader {
                return;
            }
            let matched = metrics.replication.iter().flatten();
            let matched = matched.filter(|(known, _)| **known == id);
            let matched = matched.filter_map(|(_, last)| *last).map(|last| last.index + 1).max();
            let committed = metrics.local_committed.map_or(0, |id| id.index + 1);
            let membership = metrics.membership_config.membership();
            match is_invited {
                true => step_of_invited(membership, id),
                false => step(membership, id, matched, committed),
            }
        };
        let done = match step {
            Step::Nothing | Step::Wait => return,
            Step::AddLearner => {
                tracing::info!(%cohort, newcomer = %id, "a replica without data begins as a learner");
                raft.add_learner(id, EmptyNode::default(), false).await
            }
            Step::Remove(ids) => {
                tracing::info!(%cohort, ?ids, "an earlier learner makes room");
                raft.change_membership(ChangeMembers::RemoveNodes(ids), false).await
            }
            Step::Swap { voters, abandoned } => {
                tracing::info!(%cohort, newcomer = %id, "a learner takes its predecessor's place");
                let swap = ChangeMembers::ReplaceAllVoters(voters);
                let removal = ChangeMembers::RemoveNodes(abandoned);
                raft.change_membership(ChangeMembers::Batch(vec![removal, swap]), false).await
            }
        };
        if let Err(error) = done {
            // It asks again.
            tracing::debug!(%cohort, newcomer = %id, %error, "a replica was not admitted yet");
        }
    }

    /// Notes that an invited learner is there. Of those that are long gone nothing is kept.
    fn note_asked(&self, id: RaftId) {
        let mut asked = self.asked.lock();
        asked.retain(|_, at| at.elapsed() < INVITED_SILENT_MAX);
        if asked.len() <= INVITED_MAX || asked.contains_key(&id) {
            asked.insert(id, Instant::now());
        }
    }

    /// Returns the invited learners of a membership that have not asked for long. A leader that began at
    /// `since` may not have been asked before.
    pub(super) fn gone(&self, membership: &RaftMembership, since: Instant) -> BTreeSet<RaftId> {
        if since.elapsed() < INVITED_SILENT_MAX {
            return BTreeSet::new();
        }
        let asked = self.asked.lock();
        let is_gone =
            |id: &RaftId| asked.get(id).is_none_or(|at| at.elapsed() >= INVITED_SILENT_MAX);
        invited(membership).into_iter().filter(is_gone).collect()
    }

    /// Removes invited learners from the membership.
    pub(super) async fn remove(&self, raft: &RaftHandle, cohort: CohortId, gone: BTreeSet<RaftId>) {
        if self.is_busy.swap(true, Ordering::Acquire) {
            return;
        }
        let _free = Busy(&self.is_busy);
        tracing::info!(%cohort, ?gone, "a learner that is gone is removed");
        if let Err(error) = raft.change_membership(ChangeMembers::RemoveNodes(gone), false).await {
            // The next look finds it still there.
            tracing::debug!(%cohort, %error, "a learner was not removed yet");
        }
    }

    /// Proposes the final membership of a change whose leader proposed the joint one alone.
    pub(super) async fn complete(&self, raft: &RaftHandle, cohort: CohortId) {
        if self.is_busy.swap(true, Ordering::Acquire) {
            return;
        }
        let _free = Busy(&self.is_busy);
        tracing::info!(%cohort, "a joint membership is completed");
        // A change that adds nothing to the newer half leads out of the joint membership to it.
        let to_newer_half = ChangeMembers::AddVoterIds(BTreeSet::new());
        if let Err(error) = raft.change_membership(to_newer_half, false).await {
            // The next look finds the joint membership still there.
            tracing::debug!(%cohort, %error, "a joint membership was not completed yet");
        }
    }
}

/// Returns true if a joint membership is committed, so that its final one may be proposed.
pub(super) fn is_committed_joint(stored: &StoredMembership, committed: u64) -> bool {
    let is_joint = stored.membership().get_joint_config().len() > 1;
    is_joint && lsn_or_zero(*stored.log_id()).seq <= committed
}

/// Marks the admission as free when it is dropped, also if its task is aborted.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Returns the learners of a membership whose nodes have no voter.
fn invited(membership: &RaftMembership) -> BTreeSet<RaftId> {
    let members: BTreeSet<u64> = membership.voter_ids().map(|id| id.node).collect();
    membership.nodes().map(|(id, _)| *id).filter(|id| !members.contains(&id.node)).collect()
}

fn step_of_invited(membership: &RaftMembership, newcomer: RaftId) -> Step {
    let invited = invited(membership);
    let is_member = membership.voter_ids().any(|id| id.node == newcomer.node);
    if is_member || invited.contains(&newcomer) {
        return Step::Nothing;
    }
    let earlier: BTreeSet<RaftId> =
        invited.iter().copied().filter(|id| id.node == newcomer.node).collect();
    if !earlier.is_empty() {
        return Step::Remove(earlier);
    }
    match invited.len() < INVITED_MAX {
        true => Step::AddLearner,
        false => Step::Nothing,
    }
}

fn step(
    membership: &RaftMembership,
    newcomer: RaftId,
    matched: Option<u64>,
    committed: u64,
) -> Step {
    let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
    let is_predecessor = |id: &RaftId| id.node == newcomer.node && *id != newcomer;
    if voters.contains(&newcomer) || !voters.iter().any(is_predecessor) {
        return Step::Nothing;
    }
    if !membership.nodes().any(|(id, _)| *id == newcomer) {
        return Step::AddLearner;
    }
    if matched.is_none_or(|matched| matched + CAUGHT_UP_LAG < committed) {
        return Step::Wait;
    }
    let ids = membership.nodes().map(|(id, _)| *id);
    let abandoned = ids.filter(|id| is_predecessor(id) && !voters.contains(id)).collect();
    let mut stay: BTreeSet<RaftId> = voters.into_iter().filter(|id| !is_predecessor(id)).collect();
    stay.insert(newcomer);
    Step::Swap { voters: stay, abandoned }
}

/// Returns true if a replica that came back without its data does not count in its predecessor's place
/// yet. As long as the membership is a joint one, or is not known to be committed, the predecessor still
/// counts as a voter that is away, so that the cohort may not bear the loss of another.
pub(super) fn is_newcomer(id: RaftId, stored: &StoredMembership, committed: Option<LogId>) -> bool {
    let is_committed = (*stored.log_id()).is_some_and(|it| committed >= Some(it));
    let mut configs = stored.membership().get_joint_config().iter();
    id.incarnation != 0 && !(is_committed && configs.all(|voters| voters.contains(&id)))
}

#[cfg(test)]
mod tests {
    use trireme_types::Lsn;

    use super::super::types::log_id;
    use super::*;

    fn id(node: u64, incarnation: u64) -> RaftId {
        RaftId { node, incarnation }
    }

    fn membership(voters: &[RaftId], learners: &[RaftId]) -> RaftMembership {
        let all = voters.iter().chain(learners).copied();
        let voters = voters.iter().copied().collect();
        RaftMembership::new_with_defaults(vec![voters], all.collect::<Vec<_>>())
    }

    #[test]
    fn a_newcomer_learns_first_and_takes_its_predecessors_place_once_it_has_caught_up() {
        let old = [id(1, 0), id(2, 0), id(3, 0)];
        let newcomer = id(3, 9);
        assert_eq!(step(&membership(&old, &[]), newcomer, None, 900), Step::AddLearner);
        let learning = membership(&old, &[newcomer, id(3, 5)]);
        assert_eq!(step(&learning, newcomer, None, 0), Step::Wait, "it has acknowledged nothing");
        assert_eq!(step(&learning, newcomer, Some(100), 900), Step::Wait);
        let swap = Step::Swap {
            voters: [id(1, 0), id(2, 0), newcomer].into(),
            abandoned: [id(3, 5)].into(),
        };
        assert_eq!(step(&learning, newcomer, Some(800), 900), swap);
        let new = membership(&[id(1, 0), id(2, 0), newcomer], &[]);
        assert_eq!(step(&new, newcomer, Some(800), 900), Step::Nothing);
    }

    #[test]
    fn a_node_that_is_no_member_is_not_let_in_by_asking() {
        let two = membership(&[id(1, 0), id(2, 0)], &[]);
        assert_eq!(step(&two, id(3, 9), None, 0), Step::Nothing);
    }

    /// [RANGE-17]
    #[test]
    fn an_invited_replica_learns_and_is_never_made_a_voter() {
        let old = [id(1, 0), id(2, 0), id(3, 0)];
        let newcomer = id(4, 9);
        assert_eq!(step_of_invited(&membership(&old, &[]), newcomer), Step::AddLearner);
        assert_eq!(step_of_invited(&membership(&old, &[newcomer]), newcomer), Step::Nothing);
        let earlier = membership(&old, &[id(4, 5)]);
        assert_eq!(step_of_invited(&earlier, newcomer), Step::Remove([id(4, 5)].into()));
        let other = membership(&old, &[id(5, 5)]);
        assert_eq!(step_of_invited(&other, newcomer), Step::Nothing, "there is no room");
        // The successor of a member's replica is none that is invited.
        let back = membership(&old, &[id(3, 7)]);
        assert_eq!(step_of_invited(&back, newcomer), Step::AddLearner);
        assert_eq!(step_of_invited(&membership(&old, &[]), id(3, 7)), Step::Nothing);
    }

    #[tokio::test(start_paused = true)]
    async fn an_invited_learner_that_asks_no_more_is_gone() {
        let (admission, learner) = (Admission::default(), id(4, 9));
        let learning = membership(&[id(1, 0), id(2, 0), id(3, 0)], &[learner, id(3, 7)]);
        let began = Instant::now();
        assert!(admission.gone(&learning, began).is_empty(), "it may ask yet");
        admission.note_asked(learner);
        tokio::time::advance(INVITED_SILENT_MAX - Duration::from_millis(1)).await;
        admission.note_asked(learner);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(admission.gone(&learning, began).is_empty());
        tokio::time::advance(INVITED_SILENT_MAX).await;
        assert_eq!(admission.gone(&learning, began), [learner].into());
    }

    /// A newcomer that the joint membership lists counts in one of its halves only.
    #[test]
    fn a_newcomer_is_one_until_the_membership_without_its_predecessor_is_committed() {
        let (old, new) = ([id(1, 0), id(2, 0), id(3, 0)], [id(1, 0), id(2, 0), id(3, 9)]);
        let membership = |halves: &[[RaftId; 3]]| {
            let voters = halves.iter().map(|half| half.iter().copied().collect()).collect();
            RaftMembership::new_with_defaults(voters, [])
        };
        let at = |seq| log_id(Lsn::new(1, seq)).unwrap();
        let is_newcomer = |id, membership: &RaftMembership, committed| {
            let stored = StoredMembership::new(Some(at(5)), membership.clone());
            is_newcomer(id, &stored, committed)
        };
        let (joint, last) = (membership(&[old, new]), membership(&[new]));
        for committed in [None, Some(at(4)), Some(at(5))] {
            assert!(is_newcomer(id(3, 9), &joint, committed), "{committed:?}");
            assert!(!is_newcomer(id(1, 0), &joint, committed), "{committed:?}");
        }
        let is_left = |membership: &RaftMembership, committed| {
            is_committed_joint(&StoredMembership::new(Some(at(5)), membership.clone()), committed)
        };
        assert_eq!([4, 5].map(|committed| is_left(&joint, committed)), [false, true]);
        assert!(!is_left(&last, 5), "it is no joint one");
        assert!(is_newcomer(id(3, 9), &last, Some(at(4))));
        assert!(!is_newcomer(id(3, 9), &last, Some(at(5))));
    }
}
