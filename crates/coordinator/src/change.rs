//! Changes: atomic, conditional, and carried out once however often they are sent.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse};
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnResponse};
use tokio::time::{Instant, sleep};

use crate::CoordinatorError;
use crate::link::{Failure, Links, RETRY_DELAY};
use crate::marks::Slot;
use crate::node::{CreateMode, Created, MultiDone, NodeVersion, Op};
use crate::path;
use crate::session::Session;

/// The most steps in one change: etcd's bound of 128 operations, less those of the mark.
pub const MULTI_OPS_MAX: usize = 120;

/// The most bytes of paths and values in one change: etcd's bound of 1.5 MiB on a request, less
/// room for what surrounds them.
pub const MULTI_BYTES_MAX: usize = 1_400_000;

/// A change being carried out.
pub(crate) struct Change<'a> {
    links: &'a Links,
    session: Arc<Session>,
    steps: Vec<Step>,
    ephemeral: bool,
    deadline: Instant,
}

/// One step, with the key that it is about.
struct Step {
    op: Op,
    /// The node's path; of a sequential one, made unique.
    path: String,
    key: String,
}

/// How one attempt ended.
enum Verdict {
    /// The change was carried out, by this attempt or an earlier one, as this version.
    Applied(NodeVersion),
    /// The change was refused, and no earlier attempt can be carried out any more.
    Refused(Option<CoordinatorError>),
}

impl<'a> Change<'a> {
    pub(crate) fn new(
        links: &'a Links,
        session: Arc<Session>,
        ops: Vec<Op>,
    ) -> Result<Self, CoordinatorError> {
        check(&ops)?;
        let ephemeral = ops.iter().any(|op| match op {
            Op::Create { mode, .. } => mode.is_ephemeral(),
            Op::Claim { .. } => true,
            _ => false,
        });
        let namespace = &links.options().namespace;
        let mut steps = Vec::with_capacity(ops.len());
        for op in ops {
            let path = match &op {
                Op::Create { path, mode, .. } if mode.is_sequential() => unique(path, &session),
                other => other.path().to_owned(),
            };
            let key = format!("{namespace}{path}");
            steps.push(Step { op, path, key });
        }
        let deadline = Instant::now() + links.options().request_timeout;
        Ok(Self { links, session, steps, ephemeral, deadline })
    }

    /// Carries the change out, or says why not.
    pub(crate) async fn run(self) -> Result<MultiDone, CoordinatorError> {
        loop {
            if self.ephemeral && !self.session.is_live() {
                return Err(CoordinatorError::SessionExpired);
            }
            let version = if self.session.is_live() {
                let mut slot = self.session.marks.take();
                let verdict = self.run_marked(&mut slot).await?;
                self.session.marks.give_back(slot);
                match verdict {
                    Verdict::Applied(version) => version,
                    Verdict::Refused(Some(error)) => return Err(error),
                    // The refused attempt's conditions hold by now: it is a new change.
                    Verdict::Refused(None) => continue,
                }
            } else {
                match self.run_unmarked().await? {
                    Verdict::Applied(version) => version,
                    Verdict::Refused(Some(error)) => return Err(error),
                    Verdict::Refused(None) => return Err(no_reason()),
                }
            };
            if self.ephemeral && !self.session.is_live() {
                return Err(CoordinatorError::SessionExpired);
            }
            return Ok(self.done(version));
        }
    }

