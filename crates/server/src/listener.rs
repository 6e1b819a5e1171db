//! One port for everyone: clients speak gRPC, peers begin with a preamble of their own.
//!
//! The port is served by the runtime of the consensus tasks, which keeps the peers' connections;
//! the clients' are handed to the runtime that serves them, so that their load cannot hold up
//! a heartbeat.
//!
//! A connection that says nothing keeps no other out: it is dropped after a while, and sooner if many
//! come after it. Peers and clients have room apart from each other.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clients::{Clients, Seat};
use crate::transport::{PeerTransport, is_peer};

/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The length of the first bytes of every HTTP/2 connection: `PRI * HTTP/2.0`, two line ends, `SM`,
/// and two more.
const HTTP2_PREFACE_BYTES: usize = 24;

/// How long a client may take to send them, once it has begun.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for the rest of the first bytes when only some have come. They nearly always
/// come together.
const PREFACE_POLL: Duration = Duration::from_millis(10);

/// A client's connection that is not yet attached to a runtime, and its place.
pub(crate) type ClientSocket = (std::net::TcpStream, Seat);

/// Listens on `address`, or says why it cannot.
pub(crate) fn bind(address: &str) -> io::Result<StdListener> {
    let listener = StdListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What accepts connections: peers go to the transport, clients to who serves them.
pub(crate) struct Accepting {
    pub(crate) listener: StdListener,
    pub(crate) transport: Arc<PeerTransport>,
    pub(crate) clients: mpsc::Sender<ClientSocket>,
    /// The connections of clients.
    pub(crate) seats: Arc<Clients>,
    /// The most connections that have not said what they are.
    pub(crate) silent_max: usize,
}

impl Accepting {
    /// Accepts connections until its task is aborted.
    pub(crate) async fn run(self) -> io::Result<()> {
        let Self { listener, transport, clients, seats, silent_max } = self;
        let listener = TcpListener::from_std(listener)?;
        let silent = Arc::new(Silent::default());
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    let (number, pushed_out) = silent.add(silent_max);
                    let (silent, transport) = (silent.clone(), transport.clone());
                    let (clients, seats) = (clients.clone(), seats.clone());
                    tokio::spawn(async move {
                        let sorted = tokio::select! {
                            sorted = sort(&socket) => sorted,
                            () = pushed_out.cancelled() => {
                                Err(io::Error::other("others came while it was silent"))
                            }
                        };
                        silent.remove(number);
                        match sorted {
                            Ok(true) => transport.serve(socket).await,
                            // A client that finds no room is turned away by the end of its
                            // connection, and tries again or elsewhere.
                            Ok(false) => match seats.admit() {
                                Some(seat) => hand_over(socket, seat, &clients).await,
                                None => tracing::debug!("no room for a client's connection"),
                            },
                            Err(error) => tracing::debug!(%error, "a connection said nothing"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// The connections that have not said what they are, oldest first.
#[derive(Default)]
struct Silent {
    connections: Mutex<(u64, BTreeMap<u64, CancellationToken>)>,
}

impl Silent {
    /// Adds a connection; the oldest has to go if there are more than may be. Returns the number of
    /// the new one, and what resolves when it has to go.
    fn add(&self, most: usize) -> (u64, CancellationToken) {
        let mut connections = self.connections.lock();
        let (next, silent) = &mut *connections;
        while silent.len() >= most
            && let Some((_, oldest)) = silent.pop_first()
        {
            oldest.cancel();
        }
        let (number, token) = (*next, CancellationToken::new());
        *next += 1;
        silent.insert(number, token.clone());
        (number, token)
    }

    fn remove(&self, number: u64) {
        self.connections.lock().1.remove(&number);
    }
}

/// Returns true if a peer is there, and false if a client is.
async fn sort(socket: &TcpStream) -> io::Result<bool> {
    socket.set_nodelay(true)?;
    if is_peer(socket).await? {
        return Ok(true);
    }
    match timeout(PREFACE_TIMEOUT, preface(socket)).await {
        Ok(come) => come.map(|()| false),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "a client that says no more")),
    }
}

/// Waits until as many bytes have come as a client begins with. What they are is for HTTP/2 to see.
async fn preface(socket: &TcpStream) -> io::Result<()> {
    let mut first = [0; HTTP2_PREFACE_BYTES];
    let mut seen = 0;
    loop {
        let count = socket.peek(&mut first).await?;
        if count == first.len() {
            return Ok(());
        }
        // Peeking sees all that has come, so no more than before means nothing new or the end.
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if count == seen {
            sleep(PREFACE_POLL).await;
        }
        seen = count;
    }
}

async fn hand_over(socket: TcpStream, seat: Seat, clients: &mpsc::Sender<ClientSocket>) {
    match socket.into_std() {
        // No client is accepted any more once the node stops.
        Ok(socket) => drop(clients.send((socket, seat)).await),
        Err(error) => tracing::warn!(%error, "a client's connection could not be handed over"),
    }
}
