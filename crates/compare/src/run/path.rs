//! One write on its way through each protocol: what each node did, and when.
//!
//! The nodes of a cluster of its own log the path of requests, with times of the clock that all
//! processes of a machine share. Nothing else is asked for meanwhile, so that all of it belongs to
//! the one write.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use trireme_client::ClientOptions;
use trireme_types::{NodeId, PATH};

use super::{Contender, Run, Steps};
use crate::report::{Hop, PathReport, Role};

/// Writes before the one that is shown: they open connections and fill caches.
const WARM_UP: usize = 50;

/// How long nothing is asked for before that one, so that what the writes before have left to do is
/// done.
const QUIET: Duration = Duration::from_millis(300);

/// What a node does after the answer belongs to the write for so long: followers apply it, and
/// learn that it is committed.
const AFTER: Duration = Duration::from_millis(30);

/// How long the nodes may take until they serve with another filter of what they log.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(40);

/// Messages of the background, which belong to no write.
const BACKGROUND: [&str; 4] = ["beacon", "probe", "ping", "heartbeat"];

/// About how long one system takes, in seconds.
pub(super) const RUN_S: f64 = 5.0;

/// Follows a write through each protocol.
pub(super) async fn run(
    run: &Run,
    contenders: &[Contender],
    steps: &mut Steps,
) -> anyhow::Result<()> {
    for contender in contenders.iter().filter(|it| it.system.role == Role::Protocol) {
        let system = contender.system.name.clone();
        steps.begin(format!("the path of a write: {system}"), RUN_S);
        let path = match follow(run, contender).await {
            Ok(path) => path,
            Err(error) => PathReport { error: Some(format!("{error:#}")), ..PathReport::default() },
        };
        run.report.lock().paths.push(PathReport { system, ..path });
    }
    Ok(())
}

async fn follow(run: &Run, contender: &Contender) -> anyhow::Result<PathReport> {
    let mut cluster = run.start(contender).await?;
    let filter = format!("info,{PATH}=trace");
    let mut logs = BTreeMap::new();
    for node in cluster.processes().into_keys() {
        cluster.kill(node).await?;
        logs.insert(node, cluster.restart_logging(node, Some(&filter))?);
        cluster.wait_until_whole(WHOLE_TIMEOUT).await?;
    }
    let client = cluster.client(ClientOptions::default()).await?;
    for _ in 0..WARM_UP {
        client.put("warm-up", "x").await?;
    }
    tokio::time::sleep(QUIET).await;
    let statuses = cluster.statuses().await?;
    let (leader, _) = statuses.leader().context("no replica leads")?;
    let begun = now_us();
    client.put("followed", "x").await?;
    let ended = now_us();
    tokio::time::sleep(AFTER).await;
    let hops = hops(&logs, begun, ended)?;
    let took_us = (ended - begun) as f64;
    Ok(PathReport { leader: leader.0, took_us, hops, ..PathReport::default() })
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// Returns what the nodes logged of the write, in order.
fn hops(logs: &BTreeMap<NodeId, PathBuf>, begun: u64, ended: u64) -> anyhow::Result<Vec<Hop>> {
    let mut hops = Vec::new();
    for (node, log) in logs {
        let text = fs::read_to_string(log).context("reading what a node logged")?;
        let until = ended + u64::try_from(AFTER.as_micros()).unwrap_or_default();
        let found = text.lines().filter_map(|line| hop(*node, line));
        hops.extend(found.filter_map(|(at, hop)| {
            let is_within = (begun..until).contains(&at);
            is_within.then(|| Hop { at_us: (at - begun) as f64, ..hop })
        }));
    }
    hops.sort_by(|a, b| a.at_us.total_cmp(&b.at_us));
    Ok(hops)
}

/// Reads a line of a node's log, if it shows a part of the path that belongs to a write.
fn hop(node: NodeId, line: &str) -> Option<(u64, Hop)> {
    let (before, event) = line.split_once("path: ")?;
    let at = microseconds(before.split_whitespace().next()?)?;
    let (what, fields) = event.split_once(' ').unwrap_or((event, ""));
    let field = |name: &str| {
        let (_, value) = fields.split_once(&format!("{name}="))?;
        value.split_whitespace().next()
    };
    let peer = field("to").or_else(|| field("from"));
    let peer = peer.and_then(|peer| peer.strip_prefix('n')?.parse().ok());
    let message = fields.split_once("body=").map_or("", |(_, message)| message);
    let is_background = BACKGROUND.iter().any(|name| message.starts_with(name));
    let took_us = field("micros").and_then(|micros| micros.parse().ok());
    let (what, message) = (what.to_owned(), message.to_owned());
    let hop = Hop { node: node.0, at_us: 0.0, what, peer, message, took_us };
    (!is_background).then_some((at, hop))
}

/// Reads a moment such as `2026-01-02T03:04:05.678901Z`, in microseconds of Unix time.
fn microseconds(moment: &str) -> Option<u64> {
    let moment: jiff::Timestamp = moment.parse().ok()?;
    u64::try_from(moment.as_microsecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_log_become_hops() {
        let line = "2026-11-27T15:09:01.000010Z TRACE replica{node=n1 cohort=c1}: path: sent to=n2 \
                    body=propose [1.9] 1.8";
        let (at, found) = hop(NodeId(1), line).unwrap();
        assert_eq!(at % 1_000_000, 10);
        assert_eq!((found.what.as_str(), found.peer), ("sent", Some(2)));
        assert_eq!(found.message, "propose [1.9] 1.8");
        let forced = "2026-11-27T15:09:01.000500Z TRACE path: forced micros=180";
        let (_, found) = hop(NodeId(2), forced).unwrap();
        assert_eq!((found.node, found.what.as_str(), found.took_us), (2, "forced", Some(180.0)));
        let beacon = "2026-11-27T15:09:01.000010Z TRACE path: sent to=n2 body=beacon e1";
        assert_eq!(hop(NodeId(1), beacon), None);
        assert_eq!(hop(NodeId(1), "2026-11-27T15:09:01.000010Z INFO serves"), None);
    }
}
