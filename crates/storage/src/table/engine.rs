//! What a storage engine must do to hold the tables.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::table::{TableError, WriteBatch};

/// An ordered map from byte strings to byte strings that outlives its process.
///
/// An engine keeps no log. What was written is visible at once and durable after the next
/// [`TableEngine::flush`]. After a crash the map is as it was after some whole number of batches:
/// at least those before the last completed flush, perhaps more, never a batch in part and never a
/// later batch without the earlier ones.
pub trait TableEngine: Send + Sync {
    /// Makes the changes of `batch`, all at once: no reader sees some of them without the others.
    /// They are visible when the call returns.
    fn write(&self, batch: WriteBatch) -> Result<(), TableError>;

    /// Says whether a write ends in memory, and waits for no disk.
    fn writes_in_memory(&self) -> bool;

    /// Returns the value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError>;

    /// Returns the values of two keys as of one moment.
    fn get_both(&self, keys: [&[u8]; 2]) -> Result<[Option<Bytes>; 2], TableError>;

    /// Returns the value of `key` if that takes no read of a file: the outer option is `None` where
    /// only [`TableEngine::get`] can answer.
    fn get_resident(&self, key: &[u8]) -> Result<Option<Option<Bytes>>, TableError>;

    /// Returns the values of two keys as of one moment if that takes no read of a file; `None` where
    /// only [`TableEngine::get_both`] can answer.
    fn get_both_resident(&self, keys: [&[u8]; 2])
    -> Result<Option<[Option<Bytes>; 2]>, TableError>;

    /// Returns the value of `key`, and shows the rows of the spans to `visit` as
    /// [`TableEngine::scan`] does, all as of one moment.
    fn get_and_scan(
        &self,
        key: &[u8],
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<(Option<Bytes>, Scanned), TableError>;

    /// Shows the rows of the spans to `visit`, one span after the other and all as of one moment, until it
    /// breaks off or `budget` is used up. Meant for pages: an engine may hold writers up meanwhile.
    fn scan(
        &self,
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<Scanned, TableError>;

    /// Returns the rows of the span as of this call, in ascending order, however long it takes to
    /// read them.
    fn view(&self, span: &Span) -> Result<View, TableError>;

    /// Makes everything durable that was written before the call. It is so when the call returns.
    fn flush(&self) -> Result<(), TableError>;

    /// Does one step of the work that keeps reads fast and the disk tidy; says whether it did
    /// anything, in which case there may be more to do.
    fn compact(&self) -> Result<bool, TableError>;

    /// Removes deleted rows from the files for good, if they are so many that it pays; returns true
    /// if it did. Called when scans have passed over many of them.
    fn purge_tombstones(&self) -> Result<bool, TableError>;

    /// Says whether so much of that work waits that no flush should add to it.
    fn is_behind(&self) -> bool;

    /// Returns how many bytes were written since what the last completed flush has made durable.
    fn unflushed_bytes(&self) -> u64;

    /// Ends the use of the files after a last flush. Whatever comes later may be refused as
    /// [`TableError::Closed`].
    fn close(&self) -> Result<(), TableError> {
        Ok(())
    }

    /// Returns about how many bytes the files hold.
    fn disk_bytes(&self) -> u64;

    /// Returns how many bytes the files hold that rows of the spans are in, with all that they hold beside
    /// them. What is not flushed is not in it.
    fn file_bytes(&self, spans: &[Span]) -> u64;
}

/// Takes a row of a scan and says whether to go on.
pub type Visit<'a> = &'a mut dyn FnMut(Bytes, Bytes) -> ControlFlow<()>;

/// How much a scan may read before it gives way, whether or not what it reads are rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanBudget {
    /// Entries: rows, older versions of rows, and tombstones.
    pub entries: usize,
    /// Bytes of keys and values of those entries.
    pub bytes: usize,
}

impl ScanBudget {
    /// No bound, for work that keeps no client waiting.
    pub const UNLIMITED: Self = Self { entries: usize::MAX, bytes: usize::MAX };
}

/// How a scan ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// The last key that the scan has dealt with, if its budget ended it. It goes on behind it.
    pub paused_at: Option<Bytes>,
    /// The tombstones that it passed over.
    pub tombstones: usize,
    /// What it has read.
    pub read: ScanBudget,
}

/// Scans one part after the other with one budget, until `visit` breaks off.
pub(super) fn scan_all<T, E>(
    parts: impl IntoIterator<Item = T>,
    budget: ScanBudget,
    visit: Visit<'_>,
    mut scan: impl FnMut(T, ScanBudget, Visit<'_>) -> Result<Scanned, E>,
) -> Result<Scanned, E> {
    let mut all = Scanned::default();
    for part in parts {
        let mut is_over = false;
        let left = ScanBudget {
            entries: budget.entries.saturating_sub(all.read.entries),
            bytes: budget.bytes.saturating_sub(all.read.bytes),
        };
        let left = if budget == ScanBudget::UNLIMITED { budget } else { left };
        let scanned = scan(part, left, &mut |key, value| {
            let flow = visit(key, value);
            is_over = flow.is_break();
            flow
        })?;
        all.tombstones += scanned.tombstones;
        all.read.entries = all.read.entries.saturating_add(scanned.read.entries);
        all.read.bytes = all.read.bytes.saturating_add(scanned.read.bytes);
        all.paused_at = scanned.paused_at;
        if is_over || all.paused_at.is_some() {
            break;
        }
    }
    Ok(all)
}

/// The rows of a span as of one moment.
pub type View = Box<dyn Iterator<Item = Result<(Bytes, Bytes), TableError>> + Send>;

/// The engine keys `[start, end)`, and from which side to read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first key.
    pub start: Vec<u8>,
    /// The first key past the span.
    pub end: Vec<u8>,
    /// Whether to begin with the highest key.
    pub reverse: bool,
}

impl Span {
    /// Returns the span `[start, end)`, read upwards.
    pub fn new(start: Vec<u8>, end: Vec<u8>) -> Self {
        Self { start, end, reverse: false }
    }

    /// Says whether no key lies in the span.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }
}
