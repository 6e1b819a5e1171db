//! What a local cluster's folder says of the cluster.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use trireme_server::MIN_REPLICAS_FOR_WRITE;
use trireme_types::{ClusterId, Durability, Engine, Protocol, Timing};

/// The format that this build writes, and the newest that it reads.
const FORMAT: u32 = 1;

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
        let damaged = || format!("{} is damaged", path.display());
        let value: serde_json::Value = serde_json::from_slice(&bytes).with_context(damaged)?;
        if let Some(format) = value["format"].as_u64()
            && format > u64::from(FORMAT)
        {
            let path = path.display();
            bail!("{path} has format {format}; this version reads format {FORMAT} and older");
        }
        serde_json::from_value(value).with_context(damaged).map(Some)
    }

    /// Writes the description so that a crash leaves the old one or this one.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let path = path(folder);
        let written = path.with_extension("json.new");
        let save = || -> io::Result<()> {
            let mut file = fs::File::create(&written)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.sync_all()?;
            fs::rename(&written, &path)?;
            fs::File::open(folder)?.sync_all()
        };
        save().with_context(|| format!("writing {}", path.display()))
    }
}

/// Returns where the description of a cluster is.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("cluster.json")
}
