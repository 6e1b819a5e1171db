//! Answers that wait for their clients, bounded in bytes for each stream and for the node.
//!
//! The size of an answer is known once it has been read, so the bound is kept before reading: a
//! read begins only while its stream has room. One that finds none is parked with the stream and
//! begins anew when the client has taken answers; meanwhile no more of the stream's requests are
//! taken, and HTTP/2 holds the client back. Where the node has no room at all, the client gets
//! `BUSY`. Each bound is passed by at most one answer for each read that goes on at the time.
//!
//! Bytes count until the transport has taken them: first here, and from then on, as a frame that is
//! cut up, in `services::sliced_body`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tonic::Status;
use trireme_proto::v1;
use trireme_proto::v1::response::Result as Answer;

/// The most requests of one stream that are under way at once, answers that wait included; more
/// wait in the network, where HTTP/2 holds the client back.
const STREAM_REQUESTS_MAX: usize = 16_384;

/// The most requests that begin before their stream's room is looked at again.
pub(crate) const REQUESTS_AT_ONCE: usize = 256;

/// The most answers that wait for one stream's client: one for each request under way.
const STREAM_ANSWERS_MAX: usize = STREAM_REQUESTS_MAX + REQUESTS_AT_ONCE;

/// The bytes of answers that wait for one stream's client, past which none of its reads begins:
/// several of the largest answers, so that the next ones are at hand while some are being sent.
const STREAM_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The bytes of answers on the whole node past which only those streams read that have no answer
/// waiting, so that clients that take their answers are served beside others that do not.
const NODE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The bytes of answers on the whole node past which reads are refused.
const NODE_BYTES_HARD_MAX: usize = 2 * NODE_BYTES_MAX;

/// How long a client may leave its answers where they are. Past it its stream is ended and its
/// answers dropped: a slow client takes some in that time, however few.
const STALL_MAX: Duration = Duration::from_secs(30);

/// The most answers in one frame.
const FRAME_ANSWERS_MAX: usize = 4096;

/// The bytes of answers after which a frame is sent; one answer is a page of a scan at most.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// How many parked reads begin anew when a client has taken a frame. One suffices to go on, since
/// its answer makes for another frame; more fill the next frame.
const RESUMED_MAX: usize = 64;

/// The answers of the whole node.
#[derive(Default)]
pub(crate) struct NodeAnswers {
    bytes: AtomicUsize,
}

/// Whether a read may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// It may.
    Free,
    /// Not before the client has taken some of its answers.
    Later,
    /// No: the node holds as many answers as it may.
    Busy,
    /// The client has gone.
    Gone,
}

/// Where the answers of one stream go. Dropping the last handle ends the stream once all answers
/// are taken.
pub(crate) struct StreamAnswers {
    queue: mpsc::Sender<Queued>,
    account: Arc<Account>,
}

struct Queued {
    response: v1::Response,
    bytes: usize,
}

/// What a stream owes its client, shared by those who answer and the one who sends.
struct Account {
    node: Arc<NodeAnswers>,
    /// The answers. Locked by the sending end, once a frame.
    queue: Mutex<mpsc::Receiver<Queued>>,
    /// Bytes in `queue`.
    bytes: AtomicUsize,
    /// Requests taken whose answers have not been taken.
    under_way: AtomicUsize,
    parked: Mutex<Parked>,
    has_parked: AtomicBool,
    /// Notified when answers were taken.
    room: Notify,
    /// Frames taken.
    frames: AtomicU64,
    is_closed: AtomicBool,
}

/// The reads that wait for room. Each holds a handle of the stream, so they must go when it ends.
#[derive(Default)]
struct Parked {
    reads: VecDeque<Resume>,
    is_closed: bool,
}

/// Begins a parked read anew.
pub(crate) type Resume = Box<dyn FnOnce() + Send>;

/// The sending end: frames of answers, taken when the transport has room for them.
pub(crate) struct AnswerFrames {
    account: Arc<Account>,
    has_ended: bool,
}

