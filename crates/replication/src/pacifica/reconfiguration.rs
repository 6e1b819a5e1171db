//! Changes of the configuration (§2.4): what is proposed to the manager, and what becomes of it.

use std::collections::BTreeMap;
use std::time::Duration;

use trireme_types::{CohortConfig, Incarnation, NodeId, Timing};

use super::follower::Following;
use super::leader::Primary;
use super::{Pacifica, Proposal, RoleState};
use crate::core::{Effect, Moment, When};
use crate::streaming::wire::HardState;
use crate::streaming::{Follower, Journal, Stage};

/// For how many leases a secondary may acknowledge nothing of what it was sent, before it counts as
/// one that does not answer. More bears slower disks; fewer ends a stall sooner.
const PREPARE_LEASES: u32 = 3;

/// After how long a proposal is sent again whose fate is not known yet.
const RETRY: Duration = Duration::from_millis(500);

/// How long a replica that was removed for the first time is kept out; each further removal doubles
/// it (P13).
const READMIT_PAUSE: Duration = Duration::from_millis(500);

/// How often the pause is doubled at the most.
const READMIT_DOUBLINGS_MAX: u32 = 7;

/// After how long without another removal a replica's earlier ones count for nothing.
pub(super) const REMOVALS_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// A proposal that is not decided, as far as the replica knows.
#[derive(Debug)]
pub(super) struct Pending {
    /// What it asked for: the direct successor of the configuration that it knew.
    pub(super) config: CohortConfig,
    /// When it asks again.
    pub(super) retry_at: Moment,
}

/// How a replica came to be named as the primary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    /// It is what it had asked for.
    is_mine: bool,
    /// It is the first configuration that it knows.
    is_first: bool,
}

/// What a proposal is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose<'a> {
    /// A secondary takes the place of a primary that is silent.
    TakeOver,
    /// A primary that was restarted goes on under a new version (P7).
    Resume,
    /// A primary goes on without these secondaries.
    Remove(&'a [NodeId]),
    /// A primary adds a candidate that has everything.
    Add(NodeId),
    /// A primary hands over.
    Transfer {
        /// The secondary that is to be the primary.
        to: NodeId,
    },
}

/// When a replica was removed, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removal {
    at: Moment,
    times: u32,
}

impl Removal {
    /// Returns until when the replica is kept out.
    fn until(&self) -> Moment {
        let doublings = (self.times - 1).min(READMIT_DOUBLINGS_MAX);
        self.at + READMIT_PAUSE * 2_u32.pow(doublings)
    }
}

impl Primary {
    /// Returns when the lease of each replica that counts ends.
    pub(super) fn lease_ends(&self, lease: Duration) -> impl Iterator<Item = (NodeId, Moment)> {
        let counting = self.leading.followers.iter().filter(|(_, follower)| follower.is_voter);
        counting.map(move |(node, follower)| {
            let counted = self.counted.get(node).copied().unwrap_or_default();
            // Before its first acknowledgement a secondary gives no lease, and is given the time of
            // one to answer.
            let supported = follower.supported.map_or(Moment::START, |sent| sent + lease);
            // A lease of beacons alone would keep one whose disk hangs (P14).
            //= PAC-25
            let hung = follower.progressed.max(counted) + PREPARE_LEASES * lease;
            (*node, supported.min(hung))
        })
    }
}

impl Pacifica {
    /// Asks the manager for a change, unless it has one to decide already.
    pub(super) fn propose(&mut self, purpose: Purpose<'_>) {
        let Some(known) = &self.config else { return };
        // Of a newer version than the manager has told, nothing is known to build on (P4).
        if self.pending.is_some() || known.version < self.state.promised {
            return;
        }
        let mut replicas = known.replicas.clone();
        match purpose {
            Purpose::TakeOver => {
                let old = replicas.first().copied();
                replicas.retain(|node| *node != self.node && Some(*node) != old);
                replicas.insert(0, self.node);
            }
            Purpose::Resume => {}
            Purpose::Remove(nodes) => replicas.retain(|node| !nodes.contains(node)),
            Purpose::Add(node) => replicas.push(node),
            Purpose::Transfer { to } => {
                replicas.retain(|node| *node != to);
                replicas.insert(0, to);
            }
        }
        let incarnations = self.incarnations_of(&replicas, known);
        let replicas_wanted = known.replicas_wanted();
        let (cohort, protocol, version) = (known.cohort, known.protocol, known.version + 1);
        let config =
            CohortConfig { cohort, version, protocol, replicas, replicas_wanted, incarnations };
        tracing::info!(?purpose, version = config.version, "asking the configuration manager");
        self.pending = Some(Pending { config, retry_at: self.now + RETRY });
        self.ask();
    }

