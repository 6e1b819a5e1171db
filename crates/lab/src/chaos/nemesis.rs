//! What befalls a cluster: faults of many kinds at moments, for times and to victims that a seed
//! chooses, several of them at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use trireme_testbed::{Disk, Host, Hosts, NodeFaults};
use trireme_types::{NodeId, Protocol};

use super::cuts;
use super::fault::Fault;
use super::record::Clock;

/// The most faults at once.
const AT_ONCE_MAX: usize = 3;

/// The pause before the next fault begins, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 100..2_000;

/// How long a fault lasts, in milliseconds: from much shorter than any timeout to longer than most.
const LASTS_MS: [std::ops::Range<u64>; 3] = [50..400, 400..2_500, 2_500..7_000];

/// How often it is looked whether a fault is to begin or to end.
pub(super) const TICK: Duration = Duration::from_millis(25);

/// How long a delayed message is under way, in milliseconds. Peers that are silent for a second count
/// as gone.
const DELAY_MS: std::ops::Range<u64> = 5..600;

/// How long a start that lacked the coordinator may take to fail.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How much longer a force of a slow disk takes, in milliseconds.
const SLOW_DISK_MS: std::ops::Range<u64> = 5..400;

/// Something that happened to the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Microseconds since the run began.
    pub(crate) at: u64,
    pub(crate) what: String,
}

/// What has a cluster suffer.
pub(crate) struct Nemesis {
    pub(super) rng: StdRng,
    clock: Clock,
    kinds: Vec<Fault>,
    /// The kinds that come next: every one comes before any comes again.
    deck: Vec<Fault>,
    pub(super) active: Vec<Active>,
    events: Vec<Event>,
    counts: BTreeMap<Fault, u32>,
    /// An earlier copy of the coordinator's data.
    pub(super) copy: PathBuf,
    /// Whether a node may lose its data while others are down or behind.
    wipes_anytime: bool,
    /// Since when the coordinator is there for all nodes again, as far as it depends on the faults.
    coordinator_since: Instant,
    /// Whether a node has lost its data since the cluster was whole.
    pub(super) has_wiped: bool,
    /// What has refused to go on with its damaged file.
    pub(super) has_refused: Option<Host>,
    /// When messages began to come late in this round, in microseconds since the run began, and by how much.
    delays: Vec<(u64, Duration)>,
    /// What must not have been and was not noticed otherwise.
    pub(super) wrong: Vec<String>,
}

pub(super) struct Active {
    pub(super) fault: Fault,
    pub(super) until: Instant,
    pub(super) undo: Undo,
}

/// What a fault has done.
pub(super) struct Struck {
    pub(super) undo: Undo,
    pub(super) what: String,
    /// Returns false if the cluster was not such that it could, and something less was done.
    pub(super) has_happened: bool,
}

/// How a fault ends.
#[derive(Debug)]
pub(super) enum Undo {
    Start(Vec<Host>),
    Thaw(Host),
    Mend(BTreeSet<(Host, Host)>),
    Heal(NodeId),
    /// The node stops by itself because its disk fails.
    StartFailed(NodeId),
    /// The process ends by itself and names this file, which is damaged; it comes back without data.
    Refuses(Host, PathBuf),
}

impl Struck {
    /// The cluster was not such that it could happen: something less was done.
    pub(super) fn in_vain(self) -> Self {
        Self { has_happened: false, ..self }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at / 1_000_000;
        write!(f, "{seconds:>6}.{:03} s  {}", self.at / 1_000 % 1_000, self.what)
    }
}

