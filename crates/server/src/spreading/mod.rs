//! Spreads what the nodes hold and lead evenly over them, by itself.

mod leads;
mod replicas;

pub(crate) use self::leads::LeadSpreading;
pub(crate) use self::replicas::ReplicaSpreading;
