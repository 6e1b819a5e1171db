//! Reading nodes.

use etcd_client::proto::PbKeyValue;
use etcd_client::{Client, GetOptions, KvClient};

use crate::CoordinatorError;
use crate::link::Links;
use crate::node::{Line, Node, NodeVersion, Nodes, Scope, SessionId};
use crate::path;

/// The most bytes in the answer to one read.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Reads all nodes that a watch of `root` in this scope would be about, at one moment.
pub(crate) async fn nodes(
    links: &Links,
    root: &str,
    scope: Scope,
) -> Result<Nodes, CoordinatorError> {
    let namespace = &links.options().namespace;
    let (key, options) = match scope {
        Scope::Node => (format!("{namespace}{root}"), GetOptions::new()),
        Scope::Children | Scope::Subtree => {
            (format!("{namespace}{}", path::below(root)), GetOptions::new().with_prefix())
        }
    };
    let ask = |client: Client| {
        let (key, options) = (key.clone(), options.clone());
        async move { kv(&client).get(key, Some(options)).await }
    };
    let mut response = links.read(ask).await?;
    let header = response.header().cloned();
    let revision = header.as_ref().map_or(0, etcd_client::ResponseHeader::revision);
    let found = std::mem::take(&mut response.0.kvs);
    let nodes = found.into_iter().filter_map(|kv| node(namespace, kv));
    let mut nodes: Vec<Node> = nodes.filter(|node| scope.covers(root, &node.path)).collect();
    nodes.sort_by(|a, b| (a.sequence, &a.path).cmp(&(b.sequence, &b.path)));
    let line = header.map_or(Line::default(), |header| Line {
        cluster: header.cluster_id(),
        term: header.raft_term(),
    });
    Ok(Nodes { line, revision, nodes })
}

/// Returns the node that a key and its value are; `None` for keys that are none of ours.
pub(crate) fn node(namespace: &str, kv: PbKeyValue) -> Option<Node> {
    let key = String::from_utf8(kv.key).ok()?;
    let path = key.strip_prefix(namespace)?.to_owned();
    path::check(&path).ok()?;
    Some(Node {
        path,
        value: kv.value,
        version: NodeVersion(kv.mod_revision),
        sequence: u64::try_from(kv.create_revision).ok()?,
        changes: u64::try_from(kv.version).ok()?,
        owner: (kv.lease != 0).then_some(SessionId(kv.lease)),
    })
}

fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX)
}
