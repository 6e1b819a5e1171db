//! A way to the coordinator that can be cut.
//!
//! The node connects to a port of its own, and each connection is passed on to the coordinator.
//! When the way is cut, both ends of every connection, and of every later one, hear nothing more and
//! get no answer, as if the network between them were gone. When it is healed, connections from
//! before are closed, since what they carried may have been lost halfway.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

/// The most connections at a time. Those past it wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// How long to wait before accepting again when that failed, as when the process has too many files
/// open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the way to the coordinator cannot be made one that can be cut.
#[derive(Debug, thiserror::Error)]
pub enum ForwarderError {
    /// The endpoint is reached in another way than plain TCP.
    #[error("a node that allows faults reaches its coordinator by http:// alone, not by {0}")]
    NotHttp(String),
    /// The endpoint does not say where it is.
    #[error("'{0}' is not http://HOST:PORT")]
    NoAddress(String),
    /// The operating system refused.
    #[error("forwarding to the coordinator: {0}")]
    Io(#[from] io::Error),
}

/// Passes connections on to one endpoint.
pub(super) struct Forwarder {
    listener: TcpListener,
    /// Where the endpoint is, host:port.
    target: String,
}

impl Forwarder {
    /// Takes a port from which connections to `endpoint` will be passed on.
    pub(super) async fn bind(endpoint: &str) -> Result<Self, ForwarderError> {
        let target = target(endpoint)?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        Ok(Self { listener, target })
    }

    /// Returns the endpoint to connect to instead.
    pub(super) fn endpoint(&self) -> io::Result<String> {
        Ok(format!("http://{}", self.listener.local_addr()?))
    }

    /// Passes connections on for ever.
    pub(super) async fn run(self, is_cut: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let target: Arc<str> = self.target.into();
        // The semaphore is never closed.
        while let Ok(place) = places.clone().acquire_owned().await {
            let near = match self.listener.accept().await {
                Ok((near, _)) => near,
                Err(error) => {
                    tracing::warn!(%error, "a connection to the coordinator was not accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (target, is_cut) = (target.clone(), is_cut.clone());
            tokio::spawn(async move {
                pass_on(near, &target, is_cut).await;
                drop(place);
            });
        }
    }
}

/// Passes a connection on until it ends or has outlived a cut.
async fn pass_on(mut near: TcpStream, target: &str, mut is_cut: watch::Receiver<bool>) {
    // Kept through a cut: the other end must not hear of it.
    let mut far = None;
    let mut cut = is_cut.clone();
    let passing = async {
        let far = far.insert(TcpStream::connect(target).await?);
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        copy_bidirectional(&mut near, far).await
    };
    tokio::select! {
        biased;
        _ = cut.wait_for(|is_cut| *is_cut) => {}
        ended = passing => {
            tracing::debug!(?ended, "a connection to the coordinator ended");
            return;
        }
    }
    let _process_ends = is_cut.wait_for(|is_cut| !*is_cut).await;
}

/// Returns the host and port of an endpoint.
fn target(endpoint: &str) -> Result<String, ForwarderError> {
    let address = match endpoint.trim().split_once("://") {
        None => endpoint.trim(),
        Some(("http", address)) => address,
        Some(_) => return Err(ForwarderError::NotHttp(endpoint.to_owned())),
    };
    let address = address.trim_end_matches('/');
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            Ok(address.to_owned())
        }
        _ => Err(ForwarderError::NoAddress(endpoint.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    /// Longer than anything takes that is not cut.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// Long enough to see that nothing comes.
    const SILENCE: Duration = Duration::from_millis(50);

    #[test]
    fn endpoints_are_http_with_a_host_and_a_port() {
        for endpoint in ["http://127.0.0.1:2379", "127.0.0.1:2379", " http://127.0.0.1:2379/ "] {
            assert_eq!(target(endpoint).unwrap(), "127.0.0.1:2379");
        }
        assert!(matches!(target("https://etcd:2379"), Err(ForwarderError::NotHttp(_))));
        assert!(matches!(target("http://etcd"), Err(ForwarderError::NoAddress(_))));
    }

    /// Answers every byte with itself.
    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = socket.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        format!("http://{address}")
    }

    /// Returns whether a byte comes back, and `None` if the connection ends instead.
    async fn is_answered(socket: &mut TcpStream, patience: Duration) -> Option<bool> {
        socket.write_all(b"?").await.ok()?;
        match timeout(patience, socket.read(&mut [0])).await {
            Ok(Ok(0) | Err(_)) => None,
            Ok(Ok(_)) => Some(true),
            Err(_) => Some(false),
        }
    }

    #[tokio::test]
    async fn a_cut_is_silent_for_old_and_new_connections_and_ends_when_it_is_healed() {
        let forwarder = Forwarder::bind(&echo().await).await.unwrap();
        let address = target(&forwarder.endpoint().unwrap()).unwrap();
        let (is_cut, watched) = watch::channel(false);
        tokio::spawn(forwarder.run(watched));
        let connect = || async { TcpStream::connect(&address).await.unwrap() };

        let mut old = connect().await;
        assert_eq!(is_answered(&mut old, DEADLINE).await, Some(true));
        is_cut.send_replace(true);
        assert_eq!(is_answered(&mut old, SILENCE).await, Some(false));
        let mut new = connect().await;
        assert_eq!(is_answered(&mut new, SILENCE).await, Some(false));

        is_cut.send_replace(false);
        for socket in [&mut old, &mut new] {
            assert_eq!(is_answered(socket, DEADLINE).await, None, "closed, not gone on with");
        }
        assert_eq!(is_answered(&mut connect().await, DEADLINE).await, Some(true));
    }
}
