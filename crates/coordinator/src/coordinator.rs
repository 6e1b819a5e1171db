//! The coordinator, as a node uses it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::change::Change;
use crate::link::Links;
use crate::node::{
    CreateMode, Created, Line, MultiDone, Node, NodeVersion, Nodes, Op, Scope, SessionId,
};
use crate::session::{self, Session};
use crate::watch::{self, OneShotWatch, Watch};
use crate::{CoordinatorError, CoordinatorOptions, path, read};

/// A node process's connection to the coordinator, with one session. Cheap to clone; all clones
/// are one.
///
/// When the last clone is dropped without [`Coordinator::close`], the session and its ephemeral
/// nodes live on at the server until their time is over, as if the process had died.
#[derive(Clone, Debug)]
pub struct Coordinator {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    links: Arc<Links>,
    session: ArcSwap<Session>,
    keeper: Mutex<AbortHandle>,
    /// Held while a session is replaced, so that two callers do not open two.
    renewing: tokio::sync::Mutex<()>,
}

/// What this process may believe of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Its ephemeral nodes are its own at least until then, unless it deletes them.
    Live {
        /// When that ends, if no further keep-alive is answered.
        until: Instant,
    },
    /// Others may own what it owned. Nothing brings the session back.
    Expired,
}

/// How often this process has asked the coordinator for each kind of thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoordinatorCounters {
    /// Reads sent, those of watches included.
    pub reads: u64,
    /// Changes sent.
    pub writes: u64,
    /// Keep-alives sent: the only traffic of an idle node (M19, M33).
    pub keep_alives: u64,
    /// Sessions opened and closed.
    pub leases: u64,
    /// Watches set, and set again.
    pub watches: u64,
    /// Connections given up for the next one.
    pub reconnects: u64,
}

