//! The `trireme` command: it starts nodes and clusters, and works with running ones. Each subcommand is
//! a file of its own; what nodes do is in the crate `trireme-server`.
//!
//! Results go to stdout and everything else to stderr. A command ends with status 0, with 1 if it
//! failed, or with 2 if it was called wrongly. A failure is one line on stderr: what was done, and
//! its causes.

mod address;
mod bench;
mod cluster;
mod compare;
mod coordinator;
mod delete;
mod duration;
mod escape;
mod export;
mod fault;
mod get;
mod import;
mod json;
mod logging;
mod node;
mod node_drain;
mod node_list;
mod output;
mod predecessor;
mod progress;
mod put;
mod range_leader;
mod range_list;
mod range_merge;
mod range_move;
mod range_protocol;
mod range_split;
mod rebuild;
mod rows;
mod scan;
mod split_bytes;
mod status;
mod stopping;
mod table;
mod timing;
mod up;
mod upkeep;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tikv_jemallocator::Jemalloc;

use cluster::ClusterArgs;

/// A node allocates on one thread what it frees on another, all day (docs/decisions/0013).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// The status of a command that failed.
const FAILED: u8 = 1;

/// The status of a command that was called wrongly; clap ends with the same.
const MISUSED: u8 = 2;

/// A range-sharded, replicated key-value store with a replication protocol per key range.
#[derive(Parser)]
#[command(name = "trireme", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster on this machine, one process per node.
    Up(up::UpArgs),
    /// Run one node, or list the nodes of a running cluster.
    Node(NodeCommand),
    /// Run the embedded coordinator as a process of its own, or rebuild a coordinator that lost its
    /// data.
    Coordinator(CoordinatorCommand),
    /// Set a key and print the new version.
    Put(put::PutArgs),
    /// Print the value of a key.
    Get(get::GetArgs),
    /// Delete a key.
    Delete(delete::DeleteArgs),
    /// Print the rows in a range of keys, in key order.
    Scan(scan::ScanArgs),
    /// Put every row of a file; safe to repeat.
    Import(import::ImportArgs),
    /// Write the rows in a range of keys to a file, in key order.
    Export(export::ExportArgs),
    /// Show every node, and every cohort with its replicas.
    Status(status::StatusArgs),
    /// Show the ranges.
    #[command(subcommand)]
    Range(RangeCommand),
    /// Inject faults into a node, for tests; the node must have been started with --allow-faults.
    ///
    /// Each call replaces all faults of the node: a fault that it does not name ends.
    Fault(fault::FaultArgs),
    /// Load a running cluster and report its throughput and latency.
    Bench(bench::BenchArgs),
    /// Compares the protocols: the same load and the same faults on a cluster of each on this
    /// machine, with every answer judged, as one HTML page.
    Compare(compare::CompareArgs),
}

/// `trireme node` runs a node, unless a subcommand follows.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct NodeCommand {
    #[command(flatten)]
    run: Option<node::NodeArgs>,
    // Beside the rest, since clap does not report whether any of nested options was given.
    #[command(flatten)]
    timing: timing::TimingArgs,
    #[command(flatten)]
    upkeep: upkeep::UpkeepArgs,
    #[command(subcommand)]
    command: Option<NodeSubcommand>,
}

#[derive(Subcommand)]
enum NodeSubcommand {
    /// Have a node's replicas move to other nodes, while their ranges serve; safe to repeat.
    Drain(node_drain::NodeDrainArgs),
    /// List the nodes and their addresses.
    List(node_list::NodeListArgs),
    /// Remove a node that holds no replica and does not run; safe to repeat.
    Remove(node_drain::NodeRemoveArgs),
}

/// `trireme coordinator` runs the coordinator, unless a subcommand follows.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct CoordinatorCommand {
    #[command(flatten)]
    run: Option<coordinator::CoordinatorArgs>,
    #[command(subcommand)]
    command: Option<CoordinatorSubcommand>,
}

#[derive(Subcommand)]
enum CoordinatorSubcommand {
    /// Rebuild a coordinator that lost its data, from what the nodes know.
    Rebuild(rebuild::RebuildArgs),
}

#[derive(Subcommand)]
enum RangeCommand {
    /// Have a node lead a range; safe to repeat.
    Leader(range_leader::RangeLeaderArgs),
    /// List the ranges, their cohorts and their replicas.
    List(range_list::RangeListArgs),
    /// Make the range that holds a key and the one above it one, while they serve; safe to repeat with
    /// `--border`.
    Merge(range_merge::RangeMergeArgs),
    /// Have another node hold a replica of a range in the place of one that does, while it serves; safe to
    /// repeat.
    Move(range_move::RangeMoveArgs),
    /// Have a range replicated by another protocol, while it serves; safe to repeat.
    Protocol(range_protocol::RangeProtocolArgs),
    /// Cut a range in two at a key, while it serves; safe to repeat.
    Split(range_split::RangeSplitArgs),
}

