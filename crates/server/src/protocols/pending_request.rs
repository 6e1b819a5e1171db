//! What a core asks of the coordinator, until it has been carried out.
//!
//! A core's request replaces the one before: a core asks for one thing at a time, and asks again
//! until it sees that it has happened or cannot. Ends with the replica.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use trireme_replication::core::Core;
use trireme_replication::driver::Coordination;

use super::shared::{RequestPermit, SharedCoordinator};

/// The pause before a request is tried again that the coordinator did not answer.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The request that a replica has at the coordinator. The replica drops it at its end, which ends
/// the tasks that serve it.
pub(crate) struct PendingRequest<C: Core> {
    newest: Arc<Newest<C::CoordinatorRequest>>,
    end: CancellationToken,
    _ends: DropGuard,
}

/// The newest request, until it is carried out.
struct Newest<R> {
    request: Mutex<Option<R>>,
    changed: Notify,
}

impl<C: Core> PendingRequest<C> {
    pub(crate) fn new() -> Arc<Self> {
        let newest = Newest { request: Mutex::new(None), changed: Notify::new() };
        let end = CancellationToken::new();
        Arc::new(Self { newest: Arc::new(newest), _ends: end.clone().drop_guard(), end })
    }

    /// Returns the side that carries requests out.
    pub(super) fn server(&self) -> RequestServer<C> {
        RequestServer { newest: Arc::clone(&self.newest), end: self.end.clone() }
    }
}

impl<C: Core<CoordinatorRequest: Send + Sync>> Coordination<C> for PendingRequest<C> {
    fn request(&self, request: C::CoordinatorRequest) {
        *self.newest.request.lock() = Some(request);
        self.newest.changed.notify_one();
    }
}

/// The side that carries requests out.
pub(super) struct RequestServer<C: Core> {
    newest: Arc<Newest<C::CoordinatorRequest>>,
    pub(super) end: CancellationToken,
}

impl<C: Core> RequestServer<C> {
    /// Carries out the newest request, one after the other, until the replica ends. A request for
    /// which `carry_out` returns false is tried again unless there is a newer one.
    ///
    /// The permit that a request is carried out with is one of the node's, for which all cohorts wait
    /// in turn; what a core asks for meanwhile replaces what waits.
    pub(super) async fn serve<F>(
        &self,
        coordinator: &SharedCoordinator,
        carry_out: impl Fn(C::CoordinatorRequest, RequestPermit) -> F,
    ) where
        F: Future<Output = bool>,
        C::CoordinatorRequest: Clone,
    {
        let serving = async {
            loop {
                if self.newest.request.lock().is_none() {
                    self.newest.changed.notified().await;
                    continue;
                }
                let permit = coordinator.permit().await;
                let Some(request) = self.newest.request.lock().take() else { continue };
                if !carry_out(request.clone(), permit).await {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    self.newest.request.lock().get_or_insert(request);
                }
            }
        };
        self.end.run_until_cancelled(serving).await;
    }
}
