//! `trireme put`.

use std::ffi::OsString;

use anyhow::bail;
use clap::Args;
use serde_json::json;
use trireme_client::{Conditional, Version};
use trireme_types::printable;

use super::cluster::ClusterArgs;
use super::escape::EscapeArgs;
use super::output;

/// Arguments of `trireme put`.
#[derive(Args)]
pub(crate) struct PutArgs {
    /// Key.
    key: OsString,
    /// Value.
    value: OsString,
    /// Put only if the key's current version is this one.
    #[arg(long, value_name = "VERSION", conflicts_with = "if_absent")]
    if_version: Option<u64>,
    /// Put only if the key does not exist.
    #[arg(long)]
    if_absent: bool,
    #[command(flatten)]
    escapes: EscapeArgs,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

impl PutArgs {
    /// Puts the value and prints its version.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let key = self.escapes.read(self.key)?;
        let value = self.escapes.read(self.value)?;
        let client = cluster.connect().await?;
        let done = match self.if_version {
            Some(version) => client.put_if_version(key.clone(), value, Version(version)).await?,
            None if self.if_absent => client.put_if_absent(key.clone(), value).await?,
            None => Conditional::Done(client.put(key.clone(), value).await?),
        };
        match done {
            Conditional::Done(version) if self.json => {
                output::json(&json!({ "done": true, "version": version.0 }))
            }
            Conditional::Done(version) => Ok(output::line(version)?),
            Conditional::Failed { current } => condition_failed(&key, current, self.json),
        }
    }
}

/// Says that a write was not done, since its condition did not hold.
pub(crate) fn condition_failed(
    key: &[u8],
    current: Option<Version>,
    json: bool,
) -> anyhow::Result<()> {
    if json {
        let current = current.map(|version| version.0);
        output::json(&json!({ "done": false, "current_version": current }))?;
    }
    match current {
        Some(version) => {
            bail!("nothing was changed: the current version of '{}' is {version}", printable(key))
        }
        None => bail!("nothing was changed: '{}' has no value", printable(key)),
    }
}
