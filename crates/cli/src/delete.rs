//! `trireme delete`.

use std::ffi::OsString;

use anyhow::bail;
use clap::Args;
use serde_json::json;
use trireme_client::{Conditional, Version};
use trireme_types::printable;

use super::cluster::ClusterArgs;
use super::escape::EscapeArgs;
use super::{output, put};

/// Arguments of `trireme delete`.
#[derive(Args)]
pub(crate) struct DeleteArgs {
    /// Key.
    key: OsString,
    /// Delete only if the key's current version is this one.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    #[command(flatten)]
    escapes: EscapeArgs,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

impl DeleteArgs {
    /// Deletes the key. That it has no value is a failure, as it is of every command on one key.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let key = self.escapes.read(self.key)?;
        let client = cluster.connect().await?;
        let existed = match self.if_version {
            None => client.delete(key.clone()).await?,
            Some(version) => match client.delete_if_version(key.clone(), Version(version)).await? {
                Conditional::Done(()) => true,
                Conditional::Failed { current } => {
                    return put::condition_failed(&key, current, self.json);
                }
            },
        };
        if !existed {
            bail!("'{}' has no value", printable(&key));
        }
        if self.json {
            output::json(&json!({ "done": true }))
        } else {
            Ok(output::line("deleted")?)
        }
    }
}
