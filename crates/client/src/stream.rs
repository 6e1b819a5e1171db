//! One long-lived `Batch` stream to one node, and the task that owns it.
//!
//! Callers put their calls into a bounded queue and wait. The task takes what has gathered there
//! into one frame whenever the transport has room for another: an idle stream sends a call at
//! once, and the busier it is the more calls share a frame, without any timer. Answers find their
//! callers by id.
//!
//! The stream is opened when the first call comes and again after it broke, no sooner than a pause
//! that grows with each failure. A call that comes within the pause is turned away at once, so
//! that its caller can look for another node. A call that was sent when the stream broke ends as
//! [`CallError::Lost`], one that was not as [`CallError::NotSent`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use tracing::debug;
use trireme_proto::v1;
use trireme_proto::v1::kv_client::KvClient;
use trireme_proto::v1::request::Operation;

use crate::call::{self, Answer, Call, CallError};
use crate::node::reason;
use crate::unanswered::Unanswered;
use crate::{ClientOptions, backoff};

/// How often a stream looks for calls whose callers wait no longer.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// Frames that may wait for the transport. One is being sent while the next fills.
const FRAMES_WAITING: usize = 1;

/// The callers' end of a stream.
pub(crate) struct StreamHandle {
    queue: mpsc::Sender<Call>,
    health: Arc<Health>,
}

/// Whether a node could be reached of late, as its callers see it.
struct Health {
    made: Instant,
    /// Calls before this moment, in milliseconds after `made`, are turned away.
    closed_until: AtomicU64,
}

/// The task that owns a stream.
struct StreamTask {
    address: Arc<str>,
    channel: Channel,
    options: Arc<ClientOptions>,
    queue: mpsc::Receiver<Call>,
    health: Arc<Health>,
    /// Calls taken from the queue and not sent yet, oldest first. Never more than a frame's.
    gathered: VecDeque<Call>,
    unanswered: Unanswered,
    /// Failures to open the stream, and streams that broke before any answer, in a row.
    failures: u32,
}

/// Why a stream has ended.
enum End {
    /// No caller is left.
    Unused,
    /// It broke.
    Broken(String),
}

impl StreamHandle {
    /// Starts the task of a stream to the node behind `channel`, which opens it when it is first
    /// used. Must be called within a tokio runtime.
    pub(crate) fn spawn(address: Arc<str>, channel: Channel, options: Arc<ClientOptions>) -> Self {
        let (sender, queue) = mpsc::channel(options.queue_calls_max);
        let health = Arc::new(Health { made: Instant::now(), closed_until: AtomicU64::new(0) });
        let task = StreamTask {
            address,
            channel,
            options,
            queue,
            health: Arc::clone(&health),
            gathered: VecDeque::new(),
            unanswered: Unanswered::new(),
            failures: 0,
        };
        tokio::spawn(task.run());
        Self { queue: sender, health }
    }

    /// Sends an operation, which its caller awaits until `deadline`, and returns its answer if
    /// that comes before `until` completes.
    pub(crate) async fn call(
        &self,
        operation: Operation,
        deadline: Instant,
        mut until: impl Future<Output = ()> + Unpin,
    ) -> Result<Answer, CallError> {
        let (call, pending) = call::new(operation, deadline);
        match self.queue.try_send(call) {
            Ok(()) => {}
            Err(TrySendError::Full(call)) => self.enqueue(call, &mut until).await?,
            Err(TrySendError::Closed(_)) => return Err(stopped()),
        }
        pending.wait(until).await
    }

    /// Returns true if calls would be turned away now, since the node could not be reached of late.
    pub(crate) fn is_closed(&self) -> bool {
        self.health.is_closed()
    }

    async fn enqueue(&self, call: Call, until: impl Future<Output = ()>) -> Result<(), CallError> {
        tokio::select! {
            biased;
            reserved = self.queue.reserve() => {
                reserved.map_err(|_closed| stopped())?.send(call);
                Ok(())
            }
            () = until => Err(CallError::Late { sent: false }),
        }
    }
}

impl Health {
    fn is_closed(&self) -> bool {
        let until = self.closed_until.load(Ordering::Relaxed);
        until > 0 && self.made.elapsed() < Duration::from_millis(until)
    }

