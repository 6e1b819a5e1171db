//! Faults as they are asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use trireme_proto::v1::{self, disk_fault, link_fault};
use trireme_storage::fs::DiskFault;
use trireme_types::NodeId;

use crate::transport::{ConnectionLane, Fate};

/// The longest delay that may be asked for: past it, a cut or a stall is what is meant.
const DELAY_MAX: Duration = Duration::from_secs(60);

/// The lanes of a link.
const LANES: [ConnectionLane; 3] =
    [ConnectionLane::Data, ConnectionLane::Heartbeat, ConnectionLane::Snapshot];

/// The fate of what goes to a node on a lane.
pub(super) type LinkFates = BTreeMap<(NodeId, ConnectionLane), Fate>;

/// All faults of a node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FaultSet {
    pub(super) links: LinkFates,
    pub(super) is_coordinator_cut: bool,
    pub(super) disk: DiskFault,
    pub(super) panics: bool,
}

impl FaultSet {
    /// Reads what `node` is asked to suffer, or says what is wrong with it.
    pub(crate) fn read(node: NodeId, request: v1::SetFaultsRequest) -> Result<Self, String> {
        let v1::SetFaultsRequest { links, coordinator_cut, disk, panic } = request;
        let mut fates = LinkFates::new();
        for link in links {
            let to = NodeId(link.to);
            if to == NodeId(0) || to == node {
                return Err(format!("{node} has no link to {to}"));
            }
            let fate = fate(link)?;
            fates.extend(lanes(link.lane)?.iter().map(|&lane| ((to, lane), fate)));
        }
        let disk = disk.map_or(Ok(DiskFault::None), disk_fault)?;
        Ok(Self { links: fates, is_coordinator_cut: coordinator_cut, disk, panics: panic })
    }
}

fn lanes(lane: Option<i32>) -> Result<Vec<ConnectionLane>, String> {
    let Some(lane) = lane else {
        return Ok(LANES.to_vec());
    };
    let known = ConnectionLane::try_from(lane).map_err(|_| format!("there is no lane {lane}"))?;
    Ok(vec![known])
}

fn fate(link: v1::LinkFault) -> Result<Fate, String> {
    match link.fate {
        Some(link_fault::Fate::Drop(v1::LostOnTheWay {})) => Ok(Fate::Drop),
        Some(link_fault::Fate::DelayMs(delay)) => Ok(Fate::Delay(bounded(delay)?)),
        None => Err("a link fault that is none".to_owned()),
    }
}

fn disk_fault(disk: v1::DiskFault) -> Result<DiskFault, String> {
    match disk.fault {
        Some(disk_fault::Fault::Stall(v1::StalledDisk {})) => Ok(DiskFault::Stall),
        Some(disk_fault::Fault::SlowMs(delay)) => Ok(DiskFault::Slow(bounded(delay)?)),
        Some(disk_fault::Fault::Fail(v1::FailedDisk {})) => Ok(DiskFault::Fail),
        None => Err("a disk fault that is none".to_owned()),
    }
}

fn bounded(milliseconds: u64) -> Result<Duration, String> {
    let delay = Duration::from_millis(milliseconds);
    if delay > DELAY_MAX {
        return Err(format!("a delay of {delay:?} is more than {DELAY_MAX:?}"));
    }
    Ok(delay)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(to: u64, lane: Option<ConnectionLane>, delay_ms: u64) -> v1::LinkFault {
        let fate = Some(link_fault::Fate::DelayMs(delay_ms));
        v1::LinkFault { to, lane: lane.map(i32::from), fate }
    }

    fn read(links: Vec<v1::LinkFault>) -> Result<FaultSet, String> {
        let request = v1::SetFaultsRequest { links, ..Default::default() };
        FaultSet::read(NodeId(1), request)
    }

    #[test]
    fn a_link_that_names_no_lane_is_all_its_lanes() {
        let set = read(vec![link(2, None, 7), link(2, Some(ConnectionLane::Data), 9)]).unwrap();
        let fates: Vec<_> = set.links.into_iter().map(|(link, fate)| (link.1, fate)).collect();
        let ms = |milliseconds| Fate::Delay(Duration::from_millis(milliseconds));
        let expected = LANES.into_iter().zip([ms(9), ms(7), ms(7)]);
        assert_eq!(fates, expected.collect::<Vec<_>>());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(read(vec![link(1, None, 7)]).is_err(), "a link to itself");
        assert!(read(vec![link(0, None, 7)]).is_err());
        assert!(read(vec![link(2, None, 60_001)]).is_err());
        assert!(read(vec![v1::LinkFault { lane: Some(9), ..link(2, None, 7) }]).is_err());
        assert!(read(vec![v1::LinkFault { fate: None, ..link(2, None, 7) }]).is_err());
        let disk = Some(v1::DiskFault { fault: None });
        let request = v1::SetFaultsRequest { disk, ..Default::default() };
        assert!(FaultSet::read(NodeId(1), request).is_err());
    }
}
