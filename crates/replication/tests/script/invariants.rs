//! What must hold of every protocol, whatever is lost, crashes or stalls.
//!
//! A violation is a panic that begins with the name of what does not hold: one of the constants
//! below. The history of a script is judged by what its clients were told, key by key: a write that
//! was acknowledged has taken effect by then; one that was refused never does; of one that was not
//! answered nobody knows, until a strong read has found it, or has not.

use std::collections::BTreeMap;

use trireme_replication::core::{Moment, Ticket};
use trireme_types::{Entry, Epoch, Lsn, NodeId};

use super::Subject;
use super::node::Node;

/// What was committed never changes.
pub(crate) const COMMITTED_NEVER_CHANGES: &str = "what was committed never changes";

/// A strong read finds the newest acknowledged write, or one that came after it.
pub(crate) const ACKNOWLEDGED_IS_READ: &str = "what was acknowledged is read";

/// A write that nobody was told of, and that a strong read did not find, is never found later; nor
/// is one whose place another was found in (S16).
pub(crate) const NO_GHOST: &str = "what was not found does not appear later";

/// A strong read finds what somebody wrote and was not refused.
pub(crate) const REFUSED_IS_NOT_READ: &str = "what was refused is not read";

/// What was acknowledged is on the disks of all replicas that the coordinator lists, or of a majority.
pub(crate) const ON_ENOUGH_DISKS: &str = "what was acknowledged is on enough disks";

/// The coordinator lists no replica that lacks something that was acknowledged.
pub(crate) const LISTED_HAVE_ALL: &str = "whoever is listed has what was acknowledged";

/// The coordinator never lists more replicas than the cluster was asked for with.
pub(crate) const NOT_TOO_MANY: &str = "there are never more replicas than are wanted";

/// What was acknowledged is on as many disks as writes need.
pub(crate) const ON_THE_LEAST_DISKS: &str = "a write is on as many disks as writes need";

/// An epoch has one leader.
pub(crate) const ONE_LEADER: &str = "an epoch has one leader";

/// Nobody acknowledges a write while another replica may still read without it (S5).
pub(crate) const READS_END_FIRST: &str = "a right to read ends before another leader answers";

/// At any moment one replica at most has a right to read.
pub(crate) const ONE_READER: &str = "one replica may read at a time";

/// Two logs that hold the same entry hold the same before it, and an address names one entry.
pub(crate) const LOGS_MATCH: &str = "logs that share an entry share what precedes it";

/// A core keeps its own rules between any two events.
pub(crate) const CORE_IS_VALID: &str = "a core keeps its own rules";

/// Every caller is answered once.
pub(crate) const ANSWERED_ONCE: &str = "every caller is answered once";

/// A core knows what its log holds, and commits and applies nothing else.
pub(crate) const POINTERS_ARE_ORDERED: &str = "applied <= committed <= last";

/// A caller at one node.
pub(crate) type Caller = (NodeId, Ticket);

/// What has been seen of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    /// What any replica has ever committed.
    committed: BTreeMap<u64, Entry>,
    leaders: BTreeMap<Epoch, NodeId>,
    /// Until when a replica may give out what it reads.
    rights: BTreeMap<NodeId, Moment>,
    /// Counts what clients did and were told.
    step: u64,
    reads: BTreeMap<Caller, u64>,
    writes: Vec<WriteOfKey>,
    /// How many writes were acknowledged.
    pub(crate) acknowledged: u64,
    /// The newest entry that was acknowledged.
    acknowledged_upto: u64,
    /// How many strong reads were answered with what was found.
    pub(crate) answered: u64,
}

/// One key's part of a write.
#[derive(Debug)]
struct WriteOfKey {
    caller: Option<Caller>,
    key: String,
    /// None if the key was to be deleted.
    value: Option<String>,
    asked: u64,
    fate: Fate,
    /// When a strong read that found it was first answered.
    found: Option<u64>,
    /// When a strong read was answered that shows that it is never found again, and why.
    gone: Option<(u64, &'static str)>,
}

/// What a client was told of its write, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Acknowledged(u64),
    Refused,
    Unknown(u64),
}

impl WriteOfKey {
    /// Returns by when it has certainly taken effect.
    fn done(&self) -> Option<u64> {
        let acknowledged = match self.fate {
            Fate::Acknowledged(at) => Some(at),
            _ => None,
        };
        [acknowledged, self.found].into_iter().flatten().min()
    }