    fn close_for(&self, pause: Duration) {
        let until = (self.made.elapsed() + pause).as_millis();
        self.closed_until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl StreamTask {
    async fn run(mut self) {
        while let Some(call) = self.queue.recv().await {
            if self.health.is_closed() {
                call.waiter
                    .answer(Err(CallError::NotSent("could not be reached of late".to_owned())));
                continue;
            }
            self.gathered.push_back(call);
            let end = match self.open().await {
                Ok((frames, answers)) => self.serve(frames, answers).await,
                Err(reason) => End::Broken(reason),
            };
            match end {
                End::Unused => return,
                End::Broken(reason) => self.fail(&reason),
            }
        }
    }

    /// Opens the stream; the node must accept it before any call counts as sent.
    async fn open(
        &mut self,
    ) -> Result<(mpsc::Sender<v1::RequestFrame>, Streaming<v1::ResponseFrame>), String> {
        self.failures = self.failures.saturating_add(1);
        let (frames, receiver) = mpsc::channel(FRAMES_WAITING);
        let mut client = KvClient::new(self.channel.clone())
            .max_decoding_message_size(self.options.answer_bytes_max);
        let opening = client.batch(ReceiverStream::new(receiver));
        match timeout(self.options.connect_timeout, opening).await {
            Ok(Ok(answers)) => Ok((frames, answers.into_inner())),
            Ok(Err(status)) => Err(reason(&status)),
            Err(_elapsed) => Err("the stream was not accepted in time".to_owned()),
        }
    }

    /// Carries calls and answers until the stream ends.
    async fn serve(
        &mut self,
        frames: mpsc::Sender<v1::RequestFrame>,
        mut answers: Streaming<v1::ResponseFrame>,
    ) -> End {
        let mut expiry = interval(EXPIRY_INTERVAL);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let has_room = self.unanswered.len() < self.options.unanswered_calls_max;
            tokio::select! {
                biased;
                answer = answers.message() => match answer {
                    Ok(Some(frame)) => self.deliver(frame),
                    Ok(None) => return End::Broken("the node has ended the stream".to_owned()),
                    Err(status) => return End::Broken(reason(&status)),
                },
                place = frames.reserve(), if has_room && !self.gathered.is_empty() => {
                    let Ok(place) = place else {
                        return End::Broken("the connection has ended".to_owned());
                    };
                    self.gather();
                    if let Some(frame) = self.frame() {
                        place.send(frame);
                    }
                }
                call = self.queue.recv(), if self.gathered.is_empty() => match call {
                    Some(call) => {
                        self.gathered.push_back(call);
                        // Callers that are ready to run now get to put in their calls, too.
                        tokio::task::yield_now().await;
                    }
                    None => return End::Unused,
                },
                _ = expiry.tick() => self.unanswered.forget_expired(Instant::now()),
            }
        }
    }

    /// Takes more of what waits in the queue, up to a frame's worth.
    fn gather(&mut self) {
        while self.gathered.len() < self.options.frame_calls_max {
            let Ok(call) = self.queue.try_recv() else { return };
            self.gathered.push_back(call);
        }
    }

    /// Makes a frame of gathered calls, as many as the limits allow; `None` if their callers have
    /// given up all of them.
    fn frame(&mut self) -> Option<v1::RequestFrame> {
        let now = Instant::now();
        let room = self.options.unanswered_calls_max - self.unanswered.len();
        let mut bytes = 0;
        let mut requests = Vec::with_capacity(self.gathered.len().min(room));
        while requests.len() < room
            && let Some(call) = self.gathered.pop_front()
        {
            bytes += request_size(&call.operation);
            if bytes > self.options.frame_bytes_max && !requests.is_empty() {
                self.gathered.push_front(call);
                break;
            }
            let Call { operation, waiter } = call;
            if waiter.deadline() <= now {
                waiter.answer(Err(CallError::Late { sent: false }));
            } else if waiter.claim() {
                let timeout_ms = milliseconds(waiter.deadline() - now);
                let id = self.unanswered.insert(waiter);
                requests.push(v1::Request { id, timeout_ms, operation: Some(operation) });
            }
        }
        (!requests.is_empty()).then_some(v1::RequestFrame { requests })
    }

    fn deliver(&mut self, frame: v1::ResponseFrame) {
        self.failures = 0;
        for response in frame.responses {
            if let Some(waiter) = self.unanswered.take(response.id) {
                waiter.answer(Ok(response.result));
            }
        }
    }

    /// Fails every waiting call, since the stream is gone, and closes it for a while.
    fn fail(&mut self, reason: &str) {
        let pause =
            backoff::pause(self.failures, self.options.backoff_min, self.options.backoff_max);
        self.health.close_for(pause);
        debug!(address = %self.address, reason, failures = self.failures, "a stream broke");
        for waiter in self.unanswered.drain() {
            waiter.answer(Err(CallError::Lost(reason.to_owned())));
        }
        for call in self.gathered.drain(..) {
            call.waiter.answer(Err(CallError::NotSent(reason.to_owned())));
        }
        // Only what waits now: later calls have the pause decide.
        for _ in 0..self.queue.len() {
            let Ok(call) = self.queue.try_recv() else { return };
            call.waiter.answer(Err(CallError::NotSent(reason.to_owned())));
        }
    }
}

fn stopped() -> CallError {
    CallError::NotSent("the client's runtime has stopped".to_owned())
}

/// Returns about how many bytes a request takes in a frame.
fn request_size(operation: &Operation) -> usize {
    /// What surrounds keys and values at most.
    const REST: usize = 128;
    REST + match operation {
        Operation::Get(get) => get.key.len(),
        Operation::Put(put) => put.key.len() + put.value.len(),
        Operation::Delete(delete) => delete.key.len(),
        Operation::Scan(scan) => scan.start.len() + scan.end.as_ref().map_or(0, Bytes::len),
    }
}

/// Returns the wire's form of a time to wait: whole milliseconds, at least one, since zero stands
/// for the server's default.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}
