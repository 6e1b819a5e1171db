//! Changes that an engine makes all at once or not at all.

use bytes::{BufMut, Bytes, BytesMut};

/// Puts and removals that become visible and, later, durable together.
///
/// Keys and values are written one after the other into shared buffers and handed out as slices of
/// them, so that a batch costs a few allocations however many rows it holds.
#[derive(Debug, Default)]
pub struct WriteBatch {
    changes: Vec<Change>,
    buffer: BytesMut,
    /// What the buffer was made for; 0 before the first.
    buffer_bytes: usize,
    bytes: usize,
}

/// One change of a batch: the key's value from now on; `None` removes the key.
#[derive(Debug)]
pub struct Change {
    /// The key in the engine's keyspace.
    pub key: Bytes,
    /// Its value, or `None` for none any more.
    pub value: Option<Bytes>,
}

/// The most bytes of a shared buffer, but for a part that is longer. A slice keeps its whole buffer
/// alive, so buffers are small enough that a few long-lived rows cannot pin much.
const BUFFER_BYTES: usize = 16 * 1024;

/// The bytes of a batch's first buffer; each further one has twice as many. What is written goes to
/// memory as it is, so a batch of one row must not pin much more than that row: a table that may have
/// 64 MiB in memory would take gigabytes.
const FIRST_BUFFER_BYTES: usize = 128;

impl WriteBatch {
    /// Gives the key made of `key`'s parts the value made of `value`'s parts.
    pub fn put(&mut self, key: &[&[u8]], value: &[&[u8]]) {
        let key = self.concat(key);
        let value = self.concat(value);
        self.bytes += key.len() + value.len();
        self.changes.push(Change { key, value: Some(value) });
    }

    /// Removes the key made of these parts.
    pub fn remove(&mut self, key: &[&[u8]]) {
        let key = self.concat(key);
        self.remove_key(key);
    }

    /// Removes a key that is at hand in one piece.
    pub fn remove_key(&mut self, key: Bytes) {
        self.bytes += key.len();
        self.changes.push(Change { key, value: None });
    }

    /// Returns how many bytes of keys and values the batch holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Says whether the batch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns the changes in the order in which they were added. No key appears twice.
    pub fn into_changes(self) -> Vec<Change> {
        self.changes
    }

    fn concat(&mut self, parts: &[&[u8]]) -> Bytes {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if self.buffer.capacity() < len {
            self.buffer_bytes = (2 * self.buffer_bytes).clamp(FIRST_BUFFER_BYTES, BUFFER_BYTES);
            self.buffer = BytesMut::with_capacity(len.max(self.buffer_bytes));
        }
        for part in parts {
            self.buffer.put_slice(part);
        }
        self.buffer.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_returns_what_was_put_into_it() {
        let mut batch = WriteBatch::default();
        for i in 0..2000_u32 {
            batch.put(&[b"k", &i.to_be_bytes()], &[&[7; 20], b"end"]);
        }
        batch.put(&[b"big"], &[&vec![1; 3 * BUFFER_BYTES]]);
        batch.remove(&[b"gone"]);
        assert_eq!(batch.bytes(), 2000 * (5 + 23) + 3 + 3 * BUFFER_BYTES + 4);
        let changes = batch.into_changes();
        assert_eq!(changes.len(), 2002);
        assert_eq!(changes[1999].key, [b"k", &1999_u32.to_be_bytes()[..]].concat());
        assert_eq!(changes[2000].value.as_ref().map(Bytes::len), Some(3 * BUFFER_BYTES));
        assert!(changes[2001].value.is_none());
    }

    /// Rows of small batches stay in memory until the next flush, each with the whole buffer that it
    /// lies in.
    #[test]
    fn a_row_pins_little_more_than_its_batch() {
        for rows in [1, 10, 100_u32] {
            let mut batch = WriteBatch::default();
            (0..rows).for_each(|i| batch.put(&[b"key", &i.to_be_bytes()], &[b"value"]));
            let bytes = batch.bytes();
            let buffers = batch.into_changes().into_iter().flat_map(|change| {
                let value = change.value.expect("it was put");
                [change.key, value]
            });
            // Only the last slice of a buffer has it for itself; it can reclaim all of it then.
            let mut last = buffers.last().and_then(|slice| slice.try_into_mut().ok()).unwrap();
            let most = (3 * bytes).max(FIRST_BUFFER_BYTES);
            assert!(
                !last.try_reclaim(most + 1),
                "{rows} rows of {bytes} bytes pin more than {most}"
            );
        }
    }
}
