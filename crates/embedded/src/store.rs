//! The multi-version store: every key's values by revision, and the leases that keys hang on.
//!
//! A revision is one transaction that changed something; its changes are numbered within it. A
//! reader names a revision and sees the keys as they stood there, down to the compaction. The
//! store is a plain value: it knows neither disk nor clock, so that applying the same commands to
//! two stores makes them equal, which is what recovery rests on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use etcd_client::proto::PbKeyValue;
use serde::{Deserialize, Serialize};

use super::fault::Refusal;

/// The revision of a store in which nothing was ever written, as in etcd.
pub(super) const FIRST_REVISION: i64 = 1;

/// No lease.
pub(super) const NO_LEASE: i64 = 0;

/// Bytes that the bookkeeping of one version of a key is reckoned to take beside key and value.
const VERSION_OVERHEAD: usize = 96;

/// One key's state from one revision on, until the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyVersion {
    /// The revision that made it.
    pub modified: i64,
    /// The revision that created the key, which deletion forgets.
    pub created: i64,
    /// How many times the key was written since its creation.
    pub version: i64,
    /// The lease that the key hangs on, or [`NO_LEASE`].
    pub lease: i64,
    /// The value; `None` if the revision deleted the key.
    pub value: Option<Bytes>,
}

/// A promise to keep some keys for a while. How long it still runs is not the store's to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// Seconds that the lease lives after each keep-alive.
    pub ttl: i64,
    /// The keys that go when it goes.
    pub keys: BTreeSet<Bytes>,
}

/// An interval of keys as requests name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    start: Bytes,
    end: IntervalEnd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum IntervalEnd {
    Single,
    Before(Bytes),
    Unbounded,
}

impl Interval {
    /// Reads a request's key and range end: no end means the key alone, a zero byte means every
    /// key from `key` on.
    pub(super) fn new(key: &[u8], range_end: &[u8]) -> Self {
        let end = match range_end {
            [] => IntervalEnd::Single,
            [0] => IntervalEnd::Unbounded,
            end => IntervalEnd::Before(Bytes::copy_from_slice(end)),
        };
        Self { start: Bytes::copy_from_slice(key), end }
    }

    /// Reads a request's key and range end as etcd does where it looks for changes of one
    /// transaction that overlap: there, a zero byte is an end like any other.
    pub(super) fn literal(key: &[u8], range_end: &[u8]) -> Self {
        let end = match range_end {
            [] => IntervalEnd::Single,
            end => IntervalEnd::Before(Bytes::copy_from_slice(end)),
        };
        Self { start: Bytes::copy_from_slice(key), end }
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            IntervalEnd::Single => key == &self.start[..],
            IntervalEnd::Before(end) => key >= &self.start[..] && key < &end[..],
            IntervalEnd::Unbounded => key >= &self.start[..],
        }
    }

    /// Says whether no key can lie in it.
    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.end, IntervalEnd::Before(end) if *end <= self.start)
    }

    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let start = Bound::Included(&self.start[..]);
        match &self.end {
            IntervalEnd::Single => (start, Bound::Included(&self.start[..])),
            IntervalEnd::Before(end) => (start, Bound::Excluded(&end[..])),
            IntervalEnd::Unbounded => (start, Bound::Unbounded),
        }
    }
}

/// A change as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The key with its value, or, of a deletion, the key and the revision of its end alone.
    pub kv: PbKeyValue,
    /// Whether the key was deleted.
    pub deleted: bool,
    /// What the key was before, if it was and if that is not compacted.
    pub previous: Option<PbKeyValue>,
}

/// The store. Its state is what commands have made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Store {
    revision: i64,
    /// Revisions below it cannot be read any more. -1 before the first compaction, as in etcd.
    compacted: i64,
    /// Every version of each key, oldest first; never an empty list.
    keys: BTreeMap<Bytes, VecDeque<KeyVersion>>,
    /// The keys that each revision changed, in the order of its operations.
    changes: BTreeMap<i64, Vec<Bytes>>,
    leases: BTreeMap<i64, Lease>,
    /// Bytes that keys and values of all versions take, by our reckoning.
    bytes: usize,
    /// The part of `bytes` that the revisions of `changes` have added.
    history_bytes: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            revision: FIRST_REVISION,
            compacted: -1,
            keys: BTreeMap::new(),
            changes: BTreeMap::new(),
            leases: BTreeMap::new(),
            bytes: 0,
            history_bytes: 0,
        }
    }
}

