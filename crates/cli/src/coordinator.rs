//! `trireme coordinator`: runs the embedded coordinator by itself.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use trireme_coordinator::embedded::{EmbeddedOptions, EmbeddedServer};
use trireme_server::panics;

use super::logging;
use super::node::stop_signal;

/// Options of `trireme coordinator`.
#[derive(Args)]
pub(crate) struct CoordinatorArgs {
    /// The folder that holds its state; made if it is not there.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The address to listen on.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7100")]
    listen: SocketAddr,
}

impl CoordinatorArgs {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        logging::start();
        panics::end_process_on_panic();
        tokio::runtime::Runtime::new()?.block_on(async {
            let stop = stop_signal(false)?;
            let server = EmbeddedServer::start(EmbeddedOptions::new(self.data, self.listen))
                .await
                .context("starting the coordinator")?;
            writeln!(std::io::stdout(), "ready coordinator={}", server.endpoint())?;
            stop.await;
            server.stop().await?;
            panics::disarm();
            Ok(())
        })
    }
}
