//! One port for everyone: clients speak gRPC, peers begin with a preamble of their own.
//!
//! The port is served by the runtime of the consensus tasks, which keeps the peers' connections;
//! the clients' are handed to the runtime that serves them, so that their load cannot hold up
//! a heartbeat.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use crate::transport::{PeerTransport, is_peer};

/// The most connections that are being sorted at once; further ones wait in the kernel's queue.
const SORTING_MAX: usize = 256;

/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A client's connection that is not yet attached to a runtime.
pub(crate) type ClientSocket = std::net::TcpStream;

/// Listens on `address`, or says why it cannot.
pub(crate) fn bind(address: &str) -> io::Result<StdListener> {
    let listener = StdListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts connections until its task is aborted: peers go to the transport, clients to `clients`.
pub(crate) async fn accept(
    listener: StdListener,
    transport: Arc<PeerTransport>,
    clients: mpsc::Sender<ClientSocket>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let sorting = Arc::new(Semaphore::new(SORTING_MAX));
    loop {
        let place = sorting.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((socket, _)) => {
                let (transport, clients) = (transport.clone(), clients.clone());
                tokio::spawn(async move {
                    let sorted = sort(&socket).await;
                    drop(place);
                    match sorted {
                        Ok(true) => transport.serve(socket).await,
                        Ok(false) => hand_over(socket, &clients).await,
                        Err(error) => tracing::debug!(%error, "a connection said nothing"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn sort(socket: &TcpStream) -> io::Result<bool> {
    socket.set_nodelay(true)?;
    is_peer(socket).await
}

async fn hand_over(socket: TcpStream, clients: &mpsc::Sender<ClientSocket>) {
    match socket.into_std() {
        // Nobody takes clients any more once the node stops.
        Ok(socket) => drop(clients.send(socket).await),
        Err(error) => tracing::warn!(%error, "a client's connection could not be handed over"),
    }
}