    /// Says whether it was over before `step`, whatever came of it.
    fn is_over_before(&self, step: u64) -> bool {
        let over = match self.fate {
            Fate::Unknown(at) => Some(at),
            _ => self.done(),
        };
        over.is_some_and(|over| over < step)
    }
}

impl Invariants {
    /// Takes in that a replica commits an entry.
    pub(crate) fn commits(&mut self, id: NodeId, entry: &Entry) {
        let agreed = self.committed.entry(entry.lsn.seq).or_insert_with(|| entry.clone());
        assert!(
            agreed == entry,
            "{COMMITTED_NEVER_CHANGES}: {id} commits {} where {} was committed",
            entry.lsn,
            agreed.lsn
        );
    }

    /// Returns what any replica has ever committed.
    pub(crate) fn committed(&self) -> impl Iterator<Item = &Entry> {
        self.committed.values()
    }

    /// Takes in that a replica believes to lead.
    pub(crate) fn leads(&mut self, id: NodeId, epoch: Epoch) {
        let leader = *self.leaders.entry(epoch).or_insert(id);
        assert!(leader == id, "{ONE_LEADER}: {leader} and {id} lead in epoch {epoch}");
    }

    /// Takes in that a client asks for a write, with the values that keys are to get.
    pub(crate) fn write_asked(&mut self, caller: Caller, changes: &[(String, Option<String>)]) {
        self.step += 1;
        for (key, value) in changes {
            if !self.writes.iter().any(|write| write.key == *key) {
                self.writes.push(WriteOfKey {
                    caller: None,
                    key: key.clone(),
                    value: None,
                    asked: 0,
                    fate: Fate::Acknowledged(0),
                    found: None,
                    gone: None,
                });
            }
            // A batch that writes a key twice leaves its last value.
            self.writes.retain(|write| write.caller != Some(caller) || write.key != *key);
            self.writes.push(WriteOfKey {
                caller: Some(caller),
                key: key.clone(),
                value: value.clone(),
                asked: self.step,
                fate: Fate::Open,
                found: None,
                gone: None,
            });
        }
    }

    /// Takes in that a client asks for a strong read.
    pub(crate) fn read_asked(&mut self, caller: Caller) {
        self.step += 1;
        self.reads.insert(caller, self.step);
    }

    /// Takes in that a write was acknowledged.
    pub(crate) fn acknowledged<S: Subject>(
        &mut self,
        caller: Caller,
        lsn: Lsn,
        now: Moment,
        nodes: &BTreeMap<NodeId, Node<S>>,
        replicas: Option<&[NodeId]>,
    ) {
        self.end(caller, Fate::Acknowledged);
        self.acknowledged += 1;
        self.acknowledged_upto = self.acknowledged_upto.max(lsn.seq);
        for entry in self.committed.range(..=lsn.seq).map(|(_, entry)| entry) {
            let has_it = |node: &NodeId| nodes[node].has_made_durable(entry);
            let is_enough = match replicas {
                Some(replicas) => replicas.iter().all(has_it),
                None => nodes.keys().filter(|node| has_it(node)).count() > nodes.len() / 2,
            };
            assert!(is_enough, "{ON_ENOUGH_DISKS}: {} answers {lsn}, not {}", caller.0, entry.lsn);
        }
        for (reader, until) in &self.rights {
            // An answer may be late, and the write be long in the reader's table.
            let misses_it = nodes[reader].table.applied.seq < lsn.seq;
            assert!(
                *reader == caller.0 || *until <= now || !misses_it,
                "{READS_END_FIRST}: {} answers {lsn} at {now}, and {reader} may read until {until}",
                caller.0
            );
        }
    }

    /// Checks that an acknowledged write is on as many disks as writes need.
    pub(crate) fn has_least<S: Subject>(
        &self,
        caller: Caller,
        lsn: Lsn,
        least: usize,
        nodes: &BTreeMap<NodeId, Node<S>>,
    ) {
        let Some(entry) = self.committed.get(&lsn.seq) else { return };
        let disks = nodes.values().filter(|node| node.has_made_durable(entry)).count();
        assert!(
            disks >= least,
            "{ON_THE_LEAST_DISKS}: {} answers {lsn}, which is on {disks} of {least}",
            caller.0
        );
    }

