//! Sessions: how long this process may believe that its ephemeral nodes are its own.
//!
//! A session is an etcd lease. The server ends it when it has heard no keep-alive for the lease's
//! time, counted from when it received the last one. This side counts from when it *sent* the
//! last one that was answered, by its own monotonic clock, less a margin for clocks that do not
//! run alike, and so is always the first to call the session over (S5): before
//! anybody else can own what this process owned, this process knows that it does not any more.
//! That is computed from the clock whenever it is asked, and never depends on a timer having
//! fired: a process that was stopped for a while finds its session over as soon as it runs on.
//!
//! What is over stays over, whatever answers still arrive.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use etcd_client::{Client, Error as EtcdError, LeaseKeepAliveStream, LeaseKeeper};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

use crate::link::{Failure, Link, Links, RETRY_DELAY, classify};
use crate::marks::Marks;
use crate::node::SessionId;
use crate::{CoordinatorError, SessionState};

/// The part of the session's time that is left out, for clocks that do not run alike.
const MARGIN_DIVISOR: u32 = 10;

/// The least that is left out.
const MARGIN_MIN: Duration = Duration::from_millis(100);

/// Keep-alives in one session timeout: two may be lost.
const KEEP_ALIVES_PER_TIMEOUT: u32 = 3;

/// One session, living or over.
#[derive(Debug)]
pub(crate) struct Session {
    id: SessionId,
    ttl: Duration,
    life: Mutex<Life>,
    over: watch::Sender<bool>,
    pub marks: Marks,
}

#[derive(Debug)]
struct Life {
    until: Instant,
    over: bool,
}

impl Session {
    /// Opens a session at the coordinator.
    pub(crate) async fn open(links: &Links) -> Result<Arc<Self>, CoordinatorError> {
        let ttl = links.options().session_ttl();
        links.counters.leases.fetch_add(1, Ordering::Relaxed);
        // A grant whose answer is lost leaves a lease that is not kept alive and that ends by
        // itself, so that asking again is harmless.
        let granted = links.read(|client| grant(client, ttl)).await;
        let (sent, id, ttl) = granted?;
        let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
        let session = Self {
            id: SessionId(id),
            ttl,
            life: Mutex::new(Life { until: sent + lifetime(ttl), over: false }),
            over: watch::Sender::new(false),
            marks: Marks::default(),
        };
        tracing::debug!(session = %session.id, ?ttl, "opened a session");
        Ok(Arc::new(session))
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// Returns whether the session lives, at this very moment.
    pub(crate) fn state(&self) -> SessionState {
        let mut life = self.life.lock();
        if !life.over && Instant::now() >= life.until {
            life.over = true;
            drop(life);
            self.over.send_replace(true);
            return SessionState::Expired;
        }
        if life.over { SessionState::Expired } else { SessionState::Live { until: life.until } }
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self.state(), SessionState::Live { .. })
    }

    /// Returns when the session is over.
    pub(crate) async fn expired(&self) {
        let mut over = self.over.subscribe();
        while let SessionState::Live { until } = self.state() {
            tokio::select! {
                _ = over.wait_for(|over| *over) => {}
                () = sleep_until(until.into()) => {}
            }
        }
    }

    /// Ends the session: it is known to be over, or is about to be given up.
    pub(crate) fn end(&self) {
        self.life.lock().over = true;
        self.over.send_replace(true);
    }

    /// Notes that a keep-alive sent at `sent` was answered. Comes too late for a session that is
    /// over.
    fn extend(&self, sent: Instant) {
        if self.is_live() {
            let mut life = self.life.lock();
            life.until = life.until.max(sent + lifetime(self.ttl));
        }
    }
}

/// Returns how long a session lives, for this process, after a keep-alive was sent.
fn lifetime(ttl: Duration) -> Duration {
    ttl.saturating_sub((ttl / MARGIN_DIVISOR).max(MARGIN_MIN))
}

async fn grant(client: Client, ttl: i64) -> Result<(Instant, i64, i64), EtcdError> {
    let sent = Instant::now();
    let granted = client.lease_client().grant(ttl, None).await?;
    Ok((sent, granted.id(), granted.ttl()))
}

