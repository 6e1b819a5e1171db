//! Damage to the log of a node that does not run: a bit of it has flipped on its disk. The node must
//! find it when it starts, and start on nothing of it; it comes back as one that has lost its disk.

use std::path::{Path, PathBuf};

use trireme_storage::fs::{Fs as _, MemFs};

use crate::chance::Chance;

/// The folder of the log.
pub(crate) const LOG: &str = "/log";

/// Damage in the newest segments may look like a write that a crash has torn: the log is cut there,
/// since nothing was acknowledged of what lies behind the last block that was forced.
const SPARED: usize = 2;

/// The bits of the polynomial of CRC-32, in the order in which the bits of bytes go into it. What is a
/// multiple of the polynomial changes no checksum, wherever it is added (IEEE 802.3, 3.2.9).
const POLYNOMIAL: [u8; 5] = [0x41, 0x06, 0x71, 0xdb, 0x01];

/// Flips a bit of an older segment, or `forges`: flips as many as leave the checksums right. Returns the
/// segment, and those after it; none, if there is no older one.
pub(crate) fn flip(fs: &MemFs, chance: &mut Chance, forges: bool) -> Option<Vec<PathBuf>> {
    let mut segments: Vec<_> = fs.list(Path::new(LOG)).ok()?;
    segments.retain(|name| name.strip_suffix(".log").is_some_and(is_number));
    segments.sort();
    let older = segments.len().checked_sub(SPARED).filter(|older| *older > 0)?;
    let at = usize::try_from(chance.below(older as u64)).ok()?;
    let paths: Vec<_> = segments[at..].iter().map(|name| Path::new(LOG).join(name)).collect();
    let mut bytes = fs.contents(&paths[0]).ok()?;
    // What was never written is zero, and means nothing.
    let written = bytes.iter().rposition(|byte| *byte != 0)? as u64;
    let byte = usize::try_from(chance.below(written + 1)).ok()?;
    let bit = 1 << chance.below(8);
    match text_from(&bytes, byte).filter(|_| forges) {
        Some(at) => bytes[at..].iter_mut().zip(POLYNOMIAL).for_each(|(byte, bits)| *byte ^= bits),
        None => bytes[byte] ^= bit,
    }
    fs.set_contents(&paths[0], &bytes).ok()?;
    Some(paths)
}

/// Returns where, from a byte on, the bits of the polynomial fit into what a client has written, which is
/// text.
fn text_from(bytes: &[u8], from: usize) -> Option<usize> {
    let mut windows = bytes.windows(POLYNOMIAL.len()).skip(from);
    windows.position(|window| window.iter().all(u8::is_ascii_graphic)).map(|at| from + at)
}

fn is_number(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit())
}