    /// Returns the incarnations of these replicas, as far as they are listed or known.
    fn incarnations_of(
        &self,
        replicas: &[NodeId],
        known: &CohortConfig,
    ) -> BTreeMap<NodeId, Incarnation> {
        //= PAC-45
        let heard = match &self.role {
            RoleState::Primary(primary) => Some(&primary.incarnations),
            _ => None,
        };
        let of = |node: &NodeId| {
            let own = (*node == self.node).then_some(self.incarnation);
            let listed = known.incarnations.get(node).copied();
            own.or(listed).or_else(|| heard?.get(node).copied())
        };
        replicas.iter().filter_map(|node| Some((*node, of(node)?))).collect()
    }

    /// Asks, or asks again for the very same (PAC-34; P4).
    fn ask(&mut self) {
        let Some(pending) = &self.pending else { return };
        //= PAC-34
        let request = Proposal(pending.config.clone());
        self.journal.push(Effect::Coordinate { request, when: When::Now });
    }

    pub(super) fn retry_pending(&mut self) {
        let now = self.now;
        if let Some(pending) = self.pending.as_mut().filter(|pending| pending.retry_at <= now) {
            pending.retry_at = now + RETRY;
            self.ask();
        }
    }

    /// Takes in the newest configuration that the manager tells.
    pub(super) fn on_config(&mut self, config: CohortConfig) {
        let is_news = self.config.as_ref().is_none_or(|known| config.version > known.version);
        if config.cohort != self.cohort || !is_news || config.version < self.state.promised {
            return;
        }
        let decided = self.pending.take_if(|pending| config.version >= pending.config.version);
        let is_mine = decided.is_some_and(|pending| pending.config == config);
        tracing::info!(version = config.version, replicas = ?config.replicas, is_mine, "installed");
        let was_listed = self.is_listed(self.node);
        let is_handed_over = self.config.as_ref().is_some_and(|known| hands_over(known, &config));
        let known = self.config.replace(config);
        let named = Named { is_mine, is_first: known.is_none() };
        self.adopt(named, is_handed_over, was_listed);
    }

    /// Acts in the newest configuration from now on.
    fn adopt(&mut self, named: Named, is_handed_over: bool, was_listed: bool) {
        self.becomes_primary_at = None;
        self.named = None;
        self.stepped_down = None;
        let Some(config) = self.config.clone() else { return };
        if config.replicas.first() != Some(&self.node) {
            self.health.was_replaced();
        }
        let is_listed = config.replicas.contains(&self.node);
        if is_listed && !self.is_the_listed_one(&config) {
            return self.wait_until_taken_out();
        }
        if is_listed && self.state.is_learner {
            // The configuration names this very incarnation: it has all that was acknowledged.
            self.keep(HardState { is_learner: false, ..self.state });
        }
        if config.replicas.first() == Some(&self.node) {
            if !named.is_mine && !is_handed_over && self.is_bound(&config) {
                //= PAC-28
                tracing::info!("named as the primary, and bound to another one for a while");
                self.named = Some(named);
                return;
            }
            self.promise(config.version);
            return self.adopt_as_primary(named);
        }
        self.promise(config.version);
        if is_listed {
            self.adopt_as_secondary(&config);
        } else {
            self.adopt_as_candidate(&config, was_listed);
        }
    }

    /// Returns true if the replica may have promised another primary not to be one yet. It asks for
    /// that only when it is free; but whether it has asked, it does not know after a restart: what it
    /// asked for then may be installed at any time. Who has acted as the primary of this version
    /// before was free when it began.
    fn is_bound(&self, config: &CohortConfig) -> bool {
        let is_primary = matches!(self.role, RoleState::Primary(_));
        let has_acted = config.version <= self.promised_at_start;
        !self.is_new && !is_primary && !has_acted && self.now < self.support.until()
    }