/// Ends a session at the server, so that its ephemeral nodes go now and not at its timeout.
pub(crate) async fn revoke(links: &Links, session: &Session) -> Result<(), CoordinatorError> {
    links.counters.leases.fetch_add(1, Ordering::Relaxed);
    let id = session.id.0;
    let revoked =
        links.read(|client| async move { client.lease_client().revoke(id).await.map(drop) }).await;
    match revoked {
        Err(CoordinatorError::SessionExpired) => Ok(()),
        other => other,
    }
}

/// Keeps a session alive until it is over, and watches over the connection as long as it runs:
/// after the session's end with a small read in place of each keep-alive, so that watches go on.
pub(crate) async fn keep_alive(links: Arc<Links>, session: Arc<Session>) {
    let interval = session.ttl / KEEP_ALIVES_PER_TIMEOUT;
    let mut stream = None;
    let mut next = Instant::now() + interval;
    while session.is_live() {
        tokio::select! {
            () = sleep_until(next.into()) => {}
            () = session.expired() => break,
        }
        let sent = Instant::now();
        match send_keep_alive(&links, &session, &mut stream, interval).await {
            Ok(()) => {
                session.extend(sent);
                next = sent + interval;
            }
            Err(Failure::LeaseNotFound) => {
                tracing::warn!(session = %session.id, "the coordinator has ended the session");
                session.end();
            }
            Err(Failure::Attempt(reason) | Failure::Refused(reason)) => {
                tracing::debug!(session = %session.id, reason, "a keep-alive failed");
                stream = None;
                next = Instant::now() + RETRY_DELAY;
            }
        }
    }
    tracing::warn!(session = %session.id, "the session has expired");
    if let Err(error) = revoke(&links, &session).await {
        tracing::debug!(session = %session.id, %error, "an expired session was not revoked");
    }
    loop {
        sleep(interval).await;
        let key = links.options().namespace.clone() + crate::path::MARKS;
        let probe = |client: Client| async move { client.kv_client().get(key, None).await };
        // A failure has moved everybody to the next endpoint, which was the point.
        links.attempt(interval, probe).await.ok();
    }
}

/// A stream of keep-alives, and the link that it runs on.
struct KeepAliveStream {
    link: Arc<Link>,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

async fn send_keep_alive(
    links: &Links,
    session: &Session,
    stream: &mut Option<KeepAliveStream>,
    limit: Duration,
) -> Result<(), Failure> {
    links.counters.keep_alives.fetch_add(1, Ordering::Relaxed);
    let link = links.current();
    let usable = stream.take().filter(|open| open.link.number() == link.number());
    let asking = async {
        match usable {
            Some(mut open) => {
                open.keeper.keep_alive().await?;
                let answer = open.answers.message().await?;
                let ttl = answer.map(|answer| answer.ttl());
                Ok::<_, EtcdError>((ttl, open))
            }
            // Opening the stream sends a keep-alive and awaits its answer.
            None => {
                let client = link.client(links.options()).await?;
                let (keeper, answers) = client.lease_client().keep_alive(session.id.0).await?;
                let link = Arc::clone(&link);
                Ok((Some(1), KeepAliveStream { link, keeper, answers }))
            }
        }
    };
    let failure = match timeout(limit, asking).await {
        Ok(Ok((Some(ttl), open))) if ttl > 0 => {
            *stream = Some(open);
            return Ok(());
        }
        Ok(Ok((Some(_), _))) => return Err(Failure::LeaseNotFound),
        Ok(Ok((None, _))) => Failure::Attempt("the keep-alive stream ended".to_owned()),
        Ok(Err(EtcdError::LeaseKeepAliveError(reason))) if reason == "lease not found" => {
            return Err(Failure::LeaseNotFound);
        }
        Ok(Err(error)) => classify(&error),
        Err(_) => Failure::Attempt(format!("no answer to a keep-alive in {limit:?}")),
    };
    if let Failure::Attempt(reason) = &failure {
        links.leave(&link, reason);
    }
    Err(failure)
}
