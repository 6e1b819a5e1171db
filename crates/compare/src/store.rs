//! What callers ask: a cluster of Trireme's, or another store that stands beside it.

use bytes::Bytes;
use trireme_client::{Client, ClientError, Conditional, Consistency, ReadOptions, Version};

use crate::etcd::EtcdStore;

/// A store, through its client.
#[derive(Clone)]
pub enum Store {
    /// A cluster of Trireme's.
    Trireme(Client),
    /// A cluster of etcd's.
    Etcd(Box<EtcdStore>),
}

/// A row that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The value's version, which rises with every write of the key.
    pub version: u64,
}

/// Why an operation was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whether the operation may have taken effect all the same.
    pub is_ambiguous: bool,
    /// Why, in words.
    pub reason: String,
}

impl Store {
    /// Reads a key.
    pub async fn get(&self, key: Bytes, consistency: Consistency) -> Result<Option<Row>, Failure> {
        match self {
            Self::Trireme(client) => {
                let options = ReadOptions { consistency, deadline: None };
                let read = client.get_with(key.clone(), options).await?;
                Ok(read.value.map(|it| Row { key, value: it.value, version: it.version.0 }))
            }
            Self::Etcd(etcd) => etcd.get(key, consistency).await,
        }
    }

    /// Gives a key a value, and returns its version.
    pub async fn put(&self, key: Bytes, value: Bytes) -> Result<u64, Failure> {
        match self {
            Self::Trireme(client) => Ok(client.put(key, value).await?.0),
            Self::Etcd(etcd) => etcd.put(key, value).await,
        }
    }

    /// Gives a key a value if it has one of this version, and returns the new value's version; `None`
    /// if it does not.
    pub async fn put_if(
        &self,
        key: Bytes,
        value: Bytes,
        version: u64,
    ) -> Result<Option<u64>, Failure> {
        match self {
            Self::Trireme(client) => {
                match client.put_if_version(key, value, Version(version)).await? {
                    Conditional::Done(version) => Ok(Some(version.0)),
                    Conditional::Failed { .. } => Ok(None),
                }
            }
            Self::Etcd(etcd) => etcd.put_if(key, value, version).await,
        }
    }

    /// Reads at most so many rows from a key on, strongly.
    pub async fn scan(&self, start: Bytes, rows: usize) -> Result<Vec<Row>, Failure> {
        match self {
            Self::Trireme(client) => {
                let scan = client.scan(start..).limit(rows).collect().await?;
                let row = |it: trireme_client::Row| Row {
                    key: it.key,
                    value: it.value,
                    version: it.version.0,
                };
                Ok(scan.into_iter().map(row).collect())
            }
            Self::Etcd(etcd) => etcd.scan(start, rows).await,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let is_ambiguous = matches!(error, ClientError::Ambiguous { .. });
        Self { is_ambiguous, reason: error.to_string() }
    }
}
