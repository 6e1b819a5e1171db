//! Which ranges a new cluster gets, by which protocols, and on which nodes.

use bytes::Bytes;
use trireme_coordinator::recipes::catalog::ClusterSpec;
use trireme_types::limits::{RANGES_MAX, check_range_count};
use trireme_types::{
    ClusterId, CohortConfig, KeyRange, NodeId, Protocol, RangeMap, RangeMapError,
    chained_placement, even_splits,
};

/// A range that is to have a protocol of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RangeProtocol {
    range: KeyRange,
    protocol: Protocol,
}

/// What a new cluster is to look like.
pub(super) struct Plan {
    pub(super) nodes: usize,
    pub(super) replicas: usize,
    pub(super) replication: Protocol,
    /// `None` where only `protocols` makes borders.
    pub(super) splits: Option<Splits>,
    pub(super) protocols: Vec<RangeProtocol>,
}

/// Where the borders of the ranges are.
pub(super) enum Splits {
    /// So many ranges, evenly by first letters.
    Even(usize),
    /// Borders at these keys.
    At(Vec<Bytes>),
}

impl Plan {
    /// Returns the cluster, or says what is wrong with the plan.
    pub(super) fn spec(&self, cluster: ClusterId) -> Result<ClusterSpec, String> {
        if self.nodes == 0 {
            return Err("a cluster needs at least one node".to_owned());
        }
        let map = self.map()?;
        let nodes: Vec<NodeId> = (1..).map(NodeId).take(self.nodes).collect();
        let configs = map.ranges().iter().enumerate().map(|(index, entry)| {
            let replicas = chained_placement(&nodes, index, self.replicas);
            Ok(CohortConfig {
                cohort: entry.cohort,
                version: 1,
                protocol: self.protocol_at(&entry.range),
                replicas: replicas.map_err(|error| error.to_string())?,
                replicas_wanted: self.replicas,
                incarnations: [].into(),
                origin: None,
            })
        });
        let configs = configs.collect::<Result<_, String>>()?;
        Ok(ClusterSpec { cluster, map, configs })
    }

    /// Returns what speaks against the plan, if it can be carried out all the same: an even number of
    /// replicas, of which a majority must live, bears no more losses than one less does.
    pub(super) fn advice(&self) -> Option<String> {
        let mut protocols = self.protocols.iter().map(|range| range.protocol);
        let is_by_majority = |protocol| protocol != Protocol::Pacifica;
        let by_majority = is_by_majority(self.replication) || protocols.any(is_by_majority);
        let is_even = self.replicas > 0 && self.replicas.is_multiple_of(2);
        (by_majority && is_even).then(|| {
            let (replicas, less) = (self.replicas, self.replicas - 1);
            format!("{replicas} replicas bear the loss of {}, the same as {less}", less / 2)
        })
    }

    fn map(&self) -> Result<RangeMap, String> {
        let splits = match &self.splits {
            Some(Splits::Even(0)) => return Err("a cluster needs at least one range".to_owned()),
            Some(Splits::Even(count)) if *count > RANGES_MAX => {
                return Err(RangeMapError::TooMany(*count).to_string());
            }
            Some(Splits::Even(count)) => even_splits(*count),
            Some(Splits::At(keys)) => keys.clone(),
            None => Vec::new(),
        };
        // The keys that were given are checked as they were given; then the borders of the ranges
        // with a protocol of their own come among them.
        RangeMap::from_splits(&splits).map_err(|error| error.to_string())?;
        let mut borders = splits;
        check_protocols(&self.protocols)?;
        for RangeProtocol { range, .. } in &self.protocols {
            borders.extend((!range.start.is_empty()).then(|| range.start.clone()));
            borders.extend(range.end.clone());
        }
        borders.sort();
        borders.dedup();
        RangeMap::from_splits(&borders).map_err(|error| error.to_string())
    }

    /// Checks that a new cluster can start with so many ranges and lose a node. Ranges of several
    /// protocols have their parts of the limits together.
    pub(super) fn check_count(&self) -> Result<(), String> {
        let map = self.map()?;
        check_range_count(map.ranges().iter().map(|entry| self.protocol_at(&entry.range)))
    }

    fn protocol_at(&self, range: &KeyRange) -> Protocol {
        let own = self.protocols.iter().find(|own| own.range.contains(&range.start));
        own.map_or(self.replication, |own| own.protocol)
    }
}

/// Reads `START..END=PROTOCOL`; an empty START or END means the lowest key or no end.
pub(super) fn range_protocol(text: &str) -> Result<RangeProtocol, String> {
    let expected = "expected START..END=PROTOCOL";
    let (range, protocol) = text.rsplit_once('=').ok_or(expected)?;
    let (start, end) = range.split_once("..").ok_or(expected)?;
    let end = (!end.is_empty()).then(|| end.to_owned());
    let range = KeyRange::new(start.to_owned(), end);
    if range.is_empty() {
        return Err(format!("no key lies in {range}"));
    }
    let protocol = protocol.parse::<Protocol>().map_err(|error| error.to_string())?;
    Ok(RangeProtocol { range, protocol })
}

