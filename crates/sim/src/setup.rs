//! What a run is asked for, and what its seed makes of that.

use std::fmt;
use std::time::Duration;

use trireme_replication::simulation::ClockRate;
use trireme_types::{CohortConfig, CohortId, NodeId, Protocol, Timing};

use crate::chance::Chance;
use crate::mistake::Mistake;
use crate::network::Weather;

/// The one cohort.
pub(crate) const COHORT: CohortId = CohortId(1);

/// By how many thousandths a clock is too fast or too slow at the most: two that differ by this much
/// in either direction differ by less than the tenth for which a grace is longer than a lease.
const DRIFT_MAX: u16 = 45;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The protocol.
    pub protocol: Protocol,
    /// What decides everything else.
    pub seed: u64,
    /// A mistake that is made.
    pub mistake: Option<Mistake>,
}

/// In which way things go wrong in a world.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// Anything, at any time.
    Faults,
    /// Leaders fall in turn.
    Turns,
    /// Clients rest meanwhile.
    Lulls,
}

impl Setup {
    pub(crate) const fn course(&self) -> Course {
        match self.seed % 4 {
            1 => Course::Turns,
            3 => Course::Lulls,
            _ => Course::Faults,
        }
    }
}

/// What a seed has decided of a world before it begins.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// All nodes; those past `replicas` hold no replica at first.
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) replicas: usize,
    pub(crate) timing: Timing,
    pub(crate) weather: Weather,
    /// How fast each node's clock runs.
    pub(crate) clocks: Vec<ClockRate>,
    /// The delays of a disk, in milliseconds.
    pub(crate) disk_delay: (u64, u64),
    pub(crate) segment_bytes: u64,
    pub(crate) cache_bytes: usize,
    pub(crate) min_replicas_for_write: usize,
    pub(crate) clients: u64,
    pub(crate) keys: u64,
    /// The longest pause of a client between two operations, in milliseconds.
    pub(crate) think: u64,
    /// The longest pause between two faults, in milliseconds.
    pub(crate) calm: u64,
    /// How long faults happen.
    pub(crate) faults_for: Duration,
}

impl Plan {
    pub(crate) fn draw(protocol: Protocol, chance: &mut Chance) -> Self {
        let replicas = chance.pick(&[3, 3, 3, 5]);
        let free = if protocol == Protocol::Pacifica { chance.below(2) } else { 0 };
        let timing = match chance.below(3) {
            0 => Timing {
                commit_period: Duration::from_millis(10),
                beacon_interval: Duration::from_millis(50),
                lease: Duration::from_millis(300),
                grace: Duration::from_millis(400),
            },
            _ => Timing::default(),
        };
        let weather = Weather {
            delay: chance.pick(&[(1, 2), (1, 5), (2, 20)]),
            late: chance.pick(&[0, 10, 50]),
            late_by: chance.pick(&[20, 200]),
            lost: chance.pick(&[0, 0, 5, 20]),
        };
        let drifts = chance.one_in(2);
        let mut clock = || {
            let drift = chance.within(0, 2 * u64::from(DRIFT_MAX));
            let drift = i64::try_from(drift).unwrap_or_default() - i64::from(DRIFT_MAX);
            let per_mille = i16::try_from(drift).unwrap_or_default();
            ClockRate { per_mille: if drifts { per_mille } else { 0 } }
        };
        let clocks = (0..replicas + free).map(|_| clock()).collect();
        Self {
            clocks,
            nodes: (1..=replicas + free).map(NodeId).collect(),
            replicas: usize::try_from(replicas).expect("a few"),
            timing,
            weather,
            disk_delay: chance.pick(&[(1, 1), (1, 3), (2, 10)]),
            segment_bytes: chance.pick(&[16 << 10, 64 << 10]),
            // Next to none, so that what is sent and applied is read from the disk.
            cache_bytes: chance.pick(&[0, 4 << 10, 1 << 20]),
            min_replicas_for_write: chance.pick(&[1, 1, 2]),
            clients: chance.within(3, 6),
            keys: chance.within(2, 5),
            think: chance.pick(&[10, 40, 120]),
            calm: chance.pick(&[300, 800, 2000]),
            faults_for: chance.millis(8_000, 16_000),
        }
    }

    /// Returns the configuration that the cohort begins with.
    pub(crate) fn config(&self, protocol: Protocol) -> CohortConfig {
        CohortConfig {
            cohort: COHORT,
            version: 1,
            protocol,
            replicas: self.nodes[..self.replicas].to_vec(),
            replicas_wanted: self.replicas,
            incarnations: [].into(),
            origin: None,
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with seed {}", self.protocol, self.seed)?;
        match self.mistake {
            Some(mistake) => write!(f, " and the mistake {mistake}"),
            None => Ok(()),
        }
    }
}
