//! What Trireme keeps at the coordinator, each in a form of its own on nodes and watches.
//!
//! Values are JSON objects with a `format` number, so that `etcdctl get --prefix /trireme` can be
//! read by a person and a later build can recognise what an earlier one wrote.

pub mod catalog;
mod catalog_watch;
pub mod configuration;
pub mod election;
pub mod elections;
pub mod invitations;
pub mod knowledge;
pub mod membership;
pub mod succession;
pub mod trust;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{CoordinatorError, Node};

/// The format of every value that this build writes.
const FORMAT: u32 = 1;

#[derive(serde::Deserialize)]
struct Formatted {
    format: u32,
}

/// Returns the JSON of `content`, an object, with its format in front.
fn encode<T: Serialize>(content: &T) -> Vec<u8> {
    #[derive(Serialize)]
    struct WithFormat<'a, T> {
        format: u32,
        #[serde(flatten)]
        content: &'a T,
    }
    serde_json::to_vec(&WithFormat { format: FORMAT, content })
        .expect("recipes write objects with text keys only, which JSON can hold")
}

/// Reads a value that [`encode`] wrote.
fn decode<T: DeserializeOwned>(node: &Node) -> Result<T, CoordinatorError> {
    let malformed =
        |reason: String| CoordinatorError::Malformed { path: node.path.clone(), reason };
    let Formatted { format } =
        serde_json::from_slice(&node.value).map_err(|error| malformed(error.to_string()))?;
    if format != FORMAT {
        return Err(malformed(format!("it has format {format}; this build reads {FORMAT}")));
    }
    serde_json::from_slice(&node.value).map_err(|error| malformed(error.to_string()))
}

/// An error for a value that is JSON and still makes no sense.
fn malformed(node: &Node, reason: impl ToString) -> CoordinatorError {
    CoordinatorError::Malformed { path: node.path.clone(), reason: reason.to_string() }
}
