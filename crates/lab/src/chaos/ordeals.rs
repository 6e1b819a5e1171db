//! Faults of several steps.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use trireme_testbed::{Host, Hosts};
use trireme_types::NodeId;

use super::damage;
use super::fault::Fault;
use super::nemesis::{Active, Nemesis, START_TIMEOUT, Struck, TICK, Undo, short};

/// How long writes flow between the deaths of two nodes: longer than any protocol needs to go on
/// without the first.
const WRITES_FLOW: Duration = Duration::from_secs(4);

/// How long a node with damaged tables may serve: what it reads meanwhile it must not take for rows.
const READS_FLOW: Duration = Duration::from_secs(6);

impl Nemesis {
    /// Has all but the leader be lost in turn, and the leader be killed.
    pub(super) async fn lose_in_turn(
        &mut self,
        hosts: &mut Hosts,
        any: NodeId,
    ) -> anyhow::Result<Struck> {
        let statuses = hosts.statuses().await;
        let leader = statuses.leader().map_or(any, |(leader, _)| leader);
        let mut others = hosts.nodes().into_iter().filter(|node| *node != leader);
        let (Some(first), Some(second)) = (others.next(), others.next()) else {
            return Ok(Undo::Start(Vec::new()).after("there are not two others").in_vain());
        };
        drop(others);
        let (first, second) = (Host::Node(first), Host::Node(second));
        hosts.kill(first).await?;
        // Writes are acknowledged by the other two, as soon as the protocol lets them.
        tokio::time::sleep(WRITES_FLOW).await;
        let statuses = hosts.statuses().await;
        if statuses.leader().map(|(node, _)| node) != Some(leader) {
            let less = Undo::Start(vec![first]).after("another leads: only a node is killed");
            return Ok(less.in_vain());
        }
        hosts.kill(second).await?;
        hosts.wipe(second)?;
        self.has_wiped = true;
        hosts.kill(Host::Node(leader)).await?;
        hosts.start_process(first)?;
        hosts.start_process(second)?;
        // One that was wiped waits for its predecessor's session to end. Only when both serve do they
        // have the chance to go on without the leader.
        let deadline = Instant::now() + START_TIMEOUT;
        while hosts.statuses().await.nodes().len() < 2 && Instant::now() < deadline {
            tokio::time::sleep(TICK).await;
        }
        tokio::time::sleep(WRITES_FLOW).await;
        let (first, second) = (short(first), short(second));
        let what =
            format!("{first} is killed, {second} wiped, {leader} killed; the others are back");
        Ok(Undo::Start(vec![Host::Node(leader)]).after(what))
    }

    /// Puts the stopped coordinator back to what it was when this was done last, and keeps what it is
    /// now for the next time.
    pub(super) async fn put_coordinator_back(
        &mut self,
        hosts: &mut Hosts,
    ) -> anyhow::Result<Struck> {
        hosts.kill(Host::Coordinator).await?;
        let earlier = self.copy.exists();
        let now = self.copy.with_extension("now");
        hosts.copy(Host::Coordinator, &now)?;
        if earlier {
            hosts.put_back(Host::Coordinator, &self.copy)?;
            std::fs::remove_dir_all(&self.copy).context("removing an older copy")?;
        }
        std::fs::rename(&now, &self.copy).context("keeping a copy")?;
        let undo = Undo::Start(vec![Host::Coordinator]);
        if !earlier {
            let less = "the coordinator is killed, and its data copied";
            return Ok(undo.after(less).in_vain());
        }
        Ok(undo.after("the coordinator is put back"))
    }

    /// Kills a node, damages a file of its data and starts it again. Returns the file; `None` if there was
    /// none, and the node is still down.
    async fn damage(
        &mut self,
        hosts: &mut Hosts,
        host: Host,
        flip: fn(&Path, &mut StdRng) -> anyhow::Result<Option<PathBuf>>,
    ) -> anyhow::Result<Option<PathBuf>> {
        hosts.kill(host).await?;
        let path = flip(&hosts.data(host), &mut self.rng)?;
        if path.is_some() {
            self.has_wiped = true;
            hosts.start_process(host)?;
        }
        Ok(path)
    }

