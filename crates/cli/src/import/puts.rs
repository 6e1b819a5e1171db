//! The puts that are under way, and what became of those that were.

use std::collections::HashSet;

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use trireme_client::{Client, ClientError};
use trireme_types::printable;

use super::acknowledged::AcknowledgedLog;
use super::lines::Input;
use crate::progress::{self, Progress};
use crate::rows::FileRow;

/// Failures that are told one by one; the rest are counted.
const FAILURES_TOLD: u64 = 20;

/// What became of the rows so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Acknowledged rows.
    pub(super) rows: u64,
    /// Lines that are no rows, and rows that were not acknowledged.
    pub(super) errors: u64,
    /// Bytes of the input that were taken in.
    bytes: u64,
}

/// A put that has ended.
struct Ended {
    line: u64,
    key: Bytes,
    result: Result<(), ClientError>,
}

/// Puts rows, many at a time.
pub(super) struct Puts {
    client: Client,
    jobs: usize,
    log: Option<AcknowledgedLog>,
    under_way: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// The keys of the puts under way: never two of one key, which could end in either order.
    keys: HashSet<Bytes>,
    /// A row, and its line, that waits for the put of its key that is under way.
    held: Option<(u64, FileRow)>,
    counts: Counts,
}

impl Puts {
    /// Returns a state in which nothing is under way.
    pub(super) fn new(client: Client, jobs: usize, log: Option<AcknowledgedLog>) -> Self {
        Self {
            client,
            jobs,
            log,
            under_way: FuturesUnordered::new(),
            keys: HashSet::new(),
            held: None,
            counts: Counts::default(),
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
            let wants_more = is_open && self.held.is_none() && self.under_way.len() < self.jobs;
            tokio::select! {
                Some(ended) = self.under_way.next(), if !self.under_way.is_empty() => {
                    if let Err(error) = self.end(ended, progress) {
                        (outcome, is_open) = (outcome.and(Err(error)), false);
                        self.held = None;
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

    /// Starts a put, or holds its row until the put of the same key has ended.
    fn take(&mut self, line: u64, row: FileRow) {
        if !self.keys.insert(row.key.clone()) {
            self.held = Some((line, row));
            return;
        }
        let client = self.client.clone();
        let put = async move {
            let FileRow { key, value } = row;
            let result = client.put(key.clone(), value).await.map(drop);
            Ended { line, key, result }
        };
        self.under_way.push(Box::pin(put));
    }

    fn end(&mut self, ended: Ended, progress: &Progress) -> anyhow::Result<()> {
        let Ended { line, key, result } = ended;
        self.keys.remove(&key);
        if self.held.as_ref().is_some_and(|(_, row)| row.key == key)
            && let Some((line, row)) = self.held.take()
        {
            self.take(line, row);
        }
        match result {
            Ok(()) => {
                self.counts.rows += 1;
                self.log.as_mut().map_or(Ok(()), |log| log.append(&key))
            }
            Err(error) => {
                self.fail(line, &format!("'{}': {error}", printable(&key)), progress);
                Ok(())
            }
        }
    }

    fn fail(&mut self, line: u64, reason: &str, progress: &Progress) {
        self.counts.errors += 1;
        if self.counts.errors <= FAILURES_TOLD {
            progress.note(&format!("trireme: line {line}: {reason}"));
        }
        if self.counts.errors == FAILURES_TOLD {
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
