//! What a primary counts, and what it says of the age of its commit point, event by event.

use std::time::Duration;

use trireme_replication::core::{Core as _, Effect, EpochRuns, Event, Moment, Recovered, Ticket};
use trireme_replication::pacifica::{Newest, Pacifica, PacificaMessage, PacificaOptions};
use trireme_replication::streaming::Position;
use trireme_storage::IoId;
use trireme_types::{CohortConfig, CohortId, Incarnation, Lsn, NodeId, Protocol};

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);

/// Primary n1 of two.
struct Primary {
    core: Pacifica,
    now: Moment,
    writes: u64,
}

impl Primary {
    fn start() -> Self {
        let recovered = Recovered {
            node: N1,
            cohort: CohortId(1),
            log: EpochRuns::starting_after(Lsn::ZERO),
            hard_state: None,
            commit_point: Lsn::ZERO,
            applied: Lsn::ZERO,
            protocol_state: None,
        };
        let core = Pacifica::new(&recovered, PacificaOptions::new(Incarnation(1)));
        let now = Moment::after_start(Duration::from_secs(10));
        Self { core: core.expect("the disk makes sense"), now, writes: 0 }
    }

    fn tell(&mut self, event: Event<Pacifica>) -> Vec<Effect<Pacifica>> {
        self.core.handle(self.now, event);
        let mut effects = Vec::new();
        self.core.drain_effects(&mut effects);
        let is_write = |effect: &&Effect<_>| matches!(effect, Effect::Persist(_));
        self.writes += effects.iter().filter(is_write).count() as u64;
        effects
    }

    /// Has it be the primary of the first configuration, which n2, that reports as a candidate, is sent
    /// the no-op of.
    fn begin(&mut self) {
        let config = CohortConfig {
            cohort: CohortId(1),
            version: 1,
            protocol: Protocol::Pacifica,
            replicas: vec![N1, N2],
            replicas_wanted: 2,
            incarnations: [(N1, Incarnation(1)), (N2, Incarnation(2))].into(),
            origin: None,
        };
        self.tell(Event::Coordination(Newest(config)));
        self.force();
        let position = Position { committed: Lsn::ZERO, last: Lsn::ZERO, is_learner: true };
        let (epoch, incarnation) = (1, Incarnation(2));
        let message = PacificaMessage::ReportPosition { epoch, position, incarnation };
        let effects = self.tell(Event::Message { from: N2, message });
        let seqs = effects.into_iter().find_map(|effect| match effect {
            Effect::SendLog { seqs, .. } => Some(seqs),
            _ => None,
        });
        let seqs = seqs.expect("it sends its no-op");
        self.tell(Event::LogSent { to: N2, next: seqs.end, seqs });
        self.force();
    }

    /// Has everything that was written become durable.
    fn force(&mut self) {
        let upto = IoId(self.writes);
        self.tell(Event::Durable { upto });
    }

    /// Has n2 acknowledge everything.
    fn acknowledge(&mut self) {
        let upto = self.core.status().last;
        let (epoch, supports, incarnation) = (1, Some(self.now), Incarnation(2));
        let message = PacificaMessage::Prepared { epoch, upto, supports, incarnation };
        self.tell(Event::Message { from: N2, message });
    }

    /// Returns what the beacons say that are due now.
    fn beacon(&mut self) -> Option<Moment> {
        let moment = |effect| match effect {
            Effect::Send { message: PacificaMessage::Beacon(beacon), .. } => beacon.current_at,
            _ => None,
        };
        self.tell(Event::Timeout).into_iter().filter_map(moment).last()
    }
}

/// A replica that the primary has handed over to may be the primary before the leases end: what is
/// acknowledged by that one is not in the commit point that this one still says [PAC-36] [PAC-70].
#[test]
fn what_a_primary_says_once_it_has_handed_over_gets_no_younger() {
    let mut primary = Primary::start();
    primary.begin();
    primary.acknowledge();
    let upto = primary.core.status().committed;
    assert_eq!(upto.seq, 1, "its no-op is committed");
    primary.tell(Event::Applied { upto });
    primary.now = primary.now + Duration::from_millis(200);
    assert_eq!(primary.beacon(), Some(primary.now), "it is the primary");
    primary.acknowledge();
    let handed_over = primary.now;
    primary.tell(Event::TransferLeader { ticket: Ticket(1), to: N2 });
    for _ in 0..3 {
        primary.now = primary.now + Duration::from_millis(200);
        assert_eq!(primary.beacon(), Some(handed_over));
    }
}

/// What a primary has is the newest state until the first of its leases ends, and no longer: it may be
/// cut off, and another be the primary. Before its table holds its no-op it has no age [PAC-70].
#[test]
fn what_a_primary_has_is_the_newest_only_as_long_as_its_leases_last() {
    let mut primary = Primary::start();
    primary.begin();
    primary.acknowledge();
    let no_op = primary.core.status().committed;
    assert_eq!((no_op.seq, primary.core.status().current), (1, None));
    primary.tell(Event::Applied { upto: no_op });
    let lease_end = primary.now + PacificaOptions::new(Incarnation(1)).timing.lease;
    assert_eq!(primary.core.status().current, Some((no_op, lease_end)));
    let acknowledged = primary.now;
    let mut advertised = None;
    while primary.now < lease_end + Duration::from_secs(5) {
        primary.now = primary.now + Duration::from_millis(20);
        advertised = advertised.max(primary.beacon());
        let current = primary.core.status().current;
        assert!(current.is_none_or(|(_, until)| until <= lease_end), "{current:?}");
    }
    assert!(advertised > Some(acknowledged) && advertised <= Some(lease_end), "{advertised:?}");
}

/// Whether a replica counts is for the configuration to say, not for the replica, which may not have
/// heard of the newest [PAC-5].
#[test]
fn a_listed_replica_counts_though_it_reports_as_a_candidate() {
    let mut primary = Primary::start();
    primary.begin();
    assert_eq!(primary.core.status().committed, Lsn::ZERO, "n2 has nothing yet");
    primary.acknowledge();
    assert_eq!(primary.core.status().committed.seq, 1);
}
