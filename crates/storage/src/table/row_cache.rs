//! Rows of files that are kept in memory, so that reading one again needs no file.
//!
//! The cache stands below the memtables and above the files: it may be asked only for a key that no
//! memtable has an entry of. So that it never holds an older row than the files do:
//!
//! * A row that was read from files is kept only if no memtable holds its key by then, and none was
//!   flushed meanwhile ([`Flushes`]): any newer entry would be in one of them.
//! * Before flushed memtables go, the rows of theirs that the cache holds are brought up to date; while
//!   it has room, it takes the others too.

use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lsm_tree::Memtable;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

/// The largest row that is kept, in bytes, with its overhead. To send a larger one takes longer than the
/// switch of threads that it would spare.
const ROW_BYTES_MAX: u64 = 64 * 1024;

/// About what a row takes beside its key and value: two handles, two allocations, the entry, and its
/// place in the index.
const ROW_OVERHEAD: u64 = 160;

/// The parts of the cache, each with a lock and its share of the bytes. A number of its own, not of
/// the processors', so that a run does the same on each machine.
const SHARDS: usize = 16;

/// The bytes of a row by which the cache guesses how many it will hold. It only sizes what is set
/// aside at first.
const ROW_BYTES_GUESS: usize = 1024;

/// Rows by key; an absent row is one too.
pub(super) struct RowCache {
    rows: Cache<Bytes, Option<Bytes>, Weight, Hasher>,
    flushes: AtomicU64,
}

/// How many flushes were over at some moment.
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
            .shards(SHARDS)
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

    /// Returns how many flushes are over. To be taken before a read of files begins.
    pub(super) fn flushes(&self) -> Flushes {
        Flushes(self.flushes.load(Ordering::SeqCst))
    }

    /// Keeps a row that was read from files. The caller has seen, under the lock on the memtables,
    /// that none has an entry of the key and that no flush has ended since the read began.
    pub(super) fn keep(&self, key: &[u8], value: Option<&[u8]>) {
        if weight(key, value) <= ROW_BYTES_MAX {
            self.insert(key, value);
        }
    }

    /// Brings the rows that are kept up to date with memtables that are being flushed, oldest first,
    /// and keeps the others while there is room. Every reader from now on sees all that is in them.
    pub(super) fn update(&self, flushed: &[Arc<Memtable>]) {
        let mut room = self.rows.capacity().saturating_sub(self.rows.weight());
        for memtable in flushed {
            let mut last = None;
            for entry in memtable.iter() {
                // The newest entry of a key comes first.
                if last.as_ref() == Some(&entry.key.user_key) {
                    continue;
                }
                let key = &entry.key.user_key[..];
                if entry.is_tombstone() {
                    // What was deleted is seldom asked for; whole ranges of rows go that way.
                    self.rows.remove(key);
                } else {
                    self.update_row(key, &entry.value, &mut room);
                }
                last = Some(entry.key.user_key);
            }
        }
    }

    /// Brings a row up to date if it is kept, and keeps it if not while there is room.
    fn update_row(&self, key: &[u8], value: &[u8], room: &mut u64) {
        let (is_kept, bytes) = (self.rows.contains_key(key), weight(key, Some(value)));
        if bytes > ROW_BYTES_MAX {
            self.rows.remove(key);
        } else if is_kept || bytes <= *room {
            if !is_kept {
                *room -= bytes;
            }
            self.insert(key, Some(value));
        }
    }

    /// Keeps copies: what is given shares its memory with a whole block of a file, or a client's frame.
    fn insert(&self, key: &[u8], value: Option<&[u8]>) {
        self.rows.insert(Bytes::copy_from_slice(key), value.map(Bytes::copy_from_slice));
    }

    /// Forgets a row, as if others had needed its room.
    #[cfg(test)]
    pub(super) fn forget(&self, key: &[u8]) {
        self.rows.remove(key);
    }

    /// Returns how many bytes the rows take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.rows.weight()
    }

    /// Notes that a flush is over and its memtables go. The caller holds the lock on them, for writing.
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
