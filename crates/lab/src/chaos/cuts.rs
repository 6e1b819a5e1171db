//! Which ways between hosts a partition cuts.

use std::collections::BTreeSet;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use trireme_testbed::Host;
use trireme_types::NodeId;

use super::fault::Fault;

/// Ways, each in one direction.
pub(super) type Cuts = BTreeSet<(Host, Host)>;

/// Returns what a fault cuts, whose victim is `node` and the other nodes are `others`; `None` if it is no
/// partition.
pub(super) fn of(fault: Fault, node: NodeId, others: &[Host], rng: &mut StdRng) -> Option<Cuts> {
    let host = Host::Node(node);
    let to = |host: Host| others.iter().map(move |other| (host, *other));
    let from = |host: Host| others.iter().map(move |other| (*other, host));
    Some(match fault {
        Fault::CutOff => to(host).chain(from(host)).collect(),
        Fault::Isolate => to(host).chain(from(host)).chain(both(host, Host::Coordinator)).collect(),
        Fault::Deaf => from(host).collect(),
        Fault::Mute => to(host).collect(),
        Fault::CutPair => both(host, pick(others, rng)).into(),
        Fault::CutAtRandom => {
            let all: Vec<Host> = others.iter().copied().chain([host]).collect();
            let pairs = all.iter().flat_map(|from| all.iter().map(move |to| (*from, *to)));
            let pairs: Vec<_> = pairs.filter(|(from, to)| from != to).collect();
            pairs.into_iter().filter(|_| rng.random_ratio(2, 5)).collect()
        }
        Fault::QuorumLoss => all_but_to(pick(others, rng), host, others),
        Fault::Constrained => {
            let mut cuts = all_but_to(pick(others, rng), host, others);
            cuts.extend(to(host).chain(from(host)));
            cuts
        }
        Fault::Chained => {
            let mut others = others.to_vec();
            others.shuffle(rng);
            chained(&[&[host], &others[..]].concat())
        }
        Fault::CutClients => both(host, Host::Clients).into(),
        Fault::CutCoordinator => both(host, Host::Coordinator).into(),
        _ => return None,
    })
}

fn pick(hosts: &[Host], rng: &mut StdRng) -> Host {
    hosts[rng.random_range(0..hosts.len())]
}

fn both(a: Host, b: Host) -> [(Host, Host); 2] {
    [(a, b), (b, a)]
}

/// Cuts every node off from all others but one.
fn all_but_to(hub: Host, host: Host, others: &[Host]) -> Cuts {
    let all: Vec<Host> = others.iter().copied().chain([host]).collect();
    let pairs = all.iter().flat_map(|from| all.iter().map(move |to| (*from, *to)));
    pairs.filter(|(from, to)| from != to && *from != hub && *to != hub).collect()
}

/// Leaves each node only the one before it and the one after it.
fn chained(all: &[Host]) -> Cuts {
    let at = || all.iter().enumerate();
    let pairs = at().flat_map(|from| at().map(move |to| (from, to)));
    let apart = pairs.filter(|((from, _), (to, _))| from.abs_diff(*to) > 1);
    apart.map(|((_, from), (_, to))| (*from, *to)).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn nodes(numbers: &[u64]) -> Vec<Host> {
        numbers.iter().map(|number| Host::Node(NodeId(*number))).collect()
    }

    /// The nodes that each node reaches, itself aside, where the first of five is the victim.
    fn reached(fault: Fault) -> Vec<usize> {
        let all = nodes(&[1, 2, 3, 4, 5]);
        let cuts = of(fault, NodeId(1), &all[1..], &mut StdRng::seed_from_u64(1)).expect("it cuts");
        let reaches = |from: &Host| {
            all.iter().filter(|to| *to != from && !cuts.contains(&(*from, **to))).count()
        };
        all.iter().map(reaches).collect()
    }

    /// The partial partitions of the paper on OmniPaxos (§3): one node alone reaches a majority, and
    /// the leader is not it; as before, and nothing reaches the leader; each reaches its neighbours.
    #[test]
    fn partial_partitions_leave_a_majority_to_one_node_or_to_neighbours() {
        let sorted = |fault| {
            let mut reached = reached(fault);
            let victim = reached[0];
            reached.sort_unstable();
            (victim, reached)
        };
        assert_eq!(sorted(Fault::QuorumLoss), (1, vec![1, 1, 1, 1, 4]));
        assert_eq!(sorted(Fault::Constrained), (0, vec![0, 1, 1, 1, 3]));
        assert_eq!(sorted(Fault::Chained), (1, vec![1, 1, 2, 2, 2]));
    }
}
