//! What always holds of a replica, whatever it was sent: a violation is a fault of this code.

use super::Shared;
use super::primary::Primary;
use crate::core::Moment;

impl Shared {
    /// Returns which invariant of its own the replica has broken in any role, if it has.
    pub(super) fn validate(&self) -> Result<(), String> {
        self.journal.validate()?;
        let (own, kept) = (self.own.incarnation, self.state.incarnation);
        check(kept == Some(own), || format!("{own} is kept as {kept:?}"))?;
        let (Some(config), Some(pending)) = (&self.own.config, &self.own.pending) else {
            return Ok(());
        };
        let (listed, wanted) = (config.replicas.len(), config.replicas_wanted());
        let follows = pending.config.replicas.len() <= wanted.max(listed)
            && pending.config.replicas_wanted() == wanted
            && pending.config.version == config.version + 1;
        check(follows, || format!("{pending:?} does not follow {config:?}"))
    }
}

impl Primary {
    /// Returns which invariant the primary has broken, if it has.
    pub(super) fn validate(&self, cx: &Shared) -> Result<(), String> {
        if cx.own.options.faults.takes_old_versions() {
            // It is the mistake that a primary goes on whatever it hears.
            return Ok(());
        }
        let Some(config) = &cx.own.config else {
            return Err("a primary without a configuration".into());
        };
        check(config.replicas.first() == Some(&cx.node), || {
            format!("primary of {config:?}, which names another")
        })?;
        let (first, version) = (self.leading.no_op.epoch, self.leading.epoch);
        let promised = cx.state.promised;
        check(first <= version && version == promised, || {
            format!("primary in version {version}, and {promised} is promised")
        })?;
        let (until, now) = (self.lease_until, cx.now);
        check(until == Moment::FAR || until <= now + cx.timing.lease, || {
            format!("a lease until {until} at {now}")
        })?;
        self.leading.validate(cx)?;
        self.validate_voters(cx)
    }

    /// Checks that those count which the configuration names, and one candidate at the most beside
    /// them.
    fn validate_voters(&self, cx: &Shared) -> Result<(), String> {
        let Some(config) = &cx.own.config else { return Ok(()) };
        let followers = &self.leading.followers;
        for (node, _) in followers.iter().filter(|(_, follower)| follower.is_voter()) {
            let is_named = config.replicas.contains(node) || cx.own.is_adding(*node);
            check(is_named, || format!("{node} counts, and is not in {config:?}"))?;
        }
        let voters = 1 + self.leading.voters();
        let wanted = config.replicas_wanted().max(config.replicas.len());
        check(voters <= wanted, || format!("{voters} replicas count, and {wanted} are wanted"))?;
        let candidates = followers.keys().filter(|node| !config.replicas.contains(node)).count();
        check(candidates <= 1, || format!("{candidates} candidates at once"))
    }
}

fn check(holds: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use trireme_types::{CohortConfig, CohortId, Incarnation, NodeId, Protocol};

    use super::super::proposal::Pending;
    use super::super::{Newest, Pacifica, PacificaOptions, RoleState};
    use super::*;
    use crate::core::{Core as _, Event, Recovered};
    use crate::streaming::Progress;

    /// Returns the only replica of a cohort that wants two, as its primary.
    fn primary() -> Pacifica {
        let options = PacificaOptions::new(Incarnation(7));
        let mut core =
            Pacifica::new(&Recovered::nothing(), options).expect("the options make sense");
        let config = CohortConfig {
            cohort: CohortId(1),
            version: 1,
            protocol: Protocol::Pacifica,
            replicas: vec![NodeId(1)],
            replicas_wanted: 2,
            incarnations: [].into(),
            origin: None,
        };
        core.handle(Moment::START, Event::Coordination(Newest(config)));
        core.drain_effects(&mut Vec::new());
        core.handle(Moment::START, Event::Durable { upto: trireme_storage::IoId(1) });
        core.drain_effects(&mut Vec::new());
        assert!(matches!(core.role, RoleState::Primary(_)), "{core:?}");
        core
    }

    #[test]
    fn what_breaks_an_invariant_is_named() {
        let broken = |break_it: fn(&mut Pacifica)| {
            let mut core = primary();
            assert_eq!(core.validate(), Ok(()));
            break_it(&mut core);
            core.validate().expect_err("an invariant is broken")
        };
        let propose = |core: &mut Pacifica, version, replicas: &[u64]| {
            let replicas = replicas.iter().copied().map(NodeId).collect();
            let known = core.shared.own.config.clone().expect("it was sent one");
            let config = CohortConfig { version, replicas, ..known };
            core.shared.own.pending = Some(Pending { config, retry_at: Moment::START });
        };
        let too_many = broken(|core| {
            let known = core.shared.own.config.clone().expect("it was sent one");
            let replicas = [1, 2, 3].map(NodeId).to_vec();
            let config = CohortConfig { version: 2, replicas, ..known };
            core.shared.own.pending = Some(Pending { config, retry_at: Moment::START });
        });
        assert!(too_many.contains("does not follow"), "{too_many}");
        let mut core = primary();
        propose(&mut core, 2, &[1, 2]);
        assert_eq!(core.validate(), Ok(()));
        propose(&mut core, 3, &[1, 2]);
        assert!(core.validate().is_err(), "a version is skipped");

        let other_disk = broken(|core| core.shared.own.incarnation = Incarnation(8));
        assert!(other_disk.contains("is kept as"), "{other_disk}");
        let epoch = broken(|core| core.shared.state.promised = 9);
        assert!(epoch.contains("9 is promised"), "{epoch}");
        let lease = broken(|core| {
            let RoleState::Primary(primary) = &mut core.role else { return };
            primary.lease_until = core.shared.now + Duration::from_secs(3600);
        });
        assert!(lease.contains("a lease until"), "{lease}");
        let counts = broken(|core| {
            let RoleState::Primary(primary) = &mut core.role else { return };
            primary.leading.followers.insert(NodeId(2), Progress::probing(true));
        });
        assert!(counts.contains("n2 counts, and is not in"), "{counts}");
        let candidates = broken(|core| {
            let RoleState::Primary(primary) = &mut core.role else { return };
            for node in [2, 3].map(NodeId) {
                let follower = Progress::probing(false);
                primary.leading.followers.insert(node, follower);
            }
        });
        assert!(candidates.contains("2 candidates at once"), "{candidates}");
        let unasked = |listed: &[u64]| {
            let mut core = primary();
            propose(&mut core, 2, listed);
            let RoleState::Primary(primary) = &mut core.role else { panic!("it is the primary") };
            for node in [2, 3].map(NodeId) {
                primary.leading.followers.insert(node, Progress::probing(true));
            }
            primary.validate_voters(&core.shared).expect_err("an invariant is broken")
        };
        let unnamed = unasked(&[1, 3]);
        assert!(unnamed.contains("n2 counts, and is not in"), "{unnamed}");
        let many = unasked(&[1, 2, 3]);
        assert!(many.contains("3 replicas count, and 2 are wanted"), "{many}");
        let usurper = broken(|core| {
            let Some(config) = &mut core.shared.own.config else { return };
            config.replicas = vec![NodeId(2), NodeId(1)];
        });
        assert!(usurper.contains("which names another"), "{usurper}");
    }
}