impl Store {
    /// Returns the revision of the newest transaction that changed something.
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// Returns the revision below which nothing can be read.
    pub(super) fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Returns roughly how many bytes of memory the store takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns roughly how many bytes the revisions of history have written.
    pub(super) fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    /// Returns how many revisions of history are kept.
    pub(super) fn history_len(&self) -> usize {
        self.changes.len()
    }

    /// Returns the leases by their identifiers.
    pub(super) fn leases(&self) -> &BTreeMap<i64, Lease> {
        &self.leases
    }

    /// Starts a transaction, whose changes make one revision together.
    pub(super) fn write(&mut self) -> WriteTxn<'_> {
        WriteTxn { begin: self.revision, changed: Vec::new(), store: self }
    }

    /// Returns the keys of `interval` as they stood at `at`, and how many there are; the list
    /// ends after `limit` of them.
    pub(super) fn range(
        &self,
        interval: &Interval,
        at: i64,
        limit: usize,
    ) -> (Vec<PbKeyValue>, usize) {
        let mut found = Vec::new();
        let mut count = 0;
        if interval.is_empty() {
            return (found, count);
        }
        for (key, versions) in self.keys.range::<[u8], _>(interval.bounds()) {
            let Some(version) = version_at(versions, at) else { continue };
            let Some(value) = &version.value else { continue };
            count += 1;
            if found.len() < limit {
                found.push(key_value(key, version, value));
            }
        }
        (found, count)
    }

    /// Returns whether `at` may be read in a store whose newest revision is `current`, and the
    /// revision that it stands for: 0 and less stand for the newest.
    pub(super) fn readable(&self, at: i64, current: i64) -> Result<i64, Refusal> {
        if at > current {
            return Err(Refusal::FutureRevision);
        }
        let at = if at <= 0 { current } else { at };
        if at < self.compacted {
            return Err(Refusal::Compacted);
        }
        Ok(at)
    }

    /// Returns the oldest revision at or after `from` that changed a key of `interval`, with its
    /// changes.
    pub(super) fn next_changes(
        &self,
        interval: &Interval,
        from: i64,
        with_previous: bool,
    ) -> Option<(i64, Vec<Change>)> {
        for (&revision, keys) in self.changes.range(from..) {
            let mut changes = Vec::new();
            for (position, key) in keys.iter().enumerate() {
                if interval.contains(key) {
                    let earlier = keys[..position].iter().filter(|other| *other == key).count();
                    changes.extend(self.change(key, revision, earlier, with_previous));
                }
            }
            if !changes.is_empty() {
                return Some((revision, changes));
            }
        }
        None
    }

    /// Returns the change of `key` in `revision` that stands behind `earlier` others of the same
    /// key: one transaction can delete a key and put it again.
    fn change(
        &self,
        key: &Bytes,
        revision: i64,
        earlier: usize,
        with_previous: bool,
    ) -> Option<Change> {
        let versions = self.keys.get(key)?;
        let first = versions.partition_point(|version| version.modified < revision);
        let version = versions.get(first + earlier).filter(|v| v.modified == revision)?;
        let had_previous = with_previous && revision > self.compacted;
        let previous = (had_previous && version.created != revision)
            .then(|| version_at(versions, revision - 1))
            .flatten()
            .and_then(|v| v.value.as_ref().map(|value| key_value(key, v, value)));
        let kv = match &version.value {
            Some(value) => key_value(key, version, value),
            None => {
                PbKeyValue { key: key.to_vec(), mod_revision: revision, ..PbKeyValue::default() }
            }
        };
        Some(Change { kv, deleted: version.value.is_none(), previous })
    }

    /// Forgets everything that only revisions below `at` could see.
    pub(super) fn compact(&mut self, at: i64) -> Result<(), Refusal> {
        if at <= self.compacted {
            return Err(Refusal::Compacted);
        }
        if at > self.revision {
            return Err(Refusal::FutureRevision);
        }
        self.compacted = at;
        let kept = self.changes.split_off(&at);
        let dropped = std::mem::replace(&mut self.changes, kept);
        let dropped_bytes = dropped.iter().map(|(&r, keys)| self.revision_bytes(r, keys));
        self.history_bytes = self.history_bytes.saturating_sub(dropped_bytes.sum());
        let mut freed = 0;
        self.keys.retain(|key, versions| {
            let visible = versions.partition_point(|v| v.modified <= at);
            let mut drop_count = visible.saturating_sub(1);
            // A deletion below the compaction is seen by nobody; one at it, by those who watch
            // from there.
            if visible > 0 && versions[visible - 1].value.is_none() {
                drop_count += usize::from(versions[visible - 1].modified < at);
            }
            freed += versions.drain(..drop_count).map(|v| cost(key, &v)).sum::<usize>();
            !versions.is_empty()
        });
        self.bytes = self.bytes.saturating_sub(freed);
        Ok(())
    }

    /// Returns the revision to compact to, so that at most `revisions` of history are left, and
    /// about `bytes`; `None` if there is no more than that.
    pub(super) fn compaction_due(&self, revisions: usize, bytes: usize) -> Option<i64> {
        let mut left_bytes = 0;
        let mut target = None;
        for (count, (&revision, keys)) in self.changes.iter().rev().enumerate() {
            left_bytes += self.revision_bytes(revision, keys);
            if count >= revisions || left_bytes > bytes {
                target = Some(revision);
                break;
            }
        }
        target.filter(|&revision| revision > self.compacted)
    }

    fn revision_bytes(&self, revision: i64, keys: &[Bytes]) -> usize {
        let versions = keys.iter().filter_map(|key| {
            let version = version_at(self.keys.get(key)?, revision)?;
            (version.modified == revision).then(|| cost(key, version))
        });
        versions.sum()
    }

    /// Adds a lease. Its identifier must be free.
    pub(super) fn grant(&mut self, id: i64, ttl: i64) -> Result<(), Refusal> {
        if id == NO_LEASE {
            return Err(Refusal::LeaseNotFound);
        }
        if self.leases.contains_key(&id) {
            return Err(Refusal::LeaseExists);
        }
        self.leases.insert(id, Lease { ttl, keys: BTreeSet::new() });
        Ok(())
    }

    /// Takes a lease away and, in one revision, the keys that hang on it.
    pub(super) fn revoke(&mut self, id: i64) -> Result<(), Refusal> {
        let keys = self.leases.get(&id).ok_or(Refusal::LeaseNotFound)?.keys.clone();
        let mut txn = self.write();
        for key in keys {
            txn.delete_range(&Interval { start: key, end: IntervalEnd::Single });
        }
        txn.end();
        self.leases.remove(&id);
        Ok(())
    }
}

