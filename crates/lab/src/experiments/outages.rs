//! How long writes stand still under each fault that a cohort is to outlive: one client puts without
//! a pause, a fault strikes, lasts and ends, and the longest time between two acknowledgements is
//! measured, from the last one before the fault until the cohort is whole again.
//!
//! Each protocol and fault has a cluster of its own, so that what one fault leaves behind is not
//! charged to the next. In the end every key that was acknowledged must be there.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use trireme_client::ClientOptions;
use trireme_types::{NodeId, Protocol};

use super::{GAP_TIMEOUT, WHOLE_TIMEOUT, no_loss};
use crate::measure::{Summary, longest_pause};
use crate::parse;
use crate::report::{Report, milliseconds, progress};
use crate::writer::{Writer, impatient, lost};
use trireme_testbed::{ALLOW_FAULTS, Cluster, ClusterArgs, Lost, Suffering};

/// How soon a killed leader is back in [`Fault::KillAndBack`]: before anybody misses it.
const BACK_AFTER: Duration = Duration::from_millis(300);

/// How long a frozen leader stands still: past every election timeout.
const FROZEN_FOR: Duration = Duration::from_secs(5);

/// For how long messages are lost in [`Fault::LostMessages`]: much shorter than any timeout.
const LOST_FOR: Duration = Duration::from_millis(100);

/// How long the writer waits for an answer before it asks elsewhere. It bounds how exactly the end of
/// a stop is known whose leader does not refuse but says nothing; many times what a put takes.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long the writer is undisturbed before a fault.
const CALM: Duration = Duration::from_millis(500);

const HEADS: &[&str] = &["PROTOCOL", "FAULT", "ROUNDS", "MIN", "P50", "MAX", "FAILURE"];

/// Arguments of `trireme-lab outages`.
#[derive(Args)]
pub(crate) struct OutagesArgs {
    /// How ranges replicate: spinnaker, raft, pacifica, or all; each in a cluster of its own.
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', required = true)]
    replication: Vec<String>,
    /// How often each fault strikes.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: u32,
    /// Which fault; may be given more than once. [default: all]
    #[arg(long = "fault", value_name = "NAME", value_enum)]
    faults: Vec<Fault>,
    /// How long a fault lasts that does not end by itself. A stop that is longer is as long as the
    /// fault: writes flowed again only because it ended.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse::duration)]
    lasts: Duration,
    /// The bytes of each value.
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    value_bytes: usize,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,
}

/// What happens to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// It is killed, and started again once writes flow.
    Kill,
    /// It is killed and started again after 0.3 s.
    KillAndBack,
    /// Its process stands still for 5 s.
    Freeze,
    /// Nothing passes between it and the others.
    CutOff,
    /// Nothing of the others reaches it.
    Deaf,
    /// Nothing of it reaches the others.
    Mute,
    /// Nothing of the others reaches it on the data lane; heartbeats pass.
    DataDeaf,
    /// Nothing of it reaches the others on the data lane; heartbeats pass.
    DataMute,
    /// Its log's forces wait.
    DiskStall,
    /// It does not reach the coordinator.
    CoordinatorCut,
    /// What it sends on the data lane is lost for 100 ms.
    LostMessages,
}

/// The longest stops of writes under one fault.
struct Stops {
    stops: Vec<Duration>,
    acknowledged: u64,
}

