//! What always holds of a replica, whatever it was sent: a violation is a fault of this code.

use super::{Pacifica, RoleState};
use crate::core::Moment;

impl Pacifica {
    /// Returns which invariant of its own the replica has broken, if it has any. Called after every
    /// batch of events: a replica that contradicts itself must not go on.
    pub(super) fn validate(&self) -> Result<(), String> {
        let (committed, last) = (self.journal.committed(), self.journal.last());
        check(committed.seq <= last.seq, || format!("{committed} is committed behind {last}"))?;
        let durable = self.journal.durable();
        check(durable.seq <= last.seq, || format!("{durable} is durable behind {last}"))?;
        check(self.state.incarnation == Some(self.incarnation), || {
            format!("{} is kept as {:?}", self.incarnation, self.state.incarnation)
        })?;
        if let Some(config) = &self.config {
            let (listed, wanted) = (config.replicas.len(), config.replicas_wanted());
            let is_proposal_sound = self.pending.as_ref().is_none_or(|pending| {
                pending.config.replicas.len() <= wanted.max(listed)
                    && pending.config.replicas_wanted() == wanted
                    && pending.config.version == config.version + 1
            });
            check(is_proposal_sound, || format!("{:?} does not follow {config:?}", self.pending))?;
        }
        match &self.role {
            RoleState::Primary(_) => self.validate_primary(),
            RoleState::Follower(_) | RoleState::Idle => Ok(()),
        }
    }

    fn validate_primary(&self) -> Result<(), String> {
        let RoleState::Primary(primary) = &self.role else { return Ok(()) };
        if self.options.faults.takes_old_versions {
            // It is the mistake that a primary goes on whatever it hears.
            return Ok(());
        }
        let (now, last) = (self.now, self.journal.last().seq);
        let Some(config) = &self.config else {
            return Err("a primary without a configuration".into());
        };
        check(config.replicas.first() == Some(&self.node), || {
            format!("primary of {config:?}, which names another")
        })?;
        let (epoch, promised) = (primary.leading.epoch, self.state.promised);
        check(primary.first <= epoch && epoch == promised, || {
            format!("primary in version {epoch}, and {promised} is promised")
        })?;
        let longest = now + self.options.timing.lease;
        let is_alone = primary.lease_until == Moment::FAR;
        check(is_alone || primary.lease_until <= longest, || {
            format!("a lease until {} at {now}", primary.lease_until)
        })?;
        let mut counting = 1;
        for (node, follower) in &primary.leading.followers {
            counting += usize::from(follower.is_voter);
            let (acked, next) = (follower.match_lsn.seq, follower.next);
            check(acked < next && next <= last + 1, || {
                format!("{node} has {acked}, is sent {next}, and the log ends at {last}")
            })?;
            check(follower.supported.is_none_or(|sent| sent <= now), || {
                format!("{node} supports what was sent at {:?}, after {now}", follower.supported)
            })?;
            let is_named = follower.is_voter && !config.replicas.contains(node);
            let is_added = self.is_adding(*node);
            check(!is_named || is_added, || format!("{node} counts, and is not in {config:?}"))?;
        }
        let wanted = config.replicas_wanted().max(config.replicas.len());
        check(counting <= wanted, || {
            format!("{counting} replicas count, and {wanted} are wanted")
        })?;
        let unlisted = |node: &&_| !config.replicas.contains(node);
        let candidates = primary.leading.followers.keys().filter(unlisted).count();
        check(candidates <= 1, || format!("{candidates} candidates at once"))
    }
}

fn check(holds: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use trireme_types::{CohortConfig, CohortId, Incarnation, Lsn, NodeId, Protocol};

    use super::super::reconfiguration::Pending;
    use super::super::{Newest, PacificaOptions};
    use super::*;
    use crate::core::{Core as _, EpochRuns, Event, Recovered};

    /// Returns the only replica of a cohort that wants two, as its primary.
    fn primary() -> Pacifica {
        let recovered = Recovered {
            node: NodeId(1),
            cohort: CohortId(1),
            log: EpochRuns::starting_after(Lsn::ZERO),
            hard_state: None,
            commit_point: Lsn::ZERO,
            applied: Lsn::ZERO,
            protocol_state: None,
        };
        let options = PacificaOptions::new(Incarnation(7));
        let mut core = Pacifica::new(&recovered, options).expect("the options make sense");
        let config = CohortConfig {
            cohort: CohortId(1),
            version: 1,
            protocol: Protocol::Pacifica,
            replicas: vec![NodeId(1)],
            replicas_wanted: 2,
            incarnations: [].into(),
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
            let known = core.config.clone().expect("it was told one");
            let config = CohortConfig { version, replicas, ..known };
            core.pending = Some(Pending { config, retry_at: Moment::START });
        };
        let too_many = broken(|core| {
            let known = core.config.clone().expect("it was told one");
            let replicas = [1, 2, 3].map(NodeId).to_vec();
            let config = CohortConfig { version: 2, replicas, ..known };
            core.pending = Some(Pending { config, retry_at: Moment::START });
        });
        assert!(too_many.contains("does not follow"), "{too_many}");
        let mut core = primary();
        propose(&mut core, 2, &[1, 2]);
        assert_eq!(core.validate(), Ok(()));
        propose(&mut core, 3, &[1, 2]);
        assert!(core.validate().is_err(), "a version is skipped");

        let other_disk = broken(|core| core.incarnation = Incarnation(8));
        assert!(other_disk.contains("is kept as"), "{other_disk}");
        let epoch = broken(|core| core.state.promised = 9);
        assert!(epoch.contains("9 is promised"), "{epoch}");
        let lease = broken(|core| {
            let RoleState::Primary(primary) = &mut core.role else { return };
            primary.lease_until = core.now + Duration::from_secs(3600);
        });
        assert!(lease.contains("a lease until"), "{lease}");
        let counts = broken(|core| {
            let RoleState::Primary(primary) = &mut core.role else { return };
            primary.leading.followers.insert(NodeId(2), crate::streaming::Follower::new(true));
        });
        assert!(counts.contains("n2 counts, and is not in"), "{counts}");
        let candidates = broken(|core| {
            let RoleState::Primary(primary) = &mut core.role else { return };
            for node in [2, 3].map(NodeId) {
                let follower = crate::streaming::Follower::new(false);
                primary.leading.followers.insert(node, follower);
            }
        });
        assert!(candidates.contains("2 candidates at once"), "{candidates}");
        let usurper = broken(|core| {
            let Some(config) = &mut core.config else { return };
            config.replicas = vec![NodeId(2), NodeId(1)];
        });
        assert!(usurper.contains("which names another"), "{usurper}");
    }
}
