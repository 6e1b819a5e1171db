//! What a node is: from its data folder, from what was said, and from the coordinator.

use std::net::SocketAddr;
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
    coordinator: Vec<String>,
    engine: Engine,
    durability: Durability,
    timing: Timing,
    min_replicas_for_write: usize,
}

impl Settings {
    /// Checks the periods that were asked for, with those that the folder remembers, before
    /// anything is made or held.
    pub(super) fn check_timing(options: &NodeOptions) -> Result<(), NodeError> {
        let existing = DataFolder::describe(&options.data)?;
        options.timing.of(existing.map(|file| file.timing).unwrap_or_default())?;
        Ok(())
    }

    pub(super) fn settle(folder: &DataFolder, options: &NodeOptions) -> Result<Self, NodeError> {
        let existing = folder.read()?;
        let needs = |what| DataFolderError::Empty(folder.path().to_owned(), what);
        let Some(file) = &existing else {
            return Ok(Self {
                node: options.node.ok_or_else(|| needs("a node number (--id)"))?,
                listen: options.listen.clone().ok_or_else(|| needs("an address (--listen)"))?,
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
        let listen = address.to_string();
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
        file.timing = self.timing;
        file.min_replicas_for_write = self.min_replicas_for_write;
        folder.write(&file)?;
        Ok(file)
    }
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