fn check_protocols(protocols: &[RangeProtocol]) -> Result<(), String> {
    for (index, one) in protocols.iter().enumerate() {
        let overlap =
            protocols[..index].iter().find(|o| !one.range.intersection(&o.range).is_empty());
        if let Some(other) = overlap {
            return Err(format!("the ranges {} and {} overlap", other.range, one.range));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use trireme_types::limits::{RANGES_MAX_PACIFICA, RANGES_MAX_RAFT, RANGES_MAX_SPINNAKER};

    use super::*;

    fn plan(splits: Option<Splits>, protocols: &[&str]) -> Plan {
        let protocols = protocols.iter().map(|text| range_protocol(text).unwrap()).collect();
        Plan { nodes: 3, replicas: 3, replication: Protocol::Raft, splits, protocols }
    }

    fn keys(keys: &[&'static str]) -> Option<Splits> {
        Some(Splits::At(keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect()))
    }

    fn shape(plan: &Plan) -> Vec<(String, Protocol)> {
        let spec = plan.spec(ClusterId(1)).unwrap();
        let ranges = spec.map.ranges().iter().map(|entry| entry.range.to_string());
        ranges.zip(spec.configs.iter().map(|config| config.protocol)).collect()
    }

    #[test]
    fn a_range_with_a_protocol_of_its_own_gets_its_own_borders() {
        let shape = shape(&plan(None, &["a..m=spinnaker"]));
        let expected = [("[..a)", Protocol::Raft), ("[a..m)", Protocol::Spinnaker)];
        assert_eq!(shape[..2], expected.map(|(range, by)| (range.to_owned(), by)));
        assert_eq!(shape[2], ("[m..)".to_owned(), Protocol::Raft));
    }

    #[test]
    fn an_even_number_of_replicas_is_advised_against_where_majorities_count() {
        let advice = |replicas, replication, protocols: &[&str]| {
            Plan { replicas, replication, ..plan(None, protocols) }.advice()
        };
        let four = advice(4, Protocol::Raft, &[]).unwrap();
        assert_eq!(four, "4 replicas bear the loss of 1, the same as 3");
        assert!(advice(2, Protocol::Spinnaker, &[]).is_some());
        assert!(advice(2, Protocol::Pacifica, &["a..m=raft"]).is_some());
        assert_eq!(advice(2, Protocol::Pacifica, &[]), None);
        assert_eq!(advice(3, Protocol::Raft, &[]), None);
    }

    #[test]
    fn ranges_that_overlap_and_keys_that_do_not_rise_are_refused() {
        let refusal = |plan: Plan| plan.spec(ClusterId(1)).map(drop).unwrap_err();
        let overlap = refusal(plan(None, &["a..m=raft", "k..z=raft"]));
        assert_eq!(overlap, "the ranges [a..m) and [k..z) overlap");
        assert!(refusal(plan(keys(&["t", "g"]), &[])).contains("must rise"));
        assert!(refusal(plan(keys(&["g", "g"]), &[])).contains("must rise"));
        assert!(refusal(plan(Some(Splits::Even(0)), &[])).contains("at least one range"));
        let many = Plan { replicas: 4, ..plan(None, &[]) };
        assert!(refusal(many).contains("needs as many nodes"));
    }

    /// More were accepted, as README allowed them, and such a cluster never started.
    #[test]
    fn more_ranges_than_a_protocol_can_have_are_refused_with_the_reason() {
        let made = |replication, count, protocols: &[&str]| {
            let splits = Some(Splits::Even(count));
            let plan = Plan { replication, ..plan(splits, protocols) };
            plan.check_count()
        };
        for (protocol, most) in [
            (Protocol::Spinnaker, RANGES_MAX_SPINNAKER),
            (Protocol::Raft, RANGES_MAX_RAFT),
            (Protocol::Pacifica, RANGES_MAX_PACIFICA),
        ] {
            assert_eq!(made(protocol, most, &[]), Ok(()), "{protocol}");
            let refused = made(protocol, most + 1, &[]).unwrap_err();
            let reason = format!("{} by {protocol}, of which it can have {most}", most + 1);
            assert!(refused.contains(&reason), "{refused}");
        }
        assert!(made(Protocol::Raft, usize::MAX, &[]).unwrap_err().contains("may hold"));
        // Half of what each can have is as much as there is.
        let half = ["n..=pacifica"];
        assert_eq!(made(Protocol::Raft, RANGES_MAX_PACIFICA, &half), Ok(()));
        let refused = made(Protocol::Raft, 4 * RANGES_MAX_PACIFICA, &half).unwrap_err();
        assert!(refused.contains("by raft") && refused.contains("by pacifica"), "{refused}");
    }

    #[test]
    fn ranges_are_read_as_they_are_written() {
        let open = range_protocol("..m=raft").unwrap();
        assert_eq!(open.range, KeyRange::new("", Some("m")));
        for bad in ["a..m", "a=raft", "m..a=raft", "a..m=paxos"] {
            assert!(range_protocol(bad).is_err(), "{bad} was read");
        }
    }
}
