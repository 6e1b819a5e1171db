//! etcd's Watch service.
//!
//! A watcher is a place in the history: the revision that it has to be told of next. Its stream's
//! task reads on from there whenever the store has changed and there is room to send, so that a
//! watcher costs no queue, a slow one falls behind without holding anybody up, and one that has
//! fallen behind the compaction is cancelled and told so.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{
    PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService,
};
use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::counters::count;
use super::engine::Engine;
use super::store::{Change, Interval, Store};

/// The most responses that wait for one stream to be read; behind them, its watchers fall behind.
const RESPONSES_MAX: usize = 16;

/// The most watchers on one stream.
const WATCHERS_MAX: usize = 10_000;

/// How often a watcher that asked for it is told that nothing has happened, as in etcd.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);

/// The watcher that an answer about the whole stream, or about no watcher, names.
const NO_WATCHER: i64 = -1;

mod filter {
    pub(super) const NO_PUT: i32 = 0;
    pub(super) const NO_DELETE: i32 = 1;
}

mod event_type {
    pub(super) const PUT: i32 = 0;
    pub(super) const DELETE: i32 = 1;
}

pub(super) struct WatchService {
    pub(super) engine: Arc<Engine>,
    pub(super) stopping: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl PbWatchService for WatchService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<PbWatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let task = StreamTask {
            revision: self.engine.subscribe(),
            engine: Arc::clone(&self.engine),
            requests: request.into_inner(),
            responses,
            watchers: BTreeMap::new(),
            next_id: 0,
            progress_requests: 0,
        };
        let stopping = self.stopping.clone();
        tokio::spawn(task.run(stopping));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

#[derive(Debug)]
struct Watcher {
    interval: Interval,
    /// Everything below this revision has been told.
    next: i64,
    previous: bool,
    puts: bool,
    deletes: bool,
    progress_notify: bool,
    /// Whether something was told since the last tick of the progress clock.
    told: bool,
}

/// The task of one stream, with the watchers on it.
struct StreamTask {
    engine: Arc<Engine>,
    revision: watch::Receiver<i64>,
    requests: Streaming<PbWatchRequest>,
    responses: mpsc::Sender<Result<PbWatchResponse, Status>>,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    progress_requests: usize,
}

/// The stream's other end is gone.
struct Closed;

impl StreamTask {
    async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        tokio::select! {
            Closed = self.serve() => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    async fn serve(&mut self) -> Closed {
        let start = tokio::time::Instant::now() + PROGRESS_INTERVAL;
        let mut progress = tokio::time::interval_at(start, PROGRESS_INTERVAL);
        loop {
            let done = tokio::select! {
                request = self.requests.message() => match request {
                    Ok(Some(request)) => self.handle(request).await,
                    _ => return Closed,
                },
                changed = self.revision.changed() => match changed {
                    Ok(()) => self.catch_up().await,
                    Err(_) => return Closed,
                },
                _ = progress.tick() => self.tell_progress().await,
            };
            if let Err(closed) = done {
                return closed;
            }
        }
    }

    async fn handle(&mut self, request: PbWatchRequest) -> Result<(), Closed> {
        count(&self.engine.counters.watch_requests);
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(create)) => {
                let mut interval_key = create.key;
                if interval_key.is_empty() {
                    interval_key = vec![0];
                }
                let watcher = Watcher {
                    interval: Interval::new(&interval_key, &create.range_end),
                    next: create.start_revision,
                    previous: create.prev_kv,
                    puts: !create.filters.contains(&filter::NO_PUT),
                    deletes: !create.filters.contains(&filter::NO_DELETE),
                    progress_notify: create.progress_notify,
                    told: false,
                };
                self.create(create.watch_id, watcher).await?;
                self.catch_up().await
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                self.progress_requests += 1;
                self.catch_up().await
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, asked_id: i64, mut watcher: Watcher) -> Result<(), Closed> {
        let revision = self.engine.store().revision();
        if watcher.next <= 0 {
            watcher.next = revision + 1;
        }
        let mut response = self.response(NO_WATCHER, revision);
        response.created = true;
        match self.choose_id(asked_id, &watcher) {
            Ok(id) => {
                response.watch_id = id;
                self.watchers.insert(id, watcher);
            }
            Err(reason) => {
                response.canceled = true;
                response.cancel_reason = reason.to_owned();
            }
        }
        self.send(response).await
    }

    fn choose_id(&mut self, asked: i64, watcher: &Watcher) -> Result<i64, &'static str> {
        if watcher.interval.is_empty() {
            return Err("mvcc: watcher range is empty");
        }
        if self.watchers.len() >= WATCHERS_MAX {
            return Err("etcdserver: too many watchers on one stream");
        }
        if asked != 0 {
            let taken = self.watchers.contains_key(&asked);
            return if taken {
                Err("mvcc: duplicate watch ID provided on the WatchStream")
            } else {
                Ok(asked)
            };
        }
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Closed> {
        if self.watchers.remove(&id).is_none() {
            return Ok(());
        }
        let mut response = self.response(id, self.engine.store().revision());
        response.canceled = true;
        self.send(response).await
    }

    /// Tells every watcher what it has not been told, one revision each in turn, so that none
    /// holds up the others; then answers those who asked how far the stream is.
    async fn catch_up(&mut self) -> Result<(), Closed> {
        loop {
            self.revision.mark_unchanged();
            let (responses, current) = self.next_round();
            if responses.is_empty() {
                for _ in 0..std::mem::take(&mut self.progress_requests) {
                    let response = self.response(NO_WATCHER, current);
                    self.send(response).await?;
                }
                return Ok(());
            }
            for response in responses {
                self.send(response).await?;
            }
        }
    }

    /// Moves every watcher on by one revision that concerns it, or to the end of the history.
    fn next_round(&mut self) -> (Vec<PbWatchResponse>, i64) {
        let engine = &self.engine;
        let store = engine.store();
        let (current, compacted) = (store.revision(), store.compacted());
        let mut responses = Vec::new();
        self.watchers.retain(|&id, watcher| {
            if watcher.next > current {
                return true;
            }
            let mut response = PbWatchResponse { watch_id: id, ..PbWatchResponse::default() };
            if watcher.next < compacted {
                response.header = engine.header(0);
                response.canceled = true;
                response.compact_revision = compacted;
                responses.push(response);
                return false;
            }
            if let Some((revision, events)) = watcher.next_events(&store) {
                response.header = engine.header(revision);
                response.events = events;
                responses.push(response);
            }
            true
        });
        (responses, current)
    }

    async fn tell_progress(&mut self) -> Result<(), Closed> {
        let revision = self.engine.store().revision();
        let mut idle = Vec::new();
        for (&id, watcher) in &mut self.watchers {
            if watcher.progress_notify && !std::mem::take(&mut watcher.told) {
                idle.push(id);
            }
        }
        for id in idle {
            let response = self.response(id, revision);
            self.send(response).await?;
        }
        Ok(())
    }

    fn response(&self, watch_id: i64, revision: i64) -> PbWatchResponse {
        let header = self.engine.header(revision);
        PbWatchResponse { header, watch_id, ..PbWatchResponse::default() }
    }

    async fn send(&self, response: PbWatchResponse) -> Result<(), Closed> {
        self.responses.send(Ok(response)).await.map_err(|_| Closed)
    }
}

impl Watcher {
    /// Returns the next events that are to be told, all of one revision, and moves on past them;
    /// `None`, at the end of the history, if there are none.
    fn next_events(&mut self, store: &Store) -> Option<(i64, Vec<PbEvent>)> {
        loop {
            let found = store.next_changes(&self.interval, self.next, self.previous);
            let Some((revision, changes)) = found else {
                self.next = store.revision() + 1;
                return None;
            };
            self.next = revision + 1;
            let events = self.wanted(changes);
            if !events.is_empty() {
                self.told = true;
                return Some((revision, events));
            }
        }
    }

    fn wanted(&self, changes: Vec<Change>) -> Vec<PbEvent> {
        let is_wanted = |change: &Change| if change.deleted { self.deletes } else { self.puts };
        let wanted = changes.into_iter().filter(is_wanted);
        wanted
            .map(|change| PbEvent {
                r#type: if change.deleted { event_type::DELETE } else { event_type::PUT },
                kv: Some(change.kv),
                prev_kv: change.previous,
            })
            .collect()
    }
}
