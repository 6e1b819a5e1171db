//! Snapshots, each on a connection of its own.
//!
//! The sender writes the start, the chunks and the end, and meanwhile listens: an answer that comes
//! early is a refusal. The receiver checks each chunk as it comes and hands the snapshot over only
//! when all of it is there. Its bytes lie in a file without a name until then, so that a stream
//! that is cut leaves nothing behind. While the snapshot is installed, the receiver reports whenever
//! that came further, and the sender waits as long as it does.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use trireme_proto::v1::snapshot_frame::Frame;
use trireme_proto::v1::{Lane, SnapshotFrame, SnapshotStart};
use trireme_replication::SendError;
use trireme_storage::{
    SnapshotError, SnapshotProgress, SnapshotReader, SnapshotReceiver, StagedSnapshot,
};
use trireme_types::{CohortId, NodeId};

use super::Shared;
use super::faults::Fate;
use super::frame::{Connection, FrameReader, FrameWriter, LinkError, SNAPSHOT_FRAME_BYTES_MAX};
use super::hello::{self, Caller};

/// The most bytes of a refusal's reason that are sent; the rest is cut off.
const REASON_BYTES_MAX: usize = 1024;

/// What a frame needs beside the bytes in it.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// How often the progress of an installation is looked at and reported.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Sends a snapshot to the node at `address`, and returns the answer.
pub(super) async fn send(
    shared: Arc<Shared>,
    to: NodeId,
    address: String,
    start: SnapshotStart,
    snapshot: SnapshotReader,
) -> Result<Bytes, SendError> {
    if start.header.len() > SNAPSHOT_FRAME_BYTES_MAX - FRAME_OVERHEAD_BYTES {
        let reason = format!("{} bytes before the snapshot are too many", start.header.len());
        return Err(SendError::Refused { node: to, reason });
    }
    let cohort = CohortId(start.cohort);
    if !shared.lets_pass(to, Lane::Snapshot).await {
        return Err(SendError::Unreachable(to));
    }
    let Connection { mut reader, mut writer } =
        match hello::open(&shared.options, to, &address, Lane::Snapshot).await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%to, %cohort, %error, "no connection for a snapshot");
                return Err(SendError::Unreachable(to));
            }
        };
    reader.set_bytes_max(SNAPSHOT_FRAME_BYTES_MAX);
    let sent = tokio::select! {
        biased;
        answer = reader.next() => return read_answer(to, answer),
        sent = send_stream(&shared, to, &mut writer, start, snapshot) => sent,
    };
    let options = &shared.options;
    let answer_timeout = options.snapshot_install_timeout + options.snapshot_step_timeout;
    let answer = match sent {
        Ok(()) => answer_after_progress(&mut reader, answer_timeout).await,
        // The other end may have said why it takes no more before it closed.
        Err(StreamError::Link(error)) => {
            let answer = reader.next_within(options.snapshot_step_timeout).await;
            answer.map_err(|_| error)
        }
        Err(StreamError::Read(reason)) => return Err(SendError::Refused { node: to, reason }),
    };
    read_answer(to, answer)
}

/// Returns the answer, which takes as long as the installation does: each sign that it came further
/// may take no longer than `limit`.
async fn answer_after_progress(
    reader: &mut FrameReader,
    limit: Duration,
) -> Result<SnapshotFrame, LinkError> {
    loop {
        let frame: SnapshotFrame = reader.next_within(limit).await?;
        if !matches!(frame.frame, Some(Frame::Progress(_))) {
            return Ok(frame);
        }
    }
}

/// Why a stream did not go out whole.
enum StreamError {
    /// The other end did not take it.
    Link(LinkError),
    /// The snapshot could not be read here.
    Read(String),
}