    /// Acts as the primary that it was named as, once it is free to.
    pub(super) fn act_if_free(&mut self) {
        if self.now < self.support.until() {
            return;
        }
        let Some(named) = self.named.take() else { return };
        match &self.config {
            Some(config) if config.version >= self.state.promised => {
                self.promise(config.version);
                self.adopt_as_primary(named);
            }
            _ => {}
        }
    }

    fn adopt_as_primary(&mut self, Named { is_mine, is_first }: Named) {
        if matches!(self.role, RoleState::Primary(_)) {
            return self.go_on_as_primary();
        }
        // What an earlier run of it prepared in this version may be at the secondaries, under the
        // numbers that this one would give out again.
        let may_have_acted = is_first && !self.is_new && !is_mine;
        //= PAC-35
        if may_have_acted && !self.options.faults.resumes_its_version {
            return self.propose(Purpose::Resume);
        }
        // A version that the manager has just installed for it is one that no run of it has
        // acted in. In its first one, it must know after a crash that it may have.
        match self.journal.when_durable() {
            When::Durable(io) if is_first => self.becomes_primary_at = Some(io),
            _ => self.become_primary(),
        }
    }

    /// Goes on in a configuration with the same primary: replicas were removed or added.
    fn go_on_as_primary(&mut self) {
        let (now, node) = (self.now, self.node);
        let Some(config) = &self.config else { return };
        let listed: Vec<_> = config.replicas.iter().copied().filter(|n| *n != node).collect();
        let RoleState::Primary(primary) = &mut self.role else { return };
        primary.leading.epoch = config.version;
        primary.suspended_since = None;
        let named = config.incarnations.iter().filter(|(node, _)| listed.contains(node));
        primary.incarnations.extend(named);
        self.refuse_held_if_too_few();
        let RoleState::Primary(primary) = &mut self.role else { return };
        let gone: Vec<_> = primary
            .leading
            .followers
            .iter()
            .filter(|(node, follower)| follower.is_voter && !listed.contains(node))
            .map(|(node, _)| *node)
            .collect();
        for node in gone {
            primary.forget(now, &mut self.journal, node);
            primary.note_removal(now, node);
        }
        let is_new =
            |node: &NodeId| primary.leading.followers.get(node).is_none_or(|f| !f.is_voter);
        if listed.iter().any(is_new) {
            self.journal.push(Effect::EndReads);
        }
        for &node in &listed {
            let follower = primary.leading.followers.entry(node).or_insert(Follower::new(true));
            follower.is_voter = true;
            primary.counted.entry(node).or_insert(now);
        }
        self.give_up_transfer_to_others_than(&listed);
        let RoleState::Primary(primary) = &mut self.role else { return };
        // What is under way in the old version may be refused by now: who lacks it says so.
        primary.leading.probe_all(now, &mut self.journal);
        self.check_leases();
        self.advance();
    }

    fn adopt_as_secondary(&mut self, config: &CohortConfig) {
        let primary = config.replicas.first().copied();
        let follows = matches!(&self.role, RoleState::Follower(f) if f.leader == primary);
        if let Some(primary) = primary.filter(|_| !follows) {
            self.follow(primary);
        }
    }

    /// Asks to be taken in, with what is in the log: a primary may have counted on it when it asked
    /// the manager to add this replica, and the manager may do so yet. What the primary has not is
    /// dropped where that orders something else (PAC-43; P8).
    fn adopt_as_candidate(&mut self, config: &CohortConfig, was_listed: bool) {
        let primary = config.replicas.first().copied();
        let follows = matches!(&self.role, RoleState::Follower(f) if f.leader == primary);
        if follows && !was_listed {
            return;
        }
        self.set_role(RoleState::Follower(Following::default()));
        //= PAC-43
        if self.options.faults.drops_its_tail {
            self.journal.truncate_after(self.journal.committed().seq);
        }
        if let Some(primary) = primary {
            self.follow(primary);
            self.report_position(primary, config.version);
        }
    }