impl NodeAnswers {
    /// Returns whether an answer may be read that belongs to no stream.
    pub(crate) fn room(&self) -> Room {
        if self.bytes.load(Ordering::Relaxed) < NODE_BYTES_HARD_MAX {
            Room::Free
        } else {
            Room::Busy
        }
    }

    /// Counts bytes that wait for the transport.
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that the transport has taken, or that were dropped.
    pub(crate) fn subtract(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl StreamAnswers {
    /// Returns both ends of a stream of answers.
    pub(crate) fn new(node: Arc<NodeAnswers>) -> (Arc<Self>, AnswerFrames) {
        let (queue, receiver) = mpsc::channel(STREAM_ANSWERS_MAX);
        let account = Arc::new(Account {
            node,
            queue: Mutex::new(receiver),
            bytes: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            parked: Mutex::default(),
            has_parked: AtomicBool::new(false),
            room: Notify::new(),
            frames: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        });
        let frames = AnswerFrames { account: account.clone(), has_ended: false };
        (Arc::new(Self { queue, account }), frames)
    }

    /// Queues an answer. A client that is gone needs none.
    pub(crate) fn send(&self, id: u64, answer: Answer) {
        let response = v1::Response { id, result: Some(answer) };
        let bytes = response.encoded_len();
        self.account.add(bytes);
        match self.queue.try_send(Queued { response, bytes }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => self.account.subtract(bytes),
            Err(mpsc::error::TrySendError::Full(_)) => {
                // Not before a request has had two answers.
                self.account.subtract(bytes);
                tracing::error!("ended a stream with more answers than requests");
                self.account.close();
            }
        }
    }

    /// Returns whether a read may begin.
    pub(crate) fn room(&self) -> Room {
        self.account.room()
    }

    /// Keeps a read until the client has taken answers.
    pub(crate) fn park(&self, resume: Resume) {
        {
            let mut parked = self.account.parked.lock();
            if parked.is_closed {
                return;
            }
            parked.reads.push_back(resume);
            self.account.has_parked.store(true, Ordering::SeqCst);
        }
        // The last frame may have been taken in between; then nothing else would resume it.
        if self.account.room() != Room::Later {
            self.account.resume();
        }
    }

    /// Counts requests that begin now.
    pub(crate) fn begin(&self, requests: usize) {
        self.account.under_way.fetch_add(requests, Ordering::Relaxed);
    }

    /// Waits until more of the stream's requests may be taken; returns false if it has ended.
    pub(crate) async fn wait_for_room(&self, stall: &mut Stall) -> bool {
        loop {
            let notified = self.account.room.notified();
            if self.account.is_closed.load(Ordering::Acquire) {
                return false;
            }
            if self.account.takes_requests() {
                return true;
            }
            tokio::select! {
                () = notified => {}
                () = stall.wait(self) => {}
            }
        }
    }
}

impl Account {
    fn room(&self) -> Room {
        if self.is_closed.load(Ordering::Relaxed) {
            return Room::Gone;
        }
        let own = self.bytes.load(Ordering::SeqCst);
        if own >= STREAM_BYTES_MAX {
            return Room::Later;
        }
        match self.node.bytes.load(Ordering::Relaxed) {
            0..NODE_BYTES_MAX => Room::Free,
            _ if own > 0 => Room::Later,
            all if all < NODE_BYTES_HARD_MAX => Room::Free,
            _ => Room::Busy,
        }
    }

    fn takes_requests(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) < STREAM_REQUESTS_MAX
            && self.bytes.load(Ordering::Relaxed) < STREAM_BYTES_MAX
            && !self.has_parked.load(Ordering::SeqCst)
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
        self.node.add(bytes);
    }

    fn subtract(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.node.subtract(bytes);
    }

    /// Has some of the parked reads begin anew.
    fn resume(&self) {
        if !self.has_parked.load(Ordering::SeqCst) {
            return;
        }
        let resumed: Vec<_> = {
            let mut parked = self.parked.lock();
            let count = parked.reads.len().min(RESUMED_MAX);
            let resumed = parked.reads.drain(..count).collect();
            self.has_parked.store(!parked.reads.is_empty(), Ordering::SeqCst);
            resumed
        };
        // Not under the lock: what still finds no room is parked again.
        for resume in resumed {
            resume();
        }
        self.room.notify_one();
    }

    /// Drops what waits, and has nothing wait any more.
    fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        let parked = {
            let mut parked = self.parked.lock();
            parked.is_closed = true;
            self.has_parked.store(false, Ordering::SeqCst);
            std::mem::take(&mut parked.reads)
        };
        drop(parked);
        let mut queue = self.queue.lock();
        queue.close();
        while let Ok(queued) = queue.try_recv() {
            self.subtract(queued.bytes);
        }
        drop(queue);
        self.room.notify_one();
    }
}

