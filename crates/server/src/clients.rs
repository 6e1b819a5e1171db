//! The connections of clients: bounded, and watched for silence.
//!
//! When as many are open as may be, a newcomer takes the place of the one that has been silent for
//! longest. Nothing is lost with that one but the time to connect again.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How long a connection must have been silent to give its place to a newcomer. A client that waits
/// for an answer is silent too, but none waits for long.
const SILENCE_LEAST: Duration = Duration::from_secs(1);

/// How often refused connections are logged, at most.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(10);

/// The connections of clients to one node.
pub(crate) struct Clients {
    most: usize,
    began: Instant,
    seats: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    taken: BTreeMap<u64, Arc<Activity>>,
    next: u64,
    /// Refused or pushed out since that was logged.
    unlogged: u64,
    logged: Option<Instant>,
}

/// What is known of one connection.
struct Activity {
    /// When its client last sent something, in milliseconds since `began`.
    last_heard: AtomicU64,
    /// Set once it is served.
    socket: OnceLock<Weak<TcpStream>>,
}

/// A connection's place among those of clients. Dropping it gives the place back.
pub(crate) struct Seat {
    clients: Arc<Clients>,
    number: u64,
    activity: Arc<Activity>,
}

impl Clients {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, began: Instant::now(), seats: Mutex::default() })
    }

    /// Finds a place for a new connection; `None` if all others are in use.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Seat> {
        let mut seats = self.seats.lock();
        if seats.taken.len() >= self.most {
            let pushed_out = self.push_out(&mut seats);
            self.log(&mut seats);
            if !pushed_out {
                return None;
            }
        }
        let number = seats.next;
        seats.next += 1;
        let last_heard = AtomicU64::new(self.now());
        let activity = Arc::new(Activity { last_heard, socket: OnceLock::new() });
        seats.taken.insert(number, activity.clone());
        Some(Seat { clients: self.clone(), number, activity })
    }

    /// Ends the connection that has been silent for longest; returns false if none has been for
    /// long enough.
    fn push_out(&self, seats: &mut Seats) -> bool {
        let heard = |activity: &Activity| activity.last_heard.load(Ordering::Relaxed);
        let longest = seats.taken.iter().min_by_key(|(_, activity)| heard(activity));
        let Some((&number, activity)) = longest else { return false };
        let silence = self.now().saturating_sub(heard(activity));
        if Duration::from_millis(silence) < SILENCE_LEAST {
            return false;
        }
        let Some(socket) = activity.socket.get() else { return false };
        // The task that serves it finds it ended, and closes the descriptor.
        if let Some(socket) = socket.upgrade() {
            let _ended = SockRef::from(&*socket).shutdown(Shutdown::Both);
        }
        seats.taken.remove(&number);
        true
    }

    fn log(&self, seats: &mut Seats) {
        seats.unlogged += 1;
        if seats.logged.is_none_or(|logged| logged.elapsed() >= REFUSALS_LOGGED_EVERY) {
            seats.logged = Some(Instant::now());
            let connections = std::mem::take(&mut seats.unlogged);
            let most = self.most;
            tracing::warn!(connections, most, "clients' connections were refused or pushed out");
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.clients.seats.lock().taken.remove(&self.number);
    }
}

/// A client's connection as it is served.
pub(crate) struct ClientConnection {
    socket: Arc<TcpStream>,
    seat: Seat,
}

impl ClientConnection {
    /// Attaches a connection to the current runtime.
    pub(crate) fn new(socket: std::net::TcpStream, seat: Seat) -> io::Result<Self> {
        let socket = Arc::new(TcpStream::from_std(socket)?);
        let _first = seat.activity.socket.set(Arc::downgrade(&socket));
        Ok(Self { socket, seat })
    }
}

impl AsyncRead for ClientConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read_buf(buffer) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {
                    let now = self.seat.clients.now();
                    self.seat.activity.last_heard.store(now, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl ClientConnection {
    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match write(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for ClientConnection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |socket| socket.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(&*self.socket).shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            ended => Poll::Ready(ended),
        }
    }
}

impl Connected for ClientConnection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.socket.connect_info()
    }
}
