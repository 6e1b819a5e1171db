//! The experiments, one file each.

pub(crate) mod changes;
pub(crate) mod commit_period;
pub(crate) mod kills;
pub(crate) mod many_ranges;
pub(crate) mod outages;
pub(crate) mod rolling;

use std::time::Duration;

use anyhow::{Context, bail};
use trireme_types::NodeId;

use crate::measure::{Gap, gap};
use crate::writer::Writer;
use trireme_testbed::{Cluster, Killed};

/// How long the nodes may take until every replica has caught up.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(180);

/// How long writes may stand still before an experiment gives up.
const GAP_TIMEOUT: Duration = Duration::from_secs(60);

/// What the death of a leader cost.
#[derive(Clone, Copy, Debug)]
struct LeaderDeath {
    node: NodeId,
    gap: Gap,
    /// How long the new leader's takeover took, as it measured that itself.
    takeover: Option<Duration>,
}

/// Kills the leader while a writer is at work, and measures until the next one serves.
async fn kill_leader(cluster: &mut Cluster, writer: &Writer) -> anyhow::Result<LeaderDeath> {
    let statuses = cluster.statuses().await?;
    let (node, leader) = statuses.leader().context("nobody leads")?;
    let epoch = leader.epoch;
    let gap = kill(cluster, node, writer).await?;
    let takeover = cluster.takeover_after(epoch, GAP_TIMEOUT).await?;
    Ok(LeaderDeath { node, gap, takeover })
}

/// Kills a node while a writer is at work, and returns the gap that this tore.
async fn kill(cluster: &mut Cluster, node: NodeId, writer: &Writer) -> anyhow::Result<Gap> {
    let killed: Killed = cluster.kill(node).await?;
    let flows = writer.wait_for_put_begun_after(killed.gone, GAP_TIMEOUT).await;
    flows.with_context(|| format!("after {node} was killed"))?;
    gap(&writer.puts(), killed).context("the writer lost a put that it had told of")
}

/// Fails if an acknowledged key was lost.
fn no_loss(lost: Option<String>) -> anyhow::Result<()> {
    match lost {
        Some(lost) => bail!("LOST: {lost}"),
        None => Ok(()),
    }
}
