//! What a benchmark prints.

use std::collections::BTreeSet;

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use trireme_client::Consistency;

use super::callers::Measured;
use super::surroundings::Surroundings;
use super::{BenchArgs, Workload};
use crate::{progress, table};

/// Figures and what they depend on.
pub(super) struct Report {
    surroundings: Surroundings,
    consistency: Consistency,
    settings: Value,
    settings_text: String,
    runs: Vec<Run>,
}

struct Run {
    workload: Workload,
    callers: u64,
    measured: Measured,
}

impl Report {
    /// Returns a report without figures.
    pub(super) fn new(args: &BenchArgs, surroundings: Surroundings) -> Self {
        let BenchArgs { keys, key_bytes, value_bytes, duration, warm_up, .. } = *args;
        let consistency = args.read.consistency;
        let settings = json!({
            "keys": keys,
            "key_bytes": key_bytes,
            "value_bytes": value_bytes,
            "duration_seconds": duration.as_secs_f64(),
            "warm_up_seconds": warm_up.as_secs_f64(),
            "consistency": consistency,
            "streams_per_node": args.streams,
            "seed": args.seed,
            "loop": if args.rate.is_some() { "open" } else { "closed" },
            "rate": args.rate,
        });
        let callers = match args.rate {
            None => {
                "closed loop: each has one operation outstanding, all share one client".to_owned()
            }
            Some(rate) => format!(
                "open loop: {rate} operations are due in a second, latencies count from then; each \
                 caller has one outstanding, all share one client"
            ),
        };
        let settings_text = format!(
            "load:       {keys} keys of {key_bytes} bytes, values of {value_bytes} bytes, \
             {consistency} reads; {duration:?} each after {warm_up:?} of warm-up\n\
             callers:    {callers}",
        );
        Self { surroundings, consistency, settings, settings_text, runs: Vec::new() }
    }

    /// Adds the figures of a run.
    pub(super) fn add(&mut self, workload: Workload, callers: u64, measured: Measured) {
        self.runs.push(Run { workload, callers, measured });
    }

    /// Returns what the figures depend on, for people.
    pub(super) fn head(&self) -> String {
        let around = &self.surroundings;
        let replicas: BTreeSet<String> = around.replicas.iter().map(usize::to_string).collect();
        let mut head = format!(
            "durability: {}\nengine:     {}\nprotocol:   {}\n\
             cluster:    {} nodes, {} ranges with {} replicas each\n{}",
            joined(&around.durabilities),
            joined(&around.engines),
            joined(&around.protocols),
            around.nodes,
            around.ranges,
            joined(&replicas),
            self.settings_text,
        );
        if around.shares_machine {
            head.push_str("\nmachine:    load and servers share this machine");
        }
        if around.unreachable > 0 {
            head.push_str(&format!("\nunreachable nodes: {}", around.unreachable));
        }
        head.push('\n');
        head
    }

    /// Returns the figures, for people.
    pub(super) fn table(&self) -> String {
        let heads = ["WORKLOAD", "CALLERS", "OPS/S", "P50", "P99", "P99.9", "MAX", "ERRORS"];
        let mut listed = table::table(&heads);
        for Run { workload, callers, measured } in &self.runs {
            let latencies = &measured.latencies;
            listed.add_row([
                workload.name().to_owned(),
                callers.to_string(),
                measured.rate().to_string(),
                milliseconds(latencies.value_at_quantile(0.5)),
                milliseconds(latencies.value_at_quantile(0.99)),
                milliseconds(latencies.value_at_quantile(0.999)),
                milliseconds(latencies.max()),
                measured.errors.to_string(),
            ]);
        }
        table::text(listed)
    }

    /// Returns everything, for programs.
    pub(super) fn json(&self) -> Value {
        let around = &self.surroundings;
        json!({
            "cluster": {
                "nodes": around.nodes,
                "unreachable_nodes": around.unreachable,
                "ranges": around.ranges,
                "replicas": around.replicas,
                "protocols": around.protocols,
                "engines": around.engines,
                "durabilities": around.durabilities,
                "load_shares_machine": around.shares_machine,
            },
            "load": self.settings,
            "runs": self.runs.iter().map(Run::json).collect::<Vec<Value>>(),
        })
    }

    /// Describes what went wrong, if anything did.
    pub(super) fn failures(&self) -> Option<String> {
        let errors: u64 = self.runs.iter().map(|run| run.measured.errors).sum();
        let missing: u64 = self.runs.iter().map(|run| run.measured.missing).sum();
        let first = self.runs.iter().find_map(|run| run.measured.first_error.as_ref());
        match first {
            Some(first) => Some(format!("{errors} operations failed, the first with: {first}")),
            // A timeline read may be answered by a replica that has not applied the put yet.
            None if missing > 0 && self.consistency == Consistency::Strong => {
                Some(format!("{missing} gets found no value of a key that was put before"))
            }
            None => None,
        }
    }
}

impl Run {
    fn json(&self) -> Value {
        let Measured { latencies, errors, missing, first_error, .. } = &self.measured;
        json!({
            "workload": self.workload.name(),
            "callers": self.callers,
            "operations": self.measured.operations,
            "ops_per_second": self.measured.rate(),
            "latency_microseconds": latency_json(latencies),
            "errors": errors,
            "missing": missing,
            "not_begun": self.measured.not_begun,
            "first_error": first_error,
        })
    }
}

impl Measured {
    fn rate(&self) -> u64 {
        progress::per_second(self.operations, self.time)
    }
}

fn latency_json(latencies: &Histogram<u64>) -> Value {
    json!({
        "mean": latencies.mean(),
        "p50": latencies.value_at_quantile(0.5),
        "p99": latencies.value_at_quantile(0.99),
        "p99_9": latencies.value_at_quantile(0.999),
        "max": latencies.max(),
    })
}

fn joined(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Returns microseconds as milliseconds, with three digits after the point.
fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03} ms", microseconds / 1000, microseconds % 1000)
}
