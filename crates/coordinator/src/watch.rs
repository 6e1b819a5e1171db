//! Watches that lose no change.
//!
//! A watch first delivers the state, then every change, in order, those of one transaction
//! together. When its stream breaks, it goes on from the next revision; when that has been
//! compacted away, it delivers the whole state again. So a reader that replaces what it knows with
//! each state, and applies the changes between, always knows what the coordinator held at some
//! moment, and no later moment is ever left out for good.
//!
//! Events wait in a bounded queue. A reader who does not keep up makes the watch pause,
//! not the connection: the stream is closed, and opened again where it stopped once there is
//! room.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_client::proto::PbKeyValue;
use etcd_client::{Error as EtcdError, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::CoordinatorError;
use crate::link::{Failure, Link, Links, classify};
use crate::node::{Line, Node, Nodes, Scope};
use crate::{path, read};

/// The most events that wait for a watch's reader.
const EVENTS_MAX: usize = 256;

/// The most bytes in one message of a watch: one revision may change every node that one
/// transaction can.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long a watch that was refused waits before it asks again.
const REFUSED_DELAY: Duration = Duration::from_millis(500);

/// What a watch delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The whole state: at first, and again wherever the changes up to it can no longer be
    /// delivered one by one. It replaces everything delivered before.
    State(Nodes),
    /// What one transaction changed.
    Changes {
        /// The transaction's revision.
        revision: i64,
        /// Its changes of the watched nodes, in its order.
        changes: Vec<NodeChange>,
    },
}

/// A change of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// The node was created, or its value or owner was set.
    Put(Node),
    /// The node was deleted, by somebody or with its owner's session.
    Deleted {
        /// The node.
        path: String,
    },
}

impl NodeChange {
    /// Returns the path of the node.
    pub fn path(&self) -> &str {
        match self {
            Self::Put(node) => &node.path,
            Self::Deleted { path } => path,
        }
    }
}

/// A persistent watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<WatchEvent>,
    task: AbortHandle,
}

impl Watch {
    /// Returns the next event; `None` once the coordinator is closed. Can be cancelled.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }

    /// Returns the next event if it is there already.
    pub(crate) fn try_next(&mut self) -> Option<WatchEvent> {
        self.events.try_recv().ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A watch that delivers one change.
#[derive(Debug)]
pub struct OneShotWatch {
    /// The state that the watch was set on.
    pub state: Nodes,
    watch: Watch,
}

impl OneShotWatch {
    pub(crate) async fn new(mut watch: Watch) -> Result<Self, CoordinatorError> {
        match watch.next().await {
            Some(WatchEvent::State(state)) => Ok(Self { state, watch }),
            _ => Err(CoordinatorError::Unavailable("the coordinator is closed".to_owned())),
        }
    }

    /// Returns the first event after the state: a change, or a new state with changes in it.
    pub async fn changed(mut self) -> Option<WatchEvent> {
        self.watch.next().await
    }
}

/// Starts a watch.
pub(crate) fn start(links: Arc<Links>, root: String, scope: Scope) -> Watch {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let watcher = Watcher { links, root, scope, sender, next: None, line: None };
    let task = tokio::spawn(watcher.run()).abort_handle();
    Watch { events, task }
}

struct Watcher {
    links: Arc<Links>,
    root: String,
    scope: Scope,
    sender: mpsc::Sender<WatchEvent>,
    /// The first revision that has not been delivered; `None` if the state is to be read.
    next: Option<i64>,
    /// The line that `next` is a revision of.
    line: Option<Line>,
}

/// Why a stream is not read any more.
enum Ended {
    /// The connection broke, or was found broken by others.
    Broken(Option<String>),
    /// The revision to go on from cannot be read any more.
    Compacted,
    /// The server ended the watch without a fault of the connection.
    Refused(String),
    /// The reader has not kept up; this is what there was no room for.
    Full(WatchEvent),
    /// The reader is gone.
    Unread,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            let next = match self.next {
                Some(next) => next,
                None => match self.tell_state().await {
                    Ok(next) => next,
                    Err(Ended::Unread) => return,
                    Err(_) => continue,
                },
            };
            let link = self.links.current();
            let ended = match self.open(&link, next).await {
                Ok(stream) => self.follow(&link, stream).await,
                Err(Failure::Attempt(reason)) => Ended::Broken(Some(reason)),
                Err(Failure::LeaseNotFound) => Ended::Refused("no lease".to_owned()),
                Err(Failure::Refused(reason)) => Ended::Refused(reason),
            };
            match ended {
                Ended::Broken(reason) => {
                    if let Some(reason) = reason {
                        self.links.leave(&link, &reason);
                    }
                    sleep(crate::link::RETRY_DELAY).await;
                }
                Ended::Compacted => self.next = None,
                Ended::Refused(reason) => {
                    tracing::warn!(root = self.root, reason, "a watch was refused; asking again");
                    self.next = None;
                    sleep(REFUSED_DELAY).await;
                }
                Ended::Full(event) => {
                    if self.sender.send(event).await.is_err() {
                        return;
                    }
                }
                Ended::Unread => return,
            }
        }
    }

