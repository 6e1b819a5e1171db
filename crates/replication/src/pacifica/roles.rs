//! Which role a replica has, and how it takes another: by the configuration, or by what it hears.

use std::ops::ControlFlow;

use trireme_types::{CohortConfig, Epoch, Lsn, NodeId};

use super::membership::Named;
use super::primary::{Lead, Primary, StepDown};
use super::proposal::Purpose;
use super::secondary::Secondary;
use super::{Pacifica, PacificaMessage, Shared};
use crate::core::{Ticket, When};
use crate::replica::ReplicaError;
use crate::streaming::wire::HardState;

/// What the replica does in the cohort.
#[derive(Debug)]
pub(super) enum RoleState {
    /// It does not know yet what it is, or has nothing that it could be.
    Idle,
    /// A secondary, or a candidate: the configuration says which.
    Secondary(Secondary),
    Primary(Box<Primary>),
}

/// Acting in a role.
impl Pacifica {
    /// Has the primary act, if the replica is one, and step down, if that is what it comes to.
    pub(super) fn as_primary(&mut self, act: impl FnOnce(&mut Primary, &mut Shared) -> Lead) {
        let RoleState::Primary(primary) = &mut self.role else { return };
        if let ControlFlow::Break(step_down) = act(primary, &mut self.shared) {
            self.step_down(step_down);
        }
    }

    /// Has the secondary or candidate act, if the replica is one.
    pub(super) fn as_secondary(&mut self, act: impl FnOnce(&mut Secondary, &mut Shared)) {
        match &mut self.role {
            RoleState::Secondary(secondary) => act(secondary, &mut self.shared),
            // Without the check an old primary can still write at the new one (P5).
            RoleState::Primary(_) if self.shared.own.options.faults.takes_old_versions() => {
                act(&mut Secondary::default(), &mut self.shared);
            }
            _ => {}
        }
    }

    /// Returns true if a message of a primary may be accepted, and follows that primary (PAC-12).
    pub(super) fn accepts(&mut self, from: NodeId, version: Epoch) -> bool {
        let cx = &mut self.shared;
        let takes_old_versions = cx.own.options.faults.takes_old_versions();
        if matches!(self.role, RoleState::Idle) {
            return false;
        }
        //= PAC-12
        if version < cx.state.promised && !takes_old_versions {
            let epoch = cx.state.promised;
            cx.journal.signal(from, PacificaMessage::RejectStaleEpoch { epoch });
            return false;
        }
        if version <= cx.own.released {
            // It left before its sender stepped down.
            return false;
        }
        // A version has one primary. Of one that is newer than what the manager has sent, the replica
        // that acts in it is the primary.
        let known = cx.own.config.as_ref().filter(|config| config.version == version);
        if known.is_some_and(|config| config.replicas.first() != Some(&from)) {
            return false;
        }
        self.promise(version);
        // Another primary acts in the version that this replica asked for: it will not be its own.
        let cx = &mut self.shared;
        cx.own.pending.take_if(|pending| pending.config.version <= version);
        match &mut self.role {
            RoleState::Secondary(secondary) if secondary.following.leader == Some(from) => {
                secondary.following.heard = Some(cx.now);
            }
            // Without the check an old primary can still write at the new one (P5).
            RoleState::Primary(_) if takes_old_versions => {}
            _ => self.follow(from),
        }
        true
    }

    /// The primary serves no more, so that this replica need not wait for the grace to end.
    pub(super) fn on_step_down(&mut self, from: NodeId, version: Epoch) {
        if !self.accepts(from, version) {
            return;
        }
        //= PAC-27
        let cx = &mut self.shared;
        cx.own.released = version;
        cx.support.release(cx.now);
        self.become_secondary(Secondary::default());
        self.consider_taking_over();
    }

    /// Answers a snapshot from another replica, or has it installed.
    pub(super) fn on_snapshot(&mut self, ticket: Ticket, message: &PacificaMessage, upto: Lsn) {
        let cx = &mut self.shared;
        let PacificaMessage::Snapshot { epoch } = message else {
            return cx.answer_snapshot(ticket);
        };
        if matches!(self.role, RoleState::Idle) {
            // Its position, if it answered at once, would have the same snapshot sent again at once.
            let reason = "the replica does not know its part yet".into();
            return cx.journal.refuse(ticket, ReplicaError::Unavailable(reason));
        }
        if cx.rejects_snapshot(ticket, *epoch) {
            return;
        }
        let is_secondary = matches!(self.role, RoleState::Secondary(_));
        if upto.seq > cx.journal.committed().seq && is_secondary {
            //= PAC-42
            cx.install_snapshot(ticket, upto);
        } else {
            cx.answer_snapshot(ticket);
        }
    }

