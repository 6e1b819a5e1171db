//! One node, as a client reaches it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use trireme_proto::v1;
use trireme_proto::v1::admin_client::AdminClient;
use trireme_proto::v1::kv_client::KvClient;

use crate::call::{Answer, CallError};
use crate::stream::StreamHandle;
use crate::{ClientError, ClientOptions};

/// A node's address, the connection to it, and the streams on that. Nothing is opened before it is
/// used.
pub(crate) struct NodeHandle {
    address: Arc<str>,
    channel: Channel,
    options: Arc<ClientOptions>,
    streams: Vec<OnceLock<StreamHandle>>,
    next_stream: AtomicUsize,
}

impl NodeHandle {
    /// Returns the node at `address`, which is `host:port`, with or without `http://` before it.
    pub(crate) fn new(address: &str, options: &Arc<ClientOptions>) -> Result<Self, ClientError> {
        let host = bare(address);
        let endpoint = Endpoint::from_shared(format!("http://{host}"))
            .ok()
            .filter(|endpoint| endpoint.uri().port().is_some())
            .ok_or_else(|| ClientError::Invalid(format!("'{address}' is not HOST:PORT")))?
            .connect_timeout(options.connect_timeout)
            .http2_keep_alive_interval(options.keep_alive_interval)
            .keep_alive_timeout(options.keep_alive_timeout)
            .tcp_nodelay(true);
        Ok(Self {
            address: host.into(),
            channel: endpoint.connect_lazy(),
            options: Arc::clone(options),
            streams: (0..options.streams_per_node).map(|_| OnceLock::new()).collect(),
            next_stream: AtomicUsize::new(0),
        })
    }

    /// Returns the address, `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Returns true if the node could not be reached of late.
    pub(crate) fn is_closed(&self) -> bool {
        self.streams.iter().any(|stream| stream.get().is_some_and(StreamHandle::is_closed))
    }

    /// Sends an operation over one of the streams; see [`StreamHandle::call`].
    pub(crate) async fn call(
        &self,
        operation: v1::request::Operation,
        deadline: Instant,
        until: impl Future<Output = ()> + Unpin,
    ) -> Result<Answer, CallError> {
        self.stream().call(operation, deadline, until).await
    }

    /// Asks the node for the routes.
    pub(crate) async fn routes(&self) -> Result<v1::RouteTable, String> {
        let mut client = KvClient::new(self.channel.clone())
            .max_decoding_message_size(self.options.answer_bytes_max);
        let asking = client.routes(v1::RoutesRequest {});
        within(self.options.connect_timeout, asking).await
    }

    /// Asks the node how it is.
    pub(crate) async fn status(&self) -> Result<v1::NodeStatus, String> {
        let mut client = self.admin();
        within(self.options.deadline, client.status(v1::StatusRequest {})).await
    }

    /// Asks the node's replica of a cohort to hand its leadership over.
    pub(crate) async fn transfer_leader(&self, cohort: u64, to: u64) -> Result<(), String> {
        let mut client = self.admin();
        let request = v1::TransferLeaderRequest { cohort, to };
        within(self.options.deadline, client.transfer_leader(request)).await?;
        Ok(())
    }

    /// Asks the node to change the range of a cohort that it leads; returns who serves it then, or why
    /// it did not.
    pub(crate) async fn change_range(
        &self,
        request: v1::ChangeRangeRequest,
    ) -> Result<Vec<u64>, (Code, String)> {
        let mut client = self.admin();
        Ok(self.judge(client.change_range(request)).await?.cohorts)
    }

    /// Asks the node to have one hold no replica, or to let it hold some again; returns why it did not.
    pub(crate) async fn set_draining(
        &self,
        request: v1::SetDrainingRequest,
    ) -> Result<(), (Code, String)> {
        let mut client = self.admin();
        self.judge(client.set_draining(request)).await.map(drop)
    }

    /// Asks the node to remove one; returns why it did not.
    pub(crate) async fn remove_node(
        &self,
        request: v1::RemoveNodeRequest,
    ) -> Result<(), (Code, String)> {
        let mut client = self.admin();
        self.judge(client.remove_node(request)).await.map(drop)
    }

    /// Waits for an answer for as long as the deadline; says why there is none.
    async fn judge<T>(
        &self,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, (Code, String)> {
        match timeout(self.options.deadline, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            // What the node itself has to say needs no code.
            Ok(Err(status)) if std::error::Error::source(&status).is_none() => {
                Err((status.code(), status.message().to_owned()))
            }
            Ok(Err(status)) => Err((status.code(), reason(&status))),
            Err(_elapsed) => Err((
                Code::DeadlineExceeded,
                format!("no answer within {:?}", self.options.deadline),
            )),
        }
    }

    /// Has the node suffer these faults.
    pub(crate) async fn set_faults(&self, faults: v1::SetFaultsRequest) -> Result<(), String> {
        let mut client = self.admin();
        within(self.options.deadline, client.set_faults(faults)).await?;
        Ok(())
    }

    fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
            .max_decoding_message_size(self.options.answer_bytes_max)
    }

    fn stream(&self) -> &StreamHandle {
        let turn = match self.streams.len() {
            1 => 0,
            count => self.next_stream.fetch_add(1, Ordering::Relaxed) % count,
        };
        self.streams[turn].get_or_init(|| {
            let options = Arc::clone(&self.options);
            StreamHandle::spawn(Arc::clone(&self.address), self.channel.clone(), options)
        })
    }
}

/// Returns an address without the scheme that may stand before it.
pub(crate) fn bare(address: &str) -> &str {
    let address = address.trim();
    address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/')
}

/// Returns why a call failed: what the server answered, or the first cause of a broken connection.
/// The causes between repeat each other.
pub(crate) fn reason(status: &Status) -> String {
    let Some(mut root) = std::error::Error::source(status) else {
        return format!("{:?}: {}", status.code(), status.message());
    };
    while let Some(cause) = root.source() {
        root = cause;
    }
    let (message, root) = (status.message(), root.to_string());
    if message.is_empty() || root.ends_with(message) {
        root
    } else if message.ends_with(&root) {
        message.to_owned()
    } else {
        format!("{message}: {root}")
    }
}

async fn within<T>(
    time: Duration,
    asking: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, String> {
    match timeout(time, asking).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(reason(&status)),
        Err(_elapsed) => Err(format!("no answer within {time:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_taken_with_and_without_a_scheme() {
        let options = Arc::new(ClientOptions::default());
        for address in ["127.0.0.1:7101", "http://127.0.0.1:7101", " http://127.0.0.1:7101/ "] {
            assert_eq!(NodeHandle::new(address, &options).unwrap().address(), "127.0.0.1:7101");
        }
        assert!(NodeHandle::new("[::1]:7101", &options).is_ok());
        for wrong in ["", "127.0.0.1", "https://host:1", "a b:1", "host:port"] {
            assert!(NodeHandle::new(wrong, &options).is_err(), "{wrong:?} was taken");
        }
    }
}