    /// Damages the log or a record of a node, which then does not start.
    pub(super) async fn flip_bit(
        &mut self,
        hosts: &mut Hosts,
        node: NodeId,
    ) -> anyhow::Result<Struck> {
        let host = Host::Node(node);
        let Some(path) = self.damage(hosts, host, damage::flip_in_node).await? else {
            // Damage in the newest ones cannot be distinguished from a torn write.
            let less = format!("{node} has no older segment: it is only killed");
            return Ok(Undo::Start(vec![host]).after(less).in_vain());
        };
        let what = format!("{node} in {}", path.display());
        Ok(Undo::Refuses(host, path).after(what))
    }

    /// Damages the tables of a node of a whole cluster, waits until the node refuses them, or for a
    /// while if it does not read there, and takes all its data.
    pub(super) async fn flip_table_bit(
        &mut self,
        hosts: &mut Hosts,
        node: NodeId,
    ) -> anyhow::Result<Struck> {
        let host = Host::Node(node);
        let Some(path) = self.damage(hosts, host, damage::flip_in_tables).await? else {
            let less = format!("{node} has no tables yet: it is only killed");
            return Ok(Undo::Start(vec![host]).after(less).in_vain());
        };
        let fault = (Fault::FlipTableBit, host);
        let refuses = self.sees_refusal(hosts, fault, named(&path), READS_FLOW).await?;
        hosts.kill(host).await?;
        hosts.wipe(host)?;
        let refuses = if refuses { "it refuses that" } else { "it does not read there" };
        Ok(Undo::Start(vec![host]).after(format!("{node} in {}, {refuses}", path.display())))
    }

    /// Damages the data of the coordinator of a whole cluster, which refuses to start with it, and has it
    /// rebuilt from what the nodes know.
    pub(super) async fn flip_coordinator_bit(
        &mut self,
        hosts: &mut Hosts,
    ) -> anyhow::Result<Struck> {
        let host = Host::Coordinator;
        hosts.stop(host).await?;
        let undo = Undo::Start(vec![host]);
        let Some(path) = damage::flip_in_coordinator(&hosts.data(host), &mut self.rng)? else {
            return Ok(undo.after("the coordinator has written nothing").in_vain());
        };
        hosts.start_process(host)?;
        let fault = (Fault::FlipCoordinatorBit, host);
        if !self.sees_refusal(hosts, fault, &path, START_TIMEOUT).await? {
            self.wrong.push(format!("the coordinator does not refuse {}", path.display()));
        }
        hosts.kill(host).await?;
        hosts.wipe(host)?;
        hosts.start_process(host)?;
        let said = hosts.rebuild_coordinator().await?;
        Ok(undo.after(format!("in {}; {said}", path.display())))
    }

    /// Returns true if a process ends by itself and names its damaged file; waits for that as long as it
    /// has not and the time lasts.
    pub(super) async fn sees_refusal(
        &mut self,
        hosts: &mut Hosts,
        (fault, host): (Fault, Host),
        path: &Path,
        time: Duration,
    ) -> anyhow::Result<bool> {
        let until = Instant::now() + time;
        // Active meanwhile, so that what the process says when it ends is read as a refusal.
        let undo = Undo::Refuses(host, path.to_owned());
        self.active.push(Active { fault, until, undo });
        while self.has_refused != Some(host) && Instant::now() < until {
            let ended = self.notice_ends(hosts)?;
            self.wrong.extend(ended);
            tokio::time::sleep(TICK).await;
        }
        self.active.retain(|active| active.fault != fault);
        Ok(self.has_refused.take() == Some(host))
    }
}

/// Returns what is named of tables' damaged file: itself, or, of the file that says which engine wrote
/// them, their folder.
fn named(path: &Path) -> &Path {
    let is_format = path.file_name().is_some_and(|name| name == "FORMAT");
    path.parent().filter(|_| is_format).unwrap_or(path)
}
