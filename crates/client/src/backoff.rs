//! Pauses between tries.

use std::time::Duration;

/// Returns the pause after `failures` failures in a row: none after none, then `min`, doubling up
/// to `max`, of which a random part of up to a third is taken off so that callers spread out.
pub(crate) fn pause(failures: u32, min: Duration, max: Duration) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    min.saturating_mul(factor).min(max).mul_f64(rand::random_range(2.0 / 3.0..=1.0))
}

/// Returns `pause` lengthened by a random part of up to a half, so that callers who were all asked
/// to wait the same time spread out.
pub(crate) fn lengthened(pause: Duration) -> Duration {
    pause.saturating_add(pause.mul_f64(rand::random_range(0.0..=0.5)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound() {
        let (min, max) = (Duration::from_millis(8), Duration::from_millis(100));
        assert_eq!(pause(0, min, max), Duration::ZERO);
        for (failures, most) in [(1, 8), (2, 16), (4, 64), (5, 100), (40, 100), (u32::MAX, 100)] {
            let most = Duration::from_millis(most);
            let pause = pause(failures, min, max);
            assert!(pause <= most && pause >= most / 2, "{pause:?} after {failures}");
        }
    }
}