    /// Returns when a secondary may ask to take the primary's place (PAC-32).
    pub(super) fn may_take_over_from(&self) -> Moment {
        let is_secondary = self.is_listed(self.node)
            && !self.state.is_learner
            && self.primary() != Some(self.node)
            && self.config.as_ref().is_some_and(|config| config.version == self.state.promised);
        // One whose own disk hangs could not lead.
        if !is_secondary || self.pending.is_some() || self.hangs() {
            return Moment::FAR;
        }
        self.support.until()
    }

    pub(super) fn consider_taking_over(&mut self) {
        //= PAC-32
        if self.now >= self.may_take_over_from() {
            tracing::info!("the primary is silent");
            self.propose(Purpose::TakeOver);
        }
    }

    /// Has secondaries taken out that do not renew their lease.
    pub(super) fn remove(&mut self, lapsed: &[NodeId]) {
        let now = self.now;
        let lease = self.options.timing.lease;
        let RoleState::Primary(primary) = &mut self.role else { return };
        // One that has not answered yet is given a lease's time to.
        let due: Vec<_> = lapsed
            .iter()
            .copied()
            .filter(|node| {
                let counted = primary.counted.get(node).copied().unwrap_or_default();
                counted + lease <= now
            })
            .collect();
        if due.is_empty() {
            return;
        }
        if self.would_be_useless_without(&due) {
            return self.step_down_for_others();
        }
        let RoleState::Primary(primary) = &mut self.role else { return };
        //= PAC-33
        primary.suspended_since.get_or_insert(now);
        self.propose(Purpose::Remove(&due));
    }

    /// Returns true if a replica may be brought up to date: one of the configuration, or a candidate
    /// while one is missing (PAC-40).
    pub(super) fn admits(&mut self, node: NodeId, incarnation: Incarnation) -> bool {
        let now = self.now;
        let is_known = self.is_known_as(node, incarnation);
        let Some(config) = &self.config else { return false };
        let is_missing = config.replicas_missing() > 0;
        let RoleState::Primary(primary) = &mut self.role else { return false };
        let serves = primary.serves(now);
        if is_known {
            return true;
        }
        match primary.leading.followers.get(&node) {
            Some(follower) if follower.is_voter => {
                // What the one acknowledged that counts, this one has not: it does not answer for it.
                tracing::warn!(%node, %incarnation, "the replica lost what it acknowledged");
                return false;
            }
            Some(_) => primary.forget(now, &mut self.journal, node),
            None => {}
        }
        let followers = &primary.leading.followers;
        let has_candidate = followers.keys().any(|other| !config.replicas.contains(other));
        let is_kept_out = primary.removals.get(&node).is_some_and(|r| now < r.until());
        //= PAC-40
        if !is_missing || has_candidate || is_kept_out || !serves {
            return false;
        }
        let mut follower = Follower::new(false);
        follower.last_sent_at = Some(now);
        primary.leading.followers.insert(node, follower);
        primary.counted.insert(node, now);
        primary.incarnations.insert(node, incarnation);
        true
    }

    /// Returns true if the primary has asked for this replica to be added.
    pub(super) fn is_adding(&self, node: NodeId) -> bool {
        let Some(pending) = &self.pending else { return false };
        pending.config.replicas.contains(&node) && !self.is_listed(node)
    }

    /// Asks for a candidate to be added, once it is in step and has all that is committed. From now
    /// on nothing is committed, and nothing served, without it (PAC-37; P6).
    pub(super) fn consider_adding(&mut self, node: NodeId) {
        let (now, committed) = (self.now, self.journal.committed());
        let lease = self.options.timing.lease;
        let adds_without_waiting = self.options.faults.adds_without_waiting;
        let is_missing = self.config.as_ref().is_some_and(|config| config.replicas_missing() > 0);
        if self.pending.is_some() || !is_missing {
            return;
        }
        let RoleState::Primary(primary) = &mut self.role else { return };
        if !primary.serves(now) || primary.transfer.is_some() {
            return;
        }
        let lease_until = primary.lease_until;
        let Some(follower) = primary.leading.followers.get_mut(&node) else { return };
        let has_all =
            follower.stage == Stage::Replicating && follower.match_lsn.seq >= committed.seq;
        let supports_until = follower.supported.map_or(Moment::START, |sent| sent + lease);
        if follower.is_voter || !has_all || supports_until <= now {
            return;
        }
        //= PAC-37
        follower.is_voter = !adds_without_waiting;
        primary.counted.insert(node, now);
        if supports_until < lease_until {
            // What was given out with the leases of the others alone would outlast this one's.
            self.journal.push(Effect::EndReads);
        }
        self.propose(Purpose::Add(node));
        self.check_leases();
    }

