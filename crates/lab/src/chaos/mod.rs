//! Faults of every kind, several at once, while clients read and write; every history is judged.
//!
//! A run is a cluster of processes, each on a host of its own where the machine allows network
//! namespaces, and rounds. In a round the nemesis rages while clients are at work; then all faults end,
//! the cluster must become whole and serve, and what clients saw and what the replicas hold is judged.
//! At the end, all that was acknowledged in any round must be there, once.

mod cuts;
mod damage;
mod fault;
mod judge;
mod nemesis;
mod ordeals;
mod record;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use trireme_checker::history::{Answer, Operation};
use trireme_checker::kv::{Input, Output, Text};
use trireme_checker::{format, timeline};
use trireme_client::{Client, Consistency};
use trireme_testbed::{ClusterArgs, Hosts, Network};
use trireme_types::Protocol;

use self::fault::Fault;
use self::judge::{Found, Ledger, Violation, differences, judge, named, rows};
use self::nemesis::{Event, Nemesis};
use self::record::{Clock, Recorded};
use self::workload::{Workers, prefix};
use crate::parse;
use crate::report::{Report, progress};

/// How long a cluster may take to be whole and to serve once all faults have ended.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(120);

/// What nodes are started with: small logs and tables, so that logs are shortened, tables flushed, and
/// replicas that were away given snapshots; and a short wait before a lost replica is replaced.
const NODE_OPTIONS: [&str; 8] = [
    "--log-bytes-max",
    "2097152",
    "--segment-bytes",
    "262144",
    "--memtable-bytes",
    "1048576",
    "--replace-delay",
    "2s",
];

/// How often all rows are read from whichever replica comes next, for each node.
const TIMELINE_SCANS_PER_NODE: usize = 3;

const HEADS: &[&str] = &[
    "PROTOCOL",
    "ROUNDS",
    "ANSWERED",
    "AMBIGUOUS",
    "REFUSED",
    "FAULTS",
    "LOST",
    "TWICE",
    "OUTCOME",
];

/// Arguments of `trireme-lab chaos`.
#[derive(Args)]
pub(crate) struct ChaosArgs {
    /// How the range replicates: spinnaker, raft, pacifica, or all; each in a cluster of its own.
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', required = true)]
    replication: Vec<String>,
    /// What faults there are, when, for how long and to whom follows from it, as far as the cluster's own
    /// choices, such as who leads, allow.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How long each protocol is put to the test: rounds go on until then.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse::duration)]
    time: Duration,
    /// How long the faults of one round go on.
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = parse::duration)]
    round: Duration,
    /// How many clients are at work.
    #[arg(long, value_name = "N", default_value_t = 8)]
    clients: usize,
    /// A kind of fault that is to happen; may be given more than once. The run fails if it never does.
    /// [default: all]
    #[arg(long = "fault", value_name = "NAME", value_enum)]
    faults: Vec<Fault>,
    /// What connects the processes.
    #[arg(long, value_enum, default_value_t)]
    network: NetworkArg,
    /// Have the replicas make a mistake, so that the cluster breaks a promise, to see that this is
    /// found: the value of the nodes' own `--mistake`.
    #[arg(long, value_name = "NAME")]
    mistake: Option<String>,
    /// Where the history, the events, the time line and the cluster's folder of a run that fails are
    /// kept.
    #[arg(long, value_name = "DIR", default_value = "trireme-chaos")]
    out: PathBuf,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,
}

/// What connects the processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkArg {
    /// Network namespaces if the machine allows them, else the loopback interface.
    #[default]
    Auto,
    /// Network namespaces: hosts are really cut off.
    Namespaces,
    /// The loopback interface: nodes that are cut off drop what they would send.
    Loopback,
}

/// One protocol's run so far.
struct Run {
    protocol: Protocol,
    hosts: Hosts,
    clients: Vec<Client>,
    nemesis: Nemesis,
    clock: Clock,
    ledger: Ledger,
    figures: Figures,
}

#[derive(Default)]
struct Figures {
    rounds: u32,
    answered: usize,
    ambiguous: usize,
    refused: u64,
    /// Additions and elements of lists that must be there at the end.
    acknowledged: usize,
    found: Found,
    unknown: u32,
    faults: BTreeMap<Fault, u32>,
}

