//! How a connection begins: eight bytes that distinguish a peer from a client, then a hello from each
//! side, checked by the other.

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use trireme_proto::v1::{Lane, PeerHello};
use trireme_types::{ClusterId, NodeId};

use super::frame::{Connection, LinkError};
use super::{Shared, TransportOptions};

/// The first bytes of every peer connection. A gRPC client's first bytes are `PRI * HT`.
const MAGIC: [u8; 8] = *b"TRIPEER1";

/// The version of the conversation that this build speaks.
const VERSION: u32 = 1;

/// How long an accepted connection may take to say what it is.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for the rest of the first bytes when only some have come. They nearly always
/// come together, so this hardly ever happens, and a socket that can be peeked at already does not
/// say when there is more.
const FIRST_BYTES_POLL: Duration = Duration::from_millis(2);

/// What a hello says that it should not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HelloError {
    #[error("it speaks version {0} of the peer protocol, and this node version {VERSION}")]
    Version(u32),
    #[error("it belongs to cluster {theirs}, and this node to cluster {ours}")]
    Cluster { ours: ClusterId, theirs: ClusterId },
    #[error("it means to reach {asked}, and this node is {us}")]
    Target { us: NodeId, asked: NodeId },
    #[error("it is {found} where {expected} was expected")]
    Sender { expected: NodeId, found: NodeId },
    #[error("it calls itself {0}, which no other node may be")]
    Identity(NodeId),
    #[error("it names the unknown lane {0}")]
    UnknownLane(i32),
    #[error("it answers for the lane {found} where {expected} was asked for")]
    Lane { expected: &'static str, found: &'static str },
    #[error("its first bytes are not those of a peer")]
    NoPeer,
}

/// Returns true if an accepted connection comes from another node rather than from a client, without
/// taking any bytes from it. The first byte that is not a peer's decides.
///
/// # Errors
/// The connection failed, ended, or did not say what it is in time; it should be dropped.
pub async fn is_peer(socket: &TcpStream) -> io::Result<bool> {
    is_peer_within(FIRST_BYTES_TIMEOUT, socket).await
}

async fn is_peer_within(limit: Duration, socket: &TcpStream) -> io::Result<bool> {
    match timeout(limit, peek(socket)).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "a connection that says nothing")),
    }
}

async fn peek(socket: &TcpStream) -> io::Result<bool> {
    let mut first = [0; MAGIC.len()];
    let mut seen = 0;
    loop {
        let count = socket.peek(&mut first).await?;
        if first[..count] != MAGIC[..count] {
            return Ok(false);
        }
        if count == MAGIC.len() {
            return Ok(true);
        }
        // Peeking sees all that has come, so no more than before means nothing new or the end.
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if count == seen {
            sleep(FIRST_BYTES_POLL).await;
        }
        seen = count;
    }
}

/// Opens a connection to a node, for one lane.
pub(super) async fn open(
    options: &TransportOptions,
    to: NodeId,
    address: &str,
    lane: Lane,
) -> Result<Connection, LinkError> {
    let opening = async {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let mut connection = Connection::new(socket);
        connection.writer.send_raw(&MAGIC).await?;
        connection.writer.send(&hello(options, to, lane)).await?;
        let answer: PeerHello = connection.reader.next().await?;
        check_answer(options, &answer, to, lane)?;
        Ok(connection)
    };
    match timeout(options.connect_timeout, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(LinkError::ConnectTimeout(options.connect_timeout)),
    }
}

/// Someone who has said hello and awaits the answer.
pub(super) struct Caller {
    pub(super) node: NodeId,
    pub(super) lane: Lane,
    pub(super) connection: Connection,
}

impl Caller {
    /// Takes the hello of an accepted connection. A caller whose hello is refused is answered
    /// nevertheless, so that it can say what differs.
    pub(super) async fn receive(
        options: &TransportOptions,
        mut socket: TcpStream,
    ) -> Result<Self, LinkError> {
        socket.set_nodelay(true)?;
        let limit = options.connect_timeout;
        let mut first = [0; MAGIC.len()];
        match timeout(limit, socket.read_exact(&mut first)).await {
            Ok(read) => read.map(|_| ())?,
            Err(_) => return Err(LinkError::Silent(limit)),
        }
        if first != MAGIC {
            return Err(HelloError::NoPeer.into());
        }
        let mut connection = Connection::new(socket);
        let theirs: PeerHello = connection.reader.next_within(limit).await?;
        match check_caller(options, &theirs) {
            Ok((node, lane)) => Ok(Self { node, lane, connection }),
            Err(error) => {
                let answer = hello(options, NodeId(theirs.from), Lane::Data);
                connection.writer.send_within(limit, &answer).await?;
                Err(error.into())
            }
        }
    }

    /// Answers the hello, after which the caller may send.
    pub(super) async fn welcome(mut self, shared: &Shared) -> Result<Self, LinkError> {
        if !shared.lets_pass(self.node, self.lane).await {
            return Err(LinkError::Cut);
        }
        let options = &shared.options;
        let answer = hello(options, self.node, self.lane);
        self.connection.writer.send_within(options.connect_timeout, &answer).await?;
        Ok(self)
    }
}

fn hello(options: &TransportOptions, to: NodeId, lane: Lane) -> PeerHello {
    PeerHello {
        version: VERSION,
        cluster: options.cluster.0,
        from: options.node.0,
        to: to.0,
        lane: lane.into(),
    }
}

fn check_answer(
    options: &TransportOptions,
    hello: &PeerHello,
    expected: NodeId,
    lane: Lane,
) -> Result<(), HelloError> {
    check_version_and_cluster(options, hello)?;
    let found = NodeId(hello.from);
    if found != expected {
        return Err(HelloError::Sender { expected, found });
    }
    check_target(options, hello)?;
    let answered = check_lane(hello)?;
    if answered != lane {
        let (expected, found) = (lane.as_str_name(), answered.as_str_name());
        return Err(HelloError::Lane { expected, found });
    }
    Ok(())
}

fn check_caller(
    options: &TransportOptions,
    hello: &PeerHello,
) -> Result<(NodeId, Lane), HelloError> {
    check_version_and_cluster(options, hello)?;
    check_target(options, hello)?;
    let from = NodeId(hello.from);
    if from == NodeId(0) || from == options.node {
        return Err(HelloError::Identity(from));
    }
    Ok((from, check_lane(hello)?))
}

fn check_version_and_cluster(
    options: &TransportOptions,
    hello: &PeerHello,
) -> Result<(), HelloError> {
    if hello.version != VERSION {
        return Err(HelloError::Version(hello.version));
    }
    let (ours, theirs) = (options.cluster, ClusterId(hello.cluster));
    if ours != theirs {
        return Err(HelloError::Cluster { ours, theirs });
    }
    Ok(())
}

fn check_target(options: &TransportOptions, hello: &PeerHello) -> Result<(), HelloError> {
    let (us, asked) = (options.node, NodeId(hello.to));
    if us == asked { Ok(()) } else { Err(HelloError::Target { us, asked }) }
}

fn check_lane(hello: &PeerHello) -> Result<Lane, HelloError> {
    Lane::try_from(hello.lane).map_err(|_| HelloError::UnknownLane(hello.lane))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_does_not_say_what_it_is_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for said in [&b""[..], b"T", b"TRIPEER"] {
            let mut caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            caller.write_all(said).await.unwrap();
            let (socket, _) = listener.accept().await.unwrap();
            let answer = is_peer_within(Duration::from_millis(20), &socket).await;
            assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
    }
}
