//! Which keys there are, and which of them a caller chooses. Keys are numbers here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::RngExt;
use rand::distr::Distribution;
use rand::rngs::StdRng;
use rand_distr::Zipf;

use crate::suite::KeyChoice;

/// The exponent of the zipfian choice, as YCSB has it.
const ZIPF_EXPONENT: f64 = 0.99;

/// The keys of a cluster, which callers add to.
#[derive(Clone, Debug)]
pub struct Keys {
    filled: u64,
    count: Arc<AtomicU64>,
}

impl Keys {
    /// Returns keys of which so many, at least one, are there before anything is measured.
    pub fn new(filled: u64) -> Self {
        Self { filled, count: Arc::new(AtomicU64::new(filled)) }
    }

    /// Returns how many there were before anything was measured.
    pub const fn filled(&self) -> u64 {
        self.filled
    }

    /// Returns how many there are or are being put.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Adds a key and returns it.
    pub fn add(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    /// Chooses a key for a caller of so many.
    pub fn choose(
        &self,
        choice: KeyChoice,
        (caller, callers): (u64, u64),
        random: &mut StdRng,
    ) -> u64 {
        match choice {
            KeyChoice::Uniform => random.random_range(0..self.filled),
            KeyChoice::Zipfian => spread(zipf(random, self.filled), self.filled),
            KeyChoice::Latest => {
                let count = self.count();
                count - zipf(random, count)
            }
            KeyChoice::One => 0,
            KeyChoice::Own => {
                let first = caller % self.filled;
                let own = (self.filled - first).div_ceil(callers);
                random.random_range(0..own) * callers + first
            }
        }
    }
}

/// Chooses a rank from 1 to `count`, the first ones most.
fn zipf(random: &mut StdRng, count: u64) -> u64 {
    let zipf = Zipf::new(count as f64, ZIPF_EXPONENT).expect("there is at least one key");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at least 1")]
    let rank = zipf.sample(random) as u64;
    rank.clamp(1, count)
}

/// Spreads the keys that are asked for most over all keys, as YCSB's scrambled choice does.
fn spread(rank: u64, keys: u64) -> u64 {
    rank.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_choice_stays_within_the_keys() {
        let mut random = StdRng::seed_from_u64(1);
        let all = [
            KeyChoice::Uniform,
            KeyChoice::Zipfian,
            KeyChoice::Latest,
            KeyChoice::One,
            KeyChoice::Own,
        ];
        for filled in [1, 2, 1000] {
            let keys = Keys::new(filled);
            for choice in all {
                assert!((0..100).all(|at| keys.choose(choice, (at, 100), &mut random) < filled));
            }
        }
    }

    #[test]
    fn few_keys_are_chosen_most_and_new_ones_are_the_latest() {
        let mut random = StdRng::seed_from_u64(1);
        let low = (0..1000).filter(|_| zipf(&mut random, 1000) <= 100).count();
        assert!((500..900).contains(&low), "{low}");
        let keys = Keys::new(1000);
        assert_eq!((keys.add(), keys.add(), keys.count()), (1000, 1001, 1002));
        let mut latest = || keys.choose(KeyChoice::Latest, (0, 1), &mut random);
        assert!((0..1000).filter(|_| latest() >= 1000).count() > 50);
    }

    #[test]
    fn callers_have_keys_of_their_own() {
        let (keys, mut random) = (Keys::new(10), StdRng::seed_from_u64(1));
        for caller in 0..4 {
            let mut own = || keys.choose(KeyChoice::Own, (caller, 4), &mut random);
            assert!((0..50).all(|_| own() % 4 == caller));
        }
    }
}
