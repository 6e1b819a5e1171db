//! The client itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::Code;
use trireme_proto::v1::response;
use trireme_proto::{convert, v1};
use trireme_types::{Condition, Consistency, Lsn, Outcome, Version};

use crate::node::NodeHandle;
use crate::request::Request;
use crate::retry_loop::perform;
use crate::route_table::RouteTable;
use crate::routes::{Preference, Routes};
use crate::scan::{Scan, ScanRange};
use crate::{ClientError, ClientOptions, Place};

/// How far ahead a deadline may lie: further is never in practice, and sums of times stay in range.
const DEADLINE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A client of one cluster. Clones share everything: the connections, the route cache and the
/// limits.
///
/// Its methods must be called within a tokio runtime, and always the same one: the streams run
/// there.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    options: Arc<ClientOptions>,
    routes: Routes,
    /// Spreads timeline reads over replicas.
    turns: AtomicUsize,
}

/// A key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value.
    pub value: Bytes,
    /// Its version: rises with every write of the key, also across its deletion.
    pub version: Version,
}

/// How a read is to be done. The default is strong, within the client's deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Which state may be read.
    pub consistency: Consistency,
    /// How long the read may take; `None` is the client's own
    /// [`deadline`](ClientOptions::deadline).
    pub deadline: Option<Duration>,
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The key's value, if it has one.
    pub value: Option<Value>,
    /// How old the state is that was read; only of timeline reads.
    pub freshness: Option<Freshness>,
}

/// How old the state was that a timeline read was answered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// The newest entry of the cohort's log that it included. It never goes back from one timeline
    /// read of a client (its clones included) to a later one of the same range.
    pub applied: Lsn,
    /// A bound on its age when the replica read it: every write that was acknowledged longer before
    /// is in it. `None` if no replica that could be asked knew, as after a restart.
    pub age: Option<Duration>,
}

/// What became of a conditional write. A condition that does not hold is an answer and no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the write did nothing if its condition did not hold"]
pub enum Conditional<T> {
    /// The condition held, and the write was done.
    Done(T),
    /// The condition did not hold, and nothing was changed.
    Failed {
        /// The version that the key had; `None` if it had no value.
        current: Option<Version>,
    },
}

impl<T> Conditional<T> {
    /// Returns true if the write was done.
    pub const fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }

    /// Returns what the write made; `None` if its condition did not hold.
    pub fn done(self) -> Option<T> {
        match self {
            Self::Done(made) => Some(made),
            Self::Failed { .. } => None,
        }
    }
}

impl Client {
    /// Connects to a cluster through any of its nodes, each given as `host:port`. One that answers
    /// is enough: it names the others. As long as none does they are asked again, until the
    /// [`deadline`](ClientOptions::deadline) of one operation has passed.
    pub async fn connect(
        endpoints: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Self, ClientError> {
        Self::connect_with(endpoints, ClientOptions::default()).await
    }

    /// Connects as [`Client::connect`] does, with options.
    pub async fn connect_with(
        endpoints: impl IntoIterator<Item = impl Into<String>>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        options.validate()?;
        let options = Arc::new(options);
        let endpoints = endpoints
            .into_iter()
            .map(|address| Ok(Arc::new(NodeHandle::new(&address.into(), &options)?)))
            .collect::<Result<Vec<_>, ClientError>>()?;
        if endpoints.is_empty() {
            return Err(ClientError::Invalid("no endpoint is given".to_owned()));
        }
        let deadline = Instant::now() + options.deadline.min(DEADLINE_MAX);
        let routes = Routes::connect(endpoints, Arc::clone(&options), deadline).await?;
        // Clients that start together spread their timeline reads, too.
        let turns = AtomicUsize::new(rand::random_range(0..1024));
        Ok(Self { inner: Arc::new(Inner { options, routes, turns }) })
    }

    /// Returns the value of `key` as of the latest acknowledged write; `None` if it has none.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Value>, ClientError> {
        Ok(self.get_with(key, ReadOptions::default()).await?.value)
    }

    /// Reads `key` as the options say.
    pub async fn get_with(
        &self,
        key: impl Into<Bytes>,
        options: ReadOptions,
    ) -> Result<Read, ClientError> {
        let request = Request::Get { key: key.into(), consistency: options.consistency };
        match self.run(&request, options.deadline).await? {
            response::Result::Get(got) => Ok(Read {
                value: got.row.map(|row| Value { value: row.value, version: Version(row.version) }),
                freshness: got.freshness.map(freshness),
            }),
            _ => Err(self.stray_answer(&request)),
        }
    }