/// How a round went.
struct Round {
    recorded: Recorded,
    events: Vec<Event>,
    violations: Vec<Violation>,
}

/// Has the program run in namespaces of its own if the command line asks for it. To be called before
/// anything else is done.
pub(crate) fn prepare(args: &ChaosArgs) -> anyhow::Result<Network> {
    if args.network == NetworkArg::Loopback {
        return Ok(Network::Loopback);
    }
    match Network::enter_namespaces() {
        Ok(()) => Ok(Network::Namespaces),
        Err(reason) if args.network == NetworkArg::Auto => {
            progress(format_args!(
                "no network namespaces ({reason}): nodes that are cut off drop what they would send"
            ));
            Ok(Network::Loopback)
        }
        Err(reason) => bail!("there are no network namespaces here: {reason}"),
    }
}

impl ChaosArgs {
    /// Puts each protocol to the test and prints the report; fails if a promise was not kept.
    pub(crate) async fn run(self, network: Network) -> anyhow::Result<()> {
        if self.cluster.nodes() < 3 || self.clients == 0 {
            bail!("it takes a client, and three nodes so that one may fail");
        }
        let protocols = parse::protocols(&self.replication).map_err(anyhow::Error::msg)?;
        let mut report = Report::new("chaos", HEADS);
        report.setting("seed", self.seed);
        report.setting("time", format!("{:?}", self.time));
        report.setting("round", format!("{:?}", self.round));
        report.setting("clients", self.clients);
        report.setting("network", network.name());
        let mut failed = Vec::new();
        for protocol in protocols {
            let mut figures = Figures::default();
            let outcome = self.put_to_the_test(protocol, network, &mut figures, &mut report).await;
            let failure = outcome.err().map(|error| format!("{error:#}"));
            let again = self.command(protocol, network);
            figures.add_to(protocol, failure.as_deref(), &again, &mut report);
            if let Some(failure) = failure {
                report.line(format!("{protocol}: {failure}\nagain: {again}"));
                failed.push(protocol.to_string());
            }
        }
        report.print(self.json)?;
        if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
    }

    async fn put_to_the_test(
        &self,
        protocol: Protocol,
        network: Network,
        figures: &mut Figures,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let mut options = NODE_OPTIONS.to_vec();
        options.extend(self.mistake.iter().flat_map(|name| ["--mistake", name]));
        let hosts = Hosts::start(&self.cluster, protocol, network, &options);
        let hosts = hosts.await.with_context(|| format!("starting a cluster by {protocol}"))?;
        report.conditions(hosts.conditions().await?);
        let mut clients = Vec::new();
        for _ in 0..self.clients {
            clients.push(hosts.client(workload::options()).await?);
        }
        let clock = Clock::new();
        let kinds = self.kinds(network);
        let nemesis = Nemesis::new((self.seed, protocol), kinds.clone(), clock, hosts.folder());
        let ledger = Ledger::default();
        let mut run =
            Run { protocol, hosts, clients, nemesis, clock, ledger, figures: Figures::default() };
        let outcome = self.rounds(&mut run).await;
        run.figures.faults = run.nemesis.counts().clone();
        *figures = std::mem::take(&mut run.figures);
        outcome?;
        let missing: Vec<String> = kinds
            .into_iter()
            .filter(|kind| !self.faults.is_empty() && !figures.faults.contains_key(kind))
            .map(Fault::name)
            .collect();
        if !missing.is_empty() {
            bail!("never happened: {}", missing.join(", "));
        }
        Ok(())
    }

    async fn rounds(&self, run: &mut Run) -> anyhow::Result<()> {
        let end = Instant::now() + self.time;
        let mut round = 0;
        while Instant::now() < end || round == 0 {
            round += 1;
            let went = self.round(run, round).await?;
            run.figures.rounds = round;
            if !went.violations.is_empty() {
                return Err(self.keep(run, round, &went));
            }
            let protocol = run.protocol;
            progress(format_args!(
                "{protocol}, round {round}: {} answered, {} ambiguous, {} refused, {} events",
                went.recorded.answered(),
                went.recorded.ambiguous(),
                went.recorded.refused,
                went.events.len()
            ));
        }
        // All that was acknowledged in any round is there yet.
        let rows = rows(&run.clients[0], "r", Consistency::Strong).await?;
        let (found, violations) = run.ledger.compare(&rows);
        run.figures.found = found;
        run.figures.acknowledged = run.ledger.acknowledged();
        if violations.is_empty() {
            return Ok(());
        }
        let events = run.nemesis.take_events();
        Err(self.keep(run, round, &Round { recorded: Recorded::default(), events, violations }))
    }

