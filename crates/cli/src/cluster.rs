//! Which cluster a command speaks to, and how patiently.

use std::time::Duration;

use clap::Args;
use trireme_client::{Client, ClientOptions};

use super::{UsageError, address, duration};

/// The environment variable that names nodes of the cluster where the command line does not.
const ENDPOINTS_VARIABLE: &str = "TRIREME_ENDPOINTS";

/// The first node of a cluster that `up` starts by default.
const ENDPOINT_DEFAULT: &str = "127.0.0.1:7101";

/// What every command that speaks to a running cluster takes. `up` and `node` have no use for it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Addresses of any nodes of the cluster; one that answers is enough. [default: the environment
    /// variable TRIREME_ENDPOINTS, else 127.0.0.1:7101]
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = endpoint
    )]
    endpoints: Option<Vec<String>>,
    /// Time limit of one operation including its retries, such as 500ms, 10s or 2m. [default: 10s;
    /// 60s for import and export, 3s for status]
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
        Ok(Client::connect_with(self.endpoints()?, options).await?)
    }

    /// Returns the nodes that the command line names, else those of the environment, else the first
    /// one that `up` starts. Only commands that speak to a cluster ask, so that what stands in the
    /// environment cannot stop any other.
    pub(crate) fn endpoints(&self) -> Result<Vec<String>, UsageError> {
        if let Some(endpoints) = &self.endpoints {
            return Ok(endpoints.clone());
        }
        let named = std::env::var(ENDPOINTS_VARIABLE).unwrap_or_default();
        let endpoints = endpoints_of(&named)?;
        Ok(if endpoints.is_empty() { vec![ENDPOINT_DEFAULT.to_owned()] } else { endpoints })
    }
}

/// Reads the endpoints of the environment. Between its commas may stand nothing, as in a list that
/// was put together from variables of which some are empty.
fn endpoints_of(named: &str) -> Result<Vec<String>, UsageError> {
    let elements = named.split(',').filter(|element| !element.trim().is_empty());
    elements
        .map(|element| {
            endpoint(element).map_err(|reason| {
                UsageError(format!("'{element}' in {ENDPOINTS_VARIABLE}: {reason}"))
            })
        })
        .collect()
}

/// Reads an address, with or without `http://` before it.
fn endpoint(text: &str) -> Result<String, String> {
    let address = text.trim();
    address::host_port(address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/'))
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
    #[test]
    fn empty_elements_of_the_environment_are_passed_over() {
        for (named, expected) in [
            ("", &[][..]),
            (" , ,", &[]),
            ("n1:7101,", &["n1:7101"]),
            (",n1:7101, http://n2:7102", &["n1:7101", "n2:7102"]),
        ] {
            assert_eq!(endpoints_of(named).unwrap(), expected, "{named:?}");
        }
        let wrong = endpoints_of("n1:7101,a b").unwrap_err().to_string();
        assert_eq!(wrong, "'a b' in TRIREME_ENDPOINTS: expected HOST:PORT");
    }
}
