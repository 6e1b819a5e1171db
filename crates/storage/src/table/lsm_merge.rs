//! Reading the entries of a tree rather than its rows, so that the work of a scan can be counted.
//!
//! The tree's own iterators pass over tombstones and older versions before they return, however
//! many there are. A scan that is to give way must see them, so it merges memtables and files by
//! itself. It needs the parts of the tree for that, which the crate `lsm-tree` makes public for
//! such uses without documenting them; the version of the crate is pinned to one minor release.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use lsm_tree::merge::Merger;
use lsm_tree::{AbstractTree, AnyTree, BoxedIterator, InternalValue, Memtable, SeqNo, Slice};

use crate::table::engine::{ScanBudget, Scanned, Span, Visit};

/// The older versions of one row after which a scan stops reading them and asks for the row itself.
const VERSIONS_MAX: usize = 1024;

/// The memtables of a tree. The tree replaces them only when its user asks it to, so that this copy
/// can be kept; a look-up in it takes no lock of the tree.
pub(super) struct Memtables {
    pub(super) active: Arc<Memtable>,
    /// Those that wait for the disk, oldest first.
    pub(super) sealed: Vec<Arc<Memtable>>,
}

impl Memtables {
    /// Returns the newest entry of `key` below `visible`, a tombstone included.
    pub(super) fn get(&self, key: &[u8], visible: SeqNo) -> Option<InternalValue> {
        let newest_first = std::iter::once(&self.active).chain(self.sealed.iter().rev());
        newest_first.map(|memtable| memtable.get(key, visible)).find(Option::is_some).flatten()
    }

    /// Returns all of them.
    pub(super) fn to_vec(&self) -> Vec<Arc<Memtable>> {
        std::iter::once(&self.active).chain(&self.sealed).cloned().collect()
    }
}

/// What a scan reads: memtables and files that together hold every entry of the span below
/// `visible`.
pub(super) struct Parts {
    memtables: Vec<Arc<Memtable>>,
    /// One for each sorted run: its files that overlap the span, in the order of their keys.
    runs: Vec<Vec<lsm_tree::Table>>,
    bounds: (Bound<Slice>, Bound<Slice>),
    visible: SeqNo,
}

impl Parts {
    /// Collects them. `memtables` must have been read before the call, and no compaction may begin
    /// in between that forgets what a reader at `visible` needs. Waits for the tree's lock.
    pub(super) fn new(
        tree: &AnyTree,
        memtables: Vec<Arc<Memtable>>,
        span: &Span,
        visible: SeqNo,
    ) -> Self {
        let (start, end) = (Slice::from(&span.start[..]), Slice::from(&span.end[..]));
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let version = tree.current_version();
        let mut runs = Vec::new();
        for run in version.iter_levels().flat_map(|level| level.iter()) {
            if let Some((first, last)) = run.range_overlap_indexes(&bounds) {
                runs.push(run.get(first..=last).unwrap_or_default().to_vec());
            }
        }
        Self { memtables, runs, bounds, visible }
    }

    /// Shows the rows to `visit` until it breaks off or the budget is used up.
    pub(super) fn scan(
        self,
        reverse: bool,
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> lsm_tree::Result<Scanned> {
        let mut entries = Merger::new(self.sources(&self.bounds));
        let mut next = || if reverse { entries.next_back() } else { entries.next() };
        let (mut paused_at, mut tombstones) = (None, 0);
        let (mut count, mut bytes) = (0, 0);
        let mut following = next().transpose()?;
        while let Some(mut newest) = following.take() {
            let (mut versions, mut complete) = (1, false);
            count += 1;
            bytes += size(&newest);
            // All entries of a key come in a row: the newest first, in reverse the newest last.
            while versions < VERSIONS_MAX {
                match next().transpose()? {
                    Some(entry) if entry.key.user_key == newest.key.user_key => {
                        versions += 1;
                        count += 1;
                        bytes += size(&entry);
                        if reverse {
                            newest = entry;
                        }
                    }
                    other => {
                        following = other;
                        complete = true;
                        break;
                    }
                }
            }
            if reverse && !complete {
                newest = self.newest(&newest.key.user_key)?.unwrap_or(newest);
            }
            let key = Bytes::from(newest.key.user_key.clone());
            let flow = if newest.is_tombstone() {
                tombstones += 1;
                ControlFlow::Continue(())
            } else {
                visit(key.clone(), Bytes::from(newest.value))
            };
            if flow == ControlFlow::Break(()) {
                break;
            }
            let is_spent = count >= budget.entries || bytes >= budget.bytes;
            // Unlimited work goes on through the versions, which are passed over one by one.
            if !complete && budget == ScanBudget::UNLIMITED {
                following = next_key(&mut next, &key)?;
            } else if !complete || (is_spent && following.is_some()) {
                paused_at = Some(key);
                break;
            }
        }
        Ok(Scanned { paused_at, tombstones, read: ScanBudget { entries: count, bytes } })
    }

    /// Returns the newest entry of a key.
    fn newest(&self, key: &Slice) -> lsm_tree::Result<Option<InternalValue>> {
        let past = Slice::from([&key[..], &[0]].concat());
        let bounds = (Bound::Included(key.clone()), Bound::Excluded(past));
        Merger::new(self.sources(&bounds)).next().transpose()
    }

    fn sources(&self, bounds: &(Bound<Slice>, Bound<Slice>)) -> Vec<BoxedIterator<'_>> {
        let visible = self.visible;
        let is_visible = move |entry: &InternalValue| entry.key.seqno < visible;
        let mut sources: Vec<BoxedIterator<'_>> = Vec::new();
        for run in &self.runs {
            let bounds = bounds.clone();
            let entries = run.iter().flat_map(move |table| table.range(bounds.clone()));
            sources.push(Box::new(
                entries.filter(move |entry| entry.as_ref().map_or(true, is_visible)),
            ));
        }
        // The highest number is the first entry that a key could have. No entry has an empty key, so
        // none can be made with one, but a span may begin there.
        let first = |key: &Slice| {
            let mut first = InternalValue::new_tombstone(&b"-"[..], SeqNo::MAX).key;
            first.user_key = key.clone();
            first
        };
        let within = |bound: &Bound<Slice>| bound.as_ref().map(first);
        for memtable in &self.memtables {
            let range = (within(&bounds.0), within(&bounds.1));
            let entries = memtable.items.range(range).map(|entry| InternalValue {
                key: entry.key().clone(),
                value: entry.value().clone(),
            });
            sources.push(Box::new(entries.filter(is_visible).map(Ok)));
        }
        sources
    }
}

/// Passes over the entries of `key`; returns the first of another.
fn next_key(
    next: &mut impl FnMut() -> Option<lsm_tree::Result<InternalValue>>,
    key: &[u8],
) -> lsm_tree::Result<Option<InternalValue>> {
    loop {
        match next().transpose()? {
            Some(entry) if entry.key.user_key[..] == *key => {}
            other => return Ok(other),
        }
    }
}

fn size(entry: &InternalValue) -> usize {
    entry.key.user_key.len() + entry.value.len()
}