impl Stream for AnswerFrames {
    type Item = Result<v1::ResponseFrame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let account = self.account.clone();
        let mut queue = account.queue.lock();
        let Some(first) = ready!(queue.poll_recv(cx)) else {
            drop(queue);
            self.has_ended = true;
            let is_closed = account.is_closed.load(Ordering::Acquire);
            let stalled = || Status::resource_exhausted("the client does not take its answers");
            return Poll::Ready(is_closed.then(|| Err(stalled())));
        };
        let mut bytes = first.bytes;
        let mut responses = Vec::with_capacity(FRAME_ANSWERS_MAX.min(1 + queue.len()));
        responses.push(first.response);
        while responses.len() < FRAME_ANSWERS_MAX && bytes < FRAME_BYTES_MAX {
            let Ok(next) = queue.try_recv() else { break };
            bytes += next.bytes;
            responses.push(next.response);
        }
        drop(queue);
        account.subtract(bytes);
        account.under_way.fetch_sub(responses.len(), Ordering::Relaxed);
        account.frames.fetch_add(1, Ordering::Relaxed);
        account.resume();
        account.room.notify_one();
        Poll::Ready(Some(Ok(v1::ResponseFrame { responses })))
    }
}

impl Drop for AnswerFrames {
    fn drop(&mut self) {
        self.account.close();
    }
}

/// Watches whether a stream's client takes its answers.
pub(crate) struct Stall {
    ticks: tokio::time::Interval,
    /// The frames that had been taken when that was last seen to change, and when.
    frames: u64,
    since: Instant,
}

impl Stall {
    pub(crate) fn new() -> Self {
        let mut ticks = tokio::time::interval(STALL_MAX / 10);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self { ticks, frames: 0, since: Instant::now() }
    }

