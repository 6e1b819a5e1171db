//! `trireme coordinator`: runs the embedded coordinator by itself.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use trireme_embedded::{EmbeddedError, EmbeddedOptions, EmbeddedServer};
use trireme_server::panics;

use super::output::announce;
use super::stopping::stop_signal;
use super::{address, logging};

/// Options of `trireme coordinator`.
#[derive(Args)]
pub(crate) struct CoordinatorArgs {
    /// Data folder; created if missing.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Address to listen on.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7100",
        value_parser = address::host_and_any_port)]
    listen: String,
    /// Restore this backup, written by `etcdctl snapshot save`, into the data folder, which must be
    /// empty.
    #[arg(long, value_name = "FILE")]
    restore: Option<PathBuf>,
    /// Stop when standard input ends, as it does when the process that started this one is gone.
    #[arg(long, hide = true)]
    stop_at_stdin_end: bool,
}

impl CoordinatorArgs {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        logging::start();
        panics::end_process_on_panic();
        let runtime = tokio::runtime::Runtime::new()?;
        let outcome = runtime.block_on(async {
            let stop = stop_signal(self.stop_at_stdin_end)?;
            let mut server = None;
            let outcome = tokio::select! {
                biased;
                () = stop => Ok(()),
                outcome = self.serve(&mut server) => outcome,
            };
            let stopped = match server {
                Some(server) => server.stop().await,
                None => Ok(()),
            };
            outcome.and(stopped.context("stopping the coordinator"))
        });
        panics::disarm();
        runtime.shutdown_background();
        outcome
    }

    /// Starts the coordinator and waits until it fails.
    async fn serve(&self, running: &mut Option<EmbeddedServer>) -> anyhow::Result<()> {
        let server = running.insert(self.start().await.context("starting the coordinator")?);
        announce(format!("ready coordinator={}", server.endpoint()))?;
        // The supervisor of this process starts it again, as soon as it can serve.
        bail!("the coordinator has failed: {}", server.failed().await)
    }

    /// Starts the coordinator on the first address of the host that it can listen on.
    async fn start(&self) -> anyhow::Result<EmbeddedServer> {
        let resolving = || format!("finding the address of {}", self.listen);
        let addresses = tokio::net::lookup_host(&self.listen).await.with_context(resolving)?;
        let addresses: Vec<_> = addresses.collect();
        if let (Some(backup), Some(&any)) = (&self.restore, addresses.first()) {
            let reading = || format!("reading {}", backup.display());
            let file = std::fs::read(backup).with_context(reading)?;
            EmbeddedServer::restore(file, EmbeddedOptions::new(&self.data, any)).await?;
        }
        let mut refusal = None;
        for address in addresses {
            match EmbeddedServer::start(EmbeddedOptions::new(&self.data, address)).await {
                Err(error @ EmbeddedError::Listen { .. }) => refusal = Some(error),
                started => return Ok(started?),
            }
        }
        Err(refusal.map_or_else(|| anyhow!("{} has no address", self.listen), Into::into))
    }
}
