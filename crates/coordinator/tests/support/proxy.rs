//! A TCP proxy that can cut, stall or half-close the way to a server.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to bytes in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They pass.
    Open,
    /// They vanish, and nobody is told; on the connection on which some have vanished, so do all
    /// later ones, since no stream has holes.
    Lost,
    /// They wait until the way is open again.
    Held,
}

#[derive(Clone, Copy, Debug)]
struct State {
    to_server: Way,
    to_client: Way,
    accepting: bool,
    /// Connections made before the last cut are closed.
    cuts: u64,
}

pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<watch::Sender<State>>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(super::any_port()).await.expect("a proxy");
        let address = listener.local_addr().expect("an address");
        let open = State { to_server: Way::Open, to_client: Way::Open, accepting: true, cuts: 0 };
        let state = Arc::new(watch::Sender::new(open));
        tokio::spawn(accept(listener, target, Arc::clone(&state)));
        Self { address, state }
    }

    pub fn endpoints(&self) -> Vec<String> {
        vec![format!("http://{}", self.address)]
    }

    pub fn set(&self, to_server: Way, to_client: Way) {
        self.state.send_modify(|s| (s.to_server, s.to_client) = (to_server, to_client));
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Closes all connections and takes no new ones until told otherwise.
    pub fn accept(&self, accepting: bool) {
        self.state.send_modify(|state| {
            state.accepting = accepting;
            state.cuts += u64::from(!accepting);
        });
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, state: Arc<watch::Sender<State>>) {
    while let Ok((client, _)) = listener.accept().await {
        let now = *state.borrow();
        if !now.accepting {
            continue;
        }
        let Ok(server) = TcpStream::connect(target).await else { continue };
        client.set_nodelay(true).ok();
        server.set_nodelay(true).ok();
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let cuts = now.cuts;
        tokio::spawn(pass(from_client, to_server, state.subscribe(), cuts, |s| s.to_server));
        tokio::spawn(pass(from_server, to_client, state.subscribe(), cuts, |s| s.to_client));
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    cuts: u64,
    way: impl Fn(&State) -> Way,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut cut = state.clone();
    let mut has_hole = false;
    let work = async {
        loop {
            let Ok(len @ 1..) = from.read(&mut buffer).await else { return };
            let now = state.wait_for(|state| way(state) != Way::Held).await.map(|s| way(&s));
            match now {
                Ok(Way::Open) if has_hole => {}
                Ok(Way::Open) if to.write_all(&buffer[..len]).await.is_err() => return,
                Ok(way) => has_hole |= way == Way::Lost,
                Err(_) => return,
            }
        }
    };
    tokio::select! {
        () = work => {}
        _ = cut.wait_for(|state| state.cuts > cuts) => {}
    }
}
