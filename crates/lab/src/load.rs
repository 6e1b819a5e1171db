//! Many callers at once: to fill a range, and to measure how long puts take.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use trireme_client::Client;

use crate::writer::{key, value};

/// How many different keys measured puts go to.
const KEYS: u64 = 10_000;

/// Callers that put without a pause, one put outstanding each.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) client: Client,
    pub(crate) callers: u64,
    pub(crate) value_bytes: usize,
}

impl Load {
    /// Puts the keys of these numbers once each.
    pub(crate) async fn fill(&self, numbers: Range<u64>) -> anyhow::Result<()> {
        let next = Arc::new(AtomicU64::new(numbers.start));
        let mut running = JoinSet::new();
        for _ in 0..self.callers {
            let (load, next, end) = (self.clone(), Arc::clone(&next), numbers.end);
            running.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        return Ok(());
                    }
                    let value = value(number, load.value_bytes);
                    let put = load.client.put(key(number), value).await;
                    put.with_context(|| format!("putting key {number}"))?;
                }
            });
        }
        all(running).await.map(drop)
    }

    /// Has the callers at work, and returns how long each put took that ended after `warm_up` and
    /// was begun within `duration` of that.
    pub(crate) async fn latencies(
        &self,
        warm_up: Duration,
        duration: Duration,
    ) -> anyhow::Result<Vec<Duration>> {
        let start = Instant::now() + warm_up;
        let mut running = JoinSet::new();
        for caller in 0..self.callers {
            running.spawn(self.clone().call(caller, start..start + duration));
        }
        Ok(all(running).await?.concat())
    }

    async fn call(self, seed: u64, window: Range<Instant>) -> anyhow::Result<Vec<Duration>> {
        let mut random = StdRng::seed_from_u64(seed);
        let value = value(seed, self.value_bytes);
        let mut latencies = Vec::new();
        let mut begun = Instant::now();
        while begun < window.end {
            let number = random.random_range(0..KEYS);
            self.client.put(key(number), value.clone()).await.context("a put failed")?;
            let ended = Instant::now();
            if ended >= window.start {
                latencies.push(ended - begun);
            }
            begun = ended;
        }
        Ok(latencies)
    }
}

/// Waits for all callers, and fails as soon as one has.
async fn all<T: 'static>(mut running: JoinSet<anyhow::Result<T>>) -> anyhow::Result<Vec<T>> {
    let mut done = Vec::new();
    while let Some(ended) = running.join_next().await {
        done.push(ended.context("a caller has panicked")??);
    }
    Ok(done)
}