/// A command line that makes no sense, found after it was read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// Does what the process's arguments say.
fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

impl Cli {
    fn run(self) -> anyhow::Result<()> {
        let Self { cluster, command } = self;
        match command {
            Command::Up(args) => args.run(),
            Command::Node(NodeCommand { command: Some(command), .. }) => match command {
                NodeSubcommand::Drain(args) => block_on(args.run(&cluster)),
                NodeSubcommand::List(args) => block_on(args.run(&cluster)),
                NodeSubcommand::Remove(args) => block_on(args.run(&cluster)),
            },
            Command::Node(NodeCommand { run: Some(args), timing, upkeep, command: None }) => {
                args.run(&timing, &upkeep)
            }
            Command::Node(NodeCommand { run: None, command: None, .. }) => {
                Err(UsageError("nothing says which node to run; see 'trireme node --help'".into())
                    .into())
            }
            Command::Coordinator(CoordinatorCommand { command: Some(command), .. }) => {
                let CoordinatorSubcommand::Rebuild(args) = command;
                block_on(args.run())
            }
            Command::Coordinator(CoordinatorCommand { run: Some(args), command: None }) => {
                args.run()
            }
            Command::Coordinator(CoordinatorCommand { run: None, command: None }) => {
                let reason = "nothing says where the coordinator keeps its state; see 'trireme \
                              coordinator --help'";
                Err(UsageError(reason.into()).into())
            }
            Command::Put(args) => block_on(args.run(&cluster)),
            Command::Get(args) => block_on(args.run(&cluster)),
            Command::Delete(args) => block_on(args.run(&cluster)),
            Command::Scan(args) => block_on(args.run(&cluster)),
            Command::Import(args) => block_on(args.run(&cluster)),
            Command::Export(args) => block_on(args.run(&cluster)),
            Command::Status(args) => block_on(args.run(&cluster)),
            Command::Range(RangeCommand::Leader(args)) => block_on(args.run(&cluster)),
            Command::Range(RangeCommand::List(args)) => block_on(args.run(&cluster)),
            Command::Range(RangeCommand::Move(args)) => block_on(args.run(&cluster)),
            Command::Range(RangeCommand::Protocol(args)) => block_on(args.run(&cluster)),
            Command::Range(RangeCommand::Split(args)) => block_on(args.run(&cluster)),
            Command::Range(RangeCommand::Merge(args)) => block_on(args.run(&cluster)),
            Command::Fault(args) => block_on(args.run(&cluster)),
            Command::Bench(args) => block_on(args.run(&cluster)),
            Command::Compare(args) => block_on(args.run()),
        }
    }
}

/// Runs a client's command on a runtime of its own.
fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(command);
    // A stream to a node that no longer answers must not keep the command from ending.
    runtime.shutdown_background();
    done
}

/// Reports on stderr why a command failed, and returns the exit status.
fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        // The reader of the output has read enough of it, as `head` does.
        return ExitCode::SUCCESS;
    }
    // There is nowhere left to say that stderr cannot be written.
    let _unwritten = writeln!(io::stderr(), "trireme: {}", one_line(error));
    ExitCode::from(if error.is::<UsageError>() { MISUSED } else { FAILED })
}

/// Returns an error and its causes as one line. A cause that stands in the text of what it caused
/// is not repeated.
fn one_line(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.iter().rev().fold(String::new(), |rest, cause| {
        let cause = cause.split_whitespace().collect::<Vec<_>>().join(" ");
        if cause.ends_with(&rest) { cause } else { format!("{cause}: {rest}") }
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<output::OutputError>().is_some_and(output::OutputError::is_broken_pipe)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_failure_is_one_line_with_its_causes() {
        let error =
            Err::<(), _>(io::Error::other("line 1\n  line 2")).context("reading 'f'").unwrap_err();
        assert_eq!(one_line(&error), "reading 'f': line 1 line 2");
        let repeated = error.context("the folder: reading 'f': line 1 line 2").context("failed");
        assert_eq!(one_line(&repeated), "failed: the folder: reading 'f': line 1 line 2");
    }

    #[test]
    fn node_list_needs_none_of_what_a_node_needs() {
        let cli = Cli::try_parse_from(["trireme", "node", "list", "--json"]).unwrap();
        let Command::Node(NodeCommand { run, command, .. }) = cli.command else {
            panic!("not the command that was given")
        };
        assert!(run.is_none() && matches!(command, Some(NodeSubcommand::List(_))));
    }
}