    /// Gives `key` a value, whatever it had before, and returns the value's version.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Version, ClientError> {
        let key = key.into();
        match self.put_if(key.clone(), value.into(), Condition::None).await? {
            Conditional::Done(version) => Ok(version),
            Conditional::Failed { .. } => {
                let request = Request::Put { key, value: Bytes::new(), condition: Condition::None };
                Err(self.stray_answer(&request))
            }
        }
    }

    /// Gives `key` a value if the one that it has is of this version.
    pub async fn put_if_version(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        version: Version,
    ) -> Result<Conditional<Version>, ClientError> {
        self.put_if(key.into(), value.into(), Condition::Version(version)).await
    }

    /// Gives `key` a value if it has none.
    pub async fn put_if_absent(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Conditional<Version>, ClientError> {
        self.put_if(key.into(), value.into(), Condition::Absent).await
    }

    /// Deletes `key`. Returns true if it had a value.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<bool, ClientError> {
        let request = Request::Delete { key: key.into(), condition: Condition::None };
        match self.write(&request).await? {
            Outcome::Deleted { existed } => Ok(existed),
            _ => Err(self.stray_answer(&request)),
        }
    }

    /// Takes the value of `key` away if it is of this version.
    pub async fn delete_if_version(
        &self,
        key: impl Into<Bytes>,
        version: Version,
    ) -> Result<Conditional<()>, ClientError> {
        let request = Request::Delete { key: key.into(), condition: Condition::Version(version) };
        match self.write(&request).await? {
            Outcome::Deleted { .. } => Ok(Conditional::Done(())),
            Outcome::ConditionFailed { current } => Ok(Conditional::Failed { current }),
            _ => Err(self.stray_answer(&request)),
        }
    }

    /// Returns a scan of the rows in `range`, which reads nothing before it is asked for rows.
    pub fn scan(&self, range: impl Into<ScanRange>) -> Scan {
        Scan::new(self.clone(), range.into())
    }

    /// Returns the routes that the client goes by now. It updates them when a request shows them
    /// to be outdated, so they may be older than those of [`Client::refresh_routes`].
    pub fn routes(&self) -> RouteTable {
        self.inner.routes.table()
    }

    /// Asks the cluster for its routes and returns them.
    pub async fn refresh_routes(&self) -> Result<RouteTable, ClientError> {
        let routes = &self.inner.routes;
        let seen = routes.generation();
        routes.refresh(seen, Preference::default()).await.map_err(ClientError::Connect)?;
        Ok(routes.table())
    }

    /// Asks every node for its routes, and returns the newest of what they answer within a second: for
    /// those who have to see what was changed through another node just before. What a node alone knows
    /// that does not answer is missing in it. Fails if none answers.
    pub async fn newest_routes(&self) -> Result<RouteTable, ClientError> {
        let routes = &self.inner.routes;
        routes.refresh_from_all().await.map_err(ClientError::Connect)?;
        Ok(routes.table())
    }

    /// Asks the node at `address` how it and each of its replicas are.
    pub async fn node_status(&self, address: &str) -> Result<v1::NodeStatus, ClientError> {
        let node = NodeHandle::new(address, &self.inner.options)?;
        node.status().await.map_err(|reason| admin_error(&node, reason))
    }

    /// Has the node at `address` suffer exactly these faults from now on, if it was started to allow
    /// that. Without any, all are healed.
    pub async fn set_faults(
        &self,
        address: &str,
        faults: v1::SetFaultsRequest,
    ) -> Result<(), ClientError> {
        let node = NodeHandle::new(address, &self.inner.options)?;
        node.set_faults(faults).await.map_err(|reason| admin_error(&node, reason))
    }

    /// Returns the client's options.
    pub fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    pub(crate) fn options_handle(&self) -> &Arc<ClientOptions> {
        &self.inner.options
    }

    /// Performs one request within `deadline`, or the client's own.
    pub(crate) async fn run(
        &self,
        request: &Request,
        deadline: Option<Duration>,
    ) -> Result<response::Result, ClientError> {
        let Inner { options, routes, turns } = &*self.inner;
        let turn =
            if request.suits_any_replica() { turns.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let deadline = Instant::now() + deadline.unwrap_or(options.deadline).min(DEADLINE_MAX);
        perform(routes, options, turn, request, deadline).await
    }

    async fn put_if(
        &self,
        key: Bytes,
        value: Bytes,
        condition: Condition,
    ) -> Result<Conditional<Version>, ClientError> {
        let request = Request::Put { key, value, condition };
        match self.write(&request).await? {
            Outcome::Put { version } => Ok(Conditional::Done(version)),
            Outcome::ConditionFailed { current } => Ok(Conditional::Failed { current }),
            _ => Err(self.stray_answer(&request)),
        }
    }

    async fn write(&self, request: &Request) -> Result<Outcome, ClientError> {
        let outcome = match self.run(request, None).await? {
            response::Result::Put(put) => convert::put_outcome(put),
            response::Result::Delete(deleted) => convert::delete_outcome(deleted),
            _ => return Err(self.stray_answer(request)),
        };
        outcome.map_err(|error| self.meaningless(request, error.to_string()))
    }

    fn stray_answer(&self, request: &Request) -> ClientError {
        self.meaningless(request, "it is one to another kind of request".to_owned())
    }

    /// Returns the error for an answer that the server should not have given.
    pub(crate) fn meaningless(&self, request: &Request, reason: String) -> ClientError {
        let (route, _) = self.inner.routes.find(request.position());
        let place = Place { cohort: route.descriptor.cohort, node: route.leader() };
        if request.is_write() {
            ClientError::Ambiguous { place, reason: format!("a meaningless answer: {reason}") }
        } else {
            ClientError::Malformed { place, reason }
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let table = self.routes();
        f.debug_struct("Client")
            .field("cluster", &table.cluster)
            .field("routes_version", &table.version)
            .finish_non_exhaustive()
    }
}

/// Returns what an answer says of its state's age.
pub(crate) fn freshness(told: v1::Freshness) -> Freshness {
    Freshness {
        applied: told.applied.map(Lsn::from).unwrap_or_default(),
        age: told.age_ms.map(Duration::from_millis),
    }
}

/// Returns what a node did that an administrator asked, or the error for what it did not do.
pub(crate) fn admin_answer<T>(
    node: &NodeHandle,
    answer: Result<T, (Code, String)>,
) -> Result<T, ClientError> {
    answer.map_err(|(code, reason)| match code {
        Code::InvalidArgument => ClientError::Invalid(reason),
        _ => admin_error(node, reason),
    })
}

/// Returns the error for what a node did not do that an administrator asked.
pub(crate) fn admin_error(node: &NodeHandle, reason: String) -> ClientError {
    ClientError::Admin { address: node.address().to_owned(), reason }
}
