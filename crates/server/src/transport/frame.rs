//! Frames on a connection: four bytes of length (big-endian), then a protobuf message.

use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures::StreamExt;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::hello::HelloError;
use super::options::GATHER_BYTES;

/// The most bytes in a hello, and in an answer to a ping: a few numbers.
pub(super) const HELLO_BYTES_MAX: usize = 256;

/// The most bytes in a frame of a snapshot connection: a chunk with room to spare, or what the
/// protocol puts before the snapshot.
pub(super) const SNAPSHOT_FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The bytes that are asked of the socket at a time.
const READ_BYTES: usize = 64 * 1024;

/// The length before each frame.
const LENGTH_BYTES: usize = 4;

/// Why a connection ended, or was not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the connection broke: {0}")]
    Broken(#[source] io::Error),
    #[error("the other end closed the connection")]
    Closed,
    #[error("the other end was silent for {0:?}")]
    Silent(Duration),
    #[error("the other end took nothing for {0:?}")]
    Stalled(Duration),
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    #[error("the node's heartbeat connection ended")]
    HeartbeatEnded,
    #[error("a later connection took this one's place")]
    Replaced,
    #[error("a fault that was asked for cut the connection")]
    Cut,
    #[error("there are {0} connections already")]
    TooMany(usize),
    #[error("a frame that cannot be taken: {0}")]
    Frame(#[source] io::Error),
    #[error("a frame that cannot be read: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("a frame that does not belong here: {0}")]
    Unexpected(&'static str),
    #[error(transparent)]
    Hello(#[from] HelloError),
}

impl LinkError {
    /// Returns true if the other end broke the rules of the conversation, rather than went away.
    pub(super) fn is_violation(&self) -> bool {
        match self {
            Self::Frame(_) | Self::Malformed(_) | Self::Unexpected(_) | Self::Hello(_) => true,
            Self::TooMany(_) => true,
            Self::Broken(_) | Self::Closed | Self::Silent(_) | Self::Stalled(_) => false,
            Self::ConnectTimeout(_) | Self::HeartbeatEnded | Self::Replaced | Self::Cut => false,
        }
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A length past the limit is what the codec reports in this way, and a frame past the
            // limit is what [`FrameWriter::send`] does.
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Self::Frame(error),
            _ => Self::Broken(error),
        }
    }
}

/// Both halves of a connection.
pub(super) struct Connection {
    pub(super) reader: FrameReader,
    pub(super) writer: FrameWriter,
}

impl Connection {
    /// Frames a socket on which only hellos are read until [`FrameReader::set_bytes_max`] is given
    /// otherwise.
    pub(super) fn new(socket: TcpStream) -> Self {
        let (read_half, write_half) = socket.into_split();
        Self { reader: FrameReader::new(read_half), writer: FrameWriter::new(write_half) }
    }
}

/// Reads frames.
pub(super) struct FrameReader {
    frames: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
}

impl FrameReader {
    fn new(half: OwnedReadHalf) -> Self {
        let codec = LengthDelimitedCodec::builder()
            .length_field_length(LENGTH_BYTES)
            .max_frame_length(HELLO_BYTES_MAX)
            .new_codec();
        Self { frames: FramedRead::with_capacity(half, codec, READ_BYTES) }
    }

    /// Takes frames of at most so many bytes from now on.
    pub(super) fn set_bytes_max(&mut self, bytes_max: usize) {
        self.frames.decoder_mut().set_max_frame_length(bytes_max);
    }

    /// Returns the next frame, whose byte fields are slices of what was read. Loses nothing if it
    /// is dropped before it is done.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<M, LinkError> {
        match self.frames.next().await {
            Some(Ok(frame)) => Ok(M::decode(frame.freeze())?),
            Some(Err(error)) => Err(error.into()),
            None => Err(LinkError::Closed),
        }
    }

    /// Returns the next frame, unless none comes for too long.
    pub(super) async fn next_within<M: Message + Default>(
        &mut self,
        silence_max: Duration,
    ) -> Result<M, LinkError> {
        match timeout(silence_max, self.next()).await {
            Ok(frame) => frame,
            Err(_) => Err(LinkError::Silent(silence_max)),
        }
    }

    /// Reads on, and forgets what it reads, until the other end closes.
    pub(super) async fn drain(&mut self) {
        while let Some(Ok(_)) = self.frames.next().await {}
    }
}

/// Writes frames.
pub(super) struct FrameWriter {
    half: OwnedWriteHalf,
    buffer: BytesMut,
}

impl FrameWriter {
    fn new(half: OwnedWriteHalf) -> Self {
        Self { half, buffer: BytesMut::new() }
    }

    /// Writes bytes that are no frame.
    pub(super) async fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.half.write_all(bytes).await
    }

    /// Writes a frame, in one piece, and returns its bytes. If it is dropped before it is done, part of a frame may have
    /// gone, and the connection is of no use any more.
    pub(super) async fn send(&mut self, message: &impl Message) -> io::Result<usize> {
        let bytes = message.encoded_len();
        let length = u32::try_from(bytes).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "a frame of more than 4 GiB")
        })?;
        self.buffer.clear();
        self.buffer.reserve(LENGTH_BYTES + bytes);
        self.buffer.put_u32(length);
        message.encode(&mut self.buffer).map_err(io::Error::other)?;
        self.half.write_all(&self.buffer).await?;
        // The memory of a rare large frame is not kept for the small ones after it.
        if self.buffer.capacity() > 2 * GATHER_BYTES {
            self.buffer = BytesMut::new();
        }
        Ok(LENGTH_BYTES + bytes)
    }

    /// Writes a frame, unless the other end takes nothing of it for too long.
    pub(super) async fn send_within(
        &mut self,
        stall_max: Duration,
        message: &impl Message,
    ) -> Result<(), LinkError> {
        match timeout(stall_max, self.send(message)).await {
            Ok(sent) => Ok(sent.map(|_bytes| ())?),
            Err(_) => Err(LinkError::Stalled(stall_max)),
        }
    }

    /// Says that nothing more will be written.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        self.half.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trireme_proto::v1::{PeerFrame, PeerMessage};

    use super::*;

    #[test]
    fn payloads_are_slices_of_their_frame() {
        let message = PeerMessage { cohort: 1, payload: Bytes::from(vec![7; 1000]) };
        let frame = PeerFrame { messages: vec![message.clone(), message], ping: 1, pong: 0 };
        let bytes = Bytes::from(frame.encode_to_vec());
        let range = bytes.as_ptr_range();
        let decoded = PeerFrame::decode(bytes.clone()).unwrap();
        assert_eq!(decoded, frame);
        for message in decoded.messages {
            assert!(range.contains(&message.payload.as_ptr()));
        }
    }
}
