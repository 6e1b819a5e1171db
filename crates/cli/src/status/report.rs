//! The status of a cluster, for people and for programs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use trireme_client::{LaneStatus, LogStatus, Measures, NodeStatus, PeerStatus, Succession};
use trireme_types::{ClusterId, CohortId, Lsn, NodeId};

use super::NodeReport;
use super::cohorts::{Cohort, Replica, ReplicaState};
use crate::{range_list, table};

/// Returns two tables, of the nodes and of the cohorts, and why nodes could not be asked.
pub(super) fn text(nodes: &[NodeReport], cohorts: &[Cohort]) -> String {
    let mut text = format!("{}\n\n{}", node_table(nodes), cohort_table(cohorts));
    for note in nodes.iter().filter_map(|report| report.status.as_ref().ok()).flat_map(notes) {
        text.push_str(&format!("\n\n{note}"));
    }
    let unreachable =
        nodes.iter().filter_map(|report| Some((report, report.status.as_ref().err()?)));
    for (at, (report, reason)) in unreachable.enumerate() {
        let gap = if at == 0 { "\n\n" } else { "\n" };
        text.push_str(&format!("{gap}{} cannot be asked: {reason}", report.node.id));
    }
    text
}

/// Returns what is to be said of a node beside the tables.
fn notes(status: &NodeStatus) -> Vec<String> {
    let node = NodeId(status.node);
    let set_aside = status.set_aside.iter().map(|replica| {
        let cohort = CohortId(replica.cohort);
        let left = Duration::from_millis(replica.deleted_ms.saturating_sub(now_ms()));
        format!("{node} has set aside a replica of {cohort}; it is deleted in {}s", left.as_secs())
    });
    let waits = (!status.waits_for.is_empty()).then(|| format!("{node}: {}", status.waits_for));
    let changes = status.successions.iter().map(|it| succession(node, it));
    set_aside.chain(waits).chain(changes).collect()
}

/// Returns what is to be said of a change of a range that is under way at a node.
fn succession(node: NodeId, succession: &Succession) -> String {
    let cohort = CohortId(succession.cohort);
    let successors: Vec<_> =
        succession.successors.iter().map(|id| CohortId(*id).to_string()).collect();
    let successors = match &successors[..] {
        [] => "its successors are not known yet".to_owned(),
        known => format!("succeeded by {}", known.join(" and ")),
    };
    let stage = if succession.is_sealed { "has ended" } else { "is about to end" };
    format!("{node}: {cohort} {stage}; {successors}")
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn node_table(nodes: &[NodeReport]) -> String {
    let mut listed = table::table(&[
        "NODE",
        "ADDRESS",
        "ALIVE",
        "ENGINE",
        "DURABILITY",
        "COMMANDS",
        "ENTRIES",
        "SYNCS",
        "BLOCKS",
        "LOG SCANS",
        "SEGMENTS",
        "LOG BYTES",
    ]);
    for report in nodes {
        let status = report.status.as_ref().ok();
        let log = status.and_then(|status| status.log);
        let of_status = |part: fn(&NodeStatus) -> String| table::or_dash(status.map(part));
        let of_log = |part: fn(&LogStatus) -> u64| table::or_dash(log.as_ref().map(part));
        listed.add_row([
            report.node.id.to_string(),
            report.node.address.clone(),
            alive(report).to_owned(),
            of_status(|status| status.engine.clone()),
            of_status(|status| status.durability.clone()),
            of_log(|log| log.commands),
            of_log(|log| log.entries),
            of_log(|log| log.syncs),
            of_log(|log| log.blocks),
            of_log(|log| log.scans),
            of_log(|log| log.segments),
            of_log(|log| log.written_bytes),
        ]);
    }
    table::text(listed)
}

/// Returns how a node is: whether it answers, and whether the coordinator agrees.
fn alive(report: &NodeReport) -> &'static str {
    match (&report.status, report.node.alive) {
        (Ok(_), true) => "yes",
        (Ok(_), false) => "no session",
        (Err(_), _) => "unreachable",
    }
}

fn cohort_table(cohorts: &[Cohort]) -> String {
    let mut listed = table::table(&[
        "COHORT",
        "RANGE",
        "PROTOCOL",
        "LEADER",
        "EPOCH",
        "REPLICA",
        "ROLE",
        "LAST",
        "DURABLE",
        "COMMITTED",
        "APPLIED",
        "LAG",
    ]);
    for cohort in cohorts {
        for (at, replica) in cohort.replicas.iter().enumerate() {
            // The cohort itself stands in the line of its first replica.
            let head = match at {
                0 => [
                    cohort.id.to_string(),
                    cohort.range.to_string(),
                    cohort.protocol.clone(),
                    table::or_dash(cohort.leader),
                    table::or_dash(cohort.epoch),
                ],
                _ => Default::default(),
            };
            listed.add_row(head.into_iter().chain(replica_cells(replica)));
        }
    }
    table::text(listed)
}

