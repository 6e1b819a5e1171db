//! The puts that are under way, and what became of those that were.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use trireme_client::{Client, ClientError};
use trireme_types::limits::VALUE_BYTES_MAX;
use trireme_types::printable;

use super::acknowledged::AcknowledgedLog;
use super::lines::Input;
use crate::progress::{self, Progress};
use crate::rows::FileRow;

/// Failures that are reported one by one; the rest are counted.
const FAILURES_REPORTED: u64 = 20;

/// What became of the rows so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Acknowledged rows.
    pub(super) rows: u64,
    /// Lines that are no rows, and rows that were not acknowledged.
    pub(super) errors: u64,
    /// Bytes of the input that were read.
    bytes: u64,
}

/// A row that is to be put, and those before it with the same key that it stands for: a
/// read after it was put finds what it would find had they been put before it.
struct Row {
    /// The line of the row that is put.
    line: u64,
    key: Bytes,
    value: Bytes,
    /// How many rows it stands for, itself included.
    count: u64,
}

/// A put that has ended.
struct Ended {
    line: u64,
    key: Bytes,
    count: u64,
    result: Result<(), ClientError>,
}

/// Puts rows, many at a time.
pub(super) struct Puts {
    client: Client,
    jobs: usize,
    log: Option<AcknowledgedLog>,
    under_way: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// The keys of the puts under way: never two of one key, which could end in either order. With
    /// each, the row that waits for the end of its put, if one has come meanwhile.
    keys: HashMap<Bytes, Option<Row>>,
    counts: Counts,
    /// Number of failures so far.
    failures_reported: u64,
}

impl Puts {
    /// Returns a state in which nothing is under way.
    pub(super) fn new(client: Client, jobs: usize, log: Option<AcknowledgedLog>) -> Self {
        Self {
            client,
            jobs,
            log,
            under_way: FuturesUnordered::new(),
            keys: HashMap::new(),
            counts: Counts::default(),
            failures_reported: 0,
        }
    }

    /// Returns what became of the rows so far.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Puts all rows that come. An error says that the input, or the log of acknowledged rows, is
    /// broken; rows that were under way have ended even then.
    pub(super) async fn run(
        &mut self,
        mut lines: mpsc::Receiver<Input>,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        let mut is_open = true;
        while is_open || !self.under_way.is_empty() {
            let wants_more = is_open && self.under_way.len() < self.jobs;
            tokio::select! {
                Some(ended) = self.under_way.next(), if !self.under_way.is_empty() => {
                    if let Err(error) = self.end(ended, progress) {
                        (outcome, is_open) = (outcome.and(Err(error)), false);
                        self.keys.values_mut().for_each(|waiting| *waiting = None);
                    }
                }
                input = lines.recv(), if wants_more => match input {
                    None => is_open = false,
                    Some(Input::Broken(error)) => {
                        outcome = outcome.and(Err(error).context("reading the input"));
                        is_open = false;
                    }
                    Some(Input::Line { number, bytes, row }) => {
                        self.counts.bytes += bytes;
                        match row {
                            // Found here, since a row that another one stands for is never sent.
                            Ok(row) if row.value.len() > VALUE_BYTES_MAX => {
                                let bytes = row.value.len();
                                let reason = format!(
                                    "'{}': invalid request: a value of {bytes} bytes; the limit is \
                                     {VALUE_BYTES_MAX}",
                                    printable(&row.key)
                                );
                                self.fail(number, &reason, progress);
                            }
                            Ok(row) => self.take(number, row),
                            Err(reason) => self.fail(number, &reason, progress),
                        }
                    }
                },
                () = progress.due() => self.show(progress),
            }
        }
        outcome
    }

    /// Starts a put, or has its row wait until the put of the same key has ended, in the place of
    /// the one that waits already.
    fn take(&mut self, line: u64, FileRow { key, value }: FileRow) {
        let mut row = Row { line, key, value, count: 1 };
        match self.keys.entry(row.key.clone()) {
            Entry::Occupied(mut under_way) => {
                let waiting = under_way.get_mut();
                row.count += waiting.as_ref().map_or(0, |earlier| earlier.count);
                *waiting = Some(row);
            }
            Entry::Vacant(entry) => {
                entry.insert(None);
                self.start(row);
            }
        }
    }

    fn start(&mut self, row: Row) {
        let client = self.client.clone();
        let put = async move {
            let Row { line, key, value, count } = row;
            let result = client.put(key.clone(), value).await.map(drop);
            Ended { line, key, count, result }
        };
        self.under_way.push(Box::pin(put));
    }

    fn end(&mut self, ended: Ended, progress: &Progress) -> anyhow::Result<()> {
        let Ended { line, key, count, result } = ended;
        match self.keys.get_mut(&key).and_then(Option::take) {
            Some(next) => self.start(next),
            None => drop(self.keys.remove(&key)),
        }
        match result {
            Ok(()) => {
                self.counts.rows += count;
                let Some(log) = &mut self.log else { return Ok(()) };
                (0..count).try_for_each(|_| log.append(&key))
            }
            Err(error) => {
                let others = match count - 1 {
                    0 => String::new(),
                    others => format!(" (and {others} earlier rows with its key)"),
                };
                self.counts.errors += count - 1;
                self.fail(line, &format!("'{}'{others}: {error}", printable(&key)), progress);
                Ok(())
            }
        }
    }

    fn fail(&mut self, line: u64, reason: &str, progress: &Progress) {
        self.counts.errors += 1;
        self.failures_reported += 1;
        if self.failures_reported <= FAILURES_REPORTED {
            progress.note(&format!("trireme: line {line}: {reason}"));
        }
        if self.failures_reported == FAILURES_REPORTED {
            progress.note("trireme: further failures are only counted");
        }
    }

    fn show(&self, progress: &Progress) {
        let Counts { rows, errors, bytes } = self.counts;
        let rate = progress::per_second(rows, progress.elapsed());
        let text = format!("{rows} rows, {errors} errors, {rate} rows/s");
        progress.show(bytes, &text);
    }
}
