//! Rows of files that are kept in memory, so that reading one again needs no file.
//!
//! The cache stands below the memtables and above the files: it may be asked only for a key that no
//! memtable has an entry of. So that it never holds an older row than the files do:
//!
//! * A row that was read from files is kept only if no memtable holds its key by then, and none was
//!   given up to the files meanwhile ([`Flushes`]): any newer entry would be in one of them.
//! * Before memtables are given up, the rows of theirs that the cache holds are brought up to date;
//!   while it has room, it takes the others too.

use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lsm_tree::Memtable;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

/// The largest row that is kept, in bytes, with its overhead. Larger ones cost more room than the
/// switch of threads that they spare.
const ROW_BYTES_MAX: u64 = 16 * 1024;

/// What a row costs beside its key and value: two handles, the entry, and its place in the index.
const ROW_OVERHEAD: u64 = 128;

/// The bytes of a row by which the cache guesses how many it will hold. It only sizes what is set
/// aside at first.
const ROW_BYTES_GUESS: usize = 1024;

/// Rows by key; an absent row is one too.
pub(super) struct RowCache {
    rows: Cache<Bytes, Option<Bytes>, Weight, Hasher>,
    flushes: AtomicU64,
}

/// How often memtables had been given up at some moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Flushes(u64);

/// The same in each process, so that a simulated run does the same each time.
type Hasher = BuildHasherDefault<DefaultHasher>;

#[derive(Clone)]
struct Weight;

impl RowCache {
    /// Returns a cache that holds up to about `bytes`.
    pub(super) fn new(bytes: u64) -> Self {
        let guess = usize::try_from(bytes).unwrap_or(usize::MAX) / ROW_BYTES_GUESS;
        let options = OptionsBuilder::new()
            .weight_capacity(bytes)
            .estimated_items_capacity(guess.max(1))
            .build()
            .expect("both numbers are set");
        let lifecycle = DefaultLifecycle::default();
        let rows = Cache::with_options(options, Weight, Hasher::default(), lifecycle);
        Self { rows, flushes: AtomicU64::new(0) }
    }

    /// Returns the value of `key` if it is known; the inner `None` is an absent row's.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.rows.get(key)
    }

    /// Returns how often memtables have been given up. To be taken before a read of files begins.
    pub(super) fn flushes(&self) -> Flushes {
        Flushes(self.flushes.load(Ordering::SeqCst))
    }

    /// Keeps a row that was read from files. The caller has seen, under the lock on the memtables,
    /// that none has an entry of the key and that no memtables were given up since the read began.
    pub(super) fn keep(&self, key: &[u8], value: Option<&Bytes>) {
        if weight(key, value.map(|value| &value[..])) > ROW_BYTES_MAX {
            return;
        }
        // A copy, since a value shares its memory with the whole block that it was read from.
        let value = value.map(|value| Bytes::copy_from_slice(value));
        self.rows.insert(Bytes::copy_from_slice(key), value);
    }

    /// Brings the rows that are kept up to date with memtables that are about to be given up, oldest
    /// first, and keeps the others while there is room. Every reader from now on sees all that is in
    /// them.
    pub(super) fn update(&self, given_up: Vec<Arc<Memtable>>) {
        for memtable in given_up {
            let mut last = None;
            for entry in memtable.iter() {
                // The newest entry of a key comes first.
                if last.as_ref() == Some(&entry.key.user_key) {
                    continue;
                }
                let value = (!entry.is_tombstone()).then_some(&entry.value[..]);
                self.update_row(&entry.key.user_key, value);
                last = Some(entry.key.user_key);
            }
        }
    }

    fn update_row(&self, key: &[u8], value: Option<&[u8]>) {
        let is_kept = self.rows.contains_key(key);
        let bytes = weight(key, value);
        if bytes > ROW_BYTES_MAX {
            self.rows.remove(key);
        } else if is_kept || self.rows.weight() + bytes <= self.rows.capacity() {
            let value = value.map(Bytes::copy_from_slice);
            self.rows.insert(Bytes::copy_from_slice(key), value);
        }
    }

    /// Returns how many bytes the rows take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.rows.weight()
    }

    /// Notes that memtables are given up. The caller holds the lock on them, for writing.
    pub(super) fn note_flush(&self) {
        self.flushes.fetch_add(1, Ordering::SeqCst);
    }
}

impl Weighter<Bytes, Option<Bytes>> for Weight {
    fn weight(&self, key: &Bytes, value: &Option<Bytes>) -> u64 {
        weight(key, value.as_deref())
    }
}

fn weight(key: &[u8], value: Option<&[u8]>) -> u64 {
    (key.len() + value.map_or(0, <[u8]>::len)) as u64 + ROW_OVERHEAD
}
