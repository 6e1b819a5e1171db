//! A timeline read returns a state that the cohort was in, the one that it names, and one that holds
//! everything that was acknowledged longer ago than the age that it names.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use trireme_types::NodeId;

use super::committed::Committed;
use super::states::States;

/// What the clock of the runtime, which counts in milliseconds, may be late at both ends.
const MARGIN: u64 = 2;

/// By which part of a time two clocks may differ.
const DRIFT_DIVISOR: u64 = 10;

/// A timeline read.
pub(crate) struct TimelineRead {
    pub(crate) node: NodeId,
    pub(crate) key: Bytes,
    pub(crate) found: Option<(Bytes, u64)>,
    /// The entry that the state includes, as the read names it.
    pub(crate) applied: u64,
    pub(crate) age: Option<Duration>,
    /// What the fastest message of the leader may have taken, in milliseconds, which comes on top.
    pub(crate) fastest: u64,
    /// When it began, in milliseconds.
    pub(crate) began: u64,
}

/// Who read what of which key, as of which entry.
type Waiting = (NodeId, Bytes, Option<(Bytes, u64)>, u64);

/// The acknowledged puts that timeline reads are judged by.
#[derive(Default)]
pub(crate) struct Timelines {
    /// When puts to each key were acknowledged, and the version that each gave.
    acknowledged: BTreeMap<Bytes, Vec<(u64, u64)>>,
    /// Reads of states that are not known to be committed yet.
    waiting: Vec<Waiting>,
}

impl Timelines {
    /// Hears of a put that was acknowledged.
    pub(crate) fn acknowledged(&mut self, key: Bytes, at: u64, version: u64) {
        self.acknowledged.entry(key).or_default().push((at, version));
    }

    pub(super) fn judge(
        &mut self,
        read: &TimelineRead,
        states: &mut States,
        committed: &Committed,
    ) -> Result<(), String> {
        self.waiting.push((read.node, read.key.clone(), read.found.clone(), read.applied));
        let mut error = None;
        self.waiting.retain(|(node, key, found, applied)| {
            match states.as_of(*applied, committed) {
                Ok(None) => return true,
                Ok(Some(rows)) if rows.get(key) == found.as_ref() => {}
                Ok(Some(rows)) => {
                    error = Some(format!(
                        "timeline reads are prefixes: {node} reads {found:?} of {key:?} as of \
                         {applied}, where it is {:?}",
                        rows.get(key)
                    ));
                }
                Err(reason) => error = Some(reason),
            }
            false
        });
        match error {
            Some(error) => Err(error),
            None => self.judge_age(read),
        }
    }

    /// A put that lies further back than the age is in the state, or a later write to its key is.
    fn judge_age(&self, read: &TimelineRead) -> Result<(), String> {
        let (Some(age), Some((_, version))) = (read.age, &read.found) else { return Ok(()) };
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        // Clocks that run at different rates count the same time differently, by a tenth at the most.
        let age_at_most = (age + age / DRIFT_DIVISOR).saturating_add(read.fastest + MARGIN);
        let Some(before) = read.began.checked_sub(age_at_most) else {
            return Ok(());
        };
        let puts = self.acknowledged.get(&read.key).map_or(&[][..], |puts| puts);
        match puts.iter().find(|(at, newer)| *at < before && newer > version) {
            None => Ok(()),
            Some((at, newer)) => Err(format!(
                "timeline reads know their age: {} reads version {version} of {:?} at {}, {age} ms \
                 old, and version {newer} was acknowledged at {at}",
                read.node, read.key, read.began
            )),
        }
    }
}
