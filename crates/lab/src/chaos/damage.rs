//! Damage at rest: a bit that flips in the log of a node that is down.

use std::fs;
use std::path::Path;

use anyhow::Context;
use rand::RngExt;
use rand::rngs::StdRng;

/// Damage in the newest segments may look like a write that a crash has torn, of which nothing was
/// acknowledged.
const SPARED: usize = 2;

/// Flips a bit in an older segment of the log in a node's data folder, where something is written.
/// Returns the segment's name; `None` if there is no older one.
pub(super) fn flip_a_bit(data: &Path, rng: &mut StdRng) -> anyhow::Result<Option<String>> {
    let log = data.join("log");
    let mut segments = Vec::new();
    for entry in fs::read_dir(&log).with_context(|| format!("reading {}", log.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let number = name.strip_suffix(".log");
        if number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
            segments.push(name);
        }
    }
    segments.sort();
    segments.truncate(segments.len().saturating_sub(SPARED));
    if segments.is_empty() {
        return Ok(None);
    }
    let name = segments.swap_remove(rng.random_range(0..segments.len()));
    let path = log.join(&name);
    let mut bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let Some(last) = bytes.iter().rposition(|byte| *byte != 0) else { return Ok(None) };
    bytes[rng.random_range(0..=last)] ^= 1 << rng.random_range(0..8);
    fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    Ok(Some(name))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn one_bit_of_an_older_segment_is_another_one() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let log = folder.path().join("log");
        fs::create_dir(&log).expect("a folder can be made");
        let mut rng = StdRng::seed_from_u64(1);
        let written = [[7; 64], [0; 64]].concat();
        for number in 1..=2 {
            fs::write(log.join(format!("{number:020}.log")), &written).expect("it can be written");
        }
        fs::write(log.join("spare.log"), &written).expect("it can be written");
        let flipped = flip_a_bit(folder.path(), &mut rng).expect("it can be read");
        assert_eq!(flipped, None, "the newest two are spared");
        fs::write(log.join(format!("{:020}.log", 3)), &written).expect("it can be written");
        let flipped = flip_a_bit(folder.path(), &mut rng).expect("it can be written");
        assert_eq!(flipped, Some(format!("{:020}.log", 1)));
        let found = fs::read(log.join(format!("{:020}.log", 1))).expect("it can be read");
        let bits = found.iter().zip(&written).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        assert_eq!((bits, &found[64..]), (1, &written[64..]));
    }
}