    /// Sends the change until its fate is known, as described in `marks`.
    async fn run_marked(&self, slot: &mut Slot) -> Result<Verdict, CoordinatorError> {
        let mut lost: Option<String> = None;
        loop {
            let txn = self.marked_txn(slot, lost.is_some());
            match self.send(txn).await {
                Ok(response) => return self.judge(slot, lost.is_some(), &response),
                Err(Failure::Refused(reason)) => {
                    return Err(CoordinatorError::Refused(reason));
                }
                Err(Failure::LeaseNotFound) => {
                    self.session.end();
                    return match lost {
                        Some(reason) => Err(CoordinatorError::Ambiguous(reason)),
                        // Refused before anything happened. Only ephemeral nodes need a session.
                        None if self.ephemeral => Err(CoordinatorError::SessionExpired),
                        None => self.run_unmarked().await,
                    };
                }
                Err(Failure::Attempt(reason)) => {
                    if Instant::now() + RETRY_DELAY >= self.deadline {
                        return Err(CoordinatorError::Ambiguous(reason));
                    }
                    lost = Some(reason);
                    sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    /// Sends the change once, with no session to mark it by.
    async fn run_unmarked(&self) -> Result<Verdict, CoordinatorError> {
        let conditions: Vec<_> = self.steps.iter().map(Step::condition).collect();
        let changes: Vec<_> = self.steps.iter().filter_map(|s| s.change(&self.session)).collect();
        let txn = Txn::new().when(conditions).and_then(changes).or_else(self.reads());
        match self.send(txn).await {
            Ok(response) if response.succeeded() => Ok(Verdict::Applied(version_of(&response)?)),
            Ok(response) => Ok(Verdict::Refused(self.diagnose(&reads_of(&response)))),
            Err(Failure::Refused(reason)) => Err(CoordinatorError::Refused(reason)),
            Err(Failure::LeaseNotFound) => Err(CoordinatorError::SessionExpired),
            Err(Failure::Attempt(reason)) => Err(CoordinatorError::Ambiguous(reason)),
        }
    }

    async fn send(&self, txn: Txn) -> Result<TxnResponse, Failure> {
        self.links.counters.writes.fetch_add(1, Ordering::Relaxed);
        let limit = self.links.attempt_limit(self.deadline);
        self.links.attempt(limit, |client| async move { client.kv_client().txn(txn).await }).await
    }

    fn marked_txn(&self, slot: &Slot, resent: bool) -> Txn {
        let mark_key = self.mark_key(slot);
        let lease = self.session.id().0;
        let mark = |content: String| {
            TxnOp::put(mark_key.clone(), content, Some(PutOptions::new().with_lease(lease)))
        };
        let mut conditions: Vec<_> = self.steps.iter().map(Step::condition).collect();
        conditions.push(match &slot.content {
            None => Compare::create_revision(mark_key.clone(), CompareOp::Equal, 0),
            Some(content) => Compare::value(mark_key.clone(), CompareOp::Equal, content.as_str()),
        });
        let mut changes: Vec<_> =
            self.steps.iter().filter_map(|step| step.change(&self.session)).collect();
        changes.push(mark(slot.applied()));
        let mut otherwise = self.reads();
        otherwise.push(TxnOp::get(mark_key.clone(), None));
        if resent {
            otherwise.push(mark(slot.refused()));
        }
        Txn::new().when(conditions).and_then(changes).or_else(otherwise)
    }

    /// Reads from an answer what became of the change, and notes what the slot now holds.
    fn judge(
        &self,
        slot: &mut Slot,
        resent: bool,
        response: &TxnResponse,
    ) -> Result<Verdict, CoordinatorError> {
        if response.succeeded() {
            slot.content = Some(slot.applied());
            return Ok(Verdict::Applied(version_of(response)?));
        }
        let mut reads = reads_of(response);
        let mark = reads.pop().flatten();
        let content = mark.as_ref().map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
        let was_applied = content.as_ref() == Some(&slot.applied());
        let was_untouched = content == slot.content || content.as_ref() == Some(&slot.refused());
        if !was_applied && !was_untouched {
            // Only the end of the lease takes a mark away.
            self.session.end();
            return Err(CoordinatorError::Ambiguous("the session ended meanwhile".to_owned()));
        }
        slot.content = if resent { Some(slot.refused()) } else { content };
        match mark {
            Some(mark) if was_applied => Ok(Verdict::Applied(NodeVersion(mark.mod_revision))),
            _ => Ok(Verdict::Refused(self.diagnose(&reads))),
        }
    }

    fn reads(&self) -> Vec<TxnOp> {
        let keys_only = || Some(GetOptions::new().with_keys_only());
        self.steps.iter().map(|step| TxnOp::get(step.key.clone(), keys_only())).collect()
    }

    /// Finds the first step whose condition does not hold of what was read.
    fn diagnose(&self, reads: &[Option<PbKeyValue>]) -> Option<CoordinatorError> {
        self.steps.iter().zip(reads).find_map(|(step, found)| step.diagnose(found.as_ref()))
    }

    fn mark_key(&self, slot: &Slot) -> String {
        format!("{}{}", self.links.options().namespace, slot.path(self.session.id()))
    }

    fn done(self, version: NodeVersion) -> MultiDone {
        let sequence = u64::try_from(version.0).unwrap_or(0);
        let created = self.steps.into_iter().filter_map(|step| match step.op {
            Op::Create { .. } => Some(Created { path: step.path, sequence, version }),
            _ => None,
        });
        MultiDone { version, created: created.collect() }
    }
}

impl Step {
    fn condition(&self) -> Compare {
        let key = self.key.as_str();
        match &self.op {
            Op::Create { .. } | Op::CheckAbsent { .. } => {
                Compare::create_revision(key, CompareOp::Equal, 0)
            }
            Op::Set { expected: Some(expected), .. }
            | Op::Claim { expected, .. }
            | Op::Delete { expected: Some(expected), .. }
            | Op::Check { expected, .. } => {
                Compare::mod_revision(key, CompareOp::Equal, expected.0)
            }
            Op::Set { expected: None, .. } | Op::Delete { expected: None, .. } => {
                Compare::create_revision(key, CompareOp::Greater, 0)
            }
        }
    }

    fn change(&self, session: &Session) -> Option<TxnOp> {
        let key = self.key.as_str();
        let owned = || PutOptions::new().with_lease(session.id().0);
        match &self.op {
            Op::Create { value, mode, .. } => {
                let options = mode.is_ephemeral().then(owned);
                Some(TxnOp::put(key, value.clone(), options))
            }
            Op::Set { value, .. } => {
                let options = PutOptions::new().with_ignore_lease();
                Some(TxnOp::put(key, value.clone(), Some(options)))
            }
            Op::Claim { value, .. } => Some(TxnOp::put(key, value.clone(), Some(owned()))),
            Op::Delete { .. } => Some(TxnOp::delete(key, None)),
            Op::Check { .. } | Op::CheckAbsent { .. } => None,
        }
    }

    fn diagnose(&self, found: Option<&PbKeyValue>) -> Option<CoordinatorError> {
        let path = self.path.clone();
        let current = found.map(|kv| NodeVersion(kv.mod_revision));
        match (&self.op, current) {
            (Op::Create { .. } | Op::CheckAbsent { .. }, Some(current)) => {
                Some(CoordinatorError::NodeExists { path, current })
            }
            (Op::Create { .. } | Op::CheckAbsent { .. }, None) => None,
            (_, None) => Some(CoordinatorError::NoNode { path }),
            (
                Op::Set { expected: Some(expected), .. }
                | Op::Claim { expected, .. }
                | Op::Delete { expected: Some(expected), .. }
                | Op::Check { expected, .. },
                Some(current),
            ) if *expected != current => {
                Some(CoordinatorError::WrongVersion { path, expected: *expected, current })
            }
            _ => None,
        }
    }
}

/// Makes a sequential node's name unique: by the session, and by the change within it.
fn unique(path: &str, session: &Session) -> String {
    format!("{path}{}-{:08x}", session.id(), session.marks.next_name())
}

/// Refuses what etcd would, before it is sent.
fn check(ops: &[Op]) -> Result<(), CoordinatorError> {
    let mut changed = HashSet::new();
    let mut bytes = 0;
    for op in ops {
        path::check(op.path())?;
        let invalid =
            |reason| Err(CoordinatorError::InvalidRequest { path: op.path().to_owned(), reason });
        let (value_bytes, is_change) = match op {
            Op::Create { value, .. } | Op::Set { value, .. } | Op::Claim { value, .. } => {
                (value.len(), true)
            }
            Op::Delete { .. } => (0, true),
            Op::Check { .. } | Op::CheckAbsent { .. } => (0, false),
        };
        bytes += op.path().len() + value_bytes;
        if bytes > MULTI_BYTES_MAX {
            return invalid("the change is larger than the coordinator takes");
        }
        let is_sequential = matches!(op, Op::Create { mode, .. }
            if matches!(mode, CreateMode::Sequential | CreateMode::EphemeralSequential));
        if is_change && !is_sequential && !changed.insert(op.path()) {
            return invalid("one change changes the node twice");
        }
    }
    if ops.len() > MULTI_OPS_MAX {
        let path = ops[0].path().to_owned();
        let reason = "the change has more steps than the coordinator takes";
        return Err(CoordinatorError::InvalidRequest { path, reason });
    }
    Ok(())
}

/// Returns what each read of a refused change found, in order.
fn reads_of(response: &TxnResponse) -> Vec<Option<PbKeyValue>> {
    let responses = response.0.responses.iter();
    let reads = responses.filter_map(|response| match &response.response {
        Some(PbTxnOpResponse::ResponseRange(range)) => Some(range.kvs.first().cloned()),
        _ => None,
    });
    reads.collect()
}

fn version_of(response: &TxnResponse) -> Result<NodeVersion, CoordinatorError> {
    let header = response.header().ok_or_else(|| {
        CoordinatorError::Ambiguous("the coordinator's answer has no header".to_owned())
    })?;
    Ok(NodeVersion(header.revision()))
}

/// A refusal whose reason has gone by the time it was looked for, which cannot be: the refusal
/// and the reads were one transaction.
fn no_reason() -> CoordinatorError {
    CoordinatorError::Refused("for no reason that can be seen".to_owned())
}
