//! `trireme-lab`: experiments on real clusters of processes on this machine, and the judge of recorded
//! histories.
//!
//! Every experiment starts its clusters with the `trireme` program in a folder of its own, does
//! something to them, measures what clients see of it, prints one table, and leaves nothing
//! running behind. README.md says what each one is for.

mod chaos;
mod check;
mod experiments;
mod measure;
mod parse;
mod report;
mod timeline;
mod writer;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use experiments::{changes, commit_period, kills, many_ranges, outages, rolling};
use trireme_testbed::Network;

/// Experiments on real clusters of Trireme on this machine.
#[derive(Parser)]
#[command(name = "trireme-lab", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    experiment: Experiment,
}

#[derive(Subcommand)]
enum Experiment {
    /// Changes a range again and again while it is written, and measures how long no write went through.
    Changes(changes::ChangesArgs),
    /// Kills the leader, or a follower, again and again, and measures how long no write went
    /// through.
    Kills(kills::KillsArgs),
    /// Measures the longest stop of writes under each fault that a cohort is to outlive.
    Outages(outages::OutagesArgs),
    /// Measures how stale timeline reads are and how long a takeover takes, by how often a leader
    /// tells its followers what is committed.
    CommitPeriod(commit_period::CommitPeriodArgs),
    /// Measures what many ranges cost: until they serve, idle, when a node dies, until they stop.
    ManyRanges(many_ranges::ManyRangesArgs),
    /// Stops and starts all nodes, one after the other, and measures what clients see of it.
    Rolling(rolling::RollingArgs),
    /// Has faults of every kind befall a cluster, several at once, while clients read and write, and
    /// judges what they saw.
    Chaos(Box<chaos::ChaosArgs>),
    /// Judges recorded histories: prints a line per file, its name, a tab, and `linearizable`,
    /// `not linearizable` or `unknown`.
    Check(check::CheckArgs),
}

impl Experiment {
    async fn run(self, network: Network) -> anyhow::Result<()> {
        match self {
            Self::Chaos(args) => args.run(network).await,
            Self::Changes(args) => args.run().await,
            Self::Kills(args) => args.run().await,
            Self::Outages(args) => args.run().await,
            Self::CommitPeriod(args) => args.run().await,
            Self::ManyRanges(args) => args.run().await,
            Self::Rolling(args) => args.run().await,
            Self::Check(args) => tokio::task::spawn_blocking(|| args.run()).await?,
        }
    }
}

fn main() -> ExitCode {
    let Cli { experiment } = Cli::parse();
    match run(experiment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nowhere left to say that stderr cannot be written.
            let _unwritten = writeln!(io::stderr(), "trireme-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(experiment: Experiment) -> anyhow::Result<()> {
    // Before there is any thread: the program may start anew in namespaces.
    let network = match &experiment {
        Experiment::Chaos(args) => chaos::prepare(args)?,
        _ => Network::Loopback,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let interrupted = interrupted()?;
        tokio::select! {
            outcome = experiment.run(network) => outcome,
            // The experiment is dropped here, and its clusters with it, which kills them.
            () = interrupted => bail!("interrupted"),
        }
    });
    // A client's stream to a node that is gone must not keep the program from ending.
    runtime.shutdown_background();
    outcome
}

/// Returns what resolves when the program is asked to end.
fn interrupted() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