    async fn round(&self, run: &mut Run, round: u32) -> anyhow::Result<Round> {
        let workers = Workers::start(&run.clients, run.clock, self.seed, round);
        let mut violations = Vec::new();
        let raged = run.nemesis.rage(&mut run.hosts, self.round).await;
        let ended = match raged {
            Ok(ended) => ended,
            Err(error) => vec![format!("{error:#}")],
        };
        let over = Instant::now();
        let more = run.nemesis.end(&mut run.hosts).await?;
        violations.extend(named("a process ended by itself", &[ended, more].concat()));
        let left = WHOLE_TIMEOUT.saturating_sub(over.elapsed());
        let whole = run.hosts.wait_until_whole(left).await;
        let mut recorded = workers.finish().await?;
        recorded.delays = run.nemesis.take_delays();
        run.figures.add(&recorded);
        if let Err(error) = whole {
            violations.push(Violation::new("not whole again", format!("{error:#}")));
        }
        let read = read_all(&run.clients[0], run.clock, round, &mut recorded).await;
        // Judging is nothing but computing.
        let judged = tokio::task::spawn_blocking(move || {
            let judged = judge(&recorded);
            (recorded, judged)
        });
        let (recorded, (wrong, is_judged)) = judged.await?;
        run.figures.unknown += u32::from(!is_judged);
        violations.extend(wrong);
        let compared = match read {
            Ok(rows) => self.compare(run, round, (&recorded, rows), &mut violations).await,
            Err(error) => Err(error),
        };
        if let Err(error) = compared {
            violations.push(Violation::new("does not serve", format!("{error:#}")));
        }
        let events = run.nemesis.take_events();
        Ok(Round { recorded, events, violations })
    }

    /// Compares what the cluster, and each of its replicas, holds with what was acknowledged.
    async fn compare(
        &self,
        run: &mut Run,
        round: u32,
        (recorded, before): (&Recorded, BTreeMap<Text, Text>),
        violations: &mut Vec<Violation>,
    ) -> anyhow::Result<()> {
        let (client, prefix) = (&run.clients[0], prefix(round));
        let ledger = Ledger::of(recorded);
        let (found, wrong) = ledger.compare(&before);
        run.figures.found = found;
        violations.extend(wrong);
        run.ledger.merge(ledger);
        run.hosts.wait_until_whole(WHOLE_TIMEOUT).await?;
        let mut of_replicas = Vec::new();
        for _ in 0..TIMELINE_SCANS_PER_NODE * self.cluster.nodes() {
            of_replicas.push(rows(client, &prefix, Consistency::Timeline).await?);
        }
        // A write whose outcome is unknown may have been done meanwhile.
        if rows(client, &prefix, Consistency::Strong).await? == before {
            let differ = of_replicas.iter().flat_map(|found| differences(&before, found));
            let differ: BTreeSet<String> = differ.collect();
            let differ: Vec<String> = differ.into_iter().collect();
            violations.extend(named("replicas differ", &differ));
        }
        Ok(())
    }

    /// Keeps all of a round that shows what was wrong, and returns that.
    fn keep(&self, run: &mut Run, round: u32, went: &Round) -> anyhow::Error {
        let name = format!("{}-{}-round-{round}", run.protocol, self.seed);
        let folder = self.out.join(name);
        let wrong: Vec<String> = went
            .violations
            .iter()
            .map(|violation| format!("{}: {}", violation.kind, violation.what))
            .collect();
        let kept = keep_in(&folder, run, went, &wrong);
        let kept = match kept {
            Ok(()) => format!("kept in {}", folder.display()),
            Err(error) => format!("not kept: {error:#}"),
        };
        anyhow::anyhow!("round {round}: {}\n{kept}", wrong.join("\n"))
    }

    fn kinds(&self, network: Network) -> Vec<Fault> {
        let kinds = if self.faults.is_empty() { Fault::value_variants() } else { &self.faults[..] };
        kinds.iter().copied().filter(|kind| kind.is_possible(network)).collect()
    }

