//! Which cluster a command speaks to, and how patiently.

use std::time::Duration;

use clap::Args;
use trireme_client::{Client, ClientOptions};

use super::duration;

/// What every command that speaks to a running cluster takes. `up` and `node` have no use for it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Nodes of the cluster, any of them, as HOST:PORT. One that answers is enough.
    #[arg(
        long,
        global = true,
        env = "TRIREME_ENDPOINTS",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = endpoint,
        default_value = "127.0.0.1:7101"
    )]
    pub(crate) endpoints: Vec<String>,
    /// How long one operation may take, all its retries included, such as 500ms, 10s or 2m.
    /// [default: 10s; 60s for import and export, 3s for status]
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::positive)]
    deadline: Option<Duration>,
}

impl ClusterArgs {
    /// Connects to the cluster. Operations take at most as long as the command line says.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        self.connect_with(ClientOptions::default()).await
    }

    /// Connects to the cluster with options, of which the command line may change the deadline.
    pub(crate) async fn connect_with(&self, options: ClientOptions) -> anyhow::Result<Client> {
        let deadline = self.deadline.unwrap_or(options.deadline);
        let options = ClientOptions { deadline, ..options };
        Ok(Client::connect_with(self.endpoints.clone(), options).await?)
    }
}

/// Reads an address, with or without `http://` before it.
fn endpoint(text: &str) -> Result<String, String> {
    let address = text.trim();
    let address = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0) => {
            Ok(address.to_owned())
        }
        _ => Err("expected HOST:PORT".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_a_host_and_a_port() {
        for (text, address) in [
            ("127.0.0.1:7101", "127.0.0.1:7101"),
            ("http://n1:7101/", "n1:7101"),
            ("[::1]:7101", "[::1]:7101"),
        ] {
            assert_eq!(endpoint(text).as_deref(), Ok(address));
        }
        for text in ["", "n1", ":7101", "n1:", "n1:x", "n1:0", "n1:70000"] {
            assert!(endpoint(text).is_err(), "{text:?} was taken");
        }
    }
}
