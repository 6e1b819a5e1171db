//! Backups: the whole state in one file, as `etcdctl snapshot save` fetches it.
//!
//! ```text
//! "TRMCBAK1" | index of the last command in it (u64) | payload length (u64) | payload
//!     | zeros up to a multiple of 512 bytes | SHA-256 of everything before it
//! ```
//! The payload is that of a snapshot. The padding and the checksum are where etcdctl looks for them,
//! which keeps a file whose transfer was cut short from being taken for a backup.

use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"TRMCBAK1";
const HEADER_LEN: usize = 24;
const BLOCK_LEN: usize = 512;
const DIGEST_LEN: usize = 32;

/// Returns the file that holds this state.
pub(super) fn pack(index: u64, payload: &[u8]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    file.extend_from_slice(&index.to_le_bytes());
    file.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    file.extend_from_slice(payload);
    file.resize(file.len().next_multiple_of(BLOCK_LEN), 0);
    let digest = Sha256::digest(&file);
    file.extend_from_slice(&digest);
    file
}

/// Returns the state that a file holds, and its index, or says why it is no backup.
pub(super) fn unpack(file: &[u8]) -> Result<(u64, &[u8]), &'static str> {
    let cut = "it does not match its checksum: it is no backup, or was cut short";
    let (content, digest) =
        file.split_at_checked(file.len().saturating_sub(DIGEST_LEN)).ok_or(cut)?;
    if Sha256::digest(content)[..] != *digest {
        return Err(cut);
    }
    let (header, rest) = content.split_at_checked(HEADER_LEN).ok_or(cut)?;
    if !header.starts_with(MAGIC) {
        return Err("it is a backup of something else, such as an etcd");
    }
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| header[at + byte]));
    let payload = usize::try_from(number(16)).ok().and_then(|length| rest.get(..length));
    payload.map(|payload| (number(8), payload)).ok_or(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_comes_back_and_a_damaged_one_does_not() {
        for length in [0, 1, 487, 488, 489, 5000] {
            let payload = vec![7; length];
            let file = pack(9, &payload);
            assert_eq!(file.len() % BLOCK_LEN, DIGEST_LEN, "as etcdctl wants it");
            assert_eq!(unpack(&file), Ok((9, &payload[..])));
            for at in [0, 8, 16, file.len() / 2, file.len() - 1] {
                let mut damaged = file.clone();
                damaged[at] ^= 1;
                assert!(unpack(&damaged).is_err(), "damage at {at} was passed over");
            }
            for length in [0, 31, 32, file.len() - 1] {
                assert!(unpack(&file[..length]).is_err(), "{length} bytes were taken");
            }
        }
        let mut foreign = vec![1; BLOCK_LEN];
        let digest = Sha256::digest(&foreign);
        foreign.extend_from_slice(&digest);
        assert!(unpack(&foreign).unwrap_err().contains("something else"));
    }
}