fn replica_cells(replica: &Replica) -> [String; 7] {
    let state = replica.state.as_ref().ok();
    let lsn = |part: fn(&ReplicaState) -> Lsn| table::or_dash(state.map(part));
    [
        replica.node.to_string(),
        replica.state.as_ref().map_or_else(|none| none.name(), |state| &state.role).to_owned(),
        lsn(|state| state.last),
        lsn(|state| state.durable),
        lsn(|state| state.committed),
        lsn(|state| state.applied),
        table::or_dash(state.and_then(|state| state.lag)),
    ]
}

/// Returns the same as [`text`], for programs.
pub(super) fn json(cluster: ClusterId, nodes: &[NodeReport], cohorts: &[Cohort]) -> Value {
    json!({
        "cluster": cluster.to_string(),
        "nodes": nodes.iter().map(node_json).collect::<Vec<Value>>(),
        "cohorts": cohorts.iter().map(cohort_json).collect::<Vec<Value>>(),
    })
}

fn node_json(report: &NodeReport) -> Value {
    let status = report.status.as_ref().ok();
    let log = status.and_then(|status| status.log);
    json!({
        "node": report.node.id.0,
        "address": report.node.address,
        "reachable": status.is_some(),
        "session": report.node.alive,
        "error": report.status.as_ref().err(),
        "version": status.map(|status| &status.version),
        "engine": status.map(|status| &status.engine),
        "durability": status.map(|status| &status.durability),
        "log": log.as_ref().map(log_json),
        "peers": status.map(|status| status.peers.iter().map(peer_json).collect::<Vec<Value>>()),
        "set_aside": status.map(|status| {
            let set_aside = status.set_aside.iter();
            let json = set_aside.map(|replica| json!({
                "cohort": replica.cohort,
                "since_ms": replica.since_ms,
                "deleted_ms": replica.deleted_ms,
            }));
            json.collect::<Vec<Value>>()
        }),
        "successions": status.map(|status| {
            let json = status.successions.iter().map(|it| json!({
                "cohort": it.cohort,
                "is_sealed": it.is_sealed,
                "successors": it.successors,
            }));
            json.collect::<Vec<Value>>()
        }),
        "waits_for": status.map(|status| &status.waits_for).filter(|reason| !reason.is_empty()),
    })
}

fn peer_json(peer: &PeerStatus) -> Value {
    let lane = |sent: Option<LaneStatus>| {
        let LaneStatus { frames, messages, bytes } = sent.unwrap_or_default();
        json!({ "frames": frames, "messages": messages, "bytes": bytes })
    };
    json!({
        "node": peer.node,
        "connected": peer.connected,
        "round_trip_us": peer.round_trip_us,
        "queued_bytes": peer.queued_bytes,
        "data": lane(peer.data),
        "heartbeat": lane(peer.heartbeat),
    })
}

fn log_json(log: &LogStatus) -> Value {
    json!({
        "commands": log.commands,
        "entries": log.entries,
        "syncs": log.syncs,
        "blocks": log.blocks,
        "scans": log.scans,
        "scanned_bytes": log.scanned_bytes,
        "segments": log.segments,
        "written_bytes": log.written_bytes,
    })
}

fn cohort_json(cohort: &Cohort) -> Value {
    let mut object = Map::new();
    object.insert("cohort".to_owned(), cohort.id.0.into());
    range_list::set_range(&mut object, &cohort.range);
    object.insert("protocol".to_owned(), cohort.protocol.clone().into());
    object.insert("leader".to_owned(), json!(cohort.leader.map(|node| node.0)));
    object.insert("epoch".to_owned(), json!(cohort.epoch));
    let replicas: Vec<Value> = cohort.replicas.iter().map(replica_json).collect();
    object.insert("replicas".to_owned(), replicas.into());
    object.into()
}

fn replica_json(replica: &Replica) -> Value {
    let state = match &replica.state {
        Ok(state) => state,
        Err(none) => return json!({ "node": replica.node.0, "role": none.name() }),
    };
    json!({
        "node": replica.node.0,
        "role": state.role,
        "epoch": state.epoch,
        "last": state.last,
        "durable": state.durable,
        "committed": state.committed,
        "applied": state.applied,
        "lag": state.lag,
        "measures": measures_json(&state.measures),
    })
}

fn measures_json(measures: &Measures) -> Value {
    json!({
        "takeovers": measures.takeovers,
        "last_takeover_us": measures.last_takeover_us,
        "catch_ups": measures.catch_ups,
        "longest_write_stall_us": measures.longest_write_stall_us,
        "beacons": measures.beacons,
    })
}