    pub(super) fn on_peer_alive(&mut self, node: NodeId) {
        match &mut self.role {
            RoleState::Idle => {}
            RoleState::Secondary(secondary) => secondary.following.on_peer_alive(node),
            RoleState::Primary(primary) => primary.leading.probe(&mut self.shared, node),
        }
    }

    pub(super) fn on_timeout(&mut self) {
        self.shared.retry_pending();
        self.act_if_free();
        self.shared.ask_to_go_on();
        match &mut self.role {
            RoleState::Idle => {}
            RoleState::Secondary(secondary) => {
                secondary.on_timeout(&mut self.shared);
                self.consider_taking_over();
            }
            RoleState::Primary(_) => self.as_primary(Primary::on_timeout),
        }
    }

    fn consider_taking_over(&mut self) {
        //= PAC-32
        if self.shared.now >= self.shared.may_take_over_from() {
            tracing::info!("the primary is silent");
            self.shared.propose(Purpose::TakeOver, None);
        }
    }
}

/// Adopting a configuration.
impl Pacifica {
    /// Acts on the newest configuration that the manager sends.
    pub(super) fn on_config(&mut self, config: CohortConfig) {
        let own = &mut self.shared.own;
        let is_news = own.config.as_ref().is_none_or(|known| config.version > known.version);
        let is_old = config.version < self.shared.state.promised;
        if config.cohort != own.cohort || !is_news || is_old {
            return;
        }
        let decided = own.pending.take_if(|pending| config.version >= pending.config.version);
        let is_mine = decided.is_some_and(|pending| pending.config == config);
        tracing::info!(version = config.version, replicas = ?config.replicas, is_mine, "installed");
        let was_listed = own.is_listed(self.shared.node);
        let is_handed_over = own.config.as_ref().is_some_and(|known| hands_over(known, &config));
        let named = Named { is_mine, is_first: own.config.is_none() };
        own.config = Some(config.clone());
        self.adopt(&config, named, is_handed_over, was_listed);
    }

    /// Acts in the newest configuration from now on.
    fn adopt(
        &mut self,
        config: &CohortConfig,
        named: Named,
        is_handed_over: bool,
        was_listed: bool,
    ) {
        let cx = &mut self.shared;
        cx.own.becomes_primary_at = None;
        cx.own.named = None;
        cx.own.stepped_down = None;
        let is_named = config.replicas.first() == Some(&cx.node);
        if !is_named {
            cx.own.health.was_replaced();
        }
        let is_listed = config.replicas.contains(&cx.node);
        if is_listed && !cx.is_the_listed_one(config) {
            return self.wait_until_taken_out();
        }
        if is_listed && cx.state.is_learner {
            // The configuration names this very incarnation: it has all that was acknowledged.
            cx.keep(HardState { is_learner: false, ..cx.state });
        }
        let is_primary = matches!(self.role, RoleState::Primary(_));
        if is_named && !named.is_mine && !is_handed_over && cx.is_bound(config, is_primary) {
            //= PAC-28
            tracing::info!("named as the primary, and bound to another one for a while");
            cx.own.named = Some(named);
            return;
        }
        self.promise(config.version);
        if is_named {
            self.adopt_as_primary(named);
        } else if is_listed {
            self.adopt_as_secondary(config);
        } else {
            self.adopt_as_candidate(config, was_listed);
        }
    }

    /// Acts as the primary that it was named as, once it is free to.
    fn act_if_free(&mut self) {
        let cx = &mut self.shared;
        if cx.now < cx.support.until() {
            return;
        }
        let Some(named) = cx.own.named.take() else { return };
        let version = cx.own.config.as_ref().map(|config| config.version);
        if let Some(version) = version.filter(|version| *version >= cx.state.promised) {
            self.promise(version);
            self.adopt_as_primary(named);
        }
    }

    fn adopt_as_primary(&mut self, Named { is_mine, is_first }: Named) {
        if matches!(self.role, RoleState::Primary(_)) {
            return self.as_primary(Primary::go_on);
        }
        let cx = &mut self.shared;
        // What an earlier run of it prepared in this version may be at the secondaries, under the
        // numbers that this one would give out again.
        let may_have_acted = is_first && !cx.own.is_new && !is_mine;
        //= PAC-35
        if may_have_acted && !cx.own.options.faults.resumes_its_version() {
            return cx.propose(Purpose::Resume, None);
        }
        // A version that the manager has just installed for it is one that no run of it has
        // acted in. In its first one, it must know after a crash that it may have.
        match cx.journal.when_durable() {
            When::Durable(io) if is_first => cx.own.becomes_primary_at = Some(io),
            _ => self.become_primary(),
        }
    }

    fn adopt_as_secondary(&mut self, config: &CohortConfig) {
        let primary = config.replicas.first().copied();
        if let Some(primary) = primary.filter(|_| !self.follows(primary)) {
            self.follow(primary);
        }
    }

