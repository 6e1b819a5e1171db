//! `trireme get`.

use std::ffi::OsString;

use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value, json};
use trireme_client::{Consistency, Freshness, ReadOptions};
use trireme_types::printable;

use super::cluster::ClusterArgs;
use super::escape::EscapeArgs;
use super::json;
use super::output::{self, Output};

/// Arguments of `trireme get`.
#[derive(Args)]
pub(crate) struct GetArgs {
    /// Key.
    key: OsString,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    escapes: EscapeArgs,
    /// Print the value without a trailing newline.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Print a JSON object with the value and its version.
    #[arg(long)]
    json: bool,
}

/// Which state a command reads.
#[derive(Args, Clone, Copy)]
pub(crate) struct ReadArgs {
    /// strong (linearizable): the latest acknowledged write; timeline: the state of any replica,
    /// which may be older.
    #[arg(long, value_name = "strong|timeline", default_value_t)]
    pub(crate) consistency: Consistency,
}

impl GetArgs {
    /// Reads the key and prints its value.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let key = self.escapes.read(self.key)?;
        let client = cluster.connect().await?;
        let options = ReadOptions { consistency: self.read.consistency, deadline: None };
        let read = client.get_with(key.clone(), options).await?;
        let Some(found) = read.value else { bail!("'{}' has no value", printable(&key)) };
        if self.json {
            let mut object = Map::new();
            json::set_bytes(&mut object, "key", &key);
            json::set_bytes(&mut object, "value", &found.value);
            object.insert("version".to_owned(), found.version.0.into());
            if let Some(freshness) = read.freshness {
                object.insert("freshness".to_owned(), freshness_json(freshness));
            }
            return output::json(&object);
        }
        let mut output = Output::new();
        output.write(&found.value)?;
        if !self.raw {
            output.write(b"\n")?;
        }
        Ok(output.finish()?)
    }
}

fn freshness_json(freshness: Freshness) -> Value {
    let applied = freshness.applied;
    json!({
        "applied": { "epoch": applied.epoch, "seq": applied.seq },
        "age_ms": freshness.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
    })
}