impl Coordinator {
    /// Connects and opens a session.
    pub async fn connect(options: CoordinatorOptions) -> Result<Self, CoordinatorError> {
        options.validate()?;
        let links = Arc::new(Links::new(options));
        let session = Session::open(&links).await?;
        let keeper = keep(&links, &session);
        let shared = Shared {
            links,
            session: ArcSwap::new(session),
            keeper: Mutex::new(keeper),
            renewing: tokio::sync::Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns the session's state at this moment, by the local monotonic clock.
    pub fn session(&self) -> SessionState {
        self.current().state()
    }

    /// Returns true as long as the session lives.
    pub fn session_is_live(&self) -> bool {
        self.current().is_live()
    }

    /// Returns the session's name.
    pub fn session_id(&self) -> SessionId {
        self.current().id()
    }

    /// Returns when the session that is current now has expired. A new one is never opened behind
    /// its user's back: see [`Coordinator::renew`].
    pub async fn session_expired(&self) {
        self.current().expired().await;
    }

    /// Opens a new session if the current one has expired, and returns its name. Ephemeral nodes
    /// of the old one do not come along; watches go on throughout.
    pub async fn renew(&self) -> Result<SessionId, CoordinatorError> {
        let _one_at_a_time = self.shared.renewing.lock().await;
        let current = self.current();
        if current.is_live() {
            return Ok(current.id());
        }
        let session = Session::open(&self.shared.links).await?;
        let keeper = keep(&self.shared.links, &session);
        std::mem::replace(&mut *self.shared.keeper.lock(), keeper).abort();
        let id = session.id();
        self.shared.session.store(session);
        Ok(id)
    }

    /// Creates a node that must not exist. A lost answer is resolved: what is returned as created
    /// was created by this very call.
    pub async fn create(
        &self,
        path: &str,
        value: &[u8],
        mode: CreateMode,
    ) -> Result<Created, CoordinatorError> {
        let op = Op::Create { path: path.to_owned(), value: value.to_vec(), mode };
        let mut done = self.multi(vec![op]).await?;
        done.created
            .pop()
            .ok_or_else(|| CoordinatorError::Refused("the coordinator created nothing".to_owned()))
    }

    /// Returns a node; `None` if there is none.
    pub async fn get(&self, path: &str) -> Result<Option<Node>, CoordinatorError> {
        path::check(path)?;
        let found = read::nodes(&self.shared.links, path, Scope::Node).await?;
        Ok(found.nodes.into_iter().next())
    }

    /// Returns true if there is such a node.
    pub async fn exists(&self, path: &str) -> Result<bool, CoordinatorError> {
        Ok(self.get(path).await?.is_some())
    }

    /// Returns the line that the coordinator is in now, and the newest revision of it.
    pub async fn line(&self) -> Result<(Line, i64), CoordinatorError> {
        // Any read will do, and what is under this path is never read for its content.
        let marks = format!("{}/0", path::MARKS);
        let read = read::nodes(&self.shared.links, &marks, Scope::Node).await?;
        Ok((read.line, read.revision))
    }

    /// Returns the nodes directly below `path`, in the order in which they were created. `path`
    /// itself need not be a node, and `/` stands for the top.
    pub async fn children(&self, path: &str) -> Result<Nodes, CoordinatorError> {
        path::check_parent(path)?;
        read::nodes(&self.shared.links, path, Scope::Children).await
    }

    /// Returns all nodes below `path`, in the order in which they were created.
    pub async fn subtree(&self, path: &str) -> Result<Nodes, CoordinatorError> {
        path::check_parent(path)?;
        read::nodes(&self.shared.links, path, Scope::Subtree).await
    }

    /// Gives a node, which must exist, a value, if it has the expected version.
    pub async fn set(
        &self,
        path: &str,
        value: &[u8],
        expected: Option<NodeVersion>,
    ) -> Result<NodeVersion, CoordinatorError> {
        let op = Op::Set { path: path.to_owned(), value: value.to_vec(), expected };
        Ok(self.multi(vec![op]).await?.version)
    }

    /// Deletes a node, which must exist, if it has the expected version.
    pub async fn delete(
        &self,
        path: &str,
        expected: Option<NodeVersion>,
    ) -> Result<(), CoordinatorError> {
        let op = Op::Delete { path: path.to_owned(), expected };
        self.multi(vec![op]).await.map(drop)
    }

    /// Does all of the steps or none. Where one cannot be done, the error is the first such
    /// step's. At most [`crate::MULTI_OPS_MAX`] steps and [`crate::MULTI_BYTES_MAX`] bytes, and
    /// no node changed twice.
    pub async fn multi(&self, ops: Vec<Op>) -> Result<MultiDone, CoordinatorError> {
        Change::new(&self.shared.links, self.current(), ops)?.run().await
    }

    /// Watches nodes for as long as the watch is kept: delivers the state, then every change.
    pub fn watch(&self, path: &str, scope: Scope) -> Result<Watch, CoordinatorError> {
        match scope {
            Scope::Node => path::check(path)?,
            Scope::Children | Scope::Subtree => path::check_parent(path)?,
        }
        Ok(watch::start(Arc::clone(&self.shared.links), path.to_owned(), scope))
    }

    /// Reads nodes and watches them for one change.
    pub async fn watch_once(
        &self,
        path: &str,
        scope: Scope,
    ) -> Result<OneShotWatch, CoordinatorError> {
        OneShotWatch::new(self.watch(path, scope)?).await
    }

    /// Ends the session at the server, and with it the session's ephemeral nodes. The session is
    /// over for all clones even if the server cannot be reached, which is then an error.
    pub async fn close(self) -> Result<(), CoordinatorError> {
        self.shared.keeper.lock().abort();
        let session = self.current();
        session.end();
        session::revoke(&self.shared.links, &session).await
    }

    /// Returns how often this process has asked the coordinator.
    pub fn counters(&self) -> CoordinatorCounters {
        let counters = &self.shared.links.counters;
        CoordinatorCounters {
            reads: counters.reads.load(Ordering::Relaxed),
            writes: counters.writes.load(Ordering::Relaxed),
            keep_alives: counters.keep_alives.load(Ordering::Relaxed),
            leases: counters.leases.load(Ordering::Relaxed),
            watches: counters.watches.load(Ordering::Relaxed),
            reconnects: counters.reconnects.load(Ordering::Relaxed),
        }
    }

    fn current(&self) -> Arc<Session> {
        self.shared.session.load_full()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.keeper.lock().abort();
    }
}

fn keep(links: &Arc<Links>, session: &Arc<Session>) -> AbortHandle {
    let keeping = session::keep_alive(Arc::clone(links), Arc::clone(session));
    tokio::spawn(keeping).abort_handle()
}
