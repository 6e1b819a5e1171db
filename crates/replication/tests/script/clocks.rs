//! The clocks of the nodes, which show different times and run at different rates.

use std::time::Duration;

use trireme_replication::core::Moment;
use trireme_types::NodeId;

/// What rates are counted in: a clock at this rate is right.
const RIGHT_RATE: u128 = 1_000_000;

/// How much slower or faster than a right clock a skewed one is at the most. Two clocks then run
/// apart by less than a tenth, which a lease of nine tenths of the grace bears.
const RATE_DEVIATION: u64 = 47_000;

/// How far a skewed clock is ahead at the most.
const OFFSET_MAX: Duration = Duration::from_secs(1000);

/// All clocks of a cluster, from a seed; none is skewed if there is no seed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clocks {
    seed: Option<u64>,
}

impl Clocks {
    pub(crate) const fn new(seed: Option<u64>) -> Self {
        Self { seed }
    }

    /// Returns what the node's clock shows at a moment.
    pub(crate) fn local(self, node: NodeId, global: Moment) -> Moment {
        let (offset, rate) = self.skew(node);
        moment(global.since_start().as_nanos() * rate / RIGHT_RATE) + offset
    }

    /// Returns the first moment at which the node's clock shows this.
    pub(crate) fn global(self, node: NodeId, local: Moment) -> Moment {
        let (offset, rate) = self.skew(node);
        let nanos = local.since_start().saturating_sub(offset).as_nanos();
        moment((nanos * RIGHT_RATE).div_ceil(rate))
    }

    fn skew(self, node: NodeId) -> (Duration, u128) {
        let Some(seed) = self.seed else { return (Duration::ZERO, RIGHT_RATE) };
        // The finalizer of SplitMix64.
        let mut mixed = seed ^ node.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let ahead = OFFSET_MAX.mul_f64((mixed % 1000) as f64 / 1000.0);
        let deviation = u128::from((mixed >> 24) % (2 * RATE_DEVIATION));
        (ahead, RIGHT_RATE - u128::from(RATE_DEVIATION) + deviation)
    }
}

fn moment(nanos: u128) -> Moment {
    Moment::after_start(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
}
