//! The processes of a local cluster's nodes.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use trireme_types::{Durability, Engine, Timing};

use crate::timing;
use crate::upkeep::UpkeepArgs;

/// How long a node may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a node's process is started with.
pub(super) struct NodeProcess<'a> {
    pub(super) id: usize,
    pub(super) data: &'a Path,
    pub(super) listen: &'a str,
    pub(super) coordinator: &'a [String],
    pub(super) engine: Engine,
    pub(super) durability: Durability,
    pub(super) timing: Timing,
    pub(super) min_replicas_for_write: usize,
    pub(super) memtable_bytes: Option<usize>,
    pub(super) allow_faults: bool,
    pub(super) upkeep: UpkeepArgs,
}

/// The nodes' processes, each with its number. They stop when this one is gone, however it went:
/// each reads from a pipe that ends then.
#[derive(Default)]
pub(super) struct Children {
    running: Vec<Running>,
}

struct Running {
    id: usize,
    child: Child,
    /// Open as long as the node is to run. Taken out of the child, which closes it when it is
    /// waited for.
    _stdin: Option<ChildStdin>,
}

impl Children {
    pub(super) fn start(&mut self, node: &NodeProcess<'_>) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = Command::new(program)
            .arg("node")
            .args(["--id", &node.id.to_string()])
            .arg("--data")
            .arg(node.data)
            .args(["--listen", node.listen])
            .args(["--coordinator", &node.coordinator.join(",")])
            .args(["--engine", node.engine.name()])
            .args(["--durability", node.durability.name()])
            .args(timing::arguments(&node.timing, node.min_replicas_for_write))
            .args(node.memtable_bytes.map(|bytes| format!("--memtable-bytes={bytes}")))
            .args(node.allow_faults.then_some("--allow-faults"))
            .args(node.upkeep.arguments())
            .arg("--stop-at-stdin-end")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A terminal's Ctrl-C goes to this process alone, which stops the nodes in turn.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting node {}", node.id))?;
        let _stdin = child.stdin.take();
        self.running.push(Running { id: node.id, child, _stdin });
        Ok(())
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.running.iter().filter_map(|node| node.child.id()).collect()
    }

    /// Waits for one of the nodes to end, and returns its number and how it ended; waits for ever
    /// if none runs.
    pub(super) async fn ended(&mut self) -> (usize, std::io::Result<ExitStatus>) {
        if self.running.is_empty() {
            return std::future::pending().await;
        }
        let waits = self.running.iter_mut().map(|node| Box::pin(node.child.wait()));
        let (status, index, _) = futures::future::select_all(waits).await;
        (self.running.remove(index).id, status)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Asks every node to stop, and kills those that do not.
    pub(super) async fn stop(mut self) {
        for node in &self.running {
            if let Some(pid) = node.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                // A process that is gone needs no signal.
                let _gone = kill_process(pid, Signal::TERM);
            }
        }
        let all = async {
            while !self.is_empty() {
                let (id, status) = self.ended().await;
                tracing::info!(id, ?status, "a node has stopped");
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, all).await.is_err() {
            tracing::warn!("some nodes did not stop in time and are killed");
        }
    }
}
