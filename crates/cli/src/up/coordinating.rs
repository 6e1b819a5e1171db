//! The embedded coordinator of a local cluster: started with it, and again after its disk failed.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context;
use trireme_embedded::{EmbeddedError, EmbeddedOptions, EmbeddedServer};

/// How long to wait before a coordinator whose disk failed is started again: room on a disk comes
/// seldom by itself, and each failed start is logged.
const RESTART_PAUSE: Duration = Duration::from_secs(2);

/// The embedded coordinator, which runs in this process.
pub(super) struct LocalCoordinator {
    options: EmbeddedOptions,
    /// `None` after it failed, until it is started again.
    server: Option<EmbeddedServer>,
}

impl LocalCoordinator {
    pub(super) async fn start(options: EmbeddedOptions) -> anyhow::Result<Self> {
        let server = EmbeddedServer::start(options.clone()).await;
        let server = server.context("starting the coordinator")?;
        Ok(Self { options, server: Some(server) })
    }

    /// Returns where it listens.
    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.options.listen)
    }

    /// Starts the coordinator again whenever its disk has failed, until that succeeds. The nodes
    /// serve meanwhile as they do while any coordinator is away. Can be cancelled.
    pub(super) async fn keep_running(&mut self) -> Infallible {
        let mut last_refusal = None;
        loop {
            if let Some(server) = &self.server {
                let reason = server.failed().await;
                tracing::error!(
                    reason,
                    "the coordinator has failed; the nodes go on without it, and cannot replace \
                     leaders that die, until it can be started again"
                );
                if let Some(server) = self.server.take() {
                    // Why it ended has just been reported.
                    server.stop().await.ok();
                }
                last_refusal = Some(reason);
            }
            tokio::time::sleep(RESTART_PAUSE).await;
            match EmbeddedServer::start(self.options.clone()).await {
                Ok(server) => {
                    tracing::info!("the coordinator serves again");
                    self.server = Some(server);
                }
                Err(error) => {
                    let refusal = error.to_string();
                    if last_refusal.as_ref() != Some(&refusal) {
                        tracing::error!(
                            reason = refusal,
                            "the coordinator cannot be started again"
                        );
                        last_refusal = Some(refusal);
                    }
                }
            }
        }
    }

    pub(super) async fn stop(self) -> Result<(), EmbeddedError> {
        match self.server {
            Some(server) => server.stop().await,
            None => Ok(()),
        }
    }
}
