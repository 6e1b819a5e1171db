//! The connection to one of the endpoints, and the passing on to the next one when it fails.
//!
//! All requests, watches and the session share one connection. The first user that finds it broken
//! reports that, once, and all go over to the next endpoint together. The session's keep-alives
//! find a silent connection within a third of the session's time, so that watches need no traffic
//! of their own to notice that they have been cut off.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Client, Error as EtcdError};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::{CoordinatorError, CoordinatorOptions};

/// How long to wait before the next endpoint is tried, so that a cluster that is down is not
/// asked in a tight loop.
pub(crate) const RETRY_DELAY: Duration = Duration::from_millis(50);

/// The endpoints, one of them in use.
#[derive(Debug)]
pub(crate) struct Links {
    options: CoordinatorOptions,
    current: Mutex<Arc<Link>>,
    pub counters: Counters,
}

/// What this process has asked of the coordinator.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub keep_alives: AtomicU64,
    pub leases: AtomicU64,
    pub watches: AtomicU64,
    pub reconnects: AtomicU64,
}

/// One connection. Once broken, it stays so.
pub(crate) struct Link {
    number: u64,
    endpoint: String,
    client: OnceCell<Client>,
    broken: watch::Sender<bool>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Why one attempt to ask the coordinator failed.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The connection or the server behind it: another attempt may do. Whether the request was
    /// carried out is not known.
    Attempt(String),
    /// The lease that the request named is gone.
    LeaseNotFound,
    /// The coordinator looked at the request and refused it.
    Refused(String),
}

impl Failure {
    pub(crate) fn into_read_error(self) -> CoordinatorError {
        match self {
            Self::Attempt(reason) => CoordinatorError::Unavailable(reason),
            Self::LeaseNotFound => CoordinatorError::SessionExpired,
            Self::Refused(reason) => CoordinatorError::Refused(reason),
        }
    }
}

impl Links {
    pub(crate) fn new(options: CoordinatorOptions) -> Self {
        let first = Arc::new(Link::new(0, &options.endpoints));
        Self { options, current: Mutex::new(first), counters: Counters::default() }
    }

    pub(crate) fn options(&self) -> &CoordinatorOptions {
        &self.options
    }

    pub(crate) fn current(&self) -> Arc<Link> {
        Arc::clone(&self.current.lock())
    }

    /// Leaves a link that does not work. Of those who find it broken at the same time, the first
    /// one moves everybody on.
    pub(crate) fn leave(&self, link: &Link, reason: &str) {
        {
            let mut current = self.current.lock();
            if current.number == link.number {
                self.counters.reconnects.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(endpoint = link.endpoint, reason, "left a coordinator endpoint");
                *current = Arc::new(Link::new(link.number + 1, &self.options.endpoints));
            }
        }
        link.broken.send_replace(true);
    }

    /// Asks once, on the current link, within `limit`.
    pub(crate) async fn attempt<T, F>(
        &self,
        limit: Duration,
        ask: impl FnOnce(Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let link = self.current();
        let asked = timeout(limit, async { ask(link.client(&self.options).await?).await }).await;
        let failure = match asked {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => classify(&error),
            Err(_) => Failure::Attempt(format!("{} did not answer in {limit:?}", link.endpoint)),
        };
        if let Failure::Attempt(reason) = &failure {
            self.leave(&link, reason);
        }
        Err(failure)
    }

    /// Asks something that changes nothing, on one endpoint after the other, until one answers
    /// or the request timeout has passed.
    pub(crate) async fn read<T, F>(
        &self,
        mut ask: impl FnMut(Client) -> F,
    ) -> Result<T, CoordinatorError>
    where
        F: Future<Output = Result<T, EtcdError>>,
    {
        let deadline = Instant::now() + self.options.request_timeout;
        loop {
            self.counters.reads.fetch_add(1, Ordering::Relaxed);
            let limit = self.attempt_limit(deadline);
            match self.attempt(limit, &mut ask).await {
                Ok(answer) => return Ok(answer),
                Err(failure @ Failure::Attempt(_)) if Instant::now() + RETRY_DELAY < deadline => {
                    tokio::time::sleep(RETRY_DELAY).await;
                    // A late thread has no time left to ask again: this is why the read failed.
                    if Instant::now() >= deadline {
                        return Err(failure.into_read_error());
                    }
                }
                Err(failure) => return Err(failure.into_read_error()),
            }
        }
    }

    /// Returns how long one attempt may take when all of them end at `deadline`.
    pub(crate) fn attempt_limit(&self, deadline: Instant) -> Duration {
        let left = deadline.saturating_duration_since(Instant::now());
        self.options.attempt_timeout().min(left)
    }
}

impl Link {
    fn new(number: u64, endpoints: &[String]) -> Self {
        let turn = usize::try_from(number % endpoints.len() as u64).unwrap_or(0);
        let endpoint = endpoints[turn].clone();
        Self { number, endpoint, client: OnceCell::new(), broken: watch::Sender::new(false) }
    }

    /// Returns a client on this connection, which the first caller makes.
    pub(crate) async fn client(&self, options: &CoordinatorOptions) -> Result<Client, EtcdError> {
        let connect = || Client::connect([self.endpoint.as_str()], Some(options.connect_options()));
        self.client.get_or_try_init(connect).await.cloned()
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Returns when the link is known to be broken.
    pub(crate) async fn broken(&self) {
        let mut broken = self.broken.subscribe();
        // The sender lives as long as `self`, so waiting can only end with the link broken.
        broken.wait_for(|broken| *broken).await.ok();
    }
}

/// Sorts an error by what can be done about it.
pub(crate) fn classify(error: &EtcdError) -> Failure {
    let reason = reason(error);
    let EtcdError::GRpcStatus(status) = error else {
        return match error {
            EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) => Failure::Refused(reason),
            _ => Failure::Attempt(reason),
        };
    };
    // What no server has said is about the connection, whatever it is called: a server that is only
    // starting, or has too much to do, breaks connections in ways of its own.
    if std::error::Error::source(status).is_some() {
        return Failure::Attempt(reason);
    }
    match status.code() {
        Code::NotFound if status.message() == LEASE_NOT_FOUND => Failure::LeaseNotFound,
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted => Failure::Attempt(reason),
        Code::ResourceExhausted if status.message() == TOO_MANY_REQUESTS => {
            Failure::Attempt(reason)
        }
        _ => Failure::Refused(reason),
    }
}

/// Returns what an operator has to know of an error: what the server said, or why there is no
/// connection.
fn reason(error: &EtcdError) -> String {
    let EtcdError::GRpcStatus(status) = error else { return error.to_string() };
    let mut root: &dyn std::error::Error = status;
    while let Some(source) = root.source() {
        root = source;
    }
    let (message, root) = (status.message(), root.to_string());
    match message {
        "" => format!("{:?}", status.code()),
        message if std::error::Error::source(status).is_none() || message.ends_with(&root) => {
            message.to_owned()
        }
        message => format!("{message}: {root}"),
    }
}

const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";
const TOO_MANY_REQUESTS: &str = "etcdserver: too many requests";
