//! What a local cluster's folder says of the cluster.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use trireme_server::{
    DataFolder, MIN_REPLICAS_FOR_WRITE, NodeFile, NodeMemory, UnreadableJson, from_checked_json,
    to_checked_json,
};
use trireme_types::{ClusterId, Durability, Engine, Protocol, Timing};

use super::HOST;

/// The format that this build writes, and the newest that it reads.
const FORMAT: u32 = 2;

/// The description of a local cluster, in `cluster.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClusterFile {
    format: u32,
    cluster: String,
    pub(super) nodes: usize,
    pub(super) replication: Protocol,
    pub(super) engine: Engine,
    pub(super) durability: Durability,
    pub(super) port: u16,
    /// The endpoints of the coordinator; `None` for the embedded one.
    pub(super) coordinator: Option<Vec<String>>,
    #[serde(default)]
    pub(super) timing: Timing,
    #[serde(default = "min_replicas_for_write")]
    pub(super) min_replicas_for_write: usize,
}

/// What folders say that were made before the choice was remembered.
const fn min_replicas_for_write() -> usize {
    MIN_REPLICAS_FOR_WRITE
}

impl ClusterFile {
    pub(super) fn new(
        nodes: usize,
        replication: Protocol,
        engine: Engine,
        durability: Durability,
        port: u16,
        coordinator: Option<Vec<String>>,
    ) -> Self {
        let cluster = ClusterId(rand::random()).to_string();
        Self {
            format: FORMAT,
            cluster,
            nodes,
            replication,
            engine,
            durability,
            port,
            coordinator,
            timing: Timing::default(),
            min_replicas_for_write: MIN_REPLICAS_FOR_WRITE,
        }
    }

    /// Reads the description in `folder`; if it is missing, makes it again from what the folders of the
    /// nodes say. `None` if there are none.
    pub(super) fn read_or_recover(folder: &Path) -> anyhow::Result<Option<Self>> {
        match Self::read(folder)? {
            Some(file) => Ok(Some(file)),
            None => Self::recover(folder),
        }
    }

    fn recover(folder: &Path) -> anyhow::Result<Option<Self>> {
        let nodes = node_files(folder)?;
        let Some((&number, (path, node))) = nodes.first_key_value() else { return Ok(None) };
        let known = NodeMemory::read(path)?.map(|memory| memory.known);
        let members = known.iter().flat_map(|known| known.members());
        let members = members.filter_map(|node| usize::try_from(node.0).ok());
        // Which protocol `up` was asked for is not known where ranges have several: that of the most.
        let mut ranges = BTreeMap::<Protocol, usize>::new();
        for config in known.iter().flat_map(|known| known.configs.values()) {
            *ranges.entry(config.protocol).or_default() += 1;
        }
        let most = ranges.into_iter().max_by_key(|(_, count)| *count);
        let listens_at = node.listen.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let port = |(port, number): (u16, u16)| port.checked_sub(number);
        let Some(port) = listens_at.zip(u16::try_from(number).ok()).and_then(port) else {
            return Ok(None);
        };
        let is_embedded = node.coordinator == [format!("http://{HOST}:{port}")];
        Ok(Some(Self {
            format: FORMAT,
            cluster: node.cluster.clone(),
            nodes: members.chain(nodes.keys().copied()).max().unwrap_or(number),
            replication: most.map_or(Protocol::Raft, |(protocol, _)| protocol),
            engine: node.engine,
            durability: node.durability,
            port,
            coordinator: (!is_embedded).then(|| node.coordinator.clone()),
            timing: node.timing,
            min_replicas_for_write: node.min_replicas_for_write,
        }))
    }

    pub(super) fn cluster(&self) -> anyhow::Result<ClusterId> {
        self.cluster.parse().context("reading cluster.json")
    }

    /// Reads the description in `folder`; `None` if there is none.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = path(folder);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        match from_checked_json::<Self>(&bytes, FORMAT) {
            // It is written as this build writes it.
            Ok(file) => Ok(Some(Self { format: FORMAT, ..file })),
            Err(UnreadableJson::Future(format)) => {
                bail!("{} has format {format}, which a later version has written", path.display())
            }
            Err(UnreadableJson::Damaged(error)) => bail!(
                "{} is damaged: {error}; move it away, to have it made again from the nodes' folders",
                path.display()
            ),
        }
    }

    /// Writes the description so that a crash leaves the old one or this one.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let path = path(folder);
        let written = path.with_extension("json.new");
        let save = || -> io::Result<()> {
            let mut file = fs::File::create(&written)?;
            file.write_all(&to_checked_json(self)?)?;
            file.sync_all()?;
            fs::rename(&written, &path)?;
            fs::File::open(folder)?.sync_all()
        };
        save().with_context(|| format!("writing {}", path.display()))
    }
}

/// Returns the folders of nodes that are in `folder`, and what they say of themselves.
fn node_files(folder: &Path) -> anyhow::Result<BTreeMap<usize, (PathBuf, NodeFile)>> {
    let mut nodes = BTreeMap::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nodes),
        entries => entries.with_context(|| format!("reading {}", folder.display()))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", folder.display()))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("node-")?.parse().ok());
        if let Some(number) = number
            && let Some(file) = DataFolder::describe(&entry.path())?
        {
            nodes.insert(number, (entry.path(), file));
        }
    }
    Ok(nodes)
}

/// Returns where the description of a cluster is.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("cluster.json")
}