    /// Checks who is listed, of a coordinator that lists replicas.
    pub(crate) fn listed<S: Subject>(
        &self,
        replicas: &[NodeId],
        wanted: Option<usize>,
        nodes: &BTreeMap<NodeId, Node<S>>,
        lists: impl Fn(&Node<S>) -> bool,
    ) {
        let is_enough = wanted.is_none_or(|wanted| replicas.len() <= wanted);
        assert!(is_enough, "{NOT_TOO_MANY}: {replicas:?}, and {wanted:?} are wanted");
        for (_, entry) in self.committed.range(..=self.acknowledged_upto) {
            // The very one that is listed has it now; one that lost its data since had it then.
            let has_it = |node: &Node<S>| {
                if lists(node) { node.keeps(entry) } else { node.has_made_durable(entry) }
            };
            let lacking = replicas.iter().find(|id| !has_it(&nodes[id]));
            assert!(
                lacking.is_none(),
                "{LISTED_HAVE_ALL}: {lacking:?} of {replicas:?} lacks {}",
                entry.lsn
            );
        }
    }

    /// Takes in that a write had no effect, and never will.
    pub(crate) fn refused(&mut self, caller: Caller) {
        self.reads.remove(&caller);
        self.end(caller, |_| Fate::Refused);
    }

    /// Takes in that a client will never know what came of what it asked.
    pub(crate) fn unanswered(&mut self, caller: Caller) {
        self.reads.remove(&caller);
        self.end(caller, Fate::Unknown);
    }

    fn end(&mut self, caller: Caller, fate: impl Fn(u64) -> Fate) {
        self.step += 1;
        let fate = fate(self.step);
        self.writes.iter_mut().filter(|w| w.caller == Some(caller)).for_each(|w| w.fate = fate);
    }

    /// Takes in that a replica may read until then.
    pub(crate) fn may_read(&mut self, id: NodeId, until: Option<Moment>, now: Moment) {
        let other = self.rights.iter().find(|(other, until)| **other != id && **until > now);
        if let Some((other, until)) = other {
            panic!("{ONE_READER}: {id} at {now}, and {other} until {until}");
        }
        self.rights.insert(id, until.unwrap_or(Moment::FAR));
    }

    /// Takes in that a replica reads no more.
    pub(crate) fn reads_no_more(&mut self, id: NodeId) {
        self.rights.remove(&id);
    }

    /// Takes in what a strong read has found.
    pub(crate) fn found(&mut self, caller: Caller, key: &str, value: Option<&str>) {
        self.step += 1;
        self.answered += 1;
        let now = self.step;
        let Some(asked) = self.reads.remove(&caller) else { return };
        let of_key = || self.writes.iter().enumerate().filter(|(_, write)| write.key == key);
        let shown = format!("{} reads {key}={}", caller.0, value.unwrap_or("none"));
        if of_key().next().is_none() && value.is_none() {
            return;
        }
        let candidates: Vec<usize> = of_key()
            .filter(|(_, write)| write.value.as_deref() == value && write.fate != Fate::Refused)
            .map(|(at, _)| at)
            .collect();
        assert!(!candidates.is_empty(), "{REFUSED_IS_NOT_READ}: {shown}");
        let objection = |at: &usize| self.objection(&self.writes[*at], asked);
        let objections: Vec<_> = candidates.iter().filter_map(objection).collect();
        assert!(
            objections.len() < candidates.len(),
            "{}: {shown}, though {}",
            objections[0].0,
            objections[0].1
        );
        if let [found] = candidates[..] {
            self.note(found, asked, now);
        }
    }

    /// Returns why a read that was asked at `asked` can not find a write, if it can not.
    fn objection(&self, write: &WriteOfKey, asked: u64) -> Option<(&'static str, String)> {
        if let Some((at, name)) = write.gone
            && at < asked
        {
            return Some((name, "an earlier read did not find it".into()));
        }
        let done = write.done()?;
        let is_after = |later: &&WriteOfKey| {
            later.key == write.key
                && later.asked > done
                && later.done().is_some_and(|done| done < asked)
        };
        let later = self.writes.iter().find(is_after)?;
        let value = later.value.as_deref().unwrap_or("none");
        let why = if matches!(later.fate, Fate::Acknowledged(_)) { "acknowledged" } else { "read" };
        Some((ACKNOWLEDGED_IS_READ, format!("{}={value} was {why} since", later.key)))
    }

    /// Notes that a read found this write, and so not the others.
    fn note(&mut self, found: usize, asked: u64, now: u64) {
        let key = self.writes[found].key.clone();
        for (at, write) in self.writes.iter_mut().enumerate() {
            if at == found {
                write.found.get_or_insert(now);
            } else if write.key == key && write.is_over_before(asked) {
                let is_unknown = write.done().is_none();
                let name = if is_unknown { NO_GHOST } else { ACKNOWLEDGED_IS_READ };
                write.gone.get_or_insert((now, name));
            }
        }
    }
}