/// A transaction under way. What it has changed, its own reads see.
pub(super) struct WriteTxn<'a> {
    store: &'a mut Store,
    begin: i64,
    changed: Vec<Bytes>,
}

impl WriteTxn<'_> {
    /// Returns the revision that a read in the transaction sees as the newest.
    pub(super) fn revision(&self) -> i64 {
        self.begin + i64::from(!self.changed.is_empty())
    }

    /// Returns the store, changes so far included.
    pub(super) fn store(&self) -> &Store {
        self.store
    }

    /// Gives `key` a value and moves it to `lease`, which must exist.
    pub(super) fn put(&mut self, key: Bytes, value: Bytes, lease: i64) {
        let revision = self.begin + 1;
        let previous = self.store.keys.get(&key).and_then(VecDeque::back);
        let alive = previous.filter(|version| version.value.is_some());
        let (created, version) = alive.map_or((revision, 1), |v| (v.created, v.version + 1));
        let old_lease = alive.map_or(NO_LEASE, |v| v.lease);
        let value = Some(value);
        self.push(key.clone(), KeyVersion { modified: revision, created, version, lease, value });
        self.detach(old_lease, &key);
        if let Some(lease) = self.store.leases.get_mut(&lease) {
            lease.keys.insert(key);
        }
    }

    /// Deletes the keys of `interval` and returns how many there were.
    pub(super) fn delete_range(&mut self, interval: &Interval) -> i64 {
        if interval.is_empty() {
            return 0;
        }
        let alive = |versions: &VecDeque<KeyVersion>| {
            versions.back().filter(|v| v.value.is_some()).map(|v| v.lease)
        };
        let doomed: Vec<(Bytes, i64)> = self
            .store
            .keys
            .range::<[u8], _>(interval.bounds())
            .filter_map(|(key, versions)| Some((key.clone(), alive(versions)?)))
            .collect();
        let mut deleted = 0;
        for (key, lease) in doomed {
            let modified = self.begin + 1;
            let end = KeyVersion { modified, created: 0, version: 0, lease: NO_LEASE, value: None };
            self.detach(lease, &key);
            self.push(key, end);
            deleted += 1;
        }
        deleted
    }

    /// Ends the transaction: its changes, if any, are now a revision.
    pub(super) fn end(self) {
        if !self.changed.is_empty() {
            self.store.revision = self.begin + 1;
            self.store.changes.insert(self.begin + 1, self.changed);
        }
    }

    fn push(&mut self, key: Bytes, version: KeyVersion) {
        let cost = cost(&key, &version);
        self.store.bytes += cost;
        self.store.history_bytes += cost;
        self.store.keys.entry(key.clone()).or_default().push_back(version);
        self.changed.push(key);
    }

    fn detach(&mut self, lease: i64, key: &Bytes) {
        if let Some(lease) = self.store.leases.get_mut(&lease) {
            lease.keys.remove(key);
        }
    }
}