impl Nemesis {
    pub(crate) fn new(
        (seed, protocol): (u64, Protocol),
        kinds: Vec<Fault>,
        clock: Clock,
        folder: &Path,
    ) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            clock,
            kinds,
            deck: Vec::new(),
            active: Vec::new(),
            events: Vec::new(),
            counts: BTreeMap::new(),
            copy: folder.join("coordinator-earlier"),
            wipes_anytime: protocol != Protocol::Pacifica,
            coordinator_since: Instant::now(),
            has_wiped: false,
            has_refused: None,
            delays: Vec::new(),
            wrong: Vec::new(),
        }
    }

    /// Returns how often each kind of fault has happened.
    pub(crate) const fn counts(&self) -> &BTreeMap<Fault, u32> {
        &self.counts
    }

    /// Returns what has happened since this was asked last.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Returns when messages began to come late since this was asked last, and by how much.
    pub(crate) fn take_delays(&mut self) -> Vec<(u64, Duration)> {
        std::mem::take(&mut self.delays)
    }

    /// Has the cluster, which is whole, suffer for a time. What it still suffers then is left to
    /// [`Self::end`]. Returns what ended by itself: a process that must not have.
    pub(crate) async fn rage(
        &mut self,
        hosts: &mut Hosts,
        time: Duration,
    ) -> anyhow::Result<Vec<String>> {
        let end = Instant::now() + time;
        let mut next = Instant::now() + self.milliseconds(PAUSE_MS);
        self.has_wiped = false;
        self.refill();
        // Only now is it certain that the cluster is whole.
        if let Some(index) = self.deck.iter().rposition(|fault| self.is_for_whole(*fault)) {
            let fault = self.deck.remove(index);
            self.begin(hosts, fault).await?;
        }
        let mut ended = Vec::new();
        while Instant::now() < end {
            self.end_due(hosts, Instant::now()).await?;
            ended.extend(self.notice_ends(hosts)?);
            hosts.tell_nodes().await;
            if Instant::now() >= next && self.active.len() < AT_ONCE_MAX {
                if let Some(fault) = self.draw() {
                    self.begin(hosts, fault).await?;
                }
                next = Instant::now() + self.milliseconds(PAUSE_MS);
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(ended)
    }

    /// Ends all faults. Returns when all nodes serve, or have had the time to.
    pub(crate) async fn end(&mut self, hosts: &mut Hosts) -> anyhow::Result<Vec<String>> {
        for active in std::mem::take(&mut self.active) {
            self.undo(hosts, active).await?;
        }
        let mut ended = self.notice_ends(hosts)?;
        // Whatever happened, all of it is over now.
        for node in hosts.nodes() {
            hosts.set_faults(node, NodeFaults::default()).await;
            hosts.start_process(Host::Node(node))?;
        }
        hosts.start_process(Host::Coordinator)?;
        hosts.set_cuts(BTreeSet::new()).await?;
        self.note("all faults have ended");
        // One that was starting while there was no coordinator may yet fail for that.
        let deadline = Instant::now() + START_TIMEOUT;
        while hosts.statuses().await.nodes().len() < hosts.nodes().len()
            && Instant::now() < deadline
        {
            ended.extend(self.notice_ends(hosts)?);
            hosts.tell_nodes().await;
            tokio::time::sleep(TICK).await;
        }
        Ok(ended)
    }

    fn refill(&mut self) {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.deck.shuffle(&mut self.rng);
        }
    }

    /// Returns the kind that comes next. A wipe that may not come now waits for the next round.
    fn draw(&mut self) -> Option<Fault> {
        self.refill();
        if self.deck.iter().all(|fault| self.waits(*fault)) {
            let more: Vec<Fault> =
                self.kinds.iter().copied().filter(|it| !self.waits(*it)).collect();
            self.deck.extend(more);
            self.deck.shuffle(&mut self.rng);
        }
        let next = self.deck.iter().rposition(|fault| !self.waits(*fault));
        next.map(|index| self.deck.remove(index))
    }

    /// Returns true if the fault may not come now, and waits for the next round.
    fn waits(&self, fault: Fault) -> bool {
        self.is_for_whole(fault) || (fault.loses_data() && self.has_wiped)
    }

    /// Returns true if the fault may only happen to a whole cluster.
    fn is_for_whole(&self, fault: Fault) -> bool {
        fault.takes_a_whole_cluster() || (fault.loses_data() && !self.wipes_anytime)
    }

    async fn begin(&mut self, hosts: &mut Hosts, fault: Fault) -> anyhow::Result<()> {
        let lasts = LASTS_MS[self.rng.random_range(0..LASTS_MS.len())].clone();
        let lasts = self.milliseconds(lasts);
        let node = self.victim(hosts).await;
        let host = Host::Node(node);
        let others: Vec<Host> =
            hosts.nodes().into_iter().map(Host::Node).filter(|other| *other != host).collect();
        // What cannot happen now, as to a node that is down already, is no fault.
        let needs_process = !matches!(
            fault,
            Fault::CutOff
                | Fault::Isolate
                | Fault::Deaf
                | Fault::Mute
                | Fault::CutPair
                | Fault::CutAtRandom
                | Fault::QuorumLoss
                | Fault::Constrained
                | Fault::Chained
                | Fault::CutClients
                | Fault::KillAll
                | Fault::KillCoordinator
                | Fault::FreezeCoordinator
                | Fault::PutCoordinatorBack
                | Fault::FlipCoordinatorBit
        );
        let of_coordinator = matches!(
            fault,
            Fault::KillCoordinator
                | Fault::FreezeCoordinator
                | Fault::PutCoordinatorBack
                | Fault::FlipCoordinatorBit
                | Fault::KillCoordinatorAndLeader
        );
        let is_busy = |host| self.active.iter().any(|active| active.undo.is_of(host));
        if (needs_process && (!hosts.is_running(host) || is_busy(host)))
            || (of_coordinator && is_busy(Host::Coordinator))
            || (fault == Fault::KillAll && self.active.iter().any(|active| active.undo.starts()))
        {
            self.deck.insert(0, fault);
            return Ok(());
        }
        let Struck { undo, what, has_happened } = self.strike(hosts, fault, node, &others).await?;
        self.note(&format!("{}: {what}, for {} ms", fault.name(), lasts.as_millis()));
        if has_happened {
            *self.counts.entry(fault).or_default() += 1;
        } else {
            self.deck.insert(0, fault);
        }
        self.active.push(Active { fault, until: Instant::now() + lasts, undo });
        Ok(())
    }

    async fn strike(
        &mut self,
        hosts: &mut Hosts,
        fault: Fault,
        node: NodeId,
        others: &[Host],
    ) -> anyhow::Result<Struck> {
        let Some(cuts) = cuts::of(fault, node, others, &mut self.rng) else {
            return self.strike_process(hosts, fault, node).await;
        };
        self.cut(hosts, cuts.clone()).await?;
        let ways: Vec<String> =
            cuts.iter().map(|(from, to)| format!("{} to {}", short(*from), short(*to))).collect();
        let (has_happened, what) = (!cuts.is_empty(), format!("{node} ({})", ways.join(", ")));
        Ok(Struck { undo: Undo::Mend(cuts), what, has_happened })
    }

    async fn strike_process(
        &mut self,
        hosts: &mut Hosts,
        fault: Fault,
        node: NodeId,
    ) -> anyhow::Result<Struck> {
        let host = Host::Node(node);
        let coordinator = Host::Coordinator;
        let name = node.to_string();
        let delay = Some(self.milliseconds(DELAY_MS));
        let slow = self.milliseconds(SLOW_DISK_MS);
        let disk = |disk| NodeFaults { disk: Some(disk), delay: None };
        let (undo, what) = match fault {
            Fault::Restart => {
                hosts.stop(host).await?;
                (Undo::Start(vec![host]), name)
            }
            Fault::Wipe => {
                hosts.kill(host).await?;
                hosts.wipe(host)?;
                self.has_wiped = true;
                (Undo::Start(vec![host]), name)
            }
            Fault::FlipBit => return self.flip_bit(hosts, node).await,
            Fault::FlipTableBit => return self.flip_table_bit(hosts, node).await,
            Fault::FlipCoordinatorBit => return self.flip_coordinator_bit(hosts).await,
            Fault::LoseInTurn => return self.lose_in_turn(hosts, node).await,
            Fault::PutCoordinatorBack => return self.put_coordinator_back(hosts).await,
            Fault::KillAll => {
                let nodes: Vec<Host> = hosts.nodes().into_iter().map(Host::Node).collect();
                hosts.kill_all_nodes().await?;
                (Undo::Start(nodes), "all nodes".to_owned())
            }
            Fault::Freeze => {
                hosts.freeze(host)?;
                (Undo::Thaw(host), name)
            }
            Fault::Slow => {
                self.delays.extend(delay.map(|delay| (self.clock.now(), delay)));
                hosts.set_faults(node, NodeFaults { delay, disk: None }).await;
                (Undo::Heal(node), format!("{name} by {delay:?}"))
            }
            Fault::StallDisk => {
                hosts.set_faults(node, disk(Disk::Stalled)).await;
                (Undo::Heal(node), name)
            }
            Fault::SlowDisk => {
                hosts.set_faults(node, disk(Disk::Slow(slow))).await;
                (Undo::Heal(node), format!("{name} by {slow:?}"))
            }
            Fault::FailDisk => {
                hosts.set_faults(node, disk(Disk::Failing)).await;
                (Undo::StartFailed(node), name)
            }
            Fault::KillCoordinator => {
                hosts.kill(coordinator).await?;
                (Undo::Start(vec![coordinator]), "the coordinator".to_owned())
            }
            Fault::FreezeCoordinator => {
                hosts.freeze(coordinator)?;
                (Undo::Thaw(coordinator), "the coordinator".to_owned())
            }
            Fault::KillCoordinatorAndLeader => {
                hosts.kill(coordinator).await?;
                hosts.kill(host).await?;
                (Undo::Start(vec![coordinator, host]), format!("the coordinator and {name}"))
            }
            _ => {
                hosts.kill(host).await?;
                (Undo::Start(vec![host]), name)
            }
        };
        Ok(undo.after(what))
    }

    async fn end_due(&mut self, hosts: &mut Hosts, now: Instant) -> anyhow::Result<()> {
        while let Some(index) = self.active.iter().position(|active| active.until <= now) {
            let active = self.active.remove(index);
            self.undo(hosts, active).await?;
        }
        Ok(())
    }

    async fn undo(&mut self, hosts: &mut Hosts, active: Active) -> anyhow::Result<()> {
        if active.is_of_coordinator() {
            self.coordinator_since = Instant::now();
        }
        let Active { fault, undo, .. } = active;
        self.note(&format!("{} ends", fault.name()));
        match undo {
            Undo::Start(stopped) => {
                for host in stopped {
                    hosts.start_process(host)?;
                }
            }
            Undo::Thaw(host) => hosts.thaw(host),
            Undo::Mend(_) => self.cut(hosts, BTreeSet::new()).await?,
            Undo::Heal(node) => hosts.set_faults(node, NodeFaults::default()).await,
            Undo::StartFailed(node) => {
                hosts.set_faults(node, NodeFaults::default()).await;
                // Its disk may not have been forced meanwhile.
                hosts.kill(Host::Node(node)).await?;
                hosts.start_process(Host::Node(node))?;
            }
            Undo::Refuses(host, path) => {
                let refuses = self.sees_refusal(hosts, (fault, host), &path, START_TIMEOUT).await?;
                // A node reads its log only when the coordinator has let it.
                if !refuses && !self.lacks_coordinator() {
                    let path = path.display();
                    self.wrong.push(format!("{} does not refuse {path}", short(host)));
                }
                hosts.kill(host).await?;
                hosts.wipe(host)?;
                hosts.start_process(host)?;
            }
        }
        Ok(())
    }

    /// Has the ways be cut that active faults cut, and these.
    async fn cut(&self, hosts: &mut Hosts, more: BTreeSet<(Host, Host)>) -> anyhow::Result<()> {
        let active = self.active.iter().filter_map(|active| match &active.undo {
            Undo::Mend(cuts) => Some(cuts),
            _ => None,
        });
        hosts.set_cuts(active.flatten().copied().chain(more).collect()).await
    }

    /// Returns the processes that ended though nothing made them, and starts them again.
    pub(super) fn notice_ends(&mut self, hosts: &mut Hosts) -> anyhow::Result<Vec<String>> {
        let mut unexpected = std::mem::take(&mut self.wrong);
        for ended in hosts.ended() {
            let refuses = self.active.iter().any(|active| match &active.undo {
                Undo::Refuses(host, path) => {
                    *host == ended.host && ended.said.contains(&path.display().to_string())
                }
                _ => false,
            });
            if refuses {
                let host = short(ended.host);
                self.note(&format!("{host} refuses what is damaged: {}", ended.status));
                self.has_refused = Some(ended.host);
                continue;
            }
            let expected = self.active.iter().any(
                |active| matches!(active.undo, Undo::StartFailed(node) if Host::Node(node) == ended.host),
            );
            let host = short(ended.host);
            if expected {
                self.note(&format!("{host} has stopped: {}", ended.status));
                continue;
            }
            // A node needs its coordinator to start; a supervisor would start it again.
            let is_start = ended.said.contains("starting the node in");
            if is_start && self.lacks_coordinator() {
                self.note(&format!("{host} did not start without the coordinator"));
                hosts.start_process(ended.host)?;
                continue;
            }
            self.note(&format!("{host} HAS ENDED BY ITSELF: {}", ended.status));
            unexpected.push(format!("{host} ended with {}\n{}", ended.status, ended.said));
            hosts.start_process(ended.host)?;
        }
        Ok(unexpected)
    }

    /// Returns true if some node has lately not reached the coordinator because of a fault.
    fn lacks_coordinator(&self) -> bool {
        let lacks = self.active.iter().any(Active::is_of_coordinator);
        lacks || self.coordinator_since.elapsed() < START_TIMEOUT
    }

    /// Returns the leader or any node, as chance has it.
    async fn victim(&mut self, hosts: &Hosts) -> NodeId {
        let nodes = hosts.nodes();
        let any = nodes[self.rng.random_range(0..nodes.len())];
        if self.rng.random() {
            let statuses = hosts.statuses().await;
            return statuses.leader().map_or(any, |(leader, _)| leader);
        }
        any
    }

    fn milliseconds(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }

    pub(super) fn note(&mut self, what: &str) {
        self.events.push(Event { at: self.clock.now(), what: what.to_owned() });
    }
}