    /// Reads the state, however long it takes, delivers it, and returns the revision after it.
    async fn tell_state(&mut self) -> Result<i64, Ended> {
        match read::nodes(&self.links, &self.root, self.scope).await {
            Ok(nodes) => {
                let line = nodes.line;
                let next = nodes.revision + 1;
                self.sender.send(WatchEvent::State(nodes)).await.map_err(|_| Ended::Unread)?;
                (self.next, self.line) = (Some(next), Some(line));
                Ok(next)
            }
            Err(error) => {
                if self.sender.is_closed() {
                    return Err(Ended::Unread);
                }
                tracing::debug!(root = self.root, %error, "a watch could not read its state");
                sleep(REFUSED_DELAY).await;
                Err(Ended::Broken(None))
            }
        }
    }

    async fn open(&self, link: &Link, next: i64) -> Result<WatchStream, Failure> {
        self.links.counters.watches.fetch_add(1, Ordering::Relaxed);
        let mut options = WatchOptions::new().with_start_revision(next);
        let namespace = &self.links.options().namespace;
        let key = match self.scope {
            Scope::Node => format!("{namespace}{}", self.root),
            Scope::Children | Scope::Subtree => {
                options = options.with_prefix();
                format!("{namespace}{}", path::below(&self.root))
            }
        };
        let opening = async {
            let client = link.client(self.links.options()).await?;
            let mut watches = client.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
            watches.watch(key, Some(options)).await
        };
        let limit = self.links.options().attempt_timeout();
        match timeout(limit, opening).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(classify(&error)),
            Err(_) => Err(Failure::Attempt(format!("a watch was not set in {limit:?}"))),
        }
    }

    async fn follow(&mut self, link: &Link, mut stream: WatchStream) -> Ended {
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                () = link.broken() => return Ended::Broken(None),
                () = self.sender.closed() => return Ended::Unread,
            };
            let ended = match message {
                Ok(Some(response)) => self.handle(response),
                Ok(None) => Err(Ended::Broken(Some("the watch stream ended".to_owned()))),
                Err(error) => Err(stream_failure(&error)),
            };
            if let Err(ended) = ended {
                return ended;
            }
        }
    }

    fn handle(&mut self, response: WatchResponse) -> Result<(), Ended> {
        let response = response.0;
        if let (Some(header), Some(line)) = (&response.header, self.line)
            && (line != Line { cluster: header.cluster_id, term: header.raft_term }
                || (response.created && header.revision.saturating_add(1) < self.next.unwrap_or(0)))
        {
            // Another line's revisions say nothing about what was sent, and one that has not
            // come as far as this one was put back: waiting for the next revision would leave out
            // every change up to it.
            return Err(Ended::Compacted);
        }
        if response.compact_revision > 0 {
            return Err(Ended::Compacted);
        }
        if response.canceled {
            return Err(Ended::Refused(response.cancel_reason));
        }
        let mut events = response.events.into_iter().peekable();
        while let Some(first) = events.next() {
            let Some(kv) = first.kv else { continue };
            let revision = kv.mod_revision;
            let mut changes: Vec<_> = self.change(first.r#type, kv).into_iter().collect();
            let is_same = |kv: &PbKeyValue| kv.mod_revision == revision;
            while let Some(event) = events.next_if(|event| event.kv.as_ref().is_none_or(is_same)) {
                changes.extend(event.kv.and_then(|kv| self.change(event.r#type, kv)));
            }
            self.next = Some(revision + 1);
            if !changes.is_empty() {
                self.tell(WatchEvent::Changes { revision, changes })?;
            }
        }
        Ok(())
    }

    fn change(&self, event_type: i32, kv: PbKeyValue) -> Option<NodeChange> {
        const DELETE: i32 = 1;
        let node = read::node(&self.links.options().namespace, kv)?;
        if !self.scope.covers(&self.root, &node.path) {
            return None;
        }
        Some(if event_type == DELETE {
            NodeChange::Deleted { path: node.path }
        } else {
            NodeChange::Put(node)
        })
    }

    fn tell(&self, event: WatchEvent) -> Result<(), Ended> {
        self.sender.try_send(event).map_err(|error| match error {
            // The stream is left: what follows this event is delivered from the revision after it.
            TrySendError::Full(event) => Ended::Full(event),
            TrySendError::Closed(_) => Ended::Unread,
        })
    }
}

fn stream_failure(error: &EtcdError) -> Ended {
    match classify(error) {
        Failure::Attempt(reason) => Ended::Broken(Some(reason)),
        Failure::LeaseNotFound => Ended::Refused("no lease".to_owned()),
        Failure::Refused(reason) => Ended::Refused(reason),
    }
}