fn version_at(versions: &VecDeque<KeyVersion>, at: i64) -> Option<&KeyVersion> {
    let after = versions.partition_point(|version| version.modified <= at);
    after.checked_sub(1).map(|index| &versions[index])
}

fn key_value(key: &Bytes, version: &KeyVersion, value: &Bytes) -> PbKeyValue {
    PbKeyValue {
        key: key.to_vec(),
        create_revision: version.created,
        mod_revision: version.modified,
        version: version.version,
        value: value.to_vec(),
        lease: version.lease,
    }
}

fn cost(key: &Bytes, version: &KeyVersion) -> usize {
    key.len() + version.value.as_ref().map_or(0, Bytes::len) + VERSION_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &mut Store, key: &str, value: &str, lease: i64) {
        let mut txn = store.write();
        txn.put(Bytes::from(key.to_owned()), Bytes::from(value.to_owned()), lease);
        txn.end();
    }

    fn delete(store: &mut Store, key: &str) -> i64 {
        let mut txn = store.write();
        let deleted = txn.delete_range(&Interval::new(key.as_bytes(), &[]));
        txn.end();
        deleted
    }

    fn value_at(store: &Store, key: &str, at: i64) -> Option<String> {
        let (found, _) = store.range(&Interval::new(key.as_bytes(), &[]), at, 1);
        found.into_iter().next().map(|kv| String::from_utf8(kv.value).unwrap())
    }

    #[test]
    fn a_revision_is_one_transaction_that_changed_something() {
        let mut store = Store::default();
        assert_eq!(delete(&mut store, "a"), 0);
        assert_eq!(store.revision(), FIRST_REVISION, "a deletion of nothing is no revision");
        let mut txn = store.write();
        for key in ["a", "b"] {
            txn.put(Bytes::from(key), Bytes::from("1"), NO_LEASE);
            assert_eq!(txn.revision(), 2, "a transaction reads its own writes");
        }
        txn.end();
        assert_eq!(store.revision(), 2);
        put(&mut store, "a", "2", NO_LEASE);
        assert_eq!(delete(&mut store, "a"), 1);
        put(&mut store, "a", "3", NO_LEASE);
        let history: Vec<_> = (1..=5).map(|at| value_at(&store, "a", at)).collect();
        let expected = [None, Some("1"), Some("2"), None, Some("3")];
        assert_eq!(history, expected.map(|value| value.map(str::to_owned)));
        let (found, _) = store.range(&Interval::new(b"a", b""), 5, 1);
        assert_eq!((found[0].create_revision, found[0].version), (5, 1), "it was born again");
    }

    #[test]
    fn a_compaction_takes_only_what_nobody_can_see() {
        let mut store = Store::default();
        for value in ["1", "2", "3"] {
            put(&mut store, "a", value, NO_LEASE);
        }
        put(&mut store, "gone", "x", NO_LEASE);
        delete(&mut store, "gone");
        let bytes = store.bytes();
        assert_eq!(store.compact(7), Err(Refusal::FutureRevision));
        assert_eq!(store.compact(3), Ok(()));
        assert_eq!(store.compact(3), Err(Refusal::Compacted));
        assert!(store.bytes() < bytes);
        assert_eq!(store.readable(2, 6), Err(Refusal::Compacted));
        assert_eq!(value_at(&store, "a", 3).as_deref(), Some("2"));
        assert_eq!(value_at(&store, "gone", 5).as_deref(), Some("x"));
        let all = Interval::new(b"a", &[0]);
        assert_eq!(store.next_changes(&all, 3, false).map(|(revision, _)| revision), Some(3));
        assert_eq!(store.compact(6), Ok(()));
        let (revision, changes) = store.next_changes(&all, 6, true).unwrap();
        assert!(revision == 6 && changes[0].deleted, "the deletion at the compaction is told");
        put(&mut store, "a", "4", NO_LEASE);
        assert_eq!(store.compact(7), Ok(()));
        assert_eq!(store.keys.len(), 1, "no trace of a deleted key is left");
        let kept: usize = store.keys.iter().flat_map(|(k, v)| v.iter().map(|v| cost(k, v))).sum();
        assert_eq!((store.bytes, store.history_bytes), (kept, kept));
    }

    #[test]
    fn a_lease_takes_its_keys_along_in_one_revision() {
        let mut store = Store::default();
        store.grant(7, 60).unwrap();
        assert_eq!(store.grant(7, 60), Err(Refusal::LeaseExists));
        for key in ["a", "b", "moved"] {
            put(&mut store, key, "", 7);
        }
        put(&mut store, "moved", "", NO_LEASE);
        let before = store.revision();
        store.revoke(7).unwrap();
        assert_eq!(store.revision(), before + 1);
        assert_eq!(value_at(&store, "a", before + 1), None);
        assert!(value_at(&store, "moved", before + 1).is_some());
        assert_eq!(store.revoke(7), Err(Refusal::LeaseNotFound));
    }

    #[test]
    fn a_key_deleted_and_put_in_one_transaction_is_told_as_both() {
        let mut store = Store::default();
        put(&mut store, "a", "old", NO_LEASE);
        let mut txn = store.write();
        txn.delete_range(&Interval::new(b"a", &[]));
        txn.put(Bytes::from("a"), Bytes::from("new"), NO_LEASE);
        txn.end();
        let (revision, changes) = store.next_changes(&Interval::new(b"a", &[]), 3, true).unwrap();
        let told: Vec<_> = changes.iter().map(|c| (c.deleted, c.previous.is_some())).collect();
        assert_eq!((revision, told), (3, vec![(true, true), (false, false)]));
    }

    #[test]
    fn history_past_its_bounds_is_due_for_compaction() {
        let mut store = Store::default();
        for round in 0..20 {
            put(&mut store, "a", &"x".repeat(round), NO_LEASE);
        }
        assert_eq!(store.compaction_due(100, usize::MAX), None);
        let at = store.compaction_due(5, usize::MAX).unwrap();
        store.compact(at).unwrap();
        assert_eq!(store.history_len(), 6, "five, and the one that the compaction stands at");
        assert!(store.compaction_due(usize::MAX, 300).is_some());
    }
}