impl Active {
    /// Returns true if some node does not reach the coordinator meanwhile.
    fn is_of_coordinator(&self) -> bool {
        let of_coordinator = |host: &Host| *host == Host::Coordinator;
        match &self.undo {
            Undo::Start(hosts) => hosts.iter().any(of_coordinator),
            Undo::Thaw(host) => of_coordinator(host),
            Undo::Mend(cuts) => {
                cuts.iter().any(|(from, to)| of_coordinator(from) || of_coordinator(to))
            }
            Undo::Refuses(host, _) => of_coordinator(host),
            Undo::Heal(_) | Undo::StartFailed(_) => false,
        }
    }
}

impl Undo {
    /// What was to happen has.
    pub(super) fn after(self, what: impl Into<String>) -> Struck {
        Struck { undo: self, what: what.into(), has_happened: true }
    }

    /// Returns true if it is the host's process that the fault has changed.
    fn is_of(&self, host: Host) -> bool {
        match self {
            Self::Start(hosts) => hosts.contains(&host),
            Self::Thaw(other) | Self::Refuses(other, _) => *other == host,
            Self::Heal(node) | Self::StartFailed(node) => Host::Node(*node) == host,
            Self::Mend(_) => false,
        }
    }

    const fn starts(&self) -> bool {
        matches!(self, Self::Start(_) | Self::StartFailed(_) | Self::Thaw(_) | Self::Refuses(..))
    }
}

pub(super) fn short(host: Host) -> String {
    match host {
        Host::Node(node) => node.to_string(),
        Host::Coordinator => "the coordinator".to_owned(),
        Host::Clients => "the clients".to_owned(),
    }
}
