//! `trireme range split`.

use std::ffi::OsString;

use clap::Args;
use serde_json::{Map, Value, json};
use trireme_client::{ClientOptions, Route, Split};
use trireme_types::printable;

use super::cluster::ClusterArgs;
use super::escape::EscapeArgs;
use super::progress::say;
use super::range_list::set_range;
use super::range_protocol::DEADLINE;
use super::{json, output};

/// Arguments of `trireme range split`.
#[derive(Args)]
pub(crate) struct RangeSplitArgs {
    /// The first key of the upper one of the two ranges.
    #[arg(value_name = "KEY")]
    key: OsString,
    #[command(flatten)]
    escapes: EscapeArgs,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

impl RangeSplitArgs {
    /// Has a border at the key, and prints which cohorts serve the ranges at it then.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let key = self.escapes.read(self.key)?;
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let client = cluster.connect_with(options).await?;
        let Split { below, above, was_there } = client.split_range(key.clone(), say).await?;
        let routes = client.routes().ranges;
        let served = routes.iter().filter(|route| [below, above].contains(&route.cohort));
        if self.json {
            let mut object = Map::new();
            json::set_bytes(&mut object, "key", &key);
            object.insert("was_border".to_owned(), was_there.into());
            object.insert("ranges".to_owned(), served.map(half_json).collect());
            return output::json(&object);
        }
        let halves: Vec<_> = served.map(half).collect();
        let is = if was_there { "is a border already" } else { "is a border" };
        Ok(output::line(format!("{} {is}: {}", printable(&key), halves.join("; ")))?)
    }
}

fn half(route: &Route) -> String {
    let leader = route.leader.map_or_else(|| "no node yet".to_owned(), |node| node.to_string());
    format!("{} serves {}, led by {leader}", route.cohort, route.range)
}

fn half_json(route: &Route) -> Value {
    let mut object = Map::new();
    set_range(&mut object, &route.range);
    object.insert("cohort".to_owned(), route.cohort.0.into());
    object.insert("leader".to_owned(), json!(route.leader.map(|node| node.0)));
    object.into()
}