impl From<LinkError> for StreamError {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// Writes a whole snapshot. A snapshot that cannot be read to its end is broken off without the
/// end, so that the other end throws away what it has.
async fn send_stream(
    shared: &Shared,
    to: NodeId,
    writer: &mut FrameWriter,
    start: SnapshotStart,
    snapshot: SnapshotReader,
) -> Result<(), StreamError> {
    let limit = shared.options.snapshot_step_timeout;
    let mut lag = Duration::ZERO;
    let mut reading = spawn_blocking(|| read_chunk(snapshot));
    send_frame(shared, to, writer, &mut lag, Frame::Start(start)).await?;
    loop {
        let read = timeout(limit, reading).await;
        let read = read.map_err(|_| StreamError::Read("a chunk was not read in time".into()))?;
        let read = read.map_err(|error| StreamError::Read(error.to_string()))?;
        let Some((chunk, snapshot)) = read? else {
            break;
        };
        // The next chunk is read while this one is written.
        reading = spawn_blocking(|| read_chunk(snapshot));
        send_frame(shared, to, writer, &mut lag, Frame::Chunk(chunk)).await?;
    }
    Ok(send_frame(shared, to, writer, &mut lag, Frame::End(true)).await?)
}

/// Reads the next chunk from the disk, and returns it with what reads the one after it.
fn read_chunk(
    mut snapshot: SnapshotReader,
) -> Result<Option<(Bytes, SnapshotReader)>, StreamError> {
    match snapshot.next_chunk() {
        Ok(chunk) => Ok(chunk.map(|chunk| (chunk, snapshot))),
        Err(error) => Err(StreamError::Read(error.to_string())),
    }
}

/// Sends a part of a stream that is `lag` late already. Only what a delay adds to that is waited
/// for: all later parts are that late, too, and are not held up one by one.
async fn send_frame(
    shared: &Shared,
    to: NodeId,
    writer: &mut FrameWriter,
    lag: &mut Duration,
    frame: Frame,
) -> Result<(), LinkError> {
    match shared.fate(to, Lane::Snapshot) {
        Fate::Pass => {}
        Fate::Drop => return Err(LinkError::Cut),
        Fate::Delay(delay) => {
            sleep(delay.saturating_sub(*lag)).await;
            *lag = delay.max(*lag);
        }
    }
    let frame = SnapshotFrame { frame: Some(frame) };
    writer.send_within(shared.options.snapshot_step_timeout, &frame).await
}

fn read_answer(node: NodeId, answer: Result<SnapshotFrame, LinkError>) -> Result<Bytes, SendError> {
    let reason = match answer {
        Ok(SnapshotFrame { frame: Some(Frame::Reply(reply)) }) => return Ok(reply),
        Ok(SnapshotFrame { frame: Some(Frame::Refused(reason)) }) => reason,
        Ok(_) => "its answer is none".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(SendError::Refused { node, reason })
}

/// Receives a snapshot and answers.
pub(super) async fn receive(shared: &Shared, caller: Caller) -> Result<(), LinkError> {
    let mut caller = caller.welcome(shared).await?;
    let from = caller.node;
    let Connection { reader, writer } = &mut caller.connection;
    reader.set_bytes_max(SNAPSHOT_FRAME_BYTES_MAX);
    let answer = match take(shared, from, reader, writer).await {
        Ok(reply) => Frame::Reply(reply),
        Err(ReceiveError::Refused(reason)) => {
            tracing::warn!(node = %from, reason, "refused a snapshot");
            Frame::Refused(shorten(reason))
        }
        Err(ReceiveError::Link(error)) => return Err(error),
    };
    let mut lag = Duration::ZERO;
    send_frame(shared, from, writer, &mut lag, answer).await?;
    writer.finish().await?;
    // Closing while something unread arrives would tear the answer away from the sender.
    let _elapsed = timeout(shared.options.connect_timeout, reader.drain()).await;
    Ok(())
}

/// Why a snapshot was not taken.
enum ReceiveError {
    /// The connection is of no more use, so nothing can be answered.
    Link(LinkError),
    /// This is the answer.
    Refused(String),
}

impl From<LinkError> for ReceiveError {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

async fn take(
    shared: &Shared,
    from: NodeId,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> Result<Bytes, ReceiveError> {
    let options = &shared.options;
    let _place = shared.snapshots.try_acquire().map_err(|_| {
        let max = options.snapshots_max;
        ReceiveError::Refused(format!("{max} snapshots are being received already"))
    })?;
    let Frame::Start(start) = next_frame(shared, reader).await? else {
        return Err(LinkError::Unexpected("a snapshot without a start").into());
    };
    let SnapshotStart { cohort, header, knows_progress } = start;
    let cohort = CohortId(cohort);
    tracing::info!(node = %from, %cohort, "a snapshot arrives");
    let staged = take_stream(shared, reader).await?;
    let progress = staged.progress();
    let handed = shared.handler.snapshot(from, cohort, header, staged);
    let reports = knows_progress.then_some(writer);
    let reply = while_it_progresses(shared, from, handed, &progress, reports).await?;
    match reply.map_err(ReceiveError::Refused)? {
        reply if reply.len() > SNAPSHOT_FRAME_BYTES_MAX - FRAME_OVERHEAD_BYTES => {
            Err(ReceiveError::Refused("it was taken, and the answer is too long".to_owned()))
        }
        reply => Ok(reply),
    }
}

/// Waits for an installation as long as it comes further, and reports to the sender that it does.
async fn while_it_progresses(
    shared: &Shared,
    from: NodeId,
    installing: impl Future<Output = Result<Bytes, String>>,
    progress: &SnapshotProgress,
    mut reports: Option<&mut FrameWriter>,
) -> Result<Result<Bytes, String>, LinkError> {
    let limit = shared.options.snapshot_install_timeout;
    let mut installing = std::pin::pin!(installing);
    let (mut steps, mut moved_at) = (progress.steps(), Instant::now());
    // Often enough that the sender, whose limit is little longer, hears of progress in time.
    let interval = PROGRESS_INTERVAL.min(limit / 4);
    loop {
        if let Ok(reply) = timeout(interval, &mut installing).await {
            return Ok(reply);
        }
        let now = progress.steps();
        if now != steps {
            (steps, moved_at) = (now, Instant::now());
            if let Some(writer) = &mut reports {
                let mut lag = Duration::ZERO;
                send_frame(shared, from, writer, &mut lag, Frame::Progress(true)).await?;
            }
        } else if moved_at.elapsed() >= limit {
            return Ok(Err("its installation makes no progress".to_owned()));
        }
    }
}

/// Takes the chunks of a snapshot until all of it is there.
async fn take_stream(
    shared: &Shared,
    reader: &mut FrameReader,
) -> Result<StagedSnapshot, ReceiveError> {
    let dir = shared.handler.snapshot_dir();
    let mut receiver = on_disk(shared, move || SnapshotReceiver::new(&dir)).await?;
    loop {
        match next_frame(shared, reader).await? {
            Frame::Chunk(chunk) => {
                let push = move || receiver.push(&chunk).map(|()| receiver);
                receiver = on_disk(shared, push).await?;
            }
            Frame::End(true) => return on_disk(shared, move || receiver.finish()).await,
            _ => return Err(LinkError::Unexpected("no part of a snapshot").into()),
        }
    }
}

async fn next_frame(shared: &Shared, reader: &mut FrameReader) -> Result<Frame, LinkError> {
    let limit = shared.options.snapshot_step_timeout;
    let SnapshotFrame { frame } = reader.next_within(limit).await?;
    frame.ok_or(LinkError::Unexpected("an empty frame"))
}

/// Runs a step that touches the disk, away from the tasks that must not wait.
async fn on_disk<T: Send + 'static>(
    shared: &Shared,
    step: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, ReceiveError> {
    let done = timeout(shared.options.snapshot_step_timeout, spawn_blocking(step)).await;
    let done = done.map_err(|_| ReceiveError::Refused("the disk is too slow".to_owned()))?;
    let done = done.map_err(|error| ReceiveError::Refused(error.to_string()))?;
    done.map_err(|error| ReceiveError::Refused(error.to_string()))
}

fn shorten(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    reason
}
