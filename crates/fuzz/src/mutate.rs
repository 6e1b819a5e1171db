//! Inputs that are nearly valid, and some that are not at all.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

/// The most changes that make one input of another.
const CHANGES_MAX: u32 = 6;

/// The most bytes of noise.
const NOISE_BYTES_MAX: usize = 512;

/// How often a piece is repeated at most, to nest or to lengthen what it stands for.
const REPEATS_MAX: usize = 20_000;

/// The most bytes of an input: far more than any limit on nesting, and quick to decode.
const INPUT_BYTES_MAX: usize = 256 * 1024;

/// Numbers at which decoders go wrong, in whatever width.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// What stands in texts.
const WORDS: [&str; 28] = [
    "null",
    "true",
    "-1",
    "0",
    "1e999",
    "1e-999",
    "18446744073709551616",
    "9223372036854775808",
    "-9223372036854775809",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "\\x",
    "\t",
    "\n",
    "\r\n",
    ",",
    ":",
    "#",
    "é",
    "\u{feff}",
    ";",
    "(",
];

/// Returns bytes without a meaning.
pub(crate) fn noise(rng: &mut StdRng) -> Vec<u8> {
    let mut noise = vec![0; rng.random_range(0..=NOISE_BYTES_MAX)];
    rng.fill_bytes(&mut noise);
    // Small bytes are tags, kinds and lengths more often than others.
    if rng.random() {
        noise.iter_mut().for_each(|byte| *byte &= 0x0f);
    }
    noise
}

/// Changes the input in a few places; some of it may come from `other`.
pub(crate) fn mutate(rng: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..rng.random_range(1..=CHANGES_MAX) {
        change(rng, input, other);
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn change(rng: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
    match rng.random_range(0..12) {
        0 if !input.is_empty() => {
            let at = place(rng, input.len());
            input[at] ^= 1 << rng.random_range(0..8);
        }
        1 if !input.is_empty() => {
            let at = place(rng, input.len());
            input[at] = rng.random();
        }
        2 => write_number(rng, input),
        3 => {
            let varint = varint(number(rng));
            insert(rng, input, &varint);
        }
        4 => {
            let range = piece(rng, input.len());
            input.drain(range);
        }
        5 => {
            let at = rng.random_range(0..=input.len());
            input.truncate(at);
        }
        6 => {
            let more = noise(rng);
            input.extend(&more[..more.len().min(64)]);
        }
        7 => {
            let copied = input[piece(rng, input.len())].to_vec();
            insert(rng, input, &copied);
        }
        8 => {
            let taken = other[piece(rng, other.len())].to_vec();
            insert(rng, input, &taken);
        }
        9 => {
            let taken = &other[piece(rng, other.len())];
            let range = piece(rng, input.len());
            input.splice(range, taken.iter().copied());
        }
        10 => {
            let word = WORDS.choose(rng).copied().unwrap_or_default();
            insert(rng, input, word.as_bytes());
        }
        11 if rng.random_ratio(1, 50) => {
            let range = piece(rng, input.len().min(64));
            let word = WORDS.choose(rng).copied().unwrap_or_default();
            let piece = if rng.random() { input[range].to_vec() } else { word.as_bytes().to_vec() };
            let count_max = REPEATS_MAX >> rng.random_range(0..10);
            let count = count_max.min(INPUT_BYTES_MAX / 2 / piece.len().max(1));
            insert(rng, input, &piece.repeat(count));
        }
        _ => {}
    }
}

/// Returns a place, near the beginning more often than elsewhere: there stand lengths and kinds.
fn place(rng: &mut StdRng, len: usize) -> usize {
    if rng.random() { rng.random_range(0..len.min(48)) } else { rng.random_range(0..len) }
}

fn piece(rng: &mut StdRng, len: usize) -> std::ops::Range<usize> {
    let start = rng.random_range(0..=len);
    let longest = if rng.random() { 16 } else { len };
    let end = start + rng.random_range(0..=(len - start).min(longest));
    start..end
}

fn insert(rng: &mut StdRng, input: &mut Vec<u8>, bytes: &[u8]) {
    let at = rng.random_range(0..=input.len());
    input.splice(at..at, bytes.iter().copied());
}

/// Overwrites a number of some width, in either order of bytes.
fn write_number(rng: &mut StdRng, input: &mut [u8]) {
    let width = *[1, 2, 4, 8].choose(rng).unwrap_or(&1);
    if input.len() < width {
        return;
    }
    let at = place(rng, input.len() - width + 1);
    let number = number(rng);
    let bytes = number.to_le_bytes();
    let target = &mut input[at..at + width];
    target.copy_from_slice(&bytes[..width]);
    if rng.random() {
        target.reverse();
    }
}

fn number(rng: &mut StdRng) -> u64 {
    let number = NUMBERS.choose(rng).copied().unwrap_or_default();
    match rng.random_range(0..4) {
        0 => number.wrapping_add(1),
        1 => number.wrapping_sub(1),
        _ => number,
    }
}

/// Returns a number as protobuf and postcard write it.
#[expect(clippy::cast_possible_truncation, reason = "seven bits are taken")]
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}
