//! `trireme range list`.

use clap::Args;
use serde_json::{Map, Value, json};
use trireme_client::{KeyRange, Route};

use super::cluster::ClusterArgs;
use super::{json, output, table};

/// Arguments of `trireme range list`.
#[derive(Args)]
pub(crate) struct RangeListArgs {
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

impl RangeListArgs {
    /// Prints the ranges in key order.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let ranges = cluster.connect().await?.newest_routes().await?.ranges;
        if self.json {
            return output::json(&ranges.iter().map(route_json).collect::<Vec<Value>>());
        }
        let heads = ["RANGE", "COHORT", "EPOCH", "PROTOCOL", "REPLICAS", "LEADER"];
        let mut listed = table::table(&heads);
        for route in ranges {
            let replicas: Vec<String> = route.replicas.iter().map(ToString::to_string).collect();
            listed.add_row([
                route.range.to_string(),
                route.cohort.to_string(),
                route.epoch.to_string(),
                route.protocol,
                replicas.join(","),
                table::or_dash(route.leader),
            ]);
        }
        Ok(output::line(table::text(listed))?)
    }
}

fn route_json(route: &Route) -> Value {
    let mut object = Map::new();
    set_range(&mut object, &route.range);
    object.insert("cohort".to_owned(), route.cohort.0.into());
    object.insert("range_epoch".to_owned(), route.epoch.into());
    object.insert("protocol".to_owned(), route.protocol.clone().into());
    let replicas: Vec<u64> = route.replicas.iter().map(|node| node.0).collect();
    object.insert("replicas".to_owned(), replicas.into());
    object.insert("leader".to_owned(), json!(route.leader.map(|node| node.0)));
    object.into()
}

/// Adds a range's borders to an object; the end of the last range is null.
pub(crate) fn set_range(object: &mut Map<String, Value>, range: &KeyRange) {
    json::set_bytes(object, "start", &range.start);
    match &range.end {
        Some(end) => json::set_bytes(object, "end", end),
        None => {
            object.insert("end".to_owned(), Value::Null);
        }
    }
}
