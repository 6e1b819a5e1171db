//! What timeline reads find.

use std::collections::BTreeMap;

use trireme_types::{Lsn, NodeId};

use super::agreement::Agreement;

/// A timeline read finds exactly what follows from the log up to the entry that it names.
pub(crate) const READS_WHAT_IT_NAMES: &str = "a timeline read finds the state that it names";

/// A client that never takes a state older than it has seen finds no value older than it has found;
/// and no replica gives out an older state than before, for as long as it runs.
pub(crate) const NEVER_GOES_BACK: &str = "timeline reads never go back";

/// What timeline reads have found.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// The newest state that each run of a replica, named by its start, has given out.
    replicas: BTreeMap<(NodeId, u64), Lsn>,
    /// The entry that gave a key the newest value that a client has found there.
    found: BTreeMap<(u64, String), u64>,
}

/// What a replica answers.
pub(crate) struct Found<'a> {
    pub(crate) key: &'a str,
    pub(crate) value: Option<&'a str>,
    /// The newest entry of the state, as the replica says.
    pub(crate) applied: Lsn,
}

impl Timeline {
    /// Records what a run of a replica answers.
    pub(crate) fn answers(
        &mut self,
        run: (NodeId, u64),
        Found { key, value, applied }: &Found<'_>,
        agreement: &Agreement,
    ) {
        let named = agreement.lsn_at(applied.seq).unwrap_or(Lsn::ZERO);
        let (_, agreed) = agreement.value_after(applied.seq, key);
        assert!(
            named == *applied && agreed == *value,
            "{READS_WHAT_IT_NAMES}: {} finds {key}={value:?} at {applied}, and {key} is {agreed:?} at {named}",
            run.0
        );
        let newest = self.replicas.entry(run).or_default();
        assert!(
            applied.seq >= newest.seq,
            "{NEVER_GOES_BACK}: {} at {applied} and {newest}",
            run.0
        );
        *newest = *applied;
    }

    /// Records what a client takes for an answer.
    pub(crate) fn takes(&mut self, client: u64, found: &Found<'_>, agreement: &Agreement) {
        let Found { key, value, applied } = found;
        let given = value.map(|value| agreement.given(key, value).unwrap_or_default());
        let given = given.unwrap_or_else(|| agreement.value_after(applied.seq, key).0);
        let newest = self.found.entry((client, (*key).to_owned())).or_default();
        assert!(
            given >= *newest,
            "{NEVER_GOES_BACK}: client {client} finds {key}={value:?} of {given} after one of {newest}"
        );
        *newest = given;
    }
}