    /// Forgets candidates that do not answer, or acknowledge nothing of what they are sent: their
    /// candidacy is over, and others may have their turn (PAC-38).
    pub(super) fn forget_silent_candidates(&mut self) {
        let (now, timing) = (self.now, self.options.timing);
        let RoleState::Primary(primary) = &mut self.role else { return };
        let silent: Vec<_> = primary
            .candidates(timing)
            .filter(|(_, end)| *end <= now)
            .map(|(node, _)| node)
            .collect();
        for node in silent {
            //= PAC-38
            tracing::info!(%node, "the candidate does not answer, or makes no progress");
            primary.forget(now, &mut self.journal, node);
            primary.note_end_of_candidacy(now, node);
        }
    }

    pub(super) fn next_silent_candidate(&self, primary: &Primary) -> Option<Moment> {
        primary.candidates(self.options.timing).map(|(_, end)| end).min()
    }
}

impl Primary {
    /// Returns when each candidate counts as one that does not answer, or makes no progress.
    fn candidates(&self, timing: Timing) -> impl Iterator<Item = (NodeId, Moment)> {
        let candidates = self.leading.followers.iter().filter(|(_, follower)| !follower.is_voter);
        candidates.map(move |(node, follower)| {
            let begun = self.counted.get(node).copied();
            let silent = follower.supported.max(begun).unwrap_or_default() + timing.grace;
            // A snapshot on its way brings no acknowledgement: the transport judges whether it comes
            // forward, and reports its end.
            if follower.is_sending {
                return (*node, silent);
            }
            let progressed = follower.progressed.max(begun.unwrap_or_default());
            (*node, silent.min(progressed + PREPARE_LEASES * timing.lease))
        })
    }

    /// Forgets a follower, and which incarnation of it was meant.
    pub(super) fn forget(&mut self, now: Moment, journal: &mut Journal<Pacifica>, node: NodeId) {
        self.leading.forget(now, journal, node);
        self.incarnations.remove(&node);
        self.counted.remove(&node);
    }

    /// Keeps out a candidate that came to nothing, so that another has its turn. Since it
    /// held up no write, it is not kept out for longer the next time.
    fn note_end_of_candidacy(&mut self, now: Moment, node: NodeId) {
        let removal = self.removals.entry(node).or_insert(Removal { at: now, times: 1 });
        removal.at = now;
    }

    /// Returns how many others were taken out, or came to nothing as candidates, within this time, and
    /// are not back.
    pub(super) fn removed_since(&self, now: Moment, time: Duration) -> usize {
        let is_back = |node: &NodeId| self.leading.followers.contains_key(node);
        let removed = self.removals.iter().filter(|(node, _)| !is_back(node));
        removed.filter(|(_, removal)| now < removal.at + time).count()
    }

    fn note_removal(&mut self, now: Moment, node: NodeId) {
        let removal = self.removals.entry(node).or_insert(Removal { at: now, times: 0 });
        if now >= removal.at + REMOVALS_FORGOTTEN_AFTER {
            removal.times = 0;
        }
        *removal = Removal { at: now, times: removal.times + 1 };
    }
}

/// Returns true if `next` is what only the primary of `known` can have asked for, having stopped to
/// serve: it stays, and another replica is the primary.
fn hands_over(known: &CohortConfig, next: &CohortConfig) -> bool {
    let old = known.replicas.first();
    next.version == known.version + 1
        && next.replicas.first() != old
        && old.is_some_and(|old| next.replicas.contains(old))
}
