//! What the protocols of our own ask of the coordinator, and what it tells them.
//!
//! A core's request replaces the one before: a core wants one thing at a time, and asks again until
//! it sees that it has happened or cannot. What the coordinator holds is told as it changes, by a
//! watch. Both end with the replica.

mod configuration;
mod election;

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use trireme_replication::ReplicaError;
use trireme_replication::core::Core;
use trireme_replication::driver::{Coordination, CoreReplica};

pub(crate) use configuration::configure;
pub(crate) use election::elect;

/// How long a replica whose queue is full is left alone before it is told again.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// How long to wait before something is tried again that the coordinator did not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What a replica wants of the coordinator. Dropped by the replica at its end, and with it ends
/// whoever works for it.
pub(crate) struct Wish<C: Core> {
    newest: Arc<Newest<C::CoordinatorRequest>>,
    end: CancellationToken,
    _ends: DropGuard,
}

/// The newest request, until somebody carries it out.
struct Newest<R> {
    request: Mutex<Option<R>>,
    changed: Notify,
}

impl<C: Core> Wish<C> {
    pub(crate) fn new() -> Arc<Self> {
        let newest = Newest { request: Mutex::new(None), changed: Notify::new() };
        let end = CancellationToken::new();
        Arc::new(Self { newest: Arc::new(newest), _ends: end.clone().drop_guard(), end })
    }

    /// Returns the side that carries requests out.
    fn server(&self) -> WishServer<C> {
        WishServer { newest: Arc::clone(&self.newest), end: self.end.clone() }
    }
}

impl<C: Core<CoordinatorRequest: Send + Sync>> Coordination<C> for Wish<C> {
    fn request(&self, request: C::CoordinatorRequest) {
        *self.newest.request.lock() = Some(request);
        self.newest.changed.notify_one();
    }
}

/// The side that carries requests out.
struct WishServer<C: Core> {
    newest: Arc<Newest<C::CoordinatorRequest>>,
    end: CancellationToken,
}

impl<C: Core> WishServer<C> {
    /// Carries out the newest request, one after the other, until the replica ends. `carry_out` says
    /// whether it is done; if not, it is tried again unless there is a newer one.
    async fn serve<F>(&self, carry_out: impl Fn(C::CoordinatorRequest) -> F)
    where
        F: Future<Output = bool>,
        C::CoordinatorRequest: Clone,
    {
        let serving = async {
            loop {
                let Some(request) = self.newest.request.lock().take() else {
                    self.newest.changed.notified().await;
                    continue;
                };
                if !carry_out(request.clone()).await {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    self.newest.request.lock().get_or_insert(request);
                }
            }
        };
        self.end.run_until_cancelled(serving).await;
    }
}

/// Tells a replica what the coordinator says, however full its queue is; says whether there is a
/// replica to tell.
async fn tell<C: Core<CoordinatorEvent: Clone>>(
    replica: &Weak<CoreReplica<C>>,
    event: C::CoordinatorEvent,
) -> bool {
    loop {
        let Some(replica) = replica.upgrade() else { return false };
        match replica.coordination(event.clone()) {
            Err(ReplicaError::Busy) => {}
            _ => return true,
        }
        drop(replica);
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}
