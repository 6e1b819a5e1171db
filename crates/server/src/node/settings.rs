//! What a node is: from its data folder, from what was said, and from the coordinator.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use trireme_coordinator::recipes::catalog::{Catalog, CatalogState};
use trireme_coordinator::{Coordinator, CoordinatorOptions};
use trireme_types::{Durability, Engine, NodeId, Timing};

use super::{NodeError, NodeOptions};
use crate::data_folder::{DataFolder, DataFolderError, MIN_REPLICAS_FOR_WRITE, NodeFile};
use crate::faults::Faults;

/// How long a starting node waits for the coordinator to know a cluster.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(30);

/// What a node is, from its folder and from what was said.
pub(super) struct Settings {
    existing: Option<NodeFile>,
    node: NodeId,
    pub(super) listen: String,
    advertise: Option<String>,
    coordinator: Vec<String>,
    engine: Engine,
    durability: Durability,
    timing: Timing,
    min_replicas_for_write: usize,
}

impl Settings {
    /// Checks the periods and addresses that were asked for, with those that the folder remembers,
    /// before anything is made or held.
    pub(super) fn check(options: &NodeOptions) -> Result<(), NodeError> {
        let existing = DataFolder::describe(&options.data)?;
        let timing = existing.as_ref().map(|file| file.timing).unwrap_or_default();
        options.timing.of(timing)?;
        let listen = options.listen.as_ref().or(existing.as_ref().map(|file| &file.listen));
        let advertise =
            options.advertise.as_ref().or(existing.as_ref().and_then(|f| f.advertise.as_ref()));
        match listen {
            Some(listen) if advertise.is_none() && is_every_address(listen) => {
                Err(NodeError::Misused(format!(
                    "{listen} stands for every address of this machine, at none of which others \
                     would find the node: it needs one that they reach it at (--advertise)"
                )))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn settle(folder: &DataFolder, options: &NodeOptions) -> Result<Self, NodeError> {
        let existing = folder.read()?;
        let needs = |what| DataFolderError::Empty(folder.path().to_owned(), what);
        let Some(file) = &existing else {
            return Ok(Self {
                node: options.node.ok_or_else(|| needs("a node number (--id)"))?,
                listen: options.listen.clone().ok_or_else(|| needs("an address (--listen)"))?,
                advertise: options.advertise.clone(),
                coordinator: options
                    .coordinator
                    .clone()
                    .ok_or_else(|| needs("a coordinator (--coordinator)"))?,
                engine: options.engine.unwrap_or_default(),
                durability: options.durability.unwrap_or_default(),
                timing: options.timing.of(Timing::default())?,
                min_replicas_for_write: options
                    .min_replicas_for_write
                    .unwrap_or(MIN_REPLICAS_FOR_WRITE),
                existing,
            });
        };
        check_same(folder, "node", file.node, options.node)?;
        check_same(folder, "engine", file.engine, options.engine)?;
        Ok(Self {
            node: file.node,
            listen: options.listen.clone().unwrap_or_else(|| file.listen.clone()),
            advertise: options.advertise.clone().or_else(|| file.advertise.clone()),
            coordinator: options.coordinator.clone().unwrap_or_else(|| file.coordinator.clone()),
            engine: file.engine,
            durability: options.durability.unwrap_or(file.durability),
            timing: options.timing.of(file.timing)?,
            min_replicas_for_write: options
                .min_replicas_for_write
                .unwrap_or(file.min_replicas_for_write),
            existing,
        })
    }

    /// Connects to the coordinator and reads what it knows of the cluster.
    pub(super) async fn connect(
        &self,
        folder: &DataFolder,
        faults: Option<&Faults>,
    ) -> Result<(Coordinator, CatalogState), NodeError> {
        let endpoints = self.coordinator.join(",");
        let refused = |source| NodeError::Coordinator { endpoints: endpoints.clone(), source };
        let reached = match faults {
            Some(faults) => faults.forward(&self.coordinator).await?,
            None => self.coordinator.clone(),
        };
        let options = CoordinatorOptions::new(reached);
        let coordinator = Coordinator::connect(options).await.map_err(refused)?;
        let mut watch = Catalog::new(&coordinator).watch().map_err(refused)?;
        let catalog = match tokio::time::timeout(CATALOG_TIMEOUT, watch.next()).await {
            Ok(Some(catalog)) => catalog.map_err(refused)?,
            Ok(None) | Err(_) => {
                return Err(match &self.existing {
                    Some(file) if file.has_log => {
                        NodeError::LostCluster { endpoints, path: folder.path().to_owned() }
                    }
                    _ => NodeError::NoCluster(endpoints),
                });
            }
        };
        if let Some(file) = &self.existing {
            file.check_cluster(folder.path(), catalog.cluster)?;
        }
        Ok((coordinator, catalog))
    }

    /// Writes down what the folder is from now on, and returns it.
    pub(super) fn adopt(
        self,
        folder: &DataFolder,
        catalog: &CatalogState,
        address: SocketAddr,
    ) -> Result<NodeFile, NodeError> {
        let listen = listen_text(&self.listen, address);
        let Self { durability, coordinator, .. } = self;
        let mut file = match self.existing {
            Some(file) => file.restarted(durability, listen, coordinator),
            None => NodeFile::new(
                catalog.cluster,
                self.node,
                self.engine,
                durability,
                listen,
                coordinator,
            ),
        };
        file.advertise = self.advertise;
        file.timing = self.timing;
        file.min_replicas_for_write = self.min_replicas_for_write;
        folder.write(&file)?;
        Ok(file)
    }
}

/// Returns the address that a node remembers and names to others: as it was given, where a host's
/// name means more to them than the number that it stands for here, with the port that was got.
fn listen_text(given: &str, bound: SocketAddr) -> String {
    match given.rsplit_once(':') {
        Some((host, _)) if !host.starts_with('[') && host.parse::<IpAddr>().is_err() => {
            format!("{host}:{}", bound.port())
        }
        _ => bound.to_string(),
    }
}

/// Returns true if the address stands for every address of the machine.
fn is_every_address(listen: &str) -> bool {
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
}

fn check_same<T: PartialEq + ToString>(
    folder: &DataFolder,
    what: &'static str,
    found: T,
    asked: Option<T>,
) -> Result<(), DataFolderError> {
    match asked {
        Some(asked) if asked != found => Err(DataFolderError::Differs {
            path: folder.path().to_owned(),
            what,
            found: found.to_string(),
            asked: asked.to_string(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_and_a_number_is_the_one_that_was_got() {
        let bound = "127.0.0.1:36013".parse().unwrap();
        assert_eq!(listen_text("localhost:0", bound), "localhost:36013");
        assert_eq!(listen_text("127.0.0.1:0", bound), "127.0.0.1:36013");
        assert_eq!(listen_text("[::1]:0", "[::1]:7".parse().unwrap()), "[::1]:7");
    }

    #[test]
    fn every_address_is_told_from_one() {
        for listen in ["0.0.0.0:7101", "[::]:7101"] {
            assert!(is_every_address(listen), "{listen}");
        }
        for listen in ["127.0.0.1:7101", "[::1]:7101", "n1:7101"] {
            assert!(!is_every_address(listen), "{listen}");
        }
    }
}
