//! The keys of a benchmark.

use bytes::Bytes;

/// The letters that keys are made of.
const LETTERS: u64 = 26;

/// The letters of a key that its number decides; the rest fills it up. 26 to this power still is a
/// 64-bit number.
const PLACES_MAX: usize = 13;

/// Different keys, numbered from 0, that lie evenly in the order of keys whatever part of them is
/// taken: the n-th key stands `n` times the golden section around the circle of all keys, which is
/// how points are added to a circle so that none come to lie close.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    count: u64,
    bytes: usize,
    places: usize,
    /// How many keys of that many places there are.
    circle: u64,
    /// The way from one key to the next: about the golden section of the circle, and without a
    /// factor in common with it, so that no key comes twice.
    step: u64,
    first: u64,
}

impl Keys {
    /// Returns `count` keys of `bytes` bytes; `None` if there are not that many.
    pub(super) fn new(count: u64, bytes: u64, seed: u64) -> Option<Self> {
        let bytes = usize::try_from(bytes).ok()?;
        let places = bytes.min(PLACES_MAX);
        let circle = LETTERS.pow(u32::try_from(places).ok()?);
        // 0.618 of the circle in whole numbers, which keeps the same keys on every machine.
        let section = u128::from(circle) * 618_033_988_749_894_848 / 1_000_000_000_000_000_000;
        let mut step = u64::try_from(section).ok()?.max(1);
        while step.is_multiple_of(2) || step.is_multiple_of(13) {
            step += 1;
        }
        let first = mixed(seed) % circle;
        (count <= circle).then_some(Self { count, bytes, places, circle, step, first })
    }

    /// Returns how many keys there are.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Returns the key of a number. Those below their count come once each, and so do those past it, as
    /// long as there are keys of that many letters.
    pub(super) fn key(&self, number: u64) -> Bytes {
        let way = u128::from(number) * u128::from(self.step) + u128::from(self.first);
        let place = u64::try_from(way % u128::from(self.circle)).expect("below the circle");
        let mut key = vec![0; self.bytes];
        let (deciding, rest) = key.split_at_mut(self.places);
        let mut left = place;
        for letter in deciding.iter_mut().rev() {
            *letter = letter_of(left);
            left /= LETTERS;
        }
        let mut filling = place;
        for letter in rest {
            filling = mixed(filling);
            *letter = letter_of(filling);
        }
        key.into()
    }
}

fn letter_of(number: u64) -> u8 {
    b'a' + u8::try_from(number % LETTERS).expect("below 26")
}

/// Returns a number that looks random and depends on this one alone (the finisher of splitmix64).
pub(super) const fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use trireme_types::{RangeMap, even_splits};

    use super::*;

    #[test]
    fn no_key_comes_twice() {
        for (count, bytes) in [(26, 1), (676, 2), (17_576, 3), (50_000, 16)] {
            let keys = Keys::new(count, bytes, 1).unwrap();
            let distinct: HashSet<Bytes> = (0..count).map(|n| keys.key(n)).collect();
            assert_eq!(distinct.len() as u64, count);
            assert!(distinct.iter().all(|key| key.len() as u64 == bytes));
            assert!(distinct.iter().flatten().all(u8::is_ascii_lowercase));
        }
        assert!(Keys::new(27, 1, 1).is_none());
    }

    #[test]
    fn ranges_get_the_same_number_of_keys() {
        let keys = Keys::new(10_000, 16, 7).unwrap();
        for count in [1, 3, 4, 16] {
            let map = RangeMap::from_splits(&even_splits(count)).unwrap();
            let even = keys.count() / count as u64;
            for range in map.ranges() {
                let inside = (0..keys.count()).filter(|n| range.range.contains(&keys.key(*n)));
                let inside = inside.count() as u64;
                assert!(inside.abs_diff(even) <= even / 50 + 1, "{inside} of {even} in {range:?}");
            }
        }
    }

    #[test]
    fn a_seed_always_makes_the_same_keys() {
        let keys = |seed| Keys::new(100, 16, seed).unwrap();
        assert_eq!(keys(3).key(42), keys(3).key(42));
        assert_ne!(keys(3).key(42), keys(4).key(42));
        assert_eq!(keys(1).key(0), "fnmjnexgwkshtvsx");
    }
}
