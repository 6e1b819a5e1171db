//! A server that is only starting: it takes connections and breaks them before it answers.

#![allow(clippy::unwrap_used, reason = "in a test, what cannot be unwrapped is a failure")]

mod support;

use std::net::SocketAddr;

use support::{Embedded, any_port, fresh_options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use trireme_coordinator::{Coordinator, CreateMode};

/// How far a connection gets before it is broken.
#[derive(Clone, Copy, Debug)]
enum Break {
    /// It is reset as soon as it is there.
    AtOnce,
    /// It is reset when the client has spoken.
    AfterPreface,
    /// It is reset after the server's settings, when requests are under way.
    AfterSettings,
    /// It is closed in order before anything is answered.
    Closed,
    /// The server sends the client away.
    GoAway(u8),
}

/// How many connections are broken before the server answers.
const BROKEN: usize = 3;

const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Breaks the first connections and passes all others on.
async fn starting_server(target: SocketAddr, how: Break) -> SocketAddr {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            if number < BROKEN {
                tokio::spawn(break_connection(client, how));
                continue;
            }
            let mut server = TcpStream::connect(target).await.unwrap();
            tokio::spawn(async move {
                tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
            });
        }
    });
    address
}

async fn break_connection(mut client: TcpStream, how: Break) {
    match how {
        Break::AtOnce => {}
        Break::Closed => {
            hear(&mut client).await;
            client.shutdown().await.ok();
            return;
        }
        Break::AfterPreface => hear(&mut client).await,
        Break::AfterSettings => {
            client.write_all(&SETTINGS).await.ok();
            hear(&mut client).await;
            hear(&mut client).await;
        }
        Break::GoAway(code) => {
            client.write_all(&SETTINGS).await.ok();
            hear(&mut client).await;
            let go_away = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, code];
            client.write_all(&go_away).await.ok();
            hear(&mut client).await;
        }
    }
    // Without lingering, closing is a reset.
    client.set_zero_linger().ok();
}

/// Waits until the client says something, whatever it is, or is gone.
async fn hear(client: &mut TcpStream) {
    let mut spoken = [0; 512];
    let _heard = client.read(&mut spoken).await;
}

/// An etcd that is only starting reset the first connection, and the coordinator's user gave up at
/// once, whatever time it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_outlasts_a_server_that_breaks_its_first_connections() {
    const CALM: u8 = 11;
    const INADEQUATE_SECURITY: u8 = 12;
    let server = Embedded::start().await;
    for how in [
        Break::AtOnce,
        Break::AfterPreface,
        Break::AfterSettings,
        Break::Closed,
        Break::GoAway(0),
        Break::GoAway(1),
        Break::GoAway(2),
        Break::GoAway(CALM),
        Break::GoAway(INADEQUATE_SECURITY),
    ] {
        let address = starting_server(server.address, how).await;
        let options = fresh_options(&[format!("http://{address}")]);
        let connected = Coordinator::connect(options).await;
        let coordinator = connected.unwrap_or_else(|error| panic!("{how:?}: {error}"));
        coordinator.create("/n", b"", CreateMode::Persistent).await.unwrap();
    }
}
