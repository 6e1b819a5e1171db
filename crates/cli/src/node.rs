//! `trireme node`: runs one node.

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::builder::PossibleValuesParser;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;
use trireme_server::{Mistakes, Node, NodeError, NodeOptions, panics};
use trireme_types::{Durability, Engine, NodeId};

use super::stopping::stop_signal;
use super::timing::TimingArgs;
use super::upkeep::UpkeepArgs;
use super::{UsageError, address, logging, predecessor};

/// The threads of the runtime that carries consensus: few, since its work is short, and apart from
/// those of the clients, so that their load cannot hold up a heartbeat.
const CONSENSUS_THREADS: usize = 2;

/// How long a process that holds the folder may take to let go of it. A killed one with much memory takes
/// some tenths of a second on a busy machine.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(5);

/// Options of `trireme node`. On an existing data folder, the folder alone is enough.
#[derive(Args)]
pub(crate) struct NodeArgs {
    /// Data folder; created if missing.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Number of the node, from 1. Required for a new data folder.
    #[arg(long, value_name = "N")]
    id: Option<NodeId>,
    /// Address to listen on. Required for a new data folder.
    #[arg(long, value_name = "HOST:PORT", value_parser = address::host_and_any_port)]
    listen: Option<String>,
    /// Address at which clients and other nodes reach this one; remembered. Required if --listen is
    /// a wildcard address. [default: the address of --listen]
    #[arg(long, value_name = "HOST:PORT", value_parser = address::host_port)]
    advertise: Option<String>,
    /// Endpoints of the coordinator, all of one cluster. Required for a new data folder.
    #[arg(long, value_name = "URL", value_delimiter = ',', value_parser = address::coordinator_endpoint)]
    coordinator: Option<Vec<String>>,
    /// Storage engine of a new data folder: lsm or sled. [default: lsm]
    #[arg(long)]
    engine: Option<Engine>,
    /// What an acknowledged write survives: fsync (power loss on all nodes), os (the death of all
    /// processes) or memory (as long as enough of its replicas run). [default: fsync]
    #[arg(long)]
    durability: Option<Durability>,
    /// Size of the log in bytes past which the oldest segments are deleted. Larger lets a node that
    /// was down for longer catch up from the log instead of a snapshot.
    #[arg(long, value_name = "BYTES", default_value_t = 1024 * 1024 * 1024)]
    log_bytes_max: u64,
    /// Size of a log segment in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 64 * 1024 * 1024)]
    segment_bytes: u64,
    /// Size of the memtables in bytes at which they are flushed to files. Larger means fewer and
    /// larger files, more memory, and more log to replay after a crash.
    #[arg(long, value_name = "BYTES", default_value_t = 64 * 1024 * 1024, value_parser = memtable_bytes)]
    memtable_bytes: usize,
    /// Allow `trireme fault` on the node. For tests; not remembered.
    #[arg(long)]
    allow_faults: bool,
    /// Have the replicas make a mistake, so that the cluster breaks its promises, to see that this is
    /// found. For tests; not remembered.
    #[arg(long, value_name = "NAME", hide = true, requires = "allow_faults")]
    #[arg(value_parser = PossibleValuesParser::new(Mistakes::NAMES))]
    mistake: Vec<String>,
    /// Stop when standard input ends, as it does when the process that started this one is gone.
    #[arg(long, hide = true)]
    stop_at_stdin_end: bool,
}

/// Reads the size of a memtable. With less than a mebibyte, a node would do little but flush; with more
/// than the most, which is twice in memory, it would never.
pub(crate) fn memtable_bytes(text: &str) -> Result<usize, String> {
    const LEAST: usize = 1024 * 1024;
    const MOST: usize = 16 * 1024 * 1024 * 1024;
    match text.parse().map_err(|_| "expected a number of bytes".to_owned())? {
        ..LEAST => Err(format!("must be at least {LEAST}")),
        bytes @ LEAST..=MOST => Ok(bytes),
        _ => Err(format!("must be at most {MOST}")),
    }
}

impl NodeArgs {
    pub(crate) fn run(self, timing: &TimingArgs, upkeep: &UpkeepArgs) -> anyhow::Result<()> {
        logging::start();
        panics::end_process_on_panic();
        let consensus = Builder::new_multi_thread()
            .worker_threads(CONSENSUS_THREADS)
            .thread_name("consensus")
            .enable_all()
            .build()?;
        let clients = Runtime::new()?;
        let stop_at_stdin_end = self.stop_at_stdin_end;
        let options = self.into_options(timing, upkeep);
        let outcome = clients.block_on(async {
            let mut stop = pin!(stop_signal(stop_at_stdin_end)?);
            let data = options.data.display().to_string();
            // A task of its own, since a start reads a log for as long as that takes, and a signal
            // must be heard meanwhile.
            let handle = consensus.handle().clone();
            let start = tokio::spawn(async move {
                // One that is there still is named by the start.
                predecessor::wait_for(&options.data, Instant::now() + PREDECESSOR_TIMEOUT).await?;
                Node::start(options, &handle).await
            });
            let started = tokio::select! {
                biased;
                () = &mut stop => {
                    tracing::info!(data, "stopped before the node served");
                    return Ok(());
                }
                started = start => started.unwrap_or_else(|e| resume_unwind(e.into_panic())),
            };
            let node = match started {
                Err(NodeError::Timing(error)) => return Err(UsageError::from(error).into()),
                Err(NodeError::LogLimit(error)) => {
                    return Err(UsageError(error.to_string()).into());
                }
                Err(NodeError::Misused(reason)) => return Err(UsageError(reason).into()),
                started => started.with_context(|| format!("starting the node in {data}"))?,
            };
            tracing::info!(address = %node.address(), data, "the node serves");
            Ok(node.run(stop).await?)
        });
        panics::disarm();
        // Work that hangs on a disk that failed must not keep the process from ending.
        consensus.shutdown_background();
        clients.shutdown_background();
        outcome
    }

    fn into_options(self, timing: &TimingArgs, upkeep: &UpkeepArgs) -> NodeOptions {
        let mut mistakes = Mistakes::default();
        for name in &self.mistake {
            // The command line has no other names.
            let _known = mistakes.add(name);
        }
        let Self { data, id, listen, advertise, coordinator, engine, durability, .. } = self;
        NodeOptions {
            data,
            node: id,
            listen,
            advertise,
            coordinator,
            engine,
            durability,
            log_bytes_max: self.log_bytes_max,
            segment_bytes: self.segment_bytes,
            memtable_bytes: self.memtable_bytes,
            timing: timing.change(),
            min_replicas_for_write: timing.min_replicas_for_write(),
            replace_delay: upkeep.replace_delay(),
            split_bytes: upkeep.split_bytes(),
            spread_delay: upkeep.spread_delay(),
            spread_leads_delay: upkeep.spread_leads_delay(),
            discard_after: upkeep.discard_after(),
            allow_faults: self.allow_faults,
            mistakes,
        }
    }
}
