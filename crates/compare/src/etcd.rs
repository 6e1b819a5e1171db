//! etcd as a store to be compared with, through its own client.

use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, KeyValue, KvClient, Txn, TxnOp,
};
use trireme_client::Consistency;

use crate::store::{Failure, Row};

/// A cluster of etcd's, through its client, which asks its members in turn.
#[derive(Clone)]
pub struct EtcdStore {
    kv: KvClient,
}

impl EtcdStore {
    /// Connects to all members.
    pub async fn connect(endpoints: &[String]) -> anyhow::Result<Self> {
        let client = Client::connect(endpoints, Some(ConnectOptions::new())).await?;
        Ok(Self { kv: client.kv_client() })
    }

    /// Reads a key; a timeline read is what etcd calls a serializable one.
    pub(crate) async fn get(
        &self,
        key: Bytes,
        consistency: Consistency,
    ) -> Result<Option<Row>, Failure> {
        let options = match consistency {
            Consistency::Strong => GetOptions::new(),
            Consistency::Timeline => GetOptions::new().with_serializable(),
        };
        let found = self.kv.clone().get(key, Some(options)).await?;
        Ok(found.kvs().first().map(row))
    }

    /// Gives a key a value.
    pub(crate) async fn put(&self, key: Bytes, value: Bytes) -> Result<u64, Failure> {
        let done = self.kv.clone().put(key, value, None).await?;
        Ok(revision(done.header().map(|header| header.revision())))
    }

    /// Gives a key a value if it has one of this version.
    pub(crate) async fn put_if(
        &self,
        key: Bytes,
        value: Bytes,
        version: u64,
    ) -> Result<Option<u64>, Failure> {
        let version = i64::try_from(version).unwrap_or(i64::MAX);
        let is_so = Compare::mod_revision(key.clone(), CompareOp::Equal, version);
        let txn = Txn::new().when([is_so]).and_then([TxnOp::put(key, value, None)]);
        let done = self.kv.clone().txn(txn).await?;
        let written = revision(done.header().map(|header| header.revision()));
        Ok(done.succeeded().then_some(written))
    }

    /// Reads at most so many rows from a key on.
    pub(crate) async fn scan(&self, start: Bytes, rows: usize) -> Result<Vec<Row>, Failure> {
        let limit = i64::try_from(rows).unwrap_or(i64::MAX);
        let options = GetOptions::new().with_from_key().with_limit(limit);
        let found = self.kv.clone().get(start, Some(options)).await?;
        Ok(found.kvs().iter().map(row).collect())
    }
}

/// A version of a key is the revision of the whole store at which it was written.
fn row(found: &KeyValue) -> Row {
    Row {
        key: found.key().to_vec().into(),
        value: found.value().to_vec().into(),
        version: revision(Some(found.mod_revision())),
    }
}

fn revision(revision: Option<i64>) -> u64 {
    revision.and_then(|revision| u64::try_from(revision).ok()).unwrap_or_default()
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // What has left this process may have been done, whatever the error says.
        Self { is_ambiguous: true, reason: error.to_string() }
    }
}