impl OutagesArgs {
    /// Runs the experiment and prints its table; fails if an acknowledged key is lost, or if a
    /// cohort does not become whole again.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if self.rounds == 0 || self.cluster.nodes() < 3 {
            bail!("it takes a round, and three nodes so that one may fail");
        }
        let protocols = parse::protocols(&self.replication).map_err(anyhow::Error::msg)?;
        let mut report = Report::new("outages", HEADS);
        report.setting("rounds", self.rounds);
        report.setting("fault_lasts", format!("{:?}", self.lasts));
        report.setting("value_bytes", self.value_bytes);
        let mut failed = Vec::new();
        for protocol in protocols {
            for fault in self.faults() {
                let mut stops = Stops { stops: Vec::new(), acknowledged: 0 };
                let measured = self.measure(protocol, fault, &mut stops, &mut report).await;
                let failure = measured.err().map(|error| format!("{error:#}"));
                stops.tell(protocol, fault, failure.as_deref(), &mut report);
                failed.extend(failure.map(|it| format!("{protocol}, {}: {it}", fault.name())));
            }
        }
        report.print(self.json)?;
        if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
    }

    fn faults(&self) -> Vec<Fault> {
        if self.faults.is_empty() { Fault::value_variants().to_vec() } else { self.faults.clone() }
    }

    /// Has one fault strike again and again. The stops that were measured before a failure count.
    async fn measure(
        &self,
        protocol: Protocol,
        fault: Fault,
        stops: &mut Stops,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let mut cluster = Cluster::start(&self.cluster, protocol, &[ALLOW_FAULTS]).await?;
        report.conditions(cluster.conditions().await?);
        let client =
            cluster.client(ClientOptions { attempt_timeout: PATIENCE, ..impatient() }).await?;
        let writer = Writer::start(client.clone(), 0, self.value_bytes);
        for round in 1..=self.rounds {
            let whole = cluster.wait_until_whole(WHOLE_TIMEOUT).await?;
            let (leader, _) = whole.leader().context("nobody leads")?;
            writer.begin_anew(GAP_TIMEOUT).await?;
            tokio::time::sleep(CALM).await;
            let begun = Instant::now();
            self.strike(&mut cluster, fault, leader, &writer).await?;
            cluster.wait_until_whole(WHOLE_TIMEOUT).await?;
            writer.wait_for_put_begun_after(Instant::now(), GAP_TIMEOUT).await?;
            let stop = longest_pause(&writer.puts(), begun).context("no put was acknowledged")?;
            let (name, rounds) = (fault.name(), self.rounds);
            progress(format_args!(
                "{protocol}, {name}, {round} of {rounds}: {leader}, {}",
                milliseconds(stop)
            ));
            stops.stops.push(stop);
        }
        stops.acknowledged = writer.stop().await?;
        no_loss(lost(&client, 0..stops.acknowledged, self.value_bytes).await?)
    }

    /// Has a fault strike the leader, last and end.
    async fn strike(
        &self,
        cluster: &mut Cluster,
        fault: Fault,
        leader: NodeId,
        writer: &Writer,
    ) -> anyhow::Result<()> {
        let (from, to, both) = (Lost::FromLeader, Lost::ToLeader, Lost::BothWays);
        let suffering = match fault {
            Fault::Kill => {
                let killed = cluster.kill(leader).await?;
                writer.wait_for_put_begun_after(killed.gone, GAP_TIMEOUT).await?;
                return cluster.restart(leader);
            }
            Fault::KillAndBack => {
                cluster.kill(leader).await?;
                tokio::time::sleep(BACK_AFTER).await;
                return cluster.restart(leader);
            }
            Fault::Freeze => {
                let frozen = cluster.freeze(leader)?;
                tokio::time::sleep(FROZEN_FOR).await;
                return frozen.thaw();
            }
            Fault::CutOff => Suffering::links(both, false),
            Fault::Deaf => Suffering::links(to, false),
            Fault::Mute => Suffering::links(from, false),
            Fault::DataDeaf => Suffering::links(to, true),
            Fault::DataMute | Fault::LostMessages => Suffering::links(from, true),
            Fault::DiskStall => Suffering::StalledDisk,
            Fault::CoordinatorCut => Suffering::CoordinatorCut,
        };
        let lasts = if fault == Fault::LostMessages { LOST_FOR } else { self.lasts };
        cluster.suffer(leader, suffering).await?;
        tokio::time::sleep(lasts).await;
        cluster.heal_all().await
    }
}

impl Fault {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Stops {
    fn tell(self, protocol: Protocol, fault: Fault, failure: Option<&str>, report: &mut Report) {
        let summary = Summary::of(self.stops);
        let count = summary.map_or(0, |summary| summary.count);
        let of = |part: fn(&Summary) -> Duration| {
            summary.as_ref().map_or_else(|| "-".to_owned(), |summary| milliseconds(part(summary)))
        };
        let cells = vec![
            protocol.to_string(),
            fault.name(),
            count.to_string(),
            of(|summary| summary.min),
            of(|summary| summary.p50),
            of(|summary| summary.max),
            if failure.is_some() { "yes, see below".to_owned() } else { "-".to_owned() },
        ];
        let object = json!({
            "protocol": protocol.name(),
            "fault": fault.name(),
            "stop_us": summary.as_ref().map_or(Value::Null, Summary::json),
            "acknowledged": self.acknowledged,
            "failure": failure,
        });
        report.row(cells, "outages", object);
    }
}
