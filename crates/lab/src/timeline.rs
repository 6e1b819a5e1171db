//! How stale timeline reads are: a counter that is put again and again, and readers that ask one
//! follower each for it.
//!
//! Writer and readers share this process's monotonic clock, so no clocks are compared.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use trireme_client::{Client, Consistency};
use trireme_proto::v1::kv_client::KvClient;
use trireme_proto::{convert, v1};
use trireme_types::NodeId;

use crate::measure::{Sample, staleness};

/// The counter's key, which is none of the writer's.
const KEY: &str = "counter";

/// The pause between two puts of the counter, which is how finely staleness can be told. Without
/// one, the counter would take half of the load.
const PUT_INTERVAL: Duration = Duration::from_millis(2);

/// The pause between two reads at one follower.
const READ_INTERVAL: Duration = Duration::from_millis(5);

/// How long a follower may take to answer a read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A counter under way, and readers of it. Dropped, all end.
pub(crate) struct Timeline {
    shared: Arc<Shared>,
    tasks: JoinSet<anyhow::Result<()>>,
}

#[derive(Default)]
struct Shared {
    /// When each value of the counter was acknowledged, 1 first.
    acknowledged: Mutex<Vec<Instant>>,
    samples: Mutex<Vec<Sample>>,
    /// When a follower was last seen to have come further.
    advanced: Mutex<Option<Instant>>,
}

/// One follower, and what it takes to read the counter there.
struct Reader {
    node: NodeId,
    kv: KvClient<Channel>,
    request: v1::GetRequest,
}

impl Timeline {
    /// Starts to count and to read at these followers, each given with its address.
    pub(crate) fn start(client: &Client, followers: &[(NodeId, &str)]) -> anyhow::Result<Self> {
        let routes = client.routes();
        let route = routes.ranges.first().context("the cluster has no range")?;
        let request = v1::GetRequest {
            route: Some(v1::Route { cohort: route.cohort.0, epoch: route.epoch }),
            key: Bytes::from_static(KEY.as_bytes()),
            consistency: convert::consistency_number(Consistency::Timeline),
        };
        let mut timeline = Self { shared: Arc::default(), tasks: JoinSet::new() };
        timeline.tasks.spawn(Arc::clone(&timeline.shared).count(client.clone()));
        for (node, address) in followers {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
            let channel = endpoint.timeout(READ_TIMEOUT).tcp_nodelay(true).connect_lazy();
            let kv = KvClient::new(channel);
            let reader = Reader { node: *node, kv, request: request.clone() };
            timeline.tasks.spawn(Arc::clone(&timeline.shared).read(reader));
        }
        Ok(timeline)
    }

    /// Returns when a follower was last seen to have come further: where followers are told
    /// periodically what is committed, that is when they were told.
    pub(crate) fn advanced(&self) -> Option<Instant> {
        *self.shared.advanced.lock()
    }

    /// Ends counting and reading, and returns how stale each read was.
    pub(crate) fn finish(mut self) -> anyhow::Result<Vec<Duration>> {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.context("a reader has panicked")??;
        }
        self.tasks.abort_all();
        let acknowledged = self.shared.acknowledged.lock();
        let Some(first) = acknowledged.first() else { bail!("the counter was never put") };
        let samples = self.shared.samples.lock();
        // Before anything was acknowledged, nothing could be stale.
        let counted = samples.iter().filter(|sample| sample.begun >= *first);
        Ok(counted.map(|sample| staleness(&acknowledged, *sample)).collect())
    }
}

impl Shared {
    async fn count(self: Arc<Self>, client: Client) -> anyhow::Result<()> {
        for number in 1_u64.. {
            client.put(KEY, number.to_string()).await.context("putting the counter")?;
            self.acknowledged.lock().push(Instant::now());
            tokio::time::sleep(PUT_INTERVAL).await;
        }
        Ok(())
    }

    async fn read(self: Arc<Self>, mut reader: Reader) -> anyhow::Result<()> {
        let mut newest = 0;
        loop {
            let begun = Instant::now();
            let seen = reader.read().await?;
            self.samples.lock().push(Sample { begun, seen });
            if seen > newest {
                newest = seen;
                *self.advanced.lock() = Some(begun);
            }
            tokio::time::sleep(READ_INTERVAL).await;
        }
    }
}

impl Reader {
    /// Returns how far the counter has come at the follower.
    async fn read(&mut self) -> anyhow::Result<usize> {
        let node = self.node;
        let answer = self.kv.get(self.request.clone()).await;
        let answer = answer.with_context(|| format!("a timeline read at {node}"))?.into_inner();
        let Some(row) = answer.row else { return Ok(0) };
        let number = std::str::from_utf8(&row.value).ok().and_then(|text| text.parse().ok());
        number.with_context(|| format!("{node} holds a counter that is no number"))
    }
}