    /// Waits for the next look, and ends the stream if its client has taken nothing for too long.
    pub(crate) async fn wait(&mut self, answers: &StreamAnswers) {
        let now = self.ticks.tick().await;
        let account = &answers.account;
        let frames = account.frames.load(Ordering::Relaxed);
        if frames != self.frames || account.bytes.load(Ordering::Relaxed) == 0 {
            (self.frames, self.since) = (frames, now);
        } else if now.saturating_duration_since(self.since) >= STALL_MAX {
            tracing::warn!("ended a stream whose client does not take its answers");
            account.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    fn answer(bytes: usize) -> Answer {
        let row = v1::Row { value: vec![0; bytes].into(), ..v1::Row::default() };
        Answer::Get(v1::GetResponse { row: Some(row), freshness: None })
    }

    /// Fills a stream so that none of its reads may begin.
    fn fill(answers: &StreamAnswers) {
        while answers.room() == Room::Free {
            answers.begin(1);
            answers.send(1, answer(512 * 1024));
        }
    }

    #[tokio::test]
    async fn a_parked_read_begins_anew_once_its_client_takes_answers() {
        let node = Arc::<NodeAnswers>::default();
        let (answers, mut frames) = StreamAnswers::new(node.clone());
        fill(&answers);
        assert_eq!(answers.room(), Room::Later);
        let (other, _its_frames) = StreamAnswers::new(node.clone());
        assert_eq!(other.room(), Room::Free, "another client has nothing to do with it");
        let resumed = Arc::new(AtomicBool::new(false));
        let (handle, is_resumed) = (answers.clone(), resumed.clone());
        answers.park(Box::new(move || {
            is_resumed.store(true, Ordering::SeqCst);
            handle.send(2, answer(1));
        }));
        assert!(!resumed.load(Ordering::SeqCst));
        frames.next().await.unwrap().unwrap();
        assert!(resumed.load(Ordering::SeqCst));
        drop(answers);
        let mut last = 0;
        while let Some(frame) = frames.next().await {
            last = frame.unwrap().responses.last().unwrap().id;
        }
        assert_eq!((last, node.bytes.load(Ordering::SeqCst)), (2, 0));
    }

    /// Every request that may be under way has room for its answer, also when none is taken.
    #[tokio::test]
    async fn every_request_under_way_has_room_for_its_answer() {
        let node = Arc::<NodeAnswers>::default();
        let (answers, mut frames) = StreamAnswers::new(node.clone());
        let mut begun = 0;
        while answers.account.takes_requests() {
            answers.begin(REQUESTS_AT_ONCE);
            begun += REQUESTS_AT_ONCE;
        }
        (0..begun).for_each(|id| answers.send(id as u64, answer(0)));
        assert_eq!(answers.room(), Room::Free);
        // More answers than requests are a fault of the node: they end the stream and are dropped.
        (begun..=STREAM_ANSWERS_MAX).for_each(|id| answers.send(id as u64, answer(0)));
        assert_eq!(answers.room(), Room::Gone);
        assert_eq!(node.bytes.load(Ordering::SeqCst), 0);
        assert!(frames.next().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn what_waits_goes_with_its_client() {
        let node = Arc::<NodeAnswers>::default();
        let (answers, frames) = StreamAnswers::new(node.clone());
        fill(&answers);
        let handle = answers.clone();
        answers.park(Box::new(move || drop(handle)));
        drop(frames);
        assert_eq!(answers.room(), Room::Gone);
        assert_eq!(Arc::strong_count(&answers), 1, "a parked read is left");
        answers.send(3, answer(100));
        assert_eq!(node.bytes.load(Ordering::SeqCst), 0);
        assert!(!answers.wait_for_room(&mut Stall::new()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_client_takes_nothing_is_ended() {
        let node = Arc::<NodeAnswers>::default();
        let (answers, mut frames) = StreamAnswers::new(node.clone());
        fill(&answers);
        let began = Instant::now();
        assert!(!answers.wait_for_room(&mut Stall::new()).await);
        assert!(began.elapsed() >= STALL_MAX && began.elapsed() < STALL_MAX * 2);
        assert_eq!(node.bytes.load(Ordering::SeqCst), 0);
        let status = frames.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(frames.next().await.is_none());
    }

    #[tokio::test]
    async fn the_node_has_room_for_those_who_read_until_it_has_none() {
        let node = Arc::<NodeAnswers>::default();
        let (reading, mut its_frames) = StreamAnswers::new(node.clone());
        let mut idle = Vec::new();
        while node.bytes.load(Ordering::SeqCst) < NODE_BYTES_MAX {
            let (answers, frames) = StreamAnswers::new(node.clone());
            fill(&answers);
            idle.push((answers, frames));
        }
        assert_eq!(reading.room(), Room::Free);
        reading.begin(1);
        reading.send(1, answer(1));
        assert_eq!(reading.room(), Room::Later);
        its_frames.next().await.unwrap().unwrap();
        assert_eq!(reading.room(), Room::Free);
        node.add(NODE_BYTES_MAX);
        assert_eq!((reading.room(), node.room()), (Room::Busy, Room::Busy));
    }
}