    /// Returns the command that does the same again with one protocol.
    fn command(&self, protocol: Protocol, network: Network) -> String {
        let mut command = format!(
            "trireme-lab chaos --replication {protocol} --seed {} --time {}s --round {}s \
             --clients {} --nodes {} --network {}",
            self.seed,
            self.time.as_secs_f64(),
            self.round.as_secs_f64(),
            self.clients,
            self.cluster.nodes,
            network.name()
        );
        for fault in &self.faults {
            command.push_str(&format!(" --fault {}", fault.name()));
        }
        if let Some(mistake) = &self.mistake {
            command.push_str(&format!(" --mistake {mistake}"));
        }
        command
    }
}

/// Reads all that a round has written, and records that as reads of every key: whatever is lost, no
/// order explains.
async fn read_all(
    client: &Client,
    clock: Clock,
    round: u32,
    recorded: &mut Recorded,
) -> anyhow::Result<BTreeMap<Text, Text>> {
    let called = clock.now();
    let rows = rows(client, &prefix(round), Consistency::Strong).await?;
    let at = clock.now();
    let keys = recorded.history.iter().filter_map(|operation| operation.input.key());
    let keys: BTreeSet<Text> = keys.chain(rows.keys()).cloned().collect();
    recorded.history.extend(keys.into_iter().map(|key| {
        let answer = Some(Answer { at, output: Output::Found(rows.get(&key).cloned()) });
        Operation { client: 0, input: Input::Get { key }, called, answer }
    }));
    Ok(rows)
}

fn keep_in(
    folder: &std::path::Path,
    run: &mut Run,
    went: &Round,
    wrong: &[String],
) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let history = BufWriter::new(File::create(folder.join("history.json"))?);
    format::native::write(&went.recorded.history, history)?;
    let mut text = File::create(folder.join("events.txt"))?;
    for event in &went.events {
        writeln!(text, "{event}")?;
    }
    let mut text = File::create(folder.join("violations.txt"))?;
    wrong.iter().try_for_each(|line| writeln!(text, "{line}"))?;
    let examples = went.violations.iter().filter_map(|violation| violation.example.as_deref());
    for (example, number) in examples.zip(1..) {
        let page = timeline::page("what no order explains", example);
        fs::write(folder.join(format!("timeline-{number}.html")), page)?;
    }
    let cluster = run.hosts.keep();
    fs::write(folder.join("cluster.txt"), format!("{}\n", cluster.display()))?;
    Ok(())
}

impl Figures {
    fn add(&mut self, recorded: &Recorded) {
        self.answered += recorded.answered();
        self.ambiguous += recorded.ambiguous();
        self.refused += recorded.refused;
    }

    fn add_to(&self, protocol: Protocol, failure: Option<&str>, again: &str, report: &mut Report) {
        let outcome = match failure {
            Some(_) => "FAIL",
            None if self.unknown > 0 => "unknown",
            None => "pass",
        };
        let faults: u32 = self.faults.values().sum();
        let cells = vec![
            protocol.to_string(),
            self.rounds.to_string(),
            self.answered.to_string(),
            self.ambiguous.to_string(),
            self.refused.to_string(),
            faults.to_string(),
            self.found.lost.to_string(),
            self.found.duplicates.to_string(),
            outcome.to_owned(),
        ];
        let by_kind: BTreeMap<String, u32> =
            self.faults.iter().map(|(fault, count)| (fault.name(), *count)).collect();
        let kinds: Vec<String> =
            by_kind.iter().map(|(name, count)| format!("{name} {count}")).collect();
        report.line(format!("{protocol}, faults: {}", kinds.join(", ")));
        let object: Value = json!({
            "protocol": protocol.name(),
            "rounds": self.rounds,
            "answered": self.answered,
            "ambiguous": self.ambiguous,
            "refused": self.refused,
            "faults": by_kind,
            "acknowledged_for_good": self.acknowledged,
            "lost": self.found.lost,
            "duplicates": self.found.duplicates,
            "undead": self.found.undead,
            "rounds_not_judged": self.unknown,
            "outcome": outcome,
            "failure": failure,
            "again": again,
        });
        report.row(cells, "chaos", object);
    }
}