    /// Asks to be brought up to date, with what is in the log: a primary may have counted on it when
    /// it asked the manager to add this replica, and the manager may do so yet. What the primary has
    /// not is dropped where that orders something else (PAC-43; P8).
    fn adopt_as_candidate(&mut self, config: &CohortConfig, was_listed: bool) {
        let primary = config.replicas.first().copied();
        if self.follows(primary) && !was_listed {
            return;
        }
        self.become_secondary(Secondary::default());
        let cx = &mut self.shared;
        //= PAC-43
        if cx.own.options.faults.drops_its_tail() {
            cx.journal.truncate_after(cx.journal.committed().seq);
        }
        if let Some(primary) = primary {
            self.follow(primary);
            self.as_secondary(|secondary, cx| {
                secondary.following.report_position(cx, primary, config.version);
            });
        }
    }

    fn follows(&self, primary: Option<NodeId>) -> bool {
        matches!(&self.role, RoleState::Secondary(s) if s.following.leader == primary)
    }
}

/// Taking another role.
impl Pacifica {
    /// Acts in `version` from now on, and in no older one (PAC-12).
    fn promise(&mut self, version: Epoch) {
        let cx = &mut self.shared;
        if version <= cx.state.promised {
            return;
        }
        cx.keep(HardState { promised: version, ..cx.state });
        cx.own.stepped_down = None;
        // The same primary may have begun anew, and not know any position.
        if let RoleState::Secondary(secondary) = &mut self.role {
            secondary.following.is_streaming = false;
            secondary.following.reported_at = None;
        }
    }

    /// Prepares for `primary` from now on.
    fn follow(&mut self, primary: NodeId) {
        let cx = &mut self.shared;
        tracing::info!(%primary, version = cx.state.promised, "following");
        // A new primary is given its time to be heard.
        cx.support.hold(cx.now + cx.timing.grace);
        self.become_secondary(Secondary::of(primary, self.shared.now));
    }

    fn become_secondary(&mut self, secondary: Secondary) {
        let leader = secondary.following.leader;
        self.take_role(RoleState::Secondary(secondary), leader);
    }

    /// Does nothing as long as the configuration stays as it is.
    pub(super) fn become_idle(&mut self) {
        self.take_role(RoleState::Idle, None);
    }

    /// Takes another role. A primary that is none any more ends what it gave out.
    fn take_role(&mut self, role: RoleState, leader: Option<NodeId>) {
        let old = std::mem::replace(&mut self.role, role);
        if let RoleState::Primary(primary) = old {
            primary.end(&mut self.shared, leader);
        }
    }

    /// Becomes the primary of the newest configuration, and reconciles (PAC-30).
    pub(super) fn become_primary(&mut self) {
        let Some(config) = self.shared.own.config.clone() else { return };
        let primary = Primary::begin(&mut self.shared, &config);
        self.take_role(RoleState::Primary(Box::new(primary)), None);
        self.as_primary(|primary, cx| {
            primary.check_leases(cx)?;
            primary.advance(cx);
            ControlFlow::Continue(())
        });
    }

    fn step_down(&mut self, step_down: StepDown) {
        // Every right to read ends before a secondary is freed from its promise.
        self.become_secondary(Secondary::default());
        let cx = &mut self.shared;
        match step_down {
            StepDown::ForOthers => {
                cx.own.stepped_down = Some(cx.now);
                let Some(config) = cx.own.config.clone() else { return };
                let epoch = config.version;
                for to in config.replicas.into_iter().filter(|to| *to != cx.node) {
                    // The data lane may be why it steps down.
                    cx.journal.signal(to, PacificaMessage::StepDown { epoch });
                }
            }
            StepDown::Replaced => (cx.own.pending, cx.own.named) = (None, None),
        }
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

#[cfg(test)]
mod tests {
    use trireme_types::{CohortId, Protocol};

    use super::*;

    fn config(version: Epoch, replicas: &[u64]) -> CohortConfig {
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

    /// A replica that is named as the primary is bound no more if the old one handed over to it, and is
    /// otherwise.
    #[test]
    fn a_hand_over_is_what_only_the_old_primary_can_have_asked_for() {
        let is_one = |version, replicas: &[u64]| {
            hands_over(&config(4, &[1, 2, 3]), &config(version, replicas))
        };
        assert!(is_one(5, &[2, 1, 3]));
        assert!(!is_one(5, &[2, 3]), "n2 took the place of n1");
        assert!(!is_one(5, &[1, 2]), "n1 took out n3");
        assert!(!is_one(6, &[2, 1, 3]), "it is not known who was the primary of version 5");
        assert!(!is_one(3, &[2, 1, 3]));
        assert!(!hands_over(&config(4, &[]), &config(5, &[2])));
    }
}
