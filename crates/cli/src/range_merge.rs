//! `trireme range merge`.

use std::ffi::OsString;

use anyhow::Context;
use clap::Args;
use serde_json::{Map, json};
use trireme_client::ClientOptions;
use trireme_types::printable;

use super::cluster::ClusterArgs;
use super::escape::EscapeArgs;
use super::progress::say;
use super::range_list::set_range;
use super::range_protocol::DEADLINE;
use super::{UsageError, json, output};

/// Arguments of `trireme range merge`.
#[derive(Args)]
pub(crate) struct RangeMergeArgs {
    /// A key of the lower one of the two ranges.
    #[arg(value_name = "KEY")]
    key: OsString,
    /// The border that is to go, which must be the upper end of the range that holds the key or have gone
    /// already: with it the command can be repeated. Without it, it is that end.
    #[arg(long, value_name = "KEY")]
    border: Option<OsString>,
    #[command(flatten)]
    escapes: EscapeArgs,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

impl RangeMergeArgs {
    /// Has the ranges be one, and prints which cohort serves it then.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let key = self.escapes.read(self.key)?;
        let border = self.border.map(|border| self.escapes.read(border)).transpose()?;
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let client = cluster.connect_with(options).await?;
        let routes = client.routes().ranges;
        let lower = routes.iter().find(|route| route.range.contains(&key));
        let lower = lower.context("no range holds the key")?;
        let end = lower.range.end.clone();
        let is_gone = |border: &[u8]| border > &key[..] && lower.range.contains(border);
        let border = match (border, end) {
            (Some(border), Some(end)) if border == end => border,
            (Some(border), _) if is_gone(&border) => border,
            (Some(border), _) => {
                let (border, key) = (printable(&border), printable(&key));
                let reason =
                    format!("{border} is not the upper end of {}, which holds {key}", lower.range);
                return Err(UsageError(reason).into());
            }
            (None, Some(end)) => end,
            (None, None) => {
                let reason =
                    format!("no range is above {}, which holds {}", lower.range, printable(&key));
                return Err(UsageError(reason).into());
            }
        };
        let (cohort, were_one) = client.merge_ranges(border.clone(), say).await?;
        let routes = client.routes().ranges;
        let route = routes.iter().find(|route| route.cohort == cohort);
        let route = route.context("the range has changed again meanwhile")?;
        if self.json {
            let mut object = Map::new();
            json::set_bytes(&mut object, "border", &border);
            object.insert("were_one".to_owned(), were_one.into());
            set_range(&mut object, &route.range);
            object.insert("cohort".to_owned(), cohort.0.into());
            object.insert("leader".to_owned(), json!(route.leader.map(|node| node.0)));
            return output::json(&object);
        }
        let leader = route.leader.map_or_else(|| "no node yet".to_owned(), |node| node.to_string());
        let is = if were_one { "is no border" } else { "is no border any more" };
        let range = &route.range;
        Ok(output::line(format!(
            "{} {is}: {cohort} serves {range}, led by {leader}",
            printable(&border)
        ))?)
    }
}
